//! The work of the store's threads, done by its callers: so a simulator's run follows from its seed alone, and any failure
//! comes again. Invariant: it does what the threads do, by the same turns; only when is another's choice.

use std::time::Duration;

use super::core::Core;
use super::maintenance::Maintenance;
use super::writer::Writer;

/// See the module.
pub struct Hands {
    writer: Writer,
    maintenance: Maintenance,
}

impl Hands {
    /// What the two threads would have run.
    #[must_use]
    pub fn new(writer: Writer, maintenance: Maintenance) -> Hands {
        Hands { writer, maintenance }
    }

    /// Does all that waits.
    pub fn turn(&mut self, core: &Core) {
        while core.commands.has_work() || self.writer.holds() {
            self.writer.turn(Duration::ZERO);
            if self.writer.holds() {
                self.maintenance.turn(Duration::ZERO);
            }
        }
        if core.jobs.has_work() {
            self.work_behind();
        }
    }

    /// What the maintenance thread does now and then by itself.
    pub fn work_behind(&mut self) {
        self.maintenance.turn(Duration::ZERO);
    }

    /// The end of both threads.
    #[must_use]
    pub fn finish(mut self, core: &Core) -> Maintenance {
        self.turn(core);
        self.writer.finish();
        self.maintenance
    }
}
