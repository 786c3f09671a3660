//! What a stage may do at its edge with the host: the guest `edits` calls whatever the input says. Invariant: the host never
//! panics and answers every message; what it lets through is within the bounds of `docs/api.md`, and what it does not let
//! through is as it came. What one guest did hurts none that comes after.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use sluice::catalog::model::{
    DeadLetterPayload, Guarantee, PluginSource, Scope, Storage, Subscription, SubscriptionKind, SubscriptionSettings,
    Topic, TopicKind, TopicSettings,
};
use sluice::catalog::{Actor, Catalog};
use sluice::clock::{Clock, Timestamp};
use sluice::config::{PluginTrust, Plugins};
use sluice::message::{GroupId, HEADERS_BYTES_MAX, HEADERS_MAX, MessageId, Offset, TopicId, has_control};
use sluice::pipeline::draft::{Draft, Emitted, PayloadFault, Processed, Verdict};
use sluice::pipeline::{NewComponent, PipelineOptions, Pipelines};
use tokio::runtime::Runtime;

use super::{Seed, runtime};
use crate::guest;

/// The topic's bound on payloads.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bounds of the host: `pipeline/limits.rs`.
const EMITTED_BYTES_MAX: usize = 16 << 20;
const EMITS_MAX: usize = 256;
const REASON_BYTES_MAX: usize = 1024;
/// The code of an error stands behind its reason.
const CODE_CHARS_MAX: usize = " (code 4294967295)".len();
const REJECTS_MAX: usize = 32;
/// Longer than a breaker stays open.
const COOL_DOWN: Duration = Duration::from_secs(6);

/// The first byte is the number of messages, the second whether they are on their way out; the rest is what the guest does.
///
/// # Panics
/// When the host breaks a promise.
pub fn run(input: &[u8]) {
    let [messages, direction, script @ ..] = input else { return };
    let rig = rig();
    let outbound = direction % 2 == 1;
    let drafts: Vec<Draft> = (0..1 + u64::from(messages % 6)).map(|number| draft(number, script, outbound)).collect();
    let processed = rig.run(outbound, drafts.clone());
    assert_eq!(processed.len(), drafts.len());
    for (before, after) in drafts.iter().zip(&processed) {
        judge(before, after, outbound);
    }
    if processed.iter().any(|one| matches!(one.verdict, Verdict::Fault(_))) {
        rig.clock.advance(COOL_DOWN);
        let calm = rig.run(outbound, vec![draft(0, b"", outbound)]);
        assert_eq!(calm[0].verdict, Verdict::Pass, "the next message bears what this one did");
    }
}

fn judge(before: &Draft, after: &Processed, outbound: bool) {
    match &after.verdict {
        Verdict::Pass => passed(before, after, outbound),
        Verdict::Drop { reason, .. } => {
            assert!(reason.len() <= REASON_BYTES_MAX);
            stopped(before, after);
        }
        Verdict::Reject(rejection) => {
            assert!((1..=REJECTS_MAX).contains(&rejection.faults.len()));
            rejection.faults.iter().for_each(is_fault_bounded);
            stopped(before, after);
        }
        Verdict::Fault(fault) => {
            assert!(fault.detail.len() <= REASON_BYTES_MAX + CODE_CHARS_MAX && !fault.detail.is_empty());
            stopped(before, after);
        }
    }
}

fn is_fault_bounded(fault: &PayloadFault) {
    let pointer = fault.pointer.as_deref().unwrap_or_default();
    assert!(fault.code.len() <= 128 && fault.message.len() <= REASON_BYTES_MAX && pointer.len() <= REASON_BYTES_MAX);
}

/// Not a byte of it is changed, and nothing came of it.
fn stopped(before: &Draft, after: &Processed) {
    assert_eq!(*before, after.draft);
    assert!(after.emitted.is_empty());
}

fn passed(before: &Draft, after: &Processed, outbound: bool) {
    let draft = &after.draft;
    let untouched = Draft {
        payload: draft.payload.clone(),
        content_type: Arc::clone(&draft.content_type),
        headers: draft.headers.clone(),
        key: draft.key.clone(),
        drawn: draft.drawn,
        ..before.clone()
    };
    assert_eq!(*draft, untouched, "more than the four fields that a stage may edit");
    assert_eq!(draft.lot(), before.lot(), "another key moves it to no other version");
    assert!(draft.payload.len() <= PAYLOAD_BYTES_MAX);
    let visible = draft.content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    assert!(visible && (1..=255).contains(&draft.content_type.len()), "{:?}", draft.content_type);
    are_headers_bounded(&draft.headers);
    is_key_bounded(draft.key.as_deref());
    assert!(after.emitted.len() <= EMITS_MAX);
    after.emitted.iter().for_each(is_emitted_bounded);
    assert!(!outbound || (draft.key == before.key && after.emitted.is_empty()), "it is stored already");
}

fn are_headers_bounded(headers: &[(Arc<str>, Arc<str>)]) {
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(headers.len() <= HEADERS_MAX && bytes <= HEADERS_BYTES_MAX, "{} headers, {bytes} bytes", headers.len());
    for (name, value) in headers {
        assert!(!name.is_empty() && !has_control(name) && !has_control(value), "{name:?}: {value:?}");
    }
}

fn is_key_bounded(key: Option<&str>) {
    assert!(key.is_none_or(|key| (1..=1024).contains(&key.len())), "{key:?}");
}

fn is_emitted_bounded(emitted: &Emitted) {
    assert_eq!(emitted.topic.as_str(), "allowed");
    assert!(emitted.payload.len() <= EMITTED_BYTES_MAX);
    are_headers_bounded(&emitted.headers);
    is_key_bounded(emitted.key.as_deref());
}

fn draft(number: u64, script: &[u8], outbound: bool) -> Draft {
    Draft {
        id: MessageId::new(NOW, TopicId(1), 0, number),
        published_at: NOW,
        payload: Bytes::copy_from_slice(script),
        content_type: "application/octet-stream".into(),
        schema_version: Some("1".into()),
        headers: vec![("a".into(), "1".into()), ("number".into(), number.to_string().into())],
        key: (number % 2 == 1).then(|| "k".into()),
        correlation_id: Some("conversation".into()),
        priority: 3,
        attempt: u32::from(outbound),
        position: outbound.then(|| (0, Offset::new(3, number))),
        drawn: None,
    }
}

const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// Pipelines of the guest, for messages on their way in and on their way out.
struct Rig {
    runtime: Runtime,
    clock: Clock,
    pipelines: Arc<Pipelines>,
    topic: Topic,
    /// The catalog, and compiled code.
    _dir: tempfile::TempDir,
}

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let runtime = runtime();
        let dir = tempfile::tempdir().expect("the system gives a temporary folder");
        let clock = Clock::fixed(NOW);
        let (pipelines, topic) = runtime.block_on(pipelines(dir.path(), &clock));
        Rig { runtime, clock, pipelines, topic, _dir: dir }
    })
}

impl Rig {
    fn run(&self, outbound: bool, drafts: Vec<Draft>) -> Vec<Processed> {
        let running = self.pipelines.run(scopes(&self.topic)[usize::from(outbound)], &self.topic, drafts);
        self.runtime.block_on(running).expect("one batch at a time is never too much").processed
    }
}

/// In and out.
fn scopes(topic: &Topic) -> [Scope; 2] {
    [Scope::Topic(topic.id), Scope::Subscription(topic.id, subscription(topic).id)]
}

async fn pipelines(dir: &Path, clock: &Clock) -> (Arc<Pipelines>, Topic) {
    let catalog = Catalog::open(&dir.join("catalog.db"), clock.clone()).await.expect("a catalog in an empty folder");
    let actor = Actor::system();
    let mut ids = [TopicId(0); 2];
    for id in &mut ids {
        *id = catalog.reserve_topic_id().await.expect("the catalog does it");
    }
    let (topic, dead) = (topic("fuzzed", ids[0], Some(ids[1])), topic("fuzzed.dlq", ids[1], None));
    catalog.insert_topic(&topic, &dead, &actor).await.expect("the catalog does it");
    catalog.insert_subscription(&subscription(&topic), &actor).await.expect("the catalog does it");
    let plugins = Plugins {
        dir: None,
        workers: 1,
        instances_per_stage_max: 1,
        idle_timeout: Duration::from_secs(3600),
        queue_batches_max: 64,
        size_max: 50 << 20,
        versions_max: 1000,
        quotas: Vec::new(),
        trust: PluginTrust::default(),
    };
    let options = PipelineOptions { plugins, data_dir: dir.to_owned(), warm_up: false, fleet: None };
    let opened = Pipelines::open(options, catalog, clock.clone(), &prometheus::Registry::new()).await;
    let pipelines = opened.expect("pipelines in an empty folder");
    let bytes = Bytes::from_static(guest::edits());
    let component =
        NewComponent { name: "edits".to_owned(), version: None, bytes, source: PluginSource::Upload, signature: None };
    pipelines.accept(component, &actor).await.expect("the guest is a plugin");
    for (scope, emit_to) in scopes(&topic).into_iter().zip([&["allowed"][..], &[]]) {
        let stage = serde_json::json!({
            "name": "edits", "plugin": "edits", "timeoutMs": 1000, "memoryMb": 32, "emitTo": emit_to,
        });
        let stages = vec![serde_json::from_value(stage).expect("this is a stage")];
        pipelines.set(scope, stages, None, &actor).await.expect("the stage is valid");
    }
    (pipelines, topic)
}

fn subscription(topic: &Topic) -> Subscription {
    let settings = SubscriptionSettings::new(SubscriptionKind::Pull);
    Subscription {
        id: serde_json::from_str(r#""018f0000-0000-7000-8000-000000000007""#).expect("this is an id"),
        group: GroupId(1),
        topic: topic.id,
        topic_name: topic.name.clone(),
        consumer_group: "fuzz".into(),
        settings,
        secret: None,
        previous_secret: None,
        pause: None,
        created_by: "fuzz".to_owned(),
        created_at: NOW,
        updated_at: NOW,
        version: 1,
    }
}

fn topic(name: &str, id: TopicId, dead_letter: Option<TopicId>) -> Topic {
    let settings = TopicSettings {
        description: String::new(),
        kind: TopicKind::PubSub,
        schema_id: None,
        guarantee: Guarantee::AtLeastOnce,
        retention: Duration::from_secs(3600),
        retention_bytes: None,
        partition_count: 1,
        max_message_size: PAYLOAD_BYTES_MAX as u64,
        dedup_window: Duration::from_secs(60),
        dedup_keys_max: 1000,
        dead_letter_payload: DeadLetterPayload::Original,
        dead_letter_expired: false,
        dead_letter_threshold: None,
        capture_input: None,
        storage: Storage::Default,
    };
    let name = name.parse().expect("this is a name");
    let (created_at, updated_at) = (Timestamp(0), Timestamp(0));
    Topic { id, name, dead_letter, settings, created_at, updated_at, version: 1 }
}

/// Scripts of the guest's words: see `tests/guests/edits/src/call.rs`.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let all_questions = (0..15).flat_map(|word| [word, 1, 1, b'a']).collect::<Vec<u8>>();
    let script = |messages: u8, direction: u8, script: &[u8]| [&[messages, direction], script].concat();
    vec![
        ("calm", script(5, 0, b"")),
        ("questions", script(2, 0, &all_questions)),
        ("questions_out", script(2, 1, &all_questions)),
        (
            "edits",
            script(1, 0, b"\x11\x00\x03abc\x12\x01\x0atext/plain\x13\x00\x01h\x02vv\x15\x01\x01a\x16\x00\x01\x01k"),
        ),
        ("drop", script(3, 0, b"\x0f\x02\x04told\x11\x02\x01x")),
        ("rejects", script(1, 0, b"\x90\x20\x00\x02NO\x03why\x01\x02/a")),
        ("emits", script(1, 0, b"\x97\x80\x00\x00\x01\x01k\x02{}\x01a\x09")),
        ("emit_elsewhere", script(0, 0, b"\x17\x00\x03\x09elsewhere\x00\x02{}\x00")),
        ("key_out", script(0, 1, b"\x16\x00\x01\x01k")),
        ("headers", script(0, 0, b"\x93\xff\x00\x01h\xe0x\x09")),
        ("long_payload", script(0, 0, b"\x11\x00\xe0x\x0e\x11\x00\xe0x\x0f")),
        ("past_the_end", script(1, 0, b"\x03\xfe\x11\xff\x01a\x05\xfd\x00\x00\x00\x80")),
        ("no_text", script(1, 0, b"\x13\x00\x02\xc3(\x02\xff\xfe")),
        ("no_memory", script(1, 0, b"\x11\x00\xf8\x00\x00\xff\xff\xff\xff\x00\x00")),
        ("handles", script(1, 0, b"\x1c\x07\x00\x00\x00\x00\x1d\x01\x00\x00\x00\x1e\x00\x00")),
        ("speaks", script(1, 0, b"\x19\x01\x40\x1a\x03\x04said\x9a\xff\x00\x01x")),
        ("fails", script(2, 0, b"\x11\x00\x01x\x1f\x03")),
        ("panics", script(2, 0, b"\x11\x00\x01x\x20")),
    ]
}
