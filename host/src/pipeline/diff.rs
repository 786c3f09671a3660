//! What is different between two revisions of a pipeline. Invariant: a stage is known by its name; each difference says what
//! was before and what is after, so that the one can be read out of the other. Never looks at what a config means.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::catalog::model::{PipelineRevision, Rollout, RolloutLimits, Strategy};
use crate::config::format_duration;

/// A stage as it was set, and what really ran.
#[derive(Debug, Clone, PartialEq)]
pub struct StageThen {
    name: String,
    implicit: bool,
    /// With the version as it was set (`latest`).
    spec: Value,
    version: String,
    digest: String,
    trial: Option<Trial>,
}

/// All differences.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Stages that were not there before.
    pub added: Vec<Placed>,
    /// Stages that are no longer there.
    pub removed: Vec<Placed>,
    /// Stages that run earlier or later among those that stayed.
    pub moved: Vec<Moved>,
    /// Stages that are there before and after, and are not the same.
    pub changed: Vec<Changed>,
}

/// A stage that came or went.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placed {
    /// Its name.
    pub stage: String,
    /// Where it runs, from 0, among all stages.
    pub at: usize,
    /// Added by Sluice.
    pub implicit: bool,
    /// The version that ran.
    pub runs: Runs,
    /// As it was set.
    #[schema(value_type = Object)]
    pub spec: Value,
}

/// A stage in another place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// Its name.
    pub stage: String,
    /// Where it ran, from 0, among all stages.
    pub from: usize,
    /// Where it runs.
    pub to: usize,
}

/// A stage that is another.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// Its name.
    pub stage: String,
    /// What was set in another way.
    pub fields: Vec<Field>,
    /// The version that ran, if it is another: also where both were set as `latest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<RunsOther>,
    /// What is tried on it, if that is another, or is tried in another way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialOther>,
}

/// A value that is another.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Field {
    /// JSON Pointer into the stage.
    pub pointer: String,
    /// What was there; absent if nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub before: Option<Value>,
    /// What is there; absent if nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub after: Option<Value>,
}

/// A plugin's version that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runs {
    /// Its label.
    pub version: String,
    /// Hex SHA-256 of the component.
    pub digest: String,
}

/// A plugin's version, and the one that came after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RunsOther {
    /// What ran.
    pub before: Runs,
    /// What runs.
    pub after: Runs,
}

/// A version that is tried on a stage.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Its label.
    pub version: String,
    /// Hex SHA-256 of the component.
    pub digest: String,
    /// How it is tried.
    pub strategy: Strategy,
    /// On how many of a hundred messages.
    pub percent: f64,
    /// What ends it by itself.
    #[schema(value_type = Object)]
    pub limits: Value,
}

/// What was tried on a stage, and what came after.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TrialOther {
    /// What was tried; absent if nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Trial>,
    /// What is tried; absent if nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Trial>,
}

impl From<Rollout> for Trial {
    fn from(rollout: Rollout) -> Trial {
        let Rollout { version, digest, strategy, percent, limits, started_at: _ } = rollout;
        Trial { version, digest, strategy, percent, limits: shown(&limits) }
    }
}

/// By the names that the API has for them.
fn shown(limits: &RolloutLimits) -> Value {
    let mut shown = Map::new();
    let shares = [
        ("maxErrorRate", limits.max_error_rate),
        ("maxRejectDelta", limits.max_reject_delta),
        ("maxDropDelta", limits.max_drop_delta),
        ("maxLatencyMs", limits.max_latency_ms),
    ];
    shown.extend(shares.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?.into()))));
    let window = format_duration(Duration::from_millis(limits.window_ms));
    shown.insert("window".to_owned(), window.into());
    shown.insert("minMessages".to_owned(), limits.min_messages.into());
    Value::Object(shown)
}

/// The stages of a revision, in the order they run.
#[must_use]
pub fn stages_of(revision: PipelineRevision) -> Vec<StageThen> {
    let set = revision.stages;
    let then = |stage: crate::catalog::model::ResolvedStage| {
        // A stage that names a schema runs with the schema in its config; what was set is what is compared.
        let own = set.iter().find(|spec| !stage.implicit && spec.name == stage.spec.name).unwrap_or(&stage.spec);
        StageThen {
            name: own.name.clone(),
            implicit: stage.implicit,
            spec: serde_json::to_value(own).unwrap_or_default(),
            version: stage.version.clone(),
            digest: stage.digest.clone(),
            trial: stage.rollout.map(Trial::from),
        }
    };
    revision.resolved.into_iter().map(then).collect()
}

/// What became of `before`.
#[must_use]
pub fn between(before: &[StageThen], after: &[StageThen]) -> Difference {
    let place = |stages: &[StageThen], of: &StageThen| stages.iter().position(|stage| is_same(stage, of));
    let only = |these: &[StageThen], those: &[StageThen]| -> Vec<Placed> {
        let gone = these.iter().enumerate().filter(|(_, stage)| place(those, stage).is_none());
        gone.map(|(at, stage)| stage.placed(at)).collect()
    };
    // Where each stage that stayed was, in the order of now.
    let stayed: Vec<(usize, usize)> =
        after.iter().enumerate().filter_map(|(to, stage)| Some((place(before, stage)?, to))).collect();
    let unmoved = longest_rising(&stayed.iter().map(|(from, _)| *from).collect::<Vec<_>>());
    let moved = stayed.iter().filter(|(from, _)| !unmoved.contains(from));
    Difference {
        added: only(after, before),
        removed: only(before, after),
        moved: moved.map(|(from, to)| Moved { stage: after[*to].name.clone(), from: *from, to: *to }).collect(),
        changed: stayed.iter().filter_map(|(from, to)| changed(&before[*from], &after[*to])).collect(),
    }
}

/// What Sluice adds may be named as an owner's stage is.
fn is_same(one: &StageThen, other: &StageThen) -> bool {
    one.name == other.name && one.implicit == other.implicit
}

impl StageThen {
    fn placed(&self, at: usize) -> Placed {
        Placed { stage: self.name.clone(), at, implicit: self.implicit, runs: self.runs(), spec: self.spec.clone() }
    }

    fn runs(&self) -> Runs {
        Runs { version: self.version.clone(), digest: self.digest.clone() }
    }
}

fn changed(before: &StageThen, after: &StageThen) -> Option<Changed> {
    let mut fields = Vec::new();
    compare(Some(&before.spec), Some(&after.spec), "", &mut fields);
    let runs = (before.runs() != after.runs()).then(|| RunsOther { before: before.runs(), after: after.runs() });
    let tried = || TrialOther { before: before.trial.clone(), after: after.trial.clone() };
    let trial = (before.trial != after.trial).then(tried);
    let differs = !fields.is_empty() || runs.is_some() || trial.is_some();
    differs.then(|| Changed { stage: after.name.clone(), fields, runs, trial })
}

/// Down to the smallest values that differ.
fn compare(before: Option<&Value>, after: Option<&Value>, at: &str, fields: &mut Vec<Field>) {
    match (before, after) {
        (Some(Value::Object(one)), Some(Value::Object(other))) => objects(one, other, at, fields),
        (Some(Value::Array(one)), Some(Value::Array(other))) => {
            for n in 0..one.len().max(other.len()) {
                compare(one.get(n), other.get(n), &format!("{at}/{n}"), fields);
            }
        }
        (before, after) if before == after => {}
        (before, after) => {
            fields.push(Field { pointer: at.to_owned(), before: before.cloned(), after: after.cloned() });
        }
    }
}

fn objects(one: &Map<String, Value>, other: &Map<String, Value>, at: &str, fields: &mut Vec<Field>) {
    let added = other.keys().filter(|name| !one.contains_key(*name));
    for name in one.keys().chain(added) {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        compare(one.get(name), other.get(name), &format!("{at}/{escaped}"), fields);
    }
}

/// The longest run of `places` that rises (with gaps): what is not in it has moved. There are few.
fn longest_rising(places: &[usize]) -> Vec<usize> {
    let mut best: Vec<Vec<usize>> = Vec::with_capacity(places.len());
    for (at, place) in places.iter().enumerate() {
        let longest = (0..at).filter(|earlier| places[*earlier] < *place).max_by_key(|earlier| best[*earlier].len());
        let mut run = longest.map(|earlier| best[earlier].clone()).unwrap_or_default();
        run.push(*place);
        best.push(run);
    }
    best.into_iter().max_by_key(Vec::len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stage(name: &str, config: Value, version: &str) -> StageThen {
        let spec = json!({"name": name, "plugin": "p", "version": "latest", "config": config});
        let (version, digest) = (version.to_owned(), format!("digest of {version}"));
        StageThen { name: name.to_owned(), implicit: false, spec, version, digest, trial: None }
    }

    fn plain(name: &str) -> StageThen {
        stage(name, json!({}), "1")
    }

    #[test]
    fn what_is_the_same_has_no_difference() {
        let stages = [plain("a"), plain("b")];
        assert_eq!(between(&stages, &stages), Difference::default());
        assert_eq!(between(&[], &[]), Difference::default());
    }

    #[test]
    fn stages_come_go_and_move() {
        let all = ["a", "b", "c", "d"].map(plain);
        let [a, b, c, d] = all.clone();
        let difference = between(&all, &[d.clone(), a.clone(), b.clone(), c.clone()]);
        assert_eq!(difference.moved, [Moved { stage: "d".to_owned(), from: 3, to: 0 }], "and no other");
        let difference = between(&[a.clone(), b.clone()], &[b, c, a]);
        assert_eq!(difference.added.iter().map(|it| (it.stage.as_str(), it.at)).collect::<Vec<_>>(), [("c", 1)]);
        assert_eq!(difference.moved.len(), 1);
        let difference = between(&[d], &[]);
        assert_eq!((difference.removed.len(), difference.added.len()), (1, 0));
    }

    #[test]
    fn a_change_is_told_down_to_its_place() {
        let before = stage("a", json!({"rules": [{"x": 1, "y/z": 1}], "old": true}), "1");
        let after = stage("a", json!({"rules": [{"x": 2, "y/z": 2}, 3], "new": null}), "2");
        let difference = between(&[before], &[after]);
        let changed = &difference.changed[0];
        let fields = serde_json::to_value(&changed.fields).unwrap();
        assert_eq!(
            fields,
            json!([
                {"pointer": "/config/rules/0/x", "before": 1, "after": 2},
                {"pointer": "/config/rules/0/y~1z", "before": 1, "after": 2},
                {"pointer": "/config/rules/1", "after": 3},
                {"pointer": "/config/old", "before": true},
                {"pointer": "/config/new", "after": null},
            ])
        );
        assert_eq!(changed.runs.as_ref().map(|runs| runs.after.version.as_str()), Some("2"));
    }

    #[test]
    fn a_trial_that_begins_goes_on_otherwise_or_ends_is_a_change() {
        let limits = RolloutLimits {
            max_error_rate: Some(0.5),
            max_reject_delta: None,
            max_drop_delta: None,
            max_latency_ms: None,
            window_ms: 60_000,
            min_messages: 10,
        };
        let tried = |percent: f64| {
            let (version, digest, limits) = ("2".to_owned(), "d".to_owned(), limits.clone());
            let (strategy, started_at) = (Strategy::Canary, crate::clock::Timestamp(0));
            let rollout = Rollout { version, digest, strategy, percent, limits, started_at };
            StageThen { trial: Some(rollout.into()), ..plain("a") }
        };
        let shown = tried(1.0).trial.expect("one is tried").limits;
        assert_eq!(shown, json!({"maxErrorRate": 0.5, "window": "PT1M", "minMessages": 10}));
        let percents = |before: StageThen, after: StageThen| {
            let difference = between(&[before], &[after]);
            let trial = difference.changed.first().and_then(|changed| changed.trial.clone());
            trial.map(|trial| [trial.before, trial.after].map(|trial| trial.map(|trial| trial.percent)))
        };
        assert_eq!(percents(plain("a"), tried(10.0)), Some([None, Some(10.0)]));
        assert_eq!(percents(tried(10.0), tried(20.0)), Some([Some(10.0), Some(20.0)]));
        assert_eq!(percents(tried(20.0), plain("a")), Some([Some(20.0), None]));
        assert_eq!(percents(tried(20.0), tried(20.0)), None);
    }

    #[test]
    fn what_sluice_adds_is_no_owners_stage() {
        let own = plain("schema");
        let added = StageThen { implicit: true, ..own.clone() };
        let difference = between(&[own], &[added]);
        assert_eq!((difference.added.len(), difference.removed.len()), (1, 1));
    }
}
