//! What brokers in containers are told, and what the real binary makes of it. Invariant: a variable that is no setting, or that
//! another one outdoes, is found.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use sluice_tests::outside::said;
use sluice_tests::{Client, binary};

use super::{PRODUCTION, RESOURCES, compose, containers, image, instruction, resource, words};

type Variables = Vec<(String, String)>;

/// What the image sets.
fn of_image() -> Variables {
    let env: Vec<String> = image().into_iter().filter(|(word, _)| word == "ENV").map(|(_, rest)| rest).collect();
    let pair = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    env.iter().flat_map(|line| line.split(' ')).map(|text| pair(text).expect("NAME=VALUE")).collect()
}

/// What a service of the production's compose file is given beside.
fn of_service(name: &str) -> Variables {
    let compose = compose(PRODUCTION);
    let given = compose["services"][name]["environment"].as_object().expect("variables").iter();
    given.map(|(name, value)| (name.clone(), value.as_str().expect("a text").to_owned())).collect()
}

/// What a container of a pod is given, `$(…)` put in as Kubernetes does: from what stands above.
fn of_container(container: &Value) -> Variables {
    let mut given = Variables::new();
    for one in container["env"].as_array().into_iter().flatten() {
        let from = &one["valueFrom"];
        let mut value = match (one["value"].as_str(), from["secretKeyRef"]["key"].as_str()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(key)) => secret(key),
            (None, None) => {
                assert_eq!(from["fieldRef"]["fieldPath"], "metadata.name", "{one}");
                "messaging-api-7d9c-x2x".to_owned()
            }
        };
        for (name, above) in &given {
            value = value.replace(&format!("$({name})"), above);
        }
        assert!(!value.contains("$("), "{one} uses what is not defined above it");
        given.push((one["name"].as_str().expect("a name").to_owned(), value));
    }
    given
}

fn secret(key: &str) -> String {
    use base64::Engine as _;
    let encoded = resource("Secret", "messaging-secrets")["data"][key].as_str().expect("a secret");
    // In lines.
    let encoded: String = encoded.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64");
    String::from_utf8(bytes).expect("a text")
}

fn sluice(arguments: &[&str], variables: &Variables) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(binary::sluice());
    command.args(arguments).current_dir(folder.path()).env_clear();
    command.envs(variables.iter().map(|(name, value)| (name, value))).output().expect("sluice starts")
}

/// The settings that a broker takes from this, by name; each variable has to be where one of them comes from.
fn settings(who: &str, arguments: &[&str], given: &Variables) -> impl Fn(&str) -> String + use<> {
    let shown = sluice(&[&["config", "--json"], arguments].concat(), &[of_image(), given.clone()].concat());
    assert!(shown.status.success(), "{who}: {}", said(&shown));
    assert!(shown.stderr.is_empty(), "{who} is warned: {}", said(&shown));
    let settings: Vec<Value> = serde_json::from_slice(&shown.stdout).expect("JSON");
    let from: BTreeSet<&str> = settings.iter().filter_map(|setting| setting["from"].as_str()).collect();
    for (name, _) in of_image().iter().chain(given) {
        // Secrets that are put into others stand alone, too.
        let is_part = ["POSTGRES_PASSWORD", "REDIS_PASSWORD"].contains(&&**name);
        assert!(is_part || from.contains(&**name), "{who}: {name} sets nothing; {from:?}");
    }
    move |path| {
        let found = settings.iter().find(|setting| setting["setting"] == path).expect("a setting");
        found["value"].as_str().expect("a text").to_owned()
    }
}

fn is_a_fleets(setting: impl Fn(&str) -> String) {
    assert_eq!(setting("profile"), "production");
    assert_eq!(setting("listen"), "0.0.0.0:5000");
    assert_eq!(setting("data_dir"), "/app/data");
    assert_eq!(setting("postgres.url"), "postgres:5432/messaging");
    assert_eq!(setting("redis.url"), "redis://redis:6379/0");
    assert_eq!(setting("jwt.secret"), "[redacted]");
    assert_eq!(setting("telemetry.sampling_rate"), "0.1");
    assert_ne!(setting("rate_limiting.publish"), "(unset)");
}

#[test]
fn every_variable_of_the_image_and_of_compose_is_a_setting() {
    let alone = settings("the image", &[], &Variables::new());
    assert_eq!(
        (&*alone("profile"), &*alone("storage"), &*alone("listen")),
        ("development", "embedded", "0.0.0.0:5000")
    );
    let given = of_service("messaging-api");
    let setting = settings("compose", &[], &given);
    assert_eq!(setting("telemetry.otlp_endpoint"), "http://jaeger:4318");
    is_a_fleets(setting);
    // The migrations are for the brokers' own database.
    let migrate = of_service("migrate");
    assert!(migrate.len() == 1 && migrate.iter().all(|one| given.contains(one)), "{migrate:?}");
    // Whoever runs the image has the last word, in both ways to say it.
    for (name, value) in [("ASPNETCORE_URLS", "http://+:8080"), ("SLUICE__LISTEN", "0.0.0.0:8080")] {
        let said = sluice(&["config"], &[of_image(), vec![(name.to_owned(), value.to_owned())]].concat());
        assert!(String::from_utf8_lossy(&said.stdout).contains("0.0.0.0:8080"), "{name}");
    }
}

#[test]
fn every_variable_and_file_on_kubernetes_is_a_setting() {
    let deployment = resource("Deployment", "messaging-api");
    let all: Vec<&Value> = containers(deployment).collect();
    let [migrated, broker] = all.as_slice() else { panic!("{} containers", all.len()) };
    // The file that the arguments name is mounted, and is the ConfigMap's.
    let mut arguments = words(&broker["args"]);
    assert_eq!(arguments.remove(0), "serve");
    let file = arguments.pop().expect("a file");
    assert_eq!(arguments, ["--config"]);
    let mounts = broker["volumeMounts"].as_array().expect("mounts");
    let mount = mounts.iter().find(|mount| mount["mountPath"] == *file).expect("the file is mounted");
    let settings_file = resource("ConfigMap", "messaging-config")["data"][mount["subPath"].as_str().expect("a name")]
        .as_str()
        .expect("a text");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join(Path::new(&file).file_name().expect("a file"));
    std::fs::write(&copy, settings_file).expect("a folder of ours can be written");

    let given = of_container(broker);
    let setting = settings("kubernetes", &["--config", copy.to_str().expect("a text")], &given);
    assert_eq!(setting("node_id"), "messaging-api-7d9c-x2x");
    is_a_fleets(setting);
    let job = containers(resource("Job", "messaging-migrate")).next().expect("a container");
    for container in [migrated, job] {
        let for_tables = of_container(container);
        assert!(for_tables.iter().all(|one| given.contains(one)), "{for_tables:?}");
    }
    // Whatever else is in a pod gets what it names, too.
    for container in RESOURCES.iter().flat_map(containers) {
        of_container(container);
    }
}

#[tokio::test]
async fn the_image_alone_serves_is_reached_from_outside_and_stops_when_asked() {
    let app = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(app.path().join("plugins")).expect("an empty folder takes another");
    let here = |text: &str| text.replace("/app/", &format!("{}/", app.path().display()));
    let variables: Variables = of_image().into_iter().map(|(name, value)| (name, here(&value))).collect();
    let list = |text: &str| serde_json::from_str::<Vec<String>>(text).expect("a list of words");
    let [entry, command] = ["ENTRYPOINT", "CMD"].map(|word| list(&instruction(word)));
    assert_eq!((&*entry, &*command), (&["sluice".to_owned()][..], &["serve".to_owned()][..]));
    let probe = instruction("HEALTHCHECK");
    let probe = list(&probe[probe.find('[').expect("a list")..]);
    assert_eq!(probe[0], "sluice");

    let run = |port_free: &Variables| {
        let mut command = Command::new(binary::sluice());
        command.arg("serve").current_dir(app.path()).env_clear();
        command.envs(port_free.iter().map(|(name, value)| (name, value)));
        command
    };
    // Any port: 5000 may be somebody's on this machine.
    let any_port: Variables =
        variables.iter().map(|(name, value)| (name.clone(), value.replace(":5000", ":0"))).collect();
    assert_ne!(any_port, variables);
    let started = run(&any_port).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut broker = Served(started.expect("sluice starts"));
    let mut line = String::new();
    BufReader::new(broker.0.stdout.take().expect("it was piped")).read_line(&mut line).expect("it says a line");
    let port = line.trim().strip_prefix("listening on http://0.0.0.0:").unwrap_or_else(|| panic!("{line}")).to_owned();
    let url = format!("http://127.0.0.1:{port}");

    // It looks where the broker of these variables listens.
    let asking: Variables = variables
        .iter()
        .map(|(name, value)| (name.clone(), value.replace(":5000", &format!(":{port};https://+:5001"))))
        .collect();
    let probe: Vec<&str> = probe[1..].iter().map(String::as_str).collect();
    let healthy = sluice(&probe, &asking);
    assert!(healthy.status.success(), "{}", said(&healthy));
    let token = sluice(&["token", "--role", "Admin"], &variables);
    let token = String::from_utf8(token.stdout).expect("a text");
    let topics = Client::new(&url, token.trim()).get("/topics").await;
    topics.expect(200);
    assert!(!Client::new(&url, "").get("/topics").await.text().contains("\"topics\""), "nothing without a token");

    succeeds_to_stop(broker.0.id());
    assert!(broker.0.wait().expect("a child can be waited for").success());
    assert_ne!(sluice(&probe, &asking).status.code(), Some(0));
    let mut production = any_port.clone();
    production.push(("ASPNETCORE_ENVIRONMENT".to_owned(), "Production".to_owned()));
    let refused = run(&production).output().expect("sluice starts");
    assert!(!refused.status.success() && said(&refused).contains("jwt.secret"), "{}", said(&refused));
}

/// A process that ends with the test, also when that fails.
pub(super) struct Served(pub(super) Child);

impl Drop for Served {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn succeeds_to_stop(process: u32) {
    let told = Command::new("kill").args(["-TERM", &process.to_string()]).status();
    assert!(told.expect("kill starts").success());
}
