//! What the fuzz targets of `tests/fuzz/` do with one input, here so that the same functions run over the corpus in every
//! `cargo test`. Invariant: a target panics if, and only if, the broker breaks a promise: it panics itself, takes what it
//! must refuse, or gives back what was not written. No input waits for time to pass.
//!
//! A target that is added: a module here, a line in [`TARGETS`], a binary in `tests/fuzz/`.

pub mod damage;
pub mod expression;
pub mod guest_edits;
pub mod journal;
pub mod jwt;
pub mod publish;
pub mod segment;

use std::path::PathBuf;

use crate::binary::repository;

/// One fuzz target.
pub struct Target {
    /// Its name: of the binary, and of its folders in `tests/fuzz/corpus` and `tests/fuzz/regressions`.
    pub name: &'static str,
    /// What it does with one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with, by file name: what a client, or the broker itself, would write.
    pub seeds: fn() -> Vec<Seed>,
}

/// The name of an input's file, and the input.
pub type Seed = (&'static str, Vec<u8>);

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "journal", run: journal::run, seeds: journal::seeds },
    Target { name: "segment", run: segment::run, seeds: segment::seeds },
    Target { name: "expression", run: expression::run, seeds: expression::seeds },
    Target { name: "jwt", run: jwt::run, seeds: jwt::seeds },
    Target { name: "publish", run: publish::run, seeds: publish::seeds },
    Target { name: "guest_edits", run: guest_edits::run, seeds: guest_edits::seeds },
];

impl Target {
    /// A folder of its inputs: `corpus` or `regressions`.
    #[must_use]
    pub fn folder(&self, kind: &str) -> PathBuf {
        repository().join("tests/fuzz").join(kind).join(self.name)
    }
}

/// The text before the first `separator`, and what follows it.
fn split_at(input: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = input.iter().position(|byte| *byte == separator)?;
    Some((&input[..at], &input[at + 1..]))
}

/// A runtime that ends with the process; one thread, so that what an input does follows from the input.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the system gives a runtime")
}
