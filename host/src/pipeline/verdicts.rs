//! What a plugin's stages make of messages, told to those who follow while it happens. Invariant: with no follower a batch pays
//! for one look at a number; with some, only so many messages a second are told, the others are counted, and nobody waits.
//! Tells of live traffic alone: a copy that a version is tried on is no verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::clock::Timestamp;
use crate::message::TopicName;

use super::draft::{PayloadFault, Verdict};
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

/// Says whether a follower may know of a topic.
pub type Reaches = Box<dyn Fn(&TopicName) -> bool + Send + Sync>;

/// Those who follow one plugin.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Of those that there are: what a batch looks at.
    count: Arc<AtomicUsize>,
    followers: Mutex<Vec<Follower>>,
}

struct Follower {
    reaches: Reaches,
    to: mpsc::Sender<Told>,
    /// Of the topics that it reaches, those that it was not told.
    lost: Arc<AtomicU64>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Verdicts {
    /// Whether anybody wants to know.
    #[must_use]
    pub fn are_followed(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// How many of `wanted` messages of `topic`, which the stage of this pace has, may be told now; the others are counted as
    /// lost for those who reach the topic. Nothing is told that nobody hears.
    #[must_use]
    pub fn room_for(&self, pace: &Pace, topic: &TopicName, (wanted, now): (usize, Timestamp)) -> usize {
        let followers = self.followers.lock();
        let mut reaching = followers.iter().filter(|follower| (follower.reaches)(topic)).peekable();
        if reaching.peek().is_none() {
            return 0;
        }
        let wanted = wanted as u64;
        let room = pace.room_for(wanted, now);
        if room < wanted {
            reaching.for_each(|follower| _ = follower.lost.fetch_add(wanted - room, Ordering::Relaxed));
        }
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Tells those who follow and reach the topic. Who has not read what was told before loses this one.
    pub fn tell(&self, told: &Told) {
        self.followers.lock().retain(|follower| {
            if !(follower.reaches)(&told.topic) {
                return !follower.to.is_closed();
            }
            match follower.to.try_send(told.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    follower.lost.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Closed(_)) => false,
            }
        });
    }

    /// Those to come, on the topics that it reaches.
    #[must_use]
    pub fn follow(&self, reaches: Reaches) -> Following {
        let (to, to_come) = mpsc::channel(FOLLOWED_MAX);
        let lost = Arc::<AtomicU64>::default();
        let mut followers = self.followers.lock();
        followers.retain(|follower| !follower.to.is_closed());
        followers.push(Follower { reaches, to, lost: Arc::clone(&lost) });
        self.count.fetch_add(1, Ordering::Relaxed);
        Following { to_come, lost, count: Arc::clone(&self.count) }
    }
}

/// One who follows.
#[derive(Debug)]
pub struct Following {
    to_come: mpsc::Receiver<Told>,
    lost: Arc<AtomicU64>,
    count: Arc<AtomicUsize>,
}

/// What a follower hears.
#[derive(Debug)]
pub enum Heard {
    /// A verdict.
    Told(Box<Told>),
    /// So many were lost: they came faster than they are told, or than they were read.
    Lost(u64),
}

impl Following {
    /// The next one; none once the plugin is gone.
    pub async fn next(&mut self) -> Option<Heard> {
        if let Some(lost) = self.lost() {
            return Some(Heard::Lost(lost));
        }
        Some(Heard::Told(Box::new(self.to_come.recv().await?)))
    }

    /// How many were lost since it was asked, if any were.
    pub fn lost(&mut self) -> Option<u64> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        (lost > 0).then_some(lost)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
