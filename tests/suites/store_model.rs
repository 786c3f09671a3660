//! The model test: random operations on a store and on [`Oracle`], which must tell the same. Invariant: a run is decided by
//! its seed and the operations alone (time is the bed's, power cuts are the seed's), so a failure shrinks and comes again.

#![expect(clippy::unwrap_used, reason = "a store that refuses fails the test, which is what a panic says")]

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use sluice::message::{GroupId, Message, MessageId, Offset, Position};
use sluice::store::embedded::EmbeddedLimits;
use sluice::store::{
    AppendBatch, AppendItem, Entry, Failure, GroupSpec, LeaseRef, LeaseRequest, Mode, Receipt, SeekTo, Settle,
    Settlement, TopicSpec,
};
use sluice_tests::store_backends::{PowerCuts, cramped};
use sluice_tests::store_bed::{Bed, DEAD, LEASE, START, TOPIC, batch, group, key, topic};
use sluice_tests::store_oracle::Oracle;

/// Groups of the model: one that takes by lane, one in order, one at most once.
const BY_LANE: GroupId = GroupId(1);
const IN_ORDER: GroupId = GroupId(2);
const ONCE: GroupId = GroupId(3);

#[derive(Debug, Clone)]
enum Op {
    Append { items: Vec<Item>, atomic: bool, revision: i8 },
    Lease { group: u8, max: usize },
    Settle { pick: u16, how: How },
    Pass { seconds: u64 },
    Retain,
    Seek { group: u8, to: To },
    Purge { group: u8 },
    Erase { pick: u16 },
    Discard { pick: u16 },
    Replay { pick: u16 },
    PutGroup { group: u8, to: To },
    DeleteGroup { group: u8 },
    Crash,
    Restart,
}

#[derive(Debug, Clone)]
struct Item {
    partition: u16,
    priority: u8,
    key: Option<u8>,
    dedup: Option<(u8, bool)>,
    due: Option<u64>,
    expires: Option<u64>,
    target: Option<u8>,
    fate: u8,
    size: usize,
}

#[derive(Debug, Clone)]
enum How {
    Ack,
    Retry(u64),
    DeadLetter,
    Release,
    Extend(u64),
}

#[derive(Debug, Clone)]
enum To {
    Earliest,
    Latest,
    Time(u64),
    Offset(u16, u8, u64),
}

fn item() -> impl Strategy<Value = Item> {
    (
        0..2_u16,
        prop_oneof![3 => Just(0), 1 => Just(4), 1 => Just(9)],
        prop::option::weighted(0.6, 0..3_u8),
        prop::option::weighted(0.3, (0..6_u8, prop::bool::weighted(0.8))),
        prop::option::weighted(0.15, 0..90_u64),
        prop::option::weighted(0.15, 0..120_u64),
        prop::option::weighted(0.1, 0..3_u8),
        prop_oneof![12 => Just(0_u8), 1 => Just(1), 1 => Just(2)],
        prop_oneof![8 => 0..64_usize, 1 => 0..6000_usize],
    )
        .prop_map(|(partition, priority, key, dedup, due, expires, target, fate, size)| Item {
            partition,
            priority,
            key,
            dedup,
            due,
            expires,
            target,
            fate,
            size,
        })
}

fn to() -> impl Strategy<Value = To> {
    prop_oneof![
        Just(To::Earliest),
        Just(To::Latest),
        (0..600_u64).prop_map(To::Time),
        (0..2_u16, prop_oneof![Just(0_u8), Just(4), Just(9)], 0..20_u64)
            .prop_map(|(p, lane, at)| To::Offset(p, lane, at)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![
        6 => Just(How::Ack),
        3 => (0..60_u64).prop_map(How::Retry),
        1 => Just(How::DeadLetter),
        1 => Just(How::Release),
        1 => (0..90_u64).prop_map(How::Extend),
    ];
    prop_oneof![
        12 => (prop::collection::vec(item(), 1..6), prop::bool::weighted(0.15), prop_oneof![8 => Just(0_i8), 1 => Just(-1), 1 => Just(1)])
            .prop_map(|(items, atomic, revision)| Op::Append { items, atomic, revision }),
        12 => (0..3_u8, 1..12_usize).prop_map(|(group, max)| Op::Lease { group, max }),
        16 => (any::<u16>(), how).prop_map(|(pick, how)| Op::Settle { pick, how }),
        6 => prop_oneof![4 => 1..20_u64, 2 => 20..60_u64, 1 => 60..400_u64].prop_map(|seconds| Op::Pass { seconds }),
        2 => Just(Op::Retain),
        1 => (0..3_u8, to()).prop_map(|(group, to)| Op::Seek { group, to }),
        1 => (0..3_u8).prop_map(|group| Op::Purge { group }),
        1 => any::<u16>().prop_map(|pick| Op::Erase { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Discard { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Replay { pick }),
        1 => (0..3_u8, to()).prop_map(|(group, to)| Op::PutGroup { group, to }),
        1 => (0..3_u8).prop_map(|group| Op::DeleteGroup { group }),
        3 => Just(Op::Crash),
        1 => Just(Op::Restart),
    ]
}

/// A store and its oracle.
struct Run {
    bed: Bed,
    oracle: Oracle,
    revision: u64,
    /// All receipts ever given, and all ids ever made.
    receipts: Vec<Receipt>,
    ids: Vec<MessageId>,
}

fn at(to: &To) -> SeekTo {
    match to {
        To::Earliest => SeekTo::Earliest,
        To::Latest => SeekTo::Latest,
        To::Time(seconds) => SeekTo::Time(START.plus(Duration::from_millis(seconds * 1000 + 500))),
        To::Offset(partition, lane, at) => SeekTo::Offset(*partition, Offset::new(*lane, *at)),
    }
}

/// Half a second more than whole seconds: the clock moves by these, so nothing ends at the very millisecond.
fn seconds(seconds: u64) -> Duration {
    Duration::from_millis(seconds * 1000 + 500)
}

fn spec(id: u8, start: SeekTo) -> GroupSpec {
    let id = GroupId(u32::from(id) + 1);
    GroupSpec { start, attempts_max: if id == IN_ORDER { 2 } else { 3 }, ..group(TOPIC, id) }
}

fn pick<T>(from: &[T], pick: u16) -> Option<&T> {
    from.get(usize::from(pick).checked_rem(from.len())?)
}

impl Run {
    async fn new(limits: EmbeddedLimits, seed: u64) -> Run {
        let bed = Bed::new(PowerCuts::new(seed, limits)).await;
        let mut run = Run { bed, oracle: Oracle::default(), revision: 2, receipts: Vec::new(), ids: Vec::new() };
        let dead = topic(DEAD);
        let kept = TopicSpec {
            partitions: 2,
            dead_letter: Some(DEAD),
            retention: seconds(300),
            dedup_window: seconds(60),
            dedup_keys_max: 5,
            ..topic(TOPIC)
        };
        for spec in [dead, kept] {
            run.bed.put_topic(spec.clone()).await.unwrap();
            run.oracle.put_topic(spec);
        }
        run.put_group(group(DEAD, GroupId::SHARED)).await;
        for id in 0..3 {
            run.put_group(spec(id, SeekTo::Earliest)).await;
        }
        run
    }

    async fn put_group(&mut self, spec: GroupSpec) {
        self.bed.put_group(spec.clone()).await.unwrap();
        self.oracle.put_group(spec);
    }

    fn has(&self, group: u8) -> Option<GroupId> {
        let id = GroupId(u32::from(group) + 1);
        self.oracle.topics[&TOPIC].groups.contains_key(&id).then_some(id)
    }

    async fn step(&mut self, op: &Op) {
        self.oracle.now = self.bed.clock.now();
        match op {
            Op::Append { items, atomic, revision } => self.append(items, *atomic, *revision).await,
            Op::Lease { group, max } => self.lease(*group, *max).await,
            Op::Settle { pick: number, how } => self.settle(*number, how).await,
            Op::Pass { seconds } => {
                self.bed.clock.advance(Duration::from_secs(*seconds));
                self.tick().await;
            }
            Op::Retain => {
                self.bed.retain().await.unwrap();
                self.oracle.retain();
            }
            Op::Seek { group, to } => {
                let Some(id) = self.has(*group) else { return };
                self.bed.seek(TOPIC, id, at(to)).await.unwrap();
                self.oracle.seek(TOPIC, id, at(to));
            }
            Op::Purge { group } => {
                let Some(id) = self.has(*group) else { return };
                let answer = self.bed.purge(TOPIC, id).await.unwrap();
                self.oracle.purge(TOPIC, id, answer);
            }
            Op::Erase { pick: number } => {
                let Some(id) = pick(&self.ids, *number).copied() else { return };
                let answer = self.bed.erase(id).await.unwrap();
                self.oracle.erase(id, answer);
            }
            Op::Discard { pick: number } => {
                let listed = self.oracle.listed(DEAD);
                let Some(position) = pick(&listed, *number) else { return };
                let answer = self.bed.discard_dead_letters(vec![*position, *position]).await.unwrap();
                self.oracle.discard(&[*position, *position], answer);
            }
            Op::Replay { pick: number } => self.replay(*number).await,
            Op::PutGroup { group, to } => self.put_group(spec(*group, at(to))).await,
            Op::DeleteGroup { group } => {
                let Some(id) = self.has(*group) else { return };
                self.bed.delete_group(TOPIC, id).await.unwrap();
                self.oracle.topics.get_mut(&TOPIC).expect("it is there").groups.remove(&id);
            }
            Op::Crash => self.reopen(true).await,
            Op::Restart => self.reopen(false).await,
        }
        self.observe().await;
    }

    async fn tick(&mut self) {
        self.bed.tick().await.unwrap();
        self.oracle.now = self.bed.clock.now();
        self.oracle.tick();
    }

    async fn reopen(&mut self, crash: bool) {
        if crash {
            self.bed.crash().await
        } else {
            self.bed.restart().await
        }
        self.oracle.reopen(crash);
        self.tick().await;
    }

    async fn observe(&mut self) {
        // The dead letters first: they tell which messages died with the opening.
        for id in [DEAD, TOPIC] {
            let page = self.bed.read(self.bed.whole(id)).await.unwrap();
            assert!(page.next.is_none(), "the model's logs are short");
            let stats = self.bed.stats(id).await.unwrap();
            self.oracle.observe(id, &page.messages, &stats);
            self.oracle.no_more_deaths();
        }
        let list: Vec<Position> = self.bed.dead().await.iter().map(|(position, _)| *position).collect();
        assert_eq!(list, self.oracle.listed(DEAD), "the list of dead letters");
    }

    async fn append(&mut self, items: &[Item], atomic: bool, revision: i8) {
        let items = items.iter().map(|item| self.item(item)).collect();
        let revision = self.revision.saturating_add_signed(revision.into());
        self.send(AppendBatch { revision, all_or_nothing: atomic, ..batch(items) }).await;
    }

    async fn send(&mut self, batch: AppendBatch) {
        self.revision = self.revision.max(batch.revision);
        let result = self.bed.append(batch.clone()).await;
        self.oracle.append(&batch, result);
    }

    fn item(&mut self, item: &Item) -> AppendItem {
        let text = "x".repeat(item.size);
        let mut message = self.bed.message_in(TOPIC, item.partition, &text);
        message.meta.priority = item.priority;
        message.meta.key = item.key.map(|key| format!("key-{key}").into());
        message.meta.expires_at = item.expires.map(|expires| self.bed.later(seconds(expires)));
        self.ids.push(message.id);
        let dedup = item.dedup.and_then(|(name, same)| key(&format!("k{name}"), if same { "same" } else { "other" }));
        let due = item.due.map(|due| self.bed.later(seconds(due)));
        let entry = match item.fate {
            0 => {
                let target = item.target.map(|group| GroupId(u32::from(group) + 1));
                if let Some(due) = due {
                    message.id = MessageId::new(due, TOPIC, item.partition, message.id.0.as_u64_pair().1);
                    *self.ids.last_mut().expect("it was pushed") = message.id;
                }
                Entry::Log { partition: item.partition, message, due, target }
            }
            1 => Entry::Dropped { id: message.id, stage: "filter".into(), reason: "not wanted".into() },
            _ => {
                message.id = self.bed.message_in(DEAD, 0, "").id;
                Entry::DeadLetter { message }
            }
        };
        AppendItem { dedup, entry, emitted: Vec::new() }
    }

    async fn replay(&mut self, number: u16) {
        let listed = self.oracle.listed(DEAD);
        let Some(position) = pick(&listed, number).copied() else { return };
        let dead = &self.oracle.topics[&DEAD];
        let copy = &dead.kept.iter().find(|kept| kept.position == position).expect("what is listed is kept").message;
        let target = copy.meta.dead_letter.as_ref().and_then(|facts| facts.group);
        let mut message = Message { id: self.bed.message_in(TOPIC, 0, "").id, ..copy.clone() };
        message.meta.dead_letter = None;
        self.ids.push(message.id);
        let entry = Entry::Log { partition: 0, message, due: None, target };
        let items = vec![AppendItem { dedup: None, entry, emitted: Vec::new() }];
        self.send(AppendBatch { revision: self.revision, replays: vec![position], ..batch(items) }).await;
    }

    async fn lease(&mut self, group: u8, max: usize) {
        let Some(id) = self.has(group) else { return };
        let mode = if id == ONCE { Mode::AtMostOnce } else { Mode::AtLeastOnce };
        let request = LeaseRequest { mode, ordered: id == IN_ORDER, ..self.bed.request(id, max) };
        assert!(id == BY_LANE || id == IN_ORDER || id == ONCE);
        let granted = self.bed.lease(request.clone()).await.unwrap();
        self.receipts.extend(granted.leases.iter().map(|lease| lease.receipt));
        self.oracle.lease(&request, &granted);
    }

    async fn settle(&mut self, number: u16, how: &How) {
        // Mostly one of the last, so that most leases are settled while they live.
        let recent =
            &self.receipts[self.receipts.len().saturating_sub(if number.is_multiple_of(8) { 1000 } else { 12 })..];
        let Some(receipt) = pick(recent, number / 8).copied() else { return };
        let failure = Failure { reason: "NACK".into(), detail: "no".into(), ..Failure::default() };
        let settlement = match how {
            How::Ack => Settlement::Ack,
            How::Retry(delay) => Settlement::Retry { at: self.bed.later(seconds(*delay)), failure },
            How::DeadLetter => Settlement::DeadLetter { failure },
            How::Release => Settlement::Release,
            How::Extend(duration) => Settlement::Extend { duration: seconds(*duration) },
        };
        let lease = LeaseRef::Receipt { receipt, message: None };
        let settles = vec![Settle { lease, settlement: settlement.clone() }];
        let result = self.bed.settle(settles).await.unwrap().remove(0);
        self.oracle.settle(&receipt, &settlement, result);
    }

    /// Takes all that is left: nothing may be out of reach.
    async fn drain(&mut self) {
        self.bed.clock.advance(LEASE + Duration::from_millis(500));
        self.tick().await;
        self.observe().await;
        for group in 0..3 {
            self.lease(group, 1000).await;
        }
        self.observe().await;
    }
}

fn run(ops: &[Op], limits: EmbeddedLimits, seed: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new(limits, seed).await;
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

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn a_store_does_what_the_oracle_does(ops in prop::collection::vec(op(), 1..120), seed in any::<u64>()) {
        run(&ops, EmbeddedLimits::default(), seed);
    }

    #[test]
    fn a_cramped_store_does_what_the_oracle_does(ops in prop::collection::vec(op(), 1..120), seed in any::<u64>()) {
        run(&ops, cramped(), seed);
    }
}
