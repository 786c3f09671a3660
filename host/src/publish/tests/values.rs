//! What plugins' values come to with the messages that they are written for, over a whole broker and a real guest. Invariant:
//! each test has a broker of its own; where others meddle, the guest itself waits until they have. Never asks how long it took.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::{PublishError, PublishRequest, Published, Status};
use crate::broker::Broker;
use crate::catalog::Actor;
use crate::catalog::model::{
    CaptureInput, OnFault, OnReject, PluginSource, Scope, StageSpec, SubscriptionKind, SubscriptionSettings, Topic,
    TopicSettings,
};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::delivery::push::signature::Scheme;
use crate::directory::NewSubscription;
use crate::pipeline::kv_sweep::ValueSweep;
use crate::pipeline::tests::{guest, stage};
use crate::pipeline::{KV_RERUNS_MAX, NewComponent};
use crate::store::{AppendBatch, KvUse, KvWrite, SeekTo, StoreError, kv_namespace};

struct Bed {
    _root: Arc<tempfile::TempDir>,
    broker: Arc<Broker>,
    topic: Arc<Topic>,
}

type Results = Vec<Result<Published, PublishError>>;

impl Bed {
    /// A topic with one stage of the guest.
    async fn new() -> Bed {
        Bed::with(|_| {}, vec![]).await
    }

    /// The guest's stage, changed, and others behind it.
    async fn with(change: impl FnOnce(&mut StageSpec), others: Vec<StageSpec>) -> Bed {
        let root = tempfile::tempdir().unwrap();
        let config = Config { data_dir: root.path().join("data"), ..crate::config::tests::development() };
        let broker = Broker::open(config).await.unwrap();
        let topic = create(&broker, "counted").await;
        let bed = Bed { _root: Arc::new(root), broker, topic };
        bed.bring("powers", guest("powers")).await;
        let mut own = stage("powers", "powers", json!({}));
        change(&mut own);
        let stages = [vec![own], others].concat();
        bed.set(&bed.topic, stages).await;
        bed
    }

    fn share(&self) -> Bed {
        let (broker, topic) = (Arc::clone(&self.broker), Arc::clone(&self.topic));
        Bed { _root: Arc::clone(&self._root), broker, topic }
    }

    async fn bring(&self, name: &str, bytes: bytes::Bytes) {
        let new =
            NewComponent { name: name.to_owned(), version: None, bytes, source: PluginSource::Upload, signature: None };
        self.broker.pipelines.accept(new, &Actor::system()).await.unwrap();
    }

    async fn set(&self, topic: &Topic, stages: Vec<StageSpec>) {
        self.broker.pipelines.set(Scope::Topic(topic.id), stages, None, &Actor::system()).await.unwrap();
    }

    fn request(&self, told: &str, payload: &Value) -> PublishRequest {
        let payload = payload.to_string().into();
        let mut request = PublishRequest::new(Arc::clone(&self.topic), payload, "application/json".into());
        request.headers.push(("do".into(), told.into()));
        request
    }

    async fn tell(&self, told: &[&str]) -> Results {
        let requests = told.iter().map(|told| self.request(told, &json!({}))).collect();
        self.broker.publisher.publish_batch(requests, false).await
    }

    async fn value(&self, key: &str) -> Option<String> {
        let namespace = kv_namespace(self.topic.id, "powers");
        let stored = self.broker.store.kv_get(&namespace, key).await.unwrap()?;
        Some(String::from_utf8(stored.value[crate::pipeline::kv::HEAD_BYTES..].to_vec()).unwrap())
    }

    /// Somebody else sets a value.
    async fn meddle(&self, key: &str, text: &str) {
        let namespace = kv_namespace(self.topic.id, "powers");
        loop {
            let known = self.broker.store.kv_get(&namespace, key).await.unwrap();
            let expected_version = known.map_or(0, |known| known.version);
            let value = Some([&[1, 0, 0, 0, 0, 0, 0, 0, 0], text.as_bytes()].concat());
            let kv = vec![KvWrite { namespace: Arc::clone(&namespace), key: key.into(), expected_version, value }];
            let (topic, values) = (self.topic.id, KvUse::default());
            let (items, replays) = (Vec::new(), Vec::new());
            let batch = AppendBatch { topic, revision: 0, items, all_or_nothing: false, kv, values, replays };
            match self.broker.store.append(batch).await {
                Ok(_) => return,
                Err(StoreError::KvConflict) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Sets what a publish waits for, once it does.
    async fn meddle_once(&self) {
        while !self.broker.pipelines.plugin_log("powers").iter().any(|line| &*line.text == "waiting") {
            tokio::task::yield_now().await;
        }
        self.meddle("k", "go").await;
    }

    /// Changes a value until the publish has ended.
    async fn meddled_with(&self, told: &str) -> Result<Published, PublishError> {
        let told = [told];
        let mut publish = std::pin::pin!(self.tell(&told));
        for n in 0_u64.. {
            let text = n.to_string();
            tokio::select! {
                mut results = &mut publish => return results.remove(0),
                () = self.meddle("k", &text) => {}
            }
        }
        unreachable!("it ends with the publish")
    }

    fn runs(&self) -> f64 {
        let families = self.broker.registry.gather();
        let runs = families.iter().find(|family| family.name() == "sluice_plugin_runs_total").unwrap();
        let of = |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == "powers");
        runs.get_metric().iter().filter(of).map(|metric| metric.get_counter().get_value()).sum()
    }
}

async fn create(broker: &Broker, name: &str) -> Arc<Topic> {
    let settings = TopicSettings { partition_count: 1, ..super::topic(name).settings };
    broker.directory.create_topic(name.parse().unwrap(), settings, &Actor::system()).await.unwrap()
}

/// Rejects objects without `n`.
fn needs_n(on_reject: OnReject) -> StageSpec {
    let config = json!({ "schema": { "type": "object", "required": ["n"] } });
    StageSpec { on_reject, ..stage("needs-n", "json-schema", config) }
}

fn stored(results: &Results) -> usize {
    results.iter().filter(|result| matches!(result, Ok(published) if published.status == Status::Pending)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_counts_what_many_publish_at_once() {
    let bed = Bed::new().await;
    let batch = bed.tell(&["count n"; 300]).await;
    assert_eq!((stored(&batch), bed.value("n").await.as_deref()), (300, Some("300")), "a batch sees its own writes");
    let clients = (0..8).map(|_| async {
        for _ in 0..10 {
            assert_eq!(stored(&bed.tell(&["count n", "count n"]).await), 2, "nobody is turned away for the others");
        }
    });
    futures_util::future::join_all(clients).await;
    assert_eq!(bed.value("n").await.as_deref(), Some("460"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_for_a_message_that_is_turned_away_is_not_kept() {
    for on_reject in [OnReject::Reject, OnReject::DeadLetter, OnReject::Drop] {
        let bed = Bed::with(|_| {}, vec![needs_n(on_reject)]).await;
        let payload = |n: usize| if n % 5 == 2 { json!({}) } else { json!({ "n": n }) };
        let requests = (0..40).map(|n| bed.request("count n", &payload(n))).collect();
        let results = bed.broker.publisher.publish_batch(requests, false).await;
        assert_eq!(stored(&results), 32);
        assert_eq!(bed.value("n").await.as_deref(), Some("32"), "{on_reject:?}: nothing stands on what was not stored");
        let atomic = (0..10).map(|n| bed.request("count n", &payload(n))).collect();
        let results = bed.broker.publisher.publish_batch(atomic, true).await;
        let kept = if on_reject == OnReject::Reject { 0 } else { stored(&results) };
        assert_eq!(bed.value("n").await, Some((32 + kept).to_string()), "{on_reject:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_takes_along_what_its_message_has_set() {
    let bed = Bed::new().await;
    let results = bed.tell(&["count n", "count n; set k v; trap", "count n; set k w; reject", "count n"]).await;
    assert_eq!((stored(&results), bed.value("n").await.as_deref()), (2, Some("2")));
    assert!(matches!(results[1], Err(PublishError::Fault(_))), "{:?}", results[1]);
    assert_eq!(bed.value("k").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_for_a_dropped_message_is_kept() {
    let bed = Bed::new().await;
    let results = bed.tell(&["set k v; drop"]).await;
    assert_eq!(results[0].as_ref().unwrap().status, Status::Dropped);
    assert_eq!(bed.value("k").await.as_deref(), Some("v"));
    let told = ["once a", "once b", "once a", "once c", "once b"];
    assert_eq!(stored(&bed.tell(&told).await), 3, "what a batch has seen itself counts");
    assert_eq!(stored(&bed.tell(&told).await), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_sets_nothing() {
    let bed = Bed::new().await;
    let keyed = |key: &str| PublishRequest { idempotency_key: Some(key.into()), ..bed.request("count n", &json!({})) };
    for round in 0..10 {
        let one = || bed.broker.publisher.publish_batch(vec![keyed(&round.to_string())], false);
        let (first, second, third) = tokio::join!(one(), one(), one());
        assert_eq!(stored(&[first, second, third].concat()), 1, "two race, and one is stored");
    }
    assert_eq!(bed.value("n").await.as_deref(), Some("10"));
    let requests = ["x", "x", "y", "x", "0", "z"].map(keyed).to_vec();
    let results = bed.broker.publisher.publish_batch(requests, false).await;
    assert_eq!(stored(&results), 3);
    assert_eq!(bed.value("n").await.as_deref(), Some("13"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_read_what_others_have_changed_is_run_again() {
    let bed = Bed::new().await;
    let publish = bed.tell(&["until k go"]);
    let (results, ()) = tokio::join!(publish, bed.meddle_once());
    assert_eq!((stored(&results), bed.value("k").await.as_deref()), (1, Some("mine")));
    assert_eq!(bed.runs(), 2.0, "the first run read what was not there any more when it was to be stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_emits_has_arrived_once_however_often_it_is_run() {
    let bed = Bed::with(|stage| stage.emit_to = vec!["further".to_owned()], vec![]).await;
    let how = CaptureInput { ttl: Duration::from_secs(3600), bytes_max: 1 << 20 };
    let settings = TopicSettings { capture_input: Some(how), ..create(&bed.broker, "model").await.settings.clone() };
    let further = bed.broker.directory.create_topic("further".parse().unwrap(), settings, &Actor::system()).await;
    let further = further.unwrap();
    bed.set(&further, vec![StageSpec { on_reject: OnReject::DeadLetter, ..stage("powers", "powers", json!({})) }])
        .await;
    let publish = bed.tell(&["emit further; emit further reject; emit further drop; until k go"]);
    let (results, ()) = tokio::join!(publish, bed.meddle_once());
    assert_eq!((stored(&results), bed.runs()), (1, 2.0 * 4.0), "its own stage and that of each emitted one, twice");
    let arrived = async || {
        let reader = bed.broker.capture.read(further.id, how, Timestamp(0)).await.unwrap();
        reader.map(|draft| draft.unwrap().id).collect::<Vec<_>>()
    };
    let ids = arrived().await;
    assert_eq!(ids.len(), 3, "{ids:?}");
    // By the ids that the log and the dead letters have they can be found, and erased.
    let stored = [bed.broker.store.get(ids[0]).await.unwrap(), bed.broker.store.get(ids[1]).await.unwrap()];
    let topics = stored.map(|found| found.unwrap().position.unwrap().topic);
    assert_eq!(topics, [further.id, further.dead_letter.unwrap()]);

    // Of what is refused nothing has come.
    let results = bed.tell(&["emit further; reject", "emit further; trap"]).await;
    assert!(results.iter().all(Result::is_err));
    assert_eq!(arrived().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_always_meets_others_is_a_fault_of_the_stage() {
    for on_fault in [OnFault::Reject, OnFault::DeadLetter, OnFault::Pass] {
        let bed = Bed::with(|stage| stage.on_fault = on_fault, vec![]).await;
        let result = bed.meddled_with("set other v; change k").await;
        match (on_fault, &result) {
            (OnFault::Reject, Err(PublishError::Fault(fault))) => {
                assert_eq!(fault.cause.as_str(), "FAILED");
                assert!(fault.detail.contains("changed by others 4 times"), "{}", fault.detail);
            }
            (OnFault::DeadLetter, Ok(published)) => assert_eq!(published.status, Status::DeadLettered),
            (OnFault::Pass, Ok(published)) => assert_eq!(published.status, Status::Pending),
            other => panic!("{other:?}"),
        }
        assert_eq!((bed.value("other").await, bed.value("k").await.as_deref() != Some("mine")), (None, true));
        assert_eq!(bed.runs(), f64::from(1 + KV_RERUNS_MAX + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn emitted_messages_count_in_their_own_topics_stages_with_their_source() {
    let bed = Bed::with(|stage| stage.emit_to = vec!["further".to_owned()], vec![needs_n(OnReject::Reject)]).await;
    let further = create(&bed.broker, "further").await;
    bed.set(&further, vec![stage("powers", "powers", json!({}))]).await;
    let told =
        |n: usize| bed.request("emit further count n+once k", &if n % 4 == 3 { json!({}) } else { json!({"n": 1}) });
    let results = bed.broker.publisher.publish_batch((0..20).map(told).collect(), false).await;
    assert_eq!(stored(&results), 15);
    let counted = bed.broker.store.kv_get(&kv_namespace(further.id, "powers"), "n").await.unwrap().unwrap();
    assert_eq!(&counted.value[crate::pipeline::kv::HEAD_BYTES..], b"15", "one for each source that was stored");
    let stats = bed.broker.store.stats(further.id).await.unwrap();
    assert_eq!(stats.messages, 1, "the others are dropped: the first one has set what they look for");
    assert_eq!(bed.value("n").await, None, "topics are apart");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_apart_and_versions_of_one_share() {
    let bed = Bed::new().await;
    bed.tell(&["set k v"]).await;
    // A custom section that says nothing: another version.
    bed.bring("powers", [&guest("powers")[..], &[0, 5, 4, b't', b'e', b's', b't']].concat().into()).await;
    let got = |name: &str| stage(name, name, json!({}));
    bed.bring("others", guest("powers")).await;
    for (plugin, seen) in [("powers", 0), ("others", 1)] {
        bed.set(&bed.topic, vec![got(plugin)]).await;
        assert_eq!(stored(&bed.tell(&["once k"]).await), seen, "{plugin}");
    }
    let versions = bed.broker.pipelines.plugin("powers").unwrap().versions;
    assert_eq!(versions.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_ends_with_its_time_and_its_room_comes_free() {
    let bed = Bed::new().await;
    bed.tell(&["set k v 60000", "set forever v", "once seen; set seen yes 60000"]).await;
    let mut sweep = ValueSweep::default();
    let clock = &bed.broker.clock;
    assert_eq!(sweep.step(&*bed.broker.store, clock.now()).await.unwrap(), 0);
    assert_eq!(stored(&bed.tell(&["once seen"]).await), 0, "it is there");
    clock.advance(Duration::from_secs(60));
    assert_eq!(stored(&bed.tell(&["once seen"]).await), 1, "it reads as none, and is set anew");
    assert_eq!(sweep.step(&*bed.broker.store, clock.now()).await.unwrap(), 1);
    let kept = bed.broker.store.kv_heads(None, 100, 0).await.unwrap();
    assert_eq!(kept.iter().map(|head| &*head.key).collect::<Vec<_>>(), ["forever", "seen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_values_are_looked_over_in_steps() {
    let bed = Bed::new().await;
    for hundred in 0..30 {
        let told: Vec<String> = (0..100).map(|n| format!("set k{hundred}-{n} v 1000")).collect();
        bed.tell(&told.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    bed.broker.clock.advance(Duration::from_secs(1));
    let mut sweep = ValueSweep::default();
    assert_eq!(sweep.step(&*bed.broker.store, bed.broker.clock.now()).await.unwrap(), 3000);
    assert!(bed.broker.store.kv_heads(None, 1, 0).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn values_go_with_their_topic() {
    let bed = Bed::new().await;
    let other = create(&bed.broker, "counted-too").await;
    bed.set(&other, vec![stage("powers", "powers", json!({}))]).await;
    let request = PublishRequest { topic: Arc::clone(&other), ..bed.request("set k v", &json!({})) };
    bed.broker.publisher.publish(request).await.unwrap();
    bed.tell(&["set k v"]).await;
    bed.broker.directory.delete_topic(&bed.topic.name, (true, None), &Actor::system()).await.unwrap();
    let kept = bed.broker.store.kv_heads(None, 100, 0).await.unwrap();
    assert_eq!(kept.iter().map(|head| &*head.namespace).collect::<Vec<_>>(), [&*kv_namespace(other.id, "powers")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_way_out_values_are_read_and_not_set() {
    let bed = Bed::new().await;
    bed.tell(&["set k v"]).await;
    let new = NewSubscription {
        topic: Arc::clone(&bed.topic),
        consumer_group: "readers".into(),
        settings: SubscriptionSettings::new(SubscriptionKind::Pull),
        signature: Scheme::default(),
        start: SeekTo::Latest,
    };
    let readers = bed.broker.directory.create_subscription(new, &Actor::system()).await.unwrap();
    let scope = Scope::Subscription(bed.topic.id, readers.id);
    let stages = vec![stage("powers", "powers", json!({}))];
    bed.broker.pipelines.set(scope, stages, None, &Actor::system()).await.unwrap();
    let draft = |told: &str| crate::pipeline::tests::draft("{}", &[("do", told)]);
    let drafts = vec![draft("get k"), draft("set k w"), draft("delete k")];
    let ran = bed.broker.pipelines.run(scope, &bed.topic, drafts).await.unwrap();
    let got = ran.processed[0].draft.headers.iter().find(|(name, _)| &**name == "got").map(|(_, value)| &**value);
    assert_eq!(got, Some("v"));
    for refused in &ran.processed[1..] {
        let crate::pipeline::draft::Verdict::Fault(fault) = &refused.verdict else { panic!("{:?}", refused.verdict) };
        assert!(fault.detail.contains("refused on the way out"), "{}", fault.detail);
    }
    assert_eq!(bed.value("k").await.as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_full_of_values_says_so() {
    let bed = Bed::new().await;
    let mut said = None;
    'topics: for n in 0..8 {
        let topic = create(&bed.broker, &format!("full-{n}")).await;
        bed.set(&topic, vec![stage("powers", "powers", json!({}))]).await;
        let bed = Bed { topic, ..bed.share() };
        for m in 0..15 {
            let told: Vec<String> = (0..16).map(|l| format!("fill k{m}-{l} 65536")).collect();
            let results = bed.tell(&told.iter().map(String::as_str).collect::<Vec<_>>()).await;
            if let Err(error) = &results[0] {
                said = Some(error.to_string());
                break 'topics;
            }
        }
    }
    assert!(said.as_deref().is_some_and(|said| said.contains("key-value space is full")), "{said:?}");
    assert_eq!(stored(&bed.tell(&["get absent"]).await), 1, "what sets nothing goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_has_room_for_so_many_values_on_a_topic_and_leaves_that_of_others() {
    let bed = Bed::new().await;
    let fill = async |n: usize| {
        let told = format!("fill k{n} 65536");
        bed.tell(&[&told]).await.remove(0)
    };
    let mut filled = 0;
    let full = loop {
        match fill(filled).await {
            Ok(_) => filled += 1,
            Err(error) => break error.to_string(),
        }
        assert!(filled < 1000, "it is never full");
    };
    assert_eq!(filled, 255, "of 64 KiB and what belongs to them, in 16 MiB");
    assert!(full.contains("no room for it") && full.contains("ttl-ms"), "{full}");
    // In a batch it is the fault of those alone that found no room, and of no neighbour.
    let results = bed.tell(&["set small v", "fill large 65536", "count n"]).await;
    let went: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(went, [true, false, true], "{results:?}");
    assert_eq!(stored(&bed.tell(&["fill k0 65536", "get small", "count n"]).await), 3, "what is there may be set anew");
    assert_eq!(bed.value("n").await.as_deref(), Some("2"));
    let other = create(&bed.broker, "counted-too").await;
    bed.set(&other, vec![stage("powers", "powers", json!({}))]).await;
    let request = PublishRequest { topic: Arc::clone(&other), ..bed.request("fill k 65536", &json!({})) };
    bed.broker.publisher.publish(request).await.unwrap();
    bed.tell(&["delete k3", "delete k4"]).await;
    assert!(fill(filled).await.is_ok(), "there is room again");
}

/// Each alone would find room, and both together do not: whichever comes second is run again, and told.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_want_the_last_room_one_has_it() {
    let bed = Bed::new().await;
    for n in 0..254 {
        assert_eq!(stored(&bed.tell(&[&format!("fill k{n} 65536")]).await), 1);
    }
    let [one, two] = [["fill x 65536"], ["fill y 65536"]];
    let (one, two) = tokio::join!(bed.tell(&one), bed.tell(&two));
    assert_eq!(stored(&one) + stored(&two), 1, "{one:?} {two:?}");
    let refused = one.into_iter().chain(two).find_map(Result::err).expect("one of them").to_string();
    assert!(refused.contains("no room for it"), "{refused}");
}
