//! Requests of a subject, counted over all brokers. Invariant: what is granted in a minute is the limit, whoever grants it, but for
//! what brokers have taken ahead; by the server's clock alone. A subject is in Redis as a hash, for a minute at most.

use std::time::Duration;

use ::redis::cmd;
use sha2::{Digest as _, Sha256};

use super::{Away, Redis};

/// How long a request waits for its count before its broker counts by itself.
const COUNT_MAX: Duration = Duration::from_millis(50);

/// The generic cell rate algorithm (as in `governor`, by which a broker counts alone): a key holds when the subject's minute is
/// full again. Takes up to as many requests as are wanted; answers how many it got, how many are left, and in how many
/// milliseconds there is one. Sent whole each time: a server that lost its scripts needs no second call.
const TAKE: &str = "\
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local limit, want, minute = tonumber(ARGV[1]), tonumber(ARGV[2]), 60000000
local each = minute / limit
local full = tonumber(redis.call('GET', KEYS[1]) or now)
full = math.min(math.max(full, now), now + minute)
local there = math.floor((minute - (full - now)) / each + 0.000001)
local got = math.min(there, want)
if got < 1 then return {0, 0, math.max(1, math.ceil((full + each - minute - now) / 1000))} end
full = full + got * each
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.max(1, math.ceil((full - now) / 1000)))
return {got, there - got, 0}";

/// What was taken of a subject's minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Requests that may be made.
    pub granted: u32,
    /// Those that are left to all brokers.
    pub remaining: u32,
    /// If none was granted: when there is one, unless another broker takes it.
    pub wait: Duration,
}

impl Redis {
    /// Takes up to `want` requests of what `subject` may do of `kind` in a minute.
    ///
    /// # Errors
    /// When Redis does not help now, or has not answered in time.
    pub async fn take(&self, (kind, per_minute): (&str, u32), subject: &str, want: u32) -> Result<Taken, Away> {
        let hash = hex::encode(&Sha256::digest(subject.as_bytes())[..16]);
        let mut take = cmd("EVAL");
        take.arg(TAKE).arg(1).arg(format!("{}:rate:{kind}:{hash}", self.0.mark)).arg(per_minute).arg(want);
        let (granted, remaining, wait_ms): (u32, u32, u64) = self.call(&take, COUNT_MAX).await?;
        Ok(Taken { granted, remaining, wait: Duration::from_millis(wait_ms) })
    }

    /// Counts a request under a limit, by who has counted it.
    pub fn has_counted(&self, by_fleet: bool) {
        let metrics = &self.0.metrics;
        if by_fleet { metrics.by_fleet.inc() } else { metrics.by_broker.inc() }
    }
}
