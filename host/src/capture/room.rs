//! The room that what arrives may take. Invariant: the disk is left to what was promised to be kept. Never removes anything.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The room that what arrives may take.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Bytes of all topics together.
    pub bytes_max: u64,
    /// Bytes of the file system that stay free.
    pub free_bytes_min: u64,
}

impl Room {
    /// Whether the disk has room where `root` is, or is to be.
    pub(super) fn look(&self, root: &Path) -> io::Result<()> {
        // It is made with the first topic that has something to keep.
        let free_bytes = free_bytes(root).or_else(|_| free_bytes(root.parent().unwrap_or(root)))?;
        if free_bytes >= self.free_bytes_min {
            return Ok(());
        }
        let least = self.free_bytes_min;
        let message = format!("{free_bytes} bytes of the disk are free, and limits.captured_free_bytes_min is {least}");
        Err(io::Error::other(message))
    }
}

/// Bytes that the broker may still write to the file system of `path`, unless others do.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut about = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` ends with a zero, and `about` is valid for writing.
    if unsafe { libc::statvfs(path.as_ptr(), about.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, and so has written it.
    let about = unsafe { about.assume_init() };
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_or_not_and_where_there_is_no_folder_its_parent_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let look = |free_bytes_min, path: &Path| Room { bytes_max: 0, free_bytes_min }.look(path);
        for path in [folder.path(), &folder.path().join("captured")] {
            look(1, path).unwrap();
            assert!(look(u64::MAX, path).unwrap_err().to_string().contains("limits.captured_free_bytes_min"));
        }
        assert!(look(1, &folder.path().join("a/b")).is_err(), "what can't be asked has no room");
    }
}
