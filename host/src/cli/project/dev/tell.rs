//! What a session tells: what it did, and what became of messages. Invariant: for machines each event is one line of JSON;
//! text from messages can't drive a terminal. Never decides what is done.

use serde_json::{Value, json};

use super::super::test::Report;
use super::place::Place;
use crate::cli::client::Query;
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::plugin_logs::verdict_detail;

/// Characters of what is shown of one message.
const SHOWN_MAX: usize = 400;

/// See the module.
pub(super) struct Teller {
    output: Output,
}

impl Teller {
    pub(super) fn new(output: Output) -> Teller {
        Teller { output }
    }

    /// Something was done.
    pub(super) fn say(&self, event: &str, sentence: &str, mut document: Value) -> Result<(), Failure> {
        if self.output.is_json() {
            document["event"] = json!(event);
            document["text"] = json!(sentence);
            self.output.line(&document.to_string())?;
        } else {
            self.output.foreign_line(sentence)?;
        }
        self.output.flush()
    }

    /// Something went wrong, and it goes on.
    pub(super) fn failed(&self, failure: &Failure) -> Result<(), Failure> {
        if self.output.is_json() {
            return self.say("failed", &failure.to_string(), json!({}));
        }
        failure.to_string().lines().try_for_each(|line| self.output.foreign_line(line))?;
        self.output.flush()
    }

    /// The same, unless that is what was told last.
    pub(super) fn failed_anew(&self, failure: &Failure, told: &mut Option<String>) -> Result<(), Failure> {
        let now = Some(failure.to_string());
        if *told == now {
            return Ok(());
        }
        *told = now;
        self.failed(failure)
    }

    /// How the cases went.
    pub(super) fn report(&self, report: &Report) -> Result<(), Failure> {
        if self.output.is_json() {
            let sentence = format!("{} cases failed", report.failed());
            return self.say("cases", &sentence, json!({ "report": report.document() }));
        }
        report.show(self.output)?;
        self.output.flush()
    }

    /// What the plugin says and makes of messages, until the broker ends it. Once it is followed, what was told of failures
    /// is forgotten.
    pub(super) async fn follow(&self, place: &Place<'_>, told: &mut Option<String>) -> Result<(), Failure> {
        let query = Query::default().with("follow", Some(true)).with("verdicts", Some(true)).with("limit", Some(1));
        let mut events = place.client.get_events(&["plugins", &place.plugin, "logs"], query).await?;
        *told = None;
        self.say("following", "what becomes of messages is told from here on", json!({}))?;
        while let Some(event) = events.next().await? {
            if let Some((kind, line)) = shown(place, &event) {
                self.say(kind, &line, json!({ "of": event }))?;
            }
        }
        Ok(())
    }
}

/// What is to be told of an event, if it is of this session.
fn shown(place: &Place<'_>, event: &Value) -> Option<(&'static str, String)> {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    let lost = |name: &str| event[name].as_u64();
    if let Some(lost) = lost("lines") {
        return Some(("lost", format!("{lost} lines of its log are not shown: they came too fast")));
    }
    if let Some(lost) = lost("verdicts") {
        return Some(("lost", format!("{lost} messages are not shown: they came too fast")));
    }
    // Other versions run for other people.
    let number = text("version").strip_prefix(&*place.session)?.strip_prefix('.')?;
    let time = text("at").split_once('T').map_or("", |(_, time)| time.trim_end_matches('Z'));
    let verdict = text("verdict");
    if verdict.is_empty() {
        return Some(("line", format!("{time} #{number} log {}: {}", text("level"), cut(text("text")))));
    }
    let is_ours = match &place.target {
        None => true,
        Some(target) => {
            (!target.is_topic || text("topicName") == target.owner)
                && place.stage().is_some_and(|stage| stage == text("stage"))
        }
    };
    is_ours.then(|| {
        let what = cut(&verdict_detail(event));
        let line = format!("{time} #{number} {} {verdict:8} {what}", text("messageId"));
        ("verdict", line.trim_end().to_owned())
    })
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_told_with_what_is_different_or_why() {
        for (event, wanted) in [
            (json!({"verdict": "pass"}), ""),
            (json!({"verdict": "dropped", "reason": "another value"}), "another value"),
            (
                json!({"verdict": "rejected", "reason": "no", "errors": [
                    {"code": "NO", "message": "no", "pointer": "/a"}, {"code": "NOR", "message": "that"}]}),
                "NO /a no; NOR that",
            ),
            (
                json!({"verdict": "changed", "patch": [
                    {"op": "replace", "path": "/payload/a", "value": {"b": 1}}, {"op": "remove", "path": "/key"},
                    {"op": "add", "path": "/headers/x", "value": "1"}]}),
                r#"~ /payload/a {"b":1}; - /key; + /headers/x "1""#,
            ),
        ] {
            assert_eq!(verdict_detail(&event), wanted);
        }
        assert_eq!(cut(&"x".repeat(1000)).chars().count(), SHOWN_MAX + 1);
    }
}
