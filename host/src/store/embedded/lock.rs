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
pub struct DirLock(#[expect(dead_code, reason = "held for its lock")] File);

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
