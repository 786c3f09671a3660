//! The names of the deployment guide: its environment variables and its `appsettings.json`, turned into settings.
//! Invariant: each name of the guide either becomes a setting, a warning or a refusal; none is swallowed. Never accepts a
//! name that the guide does not have.

use std::net::{Ipv4Addr, SocketAddr};

use figment::value::{Dict, Value};
use url::Url;

use super::keys::{self, near};

/// What a name of the guide means here.
#[derive(Clone, Copy)]
enum Meaning {
    /// This setting, as written.
    Setting(&'static str),
    /// This setting, once it is translated.
    Translated(&'static str, fn(&str) -> Result<Value, String>),
    /// OTLP's endpoint, from the collector port of Jaeger.
    Jaeger,
    /// Addresses, of which one is listened on.
    Urls,
}

/// The guide's names, `:` between section and key as .NET has it.
const NAMES: &[(&str, Meaning)] = &[
    ("ConnectionStrings:PostgreSQL", Meaning::Setting("postgres.url")),
    ("ConnectionStrings:Redis", Meaning::Setting("redis.url")),
    ("Messaging:BrokerPort", Meaning::Setting("messaging.broker_port")),
    ("Messaging:DefaultDeliveryGuarantee", Meaning::Setting("messaging.default_delivery_guarantee")),
    ("Messaging:DefaultRetentionPeriod", Meaning::Setting("messaging.default_retention_period")),
    ("Messaging:MaxMessageSize", Meaning::Setting("messaging.max_message_size")),
    ("JWT:Secret", Meaning::Setting("jwt.secret")),
    ("JWT:Issuer", Meaning::Setting("jwt.issuer")),
    ("JWT:Audience", Meaning::Setting("jwt.audience")),
    ("JWT:ExpirationMinutes", Meaning::Translated("jwt.expiration", minutes)),
    ("RateLimiting:Publish", Meaning::Setting("rate_limiting.publish")),
    ("RateLimiting:Consume", Meaning::Setting("rate_limiting.consume")),
    ("RateLimiting:Topics", Meaning::Setting("rate_limiting.topics")),
    ("OpenTelemetry:JaegerEndpoint", Meaning::Jaeger),
    ("OpenTelemetry:SamplingRate", Meaning::Setting("telemetry.sampling_rate")),
    ("Logging:LogLevel:Default", Meaning::Translated("telemetry.log_level", log_level)),
    ("Logging:LogLevel:HotSwap.Distributed", Meaning::Translated("telemetry.log_level", own_log_level)),
];

/// Names that stand in the environment alone.
const ENV_NAMES: &[(&str, Meaning)] = &[
    ("JWT_SECRET", Meaning::Setting("jwt.secret")),
    ("ASPNETCORE_URLS", Meaning::Urls),
    ("ASPNETCORE_ENVIRONMENT", Meaning::Translated("profile", environment)),
];

/// A name of the guide, understood.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Mapped {
    /// The setting it becomes.
    pub(super) setting: Option<(&'static str, Value)>,
    /// What to tell the operator.
    pub(super) warning: Option<String>,
}

/// Reads an environment variable. `None`: it isn't one of the guide's.
pub(super) fn from_env(name: &str, text: &str) -> Option<Result<Mapped, String>> {
    let path = name.replace("__", ":");
    let meaning = lookup(ENV_NAMES, name).or_else(|| lookup(NAMES, &path))?;
    Some(read(name, meaning, text))
}

/// For a variable in a section of the guide that isn't in the guide: the names it may stand for.
pub(super) fn near_env(name: &str) -> Option<Vec<String>> {
    let path = name.replace("__", ":");
    let section = path.split(':').next().unwrap_or_default();
    let ours = ["Messaging", "JWT", "RateLimiting", "OpenTelemetry", "ConnectionStrings"];
    if !path.contains(':') || !ours.iter().any(|own| own.eq_ignore_ascii_case(section)) {
        return None;
    }
    Some(near(&path, NAMES.iter().map(|(known, _)| *known)).iter().map(|known| known.replace(':', "__")).collect())
}

/// Whether a key at the top of a JSON file opens a section of the guide.
pub(super) fn is_section(key: &str) -> bool {
    NAMES.iter().any(|(name, _)| name.split(':').next() == Some(key))
}

/// Reads a section of `appsettings.json`: one result per value in it.
pub(super) fn from_json(section: &str, values: &Value) -> Vec<(String, Result<Mapped, String>)> {
    let mut found = Vec::new();
    flatten(section, values, &mut |path, value| {
        let result = match lookup(NAMES, path) {
            Some(meaning) => scalar(value).and_then(|text| read(path, meaning, &text)),
            // Other categories of .NET's logging name its own libraries.
            None if path.starts_with("Logging:LogLevel:") => Ok(Mapped {
                warning: Some(format!("{path} names a part of .NET and means nothing here")),
                ..Mapped::default()
            }),
            None => {
                let near = near(path, NAMES.iter().map(|(known, _)| *known));
                let hint =
                    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) };
                Err(format!("is not a setting{hint}"))
            }
        };
        found.push((path.to_owned(), result));
    });
    join_log_levels(&mut found);
    found
}

/// The guide gives one level to everything and another to the application: one list of directives here.
fn join_log_levels(found: &mut [(String, Result<Mapped, String>)]) {
    let level = |path: &str, found: &[(String, Result<Mapped, String>)]| {
        let (_, result) = found.iter().find(|(known, _)| known.eq_ignore_ascii_case(path))?;
        let (_, value) = result.as_ref().ok()?.setting.as_ref()?;
        value.as_str().map(str::to_owned)
    };
    let Some(rest) = level("Logging:LogLevel:Default", found) else { return };
    for (path, result) in found {
        if path.eq_ignore_ascii_case("Logging:LogLevel:HotSwap.Distributed")
            && let Ok(Mapped { setting: Some((_, value)), .. }) = result
        {
            *value = Value::from(value.as_str().unwrap_or_default().replace(OTHERS, &format!(",{rest}")));
        }
    }
}

fn lookup(table: &[(&str, Meaning)], name: &str) -> Option<Meaning> {
    table.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, meaning)| *meaning)
}

fn flatten(path: &str, value: &Value, found: &mut dyn FnMut(&str, &Value)) {
    let Value::Dict(_, entries) = value else { return found(path, value) };
    for (key, value) in entries as &Dict {
        flatten(&format!("{path}:{key}"), value, found);
    }
}

fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::String(_, text) => Ok(text.clone()),
        Value::Bool(_, flag) => Ok(flag.to_string()),
        Value::Num(_, number) => number
            .to_u128()
            .map(|whole| whole.to_string())
            .or_else(|| number.to_i128().map(|whole| whole.to_string()))
            .or_else(|| number.to_f64().map(|real| real.to_string()))
            .ok_or_else(|| "is no number that can be read".to_owned()),
        _ => Err("takes a text or a number".to_owned()),
    }
}

fn read(name: &str, meaning: Meaning, text: &str) -> Result<Mapped, String> {
    let setting = |path: &'static str, value: Value| Mapped { setting: Some((path, value)), warning: None };
    match meaning {
        // An empty text is how compose files say "not set".
        _ if text.is_empty() => Ok(Mapped::default()),
        Meaning::Setting(path) => {
            let key = keys::find(path).expect("the table names settings that exist");
            Ok(setting(path, key.kind.parse(text)?))
        }
        Meaning::Translated(path, translate) => Ok(setting(path, translate(text)?)),
        Meaning::Urls => {
            let (address, left_out) = listen_url(text)?;
            let warning = (!left_out.is_empty()).then(|| {
                format!(
                    "{name}: nothing listens on {}: TLS is ended in front of Sluice (an ingress, a load balancer, a reverse proxy)",
                    left_out.join(" and ")
                )
            });
            Ok(Mapped { setting: Some(("listen", Value::from(address.to_string()))), warning })
        }
        Meaning::Jaeger => {
            let (endpoint, changed) = otlp_endpoint(text)?;
            let warning = changed.then(|| {
                format!(
                    "{name}: Jaeger's own collector port is not spoken; traces go to {endpoint} by OTLP over HTTP, \
                         which Jaeger 1.35 and later accept"
                )
            });
            Ok(Mapped { setting: Some(("telemetry.otlp_endpoint", Value::from(endpoint))), warning })
        }
    }
}

fn minutes(text: &str) -> Result<Value, String> {
    match text.parse::<u32>() {
        Ok(minutes) if minutes > 0 => Ok(Value::from(format!("PT{minutes}M"))),
        _ => Err(format!("takes a whole number of minutes, not '{text}'")),
    }
}

/// .NET's words for a level, in ours.
fn level_word(text: &str) -> Result<&'static str, String> {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Ok("trace"),
        "debug" => Ok("debug"),
        "information" => Ok("info"),
        "warning" => Ok("warn"),
        "error" | "critical" => Ok("error"),
        "none" => Ok("off"),
        _ => Err(format!("takes Trace, Debug, Information, Warning, Error, Critical or None, not '{text}'")),
    }
}

fn log_level(text: &str) -> Result<Value, String> {
    level_word(text).map(Value::from)
}

/// The level of everything else when only the application's is given.
const OTHERS: &str = ",info";

/// The guide's name for the application itself.
fn own_log_level(text: &str) -> Result<Value, String> {
    level_word(text).map(|level| Value::from(format!("sluice={level}{OTHERS}")))
}

fn environment(text: &str) -> Result<Value, String> {
    match text.to_ascii_lowercase().as_str() {
        "development" => Ok(Value::from("development")),
        // Staging is run like production, or it proves nothing.
        "production" | "staging" => Ok(Value::from("production")),
        _ => Err(format!("takes Development, Staging or Production, not '{text}'")),
    }
}

/// `http://+:5000`: .NET's wildcard hosts, and exactly one address. Those of https beside it are left out.
fn listen_url(text: &str) -> Result<(SocketAddr, Vec<&str>), String> {
    let urls = text.split(';').map(str::trim).filter(|url| !url.is_empty());
    let (secure, urls): (Vec<&str>, Vec<&str>) = urls.partition(|url| url.to_ascii_lowercase().starts_with("https:"));
    if urls.is_empty() && !secure.is_empty() {
        return Err(
            "asks for https alone, but TLS is ended in front of Sluice (an ingress, a load balancer, a reverse proxy); \
                    give an http address, such as http://+:5000"
                .to_owned(),
        );
    }
    let [url] = urls.as_slice() else {
        return Err("takes one address; another port of it is messaging.broker_port".to_owned());
    };
    let host_and_port = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("takes an address such as http://+:5000, not '{url}'"))?
        .trim_end_matches('/');
    let with_port = match host_and_port.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host_and_port.to_owned(),
        _ => format!("{host_and_port}:80"),
    };
    listen_address(&with_port).map(|address| (address, secure))
}

/// Reads `HOST:PORT`, where the host is an IP address, `localhost`, or a wildcard.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let wrong = || format!("takes HOST:PORT such as 127.0.0.1:5000, not '{text}'");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    match host {
        "+" | "*" | "" => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        "localhost" => Ok((Ipv4Addr::LOCALHOST, port).into()),
        _ => Err(wrong()),
    }
}

/// `http://jaeger:14268/api/traces` is `http://jaeger:4318` in OTLP. Returns whether anything changed.
fn otlp_endpoint(text: &str) -> Result<(String, bool), String> {
    let mut url = Url::parse(text).map_err(|_| format!("takes a URL such as http://jaeger:4318, not '{text}'"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("takes a URL such as http://jaeger:4318, not '{text}'"));
    }
    let thrift = url.port() == Some(14_268) || url.path().trim_end_matches('/') == "/api/traces";
    if thrift {
        url.set_path("");
        if url.port() == Some(14_268) {
            // Only a URL without a host refuses a port, and that was ruled out above.
            let _ = url.set_port(Some(4318));
        }
    }
    Ok((url.as_str().trim_end_matches('/').to_owned(), thrift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, text: &str) -> (&'static str, Value) {
        from_env(name, text).expect("the guide's").expect("accepted").setting.expect("a setting")
    }

    #[test]
    fn the_guides_variables_become_settings() {
        for (name, text, path, value) in [
            ("Messaging__MaxMessageSize", "1048576", "messaging.max_message_size", Value::from(1_048_576_u64)),
            ("Messaging__BrokerPort", "5050", "messaging.broker_port", Value::from(5050_u64)),
            (
                "Messaging__DefaultDeliveryGuarantee",
                "AtLeastOnce",
                "messaging.default_delivery_guarantee",
                "AtLeastOnce".into(),
            ),
            ("Messaging__DefaultRetentionPeriod", "P7D", "messaging.default_retention_period", "P7D".into()),
            ("ConnectionStrings__Redis", "redis:6379,password=p", "redis.url", "redis:6379,password=p".into()),
            ("JWT__Secret", "123", "jwt.secret", "123".into()),
            ("JWT_SECRET", "abc", "jwt.secret", "abc".into()),
            ("jwt__issuer", "https://messaging.example.com", "jwt.issuer", "https://messaging.example.com".into()),
            ("JWT__ExpirationMinutes", "60", "jwt.expiration", "PT60M".into()),
            ("RateLimiting__Publish", "100", "rate_limiting.publish", Value::from(100_u64)),
            ("OpenTelemetry__SamplingRate", "0.1", "telemetry.sampling_rate", Value::from(0.1)),
            ("ASPNETCORE_ENVIRONMENT", "Production", "profile", "production".into()),
            ("ASPNETCORE_URLS", "http://+:5000", "listen", "0.0.0.0:5000".into()),
            ("ASPNETCORE_URLS", "http://localhost:5000/", "listen", "127.0.0.1:5000".into()),
            ("ASPNETCORE_URLS", "http://*", "listen", "0.0.0.0:80".into()),
            ("ASPNETCORE_URLS", "http://[::]:5000", "listen", "[::]:5000".into()),
            ("Logging__LogLevel__Default", "Information", "telemetry.log_level", "info".into()),
        ] {
            assert_eq!(set(name, text), (path, value), "{name}");
        }
        assert_eq!(from_env("PATH", "/bin"), None);
        assert_eq!(from_env("Messaging__MaxMessageSize", ""), Some(Ok(Mapped::default())));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_a_way_out() {
        for (name, text, says) in [
            ("ASPNETCORE_URLS", "https://+:5001", "TLS is ended in front"),
            ("ASPNETCORE_URLS", "http://+:5000;http://+:5050", "one address"),
            ("ASPNETCORE_URLS", "http://example.com:5000", "HOST:PORT"),
            ("ASPNETCORE_ENVIRONMENT", "Moon", "Production"),
            ("JWT__ExpirationMinutes", "1.5", "minutes"),
            ("OpenTelemetry__JaegerEndpoint", "jaeger:14268", "URL"),
        ] {
            let error = from_env(name, text).expect("the guide's").expect_err("refused");
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    #[test]
    fn jaegers_port_becomes_otlps_with_a_warning() {
        let mapped = from_env("OpenTelemetry__JaegerEndpoint", "http://jaeger:14268/api/traces")
            .expect("the guide's")
            .expect("accepted");
        assert_eq!(mapped.setting, Some(("telemetry.otlp_endpoint", Value::from("http://jaeger:4318"))));
        assert!(mapped.warning.expect("warned").contains("OTLP"));
        let plain =
            from_env("OpenTelemetry__JaegerEndpoint", "http://otel:4318").expect("the guide's").expect("accepted");
        assert_eq!(
            (plain.setting, plain.warning),
            (Some(("telemetry.otlp_endpoint", Value::from("http://otel:4318"))), None)
        );
    }

    #[test]
    fn an_address_of_https_is_warned_of() {
        let urls = from_env("ASPNETCORE_URLS", "http://+:5000;https://+:5001").expect("the guide's").expect("accepted");
        assert_eq!(urls.setting, Some(("listen", "0.0.0.0:5000".into())));
        assert!(urls.warning.expect("warned").contains("nothing listens on https://+:5001"));
    }

    #[test]
    fn a_slip_in_the_guides_sections_is_noticed() {
        assert_eq!(near_env("Messaging__MaxMesageSize"), Some(vec!["Messaging__MaxMessageSize".to_owned()]));
        assert_eq!(near_env("HOME"), None);
        assert_eq!(near_env("Other__Key"), None);
    }
}
