//! The directory's state at one moment, shared by all who read it. Invariant: a snapshot is whole and never changes; the
//! next one shares with it all that is the same, so that a change costs what it touches and not what there is. Never reads
//! the catalog.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash};
use std::sync::Arc;

use crate::catalog::model::{Scope, Subscription, SubscriptionId, Topic};
use crate::message::{TopicId, TopicName};

/// Of ten thousand entries, a change copies some forty.
const SHARDS: usize = 256;

/// Topics and subscriptions by what they are asked for.
#[derive(Clone, Default)]
pub(super) struct Snapshot {
    pub(super) topics: Shards<TopicName, Arc<Topic>>,
    pub(super) by_id: Shards<TopicId, Arc<Topic>>,
    pub(super) subscriptions: Shards<SubscriptionId, Arc<Subscription>>,
    /// Oldest first.
    by_topic: Shards<TopicId, Arc<Vec<Arc<Subscription>>>>,
}

impl Snapshot {
    /// The subscriptions of a topic, oldest first.
    pub(super) fn of_topic(&self, topic: TopicId) -> &[Arc<Subscription>] {
        self.by_topic.get(&topic).map_or(&[], |all| all.as_slice())
    }

    /// Adds a topic, or puts it in the place of its state of before.
    pub(super) fn put_topic(&mut self, topic: Topic) {
        let topic = Arc::new(topic);
        self.topics.insert(topic.name.clone(), Arc::clone(&topic));
        self.by_id.insert(topic.id, topic);
    }

    /// Takes a topic out, and its subscriptions.
    pub(super) fn remove_topic(&mut self, id: TopicId) {
        for subscription in self.by_topic.remove(&id).iter().flat_map(|all| all.iter()) {
            self.subscriptions.remove(&subscription.id);
        }
        if let Some(topic) = self.by_id.remove(&id) {
            self.topics.remove(&topic.name);
        }
    }

    /// Adds a subscription as the newest of its topic, or puts it in the place of its state of before.
    pub(super) fn put_subscription(&mut self, subscription: Subscription) {
        let subscription = Arc::new(subscription);
        self.of_topic_mut(subscription.topic, |all| match all.iter_mut().find(|known| known.id == subscription.id) {
            Some(known) => *known = Arc::clone(&subscription),
            None => all.push(Arc::clone(&subscription)),
        });
        self.subscriptions.insert(subscription.id, subscription);
    }

    /// Takes a subscription out.
    pub(super) fn remove_subscription(&mut self, subscription: &Subscription) {
        self.of_topic_mut(subscription.topic, |all| all.retain(|known| known.id != subscription.id));
        self.subscriptions.remove(&subscription.id);
    }

    /// Has `change` make this snapshot one of these topics and subscriptions, if it is not yet; what is gone, by its scope.
    pub(super) fn changed_to(
        &self,
        topics: Vec<Topic>,
        subscriptions: Vec<Subscription>,
        change: impl FnOnce(&dyn Fn(&mut Snapshot)),
    ) -> Vec<Scope> {
        let there: HashSet<TopicId> = topics.iter().map(|topic| topic.id).collect();
        let subscribed: HashSet<SubscriptionId> = subscriptions.iter().map(|subscription| subscription.id).collect();
        let gone: Vec<Arc<Topic>> = self.by_id.values().filter(|topic| !there.contains(&topic.id)).cloned().collect();
        let left: Vec<Arc<Subscription>> =
            self.subscriptions.values().filter(|known| !subscribed.contains(&known.id)).cloned().collect();
        let other_topics: Vec<Topic> = topics
            .into_iter()
            .filter(|topic| self.by_id.get(&topic.id).is_none_or(|known| **known != *topic))
            .collect();
        let others: Vec<Subscription> = subscriptions
            .into_iter()
            .filter(|one| self.subscriptions.get(&one.id).is_none_or(|known| **known != *one))
            .collect();
        if !(gone.is_empty() && left.is_empty() && other_topics.is_empty() && others.is_empty()) {
            change(&|snapshot| {
                left.iter().for_each(|subscription| snapshot.remove_subscription(subscription));
                gone.iter().for_each(|topic| snapshot.remove_topic(topic.id));
                other_topics.iter().for_each(|topic| snapshot.put_topic(topic.clone()));
                others.iter().for_each(|subscription| snapshot.put_subscription(subscription.clone()));
            });
        }
        let topics = gone.iter().map(|topic| Scope::Topic(topic.id));
        topics.chain(left.iter().map(|one| Scope::Subscription(one.topic, one.id))).collect()
    }

    fn of_topic_mut(&mut self, topic: TopicId, change: impl FnOnce(&mut Vec<Arc<Subscription>>)) {
        let mut all = self.by_topic.get(&topic).cloned().unwrap_or_default();
        change(Arc::make_mut(&mut all));
        if all.is_empty() {
            self.by_topic.remove(&topic);
        } else {
            self.by_topic.insert(topic, all);
        }
    }
}

/// A map in parts, of which a copy shares those that it does not change.
#[derive(Clone)]
pub(super) struct Shards<K, V> {
    parts: Vec<Arc<HashMap<K, V>>>,
    hasher: RandomState,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Shards<K, V> {
        Shards { parts: (0..SHARDS).map(|_| Arc::default()).collect(), hasher: RandomState::new(), len: 0 }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    fn part(&self, key: &K) -> usize {
        // The remainder is below `SHARDS`, so it fits.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.parts[self.part(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        let part = self.part(&key);
        self.len += usize::from(Arc::make_mut(&mut self.parts[part]).insert(key, value).is_none());
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let part = self.part(key);
        let removed = Arc::make_mut(&mut self.parts[part]).remove(key);
        self.len -= usize::from(removed.is_some());
        removed
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(|part| part.values())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_copy_changes_alone_and_both_hold_what_maps_hold(
            before in proptest::collection::vec((0_u16..600, any::<bool>()), 0..400),
            after in proptest::collection::vec((0_u16..600, any::<bool>()), 0..400),
        ) {
            let (mut shards, mut map) = (Shards::default(), BTreeMap::new());
            change(&mut shards, &mut map, &before);
            let (mut copy, mut copy_map) = (shards.clone(), map.clone());
            change(&mut copy, &mut copy_map, &after);
            for (shards, map) in [(shards, map), (copy, copy_map)] {
                prop_assert_eq!(shards.len(), map.len());
                prop_assert!((0..600).all(|key| shards.get(&key) == map.get(&key)));
                let mut values: Vec<usize> = shards.values().copied().collect();
                values.sort_unstable();
                let mut expected: Vec<usize> = map.values().copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(values, expected);
            }
        }
    }

    fn change(shards: &mut Shards<u16, usize>, map: &mut BTreeMap<u16, usize>, changes: &[(u16, bool)]) {
        for (nth, (key, stays)) in changes.iter().enumerate() {
            if *stays {
                shards.insert(*key, nth);
                map.insert(*key, nth);
            } else {
                assert_eq!(shards.remove(key), map.remove(key));
            }
        }
    }
}
