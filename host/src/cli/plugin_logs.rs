//! `sluice plugin logs`: what a plugin says. Invariant: only reads; following goes on until interrupted, or the broker ends it.

use serde_json::Value;

use super::client::{Client, Query};
use super::failure::Failure;
use super::output::Output;

/// Prints lines as they are, then those to come if `follow`.
pub(super) async fn run(
    client: &Client,
    output: Output,
    name: &str,
    (limit, follow): (u64, bool),
) -> Result<(), Failure> {
    let path = ["plugins", name, "logs"];
    let query = Query::default().with("limit", Some(limit));
    if !follow {
        let answer = client.get(&path, query).await?.body;
        return client.items(&answer, "lines")?.iter().try_for_each(|line| show(output, line));
    }
    let mut events = client.get_events(&path, query.with("follow", Some(true))).await?;
    while let Some(event) = events.next().await? {
        match event["lines"].as_u64() {
            Some(lost) => output.note(&format!("{lost} lines are lost: they came faster than they were read"))?,
            None => show(output, &event)?,
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
    output.foreign_line(&format!("{at} {level} {version} {stage}: {}", text("text")))
}
