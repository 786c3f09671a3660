//! Programs that are not ours, as their makers publish them: official client libraries, a tester of HTTP APIs, and what
//! reads the files of `deploy/`.
//! Invariant: their versions (not those of what they depend on) are pinned in `tests/outside/` and
//! in the templates of plugins, they are installed once, below
//! the target folder, and never changed. Needs Python 3 with venv, and Node with npm.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

use crate::binary::{repository, target_dir};

static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| pip(&[folder().join("requirements.txt")]));

static DEPLOY: LazyLock<PathBuf> = LazyLock::new(|| pip(&[folder().join("deploy.txt")]));

static NODE: LazyLock<PathBuf> = LazyLock::new(|| npm(&folder().join("package.json")));

/// What `sluice plugin new` names in the projects that it makes: compilers of JavaScript, Python and C to WebAssembly.
static COMPILERS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    let templates = repository().join("plugin-sdk/templates");
    let pins = ["python", "c"].map(|language| templates.join(language).join("requirements.txt"));
    [pip(&pins).join("bin"), npm(&templates.join("js/package.json.in")).join("node_modules/.bin")]
});

/// Runs a script of `tests/outside/` on Python; it reads JSON and prints JSON.
#[must_use]
pub fn python(script: &str, input: &Value) -> Value {
    talk(Command::new(PYTHON.join("bin/python")).arg(folder().join(script)), input)
}

/// A tool that reads the files of `deploy/`, by its name in `tests/outside/deploy.txt`.
#[must_use]
pub fn deploy_tool(name: &str) -> Command {
    Command::new(DEPLOY.join("bin").join(name))
}

/// The documents in YAML texts, for each of them.
#[must_use]
pub fn yaml_documents(texts: &[String]) -> Vec<Vec<Value>> {
    let mut python = deploy_tool("python");
    let read = talk(python.arg(folder().join("yaml_documents.py")), &Value::from(texts));
    serde_json::from_value(read).expect("a list of documents for each text")
}

/// Runs a script of `tests/outside/` on Node; it reads JSON and prints JSON.
#[must_use]
pub fn node(script: &str, input: &Value) -> Value {
    talk(Command::new("node").arg(folder().join(script)).env("NODE_PATH", NODE.join("node_modules")), input)
}

/// schemathesis with its hooks; to be given a command.
#[must_use]
pub fn schemathesis() -> Command {
    let mut command = Command::new(PYTHON.join("bin/schemathesis"));
    command.env("SCHEMATHESIS_HOOKS", "schemathesis_hooks").env("PYTHONPATH", folder());
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The search path with the compilers of all languages that plugins are written in.
#[must_use]
pub fn path_with_compilers() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = COMPILERS.iter().cloned().chain(std::env::split_paths(&path));
    std::env::join_paths(all).expect("these were parts of a path")
}

fn pip(pins: &[PathBuf]) -> PathBuf {
    installed(pins, |dir| {
        run(Command::new("python3").args(["-m", "venv"]).arg(dir));
        let mut pip = Command::new(dir.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check"]);
        run(pip.args(pins.iter().flat_map(|pins| [OsStr::new("-r"), pins.as_os_str()])));
    })
}

fn npm(pins: &Path) -> PathBuf {
    installed(&[pins.to_owned()], |dir| {
        let manifest = std::fs::read_to_string(pins).expect("the pins are in the repository");
        let manifest = manifest.replace("{{name}}", "compilers");
        std::fs::write(dir.join("package.json"), manifest).expect("the target folder can be written");
        let quiet = ["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"];
        run(Command::new("npm").args(quiet).current_dir(dir));
    })
}

fn folder() -> PathBuf {
    repository().join("tests/outside")
}

/// The folder of what `pins` name, filled by `install` unless it was before.
fn installed(pins: &[PathBuf], install: impl Fn(&Path)) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    for pins in pins {
        std::fs::read(pins).expect("the pins are in the repository").hash(&mut hasher);
    }
    let dir = target_dir().join("outside").join(format!("{:016x}", hasher.finish()));
    let complete = dir.join("complete");
    if !complete.exists() {
        // What an installation that was cut off has left.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("the target folder can be written");
        install(&dir);
        std::fs::write(complete, "").expect("the target folder can be written");
    }
    dir
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(output.status.success(), "{command:?}: {}", said(&output));
}

fn talk(command: &mut Command, input: &Value) -> Value {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(input.to_string().as_bytes()).expect("it reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{command:?}: {error}: {}", said(&output)))
}

/// What a program has printed.
#[must_use]
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}
