//! Whether each message shows exactly what one revision makes of it. Invariant: what may be shown follows from the history of
//! the pipelines and from what is known of the versions; one rule a function. Never guesses: where several revisions could
//! have made it, any of them will do.

use std::collections::BTreeMap;

use serde_json::Value;
use sluice_tests::swap_record::{Life, SwapRecord};

use super::GROUPS;
use super::book::{Book, QUIET, Version};

/// A revision, as the history tells it. The stages of the quiet plugin are left out: they show nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Revision {
    pub(super) number: u64,
    stages: Vec<Stage>,
}

#[derive(Debug, Clone)]
struct Stage {
    config: Value,
    digest: String,
    /// What runs in its place for some of the messages.
    canary: Option<String>,
}

impl Revision {
    pub(super) fn of(view: &Value) -> Revision {
        let (stages, resolved) = (view["stages"].as_array(), view["resolved"].as_array());
        let both = stages.into_iter().flatten().zip(resolved.into_iter().flatten());
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let stages = both.filter(|(own, _)| own["plugin"] != QUIET).map(|(own, runs)| {
            let canary = Some(&runs["rollout"]).filter(|rollout| rollout["strategy"] == "canary");
            let canary = canary.map(|rollout| text(&rollout["digest"]));
            Stage { config: own["config"].clone(), digest: text(&runs["digest"]), canary }
        });
        Revision { number: view["revision"].as_u64().expect("a revision"), stages: stages.collect() }
    }
}

/// What one stage has left.
#[derive(Debug, Clone, PartialEq)]
struct Mark {
    config: Value,
    number: u32,
}

/// Every promise that was broken, in a sentence each.
pub(super) fn violations(
    record: &SwapRecord,
    topic: usize,
    histories: &[Vec<Revision>; 2],
    book: &Book,
) -> Vec<String> {
    let versions = |digest: &str| book.version(digest);
    let mut judge = Judge { topic, histories, versions: &versions, kept: BTreeMap::new(), found: Vec::new() };
    record.each(|life, delivered| {
        let by_group: Vec<(&str, &str)> =
            delivered.iter().map(|(group, delivered)| (*group, delivered.trail.as_str())).collect();
        judge.look(&life, &by_group);
    });
    judge.found
}

struct Judge<'a> {
    topic: usize,
    /// The topic's, and those of the subscription of the second group.
    histories: &'a [Vec<Revision>; 2],
    versions: &'a dyn Fn(&str) -> Option<Version>,
    /// Which version a key met in a stage of a revision.
    kept: BTreeMap<(u64, String, String), u32>,
    found: Vec<String>,
}

impl Judge<'_> {
    fn look(&mut self, life: &Life<'_>, delivered: &[(&str, &str)]) {
        let tag = &life.asked.tag;
        let Some(revision) = self.histories[0].iter().find(|revision| revision.number == life.stored.revision) else {
            let number = life.stored.revision;
            return self.found.push(format!("{tag} met revision {number}, of which the history knows nothing"));
        };
        for (group, trail) in delivered {
            let Some(marks) = marks(trail) else {
                self.found.push(format!("{tag} came to {group} with no trail: {trail}"));
                continue;
            };
            let on_the_way_out = if *group == GROUPS[1] { &self.histories[1][..] } else { &[] };
            let is_whole = self.ways(revision, &marks).into_iter().any(|(_, rest)| {
                if *group == GROUPS[1] {
                    on_the_way_out.iter().any(|out| self.ways(out, rest).iter().any(|(_, rest)| rest.is_empty()))
                } else {
                    rest.is_empty()
                }
            });
            if !is_whole {
                let number = revision.number;
                self.found
                    .push(format!("{tag} came to {group} with a trail that revision {number} leaves not: {trail}"));
            } else if *group == GROUPS[0] {
                self.in_its_time(life, revision, &marks);
                self.keys_stay(life, revision, &marks);
            }
        }
    }

    /// All ways in which a revision can have left the beginning of these marks: how many they are, and what is behind them.
    fn ways<'m>(&self, revision: &Revision, marks: &'m [Mark]) -> Vec<(usize, &'m [Mark])> {
        let mut ways = vec![(0, marks)];
        for stage in &revision.stages {
            ways = ways.into_iter().flat_map(|way| self.through(stage, way)).collect();
        }
        ways
    }

    fn through<'m>(&self, stage: &Stage, (count, marks): (usize, &'m [Mark])) -> Vec<(usize, &'m [Mark])> {
        let may_run: Vec<Version> = [Some(&stage.digest), stage.canary.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|digest| (self.versions)(digest))
            .collect();
        let mut ways = Vec::new();
        if let Some((mark, rest)) = marks.split_first()
            && mark.config == stage.config
            && may_run.iter().any(|version| version.number == mark.number)
        {
            ways.push((count + 1, rest));
        }
        // What a broken version fails on passes as it is.
        if may_run.iter().any(Version::is_broken) {
            ways.push((count, marks));
        }
        ways
    }

    /// Nothing runs before it was brought, nor for what is sent after it was deleted.
    fn in_its_time(&mut self, life: &Life<'_>, revision: &Revision, marks: &[Mark]) {
        for stage in &revision.stages {
            for digest in [Some(&stage.digest), stage.canary.as_ref()].into_iter().flatten() {
                let Some(version) = (self.versions)(digest) else { continue };
                if !marks.iter().any(|mark| mark.number == version.number && mark.config == stage.config) {
                    continue;
                }
                let tag = &life.asked.tag;
                if life.stored_at < version.brought[self.topic] {
                    self.found.push(format!("{tag} met version {} before anyone brought it", version.number));
                }
                if version.deleted.is_some_and(|deleted| deleted[self.topic] <= life.asked_at) {
                    self.found.push(format!("{tag} met version {} after it was deleted", version.number));
                }
            }
        }
    }

    /// Of one revision, a key stays with its version; where a broken one is on trial, until it is taken back.
    fn keys_stay(&mut self, life: &Life<'_>, revision: &Revision, marks: &[Mark]) {
        let Some(key) = &life.asked.key else { return };
        for stage in revision.stages.iter().filter(|stage| stage.canary.is_some()) {
            let broken = [Some(&stage.digest), stage.canary.as_ref()].into_iter().flatten();
            if broken.filter_map(|digest| (self.versions)(digest)).any(|version| version.is_broken()) {
                continue;
            }
            for mark in marks.iter().filter(|mark| mark.config == stage.config) {
                let place = (revision.number, stage.config.to_string(), key.clone());
                let before = *self.kept.entry(place).or_insert(mark.number);
                if before != mark.number {
                    let (tag, number) = (&life.asked.tag, revision.number);
                    self.found
                        .push(format!("{tag} of key {key} met {} on revision {number}, others {before}", mark.number));
                }
            }
        }
    }
}

/// `{config}@{version};` each.
fn marks(trail: &str) -> Option<Vec<Mark>> {
    let one = |text: &str| {
        let (config, number) = text.rsplit_once('@')?;
        Some(Mark { config: serde_json::from_str(config).ok()?, number: number.parse().ok()? })
    };
    trail.split_terminator(';').map(one).collect()
}

#[cfg(test)]
mod tests {
    use sluice_tests::swap_record::{Asked, Stored};

    use super::super::book::stage;
    use super::*;

    /// Stage `a` with config 1 runs version 1; on revision 2 version 2 is its canary; stage `z` behind runs version 1.
    fn judged(trails: [&str; 2], revision: u64, times: (usize, usize)) -> Vec<String> {
        let view = |number: u64, name: &str, rollout: Value| {
            serde_json::json!({"revision": number, "stages": [stage(name, "races.up", "1", 1)],
                "resolved": [{"digest": "1", "rollout": rollout}]})
        };
        let tried = |strategy: &str, digest: &str| serde_json::json!({"strategy": strategy, "digest": digest});
        let of_topic = [
            view(1, "a", Value::Null),
            view(2, "a", tried("canary", "2")),
            view(3, "a", tried("shadow", "2")),
            view(4, "a", tried("canary", "90000")),
        ];
        let histories = [of_topic.iter().map(Revision::of).collect(), vec![Revision::of(&view(1, "z", Value::Null))]];
        let versions = |digest: &str| {
            let (brought, deleted) = if digest == "2" { (vec![4], Some(vec![6])) } else { (vec![0], None) };
            Some(Version { number: digest.parse().ok()?, brought, deleted })
        };
        let mut judge =
            Judge { topic: 0, histories: &histories, versions: &versions, kept: BTreeMap::new(), found: Vec::new() };
        let asked = Asked { tag: "m".to_owned(), key: Some("k".to_owned()) };
        let stored = Stored { id: String::new(), partition: 0, offset: 0, revision };
        let life = Life { asked_at: times.0, stored_at: times.1, asked: &asked, stored: &stored };
        judge.look(&life, &[(GROUPS[0], trails[0]), (GROUPS[1], trails[1])]);
        // A second message of the key.
        if revision == 2 && trails[0].contains("00001") {
            judge.look(&Life { asked_at: 5, stored_at: 5, ..life }, &[(GROUPS[0], A2)]);
        }
        judge.found
    }

    const A1: &str = r#"{"s":"a","n":1}@00001;"#;
    const A2: &str = r#"{"s":"a","n":1}@00002;"#;
    const A1Z1: &str = r#"{"s":"a","n":1}@00001;{"s":"z","n":1}@00001;"#;
    const A2Z1: &str = r#"{"s":"a","n":1}@00002;{"s":"z","n":1}@00001;"#;
    const Z1: &str = r#"{"s":"z","n":1}@00001;"#;

    #[test]
    fn what_one_revision_makes_breaks_nothing() {
        for (trails, revision) in [([A1, A1Z1], 1), ([A2, A2Z1], 2), ([A1, A1Z1], 3), (["", Z1], 4), ([A1, A1Z1], 4)] {
            assert_eq!(judged(trails, revision, (5, 5)), Vec::<String>::new(), "{trails:?} of {revision}");
        }
    }

    #[test]
    fn each_broken_promise_is_found() {
        let twice = format!("{A1}{A1}");
        let mixed = format!("{A1}{A2}");
        for (expected, trails, revision, times) in [
            ("knows nothing", [A1, A1Z1], 9, (5, 5)),
            ("no trail", ["nonsense", A1Z1], 1, (5, 5)),
            ("leaves not", ["", A1Z1], 1, (5, 5)),
            ("leaves not", [&twice, A1Z1], 1, (5, 5)),
            ("leaves not", [&mixed, A1Z1], 2, (5, 5)),
            ("leaves not", [A2, A1Z1], 1, (5, 5)),
            ("leaves not", [A2, A1Z1], 3, (5, 5)),
            ("leaves not", [A1, A1], 1, (5, 5)),
            ("before anyone brought it", [A2, A2Z1], 2, (3, 3)),
            ("after it was deleted", [A2, A2Z1], 2, (6, 7)),
            ("of key k met", [A1, A1Z1], 2, (5, 5)),
        ] {
            let found = judged(trails, revision, times);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
    }
}
