//! Conditions: `||`, `&&`, `!`, parentheses, comparisons, tests.
//! Invariant: one pass, no backtracking, so parsing costs what the text is long. Never yields an ill-typed
//! expression (see `ast`).

use serde_json::Value;

use crate::{
    ast::{Comparison, Logical, Operand, Path},
    cursor::{Cursor, Parsed},
};

/// What stands at the place of an operand, before it is known whether a comparison follows.
pub(crate) enum Term {
    Operand(Operand),
    Path(Path),
    Logical(Logical),
}

impl Cursor<'_> {
    /// The whole query.
    pub(crate) fn query(&mut self) -> Parsed<Logical> {
        self.skip_space();
        let condition = self.logical()?;
        match self.peek() {
            None => Ok(condition),
            Some(_) => self.expected("`&&`, `||` or the end"),
        }
    }

    /// `logical-or-expr`, and the space after it.
    pub(crate) fn logical(&mut self) -> Parsed<Logical> {
        let mut any = vec![self.all()?];
        while self.eat("||") {
            self.skip_space();
            any.push(self.all()?);
        }
        Ok(if any.len() == 1 { any.remove(0) } else { Logical::Any(any) })
    }

    fn all(&mut self) -> Parsed<Logical> {
        let mut all = vec![self.basic()?];
        while self.eat("&&") {
            self.skip_space();
            all.push(self.basic()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Logical::All(all) })
    }

    fn basic(&mut self) -> Parsed<Logical> {
        let negated = self.eat("!");
        if negated {
            self.skip_space();
        }
        let start = self.pos;
        let condition = if self.eat("(") {
            self.parenthesised()?
        } else {
            let term = self.term()?;
            self.skip_space();
            match self.comparison() {
                Some(_) if negated => {
                    return self
                        .error(start, "`!` negates a test or parentheses: write `!(… == …)`, or turn the operator");
                }
                Some(comparison) => {
                    let left = self.comparable(term, start)?;
                    self.skip_space();
                    let start = self.pos;
                    let term = self.term()?;
                    let right = self.comparable(term, start)?;
                    Logical::Compare(left, comparison, right)
                }
                None if self.peek() == Some('=') => {
                    return self.error(self.pos, "`=` is no operator; equality is `==`");
                }
                None => self.test(term, start)?,
            }
        };
        self.skip_space();
        Ok(if negated { Logical::Not(Box::new(condition)) } else { condition })
    }

    fn parenthesised(&mut self) -> Parsed<Logical> {
        self.nested(|cursor| {
            cursor.skip_space();
            let condition = cursor.logical()?;
            if !cursor.eat(")") {
                return cursor.expected("`)`, `&&` or `||`");
            }
            Ok(condition)
        })
    }

    fn comparison(&mut self) -> Option<Comparison> {
        // Longer ones first: `<=` begins with `<`.
        const OPERATORS: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        OPERATORS.iter().find(|(token, _)| self.eat(token)).map(|(_, comparison)| *comparison)
    }

    /// A literal, a path or a call.
    pub(crate) fn term(&mut self) -> Parsed<Term> {
        match self.peek() {
            Some('$' | '@') => Ok(Term::Path(self.path()?)),
            Some('\'' | '"') => Ok(Term::Operand(Operand::Literal(Value::String(self.string()?)))),
            Some('-' | '0'..='9') => Ok(Term::Operand(Operand::Literal(self.number()?))),
            Some('a'..='z' | 'A'..='Z' | '_') => self.word(),
            _ => self.expected("a path (`$…`), a literal, a function or `(`"),
        }
    }

    /// `true`, `false`, `null`, or a function and its arguments.
    fn word(&mut self) -> Parsed<Term> {
        let start = self.pos;
        let word = self.eat_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if self.eat("(") {
            return self.nested(|cursor| cursor.call(word, start));
        }
        let literal = match word {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            _ => {
                return self
                    .error(start, format!("{word:?} means nothing here: a member is `$.{word}`, a string '{word}'"));
            }
        };
        Ok(Term::Operand(Operand::Literal(literal)))
    }

    /// A term as one side of a comparison, or as an argument that is a value.
    pub(crate) fn comparable(&self, term: Term, start: usize) -> Parsed<Operand> {
        match term {
            Term::Operand(operand) => Ok(operand),
            Term::Path(path) if path.is_singular() => Ok(Operand::At(path)),
            Term::Path(_) => {
                self.error(start, "this path can lead to several values; count(…) and value(…) make one of it")
            }
            Term::Logical(_) => self.error(start, "this function says yes or no by itself; it is no value"),
        }
    }

    /// A term as a condition of its own.
    fn test(&self, term: Term, start: usize) -> Parsed<Logical> {
        match term {
            Term::Path(path) => Ok(Logical::Exists(path)),
            Term::Logical(logical) => Ok(logical),
            Term::Operand(_) => self.error(start, "this is a value and no condition: compare it with something"),
        }
    }
}
