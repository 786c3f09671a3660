//! A broker among others on one database. Invariant: what others have changed in the catalog is known here before long, and a
//! change that was made here is answered once all who are there know it, or have had the time to. Decides nothing about what
//! was changed.

mod lost;
mod standing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Gauge;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::lost::end_sending;
use self::standing::Standing;
use crate::catalog::members::{ALIVE, Heard, Load, Member};
use crate::catalog::{Catalog, CatalogError};
use crate::clock::{Clock, Timestamp};
use crate::directory::Directory;
use crate::duty::Duty;
use crate::offline::mark::Marked;
use crate::pipeline::Pipelines;
use crate::store::postgres::PostgresStore;
use crate::store::redis::RedisStore;
use crate::telemetry::Stopwatch;

/// How often the catalog is asked whether it has changed: the longest that a broker works on what is old.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a broker shows that it is there; [`ALIVE`] is six of these. Both together are how long a lost one's work waits at most.
const BEAT_EVERY: Duration = Duration::from_millis(500);
/// How long a change waits for brokers that don't follow: one that hangs is not counted any more after [`ALIVE`].
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// How long it waits for brokers that make plugins ready: the slowest compile for some ten seconds.
const PREPARE_MAX: Duration = Duration::from_secs(60);
/// How often it looks.
const SETTLE_LOOK: Duration = Duration::from_millis(10);
/// For how long what others were asked to make ready is known to be asked for: the catalog forgets it after twice this.
const ASKED_FOR: Duration = Duration::from_secs(300);
/// How long a broker that starts waits to be counted, before it listens all the same and refuses until it is.
const ENTER_MAX: Duration = Duration::from_secs(10);

/// A time that took no longer to come is good: off by half of this at most.
const TIME_WITHIN: Duration = Duration::from_millis(250);
/// How long it may take before it is the best that there is.
const TIME_TRIES: [Duration; 4] = [TIME_WITHIN, TIME_WITHIN, TIME_WITHIN, Duration::from_secs(10)];
/// How wrong a machine's clock is when it is told.
const SKEW_TOLD: Duration = Duration::from_secs(2);

/// Why a broker is none of the fleet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Two brokers have one name.
    #[error("a broker named '{0}' is there already: give this one another node_id, or stop that one")]
    Taken(String),
    /// What is in the database is on its way elsewhere, or was.
    #[error("{0}")]
    Moved(String),
    /// The catalog's word.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The stores that brokers share: of the database, and of Redis.
type Stores = (Arc<PostgresStore>, Option<Arc<RedisStore>>);

/// What brokers may be told sooner than they look; without it nothing is missed.
#[derive(Debug, Default)]
struct Hints {
    /// Others have changed the catalog.
    look: Notify,
    /// This broker has.
    changed: Notify,
}

/// What a fleet is joined with.
pub struct FleetParts {
    /// What all share.
    pub catalog: Catalog,
    /// The same by a connection of its own: who waits for others' is taken for lost.
    pub showing: Catalog,
    /// This broker's name.
    pub node: String,
    /// Another one each time that it starts.
    pub instance: String,
    /// Its clock, which is to go by the database's.
    pub clock: Clock,
    /// Seconds that the machine's clock is ahead of the database's.
    pub skew: Gauge,
    /// Whether it takes work.
    pub duty: Duty,
    /// Cancelled when it is to stop.
    pub stopping: CancellationToken,
    /// Cancelled when it has.
    pub ended: CancellationToken,
}

/// See the module.
pub struct Fleet {
    parts: FleetParts,
    standing: Standing,
    followed: AtomicU64,
    prepared: AtomicU64,
    /// The last that was waited for.
    settled: AtomicU64,
    /// When it last showed itself, by the database's time.
    shown_at: AtomicI64,
    /// When it started, by the time that it goes by.
    started_at: AtomicI64,
    /// What others were asked to make ready, under which number, and since when.
    asked: Mutex<HashMap<String, (u64, Stopwatch)>>,
    load: OnceLock<Box<dyn Fn() -> Load + Send + Sync>>,
    /// Whether the machine's clock is wrong.
    is_wrong: AtomicBool,
    /// Whether it could not show itself, since somebody asked.
    lapsed: AtomicBool,
    /// It was counted again.
    counted: Notify,
    news: Notify,
    hints: Hints,
    has_left: Notify,
    showing: Mutex<Option<JoinHandle<()>>>,
}

impl Fleet {
    /// Joins: from now on the name is this broker's, though others don't wait for it before it has entered. A broker that
    /// crashed a moment ago counts for some seconds still: its successor waits for that.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(parts: FleetParts) -> Result<Arc<Fleet>, JoinError> {
        parts.duty.stay_outside(true);
        let started_at = parts.clock.now();
        let fleet = Arc::new(Fleet {
            parts,
            standing: Standing::default(),
            followed: AtomicU64::new(0),
            prepared: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            shown_at: AtomicI64::new(0),
            started_at: AtomicI64::new(started_at.0),
            asked: Mutex::default(),
            load: OnceLock::new(),
            is_wrong: AtomicBool::new(false),
            lapsed: AtomicBool::new(false),
            counted: Notify::new(),
            news: Notify::new(),
            hints: Hints::default(),
            has_left: Notify::new(),
            showing: Mutex::new(None),
        });
        let waited = Stopwatch::start();
        loop {
            match fleet.beat().await? {
                Heard::Counted { .. } => break,
                Heard::Moved => return Err(JoinError::Moved(fleet.why_moved().await?)),
                Heard::Taken => {}
            }
            if waited.elapsed() >= ALIVE + BEAT_EVERY {
                return Err(JoinError::Taken(fleet.parts.node.clone()));
            }
            tokio::time::sleep(BEAT_EVERY / 4).await;
        }
        // The first answer took as long as a connection takes.
        for patience in TIME_TRIES {
            if fleet.ask_time(patience).await? {
                break;
            }
        }
        fleet.started_at.store(fleet.parts.clock.now().0, Ordering::Release);
        *fleet.showing.lock() = Some(tokio::spawn(Arc::clone(&fleet).keep_showing()));
        Ok(fleet)
    }

    async fn why_moved(&self) -> Result<String, CatalogError> {
        let mark = Marked::Database(self.parts.catalog.clone()).read().await;
        Ok(match mark {
            Ok(Some(mark)) => mark.refusal(),
            Ok(None) => "what is here was being moved until now: start again".to_owned(),
            Err(error) => error.to_string(),
        })
    }

    async fn beat(&self) -> Result<Heard, CatalogError> {
        let (watch, member) = (Stopwatch::start(), self.member());
        let heard = self.parts.showing.beat(&member).await;
        let asked = watch.elapsed();
        if self.standing.heard(heard.as_ref().ok(), watch) {
            self.lapsed.store(true, Ordering::Release);
        }
        match &heard {
            Ok(Heard::Counted { drain, at }) => {
                self.parts.duty.drain(*drain);
                self.shown_at.store(at.0, Ordering::Release);
                self.counted.notify_one();
                self.tell_time(*at, asked, TIME_WITHIN);
            }
            _ => self.lapsed.store(true, Ordering::Release),
        }
        // Who has just come back does not know what was changed meanwhile.
        if member.serving && self.standing.is_to_follow() {
            self.standing.follows(self.parts.showing.version().await?);
        }
        self.standing.has_followed(self.followed.load(Ordering::Acquire));
        heard
    }

    async fn ask_time(&self, patience: Duration) -> Result<bool, CatalogError> {
        let (watch, member) = (Stopwatch::start(), self.member());
        let heard = self.parts.showing.beat(&member).await?;
        let asked = watch.elapsed();
        Ok(matches!(heard, Heard::Counted { at, .. } if self.tell_time(at, asked, patience)))
    }

    /// All go by the database's time, whatever their machines say. False: it came too late to be worth anything.
    fn tell_time(&self, there: Timestamp, asked: Duration, patience: Duration) -> bool {
        if asked > patience {
            return false; // It may have been any moment since.
        }
        let ahead_ms = self.parts.clock.keep_to(there.plus(asked / 2), TIME_WITHIN * 2);
        self.parts.skew.set(ahead_ms as f64 / 1000.0);
        let is_wrong = ahead_ms.unsigned_abs() > SKEW_TOLD.as_millis() as u64;
        if self.is_wrong.swap(is_wrong, Ordering::AcqRel) != is_wrong {
            if is_wrong {
                tracing::warn!(
                    ahead_ms,
                    "this machine's clock is not the database's: the broker goes by that one; mend the clock"
                );
            } else {
                tracing::info!(ahead_ms, "this machine's clock is the database's again");
            }
        }
        true
    }

    /// This broker, as the others see it.
    #[must_use]
    pub fn member(&self) -> Member {
        Member {
            node: self.parts.node.clone(),
            instance: self.parts.instance.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at(),
            serving: self.standing.is_serving(),
            drain: self.parts.duty.is_drained(),
            load: self.load.get().map(|load| load()).unwrap_or_default(),
            followed: self.followed.load(Ordering::Acquire),
            prepared: self.prepared.load(Ordering::Acquire),
            stopping: self.parts.stopping.is_cancelled(),
        }
    }

    /// When it started.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        Timestamp(self.started_at.load(Ordering::Acquire))
    }

    /// Whether the others count it, as far as it knows, and it knows what they have changed.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.standing.is_inside()
    }

    /// The brokers that are there.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn members(&self) -> Result<Vec<Member>, CatalogError> {
        self.parts.catalog.members().await
    }

    /// Asks a broker to take no work, or to take it again; false if there is none of that name.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn ask_to_drain(&self, node: &str, drain: bool) -> Result<bool, CatalogError> {
        self.parts.catalog.ask_to_drain(node, drain).await
    }

    /// Takes requests, as soon as it knows what the others know; `load` tells them what it has to do. Only while it keeps up.
    pub async fn enter(&self, load: impl Fn() -> Load + Send + Sync + 'static) {
        // Told once, at start.
        let _first = self.load.set(Box::new(load));
        self.standing.serves();
        self.news.notify_one();
        if tokio::time::timeout(ENTER_MAX, self.standing.inside()).await.is_err() {
            tracing::error!("this broker is not counted by the fleet yet; requests are refused until it is");
        }
    }

    /// Follows the catalog, until the broker has stopped.
    pub async fn keep_up(self: Arc<Fleet>, (directory, pipelines): (Arc<Directory>, Arc<Pipelines>), stores: Stores) {
        let (told, heard) = watch::channel(0);
        // Each apart: what is to be made ready may take seconds, and what is to be followed may wait for a change that waits for
        // that, here or on another broker.
        tokio::select! {
            () = self.keep_looking(told) => {}
            () = self.keep_ready(&pipelines, heard.clone()) => {}
            () = self.keep_following(&directory, heard) => {}
            () = self.keep_standing_in(&stores) => {}
            () = self.parts.ended.cancelled() => {}
        }
        // What it has leased and not sent is for the others now. Of one that is not counted they have taken it, or one of its name
        // has leased what is leased now.
        if self.is_member()
            && let Err(error) = end_sending(&stores, &self.parts.node).await
        {
            tracing::debug!(%error, "what was not sent waits until its leases end");
        }
        let showing = self.showing.lock().take();
        if let Some(showing) = showing {
            // It ends by itself; a panic of it was logged.
            let _ = showing.await;
        }
        if let Err(error) = self.parts.showing.leave(&self.parts.node, &self.parts.instance).await {
            tracing::debug!(%error, "this broker could not sign off; it is not counted any more after some seconds");
        }
        self.parts.showing.close().await;
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
            match self.parts.catalog.version().await {
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
            let wanted = match self.parts.catalog.wanted_plugins().await {
                Ok(wanted) => wanted,
                Err(_) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    heard.mark_changed();
                    continue;
                }
            };
            let last = wanted.last().map_or(0, |(last, _)| *last);
            if self.prepared.load(Ordering::Acquire) < last {
                if pipelines.make_ready(wanted.iter().filter_map(|(_, digest)| digest.as_deref())).await {
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

    /// Shows that this broker is there, until it has stopped.
    async fn keep_showing(self: Arc<Fleet>) {
        let (duty, mut trouble) = (&self.parts.duty, false);
        while !self.parts.ended.is_cancelled() {
            let mut beat = std::pin::pin!(self.beat());
            let heard = tokio::select! {
                heard = &mut beat => heard,
                // No answer for too long: the others don't count it from now on.
                () = self.standing.lapse() => {
                    duty.stay_outside(true);
                    beat.await
                }
            };
            duty.stay_outside(!self.is_member());
            match heard {
                Ok(Heard::Counted { .. }) => {
                    if trouble {
                        tracing::info!("this broker shows the fleet that it is there again");
                    }
                    trouble = false;
                    // Either is a reason to show itself.
                    tokio::select! {
                        _ = tokio::time::timeout(BEAT_EVERY, self.news.notified()) => {}
                        () = self.standing.lapse() => duty.stay_outside(true),
                        () = self.parts.ended.cancelled() => {}
                    }
                    continue;
                }
                Ok(Heard::Moved) if !trouble => {
                    tracing::error!("what is in the database is moved elsewhere: this broker takes no requests");
                }
                Ok(Heard::Taken) if !trouble => {
                    tracing::error!(
                        node = self.parts.node,
                        "another broker has this one's node_id: it takes no requests"
                    );
                }
                Err(error) if !trouble => {
                    tracing::error!(%error, "this broker cannot show the fleet that it is there; it takes no requests before it can");
                }
                _ => {}
            }
            trouble = true;
            tokio::time::sleep(BEAT_EVERY / 4).await;
        }
    }

    /// Waits until this broker has signed off, for at most `patience`.
    pub async fn left(&self, patience: Duration) {
        // Who waits in vain is not counted before long, either.
        let _ = tokio::time::timeout(patience, self.has_left.notified()).await;
    }

    /// Waits until all brokers that serve know what the catalog holds now.
    pub async fn settle(&self) {
        let settled = async {
            let version = self.parts.catalog.version().await?;
            if version != self.settled.load(Ordering::Acquire) {
                self.until_all("follow", SETTLE_MAX, |member| member.followed >= version).await?;
                self.settled.fetch_max(version, Ordering::AcqRel);
            }
            Ok::<_, CatalogError>(())
        };
        // The change stands.
        if let Err(error) = settled.await {
            tracing::warn!(%error, "a change is answered without knowing whether the other brokers know it");
        }
    }

    /// Has all brokers that serve make these components ready, and waits for it. This one has them, or is about to try.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn prepare(&self, digests: &[String]) -> Result<(), CatalogError> {
        let last = match self.asked_before(digests) {
            Some(last) => last,
            None => {
                let last = self.parts.catalog.want_plugins(digests).await?;
                self.has_asked(digests, last);
                last
            }
        };
        self.until_all("have the plugin ready", PREPARE_MAX, |member| member.prepared >= last).await
    }

    fn has_asked(&self, digests: &[String], last: u64) {
        let mut asked = self.asked.lock();
        asked.retain(|_, (_, since)| since.elapsed() < ASKED_FOR);
        asked.extend(digests.iter().map(|digest| (digest.clone(), (last, Stopwatch::start()))));
    }

    /// The same, for who has the turn to change: what was asked for before has been waited for, or was not to be had.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn prepare_in_turn(&self, digests: &[String]) -> Result<(), CatalogError> {
        match self.asked_before(digests) {
            None => self.prepare(digests).await,
            Some(last) => {
                self.until_all("have the plugin ready", Duration::ZERO, |member| member.prepared >= last).await
            }
        }
    }

    /// The number under which they were asked for, if all were.
    fn asked_before(&self, digests: &[String]) -> Option<u64> {
        let asked = self.asked.lock();
        let known = digests.iter().map(|digest| {
            asked.get(digest).filter(|(_, since)| since.elapsed() < ASKED_FOR).map(|(number, _)| *number)
        });
        known.collect::<Option<Vec<_>>>().map(|all| all.into_iter().max().unwrap_or(0))
    }

    async fn until_all(
        &self,
        what: &str,
        patience: Duration,
        has: impl Fn(&Member) -> bool,
    ) -> Result<(), CatalogError> {
        self.hints.changed.notify_one();
        let waited = Stopwatch::start();
        loop {
            let members = self.parts.catalog.members().await?;
            let others = members.iter().filter(|member| member.serving && member.node != self.parts.node);
            let Some(behind) = others.into_iter().find(|member| !has(member)) else { return Ok(()) };
            if waited.elapsed() >= patience {
                tracing::warn!(broker = behind.node, "a broker does not {what}; it is not waited for");
                return Ok(());
            }
            tokio::time::sleep(SETTLE_LOOK).await;
        }
    }
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Fleet").field("node", &self.parts.node).finish_non_exhaustive()
    }
}
