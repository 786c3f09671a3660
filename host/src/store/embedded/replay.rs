//! Applying the journal again, after `walk` found it whole. Invariant: every frame behind the checkpoint is applied, in
//! order; a torn end is saved aside before it is cut off. Reads one file at a time.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::core::Core;
use super::frames::{each_frame, read_whole};
use super::maintenance::Maintenance;
use super::ops::{Body, Op};
use super::recovery::{OpenError, OpenReport, Torn};
use super::state::Applying;
use super::walk::{Found, Source};
use crate::store::StoreError;

/// A replay under way.
pub(super) struct Replay {
    /// What it fills.
    pub core: Arc<Core>,
    /// What was found.
    pub report: OpenReport,
    /// Writes segments when memory is full.
    pub maintenance: Maintenance,
}

impl Replay {
    /// Applies all frames after the checkpoint.
    pub(super) fn replay(&mut self, found: &Found) -> Result<(), OpenError> {
        let core = Arc::clone(&self.core);
        let mut total = 0;
        for source in &found.sources {
            let bytes = read_whole(&*source.file, &source.name)?;
            self.file(source, &bytes)?;
            if source.torn {
                self.set_torn(source, &bytes)?;
            } else if Some(source.id) == found.sources.last().map(|last| last.id) {
                // Reserved room that nothing was written to, and nothing will be: this opening has a file of its own.
                let cut = source.file.set_len(source.used as u64);
                cut.map_err(OpenError::io(format!("cutting {}", source.name)))?;
            }
            total += source.used as u64;
            core.journal_files.lock().push((source.id, source.first));
        }
        core.journal_bytes.store(total, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn file(&mut self, source: &Source, bytes: &Bytes) -> Result<(), OpenError> {
        let applied = self.core.state.lock().applied;
        each_frame(source, bytes, applied, &mut |frame| {
            self.report.frames += 1;
            self.apply(frame.ops, frame.bodies, frame.sequence)
        })
    }

    fn apply(&mut self, ops: Vec<Op>, bodies: Vec<Body>, sequence: u64) -> Result<(), OpenError> {
        let core = Arc::clone(&self.core);
        let now = core.clock.now();
        let mut state = core.state.lock();
        let mut bodies = bodies.into_iter();
        for op in ops {
            state.apply(op, &mut bodies, now, Applying::Replay);
        }
        state.applied = sequence;
        state.evict();
        let full = state.unflushed_bytes > state.limits.unflushed_bytes_max;
        drop(state);
        if full {
            let io =
                |error: StoreError| OpenError::Io { what: "replaying".to_owned(), source: io::Error::other(error) };
            self.maintenance.flush_full().map_err(io)?;
        }
        Ok(())
    }

    /// Saves the torn end and cuts it off.
    fn set_torn(&mut self, source: &Source, whole: &[u8]) -> Result<(), OpenError> {
        let core = Arc::clone(&self.core);
        let at = source.used;
        let rest = whole.get(at..).unwrap_or_default();
        let bytes = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let saved_as = format!("{}-{at}.torn", source.name);
        let saving = || format!("saving the torn end of {}", source.name);
        let file = core.files.create(&core.dir.join(&saved_as)).map_err(OpenError::io(saving()))?;
        file.write_at(&rest[..bytes], 0)
            .and_then(|()| file.sync())
            .and_then(|()| core.files.sync_dir(&core.dir))
            .and_then(|()| source.file.set_len(at as u64))
            .and_then(|()| source.file.sync())
            .map_err(OpenError::io(saving()))?;
        tracing::warn!(
            file = %source.name, offset = at, bytes, %saved_as,
            "the journal ends in a frame that was never finished nor acknowledged; it was cut off and saved"
        );
        self.report.torn = Some(Torn { file: source.name.clone(), offset: at as u64, bytes: bytes as u64, saved_as });
        Ok(())
    }
}
