//! What a session of `sluice plugin dev` is told to do otherwise, and what others do to its pipeline meanwhile. Invariant: what it
//! leaves is held against what it was told to leave; what others have changed stays.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sluice_tests::broker::Settings;
use sluice_tests::workshop::Workshop;
use sluice_tests::{Broker, Client, guest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::super::plugin_versions;
use super::{Session, once, publish, replace};

const PLUGIN: &str = "/plugins/orders-filter";
const PIPELINE: &str = "/topics/orders/pipeline";

/// A broker with a topic, and a project that is built for it.
async fn project(name: &str, settings: Settings) -> (Broker, Workshop) {
    let (broker, workshop) = (Broker::with(settings).await, Workshop::empty(name));
    broker.create_topic("orders", "PubSub").await;
    workshop.done(&["new", "--lang", "c", "orders-filter"]);
    (broker, workshop)
}

/// Changes a file of the project; what is read must hold the first.
fn edit(workshop: &Workshop, name: &str, from: &str, to: &str) {
    let file = workshop.dir.join("orders-filter").join(name);
    let text = fs::read_to_string(&file).expect("a file of the project");
    assert!(text.contains(from), "{name} has no {from}");
    replace(&file, &text.replace(from, to));
}

/// A save that changes no byte of the component.
fn save_without_effect(workshop: &Workshop, words: &str) {
    replace(&workshop.dir.join("orders-filter/README.md"), words);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_kept_stays_with_its_last_version() {
    let (broker, workshop) = project("dev-keep", Settings::new()).await;
    let mut session = Session::start(&workshop, &broker, &["orders-filter", "--topic", "orders", "--keep", "--anyway"]);
    session.next("inForce").await;
    edit(&workshop, "orders-filter.c", "another value", "not wanted");
    let last = session.next("inForce").await;
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    let pipeline = broker.get(PIPELINE).await.expect(200);
    assert_eq!((&pipeline["revision"], &pipeline["resolved"][0]["version"]), (&last["revision"], &last["version"]));
    let plugin = broker.get(PLUGIN).await.expect(200);
    let versions = plugin["versions"].as_array().expect("versions");
    assert!(versions.len() == 1 && versions[0]["version"] == last["version"], "{plugin}");
    assert!(!session.all().contains("putBack"), "{}", session.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_on_the_way_out_is_tried_told_and_put_back() {
    let (broker, workshop) = project("dev-out", Settings::new()).await;
    let id = broker.subscribe("orders", "all").await["subscriptionId"].as_str().expect("an id").to_owned();
    let path = format!("/subscriptions/{id}/pipeline");
    let other = json!({"stages": [{"name": "any", "plugin": "filter", "config": {}}]});
    let before = broker.put(&path, &other).await.expect(200);
    let mut session = Session::start(&workshop, &broker, &["orders-filter", "--subscription", &id]);
    let in_force = session.next("inForce").await;
    assert_eq!((&in_force["stage"], &in_force["revision"]), (&json!("orders-filter"), &json!(2)), "{in_force}");
    assert!(in_force["text"].as_str().is_some_and(|text| text.contains(&id)), "{in_force}");
    session.next("following").await;
    publish(&broker, "order").await;
    let deliveries = broker.consume("orders", "all").drain(1).await;
    let payload = deliveries[0].message.payload.as_deref().unwrap_or_default();
    assert!(payload.contains("eu-1"), "it came through the stage: {payload}");
    let told = session.next("verdict").await;
    assert_eq!((&told["of"]["verdict"], &told["of"]["stage"]), (&json!("changed"), &json!("orders-filter")), "{told}");
    assert!(
        broker.get(PIPELINE).await.expect(200)["stages"].as_array().is_some_and(Vec::is_empty),
        "not on the way in"
    );
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    let after = broker.get(&path).await.expect(200);
    assert_eq!((&after["stages"], &after["resolved"]), (&before["stages"], &before["resolved"]));
    assert_eq!(broker.get(PLUGIN).await.status, 404, "nothing of it stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_signatures_are_required_all_that_a_session_uploads_is_signed() {
    let public = plugin_versions::public_key(1);
    let settings =
        Settings::new().env("SLUICE__PLUGINS__TRUSTED_KEYS", &public).env("SLUICE__PLUGINS__REQUIRE_SIGNATURE", "true");
    let (broker, workshop) = project("dev-sign", settings).await;
    fs::write(workshop.dir.join("key.pem"), plugin_versions::private_key(1)).expect("written");
    let refused = once(&workshop, &broker, &["--topic", "orders"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("not signed"), "{refused:?}");

    // A release that `latest` is to mean again in the end: that takes an upload, too.
    let release = workshop.dir.join("orders-filter@1.0.0.wasm");
    fs::write(&release, guest::with_powers(&[], "release")).expect("written");
    let release = release.display().to_string();
    let key = workshop.dir.join("key.pem").display().to_string();
    super::super::cli::done(&broker, &["plugin", "push", &release, "--sign", &key]);
    let arguments = ["orders-filter", "--topic", "orders", "--anyway", "--sign", "key.pem"];
    let mut session = Session::start(&workshop, &broker, &arguments);
    for edited in [false, true] {
        if edited {
            edit(&workshop, "orders-filter.c", "another value", "not wanted");
        }
        let in_force = session.next("inForce").await;
        let latest = broker.get(PLUGIN).await.expect(200)["versions"][0].clone();
        assert_eq!((&latest["version"], &latest["signedBy"]), (&in_force["version"], &json!(public)));
    }
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    let plugin = broker.get(PLUGIN).await.expect(200);
    let versions = plugin["versions"].as_array().expect("versions");
    assert!(versions.len() == 1 && versions[0]["version"] == "1.0.0", "{plugin}");
    assert_eq!(versions[0]["signedBy"], json!(public));
}

#[tokio::test(flavor = "multi_thread")]
async fn once_ends_with_1_where_a_build_or_a_case_fails_and_nothing_is_uploaded() {
    let (broker, workshop) = project("dev-once", Settings::new()).await;
    let fails = async |words: &str| {
        let output = once(&workshop, &broker, &["--topic", "orders"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(words), "{words}: {output:?}");
        assert_eq!(broker.get(PLUGIN).await.status, 404, "nothing is uploaded");
        assert!(broker.get(PIPELINE).await.expect(200)["stages"].as_array().is_some_and(Vec::is_empty));
    };
    edit(&workshop, "orders-filter.c", "static bool has_field;", "static bool has_field = nothing;");
    fails("nothing").await;
    edit(&workshop, "orders-filter.c", " = nothing;", ";");
    edit(&workshop, "orders-filter.c", "another value", "not wanted");
    fails("cases fail").await;
    let placed = once(&workshop, &broker, &["--topic", "orders", "--anyway"]);
    assert!(placed.status.success(), "{placed:?}");
    assert_eq!(broker.get(PIPELINE).await.expect(200)["resolved"][0]["plugin"], "orders-filter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_without_effect_looks_at_what_the_broker_runs() {
    let (broker, workshop) = project("dev-same", Settings::new()).await;
    broker.put_pipeline("orders", json!([{"name": "any", "plugin": "filter", "config": {}}])).await;
    let mut session = Session::start(&workshop, &broker, &["orders-filter", "--topic", "orders"]);
    session.next("inForce").await;
    save_without_effect(&workshop, "one");
    session.next("unchanged").await;
    // A colleague who takes it out.
    let before = broker.post(&format!("{PIPELINE}/rollback?to=1"), &json!({})).await.expect(200);
    save_without_effect(&workshop, "two");
    let again = session.next("inForce").await;
    let now = broker.get(PIPELINE).await.expect(200);
    assert_eq!((&now["revision"], &now["resolved"][1]["version"]), (&again["revision"], &again["version"]), "{now}");
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    let after = broker.get(PIPELINE).await.expect(200);
    assert_eq!((&after["stages"], &after["resolved"]), (&before["stages"], &before["resolved"]));
    assert_eq!(broker.get(PLUGIN).await.status, 404, "nothing of it stays");

    // Without a stage it is what `latest` means.
    let mut session = Session::start(&workshop, &broker, &["orders-filter"]);
    session.next("inForce").await;
    save_without_effect(&workshop, "three");
    session.next("unchanged").await;
    plugin_versions::push(&broker, "orders-filter", "9", guest::with_powers(&[], "other")).await.expect(201);
    save_without_effect(&workshop, "four");
    let again = session.next("inForce").await;
    assert_eq!(broker.get(PLUGIN).await.expect(200)["versions"][0]["version"], again["version"]);
}

/// On a command's way to the broker: before so many of its changes of a pipeline, somebody else changes that.
struct Meddler {
    url: String,
    times: Arc<AtomicUsize>,
    /// Changes that came by.
    changes: Arc<AtomicUsize>,
}

impl Meddler {
    async fn before(broker: &Broker) -> Meddler {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (times, changes) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (client, own) = (broker.admin(), (Arc::clone(&times), Arc::clone(&changes)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass_on(stream, client.clone(), own.clone()));
            }
        });
        Meddler { url, times, changes }
    }
}

/// A request's head comes in one piece, as the command sends one after the other.
async fn pass_on(from: TcpStream, client: Client, (times, changes): (Arc<AtomicUsize>, Arc<AtomicUsize>)) {
    let address = client.url().strip_prefix("http://").expect("without TLS").to_owned();
    let to = TcpStream::connect(address).await.expect("the broker is there");
    let ((mut asks, mut hears), (mut answers, mut broker)) = (from.into_split(), to.into_split());
    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut hears).await });
    let mut held = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = asks.read(&mut held).await {
        if held[..read].starts_with(b"PUT ") {
            changes.fetch_add(1, Ordering::Relaxed);
            let one_less = |times: usize| times.checked_sub(1);
            if let Ok(left) = times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
                let mut stages = client.get(PIPELINE).await.expect(200)["stages"].clone();
                stages[0]["timeoutMs"] = json!(100 + left % 1000);
                client.put_pipeline("orders", stages).await;
            }
        }
        if broker.write_all(&held[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changes_the_pipeline_in_between_is_not_overwritten() {
    let (broker, workshop) = project("dev-between", Settings::new()).await;
    broker.put_pipeline("orders", json!([{"name": "any", "plugin": "filter", "config": {}}])).await;
    let meddler = Meddler::before(&broker).await;
    let stages = async || broker.get(PIPELINE).await.expect(200)["stages"].clone();
    let names = |stages: &Value| -> Vec<String> {
        let stages = stages.as_array().into_iter().flatten();
        stages.filter_map(|stage| stage["name"].as_str().map(str::to_owned)).collect()
    };

    // Again and again: it gives up, and leaves nothing.
    meddler.times.store(usize::MAX, Ordering::Relaxed);
    let given_up = once(&workshop, &broker, &["--topic", "orders", "--url", &meddler.url]);
    let said = String::from_utf8_lossy(&given_up.stderr).into_owned();
    assert!(given_up.status.code() == Some(1) && said.contains("412"), "{given_up:?}");
    assert_eq!(meddler.changes.swap(0, Ordering::Relaxed), 5, "so often it is tried");
    assert_eq!(broker.get(PLUGIN).await.status, 404, "nothing of it stays");
    assert_eq!(names(&stages().await), ["any"]);

    // Twice: the third time it has seen what they have made of it, on the way in and at the end.
    let arguments = ["orders-filter", "--topic", "orders", "--url", &meddler.url];
    meddler.times.store(2, Ordering::Relaxed);
    let mut session = Session::start(&workshop, &broker, &arguments);
    session.next("inForce").await;
    assert_eq!(meddler.changes.swap(0, Ordering::Relaxed), 3);
    let now = stages().await;
    assert_eq!((names(&now), &now[0]["timeoutMs"]), (vec!["any".to_owned(), "orders-filter".to_owned()], &json!(101)));
    meddler.times.store(3, Ordering::Relaxed);
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    assert_eq!(meddler.changes.load(Ordering::Relaxed), 4);
    let after = stages().await;
    assert_eq!((names(&after), &after[0]["timeoutMs"]), (vec!["any".to_owned()], &json!(101)));
    assert_eq!(broker.get(PLUGIN).await.status, 404, "nothing of it stays");
}
