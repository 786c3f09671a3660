//! The directory in step with what it is about: with the catalog that other brokers change, and at start the store with it.
//! Invariant: the catalog decides. Never changes it, but for stages that are brought up to date.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::leftovers::Leftover;
use super::specs::group_spec;
use super::{Directory, DirectoryError};
use crate::catalog::Actor;
use crate::catalog::model::{Storage, Topic};
use crate::message::{GroupId, TopicId};
use crate::store::SeekTo;

/// Longer than a catalog takes to answer; a change that is made here meanwhile may take longer.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

impl Directory {
    /// Takes over what other brokers have changed; the version of the catalog that this is the state of then.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn catch_up(&self) -> Result<u64, DirectoryError> {
        let version = self.catalog.version().await?;
        if version != self.followed.load(Ordering::Acquire) {
            let _one_at_a_time = self.editing.lock().await;
            self.follow().await?;
        }
        Ok(self.followed.load(Ordering::Acquire))
    }

    /// The same for a batch that the store refuses as outdated: another broker has stored on a revision that may not be heard of here yet.
    /// Whether all is known now that was changed before; where that takes long, messages do not wait for it.
    pub async fn hear_of_changes(self: &Arc<Self>) -> bool {
        if !self.is_shared {
            return true; // What is outdated was changed here, where it holds at once.
        }
        let directory = Arc::clone(self);
        // Carried to its end, whoever gives up.
        let hearing = tokio::spawn(async move { directory.catch_up().await });
        match tokio::time::timeout(HEARD_WITHIN, hearing).await {
            Ok(Ok(Ok(_))) => return true,
            Ok(Ok(Err(error))) => tracing::debug!(%error, "what other brokers have changed is not known yet"),
            Ok(Err(error)) => tracing::error!(%error, "what other brokers have changed is not known"),
            Err(_) => tracing::debug!("a change under way keeps those of other brokers from being known"),
        }
        false
    }

    /// Under `editing`, or before anybody sees the directory.
    pub(super) async fn follow(&self) -> Result<(), DirectoryError> {
        // Asked before the rest is read: what changes meanwhile is another version.
        let version = self.catalog.version().await?;
        if version == self.followed.load(Ordering::Acquire) && version != 0 {
            return Ok(());
        }
        let taken_over = if self.is_shared { self.pipelines.take_over().await } else { Ok(()) };
        let (topics, subscriptions) = (self.catalog.topics().await?, self.catalog.subscriptions().await?);
        self.find_homes(&topics);
        if self.is_shared && topics.iter().any(|topic| self.topic_by_id(topic.id).is_none()) {
            // Whoever sees it here may wait for its messages here.
            self.store.topics().await?;
        }
        for scope in self.current.load_full().changed_to(topics, subscriptions, |change| self.change(change)) {
            self.pipelines.forget(scope).await;
        }
        taken_over?;
        self.followed.store(version, Ordering::Release);
        Ok(())
    }

    /// The catalog decides: what it does not know goes, what the store lacks is made.
    pub(super) async fn reconcile(&self) -> Result<(), DirectoryError> {
        let snapshot = self.current.load_full();
        let mut stored: HashSet<TopicId> = self.store.topics().await?.into_iter().collect();
        if self.is_shared {
            // Another broker may be about to make it, and writes the catalog last.
            stored.clear();
        }
        for stray in stored.iter().filter(|id| snapshot.by_id.get(id).is_none()) {
            tracing::warn!(topic = stray.0, "removing a topic that the catalog does not know");
            self.store.delete_topic(*stray).await?;
        }
        // Dead-letter topics first: the others name them.
        let mut topics: Vec<_> = snapshot.by_id.values().cloned().collect();
        topics.sort_by_key(|topic| topic.dead_letter.is_some());
        for topic in topics {
            if let Err(error) = self.reconcile_in_store(&topic).await {
                // A broker starts without the Redis that some of its topics are in; they are made there when it is back.
                if topic.settings.storage == Storage::Default || !is_passing(&error) {
                    return Err(error);
                }
                tracing::warn!(topic = topic.name.as_str(), %error, "the topic is not in Redis yet; it is made there later");
                self.editing.lock().await.push(Leftover::TopicAndGroups(topic.id));
            }
            self.refresh_group_stages(&topic).await;
            let refreshed = self.refresh_topic_stages(&topic, "broker started", &Actor::system()).await;
            stages_stay(topic.name.as_str(), refreshed);
        }
        Ok(())
    }

    /// Removes what crashed brokers have left in a shared store without the catalog knowing it. What is seen for the first time may
    /// be about to be listed by another broker: it is removed if it is there at the next call, which has to come later than a
    /// change takes.
    ///
    /// # Errors
    /// When catalog or store fail.
    pub async fn sweep_strays(&self) -> Result<(), DirectoryError> {
        if !self.is_shared {
            return Ok(());
        }
        // Read before the catalog: what is listed by then is none.
        let mut stored = Vec::new();
        for topic in self.store.topics().await? {
            stored.push((topic, self.store.groups(topic).await?));
        }
        self.catch_up().await?;
        let mut strays = HashSet::new();
        for (topic, groups) in stored {
            if self.topic_by_id(topic).is_none() {
                strays.insert((topic, None));
                continue;
            }
            let known = self.subscriptions_of(topic);
            let is_stray = |group: &GroupId| *group != GroupId::SHARED && known.iter().all(|one| one.group != *group);
            strays.extend(groups.into_iter().filter(is_stray).map(|group| (topic, Some(group))));
        }
        let before = std::mem::replace(&mut *self.strays.lock(), strays.clone());
        for stray in strays.intersection(&before) {
            tracing::warn!(topic = stray.0.0, group = ?stray.1, "removing what the catalog does not know");
            match stray {
                (topic, None) => self.store.delete_topic(*topic).await?,
                (topic, Some(group)) => self.store.delete_group(*topic, *group).await?,
            }
        }
        Ok(())
    }

    /// The topic and its groups, as the catalog has them.
    pub(super) async fn reconcile_in_store(&self, topic: &Topic) -> Result<(), DirectoryError> {
        self.put_into_store(topic).await?;
        let subscriptions = self.subscriptions_of(topic.id);
        for stray in self.store.groups(topic.id).await? {
            if stray != GroupId::SHARED && !self.is_shared && !subscriptions.iter().any(|known| known.group == stray) {
                self.store.delete_group(topic.id, stray).await?;
            }
        }
        // A group that a Redis has lost had what came since it was emptied coming to it.
        let start = if topic.settings.storage == Storage::Redis { SeekTo::Earliest } else { SeekTo::Latest };
        for subscription in subscriptions {
            self.store.put_group(group_spec(&subscription, start)).await?;
        }
        Ok(())
    }

    async fn refresh_group_stages(&self, topic: &Topic) {
        for subscription in self.subscriptions_of(topic.id) {
            let refreshed = self.refresh_subscription_stages(&subscription, "broker started", &Actor::system()).await;
            stages_stay(&subscription.consumer_group, refreshed);
        }
    }
}

/// Whether the store may do it later.
fn is_passing(error: &DirectoryError) -> bool {
    matches!(error, DirectoryError::Store(error) if error.is_retryable())
}

/// A stage that cannot be made must not keep a broker from starting: what ran before the stop runs on.
fn stages_stay(whose: &str, refreshed: Result<(), DirectoryError>) {
    if let Err(error) = refreshed {
        tracing::error!(whose, %error, "its stages could not be brought up to date; those of before stay");
    }
}
