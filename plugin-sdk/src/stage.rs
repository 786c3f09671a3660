//! The one trait that a plugin implements.
//! Invariant: a stage exists only with a config it accepted. Never holds anything across batches by itself.

use serde::de::DeserializeOwned;

use crate::{
    batch::Batch,
    error::{Error, Failure},
    message::Message,
};

/// A stage of a topic's or subscription's pipeline. The struct is the config: `#[derive(Deserialize)]`, best
/// with `#[serde(deny_unknown_fields)]`, so that a misspelt setting is refused when the stage is set.
///
/// Where a config needs work before its first use (a pattern to compile, a schema to read), say
/// `#[serde(try_from = "Config")]` and do it in `TryFrom<Config>`: its error refuses the config.
///
/// Implement [`message`](Self::message), or [`process`](Self::process) to see the whole batch (for columns).
pub trait Stage: DeserializeOwned + 'static {
    /// Reads the config, a JSON document; an empty one is read as `{}`. Called once per instance.
    fn configure(config: &str) -> Result<Self, Error> {
        let config = if config.trim().is_empty() { "{}" } else { config };
        serde_json::from_str(config).map_err(|e| Error::new(format!("the config is not usable: {e}")))
    }

    /// Looks at one message. `Ok` with nothing edited passes it.
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        let _ = message;
        Ok(())
    }

    /// Looks at a batch: by itself, calls [`message`](Self::message) for each and turns its rejections into
    /// verdicts. An error is a fault of the stage for the whole batch.
    fn process(&self, batch: &Batch<'_>) -> Result<(), Error> {
        for message in batch {
            match self.message(&message) {
                Ok(()) => {}
                Err(Failure::Rejection(rejection)) => message.reject(rejection),
                Err(Failure::Fault(error)) => return Err(error),
            }
        }
        Ok(())
    }
}
