//! Those who follow a plugin while it happens. Invariant: nobody waits for a follower; what one has lost is counted, only of
//! what it may know, and told where it is missing. With no follower, to tell costs one look at a number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};

use crate::message::TopicName;

/// Says whether a follower may know of a topic, or of what is about none.
pub type Reaches = Box<dyn Fn(Option<&TopicName>) -> bool + Send + Sync>;

/// See the module.
#[derive(Debug)]
pub struct Followers<T> {
    /// What one of them may be behind.
    behind_max: usize,
    /// Of those that there are: what is looked at first.
    count: Arc<AtomicUsize>,
    followers: Mutex<Vec<Follower<T>>>,
}

struct Follower<T> {
    reaches: Reaches,
    /// With each, how many it has lost before.
    to: mpsc::Sender<(u64, T)>,
    /// Lost since.
    lost: Arc<AtomicU64>,
}

impl<T> std::fmt::Debug for Follower<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl<T: Clone> Followers<T> {
    /// None yet; each may be so much behind.
    #[must_use]
    pub fn new(behind_max: usize) -> Followers<T> {
        Followers { behind_max, count: Arc::default(), followers: Mutex::default() }
    }

    /// Whether there are any.
    #[must_use]
    pub fn are_there(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether any of them may know of `topic`.
    #[must_use]
    pub fn any_reaches(&self, topic: Option<&TopicName>) -> bool {
        self.followers.lock().iter().any(|follower| (follower.reaches)(topic))
    }

    /// Counts what is not told of `topic` for those who may know of it.
    pub fn lose(&self, topic: Option<&TopicName>, lost: u64) {
        let followers = self.followers.lock();
        let reaching = followers.iter().filter(|follower| (follower.reaches)(topic));
        reaching.for_each(|follower| _ = follower.lost.fetch_add(lost, Ordering::Relaxed));
    }

    /// Tells those who may know of `topic`. Who has not read what was told before loses this one.
    pub fn tell(&self, topic: Option<&TopicName>, told: &T) {
        if !self.are_there() {
            return;
        }
        self.followers.lock().retain(|follower| {
            if !(follower.reaches)(topic) {
                return !follower.to.is_closed();
            }
            match follower.to.try_reserve() {
                Ok(room) => {
                    room.send((follower.lost.swap(0, Ordering::Relaxed), told.clone()));
                    true
                }
                Err(TrySendError::Full(())) => {
                    follower.lost.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Closed(())) => false,
            }
        });
    }

    /// One more, of what `reaches` names.
    #[must_use]
    pub fn follow(&self, reaches: Reaches) -> Following<T> {
        let (to, to_come) = mpsc::channel(self.behind_max);
        let lost = Arc::<AtomicU64>::default();
        let mut followers = self.followers.lock();
        followers.retain(|follower| !follower.to.is_closed());
        followers.push(Follower { reaches, to, lost: Arc::clone(&lost) });
        self.count.fetch_add(1, Ordering::Relaxed);
        Following { to_come, next: None, lost, count: Arc::clone(&self.count) }
    }
}

/// One who follows.
#[derive(Debug)]
pub struct Following<T> {
    to_come: mpsc::Receiver<(u64, T)>,
    /// What comes behind those whose loss was told.
    next: Option<T>,
    lost: Arc<AtomicU64>,
    count: Arc<AtomicUsize>,
}

/// What a follower hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// What was told.
    Told(T),
    /// So many were lost: they came faster than they are told, or than they were read.
    Lost(u64),
}

impl<T> Following<T> {
    /// The next one; none once the plugin is gone. Dropped while it waits, it has lost nothing.
    pub async fn next(&mut self) -> Option<Heard<T>> {
        if let Some(told) = self.next.take() {
            return Some(Heard::Told(told));
        }
        let (lost, told) = match self.to_come.try_recv() {
            Ok(came) => came,
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => match self.lost() {
                Some(lost) => return Some(Heard::Lost(lost)),
                None => self.to_come.recv().await?,
            },
        };
        if lost == 0 {
            return Some(Heard::Told(told));
        }
        self.next = Some(told);
        Some(Heard::Lost(lost))
    }

    /// How many were lost behind the last one that was told, if any were.
    pub fn lost(&mut self) -> Option<u64> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        (lost > 0).then_some(lost)
    }
}

impl<T> Drop for Following<T> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn all<T>(following: &mut Following<T>) -> Vec<Heard<T>> {
        std::iter::from_fn(|| following.next().now_or_never().flatten()).collect()
    }

    #[test]
    fn what_is_lost_is_told_where_it_is_missing_and_of_what_others_know_none() {
        let followers = Followers::new(2);
        let (orders, billing): (TopicName, TopicName) = ("orders".parse().unwrap(), "billing".parse().unwrap());
        let only = orders.clone();
        let mut slow = followers.follow(Box::new(move |topic| topic == Some(&only)));
        (0..10).for_each(|number| followers.tell(Some(&billing), &number));
        followers.tell(None, &10);
        assert_eq!(all(&mut slow), [], "none of it is for this one, and none is lost");
        (0..5).for_each(|number| followers.tell(Some(&orders), &number));
        assert_eq!(slow.next().now_or_never(), Some(Some(Heard::Told(0))));
        followers.tell(Some(&orders), &5);
        followers.tell(Some(&orders), &6);
        assert_eq!(all(&mut slow), [Heard::Told(1), Heard::Lost(3), Heard::Told(5), Heard::Lost(1)]);
        followers.lose(Some(&billing), 7);
        followers.lose(Some(&orders), 8);
        followers.tell(Some(&orders), &7);
        assert_eq!(all(&mut slow), [Heard::Lost(8), Heard::Told(7)]);
        drop(slow);
        assert!(!followers.are_there(), "what nobody reads is not told");
        let mut last = followers.follow(Box::new(|_| true));
        assert_eq!(followers.followers.lock().len(), 1);
        followers.tell(None, &8);
        drop(followers);
        assert_eq!(all(&mut last), [Heard::Told(8)]);
        assert_eq!(last.next().now_or_never(), Some(None), "the plugin is gone");
    }
}
