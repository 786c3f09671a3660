//! The audit log, and the versions of schemas.

use std::time::Duration;

use sluice::catalog::{Actor, AuditFilter, CatalogError, Event, Registered, SchemaStatus, Scope, Secret, TopicKind};
use sluice::clock::Timestamp;

use crate::bed::{Bed, alice};

pub async fn every_change_is_told_without_secrets(fixture: Bed) {
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    fixture.catalog.update_subscription(&subscription, None, &alice()).await.unwrap();
    let rotated = Secret::new("whsec_second".to_owned());
    fixture.catalog.rotate_secret(subscription.id, rotated, Timestamp(5), &alice()).await.unwrap();
    fixture.catalog.set_pause(subscription.id, None, &alice()).await.unwrap();
    fixture.revise(Scope::Topic(topic.id), None).await.unwrap();
    fixture.accept(None, b"one").await.unwrap();
    fixture.register("1", "{}").await.unwrap();
    fixture.catalog.delete_subscription(subscription.id, &alice()).await.unwrap();
    fixture.catalog.delete_topic(topic.id, &alice()).await.unwrap();
    let purge = Event {
        event_type: "topic.purged",
        entity_type: "topic",
        entity_id: "orders",
        details: serde_json::json!({"messages": 3}),
    };
    fixture.clock.advance(Duration::from_secs(60));
    fixture.catalog.record(purge, &Actor::system()).await.unwrap();

    let entries = fixture.audit().await;
    let events: Vec<&str> = entries.iter().rev().map(|entry| entry.event_type.as_str()).collect();
    let expected = [
        "topic.created",
        "subscription.created",
        "subscription.updated",
        "subscription.secretRotated",
        "subscription.resumed",
        "pipeline.changed",
        "plugin.accepted",
        "schema.registered",
        "subscription.deleted",
        "topic.deleted",
        "topic.purged",
    ];
    assert_eq!(events, expected);
    let text = format!("{entries:?}");
    for secret in ["whsec_", "s3cr3t", "hunter2", "t0ps3cret", "c0nf1g", "t0k3n", "pr1vate"] {
        assert!(!text.contains(secret), "{secret} is in the audit log");
    }
    let debug = format!("{:?}", subscription.settings);
    assert!(!debug.contains("t0k3n") && !debug.contains("pr1vate"), "{debug}");
    assert_eq!(entries[10].details["after"]["name"], "orders");
    assert_eq!(entries[10].trace_id, alice().trace_id);

    let find = async |filter: AuditFilter| fixture.catalog.audit_entries(&filter, 2, 0).await.unwrap();
    let (page, total) = find(AuditFilter { entity: Some("topic/orders".to_owned()), ..AuditFilter::default() }).await;
    assert_eq!((page.len(), total), (2, 4));
    let (page, _) = find(AuditFilter { user: Some("system".to_owned()), ..AuditFilter::default() }).await;
    assert_eq!(page, entries[..1]);
    let from = Some(fixture.clock.now());
    assert_eq!(find(AuditFilter { from, ..AuditFilter::default() }).await.1, 1);
    assert_eq!(fixture.catalog.trim_audit(fixture.clock.now(), 1000).await.unwrap(), 10);
    assert_eq!(fixture.audit().await.len(), 1);
}

pub async fn the_audit_log_keeps_so_many_entries_however_young(fixture: Bed) {
    for number in 0..5 {
        let id = number.to_string();
        let event = Event { event_type: "x", entity_type: "x", entity_id: &id, details: serde_json::json!({}) };
        fixture.catalog.record(event, &Actor::system()).await.unwrap();
    }
    assert_eq!(fixture.catalog.trim_audit(Timestamp(0), 3).await.unwrap(), 2);
    let kept: Vec<String> = fixture.audit().await.into_iter().map(|entry| entry.entity_id).collect();
    assert_eq!(kept.len(), 3);
    assert!(!kept.contains(&"1".to_owned()) && kept.contains(&"4".to_owned()), "{kept:?}");
}

pub async fn details_of_an_audit_entry_are_left_out_where_they_are_long(fixture: Bed) {
    let details = serde_json::json!({ "long": "x".repeat(65 * 1024) });
    let event = Event { event_type: "x", entity_type: "x", entity_id: "x", details };
    fixture.catalog.record(event, &Actor::system()).await.unwrap();
    assert!(fixture.audit().await[0].details["omittedBytes"].as_u64().is_some_and(|bytes| bytes > 64 * 1024));
}

pub async fn versions_of_a_schema_are_kept_and_the_last_one_validates(fixture: Bed) {
    fixture.register("1", "{}").await.unwrap();
    assert_eq!(fixture.register("1", "{}").await.unwrap().1, Registered::Again);
    assert!(matches!(fixture.register("1", "true").await, Err(CatalogError::Conflict(_))));
    fixture.register("2", "true").await.unwrap();
    let versions = fixture.catalog.schema_versions("orders.v1").await.unwrap();
    assert_eq!(versions.iter().map(|schema| schema.version.as_str()).collect::<Vec<_>>(), ["2", "1"]);
    let (approved, total) = fixture.catalog.schemas(Some(SchemaStatus::Approved), 10, 0).await.unwrap();
    assert_eq!((approved, total), (vec![versions[0].clone()], 1));
    assert_eq!(fixture.catalog.schemas(Some(SchemaStatus::Draft), 10, 0).await.unwrap(), (Vec::new(), 0));
}
