//! `sluice plugin dry-run`: a version on messages of the past, and gates for scripts. Invariant: a gate that can't be judged fails;
//! nothing is changed on the broker. Never decides what a difference is.

use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, Query};
use super::failure::{Failure, Refusal};
use super::output::{Column, Output};
use super::pipeline::Owner;
use super::publish::Envelope;
use super::publish_lines::{Feed, lines_of};
use super::work_bar::WorkBar;

/// Messages of a run that does not say.
const LIMIT: u64 = 10_000;
/// Chunks of lines that wait to go out.
const CHUNKS_AHEAD: usize = 2;

const COLUMNS: &[Column] = &[
    ("VERSION", "/version"),
    ("MESSAGES", "/messages"),
    ("KEPT", "/kept"),
    ("CHANGED", "/changed"),
    ("DROPPED", "/dropped"),
    ("REJECTED", "/rejected"),
    ("FAULTED", "/faulted"),
    ("MEAN µs", "/meanMicros"),
    ("P99 MS", "/latencyP99Ms"),
];

pub(super) const AFTER_HELP: &str = "\
Messages are what arrived at the topic (`sluice topic update T --capture-input P1D` keeps that), what is stored for a subscription, \
what waits as dead letters, or lines of a file. A gate is NAME>N, NAME>=N, NAME<N or NAME<=N, of messages, or of a hundred with a %; \
its NAME is changed (all that come out otherwise), verdict, payload, trapped, kept, dropped, rejected or faulted; or, of all that were \
read, unreadable or not-reached. A gate that is met ends the command with 1.

Examples:
  sluice plugin dry-run gate 1.3.0 --topic orders --ndjson events.ndjson
  sluice plugin dry-run gate 1.3.0 --topic orders --inputs stored --against 1.2.0
  sluice plugin dry-run gate 1.3.0 --topic orders --inputs dead-letters
  sluice plugin dry-run gate 1.3.0 --subscription SUBSCRIPTION_ID --fail-on 'trapped>0'
  sluice plugin dry-run gate 1.3.0 --topic orders --ndjson events.ndjson \\
      --fail-on 'rejected>0.1%' --fail-on 'trapped>0'";

/// What to try.
#[derive(Debug, Args)]
pub(super) struct DryRunArgs {
    /// The plugin
    name: String,
    /// Its version
    version: String,
    #[command(flatten)]
    owner: Owner,
    /// The stage in whose place it is tried [default: the one that runs the plugin]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Which messages [default: captured for a topic, stored for a subscription]
    #[arg(long, value_name = "WHICH")]
    inputs: Option<Inputs>,
    /// Each line of this file is the payload of a message; `-`: of standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["inputs", "from"])]
    ndjson: Option<PathBuf>,
    /// Each line of this file is a message as the API takes it; `-`: of standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["inputs", "from", "ndjson"])]
    messages: Option<PathBuf>,
    /// Messages from this time on, RFC 3339 [default: earliest]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// With lines: when they came, RFC 3339; with it the same again has the same outcome [default: now]
    #[arg(long, value_name = "TIME", conflicts_with_all = ["inputs", "from"])]
    at: Option<String>,
    /// So many messages at most
    #[arg(long, value_name = "COUNT", default_value_t = LIMIT, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// A file with the config, in the place of the stage's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Compare with this version [default: the one that the stage runs]
    #[arg(long, value_name = "VERSION")]
    against: Option<String>,
    /// What randomness follows from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End with 1 if this holds; may be given again
    #[arg(long, value_name = "GATE")]
    fail_on: Vec<Gate>,
}

/// Which messages.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Inputs {
    /// What arrived at the topic, before its stages
    Captured,
    /// What is stored
    Stored,
    /// Dead letters that wait
    DeadLetters,
}

/// What must not be.
#[derive(Debug, Clone, PartialEq)]
struct Gate {
    text: String,
    name: String,
    bound: Bound,
    of: f64,
    is_share: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    More,
    MoreOrAsMany,
    Fewer,
    FewerOrAsMany,
}

const NAMES: [&str; 10] =
    ["changed", "verdict", "payload", "trapped", "kept", "dropped", "rejected", "faulted", "unreadable", "not-reached"];

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Gate, String> {
        let wrong = || format!("a gate is such as 'changed>0.1%' or 'trapped>0', of {}", NAMES.join(", "));
        let at = text.find(['<', '>']).ok_or_else(wrong)?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let bounds =
            [(">=", Bound::MoreOrAsMany), ("<=", Bound::FewerOrAsMany), (">", Bound::More), ("<", Bound::Fewer)];
        let (bound, number) =
            bounds.into_iter().find_map(|(sign, bound)| Some((bound, rest.strip_prefix(sign)?))).ok_or_else(wrong)?;
        let (number, is_share) =
            number.trim().strip_suffix('%').map_or((number.trim(), false), |number| (number, true));
        let of = number.trim().parse::<f64>().ok().filter(|of| of.is_finite() && *of >= 0.0).ok_or_else(wrong)?;
        if !NAMES.contains(&name) {
            return Err(wrong());
        }
        Ok(Gate { text: text.to_owned(), name: name.to_owned(), bound, of, is_share })
    }
}

impl Gate {
    /// What is so, if that is what must not be.
    fn met(&self, result: &Value) -> Option<String> {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let differing = ["verdictDiffers", "payloadDiffers", "trapped"];
        let count = match self.name.as_str() {
            "changed" => differing.iter().map(|name| number(&result[name])).sum(),
            "verdict" => number(&result["verdictDiffers"]),
            "payload" => number(&result["payloadDiffers"]),
            "trapped" => number(&result["trapped"]),
            "unreadable" => number(&result["unreadable"]),
            "not-reached" => number(&result["notReached"]),
            other => number(&result["candidate"][other]),
        };
        let tried = number(&result["candidate"]["messages"]);
        if tried == 0 {
            return Some(format!("{}: no message came to the stage, so nothing is known", self.text));
        }
        let lost = number(&result["valuesLost"]);
        if lost > 0 {
            return Some(format!("{}: {lost} values found no room, so it is not known; try fewer messages", self.text));
        }
        let all = match self.name.as_str() {
            "unreadable" | "not-reached" => number(&result["messages"]) + number(&result["unreadable"]),
            _ => tried,
        };
        let is = if self.is_share { count as f64 * 100.0 / all as f64 } else { count as f64 };
        let met = match self.bound {
            Bound::More => is > self.of,
            Bound::MoreOrAsMany => is >= self.of,
            Bound::Fewer => is < self.of,
            Bound::FewerOrAsMany => is <= self.of,
        };
        met.then(|| format!("{}: {count} of {all} messages ({:.3} %)", self.text, count as f64 * 100.0 / all as f64))
    }
}

/// Runs the command.
pub(super) async fn run(client: &Client, output: Output, args: &DryRunArgs) -> Result<(), Failure> {
    let path = ["plugins", &args.name, "versions", &args.version, "dry-run"];
    let config = args.config.as_deref().map(read_config).transpose()?;
    let bar = WorkBar::of_share();
    let result = match args.ndjson.as_ref().or(args.messages.as_ref()) {
        None if args.at.is_some() => {
            return Err(Failure::Usage("--at says when lines came: give --ndjson or --messages, too".to_owned()));
        }
        None => {
            let body = args.body(config).to_string();
            follow(client.post_for_events(&path, Query::default(), ("application/json", body.into())).await?, &bar)
                .await
        }
        Some(file) => {
            let (chunks, sent) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
            // What to try goes before the lines: a config may be larger than an address.
            let first = format!("{}\n", json!({ "dryRun": args.beside_lines(config) }));
            chunks.try_send(first.into()).expect("nothing is in the channel yet");
            let (has_read, mut reading) = oneshot::channel();
            let topic = args.owner.topic.clone().unwrap_or_else(|| "dry-run".to_owned());
            let envelope = args.ndjson.as_ref().map(|_| Envelope::default());
            let feed = Feed { envelope, topic, lines_max: args.limit, chunks, bar: None };
            let lines = lines_of(file)?;
            let name = file.display().to_string();
            // A thread of its own: standard input may not end.
            std::thread::spawn(move || {
                let read = feed.read(lines);
                // Said before the broker can know that there are no more.
                drop(has_read.send(read));
                drop(feed);
            });
            let body = reqwest::Body::wrap_stream(ReceiverStream::new(sent).map(Ok::<_, std::convert::Infallible>));
            let events = client.post_for_events(&path, Query::default(), ("application/x-ndjson", body)).await?;
            let result = follow(events, &bar).await;
            if let (Ok(_), Ok(read)) = (&result, reading.try_recv()) {
                read.map_err(Failure::io(name))?;
            }
            result
        }
    };
    bar.end();
    let result = result?;
    if output.is_json() {
        output.document(&result)?
    } else {
        show(output, &result)?
    }
    if let Some(why) = result["error"].as_str() {
        return Err(refused(format!("the run broke off: {why}")));
    }
    if result["end"] == "stopped" {
        return Err(refused("the broker stopped before the run ended".to_owned()));
    }
    let met: Vec<String> = args.fail_on.iter().filter_map(|gate| gate.met(&result)).collect();
    if met.is_empty() { Ok(()) } else { Err(refused(met.join("; "))) }
}

fn refused(detail: String) -> Failure {
    Refusal { status: None, problem: json!({ "detail": detail }) }.into()
}

fn read_config(path: &std::path::Path) -> Result<Value, Failure> {
    let text = std::fs::read(path).map_err(Failure::io(path.display().to_string()))?;
    serde_json::from_slice(&text).map_err(|error| Failure::Usage(format!("{} is not JSON: {error}", path.display())))
}

/// Shows how far it is, until there is a result.
async fn follow(mut events: super::client::LineAnswers<'_>, bar: &WorkBar) -> Result<Value, Failure> {
    while let Some(event) = events.next().await? {
        if event.get("end").is_some() {
            return Ok(event);
        }
        let differing: u64 =
            ["verdictDiffers", "payloadDiffers", "trapped"].iter().filter_map(|name| event[name].as_u64()).sum();
        let said = format!("{} messages, {differing} differ", event["messages"].as_u64().unwrap_or_default());
        bar.share(event["fraction"].as_f64(), said);
    }
    Err(refused("the run ended without a result".to_owned()))
}

impl DryRunArgs {
    fn body(&self, config: Option<Value>) -> Value {
        let inputs = self.inputs.map(|inputs| match inputs {
            Inputs::Captured => "captured",
            Inputs::Stored => "stored",
            Inputs::DeadLetters => "deadLetters",
        });
        let mut body = self.on_what(config);
        body.extend(given("inputs", inputs));
        body.extend(given("from", self.from.as_ref()));
        Value::Object(body)
    }

    fn beside_lines(&self, config: Option<Value>) -> Value {
        let mut body = self.on_what(config);
        body.extend(given("at", self.at.as_ref()));
        Value::Object(body)
    }

    fn on_what(&self, config: Option<Value>) -> Map<String, Value> {
        let all = [
            given("topic", self.owner.topic.as_ref()),
            given("subscriptionId", self.owner.subscription.as_ref()),
            given("stage", self.stage.as_ref()),
            given("limit", Some(self.limit)),
            given("config", config),
            given("against", self.against.as_ref()),
            given("seed", Some(self.seed)),
        ];
        all.into_iter().flatten().collect()
    }
}

fn given(name: &str, value: Option<impl Serialize>) -> Option<(String, Value)> {
    value.map(|value| (name.to_owned(), json!(value)))
}

fn show(output: Output, result: &Value) -> Result<(), Failure> {
    let mut arms: Vec<Value> = ["stable", "candidate"].iter().map(|name| result[name].clone()).collect();
    arms.retain(|arm| !arm.is_null());
    for arm in &mut arms {
        if let Some(mean) = arm["meanMicros"].as_f64() {
            arm["meanMicros"] = json!(format!("{mean:.1}"));
        }
    }
    output.list(&arms, COLUMNS, "")?;
    let number = |name: &str| result[name].as_u64().unwrap_or_default();
    let place = result["stage"].as_str().map_or("on no stage".to_owned(), |stage| format!("on the stage '{stage}'"));
    let beside = result["stable"]["version"]
        .as_str()
        .map_or("the messages as they came".to_owned(), |version| format!("version {version}"));
    output.line(&format!(
        "{} messages {place}, beside {beside}: {} the same, {} verdicts differ, {} payloads differ, {} trapped",
        number("messages"),
        number("same"),
        number("verdictDiffers"),
        number("payloadDiffers"),
        number("trapped"),
    ))?;
    if number("notReached") > 0 {
        output.line(&format!("{} did not come through the stages before", number("notReached")))?;
    }
    if number("valuesLost") > 0 {
        let lost = number("valuesLost");
        output.line(&format!(
            "{lost} values found no room: what came behind may be judged otherwise; try fewer messages"
        ))?;
    }
    if number("unreadable") > 0 {
        output.line(&format!("{} lines are no messages:", number("unreadable")))?;
        for line in result["unreadableSample"].as_array().into_iter().flatten() {
            let message = line["message"].as_str().unwrap_or_default();
            output.foreign_line(&format!("  line {}: {message}", line["line"]))?;
        }
    }
    for difference in result["sample"].as_array().into_iter().flatten() {
        let word = |arm: &str| {
            let word = &difference[arm];
            let reason = word["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("{}{reason}", word["verdict"].as_str().unwrap_or("?"))
        };
        let text = |name: &str| difference[name].as_str().unwrap_or("?");
        let (id, kind) = (text("messageId"), text("kind"));
        output.foreign_line(&format!("{kind} {id}: {} -> {}", word("stable"), word("candidate")))?;
        for operation in difference["diff"].as_array().into_iter().flatten() {
            output.foreign_line(&format!("  {operation}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_and_judged() {
        let result = json!({
            "verdictDiffers": 1, "payloadDiffers": 2, "trapped": 0, "messages": 1010, "notReached": 10, "unreadable": 1010,
            "candidate": {"messages": 1000, "kept": 990, "dropped": 10, "rejected": 0, "faulted": 0},
        });
        let met = |gate: &str| gate.parse::<Gate>().unwrap().met(&result).is_some();
        for gate in
            ["changed>0.1%", "changed > 2", "changed>=3", "verdict>=0.1%", "kept<100%", "dropped<=1%", "payload>1"]
        {
            assert!(met(gate), "{gate}");
        }
        for gate in ["changed>0.3%", "changed>3", "trapped>0", "kept<990", "rejected>=1", "dropped>1%", "faulted>0"] {
            assert!(!met(gate), "{gate}");
        }
        let told = "changed>0.1%".parse::<Gate>().unwrap().met(&result);
        assert_eq!(told.as_deref(), Some("changed>0.1%: 3 of 1000 messages (0.300 %)"));
        for gate in ["unreadable>=50%", "not-reached>9", "unreadable>0"] {
            assert!(met(gate), "{gate}");
        }
        assert!(!met("unreadable>50%") && !met("not-reached>0.5%"), "of all that were read");
        let without_room = json!({"candidate": {"messages": 10}, "valuesLost": 1});
        assert!("trapped>0".parse::<Gate>().unwrap().met(&without_room).is_some(), "what is not known is no pass");
        let nothing = json!({"candidate": {"messages": 0}});
        assert!("trapped>0".parse::<Gate>().unwrap().met(&nothing).is_some());
        for wrong in ["", "changed", "changed>", "changed=1", "changed>x", "changed>-1", "altered>1", "changed>1%%"] {
            assert!(wrong.parse::<Gate>().is_err(), "{wrong}");
        }
    }
}
