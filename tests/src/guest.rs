//! Guest programs of the suites, built to WebAssembly. Invariant: built from `tests/guests/` as it stands, once per
//! process. Never built into the broker.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::binary;

/// The component of `tests/guests/filter-v2`: takes the first-party filter's config and also passes what is critical.
///
/// # Panics
/// When it cannot be built.
pub fn filter_v2() -> &'static [u8] {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    COMPONENT.get_or_init(|| build("filter-v2"))
}

/// The component of `tests/guests/hostile`: does to the broker what the header `do` of each message says.
///
/// # Panics
/// When it cannot be built.
pub fn hostile() -> &'static [u8] {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    COMPONENT.get_or_init(|| build("hostile"))
}

/// The component of `tests/guests/tag` that says `tag-version-` and `digit`: one build a digit.
///
/// # Panics
/// When it cannot be built, or `digit` is none.
#[must_use]
pub fn tag(digit: u8) -> Vec<u8> {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    const BUILT: &[u8] = b"tag-version-1";
    assert!(digit < 10, "{digit} is no digit");
    let mut component = COMPONENT.get_or_init(|| build("tag")).clone();
    let places: Vec<usize> = (0..component.len()).filter(|at| component[*at..].starts_with(BUILT)).collect();
    assert!(!places.is_empty(), "the guest holds its version");
    for place in places {
        component[place + BUILT.len() - 1] = b'0' + digit;
    }
    component
}

/// The component of `tests/guests/edits`: calls the host as the first message's payload says.
///
/// # Panics
/// When it cannot be built.
pub fn edits() -> &'static [u8] {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    COMPONENT.get_or_init(|| build("edits"))
}

/// The component of `tests/guests/powers`: uses values, figures and schemas as the header `do` of each message says.
///
/// # Panics
/// When it cannot be built.
pub fn powers() -> &'static [u8] {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    COMPONENT.get_or_init(|| build("powers"))
}

/// A component from the text of `tests/guests/raw.wat`, with this in its module and in its function `process`.
///
/// # Panics
/// When the text is none.
#[must_use]
pub fn raw(module: &str, process: &str) -> Vec<u8> {
    let text = include_str!("../guests/raw.wat").replace("(; module ;)", module).replace("(; process ;)", process);
    wat::parse_str(text).expect("the text is a component")
}

/// A plugin that the broker brings, as it was built into it.
///
/// # Panics
/// When the broker was not built.
#[must_use]
pub fn first_party(name: &str) -> Vec<u8> {
    binary::sluice();
    let file = format!("wasm/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"));
    let component = binary::target_dir().join(file);
    std::fs::read(&component).unwrap_or_else(|error| panic!("{}: {error}", component.display()))
}

fn build(name: &str) -> Vec<u8> {
    // A folder of its own, for two reasons: cargo's lock on the broker's is not waited for, and the profile is another.
    let target: PathBuf = binary::target_dir().join("guests");
    let manifest = binary::repository().join("tests/guests").join(name).join("Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What is meant for the program that asks (the fuzzer's instrumentation) is not for its guests.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    let status = cargo
        .args(["build", "--quiet", "--release", "--target", "wasm32-wasip2", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo starts");
    assert!(status.success(), "cargo could not build the guest {name}");
    let component = target.join("wasm32-wasip2/release").join(format!("{}.wasm", name.replace('-', "_")));
    std::fs::read(&component).unwrap_or_else(|error| panic!("{}: {error}", component.display()))
}
