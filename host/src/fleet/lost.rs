//! What becomes of brokers that are lost. Invariant: what one was about to send is free for the others within some seconds, in the
//! database whatever Redis does, and in Redis once that answers; nobody who is there loses what it sends, however long nobody could be seen.

use std::sync::atomic::Ordering;
use std::time::Duration;

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
    /// What brokers that are lost were about to send is free for the others: that of the database first, that of Redis whenever it
    /// answers. They are forgotten once nothing of theirs is left.
    pub(super) async fn keep_standing_in(&self, (store, streams): &Stores) {
        let (free, freed) = watch::channel(Vec::new());
        let in_redis = async {
            match streams {
                Some(streams) => self.keep_freeing_streams(streams, freed).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(self.keep_freeing(store, streams.is_none(), free), in_redis);
    }

    /// After a database that answered nobody, all look lost until they have shown themselves: who has not been there for as long itself
    /// calls nobody lost.
    async fn keep_freeing(&self, store: &PostgresStore, is_all: bool, free: watch::Sender<Vec<Lost>>) {
        let (mut steady, mut done) = (Stopwatch::start(), Vec::<Lost>::new());
        loop {
            self.counted.notified().await;
            if !self.is_member() || self.lapsed.swap(false, Ordering::AcqRel) {
                steady = Stopwatch::start();
            }
            if steady.elapsed() < ALIVE + BEAT_EVERY {
                continue;
            }
            // A catalog that fails is told of by who shows this broker.
            let Ok(lost) = self.lost().await else { continue };
            done.retain(|one| lost.contains(one));
            for one in lost.into_iter().filter(|one| !done.contains(one)).collect::<Vec<_>>() {
                let node = &one.0;
                let mut freed = store.end_sending(node).await.map_err(|error| error.to_string());
                if freed.is_ok() && is_all {
                    freed = self.forget(&one).await;
                }
                match freed {
                    Ok(()) => {
                        tracing::warn!(node, "a broker is lost; the others send what it was about to");
                        done.push(one);
                    }
                    // What fails is seen again.
                    Err(error) => {
                        tracing::warn!(
                            error,
                            node,
                            "what a lost broker was about to send cannot be freed yet; trying again"
                        )
                    }
                }
            }
            free.send_if_modified(|known| std::mem::replace(known, done.clone()) != done);
        }
    }

    async fn keep_freeing_streams(&self, streams: &RedisStore, mut freed: watch::Receiver<Vec<Lost>>) {
        let mut told = false;
        loop {
            let all = freed.borrow_and_update().clone();
            let mut left = false;
            for one in all {
                let freed = match self.lost().await {
                    // It has come back meanwhile: what it sends is its own.
                    Ok(lost) if !lost.contains(&one) => continue,
                    Ok(_) => streams.end_sending(&one.0).await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let freed = match freed {
                    Ok(()) => self.forget(&one).await,
                    failed => failed,
                };
                if let Err(error) = freed {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            error,
                            node = one.0,
                            "what a lost broker was about to send from Redis waits until that answers"
                        );
                    }
                    // The others' waits as well.
                    left = true;
                    break;
                }
                told = false;
            }
            if left {
                tokio::time::sleep(FREE_AGAIN).await;
            } else if freed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Brokers that were not seen for too long when this one last showed itself: a database that answers nobody from now on makes
    /// nobody look lost.
    async fn lost(&self) -> Result<Vec<Lost>, CatalogError> {
        self.parts.catalog.lost(&self.parts.node, self.shown_at()).await
    }

    async fn forget(&self, (node, instance): &Lost) -> Result<(), String> {
        let forgotten = self.parts.catalog.forget_lost((node, instance), self.shown_at()).await;
        forgotten.map_err(|error| error.to_string())
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
