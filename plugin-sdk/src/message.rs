//! One message of a batch: lazy getters, and the verdicts and edits on it.
//! Invariant: each method is at most one call into the host, and an edit is seen by the next read.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Rejection},
    headers::Headers,
    source::Source,
};

/// Where a message is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The partition of the topic.
    pub partition: u32,
    /// The offset in that partition.
    pub offset: u64,
}

/// A further message to publish; see [`Message::emit`].
#[derive(Clone, Debug, Default)]
pub struct Emit<'e> {
    /// The topic it goes to, one of the stage's declared `emitTo`.
    pub topic: &'e str,
    /// Its partition key.
    pub key: Option<&'e str>,
    /// Its payload.
    pub payload: &'e [u8],
    /// Its headers.
    pub headers: &'e [(&'e str, &'e str)],
}

/// One message of the batch. Copying it copies a reference.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    source: &'a dyn Source,
    headers: &'a Headers,
    index: u32,
}

impl<'a> Message<'a> {
    pub(crate) fn new(source: &'a dyn Source, headers: &'a Headers, index: u32) -> Self {
        Self { source, headers, index }
    }

    /// Its place in the batch, from 0.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// Its id (UUIDv7, textual).
    pub fn id(&self) -> String {
        self.source.id(self.index)
    }

    /// When it was published, in milliseconds since 1970-01-01T00:00:00Z.
    pub fn published_at_ms(&self) -> u64 {
        self.source.published_at_ms(self.index)
    }

    /// The payload's bytes.
    pub fn payload(&self) -> Vec<u8> {
        self.source.payload(self.index)
    }

    /// The payload's length in bytes, without copying it.
    pub fn payload_len(&self) -> usize {
        self.source.payload_len(self.index) as usize
    }

    /// The payload read as JSON. What isn't JSON, or not of this shape, is a rejection of this message
    /// ([`NOT_JSON`](crate::NOT_JSON), [`UNEXPECTED_JSON`](crate::UNEXPECTED_JSON)).
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Rejection> {
        Ok(serde_json::from_slice(&self.payload())?)
    }

    /// The payload's media type.
    pub fn content_type(&self) -> String {
        self.source.content_type(self.index)
    }

    /// The version of the schema that the publisher names, if any.
    pub fn schema_version(&self) -> Option<String> {
        self.source.schema_version(self.index)
    }

    /// The value of one header. Names are compared as given, case and all. Asked for a second message of the batch, it is
    /// fetched for all of them at once.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.get(self.source, self.index, name)
    }

    /// The names of all headers, in the order of the message.
    pub fn header_names(&self) -> Vec<String> {
        self.source.header_names(self.index)
    }

    /// The partition key, if any.
    pub fn key(&self) -> Option<String> {
        self.source.key(self.index)
    }

    /// The correlation id, if any.
    pub fn correlation_id(&self) -> Option<String> {
        self.source.correlation_id(self.index)
    }

    /// 0 (the usual) to 9 (the most urgent).
    pub fn priority(&self) -> u8 {
        self.source.priority(self.index)
    }

    /// The number of the delivery attempt: 0 before the message is stored, from 1 on the way out.
    pub fn attempt(&self) -> u32 {
        self.source.attempt(self.index)
    }

    /// Where the message is stored; `None` before it is.
    pub fn position(&self) -> Option<Position> {
        self.source.position(self.index)
    }

    /// The message goes no further, and that is well: it counts as dropped, not as failed.
    pub fn drop(&self, reason: &str) {
        self.source.drop_message(self.index, reason);
    }

    /// The message is wrong. May be called more than once: every fault is reported.
    pub fn reject(&self, rejection: Rejection) {
        let Rejection { code, message, pointer } = rejection;
        self.source.reject(self.index, &code, &message, pointer.as_deref());
    }

    /// Replaces the payload.
    pub fn set_payload(&self, payload: impl AsRef<[u8]>) {
        self.source.set_payload(self.index, payload.as_ref());
    }

    /// Replaces the payload by a value's JSON. A value that can't be written as JSON (a map whose keys are no
    /// strings) is the stage's own fault.
    pub fn set_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Error> {
        let text = serde_json::to_vec(value).map_err(|e| Error::new(format!("the new payload is no JSON: {e}")))?;
        self.set_payload(text);
        Ok(())
    }

    /// Replaces the payload's media type.
    pub fn set_content_type(&self, content_type: &str) {
        self.source.set_content_type(self.index, content_type);
    }

    /// Sets or adds a header.
    pub fn set_header(&self, name: &str, value: &str) {
        self.source.set_header(self.index, name, value);
        self.headers.edited(name);
    }

    /// Removes a header; nothing happens if it is not there.
    pub fn remove_header(&self, name: &str) {
        self.source.remove_header(self.index, name);
        self.headers.edited(name);
    }

    /// Sets or removes the partition key. On the way out this is a trap: the message is stored.
    pub fn set_key(&self, key: Option<&str>) {
        self.source.set_key(self.index, key);
    }

    /// Publishes a further message, together with this one and not without it. A topic outside the stage's
    /// `emitTo` is a trap, and so is emitting on the way out.
    ///
    /// ```
    /// # use sluice_plugin::{Emit, Message};
    /// # fn process(message: &Message) {
    /// message.emit(Emit { topic: "audit", payload: b"{}", ..Emit::default() });
    /// # }
    /// ```
    pub fn emit(&self, emit: Emit<'_>) {
        self.source.emit(self.index, &emit);
    }

    /// Sets a value of [`kv`](crate::kv) for the sake of this message: it is kept together with the message, and not at all
    /// if that one is not stored. With a `ttl` it is gone after so long (at least a millisecond). On the way out this is a
    /// trap, and so is a key of more than 256 bytes or a value of more than 64 KiB.
    pub fn kv_set(&self, key: &str, value: impl AsRef<[u8]>, ttl: Option<Duration>) {
        // A fraction of a millisecond is rounded up: a value that lives shortly must not live not at all.
        let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1));
        #[cfg(target_family = "wasm")]
        crate::host::bindings::sluice::plugin::kv::set(self.source.host(), self.index, key, value.as_ref(), ttl_ms);
        #[cfg(not(target_family = "wasm"))]
        self.source.kv_set(self.index, key, Some((value.as_ref(), ttl_ms)));
    }

    /// Removes a value of [`kv`](crate::kv) for the sake of this message. On the way out this is a trap.
    pub fn kv_delete(&self, key: &str) {
        #[cfg(target_family = "wasm")]
        crate::host::bindings::sluice::plugin::kv::delete(self.source.host(), self.index, key);
        #[cfg(not(target_family = "wasm"))]
        self.source.kv_set(self.index, key, None);
    }
}
