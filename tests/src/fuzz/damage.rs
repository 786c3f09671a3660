//! A store's files, changed by an input, and a look at what the store makes of them. Invariant: without a [`Edit::Seal`]
//! whatever the store gives back was written, byte for byte; with one it may give back anything, as the checksums are
//! right. It opens or says by name why not, and never panics. Never touches the real disk, but for the lock file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice::clock::Clock;
use sluice::message::{Message, MessageId};
use sluice::store::embedded::files::{DataFile, FileLayer as _, read_full};
use sluice::store::embedded::{Drive, EmbeddedOptions, EmbeddedStore, OpenError};
use sluice::store::{LeaseRequest, MessageStore, Mode, ReadFrom, ReadRequest};

use crate::store_backends::cramped;
use crate::store_bed::START;
use crate::store_disk::Disk;

/// Bytes of a file's header and of a frame's: see `frame.rs` of the store.
const FILE_HEADER: usize = 40;
const FRAME_HEADER: usize = 36;
/// Bytes of any file here at most. The mebibytes that a journal reserves behind them would only be waited for.
const FILE_BYTES_MAX: usize = 64 << 10;
/// Edits of one input.
const EDITS_MAX: usize = 64;

/// One change of the files. `file` and `at` are taken modulo what there is, so that every number means something.
#[expect(missing_docs, reason = "a file, a place in it, and what is said above")]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Edit {
    /// Other bits in one byte.
    Flip { file: u8, at: u32, bits: u8 },
    /// These bytes over what stands there.
    Write { file: u8, at: u32, bytes: Vec<u8> },
    /// One byte again and again.
    Fill { file: u8, at: u32, len: u16, byte: u8 },
    /// The file ends here.
    Cut { file: u8, at: u32 },
    /// Bytes that strayed from elsewhere.
    Stray { from: u8, from_at: u32, len: u16, file: u8, at: u32 },
    /// The file is gone.
    Remove { file: u8 },
    /// One file stands in another's place.
    Replace { from: u8, file: u8 },
    /// The checksums of the nth frame are made right, whatever it says now; 255 is the file's own header.
    Seal { file: u8, nth: u8 },
}

/// What an input does.
pub enum Input {
    /// Edits, one after the other.
    Edits(Vec<Edit>),
    /// The last file of those that may be changed holds this.
    Content(Vec<u8>),
}

impl Input {
    /// The first byte tells which it is. What can't be read ends the edits.
    #[must_use]
    pub fn decode(input: &[u8]) -> Input {
        let Some((kind, mut rest)) = input.split_first() else { return Input::Edits(Vec::new()) };
        if *kind == b'C' {
            return Input::Content(rest.to_vec());
        }
        let mut edits = Vec::new();
        while edits.len() < EDITS_MAX
            && let Ok((edit, left)) = postcard::take_from_bytes(rest)
        {
            edits.push(edit);
            rest = left;
        }
        Input::Edits(edits)
    }

    /// The input that does this.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Input::Content(bytes) => [b"C", &bytes[..]].concat(),
            Input::Edits(edits) => edits.iter().fold(b"E".to_vec(), |input, edit| {
                postcard::to_extend(edit, input).expect("an edit has no type that postcard refuses")
            }),
        }
    }

    /// Whether checksums are made right that were not the store's own.
    fn seals(&self) -> bool {
        matches!(self, Input::Edits(edits) if edits.iter().any(|edit| matches!(edit, Edit::Seal { .. })))
    }

    /// Whether it only changes bits: then what is lost is lost by damage, which the store must tell.
    fn only_flips(&self) -> bool {
        matches!(self, Input::Edits(edits) if edits.iter().all(|edit| matches!(edit, Edit::Flip { .. })))
    }
}

/// A store's files as a process left them, and what was written into them.
pub struct Image {
    /// For the lock file, which is always the system's.
    root: tempfile::TempDir,
    disk: Disk,
    /// The payloads by id, but for what was erased.
    written: BTreeMap<MessageId, Vec<u8>>,
    /// The files that an input may change: those whose name in the data directory satisfies this.
    may_change: fn(&str) -> bool,
}

impl Image {
    /// An empty disk.
    #[must_use]
    pub fn new(may_change: fn(&str) -> bool) -> Image {
        let root = tempfile::tempdir().expect("the system gives a temporary folder");
        let disk = Disk::new(root.path());
        Image { root, disk, written: BTreeMap::new(), may_change }
    }

    /// The store over its files, its work done by the callers, so that a run follows from its input.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open(&self, disk: &Disk, clock: &Clock) -> Result<EmbeddedStore, OpenError> {
        let usual = EmbeddedOptions::new(self.root.path(), clock.clone());
        let options = EmbeddedOptions { limits: cramped(), drive: Drive::Callers, ..usual };
        EmbeddedStore::open_on(options, Arc::new(disk.clone()))
    }

    /// The disk that it was made on.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// What was written is remembered.
    pub fn remember<'m>(&mut self, messages: impl Iterator<Item = &'m Message>) {
        self.written.extend(messages.map(|message| (message.id, message.payload.to_vec())));
    }

    /// The names of the files that may be changed, with directories relative to the data directory.
    fn names(&self, disk: &Disk) -> Vec<String> {
        let mut names = disk.list(self.root.path()).expect("a disk in memory lists");
        for dir in names.clone().into_iter().filter(|name| name.starts_with("topic-")) {
            let files = disk.list(&self.root.path().join(&dir)).expect("a disk in memory lists");
            names.extend(files.into_iter().map(|file| format!("{dir}/{file}")));
        }
        names.retain(|name| (self.may_change)(name));
        names
    }

    /// A file's bytes.
    #[must_use]
    pub fn content(&self, name: &str) -> Vec<u8> {
        let file = self.disk.open(&self.root.path().join(name)).expect("the file is there");
        filled(&*file)
    }

    /// Changes a copy of the files as the input says, and looks at what the store makes of it.
    pub fn run(&self, input: &[u8]) {
        let input = Input::decode(input);
        let disk = self.disk.without_power(0);
        self.give_back_room(&disk);
        match &input {
            Input::Edits(edits) => edits.iter().for_each(|edit| self.edit(&disk, edit)),
            Input::Content(bytes) => {
                if let Some(name) = self.names(&disk).last() {
                    put(&*disk.create(&self.root.path().join(name)).expect("a disk in memory has room"), bytes);
                }
            }
        }
        super::runtime().block_on(self.look(&disk, &input));
    }

    /// Cuts off the room that journals reserve, in which there is nothing.
    fn give_back_room(&self, disk: &Disk) {
        for name in disk.list(self.root.path()).expect("a disk in memory lists") {
            let Ok(file) = disk.open(&self.root.path().join(name)) else { continue };
            let len = file.len().expect("a file has a length");
            if len > FILE_BYTES_MAX as u64 {
                file.set_len(FILE_BYTES_MAX as u64).and_then(|()| file.sync()).expect("a disk in memory cuts");
            }
        }
    }

    fn is_copy(&self, payload: &[u8]) -> bool {
        self.written.values().any(|written| written == payload)
    }

    async fn look(&self, disk: &Disk, input: &Input) {
        let clock = Clock::fixed(START.plus(Duration::from_secs(120)));
        // Why not is said by name: there is nothing else that an `OpenError` could be.
        let Ok(store) = self.open(disk, &clock) else { return };
        let told = store.report().torn.is_some() || !store.report().damaged_segments.is_empty();
        let mut seen = Seen { whole: true, payloads: BTreeMap::new() };
        seen.all(&store, &clock).await;
        for id in self.written.keys() {
            if let Some(found) = seen.heard(store.get(*id).await).flatten() {
                seen.add(std::iter::once(&found.message));
            }
        }
        if !input.seals() {
            for (id, payload) in &seen.payloads {
                // Dead letters have ids of their own.
                let was = self.written.get(id).map_or_else(|| self.is_copy(payload), |written| written == payload);
                assert!(was, "{id} is given back as {payload:?}, which was never written");
            }
            if input.only_flips() && !told && seen.whole {
                let lost = self.written.keys().find(|id| !seen.payloads.contains_key(id));
                assert!(lost.is_none(), "{lost:?} is lost and nobody was told");
            }
        }
        let closed = store.close().await;
        drop(store);
        self.give_back_room(disk);
        if closed.is_ok() && !input.seals() {
            let again = self.open(disk, &clock);
            assert!(again.is_ok(), "it was open and closed well, and now: {:?}", again.err());
        }
    }

    fn edit(&self, disk: &Disk, edit: &Edit) {
        let names = self.names(disk);
        let path = |file: u8| -> Option<PathBuf> {
            let name = names.get(usize::from(file) % names.len().max(1))?;
            Some(self.root.path().join(name))
        };
        let change = |file: u8, change: &dyn Fn(&mut Vec<u8>)| {
            let Some(path) = path(file) else { return };
            change_file(disk, &path, change);
        };
        match edit {
            Edit::Flip { file, at, bits } => change(*file, &|bytes| {
                let at = *at as usize % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= (*bits).max(1);
                }
            }),
            Edit::Write { file, at, bytes: new } => change(*file, &|bytes| write(bytes, *at, new)),
            Edit::Fill { file, at, len, byte } => {
                change(*file, &|bytes| write(bytes, *at, &vec![*byte; usize::from(*len)]));
            }
            Edit::Cut { file, at } => change(*file, &|bytes| bytes.truncate(*at as usize % (bytes.len() + 1))),
            Edit::Stray { from, from_at, len, file, at } => {
                let Some(from) = path(*from) else { return };
                let source = filled(&*disk.open(&from).expect("the file is there"));
                let start = *from_at as usize % (source.len() + 1);
                let part = &source[start..(start + usize::from(*len)).min(source.len())];
                change(*file, &|bytes| write(bytes, *at, part));
            }
            Edit::Remove { file } => {
                if let Some(path) = path(*file) {
                    disk.remove(&path).expect("a disk in memory removes");
                }
            }
            Edit::Replace { from, file } => {
                if let (Some(from), Some(to)) = (path(*from), path(*file)) {
                    let source = filled(&*disk.open(&from).expect("the file is there"));
                    change_file(disk, &to, &|bytes| bytes.clone_from(&source));
                }
            }
            Edit::Seal { file, nth } => change(*file, &|bytes| seal(bytes, *nth)),
        }
    }
}

/// What a store gave back.
struct Seen {
    /// Nothing was refused.
    whole: bool,
    payloads: BTreeMap<MessageId, Vec<u8>>,
}

impl Seen {
    fn add<'m>(&mut self, messages: impl Iterator<Item = &'m Message>) {
        self.payloads.extend(messages.map(|message| (message.id, message.payload.to_vec())));
    }

    fn heard<T, E>(&mut self, answer: Result<T, E>) -> Option<T> {
        self.whole &= answer.is_ok();
        answer.ok()
    }

    /// Every way to a message that there is.
    async fn all(&mut self, store: &EmbeddedStore, clock: &Clock) {
        for topic in store.topics().await.unwrap_or_default() {
            let whole =
                ReadRequest { topic, partition: None, from: ReadFrom::Earliest, limit: 1000, bytes_max: 64 << 20 };
            if let Some(page) = self.heard(store.read(whole).await) {
                self.add(page.messages.iter().map(|(_, message)| message));
            }
            let dead = store.dead_letters(topic, None, 1000).await;
            if let Ok(page) = dead {
                self.add(page.messages.iter().map(|(_, message)| message));
            }
            let _figures = store.stats(topic).await;
            for group in store.groups(topic).await.unwrap_or_default() {
                for ordered in [false, true] {
                    let request = LeaseRequest {
                        topic,
                        group,
                        max: 1000,
                        bytes_max: 64 << 20,
                        duration: Duration::from_secs(30),
                        holder: "fuzz".into(),
                        mode: Mode::AtLeastOnce,
                        ordered,
                    };
                    if let Ok(leased) = store.lease(request).await {
                        self.add(leased.leases.iter().map(|lease| &lease.message));
                    }
                    clock.advance(Duration::from_secs(31));
                    // What is damaged may refuse this.
                    let _due = store.tick().await;
                }
            }
        }
        let _removed = store.retain().await;
        store.work_behind();
    }
}

/// What was written to a file: behind it a journal has room that nothing was written to.
fn filled(file: &dyn DataFile) -> Vec<u8> {
    let mut bytes = vec![0; FILE_BYTES_MAX];
    let got = read_full(file, &mut bytes, 0).expect("a disk in memory reads");
    bytes.truncate(got);
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    bytes
}

fn put(file: &dyn DataFile, bytes: &[u8]) {
    let written = file.write_at(bytes, 0).and_then(|()| file.set_len(bytes.len() as u64)).and_then(|()| file.sync());
    written.expect("a disk in memory has room");
}

fn change_file(disk: &Disk, path: &Path, change: &dyn Fn(&mut Vec<u8>)) {
    let file = disk.open(path).expect("the file is there");
    let mut bytes = filled(&*file);
    change(&mut bytes);
    put(&*file, &bytes);
}

/// Puts `new` over what stands at `at`, which may be the end.
fn write(bytes: &mut Vec<u8>, at: u32, new: &[u8]) {
    let at = at as usize % (bytes.len() + 1);
    let end = (at + new.len()).max(bytes.len());
    bytes.resize(end, 0);
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// Makes the checksums of the nth frame right, or those of the file's header.
fn seal(bytes: &mut [u8], nth: u8) {
    let put = |bytes: &mut [u8], at: usize, crc: u32| bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    if nth == u8::MAX {
        if bytes.len() >= FILE_HEADER {
            put(bytes, 36, crc32c::crc32c(&bytes[..36]));
        }
        return;
    }
    let len_at =
        |bytes: &[u8], at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let mut at = FILE_HEADER;
    for frame in 0..=nth {
        if bytes.len() < at + FRAME_HEADER {
            return;
        }
        let (head, body) = (len_at(bytes, at + 4), len_at(bytes, at + 8));
        if frame == nth {
            if let Some(head) = bytes.get(at + FRAME_HEADER..at + FRAME_HEADER + head) {
                put(bytes, at + 12, crc32c::crc32c(head));
            }
            put(bytes, at + 32, crc32c::crc32c(&bytes[at..at + 32]));
            return;
        }
        at += FRAME_HEADER + head + body;
    }
}
