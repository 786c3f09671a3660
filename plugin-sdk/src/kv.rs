//! Values that outlive the batch, kept by the broker for the topic and the plugin, and shared by the plugin's versions.
//! Invariant: a value that is set is kept together with the message that it is set for, so setting is a function of the
//! message ([`Message::kv_set`](crate::Message::kv_set)). Never caches: each call asks the broker.
//!
//! ```
//! use sluice_plugin::{Failure, Message, Stage, kv, serde::Deserialize};
//!
//! /// Numbers the messages of each key.
//! #[derive(Deserialize)]
//! #[serde(crate = "sluice_plugin::serde")]
//! struct Number {}
//!
//! impl Stage for Number {
//!     fn message(&self, message: &Message) -> Result<(), Failure> {
//!         let counter = format!("n:{}", message.key().unwrap_or_default());
//!         let next = kv::get_json::<u64>(&counter)?.unwrap_or(0) + 1;
//!         message.kv_set(&counter, next.to_string(), None);
//!         message.set_header("number", &next.to_string());
//!         Ok(())
//!     }
//! }
//!
//! # use sluice_plugin::testing::{Bench, Input};
//! let bench = Bench::<Number>::new("{}")?;
//! let outcomes = bench.run([Input::new("a").key("k"), Input::new("b").key("k")])?;
//! assert_eq!(outcomes[1].message.header_value("number"), Some("2"));
//! assert_eq!(bench.kv("n:k").as_deref(), Some(&b"2"[..]));
//! # Ok::<(), sluice_plugin::Error>(())
//! ```

use serde::de::DeserializeOwned;

use crate::error::Error;

/// The longest key, in bytes; a longer one is a trap.
pub const KEY_BYTES_MAX: usize = 256;

/// The longest value, in bytes; a longer one is a trap.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// The value of a key: what this batch has set, else what is kept. If somebody else changes the value before this batch is
/// stored, the batch is run again.
pub fn get(key: &str) -> Option<Vec<u8>> {
    #[cfg(target_family = "wasm")]
    return crate::host::bindings::sluice::plugin::kv::get(key);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::powers::kv_get(key)
}

/// The value of a key, read as JSON. A value that is not of this shape is the stage's own fault: the stage wrote it, perhaps
/// in an earlier version.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Error> {
    let read = |value: Vec<u8>| serde_json::from_slice(&value);
    get(key).map(read).transpose().map_err(|e| Error::new(format!("the kept value of {key:?} can't be read: {e}")))
}
