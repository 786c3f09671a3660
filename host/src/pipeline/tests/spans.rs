//! The spans of stages' runs. Invariant: what belongs to no trace makes none. Never exports one.

use std::sync::Arc;

use parking_lot::Mutex;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::pipeline::batch::{self, Of};

use super::{Rig, draft};

/// The names of the spans of ours that were made.
#[derive(Debug, Clone, Default)]
struct Made(Arc<Mutex<Vec<&'static str>>>);

impl<S: tracing::Subscriber> Layer<S> for Made {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let metadata = attributes.metadata();
        if metadata.target().starts_with("sluice") {
            self.0.lock().push(metadata.name());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stages_run_is_a_span_of_the_trace_that_is_current_and_of_none_it_makes_none() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    let (scope, topic, clock) = (rig.scope(), rig.topic.name.clone(), rig.clock.clone());
    let revision = rig.pipelines.lane(scope).unwrap().current();
    // Stages wait for what they ask WASI for, which the threads of the runtime may not.
    let ran = tokio::task::spawn_blocking(move || {
        let made = Made::default();
        let run = || {
            let of = Of { scope, topic: &topic, payload_bytes_max: 1 << 20, growable: 1 << 20, kv: None };
            let (processed, _) = batch::run(&revision, of, vec![draft("{}", &[]); 3], &clock);
            assert_eq!(processed.len(), 3);
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(made.clone()), || {
            run();
            assert_eq!(*made.0.lock(), [""; 0]);
            tracing::info_span!("publish").in_scope(run);
            assert_eq!(*made.0.lock(), ["publish", "plugin stage"]);
        });
    });
    ran.await.unwrap();
}
