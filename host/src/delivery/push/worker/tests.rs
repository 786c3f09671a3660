//! Workers over real sockets, with a feed in memory in place of the broker.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::super::breaker::{BreakerState, FAILURES_TO_OPEN};
use super::super::feed::Want;
use super::super::testing::{self, Receiver, Reply, answer};
use super::intake::QUEUE_TIME_MAX;
use super::*;
use crate::catalog::model::{Guarantee, Topic};
use crate::message::MessageId;
use crate::store::{Receipt, SettleRefused, Settled, StoreError};

const START: Timestamp = Timestamp(1_700_000_000_000);

/// A log, a cursor and their leases, as far as a worker can tell.
struct MemoryFeed {
    clock: Clock,
    guarantee: Guarantee,
    state: Mutex<FeedState>,
    wake: watch::Sender<u64>,
}

#[derive(Default)]
struct FeedState {
    waiting: Vec<(Timestamp, u32, Lease)>,
    leased: HashMap<u64, (u32, Lease)>,
    grants: u64,
    leased_max: usize,
    acked: Vec<MessageId>,
    failures: Vec<(MessageId, Timestamp, Failure)>,
    released: usize,
    settles: usize,
    paused: Option<String>,
    unavailable: usize,
}

#[async_trait]
impl Feed for MemoryFeed {
    fn topic(&self) -> Option<Arc<Topic>> {
        Some(Arc::new(testing::topic(self.guarantee)))
    }

    fn wakes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.wake.subscribe())
    }

    async fn next(&self, _: Arc<Subscription>, _: Arc<Topic>, want: Want) -> Result<Prepared, OutboundError> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.waiting.sort_by_key(|(_, _, lease)| lease.position);
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut state.waiting).into_iter().partition(|it| it.0 <= now);
        let mut due = due.into_iter();
        let mut leases = Vec::new();
        for (_, attempt, lease) in due.by_ref().take(want.max) {
            state.grants += 1;
            let receipt = Receipt { grant: state.grants, attempt, ..lease.receipt };
            let lease = Lease { attempt, deadline: now.plus(want.duration), receipt, ..lease };
            if self.guarantee != Guarantee::AtMostOnce {
                state.leased.insert(receipt.grant, (attempt, lease.clone()));
            }
            leases.push(lease);
        }
        state.leased_max = state.leased_max.max(state.leased.len());
        let rest: Vec<_> = due.collect();
        let more = !rest.is_empty();
        state.waiting = rest.into_iter().chain(later).collect();
        Ok(Prepared { leases, more })
    }

    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.settles += 1;
        if state.unavailable > 0 {
            state.unavailable -= 1;
            return Err(StoreError::Unavailable("full".to_owned()));
        }
        let mut results = Vec::new();
        for settle in settles {
            let LeaseRef::Receipt { receipt, .. } = settle.lease else { panic!("workers have receipts") };
            let Some((attempt, lease)) = state.leased.remove(&receipt.grant) else {
                results.push(Err(SettleRefused::LeaseExpired));
                continue;
            };
            results.push(Ok(match settle.settlement {
                Settlement::Ack => {
                    state.acked.push(lease.message.id);
                    Settled::Acked
                }
                Settlement::Release => {
                    state.released += 1;
                    state.waiting.push((now, attempt, lease));
                    Settled::Released
                }
                Settlement::Retry { at, failure } => {
                    state.failures.push((lease.message.id, at, failure));
                    state.waiting.push((at, attempt + 1, lease));
                    Settled::Retrying { at }
                }
                other => panic!("{other:?} is nothing that a worker does"),
            }));
        }
        drop(state);
        self.wake();
        Ok(results)
    }

    async fn pause(&self, reason: String) -> Result<(), String> {
        self.state.lock().paused = Some(reason);
        Ok(())
    }
}

impl MemoryFeed {
    fn wake(&self) {
        self.wake.send_modify(|wakes| *wakes += 1);
    }

    fn publish(&self, sequences: std::ops::Range<u64>, key: impl Fn(u64) -> Option<&'static str>) {
        let now = self.clock.now();
        self.state.lock().waiting.extend(sequences.map(|at| (now, 1, testing::lease(at, key(at)))));
        self.wake();
    }
}

/// A worker under test.
struct Rig {
    feed: Arc<MemoryFeed>,
    endpoint: Arc<Endpoint>,
    settings: watch::Sender<Arc<Subscription>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    clock: Clock,
}

impl Rig {
    fn start(subscription: Subscription, guarantee: Guarantee, clock: Clock) -> Rig {
        let metrics = PushMetrics::new(&Registry::new()).unwrap();
        Rig::sharing(&Room::new(1024, metrics.waiting()), subscription, guarantee, clock)
    }

    fn sharing(room: &Arc<Room>, subscription: Subscription, guarantee: Guarantee, clock: Clock) -> Rig {
        let metrics = PushMetrics::new(&Registry::new()).unwrap();
        let feed = Arc::new(MemoryFeed {
            clock: clock.clone(),
            guarantee,
            state: Mutex::default(),
            wake: watch::channel(0).0,
        });
        let endpoint = Endpoint::new(16, (clock.clone(), Entropy::seeded(2)), metrics.clone(), None);
        let (settings, receiver) = watch::channel(Arc::new(subscription));
        let stop = CancellationToken::new();
        let worker = Worker::new(WorkerParts {
            feed: Arc::clone(&feed) as Arc<dyn Feed>,
            sender: Sender::new(&testing::settings(), clock.clone()).unwrap(),
            endpoint: Arc::clone(&endpoint),
            clock: clock.clone(),
            entropy: Entropy::seeded(3),
            metrics,
            room: Arc::clone(room),
            subscription: receiver,
            stop: stop.clone(),
            fleet: None,
        });
        Rig { feed, endpoint, settings, stop, task: tokio::spawn(worker.run()), clock }
    }

    fn at_least_once(subscription: Subscription) -> Rig {
        Rig::start(subscription, Guarantee::AtLeastOnce, Clock::fixed(START))
    }

    /// Waits until the feed's state is as it should be.
    async fn until(&self, what: &str, is: impl Fn(&FeedState) -> bool) {
        eventually(what, || is(&self.feed.state.lock())).await;
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.feed.wake();
    }
}

async fn eventually(what: &str, is: impl Fn() -> bool) {
    for _ in 0..2000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_messages_are_sent_once_and_acked() {
    let receiver = Receiver::start(|_, _| answer("200 OK", "")).await;
    let rig = Rig::at_least_once(testing::subscription(&receiver.url));
    rig.feed.publish(0..500, |_| None);
    rig.until("all acked", |state| state.acked.len() == 500).await;
    let ids: HashSet<String> =
        receiver.received().iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!((ids.len(), receiver.received().len()), (500, 500));
    assert_eq!(rig.endpoint.concurrency(), 16, "success has opened the window");
    assert!(rig.feed.state.lock().settles < 500, "settlements are batched");
}

#[tokio::test]
async fn a_failed_message_comes_again_after_its_backoff_with_the_same_body() {
    let receiver =
        Receiver::start(|_, before| answer(if before == 0 { "500 Internal Server Error" } else { "200 OK" }, "")).await;
    let rig = Rig::at_least_once(testing::subscription(&receiver.url));
    rig.feed.publish(0..1, |_| Some("a"));
    rig.until("it failed", |state| state.failures.len() == 1).await;
    let (_, at, failure) = rig.feed.state.lock().failures[0].clone();
    assert_eq!((&*failure.reason, failure.last_status), ("HTTP_500", Some(500)));
    let wait = at.since(START);
    assert!((Duration::from_millis(1600)..=Duration::from_millis(2400)).contains(&wait), "{wait:?}");
    rig.advance(Duration::from_millis(2400));
    rig.until("it was acked", |state| state.acked.len() == 1).await;
    let received = receiver.received();
    assert_eq!(received[0].body, received[1].body);
    assert_eq!(received[0].header("webhook-id"), received[1].header("webhook-id"));
    assert_eq!(received[1].header("x-delivery-attempt"), Some("2"));
}

#[tokio::test]
async fn retry_after_is_honoured_and_holds_the_others_back_without_an_attempt() {
    let receiver = Receiver::start(|_, before| {
        if before == 0 { answer("429 Too Many Requests", "Retry-After: 7\r\n") } else { answer("200 OK", "") }
    })
    .await;
    let mut subscription = testing::subscription(&receiver.url);
    subscription.settings.max_in_flight = Some(1);
    let rig = Rig::at_least_once(subscription);
    rig.feed.publish(0..5, |_| None);
    rig.until("it failed", |state| state.failures.len() == 1).await;
    assert_eq!(rig.feed.state.lock().failures[0].1, START.plus(Duration::from_secs(7)));
    assert_eq!(receiver.received().len(), 1, "the others wait");
    rig.advance(Duration::from_secs(7));
    rig.until("all acked", |state| state.acked.len() == 5).await;
    let attempts: Vec<String> =
        receiver.received().iter().map(|request| request.header("x-delivery-attempt").unwrap().to_owned()).collect();
    assert_eq!(attempts.iter().filter(|attempt| *attempt == "2").count(), 1);
}

#[tokio::test]
async fn gone_pauses_the_subscription_and_gives_everything_back() {
    let receiver = Receiver::start(|_, _| answer("410 Gone", "")).await;
    let rig = Rig::at_least_once(testing::subscription(&receiver.url));
    rig.feed.publish(0..50, |_| None);
    rig.until("paused", |state| state.paused.is_some() && state.leased.is_empty()).await;
    assert!(receiver.received().len() <= 4, "only what was under way");
    let state = rig.feed.state.lock();
    assert!(state.paused.as_deref().is_some_and(|reason| reason.contains("410")));
    assert_eq!((state.waiting.len(), state.failures.len()), (50, 0));
    assert!(state.waiting.iter().all(|(_, attempt, _)| *attempt == 1), "no attempt was counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_one_key_arrive_in_order_and_never_two_at_once() {
    let slow = |at: usize| Duration::from_millis([9, 1, 5, 2][at % 4]);
    let receiver =
        Receiver::start(move |_, before| Reply::Slow(slow(before), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())).await;
    let rig = Rig::at_least_once(testing::subscription(&receiver.url));
    let keys = ["a", "b", "c"];
    rig.feed.publish(0..120, move |at| keys.get((at % 4) as usize).copied());
    rig.until("all acked", |state| state.acked.len() == 120).await;
    let mut last: HashMap<String, u64> = HashMap::new();
    for request in receiver.received() {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let Some(key) = body["partitionKey"].as_str() else { continue };
        let offset = body["offset"].as_u64().unwrap();
        let before = last.insert(key.to_owned(), offset);
        assert!(before.is_none_or(|before| before < offset), "{key}: {before:?} then {offset}");
    }
    assert_eq!(last.len(), 3);
}

#[tokio::test]
async fn an_open_breaker_keeps_messages_from_burning_attempts_and_one_probe_ends_it() {
    let works = Arc::new(AtomicUsize::new(0));
    let working = Arc::clone(&works);
    let receiver = Receiver::start(move |_, _| {
        let works = working.load(Ordering::Relaxed) == 1;
        answer(if works { "200 OK" } else { "503 Service Unavailable" }, "")
    })
    .await;
    let rig = Rig::at_least_once(testing::subscription(&receiver.url));
    rig.feed.publish(0..200, |_| None);
    rig.until("failing", |state| state.failures.len() >= FAILURES_TO_OPEN as usize && state.leased.is_empty()).await;
    assert_eq!(rig.endpoint.status().breaker, BreakerState::Open);
    let sent = receiver.received().len();
    assert!(sent < FAILURES_TO_OPEN as usize + 4, "{sent} were sent");
    let fresh = |state: &FeedState| state.waiting.iter().filter(|(_, attempt, _)| *attempt == 1).count();
    assert_eq!(fresh(&rig.feed.state.lock()), 200 - sent);
    rig.advance(Duration::from_secs(7));
    rig.until("the probe failed", |state| state.failures.len() == sent + 1 && state.leased.is_empty()).await;
    assert_eq!(receiver.received().len(), sent + 1, "one probe and no more");
    works.store(1, Ordering::Relaxed);
    rig.advance(Duration::from_secs(13));
    rig.until("all acked", |state| state.acked.len() == 200).await;
    assert_eq!(rig.endpoint.status().breaker, BreakerState::Closed);
}

#[tokio::test]
async fn no_more_leases_are_held_than_the_owner_allows() {
    let receiver =
        Receiver::start(|_, _| Reply::Slow(Duration::from_millis(2), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()))
            .await;
    let mut subscription = testing::subscription(&receiver.url);
    subscription.settings.max_in_flight = Some(3);
    let rig = Rig::at_least_once(subscription);
    rig.feed.publish(0..60, |_| None);
    rig.until("all acked", |state| state.acked.len() == 60).await;
    assert!(rig.feed.state.lock().leased_max <= 3);
}

#[tokio::test]
async fn at_most_once_sends_once_and_settles_nothing() {
    let receiver =
        Receiver::start(|_, before| answer(if before % 2 == 0 { "500 Internal Server Error" } else { "200 OK" }, ""))
            .await;
    let rig = Rig::start(testing::subscription(&receiver.url), Guarantee::AtMostOnce, Clock::fixed(START));
    rig.feed.publish(0..20, |at| if at < 10 { Some("a") } else { None });
    eventually("all sent", || receiver.received().len() == 20).await;
    rig.stop.cancel();
    rig.task.await.unwrap();
    assert_eq!((receiver.received().len(), rig.feed.state.lock().settles), (20, 0));
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way_and_gives_the_rest_back() {
    let receiver =
        Receiver::start(|_, _| Reply::Slow(Duration::from_millis(100), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()))
            .await;
    let rig = Rig::at_least_once(testing::subscription(&receiver.url));
    rig.feed.publish(0..50, |_| None);
    eventually("some are under way", || receiver.received().len() == 4).await;
    rig.stop.cancel();
    rig.task.await.unwrap();
    let state = rig.feed.state.lock();
    assert_eq!((state.acked.len(), state.waiting.len(), state.leased.len()), (4, 46, 0));
    assert!(state.waiting.iter().all(|(_, attempt, _)| *attempt == 1));
}

#[tokio::test]
async fn a_changed_endpoint_takes_over_at_once_and_a_hanging_one_delays_nobody() {
    let hanging = Receiver::start(|_, _| Reply::Hang).await;
    let healthy = Receiver::start(|_, _| answer("200 OK", "")).await;
    let slow = Rig::at_least_once(testing::subscription(&hanging.url));
    let other = Rig::at_least_once(testing::subscription(&healthy.url));
    slow.feed.publish(0..30, |_| None);
    eventually("the window is full", || hanging.received().len() == 4).await;
    other.feed.publish(0..30, |_| None);
    other.until("the other one is not delayed", |state| state.acked.len() == 30).await;
    slow.settings.send_replace(Arc::new(testing::subscription(&healthy.url)));
    slow.until("the rest goes to the new one", |state| state.acked.len() == 26).await;
    // What was under way to the old one fails by its time limit and then goes to the new one.
    slow.advance(Duration::from_secs(31));
    slow.until("timed out", |state| state.failures.len() == 4).await;
    slow.advance(Duration::from_secs(10));
    slow.until("all acked", |state| state.acked.len() == 30).await;
    assert_eq!(hanging.received().len(), 4);
    assert!(slow.feed.state.lock().failures.iter().all(|(_, _, failure)| &*failure.reason == "TIMEOUT"));
}

#[tokio::test]
async fn leases_that_waited_too_long_are_given_back_unsent() {
    let receiver = Receiver::start(|_, _| Reply::Hang).await;
    let mut subscription = testing::subscription(&receiver.url);
    subscription.settings.ack_timeout = Duration::from_secs(300);
    let rig = Rig::at_least_once(subscription);
    rig.feed.publish(0..8, |_| None);
    eventually("the window is full", || receiver.received().len() == 4).await;
    rig.until("the next window is leased", |state| state.leased.len() == 8).await;
    rig.clock.advance(QUEUE_TIME_MAX + Duration::from_secs(1));
    rig.until("given back", |state| state.released == 4).await;
    assert_eq!(receiver.received().len(), 4);
}

#[tokio::test]
async fn a_settlement_is_repeated_while_the_store_takes_none() {
    let receiver = Receiver::start(|_, _| answer("200 OK", "")).await;
    let rig = Rig::start(testing::subscription(&receiver.url), Guarantee::AtLeastOnce, Clock::system());
    rig.feed.state.lock().unavailable = 2;
    rig.feed.publish(0..1, |_| None);
    rig.until("acked after all", |state| state.acked.len() == 1).await;
    assert_eq!((receiver.received().len(), rig.feed.state.lock().settles), (1, 3));
}

/// Two of three have nothing to send to but a receiver that says nothing, and would take all the room there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_of_all_endpoints_are_bounded_and_no_endpoint_takes_all_the_room() {
    let (dead, well) = (Receiver::start(|_, _| Reply::Hang).await, Receiver::start(|_, _| answer("200 OK", "")).await);
    let clock = Clock::fixed(START);
    let room = Room::new(4, PushMetrics::new(&Registry::new()).unwrap().waiting());
    let rig = |url: &str, guarantee| Rig::sharing(&room, testing::subscription(url), guarantee, clock.clone());
    let hanging = [rig(&dead.url, Guarantee::AtLeastOnce), rig(&dead.url, Guarantee::AtLeastOnce)];
    hanging.iter().for_each(|rig| rig.feed.publish(0..50, |_| None));
    // One takes two of four, as that leaves two; the other one of two.
    eventually("both have sent", || dead.received().len() == 3).await;
    eventually("both wait", || hanging.iter().all(|rig| rig.endpoint.status().waits_for_room)).await;
    let healthy = rig(&well.url, Guarantee::AtLeastOnce);
    healthy.feed.publish(0..200, |_| None);
    healthy.until("all acked", |state| state.acked.len() == 200).await;
    assert_eq!(dead.received().len(), 3);
    hanging.iter().for_each(|rig| assert_eq!(rig.feed.state.lock().failures.len(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_leased_for_an_endpoint_that_waits_for_room() {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        let (dead, well) =
            (Receiver::start(|_, _| Reply::Hang).await, Receiver::start(|_, _| answer("200 OK", "")).await);
        let clock = Clock::fixed(START);
        let room = Room::new(1, PushMetrics::new(&Registry::new()).unwrap().waiting());
        let rig = |url: &str, guarantee| Rig::sharing(&room, testing::subscription(url), guarantee, clock.clone());
        let hanging = rig(&dead.url, Guarantee::AtLeastOnce);
        hanging.feed.publish(0..1, |_| None);
        eventually("it hangs", || dead.received().len() == 1).await;
        let waiting = rig(&well.url, guarantee);
        waiting.feed.publish(0..20, |_| None);
        eventually("it waits", || waiting.endpoint.status().waits_for_room).await;
        waiting.advance(Duration::from_secs(10));
        tokio::task::yield_now().await;
        assert_eq!(waiting.feed.state.lock().grants, 0, "{guarantee:?}");
        // The room is free again when the one that hangs has timed out.
        hanging.advance(Duration::from_secs(30));
        eventually("all are sent", || well.received().len() == 20).await;
        let attempts: HashSet<_> =
            well.received().iter().map(|request| request.header("x-delivery-attempt").unwrap().to_owned()).collect();
        assert_eq!(attempts, HashSet::from(["1".to_owned()]), "waiting is no attempt");
    }
}

/// Messages of one key wait for each other. The places that were taken for those that wait are not lent to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_once_nothing_is_granted_for_the_places_of_what_waits_already() {
    let release = Arc::new(Notify::new());
    let held = Arc::clone(&release);
    let slow = Receiver::start(move |_, before| {
        if before == 0 {
            Reply::Held(Arc::clone(&held), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
        } else {
            Reply::Hang
        }
    })
    .await;
    let dead = Receiver::start(|_, _| Reply::Hang).await;
    let clock = Clock::fixed(START);
    let room = Room::new(8, PushMetrics::new(&Registry::new()).unwrap().waiting());
    let rig = |url: &str, guarantee| Rig::sharing(&room, testing::subscription(url), guarantee, clock.clone());
    let once = rig(&slow.url, Guarantee::AtMostOnce);
    once.feed.publish(0..10, |_| Some("a"));
    eventually("the first is under way", || slow.received().len() == 1).await;
    assert_eq!(once.feed.state.lock().grants, 4, "one under way, and three that wait for it");
    // What is left over is taken by others, and the next place that is free is for one of them as well.
    let hanging: Vec<Rig> = (0..5).map(|_| rig(&dead.url, Guarantee::AtLeastOnce)).collect();
    hanging.iter().for_each(|rig| rig.feed.publish(0..10, |_| None));
    eventually("the room is full", || dead.received().len() == 4).await;
    eventually("all wait", || hanging.iter().all(|rig| rig.endpoint.status().waits_for_room)).await;
    release.notify_one();
    eventually("the second is under way", || slow.received().len() == 2).await;
    eventually("it waits for room for more", || once.endpoint.status().waits_for_room).await;
    assert_eq!(once.feed.state.lock().grants, 4, "no message is settled that nothing could be done with");
}
