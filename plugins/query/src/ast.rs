//! A query as it is evaluated.
//! Invariant: well-typed by RFC 9535 §2.4.3: what is compared is a value, what is tested is nodes or a logical.
//! Never holds text that is still to be parsed: patterns are compiled.

use regex::Regex;
use serde_json::Value;

/// A condition.
#[derive(Clone, Debug)]
pub(crate) enum Logical {
    Any(Vec<Logical>),
    All(Vec<Logical>),
    Not(Box<Logical>),
    /// The path leads to at least one value.
    Exists(Path),
    Compare(Operand, Comparison, Operand),
    /// `match` and `search`: the pattern says which, by its anchors.
    Matches(Operand, Regex),
    Contains(Operand, Operand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Something that yields one value, or nothing.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Literal(Value),
    /// A singular path.
    At(Path),
    Length(Box<Operand>),
    Count(Path),
    /// `value`: the one value that a path leads to, nothing if there are more.
    Only(Path),
}

#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) from: From,
    pub(crate) segments: Vec<Segment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// `$`
    Payload,
    /// `@`: the value that the enclosing `[?…]` looks at.
    Current,
}

#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// `..`: applies to the value and everything inside it.
    pub(crate) descend: bool,
    pub(crate) selectors: Vec<Selector>,
}

#[derive(Clone, Debug)]
pub(crate) enum Selector {
    Name(String),
    Every,
    Index(i64),
    Slice { start: Option<i64>, end: Option<i64>, step: i64 },
    Filter(Logical),
}

impl Path {
    /// Leads to at most one value, by its form (RFC 9535 §2.3.5.1).
    pub(crate) fn is_singular(&self) -> bool {
        self.segments.iter().all(|segment| {
            !segment.descend && matches!(segment.selectors.as_slice(), [Selector::Name(_) | Selector::Index(_)])
        })
    }
}
