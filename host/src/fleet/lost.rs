//! What becomes of brokers that are lost. Invariant: what one was about to send is free for the others within some seconds, in the
//! database whatever Redis does, and in Redis once that answers; nobody who is there loses what it sends, however long nobody could be seen.

use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{BEAT_EVERY, Fleet, Stores};
use crate::catalog::CatalogError;
use crate::catalog::members::ALIVE;
use crate::clock::Timestamp;
use crate::store::StoreError;
use crate::store::postgres::PostgresStore;
use crate::store::redis::RedisStore;
use crate::telemetry::Stopwatch;

/// How long a Redis is let be that did not free what a lost broker was about to send.
const FREE_AGAIN: Duration = Duration::from_secs(1);

/// A broker that is lost: its name, and which of that name it was.
type Lost = (String, String);

impl Fleet {
    /// What brokers that are lost were about to send is free for the others. They are forgotten once nothing of theirs is left.
    pub(super) async fn keep_standing_in(&self, (store, streams): &Stores) {
        let ((told, heard), in_redis) = (watch::channel(Vec::new()), Mutex::new(Vec::new()));
        let freeing_streams = async {
            match streams {
                Some(streams) => self.keep_freeing_streams(streams, heard, &in_redis).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(self.keep_freeing(store, streams.is_some().then_some(&in_redis), told), freeing_streams);
    }

    /// After a database that answered nobody, all look lost until they have shown themselves: who has not been there for as long itself
    /// calls nobody lost.
    async fn keep_freeing(
        &self,
        store: &PostgresStore,
        in_redis: Option<&Mutex<Vec<Lost>>>,
        tell: watch::Sender<Vec<Lost>>,
    ) {
        let (mut steady, mut freed, mut failed) = (Stopwatch::start(), Vec::<Lost>::new(), Vec::<Lost>::new());
        loop {
            self.counted.notified().await;
            if !self.is_member() || self.lapsed.swap(false, Ordering::AcqRel) {
                steady = Stopwatch::start();
                // Who was lost may have come and gone meanwhile.
                freed.clear();
                tell.send_replace(Vec::new());
            }
            if steady.elapsed() < ALIVE + BEAT_EVERY {
                continue;
            }
            // A catalog that fails is told of by who shows this broker.
            let Ok(lost) = self.lost().await else { continue };
            freed.retain(|one| lost.contains(one));
            failed.retain(|one| lost.contains(one));
            tell.send_if_modified(|known| std::mem::replace(known, lost.clone()) != lost);
            let left: Vec<&Lost> = lost.iter().filter(|one| !freed.contains(one)).collect();
            let freeing = futures_util::future::join_all(left.iter().map(|one| store.end_sending(&one.0)));
            for (one, done) in left.iter().zip(freeing.await) {
                let node = &one.0;
                match done {
                    Ok(()) => {
                        tracing::warn!(node, "a broker is lost; the others send what it was about to");
                        freed.push((*one).clone());
                    }
                    // It is seen again.
                    Err(error) if !failed.contains(one) => {
                        tracing::warn!(%error, node, "what a lost broker was about to send cannot be freed yet; trying again");
                        failed.push((*one).clone());
                    }
                    Err(_) => {}
                }
            }
            for one in &freed {
                if in_redis.is_none_or(|in_redis| in_redis.lock().contains(one)) {
                    // As is who could not be forgotten.
                    let forgotten = self.parts.catalog.forget_lost((&one.0, &one.1), self.shown_at()).await;
                    _ = forgotten
                        .inspect_err(|error| tracing::debug!(%error, node = one.0, "a lost broker is forgotten later"));
                }
            }
        }
    }

    async fn keep_freeing_streams(
        &self,
        streams: &RedisStore,
        mut heard: watch::Receiver<Vec<Lost>>,
        freed: &Mutex<Vec<Lost>>,
    ) {
        let mut is_told = false;
        loop {
            let lost = heard.borrow_and_update().clone();
            freed.lock().retain(|one| lost.contains(one));
            let mut trouble = None;
            for one in lost {
                let is_freed = freed.lock().contains(&one);
                if is_freed {
                    continue;
                }
                let done = match self.lost().await {
                    // It has come back meanwhile: what it sends is its own.
                    Ok(lost) if !lost.contains(&one) => continue,
                    Ok(_) => streams.end_sending(&one.0).await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                match done {
                    Ok(()) => freed.lock().push(one),
                    // The others' waits as well.
                    Err(error) => {
                        trouble = Some((one.0, error));
                        break;
                    }
                }
            }
            match trouble {
                None => {
                    is_told = false;
                    if heard.changed().await.is_err() {
                        return;
                    }
                }
                Some((node, error)) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(
                            error,
                            node,
                            "what a lost broker was about to send from Redis waits until that answers"
                        );
                    }
                    tokio::time::sleep(FREE_AGAIN).await;
                }
            }
        }
    }

    /// Brokers that were not seen for too long when this one last showed itself: a database that answers nobody from now on makes
    /// nobody look lost.
    async fn lost(&self) -> Result<Vec<Lost>, CatalogError> {
        self.parts.catalog.lost(&self.parts.node, self.shown_at()).await
    }

    fn shown_at(&self) -> Timestamp {
        Timestamp(self.shown_at.load(Ordering::Acquire))
    }
}

/// What a broker has leased to send it itself ends, in both stores. Neither waits for the other: a Redis that is away does not keep
/// what is in the database from being sent.
pub(super) async fn end_sending((store, streams): &Stores, node: &str) -> Result<(), StoreError> {
    let of_streams = async {
        match streams {
            Some(streams) => streams.end_sending(node).await,
            None => Ok(()),
        }
    };
    let (in_database, in_redis) = tokio::join!(store.end_sending(node), of_streams);
    in_database.and(in_redis)
}
