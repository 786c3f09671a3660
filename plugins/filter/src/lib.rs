//! The `filter` stage: passes the messages whose headers and payload match, drops the others.
//! Invariant: payloads are copied only for a `payloadQuery`, and only of messages whose headers match. Never
//! changes a message.

use std::collections::BTreeMap;

use payload_query::Query;
use serde::Deserialize;
use sluice_plugin::{Batch, Error, Message, Rejection, Stage};

/// The code of a rejection where telling whether the query holds takes more work than a query may take. The
/// message is not dropped: that would lose it without a word.
pub const QUERY_TOO_COSTLY: &str = "QUERY_TOO_COSTLY";

/// Headers compared per message: as many as a message may carry.
const HEADERS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    /// Header names and the values they must have; all of them.
    header_matches: Option<BTreeMap<String, String>>,
    /// A condition on the payload, which is read as JSON.
    payload_query: Option<String>,
}

/// The stage: what must be equal, and a query that was understood.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
pub struct Filter {
    headers: Vec<Wanted>,
    query: Option<Query>,
}

#[derive(Debug)]
struct Wanted {
    name: String,
    value: String,
    /// Why a message without it is dropped. Made once; it names the header and no values, which may be secret.
    reason: String,
}

impl TryFrom<Config> for Filter {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        let headers = config.header_matches.unwrap_or_default();
        if headers.len() > HEADERS_MAX {
            return Err(format!("headerMatches has {} headers; at most {HEADERS_MAX} are allowed", headers.len()));
        }
        let wanted = |(name, value): (String, String)| {
            let reason = format!("header {name:?} does not match");
            Wanted { name, value, reason }
        };
        let query = config.payload_query.as_deref().map(Query::parse).transpose();
        Ok(Self {
            headers: headers.into_iter().map(wanted).collect(),
            query: query.map_err(|e| format!("payloadQuery, {e}"))?,
        })
    }
}

impl Stage for Filter {
    fn process(&self, batch: &Batch<'_>) -> Result<(), Error> {
        let mut matching: Vec<Message<'_>> = batch.iter().collect();
        for wanted in &self.headers {
            if matching.is_empty() {
                return Ok(());
            }
            // The column has a value for each message of the batch, those dropped above too.
            let column = batch.header_column(&wanted.name);
            let values: Vec<Option<&str>> = column.iter().collect();
            matching.retain(|message| {
                let matches = values[message.index()] == Some(wanted.value.as_str());
                if !matches {
                    message.drop(&wanted.reason);
                }
                matches
            });
        }
        if let Some(query) = &self.query {
            matching.iter().for_each(|message| ask(query, message));
        }
        Ok(())
    }
}

fn ask(query: &Query, message: &Message<'_>) {
    let Some(payload) = query.read(&message.payload()) else {
        return message.drop("the payload is not JSON, so payloadQuery does not hold");
    };
    match query.evaluate(&payload) {
        Ok(true) => {}
        Ok(false) => message.drop("payloadQuery does not hold"),
        Err(too_costly) => message.reject(Rejection::new(QUERY_TOO_COSTLY, too_costly.to_string())),
    }
}

sluice_plugin::export!(Filter);
