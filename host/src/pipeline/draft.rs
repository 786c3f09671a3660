//! A message on its way through the stages, and what they say of it. Invariant: a stage changes only the draft it was
//! given; what a verdict means for the message is decided by the caller, once. Never does I/O.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

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
    pub trail: Vec<StageWord>,
}

/// What a pipeline says of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, as it is in the draft.
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
}

/// One stage's word on one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageWord {
    /// The stage.
    pub stage: Arc<str>,
    /// `pass`, `changed`, `dropped`, `rejected`, `fault`.
    pub word: &'static str,
    /// The share of this message in the stage's time.
    pub took: Duration,
}
