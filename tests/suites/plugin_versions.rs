//! Plugins brought over HTTP: what is taken in and what is not, by whom, with which powers, signed by whom. Invariant: what is
//! refused leaves no trace but the word on it, and what runs goes on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};
use sluice_tests::token::Claims;
use sluice_tests::{Answer, Broker, Client, Settings, guest, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::cli::{done, json as cli_json, refused};

const WASM: (&str, &str) = ("content-type", "application/wasm");

/// Uploads, and answers what the broker says.
pub(crate) async fn push(client: &Client, name: &str, version: &str, component: Vec<u8>) -> Answer {
    push_with(client, &format!("/plugins/{name}/versions?version={version}"), &[], component).await
}

async fn push_with(client: &Client, path: &str, headers: &[(&str, &str)], component: Vec<u8>) -> Answer {
    client.send(Method::POST, path, &[&[WASM], headers].concat(), component).await
}

/// A small component; `mark` makes its bytes its own.
fn small(mark: &str) -> Vec<u8> {
    guest::with_powers(&[], mark)
}

fn sha_256(component: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(component)))
}

async fn labels(broker: &Broker, name: &str) -> Vec<String> {
    let page = broker.get(&format!("/plugins/{name}")).await;
    if page.status == 404 {
        return Vec::new();
    }
    let page = page.expect(200);
    let versions = page["versions"].as_array().expect("versions").iter();
    versions.map(|version| version["version"].as_str().expect("a label").to_owned()).collect()
}

async fn tag_of(broker: &Broker, topic: &str) -> Value {
    broker.publish(topic, "x").await;
    let message = broker.consume(topic, "g").collect(1).await.remove(0);
    message.ack().await;
    json!(message.message.headers.get("tag"))
}

fn tagging(version: &str) -> Value {
    json!([{"name": "tag", "plugin": "orders.tag", "version": version, "config": {}}])
}

#[tokio::test]
async fn a_version_comes_over_http_is_in_force_at_once_and_goes_again() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let first = guest::tag(1);
    let path = "/plugins/orders.tag/versions?version=1.0.0";
    let answer = push_with(&broker, path, &[("content-digest", &sha_256(&first))], first.clone()).await;
    let view = answer.expect(201);
    assert_eq!(answer.header("location"), Some("/api/v1/plugins/orders.tag/versions/1.0.0"));
    assert_eq!(
        (&view["name"], &view["version"], &view["latest"]),
        (&json!("orders.tag"), &json!("1.0.0"), &json!(true))
    );
    assert_eq!((&view["source"], &view["createdBy"]), (&json!("upload"), &json!("admin")), "{view}");
    broker.put_pipeline("orders", tagging("latest")).await;
    assert_eq!(tag_of(&broker, "orders").await, "tag-version-1");

    push(&broker, "orders.tag", "1.1.0", guest::tag(2)).await.expect(201);
    assert_eq!(tag_of(&broker, "orders").await, "tag-version-2", "what binds `latest` runs it");
    push(&broker, "orders.tag", "1.1.0", guest::tag(2)).await.expect(200);
    push(&broker, "orders.tag", "1.1.0", guest::tag(3)).await.expect_problem(409, "CONFLICT");
    assert_eq!(labels(&broker, "orders.tag").await, ["1.1.0", "1.0.0"]);

    let latest = broker.get("/plugins/orders.tag/versions/latest").await.expect(200);
    assert_eq!((&latest["version"], &latest["bound"][0]["topicName"]), (&json!("1.1.0"), &json!("orders")), "{latest}");
    let fetched = broker.get("/plugins/orders.tag/versions/1.0.0/wasm").await;
    assert_eq!((fetched.status, &fetched.body[..]), (200, &first[..]));
    assert_eq!(fetched.header("content-type"), Some("application/wasm"));
    assert_eq!(fetched.header("content-digest"), Some(sha_256(&first).as_str()));
    assert_eq!(fetched.header("etag"), Some(format!("\"{}\"", view["digest"].as_str().expect("a digest")).as_str()));

    let bound = broker.delete("/plugins/orders.tag/versions/1.1.0").await.expect_problem(409, "CONFLICT");
    assert!(bound["detail"].as_str().expect("a detail").contains("'orders'"), "{bound}");
    broker.delete("/plugins/orders.tag/versions/1.0.0").await.expect(204);
    broker.get("/plugins/orders.tag/versions/1.0.0/wasm").await.expect_problem(404, "NOT_FOUND");
    broker.delete("/plugins/orders.tag/versions/1.0.0").await.expect_problem(404, "NOT_FOUND");
    broker.delete("/plugins/orders.tag/versions/latest").await.expect_problem(404, "NOT_FOUND");
    assert_eq!(tag_of(&broker, "orders").await, "tag-version-2");

    let audit = broker.get("/audit-logs?entity=plugin/orders.tag").await.expect(200);
    let entries = audit["auditLogs"].as_array().unwrap_or_else(|| panic!("{audit}"));
    let told: Vec<(&Value, &Value, &Value)> = entries
        .iter()
        .map(|it| (&it["eventType"], &it["details"]["before"]["version"], &it["details"]["after"]["version"]))
        .collect();
    let (deleted, accepted) = (json!("plugin.versionDeleted"), json!("plugin.accepted"));
    let (one, two, nothing) = (json!("1.0.0"), json!("1.1.0"), Value::Null);
    assert_eq!(told, [(&deleted, &one, &nothing), (&accepted, &one, &two), (&accepted, &nothing, &one)], "{audit}");
}

#[tokio::test]
async fn what_came_with_the_binary_stays() {
    let broker = Broker::start().await;
    let page = broker.get("/plugins/redact").await.expect(200);
    let label = page["versions"][0]["version"].as_str().expect("a label");
    let problem = broker.delete(&format!("/plugins/redact/versions/{label}")).await.expect_problem(409, "CONFLICT");
    assert!(problem["detail"].as_str().expect("a detail").contains("came with this binary"), "{problem}");
    let fetched = broker.get("/plugins/redact/versions/latest/wasm").await;
    // Behind what was compiled comes the schema of its config.
    assert!(fetched.body.starts_with(&guest::first_party("redact")), "{} bytes", fetched.body.len());
}

#[tokio::test]
async fn a_body_that_is_not_the_one_announced_is_refused_and_not_stored() {
    let broker = Broker::start().await;
    let component = small("a");
    let path = "/plugins/orders.a/versions?version=1";
    let send = async |digest: &str| push_with(&broker, path, &[("content-digest", digest)], component.clone()).await;
    let wrong = send(&sha_256(b"another")).await.expect_problem(400, "VALIDATION_ERROR");
    assert!(wrong["errors"][0]["message"].as_str().expect("words").contains(&sha_256(&component)), "{wrong}");
    let zeros = STANDARD.encode([0; 64]);
    for bad in [
        "sha-256",
        "sha-256=AAAA",
        "sha-256=:AAAA:",
        "sha-512=:AAAA:",
        "sha-256=:?:",
        &format!("{}, sha-512=:{zeros}:", sha_256(&component)),
    ] {
        send(bad).await.expect_problem(400, "VALIDATION_ERROR");
    }
    assert!(labels(&broker, "orders.a").await.is_empty());
    broker.get("/plugins/orders.a").await.expect_problem(404, "NOT_FOUND");
    send(&format!("md5=:AAAA:, sha-512=:{}:", STANDARD.encode(Sha512::digest(&component)))).await.expect(201);
    send("unixsum=:AAAA:").await.expect(200);
    // It is of what is sent, before it is decoded.
    let packed = zstd::encode_all(&component[..], 3).expect("it is packed");
    let headers = [("content-encoding", "zstd"), ("content-digest", &*sha_256(&packed))];
    push_with(&broker, path, &headers, packed.clone()).await.expect(200);
    let headers = [("content-encoding", "zstd"), ("content-digest", &*sha_256(&component))];
    push_with(&broker, path, &headers, packed).await.expect_problem(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn what_is_no_plugin_is_told_and_shown() {
    let broker = Broker::start().await;
    let whole = small("a");
    let truncated = whole[..whole.len() / 2].to_vec();
    for (what, bytes, words) in [
        ("nothing", Vec::new(), "no WebAssembly"),
        ("text", b"hello world".to_vec(), "no WebAssembly"),
        ("a module", b"\0asm\x01\0\0\0".to_vec(), "core module"),
        ("half", truncated, "no valid component"),
        ("another world", wat::parse_str("(component)").expect("a component"), "does not export"),
    ] {
        let problem = push(&broker, "orders.bad", "1", bytes).await.expect_problem(422, "PLUGIN_INVALID");
        assert!(problem["detail"].as_str().expect("words").contains(words), "{what}: {problem}");
        let page = broker.get("/plugins/orders.bad").await.expect(200);
        assert_eq!(page["lastError"]["file"], "upload", "{what}: {page}");
        assert!(page["lastError"]["message"].as_str().expect("words").contains(words), "{what}: {page}");
    }
    let text = [("content-type", "text/plain")];
    let path = "/plugins/orders.bad/versions";
    broker.send(Method::POST, path, &text, whole.clone()).await.expect_problem(415, "UNSUPPORTED_MEDIA_TYPE");
    for (path, pointer) in [
        ("/plugins/orders.bad/versions?version=latest", "/version"),
        ("/plugins/orders.bad/versions?version=a%2Fb", "/version"),
        ("/plugins/Orders/versions", "/name"),
    ] {
        let problem = push_with(&broker, path, &[], whole.clone()).await.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    assert!(labels(&broker, "orders.bad").await.is_empty());
    let unnamed = push_with(&broker, path, &[], whole.clone()).await.expect(201);
    let digest = hex(&Sha256::digest(&whole));
    assert_eq!(unnamed["version"], format!("sha-{}", &digest[..12]));
    assert!(broker.get("/plugins/orders.bad").await.expect(200)["lastError"].is_null(), "it is well again");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_component_has_a_limit_of_its_own_above_or_below_that_of_bodies() {
    let settings = Settings::new()
        .env("SLUICE__MESSAGING__MAX_MESSAGE_SIZE", "1000")
        .env("SLUICE__LIMITS__BODY_BYTES_MAX", "70000")
        .env("SLUICE__PLUGINS__SIZE_MAX", "200000");
    let broker = Broker::with(settings).await;
    let padded = |bytes: usize| guest::with_section(&small("a"), "padding", &vec![0; bytes]);
    push(&broker, "orders.a", "1", padded(150_000)).await.expect(201);
    push(&broker, "orders.a", "2", padded(250_000)).await.expect_problem(413, "MESSAGE_TOO_LARGE");
    // As it comes, without a length.
    let chunks = futures_util::stream::iter((0..3).map(move |_| Ok::<_, std::io::Error>(padded(100_000))));
    let body = reqwest::Body::wrap_stream(chunks);
    let answer = broker.send(Method::POST, "/plugins/orders.a/versions?version=3", &[WASM], body).await;
    answer.expect_problem(413, "MESSAGE_TOO_LARGE");
    assert_eq!(labels(&broker, "orders.a").await, ["1"]);
}

/// The head of an upload of so many bytes, byte by byte on a connection of its own.
async fn begin(broker: &Broker, name: &str, bytes: usize) -> TcpStream {
    let address = broker.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("the broker listens");
    let head = format!(
        "POST /api/v1/plugins/{name}/versions?version=1 HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/wasm\r\ncontent-length: {bytes}\r\n\r\n",
        broker.token()
    );
    stream.write_all(head.as_bytes()).await.expect("the broker reads");
    stream
}

/// What was begun after the whole of it had come is carried to its end: `hang_ups.rs` of the API's own tests shows that.
#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing_and_gives_its_place_back() {
    let broker = Broker::start().await;
    let component = small("a");
    // More than there are places.
    for _ in 0..10 {
        let mut half = begin(&broker, "orders.half", component.len()).await;
        half.write_all(&component[..component.len() / 2]).await.expect("the broker reads");
        half.set_zero_linger().expect("a connection can be reset");
        drop(half);
        wait::until("it is noticed", async || {
            let at_work = broker.metric("sluice_http_requests_in_flight").await?;
            // The one that asks.
            (at_work <= 1.0).then_some(())
        })
        .await;
    }
    broker.get("/plugins/orders.half").await.expect_problem(404, "NOT_FOUND");
    let audit = broker.get("/audit-logs?entity=plugin/orders.half").await.expect(200);
    assert_eq!(audit["total"], 0, "{audit}");
    push(&broker, "orders.half", "1", component).await.expect(201);
}

#[tokio::test]
async fn few_components_are_on_their_way_at_once() {
    let broker = Broker::start().await;
    let component = small("a");
    // One more that does not send its body, until there is no place; one that finds none itself is told so.
    let mut slow = Vec::new();
    let refused = wait::until("the places are taken", async || {
        slow.push(begin(&broker, &format!("orders.slow-{}", slow.len()), component.len()).await);
        let answer = push(&broker, "orders.one-more", "1", component.clone()).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    refused.expect_problem(429, "BACKPRESSURE");
    broker.get("/plugins/redact/versions/latest/wasm").await.expect_problem(429, "BACKPRESSURE");
    let mut accepted = 0;
    for stream in &mut slow {
        stream.write_all(&component).await.expect("the broker reads");
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.expect("the broker answers");
        match &answer[..] {
            b"HTTP/1.1 201" => accepted += 1,
            other => assert_eq!(String::from_utf8_lossy(other), "HTTP/1.1 429"),
        }
    }
    assert_eq!(accepted, 4, "of {}", slow.len());
    push(&broker, "orders.one-more", "2", component).await.expect(201);
}

#[tokio::test]
async fn of_two_uploads_of_one_label_one_is_it() {
    let broker = Broker::start().await;
    for round in 0..5 {
        let name = format!("orders.race-{round}");
        let (one, other) =
            tokio::join!(push(&broker, &name, "1", small("one")), push(&broker, &name, "1", small("other")));
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "{one}\n{other}");
        let (one, other) = tokio::join!(push(&broker, &name, "2", small("x")), push(&broker, &name, "2", small("x")));
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 201], "{one}\n{other}");
        assert_eq!(labels(&broker, &name).await, ["2", "1"]);
    }
}

#[tokio::test]
async fn the_same_component_by_disk_and_upload_is_one_version() {
    let broker = Broker::start().await;
    let component = small("a");
    broker.place_plugin("orders.both@1.wasm", &component);
    let answer = push(&broker, "orders.both", "1", component.clone()).await;
    assert!(matches!(answer.status, 200 | 201), "{answer}");
    broker.place_plugin("orders.both@1.wasm", &small("b"));
    wait::until("other bytes under the label are refused", async || {
        let page = broker.get("/plugins/orders.both").await.expect(200);
        page["lastError"]["message"].as_str().is_some_and(|why| why.contains("has other bytes")).then_some(())
    })
    .await;
    assert_eq!(labels(&broker, "orders.both").await, ["1"]);
    let fetched = broker.get("/plugins/orders.both/versions/1/wasm").await;
    assert_eq!(&fetched.body[..], component);
}

#[tokio::test]
async fn an_author_of_orders_cannot_touch_billing() {
    let broker = Broker::start().await;
    for topic in ["orders.new", "billing.new"] {
        broker.create_topic(topic, "Queue").await;
    }
    push(&broker, "billing.check", "1", small("billing")).await.expect(201);
    push(&broker, "billing.check", "2", small("billing 2")).await.expect(201);
    let stages = json!([{"name": "check", "plugin": "billing.check", "version": "2", "config": {}}]);
    broker.put_pipeline("orders.new", stages.clone()).await;
    broker.put_pipeline("orders.new", json!([])).await;
    let before = broker.get("/audit-logs?limit=100").await.expect(200);
    let author = broker.client(&Claims::new("ann", &["PluginAuthor"]).topics(&["orders.*"]));

    let forbidden = [
        push(&author, "billing.check", "3", small("c")).await,
        push(&author, "redact", "3", small("c")).await,
        author.delete("/plugins/billing.check/versions/1").await,
        author.get("/plugins/billing.check/versions/1").await,
        author.get("/plugins/billing.check/versions/1/wasm").await,
        author.get("/plugins/billing.check/powers").await,
        author.put("/plugins/orders.check/powers", &json!({"allowed": []})).await,
        author.get("/topics/billing.new/pipeline/history/1").await,
        author.get("/topics/billing.new/pipeline/diff").await,
        author.post("/topics/billing.new/pipeline/rollback?to=1", &json!({})).await,
        author.put("/topics/orders.new/pipeline", &json!({ "stages": stages })).await,
        // Once it ran there, by an Admin's hand.
        author.post("/topics/orders.new/pipeline/rollback?to=1", &json!({})).await,
        push(&broker.viewer(), "orders.check", "1", small("c")).await,
        push(&broker.producer("*"), "orders.check", "1", small("c")).await,
    ];
    for answer in forbidden {
        answer.expect_problem(403, "FORBIDDEN");
    }
    assert_eq!(broker.get("/audit-logs?limit=100").await.expect(200), before, "nothing has changed");

    push(&author, "orders.check", "1", small("c")).await.expect(201);
    author.get("/plugins/redact/versions/latest").await.expect(200);
    let own = json!([{"name": "check", "plugin": "orders.check", "version": "1", "config": {}}]);
    author.put("/topics/orders.new/pipeline", &json!({ "stages": own })).await.expect(200);
    // What stands in the way is named only where the token reaches it.
    broker.put_pipeline("billing.new", own).await;
    let bound = author.delete("/plugins/orders.check/versions/1").await.expect_problem(409, "CONFLICT");
    let detail = bound["detail"].as_str().expect("words");
    assert!(detail.contains("'orders.new' and 1 on topics that the token does not reach"), "{detail}");
    assert!(!detail.contains("billing"), "{detail}");
    let audit = broker.get("/audit-logs?user=ann").await.expect(200);
    let changed = &audit["auditLogs"][0];
    assert_eq!(changed["eventType"], "pipeline.changed", "{audit}");
    assert_eq!(changed["details"]["before"]["stages"], json!([]), "{audit}");
    assert_eq!(changed["details"]["after"]["stages"][0]["plugin"], "orders.check", "{audit}");
}

#[tokio::test]
async fn a_new_power_waits_for_an_admin_by_upload_and_by_disk() {
    let broker = Broker::start().await;
    // The first version has what it has.
    push(&broker, "orders.first", "1", guest::with_powers(&["metrics"], "1")).await.expect(201);
    push(&broker, "orders.first", "2", guest::with_powers(&["metrics"], "2")).await.expect(201);
    push(&broker, "orders.p", "1", small("1")).await.expect(201);
    let with_kv = guest::with_powers(&["kv", "schemas"], "2");
    let problem = push(&broker, "orders.p", "2", with_kv.clone()).await.expect_problem(409, "CONFLICT");
    let detail = problem["detail"].as_str().expect("words");
    assert!(detail.contains("kv, schemas") && detail.contains("sluice plugin allow orders.p kv schemas"), "{detail}");
    assert_eq!(labels(&broker, "orders.p").await, ["1"]);
    broker.place_plugin("orders.p@2.wasm", &with_kv);
    wait::until("the file is refused too", async || {
        let page = broker.get("/plugins/orders.p").await.expect(200);
        (page["lastError"]["file"] == "orders.p@2.wasm").then_some(())
    })
    .await;

    let path = "/plugins/orders.p/powers";
    broker
        .client(&Claims::new("ann", &["PluginAuthor"]))
        .put(path, &json!({"allowed": ["kv"]}))
        .await
        .expect_problem(403, "FORBIDDEN");
    for (bad, pointer) in [
        (json!({}), "/allowed"),
        (json!({"allowed": ["net"]}), "/allowed/0"),
        (json!({"allowed": ["kv", "kv"]}), "/allowed/1"),
    ] {
        let problem = broker.put(path, &bad).await.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    broker.put("/plugins/orders.absent/powers", &json!({"allowed": []})).await.expect_problem(404, "NOT_FOUND");
    done(&broker, &["plugin", "allow", "orders.p", "kv"]);
    let problem = push(&broker, "orders.p", "2", with_kv.clone()).await.expect_problem(409, "CONFLICT");
    assert!(problem["detail"].as_str().expect("words").contains(": schemas; an Admin"), "kv is allowed: {problem}");
    let powers = cli_json(&broker, &["plugin", "allow", "orders.p", "schemas"]);
    assert_eq!(powers, json!({"allowed": ["kv", "schemas"], "inUse": []}));
    let moved = broker.send(
        Method::PUT,
        path,
        &[("content-type", "application/json"), ("if-match", "\"1\"")],
        json!({"allowed": []}).to_string(),
    );
    moved.await.expect_problem(412, "PRECONDITION_FAILED");
    // Of itself: the file lies there still.
    broker.clock().advance(std::time::Duration::from_secs(60)).await;
    wait::until("the file is taken in", async || (labels(&broker, "orders.p").await == ["2", "1"]).then_some(())).await;
    push(&broker, "orders.p", "2", with_kv).await.expect(200);
    let version = broker.get("/plugins/orders.p/versions/2").await.expect(200);
    assert_eq!(version["powers"], json!(["kv", "schemas"]));
    let powers = broker.get(path).await.expect(200);
    assert_eq!(powers, json!({"allowed": ["kv", "schemas"], "inUse": ["kv", "schemas"]}));
    // What was accepted once may always come back.
    push(&broker, "orders.p", "3", small("3")).await.expect(201);
    done(&broker, &["plugin", "allow", "orders.p", "--only"]);
    push(&broker, "orders.p", "4", guest::with_powers(&["kv"], "4")).await.expect_problem(409, "CONFLICT");
    push(&broker, "orders.p", "2", guest::with_powers(&["kv", "schemas"], "2")).await.expect(200);

    let audit = broker.get("/audit-logs?entity=plugin/orders.p").await.expect(200);
    let of_powers = audit["auditLogs"].as_array().into_iter().flatten();
    let of_powers = of_powers.filter(|it| it["eventType"] == "plugin.powersChanged").map(|it| it["details"].clone());
    let allowed = |names: &[&str]| json!({ "allowed": names });
    let wanted = [
        json!({"before": allowed(&["kv", "schemas"]), "after": allowed(&[])}),
        json!({"before": allowed(&["kv"]), "after": allowed(&["kv", "schemas"])}),
        json!({"before": allowed(&[]), "after": allowed(&["kv"])}),
    ];
    assert_eq!(of_powers.collect::<Vec<_>>(), wanted, "{audit}");
}

/// A key whose private half is `seed`, 32 times.
#[tokio::test]
async fn a_component_that_the_caller_has_is_not_sent_again() {
    let broker = Broker::start().await;
    push(&broker, "orders.p", "1", small("1")).await.expect(201);
    let path = "/plugins/orders.p/versions/latest/wasm";
    let tag = broker.get(path).await.header("etag").expect("a tag").to_owned();
    let asked = async |tags: &str| broker.send(Method::GET, path, &[("if-none-match", tags)], Vec::new()).await;
    for tags in [tag.as_str(), "*", &format!("\"other\", W/{tag}")] {
        let answer = asked(tags).await;
        assert_eq!((answer.status, answer.body.len(), answer.header("etag")), (304, 0, Some(tag.as_str())), "{tags}");
    }
    assert_eq!(&asked("\"other\"").await.body[..], small("1"));
    asked("other").await.expect_problem(400, "VALIDATION_ERROR");
    push(&broker, "orders.p", "2", small("2")).await.expect(201);
    assert_eq!(&asked(&tag).await.body[..], small("2"), "`latest` is another by now");
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(key: &SigningKey) -> String {
    STANDARD.encode(key.verifying_key().as_bytes())
}

fn signed(key: &SigningKey, component: &[u8]) -> String {
    STANDARD.encode(key.sign(&Sha256::digest(component)).to_bytes())
}

/// The public half of this key, as `plugins.trusted_keys` takes it.
pub(crate) fn public_key(seed: u8) -> String {
    public(&key(seed))
}

/// The key as a file has it: PKCS#8, PEM.
pub(crate) fn private_key(seed: u8) -> String {
    let pkcs8 = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &[seed; 32]].concat();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(pkcs8))
}

#[tokio::test]
async fn where_signatures_are_required_only_a_trusted_keys_counts() {
    let ours = key(1);
    let settings = Settings::new()
        .env("SLUICE__PLUGINS__TRUSTED_KEYS", &public(&ours))
        .env("SLUICE__PLUGINS__REQUIRE_SIGNATURE", "true");
    let broker = Broker::with(settings).await;
    let component = small("a");
    let path = "/plugins/orders.s/versions?version=1";
    let unsigned = push_with(&broker, path, &[], component.clone()).await.expect_problem(422, "PLUGIN_INVALID");
    assert!(unsigned["detail"].as_str().expect("words").contains("not signed"), "{unsigned}");
    let with = async |signature: &str| {
        push_with(&broker, path, &[("sluice-plugin-signature", signature)], component.clone()).await
    };
    for bad in [signed(&key(2), &component), signed(&ours, b"another")] {
        let problem = with(&bad).await.expect_problem(422, "PLUGIN_INVALID");
        assert!(problem["detail"].as_str().expect("words").contains("plugins.trusted_keys"), "{problem}");
    }
    with("no base64").await.expect_problem(400, "VALIDATION_ERROR");
    assert!(labels(&broker, "orders.s").await.is_empty());
    let view = with(&signed(&ours, &component)).await.expect(201);
    assert_eq!(view["signedBy"], public(&ours));

    // A file, and its signature some time after it.
    let file = small("file");
    broker.place_plugin("orders.file@1.wasm", &file);
    wait::until("the file is refused", async || {
        let page = broker.get("/plugins/orders.file").await;
        (page.status == 200 && page.text().contains("not signed")).then_some(())
    })
    .await;
    broker.place_plugin("orders.file@1.wasm.sig", format!("{}\n", signed(&ours, &file)).as_bytes());
    wait::until("it is taken in", async || (labels(&broker, "orders.file").await == ["1"]).then_some(())).await;

    // By the command line.
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path.display().to_string()
    };
    let (key_file, component_file) =
        (write("key.pem", private_key(1).as_bytes()), write("orders.cli@2.wasm", &small("cli")));
    refused(&broker, &["plugin", "push", &component_file], 1, "not signed");
    let pushed = cli_json(&broker, &["plugin", "push", &component_file, "--sign", &key_file]);
    assert_eq!((&pushed["signedBy"], &pushed["version"]), (&json!(public(&ours)), &json!("2")));
    refused(&broker, &["plugin", "push", &component_file, "--sign", &component_file], 2, "");
    let fetched = folder.path().join("fetched.wasm").display().to_string();
    done(&broker, &["plugin", "pull", "orders.cli", "latest", "-o", &fetched]);
    assert_eq!(std::fs::read(&fetched).expect("it was written"), small("cli"));
    done(&broker, &["plugin", "delete", "orders.cli", "2"]);
    assert!(labels(&broker, "orders.cli").await.is_empty());
}

#[tokio::test]
async fn a_config_is_held_against_the_plugins_own_schema_first() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let schema = json!({
        "type": "object", "required": ["limits"], "additionalProperties": false,
        "properties": {"limits": {"type": "array", "items": {"type": "integer"}}},
    });
    let carrying =
        |mark: &str, schema: &str| guest::with_section(&small(mark), "sluice:config-schema", schema.as_bytes());
    push(&broker, "orders.c", "1", carrying("1", &schema.to_string())).await.expect(201);
    let version = broker.get("/plugins/orders.c/versions/1").await.expect(200);
    assert_eq!(version["configSchema"], schema);
    let put = async |config: Value| {
        let stages = json!([
            {"name": "first", "plugin": "filter", "config": {"headerMatches": {}}},
            {"name": "c", "plugin": "orders.c", "config": config},
        ]);
        broker.put("/topics/orders/pipeline", &json!({ "stages": stages })).await
    };
    for (config, pointer) in [
        (json!({}), "/stages/1/config"),
        (json!({"limits": 3}), "/stages/1/config/limits"),
        (json!({"limits": [1, "2"]}), "/stages/1/config/limits/1"),
        (json!({"limits": [], "more": 1}), "/stages/1/config"),
    ] {
        let problem = put(config).await.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    put(json!({"limits": [1, 2]})).await.expect(200);
    // A version that does not take the config in use changes nothing.
    let strict = json!({"properties": {"limits": {"maxItems": 1}}});
    let problem = push(&broker, "orders.c", "2", carrying("2", &strict.to_string())).await;
    let problem = problem.expect_problem(422, "PLUGIN_INVALID");
    assert!(problem["detail"].as_str().expect("words").contains("limits"), "{problem}");
    for broken in ["{", "3", r#"{"type": "thing"}"#, r#"{"$ref": "https://example.com/"}"#] {
        push(&broker, "orders.c", "3", carrying("3", broken)).await.expect_problem(422, "PLUGIN_INVALID");
    }
    let long = format!(r#"{{"title": "{}"}}"#, "x".repeat(64 * 1024));
    push(&broker, "orders.c", "3", carrying("3", &long)).await.expect_problem(422, "PLUGIN_INVALID");
    assert_eq!(labels(&broker, "orders.c").await, ["1"]);
}

const SECRET: &str = "hunter2-hunter2-hunter2";

#[tokio::test]
async fn a_secret_is_the_instances_alone() {
    let secrets = tempfile::tempdir().expect("a folder");
    std::fs::write(secrets.path().join("orders.key"), format!("{SECRET}\n")).expect("written");
    let dir = secrets.path().display().to_string();
    let mut broker = Broker::with(Settings::new().env("SLUICE__PLUGINS__SECRETS_DIR", &dir)).await;
    broker.create_topic("orders", "Queue").await;
    push(&broker, "orders.tag", "1", guest::tag(1)).await.expect(201);
    let stages = |plugin: &str, name: &str| {
        let config = json!({"stamp": [{"key": {"$secret": name}}]});
        json!({"stages": [{"name": "s", "plugin": plugin, "config": config}]})
    };
    let path = "/topics/orders/pipeline";
    for bad in ["orders.absent", "../orders.key", "Orders"] {
        let problem = broker.put(path, &stages("orders.tag", bad)).await.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], "/stages/0/config/stamp/0/key", "{problem}");
    }
    let author = broker.client(&Claims::new("ann", &["PluginAuthor"]).topics(&["orders*"]));
    author.put(path, &stages("orders.tag", "billing.key")).await.expect_problem(403, "FORBIDDEN");
    author.put(path, &stages("orders.tag", "orders.key")).await.expect(200);
    let received = async |broker: &Broker| {
        broker.publish("orders", "x").await;
        let message = broker.consume("orders", "g").collect(1).await.remove(0);
        message.ack().await;
        message.message.headers["config"].clone()
    };
    assert_eq!(received(&broker).await, json!({"stamp": [{"key": SECRET}]}).to_string());

    // A plugin that repeats its config in its error repeats it without the secret.
    push(&broker, "orders.tell", "1", guest::tell_tale()).await.expect(201);
    let told = broker.put(path, &stages("orders.tell", "orders.key")).await.expect_problem(400, "VALIDATION_ERROR");
    let message = told["errors"][0]["message"].as_str().expect("words");
    assert!(message.contains("[secret]") && message.contains("stamp"), "it is the plugin's word: {told}");
    assert!(!told.to_string().contains("hunter2"), "{told}");
    // And one that repeats it when it fails.
    push(&broker, "orders.blab", "1", guest::blabber()).await.expect(201);
    let mut failing = stages("orders.blab", "orders.key");
    failing["stages"][0]["onFault"] = json!("deadLetter");
    broker.put(path, &failing).await.expect(200);
    broker.publish("orders", "x").await;
    let letters = broker.get("/topics/orders/dlq").await.text();
    assert!(letters.contains("[secret]") && !letters.contains("hunter2"), "{letters}");
    broker.put(path, &stages("orders.tag", "orders.key")).await.expect(200);
    // So does a schema.
    let schema = br#"{"properties": {"stamp": {"items": {"properties": {"key": {"type": "integer"}}}}}}"#;
    let strict = guest::with_section(&small("strict"), "sluice:config-schema", schema);
    push(&broker, "orders.strict", "1", strict).await.expect(201);
    let told = broker.put(path, &stages("orders.strict", "orders.key")).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(told["errors"][0]["pointer"], "/stages/0/config/stamp/0/key", "{told}");
    assert!(!told.to_string().contains("hunter2"), "{told}");

    for page in [
        path,
        "/topics/orders/pipeline/history",
        "/topics/orders/pipeline/diff",
        "/audit-logs?limit=100",
        "/plugins/orders.tag",
    ] {
        let page = broker.get(page).await;
        assert!(page.status == 200 && !page.text().contains("hunter2"), "{page}");
    }
    let shown = broker.get(path).await.expect(200);
    assert_eq!(shown["stages"][0]["config"], json!({"stamp": [{"key": {"$secret": "orders.key"}}]}));
    broker.stop().await;
    assert!(!broker.log().contains("hunter2"));
    for file in sluice_tests::broker::files_below(&broker.data_dir()) {
        let bytes = std::fs::read(&file).expect("a file of the broker");
        let in_journal = file.components().any(|part| part.as_os_str() == "store");
        // The plugin has put it into a message, which is its own doing.
        let found = bytes.windows(7).any(|window| window == b"hunter2");
        assert!(!found || in_journal, "{}", file.display());
    }
    std::fs::write(secrets.path().join("orders.key"), "another").expect("written");
    broker.restart().await;
    assert_eq!(
        received(&broker).await,
        json!({"stamp": [{"key": "another"}]}).to_string(),
        "read when it is configured"
    );
}

#[tokio::test]
async fn a_registered_schema_names_no_secret() {
    let secrets = tempfile::tempdir().expect("a folder");
    std::fs::write(secrets.path().join("key"), SECRET).expect("written");
    let dir = secrets.path().display().to_string();
    let broker = Broker::with(Settings::new().env("SLUICE__PLUGINS__SECRETS_DIR", &dir)).await;
    // Whoever may register a schema could else have payloads compared with a secret.
    let schema = json!({"schemaId": "s", "version": "1", "schemaDefinition": {"const": {"$secret": "key"}}});
    broker.producer("*").post("/schemas", &schema).await.expect(201);
    broker.create_topic("orders", "Queue").await;
    broker.put_pipeline("orders", json!([{"name": "s", "plugin": "json-schema", "config": {"schemaId": "s"}}])).await;
    let refused = broker.publish("orders", json!(SECRET)).answer().await;
    assert!(!refused.expect_problem(422, "SCHEMA_VALIDATION_ERROR").to_string().contains("hunter2"));
    assert_eq!(broker.publish("orders", json!({"$secret": "key"})).await.status, "Pending", "it is taken as it is");
}
