//! Where a PostgreSQL is, in both ways that people write it: as an address (`postgres://user:password@host:5432/database`), or
//! as the deployment guide's words (`Host=…;Database=…;Username=…;Password=…`). Invariant: a value that exists names a host, a
//! database and a user, and nothing in it is unknown to what connects; its password is shown nowhere.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;
use url::Url;

/// What .NET's words mean, in lower case and without spaces, by the name that the address has for it.
const WORDS: [(&str, &str); 16] = [
    ("host", "host"),
    ("server", "host"),
    ("port", "port"),
    ("database", "database"),
    ("db", "database"),
    ("username", "user"),
    ("userid", "user"),
    ("user", "user"),
    ("uid", "user"),
    ("password", "password"),
    ("pwd", "password"),
    ("sslmode", "sslmode"),
    ("rootcertificate", "sslrootcert"),
    ("sslcertificate", "sslcert"),
    ("sslkey", "sslkey"),
    ("applicationname", "application_name"),
];

/// Words of .NET that mean nothing here, and what to do instead.
const ELSEWHERE: [(&str, &str); 4] = [
    ("maximumpoolsize", "postgres.connections_max says how many connections there are"),
    ("minimumpoolsize", "connections are made when they are needed"),
    ("pooling", "connections are always kept"),
    ("timeout", "a broker waits for 5 s"),
];

/// What an address may have behind its `?`.
const PARAMETERS: [&str; 6] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "application_name", "host"];

/// What stands for itself in an address.
const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What the server shows as the name of who is connected, unless another one is given.
const APPLICATION: &str = "sluice";

/// A PostgreSQL database, and how to log in to it.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(Url);

impl PostgresUrl {
    /// For sqlx's own pools of PostgreSQL.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.0.as_str().parse().expect("it was parsed when this was made")
    }

    /// The address, with its password.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }
}

/// Without user and password.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = self.0.query_pairs().find(|(name, _)| name == "host").map(|(_, path)| path.into_owned());
        let host = socket.or_else(|| self.0.host_str().map(str::to_owned)).unwrap_or_default();
        write!(f, "{host}:{}{}", self.0.port().unwrap_or(5432), self.0.path())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

impl FromStr for PostgresUrl {
    type Err = String;

    /// The faults name no value: it may be a password.
    fn from_str(text: &str) -> Result<PostgresUrl, String> {
        let text = text.trim();
        let mut url = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            Url::parse(text).map_err(|error| format!("is not an address of PostgreSQL: {error}"))?
        } else {
            from_words(text)?
        };
        let known: Vec<String> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        if let Some(unknown) = known.iter().find(|name| !PARAMETERS.contains(&name.as_str())) {
            return Err(format!("has the parameter '{unknown}'; known are {}", PARAMETERS.join(", ")));
        }
        let local = known.iter().any(|name| name == "host");
        for (missing, what) in [
            (url.host_str().is_none_or(str::is_empty) && !local, "host"),
            (url.path().trim_matches('/').is_empty(), "database"),
            (url.username().is_empty(), "user"),
        ] {
            if missing {
                return Err(lacks(what));
            }
        }
        if !known.iter().any(|name| name == "application_name") {
            url.query_pairs_mut().append_pair("application_name", APPLICATION);
        }
        PgConnectOptions::from_str(url.as_str())
            .map_err(|error| format!("is not an address of PostgreSQL: {error}"))?;
        Ok(PostgresUrl(url))
    }
}

fn lacks(what: &str) -> String {
    format!("names no {what}: postgres://user:password@host:5432/database")
}

/// `Word=value;…`, values in quotes where they hold `;` or quotes.
fn from_words(text: &str) -> Result<Url, String> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    let mut rest = text;
    while !rest.trim_matches([' ', ';']).is_empty() {
        let (word, after) =
            rest.split_once('=').ok_or("takes postgres://… or Host=…;Database=…;Username=…;Password=…")?;
        let word = word.trim_matches([' ', ';']);
        let (value, after) = value(after)?;
        rest = after;
        let folded = word.to_lowercase().replace(' ', "");
        if let Some((_, instead)) = ELSEWHERE.iter().find(|(known, _)| *known == folded) {
            return Err(format!("has '{word}', which means nothing here: {instead}; leave it out"));
        }
        if folded == "trustservercertificate" {
            // As Require does by itself, in .NET too since Npgsql 8.
            if value.eq_ignore_ascii_case("true") {
                continue;
            }
            return Err(
                "has a Trust Server Certificate other than true: SSL Mode=VerifyFull or VerifyCA checks it".to_owned()
            );
        }
        let Some((_, meaning)) = WORDS.iter().find(|(known, _)| *known == folded) else {
            return Err(format!("has '{word}', which is not known here"));
        };
        if found.iter().any(|(known, _)| known == meaning) {
            return Err(format!("names the {meaning} twice"));
        }
        found.push((meaning, value));
    }
    let get = |name: &str| found.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
    let escaped = |name: &str| utf8_percent_encode(get(name), &PLAIN).to_string();
    let host = get("host");
    if host.contains(',') {
        return Err("names several hosts: name one, or a proxy before them".to_owned());
    }
    // A path is the folder of a Unix socket; an IPv6 address stands in brackets.
    let (authority, socket) = match host {
        "" => return Err(lacks("host")),
        path if path.starts_with('/') => ("localhost".to_owned(), Some(path)),
        v6 if v6.contains(':') && !v6.starts_with('[') => (format!("[{v6}]"), None),
        host => (host.to_owned(), None),
    };
    let port = if get("port").is_empty() { "5432" } else { get("port") };
    let text =
        format!("postgres://{}:{}@{authority}:{port}/{}", escaped("user"), escaped("password"), escaped("database"));
    let mut url = Url::parse(&text).map_err(|error| format!("is not where a PostgreSQL can be: {error}"))?;
    let parameters = ["sslrootcert", "sslcert", "sslkey", "application_name"].map(|name| (name, get(name).to_owned()));
    let mode = ("sslmode", ssl_mode(get("sslmode"))?.to_owned());
    for (name, value) in parameters.into_iter().chain([mode, ("host", socket.unwrap_or_default().to_owned())]) {
        if !value.is_empty() {
            url.query_pairs_mut().append_pair(name, &value);
        }
    }
    Ok(url)
}

/// A value and what follows it.
fn value(text: &str) -> Result<(String, &str), String> {
    let text = text.trim_start();
    let Some(quote) = text.chars().next().filter(|first| matches!(first, '\'' | '"')) else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return Ok((value.trim_end().to_owned(), rest));
    };
    let mut value = String::new();
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        if letter != quote {
            value.push(letter);
        } else if letters.peek().is_some_and(|(_, next)| *next == quote) {
            // Twice within quotes is the quote itself.
            value.push(quote);
            letters.next();
        } else {
            return Ok((value, &text[at + 1..]));
        }
    }
    Err("has a quote that does not end".to_owned())
}

/// .NET's names of the ways to use TLS, as the address names them.
fn ssl_mode(word: &str) -> Result<&'static str, String> {
    Ok(match word.to_lowercase().replace(['-', ' '], "").as_str() {
        "" => "",
        "disable" => "disable",
        "allow" => "allow",
        "prefer" => "prefer",
        "require" => "require",
        "verifyca" => "verify-ca",
        "verifyfull" => "verify-full",
        _ => return Err("has an SSL Mode other than Disable, Allow, Prefer, Require, VerifyCA, VerifyFull".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> PostgresUrl {
        text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"))
    }

    #[test]
    fn the_guides_words_and_an_address_mean_the_same() {
        let address = parsed("postgres://messaging_user:dev%2Fpass%40word@postgres:5432/messaging");
        for words in [
            "Host=postgres;Database=messaging;Username=messaging_user;Password=dev/pass@word",
            "host = postgres ; DATABASE=messaging;User Id=messaging_user; pwd='dev/pass@word';Port=5432;",
            "Server=postgres;DB=messaging;UID=messaging_user;Password=\"dev/pass@word\";Trust Server Certificate=true",
        ] {
            assert_eq!(parsed(words).expose(), address.expose(), "{words}");
        }
        assert_eq!(address.to_string(), "postgres:5432/messaging");
        let options = address.options();
        assert_eq!((options.get_host(), options.get_port()), ("postgres", 5432));
        assert_eq!((options.get_username(), options.get_database()), ("messaging_user", Some("messaging")));
        assert_eq!(options.get_application_name(), Some("sluice"));
    }

    #[test]
    fn a_password_may_hold_anything_and_is_not_shown() {
        let words = "Host=h;Database=d;Username=u;Password='a;b=''c\" %@/:?#'";
        let url = parsed(words);
        assert_eq!(Url::parse(url.expose()).unwrap().password(), Some("a%3Bb%3D%27c%22%20%25%40%2F%3A%3F%23"));
        assert!(!format!("{url:?} {url}").contains("%3Bb"), "{url:?}");
        let fault = "Host=h;Database=d;Username=u;Password=hunter2;Warp=9".parse::<PostgresUrl>().unwrap_err();
        assert!(fault.contains("'Warp'") && !fault.contains("hunter2"), "{fault}");
    }

    #[test]
    fn tls_and_sockets_are_said_in_both_ways() {
        let words = parsed("Host=h;Database=d;Username=u;SSL Mode=VerifyFull;Root Certificate=/ca.pem");
        let address = parsed("postgres://u:@h:5432/d?sslrootcert=/ca.pem&sslmode=verify-full");
        assert_eq!(format!("{:?}", words.options().get_ssl_mode()), format!("{:?}", address.options().get_ssl_mode()));
        let socket = parsed("Host=/var/run/postgresql;Database=d;Username=u");
        assert_eq!(socket.options().get_socket().unwrap().to_str(), Some("/var/run/postgresql"));
        assert_eq!(parsed("Host=::1;Database=d;Username=u").to_string(), "[::1]:5432/d");
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        for (text, says) in [
            ("", "names no host"),
            ("postgres", "takes postgres://"),
            ("Host=h;Username=u", "names no database"),
            ("Host=h;Database=d", "names no user"),
            ("Host=a,b;Database=d;Username=u", "several hosts"),
            ("Host=h;Host=i;Database=d;Username=u", "twice"),
            ("Host=h;Database=d;Username=u;SSL Mode=Maybe", "SSL Mode"),
            ("Host=h;Database=d;Username=u;Maximum Pool Size=9", "postgres.connections_max"),
            ("Host=h;Database=d;Username=u;Trust Server Certificate=false", "VerifyFull"),
            ("Host=h;Database=d;Username=u;Password='x", "does not end"),
            ("postgres://u@h/d?warp=1", "'warp'"),
            ("postgres://u@h", "names no database"),
            ("postgres://u@h:port/d", "is not an address"),
        ] {
            let fault = text.parse::<PostgresUrl>().unwrap_err();
            assert!(fault.contains(says), "{text}: {fault}");
        }
    }
}
