//! The `sluice` binary: the allocator with its kind of pages, and the command line. Holds nothing else.

use std::process::ExitCode;

/// Messages are many small allocations on many threads, which this one serves without locks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    without_huge_pages();
    sluice::cli::main()
}

/// Memory that is given back stays given back. Where a page of 2 MiB may be, the kernel puts one, also over the holes that
/// the allocator has left in it, so that under load the memory in use grows for as long as it runs, to many times what is
/// held. See `docs/adr/0011-no-huge-pages.md`.
fn without_huge_pages() {
    // SAFETY: it takes no pointers. A kernel that knows none of it goes on as it did.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}
