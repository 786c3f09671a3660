//! Paths: `$` or `@` and the segments after it (RFC 9535 §2.5, §2.3).
//! Invariant: `@` occurs only inside `[?…]`. Never resolves anything.

use crate::{
    ast::{From, Path, Segment, Selector},
    cursor::{Cursor, Parsed},
};

impl Cursor<'_> {
    /// The cursor at `$` or `@`.
    pub(crate) fn path(&mut self) -> Parsed<Path> {
        let from = if self.eat("$") {
            From::Payload
        } else if self.filters > 0 {
            self.pos += 1;
            From::Current
        } else {
            return self.error(self.pos, "`@` has a meaning only inside `[?…]`; the payload is `$`");
        };
        let mut segments = Vec::new();
        loop {
            // Space may stand before a segment; before anything else it isn't the path's.
            let end = self.pos;
            self.skip_space();
            match self.segment()? {
                Some(segment) => segments.push(segment),
                None => {
                    self.pos = end;
                    return Ok(Path { from, segments });
                }
            }
        }
    }

    fn segment(&mut self) -> Parsed<Option<Segment>> {
        let (descend, selectors) = if self.eat("..") {
            let selectors = if self.eat("[") { self.bracketed()? } else { vec![self.shorthand()?] };
            (true, selectors)
        } else if self.eat(".") {
            (false, vec![self.shorthand()?])
        } else if self.eat("[") {
            (false, self.bracketed()?)
        } else {
            return Ok(None);
        };
        Ok(Some(Segment { descend, selectors }))
    }

    fn shorthand(&mut self) -> Parsed<Selector> {
        if self.eat("*") { Ok(Selector::Every) } else { self.shorthand_name().map(Selector::Name) }
    }

    /// Selectors after their `[`.
    fn bracketed(&mut self) -> Parsed<Vec<Selector>> {
        self.nested(|cursor| {
            let mut selectors = Vec::new();
            loop {
                cursor.skip_space();
                selectors.push(cursor.selector()?);
                cursor.skip_space();
                if cursor.eat("]") {
                    return Ok(selectors);
                }
                if !cursor.eat(",") {
                    return cursor.expected("`]` or `,`");
                }
            }
        })
    }

    fn selector(&mut self) -> Parsed<Selector> {
        match self.peek() {
            Some('\'' | '"') => self.string().map(Selector::Name),
            Some('*') => {
                self.pos += 1;
                Ok(Selector::Every)
            }
            Some('?') => {
                self.pos += 1;
                self.skip_space();
                self.filters += 1;
                let condition = self.logical()?;
                self.filters -= 1;
                Ok(Selector::Filter(condition))
            }
            Some('-' | ':' | '0'..='9') => self.index_or_slice(),
            _ => self.expected("a name in quotes, an index, a slice, `*` or `?`"),
        }
    }

    fn index_or_slice(&mut self) -> Parsed<Selector> {
        let start = self.bound()?;
        let end_of_index = self.pos;
        self.skip_space();
        if !self.eat(":") {
            self.pos = end_of_index;
            // `bound` finds nothing only before a colon, which was eaten then.
            return start.map_or_else(|| self.expected("an index"), |index| Ok(Selector::Index(index)));
        }
        self.skip_space();
        let end = self.bound()?;
        self.skip_space();
        let step = if self.eat(":") {
            self.skip_space();
            self.bound()?
        } else {
            None
        };
        Ok(Selector::Slice { start, end, step: step.unwrap_or(1) })
    }

    fn bound(&mut self) -> Parsed<Option<i64>> {
        match self.peek() {
            Some('-' | '0'..='9') => self.index().map(Some),
            _ => Ok(None),
        }
    }
}
