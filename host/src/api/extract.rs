//! How requests are read: body, query, path. Invariant: unknown fields and parameters, and duplicate ones, are errors;
//! all faults of a request are found, not only the first; a body is never held beyond its limit. Never checks what a
//! value means.

mod body;
mod digest;
mod encoding;
mod field;
mod json;
mod lines;
mod none_match;
mod params;

pub use body::{Intake, RawBody};
pub use digest::{CONTENT_DIGEST, ContentDigest, content_digest};
pub use field::{Object, not_null, nullable};
pub use json::{Json, NoBody, OptionalJson, Spare, Text, decode, decode_list, expect_json};
pub(crate) use json::{is_media_type, pointer_of};
pub use lines::{LineRun, Lines};
pub use none_match::IfNoneMatch;
pub use params::{IfMatch, Param, Params2, Parsed, Query, read_query};
