//! `sluice tail`: looks at messages in their places. Invariant: takes nothing, no group's cursor moves; following shows
//! each message once, in the order of its partition and lane.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use payload_query::Query as PayloadQuery;
use serde_json::Value;

use super::client::{Answer, Client, ClientArgs, Query};
use super::consume;
use super::failure::Failure;
use super::output::Output;
use crate::clock::{Clock, Timestamp};
use crate::message::Offset;

/// How often to look for more when following: a person does not see the difference, the broker hardly notices.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// Messages of one request, the bound of a list.
const PAGE_ITEMS: u64 = 100;

const AFTER_HELP: &str = "\
Payloads are printed one a line; --verbose puts place, time and id before them, --json prints each message whole.

Examples:
  sluice tail orders                           the messages that are there, from the oldest on
  sluice tail orders --from latest --follow    those that come from now on
  sluice tail orders --from 2026-01-31T12:00:00Z --limit 20 --verbose
  sluice tail orders --filter '$.total > 100'";

/// Look at a topic's messages without taking them.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TailArgs {
    /// The topic
    topic: String,
    /// Where to begin: earliest, latest, a time (RFC 3339), or an offset of --partition
    #[arg(long, value_name = "WHERE", default_value = "earliest")]
    from: String,
    /// Go on until interrupted
    #[arg(long)]
    follow: bool,
    /// Messages at most [default: all that are there]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
    /// Only messages whose payload matches
    #[arg(long, value_name = "QUERY", value_parser = query)]
    filter: Option<String>,
    /// Print place, time and id, too
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    client: ClientArgs,
}

fn query(text: &str) -> Result<String, String> {
    PayloadQuery::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Prints messages as they stand.
pub(super) async fn run(args: &TailArgs) -> Result<(), Failure> {
    let mut tail = Tail::new(args)?;
    let start = tail.start().await?;
    tail.read_on(args.partition, &start).await?;
    while args.follow && tail.left > 0 {
        tail.output.flush()?;
        tokio::time::sleep(FOLLOW_EVERY).await;
        for partition in tail.partitions().await? {
            let from = tail.seen.get(&partition).map_or_else(|| start.clone(), |seen| seen.last.to_string());
            tail.read_on(Some(partition), &from).await?;
        }
    }
    Ok(())
}

/// What of a partition was shown.
#[derive(Debug, Default)]
struct Seen {
    /// The offset that came last, in the order of the log.
    last: u64,
    /// The highest offset of each lane.
    lanes: BTreeMap<u8, u64>,
}

impl Seen {
    /// Notes a message; false if it was noted before.
    fn note(&mut self, offset: u64) -> bool {
        let lane = Offset(offset).lane();
        let new = self.lanes.get(&lane).is_none_or(|&highest| highest < offset);
        if new {
            self.lanes.insert(lane, offset);
            self.last = offset;
        }
        new
    }
}

/// A topic as far as it was shown.
struct Tail<'a> {
    args: &'a TailArgs,
    client: Client,
    output: Output,
    /// Applied here when following: the broker would not say which messages it left out, and they would be read again.
    filter: Option<PayloadQuery>,
    left: u64,
    seen: BTreeMap<u16, Seen>,
}

impl<'a> Tail<'a> {
    fn new(args: &'a TailArgs) -> Result<Tail<'a>, Failure> {
        let filter = args.filter.as_deref().filter(|_| args.follow).map(PayloadQuery::parse).transpose();
        Ok(Tail {
            args,
            client: Client::new(&args.client)?,
            output: args.client.output(),
            filter: filter.map_err(|error| Failure::Usage(error.to_string()))?,
            left: args.limit.unwrap_or(u64::MAX),
            seen: BTreeMap::new(),
        })
    }

    /// Where to begin. When following, `latest` is pinned to a time, or what comes between two looks would be missed.
    async fn start(&self) -> Result<String, Failure> {
        if !(self.args.follow && self.args.from == "latest") {
            return Ok(self.args.from.clone());
        }
        let topic = self.client.get(&["topics", &self.args.topic], Query::default()).await?;
        Ok(brokers_time(&topic).unwrap_or_else(|| Clock::system().now()).rfc3339())
    }

    /// The partitions to look at, anew each time: a topic may be deleted and made again.
    async fn partitions(&self) -> Result<Vec<u16>, Failure> {
        if let Some(partition) = self.args.partition {
            return Ok(vec![partition]);
        }
        let topic = self.client.get(&["topics", &self.args.topic], Query::default()).await?.body;
        let count = topic["partitionCount"].as_u64().and_then(|count| u16::try_from(count).ok());
        count.map(|count| (0..count).collect()).ok_or_else(|| self.client.foreign("a topic has partitions".to_owned()))
    }

    /// Shows what there is from `from` on, and was not shown before.
    async fn read_on(&mut self, partition: Option<u16>, from: &str) -> Result<(), Failure> {
        let mut token: Option<String> = None;
        while self.left > 0 {
            // What was shown already and comes again doesn't count, so following asks for whole pages.
            let limit = if self.args.follow { PAGE_ITEMS } else { self.left.min(PAGE_ITEMS) };
            let query = Query::default()
                .with("from", token.is_none().then_some(from))
                .with("nextToken", token.as_ref())
                .with("limit", Some(limit))
                .with("partition", partition)
                .with("filter", self.args.filter.as_ref().filter(|_| !self.args.follow));
            let page = self.client.get(&["topics", &self.args.topic, "messages"], query).await?.body;
            for message in self.client.items(&page, "messages")? {
                self.show(message)?;
            }
            token = page["nextToken"].as_str().map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn show(&mut self, message: &Value) -> Result<(), Failure> {
        let place = message["partition"].as_u64().and_then(|it| u16::try_from(it).ok()).zip(message["offset"].as_u64());
        let Some((partition, offset)) = place else {
            return Err(self.client.foreign("a message has no place".to_owned()));
        };
        let new = self.seen.entry(partition).or_default().note(offset);
        if !new || self.left == 0 || !self.fits(message) {
            return Ok(());
        }
        self.left -= 1;
        if self.args.verbose && !self.output.is_json() {
            let text = |name: &str| message[name].as_str().unwrap_or_default();
            self.output.line(&format!("# {partition}/{offset} {} {}", text("timestamp"), text("messageId")))?;
        }
        consume::print(self.output, message)
    }

    fn fits(&self, message: &Value) -> bool {
        let Some(filter) = &self.filter else { return true };
        let payload = message["payload"].as_str().and_then(|text| serde_json::from_str(text).ok());
        payload.is_some_and(|payload| filter.matches(&payload))
    }
}

/// When the broker answered (RFC 9110 `Date`), so that its clock counts and not this machine's.
fn brokers_time(answer: &Answer) -> Option<Timestamp> {
    let date = jiff::fmt::rfc2822::parse(answer.date.as_deref()?).ok()?;
    Some(Timestamp(date.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_new_once_whatever_its_lane() {
        let mut seen = Seen::default();
        let urgent = Offset::new(9, 0).0;
        let notes = [0, 1, urgent, 2, urgent, 1, urgent + 1, 3].map(|offset| seen.note(offset));
        assert_eq!(notes, [true, true, true, true, false, false, true, true]);
        assert_eq!(seen.last, 3);
    }

    #[test]
    fn the_brokers_time_is_read_from_its_answer() {
        let answer = |date: Option<&str>| Answer { body: Value::Null, etag: None, date: date.map(str::to_owned) };
        let at = brokers_time(&answer(Some("Tue, 14 Nov 2023 22:13:20 GMT")));
        assert_eq!(at, Some(Timestamp(1_700_000_000_000)));
        assert_eq!(brokers_time(&answer(None)), None);
        assert_eq!(brokers_time(&answer(Some("yesterday"))), None);
    }
}
