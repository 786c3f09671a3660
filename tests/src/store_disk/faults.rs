//! What a disk does wrong when it is told to. Invariant: each fault strikes once, at the operation it is armed for; a full
//! disk stays full until it is told otherwise. Never decides when.

use std::io;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// An operation that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A write, of which any part gets there.
    Write,
    /// A sync: of what was written since the last one, any part is on the disk, and the rest never will be, whatever
    /// later syncs say.
    Sync,
    /// A read.
    Read,
    /// Creating, opening or renaming a file.
    Name,
    /// A directory's sync: none of its new names is on the disk.
    SyncDir,
}

/// The faults to come.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    armed: Vec<(Fault, u32)>,
    /// How often a fault has struck.
    pub(super) struck: u32,
    /// No file grows, none is made.
    pub(super) full: bool,
    /// Decides how much of a write gets there, and how short a read is: each time the next number's sequence.
    seed: u64,
}

impl Faults {
    pub(super) fn none(seed: u64) -> Faults {
        Faults { armed: Vec::new(), struck: 0, full: false, seed }
    }

    pub(super) fn chance(&mut self) -> StdRng {
        self.seed = self.seed.wrapping_add(1);
        StdRng::seed_from_u64(self.seed)
    }

    /// The next operation of the kind but `after` fails.
    pub(super) fn arm(&mut self, fault: Fault, after: u32) {
        self.armed.push((fault, after));
    }

    pub(super) fn heal(&mut self) {
        self.armed.clear();
        self.full = false;
    }

    /// Whether this operation fails.
    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        let mut strikes = false;
        self.armed.retain_mut(|(armed, after)| {
            if *armed != fault {
                return true;
            }
            let now = *after == 0 && !strikes;
            strikes |= now;
            *after = after.saturating_sub(1);
            !now
        });
        self.struck += u32::from(strikes);
        strikes
    }

    /// As `strikes`, for operations that have no half.
    pub(super) fn check(&mut self, fault: Fault) -> io::Result<()> {
        if self.strikes(fault) {
            Err(io::Error::other(format!("the disk was told to fail: {fault:?}")))
        } else {
            Ok(())
        }
    }

    pub(super) fn check_room(&mut self) -> io::Result<()> {
        self.struck += u32::from(self.full);
        if self.full { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }

    /// How much of a read of `len` bytes is answered.
    pub(super) fn read_len(&mut self, len: usize) -> usize {
        if len > 1 { self.chance().random_range(1..=len) } else { len }
    }
}
