//! What operators see: metrics whose names and units follow one convention, and traces that lead from a delivery back to
//! its publish. Invariant: names are checked as the scraper and the collector receive them.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use sluice_tests::collector::attribute;
use sluice_tests::{Broker, Collector, Receiver, Settings};

/// Units that a name may end with, by Prometheus' and OpenMetrics' conventions.
const UNITS: [&str; 4] = ["_seconds", "_bytes", "_ratio", "_info"];

#[tokio::test]
async fn metrics_are_named_typed_described_and_bounded() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("events", "PubSub").await;
    broker.subscribe("events", "pull").await;
    broker.subscribe_push("events", "push", &receiver.url(), json!({})).await;
    broker.publish("events", json!({})).await;
    receiver.received(1).await;
    broker.consume("events", "pull").collect(1).await[0].ack().await;

    let answer = broker.anonymous().get("//metrics").await;
    assert_eq!(answer.status, 200, "{answer}");
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{answer}");
    let families = families(&answer.text());
    assert!(families.keys().any(|name| name.starts_with("sluice_")), "{:?}", families.keys());
    let faults: Vec<String> = families.iter().flat_map(|(name, family)| lint(name, family)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[derive(Default)]
struct Family {
    help: bool,
    kind: String,
    series: usize,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(_)) => families.entry(name.to_owned()).or_default().help = true,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                kind.clone_into(&mut families.entry(name.to_owned()).or_default().kind);
            }
            _ => {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
                let base = base.filter(|base| families.get(*base).is_some_and(|family| family.kind == "histogram"));
                // A histogram's buckets are as many as its bounds, whatever is measured.
                let series = usize::from(!name.ends_with("_bucket"));
                families.entry(base.unwrap_or(name).to_owned()).or_default().series += series;
            }
        }
    }
    families
}

fn lint(name: &str, family: &Family) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |what: &str| faults.push(format!("{name} ({}): {what}", family.kind));
    if !(name.starts_with("sluice_") || name.starts_with("process_")) {
        fault("has no prefix of ours");
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
        fault("is not in snake case");
    }
    if !family.help {
        fault("has no help");
    }
    match family.kind.as_str() {
        "counter" if !name.ends_with("_total") => fault("is a counter and does not end with _total"),
        "gauge" | "histogram" if name.ends_with("_total") => fault("ends with _total and is no counter"),
        "histogram" if !UNITS.iter().any(|unit| name.ends_with(unit)) && !name.ends_with("_messages") => {
            fault("is a histogram without a unit");
        }
        "counter" | "gauge" | "histogram" => {}
        _ => fault("is of no known type"),
    }
    for scaled in ["_ms", "_millis", "_milliseconds", "_micros", "_kb", "_mb", "_percent"] {
        if name.trim_end_matches("_total").ends_with(scaled) {
            fault("is not in base units");
        }
    }
    // Every route by four classes of status, at most.
    if family.series > 400 {
        fault("has too many series for a broker with one topic");
    }
    faults
}

#[tokio::test]
async fn a_delivery_is_traced_back_to_its_publish() {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    let settings = Settings::new().env("SLUICE__TELEMETRY__OTLP_ENDPOINT", &collector.url());
    let broker = Broker::with(settings).await;
    broker.create_topic("events", "PubSub").await;
    broker.subscribe_push("events", "push", &receiver.url(), json!({})).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    broker.publish("events", json!({})).http_header("traceparent", &parent).await;
    let request = receiver.received(1).await.remove(0);

    let of_trace = |span: &Span| hex(&span.trace_id) == trace;
    let publish = collector.span("the span of the publish", |span| of_trace(span) && is_messaging(span, "send")).await;
    assert_eq!(attribute(&publish, "messaging.destination.name").as_deref(), Some("events"), "{publish:?}");
    let leads_back = |span: &Span| {
        is_messaging(span, "process") && (of_trace(span) || span.links.iter().any(|link| hex(&link.trace_id) == trace))
    };
    let delivery = collector.span("the span of the delivery, linked to the publish", leads_back).await;
    let sent = request.header("traceparent");
    let told = [hex(&delivery.trace_id), trace.to_owned()].iter().any(|known| sent.contains(known.as_str()));
    assert!(told, "the receiver is told a trace that leads to both: {sent}");
}

#[tokio::test]
async fn a_trace_is_exported_if_upstream_said_so_or_by_its_share() {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    let settings = Settings::new().env("SLUICE__TELEMETRY__OTLP_ENDPOINT", &collector.url());
    let broker = Broker::with(settings.env("SLUICE__TELEMETRY__SAMPLING_RATE", "0")).await;
    broker.create_topic("events", "PubSub").await;
    broker.subscribe_push("events", "push", &receiver.url(), json!({})).await;
    let (left_out, kept) = ("0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736");
    let parent = |trace: &str, flags: &str| format!("00-{trace}-b7ad6b7169203331-{flags}");

    broker.publish("events", json!(0)).await;
    broker.publish("events", json!(1)).http_header("traceparent", &parent(left_out, "00")).await;
    broker.publish("events", json!(2)).http_header("traceparent", &parent(kept, "01")).await;
    let told: Vec<String> =
        receiver.received(3).await.iter().map(|request| request.header("traceparent").to_owned()).collect();
    assert!(told.iter().any(|told| told.contains(left_out) && told.ends_with("-00")), "passed on unsampled: {told:?}");
    let refused =
        broker.publish("nowhere", json!(3)).http_header("traceparent", &parent(left_out, "00")).answer().await;
    assert_eq!(refused.expect_problem(404, "NOT_FOUND")["traceId"], left_out);

    // A broker's spans come in the order they end in, and those that are sampled end behind the others.
    for operation in ["send", "process"] {
        collector.span(operation, |span| is_messaging(span, operation)).await;
    }
    let spans = collector.spans();
    let of_kept =
        |span: &Span| hex(&span.trace_id) == kept || span.links.iter().any(|link| hex(&link.trace_id) == kept);
    assert!(spans.iter().all(of_kept), "{spans:#?}");
    let operations =
        ["send", "process"].map(|operation| spans.iter().filter(|span| is_messaging(span, operation)).count());
    assert_eq!(operations, [1, 1], "{spans:#?}");
}

/// Whether the span is a messaging operation of this type, by OpenTelemetry's conventions.
fn is_messaging(span: &Span, operation: &str) -> bool {
    attribute(span, "messaging.operation.type").as_deref() == Some(operation)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
