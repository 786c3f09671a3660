//! Pipelines that can't follow `latest` for a while. Invariant: what is in the way is put there by the test and taken away by
//! it. Never waits for a fixed time.

use std::time::Duration;

use serde_json::json;

use crate::catalog::Actor;
use crate::catalog::model::{Scope, Topic};
use crate::pipeline::PipelineError;

use super::{Rig, broken, draft, header, mended, stage, tag};

impl Rig {
    async fn tag_on(&self, topic: &Topic) -> String {
        let run = self.pipelines.run(Scope::Topic(topic.id), topic, vec![draft("{}", &[])]).await.unwrap();
        header(&run.processed[0], "tag").unwrap_or_default().to_owned()
    }

    /// Moves time until nothing lags behind the latest version of `tag`.
    async fn until_all_follow(&self) {
        while !self.pipelines.plugin("tag").unwrap().lagging.is_empty() {
            self.clock.advance(Duration::from_secs(60));
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_could_not_follow_latest_is_named_and_tried_again_until_it_does() {
    let rig = Rig::new().await;
    let billing = rig.add_topic("billing").await;
    rig.with_stage("tag", |_| {}).await;
    let stages = vec![stage("tag", "tag", json!({}))];
    rig.pipelines.set(Scope::Topic(billing.id), stages, None, &Actor::system()).await.unwrap();

    broken(&rig, "pipeline_revisions", &format!("NEW.topic_id = {}", rig.topic.id.0)).await;
    rig.accept("tag", tag(2)).await.unwrap();
    assert_eq!(rig.tag_on(&billing).await, "tag-version-2", "one that can't follow holds up no other");
    assert_eq!(rig.tag_on(&rig.topic).await, "tag-version-1");
    let lagging = rig.pipelines.plugin("tag").unwrap().lagging;
    assert_eq!(lagging.iter().map(|lag| lag.scope).collect::<Vec<_>>(), [rig.scope()], "{lagging:?}");
    assert!(lagging[0].why.contains("not available"), "{lagging:?}");

    for _ in 0..100 {
        rig.clock.advance(Duration::from_secs(60));
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.pipelines.plugin("tag").unwrap().lagging, lagging);
    mended(&rig, "pipeline_revisions").await;
    rig.until_all_follow().await;
    assert_eq!(rig.tag_on(&rig.topic).await, "tag-version-2");
    rig.pipelines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_lags_at_the_start_follows_once_it_can() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |stage| stage.config = json!({ "refuse": "tag-version-2" })).await;
    let other = rig.accept("tag", tag(2)).await.unwrap_err();
    assert!(matches!(other, PipelineError::Unusable(_)), "{other}");
    // As another binary would have left it: accepted, and refused by the pipeline that binds it.
    let new = crate::catalog::NewPlugin {
        plugin: "tag".to_owned(),
        version: None,
        digest: crate::pipeline::component::digest(&tag(2)),
        bytes: tag(2),
        source: crate::catalog::model::PluginSource::Builtin,
        imports: Vec::new(),
        signed_by: None,
        config_schema: None,
    };
    rig.catalog.accept_plugin(new, &Actor::system()).await.unwrap();
    let rig = rig.reopened().await;
    assert_eq!(rig.tag_on(&rig.topic).await, "tag-version-1");
    let lagging = rig.pipelines.plugin("tag").unwrap().lagging;
    assert!(lagging.len() == 1 && lagging[0].why.contains("does not like this config"), "{lagging:?}");
    rig.accept("tag", tag(3)).await.unwrap();
    rig.until_all_follow().await;
    assert_eq!(rig.tag_on(&rig.topic).await, "tag-version-3");
    rig.pipelines.shutdown().await;
}
