//! `repair`: what is left of a data directory, in a new one. Invariant: the new directory has a catalog, and so something
//! that a broker serves, only once its store is whole; it has passed the same look as any other before it is reported.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use super::catalog::{self, Found};
use super::{CATALOG, OfflineError, Report, STORE, Scratch, report, verify};
use crate::catalog::{
    Actor, Catalog, CatalogError, DEAD_LETTER_THRESHOLD, DeadLetterPayload, Guarantee, Storage, Subscription,
    SubscriptionId, SubscriptionKind, SubscriptionSettings, Topic, TopicKind, TopicSettings,
};
use crate::clock::{Clock, Timestamp};
use crate::message::{GroupId, MessageId, TopicId, TopicName};
use crate::store::GroupSpec;
use crate::store::embedded::{ClosedStore, Progress, TopicSeen};

/// What goes along as it is: nothing of it can be made again.
const FILES: [&str; 3] = ["jwt.secret", "sluice.toml", "appsettings.json"];
/// What the description of a topic says whose row was lost.
const DESCRIPTION: &str = "found by sluice repair; its name and settings were lost";
/// Of topics whose settings were lost: the API's default.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// What a repair came to.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// What was found in the old directory, and what is lost by it.
    pub before: Report,
    /// What was lost of the catalog, a sentence each.
    pub catalog_lost: Vec<String>,
    /// The new directory.
    pub after: Report,
}

impl Repaired {
    /// Whether all is there that was.
    #[must_use]
    pub fn lost_nothing(&self) -> bool {
        self.catalog_lost.is_empty() && self.before.findings.iter().all(|finding| finding.lost.is_empty())
    }
}

/// Writes what is left of `data_dir` to `to`, which does not exist or is empty.
///
/// # Errors
/// When `data_dir` cannot be read or `to` not be written. Damage is no error.
pub async fn repair(
    data_dir: &Path,
    to: &Path,
    clock: &Clock,
    told: &(dyn Fn(Progress) + Sync),
) -> Result<Repaired, OfflineError> {
    let store = ClosedStore::take(&data_dir.join(STORE))?;
    make_target(data_dir, to)?;
    let scratch = Scratch::new(to)?;
    let found = catalog::read(data_dir, &scratch, clock).await?;
    let seen = store.rebuild(&to.join(STORE), &found.known, clock, told)?;
    let mut catalog_lost = found.lost.clone();
    if !found.findings.is_empty() {
        catalog_lost.extend(complete(&found, &seen.topics, clock).await?);
    }
    for (id, topic) in &seen.topics {
        if found.topics.get(id).is_some_and(|(_, partitions)| *partitions != topic.spec.partitions) {
            found.catalog.restore_partitions(*id, topic.spec.partitions).await?;
        }
    }
    found.catalog.close().await;
    take_along(data_dir, to)?;
    std::fs::rename(&found.path, to.join(CATALOG)).map_err(OfflineError::io("moving the catalog to its place"))?;
    drop(scratch);
    sync(to)?;
    let before = report(found.findings, &found.topics, seen);
    drop(store);
    let after = verify(to, clock, told).await?;
    if let Some(fault) = after.findings.iter().find(|finding| finding.kind.is_damage()) {
        let fault = format!("{} at byte {}: {}", fault.file, fault.offset, fault.detail);
        return Err(OfflineError::Unsound { dir: to.display().to_string(), fault });
    }
    Ok(Repaired { before, catalog_lost, after })
}

fn make_target(data_dir: &Path, to: &Path) -> Result<(), OfflineError> {
    let making = || OfflineError::io(format!("making {}", to.display()));
    let refused = |why: &str| Err(OfflineError::Target(format!("{} {why}", to.display())));
    if to.exists() && (!to.is_dir() || to.read_dir().map_err(making())?.next().is_some()) {
        return refused("is not empty: name a directory that is, or that does not exist");
    }
    // For the broker's user alone, as the broker makes it.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(making())?;
    let absolute =
        |path: &Path| path.canonicalize().map_err(OfflineError::io(format!("looking at {}", path.display())));
    if absolute(to)?.starts_with(absolute(data_dir)?) {
        std::fs::remove_dir(to).map_err(making())?;
        return refused("lies in the directory that is to be repaired, which is not changed");
    }
    Ok(())
}

fn take_along(from: &Path, to: &Path) -> Result<(), OfflineError> {
    for name in FILES {
        if from.join(name).is_file() {
            let copied = std::fs::copy(from.join(name), to.join(name));
            copied.and_then(|_| sync_path(&to.join(name))).map_err(OfflineError::io(format!("copying {name}")))?;
        }
    }
    Ok(())
}

fn sync(to: &Path) -> Result<(), OfflineError> {
    sync_path(&to.join(CATALOG)).and_then(|()| sync_path(to)).map_err(OfflineError::io("syncing the new directory"))
}

fn sync_path(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

/// Gives the catalog rows for what the store has and the catalog lost; returns what had to be made up.
async fn complete(
    found: &Found,
    seen: &BTreeMap<TopicId, TopicSeen>,
    clock: &Clock,
) -> Result<Vec<String>, CatalogError> {
    let (catalog, now) = (&found.catalog, clock.now());
    let last_group = seen.values().flat_map(|topic| &topic.groups).map(|group| group.group.0).max().unwrap_or(0);
    let last_topic = seen.keys().map(|id| id.0).max().unwrap_or(0);
    catalog.raise_numbers(last_topic, last_group).await?;
    let mut lost = complete_topics(catalog, seen, now).await?;
    lost.extend(complete_groups(catalog, seen, now).await?);
    lost.extend(catalog.drop_dangling().await?);
    Ok(lost)
}

async fn complete_topics(
    catalog: &Catalog,
    seen: &BTreeMap<TopicId, TopicSeen>,
    now: Timestamp,
) -> Result<Vec<String>, CatalogError> {
    let (mut topics, mut lost): (HashMap<TopicId, Topic>, _) =
        (catalog.topics().await?.into_iter().map(|topic| (topic.id, topic)).collect(), Vec::new());
    let of_topics = topics.values().filter_map(|topic| topic.dead_letter);
    let dead: HashSet<TopicId> = of_topics.chain(seen.values().filter_map(|topic| topic.spec.dead_letter)).collect();
    let missing: Vec<&TopicSeen> =
        seen.values().filter(|topic| !topics.contains_key(&topic.spec.id) && !dead.contains(&topic.spec.id)).collect();
    for topic in missing {
        let id = topic.spec.id;
        let dead_letter = match topic.spec.dead_letter {
            Some(dead) => dead,
            None => catalog.reserve_topic_id().await?,
        };
        // The dead letters' topic, if its row is left, tells the name.
        let by_dead =
            topics.get(&dead_letter).and_then(|dead| dead.name.as_str().strip_suffix(".dlq").map(str::to_owned));
        let name = by_dead.and_then(|name| name.parse().ok()).unwrap_or_else(|| made_up(id));
        lost.push(format!("the settings of topic {}, and perhaps its name: it is '{name}' now", id.0));
        topics.insert(id, found_topic(topic, name, Some(dead_letter), now));
    }
    let with_dead: Vec<Topic> = topics.values().filter(|topic| topic.dead_letter.is_some()).cloned().collect();
    for topic in with_dead {
        let Some(id) = topic.dead_letter.filter(|dead| !topics.contains_key(dead)) else { continue };
        let settings = TopicSettings {
            kind: TopicKind::PubSub,
            partition_count: seen.get(&id).map_or(1, |seen| seen.spec.partitions),
            ..topic.settings.clone()
        };
        let dead = Topic { id, name: topic.name.dead_letter(), dead_letter: None, settings, ..topic };
        lost.push(format!("the settings of topic '{}'", dead.name));
        catalog.restore_topic(&dead).await?;
        topics.insert(id, dead);
    }
    let stored: HashSet<TopicId> = catalog.topics().await?.into_iter().map(|topic| topic.id).collect();
    for topic in topics.values().filter(|topic| !stored.contains(&topic.id)) {
        catalog.restore_topic(topic).await?;
    }
    Ok(lost)
}

fn made_up(id: TopicId) -> TopicName {
    format!("recovered-{}", id.0).parse().expect("letters, digits and a dash are a topic's name")
}

fn found_topic(seen: &TopicSeen, name: TopicName, dead_letter: Option<TopicId>, now: Timestamp) -> Topic {
    let spec = &seen.spec;
    let shared = seen.groups.iter().any(|group| group.group == GroupId::SHARED);
    let settings = TopicSettings {
        description: DESCRIPTION.to_owned(),
        kind: if shared { TopicKind::Queue } else { TopicKind::PubSub },
        schema_id: None,
        guarantee: Guarantee::AtLeastOnce,
        retention: spec.retention,
        retention_bytes: spec.retention_bytes,
        partition_count: spec.partitions,
        max_message_size: MESSAGE_BYTES_MAX,
        dedup_window: spec.dedup_window,
        dedup_keys_max: spec.dedup_keys_max,
        dead_letter_payload: match spec.dead_letter_payload {
            true => DeadLetterPayload::Original,
            false => DeadLetterPayload::None,
        },
        dead_letter_expired: spec.dead_letter_expired,
        dead_letter_threshold: Some(DEAD_LETTER_THRESHOLD),
        capture_input: None,
        storage: Storage::Default,
    };
    Topic { id: spec.id, name, dead_letter, settings, created_at: now, updated_at: now, version: 1 }
}

/// Subscriptions for groups of PubSub topics that have none: to be fetched, whatever they were.
async fn complete_groups(
    catalog: &Catalog,
    seen: &BTreeMap<TopicId, TopicSeen>,
    now: Timestamp,
) -> Result<Vec<String>, CatalogError> {
    let topics = catalog.topics().await?;
    let known: HashSet<(TopicId, GroupId)> =
        catalog.subscriptions().await?.into_iter().map(|known| (known.topic, known.group)).collect();
    let mut lost = Vec::new();
    for topic in topics {
        let Some(seen) = seen.get(&topic.id) else { continue };
        for group in seen.groups.iter().filter(|group| group.group != GroupId::SHARED) {
            if known.contains(&(topic.id, group.group)) {
                continue;
            }
            let subscription = found_subscription(&topic, group, now);
            catalog.insert_subscription(&subscription, &Actor::system()).await?;
            lost.push(format!(
                "the settings of group '{}' on '{}': it is a Pull subscription now",
                group.name, topic.name
            ));
        }
    }
    Ok(lost)
}

fn found_subscription(topic: &Topic, group: &GroupSpec, now: Timestamp) -> Subscription {
    Subscription {
        id: SubscriptionId(MessageId::new(now, topic.id, 0, u64::from(group.group.0)).0),
        group: group.group,
        topic: topic.id,
        topic_name: topic.name.clone(),
        consumer_group: Arc::clone(&group.name),
        settings: SubscriptionSettings {
            max_retries: group.attempts_max.saturating_sub(1),
            ..SubscriptionSettings::new(SubscriptionKind::Pull)
        },
        secret: None,
        previous_secret: None,
        pause: None,
        created_by: "sluice repair".to_owned(),
        created_at: now,
        updated_at: now,
        version: 1,
    }
}
