//! What a plugin may use and produce: the numbers, the CPU budget of a call, the memory limit of an instance. Invariant:
//! every bound is checked by the host, whatever the guest does. Never decides what a breach means for a message.

use std::time::Duration;

use wasmtime::{Error, ResourceLimiter, Result};

/// Messages of one guest call: beyond this a column's saving is used up (measured), and a fault costs more to isolate.
pub const CALL_MESSAGES_MAX: usize = 128;
/// Payload bytes of one guest call (one message may be larger): so that `timeoutMs` means the same for all topics.
pub const CALL_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a payload that a plugin makes: the largest request body that the broker takes.
pub const PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes that wasmtime copies out of the guest in one host call: a payload, and room for the rest of an `emit`.
pub const HOSTCALL_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 4 * 1024 * 1024;
/// Bytes copied into or out of the guest by all host calls of one guest call; wasmtime's own bound does not add up.
pub const COPIED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes that the stages of one batch may make: payloads, headers, emitted messages, reasons.
pub const PRODUCED_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bytes that the stages may add to the messages of one request, emitted ones included: four times the largest request.
/// Every answer that waits to be stored holds them.
pub const RUN_GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Messages that one guest call may emit: two for each of a full batch.
pub const EMITS_MAX: u32 = 256;
/// Reasons that one message may be rejected for; later ones are not kept.
pub const REJECTS_PER_MESSAGE_MAX: usize = 32;
/// Bytes of a reason or a pointer; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;
/// Bytes of a rejection's code; a longer one is cut.
pub const CODE_BYTES_MAX: usize = 128;
/// Bytes of a partition key that a plugin sets.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bytes of a media type that a plugin sets.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// Mebibytes that a stage may ask for: a slot of the pool.
pub const MEMORY_MB_MAX: u32 = 64;
/// CPU milliseconds that a stage may ask for: what one call may keep a worker for.
pub const TIMEOUT_MS_MAX: u32 = 5_000;
/// CPU time that a batch can keep a worker for: 128 messages at the default of 50 ms each. Stages with longer times get
/// smaller batches.
pub const BATCH_CPU_MAX: Duration = Duration::from_millis(6_400);
/// CPU time of `configure` and of the component's start: it happens once per instance, and a large schema takes long.
pub const CONFIGURE_TIMEOUT: Duration = Duration::from_secs(2);
/// Elements of a guest's table: function pointers, a few thousand in the largest plugins seen.
pub const TABLE_ELEMENTS_MAX: usize = 50_000;
/// Handles that a guest may hold of the host's (streams, pollables): a table in the host's memory.
pub const HANDLES_MAX: usize = 256;
/// Bytes of a key of a plugin's values, and of a value: `wit/sluice.wit` says so.
pub const KV_KEY_BYTES_MAX: usize = 256;
pub const KV_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Reads and writes of values in one guest call: 32 for each message of a full one.
pub const KV_CALLS_MAX: u32 = 4096;
/// Bytes of the values that the stages of one request set: they wait in memory until its messages are stored.
pub const KV_REQUEST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Values that the stages of one request read: each is remembered, to be compared when the messages are stored.
pub const KV_REQUEST_KEYS_MAX: usize = 16 * 1024;
/// Times that a request is run again because values that it had read were changed by others meanwhile.
pub const KV_RERUNS_MAX: u32 = 3;
/// Random bytes of one request.
pub const RANDOM_BYTES_MAX: u64 = 64 * 1024;

/// Stages of one pipeline.
pub const STAGES_MAX: usize = 16;
/// Bytes of a stage's config, as JSON: every instance holds a copy.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// Topics that one stage may emit to.
pub const EMIT_TO_MAX: usize = 16;

/// How often the epoch rises, and so how exactly time is kept.
pub const TICK: Duration = Duration::from_millis(1);

/// The CPU time of the thread that asks, in nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    cpu_time_of(libc::CLOCK_THREAD_CPUTIME_ID).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Tells others how long a thread has run.
#[derive(Debug, Clone, Copy)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// That of the thread that asks.
    #[must_use]
    pub fn own() -> Option<ThreadClock> {
        let mut clock = 0;
        // SAFETY: the thread that asks runs, and `clock` is valid for writing.
        let unknown = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) } != 0;
        (!unknown).then_some(ThreadClock(clock))
    }

    /// The CPU time it has had, unless it has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        cpu_time_of(self.0)
    }
}

fn cpu_time_of(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; a clock that is gone is an error.
    let gone = unsafe { libc::clock_gettime(clock, &raw mut time) } != 0;
    (!gone).then(|| Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Bytes of the first version of `sched_attr`, which all kernels take.
const SCHED_ATTR_BYTES: u32 = 48;
/// The lowest priority: beside a thread of the usual one it has a sixtieth of a processor, and all of one that nobody wants.
const LOWEST: i32 = 19;
/// How long a thread that gives way keeps a processor before it is asked again: the shortest time that the kernel takes.
const SLICE: Duration = Duration::from_micros(100);

/// Makes the calling thread give way to all others, for good: it has the lowest priority, and is asked again after
/// 100 µs instead of the usual milliseconds (Linux 6.12 and later). Where the system refuses, it runs as before.
pub fn give_way() {
    let attributes = libc::sched_attr {
        size: SCHED_ATTR_BYTES,
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: 0,
        sched_nice: LOWEST,
        sched_priority: 0,
        sched_runtime: u64::try_from(SLICE.as_nanos()).unwrap_or(0),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attributes` is as long as it says; the first 0 means this thread, the last one that there are no flags.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0;
    if refused {
        // SAFETY: it takes no pointers; on Linux `PRIO_PROCESS` with 0 means this thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
    }
}

/// What one call may compute. The thread's CPU clock is read at the first tick only, so that a short call never pays
/// for it; wall time would kill honest plugins on a busy machine.
#[derive(Debug)]
pub struct CpuBudget {
    limit_ns: u64,
    started_ns: Option<u64>,
    exhausted: bool,
}

impl CpuBudget {
    /// Nothing may run before [`CpuBudget::start`].
    #[must_use]
    pub fn new() -> CpuBudget {
        CpuBudget { limit_ns: 0, started_ns: None, exhausted: false }
    }

    /// A call begins.
    pub fn start(&mut self, limit: Duration) {
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        *self = CpuBudget { limit_ns, started_ns: None, exhausted: false };
    }

    /// What the call may use.
    #[must_use]
    pub fn limit(&self) -> Duration {
        Duration::from_nanos(self.limit_ns)
    }

    /// Whether the last call was ended for its time.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// At a tick: how many more ticks the call may run, or `None` to end it.
    pub fn tick(&mut self) -> Option<u64> {
        let now = thread_cpu_ns();
        let tick_ns = TICK.as_nanos() as u64;
        // The call began within the last tick.
        let started = *self.started_ns.get_or_insert(now.saturating_sub(tick_ns));
        let used = now.saturating_sub(started);
        if used >= self.limit_ns {
            self.exhausted = true;
            return None;
        }
        Some(((self.limit_ns - used) / tick_ns).max(1))
    }
}

/// What one instance may hold, all of its memories together.
#[derive(Debug)]
pub struct MemoryLimit {
    limit: usize,
    used: usize,
    exceeded: bool,
}

impl MemoryLimit {
    /// Up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> MemoryLimit {
        MemoryLimit { limit, used: 0, exceeded: false }
    }

    /// Bytes that the guest's memories have now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes that they may have.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether it wanted more. wasmtime's error for this is no `Trap`, so it is remembered here.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.exceeded
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        let after = self.used.saturating_sub(current).saturating_add(desired);
        if after > self.limit || maximum.is_some_and(|maximum| desired > maximum) {
            self.exceeded = true;
            return Err(Error::msg(format!("it wanted {after} bytes of memory and may have {}", self.limit)));
        }
        self.used = after;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        if desired > TABLE_ELEMENTS_MAX {
            self.exceeded = true;
            return Err(Error::msg(format!(
                "it wanted a table of {desired} elements and may have {TABLE_ELEMENTS_MAX}"
            )));
        }
        Ok(true)
    }
}

/// Cuts `text` to at most `bytes_max`, at a character's boundary.
#[must_use]
pub fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
    text
}

const _: () = assert!(CALL_BYTES_MAX < COPIED_BYTES_MAX as usize);
const _: () = assert!(PAYLOAD_BYTES_MAX < HOSTCALL_BYTES_MAX && (HOSTCALL_BYTES_MAX as u64) < COPIED_BYTES_MAX);
const _: () = assert!((PAYLOAD_BYTES_MAX as u64) < PRODUCED_BYTES_MAX && PRODUCED_BYTES_MAX <= RUN_GROWTH_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("aüb".to_owned(), 2), "a");
        assert_eq!(cut("aüb".to_owned(), 3), "aü");
        assert_eq!(cut("aüb".to_owned(), 9), "aüb");
    }

    #[test]
    fn memories_count_together() {
        let mut memory = MemoryLimit::new(100);
        assert!(memory.memory_growing(0, 60, None).is_ok_and(|grown| grown));
        assert!(memory.memory_growing(0, 50, None).is_err());
        assert!(memory.is_exceeded());
    }
}
