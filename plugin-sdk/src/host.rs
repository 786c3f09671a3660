//! The WebAssembly side: generated bindings, the host's batch as a `Source`, and the slot of the stage.
//! Invariant: one stage per instance, set by `configure` and read by `process`. Never keeps a borrowed batch.

use std::cell::OnceCell;

use crate::{
    batch::Batch,
    column::Column,
    error::Error,
    headers::Headers,
    message::{Emit, Position},
    source::Source,
    stage::Stage,
};

pub mod bindings {
    //! Generated from `wit/sluice.wit`, a copy of the contract that ships with this crate. Of the world's powers a component
    //! imports those that its code calls: nothing that every plugin holds (a `Source`'s functions) may call one.
    #![expect(missing_docs, reason = "generated; the contract carries the documentation")]
    wit_bindgen::generate!({
        path: "wit",
        world: "plugin-with-powers",
        pub_export_macro: true,
        export_macro_name: "__export_plugin",
    });
}

use bindings::sluice::plugin::types;

/// Where the exported functions keep the configured stage.
pub struct Slot<S>(OnceCell<S>);

impl<S: Stage> Slot<S> {
    /// No stage yet.
    pub const fn empty() -> Self {
        Self(OnceCell::new())
    }

    /// Reads the config and keeps the stage.
    pub fn configure(&self, config: &str) -> Result<(), types::Error> {
        let stage = S::configure(config).map_err(types::Error::from)?;
        let again = |_| Error::new("configure was called twice on one instance").into();
        self.0.set(stage).map_err(again)
    }

    /// Hands the batch to the stage.
    pub fn process(&self, messages: &types::Batch) -> Result<(), types::Error> {
        let stage = self.0.get().ok_or_else(|| Error::new("process was called before configure"))?;
        Ok(stage.process(&Batch::new(messages, &Headers::default()))?)
    }
}

impl From<Error> for types::Error {
    fn from(Error { code, message }: Error) -> Self {
        Self { code, message }
    }
}

impl From<types::Column> for Column {
    fn from(types::Column { data, lens }: types::Column) -> Self {
        Self { data, lens }
    }
}

impl Source for types::Batch {
    fn len(&self) -> u32 {
        types::Batch::len(self)
    }
    fn topic(&self) -> String {
        types::Batch::topic(self)
    }
    fn id(&self, i: u32) -> String {
        types::Batch::id(self, i)
    }
    fn published_at_ms(&self, i: u32) -> u64 {
        types::Batch::published_at(self, i)
    }
    fn payload(&self, i: u32) -> Vec<u8> {
        types::Batch::payload(self, i)
    }
    fn payload_len(&self, i: u32) -> u32 {
        types::Batch::payload_len(self, i)
    }
    fn content_type(&self, i: u32) -> String {
        types::Batch::content_type(self, i)
    }
    fn schema_version(&self, i: u32) -> Option<String> {
        types::Batch::schema_version(self, i)
    }
    fn header(&self, i: u32, name: &str) -> Option<String> {
        types::Batch::header(self, i, name)
    }
    fn header_names(&self, i: u32) -> Vec<String> {
        types::Batch::header_names(self, i)
    }
    fn key(&self, i: u32) -> Option<String> {
        types::Batch::key(self, i)
    }
    fn correlation_id(&self, i: u32) -> Option<String> {
        types::Batch::correlation_id(self, i)
    }
    fn priority(&self, i: u32) -> u8 {
        types::Batch::priority(self, i)
    }
    fn attempt(&self, i: u32) -> u32 {
        types::Batch::attempt(self, i)
    }
    fn position(&self, i: u32) -> Option<Position> {
        types::Batch::position(self, i).map(|(partition, offset)| Position { partition, offset })
    }
    fn header_column(&self, name: &str) -> Column {
        types::Batch::header_column(self, name).into()
    }
    fn payload_column(&self) -> Column {
        types::Batch::payload_column(self).into()
    }
    fn drop_message(&self, i: u32, reason: &str) {
        types::Batch::drop_message(self, i, reason);
    }
    fn reject(&self, i: u32, code: &str, message: &str, pointer: Option<&str>) {
        types::Batch::reject(self, i, code, message, pointer);
    }
    fn set_payload(&self, i: u32, payload: &[u8]) {
        types::Batch::set_payload(self, i, payload);
    }
    fn set_content_type(&self, i: u32, content_type: &str) {
        types::Batch::set_content_type(self, i, content_type);
    }
    fn set_header(&self, i: u32, name: &str, value: &str) {
        types::Batch::set_header(self, i, name, value);
    }
    fn remove_header(&self, i: u32, name: &str) {
        types::Batch::remove_header(self, i, name);
    }
    fn set_key(&self, i: u32, key: Option<&str>) {
        types::Batch::set_key(self, i, key);
    }
    fn emit(&self, i: u32, emit: &Emit<'_>) {
        let headers: Vec<_> = emit.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        types::Batch::emit(self, i, emit.topic, emit.key, emit.payload, &headers);
    }
    fn host(&self) -> &types::Batch {
        self
    }
}
