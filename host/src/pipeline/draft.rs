//! A message on its way through the stages, and what they say of it. Invariant: a stage changes only the draft it was
//! given; what a verdict means for the message is decided by the caller, once. Never does I/O.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::catalog::model::{OnFault, OnReject};
use crate::clock::Timestamp;
use crate::message::{MessageId, Offset, Partition, StageRef, TopicName};

/// A message that a pipeline may read and change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Its id.
    pub id: MessageId,
    /// When it was published.
    pub published_at: Timestamp,
    /// The payload.
    pub payload: Bytes,
    /// Its media type.
    pub content_type: Arc<str>,
    /// The schema version that the publisher names.
    pub schema_version: Option<Arc<str>>,
    /// In order.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// Partition key.
    pub key: Option<Arc<str>>,
    /// Names a conversation.
    pub correlation_id: Option<Arc<str>>,
    /// 0–9.
    pub priority: u8,
    /// 0 on the way in, the attempt on the way out.
    pub attempt: u32,
    /// Where it is stored; none on the way in.
    pub position: Option<(Partition, Offset)>,
    /// Its lot, where that is not the one of its key: of the message that it was emitted with, or of the key that it came with.
    pub drawn: Option<Lot>,
}

impl Draft {
    /// What decides which versions see it: always the same for one key, or for one message without a key.
    #[must_use]
    pub fn lot(&self) -> Lot {
        self.drawn.unwrap_or_else(|| Lot::of(self.key.as_deref().map_or(self.id.0.as_bytes(), str::as_bytes)))
    }

    /// Changes its key, which does not move it to other versions.
    pub fn set_key(&mut self, key: Option<Arc<str>>) {
        self.drawn = Some(self.lot());
        self.key = key;
    }
}

/// A number from 0 to 9999 that stays with a message and with what is emitted with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lot(u16);

/// So that lots and partitions, which follow from the same key, do not go together.
const LOT_SEED: u32 = 0x5100_0000;
/// Lots that there are: a percentage has two decimals.
const LOTS: u32 = 10_000;

impl Lot {
    /// The one that these bytes draw.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Lot {
        // The bits of a CRC over bytes that differ in little differ in little, too.
        let mixed = crc32c::crc32c_append(LOT_SEED, bytes).wrapping_mul(0x9e37_79b1);
        Lot(((u64::from(mixed) * u64::from(LOTS)) >> 32) as u16)
    }

    /// Whether it is among the first so many of a hundred. Those that are among few are also among more.
    #[must_use]
    pub fn is_among(self, percent: f64) -> bool {
        f64::from(self.0) < percent * f64::from(LOTS) / 100.0
    }
}

/// A draft and what was said of it.
#[derive(Debug, Clone)]
pub struct Processed {
    /// As the stages left it.
    pub draft: Draft,
    /// The last word.
    pub verdict: Verdict,
    /// What they emitted; empty unless the verdict is `Pass`.
    pub emitted: Vec<Emitted>,
    /// Each stage's word, for `?explain=true`.
    pub trail: Trail,
}

/// The words of the stages that saw a message, in order; most pipelines have one.
pub type Trail = SmallVec<[StageWord; 1]>;

/// What a pipeline says of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, as it is in the draft.
    #[default]
    Pass,
    /// It goes no further, and that is well.
    Drop {
        /// The stage.
        stage: Arc<str>,
        /// In its words.
        reason: Arc<str>,
    },
    /// A stage says that it is wrong.
    Reject(Rejection),
    /// A stage failed.
    Fault(StageFault),
}

/// A stage's no to one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The stage.
    pub stage: Arc<str>,
    /// Its plugin.
    pub plugin: Arc<str>,
    /// The plugin's version.
    pub version: Arc<str>,
    /// What is wrong: at least one.
    pub faults: Vec<PayloadFault>,
    /// What the stage's owner wants done.
    pub on: OnReject,
}

impl Rejection {
    /// The stage, for what is kept of this.
    #[must_use]
    pub fn stage_ref(&self) -> StageRef {
        let [name, plugin, version] = [&self.stage, &self.plugin, &self.version].map(Arc::clone);
        StageRef { name, plugin, version }
    }
}

/// One thing wrong with a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFault {
    /// The plugin's word for it.
    pub code: Arc<str>,
    /// In a sentence.
    pub message: Arc<str>,
    /// JSON Pointer into the payload.
    pub pointer: Option<Arc<str>>,
}

/// A stage that failed on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageFault {
    /// The stage.
    pub stage: Arc<str>,
    /// Its plugin.
    pub plugin: Arc<str>,
    /// The plugin's version.
    pub version: Arc<str>,
    /// What happened.
    pub cause: FaultCause,
    /// In a sentence.
    pub detail: Arc<str>,
    /// What the stage's owner wants done.
    pub on: OnFault,
}

impl StageFault {
    /// The stage, for what is kept of this.
    #[must_use]
    pub fn stage_ref(&self) -> StageRef {
        let [name, plugin, version] = [&self.stage, &self.plugin, &self.version].map(Arc::clone);
        StageRef { name, plugin, version }
    }
}

/// How a stage failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultCause {
    /// `process` returned an error.
    Failed,
    /// It used more CPU time than `timeoutMs`.
    TimedOut,
    /// It wanted more memory than `memoryMb`.
    OutOfMemory,
    /// It trapped.
    Trapped,
    /// Its breaker is open after repeated traps.
    BreakerOpen,
}

impl FaultCause {
    /// For metrics, logs and dead letters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FaultCause::Failed => "FAILED",
            FaultCause::TimedOut => "TIMED_OUT",
            FaultCause::OutOfMemory => "OUT_OF_MEMORY",
            FaultCause::Trapped => "TRAPPED",
            FaultCause::BreakerOpen => "BREAKER_OPEN",
        }
    }
}

/// A message that a stage made besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// One of the stage's `emitTo`.
    pub topic: TopicName,
    /// Partition key.
    pub key: Option<Arc<str>>,
    /// The payload.
    pub payload: Bytes,
    /// In order.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// The stage, for the id (parent, stage, n).
    pub stage: Arc<str>,
    /// The lot of the message that it was emitted with.
    pub lot: Lot,
}

/// What a stage says of a message, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It goes on as it was.
    Pass,
    /// It goes on, changed.
    Changed,
    /// It goes no further, and that is well.
    Dropped,
    /// It is wrong.
    Rejected,
    /// The stage failed.
    Fault,
}

impl Said {
    /// For answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Said::Pass => "pass",
            Said::Changed => "changed",
            Said::Dropped => "dropped",
            Said::Rejected => "rejected",
            Said::Fault => "fault",
        }
    }
}

/// One stage's word on one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageWord {
    /// The stage.
    pub stage: Arc<str>,
    /// What it said.
    pub word: Said,
    /// The share of this message in the stage's time.
    pub took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_moves_no_message_to_another_version() {
        let mut draft = crate::pipeline::tests::draft("{}", &[]);
        let of_key = |key: &str| Lot::of(key.as_bytes());
        draft.key = Some("a".into());
        draft.set_key(Some("b".into()));
        assert_eq!((draft.key.as_deref(), draft.lot()), (Some("b"), of_key("a")));
        draft.set_key(None);
        assert_eq!((draft.key.as_deref(), draft.lot()), (None, of_key("a")));
        assert_ne!(of_key("a"), of_key("b"));
    }

    #[test]
    fn lots_are_spread_evenly_and_stay_with_their_key() {
        let lots: Vec<Lot> = (0..20_000).map(|number| Lot::of(format!("customer-{number}").as_bytes())).collect();
        for (percent, wanted) in [(0.5, 100), (10.0, 2000), (50.0, 10_000)] {
            let among = lots.iter().filter(|lot| lot.is_among(percent)).count();
            assert!(among.abs_diff(wanted) < wanted / 4, "{among} of 20000 are among {percent} %");
        }
        assert!(lots.iter().all(|lot| lot.is_among(100.0) && !lot.is_among(0.0)));
        assert_eq!(Lot::of(b"customer-7"), lots[7]);
        // Those of one partition of four are as often among them as the others.
        let of_partition =
            |n: u32| (0..20_000_u32).filter(move |i| crc32c::crc32c(format!("customer-{i}").as_bytes()) % 4 == n);
        for partition in 0..4 {
            let (all, among) = of_partition(partition)
                .fold((0, 0), |(all, among), i| (all + 1, among + usize::from(lots[i as usize].is_among(10.0))));
            assert!((all / 20..all / 7).contains(&among), "partition {partition}: {among} of {all}");
        }
    }
}
