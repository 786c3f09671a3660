//! A data directory that no broker runs on: `verify` says what is damaged, `repair` writes what is left to a new one, `moving`
//! takes all of it to a fleet's database or back. Invariant: brokers are kept out of it meanwhile; a directory that is verified or
//! repaired is not changed, and one that is moved from keeps what it has. Knows how catalog and store belong together; what is
//! in either is read by them.

mod catalog;
pub mod mark;
pub mod moving;
mod repair;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::catalog::CatalogError;
use crate::clock::Clock;
use crate::message::TopicId;
use crate::store::StoreError;
use crate::store::embedded::{ClosedStore, Finding, Inspection, Kind, OpenError, Progress};

pub use self::repair::{Repaired, repair};

/// The catalog's file.
const CATALOG: &str = "catalog.db";
/// The store's directory.
const STORE: &str = "store";

/// Why a directory could not be looked at, or not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The store: in use, newer, unreadable.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The catalog: newer, or there is no room for its copy.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A store that is moved.
    #[error(transparent)]
    Messages(#[from] StoreError),
    /// The new directory is none that may be written to.
    #[error("{0}")]
    Target(String),
    /// What was written is not well: a fault of Sluice, or of the disk.
    #[error("what was written to {dir} is damaged ({fault}); do not use it")]
    Unsound {
        /// The new directory.
        dir: String,
        /// The first finding.
        fault: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl OfflineError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> OfflineError {
        let what = what.into();
        move |source| OfflineError::Io { what, source }
    }
}

/// What looking at a data directory came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What is wrong, and what an abrupt end left. Files are named relative to the data directory.
    pub findings: Vec<Finding>,
    /// The names of topics.
    pub names: HashMap<TopicId, String>,
    /// Files that were read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Topics, those of dead letters included.
    pub topics: u64,
    /// Messages in them.
    pub messages: u64,
    /// Messages that a segment lost and that the journal still has.
    pub rescued: u64,
}

impl Report {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.findings.iter().any(|finding| finding.kind.is_damage())
    }
}

/// Looks at a data directory.
///
/// # Errors
/// When it cannot be looked at. Damage is no error: it is in the report.
pub async fn verify(data_dir: &Path, clock: &Clock, told: &(dyn Fn(Progress) + Sync)) -> Result<Report, OfflineError> {
    let store = ClosedStore::take(&data_dir.join(STORE))?;
    let scratch = Scratch::new(&std::env::temp_dir())?;
    let found = catalog::read(data_dir, &scratch, clock).await?;
    // Before the long part, which somebody may break off: the copy holds secrets.
    found.catalog.close().await;
    drop(scratch);
    let seen = store.inspect(&found.known, clock.now(), told)?;
    Ok(report(found.findings, &found.topics, seen))
}

/// Puts together what was found in the catalog, in the store, and between the two.
fn report(mut findings: Vec<Finding>, topics: &catalog::Topics, seen: Inspection) -> Report {
    let complete = findings.is_empty();
    for (id, topic) in &seen.topics {
        match topics.get(id) {
            // Before the first topic is made there need not be a catalog.
            None if findings.iter().any(|finding| finding.kind == Kind::MissingCatalog) => {}
            None if complete && topic.messages > 0 => {
                let detail = format!("the catalog does not know topic {}, which has {} messages", id.0, topic.messages);
                let means =
                    "the next start removes it; as it should if the topic was being deleted when the broker ended";
                findings.push(Finding::new(Kind::StrayTopic, CATALOG, 0, detail, means));
            }
            Some((name, partitions)) if *partitions != topic.spec.partitions => {
                let there = topic.spec.partitions;
                let detail = format!("topic {name} has {partitions} partitions here, and {there} in the store");
                findings.push(Finding::new(Kind::BadCatalog, CATALOG, 0, detail, "a broker refuses to start"));
            }
            None | Some(_) => {}
        }
    }
    if seen.topics.is_empty() {
        findings.retain(|finding| finding.kind != Kind::MissingCatalog);
    }
    findings.extend(seen.findings.into_iter().map(|finding| {
        let file = format!("{STORE}/{}", finding.file);
        Finding { file, ..finding }
    }));
    findings.sort_by_key(|finding| !finding.kind.is_damage());
    Report {
        findings,
        names: topics.iter().map(|(id, (name, _))| (*id, name.clone())).collect(),
        files: seen.files,
        bytes: seen.bytes,
        topics: seen.topics.len() as u64,
        messages: seen.topics.values().map(|topic| topic.messages).sum(),
        rescued: seen.rescued,
    }
}

/// A directory for a copy of the catalog; gone with this value.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Scratch, OfflineError> {
        use std::os::unix::fs::DirBuilderExt as _;
        // The catalog holds secrets: for this user alone, and never a directory that somebody has laid ready.
        let making = || OfflineError::io(format!("making a directory in {}", parent.display()));
        for nth in 0..1000 {
            let path = parent.join(format!(".sluice-catalog-{}-{nth}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Scratch(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(making()(error)),
            }
        }
        Err(making()(std::io::Error::from(std::io::ErrorKind::AlreadyExists)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a copy of the catalog stays behind");
        }
    }
}
