//! The `sluice` binary: the allocator, and the command line. Holds nothing else.

use std::process::ExitCode;

/// Messages are many small allocations on many threads, which this one serves without locks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sluice::cli::main()
}
