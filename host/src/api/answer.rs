//! How success is answered. Invariant: a body is JSON, written once, of known length. Never an error: those are problems.

use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderValue};
use http::{HeaderName, StatusCode};
use serde::Serialize;

/// Where most answers fit, so that writing one allocates once.
const USUAL_BYTES: usize = 512;

/// A JSON answer.
#[must_use]
pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response {
    sized(status, value, USUAL_BYTES)
}

/// `200` with JSON of about so many bytes: to grow an answer while it is written is to copy it several times.
#[must_use]
pub fn ok_of_bytes<T: Serialize + ?Sized>(value: &T, bytes: usize) -> Response {
    sized(StatusCode::OK, value, bytes)
}

fn sized<T: Serialize + ?Sized>(status: StatusCode, value: &T, bytes: usize) -> Response {
    let mut body = Vec::with_capacity(bytes);
    serde_json::to_writer(&mut body, value).expect("answers have string keys and write into memory");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `200` with JSON.
#[must_use]
pub fn ok<T: Serialize + ?Sized>(value: &T) -> Response {
    json(StatusCode::OK, value)
}

/// `201` with JSON and where the new thing is.
#[must_use]
pub fn created<T: Serialize + ?Sized>(location: String, value: &T) -> Response {
    with(json(StatusCode::CREATED, value), header::LOCATION, location)
}

/// `204`.
#[must_use]
pub fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// `304`: the caller has what `tag` names.
#[must_use]
pub fn not_modified(tag: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    with(response, header::ETAG, format!("\"{tag}\""))
}

/// The answer with the version of what it shows.
#[must_use]
pub fn tagged(response: Response, version: u64) -> Response {
    with(response, header::ETAG, format!("\"{version}\""))
}

fn with(mut response: Response, name: HeaderName, value: String) -> Response {
    let value = HeaderValue::try_from(value).expect("names and ids are checked to be plain ASCII");
    response.headers_mut().insert(name, value);
    response
}
