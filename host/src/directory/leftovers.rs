//! What a change that failed has left, as its undoing failed as well: on a full disk both do. Invariant: catalog, store,
//! pipelines and what everybody sees agree again without a restart; nothing is made while something is there that is not to
//! be. Never decides which change is made.

use tokio::sync::MutexGuard;

use super::specs::{group_spec, shared_group};
use super::{Directory, DirectoryError};
use crate::catalog::model::{Scope, SubscriptionId};
use crate::catalog::{Actor, CatalogError};
use crate::message::{GroupId, TopicId};
use crate::store::SeekTo;

/// Something that is apart from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftover {
    /// A topic that is not to be, and that of its dead letters.
    Topic(TopicId, TopicId),
    /// A subscription that is not to be; a group of the store with it.
    Subscription(SubscriptionId, TopicId, GroupId),
    /// Store and stages may not be what the topic's settings say.
    TopicSettings(TopicId),
    /// Or the subscription's.
    SubscriptionSettings(SubscriptionId),
}

impl Leftover {
    /// It may have the name that the next one wants, and what keeps it from being removed would leave that one, too. Settings
    /// that can't be brought in line are nobody else's trouble, and at most as many as there are topics and subscriptions.
    fn is_in_the_way(self) -> bool {
        matches!(self, Leftover::Topic(..) | Leftover::Subscription(..))
    }
}

impl Directory {
    /// The right to change, one at a time.
    ///
    /// # Errors
    /// What keeps an earlier change from being undone.
    pub(super) async fn edit(&self) -> Result<MutexGuard<'_, Vec<Leftover>>, DirectoryError> {
        let mut left = self.editing.lock().await;
        let mut in_the_way = None;
        for leftover in std::mem::take(&mut *left) {
            match self.mend(leftover).await {
                Ok(()) => tracing::info!(?leftover, "what a failed change had left is mended"),
                Err(error) => {
                    left.push(leftover);
                    in_the_way = in_the_way.or(leftover.is_in_the_way().then_some(error));
                }
            }
        }
        in_the_way.map_or(Ok(left), Err)
    }

    /// Mends what failed changes have left, if there is any.
    pub async fn mend_leftovers(&self) {
        // What fails is tried again, and who asks for a change hears why.
        drop(self.edit().await);
    }

    /// Mends it now, or before the next change.
    pub(super) async fn leave(&self, left: &mut Vec<Leftover>, leftover: Leftover) {
        if let Err(error) = self.mend(leftover).await {
            tracing::warn!(?leftover, %error, "what a change has left could not be mended; trying again");
            if !left.contains(&leftover) {
                left.push(leftover);
            }
        }
    }

    async fn mend(&self, leftover: Leftover) -> Result<(), DirectoryError> {
        let actor = Actor::system();
        match leftover {
            Leftover::Topic(id, dead_letter) => {
                self.pipelines.forget(Scope::Topic(id)).await;
                gone(self.catalog.delete_topic(id, &actor).await)?;
                self.store.delete_topic(id).await?;
                self.store.delete_topic(dead_letter).await?;
            }
            Leftover::Subscription(id, topic, group) => {
                self.pipelines.forget(Scope::Subscription(topic, id)).await;
                gone(self.catalog.delete_subscription(id, &actor).await)?;
                self.remove_group(topic, group).await?;
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

    /// A Queue keeps its messages, and the group that has them.
    pub(super) async fn remove_group(&self, topic: TopicId, group: GroupId) -> Result<(), DirectoryError> {
        if group == GroupId::SHARED {
            return Ok(self.store.put_group(shared_group(topic)).await?);
        }
        Ok(self.store.delete_group(topic, group).await?)
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
    use crate::catalog::model::{Filter, SubscriptionKind, SubscriptionSettings};
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
        directory.mend_leftovers().await;
        assert!(directory.editing.lock().await.is_empty());
        assert_eq!(directory.subscription(made.id).unwrap().settings, made.settings);
    }
}
