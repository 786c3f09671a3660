//! Right requests made wrong in one place each. Invariant: a case has one fault; what may be answered to it, and which place
//! the answer must name, stands in it. Never sends anything.

use serde_json::Value;
use sluice_tests::Client;

use super::document::{Document, Operation, Schema};
use super::faults::{self, Fault};
use super::rows::Row;
use super::wire;

/// Status and code of a problem.
pub(super) type Word = (u16, &'static str);

const INVALID: Word = (400, "VALIDATION_ERROR");
const MALFORMED: Word = (400, "MALFORMED_JSON");
const NOT_FOUND: Word = (404, "NOT_FOUND");
const STALE: Word = (412, "PRECONDITION_FAILED");

/// A field and a parameter that no route has.
const SURPLUS: &str = "surplus";

/// One way to be wrong.
pub(super) struct Case {
    pub(super) what: &'static str,
    /// Where: a JSON Pointer into the body, `?name`, `{name}` or `Name:`.
    pub(super) place: String,
    pub(super) request: Vec<u8>,
    /// What may be answered.
    pub(super) words: &'static [Word],
    /// The pointer that a `VALIDATION_ERROR` must name.
    pub(super) pointer: Option<String>,
    /// The item of a batch whose result may be the answer.
    pub(super) item: Option<&'static str>,
}

/// Makes the cases of one row.
pub(super) struct Maker<'m> {
    pub(super) client: &'m Client,
    pub(super) document: &'m Document,
    pub(super) operation: &'m Operation,
    pub(super) row: &'m Row,
}

/// What is done to a value of the body.
enum Change {
    To(Fault),
    Gone,
    Twice,
    /// An object gets one more field.
    More,
}

impl Maker<'_> {
    /// All of them.
    pub(super) fn cases(&self) -> Vec<Case> {
        let body = if self.operation.takes_body() { self.body() } else { self.no_body() };
        [self.path(), self.headers(), self.query(), body].into_iter().flatten().collect()
    }

    fn case(&self, what: &'static str, place: &str, request: Vec<u8>, words: &'static [Word]) -> Case {
        Case { what, place: place.to_owned(), request, words, pointer: None, item: None }
    }

    fn path(&self) -> Vec<Case> {
        let template: Vec<&str> = self.operation.path.split('/').collect();
        let mut cases = Vec::new();
        for (at, name) in template.iter().enumerate().filter(|(_, segment)| segment.starts_with('{')) {
            let path: Vec<&str> = self.row.path().split('/').collect();
            for fault in faults::of_segment(path[at]) {
                let written = String::from_utf8(fault.written).expect("percent-encoded");
                let words: &[Word] = match fault.what {
                    "too long for any target" => &[(414, "URI_TOO_LONG")],
                    "not UTF-8" => &[INVALID],
                    _ => &[INVALID, NOT_FOUND],
                };
                let changed = [&path[..at], &[written.as_str()], &path[at + 1..]].concat().join("/");
                let target = self.row.target.replacen(self.row.path(), &changed, 1);
                let row = Row { target, ..self.row.clone() };
                cases.push(self.case(fault.what, name, row.request(self.client), words));
            }
        }
        cases
    }

    fn headers(&self) -> Vec<Case> {
        let with = |method: &'static str, name: &str, value: &[u8]| {
            let others = self.row.headers.iter().filter(|(known, _)| *known != name);
            let mut headers: Vec<(&str, &[u8])> = others.map(|(name, value)| (*name, value.as_bytes())).collect();
            headers.push((name, value));
            let body = self.row.sent();
            if body.is_some() && name != "content-type" {
                headers.push(("content-type", self.row.media_type.as_bytes()));
            }
            wire::request(self.client, (method, &self.row.target), &headers, body.as_deref())
        };
        let method = self.row.method;
        let mut cases = Vec::new();
        let has = |name: &str| self.row.headers.iter().any(|(known, _)| *known == name);
        // An attribute's header means something in a row of attributes alone.
        let means_nothing = |name: &str| name.starts_with("ce-") && !has(name);
        let parameters = self.document.parameters(self.operation, "header");
        for name in parameters.keys().filter(|name| !means_nothing(name)) {
            cases.extend(faults::of_header().into_iter().map(|fault| {
                let request = with(method, name, &fault.written);
                self.case(fault.what, &format!("{name}:"), request, &[INVALID, STALE])
            }));
        }
        let patch = with("PATCH", "accept", b"*/*");
        cases.push(self.case("another method", "", patch, &[(405, "METHOD_NOT_ALLOWED")]));
        let picky = with(method, "accept", b"image/png");
        cases.push(self.case("another media type", "accept:", picky, &[(406, "NOT_ACCEPTABLE")]));
        if self.operation.takes_body() {
            let codings = [("content-encoding", "br"), ("content-type", "text/xml"), ("content-type", "\u{ff}")];
            for (name, value) in codings.into_iter().take(if self.row.is_data { 1 } else { codings.len() }) {
                let request = with(method, name, value.as_bytes());
                cases.push(self.case(
                    "another coding",
                    &format!("{name}:"),
                    request,
                    &[(415, "UNSUPPORTED_MEDIA_TYPE")],
                ));
            }
            for coding in ["gzip", "zstd"] {
                let request = with(method, "content-encoding", coding.as_bytes());
                cases.push(self.case("not encoded as it says", "content-encoding:", request, &[INVALID]));
            }
        }
        cases
    }

    fn query(&self) -> Vec<Case> {
        let schemas = self.document.parameters(self.operation, "query");
        let parameters = self.row.parameters();
        let one = |what, name: &str, query: &[String], words| {
            let row = Row { target: format!("{}?{}", self.row.path(), query.join("&")), ..self.row.clone() };
            let case = self.case(what, &format!("?{name}"), row.request(self.client), words);
            Case { pointer: Some(format!("/{name}")), ..case }
        };
        let right: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut cases = Vec::new();
        for (at, (name, value)) in parameters.iter().enumerate() {
            let Some(schema) = schemas.get(*name) else { continue };
            for fault in faults::of_parameter(schema, value) {
                let mut query = right.clone();
                query[at] = format!("{name}={}", String::from_utf8_lossy(&fault.written));
                let words: &[Word] = if fault.what == "not UTF-8" { &[INVALID] } else { &[INVALID, NOT_FOUND] };
                cases.push(one(fault.what, name, &query, words));
            }
            let twice = [right.clone(), vec![format!("{name}={value}")]].concat();
            cases.push(one("twice", name, &twice, &[INVALID]));
        }
        let more = [right, vec![format!("{SURPLUS}=1")]].concat();
        cases.push(one("unknown", SURPLUS, &more, &[INVALID]));
        cases
    }

    fn whole(&self, what: &'static str, body: impl Into<Vec<u8>>, words: &'static [Word]) -> Case {
        let request = self.row.request_with(self.client, Some(body.into()));
        Case { item: self.row.item.filter(|item| item.is_empty()), ..self.case(what, "", request, words) }
    }

    /// An action without a body refuses one. What a GET or DELETE carries means nothing (RFC 9110 §9.3) and is not read.
    fn no_body(&self) -> Vec<Case> {
        if self.row.method != "POST" {
            return Vec::new();
        }
        let case = self.whole("a body", format!("{{\"{SURPLUS}\":1}}"), &[INVALID]);
        vec![Case { pointer: Some(format!("/{SURPLUS}")), ..case }]
    }

    fn body(&self) -> Vec<Case> {
        if self.row.is_data {
            return Vec::new();
        }
        let right = self.row.body.as_ref().expect("a row of a route with a body has one");
        let written = right.to_string();
        let mut cases = vec![
            self.whole("half an object", "{", &[MALFORMED]),
            self.whole("no JSON", "nul", &[MALFORMED]),
            self.whole("more behind it", format!("{written}x"), &[MALFORMED]),
            self.whole("a byte order mark", format!("\u{feff}{written}"), &[MALFORMED]),
            self.whole("NUL behind it", format!("{written}\0"), &[MALFORMED]),
            self.whole("UTF-16", written.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), &[MALFORMED]),
            match right.get(0) {
                Some(item) => self.whole("no array", item.to_string(), &[INVALID]),
                None => self.whole("an array", format!("[{written}]"), &[INVALID]),
            },
            self.whole("null", "null", &[INVALID]),
            self.whole("deep", "[".repeat(10_000), &[MALFORMED]),
            // Of lines there is one at least, so that is the fault there.
            self.whole("empty", "", &[MALFORMED, INVALID]),
        ];
        let schema = self.document.body(self.operation, self.row.media_type).expect("the document has the media type");
        let mut changes = Vec::new();
        walk(self.document, &schema, right, "", &mut changes);
        cases.extend(changes.into_iter().map(|(place, change)| self.changed(right, place, &change)));
        cases
    }

    fn changed(&self, right: &Value, place: String, change: &Change) -> Case {
        let (what, pointer) = match change {
            Change::To(fault) => (fault.what, place.clone()),
            Change::Gone => ("missing", place.clone()),
            Change::Twice => ("twice", place.clone()),
            Change::More => ("unknown", format!("{place}/{SURPLUS}")),
        };
        let words: &[Word] =
            if matches!(change, Change::To(fault) if fault.malformed) { &[INVALID, MALFORMED] } else { &[INVALID] };
        let body = written(right, &place, change);
        let request = self.row.request_with(self.client, Some(body));
        // A list of what are no items is no fault of the list, but of each.
        let around = self.row.item.is_some_and(|item| item.len() > place.len() && item.starts_with(&place));
        let item = self.row.item.filter(|item| around || place.starts_with(item));
        Case { what, place, request, words, pointer: (!around).then_some(pointer), item }
    }
}

/// All that can be changed in a value.
fn walk(document: &Document, schema: &Schema, right: &Value, at: &str, changes: &mut Vec<(String, Change)>) {
    if !at.is_empty() {
        changes.extend(faults::of_value(schema, right).into_iter().map(|fault| (at.to_owned(), Change::To(fault))));
    }
    if schema.is_closed() {
        changes.push((at.to_owned(), Change::More));
    }
    for (name, required) in schema.fields() {
        let (Some(right), Some(field)) = (right.get(&name), document.field(schema, &name)) else { continue };
        let at = format!("{at}/{name}");
        walk(document, &field, right, &at, changes);
        changes.push((at.clone(), Change::Twice));
        if required {
            changes.push((at, Change::Gone));
        }
    }
    if let (Some(items), Some(first)) = (document.items(schema), right.get(0)) {
        walk(document, &items, first, &format!("{at}/0"), changes);
    }
}

/// The right document with one change, which may leave it no JSON.
fn written(right: &Value, place: &str, change: &Change) -> Vec<u8> {
    const HERE: &str = "\u{1}here";
    let mut document = right.clone();
    let (parent, name) = place.rsplit_once('/').unwrap_or_default();
    let value = document.pointer(place).expect("the place is in the document").to_string();
    let put = match change {
        Change::Gone => {
            let parent = document.pointer_mut(parent).and_then(Value::as_object_mut).expect("a field is in an object");
            parent.shift_remove(name);
            return document.to_string().into_bytes();
        }
        Change::More => {
            document.pointer_mut(place).expect("the place is in the document")[SURPLUS] = Value::from(1);
            return document.to_string().into_bytes();
        }
        Change::To(fault) => fault.written.clone(),
        Change::Twice => format!("{value},\"{name}\":{value}").into_bytes(),
    };
    *document.pointer_mut(place).expect("the place is in the document") = Value::from(HERE);
    let text = document.to_string();
    let (before, after) = text.split_once(&Value::from(HERE).to_string()).expect("the mark was put");
    [before.as_bytes(), put.as_slice(), after.as_bytes()].concat()
}
