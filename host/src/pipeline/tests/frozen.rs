//! Plugins that were compiled when version 1.0 of the contract was released, and are never built again: every later host runs
//! them. Invariant: their bytes are those of `tests/data/plugins-1.0/SHA256SUMS`. Never mended when they fail: the host is.

use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use crate::catalog::{Compatibility, NewSchema};
use crate::pipeline::component;
use crate::pipeline::draft::Verdict;
use crate::schemas::Schemas;

use super::{Rig, SYSTEM, draft, header, stage};

/// The compiled plugin `name`, as it was released.
fn frozen(name: &str) -> Bytes {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/plugins-1.0");
    let bytes = std::fs::read(folder.join(format!("{name}.wasm"))).unwrap();
    let sums = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let line = format!("{}  {name}.wasm", component::digest(&bytes));
    assert!(sums.lines().any(|known| known == line), "{name}.wasm is not what was released");
    assert!(bytes.len() < 150 * 1024, "{name}.wasm has {} bytes", bytes.len());
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_of_1_0_runs() {
    let rig = Rig::new().await;
    rig.accept("header-filter", frozen("header_filter")).await.unwrap();
    let config = json!({"header": "kind", "value": "order"});
    rig.pipelines.set(rig.scope(), vec![stage("f", "header-filter", config)], None, &SYSTEM).await.unwrap();
    let processed =
        rig.run(vec![draft("{}", &[("kind", "order")]), draft("{}", &[("kind", "x")]), draft("", &[])]).await;
    assert_eq!(processed[0].verdict, Verdict::Pass);
    for dropped in &processed[1..] {
        let Verdict::Drop { reason, .. } = &dropped.verdict else { panic!("{:?}", dropped.verdict) };
        assert_eq!(&**reason, "another value");
    }
    let stages = vec![stage("f", "header-filter", json!({"header": "kind"}))];
    let refused = rig.pipelines.set(rig.scope(), stages, None, &SYSTEM).await.unwrap_err();
    assert!(format!("{refused:?}").contains("missing field `value`"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emitting_stage_of_1_0_runs() {
    let rig = Rig::new().await;
    rig.accept("audit", frozen("audit")).await.unwrap();
    let mut audit = stage("audit", "audit", json!({"topic": "audited"}));
    audit.emit_to = vec!["audited".to_owned()];
    rig.pipelines.set(rig.scope(), vec![audit], None, &SYSTEM).await.unwrap();
    let drafts = vec![draft("hello", &[("kind", "order")]), draft("x", &[("kind", "secret")]), draft("x", &[])];
    let processed = rig.run(drafts).await;
    assert_eq!((&processed[0].verdict, &*processed[0].draft.payload), (&Verdict::Pass, &b"5 bytes in orders"[..]));
    assert_eq!((&*processed[0].draft.content_type, header(&processed[0], "kind")), ("text/plain", None));
    assert_eq!(processed[0].draft.key.as_deref(), Some("order"));
    let [emitted] = &processed[0].emitted[..] else { panic!("{:?}", processed[0].emitted) };
    assert_eq!(
        (emitted.topic.as_str(), emitted.key.as_deref(), &emitted.payload[..]),
        ("audited", Some("order"), &b"hello"[..])
    );
    assert_eq!(&*emitted.headers[0].1, processed[0].draft.id.to_string());
    let Verdict::Reject(rejection) = &processed[1].verdict else { panic!("{:?}", processed[1].verdict) };
    let fault = &rejection.faults[0];
    assert_eq!((&*fault.code, &*fault.message, fault.pointer.as_deref()), ("SECRET", "not for here", Some("/kind")));
    assert_eq!((&processed[2].verdict, processed[2].trail[0].word.as_str()), (&Verdict::Pass, "pass"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_of_1_0_with_every_power_runs() {
    let rig = Rig::new().await;
    rig.accept("counter", frozen("counter")).await.unwrap();
    let counting = |schema: Option<&str>| vec![stage("count", "counter", json!({"prefix": "n:", "schema": schema}))];
    let refused = rig.pipelines.set(rig.scope(), counting(Some("order")), None, &SYSTEM).await.unwrap_err();
    assert!(format!("{refused:?}").contains("no schema order"), "{refused:?}");
    let (id, version) = ("order".to_owned(), "1".to_owned());
    let new = NewSchema { id, version, definition: "{}".to_owned(), compatibility: Compatibility::None };
    Schemas::new(rig.catalog.clone(), 100).register(new, &SYSTEM).await.unwrap();
    rig.pipelines.set(rig.scope(), counting(Some("order")), None, &SYSTEM).await.unwrap();
    let of = |key: &str, headers: &[(&str, &str)]| {
        let mut draft = draft("12345", headers);
        draft.key = Some(key.into());
        draft
    };
    let drafts = vec![of("a", &[]), of("b", &[]), of("a", &[("reset", "1")]), of("a", &[])];
    // What a run sets is kept when its messages are stored; nothing is here, so one batch says all that values are to it.
    rig.run((0..256).map(|_| of("warm", &[("reset", "1")])).collect()).await;
    // Another second, which has lines left in the log.
    rig.clock.advance(std::time::Duration::from_secs(1));
    let processed = rig.run(drafts).await;
    let counts: Vec<_> = processed.iter().map(|processed| header(processed, "count")).collect();
    assert_eq!(counts, [Some("1"), Some("1"), Some("2"), Some("1")]);
    assert_eq!(header(&processed[0], "schema-bytes"), Some("2"));
    assert_eq!(rig.metric("sluice_plugin_counter_total", "counted_total"), 260.0);
    assert_eq!(rig.metric("sluice_plugin_gauge", "last_count"), 1.0);
    assert_eq!(rig.metric("sluice_plugin_histogram", "payload_bytes"), 260.0);
    assert!(rig.pipelines.plugin_log("counter").iter().any(|line| &*line.text == "counted 2"));
}
