//! Builds the plugins that come with the binary, as WebAssembly, before the binary embeds them. Invariant: what is embedded
//! is what `plugins/` says now. Never touches the target directory of the build that it is part of, whose lock is held.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

#[path = "src/pipeline/custom_section.rs"]
mod custom_section;

const PLUGINS: [&str; 7] = ["cloudevents", "dedup", "filter", "jq", "json-schema", "redact", "sample"];
const TARGET: &str = "wasm32-wasip2";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    for watched in ["plugins", "plugin-sdk", "wit"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/pipeline/custom_section.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = wasm_target_dir(&out)?;
    build(&root.join("plugins/Cargo.toml"), &target_dir)?;
    for plugin in PLUGINS {
        let made = target_dir.join(TARGET).join("release").join(format!("{}.wasm", plugin.replace('-', "_")));
        let mut bytes = fs::read(&made).map_err(|error| format!("{}: {error}", made.display()))?;
        let schema = root.join("plugins").join(plugin).join("config.schema.json");
        let schema = fs::read(&schema).map_err(|error| format!("{}: {error}", schema.display()))?;
        custom_section::append(&mut bytes, custom_section::CONFIG_SCHEMA, &schema);
        // A start need not read the components to know them.
        fs::write(out.join(format!("{plugin}.sha256")), hex::encode(Sha256::digest(&bytes)))?;
        fs::write(out.join(format!("{plugin}.wasm")), bytes)?;
    }
    embed_project_files(&root.join("plugin-sdk"), &out)?;
    Ok(())
}

/// What `sluice plugin new` writes: the templates, and the SDK as far as a plugin needs it.
fn embed_project_files(sdk: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut source = String::new();
    for (name, root, parts) in [
        ("TEMPLATES", sdk.join("templates"), &["."][..]),
        ("SDK", sdk.to_owned(), &["Cargo.toml", "README.md", "src", "wit"]),
    ] {
        let mut files = Vec::new();
        for part in parts {
            collect(&root.join(part), &mut files)?;
        }
        files.sort();
        source += &format!("pub(super) const {name}: &[(&str, &[u8])] = &[\n");
        for file in files {
            let file = file.canonicalize()?;
            let path = file.strip_prefix(root.canonicalize()?)?;
            source += &format!("    ({path:?}, include_bytes!({file:?})),\n");
        }
        source += "];\n";
    }
    Ok(fs::write(out.join("project_files.rs"), source)?)
}

/// All files below `path`, or itself.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| format!("{}: {error}", path.display()))? {
        let entry = entry?.path();
        // What a tool leaves behind is no part of a template.
        if !entry.file_name().is_some_and(|name| name == "__pycache__" || name == "target") {
            collect(&entry, files)?;
        }
    }
    Ok(())
}

/// Beside the profile's directory: all profiles share the plugins, which are always built for speed.
fn wasm_target_dir(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let profile = out.ancestors().find(|dir| dir.file_name() == Some(OsStr::new("build"))).and_then(Path::parent);
    let target = profile.and_then(Path::parent).ok_or("OUT_DIR is not below a `build` directory")?;
    Ok(target.join("wasm"))
}

fn build(manifest: &Path, target_dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--target", TARGET, "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(target_dir);
    // What is meant for the outer build (flags for another processor, clippy in the compiler's place) is not for this one.
    for (name, _) in env::vars_os() {
        if is_outer(&name.to_string_lossy()) {
            cargo.env_remove(&name);
        }
    }
    // The same source makes the same bytes wherever it is built, and no path of the machine gets into them.
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")));
    let root = manifest.canonicalize().ok().and_then(|path| path.parent()?.parent().map(Path::to_path_buf));
    let mut remaps = Vec::new();
    remaps.extend(root.map(|root| format!("--remap-path-prefix={}=/sluice", root.display())));
    remaps.extend(home.ok().map(|home| format!("--remap-path-prefix={home}=/cargo")));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", remaps.join("\u{1f}"));
    let output = cargo.output().map_err(|error| format!("cargo can't be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("can't find crate for `core`") || said.contains("target may not be installed") {
        return Err(format!("the plugins need the {TARGET} target: run `rustup target add {TARGET}`").into());
    }
    Err(format!("the plugins do not build:\n{said}").into())
}

fn is_outer(name: &str) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_TERM_"];
    let flags = ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOCFLAGS", "RUSTC", "RUSTDOC", "TARGET"];
    flags.contains(&name) || (name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept)))
}
