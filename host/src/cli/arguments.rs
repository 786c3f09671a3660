//! Arguments that several commands share, and how their texts are read. Invariant: what is wrong is refused here, before
//! anything is sent. Never reads a file but the one that an argument names.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value};

use super::client::ClientArgs;
use super::failure::Failure;
use crate::config::{self, Flags, parse_duration};

/// Bytes of an input that is read whole at most: above any body that a broker takes.
pub(super) const INPUT_BYTES_MAX: u64 = 1 << 30;
/// Bytes of one line at most: above any message that a broker takes.
pub(super) const LINE_BYTES_MAX: u64 = 256 << 20;

/// The actions of a noun, and the broker that they ask.
#[derive(Debug, Args)]
pub(super) struct Noun<A: Subcommand> {
    #[command(subcommand)]
    pub(super) action: A,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub(super) struct ConfigFlags {
    /// Settings file, sluice.toml or appsettings.json [default: ./sluice.toml or DATA_DIR/sluice.toml, if there]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Directory of everything that is kept [default with the development profile: ./sluice-data]
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// How safe the defaults are [default: development]
    #[arg(long, value_enum)]
    pub(super) profile: Option<Profile>,
}

/// As [`config::Profile`], for the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Profile {
    /// A secret is made at first start, webhooks may go to loopback by plain HTTP
    Development,
    /// The secret and the data directory must be given
    Production,
}

impl ConfigFlags {
    pub(super) fn flags(&self) -> Flags {
        Flags {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            profile: self.profile.map(|profile| match profile {
                Profile::Development => config::Profile::Development,
                Profile::Production => config::Profile::Production,
            }),
            ..Flags::default()
        }
    }
}

/// A duration that stays as it was written: the API takes the same form.
pub(super) fn iso_duration(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned())
}

/// `name=value`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not NAME=VALUE")),
    }
}

/// Asks for settings to be taken away; each is given as its option and its field.
pub(super) fn unset(body: &mut Map<String, Value>, options: &[String], fields: &[(&str, &str)]) -> Result<(), Failure> {
    for (option, field) in fields.iter().filter(|(option, _)| options.iter().any(|unset| unset == option)) {
        if body.insert((*field).to_owned(), Value::Null).is_some() {
            return Err(Failure::Usage(format!("{option} is both given and unset")));
        }
    }
    Ok(())
}

/// A file's bytes, or those of standard input for `-`.
pub(super) fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.map_err(Failure::io(name.clone()))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failure::Usage(format!("{name} is larger than {INPUT_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// As [`read_input`], for text.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read_input(path)?).map_err(|_| Failure::Usage(format!("{} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_durations_are_checked() {
        assert_eq!(pair("a = b=c"), Ok(("a".to_owned(), " b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err());
        assert_eq!(iso_duration("PT30S"), Ok("PT30S".to_owned()));
        assert!(iso_duration("30s").is_err());
    }

    #[test]
    fn what_is_unset_is_null_and_not_given_too() {
        let fields = [("schema-id", "schemaId"), ("retention-bytes", "retentionBytes")];
        let mut body = Map::from_iter([("schemaId".to_owned(), "s".into())]);
        unset(&mut body, &["retention-bytes".to_owned()], &fields).expect("not given");
        assert_eq!(Value::Object(body.clone()), serde_json::json!({"schemaId": "s", "retentionBytes": null}));
        assert!(matches!(unset(&mut body, &["schema-id".to_owned()], &fields), Err(Failure::Usage(_))));
    }

    #[test]
    fn inputs_are_read_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("in");
        std::fs::write(&file, [0xff]).expect("written");
        assert_eq!(read_input(&file).expect("read"), [0xff]);
        assert!(matches!(read_text(&file), Err(Failure::Usage(_))));
        assert!(matches!(read_input(&directory.path().join("missing")), Err(Failure::Io { .. })));
    }
}
