//! Publishers that go on whatever happens to the brokers, as clients do that send again with their key. Invariant: what was answered
//! well is counted once; what is refused, by whom it must not be, ends the load with the reason.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::task::JoinHandle;

use crate::answer::Answer;
use crate::client::Client;

/// Tries of one message: for about half a minute.
const TRIES_MAX: usize = 600;
/// Before the next.
const PAUSE: Duration = Duration::from_millis(50);

/// What is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Only what met a connection that was refused or reset.
    Broken,
    /// What was answered 429 or 503, too.
    Refused,
}

/// Counts by payload.
pub type Counts = HashMap<String, usize>;

/// Load on brokers.
#[derive(Debug)]
pub struct Steady {
    shared: Arc<Shared>,
    publishers: Vec<JoinHandle<usize>>,
}

#[derive(Debug)]
struct Shared {
    topic: String,
    again: Again,
    brokers: Vec<RwLock<Client>>,
    ends: AtomicBool,
    tried_again: AtomicUsize,
    published: AtomicUsize,
}

impl Steady {
    /// So many publishers to `topic`, each message to the next broker.
    #[must_use]
    pub fn begin(topic: &str, brokers: &[&Client], publishers: usize, again: Again) -> Steady {
        let shared = Arc::new(Shared {
            topic: topic.to_owned(),
            again,
            brokers: brokers.iter().map(|broker| RwLock::new((*broker).clone())).collect(),
            ends: AtomicBool::new(false),
            tried_again: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
        });
        let publishers = (0..publishers).map(|publisher| {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.publish(publisher).await })
        });
        Steady { publishers: publishers.collect(), shared }
    }

    /// A broker listens elsewhere.
    pub fn moved(&self, at: usize, broker: Client) {
        *self.shared.brokers[at].write() = broker;
    }

    /// How many were answered well so far.
    #[must_use]
    pub fn published(&self) -> usize {
        self.shared.published.load(Ordering::Acquire)
    }

    /// How often something was sent again.
    #[must_use]
    pub fn tried_again(&self) -> usize {
        self.shared.tried_again.load(Ordering::Acquire)
    }

    /// Waits until so many more were answered well.
    pub async fn goes_on(&self, more: usize) {
        let enough = self.published() + more;
        crate::wait::within(Duration::from_secs(60), "the load goes on", async || {
            if self.publishers.iter().any(JoinHandle::is_finished) {
                panic!("a publisher was refused");
            }
            (self.published() >= enough).then_some(())
        })
        .await;
    }

    /// Ends it; what was answered well, once each.
    ///
    /// # Panics
    /// When something was refused.
    pub async fn end(self) -> Counts {
        self.shared.ends.store(true, Ordering::Release);
        let mut all = Counts::new();
        for (publisher, published) in self.publishers.into_iter().enumerate() {
            let published = published.await.expect("no message was refused");
            all.extend((0..published).map(|number| (payload(publisher, number), 1)));
        }
        all
    }
}

fn payload(publisher: usize, number: usize) -> String {
    format!("{publisher} {number}")
}

impl Shared {
    async fn publish(&self, publisher: usize) -> usize {
        for number in 0.. {
            if self.ends.load(Ordering::Acquire) {
                return number;
            }
            self.publish_one(&payload(publisher, number), publisher + number).await;
            self.published.fetch_add(1, Ordering::Release);
        }
        unreachable!("numbers have no end")
    }

    async fn publish_one(&self, payload: &str, first: usize) {
        for tried in 0..TRIES_MAX {
            let broker = self.brokers[(first + tried) % self.brokers.len()].read().clone();
            match broker.publish(&self.topic, payload).idempotency_key(payload).try_answer().await {
                Ok(answer) if [200, 202].contains(&answer.status) => return,
                Ok(answer) if !self.is_passing(&answer) => {
                    panic!("'{payload}', after {tried} tries: {} {}", answer.status, answer.text())
                }
                Err(error) if error.is_timeout() && self.again == Again::Broken => {
                    panic!("'{payload}', after {tried} tries: {error:?}")
                }
                _ => {}
            }
            self.tried_again.fetch_add(1, Ordering::Release);
            tokio::time::sleep(PAUSE).await;
        }
        panic!("'{payload}' was not taken by anybody");
    }

    fn is_passing(&self, answer: &Answer) -> bool {
        self.again == Again::Refused && [429, 503].contains(&answer.status)
    }
}

/// What is other than it should be, in a sentence.
#[must_use]
pub fn difference(got: &Counts, expected: &Counts) -> String {
    let lost: Vec<&String> = expected.keys().filter(|payload| !got.contains_key(*payload)).take(10).collect();
    let foreign: Vec<&String> = got.keys().filter(|payload| !expected.contains_key(*payload)).take(10).collect();
    let twice: Vec<&String> =
        got.iter().filter(|(_, times)| **times > 1).map(|(payload, _)| payload).take(10).collect();
    format!("{} expected, {} got; lost: {lost:?}, twice: {twice:?}, unknown: {foreign:?}", expected.len(), got.len())
}
