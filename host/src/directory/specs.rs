//! Topics and groups as the store sees them. Invariant: follows from the catalog alone, so that who has no broker can say what
//! a store should have.

use std::collections::HashSet;
use std::sync::Arc;

use crate::catalog::model::{DeadLetterPayload, OnFault, OnReject, StageSpec, Subscription, Topic, TopicKind};
use crate::message::{GroupId, TopicId};
use crate::store::{GroupSpec, SeekTo, TopicSpec};

/// Attempts of a Queue that no subscription has given settings: the API's default of 3 retries.
const ATTEMPTS_DEFAULT: u32 = 4;

/// A topic as the store sees it.
#[must_use]
pub fn topic_spec(topic: &Topic) -> TopicSpec {
    let settings = &topic.settings;
    TopicSpec {
        id: topic.id,
        partitions: settings.partition_count,
        retention: settings.retention,
        retention_bytes: settings.retention_bytes,
        dedup_window: settings.dedup_window,
        dedup_keys_max: settings.dedup_keys_max,
        dead_letter: topic.dead_letter,
        dead_letter_payload: settings.dead_letter_payload == DeadLetterPayload::Original,
        dead_letter_expired: settings.dead_letter_expired,
    }
}

/// The groups that the store has of these topics: the subscriptions', and those that no subscription has.
#[must_use]
pub fn group_specs(topics: &[Topic], subscriptions: &[Subscription]) -> Vec<GroupSpec> {
    let mut groups: Vec<GroupSpec> =
        subscriptions.iter().map(|subscription| group_spec(subscription, SeekTo::Earliest)).collect();
    let known: HashSet<TopicId> = subscriptions.iter().map(|subscription| subscription.topic).collect();
    let shared = topics.iter().filter(|topic| needs_shared_group(topic, known.contains(&topic.id)));
    groups.extend(shared.map(|topic| shared_group(topic.id)));
    groups
}

/// The list of dead letters, or the one cursor of a Queue that no subscription has given settings.
pub(super) fn needs_shared_group(topic: &Topic, has_subscription: bool) -> bool {
    topic.name.is_dead_letter() || (topic.settings.kind == TopicKind::Queue && !has_subscription)
}

/// A subscription as the store sees it; `start` counts only if its group is new.
pub(super) fn group_spec(subscription: &Subscription, start: SeekTo) -> GroupSpec {
    GroupSpec {
        topic: subscription.topic,
        group: subscription.group,
        name: Arc::clone(&subscription.consumer_group),
        start,
        attempts_max: subscription.settings.max_retries.saturating_add(1),
    }
}

/// The one cursor of a Queue, or the list of dead letters.
pub(super) fn shared_group(topic: TopicId) -> GroupSpec {
    GroupSpec {
        topic,
        group: GroupId::SHARED,
        name: "".into(),
        start: SeekTo::Earliest,
        attempts_max: ATTEMPTS_DEFAULT,
    }
}

/// A stage that Sluice adds itself.
pub(super) fn implicit_stage(name: &str, plugin: &str, config: serde_json::Value) -> StageSpec {
    StageSpec {
        name: name.to_owned(),
        plugin: plugin.to_owned(),
        version: "latest".to_owned(),
        config,
        on_reject: OnReject::Reject,
        on_fault: OnFault::Reject,
        // Above the API's defaults: our own code, and a schema of hundreds of definitions must fit.
        timeout_ms: 250,
        memory_mb: 64,
        emit_to: Vec::new(),
    }
}
