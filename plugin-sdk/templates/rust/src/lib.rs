//! Passes the messages whose header has the wanted value, drops the others, and sets a field of the payload.

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_plugin::{Failure, Message, Rejection, Stage};

/// The stage's config, see config.schema.json. To read it is to check it: what it can't be read from is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    header: String,
    value: String,
    field: Option<String>,
    #[serde(default)]
    text: String,
}

impl Stage for Plugin {
    /// Called for each message. Doing nothing passes it on as it is.
    fn message(&self, message: &Message) -> Result<(), Failure> {
        if message.header(&self.header).as_ref() != Some(&self.value) {
            message.drop("another value");
            return Ok(());
        }
        let Some(field) = &self.field else { return Ok(()) };
        let mut payload: Map<String, Value> = message
            .json()
            .map_err(|_| Rejection::new("NOT_AN_OBJECT", "the payload is no JSON object"))?;
        payload.insert(field.clone(), self.text.clone().into());
        message.set_json(&payload)?;
        Ok(())
    }
}

sluice_plugin::export!(Plugin);

// `cargo test` runs the stage natively; `sluice plugin test` runs the component over cases/.
#[cfg(test)]
mod tests {
    use sluice_plugin::testing::{Input, Verdict, run};

    use super::*;

    #[test]
    fn only_the_wanted_value_passes() {
        let inputs = ["order", "refund"].map(|kind| Input::new("{}").header("kind", kind));
        let outcomes = run::<Plugin>(r#"{"header": "kind", "value": "order"}"#, inputs).unwrap();
        assert_eq!(outcomes[0].verdict, Verdict::Passed);
        assert_eq!(outcomes[1].verdict, Verdict::Dropped("another value".into()));
    }
}
