//! One call of a stage: the window of messages that the guest sees, and what it wants done to them. Invariant: a draft is
//! not changed before its stage has ended well (edits are kept beside it); what a guest makes is bounded and checked here.
//! Never trusts an index, a length or a name from the guest.

use std::ops::{Deref, Range};
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::{Error, Result};

use crate::message::{HEADERS_BYTES_MAX, HEADERS_MAX, TopicName, has_control};

use super::bindings::types::Column;
use super::draft::{Draft, Emitted, PayloadFault, Processed};
use super::kv::CallValues;
use super::limits::{self, cut};

type Headers = Vec<(Arc<str>, Arc<str>)>;

/// What `lens[i]` of a column says for a message that has no value.
const NO_VALUE: u32 = u32::MAX;

/// What a stage wants done to one message.
#[derive(Debug, Default)]
pub struct Edit {
    /// Why it goes no further.
    pub dropped: Option<String>,
    /// Why it is wrong.
    pub rejected: Vec<PayloadFault>,
    pub(super) payload: Option<Bytes>,
    pub(super) content_type: Option<Arc<str>>,
    headers: Option<Headers>,
    pub(super) key: Option<Option<Arc<str>>>,
    emitted: Vec<Emitted>,
}

impl Edit {
    /// Whether the message is other than before.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.payload.is_some() || self.content_type.is_some() || self.headers.is_some() || self.key.is_some()
    }

    /// Messages that were emitted with it.
    #[must_use]
    pub fn emitted(&self) -> usize {
        self.emitted.len()
    }

    /// Bytes that the message, and what is emitted with it, will have more than before.
    #[must_use]
    pub fn growth(&self, item: &Processed) -> u64 {
        if !self.rejected.is_empty() || self.dropped.is_some() {
            return 0; // Not carried out.
        }
        let more = |after: Option<usize>, before: usize| after.map_or(0, |after| after.saturating_sub(before));
        let payload = more(self.payload.as_ref().map(Bytes::len), item.draft.payload.len());
        let headers =
            more(self.headers.as_ref().map(|headers| headers_bytes(headers)), headers_bytes(&item.draft.headers));
        let emitted: usize = self.emitted.iter().map(|made| made.payload.len() + headers_bytes(&made.headers)).sum();
        (payload + headers + emitted) as u64
    }

    /// Carries it out.
    pub fn apply(self, item: &mut Processed) {
        if let Some(payload) = self.payload {
            item.draft.payload = payload;
        }
        if let Some(content_type) = self.content_type {
            item.draft.content_type = content_type;
        }
        if let Some(headers) = self.headers {
            item.draft.headers = headers;
        }
        if let Some(key) = self.key {
            item.draft.set_key(key);
        }
        item.emitted.extend(self.emitted);
    }
}

/// What a stage may do beyond editing.
#[derive(Debug, Clone)]
pub struct Powers {
    /// The stage's name, for what it emits.
    pub stage: Arc<str>,
    /// Where it may emit to.
    pub emit_to: Arc<[TopicName]>,
    /// Bytes of a payload that it sets; what it emits is measured by the topic that it goes to.
    pub payload_bytes_max: usize,
    /// On the way out: no key, no emit.
    pub outbound: bool,
}

/// One call of `process`: a window of the batch, and the edits so far.
#[derive(Debug)]
pub struct Call {
    /// The topic of all of them.
    pub topic: TopicName,
    /// All messages of the batch; the guest sees those in `window`.
    pub items: Vec<Processed>,
    /// Which ones the guest sees, from index 0.
    pub window: Range<usize>,
    /// One per message of the window; none for those that it leaves alone, which are most.
    pub edits: Vec<Option<Box<Edit>>>,
    /// What the stage may do.
    pub powers: Powers,
    /// Bytes that all stages of the batch may still make.
    pub producible: u64,
    /// The plugin's values, if it has asked for that power.
    pub values: Option<CallValues>,
    copyable: u64,
    emits_left: u32,
}

impl Call {
    /// The messages of `window`, untouched.
    #[must_use]
    pub fn new(topic: TopicName, items: Vec<Processed>, window: Range<usize>, powers: Powers, producible: u64) -> Call {
        let edits = window.clone().map(|_| None).collect();
        let (copyable, emits_left) = (limits::COPIED_BYTES_MAX, limits::EMITS_MAX);
        Call { topic, items, window, edits, powers, producible, values: None, copyable, emits_left }
    }

    fn place(&self, i: u32) -> Result<usize> {
        let place = self.window.start.saturating_add(i as usize);
        if place < self.window.end {
            return Ok(place);
        }
        Err(Error::msg(format!("message index {i} is out of range: the batch has {}", self.window.len())))
    }

    pub(super) fn place_in_window(&self, i: u32) -> Result<usize> {
        Ok(self.place(i)? - self.window.start)
    }

    pub(super) fn values(&mut self) -> Result<&mut CallValues> {
        self.values.as_mut().ok_or_else(|| Error::msg("its component does not import sluice:plugin/kv"))
    }

    pub(super) fn draft(&self, i: u32) -> Result<&Draft> {
        Ok(&self.items[self.place(i)?].draft)
    }

    pub(super) fn edit(&mut self, i: u32) -> Result<&mut Edit> {
        let place = self.place_in_window(i)?;
        Ok(self.edits[place].get_or_insert_default())
    }

    /// A message with what has been done to it so far.
    fn edited(&self, i: u32) -> Result<(&Draft, Option<&Edit>)> {
        let place = self.place(i)?;
        Ok((&self.items[place].draft, self.edits[place - self.window.start].as_deref()))
    }

    pub(super) fn content_type(&self, i: u32) -> Result<&Arc<str>> {
        let (draft, edit) = self.edited(i)?;
        Ok(edit.and_then(|edit| edit.content_type.as_ref()).unwrap_or(&draft.content_type))
    }

    pub(super) fn headers(&self, i: u32) -> Result<&Headers> {
        let (draft, edit) = self.edited(i)?;
        Ok(edit.and_then(|edit| edit.headers.as_ref()).unwrap_or(&draft.headers))
    }

    pub(super) fn header(&self, i: u32, name: &str) -> Result<Option<&Arc<str>>> {
        Ok(self.headers(i)?.iter().find(|(known, _)| &**known == name).map(|(_, value)| value))
    }

    pub(super) fn headers_mut(&mut self, i: u32) -> Result<&mut Headers> {
        let place = self.place(i)?;
        let before = &self.items[place].draft.headers;
        let edit = self.edits[place - self.window.start].get_or_insert_default();
        Ok(edit.headers.get_or_insert_with(|| before.clone()))
    }

    pub(super) fn payload(&self, i: u32) -> Result<&Bytes> {
        let (draft, edit) = self.edited(i)?;
        Ok(edit.and_then(|edit| edit.payload.as_ref()).unwrap_or(&draft.payload))
    }

    pub(super) fn key(&self, i: u32) -> Result<&Option<Arc<str>>> {
        let (draft, edit) = self.edited(i)?;
        Ok(edit.and_then(|edit| edit.key.as_ref()).unwrap_or(&draft.key))
    }

    /// Counts bytes on their way between host and guest.
    pub(super) fn copy(&mut self, bytes: usize) -> Result<()> {
        self.copyable = self.copyable.checked_sub(bytes as u64).ok_or_else(|| {
            Error::msg(format!("the call copied more than {} bytes between host and plugin", limits::COPIED_BYTES_MAX))
        })?;
        Ok(())
    }

    /// Counts bytes that the host keeps for the guest.
    pub(super) fn produce(&mut self, bytes: usize) -> Result<()> {
        self.copy(bytes)?;
        self.producible = self.producible.checked_sub(bytes as u64).ok_or_else(|| {
            Error::msg(format!("the stages made more than {} bytes of one batch", limits::PRODUCED_BYTES_MAX))
        })?;
        Ok(())
    }

    pub(super) fn column(&mut self, value: impl Fn(&Call, u32) -> Result<Option<&[u8]>>) -> Result<Column> {
        let len = self.window.len() as u32;
        let mut bytes = 0;
        for i in 0..len {
            bytes += value(self, i)?.map_or(0, <[u8]>::len);
        }
        self.copy(bytes + self.window.len() * size_of::<u32>())?;
        let mut column = Column { data: Vec::with_capacity(bytes), lens: Vec::with_capacity(self.window.len()) };
        for i in 0..len {
            column.lens.push(match value(self, i)? {
                Some(value) => {
                    column.data.extend_from_slice(value);
                    value.len() as u32
                }
                None => NO_VALUE,
            });
        }
        Ok(column)
    }

    pub(super) fn set_header(&mut self, i: u32, name: &str, value: &str) -> Result<()> {
        self.produce(name.len() + value.len())?;
        let headers = self.headers_mut(i)?;
        match headers.iter_mut().find(|(known, _)| &**known == name) {
            Some((_, old)) => *old = value.into(),
            None => headers.push((name.into(), value.into())),
        }
        check_headers(headers.iter().map(|(name, value)| (&**name, &**value)))
    }

    pub(super) fn emit(
        &mut self,
        i: u32,
        topic: String,
        key: Option<String>,
        payload: Vec<u8>,
        headers: Vec<(String, String)>,
    ) -> Result<()> {
        if self.powers.outbound {
            return Err(Error::msg("`emit` is refused on the way out"));
        }
        let Some(topic) = self.powers.emit_to.iter().find(|allowed| allowed.as_str() == topic).cloned() else {
            return Err(Error::msg(format!("it emitted to '{}', which is not in its `emitTo`", cut(topic, 255))));
        };
        self.emits_left = self
            .emits_left
            .checked_sub(1)
            .ok_or_else(|| Error::msg(format!("it emitted more than {} messages in one call", limits::EMITS_MAX)))?;
        check_payload(&payload, limits::PAYLOAD_BYTES_MAX)?;
        check_key(key.as_deref())?;
        check_headers(headers.iter().map(|(name, value)| (&**name, &**value)))?;
        self.produce(payload.len() + headers_bytes(&headers) + key.as_ref().map_or(0, String::len))?;
        let headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let stage = Arc::clone(&self.powers.stage);
        let lot = self.items[self.place(i)?].draft.lot();
        let key = key.map(Arc::from);
        self.edit(i)?.emitted.push(Emitted { topic, key, payload: payload.into(), headers, stage, lot });
        Ok(())
    }
}

fn headers_bytes<T: Deref<Target = str>>(headers: &[(T, T)]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len()).sum()
}

pub(super) fn check_payload(payload: &[u8], bytes_max: usize) -> Result<()> {
    if payload.len() <= bytes_max {
        return Ok(());
    }
    Err(Error::msg(format!("a payload of {} bytes: the topic takes at most {bytes_max}", payload.len())))
}

pub(super) fn check_key(key: Option<&str>) -> Result<()> {
    match key {
        Some(key) if key.is_empty() || key.len() > limits::KEY_BYTES_MAX => {
            Err(Error::msg(format!("a partition key has 1 to {} bytes, this one {}", limits::KEY_BYTES_MAX, key.len())))
        }
        _ => Ok(()),
    }
}

fn check_headers<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in headers {
        if name.is_empty() || has_control(name) || has_control(value) {
            return Err(Error::msg("a header has no name, or holds a control character other than a tab"));
        }
        (count, bytes) = (count + 1, bytes + name.len() + value.len());
    }
    if count <= HEADERS_MAX && bytes <= HEADERS_BYTES_MAX {
        return Ok(());
    }
    Err(Error::msg(format!(
        "{count} headers of {bytes} bytes: a message has at most {HEADERS_MAX} of {HEADERS_BYTES_MAX} bytes together"
    )))
}
