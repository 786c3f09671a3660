//! What tells a catalog's database from all others. Invariant: all brokers on one database hear the same, also through a
//! pooler and by another name of its host, and after a restore or an upgrade of the server; so does who copies it.

use sha2::{Digest as _, Sha256};

use super::{Catalog, CatalogError};

impl Catalog {
    /// Sixteen letters that go into names elsewhere, such as those of keys in Redis.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn identity(&self) -> Result<String, CatalogError> {
        let mut reading = self.read().await?;
        let identity: String = sqlx::query_scalar("SELECT identity FROM identity").fetch_one(&mut *reading).await?;
        Ok(hex::encode(&Sha256::digest(identity.as_bytes())[..8]))
    }
}
