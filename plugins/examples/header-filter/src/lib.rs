//! A first plugin: passes the messages whose header has the wanted value, drops the others.
#![cfg_attr(rustfmt, rustfmt_skip)] // Laid out as the README shows it.

use sluice_plugin::{Failure, Message, Stage};
#[derive(serde::Deserialize)]
struct HeaderFilter { header: String, value: String }
impl Stage for HeaderFilter {
    fn message(&self, message: &Message) -> Result<(), Failure> {
        if message.header(&self.header).as_ref() != Some(&self.value) { message.drop("another value"); }
        Ok(())
    }
}
sluice_plugin::export!(HeaderFilter);

#[cfg(test)]
mod tests;
