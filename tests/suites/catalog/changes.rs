//! Topics, subscriptions and pipelines: what is kept, what is refused, and what is never given out again.

use std::sync::Arc;
use std::time::Duration;

use sluice::catalog::{CatalogError, Pause, Scope, Secret, Subscription, SubscriptionKind, TopicKind};
use sluice::clock::Timestamp;
use sluice::message::TopicId;

use crate::bed::{Bed, alice, digest};

pub async fn everything_survives_a_restart(fixture: Bed) {
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let until = Timestamp(1_700_000_360_000);
    let rotated = fixture
        .catalog
        .rotate_secret(subscription.id, Secret::new("whsec_second".to_owned()), until, &alice())
        .await
        .unwrap();
    let pause = Pause { reason: "410 Gone".to_owned(), since: fixture.clock.now() };
    let paused = fixture.catalog.set_pause(subscription.id, Some(pause.clone()), &alice()).await.unwrap();
    let of_topic = fixture.revise(Scope::Topic(topic.id), None).await.unwrap();
    let of_subscription = fixture.revise(Scope::Subscription(topic.id, subscription.id), Some(0)).await.unwrap();
    let (plugin, _) = fixture.accept(Some("1.0.0"), b"one").await.unwrap();
    let (schema, _) = fixture.register("1", r#"{"type":"object"}"#).await.unwrap();
    let audit = fixture.audit().await;

    let fixture = fixture.reopened().await;
    let topics = fixture.catalog.topics().await.unwrap();
    assert_eq!(topics[0], topic);
    assert_eq!((topics.len(), topics[1].name.as_str(), topics[1].dead_letter), (2, "orders.dlq", None));
    let expected = Subscription {
        secret: Some(Secret::new("whsec_second".to_owned())),
        previous_secret: Some((Secret::new("whsec_first".to_owned()), until)),
        pause: Some(pause),
        version: 3,
        ..subscription
    };
    assert_eq!(fixture.catalog.subscriptions().await.unwrap(), std::slice::from_ref(&expected));
    assert_eq!((rotated.version, paused), (2, expected));
    assert_eq!(fixture.catalog.pipelines().await.unwrap(), [of_subscription, of_topic.clone()]);
    assert_eq!(fixture.catalog.pipeline(Scope::Topic(topic.id)).await.unwrap(), Some(of_topic));
    assert_eq!(fixture.catalog.plugin_versions().await.unwrap(), [plugin]);
    assert_eq!(fixture.catalog.plugin_bytes(&digest(b"one")).await.unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(fixture.catalog.schema("orders.v1").await.unwrap(), Some(schema));
    assert_eq!(fixture.audit().await, audit);
    assert!(fixture.catalog.verify().await.unwrap().is_empty());
}

pub async fn of_concurrent_creations_one_wins_and_the_others_conflict(fixture: Bed) {
    let fixture = Arc::new(fixture);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let fixture = Arc::clone(&fixture);
        tasks.spawn(async move {
            let (topic, dead_letter) = fixture.unwritten_topic("orders", TopicKind::Queue).await;
            fixture.catalog.insert_topic(&topic, &dead_letter, &alice()).await
        });
    }
    let results = tasks.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(CatalogError::Conflict(_)))), "{results:?}");
    assert_eq!(fixture.catalog.topics().await.unwrap().len(), 2);
    assert_eq!(fixture.audit().await.len(), 1, "a refused change leaves no entry");
}

pub async fn a_queue_has_one_subscription_and_a_group_one_on_its_topic(fixture: Bed) {
    let queue = fixture.topic("jobs", TopicKind::Queue).await;
    fixture.subscription(&queue, "workers").await.unwrap();
    assert!(matches!(fixture.subscription(&queue, "others").await, Err(CatalogError::Conflict(_))));
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    fixture.subscription(&topic, "billing").await.unwrap();
    fixture.subscription(&topic, "shipping").await.unwrap();
    assert!(matches!(fixture.subscription(&topic, "billing").await, Err(CatalogError::Conflict(_))));
}

pub async fn numbers_are_not_used_again_after_deletion_and_restart(fixture: Bed) {
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let scope = Scope::Subscription(topic.id, subscription.id);
    fixture.revise(scope, None).await.unwrap();
    fixture.catalog.delete_topic(topic.id, &alice()).await.unwrap();
    assert!(fixture.catalog.topics().await.unwrap().is_empty(), "the dead-letter topic goes too");
    assert!(fixture.catalog.subscriptions().await.unwrap().is_empty());
    assert!(fixture.catalog.pipelines().await.unwrap().is_empty());

    let fixture = fixture.reopened().await;
    let again = fixture.topic("orders", TopicKind::PubSub).await;
    assert_eq!((topic.id, again.id), (TopicId(1), TopicId(3)));
    assert!(fixture.catalog.reserve_group_id().await.unwrap() > subscription.group);
}

pub async fn a_revision_is_not_used_again_after_its_subscription_was_deleted(fixture: Bed) {
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let scope = Scope::Subscription(topic.id, subscription.id);
    fixture.revise(scope, None).await.unwrap();
    fixture.catalog.delete_subscription(subscription.id, &alice()).await.unwrap();
    assert!(fixture.catalog.pipelines().await.unwrap().is_empty());
    assert!(matches!(fixture.revise(scope, None).await, Err(CatalogError::NotFound(_))));
    fixture.catalog.insert_subscription(&subscription, &alice()).await.unwrap();
    assert_eq!(fixture.revise(scope, None).await.unwrap().revision, 2);
}

pub async fn a_change_based_on_an_old_version_is_refused(fixture: Bed) {
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let mut changed = topic.clone();
    changed.settings.description = "other".to_owned();
    fixture.clock.advance(Duration::from_secs(1));
    let after = fixture.catalog.update_topic(&changed, Some(1), &alice()).await.unwrap();
    assert_eq!((after.version, after.updated_at), (2, fixture.clock.now()));
    assert_eq!(fixture.catalog.topics().await.unwrap()[0], after);
    let late = fixture.catalog.update_topic(&changed, Some(1), &alice()).await;
    assert!(matches!(late, Err(CatalogError::PreconditionFailed { current: 2 })), "{late:?}");
    changed.settings.partition_count = 4;
    assert!(matches!(fixture.catalog.update_topic(&changed, None, &alice()).await, Err(CatalogError::Conflict(_))));

    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let late = fixture.catalog.update_subscription(&subscription, Some(9), &alice()).await;
    assert!(matches!(late, Err(CatalogError::PreconditionFailed { current: 1 })), "{late:?}");

    let scope = Scope::Topic(topic.id);
    assert!(matches!(fixture.revise(scope, Some(1)).await, Err(CatalogError::PreconditionFailed { current: 0 })));
    assert_eq!(fixture.revise(scope, Some(0)).await.unwrap().revision, 1);
    assert_eq!(fixture.revise(scope, None).await.unwrap().revision, 2);
    assert!(matches!(fixture.revise(scope, Some(1)).await, Err(CatalogError::PreconditionFailed { current: 2 })));
    let (history, total) = fixture.catalog.pipeline_history(scope, 1, 1).await.unwrap();
    assert_eq!((history.len(), history[0].revision, total), (1, 1, 2));
}

pub async fn settings_change_and_secrets_stay(fixture: Bed) {
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let mut changed = Subscription { secret: None, pause: None, ..subscription.clone() };
    changed.settings.max_retries = 100;
    changed.settings.filter = None;
    let after = fixture.catalog.update_subscription(&changed, Some(1), &alice()).await.unwrap();
    assert_eq!((&after.settings, &after.secret), (&changed.settings, &subscription.secret));
    assert_eq!(fixture.catalog.subscriptions().await.unwrap(), [after]);
    changed.settings.kind = SubscriptionKind::Pull;
    let refused = fixture.catalog.update_subscription(&changed, None, &alice()).await;
    assert!(matches!(refused, Err(CatalogError::Conflict(_))));
}

pub async fn a_column_that_was_never_written_so_is_damage(fixture: Bed) {
    fixture.topic("orders", TopicKind::PubSub).await;
    fixture.sql("UPDATE topics SET type = 'Stream'").await;
    assert!(matches!(fixture.catalog.topics().await, Err(CatalogError::Damaged(_))));
}

pub async fn a_history_keeps_its_latest_revisions(fixture: Bed) {
    let scope = Scope::Topic(fixture.topic("orders", TopicKind::Queue).await.id);
    for _ in 0..3 {
        fixture.revise(scope, None).await.unwrap();
    }
    // As if there had been many more.
    fixture.sql("UPDATE pipeline_counters SET last_revision = 1001").await;
    assert_eq!(fixture.revise(scope, None).await.unwrap().revision, 1002);
    let (kept, total) = fixture.catalog.pipeline_history(scope, 10, 0).await.unwrap();
    assert_eq!((kept.iter().map(|revision| revision.revision).collect::<Vec<_>>(), total), (vec![1002, 3], 2));
}

pub async fn a_closed_catalog_says_so(fixture: Bed) {
    fixture.catalog.ping().await.unwrap();
    fixture.catalog.close().await;
    fixture.catalog.close().await;
    assert!(matches!(fixture.catalog.ping().await, Err(CatalogError::Unavailable(_))));
}
