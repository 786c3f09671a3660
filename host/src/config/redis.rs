//! Where a Redis is, in both ways that people write it: as an address (`redis://user:password@host:6379/0`, `redis-cluster://a,b`,
//! `redis-sentinel://a,b/master`), or as the deployment guide's words (`host:6379,password=…,ssl=true`). Invariant: a value that
//! exists names a host, and nothing in it is unknown to what connects; its password is shown nowhere, nor is any other piece of a
//! text that was refused but the name of a word.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::catalog::model::Secret;

/// Where a Redis listens unless one says.
const PORT: u16 = 6379;
/// The same of a Sentinel.
const SENTINEL_PORT: u16 = 26_379;
/// The same of a Redis with TLS, as .NET's client has it.
const WORDS_TLS_PORT: u16 = 6380;
/// Databases are numbered below this; a server has 16 unless it was told.
const DATABASES_MAX: u32 = 65_536;

const FORMS: &str = "takes redis://user:password@host:6379/0 (rediss:// with TLS, redis-cluster://a,b, redis-sentinel://a,b/master) \
                     or host:6379,password=…,ssl=true";

/// Words of .NET that mean nothing here, and why.
const ELSEWHERE: [(&str, &str); 18] = [
    ("connecttimeout", "a broker has time limits of its own"),
    ("synctimeout", "a request waits for 50 ms at most"),
    ("asynctimeout", "a request waits for 50 ms at most"),
    ("responsetimeout", "a request waits for 50 ms at most"),
    ("connectretry", "a broker connects again by itself"),
    ("reconnectretrypolicy", "a broker connects again by itself"),
    ("keepalive", "the server is asked every other second"),
    ("configcheckseconds", "the server is asked every other second"),
    ("name", "connections need no name"),
    ("clientname", "connections need no name"),
    ("channelprefix", "channels and keys bear the database's own mark"),
    ("sslhost", "name the host as its certificate does"),
    ("sslprotocols", "TLS 1.2 and 1.3 are spoken"),
    ("allowadmin", "nothing here needs it"),
    ("protocol", "RESP 3 is spoken"),
    ("defaultversion", "the server is asked for its version"),
    ("version", "the server is asked for its version"),
    ("tiebreaker", "only a Sentinel or a Cluster says which server is the master"),
];

/// How the servers that are named belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisKind {
    /// There is one.
    Single,
    /// Any of them tells the others of its Cluster.
    Cluster,
    /// Sentinels, which know where the master of this name is.
    Sentinel(String),
}

/// A Redis, and how to log in to it.
#[derive(Clone)]
pub struct RedisUrl {
    /// Hosts and ports, one at least.
    pub servers: Vec<(String, u16)>,
    /// What they are.
    pub kind: RedisKind,
    /// Whether they speak TLS.
    pub tls: bool,
    /// Whom to log in as; none: the default user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: u32,
}

/// Without user and password.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RedisKind::Single => "",
            RedisKind::Cluster => "-cluster",
            RedisKind::Sentinel(_) => "-sentinel",
        };
        write!(f, "{}{kind}://", if self.tls { "rediss" } else { "redis" })?;
        for (nth, (host, port)) in self.servers.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            if host.contains(':') { write!(f, "{comma}[{host}]:{port}")? } else { write!(f, "{comma}{host}:{port}")? }
        }
        match &self.kind {
            RedisKind::Single => write!(f, "/{}", self.database),
            RedisKind::Cluster => Ok(()),
            RedisKind::Sentinel(master) => write!(f, "/{master}/{}", self.database),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    /// The faults name no value: it may be a password.
    fn from_str(text: &str) -> Result<RedisUrl, String> {
        let text = text.trim();
        match text.split_once("://") {
            Some((scheme, rest)) => from_address(scheme, rest),
            None => from_words(text),
        }
    }
}

fn from_address(scheme: &str, rest: &str) -> Result<RedisUrl, String> {
    let (base, kind) = scheme.split_once(['-', '+']).unwrap_or((scheme, ""));
    let tls = match base {
        "redis" => false,
        "rediss" => true,
        _ => return Err(FORMS.to_owned()),
    };
    if rest.contains(['?', '#']) {
        return Err(
            "has a '?' or '#': an address of Redis takes no parameters (in a password they are %3F and %23)".to_owned()
        );
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let port = if kind == "sentinel" { SENTINEL_PORT } else { PORT };
    let servers = hosts.split(',').map(|host| server(host, port)).collect::<Result<Vec<_>, _>>()?;
    let path = path.trim_end_matches('/');
    let (kind, database) = match kind {
        "" if servers.len() > 1 => {
            return Err(
                "names several hosts: redis-cluster:// is for a Cluster, redis-sentinel:// for Sentinels".to_owned()
            );
        }
        "" => (RedisKind::Single, path),
        "cluster" => (RedisKind::Cluster, path),
        "sentinel" => {
            let (master, database) = path.split_once('/').unwrap_or((path, ""));
            (RedisKind::Sentinel(decoded(master)?), database)
        }
        _ => return Err(FORMS.to_owned()),
    };
    let given = |text: &str| if text.is_empty() { Ok(None) } else { decoded(text).map(Some) };
    let password = given(password)?.map(Secret::new);
    complete(RedisUrl { servers, kind, tls, user: given(user)?, password, database: number(database)? })
}

/// `host:port,word=value,…`: no value may hold a comma.
fn from_words(text: &str) -> Result<RedisUrl, String> {
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut found: Vec<(&'static str, &str)> = Vec::new();
    for part in parts() {
        let Some((word, value)) = part.split_once('=') else { continue };
        let (word, value) = (word.trim(), value.trim());
        let folded = word.to_lowercase();
        if let Some((_, why)) = ELSEWHERE.iter().find(|(known, _)| *known == folded) {
            return Err(format!("has '{word}', which means nothing here: {why}; leave it out"));
        }
        let meaning = match folded.as_str() {
            "password" => "password",
            "user" => "user",
            "ssl" => "ssl",
            "defaultdatabase" => "defaultDatabase",
            "servicename" => "serviceName",
            "abortconnect" if value.eq_ignore_ascii_case("false") => continue,
            "abortconnect" => {
                return Err("has an abortConnect other than false: a broker starts without its Redis, too".to_owned());
            }
            // What looks like no word, or stands behind a password, may be a piece of that.
            _ if found.iter().any(|(known, _)| *known == "password") => {
                return Err(format!(
                    "has a word behind its password that is not known here (a comma ends a password: give an address such as \
                     redis://:password@host:6379, with %2C for it): it {FORMS}"
                ));
            }
            word if word.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                return Err(format!("has '{word}', which is not known here"));
            }
            _ => return Err(format!("has a word that is not known here: it {FORMS}")),
        };
        if found.iter().any(|(known, _)| *known == meaning) {
            return Err(format!("has {meaning} twice"));
        }
        found.push((meaning, value));
    }
    let get = |name: &str| found.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let tls = match get("ssl").unwrap_or("false").to_lowercase().as_str() {
        "true" => true,
        "false" => false,
        _ => return Err("has an ssl other than true and false".to_owned()),
    };
    let master = get("serviceName").filter(|name| !name.is_empty()).map(str::to_owned);
    let port = match (&master, tls) {
        (Some(_), _) => SENTINEL_PORT,
        (None, true) => WORDS_TLS_PORT,
        (None, false) => PORT,
    };
    let hosts = parts().filter(|part| !part.contains('='));
    let servers = hosts.map(|host| server(host, port)).collect::<Result<Vec<_>, _>>()?;
    let kind = match master {
        Some(master) => RedisKind::Sentinel(master),
        // As .NET's client finds out by itself; one that is none says so.
        None if servers.len() > 1 => RedisKind::Cluster,
        None => RedisKind::Single,
    };
    let text = |name: &str| get(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let (user, password) = (text("user"), text("password").map(Secret::new));
    complete(RedisUrl { servers, kind, tls, user, password, database: number(get("defaultDatabase").unwrap_or(""))? })
}

fn complete(url: RedisUrl) -> Result<RedisUrl, String> {
    if url.servers.is_empty() {
        return Err(format!("names no host: it {FORMS}"));
    }
    if url.kind == RedisKind::Sentinel(String::new()) {
        return Err("names no master: redis-sentinel://a,b/master".to_owned());
    }
    if url.kind == RedisKind::Cluster && url.database != 0 {
        return Err("names a database, but a Cluster has 0 alone".to_owned());
    }
    if url.user.is_some() && url.password.is_none() {
        return Err("names a user and no password".to_owned());
    }
    Ok(url)
}

fn server(text: &str, default: u16) -> Result<(String, u16), String> {
    let wrong = || format!("has something that is no host: it {FORMS}");
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, rest)) => (v6, rest.strip_prefix(':').unwrap_or(rest)),
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if host.is_empty() {
        return Err(format!("names no host: it {FORMS}"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_v6 = text.starts_with('[') && host.parse::<std::net::Ipv6Addr>().is_ok();
    if !is_v6 && !host.bytes().all(plain) {
        return Err(wrong());
    }
    let port = if port.is_empty() { default } else { port.parse().map_err(|_| wrong())? };
    Ok((host.to_owned(), port))
}

fn number(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let number = text.parse::<u32>().ok().filter(|number| *number < DATABASES_MAX);
    number.ok_or_else(|| {
        "names a database that is no number: redis://host:6379/0 (a '/' in a password is %2F)".to_owned()
    })
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| "is no text once it is decoded".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RedisUrl {
        text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"))
    }

    fn login(url: &RedisUrl) -> (Option<&str>, Option<&str>) {
        (url.user.as_deref(), url.password.as_ref().map(Secret::expose))
    }

    #[test]
    fn every_way_to_write_it_names_hosts_login_and_database() {
        let cases = [
            ("redis://h", "redis://h:6379/0", (None, None)),
            ("redis://h:1/2", "redis://h:1/2", (None, None)),
            ("redis://:p%40%2Fw@h/", "redis://h:6379/0", (None, Some("p@/w"))),
            ("rediss://u:p@h:1/2", "rediss://h:1/2", (Some("u"), Some("p"))),
            ("redis://[::1]:7", "redis://[::1]:7/0", (None, None)),
            ("redis-cluster://:p@a:1,b:2,c", "redis-cluster://a:1,b:2,c:6379", (None, Some("p"))),
            ("redis+cluster://a", "redis-cluster://a:6379", (None, None)),
            ("rediss+cluster://a,b", "rediss-cluster://a:6379,b:6379", (None, None)),
            ("redis-sentinel://u:p@a,b:2/main/3", "redis-sentinel://a:26379,b:2/main/3", (Some("u"), Some("p"))),
            ("rediss-sentinel://a/main", "rediss-sentinel://a:26379/main/0", (None, None)),
            ("redis:6379", "redis://redis:6379/0", (None, None)),
            ("localhost", "redis://localhost:6379/0", (None, None)),
            ("redis:6379,password=a=b@c,abortConnect=false", "redis://redis:6379/0", (None, Some("a=b@c"))),
            ("h, ssl=True, User=u, password=p, defaultDatabase=1", "rediss://h:6380/1", (Some("u"), Some("p"))),
            ("a:1,b:2,password=p", "redis-cluster://a:1,b:2", (None, Some("p"))),
            ("a,b,serviceName=main", "redis-sentinel://a:26379,b:26379/main/0", (None, None)),
        ];
        for (text, shown, wanted) in cases {
            let url = parsed(text);
            assert_eq!((url.to_string(), login(&url)), (shown.to_owned(), wanted), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_no_password_is_shown() {
        let cases = [
            ("", "names no host"),
            ("redis://", "names no host"),
            ("password=hunter2", "names no host"),
            ("http://hunter2", "takes redis://"),
            ("redis-ring://hunter2", "takes redis://"),
            ("redis://:hunter2@a,b", "redis-cluster://"),
            ("redis://:hun/ter2@h", "no host"),
            ("redis://h/hunter2", "is no number"),
            ("redis://h?password=hunter2", "takes no parameters"),
            ("redis://hunter2@h", "no password"),
            ("redis-sentinel://a,b", "names no master"),
            ("redis-cluster://a/1", "a Cluster has 0 alone"),
            ("h:port,password=hunter2", "no host"),
            ("h,password=hunter2,hun ter2", "no host"),
            ("h,password=hunter2,h#nter=2", "a word behind its password"),
            ("h,password=a,hunter2=x", "a comma ends a password"),
            ("h,warp=9,password=hunter2", "'warp'"),
            ("h,password=a,password=hunter2", "twice"),
            ("h,syncTimeout=5000", "50 ms"),
            ("h,abortConnect=true", "starts without its Redis"),
            ("h,ssl=maybe", "other than true and false"),
            ("h,allowAdmin=true", "leave it out"),
            ("h,defaultDatabase=x", "no number"),
        ];
        for (text, says) in cases {
            let fault = text.parse::<RedisUrl>().unwrap_err();
            assert!(fault.contains(says) && !fault.contains("hunter2") && !fault.contains("ter2"), "{text}: {fault}");
        }
        let url = parsed("redis://u:hunter2@h");
        assert!(!format!("{url:?} {url}").contains("hunter2"));
    }
}
