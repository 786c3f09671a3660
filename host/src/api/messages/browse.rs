//! Looking at a topic's messages without consuming them. Invariant: no cursor moves; one call reads at most
//! [`SCANNED_MAX`] messages, whatever the filter lets through. Never leases.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use payload_query::Query as PayloadQuery;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::one::MessageView;
use crate::api::auth::Caller;
use crate::api::extract::{Param, Query};
use crate::api::page::LIMIT_MAX;
use crate::api::problem::{Faults, Problem};
use crate::api::{answer, reach};
use crate::broker::Broker;
use crate::catalog::model::Topic;
use crate::clock::Timestamp;
use crate::message::{Message, Offset, Partition, Position, TopicName};
use crate::store::{ReadCursor, ReadFrom, ReadRequest};

/// Messages that one call looks at behind a filter.
const SCANNED_MAX: usize = 10_000;
/// Reads of the store that one call makes: each brings as many messages as are still wanted.
const READS_MAX: usize = 200;
/// Payload bytes that one read of the store brings.
const READ_BYTES_MAX: usize = 4 << 20;
/// Payload bytes in one answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Characters of a `nextToken`: a place per partition and lane.
const TOKEN_CHARS_MAX: usize = 32 * 1024;

/// What to look at.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BrowseQuery {
    /// `earliest` (the default), `latest`, an RFC 3339 time, or an offset: of `partition`, or of the only one.
    from: Option<String>,
    /// One partition; by default all.
    #[param(value_type = Option<u16>)]
    partition: Option<Partition>,
    /// Messages at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Only messages whose JSON payload fits this `payloadQuery`.
    filter: Option<String>,
    /// Where the page before ended, instead of `from`.
    next_token: Option<String>,
}

/// Stored messages.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BrowseAnswer<'a> {
    /// In the order of the log.
    messages: Vec<MessageView<'a>>,
    /// Where the next page begins; absent at the end of the log. A filter may leave a page short, or empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    /// Whether there is more of the log to look at.
    has_more: bool,
}

/// Browse a topic.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/messages", tag = "topics",
    params(("topic" = String, Path, description = "Which topic"), BrowseQuery),
    responses((status = 200, description = "Stored messages; none is consumed", body = BrowseAnswer)),
)]
pub(super) async fn browse(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<BrowseQuery>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let wanted = query.check(|query, faults| Wanted::read(&topic, query, faults))?;
    let (messages, next) = wanted.scan(&broker, &topic).await?;
    let has_more = next.is_some();
    let views = messages.iter().map(|(position, message)| MessageView::of(&topic, Some(*position), message)).collect();
    Ok(answer::ok(&BrowseAnswer { messages: views, next_token: next.as_ref().map(encode), has_more }))
}

struct Wanted {
    from: ReadFrom,
    partition: Option<Partition>,
    limit: usize,
    filter: Option<PayloadQuery>,
}

type Scanned = (Vec<(Position, Message)>, Option<ReadCursor>);

impl Wanted {
    fn read(topic: &Topic, query: BrowseQuery, faults: &mut Faults) -> Option<Wanted> {
        let limit = query.limit.unwrap_or(LIMIT_MAX);
        if !(1..=LIMIT_MAX).contains(&limit) {
            faults.push("/limit", format!("is from 1 to {LIMIT_MAX}"));
        }
        if query.partition.is_some_and(|partition| partition >= topic.settings.partition_count) {
            faults.push("/partition", format!("the topic has partitions 0 to {}", topic.settings.partition_count - 1));
        }
        // The only one is the one that is meant, as in a seek.
        let partition = query.partition.or((topic.settings.partition_count == 1).then_some(0));
        let filter = query.filter.map(|text| PayloadQuery::parse(&text)).transpose();
        let filter = faults.keep("/filter", filter);
        let from = match (query.next_token, query.from) {
            (Some(_), Some(_)) => {
                faults.push("/nextToken", "give `from` or `nextToken`, not both");
                None
            }
            (Some(token), None) => faults.keep("/nextToken", decode(&token).ok_or("is no token of this route")),
            (None, from) => faults.keep("/from", place(from.as_deref().unwrap_or("earliest"), partition)),
        };
        Some(Wanted { from: from?, partition, limit: limit as usize, filter: filter? })
    }

    /// Reads on until there is enough, the log ends, or enough was looked at.
    async fn scan(self, broker: &Broker, topic: &Topic) -> Result<Scanned, Problem> {
        let (mut found, mut bytes, mut scanned, mut reads) = (Vec::new(), 0, 0, 0);
        let mut from = self.from;
        loop {
            // Never more than is wanted: the next page begins where a read ended.
            let limit = self.limit - found.len();
            let request =
                ReadRequest { topic: topic.id, partition: self.partition, from, limit, bytes_max: READ_BYTES_MAX };
            let page = broker.store.read(request).await?;
            let next = page.next().cloned();
            scanned += page.messages.len();
            reads += 1;
            for (position, message) in page.messages {
                if self.filter.as_ref().is_none_or(|filter| fits(filter, &message)) {
                    bytes += message.payload.len();
                    found.push((position, message));
                }
            }
            let Some(next) = next else { return Ok((found, None)) };
            let enough = found.len() >= self.limit || bytes >= ANSWER_BYTES_MAX;
            if enough || scanned >= SCANNED_MAX || reads >= READS_MAX {
                return Ok((found, Some(next)));
            }
            from = ReadFrom::Cursor(next);
        }
    }
}

fn fits(filter: &PayloadQuery, message: &Message) -> bool {
    filter.read(&message.payload).is_some_and(|payload| filter.matches(&payload))
}

/// `earliest`, `latest`, a time, or an offset.
fn place(text: &str, partition: Option<Partition>) -> Result<ReadFrom, String> {
    match text {
        "earliest" => return Ok(ReadFrom::Earliest),
        "latest" => return Ok(ReadFrom::Latest),
        _ => {}
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        if partition.is_none() {
            return Err("an offset belongs to a partition: give `partition` too".to_owned());
        }
        return offset(text).map(ReadFrom::Offset);
    }
    Timestamp::parse_rfc3339(text)
        .map(ReadFrom::Time)
        .map_err(|_| format!("'{text}' is neither earliest, latest, an RFC 3339 time, nor an offset"))
}

/// An offset as answers have it.
pub(in crate::api) fn offset(text: &str) -> Result<Offset, String> {
    match text.parse::<u64>() {
        Ok(number) if Offset(number).lane() <= crate::message::PRIORITY_MAX && number < 1 << 52 => Ok(Offset(number)),
        _ => Err(format!("'{text}' is not an offset")),
    }
}

fn encode(cursor: &ReadCursor) -> String {
    URL_SAFE_NO_PAD.encode(postcard::to_stdvec(cursor).expect("a cursor is plain numbers"))
}

fn decode(token: &str) -> Option<ReadFrom> {
    if token.len() > TOKEN_CHARS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (cursor, rest) = postcard::take_from_bytes::<ReadCursor>(&bytes).ok()?;
    let sound = rest.is_empty()
        && cursor.0.iter().all(|(_, offset)| offset.lane() <= crate::message::PRIORITY_MAX && offset.0 < 1 << 52);
    sound.then_some(ReadFrom::Cursor(cursor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_in_all_their_forms() {
        assert_eq!(place("earliest", None), Ok(ReadFrom::Earliest));
        assert_eq!(place("latest", None), Ok(ReadFrom::Latest));
        assert_eq!(place("1970-01-01T00:00:01Z", None), Ok(ReadFrom::Time(Timestamp(1000))));
        assert_eq!(place("17", Some(0)), Ok(ReadFrom::Offset(Offset(17))));
        for bad in ["", "yesterday", "17", "-1"] {
            assert!(place(bad, None).is_err(), "{bad}");
        }
        assert!(place("99999999999999999999", Some(0)).is_err());
    }

    #[test]
    fn a_token_reads_back_and_nothing_else_does() {
        let cursor = ReadCursor(vec![(0, Offset::new(0, 5)), (1, Offset::new(9, 7))]);
        assert_eq!(decode(&encode(&cursor)), Some(ReadFrom::Cursor(cursor)));
        let longer = format!("{}AAAA", encode(&ReadCursor(vec![(0, Offset::new(0, 5))])));
        for bad in ["%", "AAAAAAAA////", &"A".repeat(TOKEN_CHARS_MAX + 1), &longer] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
