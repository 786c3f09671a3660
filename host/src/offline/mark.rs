//! What says that a data directory or a database is one end of a move. Invariant: while it stands no broker serves from there,
//! so that nothing is delivered twice, or changed behind the move's back; it is on the disk before anything is copied.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::OfflineError;
use crate::catalog::{Catalog, CatalogError};
use crate::clock::Timestamp;

/// In a data directory.
const FILE: &str = "moved.json";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// The same at both ends.
    pub id: String,
    /// Which end.
    pub role: Role,
    /// The other end, as people name it.
    pub other: String,
    /// Since when.
    pub at: Timestamp,
}

/// An end of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Everything is read from here.
    Source,
    /// Everything has been read from here, and is served from the other end.
    Left,
    /// Everything goes here.
    Target,
}

impl Mark {
    /// Why no broker serves from here, and what to do.
    #[must_use]
    pub fn refusal(&self) -> String {
        let (other, since) = (&self.other, self.at.rfc3339());
        match self.role {
            Role::Source => format!(
                "what is here is being moved to {other} since {since}: run the same `sluice migrate-store` again to go on, or with \
                 --abandon to serve it from here"
            ),
            Role::Left => format!(
                "what is here was moved to {other} at {since}: serve it from there; what has come there since is not here"
            ),
            Role::Target => format!(
                "what is here is not whole: the move from {other} that began at {since} has not ended; run the same `sluice \
                 migrate-store` again to go on, or with --abandon to take it out again"
            ),
        }
    }
}

/// Where an end keeps its mark.
#[derive(Debug, Clone)]
pub enum Marked {
    /// A data directory.
    Dir(PathBuf),
    /// A database.
    Database(Catalog),
}

impl Marked {
    /// What stands there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self) -> Result<Option<Mark>, OfflineError> {
        let text = match self {
            Marked::Dir(dir) => match std::fs::read_to_string(dir.join(FILE)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                text => Some(text.map_err(OfflineError::io(format!("reading {FILE}")))?),
            },
            Marked::Database(catalog) => catalog.move_mark().await?,
        };
        let unreadable = |error: serde_json::Error| CatalogError::Damaged(format!("the mark of a move: {error}"));
        Ok(text.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()?)
    }

    /// Sets it, or takes it away; on stable storage after that.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn write(&self, mark: Option<&Mark>) -> Result<(), OfflineError> {
        let text = mark.map(|mark| serde_json::to_string(mark).expect("a mark has text keys"));
        match self {
            Marked::Dir(dir) => write_file(dir, text.as_deref()).map_err(OfflineError::io(format!("writing {FILE}"))),
            Marked::Database(catalog) => Ok(catalog.set_move_mark(text.as_deref()).await?),
        }
    }
}

fn write_file(dir: &Path, text: Option<&str>) -> std::io::Result<()> {
    let (file, beside) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
    match text {
        Some(text) => {
            let mut new = std::fs::File::create(&beside)?;
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            std::fs::rename(&beside, &file)?;
        }
        None => match std::fs::remove_file(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed?,
        },
    }
    std::fs::File::open(dir)?.sync_all()
}
