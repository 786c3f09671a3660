//! Who gets the threads of the pool. Invariant: whatever the stages of some scopes do, another scope finds a thread. The
//! first tests move the queue by hand, so that what is slow here is what they say is slow; the last ones run it.

use std::sync::Arc;

use futures_util::poll;
use serde_json::json;
use tokio::sync::oneshot::Receiver;

use crate::catalog::Actor;
use crate::catalog::model::{Scope, Topic};
use crate::config::PluginQuota;
use crate::pipeline::queue::{Batch, Queue, QueueLimits, Runs};
use crate::pipeline::quotas::QuotaMetrics;
use crate::pipeline::shares::Shares;
use crate::pipeline::{Lane, Run};

use super::{Rig, draft, fault, guest, stage};

const QUICK: u64 = 1_000;
const SLOW: u64 = 50_000_000;

/// A queue of three threads for quick scopes and one for slow ones, and topics with one stage each.
struct Bench {
    rig: Rig,
    queue: Queue,
    waiting: Vec<Receiver<Run>>,
}

#[derive(Clone)]
struct Team {
    lane: Arc<Lane>,
    topic: Topic,
}

impl Bench {
    async fn new() -> Bench {
        Bench::under(&[]).await
    }

    async fn under(quotas: &[PluginQuota]) -> Bench {
        let rig = Rig::new().await;
        rig.accept("hostile", guest("hostile")).await.unwrap();
        let limits = QueueLimits { workers: 2, running_max: 2, waiting_max: 64 };
        let metrics = QuotaMetrics::new(&prometheus::Registry::new()).unwrap();
        let queue = Queue::new(limits, Shares::new(quotas, &limits, &metrics));
        Bench { rig, queue, waiting: Vec::new() }
    }

    async fn team(&self, name: &str, timeout_ms: u32) -> Team {
        let topic = self.rig.add_topic(name).await;
        let (scope, mut stage) = (Scope::Topic(topic.id), stage("s", "hostile", json!({})));
        stage.timeout_ms = timeout_ms;
        self.rig.pipelines.set(scope, vec![stage], None, &Actor::system()).await.unwrap();
        Team { lane: self.rig.pipelines.lane(scope).unwrap(), topic }
    }

    fn push(&mut self, team: &Team, messages: usize) {
        let answer = self.queue.push(&team.lane, &team.topic, vec![draft("{}", &[]); messages], None);
        self.waiting.push(answer.expect("there is room"));
    }

    /// The next batch on a thread of either kind.
    fn take(&mut self) -> Option<Batch> {
        self.queue.take(Runs::Quick).or_else(|| self.queue.take(Runs::Slow))
    }

    /// One batch of `team`, which took so long: how many messages it had.
    fn ran(&mut self, team: &Team, cpu_ns: u64) -> usize {
        let batch = self.take().expect("there is work that may run");
        assert_eq!(batch.lane.scope, team.lane.scope);
        self.queue.done(batch.lane.scope, (batch.on, batch.drafts.len()), cpu_ns);
        batch.drafts.len()
    }

    /// All that threads of this kind, were there enough, would run at once now.
    fn taken(&mut self, runs: Runs) -> Vec<Batch> {
        std::iter::from_fn(|| self.queue.take(runs)).collect()
    }

    /// So many messages wait, for threads of which kinds.
    fn waits(&self) -> (usize, [bool; 2]) {
        (self.queue.messages, [Runs::Quick, Runs::Slow].map(|runs| self.queue.waits_for(runs)))
    }
}

fn of(batches: &[Batch], team: &Team) -> usize {
    batches.iter().filter(|batch| batch.lane.scope == team.lane.scope).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_scope_begins_with_one_message_and_a_slow_one_goes_back_to_it() {
    let mut bench = Bench::new().await;
    let team = bench.team("a", 50).await;
    bench.push(&team, 10_000);
    let sizes: Vec<usize> = (0..9).map(|_| bench.ran(&team, QUICK)).collect();
    assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 128, 128]);
    let sizes: Vec<usize> = (0..5).map(|_| bench.ran(&team, SLOW)).collect();
    assert_eq!(sizes, [128, 32, 8, 2, 1]);
    bench.ran(&team, 4_000_000);
    assert_eq!(bench.ran(&team, 4_000_000), 1, "twice as many would take too long");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_as_small_as_its_stages_times_are_long() {
    let mut bench = Bench::new().await;
    let teams = [(bench.team("a", 50).await, 128), (bench.team("b", 1000).await, 6), (bench.team("c", 5000).await, 1)];
    for (team, largest) in &teams {
        bench.push(team, 1000);
        let sizes: Vec<usize> = (0..12).map(|_| bench.ran(team, QUICK)).collect();
        assert_eq!(sizes.iter().max(), Some(largest), "{}", team.topic.name);
        bench.waiting.clear();
        assert!(bench.take().is_none(), "nobody awaits the rest of a run that was begun");
        assert_eq!(bench.waits(), (0, [false, false]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_was_quick_so_far_cannot_take_all_threads() {
    let mut bench = Bench::new().await;
    let (sly, quiet) = (bench.team("sly", 50).await, bench.team("quiet", 50).await);
    bench.push(&sly, 10_000);
    for _ in 0..20 {
        bench.ran(&sly, QUICK);
    }
    let taken = bench.taken(Runs::Quick);
    assert_eq!((taken.len(), of(&taken, &sly)), (2, 2), "as many as there are workers, and one thread is free");
    bench.push(&quiet, 1);
    assert_eq!(of(&bench.taken(Runs::Quick), &quiet), 1, "for the one that has never run, too");
    assert!(bench.taken(Runs::Slow).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slow_takes_no_thread_of_those_that_are_quick_or_new() {
    let mut bench = Bench::new().await;
    let mut slow = Vec::new();
    for name in ["a", "b", "c"] {
        let team = bench.team(name, 50).await;
        bench.push(&team, 1);
        bench.ran(&team, SLOW);
        slow.push(team);
    }
    for team in &slow {
        bench.push(team, 2);
    }
    let (new, quick) = (bench.team("new", 50).await, bench.team("quick", 50).await);
    bench.push(&quick, 1);
    bench.push(&new, 100);
    let running = bench.taken(Runs::Quick);
    assert_eq!(
        (running.len(), of(&running, &quick), of(&running, &new)),
        (2, 1, 1),
        "a new one alone, with one message"
    );
    assert_eq!(bench.waits(), (105, [true, true]));
    // One after the other, on threads that take nothing else.
    for _ in 0..2 {
        for team in &slow {
            assert_eq!(bench.queue.take(Runs::Slow).expect("there is work").lane.scope, team.lane.scope);
        }
    }
    assert!(bench.taken(Runs::Slow).is_empty());
    assert_eq!(bench.waits(), (99, [true, false]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_is_slow_now_and_then_counts_as_slow() {
    let mut bench = Bench::new().await;
    let sly = bench.team("sly", 50).await;
    let mut waits_then_takes = |cpu_ns: u64| {
        bench.push(&sly, 1);
        let waits = bench.waits().1;
        bench.ran(&sly, cpu_ns);
        waits
    };
    assert_eq!(waits_then_takes(SLOW), [true, false], "a new one");
    for (quick_ones, then) in [(15, SLOW), (15, SLOW), (16, QUICK)] {
        for quick in 0..quick_ones {
            assert_eq!(waits_then_takes(QUICK), [false, true], "{quick} quick ones");
        }
        let as_quick = then == QUICK;
        assert_eq!(waits_then_takes(then), [as_quick, !as_quick], "after {quick_ones}");
    }
    assert_eq!(waits_then_takes(SLOW), [true, false]);
    assert_eq!(waits_then_takes(QUICK), [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_keeps_its_turns_when_its_pace_changes() {
    let mut bench = Bench::new().await;
    let (turning, other) = (bench.team("turning", 50).await, bench.team("other", 50).await);
    for team in [&turning, &other] {
        bench.push(team, 1);
        bench.ran(team, QUICK);
    }
    for team in [&turning, &other] {
        bench.push(team, 100);
    }
    let running = bench.queue.take(Runs::Quick).expect("the first one's turn");
    assert_eq!(running.lane.scope, turning.lane.scope);
    bench.queue.done(turning.lane.scope, (running.on, running.drafts.len()), SLOW);
    assert_eq!(of(&bench.taken(Runs::Quick), &turning), 0);
    assert_eq!(of(&bench.taken(Runs::Slow), &turning), 2, "as many as a scope may, once in turn");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_scope_that_is_gone_nothing_stays() {
    let mut bench = Bench::new().await;
    let team = bench.team("a", 50).await;
    let held = format!("{:?}", team.lane.scope);
    bench.push(&team, 2);
    bench.waiting.clear();
    bench.rig.pipelines.forget(team.lane.scope).await;
    bench.queue.forget(team.lane.scope);
    assert!(format!("{:?}", bench.queue).contains(&held), "what waits there is not looked at yet");
    assert!(bench.take().is_none());
    assert!(!format!("{:?}", bench.queue).contains(&held), "{:?}", bench.queue);
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_for_what_is_slow_give_way() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    rig.warmed().await;
    // The first shows what the second is.
    for _ in 0..2 {
        rig.obey(&["spin"]).await;
    }
    let nices = |kind: &str| -> Vec<i64> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        // A thread of another test may end meanwhile.
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let behind_name = |stat: &str| Some((stat.split_once('(')?.1.to_owned(), stat.rsplit_once(") ")?.1.to_owned()));
        let is_one =
            |name: &str| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let named = stats.filter_map(|stat| behind_name(&stat)).filter(|(name, _)| is_one(name));
        // The 19th column of proc_pid_stat(5); the third is the first behind the name.
        named.map(|(_, rest)| rest.split(' ').nth(16).unwrap().parse().unwrap()).collect()
    };
    assert!(nices("plugin-slow-").contains(&19));
    let quick = nices("plugin-");
    assert!(quick.len() >= 3 && quick.iter().all(|nice| *nice == quick[0] && *nice < 19), "{quick:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_was_quick_and_loops_on_every_worker_does_not_keep_a_neighbour_waiting() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.timeout_ms = 2000).await;
    rig.warmed().await;
    let neighbour = super::hostile::Neighbour::of(&rig).await;
    // As many as the pool has workers. Each is taken up before the next one comes: two that wait make one batch.
    let mut looping = Vec::new();
    for _ in 0..2 {
        let mut run = Box::pin(rig.obey(&["spin"]));
        assert!(poll!(&mut run).is_pending());
        while rig.metric("sluice_plugin_queued_messages", "") > 0.0 {
            tokio::task::yield_now().await;
        }
        looping.push(run);
    }
    for _ in 0..10 {
        neighbour.is_served().await;
    }
    for run in &mut looping {
        assert!(poll!(run).is_pending(), "two hundred neighbours' runs waited for none of them");
    }
    for run in looping {
        assert_eq!(fault(&run.await[0]).0, "TIMED_OUT");
    }
}

/// A share of what there is here: a thread of either kind.
fn one_thread(prefix: &str) -> PluginQuota {
    PluginQuota { prefix: prefix.to_owned(), plugins: None, bytes: None, share: Some(0.3) }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_a_quota_never_run_more_than_its_share_while_a_neighbours_run_at_once() {
    let mut bench = Bench::under(&[one_thread("orders.")]).await;
    let orders = [bench.team("orders.a", 50).await, bench.team("orders.b", 50).await];
    for team in &orders {
        bench.push(team, 1);
        bench.ran(team, QUICK);
    }
    for team in &orders {
        bench.push(team, 600);
    }
    let running = bench.taken(Runs::Quick);
    assert_eq!((running.len(), of(&running, &orders[0])), (1, 1), "of both together");
    assert_eq!(bench.waits().1, [false, false], "a thread that came for them would find nothing");
    let neighbour = bench.team("billing.x", 50).await;
    bench.push(&neighbour, 1);
    let beside = bench.taken(Runs::Quick);
    assert_eq!((beside.len(), of(&beside, &neighbour)), (1, 1));
    // They take turns in what they have.
    let mut running = running;
    for turn in 1..6 {
        let ended = running.remove(0);
        bench.queue.done(ended.lane.scope, (ended.on, ended.drafts.len()), QUICK);
        running = bench.taken(Runs::Quick);
        assert_eq!((running.len(), of(&running, &orders[turn % 2])), (1, 1), "turn {turn}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_share_keeps_its_turn_before_those_that_come_later() {
    let mut bench = Bench::under(&[one_thread("orders.")]).await;
    let mut teams = Vec::new();
    for name in ["orders.a", "orders.b", "orders.c", "orders.d", "orders.e"] {
        let team = bench.team(name, 50).await;
        bench.push(&team, 1);
        bench.ran(&team, QUICK);
        teams.push(team);
    }
    let [first, second, third, fourth, fifth] = [0, 1, 2, 3, 4].map(|at| teams[at].clone());
    for team in [&first, &second, &third] {
        bench.push(team, 1);
    }
    let mut running = bench.taken(Runs::Quick);
    assert_eq!((running.len(), of(&running, &first)), (1, 1));
    // Each time somebody has come meanwhile, and stands before those that get their turn again.
    for (comes, next) in [(&fourth, &second), (&fifth, &third), (&first, &fourth), (&second, &fifth), (&third, &first)]
    {
        bench.push(comes, 1);
        let ended = running.remove(0);
        bench.queue.done(ended.lane.scope, (ended.on, ended.drafts.len()), QUICK);
        running = bench.taken(Runs::Quick);
        assert_eq!((running.len(), of(&running, next)), (1, 1), "it is the turn of {}", next.topic.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_of_each_kind_of_threads_and_no_place_of_it_is_lost() {
    let mut bench = Bench::under(&[one_thread("orders.")]).await;
    let [turning, slow, quick] =
        [bench.team("orders.a", 50).await, bench.team("orders.b", 50).await, bench.team("orders.c", 50).await];
    bench.push(&slow, 1);
    bench.ran(&slow, SLOW);
    for team in [&turning, &quick] {
        bench.push(team, 1);
        bench.ran(team, QUICK);
    }
    for team in [&turning, &slow, &quick] {
        bench.push(team, 300);
    }
    let (first, beside) = (bench.taken(Runs::Quick), bench.taken(Runs::Slow));
    assert_eq!((first.len(), of(&first, &turning), beside.len(), of(&beside, &slow)), (1, 1, 1, 1));
    // What turns out slow leaves its place to the quick one, and waits for that of the slow ones.
    bench.queue.done(turning.lane.scope, (first[0].on, first[0].drafts.len()), SLOW);
    assert_eq!(of(&bench.taken(Runs::Quick), &quick), 1);
    assert!(bench.taken(Runs::Slow).is_empty());
    bench.queue.done(slow.lane.scope, (beside[0].on, beside[0].drafts.len()), SLOW);
    let next = bench.taken(Runs::Slow);
    assert_eq!((next.len(), of(&next, &slow)), (1, 1), "it was the first to wait");
    bench.queue.done(slow.lane.scope, (next[0].on, next[0].drafts.len()), SLOW);
    let next = bench.taken(Runs::Slow);
    assert_eq!((next.len(), of(&next, &turning)), (1, 1));
    // Whose callers have gone keep nobody waiting.
    bench.waiting.clear();
    bench.queue.done(turning.lane.scope, (next[0].on, next[0].drafts.len()), SLOW);
    assert!(bench.taken(Runs::Slow).is_empty());
}
