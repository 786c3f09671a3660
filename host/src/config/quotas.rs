//! Quotas of plugins and topics by the prefix of their names. Invariant: each one that exists limits something, and no prefix is
//! there twice. Never counts anything.

use std::collections::HashSet;

use figment::value::{Dict, Value};
use serde::Deserialize;

use super::value::{fraction, whole};

/// Quotas at most: each is a label of the metrics.
const QUOTAS_MAX: usize = 64;
/// Bytes of a prefix: what a topic's name has.
const PREFIX_BYTES_MAX: usize = 255;
const PREFIX: &str = "prefix";
const PLUGINS: &str = "plugins";
const BYTES: &str = "bytes";
const SHARE: &str = "share";

/// What the plugins and topics may have together whose names begin with `prefix`, and with no longer prefix of another quota.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PluginQuota {
    /// What the names begin with.
    pub prefix: String,
    /// Plugins at most.
    pub plugins: Option<usize>,
    /// Bytes of the components of all their versions at most.
    pub bytes: Option<u64>,
    /// Of the threads that run plugins, the share that these topics hold at once: more than 0, up to 1.
    pub share: Option<f64>,
}

impl std::fmt::Display for PluginQuota {
    /// As an environment variable takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.prefix)?;
        let limits = [
            (PLUGINS, self.plugins.map(|it| it.to_string())),
            (BYTES, self.bytes.map(|it| it.to_string())),
            (SHARE, self.share.map(|it| it.to_string())),
        ];
        limits
            .into_iter()
            .filter_map(|(name, limit)| Some((name, limit?)))
            .try_for_each(|(n, it)| write!(f, " {n}={it}"))
    }
}

/// The quota that counts for `name`: the one with the longest prefix.
pub fn longest<'a, T>(quotas: impl Iterator<Item = (&'a str, T)>, name: &str) -> Option<T> {
    let fitting = quotas.filter(|(prefix, _)| name.starts_with(prefix));
    fitting.max_by_key(|(prefix, _)| prefix.len()).map(|(_, quota)| quota)
}

/// Reads the text of an environment variable: `orders. plugins=20 share=0.25, billing. bytes=67108864`.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let quotas = text.split(',').map(str::trim).filter(|quota| !quota.is_empty());
    let read = quotas.map(|quota| {
        let mut words = quota.split_ascii_whitespace();
        let mut values = Dict::from([(PREFIX.to_owned(), Value::from(words.next().unwrap_or_default()))]);
        for word in words {
            let (name, number) = word.split_once('=').ok_or_else(|| format!("takes name=number, not '{word}'"))?;
            let wrong = |_| format!("takes a number for {name}, not '{number}'");
            let number = match name {
                SHARE => Value::from(number.parse::<f64>().map_err(|error| wrong(error.to_string()))?),
                _ => Value::from(number.parse::<u64>().map_err(|error| wrong(error.to_string()))?),
            };
            if values.insert(name.to_owned(), number).is_some() {
                return Err(format!("takes {name} once for each prefix, not again as '{word}'"));
            }
        }
        Ok(Value::from(values))
    });
    read.collect::<Result<Vec<Value>, String>>().map(Value::from)
}

/// Says what is wrong with `value`, as the end of a sentence that begins with the setting's name.
pub(super) fn check(value: &Value) -> Result<(), String> {
    let Value::Array(_, quotas) = value else { return Err("takes a list of tables".to_owned()) };
    if quotas.len() > QUOTAS_MAX {
        return Err(format!("takes {QUOTAS_MAX} quotas at most, not {}", quotas.len()));
    }
    let mut prefixes = HashSet::new();
    for quota in quotas {
        let Value::Dict(_, quota) = quota else { return Err("takes a list of tables".to_owned()) };
        let prefix = quota.get(PREFIX).and_then(Value::as_str).ok_or("wants a prefix, a text, in each quota")?;
        check_one(prefix, quota)?;
        if !prefixes.insert(prefix) {
            return Err(format!("has '{prefix}' twice"));
        }
    }
    Ok(())
}

fn check_one(prefix: &str, quota: &Dict) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(plain) {
        return Err(format!(
            "takes a prefix of 1 to {PREFIX_BYTES_MAX} letters, digits, dots, hyphens or underscores such as 'orders.' \
             (without a '*'), not '{prefix}'"
        ));
    }
    for (name, value) in quota.iter().filter(|(name, _)| *name != PREFIX) {
        let number = if let Value::Num(_, number) = value { Some(*number) } else { None };
        let good = match name.as_str() {
            PLUGINS | BYTES => number.and_then(whole).is_some(),
            SHARE => number.map(fraction).is_some_and(|share| share > 0.0 && share <= 1.0),
            _ => return Err(format!("has '{name}' for '{prefix}': a quota has {PLUGINS}, {BYTES} and {SHARE}")),
        };
        if !good {
            let takes = if name == SHARE { "a share above 0 and up to 1" } else { "a whole number" };
            return Err(format!("takes {takes} as {name} of '{prefix}'"));
        }
    }
    if quota.len() < 2 {
        return Err(format!("limits nothing for '{prefix}': give it {PLUGINS}, {BYTES} or {SHARE}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_and_shown_alike_and_faults_are_told() {
        let text = "orders. plugins=20 bytes=4096 share=0.25, billing. share=1";
        let value = parse(text).unwrap();
        check(&value).unwrap();
        let quotas: Vec<PluginQuota> = value.deserialize().unwrap();
        assert_eq!(quotas[0].to_string(), "orders. plugins=20 bytes=4096 share=0.25");
        assert_eq!(
            quotas[1],
            PluginQuota { prefix: "billing.".to_owned(), plugins: None, bytes: None, share: Some(1.0) }
        );
        for (text, says) in [
            ("orders.", "limits nothing"),
            ("orders.* plugins=1", "without a '*'"),
            ("orders. plugins", "name=number"),
            ("orders. plugins=few", "a number for plugins"),
            ("orders. plugins=-1", "a number for plugins"),
            ("orders. threads=1", "has 'threads'"),
            ("orders. share=0", "above 0"),
            ("orders. share=1.5", "above 0"),
            ("orders. share=NaN", "above 0"),
            ("orders. share=1, orders. plugins=1", "twice"),
            ("orders. plugins=1 plugins=2", "plugins once"),
            ("orders. prefix=1", "prefix once"),
        ] {
            let wrong = parse(text).and_then(|value| check(&value)).unwrap_err();
            assert!(wrong.contains(says), "{text}: {wrong}");
        }
        let many: Vec<String> = (0..=QUOTAS_MAX).map(|n| format!("p{n}. plugins=1")).collect();
        assert!(check(&parse(&many.join(",")).unwrap()).is_err());
    }

    #[test]
    fn the_longest_prefix_counts() {
        let quotas = [("orders.", 1), ("orders.eu.", 2), ("o", 3)];
        let of = |name| longest(quotas.into_iter(), name);
        assert_eq!(
            [of("orders.eu.a"), of("orders.us"), of("orders"), of("billing.x")],
            [Some(2), Some(1), Some(3), None]
        );
    }
}
