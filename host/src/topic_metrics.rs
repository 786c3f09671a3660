//! Figures of topics and groups for Prometheus, read from the store when they are asked for. Invariant: at most
//! `TOPICS_MAX` topics are shown, so labels stay bounded. Never counts by itself: the store does.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::directory::Directory;
use crate::message::GroupId;
use crate::store::{GroupStats, MessageStore};

/// Topics with figures of their own: more would make a scrape slow and a Prometheus unhappy.
const TOPICS_MAX: usize = 1000;

/// Gauges per topic and group.
pub struct TopicMetrics {
    messages: IntGaugeVec,
    bytes: IntGaugeVec,
    scheduled: IntGaugeVec,
    waiting: IntGaugeVec,
    leased: IntGaugeVec,
    retrying: IntGaugeVec,
    dead_letters: IntGaugeVec,
    ended: IntCounterVec,
    /// Topics and groups whose ends are shown. Held while they are brought up to date: two scrapes at once would add the
    /// same ends twice.
    shown: Mutex<HashSet<(String, String)>>,
}

/// How a group is done with a message.
const ENDS: [&str; 3] = ["acked", "dead_lettered", "expired"];

/// How often each of [`ENDS`] came.
fn ends(group: &GroupStats) -> [u64; ENDS.len()] {
    [group.acked_total, group.dead_lettered_total, group.expired_total]
}

impl TopicMetrics {
    /// Registers the gauges.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<TopicMetrics> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let ended = IntCounterVec::new(
            Opts::new(
                "sluice_group_ended_messages_total",
                "Messages that the group is done with, by how: acked, dead_lettered, expired (by expiresAt or retention).",
            ),
            &["topic", "group", "end"],
        )?;
        registry.register(Box::new(ended.clone()))?;
        Ok(TopicMetrics {
            ended,
            shown: Mutex::default(),
            messages: gauge("sluice_topic_messages", "Messages in the topic's log.", &["topic"])?,
            bytes: gauge("sluice_topic_size_bytes", "Bytes of the topic's log on disk.", &["topic"])?,
            scheduled: gauge("sluice_topic_scheduled_messages", "Messages that wait until they are due.", &["topic"])?,
            waiting: gauge("sluice_group_waiting_messages", "Messages that wait for the group.", &["topic", "group"])?,
            leased: gauge("sluice_group_leased_messages", "Messages that the group holds.", &["topic", "group"])?,
            retrying: gauge(
                "sluice_group_retrying_messages",
                "Messages that wait for the group's next attempt.",
                &["topic", "group"],
            )?,
            dead_letters: gauge("sluice_topic_dead_letters", "Dead letters on the topic's list.", &["topic"])?,
        })
    }

    /// Reads the figures of now.
    pub async fn refresh(&self, directory: &Directory, store: &dyn MessageStore) {
        let gauges = [&self.messages, &self.bytes, &self.scheduled, &self.waiting, &self.leased, &self.retrying];
        // Topics and groups that are gone must not be shown for ever.
        gauges.into_iter().chain([&self.dead_letters]).for_each(IntGaugeVec::reset);
        let mut groups = HashMap::new();
        for topic in directory.topics().into_iter().take(TOPICS_MAX) {
            let name = topic.name.as_str();
            let Ok(stats) = store.stats(topic.id).await else { continue };
            set(&self.messages, &[name], stats.messages);
            set(&self.bytes, &[name], stats.bytes);
            set(&self.scheduled, &[name], stats.scheduled);
            let subscriptions = directory.subscriptions_of(topic.id);
            for group in &stats.groups {
                let known = subscriptions.iter().find(|subscription| subscription.group == group.group);
                let labels = [name, known.map_or("", |subscription| &*subscription.consumer_group)];
                set(&self.waiting, &labels, group.waiting);
                set(&self.leased, &labels, group.leased);
                set(&self.retrying, &labels, group.retrying);
                groups.insert((labels[0].to_owned(), labels[1].to_owned()), ends(group));
            }
            if let Some(dead_letter) = topic.dead_letter
                && let Ok(stats) = store.stats(dead_letter).await
            {
                let listed = stats.groups.iter().find(|group| group.group == GroupId::SHARED);
                set(&self.dead_letters, &[name], listed.map_or(0, |group| group.waiting));
            }
        }
        self.count_ends(groups);
    }

    /// The store's totals as counters: raised to them, never set back in between, which a scrape would take for a restart.
    fn count_ends(&self, groups: HashMap<(String, String), [u64; ENDS.len()]>) {
        let mut shown = self.shown.lock();
        for ((topic, group), totals) in &groups {
            for (end, total) in ENDS.iter().zip(totals) {
                let counter = self.ended.with_label_values(&[topic.as_str(), group, end]);
                // Less than before: another group of the same name.
                if counter.get() > *total {
                    counter.reset();
                }
                counter.inc_by(total.saturating_sub(counter.get()));
            }
        }
        for (topic, group) in shown.iter().filter(|known| !groups.contains_key(*known)) {
            for end in ENDS {
                // An error says that it is not there, which is what is wanted.
                let _ = self.ended.remove_label_values(&[topic.as_str(), group, end]);
            }
        }
        *shown = groups.into_keys().collect();
    }
}

fn set(gauge: &IntGaugeVec, labels: &[&str], value: u64) {
    gauge.with_label_values(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}
