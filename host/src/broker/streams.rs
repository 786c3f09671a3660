//! The store of the topics that are in Redis. Invariant: a broker that lacks the Redis which its catalog's topics are in does not start; one
//! whose Redis is away does.

use std::sync::Arc;

use prometheus::Registry;

use super::ServeError;
use crate::catalog::Catalog;
use crate::catalog::model::Storage;
use crate::clock::Clock;
use crate::config::Config;
use crate::entropy::Entropy;
use crate::store::redis::{RedisOptions, RedisStore};

/// Opens it, if there is a Redis.
///
/// # Errors
/// When that must not be used, or when there is none and topics are in one.
pub(super) async fn open(
    config: &Config,
    catalog: &Catalog,
    (clock, entropy): (&Clock, &Entropy),
    registry: &Registry,
) -> Result<Option<Arc<RedisStore>>, ServeError> {
    let Some(settings) = &config.redis else {
        let topics = catalog.topics().await?;
        return match topics.into_iter().find(|topic| topic.settings.storage == Storage::Redis) {
            Some(topic) => Err(ServeError::NoRedis { topic: topic.name.to_string() }),
            None => Ok(None),
        };
    };
    let options = RedisOptions {
        settings: settings.clone(),
        name: catalog.identity().await?,
        node: config.node_id.as_str().into(),
        clock: clock.clone(),
        entropy: entropy.clone(),
    };
    let store = RedisStore::open(options).await?;
    store.register(registry)?;
    Ok(Some(Arc::new(store)))
}
