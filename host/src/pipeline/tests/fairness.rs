//! Who gets the threads of the pool. Invariant: whatever the stages of some scopes do, another scope finds a thread. The
//! first tests move the queue by hand, so that what is slow here is what they say is slow; the last ones run it.

use std::sync::Arc;

use futures_util::poll;
use serde_json::json;
use tokio::sync::oneshot::Receiver;

use crate::catalog::Actor;
use crate::catalog::model::{Scope, Topic};
use crate::pipeline::queue::{Batch, Queue, QueueLimits};
use crate::pipeline::{Lane, Run};

use super::{Rig, draft, fault, guest, stage};

const QUICK: u64 = 1_000;
const SLOW: u64 = 50_000_000;

/// A queue of three threads, and topics with one stage each.
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
        let rig = Rig::new().await;
        rig.accept("hostile", guest("hostile")).await.unwrap();
        let queue = Queue::new(QueueLimits { workers: 2, running_max: 2, waiting_max: 64 });
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
        let answer = self.queue.push(&team.lane, &team.topic, vec![draft("{}", &[]); messages]);
        self.waiting.push(answer.expect("there is room"));
    }

    /// One batch of `team`, which took so long: how many messages it had.
    fn ran(&mut self, team: &Team, cpu_ns: u64) -> usize {
        let batch = self.queue.take().expect("there is work that may run");
        assert_eq!(batch.lane.scope, team.lane.scope);
        self.queue.done(batch.lane.scope, batch.drafts.len(), cpu_ns);
        batch.drafts.len()
    }

    /// All that may run at once now, by team.
    fn taken(&mut self) -> Vec<Batch> {
        std::iter::from_fn(|| self.queue.take()).collect()
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
        assert!(bench.queue.take().is_none(), "nobody awaits the rest of a run that was begun");
        assert_eq!(bench.queue.messages, 0);
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
    let taken = bench.taken();
    assert_eq!((taken.len(), of(&taken, &sly)), (2, 2), "as many as there are workers, and one thread is free");
    bench.push(&quiet, 1);
    assert_eq!(of(&bench.taken(), &quiet), 1, "for the one that has never run, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_slow_scopes_together_leave_threads_to_those_that_are_quick_or_new() {
    let mut bench = Bench::new().await;
    let mut slow = Vec::new();
    for name in ["a", "b", "c"] {
        let team = bench.team(name, 50).await;
        bench.push(&team, 1);
        bench.ran(&team, SLOW);
        slow.push(team);
    }
    for team in &slow {
        bench.push(team, 100);
    }
    let (new, quick) = (bench.team("new", 50).await, bench.team("quick", 50).await);
    bench.push(&quick, 1);
    let running = bench.taken();
    let of_slow: usize = slow.iter().map(|team| of(&running, team)).sum();
    assert_eq!((of_slow, of(&running, &quick)), (1, 1), "one of three threads");
    bench.push(&new, 100);
    assert_eq!(of(&bench.taken(), &new), 1, "alone, and with one message");
    // Their turns come all the same.
    bench.queue.done(running[0].lane.scope, running[0].drafts.len(), SLOW);
    assert_eq!(bench.taken().iter().map(|batch| &batch.lane.scope).collect::<Vec<_>>(), [&slow[1].lane.scope]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_is_slow_now_and_then_counts_as_slow() {
    let mut bench = Bench::new().await;
    let (sly, other) = (bench.team("sly", 50).await, bench.team("other", 50).await);
    for team in [&sly, &other] {
        bench.push(team, 1);
        bench.ran(team, SLOW);
    }
    for team in [&sly, &other] {
        bench.push(team, 1000);
    }
    let slow = bench.queue.take().unwrap();
    let (first, second) = if slow.lane.scope == sly.lane.scope { (&sly, &other) } else { (&other, &sly) };
    for quick in 0..16 {
        assert!(bench.queue.take().is_none(), "{quick}: the one slow thread is taken");
        bench.queue.done(first.lane.scope, 1, QUICK);
        let next = bench.queue.take().expect("the other's turn");
        assert_eq!(next.lane.scope, second.lane.scope);
        bench.queue.done(second.lane.scope, 1, SLOW);
        assert_eq!(bench.queue.take().expect("and back").lane.scope, first.lane.scope);
    }
    let second_too = bench.taken();
    assert_eq!(
        (of(&second_too, second), of(&second_too, first)),
        (1, 1),
        "after sixteen it is quick, beside the slow one"
    );
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
