//! The catalog of a data directory that is only read. Invariant: SQLite never opens the file itself, since it writes beside
//! what it reads: a copy is opened. If the copy is damaged, what can be read of it is taken into a new one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{CATALOG, OfflineError, Scratch};
use crate::catalog::{Catalog, CatalogError, Subscription, Topic};
use crate::clock::Clock;
use crate::directory::{group_specs, topic_spec};
use crate::message::TopicId;
use crate::store::embedded::{Finding, Kind, Known};

const MEANS: &str =
    "a broker may refuse to start, or serve settings that nobody made; a repair takes the rows that can be read";
const NO_NAMES: &str = "the next start removes all topics, because the catalog decides which there are; a repair keeps them under \
                        names that it makes up";

/// Names and partition counts.
pub(super) type Topics = HashMap<TopicId, (String, u16)>;

/// A catalog that can be read.
pub(super) struct Found {
    /// A copy of what was there, or what could be taken out of it.
    pub catalog: Catalog,
    /// Its file.
    pub path: PathBuf,
    /// What was wrong.
    pub findings: Vec<Finding>,
    /// What could not be taken.
    pub lost: Vec<String>,
    /// What the store should have.
    pub known: Known,
    /// See [`Topics`].
    pub topics: Topics,
}

/// Reads the catalog of `data_dir` by a copy in `scratch`.
pub(super) async fn read(data_dir: &Path, scratch: &Scratch, clock: &Clock) -> Result<Found, OfflineError> {
    let path = scratch.0.join(CATALOG);
    // A file without bytes is what a start leaves that ended before it made the first table.
    if std::fs::metadata(data_dir.join(CATALOG)).map_or(0, |file| file.len()) == 0 {
        let finding = Finding::new(Kind::MissingCatalog, CATALOG, 0, "the file is missing, or empty", NO_NAMES);
        let lost = vec!["all of the catalog: the file is missing, or empty".to_owned()];
        return begin_anew(path, clock, (vec![finding], lost), None).await;
    }
    for name in [CATALOG, "catalog.db-wal"] {
        let from = data_dir.join(name);
        if from.exists() {
            std::fs::copy(&from, scratch.0.join(name)).map_err(OfflineError::io(format!("copying {name}")))?;
        }
    }
    let faults = Catalog::page_faults(&path).await?;
    let mut findings: Vec<Finding> = faults.into_iter().map(|fault| bad(fault.offset, fault.fault)).collect();
    match Catalog::open(&path, clock.clone()).await {
        Ok(catalog) => {
            if findings.is_empty() {
                findings = bad_rows(&catalog).await?;
            }
            if let (true, Ok((topics, subscriptions))) = (findings.is_empty(), content(&catalog).await) {
                return Ok(found(catalog, path, (Vec::new(), Vec::new()), &topics, &subscriptions));
            }
            catalog.close().await;
        }
        Err(error) => {
            let fault = damage_in(error)?;
            if findings.is_empty() {
                findings.push(bad(0, fault));
            }
        }
    }
    begin_anew(scratch.0.join("catalog-new.db"), clock, (findings, Vec::new()), Some(&path)).await
}

/// What an error says of the file; the error itself if it says something of this machine, or of a later version.
fn damage_in(error: CatalogError) -> Result<String, CatalogError> {
    // SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN, with their extended codes in the upper bytes.
    let of_machine = |code: &str| matches!(code.parse::<i32>(), Ok(code) if matches!(code & 0xff, 10 | 13 | 14));
    match error {
        CatalogError::Damaged(fault) => Ok(fault),
        CatalogError::Unavailable(sqlx::Error::Database(database))
            if !database.code().is_some_and(|code| of_machine(&code)) =>
        {
            Ok(database.to_string())
        }
        other => Err(other),
    }
}

/// What is wrong with rows on pages that are well.
async fn bad_rows(catalog: &Catalog) -> Result<Vec<Finding>, CatalogError> {
    let faults = match catalog.verify().await {
        Ok(faults) if faults.is_empty() => content(catalog).await.map(|_| Vec::new()),
        told => told,
    };
    match faults {
        Ok(faults) => Ok(faults.into_iter().map(|fault| bad(0, fault)).collect()),
        Err(CatalogError::Damaged(fault)) => Ok(vec![bad(0, fault)]),
        Err(other) => Err(other),
    }
}

async fn content(catalog: &Catalog) -> Result<(Vec<Topic>, Vec<Subscription>), CatalogError> {
    Ok((catalog.topics().await?, catalog.subscriptions().await?))
}

fn bad(offset: u64, fault: String) -> Finding {
    Finding::new(Kind::BadCatalog, CATALOG, offset, fault, MEANS)
}

/// A new catalog, with what can be read of a damaged one.
async fn begin_anew(
    path: PathBuf,
    clock: &Clock,
    told: (Vec<Finding>, Vec<String>),
    damaged: Option<&Path>,
) -> Result<Found, OfflineError> {
    let (findings, mut lost) = told;
    let catalog = Catalog::open(&path, clock.clone()).await?;
    if let Some(damaged) = damaged {
        lost.extend(catalog.salvage(damaged).await?.lost);
    }
    let topics = catalog.topics().await?;
    let subscriptions = catalog.subscriptions().await?;
    let mut found = found(catalog, path, (findings, lost), &topics, &subscriptions);
    found.known.revisions_lost = true;
    Ok(found)
}

fn found(
    catalog: Catalog,
    path: PathBuf,
    (findings, lost): (Vec<Finding>, Vec<String>),
    topics: &[Topic],
    subscriptions: &[Subscription],
) -> Found {
    let known = Known {
        topics: topics.iter().map(topic_spec).collect(),
        groups: group_specs(topics, subscriptions),
        revisions_lost: false,
    };
    let topics = topics.iter().map(|t| (t.id, (t.name.as_str().to_owned(), t.settings.partition_count))).collect();
    Found { catalog, path, findings, lost, known, topics }
}
