//! A test guest: sets the header `tag` of every message to its version; with a config that holds `"stamp"` also the header
//! `config` to the config's text, so that a message shows which revision it met. With one that holds `"out"` the two headers
//! are `out-tag` and `out-config`. Invariant: the version is one constant in the data, [`VERSION`], which tests overwrite in
//! the component's bytes to make another version.

use std::sync::OnceLock;

wit_bindgen::generate!({ path: "../../../wit", world: "plugin" });

use exports::sluice::plugin::stage::{Batch, Error, Guest};

/// `tag-version-` and a digit.
static VERSION: &str = "tag-version-1";

/// What this instance was configured with.
static CONFIG: OnceLock<String> = OnceLock::new();

struct Tag;

impl Guest for Tag {
    /// Refuses a config that holds `"refuse": "…"` with its own version in it.
    fn configure(config: String) -> Result<(), Error> {
        let version = std::hint::black_box(VERSION);
        if config.contains(&format!("\"refuse\":\"{version}\"")) {
            return Err(Error { code: 7, message: format!("{version} does not like this config") });
        }
        // An instance is configured once.
        let _ = CONFIG.set(config);
        Ok(())
    }

    fn process(batch: &Batch) -> Result<(), Error> {
        let config = CONFIG.get().map_or("", String::as_str);
        let (tag, shown) = match (config.contains("\"out\""), config.contains("\"stamp\"")) {
            (true, _) => ("out-tag", Some("out-config")),
            (false, true) => ("tag", Some("config")),
            (false, false) => ("tag", None),
        };
        for i in 0..batch.len() {
            batch.set_header(i, tag, std::hint::black_box(VERSION));
            if let Some(shown) = shown {
                batch.set_header(i, shown, config);
            }
        }
        Ok(())
    }
}

export!(Tag);
