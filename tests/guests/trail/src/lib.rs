//! A test guest: adds to the header `trail` of every message what it was configured with and its version, as
//! `{config}@{version};`, so that a message shows all stages that it passed, and twice what passed it twice. A version that
//! begins with 9 is a broken one: it traps on messages whose payload ends in 7. Invariant: the version is one constant in
//! the data, [`VERSION`], which tests overwrite in the component's bytes to make another version.

use std::sync::OnceLock;

wit_bindgen::generate!({ path: "../../../wit", world: "plugin" });

use exports::sluice::plugin::stage::{Batch, Error, Guest};

/// `trail-version-` and five digits.
static VERSION: &str = "trail-version-00000";

/// What this instance was configured with.
static CONFIG: OnceLock<String> = OnceLock::new();

struct Trail;

impl Guest for Trail {
    fn configure(config: String) -> Result<(), Error> {
        // An instance is configured once.
        let _ = CONFIG.set(config);
        Ok(())
    }

    fn process(batch: &Batch) -> Result<(), Error> {
        let config = CONFIG.get().map_or("", String::as_str);
        let version = std::hint::black_box(VERSION).trim_start_matches("trail-version-");
        for i in 0..batch.len() {
            assert!(!(version.starts_with('9') && batch.payload(i).ends_with(b"7")), "a broken version");
            let before = batch.header(i, "trail").unwrap_or_default();
            batch.set_header(i, "trail", &format!("{before}{config}@{version};"));
        }
        Ok(())
    }
}

export!(Trail);
