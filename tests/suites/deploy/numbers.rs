//! Numbers and names that stand in several files of `deploy/` and in the broker. Invariant: where one has to fit another, both
//! are read from where they are used.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use serde_json::Value;
use sluice_tests::binary::{self, repository};
use sluice_tests::outside::yaml_documents;
use sluice_tests::servers::{Options, Postgres};
use sluice_tests::{Broker, Settings, wait};

use super::environment::Served;
use super::{DEVELOPMENT, PRODUCTION, RESOURCES, compose, containers, folder, instruction, resource, text, words};

/// Connections of a broker's catalog, which come to `postgres.connections_max`.
const CATALOG_CONNECTIONS: u64 = 4;
/// The one by which it shows the others that it is there.
const SHOWING_CONNECTIONS: u64 = 1;

/// The default of a setting, as the binary says it.
fn default_of(path: &str) -> String {
    let shown = std::process::Command::new(binary::sluice()).args(["config", "--json"]).env_clear().output();
    let settings: Vec<Value> = serde_json::from_slice(&shown.expect("sluice starts").stdout).expect("JSON");
    let found = settings.iter().find(|setting| setting["setting"] == path).expect("a setting");
    assert_eq!(found["from"], "default");
    found["value"].as_str().expect("a text").to_owned()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn seconds(text: &str) -> u64 {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    assert!(text.trim_start_matches("PT").eq_ignore_ascii_case(&format!("{digits}s")), "{text} is not in seconds");
    number(&digits)
}

/// `name=1` among the arguments of a command.
fn argument(arguments: &[String], name: &str) -> u64 {
    let found = arguments.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
    number(found.unwrap_or_else(|| panic!("{name} is not in {arguments:?}")))
}

/// A stop may take the time for requests, for changes and for webhooks, and some seconds for old
/// messages, events, plugins and the sign-off.
fn stop_takes_at_most() -> u64 {
    3 * seconds(&default_of("limits.shutdown_timeout")) + 18
}

#[test]
fn one_port_leads_from_outside_to_the_broker() {
    assert_eq!(instruction("EXPOSE"), "5000 5050");
    let service = &resource("Service", "messaging-api")["spec"];
    assert_eq!((&service["type"], &service["ports"][0]["port"]), (&"LoadBalancer".into(), &80.into()));
    let deployment = resource("Deployment", "messaging-api");
    let broker = containers(deployment).last().expect("a container");
    let port = &broker["ports"][0];
    assert_eq!((&port["containerPort"], &port["name"]), (&5000.into(), &service["ports"][0]["targetPort"]));
    for (probe, path) in
        [("livenessProbe", "/health/live"), ("startupProbe", "/health/live"), ("readinessProbe", "/health/ready")]
    {
        let asked = &broker[probe]["httpGet"];
        assert_eq!((&asked["path"], &asked["port"]), (&path.into(), &port["name"]), "{probe}");
    }
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"], "5000");
    let proxy = text(&folder().join("haproxy.cfg"));
    assert!(proxy.contains("\n    bind :5000\n") && proxy.contains(" messaging-api:5000 check "), "{proxy}");
    let prometheus = yaml_documents(&[text(&folder().join("prometheus.yml"))]).remove(0).remove(0);
    let jobs = prometheus["scrape_configs"].as_array().expect("jobs");
    let brokers = jobs.iter().find(|job| job["job_name"] == "messaging-api").expect("the brokers' job");
    assert_eq!(brokers["dns_sd_configs"][0]["port"], 5000);
    assert_eq!(brokers["dns_sd_configs"][0]["names"][0], "messaging-api");
    let production = compose(PRODUCTION);
    let ports = &production["services"]["proxy"]["ports"][0];
    assert_eq!((&ports["target"], &ports["published"]), (&5000.into(), &"5000".into()));
    assert!(production["services"]["messaging-api"]["ports"].is_null(), "three cannot have one port of the host");
    // The address of Jaeger's OTLP that a broker on this machine takes, and the guide's ports.
    let development = compose(DEVELOPMENT);
    let published = |service: &str| {
        let ports = development["services"][service]["ports"].as_array().expect("ports").clone();
        ports.into_iter().map(|port| port["published"].as_str().expect("a port").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((published("redis"), published("postgres")), (vec!["6379".to_owned()], vec!["5432".to_owned()]));
    for port in ["4317", "4318", "16686", "14268"] {
        assert!(published("jaeger").iter().any(|published| published == port), "{port}");
    }
}

/// What a pod's broker is told before SIGTERM.
fn before_a_stop() -> String {
    let pod = &resource("Deployment", "messaging-api")["spec"]["template"]["spec"];
    let command = words(&pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]);
    let [shell, flag, script] = command.as_slice() else { panic!("{command:?}") };
    assert_eq!((shell.as_str(), flag.as_str()), ("sh", "-c"));
    script.clone()
}

#[tokio::test]
async fn what_is_told_before_a_stop_drains_the_broker() {
    let broker = Broker::with(Settings::new().env("SLUICE__NODE_ID", "pod-1")).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = resource("ConfigMap", "messaging-config")["data"]["appsettings.json"].as_str().expect("a text");
    fs::write(folder.path().join("appsettings.json"), settings).expect("a folder of ours can be written");
    // Where the file is mounted, and that nobody's requests come any more, is the cluster's.
    let script = before_a_stop().replace("/app/appsettings.json", "appsettings.json").replace("sleep 5", "true");
    assert!(script.contains("--config appsettings.json"), "{script}");
    let mut told = broker.bash(folder.path(), &script);
    told.env("ASPNETCORE_ENVIRONMENT", "Production").env("SLUICE__DATA_DIR", folder.path());
    told.env_remove("SLUICE_TOKEN").env("SLUICE__NODE_ID", "pod-1");
    told.env("JWT__Secret", String::from_utf8(broker.secret()).expect("text"));
    let told = told.output().expect("bash starts");
    assert!(told.status.success(), "{}", sluice_tests::outside::said(&told));
    assert_eq!(broker.get("/brokers/pod-1").await.expect(200)["status"], "Drained");
}

/// The script of a container that is `sh -c`.
fn script_of(container: &Value) -> String {
    let command = words(&container["command"]);
    let [shell, flag, script] = command.as_slice() else { panic!("{command:?}") };
    assert_eq!((shell.as_str(), flag.as_str()), ("sh", "-c"));
    script.clone()
}

#[tokio::test]
async fn pods_wait_for_their_database_and_then_for_its_tables() {
    let mut postgres = Postgres::start(Options::new()).await;
    let url = postgres.url();
    postgres.kill();
    let broker = resource("Deployment", "messaging-api");
    let migrated = &broker["spec"]["template"]["spec"]["initContainers"][0];
    let job = containers(resource("Job", "messaging-migrate")).next().expect("a container");
    let path = format!(
        "{}:{}",
        binary::sluice().parent().expect("it is in a folder").display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let run = |container: &Value| {
        let mut script = std::process::Command::new("sh");
        script.args(["-c", &script_of(container)]).env("PATH", &path).env("ConnectionStrings__PostgreSQL", &url);
        Served(script.spawn().expect("sh starts"))
    };
    let ended = |one: &mut Served| one.0.try_wait().expect("a child");
    let (mut waits, mut migrates) = (run(migrated), run(job));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(ended(&mut waits).is_none() && ended(&mut migrates).is_none());
    postgres.restart().await;
    for one in [&mut migrates, &mut waits] {
        assert!(wait::until("it ends", async || ended(one)).await.success());
    }
}

/// What the scripts of the pods ask again for is one exit code.
#[test]
fn a_server_that_is_about_to_answer_is_one_that_does_not_answer() {
    let refusals = [
        ("57P01", "terminating connection due to administrator command", 3),
        ("57P02", "terminating connection because of crash of another server process", 3),
        ("57P03", "the database system is starting up", 3),
        ("53300", "sorry, too many clients already", 3),
        ("28P01", "password authentication failed for user \"somebody\"", 1),
    ];
    for (code, words, wanted) in refusals {
        let url = format!("postgres://somebody@127.0.0.1:{}/messaging", refusing(code, words));
        let mut migrate = std::process::Command::new(binary::sluice());
        let ended = migrate.args(["migrate", "status", "--database", &url]).output().expect("sluice starts");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(wanted) && said.contains(words), "{code}: {ended:?}");
    }
}

/// The port of a server that refuses every client.
fn refusing(code: &str, words: &str) -> u16 {
    let said = format!("SFATAL\0VFATAL\0C{code}\0M{words}\0\0");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut head = [0; 8];
            stream.read_exact(&mut head).expect("a request for TLS, or the head of a startup message");
            // An SSLRequest by its code: there is no TLS.
            if head[4..] == 80_877_103_u32.to_be_bytes() {
                stream.write_all(b"N").expect("the client is there");
                stream.read_exact(&mut head).expect("the head of a startup message");
            }
            let len = u32::try_from(said.len() + 4).expect("it is short").to_be_bytes();
            stream.write_all(&[b"E", len.as_slice(), said.as_bytes()].concat()).expect("the client is there");
        }
    });
    port
}

#[test]
fn a_stop_has_the_time_that_it_may_take() {
    let pod = &resource("Deployment", "messaging-api")["spec"]["template"]["spec"];
    let stop = before_a_stop();
    let after = |word: &str| stop.split_once(word).and_then(|(_, rest)| rest.split_whitespace().next()).map(number);
    let (drain, pause) = (after("--wait ").expect("it waits"), after("sleep ").expect("it sleeps"));
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    assert!(grace >= drain + pause + stop_takes_at_most(), "{grace} s");
    let raw = yaml_documents(&[text(&folder().join(PRODUCTION))]).remove(0).remove(0);
    let grace = seconds(raw["services"]["messaging-api"]["stop_grace_period"].as_str().expect("seconds"));
    assert!(grace >= stop_takes_at_most(), "{grace} s");
}

#[test]
fn the_database_has_a_connection_for_each_that_brokers_may_make() {
    let a_broker = number(&default_of("postgres.connections_max")) + CATALOG_CONNECTIONS + SHOWING_CONNECTIONS;
    let catalog = text(&repository().join("host/src/catalog/postgres.rs"));
    assert!(catalog.contains(&format!("const CONNECTIONS_MAX: u32 = {CATALOG_CONNECTIONS};")));
    // Three are kept for superusers, and somebody migrates.
    let kept = 3 + 5;
    let services = &compose(PRODUCTION)["services"];
    let replicas = services["messaging-api"]["deploy"]["replicas"].as_u64().expect("replicas");
    assert_eq!(replicas, 3);
    let allowed = argument(&words(&services["postgres"]["command"]), "max_connections");
    assert!(allowed >= replicas * a_broker + kept, "{allowed}");

    let deployment = &resource("Deployment", "messaging-api")["spec"];
    let scaler = &resource("HorizontalPodAutoscaler", "messaging-api-hpa")["spec"];
    assert_eq!((&deployment["replicas"], &scaler["minReplicas"]), (&3.into(), &3.into()));
    let surge = deployment["strategy"]["rollingUpdate"]["maxSurge"].as_u64().expect("a number");
    let brokers = scaler["maxReplicas"].as_u64().expect("a number") + surge;
    let server = containers(resource("StatefulSet", "postgres")).next().expect("a container");
    let allowed = argument(&words(&server["args"]), "max_connections");
    assert!(allowed >= brokers * a_broker + kept, "{allowed}");
    let budget = &resource("PodDisruptionBudget", "messaging-api")["spec"]["minAvailable"];
    assert!(budget.as_u64() < scaler["minReplicas"].as_u64(), "no node could ever be drained");
}

/// HAProxy takes two files for a connection, and does not start where it may not open as many.
#[test]
fn the_proxy_may_open_as_many_files_as_it_demands() {
    let config = text(&folder().join("haproxy.cfg"));
    let connections = config.lines().find_map(|line| line.trim().strip_prefix("maxconn ")).expect("a bound");
    let files = compose(PRODUCTION)["services"]["proxy"]["ulimits"]["nofile"].clone();
    let files = files.as_u64().or(files["single"].as_u64()).unwrap_or_else(|| panic!("{files}"));
    assert!(files > 2 * number(connections) + 1000, "{files}");
}

/// A broker refuses a Redis that throws messages away.
#[test]
fn no_redis_evicts_anything() {
    let mut commands = Vec::new();
    for file in [DEVELOPMENT, PRODUCTION] {
        commands.push(words(&compose(file)["services"]["redis"]["command"]).join(" "));
    }
    let redis = containers(resource("StatefulSet", "redis")).next().expect("a container");
    commands.push(words(&redis["args"]).join(" "));
    for command in commands {
        assert!(command.contains("--maxmemory-policy noeviction"), "{command}");
        assert!(command.contains("--appendonly yes"), "{command}");
    }
}

#[test]
fn every_image_is_of_a_version() {
    let mut images: Vec<String> = RESOURCES
        .iter()
        .flat_map(containers)
        .map(|container| container["image"].as_str().expect("an image").to_owned())
        .collect();
    for file in [DEVELOPMENT, PRODUCTION] {
        let compose = compose(file);
        let services = compose["services"].as_object().expect("services").values();
        images.extend(services.map(|service| service["image"].as_str().expect("an image").to_owned()));
    }
    assert!(images.len() > 12, "{images:?}");
    for image in images {
        let tag = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} has no tag")).1;
        assert!(tag.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit()), "{image}");
    }
    // The toolchain of the image is the one that the workspace asks for.
    let manifest = text(&repository().join("Cargo.toml"));
    let wanted = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'));
    let dockerfile = text(&folder().join("Dockerfile"));
    assert!(dockerfile.contains(&format!("\nFROM rust:{}.", wanted.expect("it names one"))));
}

/// What containers are given as files is there, and what they keep has a volume that is declared.
#[test]
fn every_mounted_file_is_there() {
    let raw = yaml_documents(&[text(&folder().join(PRODUCTION))]).remove(0).remove(0);
    let services = raw["services"].as_object().expect("services");
    let mut mounted = 0;
    for (name, service) in services {
        for volume in words(&service["volumes"]) {
            let source = volume.split(':').next().unwrap_or_default();
            match source.strip_prefix("./") {
                Some(path) => assert!(folder().join(path).exists(), "{name}: {volume}"),
                None => assert!(!raw["volumes"][source].is_null() || raw["volumes"].get(source).is_some(), "{volume}"),
            }
            mounted += 1;
        }
    }
    assert!(mounted > 8);
    for path in ["grafana/dashboards", "grafana/datasources"] {
        assert!(fs::read_dir(folder().join(path)).expect("it is there").count() > 0, "{path} is empty");
    }
}
