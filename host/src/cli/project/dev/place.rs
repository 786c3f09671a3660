//! A project's component on a running broker: uploaded, bound to a stage, and taken away again. Invariant: what was there
//! before is known before anything is changed, and a change that somebody else makes meanwhile is never overwritten; of one
//! session no more versions stay than pipelines run. Never builds.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cli::client::{Client, Query};
use crate::cli::failure::Failure;
use crate::cli::plugin_push;
use crate::cli::project::refusal;

/// What the labels of all sessions' versions begin with: below any release.
const DEV: &str = "0.0.0-dev.";
/// Versions of other sessions that stay though no pipeline runs them: somebody may be about to bind one.
const OTHERS_KEPT: usize = 10;
/// Somebody else changed the pipeline between a look and a change: so often it is tried again.
const TRIES_MAX: usize = 5;

/// Whose pipeline, and which of its stages.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Whether it is a topic's; else a subscription's.
    pub(super) is_topic: bool,
    /// The topic's name, or the subscription's id.
    pub(super) owner: String,
    /// The stage, if it was named.
    pub(super) stage: Option<String>,
    /// The stage's config, if one was named.
    pub(super) config: Option<Value>,
    /// The config of a stage that is added.
    pub(super) usual_config: Value,
}

impl Target {
    fn path(&self) -> [&str; 3] {
        [if self.is_topic { "topics" } else { "subscriptions" }, &self.owner, "pipeline"]
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) client: &'a Client,
    pub(super) plugin: String,
    /// What the labels of this session's versions begin with.
    pub(super) session: String,
    pub(super) target: Option<Target>,
    pub(super) sign: Option<PathBuf>,
    /// Set while a request may be under way that the broker carries to its end, whatever becomes of the client.
    brings: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Components that were uploaded.
    uploads: u64,
    /// The digest that the pipeline has been given.
    in_force: Option<String>,
    /// What `latest` meant before, once it was asked; none within: there was no version.
    latest_before: Option<Option<String>>,
    /// The stage, and as it was before; none within: it was not there.
    stage: Option<(String, Option<Value>)>,
    /// The stage as this session has left it.
    left: Option<Value>,
}

/// What is in force now.
#[derive(Debug)]
pub(super) struct InForce {
    /// The version's label.
    pub(super) version: String,
    /// The pipeline's revision, the stage, and whether it was added.
    pub(super) bound: Option<(u64, String, bool)>,
    /// Other pipelines that follow `latest`, and run it now.
    pub(super) others: Vec<String>,
    /// Why what ran before could not be deleted.
    unclean: Option<Failure>,
}

impl InForce {
    /// What else there is to say of it.
    pub(super) fn warning(&self) -> Option<String> {
        let why = self.unclean.as_ref()?;
        Some(format!("what ran before could not be deleted, and is tried again with the next change: {why}"))
    }
}

/// The pipeline, as it was looked at.
struct Seen {
    stages: Vec<Value>,
    etag: Option<String>,
    /// The stage that is ours, or is to be.
    name: String,
    /// It, if it is there.
    now: Option<Value>,
}

impl<'a> Place<'a> {
    pub(super) fn new(client: &'a Client, plugin: &str, session: u32, target: Option<Target>) -> Place<'a> {
        let session = format!("{DEV}{session:08x}");
        let plugin = plugin.to_owned();
        Place { client, plugin, session, target, sign: None, brings: AtomicBool::new(false), state: Mutex::default() }
    }

    /// The stage that it is bound to, once it is.
    pub(super) fn stage(&self) -> Option<String> {
        self.state.lock().stage.as_ref().map(|(name, _)| name.clone())
    }

    /// Whether `digest` is what the broker runs already: this session has brought it, and nobody has changed that since.
    pub(super) async fn runs(&self, digest: &str) -> Result<bool, Failure> {
        if self.state.lock().in_force.as_deref() != Some(digest) {
            return Ok(false);
        }
        let Some(target) = &self.target else {
            let known = self.known().await?.unwrap_or_default();
            return Ok(known["versions"][0]["digest"] == digest);
        };
        let known = self.client.get(&target.path(), Query::default()).await?;
        let (name, mut stages) = (self.stage(), known.body["resolved"].as_array().into_iter().flatten());
        Ok(stages.any(|stage| stage["name"].as_str() == name.as_deref() && stage["digest"] == digest))
    }

    /// Whether something is being brought into force: to be waited for before it is put back.
    pub(super) fn brings(&self) -> bool {
        self.brings.load(Ordering::Relaxed)
    }

    /// Whether something was uploaded, and nothing came into force.
    pub(super) fn is_halfway(&self) -> bool {
        let state = self.state.lock();
        state.uploads > 0 && state.in_force.is_none()
    }

    /// Uploads `component` and brings it into force.
    pub(super) async fn bring(&self, component: Bytes, digest: &str) -> Result<InForce, Failure> {
        self.brings.store(true, Ordering::Relaxed);
        let brought = self.bring_it(component, digest).await;
        self.brings.store(false, Ordering::Relaxed);
        brought
    }

    async fn bring_it(&self, component: Bytes, digest: &str) -> Result<InForce, Failure> {
        if self.state.lock().latest_before.is_none() {
            let before = self.known().await?.and_then(|known| label(&known["versions"][0]));
            self.state.lock().latest_before = Some(before);
        }
        if let Some(target) = &self.target {
            // Before anything is uploaded: a topic that is not there is told at once.
            self.look(target).await?;
        }
        let number = {
            let mut state = self.state.lock();
            state.uploads += 1;
            state.uploads
        };
        let label = format!("{}.{number}", self.session);
        let new = plugin_push::Upload { name: &self.plugin, label: Some(label), sign: self.sign.as_deref() };
        let accepted = plugin_push::send(self.client, new, component).await?;
        // Bytes that were there before keep their label, if they had none of ours.
        let version = accepted["version"].as_str().unwrap_or_default().to_owned();
        let bound = match &self.target {
            Some(target) => Some(self.bind(target, &version).await?),
            None => None,
        };
        self.state.lock().in_force = Some(digest.to_owned());
        // It is in force, whatever becomes of what was before it.
        let (others, unclean) = match self.forget_unbound(&version).await {
            Ok((others, _)) => (others, None),
            Err(failure) => (Vec::new(), Some(failure)),
        };
        Ok(InForce { version, bound, others, unclean })
    }

    /// The pipeline, and which of its stages is ours; fails where none may be.
    async fn look(&self, target: &Target) -> Result<Seen, Failure> {
        let known = self.client.get(&target.path(), Query::default()).await?;
        let stages = known.body["stages"].as_array().cloned().unwrap_or_default();
        let ours = self.stage().or_else(|| target.stage.clone()).unwrap_or_else(|| {
            // The one stage that runs the plugin already, or else one that is named as it is.
            let mut running = stages.iter().filter(|stage| stage["plugin"] == self.plugin.as_str());
            let one = running.next().filter(|_| running.next().is_none());
            one.and_then(|stage| stage["name"].as_str()).unwrap_or(&self.plugin).to_owned()
        });
        let at = stages.iter().position(|stage| stage["name"] == ours.as_str());
        let now = at.and_then(|at| stages.get(at)).cloned();
        if at.is_some_and(|at| !known.body["resolved"][at]["rollout"].is_null()) {
            // To set the stage would end it for good.
            return Err(refusal(format!(
                "a rollout of the stage '{ours}' is under way: end it first, or name another stage by --stage"
            )));
        }
        let runs_another = |stage: &Value| stage["plugin"] != self.plugin.as_str();
        if target.stage.is_none() && self.stage().is_none() && now.as_ref().is_some_and(runs_another) {
            return Err(refusal(format!("the stage '{ours}' runs another plugin: name a stage by --stage")));
        }
        Ok(Seen { stages, etag: known.etag, name: ours, now })
    }

    /// Has the stage run `version`; the revision, the stage, and whether it is new.
    async fn bind(&self, target: &Target, version: &str) -> Result<(u64, String, bool), Failure> {
        for _ in 1..TRIES_MAX {
            match self.bind_once(target, version).await {
                Err(Failure::Refused(refusal)) if refusal.status == Some(412) => {}
                other => return other,
            }
        }
        self.bind_once(target, version).await
    }

    async fn bind_once(&self, target: &Target, version: &str) -> Result<(u64, String, bool), Failure> {
        let Seen { mut stages, etag, name, now } = self.look(target).await?;
        let at = stages.iter().position(|stage| stage["name"] == name.as_str());
        let is_ours =
            now.as_ref().and_then(|stage| stage["version"].as_str()).is_some_and(|version| self.is_of_session(version));
        if !is_ours {
            // Noted before it is changed: what is interrupted in between can be undone. What others have made of it since is
            // what it will be again.
            self.state.lock().stage = Some((name.clone(), now));
        }
        let is_new = at.is_none();
        let at = at.unwrap_or_else(|| {
            stages.push(json!({"name": name, "config": target.usual_config}));
            stages.len() - 1
        });
        stages[at]["plugin"] = json!(self.plugin);
        stages[at]["version"] = json!(version);
        if let Some(config) = &target.config {
            stages[at]["config"] = config.clone();
        }
        let set = self.client.put(&target.path(), etag.as_deref(), &json!({"stages": stages})).await?;
        self.state.lock().left = Some(set["stages"][at].clone());
        Ok((set["revision"].as_u64().unwrap_or_default(), name, is_new))
    }

    /// What the broker knows of the plugin; none if it knows none.
    async fn known(&self) -> Result<Option<Value>, Failure> {
        match self.client.get(&["plugins", &self.plugin], Query::default()).await {
            Ok(known) => Ok(Some(known.body)),
            Err(Failure::Refused(refusal)) if refusal.status == Some(404) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Deletes what this session has uploaded and no pipeline runs, but for `kept`, and of other sessions what is older;
    /// answers which other pipelines run that, and which of this session stay.
    async fn forget_unbound(&self, kept: &str) -> Result<(Vec<String>, Vec<String>), Failure> {
        let known = self.known().await?.unwrap_or_default();
        let (mut others, mut stay, mut of_other_sessions) = (Vec::new(), Vec::new(), 0);
        for version in known["versions"].as_array().into_iter().flatten() {
            let label = label(version).unwrap_or_default();
            let bound = version["bound"].as_array().cloned().unwrap_or_default();
            let is_ours = self.is_of_session(&label);
            of_other_sessions += usize::from(!is_ours && label.starts_with(DEV));
            let is_old = is_ours || (label.starts_with(DEV) && of_other_sessions > OTHERS_KEPT);
            if label == kept {
                others = bound.iter().filter(|bound| !self.is_ours(bound)).map(shown_binding).collect();
            } else if is_old && bound.is_empty() {
                match self.client.delete(&["plugins", &self.plugin, "versions", &label], Query::default()).await {
                    Ok(_) => {}
                    // Somebody was quicker, or a pipeline that the token does not see runs it.
                    Err(Failure::Refused(refusal)) if refusal.status == Some(404) => {}
                    Err(Failure::Refused(refusal)) if refusal.status == Some(409) && is_ours => stay.push(label),
                    Err(Failure::Refused(refusal)) if refusal.status == Some(409) => {}
                    Err(failure) => return Err(failure),
                }
            } else if is_ours {
                stay.push(label);
            }
        }
        Ok((others, stay))
    }

    fn is_of_session(&self, label: &str) -> bool {
        label.strip_prefix(&*self.session).is_some_and(|rest| rest.starts_with('.'))
    }

    fn is_ours(&self, bound: &Value) -> bool {
        let Some(target) = &self.target else { return false };
        let owner = if target.is_topic { &bound["topicName"] } else { &bound["subscriptionId"] };
        *owner == target.owner.as_str()
            && (target.is_topic == bound["subscriptionId"].is_null())
            && self.stage().is_some_and(|stage| bound["stage"] == stage.as_str())
    }

    /// Puts the stage back as it was, `latest` too, and deletes the session's versions; what was done and what stays, in
    /// sentences, and the first failure: none of the steps keeps the next one from being done.
    pub(super) async fn put_back(&self) -> (Vec<String>, Option<Failure>) {
        let (mut said, mut failures) = (Vec::new(), Vec::new());
        if self.state.lock().uploads == 0 {
            return (said, None);
        }
        if let Some(target) = &self.target {
            match self.unbind(target).await {
                Ok(done) => said.extend(done),
                Err(failure) => {
                    let noun = if target.is_topic { "topic" } else { "subscription" };
                    let stage = self.stage().unwrap_or_default();
                    said.push(format!(
                        "the stage '{stage}' is not as it was: see `sluice pipeline history --{noun} {owner}`, and go back by \
                         `sluice pipeline rollback` or `set`",
                        owner = target.owner
                    ));
                    failures.push(failure);
                }
            }
        }
        let before = self.state.lock().latest_before.clone().flatten();
        if let Some(label) = before {
            match self.restore_latest(&label).await {
                Ok(done) => said.extend(done),
                Err(failure) => {
                    said.push(format!("`latest` of {} may not mean {label} again: push that once more", self.plugin));
                    failures.push(failure);
                }
            }
        }
        match self.forget_unbound("").await {
            Ok((_, stay)) => said.extend(stay.iter().map(|label| {
                format!(
                    "{0} {label} stays, as a pipeline runs it: later, `sluice plugin delete {0} {label}`",
                    self.plugin
                )
            })),
            Err(failure) => {
                let (plugin, session) = (&self.plugin, &self.session);
                said.push(format!(
                    "versions {session}.… of {plugin} may stay: `sluice plugin delete {plugin} VERSION`"
                ));
                failures.push(failure);
            }
        }
        (said, failures.into_iter().next())
    }

    async fn unbind(&self, target: &Target) -> Result<Option<String>, Failure> {
        let Some((name, before)) = self.state.lock().stage.clone() else { return Ok(None) };
        for tries_left in (0..TRIES_MAX).rev() {
            let known = match self.client.get(&target.path(), Query::default()).await {
                // With its owner it is gone, too.
                Err(Failure::Refused(refusal)) if refusal.status == Some(404) => return Ok(None),
                known => known?,
            };
            let mut stages = known.body["stages"].as_array().cloned().unwrap_or_default();
            let ours = |stage: &Value| {
                stage["name"] == name.as_str() && stage["version"].as_str().is_some_and(|it| self.is_of_session(it))
            };
            let Some(at) = stages.iter().position(ours) else {
                let now = stages.into_iter().find(|stage| stage["name"] == name.as_str());
                let told = || format!("the stage '{name}' was changed by others, and is left as it is");
                // What was interrupted has changed nothing.
                return Ok((now != before).then(told));
            };
            let how = match &before {
                Some(before) => self.as_before(&mut stages[at], before, target),
                None => {
                    stages.remove(at);
                    "is gone again"
                }
            };
            match self.client.put(&target.path(), known.etag.as_deref(), &json!({"stages": stages})).await {
                Err(Failure::Refused(refusal)) if refusal.status == Some(412) && tries_left > 0 => {}
                set => {
                    let revision = set?["revision"].clone();
                    return Ok(Some(format!("revision {revision} is in use: the stage '{name}' {how}")));
                }
            }
        }
        Ok(None)
    }

    /// Makes `stage` what it was `before`, but for what others have changed in it since; how it is now.
    fn as_before(&self, stage: &mut Value, before: &Value, target: &Target) -> &'static str {
        let is_as_left = |left: &Value| {
            let (mut left, mut now) = (left.clone(), stage.clone());
            // An answer that was lost may have set a later version of the session.
            (left["version"], now["version"]) = (Value::Null, Value::Null);
            left == now
        };
        if self.state.lock().left.as_ref().is_none_or(is_as_left) {
            *stage = before.clone();
            return "is as it was";
        }
        for field in ["plugin", "version"].into_iter().chain(target.config.is_some().then_some("config")) {
            stage[field] = before[field].clone();
        }
        "runs what it ran, with what others changed in it"
    }

    /// `latest` is what was accepted last, also when it was there before.
    async fn restore_latest(&self, label_before: &str) -> Result<Option<String>, Failure> {
        let known = self.known().await?.unwrap_or_default();
        let latest = label(&known["versions"][0]).unwrap_or_default();
        let versions = known["versions"].as_array().into_iter().flatten();
        let is_there = versions.filter_map(label).any(|known| known == label_before);
        if !self.is_of_session(&latest) || !is_there {
            return Ok(None);
        }
        let path = ["plugins", &self.plugin, "versions", label_before, "wasm"];
        let component = Bytes::from(self.client.get_bytes(&path).await?);
        let label = Some(label_before.to_owned());
        let again = plugin_push::Upload { name: &self.plugin, label, sign: self.sign.as_deref() };
        plugin_push::send(self.client, again, component).await?;
        Ok(Some(format!("`latest` of {} means {label_before} again", self.plugin)))
    }
}

fn label(version: &Value) -> Option<String> {
    version["version"].as_str().map(str::to_owned)
}

fn shown_binding(bound: &Value) -> String {
    let text = |name: &str| bound[name].as_str().unwrap_or_default();
    match bound["subscriptionId"].as_str() {
        Some(id) => format!("'{}' of {}/{id}", text("stage"), text("topicName")),
        None => format!("'{}' of {}", text("stage"), text("topicName")),
    }
}

/// The config of a stage that is added: the one that the cases share, if they do.
pub(super) fn usual_config(cases: &Path) -> Result<Value, Failure> {
    match std::fs::read_to_string(cases.join("config.json")) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|error| Failure::Usage(format!("{}: {error}", cases.join("config.json").display()))),
        Err(_) => Ok(json!({})),
    }
}
