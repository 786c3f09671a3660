//! What tells a catalog's database from all others. Invariant: all brokers on one database hear the same, also through a
//! pooler and by another name of its host; a broker on files of its own hears what its first start has drawn.

use sha2::{Digest as _, Sha256};

use super::engine::Engine;
use super::{Catalog, CatalogError};

/// The cluster's own number, which a standby shares, and the database's in it.
const IDENTITY: &str = "SELECT system_identifier::text || '.' || \
    (SELECT oid::text FROM pg_database WHERE datname = current_database()) FROM pg_control_system()";

impl Catalog {
    /// Sixteen letters that go into names elsewhere, such as those of keys in Redis.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn identity(&self) -> Result<String, CatalogError> {
        let mut reading = self.read().await?;
        let asked = match self.engine {
            Engine::Postgres => IDENTITY,
            Engine::Sqlite => "SELECT identity FROM identity",
        };
        let identity: String = sqlx::query_scalar(asked).fetch_one(&mut *reading).await?;
        Ok(hex::encode(&Sha256::digest(identity.as_bytes())[..8]))
    }
}
