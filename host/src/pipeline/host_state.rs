//! The host's side of the plugin world: the batch at hand, read and edited by index. Invariant: a batch is in the store
//! only while `process` runs; a draft is not changed before its stage has ended well (edits are kept beside it). Never
//! trusts an index, a length or a name from the guest.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime::{Error, Result};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::clock::Clock;
use crate::message::{HEADERS_BYTES_MAX, HEADERS_MAX, TopicName};

use super::bindings::log;
use super::bindings::types::{self, Batch, Column};
use super::draft::{Draft, Emitted, PayloadFault};
use super::limits::{self, CpuBudget, MemoryLimit, cut};
use super::plugin_log::{LogLevel, LogStream, PluginLog};
use super::sandbox;

type Headers = Vec<(Arc<str>, Arc<str>)>;

/// What `lens[i]` of a column says for a message that has no value.
const NO_VALUE: u32 = u32::MAX;

/// What a store holds.
pub struct HostState {
    wasi: WasiCtx,
    table: ResourceTable,
    log: Arc<PluginLog>,
    stderr: LogStream,
    /// What the call under way may compute.
    pub cpu: CpuBudget,
    /// What the instance may hold.
    pub memory: MemoryLimit,
    /// The batch, while `process` runs.
    pub call: Option<Call>,
}

impl HostState {
    /// Of an instance that logs to `log` and may hold `memory_bytes`.
    #[must_use]
    pub fn new(log: Arc<PluginLog>, clock: Clock, memory_bytes: usize) -> HostState {
        let stdout = LogStream::new(Arc::clone(&log), LogLevel::Info);
        let stderr = LogStream::new(Arc::clone(&log), LogLevel::Warn);
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits::HANDLES_MAX);
        let wasi = sandbox::context(clock, stdout, stderr.clone());
        let (cpu, memory) = (CpuBudget::new(), MemoryLimit::new(memory_bytes));
        HostState { wasi, table, log, stderr, cpu, memory, call: None }
    }

    /// What the guest last wrote to stderr: the text of a panic.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        self.stderr.take_last()
    }

    fn call(&mut self) -> Result<&mut Call> {
        self.call.as_mut().ok_or_else(|| Error::msg("the batch was used outside of `process`"))
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// A message of a batch: where it stood in the run, and how the stages before left it.
#[derive(Debug)]
pub struct Item {
    /// Its place in the run.
    pub at: usize,
    /// As the stages before left it.
    pub draft: Draft,
    /// What they emitted with it.
    pub emitted: Vec<Emitted>,
}

/// What a stage wants done to one message.
#[derive(Debug, Default)]
pub struct Edit {
    /// Why it goes no further.
    pub dropped: Option<String>,
    /// Why it is wrong.
    pub rejected: Vec<PayloadFault>,
    payload: Option<Bytes>,
    content_type: Option<Arc<str>>,
    headers: Option<Headers>,
    key: Option<Option<Arc<str>>>,
    emitted: Vec<Emitted>,
}

impl Edit {
    /// Whether the message is other than before.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.payload.is_some() || self.content_type.is_some() || self.headers.is_some() || self.key.is_some()
    }

    /// Carries it out.
    pub fn apply(self, item: &mut Item) {
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
            item.draft.key = key;
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
    /// On the way out: no key, no emit.
    pub outbound: bool,
}

/// One call of `process`: a window of the batch, and the edits so far.
#[derive(Debug)]
pub struct Call {
    /// The topic of all of them.
    pub topic: TopicName,
    /// All messages of the batch; the guest sees those in `window`.
    pub items: Vec<Item>,
    /// Which ones the guest sees, from index 0.
    pub window: Range<usize>,
    /// One per message of the window.
    pub edits: Vec<Edit>,
    /// What the stage may do.
    pub powers: Powers,
    /// Bytes that all stages of the batch may still make.
    pub producible: u64,
    copyable: u64,
    emits_left: u32,
}

impl Call {
    /// The messages of `window`, untouched.
    #[must_use]
    pub fn new(topic: TopicName, items: Vec<Item>, window: Range<usize>, powers: Powers, producible: u64) -> Call {
        let edits = window.clone().map(|_| Edit::default()).collect();
        let (copyable, emits_left) = (limits::COPIED_BYTES_MAX, limits::EMITS_MAX);
        Call { topic, items, window, edits, powers, producible, copyable, emits_left }
    }

    fn place(&self, i: u32) -> Result<usize> {
        let place = self.window.start.saturating_add(i as usize);
        if place < self.window.end {
            return Ok(place);
        }
        Err(Error::msg(format!("message index {i} is out of range: the batch has {}", self.window.len())))
    }

    fn draft(&self, i: u32) -> Result<&Draft> {
        Ok(&self.items[self.place(i)?].draft)
    }

    fn edit(&mut self, i: u32) -> Result<&mut Edit> {
        let place = self.place(i)?;
        Ok(&mut self.edits[place - self.window.start])
    }

    fn headers(&self, i: u32) -> Result<&Headers> {
        let place = self.place(i)?;
        Ok(self.edits[place - self.window.start].headers.as_ref().unwrap_or(&self.items[place].draft.headers))
    }

    fn header(&self, i: u32, name: &str) -> Result<Option<&Arc<str>>> {
        Ok(self.headers(i)?.iter().find(|(known, _)| &**known == name).map(|(_, value)| value))
    }

    fn headers_mut(&mut self, i: u32) -> Result<&mut Headers> {
        let place = self.place(i)?;
        let before = &self.items[place].draft.headers;
        Ok(self.edits[place - self.window.start].headers.get_or_insert_with(|| before.clone()))
    }

    fn payload(&self, i: u32) -> Result<&Bytes> {
        let place = self.place(i)?;
        Ok(self.edits[place - self.window.start].payload.as_ref().unwrap_or(&self.items[place].draft.payload))
    }

    fn key(&self, i: u32) -> Result<&Option<Arc<str>>> {
        let place = self.place(i)?;
        Ok(self.edits[place - self.window.start].key.as_ref().unwrap_or(&self.items[place].draft.key))
    }

    /// Counts bytes on their way between host and guest.
    fn copy(&mut self, bytes: usize) -> Result<()> {
        self.copyable = self.copyable.checked_sub(bytes as u64).ok_or_else(|| {
            Error::msg(format!("the call copied more than {} bytes between host and plugin", limits::COPIED_BYTES_MAX))
        })?;
        Ok(())
    }

    /// Counts bytes that the host keeps for the guest.
    fn produce(&mut self, bytes: usize) -> Result<()> {
        self.copy(bytes)?;
        self.producible = self.producible.checked_sub(bytes as u64).ok_or_else(|| {
            Error::msg(format!("the stages made more than {} bytes of one batch", limits::PRODUCED_BYTES_MAX))
        })?;
        Ok(())
    }

    fn column(&mut self, value: impl Fn(&Call, u32) -> Result<Option<&[u8]>>) -> Result<Column> {
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

    fn set_header(&mut self, i: u32, name: &str, value: &str) -> Result<()> {
        self.produce(name.len() + value.len())?;
        let headers = self.headers_mut(i)?;
        match headers.iter_mut().find(|(known, _)| &**known == name) {
            Some((_, old)) => *old = value.into(),
            None => headers.push((name.into(), value.into())),
        }
        check_headers(headers.iter().map(|(name, value)| (&**name, &**value)))
    }

    fn emit(
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
        check_payload(&payload)?;
        check_key(key.as_deref())?;
        check_headers(headers.iter().map(|(name, value)| (&**name, &**value)))?;
        let headers_bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.produce(payload.len() + headers_bytes + key.as_ref().map_or(0, String::len))?;
        let headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let stage = Arc::clone(&self.powers.stage);
        self.edit(i)?.emitted.push(Emitted { topic, key: key.map(Arc::from), payload: payload.into(), headers, stage });
        Ok(())
    }
}

fn check_payload(payload: &[u8]) -> Result<()> {
    if payload.len() <= limits::PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    Err(Error::msg(format!("a payload of {} bytes: at most {} are allowed", payload.len(), limits::PAYLOAD_BYTES_MAX)))
}

fn check_key(key: Option<&str>) -> Result<()> {
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
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(Error::msg("a header's name is empty or holds a control character"));
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

impl log::Host for HostState {
    fn write(&mut self, level: log::Level, message: String) -> Result<()> {
        if let Some(call) = &mut self.call {
            call.copy(message.len())?;
        }
        let level = match level {
            log::Level::Debug => LogLevel::Debug,
            log::Level::Info => LogLevel::Info,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Error => LogLevel::Error,
        };
        self.log.write(level, message);
        Ok(())
    }
}

impl types::Host for HostState {}

type B = Resource<Batch>;

impl types::HostBatch for HostState {
    fn len(&mut self, _: B) -> Result<u32> {
        Ok(self.call()?.window.len() as u32)
    }

    fn topic(&mut self, _: B) -> Result<String> {
        let call = self.call()?;
        let topic = call.topic.as_str().to_owned();
        call.copy(topic.len())?;
        Ok(topic)
    }

    fn id(&mut self, _: B, i: u32) -> Result<String> {
        let call = self.call()?;
        let id = call.draft(i)?.id.to_string();
        call.copy(id.len())?;
        Ok(id)
    }

    fn published_at(&mut self, _: B, i: u32) -> Result<u64> {
        Ok(u64::try_from(self.call()?.draft(i)?.published_at.0).unwrap_or(0))
    }

    fn payload(&mut self, _: B, i: u32) -> Result<Vec<u8>> {
        let call = self.call()?;
        let bytes = call.payload(i)?.len();
        call.copy(bytes)?;
        Ok(call.payload(i)?.to_vec())
    }

    fn payload_len(&mut self, _: B, i: u32) -> Result<u32> {
        Ok(self.call()?.payload(i)?.len() as u32)
    }

    fn content_type(&mut self, _: B, i: u32) -> Result<String> {
        let call = self.call()?;
        let edited = call.edit(i)?.content_type.clone();
        let value =
            edited.map_or_else(|| call.draft(i).map(|draft| draft.content_type.to_string()), |v| Ok(v.to_string()))?;
        call.copy(value.len())?;
        Ok(value)
    }

    fn schema_version(&mut self, _: B, i: u32) -> Result<Option<String>> {
        let call = self.call()?;
        let value = text(call.draft(i)?.schema_version.as_ref());
        call.copy(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    fn header(&mut self, _: B, i: u32, name: String) -> Result<Option<String>> {
        let call = self.call()?;
        let value = text(call.header(i, &name)?);
        call.copy(name.len() + value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    fn header_names(&mut self, _: B, i: u32) -> Result<Vec<String>> {
        let call = self.call()?;
        let names: Vec<String> = call.headers(i)?.iter().map(|(name, _)| name.to_string()).collect();
        call.copy(names.iter().map(String::len).sum())?;
        Ok(names)
    }

    fn key(&mut self, _: B, i: u32) -> Result<Option<String>> {
        let call = self.call()?;
        let value = text(call.key(i)?.as_ref());
        call.copy(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    fn correlation_id(&mut self, _: B, i: u32) -> Result<Option<String>> {
        let call = self.call()?;
        let value = text(call.draft(i)?.correlation_id.as_ref());
        call.copy(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    fn priority(&mut self, _: B, i: u32) -> Result<u8> {
        Ok(self.call()?.draft(i)?.priority)
    }

    fn attempt(&mut self, _: B, i: u32) -> Result<u32> {
        Ok(self.call()?.draft(i)?.attempt)
    }

    fn position(&mut self, _: B, i: u32) -> Result<Option<(u32, u64)>> {
        Ok(self.call()?.draft(i)?.position.map(|(partition, offset)| (u32::from(partition), offset.0)))
    }

    fn header_column(&mut self, _: B, name: String) -> Result<Column> {
        let call = self.call()?;
        call.copy(name.len())?;
        call.column(|call, i| Ok(call.header(i, &name)?.map(|value| value.as_bytes())))
    }

    fn payload_column(&mut self, _: B) -> Result<Column> {
        self.call()?.column(|call, i| Ok(Some(&call.payload(i)?[..])))
    }

    fn drop_message(&mut self, _: B, i: u32, reason: String) -> Result<()> {
        let reason = cut(reason, limits::REASON_BYTES_MAX);
        let call = self.call()?;
        call.produce(reason.len())?;
        call.edit(i)?.dropped = Some(reason);
        Ok(())
    }

    fn reject(&mut self, _: B, i: u32, code: String, message: String, pointer: Option<String>) -> Result<()> {
        let call = self.call()?;
        if call.edit(i)?.rejected.len() >= limits::REJECTS_PER_MESSAGE_MAX {
            return Ok(());
        }
        let code = cut(code, limits::CODE_BYTES_MAX);
        let message = cut(message, limits::REASON_BYTES_MAX);
        let pointer = pointer.map(|pointer| cut(pointer, limits::REASON_BYTES_MAX));
        call.produce(code.len() + message.len() + pointer.as_ref().map_or(0, String::len))?;
        let fault = PayloadFault { code: code.into(), message: message.into(), pointer: pointer.map(Arc::from) };
        call.edit(i)?.rejected.push(fault);
        Ok(())
    }

    fn set_payload(&mut self, _: B, i: u32, payload: Vec<u8>) -> Result<()> {
        check_payload(&payload)?;
        let call = self.call()?;
        call.produce(payload.len())?;
        call.edit(i)?.payload = Some(payload.into());
        Ok(())
    }

    fn set_content_type(&mut self, _: B, i: u32, content_type: String) -> Result<()> {
        let visible = content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if content_type.is_empty() || content_type.len() > limits::CONTENT_TYPE_BYTES_MAX || !visible {
            return Err(Error::msg("a media type is 1 to 255 visible ASCII characters"));
        }
        let call = self.call()?;
        call.produce(content_type.len())?;
        call.edit(i)?.content_type = Some(content_type.into());
        Ok(())
    }

    fn set_header(&mut self, _: B, i: u32, name: String, value: String) -> Result<()> {
        self.call()?.set_header(i, &name, &value)
    }

    fn remove_header(&mut self, _: B, i: u32, name: String) -> Result<()> {
        let call = self.call()?;
        call.copy(name.len())?;
        if call.header(i, &name)?.is_some() {
            call.headers_mut(i)?.retain(|(known, _)| **known != *name);
        }
        Ok(())
    }

    fn set_key(&mut self, _: B, i: u32, key: Option<String>) -> Result<()> {
        check_key(key.as_deref())?;
        let call = self.call()?;
        if call.powers.outbound {
            return Err(Error::msg("`set-key` is refused on the way out: the message is stored"));
        }
        call.produce(key.as_ref().map_or(0, String::len))?;
        call.edit(i)?.key = Some(key.map(Arc::from));
        Ok(())
    }

    fn emit(
        &mut self,
        _: B,
        i: u32,
        topic: String,
        key: Option<String>,
        payload: Vec<u8>,
        headers: Vec<(String, String)>,
    ) -> Result<()> {
        self.call()?.emit(i, topic, key, payload, headers)
    }

    fn drop(&mut self, _: B) -> Result<()> {
        Ok(())
    }
}

fn text(value: Option<&Arc<str>>) -> Option<String> {
    value.map(|value| value.to_string())
}
