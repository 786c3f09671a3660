//! JSON Pointers (RFC 6901) in which `*` stands for every element or member, and `~2` for a `*` in a name.
//! Invariant: a parsed pointer is bounded in length and depth. Never reads a payload.

use crate::action::Action;

/// Segments of a pointer. The payload is scanned once more for each level that a rule descends.
const SEGMENTS_MAX: usize = 32;

/// One rule: where, and what to do there.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) path: Vec<Segment>,
    pub(crate) action: Action,
}

/// One step from a value to those inside it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// `*`: all of them.
    Every,
    /// A member's name, or an element's index in decimal.
    Named(String),
}

impl Segment {
    pub(crate) fn is_member(&self, name: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Named(wanted) => wanted == name,
        }
    }

    /// RFC 6901 §4: digits without a leading zero; `-` (past the end) names nothing that could be redacted.
    pub(crate) fn is_element(&self, index: usize) -> bool {
        match self {
            Self::Every => true,
            Self::Named(wanted) => {
                let canonical = wanted.len() == 1 || !wanted.starts_with('0');
                let digits = !wanted.is_empty() && wanted.bytes().all(|b| b.is_ascii_digit());
                canonical && digits && wanted.parse() == Ok(index)
            }
        }
    }
}

pub(crate) fn parse(pointer: &str) -> Result<Vec<Segment>, String> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = pointer.strip_prefix('/') else {
        return Err(format!("{pointer:?} is no JSON Pointer: it starts with `/`, or is empty for the whole payload"));
    };
    let segments = rest.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
    if segments.len() > SEGMENTS_MAX {
        return Err(format!("{} levels deep; at most {SEGMENTS_MAX} are allowed", segments.len()));
    }
    Ok(segments)
}

/// `~1` is `/`, `~0` is `~`, and `~2` is `*`, for a member that is called so; any other `~` is a mistake, most likely in a name
/// that holds one.
fn segment(text: &str) -> Result<Segment, String> {
    if text == "*" {
        return Ok(Segment::Every);
    }
    let mut name = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '~' => match chars.next() {
                Some('0') => name.push('~'),
                Some('1') => name.push('/'),
                Some('2') => name.push('*'),
                _ => return Err(format!("in {text:?}, write `~0` for `~`, `~1` for `/` and `~2` for `*`")),
            },
            c => name.push(c),
        }
    }
    Ok(Segment::Named(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `every` stands for all of them, so that `*` can stand for itself.
    fn named(names: &[&str]) -> Vec<Segment> {
        names.iter().map(|n| if *n == "every" { Segment::Every } else { Segment::Named((*n).into()) }).collect()
    }

    #[test]
    fn pointers_are_read_as_rfc_6901_says() {
        for (pointer, expected) in [
            ("", named(&[])),
            ("/", named(&[""])),
            ("/a/b", named(&["a", "b"])),
            ("/a~1b/m~0n/~01", named(&["a/b", "m~n", "~1"])),
            ("/items/*/card", named(&["items", "every", "card"])),
            ("/a*", named(&["a*"])),
            ("/~2/~02/a~2", named(&["*", "~2", "a*"])),
        ] {
            assert_eq!(parse(pointer), Ok(expected), "{pointer}");
        }
        for bad in ["a", "/~", "/a~3", "#/a", &"/a".repeat(SEGMENTS_MAX + 1)] {
            parse(bad).expect_err(bad);
        }
    }

    #[test]
    fn an_index_is_digits_without_a_leading_zero() {
        let is = |text: &str, index| Segment::Named(text.into()).is_element(index);
        assert!(is("0", 0) && is("10", 10) && Segment::Every.is_element(7));
        assert!(!is("01", 1) && !is("+1", 1) && !is("-", 0) && !is("", 0) && !is("00", 0));
    }
}
