//! What a plugin's stages make of messages, told to those who follow while it happens. Invariant: with no follower a batch pays
//! for one look at a number; with some, only so many messages a second are told, the others are counted, and nobody waits.
//! Tells of live traffic alone: a copy that a version is tried on is no verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::clock::Timestamp;
use crate::message::TopicName;

use super::draft::{PayloadFault, Verdict};
use super::plugin_log::Speaker;
use super::rollout::compare::{self, Made};

/// Messages of one plugin that are told a second: more than anybody reads, and few enough that copying them costs nothing.
pub const TOLD_PER_SECOND_MAX: u64 = 50;
/// Verdicts that a follower may be behind; with what is held of each, some 16 MiB of a plugin that is followed.
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
        verdict: Option<&Verdict>,
    ) -> Told {
        let faults = match verdict {
            Some(Verdict::Reject(rejection)) => rejection.faults.clone(),
            _ => Vec::new(),
        };
        let emitted: usize = after.emitted.iter().map(|emitted| emitted.payload.len()).sum();
        let cut = before.draft.payload.len() + after.draft.payload.len() + emitted > HELD_BYTES_MAX;
        if cut {
            for made in [&mut before, &mut after] {
                made.draft.payload = bytes::Bytes::new();
                made.emitted.iter_mut().for_each(|emitted| emitted.payload = bytes::Bytes::new());
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

/// Those who follow one plugin.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Of those that there are: what a batch looks at.
    followers: Arc<AtomicUsize>,
    /// Of all time, those that were not told because there were too many.
    left_out: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    second: i64,
    told: u64,
    /// Made with the first follower: most plugins never have one.
    sender: Option<broadcast::Sender<Told>>,
}

impl Verdicts {
    /// Whether anybody wants to know.
    #[must_use]
    pub fn are_followed(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0
    }

    /// How many of `wanted` may be told now; the others are counted as left out.
    #[must_use]
    pub fn room_for(&self, wanted: usize, now: Timestamp) -> usize {
        let mut state = self.state.lock();
        if state.second != now.0 / 1000 {
            (state.second, state.told) = (now.0 / 1000, 0);
        }
        let wanted = wanted as u64;
        let room = wanted.min(TOLD_PER_SECOND_MAX - state.told);
        state.told += room;
        self.left_out.fetch_add(wanted - room, Ordering::Relaxed);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Tells those who follow.
    pub fn tell(&self, told: Told) {
        if let Some(sender) = &self.state.lock().sender {
            // Whoever followed may have gone since it was asked.
            let _ = sender.send(told);
        }
    }

    /// Those to come.
    #[must_use]
    pub fn follow(&self) -> Following {
        let to_come = self.state.lock().sender.get_or_insert_with(|| broadcast::Sender::new(FOLLOWED_MAX)).subscribe();
        self.followers.fetch_add(1, Ordering::Relaxed);
        Following {
            to_come,
            followers: Arc::clone(&self.followers),
            known: self.left_out.load(Ordering::Relaxed),
            left_out: Arc::clone(&self.left_out),
        }
    }
}

/// One who follows.
#[derive(Debug)]
pub struct Following {
    to_come: broadcast::Receiver<Told>,
    followers: Arc<AtomicUsize>,
    left_out: Arc<AtomicU64>,
    /// Of those left out, as many as this one has been told.
    known: u64,
}

/// What a follower hears.
#[derive(Debug)]
pub enum Heard {
    /// A verdict.
    Told(Box<Told>),
    /// So many were lost: they came faster than they were read.
    Lost(u64),
}

impl Following {
    /// The next one; none once the plugin is gone.
    pub async fn next(&mut self) -> Option<Heard> {
        if let Some(lost) = self.lost() {
            return Some(Heard::Lost(lost));
        }
        match self.to_come.recv().await {
            Ok(told) => Some(Heard::Told(Box::new(told))),
            Err(RecvError::Lagged(lost)) => Some(Heard::Lost(lost)),
            Err(RecvError::Closed) => None,
        }
    }

    /// How many were left out since it was asked, if any were.
    pub fn lost(&mut self) -> Option<u64> {
        let now = self.left_out.load(Ordering::Relaxed);
        let lost = now - std::mem::replace(&mut self.known, now);
        (lost > 0).then_some(lost)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.followers.fetch_sub(1, Ordering::Relaxed);
    }
}
