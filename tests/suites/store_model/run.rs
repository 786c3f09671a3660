//! Carries an operation out on the store and on the oracles. Invariant: every answer of the store is judged; one that the
//! disk's trouble excuses is either repeated or, where an outcome is unknown, followed both ways.

use std::sync::Arc;
use std::time::Duration;

use sluice::message::{GroupId, Message, MessageId, Offset, Position};
use sluice::store::{
    AppendBatch, AppendItem, Entry, Failure, GroupSpec, LeaseRef, LeaseRequest, Mode, Receipt, SeekTo, Settle,
    Settlement, StoreError, TopicSpec,
};
use sluice_tests::store_backends::PowerCuts;
use sluice_tests::store_bed::{Backend, Bed, DEAD, LEASE, START, TOPIC, batch, group, key, topic};
use sluice_tests::store_oracle::Oracle;

use super::ops::{How, Item, Op, Snap, To, Trouble};
use super::trouble::{Oracles, judge_peek};
use super::{BY_LANE, IN_ORDER, ONCE};

/// A store and its oracles.
pub(super) struct Run {
    bed: Bed,
    /// Where the store is on one that fails.
    disk: Option<Arc<PowerCuts>>,
    oracles: Oracles,
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
    pub(super) async fn new(disk: Arc<PowerCuts>, dead_letter_expired: bool) -> Run {
        Run::over(Bed::new(Arc::clone(&disk)).await, Some(disk), (dead_letter_expired, false)).await
    }

    /// Over a store that nothing happens to but what is asked of it.
    pub(super) async fn undisturbed(backend: impl Backend, many_brokers: bool, dead_letter_expired: bool) -> Run {
        Run::over(Bed::new(backend).await, None, (dead_letter_expired, many_brokers)).await
    }

    async fn over(bed: Bed, disk: Option<Arc<PowerCuts>>, (dead_letter_expired, many_brokers): (bool, bool)) -> Run {
        let mut oracle = Oracle::default();
        oracle.many_brokers = many_brokers;
        let oracles = Oracles::new(oracle);
        let mut run = Run { bed, disk, oracles, revision: 2, receipts: Vec::new(), ids: Vec::new() };
        let dead = topic(DEAD);
        let kept = TopicSpec {
            partitions: 2,
            dead_letter: Some(DEAD),
            dead_letter_expired,
            retention: seconds(300),
            dedup_window: seconds(60),
            dedup_keys_max: 5,
            ..topic(TOPIC)
        };
        for spec in [dead, kept] {
            run.bed.put_topic(spec.clone()).await.unwrap();
            run.oracles.each(|oracle| oracle.put_topic(spec.clone()));
        }
        run.put_group(group(DEAD, GroupId::SHARED)).await;
        for id in 0..3 {
            run.put_group(spec(id, SeekTo::Earliest)).await;
        }
        run
    }

    /// How often the disk has failed since the last opening.
    fn struck(&self) -> u32 {
        self.disk.as_ref().map_or(0, |disk| disk.struck())
    }

    fn heal(&self) {
        self.disk.iter().for_each(|disk| disk.heal());
    }

    /// What may not fail for long: trouble strikes once, and a full disk is given room.
    async fn persist<T>(&self, what: impl AsyncFn() -> Result<T, StoreError>) -> T {
        for tries in 0..8 {
            match what().await {
                Ok(value) => return value,
                Err(error) => assert!(self.struck() > 0, "the disk did nothing wrong: {error}"),
            }
            if tries >= 2 {
                self.heal();
            }
        }
        panic!("it fails again and again though the disk is well");
    }

    /// An error that the disk's trouble excuses: whether the outcome is unknown.
    fn excused(&self, error: &StoreError) -> bool {
        assert!(self.struck() > 0, "the disk did nothing wrong: {error}");
        match error {
            StoreError::Unavailable(_) | StoreError::Busy(_) => false,
            StoreError::OutcomeUnknown(_) => true,
            other => panic!("no fault of a disk: {other}"),
        }
    }

    async fn put_group(&mut self, spec: GroupSpec) {
        self.persist(async || self.bed.put_group(spec.clone()).await).await;
        self.oracles.each(|oracle| oracle.put_group(spec.clone()));
    }

    async fn delete_group(&mut self, id: GroupId) {
        self.persist(async || self.bed.delete_group(TOPIC, id).await).await;
        self.oracles.each(|oracle| {
            oracle.topics.get_mut(&TOPIC).expect("it is there").groups.remove(&id);
        });
    }

    fn has(&self, group: u8) -> Option<GroupId> {
        let id = GroupId(u32::from(group) + 1);
        self.oracles.one().topics[&TOPIC].groups.contains_key(&id).then_some(id)
    }

    pub(super) async fn step(&mut self, op: &Op) {
        self.oracles.set_time(self.bed.clock.now());
        match op {
            Op::Append { items, atomic, revision } => self.append(items, *atomic, *revision).await,
            Op::Lease { group, max } => _ = self.lease(*group, *max).await,
            Op::Settle { pick: number, how } => self.settle(*number, how).await,
            Op::Pass { seconds } => {
                self.bed.clock.advance(Duration::from_secs(*seconds));
                self.tick().await;
            }
            Op::Retain => {
                self.persist(async || self.bed.retain().await).await;
                self.oracles.each(Oracle::retain);
            }
            Op::Seek { group, to } => {
                let Some(id) = self.has(*group) else { return };
                self.persist(async || self.bed.seek(TOPIC, id, at(to)).await).await;
                self.oracles.each(|oracle| oracle.seek(TOPIC, id, at(to)));
            }
            Op::Snapshot { group, name, how } => {
                let Some(id) = self.has(*group) else { return };
                self.snapshot(id, *name, *how).await;
            }
            Op::Purge { group } => {
                let Some(id) = self.has(*group) else { return };
                let answer = self.persist(async || self.bed.purge(TOPIC, id).await).await;
                self.oracles.each(|oracle| oracle.purge(TOPIC, id, answer));
            }
            Op::Erase { pick: number } => self.erase(*number).await,
            Op::Discard { pick: number } => {
                let listed = self.oracles.one().listed(DEAD);
                let Some(position) = pick(&listed, *number).copied() else { return };
                let both = vec![position, position];
                let answer = self.persist(async || self.bed.discard_dead_letters(both.clone()).await).await;
                self.oracles.each(|oracle| oracle.discard(&both, answer));
            }
            Op::Replay { pick: number } => self.replay(*number).await,
            Op::PutGroup { group, to } => self.put_group(spec(*group, at(to))).await,
            Op::DeleteGroup { group } => {
                let Some(id) = self.has(*group) else { return };
                self.delete_group(id).await;
            }
            Op::Crash => self.reopen(true).await,
            Op::Restart => self.reopen(false).await,
            Op::Behind => self.disk.iter().for_each(|disk| disk.work_behind()),
            Op::Trouble(trouble) => self.trouble(trouble).await,
        }
        self.observe().await;
    }

    async fn trouble(&mut self, trouble: &Trouble) {
        let Some(disk) = &self.disk else { return };
        match trouble {
            Trouble::Break(fault, after) => disk.arm(*fault, *after),
            Trouble::BreakOpening(fault, after) => disk.arm_opening(*fault, *after),
            Trouble::Fill => disk.fill(),
            Trouble::Flip(seed) => disk.peek_at_opening(*seed),
            Trouble::Heal => {
                disk.heal();
                disk.work_behind();
                // Service is back: what found no room while segments could not be written does now.
                let message = self.bed.message("after the trouble");
                self.ids.push(message.id);
                let entry = Entry::Log { partition: 0, message, due: None, target: None };
                let items = vec![AppendItem { dedup: None, entry, emitted: Vec::new() }];
                let batch = AppendBatch { revision: self.revision, ..batch(items) };
                let outcomes = self.bed.append(batch.clone()).await;
                self.oracles.each(|oracle| oracle.append(&batch, outcomes.clone()));
            }
        }
    }

    async fn tick(&mut self) {
        self.persist(async || self.bed.tick().await).await;
        self.oracles.set_time(self.bed.clock.now());
        self.oracles.each(Oracle::tick);
    }

    async fn reopen(&mut self, crash: bool) {
        // A close that fails leaves what a crash would.
        let closed = !crash && self.bed.close().await.is_ok();
        self.bed.crash().await;
        self.oracles.set_time(self.bed.clock.now());
        self.oracles.reopen(!closed);
        if let Some(disk) = self.disk.clone()
            && let Some(peek) = disk.take_peek()
        {
            let mut pages = Vec::new();
            for id in [DEAD, TOPIC] {
                pages.push((id, self.persist(async || self.bed.read(self.bed.whole(id)).await).await));
            }
            judge_peek(&peek, &pages, disk.report().torn.as_ref());
        }
        self.tick().await;
    }

    async fn observe(&mut self) {
        // The dead letters first: they tell which messages died with the opening.
        for id in [DEAD, TOPIC] {
            let page = self.persist(async || self.bed.read(self.bed.whole(id)).await).await;
            assert!(page.next().is_none(), "the model's logs are short");
            let stats = self.persist(async || self.bed.stats(id).await).await;
            self.oracles.each(|oracle| {
                oracle.observe(id, &page.messages, &stats);
                oracle.no_more_deaths();
            });
        }
        let listed = self.persist(async || self.bed.dead_letters(DEAD, None, 1000).await).await;
        let listed: Vec<Position> = listed.messages.iter().map(|(position, _)| *position).collect();
        self.oracles.each(|oracle| assert_eq!(listed, oracle.listed(DEAD), "the list of dead letters"));
    }

    async fn snapshot(&mut self, id: GroupId, name: u8, how: Snap) {
        let text = || name.to_string().into();
        match how {
            Snap::Put => {
                self.persist(async || self.bed.put_snapshot(TOPIC, id, text()).await).await;
                self.oracles.each(|oracle| oracle.put_snapshot(TOPIC, id, name));
            }
            Snap::Restore => {
                let answer = self.persist(async || self.bed.restore(TOPIC, id, text()).await).await;
                self.oracles.each(|oracle| oracle.restore(TOPIC, id, name, answer));
            }
            Snap::Delete => {
                let known = self.persist(async || self.bed.snapshots(TOPIC, id).await).await;
                self.persist(async || self.bed.delete_snapshot(TOPIC, id, text()).await.map(drop)).await;
                let answer = known.iter().any(|(known, _)| **known == *name.to_string());
                self.oracles.each(|oracle| oracle.delete_snapshot(TOPIC, id, name, answer));
            }
        }
    }

    async fn erase(&mut self, number: u16) {
        let Some(id) = pick(&self.ids, number).copied() else { return };
        match self.bed.erase(id).await {
            Ok(answer) => self.oracles.each(|oracle| oracle.erase(id, answer)),
            // Unreadable already, perhaps, and its bytes still there; or not yet, and after a crash it is.
            Err(error) if self.excused(&error) => {
                let erase = |oracle: &mut Oracle| {
                    oracle.erase_unseen(id);
                };
                self.oracles.unless_lost(erase);
                self.oracles.either(erase);
            }
            Err(_) => {}
        }
    }

    async fn append(&mut self, items: &[Item], atomic: bool, revision: i8) {
        let items = items.iter().map(|item| self.item(item)).collect();
        let revision = self.revision.saturating_add_signed(revision.into());
        self.send(AppendBatch { revision, all_or_nothing: atomic, ..batch(items) }).await;
    }

    async fn send(&mut self, batch: AppendBatch) {
        self.revision = self.revision.max(batch.revision);
        match self.bed.append(batch.clone()).await {
            Err(error @ (StoreError::Unavailable(_) | StoreError::Busy(_) | StoreError::OutcomeUnknown(_))) => {
                if self.excused(&error) {
                    self.oracles.unless_lost(|oracle| oracle.append_unseen(&batch));
                }
            }
            result => self.oracles.each(|oracle| oracle.append(&batch, result.clone())),
        }
    }

    fn item(&mut self, item: &Item) -> AppendItem {
        let text = "x".repeat(item.size);
        let mut message = self.bed.message_in(TOPIC, item.partition, &text);
        let can = self.bed.capabilities();
        message.meta.priority = if can.lanes { item.priority } else { 0 };
        message.meta.key = item.key.map(|key| format!("key-{key}").into());
        message.meta.expires_at = item.expires.map(|expires| self.bed.later(seconds(expires)));
        self.ids.push(message.id);
        let dedup = item.dedup.and_then(|(name, same)| key(&format!("k{name}"), if same { "same" } else { "other" }));
        let due = item.due.filter(|_| can.schedule).map(|due| self.bed.later(seconds(due)));
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
        let listed = self.oracles.one().listed(DEAD);
        let Some(position) = pick(&listed, number).copied() else { return };
        let dead = &self.oracles.one().topics[&DEAD];
        let copy = &dead.kept.iter().find(|kept| kept.position == position).expect("what is listed is kept").message;
        let target = copy.meta.dead_letter.as_ref().and_then(|facts| facts.group);
        let mut message = Message { id: self.bed.message_in(TOPIC, 0, "").id, ..copy.clone() };
        message.meta.dead_letter = None;
        self.ids.push(message.id);
        let entry = Entry::Log { partition: 0, message, due: None, target };
        let items = vec![AppendItem { dedup: None, entry, emitted: Vec::new() }];
        self.send(AppendBatch { revision: self.revision, replays: vec![position], ..batch(items) }).await;
    }

    /// Whether it gave some of what there is.
    async fn lease(&mut self, group: u8, max: usize) -> bool {
        let Some(id) = self.has(group) else { return false };
        let can = self.bed.capabilities();
        let mode = if id == ONCE && can.exactly_once { Mode::AtMostOnce } else { Mode::AtLeastOnce };
        let ordered = id == IN_ORDER && can.ordered;
        let request = LeaseRequest { mode, ordered, ..self.bed.request(id, max) };
        assert!(id == BY_LANE || id == IN_ORDER || id == ONCE);
        let struck = self.struck();
        match self.bed.lease(request.clone()).await {
            Ok(granted) => {
                self.receipts.extend(granted.leases.iter().map(|lease| lease.receipt));
                // In PostgreSQL what the first partitions give in the usual way does not wait for another that takes a closer look;
                // elsewhere a read may have failed in the midst.
                let is_usual = can.durability == "postgres" && mode == Mode::AtLeastOnce && !ordered;
                let may_be_short = is_usual && !granted.leases.is_empty();
                let in_part = granted.more && (may_be_short || self.struck() > struck);
                self.oracles.each(|oracle| match in_part {
                    true => oracle.lease_in_part(&request, &granted),
                    false => oracle.lease(&request, &granted),
                });
                self.oracles.granted(&request, &granted);
                return in_part && !granted.leases.is_empty();
            }
            Err(error) if self.excused(&error) => {
                // What a crash might find settled is not known: the group begins anew.
                assert_eq!(id, ONCE, "only a grant that settles is written: {error}");
                self.delete_group(id).await;
            }
            Err(_) => {}
        }
        false
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
        match self.bed.settle(settles).await {
            Ok(mut results) => {
                let result = results.remove(0);
                self.oracles.each(|oracle| oracle.settle(&receipt, &settlement, result));
            }
            Err(error) if self.excused(&error) => self.oracles.unless_lost(|oracle| {
                // Refused or not: nobody was told.
                let _ = oracle.settle_unseen(&receipt, &settlement);
            }),
            Err(_) => {}
        }
    }

    /// Takes all that is left: nothing may be out of reach.
    pub(super) async fn drain(&mut self) {
        self.heal();
        self.bed.clock.advance(LEASE + Duration::from_millis(500));
        self.tick().await;
        self.observe().await;
        for group in 0..3 {
            while self.lease(group, 1000).await {}
        }
        self.observe().await;
    }
}
