//! The `filter` stage.
use std::collections::BTreeMap;

use serde::Deserialize;
use sluice_plugin::{Batch, Error, Stage};

/// The config of the stage.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Filter {
    header_matches: BTreeMap<String, String>,
}

impl Stage for Filter {
    fn process(&self, batch: &Batch<'_>) -> Result<(), Error> {
        for (name, wanted) in &self.header_matches {
            for (message, value) in batch.iter().zip(batch.header_column(name).iter()) {
                if value != Some(wanted) {
                    message.drop("header differs");
                }
            }
        }
        Ok(())
    }
}

sluice_plugin::export!(Filter);
