//! What a message costs in a stage with nothing in its way: the broker's own pipeline in this process, batch after batch on one
//! thread, as the native side runs. Invariant: the engine, the limits and the calls are those of a broker; what is measured is
//! a whole batch, from the drafts to the verdicts. Without a broker around it: no queue, no other threads, no store.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};
use sluice::clock::Timestamp;
use sluice::message::{MessageId, TopicId};
use sluice::pipeline::draft::Draft;
use sluice::pipeline::trial::{Loaded, Setting, Trial, Tried};

use super::load::median;
use super::stages::payload;

/// Of some 20 ms each, with an instance of its own.
const ROUNDS: usize = 15;
/// 2026-11-17: when the messages were published.
const PUBLISHED_MS: i64 = 1_795_000_000_000;

/// Where components are loaded and run.
pub struct Bench {
    trial: Trial,
    _code: tempfile::TempDir,
}

impl Bench {
    /// With nothing compiled yet.
    pub fn new() -> Bench {
        let code = tempfile::tempdir().expect("a temporary folder");
        let trial = Trial::open(code.path().join("code"), Timestamp(PUBLISHED_MS)).expect("the engine starts");
        Bench { trial, _code: code }
    }

    /// Compiles a component.
    pub async fn load(&self, component: Vec<u8>) -> Arc<Loaded> {
        self.trial.load(component.into()).await.expect("it is a plugin")
    }

    /// Microseconds a message, in batches of so many, and what the last round told.
    pub fn microseconds(&self, loaded: &Arc<Loaded>, plugin: &str, config: &Value, batch: usize) -> (f64, Tried) {
        let setting = Setting {
            plugin: plugin.to_owned(),
            config: config.clone(),
            topic: "bench".parse().expect("a topic's name"),
            stage: Map::new(),
            schemas: BTreeMap::new(),
            outbound: false,
            payload_bytes_max: 1 << 20,
        };
        let round =
            || tokio::task::block_in_place(|| self.trial.run(loaded, &setting, drafts(batch)).expect("it runs"));
        let mut tried: Vec<Tried> = (0..ROUNDS).map(|_| round()).collect();
        let each = tried.iter().map(|tried| tried.each.expect("no message fails").as_secs_f64() * 1e6);
        (median(each.collect()), tried.pop().expect("there were rounds"))
    }
}

fn drafts(count: usize) -> Vec<Draft> {
    let payload = Bytes::from(payload());
    let draft = |n: usize| Draft {
        id: MessageId::new(Timestamp(PUBLISHED_MS), TopicId(1), 0, n as u64),
        published_at: Timestamp(PUBLISHED_MS),
        payload: payload.clone(),
        content_type: "application/json".into(),
        schema_version: None,
        headers: vec![("a".into(), "1".into())],
        key: None,
        correlation_id: None,
        priority: 0,
        attempt: 0,
        position: None,
        drawn: None,
    };
    (0..count).map(draft).collect()
}
