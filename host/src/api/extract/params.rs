//! Query and path parameters, and `If-Match`. Invariant: a parameter that is unknown, given twice or of the wrong type is
//! an error that names it. Never looks at the body.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, RawPathParams};
use http::header;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
use url::form_urlencoded;

use crate::api::problem::{Code, Faults, Problem};

/// Parameters in one query at most: no route has this many.
const PARAMETERS_MAX: usize = 32;

/// The query, read as `T`, whose fields are all optional.
#[derive(Debug)]
pub struct Query<T> {
    value: T,
    faults: Faults,
}

impl<T> Query<T> {
    /// Checks and converts the parameters.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` with all faults.
    pub fn check<U>(self, check: impl FnOnce(T, &mut Faults) -> Option<U>) -> Result<U, Problem> {
        let Query { value, mut faults } = self;
        let checked = check(value, &mut faults);
        faults.finish(checked)
    }

    /// The parameters as they are.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` with all faults found in reading.
    pub fn plain(self) -> Result<T, Problem> {
        self.faults.finish(Some(self.value))
    }
}

impl<S, T> FromRequestParts<S> for Query<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Default,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Query<T>, Problem> {
        Ok(read_query(parts.uri.query().unwrap_or_default()))
    }
}

/// Reads a query string. Faulty parameters are left out of the value.
#[must_use]
pub fn read_query<T: DeserializeOwned + Default>(query: &str) -> Query<T> {
    let mut faults = Faults::default();
    if query.is_empty() {
        return Query { value: T::default(), faults };
    }
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    // Empty pieces are none for `parse` either, so the two go in step.
    let written = query.split('&').filter(|piece| !piece.is_empty());
    let parsed = form_urlencoded::parse(query.as_bytes());
    for (written, (name, value)) in written.zip(parsed).take(PARAMETERS_MAX + 1) {
        if percent_decode_str(written).decode_utf8().is_err() {
            // What was read instead would be another value than the one that was sent.
            faults.push(format!("/{name}"), "holds a percent-encoding that is not UTF-8");
        } else if pairs.len() == PARAMETERS_MAX {
            faults.push("", format!("at most {PARAMETERS_MAX} query parameters"));
        } else if !seen.insert(name.clone()) {
            faults.push(format!("/{name}"), "the query parameter is there twice");
        } else if let Err(message) = read::<T>(&[(name.clone(), value.clone())]) {
            faults.push(format!("/{name}"), message);
        } else {
            pairs.push((name, value));
        }
    }
    let value = read(&pairs).unwrap_or_else(|message| {
        faults.push("", message);
        T::default()
    });
    Query { value, faults }
}

fn read<T: DeserializeOwned>(pairs: &[(Cow<'_, str>, Cow<'_, str>)]) -> Result<T, String> {
    let pairs = pairs.iter().map(|(name, value)| (name.as_ref(), Text(value)));
    T::deserialize(MapDeserializer::<_, serde::de::value::Error>::new(pairs)).map_err(|error| {
        let message = error.to_string();
        match message.strip_prefix("unknown field `") {
            Some(_) => {
                let known = message.split_once(", ").map_or("there are none here", |(_, expected)| expected);
                format!("is not a query parameter of this route ({known})")
            }
            None => format!("the query parameter is wrong: {message}"),
        }
    })
}

/// A parameter's text, which becomes whatever type the field has.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl<'de> serde::de::IntoDeserializer<'de> for Text<'_> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $type:ty, $what:literal;)*) => {$(
        fn $method<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match self.0.parse::<$type>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(serde::de::Error::custom(format_args!("'{}' is not {}", self.0, $what))),
            }
        }
    )*};
}

impl<'de> serde::Deserializer<'de> for Text<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_str(self.0)
    }

    fn deserialize_option<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: serde::de::Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: serde::de::Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_enum(serde::de::IntoDeserializer::<Self::Error>::into_deserializer(self.0))
    }

    parsed! {
        deserialize_bool visit_bool bool, "true or false";
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number from 0 on";
        deserialize_u64 visit_u64 u64, "a whole number from 0 on";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

/// The one parameter in the path.
#[derive(Debug)]
pub struct Param<T>(pub T);

impl<S, T> FromRequestParts<S> for Param<T>
where
    S: Send + Sync,
    T: FromStr<Err: Display>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Param<T>, Problem> {
        let params = path_params(parts, state).await?;
        let mut faults = Faults::default();
        let value = one(&params, 0, &mut faults);
        faults.finish(value).map(Param)
    }
}

/// The two parameters in the path, in order.
#[derive(Debug)]
pub struct Params2<A, B>(pub A, pub B);

impl<S, A, B> FromRequestParts<S> for Params2<A, B>
where
    S: Send + Sync,
    A: FromStr<Err: Display>,
    B: FromStr<Err: Display>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Params2<A, B>, Problem> {
        let params = path_params(parts, state).await?;
        let mut faults = Faults::default();
        let (a, b) = (one(&params, 0, &mut faults), one(&params, 1, &mut faults));
        faults.finish(a.zip(b)).map(|(a, b)| Params2(a, b))
    }
}

async fn path_params<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<RawPathParams, Problem> {
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|_| Problem::invalid_at("", "the path holds a percent-encoding that is not UTF-8"))?;
    // Nothing has it in its name, and a fleet's database could not even be asked.
    if params.iter().any(|(_, text)| text.contains('\0')) {
        return Err(Problem::invalid_at("", "the path holds the character U+0000"));
    }
    Ok(params)
}

fn one<T: FromStr<Err: Display>>(params: &RawPathParams, index: usize, faults: &mut Faults) -> Option<T> {
    let (name, text) = params.iter().nth(index)?;
    faults.keep(&format!("/{name}"), text.parse::<T>())
}

/// What the caller believes the current version to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMatch {
    /// Nothing, or `*`.
    Any,
    /// This one.
    Version(u64),
    /// One that there has never been.
    Never,
}

impl IfMatch {
    /// The version to demand of the change.
    ///
    /// # Errors
    /// `PRECONDITION_FAILED` when no version can match.
    pub fn expected(self) -> Result<Option<u64>, Problem> {
        match self {
            IfMatch::Any => Ok(None),
            IfMatch::Version(version) => Ok(Some(version)),
            IfMatch::Never => Err(Problem::new(
                Code::PreconditionFailed,
                "`If-Match` names no version; read the `ETag` and use that.",
            )),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<IfMatch, Problem> {
        let Some(given) = parts.headers.get(header::IF_MATCH) else { return Ok(IfMatch::Any) };
        let given = given.to_str().unwrap_or_default().trim();
        if given == "*" {
            return Ok(IfMatch::Any);
        }
        // Weak tags never match (RFC 9110 §13.1.1), and neither does anything that this API does not give out.
        let version = given.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|tag| tag.parse().ok());
        Ok(version.map_or(IfMatch::Never, IfMatch::Version))
    }
}

/// A text that is read as `T` when a query or body is: for ids and names that the API writes as strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T>(pub T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: serde::Deserializer<'de>>(source: D) -> Result<Parsed<T>, D::Error> {
        let text = Cow::<'de, str>::deserialize(source)?;
        text.parse().map(Parsed).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "camelCase", deny_unknown_fields)]
    struct Params {
        consumer_group: Option<String>,
        limit: Option<u16>,
        force: bool,
        kind: Option<crate::catalog::model::TopicKind>,
    }

    #[test]
    fn a_query_is_read_by_its_types() {
        let query = read_query::<Params>("consumerGroup=a%20b+c&limit=5&force=true&kind=Queue").plain().unwrap();
        assert_eq!(query.consumer_group.as_deref(), Some("a b c"));
        assert_eq!((query.limit, query.force), (Some(5), true));
        assert!(query.kind.is_some());
        assert_eq!(read_query::<Params>("").plain().unwrap(), Params::default());
    }

    #[test]
    fn every_bad_parameter_is_named() {
        let problem = read_query::<Params>("limit=x&force=maybe&limt=1&kind=Que&limit=3").plain().unwrap_err();
        let errors = problem.item_body().errors;
        let pointers: Vec<_> = errors.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(pointers, ["/limit", "/force", "/limt", "/kind", "/limit"], "{errors:?}");
        assert!(errors[2].message.contains("`limit`"), "{errors:?}");
    }

    #[test]
    fn what_is_not_utf8_is_not_read_as_something_else() {
        let problem = read_query::<Params>("&consumerGroup=a%FF&limit=5").plain().unwrap_err();
        assert_eq!(problem.item_body().errors[0].pointer, "/consumerGroup");
        let query = read_query::<Params>("consumerGroup=%C3%A9&&limit=5").plain().unwrap();
        assert_eq!((query.consumer_group.as_deref(), query.limit), (Some("é"), Some(5)));
    }

    #[tokio::test]
    async fn if_match_takes_strong_tags_of_ours_alone() {
        for (given, expected) in [
            (None, IfMatch::Any),
            (Some("*"), IfMatch::Any),
            (Some("\"3\""), IfMatch::Version(3)),
            (Some("W/\"3\""), IfMatch::Never),
            (Some("3"), IfMatch::Never),
            (Some("\"x\""), IfMatch::Never),
        ] {
            let mut request = http::Request::builder();
            if let Some(given) = given {
                request = request.header(header::IF_MATCH, given);
            }
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(IfMatch::from_request_parts(&mut parts, &()).await.unwrap(), expected, "{given:?}");
        }
    }
}
