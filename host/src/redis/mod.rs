//! What Redis does for a fleet: it carries wake-ups from broker to broker, and counts requests over all of them. Invariant: it
//! helps and is never needed. Down, empty, full or paused, nothing is lost or stops: nobody waits for it longer than
//! milliseconds, after a failure nobody waits at all until it has answered again, and each role is right without it. Holds
//! nothing that is not also known elsewhere or forgotten by itself within a minute.
//!
//! Locks and a cache of idempotency keys are no roles of it: PostgreSQL has both, in the transactions that need them.

pub(crate) mod link;
pub(crate) mod look;
mod metrics;
mod rates;
mod wakes;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::redis::{Cmd, FromRedisValue};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::link::{Address, Link, Told};
use self::look::look;
use self::metrics::RedisMetrics;
use self::wakes::Ears;
use crate::config;
use crate::entropy::Entropy;
use crate::fleet::Fleet;
use crate::store::postgres::PostgresStore;
use crate::store::redis::RedisStore;
use crate::telemetry::Stopwatch;

pub use rates::Taken;

/// How often a server that helps is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How soon after a failure it is tried again; twice as long each time, give or take a half.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// And how long at most.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Who has helped for so long begins anew.
const STEADY: Duration = Duration::from_secs(10);

/// No answer counts after this; callers are less patient.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The same for who has nobody else to ask: a server that writes its file anew may be slow for a while.
const PATIENCE: Duration = Duration::from_secs(5);

const SILENT: &str = "it does not answer in time";

/// Redis does not help now. Whoever asked does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// Why a Redis is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It does not answer, or says that it cannot now.
    Away(String),
    /// It must not be used as it is.
    Refused(String),
}

impl Trouble {
    /// In words.
    pub(crate) fn why(&self) -> &str {
        match self {
            Trouble::Away(why) | Trouble::Refused(why) => why,
        }
    }
}

/// Why a broker does not start with this Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// It must not be used as it is.
    #[error("redis.url names {place}, which must not be used: {why}")]
    Refused {
        /// Where it is.
        place: String,
        /// Why, and what to do.
        why: String,
    },
    /// The file of authorities.
    #[error("redis.ca_file names {path}: {why}")]
    CaFile {
        /// Which.
        path: String,
        /// Why it can't be used.
        why: String,
    },
    /// Two parts registered one metric.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

impl Address {
    /// As the settings have it.
    ///
    /// # Errors
    /// `CaFile`.
    pub(crate) fn of(settings: &config::Redis) -> Result<Address, RedisError> {
        let roots = settings.ca_file.as_ref().map(|path| {
            let wrong = |why: String| RedisError::CaFile { path: path.display().to_string(), why };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let is_pem = pem.windows(27).any(|part| part == b"-----BEGIN CERTIFICATE-----");
            if is_pem {
                Ok(pem)
            } else {
                Err(wrong("no certificate is in it (-----BEGIN CERTIFICATE-----)".to_owned()))
            }
        });
        Ok(Address { url: settings.url.clone(), roots: roots.transpose()?, patience: PATIENCE })
    }
}

/// The Redis of a fleet. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    address: Address,
    /// Begins all names in Redis: fleets may share one.
    mark: String,
    channel: String,
    /// Tells what this process has published from what others have.
    instance: String,
    /// What calls use; none: they fail at once.
    link: ArcSwapOption<Link>,
    /// The first connection, until it is kept.
    first: Mutex<Option<Link>>,
    /// Told when it is to be looked at now.
    doubt: Notify,
    /// Why the last call failed.
    fault: Mutex<String>,
    ears: OnceLock<Ears>,
    to_tell: Mutex<BTreeSet<u32>>,
    has_to_tell: Notify,
    entropy: Entropy,
    metrics: RedisMetrics,
}

impl Redis {
    /// Connects. One that is not there is waited for in the background; one that is there and must not be used is refused.
    /// `fleet` tells this database from all others.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn open(
        settings: &config::Redis,
        fleet: &str,
        entropy: &Entropy,
        registry: &Registry,
    ) -> Result<Redis, RedisError> {
        let mark = format!("sluice:{fleet}");
        let redis = Redis(Arc::new(Inner {
            address: Address { patience: ANSWER_MAX, ..Address::of(settings)? },
            channel: format!("{mark}:news"),
            mark,
            instance: format!("{:016x}", entropy.next_u64()),
            link: ArcSwapOption::empty(),
            first: Mutex::new(None),
            doubt: Notify::new(),
            fault: Mutex::default(),
            ears: OnceLock::new(),
            to_tell: Mutex::default(),
            has_to_tell: Notify::new(),
            entropy: entropy.clone(),
            metrics: RedisMetrics::new(registry)?,
        }));
        match redis.connect().await {
            Ok(link) => {
                tracing::info!(redis = %settings.url, "Redis helps");
                redis.use_link(&link);
                *redis.0.first.lock() = Some(link);
            }
            Err(Trouble::Away(why)) => {
                tracing::warn!(redis = %settings.url, why, "Redis does not help yet; the broker does without until it does");
            }
            Err(Trouble::Refused(why)) => return Err(RedisError::Refused { place: settings.url.to_string(), why }),
        }
        Ok(redis)
    }

    /// Helps these from now on, until `ended`.
    pub fn help(
        &self,
        fleet: &Arc<Fleet>,
        (store, streams): (&Arc<PostgresStore>, &Arc<RedisStore>),
        ended: CancellationToken,
    ) {
        let (fleet, store, streams) = (Arc::clone(fleet), Arc::clone(store), Arc::clone(streams));
        let teller = Arc::downgrade(&self.0);
        // A store would hold what holds the store.
        let tell = move |topic| {
            if let Some(teller) = teller.upgrade() {
                Redis(teller).tell_of(topic);
            }
        };
        store.tell_others(tell.clone());
        streams.tell_others(tell);
        // A second fleet there is none.
        let _first = self.0.ears.set(Ears { fleet: Arc::clone(&fleet), store, streams });
        let redis = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = redis.keep_connected() => {}
                () = redis.keep_telling(&fleet) => {}
                () = ended.cancelled() => {}
            }
            redis.0.link.store(None);
        });
    }

    /// Whether it helps now.
    #[must_use]
    pub fn helps(&self) -> bool {
        self.0.link.load().is_some()
    }

    /// Asks, if Redis helps now, for at most `patience`.
    async fn call<T: FromRedisValue>(&self, command: &Cmd, patience: Duration) -> Result<T, Away> {
        let Some(link) = self.0.link.load_full() else { return Err(Away) };
        let answer = tokio::time::timeout(patience, link.ask(command)).await;
        if let Ok(Ok(answer)) = answer {
            return Ok(answer);
        }
        *self.0.fault.lock() = match answer {
            Ok(Err(error)) => error.to_string(),
            _ => SILENT.to_owned(),
        };
        self.0.metrics.failures.inc();
        // Nobody else waits for it before it has answered.
        self.0.link.store(None);
        self.0.metrics.up.set(0);
        self.0.doubt.notify_one();
        Err(Away)
    }

    fn use_link(&self, link: &Link) {
        self.0.link.store(Some(Arc::new(link.clone())));
        self.0.metrics.up.set(1);
    }

    /// Connects, looks, and subscribes.
    async fn connect(&self) -> Result<Link, Trouble> {
        // It is held by the connection, which this holds.
        let hearer = Arc::downgrade(&self.0);
        let told: Told = Arc::new(move |info| {
            if let Some(hearer) = hearer.upgrade() {
                Redis(hearer).hear(&info);
            }
        });
        let link = Link::connect(&self.0.address, &told).await?;
        self.look(&link).await?;
        let subscribed = tokio::time::timeout(LOOK_MAX, link.subscribe(&self.0.channel)).await;
        subscribed.map_err(|_| silent())?.map_err(|error| link.trouble(&error))?;
        Ok(link)
    }

    async fn look(&self, link: &Link) -> Result<(), Trouble> {
        tokio::time::timeout(LOOK_MAX, look(link, &self.0.mark)).await.map_err(|_| silent())?
    }

    /// Keeps a connection, and makes another one when it fails.
    async fn keep_connected(&self) {
        let first = self.0.first.lock().take();
        let (mut pause, mut told) = (Pause::new(&self.0.entropy), if first.is_some() { None } else { Some(silent()) });
        let mut next = first.map(Ok);
        loop {
            let connected = match next.take() {
                Some(first) => first,
                None => self.connect().await,
            };
            let trouble = match connected {
                Ok(link) => self.keep(&link, &mut pause, &mut told).await,
                Err(trouble) => trouble,
            };
            self.0.link.store(None);
            self.0.metrics.up.set(0);
            self.tell_trouble(&trouble, &mut told);
            pause.wait().await;
        }
    }

    /// Looks at the server now and again, and when a call has failed; returns why it is given up.
    async fn keep(&self, link: &Link, pause: &mut Pause<'_>, told: &mut Option<Trouble>) -> Trouble {
        loop {
            self.use_link(link);
            if told.take().is_some() {
                tracing::info!("Redis helps again");
            }
            let steady = Stopwatch::start();
            loop {
                let doubted = tokio::time::timeout(LOOK_EVERY, self.0.doubt.notified()).await.is_ok();
                if doubted && !self.helps() {
                    break;
                }
                if let Err(trouble) = self.look(link).await {
                    if steady.elapsed() >= STEADY {
                        pause.begin_anew();
                    }
                    return trouble;
                }
            }
            if steady.elapsed() >= STEADY {
                pause.begin_anew();
            }
            let fault = self.0.fault.lock().clone();
            self.tell_trouble(&Trouble::Away(fault), told);
            // Not at once: what fails again costs those who wait for it their patience.
            pause.wait().await;
            if let Err(trouble) = self.look(link).await {
                return trouble;
            }
        }
    }

    /// Says it once, and once more when it is another thing for an operator.
    fn tell_trouble(&self, trouble: &Trouble, told: &mut Option<Trouble>) {
        let place = &self.0.address.url;
        match (trouble, &*told) {
            (Trouble::Refused(why), known) if known.as_ref() != Some(trouble) => {
                tracing::error!(redis = %place, why, "Redis must not be used as it is; the broker does without");
            }
            (Trouble::Away(why), None) => {
                tracing::warn!(redis = %place, why, "Redis does not help; the broker does without until it does");
            }
            (Trouble::Away(why), Some(_)) => tracing::debug!(why, "Redis does not help yet"),
            (Trouble::Refused(_), _) => {}
        }
        if told.is_none() || matches!(trouble, Trouble::Refused(_)) {
            *told = Some(trouble.clone());
        }
    }
}

fn silent() -> Trouble {
    Trouble::Away(SILENT.to_owned())
}

/// What lies between two tries.
pub(crate) struct Pause<'a> {
    next: Duration,
    entropy: &'a Entropy,
}

impl Pause<'_> {
    pub(crate) fn new(entropy: &Entropy) -> Pause<'_> {
        Pause { next: PAUSE_MIN, entropy }
    }

    pub(crate) fn begin_anew(&mut self) {
        self.next = PAUSE_MIN;
    }

    pub(crate) async fn wait(&mut self) {
        let now = self.next.mul_f64(0.5 + self.entropy.fraction());
        self.next = (self.next * 2).min(PAUSE_MAX);
        tokio::time::sleep(now).await;
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("url", &self.0.address.url).finish_non_exhaustive()
    }
}
