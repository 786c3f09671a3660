//! The deployment guide's own `curl` calls work as written. Invariant: what runs is the text of `guide.md`, through a real
//! bash and curl; only the address is another.

use std::process::Command;

use serde_json::Value;
use sluice_tests::{Broker, Settings, binary};

const GUIDE: &str = include_str!("guide.md");

/// Defines what the guide takes for granted: a way to a token. `curl` is told to show the status, and nothing else.
const PRELUDE: &str = r#"
set -eu
get_jwt_token() { "$SLUICE" token --role Admin --data-dir "$DATA_DIR"; }
TOKEN="$(get_jwt_token)"
curl() { command curl --silent --show-error --write-out '\n%{http_code}' "$@"; }
"#;

/// The calls under one heading, each with its comment.
fn calls_below(heading: &str) -> Vec<String> {
    let section = GUIDE.split("\n## ").find(|section| section.starts_with(heading)).expect("the heading is there");
    let block = section.split("```bash\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of bash");
    block.split("\n\n").map(str::to_owned).collect()
}

/// Runs one call and answers the status and the body.
fn run(broker: &Broker, call: &str) -> (u16, Value) {
    let address = broker.url().trim_start_matches("http://");
    let script = format!("{PRELUDE}\n{}", call.replace("localhost:5000", address));
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("SLUICE", binary::sluice())
        .env("DATA_DIR", broker.data_dir())
        .output()
        .expect("bash starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{stdout}\n{stderr}");
    let (body, status) = stdout.trim_end().rsplit_once('\n').expect("a body and a status");
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {stdout}"));
    (status.parse().expect("curl prints the status"), body)
}

#[tokio::test]
async fn the_guides_calls_work_as_written() {
    let broker = Broker::with(Settings::new().own_secret()).await;

    let verify = calls_below("Step 6");
    let [health, topic, publish] = verify.as_slice() else { panic!("Step 6 has three calls: {verify:?}") };
    let (status, health) = run(&broker, health);
    assert_eq!(status, 200, "{health}");
    let (status, topic) = run(&broker, topic);
    assert_eq!((status, &topic["schemaStatus"]), (201, &"Unregistered".into()), "{topic}");
    assert_eq!((&topic["type"], &topic["deliveryGuarantee"]), (&"Queue".into(), &"AtLeastOnce".into()), "{topic}");
    let (status, published) = run(&broker, publish);
    assert_eq!((status, &published["status"]), (202, &"Pending".into()), "{published}");

    let phase1 = calls_below("Phase 1");
    let (status, topic) = run(&broker, &phase1[0]);
    assert_eq!((status, &topic["type"]), (201, &"PubSub".into()), "{topic}");
    assert_eq!(topic["schemaStatus"], "Unregistered", "{topic}");

    let phase2 = calls_below("Phase 2");
    let (status, subscription) = run(&broker, &phase2[0]);
    assert_eq!((status, &subscription["type"]), (201, &"Push".into()), "{subscription}");
    let secret = subscription["secret"].as_str().expect("the answer at creation holds the secret");
    assert!(secret.starts_with("whsec_"), "{subscription}");

    // The payload is stored exactly as the guide's string holds it.
    let deliveries = broker.consume("test.topic", "any").await;
    assert_eq!(deliveries[0].payload(), r#"{"test":"message"}"#);
    deliveries[0].ack().await;
}
