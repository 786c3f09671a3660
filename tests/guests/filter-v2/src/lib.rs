//! What an owner might put in the place of the first-party `filter`: takes the same config, and lets through what is
//! critical besides what matches. Marks what it passes, so that a suite sees which version a message met.

use std::collections::BTreeMap;

use sluice_plugin::serde::Deserialize;
use sluice_plugin::{Failure, Message, Stage};

#[derive(Deserialize)]
#[serde(crate = "sluice_plugin::serde", rename_all = "camelCase")]
struct Filter {
    header_matches: BTreeMap<String, String>,
}

impl Stage for Filter {
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        let matches = self.header_matches.iter().all(|(name, wanted)| message.header(name).as_ref() == Some(wanted));
        if matches || message.header("severity").as_deref() == Some("critical") {
            message.set_header("passed-by", "filter-v2");
        } else {
            message.drop("matches no header and is not critical");
        }
        Ok(())
    }
}

sluice_plugin::export!(Filter);
