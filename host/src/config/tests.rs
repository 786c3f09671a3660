//! How files, environment and flags become a configuration.

use std::fs;

use super::*;

/// A development configuration with nothing said.
pub(crate) fn development() -> Config {
    load(&[], &[]).expect("defaults are valid").config
}

/// Loads in an empty directory. `flags` are pairs of setting and value of the four flags.
fn load(env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().expect("a directory");
    load_in(directory.path(), env, flags)
}

fn load_in(directory: &Path, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let mut given = Flags::default();
    for (flag, value) in flags {
        match *flag {
            "config" => given.config = Some(directory.join(value)),
            "data-dir" => given.data_dir = Some(value.into()),
            "listen" => given.listen = Some((*value).to_owned()),
            "plugins-dir" => given.plugins_dir = Some(value.into()),
            "profile" if *value == "production" => given.profile = Some(Profile::Production),
            other => panic!("no flag {other}"),
        }
    }
    let env: Vec<(String, String)> = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Config::load_from(&given, &env, directory)
}

fn load_file(name: &str, text: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join(name), text).expect("written");
    load_in(directory.path(), env, &[("config", name)])
}

fn show(loaded: &Loaded, path: &str) -> String {
    (keys::find(path).expect("a setting").show)(&loaded.config)
}

#[test]
fn nothing_said_is_a_development_broker_on_loopback() {
    let config = development();
    assert_eq!(config.profile, Profile::Development);
    assert_eq!(config.listen, "127.0.0.1:5000".parse().expect("an address"));
    assert_eq!(config.data_dir, PathBuf::from("sluice-data"));
    assert!(config.push.allow_http && config.jwt.secret.is_none() && config.rate_limiting.publish.is_none());
    assert_eq!(config.messaging.default_retention_period, Duration::from_secs(7 * 86_400));
}

#[test]
fn later_layers_win_and_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("sluice.toml"), "listen = \"127.0.0.1:1\"\n[messaging]\nmax_message_size = 1\n")
        .expect("written");
    let guide = [("ASPNETCORE_URLS", "http://127.0.0.1:2"), ("Messaging__MaxMessageSize", "2")];
    let own = [guide[0], guide[1], ("SLUICE__LISTEN", "127.0.0.1:3"), ("SLUICE__MESSAGING__MAX_MESSAGE_SIZE", "3")];
    let path = directory.path();
    for (loaded, port, size, origin) in [
        (load_in(path, &[], &[]), 1, "1", "sluice.toml"),
        (load_in(path, &guide, &[]), 2, "2", "ASPNETCORE_URLS"),
        (load_in(path, &own, &[]), 3, "3", "SLUICE__LISTEN"),
        (load_in(path, &own, &[("listen", "127.0.0.1:4")]), 4, "3", "--listen"),
    ] {
        let loaded = loaded.expect("valid");
        assert_eq!((loaded.config.listen.port(), show(&loaded, "messaging.max_message_size")), (port, size.to_owned()));
        assert!(loaded.origins["listen"].ends_with(origin), "{:?}", loaded.origins);
    }
}

#[test]
fn the_data_directorys_own_file_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("data")).expect("made");
    fs::write(directory.path().join("data/sluice.toml"), "node_id = \"a\"").expect("written");
    for (env, flags) in [(vec![("SLUICE__DATA_DIR", "data")], vec![]), (vec![], vec![("data-dir", "data")])] {
        assert_eq!(load_in(directory.path(), &env, &flags).expect("valid").config.node_id, "a");
    }
}

/// Every setting that there is, turned away from its default by its environment variable, in the order of the table.
const TURNED: &[(&str, &str)] = &[
    ("profile", "production"),
    ("data_dir", "/data"),
    ("listen", "127.0.0.1:81"),
    ("node_id", "turned"),
    ("storage", "postgres"),
    ("postgres.url", "postgres://u@h/d"),
    ("postgres.connections_max", "7"),
    ("redis.url", "rediss://u:p@h"),
    ("redis.ca_file", "/ca.pem"),
    ("messaging.broker_port", "5050"),
    ("messaging.default_delivery_guarantee", "ExactlyOnce"),
    ("messaging.default_retention_period", "P3D"),
    ("messaging.max_message_size", "4242"),
    ("messaging.dead_letter_retention", "P4D"),
    ("jwt.secret", "a secret of more than thirty-two bytes"),
    ("jwt.issuer", "i"),
    ("jwt.audience", "a"),
    ("jwt.expiration", "PT5M"),
    ("push.allow_http", "false"),
    ("push.allow_networks", "10.0.0.0/8,fd00::/8"),
    ("push.concurrency_max", "3"),
    ("push.requests_max", "77"),
    ("plugins.dir", "/plugins"),
    ("plugins.workers", "77"),
    ("plugins.instances_per_stage_max", "5"),
    ("plugins.idle_timeout", "PT9S"),
    ("plugins.queue_batches_max", "7"),
    ("plugins.size_max", "4096"),
    ("plugins.versions_max", "8"),
    ("plugins.quotas", "orders. plugins=20 bytes=67108864 share=0.25, billing. share=1"),
    ("plugins.trusted_keys", "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="),
    ("plugins.require_signature", "true"),
    ("plugins.secrets_dir", "/secrets"),
    ("schemas.versions_max", "9"),
    ("schemas.require_registered", "true"),
    ("rate_limiting.publish", "100"),
    ("rate_limiting.consume", "600"),
    ("rate_limiting.topics", "10"),
    ("limits.body_bytes_max", "33554432"),
    ("limits.head_bytes_max", "65536"),
    ("limits.request_timeout", "PT31S"),
    ("limits.connections_max", "11"),
    ("limits.requests_max", "12"),
    ("limits.streams_max", "13"),
    ("limits.topics_max", "14"),
    ("limits.subscriptions_max", "15"),
    ("limits.captured_bytes_max", "65536"),
    ("limits.captured_free_bytes_min", "0"),
    ("limits.shutdown_timeout", "PT26S"),
    ("telemetry.otlp_endpoint", "http://otel:4318"),
    ("telemetry.sampling_rate", "0.25"),
    ("telemetry.log_json", "true"),
    ("telemetry.log_level", "sluice=debug,warn"),
    ("telemetry.public_metrics", "false"),
    ("telemetry.public_docs", "false"),
    ("test_clock_file", "/tmp/clock"),
];

#[test]
fn no_setting_is_read_and_forgotten() {
    assert!(KEYS.iter().map(|key| key.path).eq(TURNED.iter().map(|(path, _)| *path)), "TURNED lists every setting");
    let defaults = load(&[], &[]).expect("valid");
    for (path, value) in TURNED {
        let name = format!("SLUICE__{}", path.to_ascii_uppercase().replace('.', "__"));
        // Production asks for more than its own name.
        let more = [("SLUICE__JWT__SECRET", "a secret of more than thirty-two bytes"), ("SLUICE__DATA_DIR", "/data")];
        let mut env = vec![(name.as_str(), *value)];
        env.extend(more.iter().filter(|_| *path == "profile"));
        let database = [("SLUICE__POSTGRES__URL", "postgres://u@h/d"), more[0]];
        let needs_it = path.starts_with("postgres.") || *path == "storage";
        env.extend(database.iter().filter(|(other, _)| needs_it && *other != name));
        env.extend((*path == "redis.ca_file").then_some(("SLUICE__REDIS__URL", "rediss://h")));
        let loaded = load(&env, &[]).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_ne!(show(&loaded, path), show(&defaults, path), "{path} changes nothing");
        assert_eq!(loaded.origins[path], name);
    }
}

#[test]
fn one_word_switches_the_storage() {
    let database = ("ConnectionStrings__PostgreSQL", "Host=postgres;Database=messaging;Username=u;Password=p");
    let with = |word| load(&[database, ("SLUICE__STORAGE", word), ("SLUICE__JWT__SECRET", "s")], &[]).expect("valid");
    assert!(with("postgres").config.storage.is_some());
    let embedded = with("embedded");
    assert!(embedded.config.storage.is_none());
    assert!(
        embedded.warnings.iter().any(|one| one.contains("postgres.url names is not used")),
        "{:?}",
        embedded.warnings
    );
}

#[test]
fn a_file_takes_every_setting_too() {
    let text: String = TURNED
        .iter()
        .filter(|(path, _)| !["profile", "test_clock_file"].contains(path))
        .map(|(path, value)| match keys::find(path).expect("a setting").kind {
            value::Kind::Flag | value::Kind::Integer(..) | value::Kind::Share => format!("{path} = {value}\n"),
            value::Kind::List => {
                let items: Vec<String> = value.split(',').map(|item| format!("\"{item}\"")).collect();
                format!("{path} = [{}]\n", items.join(", "))
            }
            value::Kind::Quotas => {
                let tables = [
                    "{prefix = \"orders.\", plugins = 20, bytes = 67108864, share = 0.25}",
                    "{prefix = \"billing.\", share = 1}",
                ];
                format!("{path} = [{}]\n", tables.join(", "))
            }
            _ => format!("{path} = \"{value}\"\n"),
        })
        .collect();
    let loaded = load_file("any.toml", &text, &[]).expect("valid");
    let json = serde_json::json!({"listen": "127.0.0.1:81", "messaging": {"max_message_size": 4242}}).to_string();
    assert_eq!(loaded.config.push.allow_networks, ["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(loaded.config.telemetry.sampling_rate, 0.25);
    let quotas = "[orders. plugins=20 bytes=67108864 share=0.25, billing. share=1]";
    assert_eq!(show(&loaded, "plugins.quotas"), quotas);
    assert_eq!(load_file("any.json", &json, &[]).expect("valid").config.messaging.max_message_size, 4242);
}

#[test]
fn faults_name_the_setting_and_the_way_out() {
    let production = [("SLUICE__PROFILE", "production")];
    let rows: &[(&[(&str, &str)], &str)] = &[
        (&[("SLUICE__MESSAGING__MAX_MESAGE_SIZE", "1")], "did you mean messaging.max_message_size?"),
        (&[("SLUICE__LIMITS__MAX_MESSAGE_SIZE", "1")], "did you mean messaging.max_message_size?"),
        (&[("SLUICE__WARP", "1")], "'warp' (from SLUICE__WARP) is not a setting"),
        (&[("SLUICE__MESSAGING", "1")], "'messaging' (from SLUICE__MESSAGING) is not a setting"),
        (&[("SLUICE__PLUGINS__WORKERS", "0")], "SLUICE__PLUGINS__WORKERS takes 1 to 256, not 0"),
        (&[("SLUICE__PLUGINS__QUOTAS", "orders.")], "SLUICE__PLUGINS__QUOTAS limits nothing"),
        (&[("SLUICE__JWT__EXPIRATION", "P1M")], "no fixed length"),
        (&[("SLUICE__LISTEN", "example.com:80")], "listen takes HOST:PORT"),
        (&[("SLUICE__LISTEN", "127.0.0.1:81"), ("Messaging__BrokerPort", "81")], "is 81, the port of listen"),
        (&[("Messaging__BrokerPort", "0")], "Messaging__BrokerPort takes 1 to 65535, not 0"),
        (&[("SLUICE__NODE_ID", "a b")], "node_id takes"),
        (&[("SLUICE__PUSH__ALLOW_NETWORKS", "10.0.0.0/33")], "'10.0.0.0/33' is not a network"),
        (&[("SLUICE__TELEMETRY__LOG_LEVEL", "sluice=loud")], "telemetry.log_level"),
        (&[("SLUICE__TELEMETRY__OTLP_ENDPOINT", "localhost:4317")], "telemetry.otlp_endpoint takes a URL"),
        (&[("SLUICE__LIMITS__BODY_BYTES_MAX", "1048576")], "raise the one or lower the other"),
        (&[("Messaging__MaxMessageSize", "a lot")], "Messaging__MaxMessageSize takes a whole number"),
        (&[("SLUICE__REDIS__CA_FILE", "/ca.pem")], "redis.url does not say where a Redis is"),
        (&[("SLUICE__REDIS__CA_FILE", "/ca.pem"), ("SLUICE__REDIS__URL", "redis://h")], "asks for no TLS"),
        (&[("SLUICE__REDIS__URL", "redis://a,b")], "redis.url names several hosts"),
        (&[("SLUICE__STORAGE", "postgres")], "postgres.url does not say where"),
        (&[("ConnectionStrings__PostgreSQL", "postgres://u@h/d")], "jwt.secret is not set"),
        (&[("ConnectionStrings__PostgreSQL", "postgres://u@h")], "postgres.url names no database"),
        (&[("JWT_SECRET", "one"), ("JWT__Secret", "two")], "different secrets"),
        (&production, "jwt.secret is not set"),
        (&production, "data_dir is not set"),
        (&[production[0], ("JWT_SECRET", "your_jwt_secret_key_here")], "jwt.secret has 24 bytes"),
        (&[production[0], ("SLUICE__TEST_CLOCK_FILE", "/tmp/c")], "test_clock_file is for tests"),
    ];
    for (env, says) in rows {
        let error = load(env, &[]).expect_err("refused").to_string();
        assert!(error.contains(says), "{env:?}: {error}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let error = load_file("a.toml", "warp = 1\nlisten = 5\n[jwt]\nsecret = 12345678\n", &[("SLUICE__NODE_ID", "a b")]);
    let faults = error.expect_err("refused").faults;
    assert_eq!(faults.len(), 4, "{faults:?}");
    assert!(!format!("{faults:?}").contains("12345678"), "{faults:?}");
}

#[test]
fn a_larger_message_brings_a_larger_body_with_it() {
    let loaded = load(&[("Messaging__MaxMessageSize", "33554432")], &[]).expect("valid");
    assert!(loaded.config.limits.body_bytes_max > 2 * 33_554_432);
}

#[test]
fn the_guides_own_file_works_once_it_names_a_user() {
    let step_3 = r#"{
      "ConnectionStrings": {"Redis": "localhost:6379", "PostgreSQL": "Host=localhost;Database=messaging"},
      "Messaging": {"BrokerPort": 5050, "DefaultDeliveryGuarantee": "AtLeastOnce", "DefaultRetentionPeriod": "P7D",
                    "MaxMessageSize": 1048576},
      "OpenTelemetry": {"JaegerEndpoint": "http://localhost:14268/api/traces", "SamplingRate": 1.0},
      "Logging": {"LogLevel": {"Default": "Warning", "HotSwap.Distributed": "Debug"}}
    }"#;
    let faults = load_file("appsettings.Development.json", step_3, &[]).expect_err("nobody is named").faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("postgres.url names no user"), "{faults:?}");

    let whole = step_3.replace("Database=messaging", "Database=messaging;Username=messaging_user;Password=p");
    let secret = [("JWT_SECRET", "a secret of more than thirty-two bytes")];
    let loaded = load_file("appsettings.Development.json", &whole, &secret).expect("valid");
    assert_eq!(show(&loaded, "redis.url"), "redis://localhost:6379/0");

    let mut without: serde_json::Value = serde_json::from_str(step_3).expect("JSON");
    without.as_object_mut().expect("an object").remove("ConnectionStrings");
    let loaded = load_file("appsettings.Development.json", &without.to_string(), &[]).expect("valid");
    assert_eq!(show(&loaded, "telemetry.log_level"), "sluice=debug,warn");
    assert_eq!(show(&loaded, "telemetry.otlp_endpoint"), "http://localhost:4318");
    assert_eq!(show(&loaded, "messaging.broker_port"), "5050");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);

    let error = load_file("appsettings.json", r#"{"Messaging": {"MaxMesageSize": 1}}"#, &[]).expect_err("refused");
    assert!(error.to_string().contains("did you mean Messaging:MaxMessageSize?"), "{error}");
}

#[test]
fn the_guides_production_environment_works_behind_a_proxy() {
    let env = [
        ("ASPNETCORE_ENVIRONMENT", "Production"),
        ("ASPNETCORE_URLS", "http://+:5000"),
        ("JWT_SECRET", "bm90IGEgcmVhbCBzZWNyZXQsIGJ1dCBsb25nIGVub3VnaCE="),
        ("JWT__Issuer", "https://messaging.example.com"),
        ("RateLimiting__Publish", "100"),
        ("OpenTelemetry__SamplingRate", "0.1"),
        ("SLUICE_URL", "http://elsewhere"),
        ("Messaging__MaxMesageSize", "1"),
        ("Unrelated__Setting", "1"),
    ];
    let loaded = load(&env, &[("data-dir", "/data")]).expect("valid");
    assert_eq!(loaded.config.listen, "0.0.0.0:5000".parse().expect("an address"));
    assert_eq!(loaded.config.rate_limiting.publish, Some(100));
    assert!(loaded.config.telemetry.log_json && !loaded.config.push.allow_http);
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("did you mean Messaging__MaxMessageSize?"), "{:?}", loaded.warnings);
    assert!(!format!("{loaded:?}").contains("bm90"), "secrets are not shown");
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let missing = load(&[], &[("config", "missing.toml")]).expect_err("refused").to_string();
    assert!(missing.contains("missing.toml"), "{missing}");
    for (name, text) in [("a.toml", "listen ="), ("a.json", "{"), ("a.yaml", "listen: x")] {
        assert!(load_file(name, text, &[]).is_err(), "{name}");
    }
}
