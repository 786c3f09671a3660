//! What a broker's process holds of the system at one moment. Invariant: read from the system's own books, not from what
//! the broker says of itself; a figure is never an average. Linux only, as the suites are.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::Broker;
use crate::broker::files_below;

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory in use.
    pub resident_bytes: u64,
    /// Open files, sockets and the like.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes on disk of all that the broker keeps.
    pub disk_bytes: u64,
}

impl Usage {
    /// Of a broker that runs.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn of(broker: &Broker) -> Usage {
        let process = broker.process_id();
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the broker runs");
        Usage {
            resident_bytes: figure(&status, "VmRSS:") * 1024,
            descriptors: fs::read_dir(format!("/proc/{process}/fd")).expect("the broker runs").count() as u64,
            threads: figure(&status, "Threads:"),
            disk_bytes: disk_bytes(&broker.data_dir()),
        }
    }
}

/// The number behind `name` in `/proc/…/status`; sizes there are in kB.
fn figure(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("Linux says {name}"));
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Bytes that all files below `folder` take on disk: blocks, so that room which is reserved counts and holes do not.
#[must_use]
pub fn disk_bytes(folder: &Path) -> u64 {
    // One that is gone meanwhile takes nothing.
    files_below(folder).iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.blocks() * 512).sum()
}
