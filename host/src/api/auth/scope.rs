//! Which topics a token reaches. Invariant: a scope says yes only to names that one of its globs matches; no globs at
//! all (an empty list) is no topic, an absent list is every topic. Never looks at roles.

use std::sync::Arc;

use crate::message::DEAD_LETTER_SUFFIX;

/// Globs in one token at most: more would make every check slow, and no token of 8 KiB needs them.
pub const GLOBS_MAX: usize = 64;

/// The topics, and the plugins and schemas by name, that a token reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those that match one of these; `*` matches any characters, dots too.
    Globs(Arc<[Box<str>]>),
}

impl Scope {
    /// From a token's `topics`.
    #[must_use]
    pub fn new(topics: Option<&[String]>) -> Scope {
        match topics {
            None => Scope::All,
            Some(globs) => Scope::Globs(globs.iter().take(GLOBS_MAX).map(|glob| glob.as_str().into()).collect()),
        }
    }

    /// Whether it is every topic.
    #[must_use]
    pub fn is_all(&self) -> bool {
        matches!(self, Scope::All)
    }

    /// Whether `name` is in it.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Globs(globs) => globs.iter().any(|glob| matches(glob, name)),
        }
    }

    /// Whether the topic `name` is in it. A topic brings its dead letters with it.
    #[must_use]
    pub fn allows_topic(&self, name: &str) -> bool {
        self.allows(name) || name.strip_suffix(DEAD_LETTER_SUFFIX).is_some_and(|owner| self.allows(owner))
    }
}

/// Whether the whole of `text` matches `glob`. Goes back to the last `*` only, so the work is at most their lengths'
/// product.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                retry = Some((g, t));
                g += 1;
            }
            Some(byte) if *byte == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    g = star + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(globs: &[&str]) -> Scope {
        Scope::new(Some(&globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>()))
    }

    #[test]
    fn a_star_matches_any_characters_dots_too() {
        for (glob, text, expected) in [
            ("orders.*", "orders.eu.new", true),
            ("orders.*", "orders.", true),
            ("orders.*", "orders", false),
            ("*", "", true),
            ("*", "a.b", true),
            ("*.eu", "orders.eu", true),
            ("*.eu", "orders.eu.new", false),
            ("a*b*c", "a--b--b--c", true),
            ("a*b*c", "a--c--b", false),
            ("orders", "orders", true),
            ("orders", "Orders", false),
            ("", "x", false),
            ("o?ders", "orders", false),
            ("[a-z]*", "orders", false),
        ] {
            assert_eq!(matches(glob, text), expected, "{glob} {text}");
        }
    }

    #[test]
    fn an_absent_list_is_all_and_an_empty_one_nothing() {
        assert!(Scope::new(None).allows_topic("x"));
        assert!(!scope(&[]).allows_topic("x"));
    }

    #[test]
    fn a_topic_brings_its_dead_letters() {
        assert!(scope(&["orders"]).allows_topic("orders.dlq"));
        assert!(!scope(&["orders"]).allows_topic("orders.eu"));
        assert!(scope(&["orders.dlq"]).allows_topic("orders.dlq"));
        assert!(!scope(&["orders.dlq"]).allows_topic("orders"));
    }

    #[test]
    fn a_hostile_glob_costs_little() {
        let glob = "*a".repeat(2000);
        assert!(!matches(&glob, &"a".repeat(1000)));
    }
}
