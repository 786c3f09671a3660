//! What the table makes that is right all the same, with the reason. Invariant: each line excuses something that is made; one
//! that no longer does fails the table.

/// What is excused.
#[derive(Debug)]
pub(super) struct Exception {
    /// The operation's name ends so.
    pub(super) operation: &'static str,
    /// Where the fault stands ends so.
    pub(super) place: &'static str,
    /// Which faults.
    pub(super) what: &'static [&'static str],
    /// Why.
    #[expect(dead_code, reason = "for who reads the table")]
    pub(super) why: &'static str,
}

const fn excuse(
    operation: &'static str,
    place: &'static str,
    what: &'static [&'static str],
    why: &'static str,
) -> Exception {
    Exception { operation, place, what, why }
}

const VALUES: &[&str] = &[
    "a string",
    "a number",
    "a truth value",
    "an array",
    "an object",
    "null",
    "deep",
    "negative",
    "huge",
    "out of range",
    "a fraction",
    "the largest of 64 bits",
    "NUL",
    "too long",
];
const TEXTS: &[&str] = &["NUL", "too long"];

/// All of them.
pub(super) const EXCEPTIONS: &[Exception] = &[
    excuse(
        "publish/stream",
        "content-encoding:",
        &["not encoded as it says"],
        "it is told in the last line: the answer has begun",
    ),
    excuse("publish", "/payload", VALUES, "any JSON is a payload, to the letter; who reads it bounds its own depth"),
    excuse(
        "publish/batch",
        "/payload",
        VALUES,
        "any JSON is a payload, to the letter; who reads it bounds its own depth",
    ),
    excuse("messages/request", "/payload", VALUES, "as in a publish"),
    excuse("publish/stream", "/payload", VALUES, "as in a publish"),
    excuse("publish/stream", "", &["empty"], "a stream of no lines has no results, and says so"),
    excuse("publish", "/data", VALUES, "any JSON is the data of an event, to the letter"),
    excuse("publish/batch", "/data", VALUES, "any JSON is the data of an event, to the letter"),
    excuse("", "/data", &["half a character"], "any JSON is the data of an event, to the letter"),
    excuse("", "/data_base64", &["too long"], "a payload's length is its topic's matter"),
    excuse("publish", "ce-id:", &["too long"], "all attributes together have a bound, as headers have"),
    excuse("publish", "ce-source:", &["too long"], "all attributes together have a bound, as headers have"),
    excuse("publish", "ce-type:", &["too long"], "all attributes together have a bound, as headers have"),
    excuse("publish", "ce-subject:", &["too long"], "all attributes together have a bound, as headers have"),
    excuse("/validate", "/payload", VALUES, "any JSON can be asked about: the answer says whether it is valid"),
    excuse("", "/payloadBase64", &["too long"], "a payload's length is its topic's matter"),
    excuse("PUT /api/v1/topics/{topic}", "", &["missing"], "what a change leaves out stays as it is"),
    excuse("PUT /api/v1/subscriptions/{id}", "", &["missing"], "what a change leaves out stays as it is"),
    excuse("PUT /api/v1/subscriptions/{id}", "/startFrom", &["absent"], "counts at creation only"),
    excuse("POST /api/v1/schemas", "/schemaDefinition", &["an object", "a truth value"], "both are schemas"),
    excuse("", "/retentionBytes", &["the largest of 64 bits"], "how much is kept is bounded by the disk alone"),
    excuse("", "?offset", &["the largest of 64 bits"], "a page far behind a list's end is empty"),
    excuse("audit-logs", "?entity", TEXTS, "a text that is compared: what was never written matches nothing"),
    excuse("audit-logs", "?user", TEXTS, "a text that is compared: what was never written matches nothing"),
    excuse("GET /api/v1/subscriptions", "?topicName", TEXTS, "a text that is compared: no such name matches nothing"),
    excuse(
        "GET /api/v1/subscriptions",
        "?consumerGroup",
        TEXTS,
        "a text that is compared: no such name matches nothing",
    ),
    excuse("/dlq/replay", "/consumerGroup", TEXTS, "a text that is compared: no such name matches nothing"),
    excuse("/dlq/replay", "/reason", TEXTS, "a text that is compared: no such reason matches nothing"),
    excuse("/dlq/replay", "", &["empty"], "a body that may be left out: then all are meant"),
    excuse("/secret/rotate", "", &["empty"], "a body that may be left out: then the old secret signs for a day more"),
    excuse(
        "PUT /api/v1/subscriptions/{id}/snapshots/{name}",
        "{name}",
        &["negative", "huge"],
        "a snapshot may be called by a number",
    ),
    excuse("POST /api/v1/plugins/{name}/versions", "{name}", &["huge"], "a plugin may be called by a number"),
    excuse("/seek", "/to", &["a number"], "an offset is a number, or the text of one"),
    excuse("nack", "/reason", &["too long"], "for people: its beginning is kept"),
    excuse("ack/batch", "/reason", &["too long"], "for people: its beginning is kept"),
    excuse("GET /metrics", "accept:", &["another media type"], "whatever is asked for, there is one form"),
    excuse("dry-run", "seed", &["the largest of 64 bits"], "randomness may follow from any number"),
    excuse("dry-run", "accept:", &["another media type"], "whatever else is asked for than events, it is JSON"),
    excuse("plugins/{name}/logs", "accept:", &["another media type"], "`follow` says which of its two forms is meant"),
];
