//! A message as a test writes it down.
//! Invariant: it starts as the smallest message that a publisher can send. Never validates: the broker's job.

use crate::Position;

/// A message: built before a run, looked at after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its id.
    pub id: String,
    /// When it was published, in milliseconds since 1970-01-01T00:00:00Z.
    pub published_at_ms: u64,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The payload's media type; `application/json` unless said.
    pub content_type: String,
    /// The version of the schema that the publisher names.
    pub schema_version: Option<String>,
    /// Its headers, in order.
    pub headers: Vec<(String, String)>,
    /// Its partition key.
    pub key: Option<String>,
    /// Its correlation id.
    pub correlation_id: Option<String>,
    /// Its priority, 0 to 9.
    pub priority: u8,
    /// The delivery attempt; 0 on the way in.
    pub attempt: u32,
    /// Where it is stored; `None` on the way in.
    pub position: Option<Position>,
}

impl Input {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self {
            id: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
            published_at_ms: 1_700_000_000_000,
            payload: payload.into(),
            content_type: "application/json".into(),
            schema_version: None,
            headers: Vec::new(),
            key: None,
            correlation_id: None,
            priority: 0,
            attempt: 0,
            position: None,
        }
    }

    /// With a header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With a partition key.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The value of a header.
    pub fn header_value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The payload as text; for assertions on what a stage wrote.
    ///
    /// # Panics
    /// Where the payload is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("the payload is text")
    }
}
