//! Where settings come from: one file, the environment, flags; later ones win. Invariant: each value remembers where it
//! was written, and a name that is no setting is a fault that says so. Never decides whether values fit together.

use std::path::{Path, PathBuf};

use figment::providers::{Format as _, Json, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::keys::{KEYS, find, near};
use super::{Flags, guide};

/// What an environment variable of ours begins with.
const ENV_PREFIX: &str = "SLUICE__";
/// The file that is read when no other is named.
const FILE_NAME: &str = "sluice.toml";
/// Bytes of a configuration file at most: it is read whole, and a wrong path must not fill the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything that was said, merged.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) merged: Figment,
    pub(super) warnings: Vec<String>,
    pub(super) faults: Vec<String>,
}

/// One value and where it was written.
struct Origin {
    name: String,
    values: Dict,
}

impl Provider for Origin {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }
    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// Reads all layers, weakest first.
pub(super) fn gather(flags: &Flags, env: &[(String, String)], directory: &Path) -> Layers {
    let mut layers = Layers::default();
    if let Some(path) = file(flags, env, directory) {
        layers.add_file(&path);
    }
    // A file's own word on the same setting loses to the guide's variables, and these to ours.
    layers.add_guide_env(env);
    layers.add_own_env(env);
    layers.add_flags(flags);
    layers
}

/// The file to read: the one that is named, or `sluice.toml` here or in the data directory.
fn file(flags: &Flags, env: &[(String, String)], directory: &Path) -> Option<PathBuf> {
    if let Some(named) = &flags.config {
        return Some(named.clone());
    }
    let from_env = || env.iter().find(|(name, _)| name == "SLUICE__DATA_DIR").map(|(_, value)| PathBuf::from(value));
    let data_dir = flags.data_dir.clone().or_else(from_env).unwrap_or_else(|| super::DEVELOPMENT_DATA_DIR.into());
    [directory.join(FILE_NAME), directory.join(data_dir).join(FILE_NAME)].into_iter().find(|path| path.is_file())
}

impl Layers {
    /// Adds one value, and checks it.
    fn set(&mut self, origin: &str, path: &'static str, value: Value) {
        let key = find(path).expect("only paths of the table are set");
        if let Err(wrong) = key.kind.check(&value) {
            return self.faults.push(format!("{path} (from {origin}) {wrong}"));
        }
        let mut values = Dict::new();
        nest(&mut values, path, value);
        let layer = Origin { name: origin.to_owned(), values };
        self.merged = std::mem::take(&mut self.merged).merge(layer);
    }

    fn unknown(&mut self, origin: &str, given: &str) {
        let near = near(given, KEYS.iter().map(|key| key.path));
        let hint = match near.as_slice() {
            [] => "; `sluice config` lists them all".to_owned(),
            near => format!("; did you mean {}?", near.join(" or ")),
        };
        self.faults.push(format!("'{given}' (from {origin}) is not a setting{hint}"));
    }

    fn add_file(&mut self, path: &Path) {
        let origin = path.display().to_string();
        match read_file(path) {
            Err(fault) => self.faults.push(format!("{origin}: {fault}")),
            Ok(values) => {
                for (name, value) in values {
                    if guide::is_section(&name) {
                        self.add_guide_section(&origin, &name, &value);
                    } else {
                        self.add_own(&origin, &name, value);
                    }
                }
            }
        }
    }

    fn add_guide_section(&mut self, origin: &str, section: &str, values: &Value) {
        for (path, result) in guide::from_json(section, values) {
            self.add_mapped(&format!("{origin}, {path}"), result);
        }
    }

    fn add_own(&mut self, origin: &str, path: &str, value: Value) {
        if let Some(key) = find(path) {
            return self.set(origin, key.path, value);
        }
        let opens_section =
            KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')));
        match value {
            Value::Dict(_, entries) if opens_section => {
                for (name, value) in entries {
                    self.add_own(origin, &format!("{path}.{name}"), value);
                }
            }
            _ => self.unknown(origin, path),
        }
    }

    fn add_mapped(&mut self, origin: &str, result: Result<guide::Mapped, String>) {
        match result {
            Err(wrong) => self.faults.push(format!("{origin} {wrong}")),
            Ok(mapped) => {
                self.warnings.extend(mapped.warning);
                if let Some((path, value)) = mapped.setting {
                    self.set(origin, path, value);
                }
            }
        }
    }

    fn add_guide_env(&mut self, env: &[(String, String)]) {
        let secrets: Vec<&str> = env
            .iter()
            .filter(|(name, value)| {
                !value.is_empty() && ["JWT_SECRET", "JWT__SECRET"].iter().any(|own| own.eq_ignore_ascii_case(name))
            })
            .map(|(_, value)| value.as_str())
            .collect();
        if secrets.windows(2).any(|pair| pair[0] != pair[1]) {
            self.faults.push("JWT_SECRET and JWT__Secret name different secrets; set one of them".to_owned());
        }
        for (name, value) in env {
            if let Some(result) = guide::from_env(name, value) {
                self.add_mapped(name, result);
            } else if let Some(near) = guide::near_env(name) {
                let hint =
                    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) };
                self.warnings.push(format!("the environment variable {name} is not a setting and is ignored{hint}"));
            }
        }
    }

    fn add_own_env(&mut self, env: &[(String, String)]) {
        for (name, text) in env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let path = rest.to_ascii_lowercase().replace("__", ".");
            match find(&path) {
                None => self.unknown(name, &path),
                // An empty text is how compose files say "not set".
                Some(_) if text.is_empty() => {}
                Some(key) => match key.kind.parse(text) {
                    Ok(value) => self.set(name, key.path, value),
                    Err(wrong) => self.faults.push(format!("{name} {wrong}")),
                },
            }
        }
    }

    fn add_flags(&mut self, flags: &Flags) {
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let profile = flags.profile.map(|profile| match profile {
            super::Profile::Development => "development".to_owned(),
            super::Profile::Production => "production".to_owned(),
        });
        for (flag, path, value) in [
            ("--data-dir", "data_dir", text(&flags.data_dir)),
            ("--listen", "listen", flags.listen.clone()),
            ("--plugins-dir", "plugins.dir", text(&flags.plugins_dir)),
            ("--profile", "profile", profile),
        ] {
            if let Some(value) = value {
                self.set(flag, path, Value::from(value));
            }
        }
    }
}

fn read_file(path: &Path) -> Result<Dict, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("{size} bytes is too long for a configuration file"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| error.to_string()),
        Some("toml") => Toml::from_str(&text).map_err(|error| error.to_string()),
        _ => Err("the name must end with .toml or .json, so that its form is known".to_owned()),
    }
}

/// Puts `value` at a dotted path.
fn nest(values: &mut Dict, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(values.insert(path.to_owned(), value)),
        Some((section, rest)) => {
            let mut inner = Dict::new();
            nest(&mut inner, rest, value);
            values.insert(section.to_owned(), Value::from(inner));
        }
    }
}
