//! Which topics and subscriptions there are, as every request needs to know it. Invariant: the catalog is the truth and
//! this is its latest state; a topic or group that is listed here exists in the store. Create writes the store first and
//! the catalog last, delete the other way round, so that a crash leaves nothing listed that is not there. Never touches
//! messages.

mod in_step;
mod leftovers;
mod snapshot;
mod specs;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::json;
use tokio::sync::{Mutex, watch};

use crate::catalog::model::{
    DeadLetterPayload, Filter, Guarantee, Pause, Schema, SchemaStatus, Scope, Storage, Subscription, SubscriptionId,
    SubscriptionKind, SubscriptionSettings, Topic, TopicKind, TopicSettings,
};
use crate::catalog::{Actor, Catalog, CatalogError};
use crate::clock::{Clock, Timestamp};
use crate::delivery::push::signature::{Scheme, new_secret};
use crate::entropy::Entropy;
use crate::message::{GroupId, SYSTEM_TOPICS, TopicId, TopicName};
use crate::pipeline::{PipelineError, Pipelines};
use crate::schemas::{SchemaError, Schemas};
use crate::store::routed::Homes;
use crate::store::{MessageStore, SeekTo, StoreError};

use self::leftovers::Leftover;
use self::snapshot::Snapshot;
use self::specs::{group_spec, implicit_stage, needs_shared_group, shared_group};
pub use self::specs::{group_specs, topic_spec};

/// Knows topics and subscriptions, and changes them in catalog, store and pipelines together.
pub struct Directory {
    catalog: Catalog,
    store: Arc<dyn MessageStore>,
    homes: Homes,
    pipelines: Arc<Pipelines>,
    schemas: Schemas,
    clock: Clock,
    dead_letter_retention: Duration,
    /// Topics, and subscriptions.
    at_most: (usize, usize),
    entropy: Entropy,
    /// Whether other brokers change the same catalog.
    is_shared: bool,
    /// The version of the catalog that this is the state of.
    followed: AtomicU64,
    current: ArcSwap<Snapshot>,
    changes: watch::Sender<u64>,
    /// Changes are rare and touch three places: one at a time. Holds what failed ones have left.
    editing: Mutex<Vec<Leftover>>,
    /// What the store had at the last look and the catalog did not.
    strays: parking_lot::Mutex<HashSet<(TopicId, Option<GroupId>)>>,
}

/// What a directory is made of.
pub struct DirectoryParts {
    /// The truth.
    pub catalog: Catalog,
    /// Where the messages are.
    pub store: Arc<dyn MessageStore>,
    /// Told which topics are in Redis, before the store is asked for them.
    pub homes: Homes,
    /// Runs the stages.
    pub pipelines: Arc<Pipelines>,
    /// Knows the schemas that topics name.
    pub schemas: Schemas,
    /// The time.
    pub clock: Clock,
    /// Ids and signing secrets.
    pub entropy: Entropy,
    /// How long dead letters are kept.
    pub dead_letter_retention: Duration,
    /// Topics, and subscriptions, at most.
    pub at_most: (usize, usize),
    /// Whether other brokers change the same catalog.
    pub is_shared: bool,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// No such topic or subscription.
    #[error("{0}")]
    NotFound(String),
    /// It exists, or may not be changed so.
    #[error("{0}")]
    Conflict(String),
    /// There are as many as the settings allow.
    #[error("{0}")]
    Full(String),
    /// The catalog's word.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store's word.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The filter or schema does not run.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The schema registry's word.
    #[error(transparent)]
    Schemas(#[from] SchemaError),
}

/// A subscription to be made.
#[derive(Debug, Clone)]
pub struct NewSubscription {
    /// On which topic.
    pub topic: Arc<Topic>,
    /// The group's name.
    pub consumer_group: Arc<str>,
    /// What its owner chose.
    pub settings: SubscriptionSettings,
    /// How its webhooks are signed.
    pub signature: Scheme,
    /// Where it begins.
    pub start: SeekTo,
}

impl Directory {
    /// Reads the catalog, brings store and pipelines in line with it, and returns the directory.
    ///
    /// # Errors
    /// When catalog or store cannot be read or written.
    pub async fn open(parts: DirectoryParts) -> Result<Arc<Directory>, DirectoryError> {
        let directory = Directory {
            catalog: parts.catalog,
            store: parts.store,
            homes: parts.homes,
            pipelines: parts.pipelines,
            schemas: parts.schemas,
            clock: parts.clock,
            entropy: parts.entropy,
            dead_letter_retention: parts.dead_letter_retention,
            at_most: parts.at_most,
            is_shared: parts.is_shared,
            followed: AtomicU64::new(0),
            current: ArcSwap::default(),
            changes: watch::channel(0).0,
            editing: Mutex::default(),
            strays: parking_lot::Mutex::default(),
        };
        directory.follow().await?;
        directory.reconcile().await?;
        Ok(Arc::new(directory))
    }

    /// The topic of this name.
    #[must_use]
    pub fn topic(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.current.load().topics.get(name).cloned()
    }

    /// The topic of this number.
    #[must_use]
    pub fn topic_by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        self.current.load().by_id.get(&id).cloned()
    }

    /// All topics by name, without those of dead letters.
    #[must_use]
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        let mut topics: Vec<_> =
            self.current.load().topics.values().filter(|topic| !topic.name.is_dead_letter()).cloned().collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// All topics, those of dead letters too, in no order.
    #[must_use]
    pub fn all_topics(&self) -> Vec<Arc<Topic>> {
        self.current.load().topics.values().cloned().collect()
    }

    /// The topic whose dead letters `id` takes; `None` if `id` is no such topic.
    #[must_use]
    pub fn source_of_dead_letters(&self, id: TopicId) -> Option<Arc<Topic>> {
        self.current.load().by_id.values().find(|topic| topic.dead_letter == Some(id)).cloned()
    }

    /// The subscription of this id.
    #[must_use]
    pub fn subscription(&self, id: SubscriptionId) -> Option<Arc<Subscription>> {
        self.current.load().subscriptions.get(&id).cloned()
    }

    /// All subscriptions, oldest first.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<Arc<Subscription>> {
        let mut all: Vec<_> = self.current.load().subscriptions.values().cloned().collect();
        all.sort_by_key(|subscription| (subscription.created_at, subscription.id));
        all
    }

    /// The subscriptions of one topic.
    #[must_use]
    pub fn subscriptions_of(&self, topic: TopicId) -> Vec<Arc<Subscription>> {
        self.current.load().of_topic(topic).to_vec()
    }

    /// The cursor that `group` consumes from, with its subscription; `None` if a PubSub topic has no such group.
    #[must_use]
    pub fn cursor(&self, topic: &Topic, group: &str) -> Option<(GroupId, Option<Arc<Subscription>>)> {
        let snapshot = self.current.load();
        let mut subscriptions = snapshot.of_topic(topic.id).iter();
        match topic.settings.kind {
            TopicKind::Queue => Some((GroupId::SHARED, subscriptions.next().cloned())),
            TopicKind::PubSub => subscriptions
                .find(|subscription| &*subscription.consumer_group == group)
                .map(|subscription| (subscription.group, Some(Arc::clone(subscription)))),
        }
    }

    /// Changes with every change of a topic or subscription.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Makes a topic and the one for its dead letters.
    ///
    /// # Errors
    /// `Conflict` when the name is taken.
    pub async fn create_topic(
        &self,
        name: TopicName,
        settings: TopicSettings,
        actor: &Actor,
    ) -> Result<Arc<Topic>, DirectoryError> {
        let mut edit = self.edit().await.making()?;
        if self.topic(&name).is_some() {
            return Err(DirectoryError::Conflict(format!("the topic '{name}' exists")));
        }
        if !name.is_system() {
            // Each has one for its dead letters.
            let own = SYSTEM_TOPICS.iter().filter_map(|name| self.topic(&name.parse().ok()?)).count();
            let there = self.current.load().topics.len() / 2;
            within(there.saturating_sub(own), self.at_most.0, ("topics", "limits.topics_max"))?;
        }
        let (id, dead_letter_id) = (self.catalog.reserve_topic_id().await?, self.catalog.reserve_topic_id().await?);
        let now = self.clock.now();
        let dead_letter = Topic {
            id: dead_letter_id,
            name: name.dead_letter(),
            dead_letter: None,
            settings: self.dead_letter_settings(&settings),
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let topic = Topic {
            id,
            name,
            dead_letter: Some(dead_letter_id),
            settings,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let made = async {
            for new in [&dead_letter, &topic] {
                self.find_homes(std::slice::from_ref(new));
                self.store.put_topic(topic_spec(new)).await?;
                self.put_shared_group(new).await?;
            }
            self.catalog.insert_topic(&topic, &dead_letter, actor).await?;
            // A crash here leaves a topic without its schema's stage: the next start adds it, before anything is served.
            self.refresh_topic_stages(&topic, "topic created", actor).await
        };
        if let Err(error) = made.await {
            edit.leave(Leftover::Topic(id, dead_letter_id)).await;
            return Err(error);
        }
        self.change(|snapshot| {
            snapshot.put_topic(dead_letter);
            snapshot.put_topic(topic.clone());
        });
        Ok(Arc::new(topic))
    }

    fn dead_letter_settings(&self, of: &TopicSettings) -> TopicSettings {
        TopicSettings {
            description: "dead letters".to_owned(),
            kind: TopicKind::PubSub,
            schema_id: None,
            guarantee: Guarantee::AtLeastOnce,
            retention: self.dead_letter_retention,
            retention_bytes: None,
            partition_count: 1,
            max_message_size: of.max_message_size,
            dedup_window: of.dedup_window,
            dedup_keys_max: of.dedup_keys_max,
            dead_letter_payload: DeadLetterPayload::Original,
            dead_letter_expired: false,
            dead_letter_threshold: None,
            capture_input: None,
            storage: of.storage,
        }
    }

    /// Changes a topic's settings; kind and partition count must be as before.
    ///
    /// # Errors
    /// `Conflict` for what cannot change, `Catalog(PreconditionFailed)` when `expected_version` is not the current one.
    pub async fn update_topic(
        &self,
        name: &TopicName,
        settings: TopicSettings,
        expected_version: Option<u64>,
        actor: &Actor,
    ) -> Result<Arc<Topic>, DirectoryError> {
        let mut edit = self.edit().await.current()?;
        let before = self.topic(name).ok_or_else(|| no_topic(name))?;
        let fixed = |settings: &TopicSettings| (settings.kind, settings.partition_count, settings.storage);
        if fixed(&before.settings) != fixed(&settings) {
            return Err(DirectoryError::Conflict(
                "type, partitionCount and storage cannot change; make a new topic and move its publishers".to_owned(),
            ));
        }
        check_version(before.version, expected_version)?;
        let topic = Topic { settings, ..(*before).clone() };
        let changed = async {
            self.refresh_topic_stages(&topic, "topic changed", actor).await?;
            Ok(self.catalog.update_topic(&topic, expected_version, actor).await?)
        };
        let topic = match changed.await {
            Ok(topic) => topic,
            Err(error) => {
                edit.leave(Leftover::TopicSettings(before.id)).await;
                return Err(error);
            }
        };
        self.change(|snapshot| snapshot.put_topic(topic.clone()));
        // It stands: what the store can't take now, it takes later.
        if self.store.put_topic_again(topic_spec(&topic)).await.is_err() {
            edit.leave(Leftover::TopicSettings(topic.id)).await;
        }
        Ok(Arc::new(topic))
    }

    /// Removes a topic with its messages, dead letters, subscriptions and pipelines.
    ///
    /// # Errors
    /// `Conflict` when it has subscriptions and `force` is not set.
    pub async fn delete_topic(
        &self,
        name: &TopicName,
        (force, expected_version): (bool, Option<u64>),
        actor: &Actor,
    ) -> Result<(), DirectoryError> {
        let mut edit = self.edit().await.current()?;
        let topic = self.topic(name).ok_or_else(|| no_topic(name))?;
        if name.is_system() {
            return Err(DirectoryError::Conflict(format!("the topic '{name}' is the broker's own, and stays")));
        }
        check_version(topic.version, expected_version)?;
        let Some(dead_letter) = topic.dead_letter else {
            return Err(DirectoryError::Conflict(format!(
                "the topic '{name}' goes when its topic goes; delete that one"
            )));
        };
        let subscriptions = [self.subscriptions_of(topic.id), self.subscriptions_of(dead_letter)].concat();
        if !subscriptions.is_empty() && !force {
            return Err(DirectoryError::Conflict(format!(
                "the topic '{name}' has {} subscriptions; delete them first, or repeat with ?force=true",
                subscriptions.len()
            )));
        }
        self.catalog.delete_topic(topic.id, actor).await?;
        self.change(|snapshot| {
            snapshot.remove_topic(topic.id);
            snapshot.remove_topic(dead_letter);
        });
        for subscription in subscriptions {
            self.pipelines.forget(Scope::Subscription(subscription.topic, subscription.id)).await;
        }
        // The topic is gone, whatever comes: what the store can't remove now, it removes later.
        edit.leave(Leftover::Topic(topic.id, dead_letter)).await;
        Ok(())
    }

    /// Makes a subscription; a Push one gets its signing secret.
    ///
    /// # Errors
    /// `Conflict` when the topic has that group, or is a Queue that has a subscription.
    pub async fn create_subscription(
        &self,
        new: NewSubscription,
        actor: &Actor,
    ) -> Result<Arc<Subscription>, DirectoryError> {
        let mut edit = self.edit().await.making()?;
        // It may have gone while this waited.
        self.topic_by_id(new.topic.id).ok_or_else(|| no_topic(&new.topic.name))?;
        let queue = new.topic.settings.kind == TopicKind::Queue;
        let others = self.subscriptions_of(new.topic.id);
        if queue && !others.is_empty() {
            return Err(DirectoryError::Conflict(format!("the queue '{}' has its one subscription", new.topic.name)));
        }
        if others.iter().any(|other| other.consumer_group == new.consumer_group) {
            return Err(DirectoryError::Conflict(format!(
                "the group '{}' exists on the topic '{}'",
                new.consumer_group, new.topic.name
            )));
        }
        let there = self.current.load().subscriptions.len();
        within(there, self.at_most.1, ("subscriptions", "limits.subscriptions_max"))?;
        let now = self.clock.now();
        let push = new.settings.kind == SubscriptionKind::Push;
        let group = if queue { GroupId::SHARED } else { self.catalog.reserve_group_id().await? };
        let subscription = Subscription {
            id: SubscriptionId(crate::message::MessageId::new(now, new.topic.id, 0, self.entropy.next_u64()).0),
            group,
            topic: new.topic.id,
            topic_name: new.topic.name.clone(),
            consumer_group: new.consumer_group,
            settings: new.settings,
            secret: push.then(|| new_secret(new.signature, &self.entropy)),
            previous_secret: None,
            pause: None,
            created_by: actor.user.clone(),
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let made = async {
            self.store.put_group(group_spec(&subscription, new.start)).await?;
            self.catalog.insert_subscription(&subscription, actor).await?;
            self.refresh_subscription_stages(&subscription, "subscription created", actor).await
        };
        if let Err(error) = made.await {
            edit.leave(Leftover::Subscription(subscription.id, subscription.topic, group)).await;
            return Err(error);
        }
        self.change(|snapshot| snapshot.put_subscription(subscription.clone()));
        Ok(Arc::new(subscription))
    }

    /// Changes a subscription's settings; its kind must be as before.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for a change of kind; `Catalog(PreconditionFailed)`.
    pub async fn update_subscription(
        &self,
        id: SubscriptionId,
        settings: SubscriptionSettings,
        expected_version: Option<u64>,
        actor: &Actor,
    ) -> Result<Arc<Subscription>, DirectoryError> {
        let mut edit = self.edit().await.current()?;
        let before = self.subscription(id).ok_or_else(|| no_subscription(id))?;
        if before.settings.kind != settings.kind {
            return Err(DirectoryError::Conflict("type cannot change; make a new subscription".to_owned()));
        }
        check_version(before.version, expected_version)?;
        let subscription = Subscription { settings, ..(*before).clone() };
        let changed = async {
            self.refresh_subscription_stages(&subscription, "subscription changed", actor).await?;
            Ok(self.catalog.update_subscription(&subscription, expected_version, actor).await?)
        };
        let subscription = match changed.await {
            Ok(subscription) => subscription,
            Err(error) => {
                edit.leave(Leftover::SubscriptionSettings(id)).await;
                return Err(error);
            }
        };
        self.change(|snapshot| snapshot.put_subscription(subscription.clone()));
        // It stands: what the store can't take now, it takes later.
        if self.store.put_group(group_spec(&subscription, SeekTo::Latest)).await.is_err() {
            edit.leave(Leftover::SubscriptionSettings(id)).await;
        }
        Ok(Arc::new(subscription))
    }

    /// Stops (`Some`) or goes on with (`None`) delivering.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn pause(
        &self,
        id: SubscriptionId,
        (pause, expected_version): (Option<Pause>, Option<u64>),
        actor: &Actor,
    ) -> Result<Arc<Subscription>, DirectoryError> {
        let _one_at_a_time = self.edit().await.current()?;
        let before = self.subscription(id).ok_or_else(|| no_subscription(id))?;
        check_version(before.version, expected_version)?;
        let subscription = self.catalog.set_pause(id, pause, actor).await?;
        self.change(|snapshot| snapshot.put_subscription(subscription.clone()));
        Ok(Arc::new(subscription))
    }

    /// Gives a Push subscription a new secret, by its scheme of before unless another is given; the old one signs too for
    /// `overlap`.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for a Pull subscription.
    pub async fn rotate_secret(
        &self,
        id: SubscriptionId,
        expected_version: Option<u64>,
        (scheme, overlap): (Option<Scheme>, Duration),
        actor: &Actor,
    ) -> Result<Arc<Subscription>, DirectoryError> {
        let _one_at_a_time = self.edit().await.current()?;
        let before = self.subscription(id).ok_or_else(|| no_subscription(id))?;
        check_version(before.version, expected_version)?;
        if before.settings.kind != SubscriptionKind::Push {
            return Err(DirectoryError::Conflict("a Pull subscription has no signing secret".to_owned()));
        }
        let scheme = scheme.or_else(|| before.secret.as_ref().map(Scheme::of)).unwrap_or_default();
        let secret = new_secret(scheme, &self.entropy);
        let until = self.clock.now().plus(overlap);
        let subscription = self.catalog.rotate_secret(id, secret, until, actor).await?;
        self.change(|snapshot| snapshot.put_subscription(subscription.clone()));
        Ok(Arc::new(subscription))
    }

    /// Removes a subscription; what waited for it is gone with its cursor. A Queue keeps its messages.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_subscription(
        &self,
        id: SubscriptionId,
        expected_version: Option<u64>,
        actor: &Actor,
    ) -> Result<(), DirectoryError> {
        let mut edit = self.edit().await.current()?;
        let subscription = self.subscription(id).ok_or_else(|| no_subscription(id))?;
        check_version(subscription.version, expected_version)?;
        self.catalog.delete_subscription(id, actor).await?;
        self.change(|snapshot| snapshot.remove_subscription(&subscription));
        // It is gone, whatever comes: what the store can't remove now, it removes later.
        edit.leave(Leftover::Subscription(id, subscription.topic, subscription.group)).await;
        Ok(())
    }

    /// Brings the topics that name this schema onto its version of now.
    ///
    /// # Errors
    /// When a pipeline could not be built with it.
    pub async fn schema_changed(&self, schema_id: &str, actor: &Actor) -> Result<(), DirectoryError> {
        let mut edit = self.edit().await.current()?;
        let (reason, mut changed) = (format!("schema {schema_id} changed"), Ok(()));
        for topic in self.topics() {
            if topic.settings.schema_id.as_deref() != Some(schema_id) {
                continue;
            }
            if let Err(error) = self.refresh_topic_stages(&topic, &reason, actor).await {
                edit.leave(Leftover::TopicSettings(topic.id)).await;
                changed = changed.and(Err(error));
            }
        }
        self.pipelines.schema_changed(schema_id, actor).await?;
        changed
    }

    /// The schema that a topic's payloads are held against, if it is registered and approved.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub async fn schema_status(&self, topic: &Topic) -> Result<Option<SchemaStatus>, DirectoryError> {
        let Some(id) = &topic.settings.schema_id else { return Ok(None) };
        Ok(self.schema(id).await?.map(|schema| schema.status))
    }

    /// A topic may name a schema that is not registered yet.
    async fn schema(&self, id: &str) -> Result<Option<Schema>, DirectoryError> {
        match self.schemas.get(id).await {
            Ok(schema) => Ok(Some(schema)),
            Err(SchemaError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the catalog has taken is seen by everybody from now on. Under `editing`, or before anybody sees the directory.
    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = Snapshot::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
        self.changes.send_modify(|change| *change += 1);
    }

    /// A topic that the catalog has.
    async fn put_into_store(&self, topic: &Topic) -> Result<(), DirectoryError> {
        self.find_homes(std::slice::from_ref(topic));
        self.store.put_topic_again(topic_spec(topic)).await?;
        self.put_shared_group(topic).await
    }

    async fn put_shared_group(&self, topic: &Topic) -> Result<(), DirectoryError> {
        if needs_shared_group(topic, !self.subscriptions_of(topic.id).is_empty()) {
            self.store.put_group(shared_group(topic.id)).await?;
        }
        Ok(())
    }

    fn find_homes(&self, topics: &[Topic]) {
        for topic in topics {
            self.homes.set(topic.id, topic.settings.storage == Storage::Redis);
        }
    }

    async fn refresh_topic_stages(&self, topic: &Topic, reason: &str, actor: &Actor) -> Result<(), DirectoryError> {
        let mut stages = Vec::new();
        if let Some(id) = &topic.settings.schema_id
            && let Some(schema) = self.schema(id).await?
            && schema.status == SchemaStatus::Approved
        {
            let definition: serde_json::Value = serde_json::from_str(&schema.definition)
                .map_err(|error| DirectoryError::Conflict(format!("schema {id} is not JSON: {error}")))?;
            stages.push(implicit_stage("schema", "json-schema", json!({ "schema": definition })));
        }
        Ok(self.pipelines.set_implicit(Scope::Topic(topic.id), stages, reason, actor).await?)
    }

    async fn refresh_subscription_stages(
        &self,
        subscription: &Subscription,
        reason: &str,
        actor: &Actor,
    ) -> Result<(), DirectoryError> {
        let filter = subscription.settings.filter.as_ref().filter(|filter| **filter != Filter::default());
        let stages = match filter {
            Some(filter) => {
                let config = serde_json::to_value(filter).expect("a filter is plain strings and maps of them");
                vec![implicit_stage("filter", "filter", config)]
            }
            None => Vec::new(),
        };
        let scope = Scope::Subscription(subscription.topic, subscription.id);
        Ok(self.pipelines.set_implicit(scope, stages, reason, actor).await?)
    }
}

fn within(there: usize, at_most: usize, (what, setting): (&str, &str)) -> Result<(), DirectoryError> {
    if there < at_most {
        return Ok(());
    }
    Err(DirectoryError::Full(format!(
        "there are {there} {what}, as many as {setting} allows: delete some, or raise it"
    )))
}

fn check_version(current: u64, expected: Option<u64>) -> Result<(), CatalogError> {
    match expected {
        Some(expected) if expected != current => Err(CatalogError::PreconditionFailed { current }),
        _ => Ok(()),
    }
}

fn no_topic(name: &TopicName) -> DirectoryError {
    DirectoryError::NotFound(format!("there is no topic '{name}'"))
}

fn no_subscription(id: SubscriptionId) -> DirectoryError {
    DirectoryError::NotFound(format!("there is no subscription {id}"))
}

/// A moment as a pause remembers it.
#[must_use]
pub fn paused_by(actor: &Actor, since: Timestamp) -> Pause {
    Pause { reason: format!("paused by {}", actor.user), since }
}
