//! Whether a component fits the plugin world, told in words that its author can act on. Invariant: what passes here
//! imports only what the host serves. Never runs anything.

use semver::Version;
use wasmparser::{Parser, Payload, Validator, WasmFeatures};
use wasmtime::{Engine, Error};

use super::component::ComponentError;
use super::limits::{REASON_BYTES_MAX, cut};

/// The newest version of `sluice:plugin` that this host serves.
pub const SERVED: Version = Version::new(1, 0, 0);
/// The oldest one: compiled plugins of every version between them run.
const SERVED_FROM: Version = Version::new(1, 0, 0);
/// Where its interfaces are.
const PACKAGE: &str = "sluice:plugin/";

const STAGE: &str = "sluice:plugin/stage";
const OURS: [&str; 5] =
    ["sluice:plugin/types", "sluice:plugin/log", KV, "sluice:plugin/metrics", "sluice:plugin/schemas"];
/// Values that outlive the batch.
const KV: &str = "sluice:plugin/kv";
/// What libraries import whether they use it or not; behind it is nothing but clocks and randomness.
const WASI: [&str; 6] = ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];
const WASI_MINOR: &str = "0.2.";

/// Interfaces that a component imports: WASI 0.2 has some forty, and each is kept, shown and linked.
const IMPORTS_MAX: usize = 256;
/// Functions of all its modules, and ways in and out: each costs the compiler a fixed time, however short it is. Script
/// languages have some ten thousand.
const FUNCTIONS_MAX: usize = 200_000;
/// Bytes of one function: the compiler takes more than twice the time for twice as long a one. The longest of a script
/// language's interpreter has a few hundred thousand.
const FUNCTION_BYTES_MAX: usize = 1024 * 1024;

/// Magic and version of a component, from the component model's binary format.
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";
/// Magic and version of a core module.
const MODULE: [u8; 8] = *b"\0asm\x01\0\0\0";

fn unusable(why: impl Into<String>) -> ComponentError {
    // Names in it are the component's, and may be of any length.
    ComponentError::Unusable(cut(why.into(), REASON_BYTES_MAX))
}

/// The interfaces that the component imports, once all of them and its exports are allowed.
///
/// # Errors
/// What the bytes are instead of a component, where they are damaged, or what is missing or too much.
pub fn check(bytes: &[u8]) -> Result<Vec<String>, ComponentError> {
    check_magic(bytes)?;
    let damaged = |error: wasmparser::BinaryReaderError| unusable(format!("it is no valid component: {error}"));
    Validator::new_with_features(WasmFeatures::default()).validate_all(bytes).map_err(damaged)?;
    let mut world = World::default();
    world.read(bytes).map_err(damaged)?;
    check_size(&world)?;
    for name in &world.imports {
        check_import(name)?;
    }
    let exported = world.exports.iter().find_map(|name| split(name).filter(|(id, _)| *id == STAGE));
    match exported {
        Some((_, Some(version))) if version.major == SERVED.major => Ok(world.imports),
        Some((_, version)) => Err(unusable(targets(version.as_ref()))),
        None => Err(unusable(format!("it does not export {STAGE}@{SERVED}: implement the world sluice:plugin/plugin"))),
    }
}

fn check_magic(bytes: &[u8]) -> Result<(), ComponentError> {
    match bytes.first_chunk::<8>() {
        Some(&COMPONENT) => Ok(()),
        Some(&MODULE) => Err(unusable(
            "this is a core module, not a component: build it for wasm32-wasip2, or wrap it with `wasm-tools component new`",
        )),
        _ if Engine::detect_precompiled(bytes).is_some() => {
            Err(unusable("this is machine code for wasmtime: bring the component that it was made from"))
        }
        _ => Err(unusable("this is no WebAssembly component (it does not begin with its magic number)")),
    }
}

/// What the compiler would be given, before it is.
fn check_size(world: &World) -> Result<(), ComponentError> {
    let World { imports, functions, ways_in_and_out, function_bytes, .. } = world;
    let functions = functions + ways_in_and_out;
    if imports.len() > IMPORTS_MAX {
        return Err(unusable(format!("it imports {} interfaces: at most {IMPORTS_MAX} are allowed", imports.len())));
    }
    if functions > FUNCTIONS_MAX {
        return Err(unusable(format!("it has {functions} functions: at most {FUNCTIONS_MAX} are allowed")));
    }
    if *function_bytes > FUNCTION_BYTES_MAX {
        let why = format!("a function of it has {function_bytes} bytes: at most {FUNCTION_BYTES_MAX} are allowed");
        return Err(unusable(why));
    }
    Ok(())
}

/// The outermost component's imports and exports (those of the parts within it are its own affair), and how much code
/// there is in all.
#[derive(Debug, Default)]
pub struct World {
    /// The interfaces that it imports, in order.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
    /// Functions of all parts.
    pub functions: usize,
    /// What is lifted and lowered: each costs the compiler what a function does.
    pub ways_in_and_out: usize,
    /// Bytes of the longest function.
    pub function_bytes: usize,
}

impl World {
    /// Adds what `bytes` tell, up to where they can't be read.
    ///
    /// # Errors
    /// Where that is.
    pub fn read(&mut self, bytes: &[u8]) -> wasmparser::Result<()> {
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::CodeSectionEntry(body) => {
                    self.functions += 1;
                    self.function_bytes = self.function_bytes.max(body.range().len());
                }
                Payload::ComponentCanonicalSection(section) => self.ways_in_and_out += section.count() as usize,
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        self.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        self.exports.push(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_import(name: &str) -> Result<(), ComponentError> {
    match split(name) {
        // A newer minor version is no reason by itself: it may not use what was added since.
        Some((id, Some(version))) if OURS.contains(&id) && version.major == SERVED.major => Ok(()),
        Some((id, version)) if OURS.contains(&id) => Err(unusable(targets(version.as_ref()))),
        // An interface that came later.
        Some((id, Some(version))) if id.starts_with(PACKAGE) && version > SERVED => {
            Err(unusable(format!("{}: it imports {name}", targets(Some(&version)))))
        }
        Some((id, Some(version)))
            if WASI.iter().any(|prefix| id.starts_with(prefix)) && version.to_string().starts_with(WASI_MINOR) =>
        {
            Ok(())
        }
        _ => Err(unusable(format!("it imports {name}, which Sluice does not offer to plugins"))),
    }
}

/// Why a component with these imports could not be linked.
#[must_use]
pub fn misfit(imports: &[String], error: &Error) -> ComponentError {
    let wanted = imports
        .iter()
        .filter_map(|name| split(name))
        .find_map(|(id, version)| version.filter(|version| OURS.contains(&id) && *version > SERVED));
    match wanted {
        Some(version) => unusable(format!("{}: {error:#}", targets(Some(&version)))),
        None => unusable(format!("it does not fit the world sluice:plugin/plugin: {error:#}")),
    }
}

/// Whether a component with these imports keeps values.
#[must_use]
pub fn keeps_values(imports: &[String]) -> bool {
    imports.iter().filter_map(|name| split(name)).any(|(id, _)| id == KV)
}

fn targets(version: Option<&Version>) -> String {
    let version = version.map_or_else(|| "no version".to_owned(), Version::to_string);
    format!("the plugin targets {version} of sluice:plugin, this host serves {SERVED_FROM}–{SERVED}")
}

/// `sluice:plugin/types@1.0.0` as name and version.
fn split(name: &str) -> Option<(&str, Option<Version>)> {
    match name.split_once('@') {
        Some((id, version)) => Some((id, Some(Version::parse(version).ok()?))),
        None => Some((name, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why<T: std::fmt::Debug>(result: Result<T, ComponentError>) -> String {
        result.expect_err("it is refused").to_string()
    }

    #[test]
    fn imports_are_an_allow_list() {
        for allowed in
            ["sluice:plugin/types@1.0.0", "sluice:plugin/log@1.3.0", "sluice:plugin/kv@1.0.0", "wasi:sockets/tcp@0.2.0"]
        {
            assert_eq!(check_import(allowed), Ok(()), "{allowed}");
        }
        assert!(why(check_import("sluice:plugin/types@2.0.0")).contains("targets 2.0.0"));
        let later = why(check_import("sluice:plugin/clock@1.1.0"));
        assert!(later.contains("targets 1.1.0 of sluice:plugin, this host serves 1.0.0–1.0.0"), "{later}");
        for refused in [
            "sluice:plugin/clock@1.0.0",
            "wasi:http/outgoing-handler@0.2.0",
            "wasi:io/poll@0.3.0",
            "acme:db/sql@1.0.0",
            "env",
            "wasi:io/poll",
        ] {
            assert!(why(check_import(refused)).contains("does not offer"), "{refused}");
        }
    }

    #[test]
    fn bytes_are_told_what_they_are() {
        assert!(why(check(b"\0asm\x01\0\0\0")).contains("core module"));
        assert!(why(check(b"hello world")).contains("no WebAssembly"));
        assert!(why(check(b"")).contains("no WebAssembly"));
    }
}
