//! Where the `sluice` binary is. Invariant: it is built from the sources as they stand, once per test process, with the
//! profile and the target folder of the test itself, so that a fresh build is found at once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary's path; the first call of a process has cargo bring it up to date. `SLUICE_BINARY` names one that was built
/// elsewhere, and then nothing is built.
///
/// # Panics
/// When it cannot be built.
pub fn sluice() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("SLUICE_BINARY").map_or_else(build, PathBuf::from))
}

/// The repository's root.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the repository's root")
}

/// Cargo's target folder: the one that this program was built into.
#[must_use]
pub fn target_dir() -> PathBuf {
    profile_dir().parent().expect("a profile's folder stands in the target folder").into()
}

fn build() -> PathBuf {
    let profile_dir = profile_dir();
    let binary = profile_dir.join(format!("sluice{}", std::env::consts::EXE_SUFFIX));
    let target = target_dir();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The same packages as `make build`, so that features resolve alike and nothing is built a second time.
    cargo.current_dir(repository()).args(["build", "--quiet", "--workspace", "--bins", "--target-dir"]).arg(&target);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    // What the cargo that runs this test says of this package: build scripts look at some of it, and would be run again, and
    // all that depends on them built again, each time.
    let of_this_package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_this_package) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "cargo could not build the sluice binary");
    binary
}

/// `target/debug` or `target/release`: the folder above `deps` that this program was built into.
fn profile_dir() -> PathBuf {
    let program = std::env::current_exe().expect("a program knows its path");
    let folder = program.parent().expect("a program is in a folder");
    if folder.ends_with("deps") { folder.parent().expect("deps is in a folder").into() } else { folder.into() }
}
