//! What plugins say: `log.write`, stdout and stderr, as lines under the tracing target `sluice::plugin`. Invariant: a line
//! and the lines per second are bounded, whatever the guest writes, of each topic apart; what was left out is counted and
//! said. Never blocks.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::io::AsyncWrite;
use utoipa::ToSchema;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::clock::{Clock, Timestamp};
use crate::message::TopicName;

use super::followers::{Followers, Reaches};
use super::limits::cut;
use super::verdicts::{Pace, Verdicts};

/// Bytes of one line; a longer one is cut.
const LINE_BYTES_MAX: usize = 4 * 1024;
/// Lines of one plugin about one topic per second that are kept; a plugin that says something of each message would fill any
/// disk.
const LINES_PER_SECOND_MAX: u32 = 100;
/// Topics of one plugin whose lines are counted apart in a second, what is about none being one of them; those that speak later
/// in it share one count. So a plugin writes 1700 lines a second at most, on however many topics it runs.
const TOPICS_APART_MAX: usize = 16;
/// Lines of one plugin that can be read back.
const RECENT_MAX: usize = 200;
/// Lines that a follower may be behind.
const FOLLOWED_MAX: usize = 256;
/// Bytes that a stream takes at once: it is also what a guest can make the host allocate.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum LogLevel {
    /// For the plugin's author.
    Debug,
    /// As usual.
    Info,
    /// Unusual.
    Warn,
    /// Wrong.
    Error,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// How grave.
    pub level: LogLevel,
    /// The plugin's version and the stage that ran it, if a stage did.
    pub from: Option<Speaker>,
    /// What.
    pub text: Arc<str>,
}

impl LogLine {
    /// The topic that it tells of, if it does: for those alone whom the topic is open to.
    #[must_use]
    pub fn topic(&self) -> Option<&TopicName> {
        self.from.as_ref().and_then(|from| from.topic.get())
    }
}

/// One who reads along.
pub type Following = super::followers::Following<LogLine>;

/// Who of a plugin says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speaker {
    /// The plugin's version.
    pub version: Arc<str>,
    /// The stage.
    pub stage: Arc<str>,
    /// The topic of the messages that the stage has run on, and that it may tell of; none before its first ones.
    pub topic: OnceLock<TopicName>,
}

/// The log of one plugin, shared by its instances.
#[derive(Debug)]
pub struct PluginLog {
    plugin: Arc<str>,
    clock: Clock,
    /// What it says is no news of the broker's.
    apart: bool,
    state: Mutex<State>,
    /// Those who read along.
    followers: Followers<LogLine>,
    /// What its stages make of messages.
    pub verdicts: Verdicts,
}

#[derive(Debug, Default)]
struct State {
    second: i64,
    /// Of this second, one for each topic, and the last one for those beyond the bound.
    counts: Vec<Count>,
    recent: VecDeque<LogLine>,
}

/// Lines of one second.
#[derive(Debug)]
struct Count {
    topic: Option<TopicName>,
    lines: u32,
    left_out: u32,
    /// Who spoke first: what was left out is said to those who may hear that.
    from: Option<Speaker>,
}

impl State {
    /// What was left out of the seconds before, once another one has begun.
    fn begin(&mut self, second: i64) -> Vec<Count> {
        if self.second == second {
            return Vec::new();
        }
        self.second = second;
        std::mem::take(&mut self.counts).into_iter().filter(|count| count.left_out > 0).collect()
    }

    /// The count that a line of `from` is part of.
    fn count(&mut self, from: Option<&Speaker>) -> &mut Count {
        let topic = from.and_then(|from| from.topic.get());
        let apart = &self.counts[..self.counts.len().min(TOPICS_APART_MAX)];
        let at = apart.iter().position(|count| count.topic.as_ref() == topic).unwrap_or(apart.len());
        if at == self.counts.len() {
            // The one of many topics is for those who may hear of all.
            let own = (at < TOPICS_APART_MAX).then(|| from.cloned()).flatten();
            let topic = own.as_ref().and_then(|own| own.topic.get().cloned());
            self.counts.push(Count { topic, lines: 0, left_out: 0, from: own });
        }
        &mut self.counts[at]
    }
}

impl PluginLog {
    /// The log of `plugin`.
    #[must_use]
    pub fn new(plugin: Arc<str>, clock: Clock) -> Arc<PluginLog> {
        Arc::new(PluginLog::of(plugin, clock, false))
    }

    /// A log of which only the last lines are kept, and nothing goes into the broker's own: of a plugin that is tried.
    #[must_use]
    pub fn apart(plugin: Arc<str>, clock: Clock) -> Arc<PluginLog> {
        Arc::new(PluginLog::of(plugin, clock, true))
    }

    fn of(plugin: Arc<str>, clock: Clock, apart: bool) -> PluginLog {
        let (state, followers) = (Mutex::default(), Followers::new(FOLLOWED_MAX));
        PluginLog { plugin, clock, apart, state, followers, verdicts: Verdicts::default() }
    }

    /// The last lines, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<LogLine> {
        self.state.lock().recent.iter().cloned().collect()
    }

    /// The last lines, oldest first, and of those to come what `reaches` names. Who reads slowly loses lines, and is told how
    /// many.
    #[must_use]
    pub fn follow(&self, reaches: Reaches) -> (Vec<LogLine>, Following) {
        // No line comes between the two.
        let state = self.state.lock();
        let to_come = self.followers.follow(reaches);
        (state.recent.iter().cloned().collect(), to_come)
    }

    /// Writes one line that no stage says, or leaves it out in a flood.
    pub fn write(&self, level: LogLevel, text: String) {
        self.write_from(None, level, text);
    }

    fn write_from(&self, from: Option<&Speaker>, level: LogLevel, text: String) {
        let now = self.clock.now();
        // Lines that are kept apart fill no disk, and their clock is the messages': it may stand, or leap.
        if !self.apart {
            let (left_out, is_kept) = {
                let mut state = self.state.lock();
                let left_out = state.begin(now.0 / 1000);
                let count = state.count(from);
                let is_kept = count.lines < LINES_PER_SECOND_MAX;
                let counted = if is_kept { &mut count.lines } else { &mut count.left_out };
                *counted = counted.saturating_add(1);
                (left_out, is_kept)
            };
            for Count { left_out, from, topic, .. } in left_out {
                let of = topic.map_or(String::new(), |topic| format!(" of {topic}"));
                let text = format!("{left_out} lines{of} were left out: more than {LINES_PER_SECOND_MAX} a second");
                self.keep(LogLine { at: now, level: LogLevel::Warn, from, text: text.into() });
            }
            if !is_kept {
                return;
            }
        }
        let text = one_line(cut(text, LINE_BYTES_MAX)).into();
        self.keep(LogLine { at: now, level, from: from.cloned(), text });
    }

    fn keep(&self, line: LogLine) {
        let (plugin, text) = (&*self.plugin, &line.text);
        let level = line.level;
        match level {
            _ if self.apart => {}
            LogLevel::Debug => tracing::debug!(target: "sluice::plugin", plugin, "{text}"),
            LogLevel::Info => tracing::info!(target: "sluice::plugin", plugin, "{text}"),
            LogLevel::Warn => tracing::warn!(target: "sluice::plugin", plugin, "{text}"),
            LogLevel::Error => tracing::error!(target: "sluice::plugin", plugin, "{text}"),
        }
        let mut state = self.state.lock();
        if state.recent.len() == RECENT_MAX {
            state.recent.pop_front();
        }
        self.followers.tell(line.topic(), &line);
        state.recent.push_back(line);
    }
}

/// A plugin's log, as a stage writes it.
#[derive(Debug, Clone)]
pub struct StageLog {
    log: Arc<PluginLog>,
    from: Arc<Speaker>,
    /// How much of what the stage makes of messages was told; its own, so that no other topic's traffic silences it.
    pace: Arc<Pace>,
}

impl StageLog {
    /// For the stage that `from` names.
    #[must_use]
    pub fn new(log: Arc<PluginLog>, from: Speaker) -> StageLog {
        StageLog { log, from: Arc::new(from), pace: Arc::default() }
    }

    /// Writes one line, or leaves it out in a flood.
    pub fn write(&self, level: LogLevel, text: String) {
        self.log.write_from(Some(&self.from), level, text);
    }

    /// From here on it speaks of messages of `topic`: those alone hear it that the topic is open to.
    pub fn runs_on(&self, topic: &TopicName) {
        // A stage is of one pipeline, and that of one topic.
        self.from.topic.get_or_init(|| topic.clone());
    }

    /// The stage, and who follows what it makes of messages; none if nobody does.
    #[must_use]
    pub fn followed(&self) -> Option<(&Arc<Speaker>, &Verdicts)> {
        self.log.verdicts.are_followed().then_some((&self.from, &self.log.verdicts))
    }

    /// How many of `wanted` messages of `topic` are told now to those who follow.
    #[must_use]
    pub fn room_for(&self, topic: &TopicName, wanted: usize) -> usize {
        self.log.verdicts.room_for(&self.pace, topic, (wanted, self.log.clock.now()))
    }
}

/// Without what would let a plugin write lines of the broker's own log, or paint in its reader's terminal.
fn one_line(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, " ") } else { text }
}

/// Stdout or stderr of an instance: lines of the plugin's log. The clones of one stream share the line under way.
#[derive(Debug, Clone)]
pub struct LogStream {
    log: StageLog,
    level: LogLevel,
    line: Arc<Mutex<Vec<u8>>>,
    /// The start of what was written last, for a trap's detail: Rust's panics go to stderr.
    last: Arc<Mutex<String>>,
}

impl LogStream {
    /// Writes lines of `level` to `log`.
    #[must_use]
    pub fn new(log: StageLog, level: LogLevel) -> LogStream {
        LogStream { log, level, line: Arc::default(), last: Arc::default() }
    }

    /// Takes the last line that was written, if any.
    #[must_use]
    pub fn take_last(&self) -> Option<String> {
        self.end_line();
        let last = std::mem::take(&mut *self.last.lock());
        (!last.is_empty()).then_some(last)
    }

    fn take_in(&self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            {
                let mut line = self.line.lock();
                let room = LINE_BYTES_MAX.saturating_sub(line.len());
                line.extend_from_slice(&text[..text.len().min(room)]);
            }
            if ended {
                self.end_line();
            }
        }
    }

    fn end_line(&self) {
        let line = std::mem::take(&mut *self.line.lock());
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        // Rust ends each panic with this advice, which is of no use to anyone here.
        if text.is_empty() || text.starts_with("note: run with `RUST_BACKTRACE") {
            return;
        }
        self.log.write(self.level, text.clone());
        let mut last = self.last.lock();
        // A panic is two lines: where, and what.
        *last = if last.contains("panicked at") && !last.contains('\n') { format!("{last}\n{text}") } else { text };
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this one, which is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(StreamError::Trap(wasmtime::Error::msg("it wrote more than the stream had room for")));
        }
        self.take_in(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::pipeline::Heard;

    #[test]
    fn a_flood_is_thinned_out_and_said() {
        let clock = Clock::fixed(Timestamp(0));
        let log = PluginLog::new("loud".into(), clock.clone());
        for _ in 0..10_000 {
            log.write(LogLevel::Info, "again".to_owned());
        }
        assert_eq!(log.recent().len(), LINES_PER_SECOND_MAX as usize);
        clock.advance(std::time::Duration::from_secs(1));
        log.write(LogLevel::Info, "x".repeat(10_000));
        let recent = log.recent();
        assert!(recent[recent.len() - 2].text.starts_with("9900 lines were left out"));
        assert_eq!(recent[recent.len() - 1].text.len(), LINE_BYTES_MAX);
    }

    #[test]
    fn of_what_is_kept_apart_the_last_lines_are_there() {
        let log = PluginLog::apart("loud".into(), Clock::fixed(Timestamp(0)));
        (0..10_000).for_each(|n| log.write(LogLevel::Info, n.to_string()));
        let recent = log.recent();
        assert_eq!((recent.len(), &*recent[RECENT_MAX - 1].text), (RECENT_MAX, "9999"));
    }

    fn stage_log(log: &Arc<PluginLog>, topic: &str) -> StageLog {
        let from = Speaker { version: "1".into(), stage: topic.into(), topic: OnceLock::new() };
        let stage = StageLog::new(Arc::clone(log), from);
        stage.runs_on(&topic.parse().unwrap());
        stage
    }

    fn texts(log: &PluginLog, topic: &str) -> Vec<String> {
        let of_topic = |line: &LogLine| line.topic().is_some_and(|of| of.as_str() == topic);
        log.recent().iter().filter(|line| of_topic(line)).map(|line| line.text.to_string()).collect()
    }

    #[test]
    fn the_flood_of_one_topic_silences_no_other_and_is_said_to_those_who_may_hear_it() {
        let clock = Clock::fixed(Timestamp(0));
        let log = PluginLog::new("loud".into(), clock.clone());
        let (loud, quiet) = (stage_log(&log, "loud"), stage_log(&log, "quiet"));
        (0..500).for_each(|_| loud.write(LogLevel::Info, "again".to_owned()));
        quiet.write(LogLevel::Info, "hello".to_owned());
        log.write(LogLevel::Info, "of none".to_owned());
        assert_eq!((texts(&log, "loud").len(), texts(&log, "quiet")), (100, vec!["hello".to_owned()]));
        assert_eq!(&*log.recent()[101].text, "of none");
        clock.advance(std::time::Duration::from_secs(1));
        quiet.write(LogLevel::Info, "later".to_owned());
        let said = texts(&log, "loud").pop();
        assert_eq!(said.as_deref(), Some("400 lines of loud were left out: more than 100 a second"));
        assert_eq!(texts(&log, "quiet"), ["hello", "later"], "it is not told of others'");
    }

    #[test]
    fn so_many_topics_are_counted_apart_and_the_others_together() {
        let clock = Clock::fixed(Timestamp(0));
        let log = PluginLog::new("loud".into(), clock.clone());
        let (_, mut to_come) = log.follow(Box::new(|_| true));
        let mut kept = 0;
        for number in 0..TOPICS_APART_MAX + 50 {
            let stage = stage_log(&log, &format!("t{number}"));
            for _ in 0..LINES_PER_SECOND_MAX * 2 {
                stage.write(LogLevel::Info, "again".to_owned());
                kept += usize::from(to_come.next().now_or_never().is_some());
            }
        }
        assert_eq!(kept, (TOPICS_APART_MAX + 1) * LINES_PER_SECOND_MAX as usize);
        assert_eq!(log.state.lock().counts.len(), TOPICS_APART_MAX + 1);
        clock.advance(std::time::Duration::from_secs(1));
        log.write(LogLevel::Info, "x".to_owned());
        let recent = log.recent();
        let said = &recent[recent.len() - 2];
        assert_eq!((&*said.text, &said.from), ("9900 lines were left out: more than 100 a second", &None));
    }

    #[test]
    fn a_slow_follower_loses_lines_and_is_told_how_many_of_those_that_it_may_see() {
        let clock = Clock::fixed(Timestamp(0));
        let log = PluginLog::new("loud".into(), clock.clone());
        let (orders, billing) = (stage_log(&log, "orders.a"), stage_log(&log, "billing.a"));
        orders.write(LogLevel::Info, "before".to_owned());
        let of_orders = |topic: Option<&TopicName>| topic.is_some_and(|topic| topic.as_str().starts_with("orders."));
        let (recent, mut to_come) = log.follow(Box::new(of_orders));
        assert_eq!(recent.len(), 1);
        for n in 0..FOLLOWED_MAX + 10 {
            clock.advance(std::time::Duration::from_secs(1));
            billing.write(LogLevel::Info, "of others".to_owned());
            log.write(LogLevel::Info, "of none".to_owned());
            orders.write(LogLevel::Info, n.to_string());
        }
        let mut next = || to_come.next().now_or_never().flatten();
        for n in 0..FOLLOWED_MAX {
            let Some(Heard::Told(line)) = next() else { panic!("{n} is missing") };
            assert_eq!(&*line.text, n.to_string());
        }
        assert_eq!((next(), next()), (Some(Heard::Lost(10)), None), "of the others none is told, and none is lost");
    }

    #[test]
    fn a_plugin_cannot_forge_lines_or_colours() {
        let log = PluginLog::new("sly".into(), Clock::fixed(Timestamp(0)));
        log.write(LogLevel::Info, "fine\n2026-01-01 ERROR store: \u{1b}[31mall is lost\r\0".to_owned());
        assert_eq!(&*log.recent()[0].text, "fine 2026-01-01 ERROR store:  [31mall is lost  ");
    }

    #[test]
    fn a_panic_is_kept_for_the_detail_of_its_trap() {
        let log = PluginLog::new("p".into(), Clock::fixed(Timestamp(0)));
        let from = Speaker { version: "1".into(), stage: "s".into(), topic: OnceLock::new() };
        let stream = LogStream::new(StageLog::new(log, from), LogLevel::Warn);
        stream.take_in(b"\nthread '<unnamed>' panicked at src/lib.rs:1:2:\nno");
        stream.take_in(b" such order\nnote: run with `RUST_BACKTRACE=1` environment variable\n");
        assert_eq!(
            stream.take_last().as_deref(),
            Some("thread '<unnamed>' panicked at src/lib.rs:1:2:\nno such order")
        );
        assert_eq!(stream.take_last(), None);
    }
}
