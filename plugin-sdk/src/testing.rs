//! Running a stage in plain `cargo test`: messages in memory, the same trait, verdicts to look at.
//! Invariant: what it lets a stage do, the broker lets it do; what would trap there panics here. Never on WebAssembly.
//!
//! ```
//! use sluice_plugin::{Failure, Message, Stage, serde::Deserialize, testing::{Bench, Input, Verdict}};
//!
//! #[derive(Deserialize)]
//! #[serde(crate = "sluice_plugin::serde")]
//! struct Stamp { site: String }
//!
//! impl Stage for Stamp {
//!     fn message(&self, message: &Message) -> Result<(), Failure> {
//!         message.set_header("site", &self.site);
//!         Ok(())
//!     }
//! }
//!
//! let bench = Bench::<Stamp>::new(r#"{"site": "eu-1"}"#)?;
//! let outcomes = bench.run([Input::new("{}")])?;
//! assert_eq!(outcomes[0].verdict, Verdict::Changed);
//! assert_eq!(outcomes[0].message.header_value("site"), Some("eu-1"));
//! # Ok::<(), sluice_plugin::Error>(())
//! ```

mod cases;
mod input;
mod memory;
pub(crate) mod powers;

use std::{cell::RefCell, collections::HashMap, time::Duration};

pub use cases::check_cases;
pub use input::Input;
use memory::Memory;
pub use powers::Figures;
use powers::{Kept, Values};

use crate::{Batch, Error, Rejection, Stage, headers::Headers, log::Level};

/// The most messages that the broker hands to one `process`; [`Bench::run`] keeps to it.
pub const BATCH_MESSAGES_MAX: usize = 128;

/// What a stage said of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Untouched.
    Passed,
    /// It goes on with edits.
    Changed,
    /// It goes no further, for this reason.
    Dropped(String),
    /// It is wrong: every fault, in the order reported.
    Rejected(Vec<Rejection>),
}

/// A further message that the stage published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// The topic it goes to.
    pub topic: String,
    /// Its partition key.
    pub key: Option<String>,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Its headers.
    pub headers: Vec<(String, String)>,
}

/// What became of one message.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The stage's word.
    pub verdict: Verdict,
    /// The message after the stage's edits.
    pub message: Input,
    /// What the stage published along with it.
    pub emitted: Vec<Emitted>,
    /// How often its payload was copied out: 0 shows that a stage looks at headers only.
    pub payload_reads: usize,
}

/// A configured stage and the circumstances it runs in.
pub struct Bench<S> {
    stage: S,
    circumstances: Circumstances,
    values: RefCell<Values>,
}

#[derive(Clone, Default)]
struct Circumstances {
    topic: String,
    emit_to: Vec<String>,
    on_the_way_out: bool,
}

impl<S: Stage> Bench<S> {
    /// Configures the stage with a JSON document, as the broker does.
    pub fn new(config: &str) -> Result<Self, Error> {
        Self::with_schemas(config, [])
    }

    /// The same where schemas are registered, by their ids: what [`schemas::get`](crate::schemas::get) reads.
    pub fn with_schemas<'s>(
        config: &str,
        schemas: impl IntoIterator<Item = (&'s str, &'s str)>,
    ) -> Result<Self, Error> {
        let schemas: HashMap<String, String> =
            schemas.into_iter().map(|(id, definition)| (id.to_owned(), definition.to_owned())).collect();
        let stage = powers::with_schemas(schemas, || S::configure(config))?;
        let circumstances = Circumstances { topic: "test".into(), ..Circumstances::default() };
        Ok(Self { stage, circumstances, values: RefCell::default() })
    }

    /// The topic that the messages belong to (`test` unless said).
    #[must_use]
    pub fn topic(mut self, topic: &str) -> Self {
        self.circumstances.topic = topic.into();
        self
    }

    /// Declares a topic that the stage may emit to.
    #[must_use]
    pub fn emit_to(mut self, topic: &str) -> Self {
        self.circumstances.emit_to.push(topic.into());
        self
    }

    /// Runs the stage as one of a subscription's: the messages are stored, so emitting and setting keys panic.
    #[must_use]
    pub fn on_the_way_out(mut self) -> Self {
        self.circumstances.on_the_way_out = true;
        self
    }

    /// Keeps a value of [`kv`](crate::kv) before the stage runs.
    #[must_use]
    pub fn keep(self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        let kept = Kept { value: value.into(), until_ms: None };
        self.values.borrow_mut().kept.insert(key.to_owned(), kept);
        self
    }

    /// The value of [`kv`](crate::kv) that is kept by now.
    pub fn kv(&self, key: &str) -> Option<Vec<u8>> {
        self.values.borrow().get(key).map(<[u8]>::to_vec)
    }

    /// Lets time pass for the values that are kept with a time to live.
    pub fn advance(&self, time: Duration) {
        let passed = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut values = self.values.borrow_mut();
        values.now_ms = values.now_ms.saturating_add(passed);
    }

    /// Runs the stage over the messages, in batches as large as the broker's largest. What it sets in [`kv`](crate::kv) is
    /// kept for the messages that go on, and for the next run.
    pub fn run(&self, messages: impl IntoIterator<Item = Input>) -> Result<Vec<Outcome>, Error> {
        let mut messages = messages.into_iter();
        let mut outcomes = Vec::new();
        loop {
            let batch: Vec<Input> = messages.by_ref().take(BATCH_MESSAGES_MAX).collect();
            if batch.is_empty() {
                return Ok(outcomes);
            }
            let memory = Memory::new(batch, &self.circumstances);
            let process = || self.stage.process(&Batch::new(&memory, &Headers::default()));
            let (mut values, ended) = powers::with_values(self.values.take(), process);
            let of_batch: Vec<Outcome> = memory.into_outcomes().collect();
            let goes_on = |i: u32| matches!(of_batch[i as usize].verdict, Verdict::Passed | Verdict::Changed);
            values.end(|i| ended.is_ok() && goes_on(i));
            self.values.replace(values);
            ended?;
            outcomes.extend(of_batch);
        }
    }
}

/// Configures a stage and runs it over messages; [`Bench`] where more must be said.
pub fn run<S: Stage>(config: &str, messages: impl IntoIterator<Item = Input>) -> Result<Vec<Outcome>, Error> {
    Bench::<S>::new(config)?.run(messages)
}

thread_local! {
    static LOG: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Lines kept per thread: a test that logs in a loop must not eat the machine.
const LOG_LINES_MAX: usize = 10_000;

pub(crate) fn keep_log_line(level: Level, line: String) {
    LOG.with_borrow_mut(|log| {
        if log.len() < LOG_LINES_MAX {
            log.push((level, line));
        }
    });
}

/// Takes the lines that stages wrote on this thread (tests run on a thread each) since the last call.
pub fn logs() -> Vec<(Level, String)> {
    LOG.take()
}

/// Takes what stages counted on this thread with [`metrics`](crate::metrics) since the last call.
pub fn figures() -> Figures {
    powers::take_figures()
}
