//! From a component's bytes to something that can be instantiated: checked, compiled once, kept as machine code by digest.
//! Invariant: machine code is loaded only if its checksum is the one it was written with, for this very engine. Never
//! compiles on a thread that messages wait for.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::bindings::PluginPre;
use super::compiler::Compiler;
use super::config_schema::{self, ConfigSchema};
use super::host_state::HostState;
use super::metrics::Metrics;
use super::world;
use super::{engine, sandbox};

/// Digests whose state is remembered: all versions of all plugins that anyone looks at.
const STATES_MAX: usize = 4096;
/// Bytes of the checksum behind the machine code.
const CHECKSUM_BYTES: u64 = 32;
/// Of machine code in memory at once while it is checked.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a component can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComponentError {
    /// Its fault: the sentence says what to do.
    #[error("{0}")]
    Unusable(String),
    /// Not its fault.
    #[error("it could not be compiled now: {0}")]
    Unavailable(String),
}

/// A component that is ready to be instantiated.
pub struct Loaded {
    /// Hex SHA-256 of the component.
    pub digest: String,
    /// The interfaces it imports.
    pub imports: Vec<String>,
    /// What it says that its configs look like.
    pub config_schema: Option<ConfigSchema>,
    /// How long compiling took, if it was compiled since the start.
    pub compiled_in: Option<Duration>,
    /// With everything but its memory prepared.
    pub pre: PluginPre<HostState>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// What this broker has made of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "is", content = "why")]
pub enum ComponentState {
    /// Nothing yet: it is compiled when a stage needs it.
    Idle,
    /// It is being compiled.
    Compiling,
    /// It can run.
    Ready,
    /// It can't.
    Failed(String),
}

/// Compiles and keeps components.
pub struct Components {
    engine: Engine,
    linker: Linker<HostState>,
    dir: PathBuf,
    fingerprint: String,
    compiler: Compiler,
    /// Those in use. Weak: what no stage uses is let go of.
    loaded: Mutex<HashMap<String, Weak<Loaded>>>,
    states: Mutex<HashMap<String, ComponentState>>,
    /// How long those took that were compiled since the start.
    compiled_in: Mutex<HashMap<String, Duration>>,
    /// One load of a component at a time: two stages of one plugin must not compile it twice. Swept when it is asked.
    loading: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Components {
    /// With machine code in `dir`, which is created.
    ///
    /// # Errors
    /// When the directory or the linker can't be made.
    pub fn open(engine: Engine, dir: PathBuf, metrics: Metrics) -> Result<Components, String> {
        std::fs::create_dir_all(&dir).map_err(|error| format!("{} can't be created: {error}", dir.display()))?;
        let linker = sandbox::linker(&engine).map_err(|error| format!("{error:#}"))?;
        let compiler = Compiler::new(metrics);
        let fingerprint = engine::fingerprint(&engine);
        let (loaded, states) = (Mutex::default(), Mutex::default());
        let (loading, compiled_in) = (Mutex::default(), Mutex::default());
        Ok(Components { engine, linker, dir, fingerprint, compiler, loaded, states, compiled_in, loading })
    }

    /// What this broker has made of the component with `digest`.
    #[must_use]
    pub fn state(&self, digest: &str) -> ComponentState {
        self.states.lock().get(digest).cloned().unwrap_or(ComponentState::Idle)
    }

    /// The component with `digest`, if a stage has it in use.
    #[must_use]
    pub fn in_use(&self, digest: &str) -> Option<Arc<Loaded>> {
        self.loaded.lock().get(digest).and_then(Weak::upgrade)
    }

    /// Makes `bytes`, whose SHA-256 is `digest`, ready: from memory, from the machine code kept, or by compiling.
    ///
    /// # Errors
    /// [`ComponentError::Unusable`] if it is no component, doesn't fit the world or doesn't compile.
    pub async fn load(&self, digest: &str, bytes: Bytes) -> Result<Arc<Loaded>, ComponentError> {
        let turn = self.turn(digest);
        let _one_at_a_time = turn.lock().await;
        if let Some(loaded) = self.in_use(digest) {
            return Ok(loaded);
        }
        let loaded = self.load_anew(digest, bytes).await;
        let state = match &loaded {
            Ok(_) => ComponentState::Ready,
            Err(error) => ComponentState::Failed(error.to_string()),
        };
        self.remember(digest, state);
        loaded
    }

    /// Sees to it that `bytes`, whose SHA-256 is `digest`, need not be compiled once a stage wants them.
    ///
    /// # Errors
    /// As [`Components::load`].
    pub async fn warm(&self, digest: &str, bytes: Bytes) -> Result<(), ComponentError> {
        let path = self.code_path(digest);
        let kept = tokio::task::spawn_blocking(move || is_whole(&path)).await;
        if matches!(kept, Ok(Ok(true))) {
            self.remember(digest, ComponentState::Ready);
            return Ok(());
        }
        self.load(digest, bytes).await.map(drop)
    }

    /// Removes the machine code that no version of any plugin has, or that another engine made.
    pub fn prune(&self, digests: &HashSet<String>) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let is_code = path.extension().is_some_and(|extension| extension == "cwasm");
            let current = name
                .split_once('-')
                .is_some_and(|(digest, made_by)| is_code && made_by == self.fingerprint && digests.contains(digest));
            if !current && let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(file = %path.display(), %error, "machine code of no use can't be removed");
            }
        }
    }

    /// Removes the machine code of a component that was not accepted or has been deleted.
    pub async fn discard(&self, digest: &str) {
        self.states.lock().remove(digest);
        // It may never have been compiled.
        let _ = tokio::fs::remove_file(self.code_path(digest)).await;
    }

    fn code_path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}-{}.cwasm", self.fingerprint))
    }

    fn turn(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut loading = self.loading.lock();
        loading.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(loading.entry(digest.to_owned()).or_default())
    }

    async fn load_anew(&self, digest: &str, bytes: Bytes) -> Result<Arc<Loaded>, ComponentError> {
        let imports = check(bytes.clone()).await?;
        let config_schema = config_schema::of(bytes.clone()).await?;
        let path = self.code_path(digest);
        let component = match self.kept_code(&path).await {
            Some(component) => component,
            None => {
                self.remember(digest, ComponentState::Compiling);
                let (code, took) = self.compiler.compile(bytes).await?;
                self.remember_time(digest, took);
                self.keep(path, code).await?
            }
        };
        let compiled_in = self.compiled_in.lock().get(digest).copied();
        let fits = |error: wasmtime::Error| world::misfit(&imports, &error);
        let pre = self.linker.instantiate_pre(&component).map_err(fits)?;
        let pre = PluginPre::new(pre).map_err(fits)?;
        let loaded = Arc::new(Loaded { digest: digest.to_owned(), imports, config_schema, compiled_in, pre });
        let mut all = self.loaded.lock();
        all.retain(|_, loaded| loaded.strong_count() > 0);
        all.insert(digest.to_owned(), Arc::downgrade(&loaded));
        Ok(loaded)
    }

    fn remember_time(&self, digest: &str, took: Duration) {
        let mut compiled_in = self.compiled_in.lock();
        if compiled_in.len() >= STATES_MAX {
            compiled_in.clear(); // Only what is shown.
        }
        compiled_in.insert(digest.to_owned(), took);
    }

    fn remember(&self, digest: &str, state: ComponentState) {
        let mut states = self.states.lock();
        if states.len() >= STATES_MAX && !states.contains_key(digest) {
            states.clear(); // Only what is shown: it is found out again.
        }
        states.insert(digest.to_owned(), state);
    }

    /// Keeps machine code that was just made, and loads it. What can't be kept costs the next start a compilation and
    /// nothing else.
    async fn keep(&self, path: PathBuf, code: Vec<u8>) -> Result<Component, ComponentError> {
        let engine = self.engine.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let written = write_code(&path, &code);
            if let Err(error) = &written {
                tracing::warn!(file = %path.display(), %error, "machine code of a plugin can't be kept");
            }
            // SAFETY: `code` came from `precompile_component` in this process, and the file from `code`.
            let mapped = written.is_ok().then(|| unsafe { Component::deserialize_file(&engine, &path) });
            // A file system may not let files be run (`noexec`); what is in memory may.
            let loaded = match mapped {
                Some(Ok(component)) => Ok(component),
                // SAFETY: as above.
                Some(Err(_)) | None => unsafe { Component::deserialize(&engine, &code) },
            };
            // The engine that runs it knows bounds that the one that compiles does not: memories, tables, instances.
            loaded.map_err(|error| {
                // It may never have been written.
                let _ = std::fs::remove_file(&path);
                ComponentError::Unusable(format!("it asks for more than a plugin may have: {error:#}"))
            })
        });
        loaded.await.unwrap_or_else(|_| Err(ComponentError::Unavailable("the broker is stopping".to_owned())))
    }

    /// What was kept for this engine; damage means compiling again, never an error.
    async fn kept_code(&self, path: &Path) -> Option<Component> {
        let (engine, path) = (self.engine.clone(), path.to_owned());
        let load = move || {
            let loaded = match is_whole(&path) {
                Ok(false) => Err("its checksum does not match".to_owned()),
                Ok(true) => map_or_read(&engine, &path),
                Err(error) if error.kind() == ErrorKind::NotFound => return None,
                Err(error) => Err(error.to_string()),
            };
            let refused = |why: &String| {
                tracing::warn!(file = %path.display(), why, "machine code of a plugin can't be used: compiling again");
            };
            loaded.inspect_err(refused).ok()
        };
        tokio::task::spawn_blocking(load).await.ok()?
    }
}

/// Loads a file of machine code that is whole.
fn map_or_read(engine: &Engine, path: &Path) -> Result<Component, String> {
    // SAFETY: its checksum shows that the file is what this program wrote; wasmtime itself refuses code of another version
    // or other settings. It is mapped, so that only what runs takes memory; nobody writes into it: a file is made beside
    // and renamed.
    if let Ok(component) = unsafe { Component::deserialize_file(engine, path) } {
        return Ok(component);
    }
    // A file system may not let files be run (`noexec`); what is in memory may.
    let mut code = std::fs::read(path).map_err(|error| error.to_string())?;
    code.truncate(code.len().saturating_sub(CHECKSUM_BYTES as usize));
    // SAFETY: as above.
    unsafe { Component::deserialize(engine, &code) }.map_err(|error| format!("{error:#}"))
}

/// Whether a file of machine code is as it was written.
fn is_whole(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let Some(code_bytes) = file.metadata()?.len().checked_sub(CHECKSUM_BYTES) else { return Ok(false) };
    let (mut hash, mut chunk, mut left) = (Sha256::new(), vec![0; CHUNK_BYTES], code_bytes);
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        file.read_exact(&mut chunk[..wanted])?;
        hash.update(&chunk[..wanted]);
        left -= wanted as u64;
    }
    let mut checksum = [0; CHECKSUM_BYTES as usize];
    file.read_exact(&mut checksum)?;
    Ok(hash.finalize()[..] == checksum)
}

/// Written beside and renamed, so that a crash leaves the old file or none. Each writer has a file of its own: one whose
/// caller has gone may still be at it, and what is mapped must never change.
fn write_code(path: &Path, code: &[u8]) -> std::io::Result<()> {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    let beside = path.with_extension(format!("{}.tmp", WRITERS.fetch_add(1, Ordering::Relaxed)));
    let write = || {
        let mut file = File::create_new(&beside)?;
        file.write_all(code)?;
        file.write_all(&Sha256::digest(code))?;
        // Read again from the disk, page by page, once memory runs low: it must be there by then.
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        // Half a file on a full disk takes the room that others need.
        let _ = std::fs::remove_file(&beside);
    })
}

/// Whether `bytes` are a component that fits the plugin world, and what it imports.
///
/// # Errors
/// [`ComponentError::Unusable`].
pub async fn check(bytes: Bytes) -> Result<Vec<String>, ComponentError> {
    let checked = tokio::task::spawn_blocking(move || world::check(&bytes));
    checked.await.unwrap_or_else(|_| Err(ComponentError::Unavailable("the broker is stopping".to_owned())))
}

/// Hex SHA-256.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
