//! Powers: what a plugin asks of the host beyond its batch and its log. Invariant: a version that imports a power which the
//! version in use does not have is taken in only once an Admin has allowed it. Never links anything.

use super::registry::is_plugin_name;
use super::{PipelineError, Pipelines};
use crate::catalog::{Actor, AllowedPowers};

/// All there are, by their interface of `sluice:plugin`.
pub const POWERS: [&str; 3] = ["kv", "metrics", "schemas"];

const PACKAGE: &str = "sluice:plugin/";

/// The powers among the interfaces that a component imports, in the order of [`POWERS`].
#[must_use]
pub fn powers_of(imports: &[String]) -> Vec<&'static str> {
    let imported = |power: &&str| {
        imports.iter().filter_map(|name| name.strip_prefix(PACKAGE)).any(|name| name.split('@').next() == Some(*power))
    };
    POWERS.into_iter().filter(imported).collect()
}

impl Pipelines {
    /// What a plugin is allowed beyond what its version in use has; none if there is no such plugin.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn allowed_powers(&self, plugin: &str) -> Result<Option<AllowedPowers>, PipelineError> {
        if !self.is_or_was_known(plugin).await? {
            return Ok(None);
        }
        Ok(Some(self.catalog.allowed_powers(plugin).await?))
    }

    /// Sets what a plugin is allowed. What runs goes on: it counts when a version comes in.
    ///
    /// # Errors
    /// The catalog's; not found where there is no such plugin.
    pub async fn allow_powers(
        &self,
        plugin: &str,
        allowed: &[&str],
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<Option<AllowedPowers>, PipelineError> {
        if !is_plugin_name(plugin) || !self.is_or_was_known(plugin).await? {
            return Ok(None);
        }
        // In one order, so that the same set is the same however it was written.
        let allowed = POWERS.into_iter().filter(|power| allowed.contains(power)).map(str::to_owned).collect();
        Ok(Some(self.catalog.allow_powers(plugin, allowed, expected, actor).await?))
    }

    /// Whether there is a version of it, or there was: what comes then may wait for an Admin, who has to be heard.
    async fn is_or_was_known(&self, plugin: &str) -> Result<bool, PipelineError> {
        Ok(self.registry.is_known(plugin) || self.catalog.imports_when_deleted(plugin).await?.is_some())
    }

    /// Refuses a component that imports a power which is new to the plugin and not allowed. Bytes that were accepted before
    /// are not asked again: to go back to them must not need an Admin.
    pub(super) async fn check_powers(
        &self,
        plugin: &str,
        digest: &str,
        imports: &[String],
    ) -> Result<(), PipelineError> {
        let (in_use, imported) = match self.registry.resolve(plugin, "latest") {
            Some(in_use) => (Some(in_use.version), in_use.imports),
            // Whoever deletes all versions does not make the name a new one.
            None => match self.catalog.imports_when_deleted(plugin).await? {
                Some(imports) => (None, imports),
                None => return Ok(()),
            },
        };
        if self.registry.with_digest(plugin, digest).is_some() {
            return Ok(());
        }
        let has = powers_of(&imported);
        let mut powers = powers_of(imports);
        powers.retain(|power| !has.contains(power));
        if powers.is_empty() {
            return Ok(());
        }
        let allowed = self.catalog.allowed_powers(plugin).await?.allowed;
        powers.retain(|power| !allowed.iter().any(|allowed| allowed == power));
        if powers.is_empty() {
            return Ok(());
        }
        Err(PipelineError::Powers { plugin: plugin.to_owned(), in_use, powers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_the_interfaces_beyond_batch_and_log() {
        let imports = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let usual = imports(&["sluice:plugin/types@1.0.0", "sluice:plugin/log@1.0.0", "wasi:io/poll@0.2.6"]);
        assert!(powers_of(&usual).is_empty());
        let all = imports(&["sluice:plugin/schemas@1.0.0", "sluice:plugin/kv@1.2.0", "sluice:plugin/metrics@1.0.0"]);
        assert_eq!(powers_of(&all), POWERS);
        assert!(powers_of(&imports(&["acme:plugin/kv@1.0.0", "sluice:plugin/kvs@1.0.0"])).is_empty());
    }
}
