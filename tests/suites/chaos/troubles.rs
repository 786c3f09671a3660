//! What befalls the fleet, and when it serves again. Invariant: one trouble at a time; it is over before it is looked whether the
//! fleet has healed, which it has once each broker says that it is ready, takes a message, and gives and settles one.

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::json;
use sluice_tests::broker::signal;
use sluice_tests::link::{Link, State};
use sluice_tests::servers::{Options, Postgres, Redis};
use sluice_tests::{Broker, wait};

use super::{HEALED, NODES, Shared, broker};

/// Longer than a broker is counted without a sign of it.
const BEYOND_MEMBERSHIP: Duration = Duration::from_secs(6);
/// Nobody waits longer for a fleet to serve.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    BrokerKilled,
    BrokerPaused,
    BrokerReplaced,
    PostgresCrashes,
    PostgresPaused,
    RedisKilled,
    RedisEmptied,
    RedisPaused,
    LinkToPostgresCut,
    LinkToPostgresSilent,
    LinkToPostgresSlow,
    LinkToRedisCut,
    LinkToRedisSilent,
}

impl Trouble {
    pub(super) const ALL: [Trouble; 13] = [
        Trouble::BrokerKilled,
        Trouble::BrokerPaused,
        Trouble::BrokerReplaced,
        Trouble::PostgresCrashes,
        Trouble::PostgresPaused,
        Trouble::RedisKilled,
        Trouble::RedisEmptied,
        Trouble::RedisPaused,
        Trouble::LinkToPostgresCut,
        Trouble::LinkToPostgresSilent,
        Trouble::LinkToPostgresSlow,
        Trouble::LinkToRedisCut,
        Trouble::LinkToRedisSilent,
    ];
}

/// A trouble that is over.
pub(super) struct Healed {
    pub trouble: Trouble,
    /// From its end until all served.
    pub took: Duration,
}

/// Three brokers, a PostgreSQL and a Redis of their own, and a link from each to each.
pub(super) struct Bed {
    pub brokers: [Broker; 3],
    postgres: Postgres,
    redis: Redis,
    to_postgres: Vec<Link>,
    to_redis: Vec<Link>,
}

impl Bed {
    pub(super) async fn start() -> Bed {
        let (postgres, redis) = (Postgres::start(Options::new()).await, Redis::start(Options::new()).await);
        let url = postgres.url();
        postgres.make_tables(&url);
        let (mut to_postgres, mut to_redis) = (Vec::new(), Vec::new());
        for _ in NODES {
            to_postgres.push(Link::to(SocketAddr::from(([127, 0, 0, 1], postgres.port()))).await);
            to_redis.push(Link::to(SocketAddr::from(([127, 0, 0, 1], redis.port()))).await);
        }
        let start = |at: usize| broker(at, to_postgres[at].url(&url), to_redis[at].url(&redis.url()));
        let (first, second, third) = (start(0), start(1), start(2));
        let (a, b, c) = tokio::join!(first, second, third);
        Bed { brokers: [a, b, c], postgres, redis, to_postgres, to_redis }
    }

    /// Has one happen, ends it, and waits until the fleet has healed.
    #[expect(clippy::disallowed_methods, reason = "how long a fleet needs is told in real time")]
    pub(super) async fn befall(&mut self, trouble: Trouble, shared: &Shared, random: &mut StdRng) -> Healed {
        let at = random.random_range(0..NODES.len());
        let a_while = Duration::from_millis(random.random_range(300..2500));
        // Who starts again under its name has lost its leases, and a database that crashes may have lost grants.
        let ends_leases = [Trouble::BrokerKilled, Trouble::BrokerReplaced, Trouble::PostgresCrashes].contains(&trouble);
        let ending = ends_leases.then(|| shared.leases_may_end());
        let over = match trouble {
            Trouble::BrokerKilled => {
                self.brokers[at].kill();
                tokio::time::sleep(a_while).await;
                let over = std::time::Instant::now();
                self.brokers[at].restart().await;
                over
            }
            Trouble::BrokerPaused => {
                let process = self.brokers[at].process_id();
                assert!(signal(process, "STOP"));
                tokio::time::sleep(a_while.max(BEYOND_MEMBERSHIP * u32::from(random.random_bool(0.5)))).await;
                assert!(signal(process, "CONT"));
                std::time::Instant::now()
            }
            Trouble::BrokerReplaced => {
                assert!(self.brokers[at].stop().await.success());
                let over = std::time::Instant::now();
                self.brokers[at].restart().await;
                over
            }
            Trouble::PostgresCrashes => {
                self.postgres.kill();
                tokio::time::sleep(a_while).await;
                self.postgres.restart().await;
                std::time::Instant::now()
            }
            Trouble::PostgresPaused => {
                self.postgres.pause();
                tokio::time::sleep(a_while.max(BEYOND_MEMBERSHIP * u32::from(random.random_bool(0.5)))).await;
                self.postgres.resume();
                std::time::Instant::now()
            }
            Trouble::RedisKilled => {
                self.redis.kill();
                tokio::time::sleep(a_while).await;
                self.redis.restart_empty().await;
                std::time::Instant::now()
            }
            Trouble::RedisEmptied => {
                self.redis.flush();
                std::time::Instant::now()
            }
            Trouble::RedisPaused => {
                self.redis.pause();
                tokio::time::sleep(a_while).await;
                self.redis.resume();
                std::time::Instant::now()
            }
            Trouble::LinkToPostgresCut => bad(&self.to_postgres[at], State::Cut, a_while).await,
            Trouble::LinkToPostgresSilent => {
                let long = a_while.max(BEYOND_MEMBERSHIP * u32::from(random.random_bool(0.5)));
                bad(&self.to_postgres[at], State::Silent, long).await
            }
            Trouble::LinkToPostgresSlow => {
                bad(&self.to_postgres[at], State::Slow(Duration::from_millis(15)), a_while * 2).await
            }
            Trouble::LinkToRedisCut => bad(&self.to_redis[at], State::Cut, a_while).await,
            Trouble::LinkToRedisSilent => bad(&self.to_redis[at], State::Silent, a_while).await,
        };
        *shared.brokers[at].write() = self.brokers[at].admin();
        self.serves().await;
        let took = over.elapsed();
        if let Some(ending) = ending {
            shared.leases_ended(&ending);
        }
        Healed { trouble, took }
    }

    async fn serves(&self) {
        for broker in &self.brokers {
            wait::within(PATIENCE, "each broker serves again", async || {
                let ready = broker.try_send(http::Method::GET, "//health/ready", &[], "").await;
                if !ready.is_ok_and(|answer| answer.status == 200) {
                    return None;
                }
                let taken = broker.publish(HEALED, "healed").try_answer().await;
                taken.is_ok_and(|answer| answer.status == 202).then_some(())?;
                let consume = broker.consume(HEALED, "healed").limit(1);
                let answer = consume.try_answer().await.ok().filter(|answer| answer.status == 200)?;
                let got = consume.deliveries(&answer).pop()?;
                let ack = json!({"consumerGroup": "healed", "receipt": got.receipt()}).to_string();
                let path = format!("/messages/{}/ack", got.id());
                let acked = broker.try_send(http::Method::POST, &path, &super::clients::JSON, ack).await;
                acked.is_ok_and(|answer| answer.status == 200).then_some(())
            })
            .await;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a fleet needs is told in real time")]
async fn bad(link: &Link, state: State, time: Duration) -> std::time::Instant {
    link.be(state);
    tokio::time::sleep(time).await;
    link.be(State::Good);
    std::time::Instant::now()
}
