//! A disk in memory that loses power, reads less at once than it is asked for, and fails when it is told to. Invariant: after [`Disk::without_power`] there is what
//! was synced, and of what was not, some part that a real disk might have kept: writes in any selection, the last one
//! torn, names of files (created, renamed, removed) as far as any moment since their directory was synced. Never writes
//! to the real disk.

mod faults;

pub use faults::Fault;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sluice::store::embedded::files::{DataFile, FileLayer};

use faults::Faults;

const PAGE: u64 = 4096;
/// What a disk writes in one piece.
const SECTOR: usize = 512;

/// See the module. Clones are one disk.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Clone)]
struct State {
    files: HashMap<u64, Inode>,
    next_file: u64,
    /// As the running process sees it.
    names: Names,
    /// As it is after a power cut.
    durable: Names,
    /// What was done to names since their directory was synced, oldest first.
    pending: Vec<(PathBuf, NameOp)>,
    faults: Faults,
}

#[derive(Clone, Default)]
struct Names {
    files: BTreeMap<PathBuf, u64>,
    dirs: BTreeMap<PathBuf, ()>,
}

#[derive(Clone)]
enum NameOp {
    Dir(PathBuf),
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
    UnlinkTree(PathBuf),
}

#[derive(Clone, Default)]
struct Inode {
    data: Bytes,
    synced: Bytes,
    pending: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    Data(u64, Vec<u8>),
    Len(u64),
}

/// A file's bytes; pages that were never written are zeros.
#[derive(Clone, Default)]
struct Bytes {
    len: u64,
    pages: HashMap<u64, Box<[u8]>>,
}

impl Disk {
    /// An empty disk on which the directory `root` exists.
    #[must_use]
    pub fn new(root: &Path) -> Disk {
        let mut state = State {
            files: HashMap::new(),
            next_file: 0,
            names: Names::default(),
            durable: Names::default(),
            pending: Vec::new(),
            faults: Faults::none(0),
        };
        for names in [&mut state.names, &mut state.durable] {
            names.dirs.extend(root.ancestors().map(|dir| (dir.to_owned(), ())));
        }
        Disk(Arc::new(Mutex::new(state)))
    }

    /// The disk as the next process finds it if the power fails at this instant; whoever uses this one goes on without effect.
    #[must_use]
    pub fn without_power(&self, seed: u64) -> Disk {
        let mut state = self.0.lock().clone();
        let mut chance = StdRng::seed_from_u64(seed);
        let kept = chance.random_range(0..=state.pending.len());
        for (_, op) in std::mem::take(&mut state.pending).into_iter().take(kept) {
            state.durable.apply(op);
        }
        state.durable.drop_orphans();
        state.names = state.durable.clone();
        for file in state.files.values_mut() {
            file.lose_power(&mut chance);
        }
        state.faults = Faults::none(seed);
        Disk(Arc::new(Mutex::new(state)))
    }

    /// A copy with one bit changed, and the file and byte where that is; `None` if there is nothing to change.
    #[must_use]
    pub fn with_a_flipped_bit(&self, seed: u64) -> Option<(Disk, PathBuf, u64)> {
        let mut state = self.0.lock().clone();
        let mut chance = StdRng::seed_from_u64(seed);
        let files: Vec<(PathBuf, u64)> = state.names.files.iter().map(|(path, file)| (path.clone(), *file)).collect();
        let filled: Vec<_> = files.into_iter().filter(|(_, file)| state.files[file].data.len > 0).collect();
        let (path, number) = filled.get(chance.random_range(0..filled.len().max(1)))?.clone();
        let inode = state.files.get_mut(&number)?;
        // Where something was written: journal files reserve room, in which a bit means nothing.
        let mut pages: Vec<u64> = inode.data.pages.keys().copied().collect();
        pages.sort_unstable();
        let page = *pages.get(chance.random_range(0..pages.len().max(1)))?;
        let offset = page * PAGE + chance.random_range(0..PAGE);
        let mut byte = [0];
        if inode.data.read(&mut byte, offset) == 0 {
            return None;
        }
        inode.data.write(offset, &[byte[0] ^ (1 << chance.random_range(0..8_u8))]);
        inode.synced = inode.data.clone();
        Some((Disk(Arc::new(Mutex::new(state))), path, offset))
    }

    /// The next operation of the kind but `after` fails, once.
    pub fn arm(&self, fault: Fault, after: u32) {
        self.0.lock().faults.arm(fault, after);
    }

    /// From now on no file grows and none is made; what was reserved before can be written.
    pub fn fill(&self) {
        self.0.lock().faults.full = true;
    }

    /// Nothing that was armed strikes any more, and there is room.
    pub fn heal(&self) {
        self.0.lock().faults.heal();
    }

    /// How often a fault has struck.
    #[must_use]
    pub fn struck(&self) -> u32 {
        self.0.lock().faults.struck
    }
}

impl Names {
    fn apply(&mut self, op: NameOp) {
        match op {
            NameOp::Dir(path) => {
                self.dirs.insert(path, ());
            }
            NameOp::Link(path, file) => {
                self.files.insert(path, file);
            }
            NameOp::Unlink(path) => {
                self.files.remove(&path);
            }
            NameOp::Rename(from, to) => {
                if let Some(file) = self.files.remove(&from) {
                    self.files.insert(to, file);
                }
            }
            NameOp::UnlinkTree(root) => {
                self.files.retain(|path, _| !path.starts_with(&root));
                self.dirs.retain(|path, ()| !path.starts_with(&root));
            }
        }
    }

    /// What stands in a directory that does not exist can't be found.
    fn drop_orphans(&mut self) {
        let mut before = 0;
        while before != self.dirs.len() {
            before = self.dirs.len();
            let known = self.dirs.clone();
            self.dirs.retain(|path, ()| path.parent().is_none_or(|parent| known.contains_key(parent)));
        }
        self.files.retain(|path, _| path.parent().is_some_and(|parent| self.dirs.contains_key(parent)));
    }
}

impl Inode {
    fn write(&mut self, write: Write) {
        self.data.apply(&write);
        self.pending.push(write);
    }

    fn sync(&mut self) {
        for write in self.pending.drain(..) {
            self.synced.apply(&write);
        }
    }

    /// Any part of what was written is on the disk, and the rest will never be: the system takes it for written.
    fn fail_to_sync(&mut self, chance: &mut StdRng) {
        for write in std::mem::take(&mut self.pending) {
            if chance.random_bool(0.5) {
                self.synced.apply(&write);
            }
        }
    }

    fn lose_power(&mut self, chance: &mut StdRng) {
        let pending = std::mem::take(&mut self.pending);
        let kept = chance.random_range(0..=pending.len());
        let any_order = chance.random_bool(0.5);
        for (number, write) in pending.into_iter().enumerate() {
            match write {
                // In the order of writing, up to one that is torn; or sector by sector in any order.
                Write::Data(..) if !any_order && number > kept => break,
                Write::Data(offset, bytes) if !any_order && number == kept => {
                    let torn = chance.random_range(0..=bytes.len());
                    self.synced.apply(&Write::Data(offset, bytes[..torn].to_vec()));
                }
                Write::Data(offset, bytes) if any_order => {
                    for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                        if chance.random_bool(0.5) {
                            self.synced.apply(&Write::Data(offset + (sector * SECTOR) as u64, bytes.to_vec()));
                        }
                    }
                }
                write => self.synced.apply(&write),
            }
        }
        self.data = self.synced.clone();
    }
}

impl Bytes {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Data(offset, bytes) => self.write(*offset, bytes),
            Write::Len(len) => self.set_len(*len),
        }
    }

    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (page, at) = (offset / PAGE, (offset % PAGE) as usize);
            let part = bytes.len().min(PAGE as usize - at);
            let page = self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
            page[at..at + part].copy_from_slice(&bytes[..part]);
            (offset, bytes) = (offset + part as u64, &bytes[part..]);
            self.len = self.len.max(offset);
        }
    }

    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.pages.retain(|page, _| page * PAGE < len);
        if let Some(page) = self.pages.get_mut(&(len / PAGE)) {
            page[(len % PAGE) as usize..].fill(0);
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let wanted = (buf.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < wanted {
            let (page, at) = ((offset + done as u64) / PAGE, ((offset + done as u64) % PAGE) as usize);
            let part = (wanted - done).min(PAGE as usize - at);
            match self.pages.get(&page) {
                Some(page) => buf[done..done + part].copy_from_slice(&page[at..at + part]),
                None => buf[done..done + part].fill(0),
            }
            done += part;
        }
        wanted
    }
}

impl State {
    fn rename_op(&mut self, dir: Option<&Path>, op: NameOp) {
        self.names.apply(op.clone());
        self.pending.push((dir.unwrap_or(Path::new("/")).to_owned(), op));
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl FileLayer for Disk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let mut missing: Vec<&Path> = path.ancestors().filter(|dir| !state.names.dirs.contains_key(*dir)).collect();
        while let Some(dir) = missing.pop() {
            state.rename_op(dir.parent(), NameOp::Dir(dir.to_owned()));
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let names = state.names.files.keys().chain(state.names.dirs.keys());
        let mut names: Vec<String> = names
            .filter(|path| path.parent() == Some(dir))
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        let mut state = self.0.lock();
        if !path.parent().is_some_and(|parent| state.names.dirs.contains_key(parent)) {
            return Err(not_found(path));
        }
        state.faults.check(Fault::Name)?;
        if let Some(&number) = state.names.files.get(path) {
            state.files.entry(number).or_default().write(Write::Len(0));
            return Ok(Arc::new(Open { disk: self.clone(), number }));
        }
        state.faults.check_room()?;
        let number = state.next_file;
        state.next_file += 1;
        state.files.insert(number, Inode::default());
        state.rename_op(path.parent(), NameOp::Link(path.to_owned(), number));
        Ok(Arc::new(Open { disk: self.clone(), number }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        let mut state = self.0.lock();
        let number = *state.names.files.get(path).ok_or_else(|| not_found(path))?;
        state.faults.check(Fault::Name)?;
        drop(state);
        Ok(Arc::new(Open { disk: self.clone(), number }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.names.files.contains_key(from) {
            return Err(not_found(from));
        }
        state.faults.check(Fault::Name)?;
        state.rename_op(to.parent(), NameOp::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.names.files.contains_key(path) {
            state.rename_op(path.parent(), NameOp::Unlink(path.to_owned()));
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.names.dirs.contains_key(path) {
            state.rename_op(path.parent(), NameOp::UnlinkTree(path.to_owned()));
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.names.dirs.contains_key(path) {
            return Err(not_found(path));
        }
        state.faults.check(Fault::SyncDir)?;
        let (now, later) = std::mem::take(&mut state.pending).into_iter().partition(|(dir, _)| dir == path);
        state.pending = later;
        let now: Vec<(PathBuf, NameOp)> = now;
        for (_, op) in now {
            state.durable.apply(op);
        }
        Ok(())
    }
}

struct Open {
    disk: Disk,
    number: u64,
}

impl Open {
    fn with<T>(&self, what: impl FnOnce(&mut Inode, &mut Faults) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.disk.0.lock();
        what(state.files.entry(self.number).or_default(), &mut state.faults)
    }
}

impl DataFile for Open {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|file, faults| {
            faults.check(Fault::Read)?;
            let len = faults.read_len(buf.len());
            Ok(file.data.read(&mut buf[..len], offset))
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|file, faults| {
            if faults.full && offset + bytes.len() as u64 > file.data.len {
                return faults.check_room();
            }
            if faults.strikes(Fault::Write) {
                let torn = faults.chance().random_range(0..=bytes.len());
                file.write(Write::Data(offset, bytes[..torn].to_vec()));
                return Err(io::Error::other("the disk was told to fail: Write"));
            }
            file.write(Write::Data(offset, bytes.to_vec()));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|file, faults| {
            if faults.strikes(Fault::Sync) {
                file.fail_to_sync(&mut faults.chance());
                return Err(io::Error::other("the disk was told to fail: Sync"));
            }
            file.sync();
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|file, faults| {
            faults.check(Fault::Write)?;
            file.write(Write::Len(len));
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|file, _| Ok(file.data.len))
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.with(|file, faults| {
            if file.data.len < len {
                faults.check_room()?;
                faults.check(Fault::Write)?;
                file.write(Write::Len(len));
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/data";

    fn written(disk: &Disk, name: &str, bytes: &[u8]) -> Arc<dyn DataFile> {
        let file = disk.create(&Path::new(ROOT).join(name)).unwrap();
        file.write_at(bytes, 0).unwrap();
        file
    }

    fn content(disk: &Disk, name: &str) -> Option<Vec<u8>> {
        let file = disk.open(&Path::new(ROOT).join(name)).ok()?;
        Some(sluice::store::embedded::files::read_all(&*file).unwrap())
    }

    #[test]
    fn what_is_synced_stays_and_what_is_not_may_be_lost_in_every_way() {
        let disk = Disk::new(Path::new(ROOT));
        let file = written(&disk, "a", &[1; 1500]);
        file.sync().unwrap();
        disk.sync_dir(Path::new(ROOT)).unwrap();
        file.write_at(&[2; 1500], 1500).unwrap();
        written(&disk, "b", &[3]).sync().unwrap();
        let mut lengths = std::collections::BTreeSet::new();
        let mut names = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let after = disk.without_power(seed);
            let bytes = content(&after, "a").unwrap();
            assert_eq!(bytes[..1500], [1; 1500]);
            lengths.insert(bytes.len());
            names.insert(content(&after, "b").is_some());
        }
        assert!(lengths.contains(&1500) && lengths.contains(&3000) && lengths.len() > 5, "{lengths:?}");
        assert_eq!(names.len(), 2, "a name whose directory was not synced");
        assert_eq!(content(&disk, "a").unwrap().len(), 3000, "the old one is untouched");
    }

    #[test]
    fn a_rename_is_whole_or_not_at_all() {
        let disk = Disk::new(Path::new(ROOT));
        written(&disk, "new", &[2]).sync().unwrap();
        written(&disk, "old", &[1]).sync().unwrap();
        disk.sync_dir(Path::new(ROOT)).unwrap();
        disk.rename(&Path::new(ROOT).join("new"), &Path::new(ROOT).join("old")).unwrap();
        let seen: std::collections::BTreeSet<_> =
            (0..50).map(|seed| content(&disk.without_power(seed), "old").unwrap()).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [vec![1], vec![2]]);
        disk.sync_dir(Path::new(ROOT)).unwrap();
        assert!((0..50).all(|seed| content(&disk.without_power(seed), "old") == Some(vec![2])));
    }

    #[test]
    fn what_a_failed_sync_dropped_no_later_sync_brings_back() {
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..20 {
            // A new chance for each.
            let disk = Disk::new(Path::new(ROOT)).without_power(seed);
            let file = written(&disk, "a", &[1]);
            disk.arm(Fault::Sync, 0);
            assert!(file.sync().is_err());
            file.sync().unwrap();
            disk.sync_dir(Path::new(ROOT)).unwrap();
            assert_eq!(content(&disk, "a").unwrap(), [1], "the page cache has it");
            kept.insert(content(&disk.without_power(seed), "a").unwrap().len());
        }
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_full_disk_takes_what_was_reserved_and_no_more() {
        let disk = Disk::new(Path::new(ROOT));
        let file = written(&disk, "a", &[1; 10]);
        disk.fill();
        file.write_at(&[2; 10], 0).unwrap();
        assert!(file.write_at(&[3], 10).is_err());
        assert!(disk.create(&Path::new(ROOT).join("b")).is_err());
        disk.heal();
        file.write_at(&[3], 10).unwrap();
        assert_eq!(disk.struck(), 2);
    }

    #[test]
    fn one_bit_is_flipped_and_no_other() {
        let disk = Disk::new(Path::new(ROOT));
        written(&disk, "a", &[0; 4096]);
        let (flipped, path, offset) = disk.with_a_flipped_bit(1).unwrap();
        assert_eq!(path, Path::new(ROOT).join("a"));
        let bytes = content(&flipped, "a").unwrap();
        let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!((ones, bytes[offset as usize].count_ones()), (1, 1));
    }
}
