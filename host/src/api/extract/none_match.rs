//! `If-None-Match`: what the caller has already. Invariant: what is no list of entity tags is refused, so that a slip does not pass
//! for something new. Never compares anything but tags.

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;

use crate::api::problem::Problem;

/// Tags that one request may name.
const TAGS_MAX: usize = 64;

/// What the caller has, by entity tag.
#[derive(Debug, PartialEq, Eq)]
pub enum IfNoneMatch {
    /// Whatever there is (`*`).
    Any,
    /// These; none where the header is absent.
    Tags(Vec<String>),
}

impl IfNoneMatch {
    /// Whether what `tag` names is among it.
    #[must_use]
    pub fn holds(&self, tag: &str) -> bool {
        match self {
            IfNoneMatch::Any => true,
            IfNoneMatch::Tags(tags) => tags.iter().any(|known| known == tag),
        }
    }

    fn read(text: &str) -> Option<IfNoneMatch> {
        if text.trim() == "*" {
            return Some(IfNoneMatch::Any);
        }
        // Weak ones count, too: RFC 9110 §13.1.2. Ours hold neither commas nor quotes.
        let tag = |tag: &str| {
            let tag = tag.trim().trim_start_matches("W/").strip_prefix('"')?.strip_suffix('"')?;
            (!tag.contains('"')).then(|| tag.to_owned())
        };
        let tags: Vec<String> = text.split(',').map(tag).collect::<Option<_>>()?;
        (tags.len() <= TAGS_MAX).then_some(IfNoneMatch::Tags(tags))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<IfNoneMatch, Problem> {
        let Some(given) = parts.headers.get(header::IF_NONE_MATCH) else { return Ok(IfNoneMatch::Tags(Vec::new())) };
        let read = given.to_str().ok().and_then(IfNoneMatch::read);
        read.ok_or_else(|| {
            Problem::invalid_at(
                "",
                format!("`If-None-Match` takes `*` or up to {TAGS_MAX} tags in quotes, such as an `ETag`"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_and_nothing_else() {
        let read = |text: &str| IfNoneMatch::read(text);
        assert_eq!(read("*"), Some(IfNoneMatch::Any));
        let tags = read("\"a\", W/\"b\"").unwrap();
        assert_eq!(["a", "b", "c", ""].map(|tag| tags.holds(tag)), [true, true, false, false]);
        for wrong in ["", "a", "\"a", "\"a\",", "\"a\"b\"", "\""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(read(&vec!["\"a\""; TAGS_MAX + 1].join(",")), None);
    }
}
