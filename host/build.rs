//! Builds the plugins that come with the binary, as WebAssembly, before the binary embeds them. Invariant: what is embedded
//! is what `plugins/` says now. Never touches the target directory of the build that it is part of, whose lock is held.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

const PLUGINS: [&str; 7] = ["cloudevents", "dedup", "filter", "jq", "json-schema", "redact", "sample"];
/// The custom section of a component that holds the JSON Schema of its config (`wit/sluice.wit`).
const CONFIG_SCHEMA: &str = "sluice:config-schema";
const TARGET: &str = "wasm32-wasip2";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    for watched in ["plugins", "plugin-sdk", "wit"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = wasm_target_dir(&out)?;
    build(&root.join("plugins/Cargo.toml"), &target_dir)?;
    for plugin in PLUGINS {
        let made = target_dir.join(TARGET).join("release").join(format!("{}.wasm", plugin.replace('-', "_")));
        let mut bytes = fs::read(&made).map_err(|error| format!("{}: {error}", made.display()))?;
        let schema = root.join("plugins").join(plugin).join("config.schema.json");
        let schema = fs::read(&schema).map_err(|error| format!("{}: {error}", schema.display()))?;
        append_section(&mut bytes, CONFIG_SCHEMA, &schema)?;
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

/// Appends a custom section (id 0) to a component: its size, its name with the name's length, its content.
fn append_section(component: &mut Vec<u8>, name: &str, content: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut section = Vec::new();
    leb128(&mut section, u32::try_from(name.len())?);
    section.extend_from_slice(name.as_bytes());
    section.extend_from_slice(content);
    component.push(0);
    leb128(component, u32::try_from(section.len())?);
    component.extend_from_slice(&section);
    Ok(())
}

/// Unsigned LEB128, as WebAssembly writes lengths.
fn leb128(bytes: &mut Vec<u8>, mut number: u32) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn is_outer(name: &str) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_TERM_"];
    let flags = ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOCFLAGS", "RUSTC", "RUSTDOC", "TARGET"];
    flags.contains(&name) || (name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept)))
}
