//! Programs that are not ours, as their makers publish them: official client libraries, and a tester of HTTP APIs.
//! Invariant: their versions (not those of what they depend on) are pinned in `tests/outside/`, they are installed once, below
//! the target folder, and never changed. Needs Python 3 with venv, and Node with npm.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

use crate::binary::{repository, target_dir};

static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    installed("requirements.txt", |dir, pins| {
        run(Command::new("python3").args(["-m", "venv"]).arg(dir));
        run(Command::new(dir.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(pins));
    })
});

static NODE: LazyLock<PathBuf> = LazyLock::new(|| {
    installed("package.json", |dir, pins| {
        std::fs::copy(pins, dir.join("package.json")).expect("the target folder can be written");
        let quiet = ["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"];
        run(Command::new("npm").args(quiet).current_dir(dir));
    })
});

/// Runs a script of `tests/outside/` on Python; it reads JSON and prints JSON.
#[must_use]
pub fn python(script: &str, input: &Value) -> Value {
    talk(Command::new(PYTHON.join("bin/python")).arg(folder().join(script)), input)
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

fn folder() -> PathBuf {
    repository().join("tests/outside")
}

/// The folder of what `pins` names, filled by `install` unless it was before.
fn installed(pins: &str, install: impl Fn(&Path, &Path)) -> PathBuf {
    let pins = folder().join(pins);
    let mut hasher = DefaultHasher::new();
    std::fs::read(&pins).expect("the pins are in the repository").hash(&mut hasher);
    let dir = target_dir().join("outside").join(format!("{:016x}", hasher.finish()));
    let complete = dir.join("complete");
    if !complete.exists() {
        // What an installation that was cut off has left.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("the target folder can be written");
        install(&dir, &pins);
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
