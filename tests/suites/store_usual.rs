//! The short way of a fleet's store, seen from the database: it is taken where nothing is unusual, and left where anything is. What
//! either way has to keep is the conformance suite's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sluice::clock::Clock;
use sluice::store::postgres::{PostgresOptions, PostgresStore};
use sluice::store::{Lease, LeaseRef, MessageStore, Settle, Settled, Settlement};
use sluice_tests::servers::{Options, Postgres};
use sluice_tests::store_bed::{Backend, Bed};
use sluice_tests::wait;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

/// The functions of the short way, and those that it stands for.
const FUNCTIONS: [&str; 6] = ["store_append", "store_done", "store_hold", "store_give", "store_lock", "store_write"];

const CONNECTIONS: u32 = 4;

struct On(PgConnectOptions);

impl Backend for On {
    fn cut(&self) {}

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let (connect, node) = (self.0.clone(), "a".into());
            let options = PostgresOptions { connect, connections_max: CONNECTIONS, node, clock: clock.clone() };
            let store = PostgresStore::open(options).await.expect("the store opens");
            Arc::new(store) as Arc<dyn MessageStore>
        }
        .boxed()
    }
}

/// How often each function was called, once that is as it is wanted.
async fn called(bed: &Bed, pool: &PgPool, wanted: [i64; 6]) {
    let wanted: BTreeMap<&str, i64> = FUNCTIONS.into_iter().zip(wanted).collect();
    // The server counts a call when its connection does something a second later, and after ten if it does nothing.
    wait::until(&format!("calls {wanted:?}"), async || {
        futures_util::future::join_all((0..CONNECTIONS).map(|_| bed.log())).await;
        let counts: Vec<(String, i64)> = sqlx::query_as("SELECT funcname::text, calls FROM pg_stat_user_functions")
            .fetch_all(pool)
            .await
            .expect("the server answers");
        let of = |name: &str| counts.iter().find(|(known, _)| known == name).map_or(0, |(_, calls)| *calls);
        wanted.iter().all(|(name, calls)| of(name) == *calls).then_some(())
    })
    .await;
}

/// Acknowledges leases in one call.
async fn ack(bed: &Bed, leases: &[Lease]) {
    let settle = |lease: &Lease| Settle {
        lease: LeaseRef::Receipt { receipt: lease.receipt, message: Some(lease.message.id) },
        settlement: Settlement::Ack,
    };
    assert!(!leases.is_empty());
    let results = bed.settle(leases.iter().map(settle).collect()).await.expect("the store does it");
    assert!(results.iter().all(|result| *result == Ok(Settled::Acked)), "{results:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_usual_takes_one_question_each_and_what_is_not_is_decided_apart() {
    let server = Postgres::start(Options::new().set("track_functions", "all")).await;
    let url = server.database("usual");
    server.make_tables(&url);
    let connect: PgConnectOptions = url.parse().expect("the server gives addresses");
    let pool = PgPool::connect_with(connect.clone()).await.expect("the server answers");
    let bed = Bed::new(On(connect)).await.simple().await;

    // The first append makes the table that it goes to.
    bed.publish(&["a"]).await;
    ack(&bed, &bed.take(10).await).await;
    bed.publish(&["b", "c", "d"]).await;
    ack(&bed, &bed.take(10).await).await;
    called(&bed, &pool, [2, 2, 0, 2, 1, 1]).await;

    // Not all of an answer: the first of it asks whether it is all, the others know that they are not.
    bed.publish(&["e", "f"]).await;
    for lease in bed.take(10).await {
        ack(&bed, &[lease]).await;
    }
    // A priority.
    bed.store(vec![bed.urgent(3, "g")]).await;
    ack(&bed, &bed.take(10).await).await;
    called(&bed, &pool, [3, 3, 3, 4, 2, 2]).await;

    // What failed comes again by the long way, and what is new then goes by the short one.
    bed.publish(&["h"]).await;
    bed.nack(&bed.take_one().await, Duration::ZERO).await.expect("it is leased");
    ack(&bed, &bed.take(10).await).await;
    bed.publish(&["i"]).await;
    ack(&bed, &bed.take(10).await).await;
    assert!(bed.take(10).await.is_empty());
    called(&bed, &pool, [5, 5, 5, 8, 2, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_of_values_leave_connections_to_others() {
    let url = Postgres::shared_with_tables("turns_of_values");
    let bed = Bed::new(On(url.parse().expect("the server gives addresses"))).await.simple().await;
    let one = bed.value_turn(vec!["1/p".into()]).await.expect("a quarter of four");
    assert!(bed.value_turn(vec!["2/p".into()]).await.is_none());
    bed.publish(&["a"]).await;
    drop(one);
    wait::until("it is given back", async || bed.value_turn(vec!["2/p".into()]).await).await;
}
