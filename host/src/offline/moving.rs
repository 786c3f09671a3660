//! All that a broker keeps, from a data directory to a fleet's database or back: messages, positions, dead letters, schedules,
//! keys, plugins and their values, and the catalog. Invariant: no broker runs on either end meanwhile; a move that is broken off
//! goes on where it was, or is abandoned; it has ended only once a second reading of both ends has found the same.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::mark::{Mark, Marked, Role};
use super::{CATALOG, OfflineError, STORE};
use crate::catalog::moving::{Shape, TableDigest};
use crate::catalog::{Catalog, CatalogError, Storage};
use crate::clock::Clock;
use crate::config::PostgresUrl;
use crate::entropy::Entropy;
use crate::message::TopicId;
use crate::store::StoreError;
use crate::store::embedded::{EmbeddedOptions, EmbeddedStore, Progress};
use crate::store::moving::{
    KeysAfter, LaneMove, Movable, ScheduledMove, TopicDigest, TopicMove, digest, digest_values,
};
use crate::store::postgres::{PostgresOptions, PostgresStore};

/// The name under which the database is opened; no broker has one with a space.
const NODE: &str = "sluice migrate-store";
/// Turns of what is due before the copying begins.
const TICKS_MAX: u32 = 10_000;

/// What is moved where.
#[derive(Debug, Clone)]
pub struct Ends {
    /// What a broker with `storage = "embedded"` is started with.
    pub data_dir: PathBuf,
    /// Where those with `storage = "postgres"` keep everything.
    pub database: PostgresUrl,
    /// Which of them is the target.
    pub to: End,
}

/// An end of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The data directory.
    Embedded,
    /// The database.
    Postgres,
}

/// What was moved.
#[derive(Debug, Clone)]
pub struct Moved {
    /// By topic, with its name; one without a name is not in the catalog.
    pub topics: Vec<(Option<String>, TopicDigest)>,
    /// The catalog's tables.
    pub tables: Vec<TableDigest>,
    /// Plugins' values.
    pub values: u64,
}

struct Side {
    store: Arc<dyn Movable>,
    catalog: Catalog,
    marked: Marked,
    name: String,
}

impl Ends {
    /// The same from wherever it is called.
    fn embedded_name(&self) -> String {
        std::path::absolute(&self.data_dir).unwrap_or_else(|_| self.data_dir.clone()).display().to_string()
    }

    /// The marks of source and target, and how these are called; nothing is made for that.
    async fn marks(&self, clock: &Clock) -> Result<[(Option<Mark>, String); 2], OfflineError> {
        let catalog = Catalog::connect(&self.database, clock.clone()).await?;
        let postgres = (Marked::Database(catalog.clone()).read().await?, self.database.to_string());
        catalog.close().await;
        let embedded = (Marked::Dir(self.data_dir.clone()).read().await?, self.embedded_name());
        Ok(match self.to {
            End::Postgres => [embedded, postgres],
            End::Embedded => [postgres, embedded],
        })
    }

    async fn embedded(&self, clock: &Clock) -> Result<Side, OfflineError> {
        let store_dir = self.data_dir.join(STORE);
        if self.to == End::Postgres && !store_dir.exists() {
            let dir = self.data_dir.display();
            return Err(OfflineError::Target(format!("{dir} is no data directory: nothing is there to be moved")));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.data_dir)
            .map_err(OfflineError::io(format!("making {}", self.embedded_name())))?;
        let options = EmbeddedOptions::new(&store_dir, clock.clone());
        let store = tokio::task::spawn_blocking(move || EmbeddedStore::open(options)).await;
        let store = store.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let catalog = Catalog::open(&self.data_dir.join(CATALOG), clock.clone()).await?;
        let marked = Marked::Dir(self.data_dir.clone());
        Ok(Side { store: Arc::new(store), catalog, marked, name: self.embedded_name() })
    }

    async fn postgres(&self, clock: &Clock) -> Result<Side, OfflineError> {
        let catalog = Catalog::connect(&self.database, clock.clone()).await?;
        let options = PostgresOptions {
            connect: self.database.options(),
            connections_max: 4,
            node: NODE.into(),
            clock: clock.clone(),
        };
        let store = PostgresStore::open(options).await?;
        let marked = Marked::Database(catalog.clone());
        Ok(Side { store: Arc::new(store), catalog, marked, name: self.database.to_string() })
    }

    /// Source and target.
    async fn open(&self, clock: &Clock) -> Result<(Side, Side), OfflineError> {
        let (embedded, postgres) = (self.embedded(clock).await?, self.postgres(clock).await?);
        Ok(match self.to {
            End::Postgres => (embedded, postgres),
            End::Embedded => (postgres, embedded),
        })
    }
}

/// Moves all of it, or goes on with a move that was broken off.
///
/// # Errors
/// The source is as it was, then; the same call goes on, [`abandon`] gives up.
pub async fn migrate_store(
    ends: &Ends,
    clock: &Clock,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Moved, OfflineError> {
    let (source, target) = ends.open(clock).await?;
    no_brokers(ends, &source, &target).await?;
    none_in_redis(&source).await?;
    let is_new = begin(&source, &target, clock).await?;
    if let Err(serving) = no_brokers(ends, &source, &target).await {
        // It came between the two looks, and serves on.
        if is_new {
            target.marked.write(None).await?;
            source.marked.write(None).await?;
        }
        return Err(serving);
    }
    let shape = match ends.to {
        End::Postgres => target.catalog.shape(&source.catalog).await?,
        End::Embedded => source.catalog.shape(&target.catalog).await?,
    };
    let mut bytes = 0;
    for topic in source.store.topics().await? {
        bytes += source.store.stats(topic).await?.bytes;
    }
    progress(Progress::Begins("copying", bytes));
    copy_messages(&*source.store, &*target.store, clock, progress).await?;
    if target.catalog.is_empty().await? {
        source.catalog.copy_to(&target.catalog, &shape).await?;
    }
    progress(Progress::Begins("verifying", bytes * 2));
    let moved = compare(&source, &target, &shape, progress).await?;
    if ends.to == End::Postgres {
        target.catalog.analyze().await?;
    }
    // One that had fallen silent is ended by the mark when it comes back; what it did before that would be missing.
    no_brokers(ends, &source, &target).await?;
    end(&source, &target, clock).await?;
    Ok(moved)
}

/// Takes out of the target what a move has put in, and lets brokers serve from the source again.
///
/// # Errors
/// Where no move was broken off; or when it fails, and can be done again.
pub async fn abandon(ends: &Ends, clock: &Clock) -> Result<(), OfflineError> {
    let [(from, source_name), (to, target_name)] = ends.marks(clock).await?;
    let is_ours = from.as_ref().is_some_and(|from| from.role == Role::Source && from.other == target_name)
        && to.as_ref().is_none_or(|to| to.role == Role::Target && Some(&to.id) == from.as_ref().map(|from| &from.id));
    if !is_ours {
        return Err(OfflineError::Target(format!(
            "no move from {source_name} to {target_name} was broken off: nothing to abandon"
        )));
    }
    let (source, target) = ends.open(clock).await?;
    if to.is_some() {
        no_brokers(ends, &source, &target).await?;
        target.store.close().await?;
        match ends.to {
            End::Postgres => target.catalog.empty_out().await?,
            End::Embedded => {
                target.catalog.close().await;
                let gone = || OfflineError::io("removing what was copied");
                std::fs::remove_dir_all(ends.data_dir.join(STORE)).map_err(gone())?;
                for name in [CATALOG.to_owned(), format!("{CATALOG}-wal"), format!("{CATALOG}-shm")] {
                    match std::fs::remove_file(ends.data_dir.join(name)) {
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        removed => removed.map_err(gone())?,
                    }
                }
            }
        }
        target.marked.write(None).await?;
    }
    source.marked.write(None).await
}

/// Marks both ends, unless they are marked as those of this move; whether they were not.
async fn begin(source: &Side, target: &Side, clock: &Clock) -> Result<bool, OfflineError> {
    let (from, to) = (source.marked.read().await?, target.marked.read().await?);
    let refuse = |side: &Side, mark: &Mark| -> Result<bool, OfflineError> {
        Err(OfflineError::Target(format!("{}: {}", side.name, mark.refusal())))
    };
    match (&from, &to) {
        (Some(from), Some(to)) if from.id == to.id && to.role == Role::Target && from.other == target.name => {
            return Ok(false);
        }
        (_, Some(to)) => return refuse(target, to),
        (Some(from), None) if from.role != Role::Source || from.other != target.name => return refuse(source, from),
        _ => {}
    }
    if !target.catalog.is_empty().await? || !target.store.topics().await?.is_empty() {
        let name = &target.name;
        return Err(OfflineError::Target(format!(
            "{name} is not empty: everything is moved as it is, into a place where no broker has been"
        )));
    }
    let id = from.map_or_else(|| format!("{:016x}", Entropy::system().next_u64()), |from| from.id);
    let at = clock.now();
    let mark = |role, other: &Side| Mark { id: id.clone(), role, other: other.name.clone(), at };
    source.marked.write(Some(&mark(Role::Source, target))).await?;
    target.marked.write(Some(&mark(Role::Target, source))).await?;
    Ok(true)
}

/// Those that come from now on find the mark.
async fn no_brokers(ends: &Ends, source: &Side, target: &Side) -> Result<(), OfflineError> {
    let database = if ends.to == End::Postgres { target } else { source };
    let there: Vec<String> = database.catalog.members().await?.into_iter().map(|member| member.node).collect();
    if there.is_empty() {
        return Ok(());
    }
    Err(OfflineError::Target(format!("brokers serve from {}: stop them first ({})", database.name, there.join(", "))))
}

/// What they hold is kept under a name that the data directory, or the database, has: it would stay behind.
async fn none_in_redis(source: &Side) -> Result<(), OfflineError> {
    let topics = source.catalog.topics().await?;
    let names: Vec<&str> = topics
        .iter()
        .filter(|topic| topic.settings.storage == Storage::Redis)
        .map(|topic| topic.name.as_str())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = names.join(", ");
    Err(OfflineError::Target(format!(
        "topics in Redis do not move: have what is in them consumed, and delete them first ({names})"
    )))
}

/// The source first: were it the target, two brokers could serve the same between the two.
async fn end(source: &Side, target: &Side, clock: &Clock) -> Result<(), OfflineError> {
    source.store.close().await?;
    target.store.close().await?;
    if let Some(mark) = source.marked.read().await? {
        source.marked.write(Some(&Mark { role: Role::Left, at: clock.now(), ..mark })).await?;
    }
    target.marked.write(None).await?;
    source.catalog.close().await;
    target.catalog.close().await;
    Ok(())
}

/// Copies what a store holds into another one, or the rest of it.
///
/// # Errors
/// When one of them fails.
pub async fn copy_messages(
    source: &dyn Movable,
    target: &dyn Movable,
    clock: &Clock,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), StoreError> {
    // What is due stands where it stays; once something has been copied, it would be there twice.
    if target.topics().await?.is_empty() {
        for _ in 0..TICKS_MAX {
            if source.tick().await?.is_none_or(|next| next > clock.now()) {
                break;
            }
        }
    }
    target.take_epoch(source.move_epoch().await?).await?;
    // Where a move that was broken off came to.
    let known: HashMap<TopicId, TopicMove> =
        target.move_topics().await?.into_iter().map(|known| (known.spec.id, known)).collect();
    for topic in source.move_topics().await? {
        let known = known.get(&topic.spec.id);
        if known.is_some() {
            // About as much as was read for it: stores count bytes in their own ways, and what is scheduled is read again.
            progress(Progress::Did(target.stats(topic.spec.id).await?.bytes));
        }
        let lanes = known.map_or(&[][..], |known| &known.lanes);
        copy_topic((source, target), &topic, lanes, progress).await?;
    }
    let mut after = None;
    loop {
        let page = source.move_values(after).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((Arc::clone(&last.namespace), Arc::clone(&last.key)));
        target.take_values(page).await?;
    }
}

async fn copy_topic(
    (source, target): (&dyn Movable, &dyn Movable),
    topic: &TopicMove,
    known: &[LaneMove],
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), StoreError> {
    let id = topic.spec.id;
    target.take_topic(topic).await?;
    for lane in &topic.lanes {
        let place = (id, lane.partition, lane.lane);
        let there = known.iter().find(|there| (there.partition, there.lane) == (lane.partition, lane.lane));
        let mut next = there.map_or(0, |there| there.end).max(lane.first);
        while next < lane.end {
            let page = source.move_log(place, next).await?;
            let Some(last) = page.last() else { break };
            next = last.sequence + 1;
            let bytes = page.iter().map(|message| message.bytes()).sum();
            target.take_log(place, page).await?;
            progress(Progress::Did(bytes));
        }
    }
    let mut from = 0;
    loop {
        let page = source.move_scheduled(id, from).await?;
        let Some(last) = page.last() else { break };
        from = last.number + 1;
        let bytes = page.iter().map(ScheduledMove::bytes).sum();
        target.take_scheduled(id, page).await?;
        progress(Progress::Did(bytes));
    }
    let mut after = KeysAfter::default();
    loop {
        let page = source.move_keys(id, &after).await?;
        let Some(last) = page.last() else { break };
        after = KeysAfter { count: after.count + page.len() as u64, last: Some((last.outcome.at, last.key)) };
        target.take_keys(id, page).await?;
    }
    target.take_groups(topic, source.move_groups(topic).await?).await
}

/// What two stores hold, read anew.
#[derive(Debug, Clone, Default)]
pub struct Compared {
    /// By topic, as it arrived.
    pub topics: Vec<(TopicId, TopicDigest)>,
    /// Plugins' values.
    pub values: u64,
    /// Topics that are not the same.
    pub differing: Vec<TopicId>,
    /// Whether all else is the same: which topics there are, and plugins' values.
    pub rest_is_same: bool,
}

/// Reads both stores, and holds them against each other.
///
/// # Errors
/// When one of them cannot be read.
pub async fn compare_messages(
    source: &dyn Movable,
    target: &dyn Movable,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Compared, StoreError> {
    let (topics, arrived) = (source.move_topics().await?, target.move_topics().await?);
    let ids = |topics: &[TopicMove]| topics.iter().map(|topic| topic.spec.id).collect::<Vec<_>>();
    let mut compared = Compared { rest_is_same: ids(&topics) == ids(&arrived), ..Compared::default() };
    let read = |bytes| progress(Progress::Did(bytes));
    for (topic, other) in topics.iter().zip(&arrived) {
        let (was, is) = (digest(source, topic, &read).await?, digest(target, other, &read).await?);
        if was != is {
            compared.differing.push(topic.spec.id);
        }
        compared.topics.push((topic.spec.id, is));
    }
    let values = digest_values(source).await?;
    compared.rest_is_same &= values == digest_values(target).await?;
    compared.values = values.0;
    Ok(compared)
}

async fn compare(
    source: &Side,
    target: &Side,
    shape: &Shape,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Moved, OfflineError> {
    let names: HashMap<TopicId, String> =
        source.catalog.topics().await?.into_iter().map(|topic| (topic.id, topic.name.to_string())).collect();
    let found = compare_messages(&*source.store, &*target.store, progress).await?;
    let name = |id: &TopicId| names.get(id).cloned();
    let mut differing: Vec<String> = found
        .differing
        .iter()
        .map(|id| format!("topic {}", name(id).unwrap_or_else(|| format!("number {}", id.0))))
        .collect();
    if !found.rest_is_same {
        differing.push("which topics there are, or plugins' values".to_owned());
    }
    let tables = source.catalog.digests(shape).await?;
    for (table, other) in tables.iter().zip(target.catalog.digests(shape).await?) {
        if *table != other {
            differing.push(format!("the table {}", table.table));
        }
    }
    if !differing.is_empty() {
        return Err(OfflineError::Catalog(CatalogError::Damaged(format!(
            "what arrived is not what was sent ({}): give up with --abandon; the source is as it was",
            differing.join(", ")
        ))));
    }
    let topics = found.topics.into_iter().map(|(id, digest)| (name(&id), digest)).collect();
    Ok(Moved { topics, tables, values: found.values })
}
