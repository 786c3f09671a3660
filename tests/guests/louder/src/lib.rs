//! A test guest: its second version writes the first `"action": "opened"` of a payload in capitals, its first changes nothing.
//! Invariant: the version is one constant in the data, [`VERSION`], which tests overwrite in the component's bytes to make the
//! other version. Never touches another byte of a payload.

wit_bindgen::generate!({ path: "../../../wit", world: "plugin" });

use exports::sluice::plugin::stage::{Batch, Error, Guest};

/// `loud-version-` and 1 or 2.
static VERSION: &str = "loud-version-1";

struct Louder;

impl Guest for Louder {
    fn configure(_: String) -> Result<(), Error> {
        Ok(())
    }

    fn process(batch: &Batch) -> Result<(), Error> {
        if !std::hint::black_box(VERSION).ends_with('2') {
            return Ok(());
        }
        for i in 0..batch.len() {
            let mut payload = batch.payload(i);
            if let Some(at) = place(&payload) {
                payload[at..at + b"opened".len()].make_ascii_uppercase();
                batch.set_payload(i, &payload);
            }
        }
        Ok(())
    }
}

/// Where `opened` begins.
fn place(payload: &[u8]) -> Option<usize> {
    let key = b"\"action\"";
    let after = payload.windows(key.len()).position(|part| part == key)? + key.len();
    let rest = &payload[after..];
    let value = rest.iter().position(|byte| !matches!(byte, b' ' | b':' | b'\n' | b'\t'))?;
    rest[value..].starts_with(b"\"opened\"").then_some(after + value + 1)
}

export!(Louder);
