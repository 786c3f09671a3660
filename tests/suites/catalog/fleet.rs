//! What the catalog promises to several brokers at once, and when its PostgreSQL fails.

use std::sync::Arc;
use std::time::Duration;

use sluice::catalog::{Actor, AuditFilter, Catalog, CatalogError, Compatibility, Event, NewSchema, Scope, TopicKind};
use sluice::clock::{Clock, Timestamp};
use sluice::config::PostgresUrl;
use sluice_tests::servers::{Options, Postgres};
use sluice_tests::wait;
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;

use crate::bed::{Bed, Engine, alice};

/// As long as nobody should wait for a database that does not answer.
const PATIENCE: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_changes_by_several_brokers_at_once_one_is_made_and_the_others_are_told() {
    for engine in [Engine::Postgres, Engine::Pooled] {
        let bed = Bed::new(engine, "several").await;
        let topic = Arc::new(bed.topic("orders", TopicKind::PubSub).await);
        let brokers = [bed.catalog.clone(), bed.beside().await, bed.beside().await];
        for round in 1..=10 {
            let mut tasks = JoinSet::new();
            for broker in brokers.clone() {
                let topic = Arc::clone(&topic);
                tasks.spawn(async move { broker.update_topic(&topic, Some(round), &alice()).await });
            }
            let results = tasks.join_all().await;
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
            let told = |result: &Result<_, _>| match result {
                Ok(_) => true,
                Err(CatalogError::PreconditionFailed { current }) => *current == round + 1,
                Err(_) => false,
            };
            assert!(results.iter().all(told), "{results:?}");
        }
        let entries = bed.catalog.audit_entries(&AuditFilter::default(), 100, 0).await.unwrap().0;
        assert_eq!(entries.len(), 11, "one for each change, none for a refused one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_two_brokers_get_the_same_number() {
    let bed = Bed::new(Engine::Pooled, "numbers").await;
    let mut tasks = JoinSet::new();
    for broker in [bed.catalog.clone(), bed.beside().await] {
        for _ in 0..20 {
            let broker = broker.clone();
            tasks.spawn(async move { broker.reserve_topic_id().await.unwrap() });
        }
    }
    let mut numbers = tasks.join_all().await;
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 40);
    bed.catalog.raise_numbers(1000, 2000).await.unwrap();
    bed.catalog.raise_numbers(500, 500).await.unwrap();
    assert_eq!(bed.catalog.reserve_topic_id().await.unwrap().0, 1001);
    assert_eq!(bed.catalog.reserve_group_id().await.unwrap().0, 2001);
}

#[tokio::test]
async fn a_change_raises_the_version_for_all_and_nothing_else_does() {
    for engine in [Engine::Postgres, Engine::Pooled] {
        let bed = Bed::new(engine, "version").await;
        let other = bed.beside().await;
        let before = other.version().await.unwrap();
        bed.catalog.topics().await.unwrap();
        bed.catalog.reserve_topic_id().await.unwrap();
        let event = Event { event_type: "x", entity_type: "x", entity_id: "x", details: serde_json::json!({}) };
        bed.catalog.record(event, &Actor::system()).await.unwrap();
        assert_eq!(other.version().await.unwrap(), before);
        let topic = bed.topic("orders", TopicKind::Queue).await;
        assert_eq!(other.version().await.unwrap(), before + 1);
        bed.catalog.update_topic(&topic, Some(7), &alice()).await.unwrap_err();
        assert_eq!(other.version().await.unwrap(), before + 1, "a refused change is none");
        assert_eq!(other.topics().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn text_that_postgresql_does_not_keep_is_refused_or_replaced() {
    let bed = Bed::new(Engine::Postgres, "nul").await;
    let mut topic = bed.topic("orders", TopicKind::Queue).await;
    topic.settings.description = "a\0b".to_owned();
    let refused = bed.catalog.update_topic(&topic, None, &alice()).await;
    assert!(matches!(&refused, Err(CatalogError::Conflict(why)) if why.contains("U+0000")), "{refused:?}");
    let details = serde_json::json!({ "a\0b": "c\0d", "kept": "\\u0000" });
    let long = "x".repeat(300);
    let event = Event { event_type: "x", entity_type: "x", entity_id: &long, details };
    bed.catalog.record(event, &Actor { user: long.clone(), trace_id: Some(long.clone()) }).await.unwrap();
    let entry = bed.catalog.audit_entries(&AuditFilter::default(), 1, 0).await.unwrap().0.remove(0);
    assert_eq!(entry.details, serde_json::json!({ "a\u{fffd}b": "c\u{fffd}d", "kept": "\\u0000" }));
    assert_eq!((entry.entity_id.len(), entry.user_id.len()), (255, 255));
}

/// A catalog on a server of its own.
async fn alone(options: Options) -> (Postgres, Catalog, PostgresUrl) {
    let server = Postgres::start(options).await;
    let url: PostgresUrl = server.url().parse().unwrap();
    sluice::catalog::postgres::migrate(&url).await.unwrap();
    let catalog = Catalog::connect(&url, Clock::fixed(Timestamp(0))).await.unwrap();
    (server, catalog, url)
}

async fn is_unavailable(catalog: &Catalog) {
    let asked = tokio::time::timeout(PATIENCE, catalog.reserve_topic_id()).await;
    assert!(matches!(asked, Ok(Err(CatalogError::Unavailable(_)))), "{asked:?}");
}

async fn serves_again(catalog: &Catalog) {
    wait::within(PATIENCE, "the catalog serves again", async || catalog.reserve_topic_id().await.ok()).await;
}

#[tokio::test]
async fn a_server_that_is_killed_paused_or_full_is_unavailable_for_a_while() {
    let (mut server, catalog, url) = alone(Options::new().set("max_connections", "10")).await;
    let first = catalog.reserve_topic_id().await.unwrap();
    server.kill();
    is_unavailable(&catalog).await;
    let connected = Catalog::connect(&url, Clock::fixed(Timestamp(0))).await;
    assert!(matches!(connected, Err(CatalogError::Unavailable(_))), "{connected:?}");
    server.restart().await;
    serves_again(&catalog).await;
    assert!(catalog.reserve_topic_id().await.unwrap() > first, "numbers outlive the power cut");

    server.pause();
    is_unavailable(&catalog).await;
    server.resume();
    serves_again(&catalog).await;

    // Its connections end, and others take all places but those of superusers.
    server.restart().await;
    let mut others = Vec::new();
    while let Ok(other) = PgConnection::connect(url.expose()).await {
        others.push(other);
    }
    is_unavailable(&catalog).await;
    drop(others);
    serves_again(&catalog).await;
}

/// As a broker that is stopped in the middle of a change, or cut off: its connection stays open.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_writer_that_falls_silent_loses_the_lock_and_its_change() {
    let bed = Bed::new(Engine::Postgres, "silent").await;
    let topic = bed.topic("orders", TopicKind::Queue).await;
    let schema = |version: &str| NewSchema {
        id: "s".to_owned(),
        version: version.to_owned(),
        definition: "{}".to_owned(),
        compatibility: Compatibility::None,
    };
    let judge = |_: &_| Ok::<_, CatalogError>(());
    bed.catalog.register_schema(schema("1"), |_, _| true, judge, &alice()).await.unwrap();
    let silent = bed.beside().await;
    let (stopped, is_stopped) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let change = tokio::spawn(async move {
        let stop = move |_: &_| {
            stopped.send(()).unwrap();
            tokio::task::block_in_place(|| goes_on.recv().unwrap());
            Ok::<_, CatalogError>(())
        };
        silent.register_schema(schema("2"), |_, _| true, stop, &alice()).await
    });
    is_stopped.await.unwrap();
    let waits =
        tokio::time::timeout(Duration::from_millis(300), bed.catalog.update_topic(&topic, None, &alice())).await;
    assert!(waits.is_err(), "changes are made one at a time");
    let change_after = async || bed.revise(Scope::Topic(topic.id), None).await.ok();
    wait::within(Duration::from_secs(25), "the lock is free", change_after).await;
    go_on.send(()).unwrap();
    let silenced = change.await.unwrap();
    assert!(matches!(silenced, Err(CatalogError::Unavailable(_))), "{silenced:?}");
    assert_eq!(bed.catalog.schema_versions("s").await.unwrap().len(), 1);
}
