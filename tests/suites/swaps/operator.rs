//! Who swaps: replaces the plugin's file by a rename, and sets the pipelines' configs. Invariant: a swap has returned when
//! what it made is in force, and the record has it. Never publishes or consumes.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sluice_tests::swap_record::{SwapRecord, Way};
use sluice_tests::{Broker, guest, wait};

use super::{GROUPS, TOPIC, stage};

/// Builds of the plugin, which come again and again: a restored file is a swap too.
pub(super) const BUILDS: u8 = 5;

pub(super) struct Operator<'a> {
    broker: &'a Broker,
    record: Arc<SwapRecord>,
    /// The path of each pipeline.
    pipelines: [(Way, String); 2],
    /// The build that is in the folder.
    digit: u8,
    /// What the configs say.
    stamp: u64,
}

impl<'a> Operator<'a> {
    /// Sets the first stages.
    pub(super) async fn start(broker: &'a Broker, record: &Arc<SwapRecord>) -> Operator<'a> {
        let listed =
            broker.get(&format!("/subscriptions?topicName={TOPIC}&consumerGroup={}", GROUPS[1])).await.expect(200);
        let id = listed["subscriptions"][0]["subscriptionId"].as_str().expect("the subscription has an id").to_owned();
        let pipelines =
            [(Way::In, format!("/topics/{TOPIC}/pipeline")), (Way::Out, format!("/subscriptions/{id}/pipeline"))];
        let mut operator = Operator { broker, record: Arc::clone(record), pipelines, digit: 1, stamp: 0 };
        operator.swap_configs().await;
        operator
    }

    /// Puts another build in the place of the plugin's file; answers the topic's revision that runs it.
    pub(super) async fn swap_file(&mut self) -> u64 {
        self.digit = self.digit % BUILDS + 1;
        let component = guest::tag(self.digit);
        self.broker.place_plugin("tag.wasm", &component);
        let digest: String = Sha256::digest(&component).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut revisions = Vec::new();
        for (way, path) in &self.pipelines {
            let pipeline = wait::until("the pipelines run the new build", async || {
                let pipeline = self.broker.get(path).await.expect(200);
                (pipeline["resolved"][0]["digest"] == digest).then_some(pipeline)
            })
            .await;
            revisions.push(self.in_force(*way, &pipeline));
        }
        revisions[0]
    }

    /// Sets another config on both pipelines; answers the topic's revision that has it.
    pub(super) async fn swap_configs(&mut self) -> u64 {
        self.stamp += 1;
        let mut revisions = Vec::new();
        for (way, path) in &self.pipelines {
            let stages = json!({"stages": stage(self.config(*way))});
            let pipeline = self.broker.put(path, &stages).await.expect(200);
            revisions.push(self.in_force(*way, &pipeline));
        }
        revisions[0]
    }

    fn config(&self, way: Way) -> Value {
        match way {
            Way::In => json!({"stamp": self.stamp}),
            Way::Out => json!({"out": self.stamp}),
        }
    }

    fn in_force(&self, way: Way, pipeline: &Value) -> u64 {
        let revision = pipeline["revision"].as_u64().expect("a pipeline has a revision");
        self.record.in_force(way, revision, format!("tag-version-{} {}", self.digit, self.config(way)));
        revision
    }
}
