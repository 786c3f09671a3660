//! A JSON body as a typed value. Invariant: a body that serde refuses is read again, slowly, until every fault in it has
//! its JSON Pointer; the usual, right body is read once. Never runs deeper than serde_json's 128 levels.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRef, FromRequest, Request};
use http::{HeaderMap, header};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::body::{Intake, RawBody};
use crate::api::problem::{Code, Faults, Problem};

/// Rounds of repair for one body: each finds one fault, and more than this in one request is nobody's honest mistake.
const ROUNDS_MAX: usize = 20;

/// A JSON body read as `T`, and what is wrong with it so far.
#[derive(Debug)]
pub struct Json<T> {
    value: Option<T>,
    faults: Faults,
}

impl<T> Json<T> {
    /// Checks and converts the value; faults found by `check` join those found in reading.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` with all faults.
    pub fn check<U>(self, check: impl FnOnce(T, &mut Faults) -> Option<U>) -> Result<U, Problem> {
        let Json { value, mut faults } = self;
        let checked = value.and_then(|value| check(value, &mut faults));
        faults.finish(checked)
    }

    /// The value as it is.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` with all faults found in reading.
    pub fn plain(self) -> Result<T, Problem> {
        self.faults.finish(self.value)
    }
}

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
    Arc<Intake>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Json<T>, Problem> {
        expect_json(request.headers())?;
        let body = RawBody::from_request(request, state).await?;
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let value = decode(&body.bytes, &spare, &mut faults)?;
        Ok(Json { value, faults })
    }
}

/// A JSON body that may be left out: then it is the default.
#[derive(Debug)]
pub struct OptionalJson<T>(pub Json<T>);

impl<S, T> FromRequest<S> for OptionalJson<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Default,
    Arc<Intake>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<OptionalJson<T>, Problem> {
        expect_json(request.headers())?;
        let body = RawBody::from_request(request, state).await?;
        let (spare, mut faults) = (Spare::default(), Faults::default());
        if body.bytes.is_empty() {
            return Ok(OptionalJson(Json { value: Some(T::default()), faults }));
        }
        let value = decode(&body.bytes, &spare, &mut faults)?;
        Ok(OptionalJson(Json { value, faults }))
    }
}

/// The body of an action that takes none: nothing, or an object without fields.
#[derive(Debug, Clone, Copy)]
pub struct NoBody;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoFields {}

impl<S> FromRequest<S> for NoBody
where
    S: Send + Sync,
    Arc<Intake>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<NoBody, Problem> {
        let OptionalJson(body) = OptionalJson::<NoFields>::from_request(request, state).await?;
        body.plain().map(|NoFields {}| NoBody)
    }
}

/// No Content-Type, or `curl`'s for `-d`, is read as JSON too: the deployment guide's calls send it so.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE` for any other type.
pub fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    if is_media_type(given.as_bytes(), &["application/json", "application/x-www-form-urlencoded"]) {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, "Send the body as application/json."))
}

/// Whether a Content-Type, its parameters aside, is one of these.
pub(crate) fn is_media_type(given: &[u8], wanted: &[&str]) -> bool {
    let essence = given.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    wanted.iter().any(|wanted| essence.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Holds the repaired texts of a body while a value borrows from one of them.
#[derive(Debug, Default)]
pub struct Spare([OnceCell<String>; ROUNDS_MAX]);

/// Reads `text` as `T`. What is wrong goes to `faults`, and the value is then what could be read without the wrong
/// parts, if anything, so that the caller's own checks find the rest.
///
/// # Errors
/// `MALFORMED_JSON` when it is no JSON at all.
pub fn decode<'a, T: Deserialize<'a>>(
    text: &'a [u8],
    spare: &'a Spare,
    faults: &mut Faults,
) -> Result<Option<T>, Problem> {
    if text.trim_ascii_start().first().is_some_and(|byte| *byte != b'{') {
        // Read into a struct, an array would be taken for its fields in order.
        serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|error| malformed(&error))?;
        faults.push("", "takes a JSON object");
        return Ok(None);
    }
    if let Ok(value) = serde_json::from_slice::<T>(text) {
        return Ok(Some(value));
    }
    if text.trim_ascii().is_empty() {
        return Err(Problem::new(Code::MalformedJson, "The body is empty; send a JSON object."));
    }
    // It may be JSON all the same: of a number where a word is expected, serde_json says that it is none.
    let mut document: Value = serde_json::from_slice(text).map_err(|error| malformed(&error))?;
    let whole = std::str::from_utf8(text)
        .map_err(|error| Problem::new(Code::MalformedJson, format!("The body is not UTF-8: {error}.")))?;
    // The text as it was sent comes first: `document` knows no field twice.
    let mut found = attempt::<T>(whole);
    for round in &spare.0 {
        let broken = match found {
            Ok(value) => return Ok(Some(value)),
            Err(broken) => broken,
        };
        faults.push(broken.pointer.clone(), broken.message);
        let mended = match broken.mend {
            Mend::Remove => remove(&mut document, &broken.pointer),
            Mend::Reread => true,
            Mend::Nothing => false,
        };
        if !mended {
            return Ok(None);
        }
        found = attempt::<T>(round.get_or_init(|| document.to_string()));
    }
    Ok(None)
}

/// Reads `text` as a JSON array whose items are still unread; of more than `items_max`, one more is kept.
///
/// # Errors
/// `MALFORMED_JSON` when it is no JSON at all, `VALIDATION_ERROR` when it is something else.
pub fn decode_list(text: &[u8], items_max: usize) -> Result<Vec<&RawValue>, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = reader.deserialize_seq(ListVisitor { items_max }).and_then(|items| reader.end().map(|()| items));
    read.map_err(|error| match serde_json::from_slice::<Value>(text) {
        Ok(_) => Problem::invalid_at("", "takes a JSON array"),
        Err(_) => malformed(&error),
    })
}

struct ListVisitor {
    items_max: usize,
}

impl<'de> Visitor<'de> for ListVisitor {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<&RawValue>()? {
            if items.len() <= self.items_max {
                items.push(item);
            }
        }
        Ok(items)
    }
}

/// Text that is borrowed from the body wherever it holds no escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Text<'a>, D::Error> {
        source.deserialize_str(TextVisitor).map(Text)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text))
    }
}

struct Broken {
    pointer: String,
    message: String,
    mend: Mend,
}

/// How to go on looking for faults.
enum Mend {
    /// Take the value away.
    Remove,
    /// A field was there twice, and no longer is.
    Reread,
    /// There is no way.
    Nothing,
}

fn attempt<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Broken> {
    let mut reader = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let mut path: Vec<String> = error.path().iter().filter_map(segment).collect();
        let message = error.inner().to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(said, _)| said);
        if let Some(field) = quoted(message, "unknown field `") {
            if path.last().map(String::as_str) != Some(field) {
                path.push(field.to_owned());
            }
            let known = message.split_once(", ").map_or("", |(_, expected)| expected);
            let message = format!("is not a field of this request ({known})");
            return Broken { pointer: pointer_of(path), message, mend: Mend::Remove };
        }
        if let Some(field) = quoted(message, "missing field `") {
            path.push(field.to_owned());
            return Broken { pointer: pointer_of(path), message: "is required".to_owned(), mend: Mend::Nothing };
        }
        if let Some(field) = quoted(message, "duplicate field `") {
            path.push(field.to_owned());
            return Broken { pointer: pointer_of(path), message: "is there twice".to_owned(), mend: Mend::Reread };
        }
        let message = if message == "expected value" { "is of the wrong type" } else { message };
        let mend = if path.is_empty() { Mend::Nothing } else { Mend::Remove };
        Broken { mend, pointer: pointer_of(path), message: message.to_owned() }
    })
}

fn segment(segment: &serde_path_to_error::Segment) -> Option<String> {
    match segment {
        serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
        serde_path_to_error::Segment::Map { key } => Some(key.clone()),
        serde_path_to_error::Segment::Enum { variant } => Some(variant.clone()),
        serde_path_to_error::Segment::Unknown => None,
    }
}

/// What stands between `before` (at the beginning) and the next backtick.
fn quoted<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    message.strip_prefix(before)?.split('`').next()
}

/// RFC 6901.
pub(crate) fn pointer_of<S: AsRef<str>>(path: impl IntoIterator<Item = S>) -> String {
    path.into_iter().fold(String::new(), |mut pointer, part| {
        pointer.push('/');
        pointer.push_str(&part.as_ref().replace('~', "~0").replace('/', "~1"));
        pointer
    })
}

/// Takes the value at `pointer` out of its object; false if it is not in one (an array's other items would move).
fn remove(document: &mut Value, pointer: &str) -> bool {
    let Some((parent, last)) = pointer.rsplit_once('/') else { return false };
    let key = last.replace("~1", "/").replace("~0", "~");
    let Some(Value::Object(object)) = document.pointer_mut(parent) else { return false };
    object.shift_remove(&key).is_some()
}

fn malformed(error: &serde_json::Error) -> Problem {
    let said = error.to_string();
    Problem::new(Code::MalformedJson, format!("The body is not valid JSON: {said}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::{Object, not_null};
    use crate::api::problem::Fault;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Dto<'a> {
        #[serde(borrow)]
        name: Option<Text<'a>>,
        count: Option<u32>,
        #[serde(borrow)]
        payload: Option<&'a RawValue>,
        inner: Option<Object<Inner>>,
        list: Option<Vec<Object<Inner>>>,
        #[serde(default, deserialize_with = "not_null")]
        word: Option<Word>,
    }

    #[derive(Debug, Deserialize)]
    enum Word {
        Yes,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only read")]
        on: bool,
    }

    fn faults(text: &str) -> Vec<(String, String)> {
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let _value: Option<Dto<'_>> = decode(text.as_bytes(), &spare, &mut faults).expect("JSON");
        let Err(problem) = faults.finish(None::<()>) else { unreachable!("there is no value") };
        problem.item_body().errors.into_iter().map(|Fault { pointer, message }| (pointer, message)).collect()
    }

    #[test]
    fn a_right_body_is_borrowed() {
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let text = br#"{"name":"a","payload": {"x" : [1 , 2.50]} ,"list":[{"on":true}]}"#;
        let dto: Dto<'_> = decode(text, &spare, &mut faults).expect("JSON").expect("right");
        assert!(matches!(dto.name, Some(Text(Cow::Borrowed("a")))));
        assert_eq!(dto.payload.expect("there").get(), r#"{"x" : [1 , 2.50]}"#);
        assert!(faults.is_empty() && dto.count.is_none() && dto.inner.is_none() && dto.list.is_some());
    }

    #[test]
    fn all_faults_are_found_with_their_pointers() {
        let found =
            faults(r#"{"nmae":1,"name":5,"count":-1,"inner":{"on":"x","a/b":0},"payload":[],"list":[{"on":1}]}"#);
        let pointers: Vec<&str> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(pointers, ["/nmae", "/name", "/count", "/inner/on", "/inner/a~1b", "/inner/on"], "{found:?}");
        assert!(found[0].1.contains("`name`"), "{found:?}");
        assert_eq!(faults(r#"{"list":[{"on":true},{"on":1}]}"#)[0].0, "/list/1/on");
    }

    #[test]
    fn an_array_is_no_object_at_any_depth() {
        let found = faults(r#"{"inner":[true],"list":[{"on":true},[true]]}"#);
        assert_eq!(found[0].0, "/inner", "{found:?}");
        assert!(found[0].1.contains("expected a JSON object"), "{found:?}");
        assert_eq!(found[1].0, "/list/1", "{found:?}");
    }

    #[test]
    fn null_and_the_wrong_type_are_faults_with_a_pointer() {
        for wrong in ["null", "5", "[]"] {
            let found = faults(&format!(r#"{{"word":{wrong},"count":-1}}"#));
            let pointers: Vec<&str> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
            assert_eq!(pointers, ["/word", "/count"], "{found:?}");
        }
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let dto: Dto<'_> = decode(br#"{"word":"Yes"}"#, &spare, &mut faults).expect("JSON").expect("right");
        assert!(matches!(dto.word, Some(Word::Yes)));
    }

    #[test]
    fn duplicates_and_no_objects_are_refused() {
        assert_eq!(faults(r#"{"name":"a","name":"b"}"#), [("/name".to_owned(), "is there twice".to_owned())]);
        assert_eq!(faults("[1]").len(), 1);
        assert_eq!(faults("5")[0].0, "");
    }

    #[test]
    fn no_json_is_malformed_and_depth_is_bounded() {
        let deep = format!("{}{}", r#"{"inner":"#, "[".repeat(100_000));
        for text in ["", "  ", "{", "{\"name\":}", "nul", "\u{feff}{}", deep.as_str()] {
            assert_eq!(decode_list(text.as_bytes(), 9).expect_err("no JSON").code(), Code::MalformedJson, "{text}");
            let (spare, mut faults) = (Spare::default(), Faults::default());
            let error = decode::<Dto<'_>>(text.as_bytes(), &spare, &mut faults).expect_err("no JSON");
            assert_eq!(error.code(), Code::MalformedJson);
        }
    }

    #[test]
    fn a_list_is_read_item_by_item_and_nothing_else_is_one() {
        let items = decode_list(b" [1, {\"a\" : 2.50} ,3]", 1).expect("a list");
        assert_eq!(items.iter().map(|item| item.get()).collect::<Vec<_>>(), ["1", "{\"a\" : 2.50}"]);
        assert!(decode_list(b"[]", 1).expect("a list").is_empty());
        for text in ["{}", "null", "\"x\""] {
            assert_eq!(decode_list(text.as_bytes(), 1).expect_err("no list").code(), Code::ValidationError, "{text}");
        }
        assert_eq!(decode_list(b"[\"\xff\"]", 1).expect_err("no text").code(), Code::MalformedJson);
    }

    #[test]
    fn media_types_are_compared_without_parameters() {
        let given = |text: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().expect("a value"))]);
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded"] {
            assert!(expect_json(&given(good)).is_ok(), "{good}");
        }
        assert!(expect_json(&HeaderMap::new()).is_ok());
        for bad in ["text/plain", "application/jsonx", "", "multipart/form-data; boundary=x"] {
            assert!(expect_json(&given(bad)).is_err(), "{bad}");
        }
    }
}
