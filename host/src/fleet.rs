//! A broker among others on one database. Invariant: what others have changed in the catalog is known here before long, and a
//! change that was made here is answered once all who are there know it, or have had the time to. Decides nothing about what
//! was changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::members::{ALIVE, Member};
use crate::catalog::{Catalog, CatalogError};
use crate::clock::Timestamp;
use crate::directory::Directory;
use crate::pipeline::Pipelines;
use crate::store::postgres::PostgresStore;
use crate::telemetry::Stopwatch;

/// How often the catalog is asked whether it has changed: the longest that a broker works on what is old.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a broker shows that it is there; [`ALIVE`] is four of these.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How long a change waits for brokers that don't follow: one that hangs is not counted any more after [`ALIVE`].
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// How long it waits for brokers that make plugins ready: the slowest compile for some ten seconds.
const PREPARE_MAX: Duration = Duration::from_secs(60);
/// How often it looks.
const SETTLE_LOOK: Duration = Duration::from_millis(10);

/// Why a broker is none of the fleet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Two brokers have one name.
    #[error("a broker named '{0}' is there already: give this one another node_id, or stop that one")]
    Taken(String),
    /// The catalog's word.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What brokers may be told sooner than they look; without it nothing is missed.
#[derive(Debug, Default)]
struct Hints {
    /// Others have changed the catalog.
    look: Notify,
    /// This broker has.
    changed: Notify,
}

/// See the module.
#[derive(Debug)]
pub struct Fleet {
    catalog: Catalog,
    node: String,
    instance: String,
    started_at: Timestamp,
    followed: AtomicU64,
    prepared: AtomicU64,
    /// The last that was waited for.
    settled: AtomicU64,
    /// Since it last showed itself; none while another one has its name.
    shown: Mutex<Option<Stopwatch>>,
    /// Whether it could not, since somebody asked.
    lapsed: AtomicBool,
    news: Notify,
    hints: Hints,
    has_left: Notify,
    stopping: CancellationToken,
}

impl Fleet {
    /// Joins. A broker that crashed a moment ago counts for some seconds still: its successor waits for that.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(
        catalog: Catalog,
        (node, instance): (String, String),
        started_at: Timestamp,
        stopping: CancellationToken,
    ) -> Result<Arc<Fleet>, JoinError> {
        let fleet = Fleet {
            catalog,
            node,
            instance,
            started_at,
            followed: AtomicU64::new(0),
            prepared: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            shown: Mutex::new(None),
            lapsed: AtomicBool::new(false),
            news: Notify::new(),
            hints: Hints::default(),
            has_left: Notify::new(),
            stopping,
        };
        let waited = Stopwatch::start();
        while !fleet.beat().await? {
            if waited.elapsed() >= ALIVE + BEAT_EVERY {
                return Err(JoinError::Taken(fleet.node));
            }
            tokio::time::sleep(BEAT_EVERY / 4).await;
        }
        Ok(Arc::new(fleet))
    }

    async fn beat(&self) -> Result<bool, CatalogError> {
        let watch = Stopwatch::start();
        let there = self.catalog.beat(&self.member()).await;
        match &there {
            Ok(true) => *self.shown.lock() = Some(watch),
            Ok(false) => *self.shown.lock() = None,
            Err(_) => {}
        }
        if !matches!(there, Ok(true)) {
            self.lapsed.store(true, Ordering::Release);
        }
        there
    }

    /// This broker, as the others see it.
    #[must_use]
    pub fn member(&self) -> Member {
        Member {
            node: self.node.clone(),
            instance: self.instance.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            followed: self.followed.load(Ordering::Acquire),
            prepared: self.prepared.load(Ordering::Acquire),
            stopping: self.stopping.is_cancelled(),
        }
    }

    /// Whether the others count it, as far as it knows.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.shown.lock().as_ref().is_some_and(|shown| shown.elapsed() < ALIVE)
    }

    /// The brokers that are there.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn members(&self) -> Result<Vec<Member>, CatalogError> {
        self.catalog.members().await
    }

    /// Follows the catalog and shows itself, until the broker has stopped.
    pub async fn keep_up(
        self: Arc<Fleet>,
        (directory, pipelines): (Arc<Directory>, Arc<Pipelines>),
        store: Arc<PostgresStore>,
        ended: CancellationToken,
    ) {
        let (told, heard) = watch::channel(0);
        // Each apart: what is to be made ready may take seconds, and what is to be followed may wait for a change that waits for
        // that, here or on another broker.
        tokio::select! {
            () = self.keep_looking(told) => {}
            () = self.keep_ready(&pipelines, heard.clone()) => {}
            () = self.keep_following(&directory, heard) => {}
            () = self.keep_showing() => {}
            () = self.keep_standing_in(&store) => {}
            () = ended.cancelled() => {}
        }
        // What it has leased and not sent is for the others now.
        if let Err(error) = store.end_sending(&self.node).await {
            tracing::debug!(%error, "what was not sent waits until its leases end");
        }
        if let Err(error) = self.catalog.leave(&self.node, &self.instance).await {
            tracing::debug!(%error, "this broker could not sign off; it is not counted any more after some seconds");
        }
        self.has_left.notify_one();
    }

    /// Looks at the catalog now, rather than in a moment.
    pub fn look_now(&self) {
        self.hints.look.notify_one();
    }

    /// Returns when this broker has changed the catalog, for one who tells the others.
    pub async fn has_changed(&self) {
        self.hints.changed.notified().await;
    }

    /// Tells of each new version of the catalog.
    async fn keep_looking(&self, told: watch::Sender<u64>) {
        let mut trouble = false;
        loop {
            match self.catalog.version().await {
                Ok(version) => {
                    told.send_if_modified(|known| std::mem::replace(known, version) != version);
                    trouble = false;
                }
                Err(error) if !trouble => {
                    tracing::error!(%error, "the fleet's catalog cannot be followed; trying again");
                    trouble = true;
                }
                Err(_) => {}
            }
            let _ = tokio::time::timeout(LOOK_EVERY, self.hints.look.notified()).await;
        }
    }

    /// Makes ready what revisions to come run, without waiting for anybody's change.
    async fn keep_ready(&self, pipelines: &Pipelines, mut heard: watch::Receiver<u64>) {
        while heard.changed().await.is_ok() {
            let wanted = match self.catalog.wanted_plugins().await {
                Ok(wanted) => wanted,
                Err(_) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    heard.mark_changed();
                    continue;
                }
            };
            let last = wanted.last().map_or(0, |(last, _)| *last);
            if self.prepared.load(Ordering::Acquire) < last {
                if pipelines.make_ready(wanted.iter().map(|(_, digest)| digest.as_str())).await {
                    self.prepared.store(last, Ordering::Release);
                    self.news.notify_one();
                } else {
                    tokio::time::sleep(BEAT_EVERY).await;
                    heard.mark_changed();
                }
            }
        }
    }

    async fn keep_following(&self, directory: &Directory, mut heard: watch::Receiver<u64>) {
        let mut trouble = false;
        while heard.changed().await.is_ok() {
            match directory.catch_up().await {
                Ok(version) => {
                    self.followed.store(version, Ordering::Release);
                    self.news.notify_one();
                    trouble = false;
                }
                Err(error) => {
                    if !trouble {
                        tracing::error!(%error, "what other brokers have changed cannot be taken over; trying again");
                    }
                    trouble = true;
                    tokio::time::sleep(LOOK_EVERY).await;
                    heard.mark_changed();
                }
            }
        }
    }

    async fn keep_showing(&self) {
        let mut trouble = false;
        loop {
            match self.beat().await {
                Ok(true) => trouble = false,
                Ok(false) if !trouble => tracing::error!(node = self.node, "another broker has this one's node_id"),
                Err(error) if !trouble => tracing::error!(%error, "this broker cannot show the fleet that it is there"),
                _ => {}
            }
            trouble |= !self.is_member();
            // Either is a reason to show itself.
            let _ = tokio::time::timeout(BEAT_EVERY, self.news.notified()).await;
        }
    }

    /// What brokers that are lost were about to send is free for the others. After a database that answered nobody, all look
    /// lost until they have shown themselves: who has not been there for as long itself calls nobody lost.
    async fn keep_standing_in(&self, store: &PostgresStore) {
        let mut steady = Stopwatch::start();
        loop {
            tokio::time::sleep(BEAT_EVERY).await;
            if !self.is_member() || self.lapsed.swap(false, Ordering::AcqRel) {
                steady = Stopwatch::start();
            }
            if steady.elapsed() < ALIVE + BEAT_EVERY {
                continue;
            }
            // A catalog that fails is told of by who shows this broker.
            for node in self.catalog.take_lost(&self.node).await.unwrap_or_default() {
                tracing::warn!(node, "a broker is lost; the others send what it was about to");
                if let Err(error) = store.end_sending(&node).await {
                    tracing::warn!(%error, node, "what it was about to send waits until its leases end");
                }
            }
        }
    }

    /// Waits until this broker has signed off, for at most `patience`.
    pub async fn left(&self, patience: Duration) {
        // Who waits in vain is not counted before long, either.
        let _ = tokio::time::timeout(patience, self.has_left.notified()).await;
    }

    /// Waits until all brokers that are there know what the catalog holds now.
    pub async fn settle(&self) {
        match self.catalog.version().await {
            Ok(version) if version != self.settled.load(Ordering::Acquire) => {
                self.until_all("follow", SETTLE_MAX, |member| member.followed >= version).await;
                self.settled.fetch_max(version, Ordering::AcqRel);
            }
            _ => {}
        }
    }

    /// Has all brokers that are there make these components ready, and waits for it.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn prepare(&self, digests: &[String]) -> Result<(), CatalogError> {
        let last = self.catalog.want_plugins(digests).await?;
        self.until_all("have the plugin ready", PREPARE_MAX, |member| member.prepared >= last).await;
        Ok(())
    }

    async fn until_all(&self, what: &str, patience: Duration, has: impl Fn(&Member) -> bool) {
        self.hints.changed.notify_one();
        let waited = Stopwatch::start();
        loop {
            // Whether it can be known or not: the change stands.
            let Ok(members) = self.catalog.members().await else { return };
            let Some(behind) = members.iter().find(|member| !has(member)) else { return };
            if waited.elapsed() >= patience {
                return tracing::warn!(broker = behind.node, "a broker does not {what}; it is not waited for");
            }
            tokio::time::sleep(SETTLE_LOOK).await;
        }
    }
}
