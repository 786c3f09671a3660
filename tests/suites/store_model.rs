//! The model test: random operations on a store and on [`Oracle`], which must tell the same, also where the disk fails,
//! fills up, loses power and forgets bits. Invariant: a run is decided by its seed and the operations alone (time is the
//! bed's, power cuts and faults are the seed's, the work behind the calls is the callers'), so a failure shrinks and comes
//! again. One test alone leaves that work to the store's threads, as a broker does: there the seed tells all but when they
//! ran.
//!
//! [`Oracle`]: sluice_tests::store_oracle::Oracle

#![expect(clippy::unwrap_used, reason = "a store that refuses fails the test, which is what a panic says")]

#[path = "store_model/ops.rs"]
mod ops;
#[path = "store_model/run.rs"]
mod run;
#[path = "store_model/trouble.rs"]
mod trouble;

use std::cell::Cell;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use sluice::message::GroupId;
use sluice::store::embedded::{Drive, EmbeddedLimits};
use sluice_tests::store_backends::{Moving, OnPostgres, OnRedis, PowerCuts, cramped};
use sluice_tests::store_bed::Backend;
use sluice_tests::store_disk::Fault;

use ops::{Item, Op, Trouble};
use run::Run;

/// Groups of the model: one that takes by lane, one in order, one at most once.
const BY_LANE: GroupId = GroupId(1);
const IN_ORDER: GroupId = GroupId(2);
const ONCE: GroupId = GroupId(3);

fn simulate(ops: &[Op], limits: EmbeddedLimits, drive: Drive, seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new(Arc::new(PowerCuts::driven(seed, limits, drive)), seed.is_multiple_of(2)).await;
        for op in ops {
            run.step(op).await;
        }
        run.drain().await;
    });
}

/// A fixed seed, so that CI tests the same each time; `SLUICE_MODEL_SEED` and `SLUICE_MODEL_CASES` look further.
fn config(cases: u32) -> Config {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let seed = number("SLUICE_MODEL_SEED").unwrap_or(20_261_124);
    let cases = number("SLUICE_MODEL_CASES").map_or(cases, |cases| cases as u32);
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

/// Runs many random lives of a store; a failure is shrunk to its least cause, and told with the seed that brings it again.
fn judge(ops: impl Strategy<Value = Op>, limits: &EmbeddedLimits, drive: Drive) {
    let (steps, config) = (Cell::new(0), config(100));
    let seed = config.rng_seed;
    let lives = (prop::collection::vec(ops, 1..120), any::<u64>());
    let judged = TestRunner::new(config).run(&lives, |(ops, seed)| {
        steps.set(steps.get() + ops.len());
        simulate(&ops, limits.clone(), drive, seed);
        Ok(())
    });
    println!("{} steps, SLUICE_MODEL_SEED {seed:?}", steps.get());
    if let Err(failure) = judged {
        panic!("with SLUICE_MODEL_SEED {seed:?}: {failure}");
    }
}

#[test]
fn a_store_does_what_the_oracle_does() {
    judge(ops::op(), &EmbeddedLimits::default(), Drive::Threads);
}

#[test]
fn a_cramped_store_does_what_the_oracle_does() {
    judge(ops::op(), &cramped(), Drive::Callers);
}

#[test]
fn a_store_on_a_failing_disk_does_what_the_oracle_does() {
    judge(ops::op_or_trouble(), &cramped(), Drive::Callers);
}

/// Lives over servers, so many times fewer than of the embedded store: they are slower by far. `backend` is given a coin.
fn judge_over<B: Backend>(fewer: u32, ops: impl Strategy<Value = Op>, is_fleet: bool, backend: impl Fn(bool) -> B) {
    let config = config(300);
    let (seed, config) = (config.rng_seed, Config { cases: config.cases.div_ceil(fewer), ..config });
    let lives = (prop::collection::vec(ops, 1..120), any::<bool>(), any::<bool>());
    let judged = TestRunner::new(config).run(&lives, |(ops, dead_letter_expired, coin)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::undisturbed(backend(coin), is_fleet && coin, dead_letter_expired).await;
            for op in &ops {
                run.step(op).await;
            }
            run.drain().await;
        });
        Ok(())
    });
    if let Err(failure) = judged {
        panic!("with SLUICE_MODEL_SEED {seed:?}: {failure}");
    }
}

/// Each has a database of its own, and one broker or three.
#[test]
fn a_store_on_postgresql_does_what_the_oracle_does() {
    judge_over(50, ops::op(), true, |many| if many { OnPostgres::fleet("model") } else { OnPostgres::named("model") });
}

/// Each opening moves all there is from a folder to a database, or back.
#[test]
fn a_store_that_is_moved_does_what_the_oracle_does() {
    let ops = prop_oneof![8 => ops::op(), 1 => Just(Op::Restart)];
    judge_over(50, ops, false, |up| if up { Moving::up("model") } else { Moving::down("model") });
}

/// The same for a store that lacks lanes, a schedule, order, and delivery at most once: what needs these is asked of it without.
#[test]
fn a_store_in_redis_does_what_the_oracle_does() {
    judge_over(10, ops::op(), true, |many| if many { OnRedis::fleet("model") } else { OnRedis::named("model") });
}

/// Found by seed 7: overwriting an erased message synced a segment whose blocks waited for their sync. When that failed they
/// were gone, and a later sync that succeeded let a checkpoint rest on them.
#[test]
fn a_sync_that_fails_while_erasing_loses_no_other_message() {
    let item = || Item { size: 300, ..Item::default() };
    let append = || Op::Append { items: vec![item(), item()], atomic: false, revision: 0 };
    let mut ops: Vec<Op> = (0..12).map(|_| append()).collect();
    ops.extend([Op::Behind, Op::Trouble(Trouble::Break(Fault::Sync, 1)), Op::Erase { pick: 0 }, Op::Crash]);
    for seed in 0..20 {
        simulate(&ops, cramped(), Drive::Callers, seed);
    }
}

/// Found by seed 7: a segment that could not be opened for a moment was taken for one that is missing, and its partition was
/// stopped.
#[test]
fn a_file_that_cannot_be_opened_for_a_moment_is_not_taken_for_a_missing_one() {
    let append = || Op::Append { items: vec![Item::default()], atomic: false, revision: 0 };
    for after in 0..12 {
        let trouble = Op::Trouble(Trouble::BreakOpening(Fault::Name, after));
        simulate(&[append(), append(), trouble, Op::Restart, append()], cramped(), Drive::Callers, 0);
    }
}

/// Found by seed 1: a body that was damaged in the journal and removed by retention later in it went into a segment when
/// memory was full between the two, and stopped its partition for the messages beside it.
#[test]
fn damage_to_a_message_that_retention_removed_stops_no_other() {
    let item = Item::default;
    let append = |items: Vec<Item>| Op::Append { items, atomic: false, revision: 0 };
    let ops = [
        append(vec![item()]),
        Op::Crash,
        Op::Trouble(Trouble::Break(Fault::Write, 0)),
        append(vec![item()]),
        append(vec![item()]),
        append(vec![item()]),
        append(vec![
            Item { priority: 4, ..item() },
            Item { priority: 9, ..item() },
            Item { partition: 1, due: Some(0), size: 3330, ..item() },
        ]),
        Op::Trouble(Trouble::Break(Fault::Write, 0)),
        append(vec![item()]),
        append(vec![
            Item { size: 51, ..item() },
            Item { size: 58, ..item() },
            Item { partition: 1, size: 3759, ..item() },
            Item { size: 25, ..item() },
        ]),
        Op::Pass { seconds: 301 },
        append(vec![item()]),
        Op::Retain,
        Op::Trouble(Trouble::Flip(1_225_444_616_155_987_760)),
        Op::Crash,
    ];
    simulate(&ops, cramped(), Drive::Callers, 12_258_409_566_339_605_402);
}
