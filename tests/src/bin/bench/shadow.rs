//! What live traffic feels of a version that runs beside it on all messages: publishes per second and the time of a publish,
//! without a shadow and with one, once with few connections, which leave processor time over, and once with as many as the
//! machine takes. Invariant: the two are measured in turn, pair by pair, on one broker; the shadow does the same as the
//! stage's own version. Never asserts: what was left out (`shed`) is a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sluice_tests::{Broker, guest};

use super::load::median;
use super::report::{Budget, Report, Row, short};
use super::swaps::{Measured, round};

const TOPIC: &str = "shadowed";
const ROLLOUT: &str = "/topics/shadowed/pipeline/stages/tag/rollout";
const PAIRS: usize = 5;
/// Of DESIGN: a tenth.
const LEAST: f64 = 0.9;
const MOST: f64 = 1.1;
/// One connection waits for each of its syncs, and two processors are there; sixty-four never leave one idle.
const LOADS: [(usize, &str); 2] = [(1, "processors to spare"), (64, "none to spare")];

/// The rows.
pub async fn rows(report: &mut Report) {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, "Queue").await;
    let component = guest::tag(1);
    let twin = guest::with_section(&component, "twin", b"the same, but for its bytes");
    broker.place_versions("tag", &[("1.0.0", &component), ("1.1.0", &twin)]).await;
    let stage = json!({"name": "tag", "plugin": "tag", "version": "1.0.0", "config": {"stamp": 1}, "timeoutMs": 500});
    broker.put_pipeline(TOPIC, json!([stage])).await;
    for (connections, left) in LOADS {
        let errors = Arc::new(AtomicUsize::new(0));
        let (mut pairs, mut compared, mut shed) = (Vec::new(), 0.0, 0.0);
        round(&broker, TOPIC, connections, &errors).await;
        for _ in 0..PAIRS {
            let without = round(&broker, TOPIC, connections, &errors).await;
            broker.post(ROLLOUT, &json!({"version": "1.1.0", "strategy": "shadow"})).await.expect(200);
            pairs.push([without, round(&broker, TOPIC, connections, &errors).await]);
            let view: Value = broker.get(ROLLOUT).await.expect(200)["shadow"].clone();
            let of = |name: &str| view[name].as_f64().expect("a number");
            compared += of("same") + of("payloadDiffers") + of("verdictDiffers") + of("trapped");
            shed += of("shed");
            broker.post(&format!("{ROLLOUT}/abort"), &json!({})).await.expect(200);
        }
        assert_eq!(errors.load(Ordering::Relaxed), 0, "publishes that were not stored");
        let load = format!("{connections} connections, {left}");
        add(report, format!("publish beside a shadow of all messages, {load}"), &pairs, PER_SECOND);
        add(report, format!("the same: p99 of a publish, {load}"), &pairs, P99);
        let share = 100.0 * shed / (shed + compared).max(1.0);
        report.add(Row {
            work: format!("the same: messages that the shadow left out, {load}"),
            ours: format!("{} of {}", short(shed), short(shed + compared)),
            baseline: "nothing".to_owned(),
            figures: vec![share],
            unit: "%",
            budget: Budget::None,
        });
    }
}

/// A figure of a round, its unit, and how it may change.
type Figure = (fn(&Measured) -> f64, &'static str, Budget);

const PER_SECOND: Figure = (|measured| measured.per_second, "msg/s", Budget::AtLeast(LEAST));
const P99: Figure = (|measured| measured.p99_ms, "ms", Budget::AtMost(MOST));

fn add(report: &mut Report, work: String, pairs: &[[Measured; 2]], (of, unit, budget): Figure) {
    let each = |which: usize| short(median(pairs.iter().map(|pair| of(&pair[which])).collect()));
    report.add(Row {
        work,
        ours: format!("{} {unit}", each(1)),
        baseline: format!("without it: {} {unit}", each(0)),
        figures: pairs.iter().map(|[without, with]| of(with) / of(without)).collect(),
        unit: "×",
        budget,
    });
}
