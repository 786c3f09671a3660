//! The signing secret that a development broker makes for itself. Invariant: whoever starts first, all starters read the
//! same secret, and nobody reads half of one. Never overwrites a file that is there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{Config, Profile};
use crate::api::auth::token::SECRET_BYTES_MIN;
use crate::catalog::model::Secret;
use crate::entropy::Entropy;

/// Its name in the data directory.
const FILE_NAME: &str = "jwt.secret";
/// Bytes that are drawn, and written as hex: as strong as HS256 itself.
const DRAWN_BYTES: usize = 32;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds no secret of at least 32 bytes; delete it and a new one is made (tokens made with it end)")]
    TooShort {
        /// The file.
        path: PathBuf,
    },
    /// Only development makes its own.
    #[error("jwt.secret is not set, and the production profile does not make one")]
    NotSet,
}

impl Config {
    /// The secret that tokens are signed with. In development, where none is configured, the one of the data directory,
    /// which is made when it is missing.
    ///
    /// # Errors
    /// When it can't be read or made.
    pub fn signing_secret(&self, entropy: &Entropy) -> Result<Secret, SecretError> {
        match (&self.jwt.secret, self.profile) {
            (Some(secret), _) => Ok(secret.clone()),
            (None, Profile::Production) => Err(SecretError::NotSet),
            (None, Profile::Development) => {
                let path = self.data_dir.join(FILE_NAME);
                match read(&path) {
                    Err(SecretError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        make(&self.data_dir, &path, entropy)?;
                        read(&path)
                    }
                    answer => answer,
                }
            }
        }
    }

    /// The secret of an existing development data directory; nothing is made.
    #[must_use]
    pub fn existing_secret(&self) -> Option<Secret> {
        self.jwt.secret.clone().or_else(|| match self.profile {
            Profile::Development => read(&self.data_dir.join(FILE_NAME)).ok(),
            Profile::Production => None,
        })
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SecretError {
    let path = path.to_owned();
    |source| SecretError::Io { path, source }
}

fn read(path: &Path) -> Result<Secret, SecretError> {
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    if fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        tracing::warn!(path = %path.display(), "others on this machine can read the signing secret; chmod 600 it");
    }
    let secret = text.trim();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(SecretError::TooShort { path: path.to_owned() });
    }
    Ok(Secret::new(secret.to_owned()))
}

/// Written in full beside its place, then linked into it: `link` fails where a file is, so of two starters one wins and
/// the other reads the winner's.
fn make(directory: &Path, path: &Path, entropy: &Entropy) -> Result<(), SecretError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error(directory))?;
    let mut drawn = [0; DRAWN_BYTES];
    entropy.fill(&mut drawn);
    let draft = directory.join(format!("{FILE_NAME}.{:016x}.tmp", entropy.next_u64()));
    let written = write_draft(&draft, &hex::encode(drawn)).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    // The draft goes whether or not it was needed; if it can't, the link's own error says more.
    let _ = fs::remove_file(&draft);
    written.map_err(io_error(path))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error(directory))
}

fn write_draft(draft: &Path, secret: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    writeln!(file, "{secret}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::development;

    #[test]
    fn the_secret_is_made_once_and_kept_to_its_owner() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = Config { data_dir: directory.path().join("new/data"), ..development() };
        assert_eq!(config.existing_secret(), None);
        let first = config.signing_secret(&Entropy::system()).expect("made");
        assert_eq!(first.expose().len(), 64);
        assert_eq!(config.signing_secret(&Entropy::system()).expect("read"), first);
        assert_eq!(config.existing_secret(), Some(first));
        let path = config.data_dir.join(FILE_NAME);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&config.data_dir).expect("there").count(), 1, "no draft is left");
    }

    #[test]
    fn starters_at_once_agree() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = Config { data_dir: directory.path().to_owned(), ..development() };
        let secrets: Vec<Secret> = std::thread::scope(|scope| {
            let starters: Vec<_> =
                (0..8).map(|_| scope.spawn(|| config.signing_secret(&Entropy::system()).expect("a secret"))).collect();
            starters.into_iter().map(|starter| starter.join().expect("ends")).collect()
        });
        assert!(secrets.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn a_file_that_holds_no_secret_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(FILE_NAME), "short\n").expect("written");
        let config = Config { data_dir: directory.path().to_owned(), ..development() };
        assert!(matches!(config.signing_secret(&Entropy::system()), Err(SecretError::TooShort { .. })));
    }
}
