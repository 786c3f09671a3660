//! One worker per active Push subscription: started, told of changes, and stopped as the directory says. Invariant: a
//! worker that fails, hangs or panics touches no other. Never sends by itself, but for test deliveries.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::endpoint::{AttemptRecord, Endpoint, EndpointStatus, News};
use super::feed::BrokerFeed;
use super::figures::EndpointMetrics;
use super::metrics::PushMetrics;
use super::room::Room;
use super::sender::{Sender, SenderError};
use super::test_delivery::{self, TestResult};
use super::worker::{Worker, WorkerParts};
use crate::catalog::model::{Subscription, SubscriptionId, SubscriptionKind, Topic};
use crate::clock::Clock;
use crate::config;
use crate::delivery::outbound::Outbound;
use crate::directory::Directory;
use crate::duty::Duty;
use crate::entropy::Entropy;
use crate::events::Events;
use crate::fleet::Fleet;
use crate::store::MessageStore;

/// Test deliveries at once: people make them by hand, and each may hold a connection for some seconds.
const TESTS_MAX: usize = 8;
/// The pause before a worker that panicked is started again, so that a panic that repeats does not spin.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// What webhooks need of the broker.
pub struct PushParts {
    /// Where the messages are.
    pub store: Arc<dyn MessageStore>,
    /// Knows the subscriptions.
    pub directory: Arc<Directory>,
    /// Leases and runs stages.
    pub outbound: Arc<Outbound>,
    /// The time.
    pub clock: Clock,
    /// Jitter and test messages.
    pub entropy: Entropy,
    /// Where it is told what becomes of endpoints.
    pub events: Events,
    /// Which endpoints may be reached, and how hard.
    pub settings: config::Push,
    /// This broker's name, as leases know their holder.
    pub node_id: Arc<str>,
    /// Whether it takes work.
    pub duty: Duty,
    /// The brokers that send what this one does not once they don't count it.
    pub fleet: Option<Arc<Fleet>>,
}

/// Why webhooks could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// No client can be made from the settings.
    #[error(transparent)]
    Sender(#[from] SenderError),
    /// The metrics are registered already.
    #[error("metrics of webhooks: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Runs all webhooks of this broker.
pub struct PushSupervisor {
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    tests: Semaphore,
}

struct Shared {
    parts: PushParts,
    sender: Sender,
    metrics: PushMetrics,
    room: Arc<Room>,
    /// One per Push subscription that has been active; kept while it is paused, removed when it is deleted.
    endpoints: Mutex<HashMap<SubscriptionId, Arc<Endpoint>>>,
    /// Workers that have not ended.
    workers: AtomicUsize,
}

/// A worker that runs.
struct Running {
    subscription: watch::Sender<Arc<Subscription>>,
    stop: CancellationToken,
}

impl PushSupervisor {
    /// Starts a worker for each active Push subscription, now and whenever one is made. Within a runtime.
    ///
    /// # Errors
    /// When the settings or the metrics do not allow it.
    pub fn start(parts: PushParts, registry: &Registry) -> Result<Arc<PushSupervisor>, PushError> {
        let sender = Sender::new(&parts.settings, parts.clock.clone())?;
        let metrics = PushMetrics::new(registry)?;
        let room = Room::new(parts.settings.requests_max, metrics.waiting());
        let shared = Arc::new(Shared {
            parts,
            sender,
            metrics,
            room,
            endpoints: Mutex::default(),
            workers: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(supervise(Arc::clone(&shared), stop.clone()));
        Ok(Arc::new(PushSupervisor { shared, stop, task: Mutex::new(Some(task)), tests: Semaphore::new(TESTS_MAX) }))
    }

    /// What is known of a subscription's endpoint; `None` if this broker has not sent to it since it started.
    #[must_use]
    pub fn status(&self, id: SubscriptionId) -> Option<EndpointStatus> {
        self.shared.endpoints.lock().get(&id).map(|endpoint| endpoint.status())
    }

    /// The latest attempts of a subscription on this broker, newest first.
    #[must_use]
    pub fn attempts(&self, id: SubscriptionId) -> Vec<AttemptRecord> {
        let endpoint = self.shared.endpoints.lock().get(&id).cloned();
        endpoint.map(|endpoint| endpoint.attempts()).unwrap_or_default()
    }

    /// Forgets the attempts of a subscription on this broker; says how many there were.
    #[must_use]
    pub fn clear_attempts(&self, id: SubscriptionId) -> usize {
        let endpoint = self.shared.endpoints.lock().get(&id).cloned();
        endpoint.map_or(0, |endpoint| endpoint.clear_attempts())
    }

    /// What was sent for a subscription by this broker in the `window` before now.
    #[must_use]
    pub fn metrics(&self, id: SubscriptionId, window: Duration) -> EndpointMetrics {
        let endpoint = self.shared.endpoints.lock().get(&id).cloned();
        endpoint.map_or_else(|| EndpointMetrics::none(self.shared.parts.clock.now()), |known| known.metrics(window))
    }

    /// Webhooks under way, and how many subscriptions have a worker: while there is one, something may be leased.
    #[must_use]
    pub fn load(&self) -> (u64, u64) {
        (self.shared.metrics.in_flight(), self.shared.workers.load(Ordering::Acquire) as u64)
    }

    /// One signed test delivery; it has no effect on the subscription.
    pub async fn test(&self, subscription: &Subscription, topic: &Topic) -> TestResult {
        let _permit = self.tests.acquire().await.expect("the semaphore is never closed");
        let parts = &self.shared.parts;
        test_delivery::send(&self.shared.sender, subscription, topic, &parts.clock, &parts.entropy).await
    }

    /// Stops: what is under way may end within this time, the rest is given back. Idempotent.
    pub async fn shutdown(&self, within: Duration) {
        self.stop.cancel();
        let task = self.task.lock().take();
        let Some(mut task) = task else { return };
        if tokio::time::timeout(within, &mut task).await.is_err() {
            tracing::warn!("webhooks were still under way at the end; their messages come again");
            // Ends the workers with it. Their leases end when the store is opened again.
            task.abort();
        }
    }
}

async fn supervise(shared: Arc<Shared>, stop: CancellationToken) {
    let mut changes = shared.parts.directory.changes();
    let mut running: HashMap<SubscriptionId, Running> = HashMap::new();
    let mut workers = JoinSet::new();
    loop {
        changes.borrow_and_update();
        let on = shared.parts.duty.is_on();
        reconcile(&shared, &mut running, &mut workers, on);
        shared.workers.store(workers.len(), Ordering::Release);
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changes.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            // Workers end when they are told to; this only takes them off the list.
            Some(_) = workers.join_next() => {}
            () = shared.parts.duty.other_than(on) => {}
        }
    }
    for worker in running.values() {
        worker.stop.cancel();
    }
    while workers.join_next().await.is_some() {}
}

/// Brings the workers in line with the directory; off duty there are none.
fn reconcile(
    shared: &Arc<Shared>,
    running: &mut HashMap<SubscriptionId, Running>,
    workers: &mut JoinSet<()>,
    on: bool,
) {
    let mut known = shared.parts.directory.subscriptions();
    known.retain(|subscription| subscription.settings.kind == SubscriptionKind::Push);
    let all: HashSet<SubscriptionId> = known.iter().map(|subscription| subscription.id).collect();
    let (paused, active): (Vec<_>, Vec<_>) = known.into_iter().partition(|subscription| subscription.pause.is_some());
    let active: HashMap<_, _> =
        active.into_iter().filter(|_| on).map(|subscription| (subscription.id, subscription)).collect();
    shared.endpoints.lock().retain(|id, _| all.contains(id));
    // No worker tells these what their owner has changed.
    for subscription in &paused {
        if let Some(endpoint) = shared.endpoints.lock().get(&subscription.id) {
            endpoint.configure(&subscription.settings);
        }
    }
    running.retain(|id, worker| {
        let stays = active.contains_key(id);
        if !stays {
            worker.stop.cancel();
        }
        stays
    });
    for (id, subscription) in active {
        match running.get(&id) {
            Some(worker) => {
                worker.subscription.send_if_modified(|before| {
                    let changed = !Arc::ptr_eq(before, &subscription) && **before != *subscription;
                    if changed {
                        *before = subscription;
                    }
                    changed
                });
            }
            None => drop(running.insert(id, begin(shared, subscription, workers))),
        }
    }
}

fn begin(shared: &Arc<Shared>, subscription: Arc<Subscription>, workers: &mut JoinSet<()>) -> Running {
    let parts = &shared.parts;
    let endpoint = Arc::clone(shared.endpoints.lock().entry(subscription.id).or_insert_with(|| {
        let max = parts.settings.concurrency_max;
        let news = News { events: parts.events.clone(), subscription: Arc::clone(&subscription) };
        Endpoint::new(max, (parts.clock.clone(), parts.entropy.clone()), shared.metrics.clone(), Some(news))
    }));
    let id = subscription.id;
    let stop = CancellationToken::new();
    let (sender, receiver) = watch::channel(Arc::clone(&subscription));
    let feed = Arc::new(BrokerFeed {
        topic: subscription.topic,
        subscription: id,
        store: Arc::clone(&parts.store),
        directory: Arc::clone(&parts.directory),
        outbound: Arc::clone(&parts.outbound),
        clock: parts.clock.clone(),
        holder: Arc::clone(&parts.node_id),
    });
    let (shared, stopped) = (Arc::clone(shared), stop.clone());
    workers.spawn(async move {
        loop {
            let worker = Worker::new(WorkerParts {
                feed: feed.clone(),
                sender: shared.sender.clone(),
                endpoint: Arc::clone(&endpoint),
                clock: shared.parts.clock.clone(),
                entropy: shared.parts.entropy.clone(),
                metrics: shared.metrics.clone(),
                room: Arc::clone(&shared.room),
                subscription: receiver.clone(),
                stop: stopped.clone(),
                fleet: shared.parts.fleet.clone(),
            });
            if AssertUnwindSafe(worker.run()).catch_unwind().await.is_ok() {
                return;
            }
            tracing::error!(subscription = %id, "the worker of a webhook panicked; it is started again");
            tokio::select! {
                () = stopped.cancelled() => return,
                () = tokio::time::sleep(RESTART_PAUSE) => {}
            }
        }
    });
    Running { subscription: sender, stop }
}
