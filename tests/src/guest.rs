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
    version(COMPONENT.get_or_init(|| build("tag")), b"tag-version-1", digit)
}

/// The component of `tests/guests/louder` in its version 1 or 2.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn louder(digit: u8) -> Vec<u8> {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    version(COMPONENT.get_or_init(|| build("louder")), b"loud-version-1", digit)
}

/// The component of `tests/guests/trail` in the version with this number of five digits; those from 90000 on are broken.
///
/// # Panics
/// When it cannot be built, or `number` has more digits.
#[must_use]
pub fn trail(number: u32) -> Vec<u8> {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    let (built, number) = (b"trail-version-00000", format!("{number:05}"));
    assert_eq!(number.len(), 5, "{number} has more digits");
    let mut component = COMPONENT.get_or_init(|| build("trail")).clone();
    for place in places(&component, built) {
        component[place + built.len() - number.len()..place + built.len()].copy_from_slice(number.as_bytes());
    }
    component
}

fn version(component: &[u8], built: &[u8], digit: u8) -> Vec<u8> {
    assert!(digit < 10, "{digit} is no digit");
    let mut component = component.to_vec();
    for place in places(&component, built) {
        component[place + built.len() - 1] = b'0' + digit;
    }
    component
}

fn places(component: &[u8], built: &[u8]) -> Vec<usize> {
    let places: Vec<usize> = (0..component.len()).filter(|at| component[*at..].starts_with(built)).collect();
    assert!(!places.is_empty(), "the guest holds its version");
    places
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

/// A small component that imports these powers and uses none of them; `mark` makes its bytes its own.
///
/// # Panics
/// When a power's name is no name.
#[must_use]
pub fn with_powers(powers: &[&str], mark: &str) -> Vec<u8> {
    let import = |power: &&str| format!("(import \"sluice:plugin/{power}@1.0.0\" (instance))");
    let imports: String = powers.iter().map(import).collect();
    let text = include_str!("../guests/raw.wat").replace("(; component ;)", &imports);
    let text = text.replace("(; process ;)", "(call $drop (local.get $batch))");
    with_section(&wat::parse_str(text).expect("the text is a component"), "mark", mark.as_bytes())
}

/// A component that refuses every config and says it, or the beginning of it, in doing so.
#[must_use]
pub fn tell_tale() -> Vec<u8> {
    // At 16 is what `configure` answers: an error of code 7, whose message is the first 64 bytes of its config.
    raw(r#"(data (i32.const 16) "\01\00\00\00\07\00\00\00\00\04\00\00\40\00\00\00")"#, "")
}

/// A component that takes every config, and fails on every batch with the beginning of its config as the reason.
#[must_use]
pub fn blabber() -> Vec<u8> {
    let module = r#"(data (i32.const 48) "\01\00\00\00\07\00\00\00\00\04\00\00\40\00\00\00")"#;
    raw(module, "(call $drop (local.get $batch)) (return (i32.const 48))")
}

/// A component with one more custom section at its end.
#[must_use]
pub fn with_section(component: &[u8], name: &str, data: &[u8]) -> Vec<u8> {
    let body = [leb128(name.len()).as_slice(), name.as_bytes(), data].concat();
    [component, &[0], &leb128(body.len()), &body].concat()
}

/// As WebAssembly writes lengths.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
