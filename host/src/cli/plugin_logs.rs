//! `sluice plugin logs`: what a plugin says. Invariant: only reads; following goes on until interrupted, or the broker ends it.

use serde_json::Value;

use super::client::{Client, Query};
use super::failure::Failure;
use super::output::Output;

/// What is to be shown.
#[derive(Debug)]
pub(super) struct Wanted {
    /// So many of the lines that there are.
    pub(super) limit: u64,
    /// Those to come.
    pub(super) follow: bool,
    /// What becomes of messages, too.
    pub(super) verdicts: bool,
}

/// Prints lines as they are, then those to come if that is wanted.
pub(super) async fn run(client: &Client, output: Output, name: &str, wanted: &Wanted) -> Result<(), Failure> {
    let path = ["plugins", name, "logs"];
    let query = Query::default().with("limit", Some(wanted.limit));
    if !wanted.follow {
        let answer = client.get(&path, query).await?.body;
        return client.items(&answer, "lines")?.iter().try_for_each(|line| show(output, line));
    }
    let query = query.with("follow", Some(true)).with("verdicts", wanted.verdicts.then_some(true));
    let mut events = client.get_events(&path, query).await?;
    while let Some(event) = events.next().await? {
        match (event["lines"].as_u64(), event["verdicts"].as_u64()) {
            (Some(lost), _) => output.note(&format!("{lost} lines are lost: they came faster than they were read"))?,
            (None, Some(lost)) => output.note(&format!("{lost} messages are left out: they came too fast"))?,
            (None, None) => show(output, &event)?,
        }
        output.flush()?;
    }
    Ok(())
}

fn show(output: Output, line: &Value) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(line);
    }
    let text = |name: &str| line[name].as_str().unwrap_or("-");
    let (at, level, version, stage) = (text("at"), text("level"), text("version"), text("stage"));
    if let Some(verdict) = line["verdict"].as_str() {
        let (topic, message, what) = (text("topicName"), text("messageId"), verdict_detail(line));
        let line = format!("{at} {topic} {version} {stage}: {message} {verdict} {what}");
        return output.foreign_line(line.trim_end());
    }
    output.foreign_line(&format!("{at} {level} {version} {stage}: {}", text("text")))
}

/// Of a verdict: why, or what is different.
pub(super) fn verdict_detail(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let faults: Vec<String> = event["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|fault| {
            let words = ["code", "pointer", "message"].map(|name| text(&fault[name]));
            words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<String>>().join(" ")
        })
        .collect();
    if !faults.is_empty() {
        return faults.join("; ");
    }
    if let Some(reason) = event["reason"].as_str() {
        return reason.to_owned();
    }
    let operations = event["patch"].as_array().into_iter().flatten().map(|operation| {
        let (path, value) = (text(&operation["path"]), &operation["value"]);
        match operation["op"].as_str() {
            Some("remove") => format!("- {path}"),
            Some("add") => format!("+ {path} {value}"),
            Some("move" | "copy") => format!("> {path} from {}", text(&operation["from"])),
            _ => format!("~ {path} {value}"),
        }
    });
    operations.collect::<Vec<String>>().join("; ")
}
