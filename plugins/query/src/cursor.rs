//! Where the parser stands in the text, and the smallest things it reads: tokens, names, strings, numbers.
//! Invariant: `pos` is at a character's boundary; an error names a place in the text. Never looks back.

use serde_json::{Number, Value};

use crate::{QUERY_DEPTH_MAX, QueryError};

pub(crate) type Parsed<T> = Result<T, QueryError>;

pub(crate) struct Cursor<'t> {
    text: &'t str,
    pub(crate) pos: usize,
    depth: usize,
    /// How many `[?…]` are open: `@` has a meaning inside of them only.
    pub(crate) filters: usize,
}

impl<'t> Cursor<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { text, pos: 0, depth: 0, filters: 0 }
    }

    pub(crate) fn rest(&self) -> &'t str {
        &self.text[self.pos..]
    }

    pub(crate) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(crate) fn error<T>(&self, at: usize, message: impl Into<String>) -> Parsed<T> {
        Err(QueryError::at(self.text, at, message))
    }

    /// An error here: says what was expected and what stands here instead.
    pub(crate) fn expected<T>(&self, what: &str) -> Parsed<T> {
        match self.peek() {
            Some(found) => self.error(self.pos, format!("expected {what}, found {found:?}")),
            None => self.error(self.pos, format!("expected {what}, but the query ends here")),
        }
    }

    /// RFC 9535's `S`.
    pub(crate) fn skip_space(&mut self) {
        let rest = self.rest();
        self.pos += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    pub(crate) fn eat(&mut self, token: &str) -> bool {
        let here = self.rest().starts_with(token);
        if here {
            self.pos += token.len();
        }
        here
    }

    pub(crate) fn eat_while(&mut self, wanted: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let taken = &rest[..rest.len() - rest.trim_start_matches(wanted).len()];
        self.pos += taken.len();
        taken
    }

    /// Parses what stands inside parentheses or brackets, one level down.
    pub(crate) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == QUERY_DEPTH_MAX {
            return self.error(self.pos, format!("nested more than {QUERY_DEPTH_MAX} deep"));
        }
        self.depth += 1;
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    /// A quoted string, the cursor at its quote. RFC 9535 §2.3.1.1.
    pub(crate) fn string(&mut self) -> Parsed<String> {
        let start = self.pos;
        let Some(quote @ ('\'' | '"')) = self.peek() else { return self.expected("a string") };
        self.pos += 1;
        let mut value = String::new();
        loop {
            let at = self.pos;
            let Some(c) = self.peek() else { return self.error(start, "this string is not closed") };
            self.pos += c.len_utf8();
            match c {
                c if c == quote => return Ok(value),
                '\\' => value.push(self.escape(quote)?),
                c if c < ' ' => return self.error(at, "a control character in a string; write it as an escape"),
                c => value.push(c),
            }
        }
    }

    /// The rest of an escape, after its backslash.
    fn escape(&mut self, quote: char) -> Parsed<char> {
        let at = self.pos;
        let Some(c) = self.peek() else { return self.expected("an escape") };
        self.pos += c.len_utf8();
        Ok(match c {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '/' | '\\' => c,
            c if c == quote => c,
            'u' => return self.unicode_escape(at),
            c => return self.error(at, format!("\\{c} is no escape here")),
        })
    }

    fn unicode_escape(&mut self, at: usize) -> Parsed<char> {
        let first = self.hex4()?;
        let code = match first {
            0xD800..=0xDBFF if self.eat("\\u") => match self.hex4()? {
                low @ 0xDC00..=0xDFFF => 0x10000 + ((first - 0xD800) << 10) + (low - 0xDC00),
                _ => return self.error(at, "half a surrogate pair"),
            },
            code => code,
        };
        match char::from_u32(code) {
            Some(c) => Ok(c),
            None => self.error(at, "half a surrogate pair"),
        }
    }

    fn hex4(&mut self) -> Parsed<u32> {
        let digits = self.rest().get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(digits) = digits else { return self.expected("four hex digits") };
        self.pos += 4;
        Ok(u32::from_str_radix(digits, 16).expect("four hex digits fit"))
    }

    /// A number, as JSON writes it.
    pub(crate) fn number(&mut self) -> Parsed<Value> {
        let start = self.pos;
        let text = self.eat_while(|c| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E'));
        match serde_json::from_str::<Number>(text) {
            Ok(number) => Ok(Value::Number(number)),
            Err(_) => self.error(start, format!("{text:?} is no number")),
        }
    }

    /// An index or a bound of a slice: an integer that every JSON implementation keeps exact (RFC 9535 §2.1).
    pub(crate) fn index(&mut self) -> Parsed<i64> {
        let start = self.pos;
        let sign = if self.eat("-") { -1 } else { 1 };
        let digits = self.eat_while(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return self.expected("a number");
        }
        if digits.starts_with('0') && (digits.len() > 1 || sign < 0) {
            return self.error(start, "an index has no leading zero and no minus zero");
        }
        match digits.parse::<i64>() {
            Ok(value) if value < 1 << 53 => Ok(sign * value),
            _ => self.error(start, "an index is between -(2^53 - 1) and 2^53 - 1"),
        }
    }

    /// A name after a dot. RFC 9535's `member-name-shorthand`.
    pub(crate) fn shorthand_name(&mut self) -> Parsed<String> {
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
        if !self.peek().is_some_and(is_first) {
            return self.expected("a name (one with other characters goes into ['…'])");
        }
        Ok(self.eat_while(|c| is_first(c) || c.is_ascii_digit()).to_owned())
    }
}
