//! Whether a Redis can be used: its version, what it does when its memory is full, and whether it takes writes. Invariant: a
//! server that passed keeps what it is given until that ends by itself. Asks `INFO` alone, which servers allow that are run by
//! others and have no `CONFIG`.

use ::redis::{Value, cmd};

use super::Trouble;
use super::link::Link;

/// The first version whose scripts, channels and figures are those that are relied on.
const VERSION_MIN: u32 = 7;
/// What a server says that is part of a Cluster and was not addressed as one.
pub(super) const A_CLUSTERS: &str = "it is part of a Cluster: address it as redis-cluster://host:port,host:port";

/// Looks at all servers of a link. `mark` begins the names of keys.
///
/// # Errors
/// `Refused` says what to set; `Away` is for a while.
pub(crate) async fn look(link: &Link, mark: &str) -> Result<(), Trouble> {
    inspect(link).await?;
    // One that is full, or that follows another one, says so to a write alone.
    let mut write = cmd("SET");
    write.arg(format!("{mark}:look")).arg(1).arg("PX").arg(60_000);
    link.ask::<()>(&write).await.map_err(|error| link.trouble(&error))
}

/// The same without a write; what each server says of itself.
///
/// # Errors
/// As with [`look`].
pub(crate) async fn inspect(link: &Link) -> Result<Vec<String>, Trouble> {
    let info: Value = link.ask(&cmd("INFO")).await.map_err(|error| link.trouble(&error))?;
    let told = texts(info);
    if told.is_empty() {
        return Err(Trouble::Away("it answers INFO with nothing".to_owned()));
    }
    for text in &told {
        judge(text, link.is_cluster()).map_err(Trouble::Refused)?;
    }
    Ok(told)
}

/// A field of what a server says of itself; empty if it does not.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> &'a str {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(str::trim).unwrap_or_default()
}

/// The answer of each server: a Cluster's come as a map by address.
fn texts(value: Value) -> Vec<String> {
    match value {
        Value::BulkString(bytes) => vec![String::from_utf8_lossy(&bytes).into_owned()],
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => vec![text],
        Value::Map(pairs) => pairs.into_iter().flat_map(|(_, value)| texts(value)).collect(),
        Value::Array(values) => values.into_iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Judges by what a server says of itself.
fn judge(info: &str, as_cluster: bool) -> Result<(), String> {
    let field = |name: &str| field(info, name);
    let version = field("redis_version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < VERSION_MIN) {
        return Err(format!("it is of version '{version}': {VERSION_MIN} or later is needed"));
    }
    match field("redis_mode") {
        "sentinel" => return Err("it is a Sentinel: address it as redis-sentinel://host:port/master".to_owned()),
        "cluster" if !as_cluster => return Err(A_CLUSTERS.to_owned()),
        _ => {}
    }
    let (policy, memory_max) = (field("maxmemory_policy"), field("maxmemory"));
    if policy != "noeviction" && memory_max != "0" {
        return Err(format!(
            "its maxmemory-policy is '{policy}': when its memory is full it forgets what it was given. Set maxmemory-policy \
             noeviction (and a maxmemory that is enough), or give the brokers a Redis of their own"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(version: &str, mode: &str, memory_max: &str, policy: &str) -> String {
        format!(
            "# Server\r\nredis_version:{version}\r\nredis_mode:{mode}\r\n# Memory\r\nmaxmemory:{memory_max}\r\n\
             maxmemory_policy:{policy}\r\n"
        )
    }

    #[test]
    fn a_server_that_forgets_or_is_too_old_or_another_kind_is_refused_with_what_to_set() {
        for (text, as_cluster) in [
            (info("7.0.15", "standalone", "0", "noeviction"), false),
            (info("8.2.1", "standalone", "4294967296", "noeviction"), false),
            // Without a bound it never forgets.
            (info("7.2.4", "standalone", "0", "allkeys-lru"), false),
            (info("7.2.4", "cluster", "0", "noeviction"), true),
        ] {
            assert_eq!(judge(&text, as_cluster), Ok(()), "{text}");
        }
        for (text, says) in [
            (info("6.2.14", "standalone", "0", "noeviction"), "'6.2.14': 7 or later"),
            (info("", "standalone", "0", "noeviction"), "7 or later"),
            (info("7.0.15", "standalone", "1", "allkeys-lru"), "Set maxmemory-policy noeviction"),
            (info("7.0.15", "standalone", "1", "volatile-ttl"), "'volatile-ttl'"),
            (info("7.0.15", "cluster", "0", "noeviction"), "redis-cluster://"),
            (info("7.0.15", "sentinel", "0", "noeviction"), "redis-sentinel://"),
            ("redis_version:7.0.15\r\n".to_owned(), "maxmemory-policy"),
        ] {
            let fault = judge(&text, false).unwrap_err();
            assert!(fault.contains(says), "{text}: {fault}");
        }
    }

    #[test]
    fn each_server_of_a_cluster_is_looked_at() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        assert_eq!(texts(text("a")), ["a"]);
        assert_eq!(texts(Value::Map(vec![(text("x:1"), text("a")), (text("x:2"), text("b"))])), ["a", "b"]);
        assert!(texts(Value::Nil).is_empty());
    }
}
