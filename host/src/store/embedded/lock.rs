//! One process per data directory. Invariant: while a [`DirLock`] lives, no other opens the directory. The operating system
//! lets go of it when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use super::recovery::OpenError;

/// Its name in the directory.
const LOCK: &str = "LOCK";

/// See the module.
#[derive(Debug)]
pub struct DirLock(File);

impl DirLock {
    /// Takes the directory.
    ///
    /// # Errors
    /// `Locked` if another has it.
    pub fn take(dir: &Path) -> Result<DirLock, OpenError> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(LOCK));
        let mut file = opened.map_err(OpenError::io("opening the lock file"))?;
        try_lock(&mut file, dir)?;
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "process {}", std::process::id()));
        written.map_err(OpenError::io("writing the lock file"))?;
        Ok(DirLock(file))
    }

    /// Takes the directory without writing anything. `None` where no store was ever opened, as in a copy of its files:
    /// then there is nobody to keep out.
    ///
    /// # Errors
    /// `Locked` if another has it.
    pub fn take_for_reading(dir: &Path) -> Result<Option<DirLock>, OpenError> {
        let mut file = match File::open(dir.join(LOCK)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(OpenError::io("opening the lock file"))?,
        };
        try_lock(&mut file, dir)?;
        Ok(Some(DirLock(file)))
    }
}

impl Drop for DirLock {
    /// Let go of by word: a process that this one is just starting has the same descriptors until it runs its own program,
    /// and closing ours would leave the directory locked until then.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "the lock file could not be unlocked; closing it does as well");
        }
    }
}

fn try_lock(file: &mut File, dir: &Path) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            if file.read_to_string(&mut holder).is_err() || holder.trim().is_empty() {
                holder = "it left no name".to_owned();
            }
            Err(OpenError::Locked { dir: dir.display().to_string(), holder: holder.trim().to_owned() })
        }
        Err(TryLockError::Error(error)) => Err(OpenError::io("locking the data directory")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::DirLock;

    #[test]
    fn a_directory_is_free_once_its_lock_is_dropped_whoever_still_has_a_descriptor_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        // As a process has it that was forked and has not run its program yet.
        let inherited = lock.0.try_clone().unwrap();
        assert!(DirLock::take(dir.path()).unwrap_err().to_string().contains("in use by another process"));
        drop(lock);
        DirLock::take(dir.path()).unwrap();
        drop(inherited);
    }
}
