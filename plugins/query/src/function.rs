//! Functions: RFC 9535's `length`, `count`, `match`, `search`, `value`, and our `contains`.
//! Invariant: a pattern is compiled when the query is parsed, once, within a bound. Never compiles one that comes
//! from a payload: its cost would be the publisher's to choose, for every message.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use crate::{
    PATTERN_BYTES_MAX, PATTERN_CHARS_MAX,
    ast::{Logical, Operand, Path},
    cursor::{Cursor, Parsed},
    expression::Term,
};

impl Cursor<'_> {
    /// The arguments of a function and its `)`; `start` is where its name begins.
    pub(crate) fn call(&mut self, name: &str, start: usize) -> Parsed<Term> {
        self.skip_space();
        let term = match name {
            "length" => Term::Operand(Operand::Length(Box::new(self.value_argument()?))),
            "count" => Term::Operand(Operand::Count(self.path_argument()?)),
            "value" => Term::Operand(Operand::Only(self.path_argument()?)),
            "match" | "search" => {
                let text = self.value_argument()?;
                self.comma()?;
                Term::Logical(Logical::Matches(text, self.pattern_argument(name == "match")?))
            }
            "contains" => {
                let whole = self.value_argument()?;
                self.comma()?;
                Term::Logical(Logical::Contains(whole, self.value_argument()?))
            }
            _ => {
                let known = "length, count, match, search, value and contains";
                return self.error(start, format!("there is no function {name:?}; there are {known}"));
            }
        };
        self.skip_space();
        if !self.eat(")") {
            return self.expected("`)`");
        }
        Ok(term)
    }

    fn comma(&mut self) -> Parsed<()> {
        self.skip_space();
        if !self.eat(",") {
            return self.expected("`,` and another argument");
        }
        self.skip_space();
        Ok(())
    }

    fn value_argument(&mut self) -> Parsed<Operand> {
        let start = self.pos;
        let term = self.term()?;
        self.comparable(term, start)
    }

    fn path_argument(&mut self) -> Parsed<Path> {
        match self.peek() {
            Some('$' | '@') => self.path(),
            _ => self.expected("a path"),
        }
    }

    /// RFC 9485's regular expressions, by the `regex` crate, which reads a superset: `.` is no line end, and
    /// `match` is about the whole string.
    fn pattern_argument(&mut self, whole: bool) -> Parsed<Regex> {
        let start = self.pos;
        let Term::Operand(Operand::Literal(Value::String(pattern))) = self.term()? else {
            return self.error(start, "the pattern must be a string literal: it is compiled once, with the query");
        };
        if pattern.chars().nth(PATTERN_CHARS_MAX).is_some() {
            return self.error(start, format!("the pattern is longer than {PATTERN_CHARS_MAX} characters"));
        }
        let anchored = if whole { format!(r"\A(?R:{pattern})\z") } else { format!("(?R:{pattern})") };
        let compile = |text: &str| RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
        // By itself first: `a)|(b` must not become valid by the group around it.
        match compile(&pattern).and_then(|_| compile(&anchored)) {
            Ok(regex) => Ok(regex),
            Err(error) => {
                let reason = error.to_string();
                let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.error(start, format!("the pattern is no regular expression (RFC 9485): {reason}"))
            }
        }
    }
}
