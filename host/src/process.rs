//! What the process arranges with the operating system before it serves. Invariant: a limit that the system sets fails the
//! one call that meets it; it neither ends the process nor starves what must go on. Never reads the configuration.

/// Has a write beyond `RLIMIT_FSIZE` fail as on a full disk, and be answered like it. By default its signal ends the
/// process, in the middle of whatever else is under way.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is installed that could run; ignoring a signal is sound at any time.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Raises the limit of open files as far as the system lets everybody, and answers it. Programs that keep handles in
/// bit sets of 1024 are why it is low by default; this is none.
#[must_use]
pub fn open_files_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing during the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return u64::MAX;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: `raised` is valid for reading during the call.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0;
    if done { limit.rlim_max } else { limit.rlim_cur }
}

/// How many connections leave as many handles for files and webhooks.
#[must_use]
pub fn connections_within(open_files_max: u64) -> usize {
    usize::try_from(open_files_max / 2).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_handles_for_files() {
        assert_eq!(connections_within(1024), 512);
        assert_eq!(connections_within(1), 1);
        assert!(open_files_max() > 0);
    }
}
