//! One broker: its parts, put together once, started and stopped in the right order. Invariant: nothing is served before
//! the store has recovered and the directory agrees with it; on a stop, what is in flight is finished before the store
//! closes. Holds no logic of its own.

mod streams;

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Gauge, IntGauge, Registry};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::capture::Capture;
use crate::catalog::members::Load;
use crate::catalog::{Catalog, CatalogError};
use crate::changes::Changes;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Profile};
use crate::delivery::dead_letters::{DeadLetters, DeadLettersParts};
use crate::delivery::liveness::Liveness;
use crate::delivery::outbound::Outbound;
use crate::delivery::pull::Consumers;
use crate::delivery::push::{PushError, PushParts, PushSupervisor};
use crate::delivery::replies::Replies;
use crate::directory::{Directory, DirectoryError, DirectoryParts};
use crate::dry_run::DryRuns;
use crate::duty::Duty;
use crate::entropy::Entropy;
use crate::events::{self, Events, Thresholds};
use crate::fleet::{Fleet, FleetParts, JoinError};
use crate::offline::OfflineError;
use crate::offline::mark::Marked;
use crate::pipeline::kv_sweep::ValueSweep;
use crate::pipeline::{PipelineError, PipelineOptions, Pipelines};
use crate::publish::Publisher;
use crate::redis::{Redis, RedisError};
use crate::schemas::Schemas;
use crate::settle::Settler;
use crate::store::embedded::{EmbeddedOptions, EmbeddedStore, OpenError};
use crate::store::postgres::{PostgresOptions, PostgresStore};
use crate::store::redis::RedisStore;
use crate::store::routed::{Homes, RoutedStore};
use crate::store::{MessageStore, StoreError};
use crate::topic_history::TopicHistory;
use crate::topic_metrics::TopicMetrics;

/// How often the store is asked to do what is due, when it does not know a better time.
const TICK_MAX: Duration = Duration::from_millis(100);
/// How long audit entries are kept: a year and what an auditor takes to ask for it.
const AUDIT_KEPT: Duration = Duration::from_secs(400 * 86_400);
/// How many are kept at most: a change every half minute for as long.
const AUDIT_ENTRIES_MAX: u64 = 1_000_000;
/// How often it is looked for what crashed brokers have left: longer than any change takes.
const SWEEP_STRAYS_EVERY: Duration = Duration::from_secs(900);
/// How often pipelines are looked for that nobody brings onto the latest versions: longer than a change waits for brokers.
const LOOK_BEHIND_EVERY: Duration = Duration::from_secs(120);
/// How long a stop waits for what removes old messages; what it has not done is done later.
const TIDYING_MAX: Duration = Duration::from_secs(5);
/// How often older ones are looked for.
const TRIM_AUDIT_EVERY: Duration = Duration::from_secs(3600);
/// How often retention is enforced.
const RETAIN_EVERY: Duration = Duration::from_secs(5);
/// How long a stop waits for events to be published: a thousand of them are five writes, a fraction of it unless the store fails.
const TELLING_MAX: Duration = Duration::from_secs(3);
/// How long a stop waits for what arrived to be written: 16 MiB take a fraction of it, unless the disk fails.
const CAPTURE_MAX: Duration = Duration::from_secs(3);
/// How long a stop waits until the broker has signed off from its fleet.
const LEAVING_MAX: Duration = Duration::from_secs(2);
/// How often all topics are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// All parts of a running broker; what the API works on.
pub struct Broker {
    /// What it was told.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// What there is.
    pub catalog: Catalog,
    /// The messages.
    pub store: Arc<dyn MessageStore>,
    /// Topics and subscriptions.
    pub directory: Arc<Directory>,
    /// Plugins and pipelines.
    pub pipelines: Arc<Pipelines>,
    /// Versions on messages of the past.
    pub dry_runs: DryRuns,
    /// Schemas.
    pub schemas: Schemas,
    /// What has come in, as it was.
    pub capture: Capture,
    /// In.
    pub publisher: Arc<Publisher>,
    /// Out, to those that fetch.
    pub consumers: Consumers,
    /// Out, to endpoints.
    pub push: Arc<PushSupervisor>,
    /// Replies to those who wait for one.
    pub replies: Replies,
    /// The end of deliveries.
    pub settler: Settler,
    /// What failed for good.
    pub dead_letters: DeadLetters,
    /// Where it is told what happens to topics and endpoints.
    pub events: Events,
    /// Publishes what was told there.
    telling: Telling,
    /// Figures.
    pub registry: Registry,
    /// Figures per topic, read when asked.
    pub topic_metrics: TopicMetrics,
    /// What topics did lately.
    pub topic_history: TopicHistory,
    /// Which consumers are there.
    pub liveness: Arc<Liveness>,
    /// The brokers on the same database; none where everything is in the data directory.
    pub fleet: Option<Arc<Fleet>>,
    /// What helps them, if there is one.
    pub redis: Option<Redis>,
    /// The topics that are in it, if there is one.
    pub streams: Option<Arc<RedisStore>>,
    /// Whether it takes work.
    pub duty: Duty,
    /// Requests that wait for their answer.
    pub requests: IntGauge,
    /// When it started.
    pub started_at: Timestamp,
    /// What is carried to its end whoever hangs up.
    pub changes: Changes,
    /// Cancelled when the broker is to stop.
    pub stopping: CancellationToken,
    /// Cancelled when it has.
    ended: CancellationToken,
}

/// The task that publishes events.
struct Telling {
    task: Mutex<Option<JoinHandle<()>>>,
    ending: CancellationToken,
}

impl Telling {
    fn begin(
        waiting: events::Waiting,
        publisher: &Arc<Publisher>,
        directory: &Arc<Directory>,
        clock: &Clock,
    ) -> Telling {
        let ending = CancellationToken::new();
        let told = (clock.clone(), ending.clone());
        let task = tokio::spawn(waiting.publish(Arc::clone(publisher), Arc::clone(directory), told));
        Telling { task: Mutex::new(Some(task)), ending }
    }

    /// Waits until what was told is published, for at most `patience`.
    async fn finish(&self, patience: Duration) {
        self.ending.cancel();
        let Some(mut task) = self.task.lock().take() else { return };
        if tokio::time::timeout(patience, &mut task).await.is_err() {
            tracing::warn!("events that wait are left out: they could not be published in time");
            // It holds the store, which closes now.
            task.abort();
        }
    }
}

/// Why a broker did not start, or did not stop well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory.
    #[error("cannot use the data directory {path}: {source}")]
    DataDir {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The folder of plugins.
    #[error("plugins.dir names the folder {path}: {why}")]
    PluginsDir {
        /// Which.
        path: String,
        /// Why it can't be used, and what to do.
        why: String,
    },
    /// The store's files.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The other brokers.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// What helps them, and must not be used.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The plugins.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Catalog and store could not be brought in line.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Webhooks.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Topics are in a Redis, and none is set.
    #[error(
        "the topic '{topic}' is in Redis, and this broker has none: set redis.url (SLUICE__REDIS__URL) to the Redis that it is in"
    )]
    NoRedis {
        /// One of them.
        topic: String,
    },
    /// Two parts registered one metric.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The socket.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// What it would serve is on its way elsewhere, or was.
    #[error("{0}")]
    Moved(String),
    /// Whether it is could not be read.
    #[error(transparent)]
    Mark(#[from] OfflineError),
    /// Something else that the system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

async fn not_moved(data_dir: &Path) -> Result<(), ServeError> {
    match Marked::Dir(data_dir.to_owned()).read().await? {
        Some(mark) => Err(ServeError::Moved(mark.refusal())),
        None => Ok(()),
    }
}

impl Broker {
    /// Recovers the store and puts all parts together.
    ///
    /// # Errors
    /// Nothing is served then.
    pub async fn open(config: Config) -> Result<Arc<Broker>, ServeError> {
        Broker::open_until(config, CancellationToken::new()).await
    }

    async fn open_until(config: Config, stopping: CancellationToken) -> Result<Arc<Broker>, ServeError> {
        let (clock, entropy, registry) = (Clock::system(), Entropy::system(), Registry::new());
        let ended = CancellationToken::new();
        let duty = Duty::new(stopping.clone());
        let data_dir = config.data_dir.clone();
        // Payloads, secrets and machine code are in it: for the broker's user alone.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&data_dir)
            .map_err(|source| ServeError::DataDir { path: data_dir.display().to_string(), source })?;
        if let Some(dir) = &config.plugins.dir {
            need_plugins_dir(dir, config.profile)?;
        }
        if let Some(file) = config.test_clock_file.clone() {
            crate::config::follow_test_clock(file, clock.clone());
        }
        let mut started_at = clock.now();
        let mut redis = None;
        let (store, catalog, shared): (Arc<dyn MessageStore>, _, _) = match &config.storage {
            None => {
                let options = EmbeddedOptions::new(&data_dir.join("store"), clock.clone());
                let store = in_background(move || EmbeddedStore::open(options)).await?;
                // Now that it has the directory, no move begins.
                not_moved(&data_dir).await?;
                store.register(&registry)?;
                (Arc::new(store), Catalog::open(&data_dir.join("catalog.db"), clock.clone()).await?, None)
            }
            Some(postgres) => {
                let catalog = Catalog::connect_once_there(&postgres.url, clock.clone()).await?;
                if let Some(settings) = &config.redis {
                    redis = Some(Redis::open(settings, &catalog.identity().await?, &entropy, &registry).await?);
                }
                let instance = format!("{:016x}{:016x}", entropy.next_u64(), entropy.next_u64());
                let skew = Gauge::new(
                    "sluice_clock_skew_seconds",
                    "How far this machine's clock is ahead of the database's, by which the broker goes.",
                )?;
                registry.register(Box::new(skew.clone()))?;
                let joining = Fleet::join(FleetParts {
                    clock: clock.clone(),
                    skew,
                    catalog: catalog.clone(),
                    showing: Catalog::aside(&postgres.url, clock.clone())?,
                    node: config.node_id.clone(),
                    instance,
                    duty: duty.clone(),
                    stopping: stopping.clone(),
                    ended: ended.clone(),
                });
                let fleet = joining.await?;
                started_at = fleet.started_at();
                let options = PostgresOptions {
                    connect: postgres.url.options(),
                    connections_max: postgres.connections_max,
                    node: config.node_id.as_str().into(),
                    clock: clock.clone(),
                };
                let store = Arc::new(PostgresStore::open(options).await?);
                (Arc::clone(&store) as _, catalog, Some((fleet, store)))
            }
        };
        let homes = Homes::default();
        let streams = streams::open(&config, &catalog, (&clock, &entropy), &registry).await?;
        let store = match &streams {
            Some(streams) => Arc::new(RoutedStore::new(store, Arc::clone(streams) as _, homes.clone())),
            None => store,
        };
        let fleet = shared.as_ref().map(|(fleet, _)| Arc::clone(fleet));
        let plugin_options = PipelineOptions { fleet, ..PipelineOptions::new(&config.plugins, &data_dir) };
        let pipelines = Pipelines::open(plugin_options, catalog.clone(), clock.clone(), &registry).await?;
        pipelines.keep_values_in(&store);
        let schemas = Schemas::new(catalog.clone(), config.schemas.versions_max);
        let directory = Directory::open(DirectoryParts {
            catalog: catalog.clone(),
            store: Arc::clone(&store),
            homes,
            pipelines: Arc::clone(&pipelines),
            schemas: schemas.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            dead_letter_retention: config.messaging.dead_letter_retention,
            at_most: (config.limits.topics_max, config.limits.subscriptions_max),
            is_shared: shared.is_some(),
        })
        .await?;
        crate::system_topics::ensure(&directory).await?;
        let fleet = shared.map(|(fleet, store)| {
            let followed = (Arc::clone(&directory), Arc::clone(&pipelines));
            if let (Some(redis), Some(streams)) = (&redis, &streams) {
                redis.help(&fleet, (&store, streams), ended.clone());
            }
            tokio::spawn(Arc::clone(&fleet).keep_up(followed, (store, streams.clone())));
            fleet
        });
        let outbound =
            Arc::new(Outbound::new(Arc::clone(&store), Arc::clone(&pipelines), clock.clone(), entropy.clone()));
        let (events, waiting) = events::channel(clock.clone(), &registry)?;
        // The directory holds the pipelines.
        let (told, owners) = (events.clone(), Arc::downgrade(&directory));
        pipelines.tell_of_rollbacks(move |view| {
            if let Some(owners) = owners.upgrade() {
                told.rolled_back(view, &owners);
            }
        });
        let capture = Capture::open(
            (&data_dir.join("captured"), config.limits.captured),
            &directory.topics(),
            &clock,
            &registry,
        )?;
        let publisher = Arc::new(Publisher::new(
            Arc::clone(&store),
            Arc::clone(&pipelines),
            Arc::clone(&directory),
            (clock.clone(), entropy.clone()),
            (events.clone(), capture.clone()),
            &registry,
        )?);
        let telling = Telling::begin(waiting, &publisher, &directory, &clock);
        let liveness = Arc::new(Liveness::new(clock.clone()));
        let consumers = Consumers::new(
            Arc::clone(&liveness),
            Arc::clone(&outbound),
            Arc::clone(&directory),
            Arc::clone(&store),
            (clock.clone(), duty.clone()),
            &registry,
        )?;
        let replies = Replies::new(Arc::clone(&store), clock.clone(), stopping.clone());
        let settler =
            Settler::new(Arc::clone(&store), Arc::clone(&directory), Arc::clone(&outbound), clock.clone(), &registry)?;
        let dead_letters = DeadLetters::new(DeadLettersParts {
            store: Arc::clone(&store),
            pipelines: Arc::clone(&pipelines),
            publisher: Arc::clone(&publisher),
            clock: clock.clone(),
            entropy: entropy.clone(),
        });
        let push = PushSupervisor::start(
            PushParts {
                store: Arc::clone(&store),
                directory: Arc::clone(&directory),
                outbound,
                clock: clock.clone(),
                entropy: entropy.clone(),
                events: events.clone(),
                settings: config.push.clone(),
                node_id: config.node_id.as_str().into(),
                duty: duty.clone(),
                fleet: fleet.clone(),
            },
            &registry,
        )?;
        let topic_metrics = TopicMetrics::new(&registry)?;
        let topic_history = TopicHistory::new(clock.clone());
        registry.register(Box::new(crate::telemetry::left_out()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let requests = IntGauge::new("sluice_http_requests_in_flight", "Requests that wait for their answer.")?;
        registry.register(Box::new(requests.clone()))?;
        let broker = Arc::new(Broker {
            config,
            clock,
            entropy,
            catalog,
            store,
            directory,
            pipelines,
            dry_runs: DryRuns::new(stopping.clone()),
            schemas,
            capture,
            publisher,
            consumers,
            push,
            replies,
            settler,
            dead_letters,
            events,
            telling,
            registry,
            topic_metrics,
            topic_history,
            liveness,
            changes: Changes::among(fleet.clone()),
            fleet,
            redis,
            streams,
            duty,
            requests,
            started_at,
            stopping,
            ended,
        });
        if let Some(fleet) = &broker.fleet {
            let told = Arc::downgrade(&broker);
            fleet.enter(move || told.upgrade().map(|broker| broker.load()).unwrap_or_default()).await;
        }
        Ok(broker)
    }

    /// What it has to do, and how its plugins are.
    #[must_use]
    pub fn load(&self) -> Load {
        let (webhooks, senders) = self.push.load();
        let (pipelines, lagging, refused) = self.pipelines.state();
        Load { requests: self.requests.get().unsigned_abs(), webhooks, senders, pipelines, lagging, refused }
    }

    /// Stops: changes, endpoints, events of them, stages, the capture, store, catalog, in this order.
    ///
    /// # Errors
    /// When the store could not write what makes the next start quick; nothing acknowledged is lost by that.
    async fn close(&self) -> Result<(), ServeError> {
        self.changes.finish(self.config.limits.shutdown_timeout).await;
        self.push.shutdown(self.config.limits.shutdown_timeout).await;
        self.telling.finish(self.config.limits.shutdown_timeout.min(TELLING_MAX)).await;
        self.pipelines.shutdown().await;
        self.capture.stop(self.config.limits.shutdown_timeout.min(CAPTURE_MAX)).await;
        if let Some(fleet) = &self.fleet {
            self.ended.cancel();
            fleet.left(LEAVING_MAX).await;
        }
        self.store.close().await?;
        self.catalog.close().await;
        Ok(())
    }

    /// Looks at all topics, now and again: apart from what is due, which must not wait for that.
    async fn keep_watch(self: Arc<Broker>) {
        let mut thresholds = Thresholds::default();
        let (mut lists, mut totals) = (Trouble::with("counting dead letters"), Trouble::with("figures of topics"));
        let mut left = Trouble::with("mending what failed changes left");
        while !self.stopping.is_cancelled() {
            lists.heard(thresholds.look(&self.directory, &self.dead_letters, &self.events).await.as_ref().err());
            totals.heard(self.topic_history.look(&self.directory, &*self.store).await.as_ref().err());
            self.liveness.forget();
            left.heard(self.directory.mend_leftovers().await.as_ref().err());
            self.sleep_until(self.clock.now().plus(WATCH_EVERY)).await;
        }
    }

    /// Does what is due, when it is due.
    async fn keep_house(self: Arc<Broker>) {
        let mut due = Trouble::with("what is due");
        while !self.stopping.is_cancelled() {
            let ticked = self.store.tick().await;
            due.heard(ticked.as_ref().err());
            let at_latest = self.clock.now().plus(TICK_MAX);
            let next = ticked.ok().flatten();
            let wake = next.map_or(at_latest, |next| next.min(at_latest).max(self.clock.now().plus(MILLISECOND)));
            self.sleep_until(wake).await;
        }
    }

    /// Removes what is too old: apart from what is due, as either may take its time.
    async fn keep_tidy(self: Arc<Broker>) {
        let (mut next_trim, mut next_sweep, mut next_look) = (self.clock.now(), self.clock.now(), self.clock.now());
        let (mut retention, mut audit) = (Trouble::with("retention"), Trouble::with("trimming the audit log"));
        let (mut sweep, mut values) =
            (ValueSweep::default(), Trouble::with("removing plugins' values that have ended"));
        let mut strays = Trouble::with("removing what the catalog does not know");
        let left_out = crate::telemetry::left_out();
        let mut told = left_out.get();
        while !self.stopping.is_cancelled() {
            retention.heard(self.store.retain().await.as_ref().err());
            values.heard(sweep.step(&*self.store, self.clock.now()).await.as_ref().err());
            if left_out.get() > told {
                tracing::warn!(lines = left_out.get() - told, "the log left lines out: it had said the same often");
                told = left_out.get();
            }
            if self.clock.now() >= next_trim {
                let trimmed = self.catalog.trim_audit(self.clock.now().minus(AUDIT_KEPT), AUDIT_ENTRIES_MAX).await;
                audit.heard(trimmed.as_ref().err());
                next_trim = self.clock.now().plus(TRIM_AUDIT_EVERY);
            }
            if self.clock.now() >= next_look {
                self.pipelines.look_for_left_behind();
                next_look = self.clock.now().plus(LOOK_BEHIND_EVERY);
            }
            if self.clock.now() >= next_sweep {
                strays.heard(self.directory.sweep_strays().await.as_ref().err());
                next_sweep = self.clock.now().plus(SWEEP_STRAYS_EVERY);
            }
            self.sleep_until(self.clock.now().plus(RETAIN_EVERY)).await;
        }
    }

    async fn sleep_until(&self, wake: Timestamp) {
        tokio::select! {
            () = self.clock.sleep_until(wake) => {}
            () = self.stopping.cancelled() => {}
        }
    }
}

/// Something that is tried again and again: logged when it begins to fail, when it fails otherwise, and when it works
/// again, not each time.
struct Trouble {
    work: &'static str,
    last: Option<String>,
}

impl Trouble {
    fn with(work: &'static str) -> Trouble {
        Trouble { work, last: None }
    }

    fn heard(&mut self, error: Option<&impl std::fmt::Display>) {
        let now = error.map(ToString::to_string);
        match &now {
            _ if now == self.last => return,
            Some(error) => tracing::error!(work = self.work, error, "housekeeping fails; trying again"),
            None => tracing::info!(work = self.work, "housekeeping works again"),
        }
        self.last = now;
    }
}

/// Between two looks at the store at least: a store that says "now" must not make a busy loop.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Runs a broker until it is told to stop by SIGTERM or SIGINT. `ready` is called with the address once it serves.
///
/// # Errors
/// When it could not start, or could not stop well.
pub async fn serve(config: Config, ready: impl FnOnce(SocketAddr) + Send) -> Result<(), ServeError> {
    let listening = crate::api::server::bind(&config).await;
    let listeners = listening.map_err(|(address, source)| ServeError::Listen { address, source })?;
    // From here on: as the first process of a container it would not be ended by a signal that it does not take.
    let stopping = CancellationToken::new();
    stop_on_signals(stopping.clone())?;
    let broker = tokio::select! {
        opened = Broker::open_until(config, stopping.clone()) => opened?,
        // What it was about to do is done again at the next start.
        () = stopping.cancelled() => {
            tracing::info!("stopped before it served");
            // Nothing was acknowledged; a recovery under way would be waited for.
            std::process::exit(0);
        }
    };
    let housekeeping: JoinHandle<()> = tokio::spawn(Arc::clone(&broker).keep_house());
    let mut tidying: JoinHandle<()> = tokio::spawn(Arc::clone(&broker).keep_tidy());
    let watching: JoinHandle<()> = tokio::spawn(Arc::clone(&broker).keep_watch());
    broker.pipelines.watch()?;
    let address = listeners[0].local_addr()?;
    ready(address);
    let (data_dir, broker_port) = (broker.config.data_dir.display(), broker.config.messaging.broker_port);
    tracing::info!(%address, broker_port, %data_dir, "serving");
    crate::api::server::serve(Arc::clone(&broker), listeners).await;
    // A housekeeper that panicked has been logged by the panic hook; the stop goes on.
    drop(housekeeping.await);
    if tokio::time::timeout(TIDYING_MAX, &mut tidying).await.is_err() {
        tidying.abort();
    }
    drop(watching.await);
    broker.close().await?;
    tracing::info!("stopped");
    Ok(())
}

/// A folder that is named and not there is mistyped or not mounted, which production must not start without; who tries
/// things out is spared making it.
fn need_plugins_dir(dir: &Path, profile: Profile) -> Result<(), ServeError> {
    if dir.is_dir() {
        return Ok(());
    }
    let unusable = |why: String| ServeError::PluginsDir { path: dir.display().to_string(), why };
    if profile == Profile::Production {
        return Err(unusable("it is not there; make or mount it, or correct the setting".to_owned()));
    }
    std::fs::create_dir_all(dir).map_err(|error| unusable(error.to_string()))?;
    tracing::info!(dir = %dir.display(), "the folder of plugins was not there: it was made");
    Ok(())
}

/// Recovery reads files for as long as it takes: not on a thread that others wait for.
async fn in_background<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn stop_on_signals(stopping: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
        tracing::info!(signal = name, "stopping: finishing what is in flight");
        stopping.cancel();
        // Asked twice, the operator means it: what is on stable storage stays there.
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::warn!("asked to stop a second time: ending at once");
        std::process::exit(130);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{EVENTS_TOPIC, TopicId};
    use crate::store::{ReadFrom, ReadRequest};

    #[tokio::test]
    async fn what_was_told_before_a_stop_is_there_after_it() {
        const EVENTS: usize = 200;
        let root = tempfile::tempdir().unwrap();
        let config = Config { data_dir: root.path().join("data"), ..crate::config::tests::development() };
        let broker = Broker::open(config.clone()).await.unwrap();
        for number in 0..EVENTS {
            let mut topic = crate::publish::tests::topic(&format!("t{number}"));
            topic.id = TopicId(100 + u32::try_from(number).unwrap());
            broker.events.topic_full(&topic);
        }
        broker.close().await.unwrap();
        drop(broker);
        let broker = Broker::open(config).await.unwrap();
        let topic = broker.directory.topic(&EVENTS_TOPIC.parse().unwrap()).unwrap().id;
        let all = ReadRequest { topic, partition: None, from: ReadFrom::Earliest, limit: 1000, bytes_max: 1 << 20 };
        assert_eq!(broker.store.read(all).await.unwrap().messages.len(), EVENTS);
        broker.close().await.unwrap();
    }

    #[test]
    fn a_plugin_folder_that_is_not_there_stops_production_and_is_made_in_development() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("a/plugins");
        let error = need_plugins_dir(&missing, Profile::Production).unwrap_err().to_string();
        assert!(error.starts_with("plugins.dir") && error.contains(&missing.display().to_string()), "{error}");
        assert!(!missing.exists());
        need_plugins_dir(&missing, Profile::Development).unwrap();
        need_plugins_dir(&missing, Profile::Production).unwrap();
    }
}
