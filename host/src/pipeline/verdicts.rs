//! What a plugin's stages make of messages, told to those who follow while it happens. Invariant: with no follower a batch pays
//! for one look at a number; with some, only so many messages a second are told, the others are counted, and nobody waits.
//! Tells of live traffic alone: a copy that a version is tried on is no verdict.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use crate::clock::Timestamp;
use crate::message::TopicName;

use super::draft::{PayloadFault, Verdict};
use super::followers::{Followers, Reaches};
use super::plugin_log::Speaker;
use super::rollout::compare::{self, Made};

/// Messages of one stage that are told a second: more than anybody reads, and few enough that copying them costs nothing.
pub const TOLD_PER_SECOND_MAX: u64 = 50;
/// Verdicts that a follower may be behind; with what is held of each, some 16 MiB of one who reads nothing.
const FOLLOWED_MAX: usize = 128;
/// Payload bytes before and after from which on what a stage changed is not held.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// What a stage made of one message.
#[derive(Debug, Clone)]
pub struct Told {
    /// When.
    pub at: Timestamp,
    /// The messages' topic.
    pub topic: TopicName,
    /// The plugin's version and the stage.
    pub from: Arc<Speaker>,
    /// The message as it came, and what became of it. Payloads are left out where they are large.
    pub before: Arc<Made>,
    /// See `before`.
    pub after: Arc<Made>,
    /// What is wrong with it, where it was rejected.
    pub faults: Vec<PayloadFault>,
    /// Whether payloads were left out.
    pub cut: bool,
}

impl Told {
    /// Of a message that came as `before` says and that `verdict` ended, unless it goes on.
    #[must_use]
    pub fn new(
        (at, topic, from): (Timestamp, TopicName, Arc<Speaker>),
        mut before: Made,
        mut after: Made,
        verdict: &Verdict,
    ) -> Told {
        let faults = match verdict {
            Verdict::Reject(rejection) => rejection.faults.clone(),
            _ => Vec::new(),
        };
        let emitted: usize = after.emitted.iter().map(|emitted| emitted.payload.len()).sum();
        let cut = before.draft.payload.len() + after.draft.payload.len() + emitted > HELD_BYTES_MAX;
        if cut {
            for made in [&mut before, &mut after] {
                made.draft.payload = Bytes::new();
                made.emitted.iter_mut().for_each(|emitted| emitted.payload = Bytes::new());
            }
        } else {
            // Payloads are slices of whole requests, which a slow follower would keep alive.
            for made in [&mut before, &mut after] {
                let emitted = made.emitted.iter_mut().map(|emitted| &mut emitted.payload);
                for payload in std::iter::once(&mut made.draft.payload).chain(emitted) {
                    *payload = Bytes::copy_from_slice(payload);
                }
            }
        }
        Told { at, topic, from, before: Arc::new(before), after: Arc::new(after), faults, cut }
    }

    /// What leads from the message as it came to what goes on, as RFC 6902 has it; none where nothing changed, or where it
    /// would be too large.
    #[must_use]
    pub fn patch(&self) -> Option<Value> {
        let patch = if self.cut { None } else { compare::patch(&self.before, &self.after) };
        patch.filter(|patch| patch.as_array().is_none_or(|operations| !operations.is_empty()))
    }
}

/// How much of what one stage makes of messages was told in this second.
#[derive(Debug, Default)]
pub struct Pace(Mutex<(i64, u64)>);

impl Pace {
    /// How many of `wanted` may be told now.
    fn room_for(&self, wanted: u64, now: Timestamp) -> u64 {
        let mut pace = self.0.lock();
        if pace.0 != now.0 / 1000 {
            *pace = (now.0 / 1000, 0);
        }
        let room = wanted.min(TOLD_PER_SECOND_MAX - pace.1);
        pace.1 += room;
        room
    }
}

/// Those who follow what the stages of one plugin make of messages.
#[derive(Debug)]
pub struct Verdicts {
    /// Boxed: most of what is told is passed on.
    followers: Followers<Box<Told>>,
}

impl Default for Verdicts {
    fn default() -> Verdicts {
        Verdicts { followers: Followers::new(FOLLOWED_MAX) }
    }
}

impl Verdicts {
    /// Whether anybody wants to know.
    #[must_use]
    pub fn are_followed(&self) -> bool {
        self.followers.are_there()
    }

    /// How many of `wanted` messages of `topic`, which the stage of this pace has, may be told now; the others are counted as
    /// lost for those who reach the topic. Nothing is told that nobody hears.
    #[must_use]
    pub fn room_for(&self, pace: &Pace, topic: &TopicName, (wanted, now): (usize, Timestamp)) -> usize {
        if !self.followers.any_reaches(Some(topic)) {
            return 0;
        }
        let wanted = wanted as u64;
        let room = pace.room_for(wanted, now);
        if room < wanted {
            self.followers.lose(Some(topic), wanted - room);
        }
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Tells those who follow and reach the topic.
    pub fn tell(&self, told: Told) {
        let topic = told.topic.clone();
        self.followers.tell(Some(&topic), &Box::new(told));
    }

    /// Those to come, on the topics that `reaches` names.
    #[must_use]
    pub fn follow(&self, reaches: Reaches) -> Following {
        self.followers.follow(reaches)
    }
}

/// One who follows.
pub type Following = super::followers::Following<Box<Told>>;
