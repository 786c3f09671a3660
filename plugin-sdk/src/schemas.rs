//! The broker's registered schemas, to read.
//! Invariant: they are asked for while the stage is configured (`TryFrom<Config>`, [`Stage::configure`](crate::Stage)) and
//! nowhere else: when one that was asked for changes, the stage is configured anew. Never changes one.
//!
//! ```
//! use sluice_plugin::{Stage, schemas, serde::Deserialize, serde_json::Value, testing::Bench};
//!
//! #[derive(Deserialize)]
//! #[serde(crate = "sluice_plugin::serde")]
//! struct Config { schema: String }
//!
//! #[derive(Deserialize)]
//! #[serde(crate = "sluice_plugin::serde", try_from = "Config")]
//! struct Checked { schema: Value }
//!
//! impl TryFrom<Config> for Checked {
//!     type Error = String;
//!     fn try_from(config: Config) -> Result<Self, String> {
//!         let text = schemas::get(&config.schema).ok_or("there is no such schema")?;
//!         Ok(Self { schema: sluice_plugin::serde_json::from_str(&text).map_err(|e| e.to_string())? })
//!     }
//! }
//! impl Stage for Checked {}
//!
//! let bench = Bench::<Checked>::with_schemas(r#"{"schema": "order"}"#, [("order", r#"{"type": "object"}"#)])?;
//! # Ok::<(), sluice_plugin::Error>(())
//! ```

/// The definition (a JSON Schema) of the version that validates now; `None` if no version of `id` is approved. Elsewhere than
/// while the stage is configured it is a trap.
pub fn get(id: &str) -> Option<String> {
    #[cfg(target_family = "wasm")]
    return crate::host::bindings::sluice::plugin::schemas::get(id);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::powers::schema(id)
}
