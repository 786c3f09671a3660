//! The broker's own topics. Invariant: they are there before anything is served; whoever may change topics may change how
//! long they keep what. Never publishes.

use std::time::Duration;

use crate::catalog::Actor;
use crate::catalog::model::{DEAD_LETTER_THRESHOLD, DeadLetterPayload, Guarantee, Storage, TopicKind, TopicSettings};
use crate::directory::{Directory, DirectoryError};
use crate::message::{EVENTS_TOPIC, REPLIES_TOPIC, TopicName};

const HOUR: Duration = Duration::from_secs(3600);
const MIB: u64 = 1 << 20;

/// Makes those that are not there.
///
/// # Errors
/// When catalog or store take no change.
pub async fn ensure(directory: &Directory) -> Result<(), DirectoryError> {
    let actor = Actor::system();
    for (name, settings) in [
        (EVENTS_TOPIC, settings("what happens to endpoints and topics", 7 * 24 * HOUR, 64 * MIB)),
        // Who asks waits for half a minute; who asks again may have been away for a while.
        (REPLIES_TOPIC, settings("replies to requests that name no topic for them", HOUR, 256 * MIB)),
    ] {
        let name: TopicName = name.parse().expect("the broker's own names are well-formed");
        if directory.topic(&name).is_some() {
            continue;
        }
        if let Err(error) = directory.create_topic(name.clone(), settings, &actor).await {
            // Of brokers that start for the first time at one moment, another one may have been first.
            directory.catch_up().await?;
            if directory.topic(&name).is_none() {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn settings(description: &str, retention: Duration, retention_bytes: u64) -> TopicSettings {
    TopicSettings {
        description: description.to_owned(),
        kind: TopicKind::PubSub,
        schema_id: None,
        guarantee: Guarantee::AtLeastOnce,
        retention,
        retention_bytes: Some(retention_bytes),
        partition_count: 1,
        max_message_size: MIB,
        dedup_window: Duration::from_secs(600),
        dedup_keys_max: 100_000,
        dead_letter_payload: DeadLetterPayload::Original,
        dead_letter_expired: false,
        dead_letter_threshold: Some(DEAD_LETTER_THRESHOLD),
        capture_input: None,
        storage: Storage::Default,
    }
}
