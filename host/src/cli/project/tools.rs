//! The tools of each language: found, run, and their words passed on. Invariant: a tool that is missing is named with the
//! command that installs it. Never installs anything.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::language::{Language, Project};
use super::waiting::Waiting;

/// The target that Rust builds components for.
const RUST_TARGET: &str = "wasm32-wasip2";
/// Bytes of a plugin's stack in C; those below it are the program's own, so that an overflow is a trap.
const C_STACK_BYTES: usize = 256 * 1024;
/// The contract, for a project that has no copy.
const WIT: &str = include_str!("../../../../wit/sluice.wit");

/// Has the project's tool build it; answers the file that came out.
pub(super) fn run(project: &Project) -> Result<PathBuf, String> {
    let dist = project.dir.join(super::DIST);
    std::fs::create_dir_all(&dist).map_err(|error| format!("{}: {error}", dist.display()))?;
    match project.language {
        Language::Rust => rust(project),
        Language::Js => js(project),
        Language::Python => python(project),
        Language::C => c(project),
    }
}

fn rust(project: &Project) -> Result<PathBuf, String> {
    let missing = "Rust is not installed: https://rustup.rs has the command";
    let libdir = Command::new("rustc").args(["--print", "target-libdir", "--target", RUST_TARGET]).output();
    let libdir = libdir.map_err(|_| missing.to_owned())?;
    if !Path::new(String::from_utf8_lossy(&libdir.stdout).trim()).is_dir() {
        return Err(format!("Rust cannot build for WebAssembly yet: rustup target add {RUST_TARGET}"));
    }
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&project.dir).args(["build", "--release", "--target", RUST_TARGET]);
    cargo.args(["--message-format", "json-render-diagnostics"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().map_err(|_| missing.to_owned())?;
    if !output.status.success() {
        return Err("cargo could not build it, see above".to_owned());
    }
    let mut components = artefacts(&output.stdout);
    match (components.pop(), components.is_empty()) {
        (Some(component), true) => Ok(component),
        (None, _) => Err("cargo made no component: say `crate-type = [\"cdylib\"]` under [lib]".to_owned()),
        (Some(_), false) => Err("cargo made several components: build in the folder of one package".to_owned()),
    }
}

/// The WebAssembly files among what cargo says it made.
fn artefacts(messages: &[u8]) -> Vec<PathBuf> {
    let lines = messages.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    let mut found: Vec<PathBuf> = messages
        .filter(|message| message["reason"] == "compiler-artifact")
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .filter(|path| path.extension().is_some_and(|extension| extension == "wasm"))
        .collect();
    found.dedup();
    found
}

fn js(project: &Project) -> Result<PathBuf, String> {
    let tool = project
        .dir
        .canonicalize()
        .ok()
        .and_then(|dir| {
            dir.ancestors().map(|dir| dir.join("node_modules/.bin/componentize-js")).find(|tool| tool.is_file())
        })
        .or_else(|| on_path("componentize-js"))
        .ok_or_else(|| {
            format!(
                "componentize-js is not installed: (cd {} && npm install), or npm install --save-dev \
                 @bytecodealliance/componentize-js; it needs Node.js",
                project.dir.display()
            )
        })?;
    let source = source(project, "package.json", "main", "plugin.js");
    let made = made(project);
    let mut command = Command::new(tool);
    command.arg(&source).arg("--wit").arg(wit(project)?).args(["--world-name", &project.world]);
    // Nothing is behind them in a broker, and to import them is refused.
    command.args(["--disable", "http", "fetch-event", "--out"]).arg(&made);
    quietly(command, "componentize-js", project)?;
    Ok(made)
}

fn python(project: &Project) -> Result<PathBuf, String> {
    let tool =
        in_environment(&project.dir, "componentize-py").or_else(|| on_path("componentize-py")).ok_or_else(|| {
            let dir = project.dir.display();
            format!(
                "componentize-py is not installed: (cd {dir} && python3 -m venv .venv && \
             .venv/bin/pip install -r requirements.txt)"
            )
        })?;
    let made = made(project);
    let mut command = Command::new(tool);
    command.arg("--wit-path").arg(wit(project)?).args(["--world", &project.world, "componentize", "--python-path"]);
    command.arg(&project.dir).arg("app").arg("--output").arg(&made).env("PYTHONDONTWRITEBYTECODE", "1");
    quietly(command, "componentize-py", project)?;
    Ok(made)
}

fn c(project: &Project) -> Result<PathBuf, String> {
    let mut command = c_compiler(&project.dir).ok_or_else(|| {
        let dir = project.dir.display();
        format!(
            "there is no C compiler for WebAssembly: (cd {dir} && python3 -m venv .venv && \
             .venv/bin/pip install -r requirements.txt) installs zig; or set WASI_SDK_PATH to a wasi-sdk"
        )
    })?;
    let made = made(project);
    command.args(["-mexec-model=reactor", "-O2", "-s"]).arg(format!("-Wl,-z,stack-size={C_STACK_BYTES}"));
    let flags = std::fs::read_to_string(project.dir.join("compile_flags.txt")).unwrap_or_default();
    command.current_dir(&project.dir).args(flags.split_whitespace());
    command.arg(format!("{}.c", project.name)).args(sources_in_c(&project.dir)?);
    command.arg("-o").arg(std::path::absolute(&made).map_err(|error| error.to_string())?);
    quietly(command, "the C compiler", project)?;
    Ok(made)
}

/// The first that is there: zig of the project, zig of the machine, a wasi-sdk.
fn c_compiler(dir: &Path) -> Option<Command> {
    let zig = |program: PathBuf, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).args(["cc", "-target", "wasm32-wasi"]);
        command
    };
    let has_ziglang = |python: &PathBuf| {
        let asked = Command::new(python).args(["-c", "import ziglang"]).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    if let Some(sdk) = std::env::var_os("WASI_SDK_PATH") {
        let mut command = Command::new(Path::new(&sdk).join("bin/clang"));
        command.args(["--target=wasm32-wasip1"]);
        return Some(command);
    }
    let pythons = [in_environment(dir, "python"), on_path("python3")];
    let own = pythons.iter().flatten().find(|python| has_ziglang(python));
    match (own, on_path("zig")) {
        (Some(python), _) => Some(zig(python.clone(), &["-m", "ziglang"])),
        (None, Some(program)) => Some(zig(program, &[])),
        (None, None) => None,
    }
}

/// What is compiled beside the plugin's own source: all of `src`, objects too.
fn sources_in_c(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let src = dir.join("src");
    if !src.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(&src).map_err(|error| format!("{}: {error}", src.display()))?;
    let is_source = |name: &OsString| {
        let extension = Path::new(name).extension();
        extension.is_some_and(|extension| extension == "c" || extension == "o")
    };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name())).filter(is_source);
    let mut sources: Vec<PathBuf> = names.map(|name| Path::new("src").join(name)).collect();
    sources.sort();
    Ok(sources)
}

/// A program in the project's own Python environment.
fn in_environment(dir: &Path, program: &str) -> Option<PathBuf> {
    [".venv", "venv"].iter().map(|name| dir.join(name).join("bin").join(program)).find(|path| path.is_file())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// What the manifest names, or the usual.
fn source(project: &Project, manifest: &str, key: &str, usual: &str) -> PathBuf {
    let read = std::fs::read(project.dir.join(manifest)).ok();
    let document = read.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let named = document.and_then(|document| document[key].as_str().map(str::to_owned));
    project.dir.join(named.unwrap_or_else(|| usual.to_owned()))
}

/// What a tool writes before it is finished.
fn made(project: &Project) -> PathBuf {
    project.dir.join(super::DIST).join(format!(".{}.made", project.name))
}

/// The contract that the project is built against: its own copy, or else the one of this release.
fn wit(project: &Project) -> Result<PathBuf, String> {
    let own = project.dir.join("wit");
    if own.is_dir() {
        return Ok(own);
    }
    let dir = project.dir.join(super::DIST).join(".wit");
    let write = || {
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("sluice.wit"), WIT)
    };
    write().map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(dir)
}

/// Runs a tool that says nothing of how far it is; what it said is shown when it fails.
fn quietly(mut command: Command, tool: &str, project: &Project) -> Result<(), String> {
    let _waiting = Waiting::on(format!("{tool} builds {}", project.name));
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{tool} can't be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    Err(format!("{tool} could not build it:\n{}", String::from_utf8_lossy(&said).trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_found_among_what_cargo_says() {
        let said = b"{\"reason\":\"compiler-artifact\",\"filenames\":[\"/t/libserde.rlib\"]}\nno json\n\
            {\"reason\":\"compiler-artifact\",\"filenames\":[\"/t/orders_filter.wasm\"]}\n{\"reason\":\"build-finished\"}";
        assert_eq!(artefacts(said), [PathBuf::from("/t/orders_filter.wasm")]);
    }

    #[test]
    fn all_of_src_is_compiled_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sources_in_c(dir.path()), Ok(vec![]));
        std::fs::create_dir(dir.path().join("src")).unwrap();
        for name in ["b.c", "a.o", "a.h", "a.c"] {
            std::fs::write(dir.path().join("src").join(name), "").unwrap();
        }
        let sources = sources_in_c(dir.path()).unwrap();
        assert_eq!(sources, ["src/a.c", "src/a.o", "src/b.c"].map(PathBuf::from));
    }
}
