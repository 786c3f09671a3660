//! A test guest: sets the header `tag` of every message to its version. Invariant: the version is one constant in the
//! data, [`VERSION`], which tests overwrite in the component's bytes to make another version.

wit_bindgen::generate!({ path: "../../../wit", world: "plugin" });

use exports::sluice::plugin::stage::{Batch, Error, Guest};

/// `tag-version-` and a digit.
static VERSION: &str = "tag-version-1";

struct Tag;

impl Guest for Tag {
    /// Refuses a config that holds `"refuse": "…"` with its own version in it.
    fn configure(config: String) -> Result<(), Error> {
        let version = std::hint::black_box(VERSION);
        if config.contains(&format!("\"refuse\":\"{version}\"")) {
            return Err(Error { code: 7, message: format!("{version} does not like this config") });
        }
        Ok(())
    }

    fn process(batch: &Batch) -> Result<(), Error> {
        for i in 0..batch.len() {
            batch.set_header(i, "tag", std::hint::black_box(VERSION));
        }
        Ok(())
    }
}

export!(Tag);
