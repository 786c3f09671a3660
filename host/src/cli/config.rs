//! `sluice config`: the settings that a broker would start with. Invariant: secrets are never shown. Starts nothing and
//! makes nothing.

use clap::Args;
use serde_json::{Value, json};

use super::arguments::ConfigFlags;
use super::failure::Failure;
use super::output::{Column, Output};
use crate::config::{Config, KEYS, Loaded};

const COLUMNS: &[Column] = &[("SETTING", "/setting"), ("VALUE", "/value"), ("FROM", "/from")];
const COLUMNS_EXPLAINED: &[Column] =
    &[("SETTING", "/setting"), ("VALUE", "/value"), ("FROM", "/from"), ("MEANING", "/meaning")];

const AFTER_HELP: &str = "\
Each setting stands in sluice.toml under its name, and in the environment as SLUICE__ with __ for each dot: \
messaging.max_message_size is SLUICE__MESSAGING__MAX_MESSAGE_SIZE. Lists are separated by commas there. \
A configuration that a broker would refuse is refused here, too, with exit code 2.

Examples:
  sluice config --explain
  sluice config --config /etc/sluice/sluice.toml --profile production";

/// Show every setting, its value, and where it comes from.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    config: ConfigFlags,
    /// Say what each setting means
    #[arg(long)]
    explain: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Shows the settings.
pub(super) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let loaded = Config::load(&args.config.flags())?;
    let output = Output::new(args.json);
    output.list(&rows(&loaded), if args.explain { COLUMNS_EXPLAINED } else { COLUMNS }, "")?;
    for warning in &loaded.warnings {
        output.note(&format!("warning: {warning}"))?;
    }
    Ok(())
}

fn rows(loaded: &Loaded) -> Vec<Value> {
    let row = |key: &crate::config::Key| {
        let from = loaded.origins.get(key.path).map_or("default", String::as_str);
        json!({"setting": key.path, "value": (key.show)(&loaded.config), "from": from, "meaning": key.doc})
    };
    KEYS.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    #[test]
    fn secrets_are_not_shown_and_origins_are() {
        let env = [("SLUICE__JWT__SECRET".to_owned(), "do not show this to anybody, please".to_owned())];
        let loaded = Config::load_from(&Flags::default(), &env, std::path::Path::new("/nonexistent")).expect("valid");
        let rows = Value::Array(rows(&loaded)).to_string();
        assert!(!rows.contains("do not show"), "{rows}");
        assert!(rows.contains(r#""value":"[redacted]","from":"SLUICE__JWT__SECRET""#), "{rows}");
    }
}
