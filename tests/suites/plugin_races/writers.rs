//! Who changes things, all at once: two hands at each topic's pipeline and one at each subscription's, two that upload, one
//! that replaces a file, one that deletes, one that brings versions with powers and one that allows them. Invariant: what is
//! chosen follows from the seed; an answer that the API does not document for the request is a finding. Never looks at
//! messages.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_util::future::join_all;
use http::Method;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use sluice_tests::swap_record::SwapRecord;
use sluice_tests::{Answer, Broker, guest, wait};

use super::super::plugin_versions::push;
use super::Pipeline;
use super::book::{Book, DISK, QUIET, UP, digest, stage};

/// What may be in the way of a change of a pipeline: a version or a rollout that is gone or was never there, another's change.
const CHANGED: &[u16] = &[200, 400, 404, 409, 412];

/// Messages of the topic between two steps of one hand.
const UNDER_EACH: usize = 30;
/// Versions that are there before the race, so that there is something to try.
const FIRST: usize = 3;

pub(super) struct Writers<'a> {
    pub(super) broker: &'a Broker,
    pub(super) pipelines: &'a [Pipeline],
    pub(super) book: &'a Book,
    pub(super) records: &'a [std::sync::Arc<SwapRecord>],
    /// Answers by what was asked and the status, for the log of a run.
    pub(super) counts: &'a Mutex<BTreeMap<String, usize>>,
    pub(super) found: Mutex<Vec<String>>,
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

impl Writers<'_> {
    /// So many steps of each; what they found.
    pub(super) async fn run(self, seed: u64, steps: usize) -> Vec<String> {
        let mut seeds = StdRng::seed_from_u64(seed);
        let mut random = || StdRng::seed_from_u64(seeds.random());
        self.upload(random(), FIRST).await;
        self.replace_file(random(), 1).await;
        let mut tasks: Vec<Task<'_>> = Vec::new();
        for pipeline in self.pipelines {
            for _ in 0..if pipeline.is_subscriptions { 1 } else { 2 } {
                tasks.push(Box::pin(self.change(pipeline, random(), steps)));
            }
        }
        for _ in 0..2 {
            tasks.push(Box::pin(self.upload(random(), steps / 2)));
        }
        tasks.push(Box::pin(self.replace_file(random(), steps / 2)));
        tasks.push(Box::pin(self.delete(random(), 2 * steps)));
        tasks.push(Box::pin(self.bring_powers(random(), steps)));
        tasks.push(Box::pin(self.allow_powers(random(), steps)));
        join_all(tasks).await;
        self.found.into_inner()
    }

    fn took(&self, what: &str, answer: &Answer, documented: &[u16]) {
        *self.counts.lock().entry(format!("{what} {}", answer.status)).or_default() += 1;
        if !documented.contains(&answer.status) {
            self.found.lock().push(format!("{what} was answered so: {answer}"));
        }
    }

    async fn change(&self, pipeline: &Pipeline, mut random: StdRng, steps: usize) {
        let record = &self.records[pipeline.topic];
        for _ in 0..steps {
            let enough = record.stored_since(0) + UNDER_EACH;
            wait::until("messages meet what is there", async || (record.stored_since(0) >= enough).then_some(())).await;
            let seen = self.broker.get(&pipeline.path).await.expect(200)["revision"].as_u64().expect("a revision");
            let at = random.random_range(0..pipeline.stages.len());
            let (name, plugin) = pipeline.stages[at];
            let rollout = format!("{}/stages/{name}/rollout", pipeline.path);
            let (what, method, path, body) = match random.random_range(0..20) {
                0..6 => ("set", Method::PUT, pipeline.path.clone(), self.stages(pipeline, &mut random)),
                6..11 => ("canary", Method::POST, rollout, self.trial("canary", plugin, &mut random)),
                11..13 => ("shadow", Method::POST, rollout, self.trial("shadow", plugin, &mut random)),
                13 => {
                    let version = self.book.label(plugin, &mut random);
                    ("immediate", Method::POST, rollout, json!({"version": version, "strategy": "immediate"}))
                }
                14..16 => match self.other_percent(&rollout, &mut random).await {
                    Some(body) => ("percent", Method::POST, rollout, body),
                    None => continue,
                },
                16 | 17 => ("promote", Method::POST, format!("{rollout}/promote"), json!({})),
                18 => ("abort", Method::POST, format!("{rollout}/abort"), json!({})),
                _ => {
                    let to = random.random_range(seen.saturating_sub(10).max(1)..=seen.max(1));
                    ("rollback", Method::POST, format!("{}/rollback?to={to}", pipeline.path), json!({}))
                }
            };
            let if_match = format!("\"{seen}\"");
            let mut headers = vec![("content-type", "application/json")];
            if random.random_range(0..2) == 0 {
                headers.push(("if-match", &if_match));
            }
            let answer = self.broker.send(method, &path, &headers, body.to_string()).await;
            self.took(what, &answer, CHANGED);
            if let (200, false) = (answer.status, pipeline.is_subscriptions) {
                record.known(answer.json()["revision"].as_u64().expect("a revision"));
            }
        }
    }

    /// All stages anew, in one of ten cases of a subscription none.
    fn stages(&self, pipeline: &Pipeline, random: &mut StdRng) -> Value {
        if pipeline.is_subscriptions && random.random_range(0..3) == 0 {
            return json!({"stages": []});
        }
        let number = self.book.config();
        let stages = pipeline.stages.iter().map(|(name, plugin)| {
            let is_latest = random.random_range(0..2) == 0;
            let version = if is_latest { "latest".to_owned() } else { self.book.label(plugin, random) };
            stage(name, plugin, &version, number)
        });
        json!({"stages": stages.collect::<Vec<_>>()})
    }

    fn trial(&self, strategy: &str, plugin: &str, random: &mut StdRng) -> Value {
        let (version, percent) = (self.book.label(plugin, random), percent(random));
        json!({"version": version, "strategy": strategy, "percent": percent, "window": "PT5S", "minMessages": 20})
    }

    /// The same version on trial, for another share of the messages.
    async fn other_percent(&self, rollout: &str, random: &mut StdRng) -> Option<Value> {
        let answer = self.broker.get(rollout).await;
        self.took("look at a rollout", &answer, &[200, 404]);
        let now = (answer.status == 200).then(|| answer.json()).filter(|view| view["state"] == "running")?;
        Some(json!({"version": now["version"], "strategy": now["strategy"], "percent": percent(random)}))
    }

    async fn upload(&self, mut random: StdRng, steps: usize) {
        for _ in 0..steps {
            let number = self.book.number(&mut random);
            let (component, label) = (guest::trail(number), format!("1.{number}.0"));
            self.book.bring(&component, number);
            let answer = push(self.broker, UP, &label, component.clone()).await;
            self.took("upload", &answer, &[201]);
            if answer.status == 201 {
                self.book.there(UP, &label, &component);
            }
        }
    }

    async fn replace_file(&self, mut random: StdRng, steps: usize) {
        for _ in 0..steps {
            let number = self.book.number(&mut random);
            let component = guest::trail(number);
            let label = format!("sha-{}", &digest(&component)[..12]);
            self.book.bring(&component, number);
            self.broker.place_plugin("races.disk.wasm", &component);
            let path = format!("/plugins/{DISK}/versions/{label}");
            wait::within(4 * wait::PATIENCE, "the file is taken in", async || {
                (self.broker.get(&path).await.status == 200).then_some(())
            })
            .await;
            self.book.there(DISK, &label, &component);
        }
    }

    async fn delete(&self, mut random: StdRng, steps: usize) {
        for _ in 0..steps {
            let Some((plugin, label)) = self.book.to_delete(&mut random) else {
                wait::taken_up().await;
                continue;
            };
            let answer = self.broker.delete(&format!("/plugins/{plugin}/versions/{label}")).await;
            self.took("delete", &answer, &[204, 409]);
            if answer.status == 204 {
                self.book.gone(plugin, &label);
            }
        }
    }

    async fn bring_powers(&self, mut random: StdRng, steps: usize) {
        for _ in 0..steps {
            let label = format!("1.{}.0", self.book.number(&mut random));
            let powers: Vec<&str> = ["kv", "metrics"].into_iter().filter(|_| random.random_range(0..2) == 0).collect();
            let component = guest::with_powers(&powers, &label);
            self.book.bring(&component, 0);
            let answer = push(self.broker, QUIET, &label, component.clone()).await;
            self.took("upload with powers", &answer, &[201, 409]);
            if answer.status == 201 {
                self.book.there(QUIET, &label, &component);
            }
        }
    }

    async fn allow_powers(&self, mut random: StdRng, steps: usize) {
        for _ in 0..steps {
            let allowed: Vec<&str> = ["kv", "metrics"].into_iter().filter(|_| random.random_range(0..2) == 0).collect();
            let answer = self.broker.put(&format!("/plugins/{QUIET}/powers"), &json!({"allowed": allowed})).await;
            self.took("allow powers", &answer, &[200]);
            wait::taken_up().await;
        }
    }
}

fn percent(random: &mut StdRng) -> u32 {
    [1, 10, 50, 100][random.random_range(0..4)]
}
