//! What `/metrics` says of the embedded store. Invariant: no label, so nothing grows with what is stored. Never measures
//! anything but the journal's syncs; the rest is read from the state when it is asked for.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntGauge, Registry};

use super::core::Core;

/// From a disk with a protected write cache to one that can hardly be used.
const SYNC_BUCKETS: [f64; 12] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

/// Times of the journal's syncs, whether or not anyone asks for them.
#[must_use]
pub fn syncs() -> Histogram {
    let options = HistogramOpts::new("sluice_journal_sync_duration_seconds", "Time of one fdatasync of the journal.");
    Histogram::with_opts(options.buckets(SYNC_BUCKETS.to_vec())).expect("the name and the buckets are well formed")
}

/// The figures of one open store.
struct Figures {
    core: Weak<Core>,
    syncs: Histogram,
    journal_bytes: IntGauge,
    damaged_partitions: IntGauge,
}

/// Adds the figures of the store to `registry`.
///
/// # Errors
/// When they are registered already.
pub fn register(core: &Arc<Core>, registry: &Registry) -> prometheus::Result<()> {
    let journal_bytes = IntGauge::new(
        "sluice_journal_size_bytes",
        "Bytes in the journal that no checkpoint has replaced since this process started.",
    )?;
    let damaged_partitions =
        IntGauge::new("sluice_store_damaged_partitions", "Partitions that stopped at damage in their files.")?;
    let (core, syncs) = (Arc::downgrade(core), core.syncs.clone());
    registry.register(Box::new(Figures { core, syncs, journal_bytes, damaged_partitions }))
}

impl Collector for Figures {
    fn desc(&self) -> Vec<&Desc> {
        [self.syncs.desc(), self.journal_bytes.desc(), self.damaged_partitions.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(core) = self.core.upgrade() {
            let damaged = core.state.lock().damaged_partitions();
            self.damaged_partitions.set(i64::try_from(damaged).unwrap_or(i64::MAX));
            let bytes = core.journal_bytes.load(Ordering::Relaxed);
            self.journal_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        [self.syncs.collect(), self.journal_bytes.collect(), self.damaged_partitions.collect()].concat()
    }
}
