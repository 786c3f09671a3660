//! The messages at hand, borrowed for the length of one `process`.
//! Invariant: a batch outlives no call (its lifetime says so; the host would trap). Never copies what isn't asked for.

use crate::{
    column::{HeaderColumn, PayloadColumn},
    headers::Headers,
    message::Message,
    source::Source,
};

/// 1 to 128 messages of one topic. Edits go through the messages; what is not touched passes unchanged.
pub struct Batch<'a> {
    pub(crate) source: &'a dyn Source,
    headers: &'a Headers,
    len: u32,
}

impl<'a> Batch<'a> {
    /// `headers`: of nothing that was read yet.
    pub(crate) fn new(source: &'a dyn Source, headers: &'a Headers) -> Self {
        Self { source, headers, len: source.len() }
    }

    /// How many messages there are.
    #[expect(clippy::len_without_is_empty, reason = "a batch holds at least one message")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The topic that all of them belong to.
    pub fn topic(&self) -> String {
        self.source.topic()
    }

    /// The messages in order.
    pub fn iter(&self) -> Messages<'a> {
        Messages { source: self.source, headers: self.headers, next: 0, len: self.len }
    }

    /// One header of every message, in one copy. [`Message::header`] comes to the same by itself, but for a copy of each value.
    ///
    /// ```
    /// # use sluice_plugin::Batch;
    /// # fn process(batch: &Batch) {
    /// for (message, kind) in batch.iter().zip(batch.header_column("kind").iter()) {
    ///     if kind.is_none() { message.drop("no kind"); }
    /// }
    /// # }
    /// ```
    pub fn header_column(&self, name: &str) -> HeaderColumn {
        HeaderColumn(self.source.header_column(name))
    }

    /// Every payload, in one copy. Needs memory for all of them together; worth it for small payloads.
    pub fn payload_column(&self) -> PayloadColumn {
        PayloadColumn(self.source.payload_column())
    }
}

impl<'a> IntoIterator for &Batch<'a> {
    type Item = Message<'a>;
    type IntoIter = Messages<'a>;

    fn into_iter(self) -> Messages<'a> {
        self.iter()
    }
}

/// The messages of a batch, in order.
pub struct Messages<'a> {
    source: &'a dyn Source,
    headers: &'a Headers,
    next: u32,
    len: u32,
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        if self.next == self.len {
            return None;
        }
        let message = Message::new(self.source, self.headers, self.next);
        self.next += 1;
        Some(message)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.len - self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Messages<'_> {}
