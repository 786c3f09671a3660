//! Replies to those who wait for one. Invariant: who began to wait before a reply entered its topic gets it; all who wait on
//! one topic are served by one reader of its log, which is there only while somebody waits. Never leases: a reply is a
//! message like any other, and stays one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Timestamp};
use crate::message::{Message, Position, TopicId};
use crate::store::{MessageStore, Page, ReadCursor, ReadFrom, ReadRequest, StoreError};

/// Messages that one look reads.
const READ_MAX: usize = 256;
/// Payload bytes that one look reads.
const READ_BYTES_MAX: usize = 4 << 20;
/// Before a look that failed is made again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Messages that are looked through for a reply that may have come before.
const EARLIER_MAX: usize = 100_000;
/// Who looks through so many, beside others that do: each holds a page, and the store has other readers.
const LOOKS_MAX: usize = 2;

/// Hands replies to those who wait.
pub struct Replies {
    store: Arc<dyn MessageStore>,
    clock: Clock,
    stopping: CancellationToken,
    readers: AsyncMutex<HashMap<TopicId, Arc<Reader>>>,
    looks: Semaphore,
}

/// What came of waiting.
#[derive(Debug)]
pub enum Awaited {
    /// The reply.
    Reply(Position, Arc<Message>),
    /// None in time.
    Late,
    /// The broker stops, or the topic is gone.
    Ended,
}

/// Reads one topic for all who wait on it.
#[derive(Default)]
struct Reader {
    waiting: Mutex<Waiting>,
    /// Somebody has given up.
    left: Notify,
}

/// Where one who waits is told.
type Told = oneshot::Sender<(Position, Arc<Message>)>;

#[derive(Default)]
struct Waiting {
    /// Each with its number, by correlation id.
    by_id: HashMap<Arc<str>, Vec<(u64, Told)>>,
    next_number: u64,
    /// It reads no more: who comes now needs a new one.
    ended: bool,
}

/// Somebody who waits. Dropped, it waits no more.
pub struct Expected {
    reader: Arc<Reader>,
    id: Arc<str>,
    number: u64,
    reply: oneshot::Receiver<(Position, Arc<Message>)>,
    clock: Clock,
    stopping: CancellationToken,
}

impl Replies {
    /// Reads from `store`. Once `stopping`, nobody is kept waiting.
    #[must_use]
    pub fn new(store: Arc<dyn MessageStore>, clock: Clock, stopping: CancellationToken) -> Replies {
        Replies { store, clock, stopping, readers: AsyncMutex::default(), looks: Semaphore::new(LOOKS_MAX) }
    }

    /// Begins to wait for the next message of `topic` with this correlation id.
    ///
    /// # Errors
    /// `NoTopic`, or the store's word.
    pub async fn expect(&self, topic: TopicId, id: Arc<str>) -> Result<Expected, StoreError> {
        let mut readers = self.readers.lock().await;
        readers.retain(|_, reader| !reader.waiting.lock().ended);
        if let Some(expected) = readers.get(&topic).and_then(|reader| self.join(reader, &id)) {
            return Ok(expected);
        }
        let appended = self.store.appended(topic).ok_or(StoreError::NoTopic)?;
        let end = self.store.read(read(topic, ReadFrom::Latest)).await?.reached;
        let reader = Arc::new(Reader::default());
        let expected = self.join(&reader, &id).ok_or(StoreError::NoTopic)?;
        let follow = Follow { reader: Arc::clone(&reader), store: Arc::clone(&self.store), topic, appended };
        tokio::spawn(follow.run(end, self.clock.clone(), self.stopping.clone()));
        readers.insert(topic, reader);
        Ok(expected)
    }

    fn join(&self, reader: &Arc<Reader>, id: &Arc<str>) -> Option<Expected> {
        let (sender, reply) = oneshot::channel();
        let mut waiting = reader.waiting.lock();
        if waiting.ended {
            return None;
        }
        let number = waiting.next_number;
        waiting.next_number += 1;
        waiting.by_id.entry(Arc::clone(id)).or_default().push((number, sender));
        Some(Expected {
            reader: Arc::clone(reader),
            id: Arc::clone(id),
            number,
            reply,
            clock: self.clock.clone(),
            stopping: self.stopping.clone(),
        })
    }

    /// The first message of `topic` with this correlation id that entered it at `since` or later. Waits while others look;
    /// dropped, it looks no more.
    ///
    /// # Errors
    /// `NoTopic`, or the store's word.
    pub async fn earlier(
        &self,
        topic: TopicId,
        id: &str,
        since: Timestamp,
    ) -> Result<Option<(Position, Message)>, StoreError> {
        // Never closed.
        let _look = self.looks.acquire().await;
        let (mut from, mut looked_at) = (ReadFrom::Time(since), 0);
        loop {
            let Page { messages, reached, more } = self.store.read(read(topic, from)).await?;
            looked_at += messages.len();
            let is_it = |(_, message): &(Position, Message)| message.meta.correlation_id.as_deref() == Some(id);
            if let Some(found) = messages.into_iter().find(is_it) {
                return Ok(Some(found));
            }
            if !more || looked_at >= EARLIER_MAX {
                return Ok(None);
            }
            from = ReadFrom::Cursor(reached);
        }
    }
}

impl Expected {
    /// Waits until `due`.
    pub async fn reply(mut self, due: Timestamp) -> Awaited {
        tokio::select! {
            biased;
            reply = &mut self.reply => match reply {
                Ok((position, message)) => Awaited::Reply(position, message),
                Err(_) => Awaited::Ended,
            },
            () = self.clock.sleep_until(due) => Awaited::Late,
            () = self.stopping.cancelled() => Awaited::Ended,
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut waiting = self.reader.waiting.lock();
        if let Some(same) = waiting.by_id.get_mut(&self.id) {
            same.retain(|(number, _)| *number != self.number);
            if same.is_empty() {
                waiting.by_id.remove(&self.id);
            }
        }
        drop(waiting);
        self.reader.left.notify_one();
    }
}

struct Follow {
    reader: Arc<Reader>,
    store: Arc<dyn MessageStore>,
    topic: TopicId,
    appended: tokio::sync::watch::Receiver<u64>,
}

impl Follow {
    async fn run(mut self, mut reached: ReadCursor, clock: Clock, stopping: CancellationToken) {
        // Also when it ends by a panic: nobody waits for a reader that is not there.
        let _ending = Ending(Arc::clone(&self.reader));
        loop {
            self.appended.borrow_and_update();
            match self.store.read(read(self.topic, ReadFrom::Cursor(reached.clone()))).await {
                Ok(page) => {
                    reached = page.reached;
                    page.messages.into_iter().for_each(|(position, message)| self.reader.came(position, message));
                    if page.more {
                        continue;
                    }
                }
                Err(StoreError::NoTopic) => return,
                Err(error) => {
                    tracing::warn!(%error, topic = self.topic.0, "replies cannot be read; trying again");
                    clock.sleep_until(clock.now().plus(LOOK_AGAIN)).await;
                    if stopping.is_cancelled() || self.reader.ends_unless_awaited() {
                        return;
                    }
                    continue;
                }
            }
            if self.reader.ends_unless_awaited() {
                return;
            }
            tokio::select! {
                changed = self.appended.changed() => if changed.is_err() { return },
                () = self.reader.left.notified() => {}
                () = stopping.cancelled() => return,
            }
        }
    }
}

impl Reader {
    fn came(&self, position: Position, message: Message) {
        let Some(id) = &message.meta.correlation_id else { return };
        let Some(waiting) = self.waiting.lock().by_id.remove(id) else { return };
        let message = Arc::new(message);
        for (_, sender) in waiting {
            // An error says that it has given up just now.
            let _ = sender.send((position, Arc::clone(&message)));
        }
    }

    fn ends_unless_awaited(&self) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.ended = waiting.by_id.is_empty();
        waiting.ended
    }
}

struct Ending(Arc<Reader>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        waiting.ended = true;
        waiting.by_id.clear();
    }
}

fn read(topic: TopicId, from: ReadFrom) -> ReadRequest {
    ReadRequest { topic, partition: None, from, limit: READ_MAX, bytes_max: READ_BYTES_MAX }
}
