//! What a change that failed has left, as its undoing failed as well: on a full disk both do. Invariant: store and stages are
//! brought in line with what everybody sees without a restart; nothing is made while something is there that is not to be.
//! Never decides which change is made.

use tokio::sync::MutexGuard;

use super::specs::{group_spec, shared_group};
use super::{Directory, DirectoryError};
use crate::catalog::model::{Scope, SubscriptionId};
use crate::catalog::{Actor, CatalogError};
use crate::message::{GroupId, TopicId};
use crate::store::{SeekTo, StoreError};

/// Something that is apart from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftover {
    /// A topic that is not to be, and that of its dead letters.
    Topic(TopicId, TopicId),
    /// A subscription that is not to be; a group of the store with it.
    Subscription(SubscriptionId, TopicId, GroupId),
    /// What a store has of a topic that is gone.
    InStore(TopicId, TopicId),
    /// Of a subscription that is gone.
    GroupInStore(TopicId, GroupId),
    /// Its store was away when it was to be changed: it, or a group of it, may not be there.
    TopicAndGroups(TopicId),
    /// Store and stages may not be what the topic's settings say.
    TopicSettings(TopicId),
    /// Or the subscription's.
    SubscriptionSettings(SubscriptionId),
}

impl Leftover {
    /// It may hold what the next one wants: a name. What a store has goes by numbers, which are given once: Redis, that may be away for
    /// long, keeps no other topic from being made.
    fn is_in_the_way(self) -> bool {
        matches!(self, Leftover::Topic(..) | Leftover::Subscription(..))
    }
}

/// The right to change, one at a time.
pub(super) struct Edit<'a> {
    directory: &'a Directory,
    left: MutexGuard<'a, Vec<Leftover>>,
    in_the_way: Option<DirectoryError>,
    /// Why what other brokers have changed is not known here.
    stale: Option<DirectoryError>,
}

impl Directory {
    /// The right to change.
    pub(super) async fn edit(&self) -> Edit<'_> {
        let mut edit = Edit { directory: self, left: self.editing.lock().await, in_the_way: None, stale: None };
        if self.is_shared {
            edit.stale = self.follow().await.err();
        }
        let mended = edit.mend(Leftover::is_in_the_way).await;
        // What is left of it may not be any more.
        edit.in_the_way = mended.err().filter(|_| edit.left.iter().any(|leftover| leftover.is_in_the_way()));
        edit
    }

    /// Mends what failed changes have left, if there is any.
    ///
    /// # Errors
    /// Why something is left still.
    pub async fn mend_leftovers(&self) -> Result<(), DirectoryError> {
        let mut edit = Edit { directory: self, left: self.editing.lock().await, in_the_way: None, stale: None };
        if self.is_shared && !edit.left.is_empty() {
            // A queue's group may have a new subscription by now, that another broker has made.
            self.follow().await?;
        }
        edit.mend(|_| true).await
    }

    /// Mends it, or says what is left of it, and why.
    async fn mend(&self, leftover: Leftover) -> Result<(), (Leftover, DirectoryError)> {
        let left = match leftover {
            Leftover::Topic(id, dead_letter) => {
                self.pipelines.forget(Scope::Topic(id)).await;
                let gone = gone(self.catalog.delete_topic(id, &Actor::system()).await);
                gone.map_err(|error| (leftover, error.into()))?;
                Leftover::InStore(id, dead_letter)
            }
            Leftover::Subscription(id, topic, group) => {
                self.pipelines.forget(Scope::Subscription(topic, id)).await;
                let gone = gone(self.catalog.delete_subscription(id, &Actor::system()).await);
                gone.map_err(|error| (leftover, error.into()))?;
                Leftover::GroupInStore(topic, group)
            }
            other => other,
        };
        self.mend_rest(left).await.map_err(|error| (left, error))
    }

    async fn mend_rest(&self, leftover: Leftover) -> Result<(), DirectoryError> {
        let actor = Actor::system();
        match leftover {
            Leftover::Topic(..) | Leftover::Subscription(..) => {}
            Leftover::InStore(topic, dead_letter) => {
                self.store.delete_topic(topic).await?;
                self.store.delete_topic(dead_letter).await?;
            }
            Leftover::GroupInStore(topic, group) => match self.remove_group(topic, group).await {
                Ok(()) | Err(StoreError::NoTopic) => {}
                Err(error) => return Err(error.into()),
            },
            Leftover::TopicAndGroups(id) => {
                let Some(topic) = self.topic_by_id(id) else { return Ok(()) };
                self.reconcile_in_store(&topic).await?;
            }
            Leftover::TopicSettings(id) => {
                let Some(topic) = self.topic_by_id(id) else { return Ok(()) };
                self.put_into_store(&topic).await?;
                self.refresh_topic_stages(&topic, "change of the topic failed", &actor).await?;
            }
            Leftover::SubscriptionSettings(id) => {
                let Some(subscription) = self.subscription(id) else { return Ok(()) };
                self.store.put_group(group_spec(&subscription, SeekTo::Latest)).await?;
                let reason = "change of the subscription failed";
                self.refresh_subscription_stages(&subscription, reason, &actor).await?;
            }
        }
        Ok(())
    }
}

impl Directory {
    /// A Queue keeps its messages, and the group that has them, for the subscription that it may have by now.
    async fn remove_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        if group != GroupId::SHARED {
            return self.store.delete_group(topic, group).await;
        }
        let known = self.subscriptions_of(topic).first().map(|subscription| group_spec(subscription, SeekTo::Latest));
        self.store.put_group(known.unwrap_or_else(|| shared_group(topic))).await
    }
}

impl Edit<'_> {
    /// For a change that makes something.
    ///
    /// # Errors
    /// Why something is still there that is not to be.
    pub(super) fn making(self) -> Result<Self, DirectoryError> {
        let mut edit = self.current()?;
        match edit.in_the_way.take() {
            Some(error) => Err(error),
            None => Ok(edit),
        }
    }

    /// To decide on what there is now, whoever has made it.
    pub(super) fn current(mut self) -> Result<Self, DirectoryError> {
        match self.stale.take() {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }

    /// Mends it now, or later.
    pub(super) async fn leave(&mut self, leftover: Leftover) {
        if let Err((left, error)) = self.directory.mend(leftover).await {
            tracing::warn!(?left, %error, "what a change has left could not be mended; trying again");
            if !self.left.contains(&left) {
                self.left.push(left);
            }
        }
    }

    async fn mend(&mut self, which: impl Fn(Leftover) -> bool) -> Result<(), DirectoryError> {
        let mut mended = Ok(());
        for leftover in std::mem::take(&mut *self.left) {
            if !which(leftover) {
                self.left.push(leftover);
                continue;
            }
            match self.directory.mend(leftover).await {
                Ok(()) => tracing::info!(?leftover, "what a failed change had left is mended"),
                Err((left, error)) => {
                    self.left.push(left);
                    mended = mended.and(Err(error));
                }
            }
        }
        mended
    }
}

/// What was never there is gone as well.
fn gone(deleted: Result<(), CatalogError>) -> Result<(), CatalogError> {
    match deleted {
        Err(CatalogError::NotFound(_)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sqlx::Connection as _;

    use super::super::NewSubscription;
    use super::*;
    use crate::broker::Broker;
    use crate::catalog::model::{Filter, SubscriptionKind, SubscriptionSettings, TopicKind, TopicSettings};
    use crate::config::Config;
    use crate::delivery::push::signature::Scheme;

    /// Stage revisions can't be written, and subscriptions not be removed, as on a disk that fills in between.
    const CRAMP: &str = "CREATE TRIGGER a BEFORE INSERT ON pipeline_revisions BEGIN SELECT RAISE(ABORT, 'full'); END; \
                         CREATE TRIGGER b BEFORE DELETE ON subscriptions BEGIN SELECT RAISE(ABORT, 'full'); END;";

    #[tokio::test]
    async fn what_cannot_be_undone_is_undone_before_the_next_change() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { data_dir: root.path().join("data"), ..crate::config::tests::development() };
        let broker = Broker::open(config).await.unwrap();
        let directory = Arc::clone(&broker.directory);
        let settings = crate::publish::tests::topic("orders").settings;
        let settings =
            crate::catalog::model::TopicSettings { kind: crate::catalog::model::TopicKind::PubSub, ..settings };
        let topic = directory.create_topic("orders".parse().unwrap(), settings, &Actor::system()).await.unwrap();
        let new = |group: &str, query: Option<&str>| {
            let filter = Filter { payload_query: query.map(str::to_owned), ..Filter::default() };
            let settings =
                SubscriptionSettings { filter: Some(filter), ..SubscriptionSettings::new(SubscriptionKind::Pull) };
            let (topic, consumer_group) = (Arc::clone(&topic), group.into());
            NewSubscription { topic, consumer_group, settings, signature: Scheme::Hmac, start: SeekTo::Latest }
        };
        let path = root.path().join("data/catalog.db");
        let mut sqlite = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
        let mut sql = async |text: &'static str| sqlx::raw_sql(text).execute(&mut sqlite).await.map(drop).unwrap();

        sql(CRAMP).await;
        directory.create_subscription(new("g", Some("$.a")), &Actor::system()).await.unwrap_err();
        assert_eq!(broker.catalog.subscriptions().await.unwrap().len(), 1, "what is tested: it is half made");
        assert!(directory.subscriptions().is_empty());
        directory.create_subscription(new("h", None), &Actor::system()).await.unwrap_err();
        assert_eq!(broker.catalog.subscriptions().await.unwrap().len(), 1, "no second one");
        let described = TopicSettings { description: "as before".to_owned(), ..topic.settings.clone() };
        directory.update_topic(&topic.name, described, None, &Actor::system()).await.unwrap();
        sql("DROP TRIGGER a; DROP TRIGGER b;").await;
        let made = directory.create_subscription(new("g", Some("$.a")), &Actor::system()).await.unwrap();
        let listed: Vec<SubscriptionId> =
            broker.catalog.subscriptions().await.unwrap().into_iter().map(|one| one.id).collect();
        assert_eq!(listed, [made.id]);
        assert_eq!(broker.store.groups(topic.id).await.unwrap(), [made.group]);

        // A change of stages that can be neither made nor taken back.
        sql(CRAMP).await;
        let changed = new("g", Some("$.b")).settings;
        directory.update_subscription(made.id, changed, None, &Actor::system()).await.unwrap_err();
        directory.create_subscription(new("h", None), &Actor::system()).await.unwrap();
        sql("DROP TRIGGER a; DROP TRIGGER b;").await;
        directory.mend_leftovers().await.unwrap();
        assert!(directory.editing.lock().await.is_empty());
        assert_eq!(directory.subscription(made.id).unwrap().settings, made.settings);
    }

    #[tokio::test]
    async fn a_subscription_of_a_queue_that_was_deleted_meanwhile_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { data_dir: root.path().join("data"), ..crate::config::tests::development() };
        let broker = Broker::open(config).await.unwrap();
        let (directory, actor) = (Arc::clone(&broker.directory), Actor::system());
        let settings = TopicSettings { kind: TopicKind::Queue, ..crate::publish::tests::topic("jobs").settings };
        let topic = directory.create_topic("jobs".parse().unwrap(), settings.clone(), &actor).await.unwrap();
        directory.delete_topic(&topic.name, (false, None), &actor).await.unwrap();
        let gone = Leftover::Subscription(SubscriptionId(uuid::Uuid::from_u128(7)), topic.id, GroupId::SHARED);
        directory.mend(gone).await.unwrap();
        let (settings_of, group) = (SubscriptionSettings::new(SubscriptionKind::Pull), "g".into());
        let new = NewSubscription {
            topic,
            consumer_group: group,
            settings: settings_of,
            signature: Scheme::Hmac,
            start: SeekTo::Latest,
        };
        let refused = directory.create_subscription(new, &actor).await.unwrap_err();
        assert!(matches!(refused, DirectoryError::NotFound(_)), "{refused}");
        directory.create_topic("jobs".parse().unwrap(), settings, &actor).await.unwrap();
    }
}
