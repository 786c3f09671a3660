//! `sluice plugin dev`: a project's sources watched, built, tried and brought into a running broker, and what it makes of
//! messages told. Invariant: one build at a time, and changes during one cause exactly one more; what fails leaves what runs;
//! at the end the pipeline is as it was, unless it is to be kept. Never writes into the project but into `dist`.

mod place;
mod tell;
mod watch;

use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::place::{InForce, Place, Target};
use self::tell::Teller;
use self::watch::Sources;
use super::language::Project;
use super::{CASES, build, refusal, test};
use crate::cli::arguments::read_text;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::listen::Signals;
use crate::cli::output::Output;
use crate::entropy::Entropy;

/// How long until a broker that was not there is asked again.
const RETRY: Duration = Duration::from_secs(2);
/// How long until one is asked again that has no room, as over a quota: each time it is sent the whole component.
const RETRY_FULL: Duration = Duration::from_secs(30);

pub(in crate::cli) const AFTER_HELP: &str = "\
Each change of a source is built, held against the cases and uploaded, so that the next message meets it. A build or a case \
that fails leaves what runs. With --topic (or --subscription) a stage runs it for as long as this command does: --stage, else \
the one that runs the plugin already, else a new one at the end, named as the plugin. Ctrl-C puts the stage back as it was, \
and deletes what was uploaded. What others published becomes is told, 50 messages a second at most.

Examples:
  sluice plugin dev orders-filter --topic orders
  sluice plugin dev orders-filter --topic orders --stage gate --config cases/config.json
  sluice plugin dev orders-filter --once --topic orders    and leaves it there";

/// Which project, and where it is tried.
#[derive(Debug, Args)]
pub(in crate::cli) struct DevArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Run it before messages are stored in this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Run it on the way out to this subscription
    #[arg(long, value_name = "ID", conflicts_with = "topic")]
    subscription: Option<String>,
    /// The stage that runs it [default: the one that does, else a new one]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// The stage's config, a JSON file [default: as it is; of a new one, the config.json of the cases]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Upload it though a case fails
    #[arg(long)]
    anyway: bool,
    /// Leave the pipeline and the last version as they are at the end
    #[arg(long)]
    keep: bool,
    /// Build, try and upload it once, leave it there, and end
    #[arg(long)]
    once: bool,
    /// Sign what is uploaded with this ed25519 key: PKCS#8, PEM
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
}

impl DevArgs {
    fn target(&self) -> Result<Option<Target>, Failure> {
        let (is_topic, owner) = match (&self.topic, &self.subscription) {
            (Some(topic), _) => (true, topic.clone()),
            (None, Some(id)) => (false, id.clone()),
            (None, None) if self.stage.is_some() || self.config.is_some() => {
                return Err(Failure::Usage("--stage and --config go with --topic or --subscription".to_owned()));
            }
            (None, None) => return Ok(None),
        };
        let config: Option<Value> = match &self.config {
            None => None,
            Some(file) => Some(
                serde_json::from_str(&read_text(file)?)
                    .map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?,
            ),
        };
        let usual_config = place::usual_config(&self.dir.join(CASES))?;
        Ok(Some(Target { is_topic, owner, stage: self.stage.clone(), config, usual_config }))
    }
}

/// A component that was built, and whose cases are as they should be.
struct Ready {
    component: Bytes,
    digest: String,
}

/// How far one pass came.
enum Passed {
    /// It is in force, or was already.
    Placed,
    /// No broker was there: the same again, later.
    Later(Failure),
    /// Something is to be changed first.
    Failed(Failure),
}

/// A pass under way.
type Pass<'a> = Pin<Box<dyn Future<Output = Passed> + 'a>>;

/// One session.
struct Dev<'a> {
    args: &'a DevArgs,
    project: Project,
    place: Place<'a>,
    tell: Teller,
    /// What waits for a broker.
    ready: Mutex<Option<Ready>>,
    /// Said once it is in force: only then is there something to follow.
    placed: Notify,
    /// It is to end, once nothing is under way that would take effect later.
    stop: CancellationToken,
}

/// Runs the command.
pub(in crate::cli) async fn run(args: &DevArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let project = Project::open(&args.dir).map_err(Failure::Usage)?;
    // Tells sessions apart that work on the same plugin.
    let session = (Entropy::system().next_u64() >> 32) as u32;
    let mut place = Place::new(client, &project.name, session, args.target()?);
    place.sign.clone_from(&args.sign);
    let (tell, ready, placed, stop) = (Teller::new(output), Mutex::default(), Notify::new(), CancellationToken::new());
    let dev = Dev { args, project, place, tell, ready, placed, stop };
    if args.once {
        return dev.once().await;
    }
    // From here on it leaves nothing behind, whatever ends it.
    let mut interrupted = Signals::new()?;
    let mut going = pin!(dev.go_on());
    let ended = tokio::select! {
        ended = &mut going => ended,
        () = interrupted.any() => {
            dev.stop.cancel();
            tokio::select! {
                ended = &mut going => ended,
                () = interrupted.any() => return Err(dev.left_behind()),
            }
        }
    };
    if args.keep {
        return ended;
    }
    // Whoever has no time for this says so once more.
    let (said, failure) = tokio::select! {
        put_back = dev.place.put_back() => put_back,
        () = interrupted.any() => return Err(dev.left_behind()),
    };
    let told = said.iter().try_for_each(|what| dev.tell.say("putBack", what, json!({})));
    ended.and(failure.map_or(Ok(()), Err)).and(told)
}

impl Dev<'_> {
    /// One pass; what fails leaves nothing behind.
    async fn once(&self) -> Result<(), Failure> {
        match self.pass(true).await {
            Passed::Placed => Ok(()),
            Passed::Later(failure) | Passed::Failed(failure) => {
                if self.place.is_halfway() {
                    let (said, _) = self.place.put_back().await;
                    said.iter().try_for_each(|what| self.tell.say("putBack", what, json!({})))?;
                }
                Err(failure)
            }
        }
    }

    fn left_behind(&self) -> Failure {
        let (plugin, session) = (&self.project.name, &self.place.session);
        refusal(format!(
            "ended before all was put back: versions {session}.… of {plugin} may be there, and a stage may run them \
             (`sluice plugin list`, `sluice pipeline rollback`)"
        ))
    }

    /// Until interrupted, or our own output is closed.
    async fn go_on(&self) -> Result<(), Failure> {
        // Before the first build: what is changed during it counts.
        let sources = Sources::of(&self.args.dir);
        let files = sources.len();
        let what = format!("watching {files} files in {}; Ctrl-C ends it", self.args.dir.display());
        self.tell.say("watching", &what, json!({"files": files}))?;
        let (changed, mut changes) = mpsc::channel(1);
        let mut watching = pin!(watch::changes(&self.args.dir, sources, changed));
        let mut following = pin!(self.follow());
        let mut pass: Option<Pass<'_>> = Some(Box::pin(self.pass(true)));
        let ended = self.turns(&mut pass, (&mut changes, watching.as_mut(), following.as_mut())).await;
        // What the broker carries to its end is waited for: put back before that, it would take effect afterwards.
        if let Some(pass) = pass.filter(|_| self.place.brings()) {
            let _ = pass.await;
        }
        ended
    }

    async fn turns<'a>(
        &'a self,
        pass: &mut Option<Pass<'a>>,
        (changes, mut watching, mut following): (
            &mut mpsc::Receiver<()>,
            Pin<&mut impl Future<Output = ()>>,
            Pin<&mut impl Future<Output = Result<(), Failure>>>,
        ),
    ) -> Result<(), Failure> {
        let (mut is_changed, mut due, mut told) = (false, None, None);
        loop {
            if pass.is_none() && is_changed {
                (is_changed, due) = (false, None);
                *pass = Some(Box::pin(self.pass(true)));
            }
            tokio::select! {
                passed = async { match pass.as_mut() { Some(pass) => pass.await, None => std::future::pending().await } } => {
                    *pass = None;
                    match passed {
                        Passed::Placed => told = None,
                        Passed::Failed(failure) if failure.is_closed_pipe() => return Err(failure),
                        Passed::Failed(failure) => self.tell.failed(&failure)?,
                        Passed::Later(failure) => {
                            self.tell.failed_anew(&failure, &mut told)?;
                            let is_full = matches!(&failure, Failure::Refused(refusal) if refusal.status == Some(429));
                            due = Some(if is_full { RETRY_FULL } else { RETRY });
                        }
                    }
                }
                Some(()) = changes.recv() => is_changed = true,
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() && pass.is_none() => {
                    due = None;
                    *pass = Some(Box::pin(self.pass(false)));
                }
                () = &mut watching => {}
                ended = &mut following => return ended,
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// From the sources, or from what is ready, to what is in force.
    async fn pass(&self, build: bool) -> Passed {
        if build {
            match self.make().await {
                Ok(ready) => *self.ready.lock() = Some(ready),
                Err(failure) => {
                    // What waited for a broker is older than what was to come.
                    *self.ready.lock() = None;
                    return Passed::Failed(failure);
                }
            }
        }
        let Some((component, digest)) =
            self.ready.lock().as_ref().map(|ready| (ready.component.clone(), ready.digest.clone()))
        else {
            return Passed::Placed;
        };
        let brought = match self.place.runs(&digest).await {
            Ok(true) => {
                let same = self.tell.say("unchanged", "the component is the same as before", json!({}));
                return same.map_or_else(Passed::Failed, |()| Passed::Placed);
            }
            Ok(false) => self.place.bring(component, &digest).await,
            Err(failure) => Err(failure),
        };
        match brought {
            Ok(in_force) => {
                *self.ready.lock() = None;
                self.placed.notify_one();
                self.told(&in_force).map_or_else(Passed::Failed, |()| Passed::Placed)
            }
            Err(failure) if failure.exit_code() == 3 || failure.exit_code() == 4 => Passed::Later(failure),
            Err(failure) => Passed::Failed(failure),
        }
    }

    /// Builds it, and holds it against its cases.
    async fn make(&self) -> Result<Ready, Failure> {
        let dir = self.args.dir.clone();
        let name = self.project.name.clone();
        let built = tokio::task::spawn_blocking(move || {
            // What kind of project it is may have changed, too.
            let project = Project::open(&dir).map_err(Failure::Usage)?;
            if project.name != name {
                return Err(Failure::Usage(format!("the plugin is called '{}' now: begin again", project.name)));
            }
            build::build(&project)
        });
        let built = built.await.map_err(|error| refusal(format!("a build ended with a fault of ours: {error}")))??;
        let component = built.component.clone();
        self.tell.say(
            "built",
            &built.summary(),
            json!({"digest": built.digest, "bytes": built.bytes, "milliseconds": built.took.as_millis() as u64}),
        )?;
        let cases = self.args.dir.join(CASES);
        if cases.is_dir() {
            let report = test::report(&component, &cases, false).await?;
            self.tell.report(&report)?;
            if report.failed() > 0 && !self.args.anyway {
                let why = "it is not uploaded: cases fail (--anyway uploads it nevertheless)";
                return Err(refusal(why));
            }
        }
        let bytes = std::fs::read(&component).map_err(Failure::io(component.display().to_string()))?;
        Ok(Ready { component: bytes.into(), digest: built.digest })
    }

    fn told(&self, in_force: &InForce) -> Result<(), Failure> {
        let name = &self.project.name;
        let InForce { version, bound, others, .. } = in_force;
        let what = match (bound, &self.place.target) {
            (Some((revision, stage, is_new)), Some(target)) => {
                let new = if *is_new { ", which is new" } else { "" };
                let noun = if target.is_topic { "topic" } else { "subscription" };
                format!(
                    "{name} {version} is in force: the stage '{stage}'{new}, of the {noun} {}, revision {revision}",
                    target.owner
                )
            }
            _ => format!("{name} {version} is uploaded, and what `latest` means"),
        };
        let (revision, stage) = bound.as_ref().map(|(revision, stage, _)| (*revision, stage.clone())).unzip();
        self.tell.say("inForce", &what, json!({"version": version, "revision": revision, "stage": stage}))?;
        if !others.is_empty() {
            let what = format!("others that follow `latest` run it, too: {}", others.join(", "));
            self.tell.say("others", &what, json!({"stages": others}))?;
        }
        if let Some(warning) = in_force.warning() {
            self.tell.say("unclean", &warning, json!({}))?;
        }
        Ok(())
    }

    /// Tells what the plugin says and makes of messages, also after the broker was away. Ends with our own output alone.
    async fn follow(&self) -> Result<(), Failure> {
        self.placed.notified().await;
        let mut told = None;
        loop {
            match self.tell.follow(&self.place, &mut told).await {
                Err(failure) if failure.is_closed_pipe() => return Err(failure),
                Err(failure) => self.tell.failed_anew(&failure, &mut told)?,
                // The broker has ended it: it stops, or the token is too old.
                Ok(()) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
