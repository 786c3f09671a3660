//! The seam under `Batch`: where messages come from. Two implementations: the host's resource (`host.rs`, on
//! WebAssembly) and messages in memory (`testing/`, everywhere else).
//! Invariant: both behave as `wit/sluice.wit` says, index for index. Never public: authors see `Batch`.
//!
//! Contract: every index is below `len`; reads show the edits made before them; an edit never fails (what the
//! contract forbids is a trap in the host, a panic in memory). Cost: each call crosses into the host once.

use crate::{column::Column, message::Emit, message::Position};

pub(crate) trait Source {
    fn len(&self) -> u32;
    fn topic(&self) -> String;

    fn id(&self, i: u32) -> String;
    fn published_at_ms(&self, i: u32) -> u64;
    fn payload(&self, i: u32) -> Vec<u8>;
    fn payload_len(&self, i: u32) -> u32;
    fn content_type(&self, i: u32) -> String;
    fn schema_version(&self, i: u32) -> Option<String>;
    fn header(&self, i: u32, name: &str) -> Option<String>;
    fn header_names(&self, i: u32) -> Vec<String>;
    fn key(&self, i: u32) -> Option<String>;
    fn correlation_id(&self, i: u32) -> Option<String>;
    fn priority(&self, i: u32) -> u8;
    fn attempt(&self, i: u32) -> u32;
    fn position(&self, i: u32) -> Option<Position>;

    fn header_column(&self, name: &str) -> Column;
    fn payload_column(&self) -> Column;

    fn drop_message(&self, i: u32, reason: &str);
    fn reject(&self, i: u32, code: &str, message: &str, pointer: Option<&str>);
    fn set_payload(&self, i: u32, payload: &[u8]);
    fn set_content_type(&self, i: u32, content_type: &str);
    fn set_header(&self, i: u32, name: &str, value: &str);
    fn remove_header(&self, i: u32, name: &str);
    fn set_key(&self, i: u32, key: Option<&str>);
    fn emit(&self, i: u32, emit: &Emit<'_>);

    /// The host's batch. Powers are called on it directly and are no functions of this trait: all of those are linked into
    /// every plugin, and one that has no use for a power must not import it.
    #[cfg(target_family = "wasm")]
    fn host(&self) -> &crate::host::bindings::sluice::plugin::types::Batch;
    /// What the messages in memory do for `kv`; `None` removes the value.
    #[cfg(not(target_family = "wasm"))]
    fn kv_set(&self, i: u32, key: &str, value: Option<(&[u8], Option<u64>)>);
}
