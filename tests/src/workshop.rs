//! Where plugins' authors work: a folder outside the repository with the compilers of all languages on its path. Invariant: what
//! `sluice plugin` does there it does as at an author's prompt; a tool that can't be installed is a failure. Never asks a
//! broker.

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::{binary, outside};

/// A folder outside the repository, the same one in each run: what the tools have built is found again by their paths.
#[derive(Debug)]
pub struct Workshop {
    /// The folder.
    pub dir: PathBuf,
    /// The search path of what runs there.
    pub path: OsString,
}

impl Workshop {
    /// An empty one of this name.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn empty(name: &str) -> Workshop {
        let mut hasher = DefaultHasher::new();
        binary::target_dir().hash(&mut hasher);
        let dir = std::env::temp_dir().join(format!("sluice-workshop-{:016x}", hasher.finish())).join(name);
        // What the run before has left.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("the temporary folder takes another");
        Workshop { dir, path: outside::path_with_compilers() }
    }

    /// With the plugins of the repository, the SDK and the examples among them.
    ///
    /// # Panics
    /// When they can't be copied.
    #[must_use]
    pub fn with_examples(name: &str) -> Workshop {
        let (workshop, repository) = (Workshop::empty(name), binary::repository());
        for part in ["plugins", "plugin-sdk"] {
            copy(&repository.join(part), &workshop.dir.join(part));
        }
        workshop
    }

    /// A program that is to run there.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let kept = binary::target_dir().join("workshop");
        let mut command = Command::new(program);
        command.current_dir(&self.dir).env("PATH", &self.path).env("XDG_CACHE_HOME", kept.join("cache"));
        command.env("CARGO_TARGET_DIR", kept.join("cargo"));
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "WASI_SDK_PATH"] {
            command.env_remove(name);
        }
        command
    }

    /// What `sluice plugin` does with these arguments.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn plugin(&self, arguments: &[&str]) -> Output {
        self.command(binary::sluice()).arg("plugin").args(arguments).output().expect("sluice starts")
    }

    /// Demands that it succeeds; what it says as JSON. Nobody need look at it.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> Value {
        let output = self.plugin(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", outside::said(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// Demands that it fails with this exit code; what it said.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.plugin(arguments);
        let said = outside::said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    /// Writes a document into a file.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn write(&self, path: &str, document: &Value) {
        fs::write(self.dir.join(path), document.to_string()).expect("written");
    }
}

/// All files below `from`, but for what is built there; links are followed.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("a folder of the repository") {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).expect("a folder can be read");
        if name == "target" || name == "dist" {
            continue;
        }
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).expect("a file can be copied");
        }
    }
}
