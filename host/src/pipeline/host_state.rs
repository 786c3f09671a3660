//! The host's side of the plugin world: the batch at hand, read and edited by index. Invariant: a batch is in the store
//! only while `process` runs; every byte that crosses is counted. Never changes a draft: see `call`.

use std::sync::Arc;

use wasmtime::component::{Resource, ResourceTable};
use wasmtime::{Error, Result};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::asked_schemas::AskedSchemas;
use super::bindings::log;
use super::bindings::types::{self, Batch, Column};
use super::call::{Call, check_key, check_payload};
use super::draft::PayloadFault;
use super::figures::Figures;
use super::instance::Recipe;
use super::limits::{self, CpuBudget, MemoryLimit, cut};
use super::plugin_log::{LogLevel, LogStream, StageLog};
use super::sandbox;

/// What a store holds.
pub struct HostState {
    wasi: WasiCtx,
    table: ResourceTable,
    log: StageLog,
    stderr: LogStream,
    /// What the call under way may compute.
    pub cpu: CpuBudget,
    /// What the instance may hold.
    pub memory: MemoryLimit,
    /// The batch, while `process` runs.
    pub call: Option<Call>,
    /// The plugin's own.
    pub figures: Arc<Figures>,
    /// What may be asked for, while `configure` runs.
    pub schemas: Option<Arc<AskedSchemas>>,
}

impl HostState {
    /// Of an instance of `recipe`, before it is configured.
    #[must_use]
    pub fn new(recipe: &Recipe) -> HostState {
        let (log, clock, memory_bytes) = (recipe.log.clone(), recipe.clock.clone(), recipe.memory_bytes);
        let stdout = LogStream::new(log.clone(), LogLevel::Info);
        let stderr = LogStream::new(log.clone(), LogLevel::Warn);
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits::HANDLES_MAX);
        let wasi = sandbox::context(clock, recipe.seed, stdout, stderr.clone());
        let (cpu, memory) = (CpuBudget::new(), MemoryLimit::new(memory_bytes));
        let (figures, schemas) = (Arc::clone(&recipe.figures), Some(Arc::clone(&recipe.schemas)));
        HostState { wasi, table, log, stderr, cpu, memory, call: None, figures, schemas }
    }

    /// What the guest last wrote to stderr: the text of a panic.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        self.stderr.take_last()
    }

    pub(super) fn call(&mut self) -> Result<&mut Call> {
        self.call.as_mut().ok_or_else(|| Error::msg("the batch was used outside of `process`"))
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
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
        let value = call.content_type(i)?.to_string();
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
        let call = self.call()?;
        check_payload(&payload, call.powers.payload_bytes_max)?;
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
