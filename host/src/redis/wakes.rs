//! What brokers tell each other through a channel: that a topic has something new, that the catalog was changed. Invariant: it is
//! told after the commit, and nobody relies on it: who does not hear looks as often as without Redis. Each broker publishes at
//! most every few milliseconds, whatever happened meanwhile at once. Tells names of topics' numbers, never what is in them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{PushInfo, PushKind, Value, cmd};

use super::Redis;
use crate::fleet::Fleet;
use crate::message::TopicId;
use crate::store::postgres::PostgresStore;
use crate::store::redis::RedisStore;

/// What lies between two publishes of a broker at least.
const TELL_EVERY: Duration = Duration::from_millis(5);
/// How long a publish may take. Nobody waits for it but what comes after it.
const TELL_MAX: Duration = Duration::from_secs(1);
/// Topics in one publish at most; a fleet has at most 10 000 unless it was told. The rest is found by looking.
const TOPICS_MAX: usize = 10_000;

/// Who hears of what others tell.
pub(super) struct Ears {
    pub(super) fleet: Arc<Fleet>,
    pub(super) store: Arc<PostgresStore>,
    pub(super) streams: Arc<RedisStore>,
}

/// What one broker tells the others.
#[derive(Debug, Default, PartialEq, Eq)]
struct Word {
    catalog: bool,
    topics: BTreeSet<u32>,
}

impl Word {
    /// `INSTANCE c t 1 2 3`; what is not known is passed over, so that later versions can tell more.
    fn text(&self, instance: &str) -> String {
        let mut text = instance.to_owned();
        if self.catalog {
            text.push_str(" c");
        }
        if !self.topics.is_empty() {
            text.push_str(" t");
        }
        for topic in &self.topics {
            // A String takes everything.
            let _ = write!(text, " {topic}");
        }
        text
    }

    /// What another broker has told; none: it was this one.
    fn read(text: &str, instance: &str) -> Option<Word> {
        let mut parts = text.split(' ');
        if parts.next()? == instance {
            return None;
        }
        let (mut word, mut in_topics) = (Word::default(), false);
        for part in parts {
            match part {
                "c" => word.catalog = true,
                "t" => in_topics = true,
                number if in_topics => {
                    word.topics.extend(number.parse::<u32>().ok().filter(|_| word.topics.len() < TOPICS_MAX))
                }
                _ => {}
            }
        }
        Some(word)
    }
}

impl Redis {
    /// There is something new in a topic: the others are told before long. Never waits.
    pub fn tell_of(&self, topic: TopicId) {
        if !self.helps() {
            return;
        }
        let mut topics = self.0.to_tell.lock();
        if topics.len() < TOPICS_MAX && topics.insert(topic.0) {
            drop(topics);
            self.0.has_to_tell.notify_one();
        }
    }

    /// Tells what there is to tell, as long as it is polled.
    pub(super) async fn keep_telling(&self, fleet: &Fleet) {
        loop {
            let catalog = tokio::select! {
                () = fleet.has_changed() => true,
                () = self.0.has_to_tell.notified() => false,
            };
            let topics = std::mem::take(&mut *self.0.to_tell.lock());
            if !catalog && topics.is_empty() {
                continue;
            }
            let told = topics.len() as u64;
            let mut publish = cmd("PUBLISH");
            publish.arg(&self.0.channel).arg(Word { catalog, topics }.text(&self.0.instance));
            // Who does not hear looks.
            if self.call::<i64>(&publish, TELL_MAX).await.is_ok() {
                self.0.metrics.told.inc_by(told);
            }
            tokio::time::sleep(TELL_EVERY).await;
        }
    }

    /// Hears what the server sends by itself. Called by the connection's task: never waits.
    pub(super) fn hear(&self, info: &PushInfo) {
        match info.kind {
            PushKind::Message => {}
            PushKind::Disconnection => return self.0.doubt.notify_one(),
            _ => return,
        }
        let Some(Value::BulkString(payload)) = info.data.get(1) else { return };
        let Ok(text) = std::str::from_utf8(payload) else { return };
        let (Some(ears), Some(word)) = (self.0.ears.get(), Word::read(text, &self.0.instance)) else { return };
        if word.catalog {
            self.0.metrics.changes.inc();
            ears.fleet.look_now();
        }
        for topic in word.topics {
            // A topic is in one of them.
            if ears.store.hear_of(TopicId(topic)) || ears.streams.hear_of(TopicId(topic)) {
                self.0.metrics.heard.inc();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_by_the_others_and_what_is_not_known_is_passed_over() {
        for word in [
            Word { catalog: true, topics: BTreeSet::new() },
            Word { catalog: false, topics: [1, 70_000].into() },
            Word { catalog: true, topics: [4].into() },
        ] {
            let text = word.text("me");
            assert_eq!(Word::read(&text, "me"), None);
            assert_eq!(Word::read(&text, "you"), Some(word), "{text}");
        }
        let later = Word { catalog: true, topics: [7].into() };
        assert_eq!(Word::read("me later=1 c t 7 x", "you"), Some(later));
        assert_eq!(Word::read("", "you"), Some(Word::default()));
    }
}
