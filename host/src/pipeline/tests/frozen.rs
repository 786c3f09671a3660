//! Plugins that were compiled when version 1.0 of the contract was released, and are never built again: every later host runs
//! them. Invariant: their bytes are those of `tests/data/plugins-1.0/SHA256SUMS`. Never mended when they fail: the host is.

use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use crate::pipeline::component;
use crate::pipeline::draft::Verdict;

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
