//! The same queries by another implementation, `serde_json_path`, on generated queries and payloads.
//!
//! It can't be the implementation itself, which is why ours exists (version 0.7.2): it filters the children of a
//! value, never the value, so the payload needs a wrapper and `$` another meaning; it compares numbers as floats,
//! so ids beyond 2^53 are equal by rounding; `>` holds between unequal values that have no order; a negative index in a comparison finds nothing; it reads a filter
//! inside a filter twice per level; it compiles patterns per evaluation, and has no bound on its work. The
//! generator stays clear of those, and the rest must agree.

use payload_query::Query;
use serde_json::{Value, json};
use serde_json_path::JsonPath;

/// A small generator (xorshift): the same cases every time, told by their seed when they fail.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'t>(&mut self, of: &[&'t str]) -> &'t str {
        let side = self.roll(of.len() as u64);
        of[usize::try_from(side).expect("a die has few sides")]
    }

    fn payload(&mut self, depth: u32) -> Value {
        match self.roll(if depth == 0 { 6 } else { 9 }) {
            0 => json!(null),
            1 => json!(self.roll(2) == 0),
            2 | 3 => json!(self.roll(4)),
            4 => json!(self.roll(8) as f64 / 2.0 - 1.0),
            5 => json!(self.pick(&["", "a", "b", "ab", "é"])),
            6 => (0..self.roll(4)).map(|_| self.payload(depth - 1)).collect(),
            _ => {
                let members =
                    (0..self.roll(4)).map(|_| (self.pick(&["a", "b", "c"]).to_owned(), self.payload(depth - 1)));
                Value::Object(members.collect())
            }
        }
    }

    fn singular(&mut self, root: &str) -> String {
        let mut path = root.to_owned();
        for _ in 0..self.roll(3) {
            path += self.pick(&[".a", ".b", "['c']", "[0]", "[1]"]);
        }
        path
    }

    fn path(&mut self, root: &str, depth: u32) -> String {
        let mut path = self.singular(root);
        for _ in 0..self.roll(2) {
            match self.roll(8) {
                0 => path += "[*]",
                1 => path += "..a",
                2 => path += "[-1,9]",
                3 => path += self.pick(&["[0:2]", "[1:]", "[::-1]", "[-2:]", "['a','b',0]", "[:-1]"]),
                4 => path += ".*",
                5 => path += "..[0]",
                _ if depth > 0 => path += &format!("[?{}]", self.condition("@", depth - 1)),
                _ => path += ".c",
            }
        }
        path
    }

    fn operand(&mut self, root: &str, depth: u32) -> String {
        match self.roll(8) {
            0 => self.pick(&["0", "1", "2.0", "-0.5", "1e0"]).into(),
            1 => self.pick(&["'a'", "\"b\"", "''", "'é'"]).into(),
            2 => self.pick(&["null", "true", "false"]).into(),
            3 => format!("length({})", self.singular(root)),
            4 => format!("count({})", self.path(root, depth)),
            5 => format!("value({})", self.path(root, depth)),
            _ => self.singular(root),
        }
    }

    fn condition(&mut self, root: &str, depth: u32) -> String {
        let root = if root == "@" && self.roll(4) == 0 { "$" } else { root };
        match self.roll(if depth == 0 { 5 } else { 9 }) {
            0 => self.path(root, depth),
            1 => format!("!{}", self.path(root, depth)),
            2 => format!(
                "{}({}, '{}')",
                self.pick(&["match", "search"]),
                self.singular(root),
                self.pick(&["a", "a.*", "[ab]+", "."])
            ),
            3 | 4 => {
                let operator = self.pick(&["==", "!=", "<"]);
                format!("{} {operator} {}", self.operand(root, depth), self.operand(root, depth))
            }
            5 => format!("({})", self.condition(root, depth - 1)),
            6 => format!("!({})", self.condition(root, depth - 1)),
            7 => format!("{} && {}", self.condition(root, depth - 1), self.condition(root, depth - 1)),
            _ => format!("{} || {}", self.condition(root, depth - 1), self.condition(root, depth - 1)),
        }
    }
}

#[test]
fn another_implementation_says_the_same() {
    let (mut held, mut not) = (0, 0);
    for seed in 1..=50_000_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let payload = dice.payload(3);
        let query = dice.condition("$", 2);
        let parsed = Query::parse(&query).unwrap_or_else(|e| panic!("seed {seed}: {query}: {e}"));
        let ours = parsed.evaluate(&payload);
        let seen = parsed.read(payload.to_string().as_bytes()).expect("it was written as JSON");
        assert_eq!(parsed.evaluate(&seen), ours, "seed {seed}: {query} on {payload}, of which it sees {seen}");
        let theirs = JsonPath::parse(&format!("$[?({})]", query.replace('$', "$[0]"))).unwrap();
        let wrapped = json!([payload]);
        let theirs = !theirs.query(&wrapped).is_empty();
        assert_eq!(ours, Ok(theirs), "seed {seed}: {query} on {}", wrapped[0]);
        if theirs { held += 1 } else { not += 1 }
    }
    // The generator must not have drifted into queries that never hold.
    assert!(held > 10_000 && not > 10_000, "{held} held, {not} did not");
}
