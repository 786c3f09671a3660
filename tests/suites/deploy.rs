//! The files of `deploy/`, read by the tools that read them in earnest, by a real proxy, and by the broker itself. Invariant: a
//! tool that cannot be had fails the test; nothing needs a daemon of Docker or a cluster, so what only these can tell is not
//! told here.

mod dashboards;
mod environment;
mod numbers;
mod proxy;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;
use sluice_tests::binary::{self, repository};
use sluice_tests::outside::{deploy_tool, said, yaml_documents};
use sluice_tests::servers::{Haproxy, promtool};

const DEVELOPMENT: &str = "docker-compose.messaging.yml";
const PRODUCTION: &str = "docker-compose.production.yml";

/// What `docker-compose.production.yml` has to be given.
const SECRETS: [(&str, &str); 3] = [
    ("POSTGRES_PASSWORD", "a/pass@word"),
    ("JWT_SECRET", "a-secret-of-the-suites-that-is-long-enough-for-hs256"),
    ("GRAFANA_PASSWORD", "another"),
];

/// Releases of Kubernetes between which the files hold.
const KUBERNETES: [&str; 2] = ["1.27", "1.37"];

fn folder() -> PathBuf {
    repository().join("deploy")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    output
}

/// A list of words; of one word that is a text, itself.
fn words(of: &Value) -> Vec<String> {
    match of {
        Value::Array(words) => words.iter().map(|word| word.as_str().expect("a text").to_owned()).collect(),
        Value::String(text) => vec![text.clone()],
        _ => Vec::new(),
    }
}

/// The instructions of the Dockerfile's last stage.
fn image() -> Vec<(String, String)> {
    let file = text(&folder().join("Dockerfile"));
    let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let all: Vec<(String, String)> = joined
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(word, rest)| (word.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    let last = all.iter().rposition(|(word, _)| word == "FROM").expect("an image is from another");
    all[last..].to_vec()
}

/// What stands behind the instruction of this name, which is there once.
fn instruction(name: &str) -> String {
    let found: Vec<String> = image().into_iter().filter(|(word, _)| word == name).map(|(_, rest)| rest).collect();
    let [one] = found.as_slice() else { panic!("{name}: {found:?}") };
    one.clone()
}

fn compose_command(file: &str, secrets: &[(&str, &str)]) -> Command {
    let mut command = deploy_tool("docker-compose");
    command.env_clear().envs(secrets.iter().copied()).arg("--file").arg(folder().join(file));
    command
}

/// A compose file as Compose understands it.
fn compose(file: &str) -> Value {
    let output = succeeds(compose_command(file, &SECRETS).args(["config", "--format", "json"]));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A copy of `deploy/kubernetes`, with these secrets.
fn kustomization(secrets: Option<&str>) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    for file in fs::read_dir(folder().join("kubernetes")).expect("it is there").flatten() {
        if file.file_name() != "secrets.env" {
            fs::copy(file.path(), copy.path().join(file.file_name())).expect("it can be copied");
        }
    }
    if let Some(secrets) = secrets {
        fs::write(copy.path().join("secrets.env"), secrets).expect("a folder of ours can be written");
    }
    copy
}

fn kustomize(copy: &Path) -> Output {
    deploy_tool("kubectl").arg("kustomize").arg(copy).output().expect("kubectl starts")
}

/// What `kubectl apply -k` would make, as YAML.
static MANIFESTS: LazyLock<String> = LazyLock::new(|| {
    let [(_, postgres), (_, jwt), _] = SECRETS;
    let secrets = format!("redis-password=redis\npostgres-password={postgres}\njwt-secret={jwt}\n");
    let built = kustomize(kustomization(Some(&secrets)).path());
    assert!(built.status.success(), "{}", said(&built));
    String::from_utf8(built.stdout).expect("YAML is text")
});

/// The same, one by one.
static RESOURCES: LazyLock<Vec<Value>> = LazyLock::new(|| yaml_documents(std::slice::from_ref(&MANIFESTS)).remove(0));

fn resource(kind: &str, name: &str) -> &'static Value {
    let found = RESOURCES.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// The containers of a pod, in the order they start.
fn containers(of: &Value) -> impl Iterator<Item = &Value> {
    let pod = &of["spec"]["template"]["spec"];
    ["initContainers", "containers"].into_iter().filter_map(|kind| pod[kind].as_array()).flatten()
}

#[test]
fn the_dockerfile_is_as_hadolint_wants_it() {
    succeeds(deploy_tool("hadolint").args(["--failure-threshold", "style"]).arg(folder().join("Dockerfile")));
}

/// What is compiled into the broker from outside its own folder is in the image's build.
#[test]
fn the_build_in_the_image_has_all_that_it_reads() {
    let listed = succeeds(Command::new("git").current_dir(repository()).args(["ls-files", "-z", "host", "Cargo.toml"]));
    let mut read: Vec<String> = ["Cargo.toml", "Cargo.lock", "host", "tests"].map(str::to_owned).into();
    let manifest = text(&repository().join("Cargo.toml"));
    assert!(manifest.contains(r#"members = ["host", "tests"]"#), "the workspace has other members now");
    for file in String::from_utf8(listed.stdout).expect("names are text").split_terminator('\0') {
        if file.contains("/tests") || !(file.ends_with(".rs") || file.ends_with(".toml")) {
            continue;
        }
        let source = text(&repository().join(file));
        // Paths that climb out (`include_str!`, path dependencies), and what build.rs names from the root.
        read.extend(source.split('"').filter_map(|part| part.rsplit_once("../")).map(|(_, path)| path.to_owned()));
        read.extend(source.split("root.join(\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    let first = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let read: std::collections::BTreeSet<String> =
        read.iter().map(first).filter(|path| repository().join(path).exists()).collect();
    assert!(read.contains("migrations") && read.contains("wit") && read.contains("plugin-sdk"), "{read:?}");
    let dockerfile = text(&folder().join("Dockerfile"));
    let copied: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).collect();
    let ignored = text(&repository().join(".dockerignore"));
    for path in read {
        assert!(copied.iter().any(|copy| copy.split(' ').any(|word| word == path)), "{path} is not copied");
        let let_in = |line: &str| line.strip_prefix('!').is_some_and(|line| line.split('/').next() == Some(&path));
        assert!(ignored.lines().any(let_in), "{path} is left out by .dockerignore");
    }
}

#[test]
fn compose_takes_its_files_and_production_starts_with_no_secret_of_ours() {
    for file in [DEVELOPMENT, PRODUCTION] {
        succeeds(
            deploy_tool("check-jsonschema").args(["--builtin-schema", "vendor.compose-spec"]).arg(folder().join(file)),
        );
        compose(file);
    }
    succeeds(compose_command(DEVELOPMENT, &[]).args(["config", "--quiet"]));
    for (left_out, _) in SECRETS {
        let others: Vec<(&str, &str)> = SECRETS.into_iter().filter(|(name, _)| *name != left_out).collect();
        let refused = compose_command(PRODUCTION, &others).args(["config", "--quiet"]).output().expect("it starts");
        assert!(!refused.status.success() && said(&refused).contains(left_out), "{left_out}: {}", said(&refused));
    }
}

#[test]
fn kustomize_builds_what_kubernetes_takes_and_nothing_without_secrets() {
    let without = kustomize(kustomization(None).path());
    assert!(!without.status.success() && said(&without).contains("secrets.env"), "{}", said(&without));
    let built = tempfile::NamedTempFile::with_suffix(".yaml").expect("a temporary file");
    fs::write(built.path(), MANIFESTS.as_str()).expect("a file of ours can be written");
    for release in KUBERNETES {
        let mut validate = deploy_tool("kubernetes-validate");
        validate.args(["--strict", "--quiet", "--kubernetes-version", release]);
        let found = succeeds(validate.arg(built.path()));
        // What it has no schema for it only mentions.
        assert!(said(&found).is_empty(), "{}", said(&found));
    }
    // Also one file at a time, as the deployment guide has it.
    for one in RESOURCES.iter().filter(|one| one["kind"] != "Namespace") {
        assert_eq!(one["metadata"]["namespace"], "messaging-system", "{}", one["metadata"]["name"]);
    }
    let kustomization = text(&folder().join("kubernetes/kustomization.yaml"));
    for file in fs::read_dir(folder().join("kubernetes")).expect("it is there").flatten() {
        let name = file.file_name().into_string().expect("names are text");
        let is_built = kustomization.contains(&format!("- {name}\n"));
        assert!(is_built || name == "kustomization.yaml" || name.starts_with("secrets.env"), "{name} is not built");
    }
}

/// Each name of `secrets.env.example` has no value, so that none of ours is ever used.
#[test]
fn the_secrets_of_the_example_are_those_that_are_read_and_are_empty() {
    let example = text(&folder().join("kubernetes/secrets.env.example"));
    let lines: Vec<&str> = example.lines().filter(|line| !line.starts_with('#')).collect();
    let mut given: Vec<&str> =
        lines.iter().map(|line| line.strip_suffix('=').unwrap_or_else(|| panic!("{line} has a value"))).collect();
    let mut read: Vec<&str> =
        RESOURCES.iter().flat_map(|one| containers(one).collect::<Vec<_>>()).flat_map(secrets).collect();
    given.sort_unstable();
    read.sort_unstable();
    read.dedup();
    assert_eq!(given, read);
}

fn secrets(container: &Value) -> Vec<&str> {
    let env = container["env"].as_array().into_iter().flatten();
    env.filter_map(|one| {
        let secret = &one["valueFrom"]["secretKeyRef"];
        (secret["name"] == "messaging-secrets").then(|| secret["key"].as_str().expect("a name"))
    })
    .collect()
}

#[test]
fn the_proxy_and_prometheus_take_their_files() {
    let checked = Haproxy::check(&folder().join("haproxy.cfg"));
    assert!(checked.status.success(), "{}", said(&checked));
    let checked = promtool(&folder(), &["check", "config", "prometheus.yml"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

/// The commands of the page exist, and so do the files that they name.
#[test]
fn every_command_of_the_page_exists() {
    let page = text(&folder().join("README.md"));
    let lines: Vec<&str> =
        page.split("```").skip(1).step_by(2).flat_map(str::lines).filter(|line| !line.starts_with("sh")).collect();
    let is_word = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    let mut commands = 0;
    for line in &lines {
        for rest in line.split("sluice ").skip(1) {
            let command: Vec<&str> = rest.split_whitespace().take_while(is_word).collect();
            succeeds(Command::new(binary::sluice()).args(command).arg("--help"));
            commands += 1;
        }
        for path in line
            .split_whitespace()
            .filter(|word| word.starts_with("deploy/") && *word != "deploy/kubernetes/secrets.env")
        {
            assert!(repository().join(path).exists(), "{line}");
        }
    }
    assert!(commands >= 6, "{lines:?}");
}
