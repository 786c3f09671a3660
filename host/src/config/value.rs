//! What a setting's value may look like, wherever it was written. Invariant: a value that passed [`Kind::check`] can be
//! read as its kind. Never repeats a secret in an error.

use figment::value::{Num, Value};

use super::duration::parse_duration;
use super::quotas;

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Any text but the empty one.
    Text,
    /// A text that is never shown.
    Secret,
    /// `true` or `false`.
    Flag,
    /// A whole number within these bounds.
    Integer(u64, u64),
    /// A number from 0 to 1.
    Share,
    /// ISO 8601, longer than nothing.
    Duration,
    /// A list of texts; in an environment variable separated by commas.
    List,
    /// A list of tables in a file; in an environment variable a text for each, separated by commas.
    Quotas,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl Kind {
    /// Reads the text of an environment variable or a flag.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Kind::Text | Kind::Secret | Kind::Duration | Kind::Choice(_) => Value::from(text),
            Kind::Flag => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Value::from(true),
                "false" | "0" | "no" | "off" => Value::from(false),
                _ => return Err(format!("takes true or false, not '{text}'")),
            },
            Kind::Quotas => quotas::parse(text)?,
            Kind::Integer(..) => {
                Value::from(text.parse::<u64>().map_err(|_| format!("takes a whole number, not '{text}'"))?)
            }
            Kind::Share => Value::from(text.parse::<f64>().map_err(|_| format!("takes a number, not '{text}'"))?),
            Kind::List => {
                Value::from(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>())
            }
        };
        self.check(&value)?;
        Ok(value)
    }

    /// Says what is wrong with `value`, as the end of a sentence that begins with the setting's name.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Kind::Secret, value) if value.as_str().is_none() => Err("takes a text in quotes".to_owned()),
            (Kind::Text | Kind::Secret, Value::String(_, text)) if text.trim().is_empty() => {
                Err("must not be empty".to_owned())
            }
            (Kind::Text | Kind::Secret, Value::String(..)) | (Kind::Flag, Value::Bool(..)) => Ok(()),
            (Kind::Integer(min, max), Value::Num(_, number)) => match whole(*number) {
                Some(number) if (min..=max).contains(&number) => Ok(()),
                Some(number) => Err(format!("takes {min} to {max}, not {number}")),
                None => Err(format!("takes a whole number from {min} to {max}")),
            },
            (Kind::Share, Value::Num(_, number)) => match fraction(*number) {
                share if (0.0..=1.0).contains(&share) => Ok(()),
                share => Err(format!("takes 0 to 1, not {share}")),
            },
            (Kind::Duration, Value::String(_, text)) => match parse_duration(text) {
                Ok(duration) if duration.is_zero() => Err("must be longer than nothing".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(format!("takes an ISO 8601 duration: {error}")),
            },
            (Kind::List, Value::Array(_, items)) => {
                let texts = items.iter().all(|item| item.as_str().is_some());
                if texts { Ok(()) } else { Err("takes a list of texts".to_owned()) }
            }
            (Kind::Quotas, value) => quotas::check(value),
            (Kind::Choice(words), Value::String(_, text)) => {
                let known = words.iter().any(|word| word.eq_ignore_ascii_case(text));
                if known { Ok(()) } else { Err(format!("takes {}, not '{text}'", words.join(" or "))) }
            }
            (kind, value) => Err(format!("takes {}, not {}", kind.noun(), value.to_actual())),
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Kind::Text | Kind::Secret | Kind::Choice(_) => "a text",
            Kind::Flag => "true or false",
            Kind::Integer(..) => "a whole number",
            Kind::Share => "a number from 0 to 1",
            Kind::Duration => "an ISO 8601 duration such as \"PT30S\"",
            Kind::List => "a list of texts",
            Kind::Quotas => "a list of tables",
        }
    }
}

pub(super) fn whole(number: Num) -> Option<u64> {
    number
        .to_u128()
        .and_then(|number| u64::try_from(number).ok())
        .or_else(|| number.to_i128().and_then(|number| u64::try_from(number).ok()))
}

pub(super) fn fraction(number: Num) -> f64 {
    number
        .to_f64()
        .or_else(|| number.to_u128().map(|it| it as f64))
        .or_else(|| number.to_i128().map(|it| it as f64))
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_by_kind() {
        let list = Value::from(vec!["10.0.0.0/8", "::1/128"]);
        for (kind, text, value) in [
            (Kind::Secret, "12345", Value::from("12345")),
            (Kind::Flag, "True", Value::from(true)),
            (Kind::Flag, "0", Value::from(false)),
            (Kind::Integer(1, 10), "10", Value::from(10_u64)),
            (Kind::Share, "0.5", Value::from(0.5)),
            (Kind::Share, "1", Value::from(1.0)),
            (Kind::List, "10.0.0.0/8, ::1/128,", list),
            (Kind::Choice(&["a", "b"]), "B", Value::from("B")),
        ] {
            assert_eq!(kind.parse(text), Ok(value), "{text}");
        }
        for (kind, text) in [
            (Kind::Text, "  "),
            (Kind::Flag, "maybe"),
            (Kind::Integer(1, 10), "11"),
            (Kind::Integer(0, 10), "-1"),
            (Kind::Integer(0, 10), "1.5"),
            (Kind::Share, "1.1"),
            (Kind::Share, "NaN"),
            (Kind::Duration, "60"),
            (Kind::Duration, "PT0S"),
            (Kind::Choice(&["a", "b"]), "c"),
        ] {
            assert!(kind.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_never_repeated() {
        let error = Kind::Secret.check(&Value::from(123_456_789)).expect_err("a number is no text");
        assert!(!error.contains("123"), "{error}");
    }
}
