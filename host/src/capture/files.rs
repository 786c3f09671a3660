//! The files of one topic: a message a line, in the order of arrival, cut into segments. Invariant: the oldest segment goes when
//! there are too many bytes, or when all of it is too old; a line that can't be read is passed over. Never synced.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::catalog::model::CaptureInput;
use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::pipeline::draft::Draft;

/// Segments that what is kept is cut into: so much of it goes at once.
const SEGMENTS: u64 = 16;
/// And bytes of one at most: it is in memory while a message is erased from it.
const SEGMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
const EXTENSION: &str = "ndjson";
/// Of a segment while it is written anew.
const REWRITTEN: &str = "new";

/// A message as it stands in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    message_id: MessageId,
    /// Milliseconds since 1970.
    arrived_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    payload: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    payload_base64: Option<String>,
    content_type: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    schema_version: Option<Cow<'a, str>>,
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    key: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    correlation_id: Option<Cow<'a, str>>,
    priority: u8,
}

impl<'a> Line<'a> {
    fn of(draft: &'a Draft) -> Line<'a> {
        let text = std::str::from_utf8(&draft.payload).ok();
        Line {
            message_id: draft.id,
            arrived_at: draft.published_at,
            payload: text.map(Cow::Borrowed),
            payload_base64: text.is_none().then(|| STANDARD.encode(&draft.payload)),
            content_type: Cow::Borrowed(&draft.content_type),
            schema_version: draft.schema_version.as_deref().map(Cow::Borrowed),
            headers: draft
                .headers
                .iter()
                .map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(&**value)))
                .collect(),
            key: draft.key.as_deref().map(Cow::Borrowed),
            correlation_id: draft.correlation_id.as_deref().map(Cow::Borrowed),
            priority: draft.priority,
        }
    }

    fn into_draft(self) -> Option<Draft> {
        let payload = match (self.payload, self.payload_base64) {
            (Some(text), None) => text.into_owned().into_bytes(),
            (None, Some(text)) => STANDARD.decode(text).ok()?,
            _ => return None,
        };
        let shared = |text: Option<Cow<'a, str>>| text.map(|text| text.as_ref().into());
        Some(Draft {
            id: self.message_id,
            published_at: self.arrived_at,
            payload: payload.into(),
            content_type: self.content_type.as_ref().into(),
            schema_version: shared(self.schema_version),
            headers: self.headers.iter().map(|(name, value)| (name.as_ref().into(), value.as_ref().into())).collect(),
            key: shared(self.key),
            correlation_id: shared(self.correlation_id),
            priority: self.priority,
            attempt: 0,
            position: None,
            inherited: None,
        })
    }
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    oldest: Timestamp,
    newest: Timestamp,
}

/// What is kept of one topic.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    /// As the topic's owner wants it now.
    pub how: CaptureInput,
    segments: VecDeque<Segment>,
    /// The last one, while it is written.
    open: Option<BufWriter<File>>,
    line: Vec<u8>,
}

impl Kept {
    /// What there is in `dir`. New lines go into a segment of their own: the last one may end in the middle of a line.
    pub fn open(dir: PathBuf, how: CaptureInput) -> Kept {
        remove_rewritten(&dir);
        let segments = listed(&dir).into_iter().filter_map(|(number, path)| {
            let about = fs::metadata(&path).ok()?;
            let written = about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            let newest = Timestamp(i64::try_from(written.as_millis()).unwrap_or(i64::MAX));
            Some(Segment { number, bytes: about.len(), oldest: newest, newest })
        });
        let segments = segments.collect();
        Kept { dir, how, segments, open: None, line: Vec::new() }
    }

    /// Adds a line, and removes what is too much with it.
    pub fn add(&mut self, draft: &Draft) -> io::Result<()> {
        let at = draft.published_at;
        self.line.clear();
        serde_json::to_writer(&mut self.line, &Line::of(draft))?;
        self.line.push(b'\n');
        let part_bytes = (self.how.bytes_max / SEGMENTS).min(SEGMENT_BYTES_MAX);
        let part_time = self.how.ttl / SEGMENTS as u32;
        let is_full = self
            .segments
            .back()
            .is_none_or(|last| last.bytes + self.line.len() as u64 > part_bytes || at.since(last.oldest) > part_time);
        if is_full || self.open.is_none() {
            self.begin(at)?;
        }
        self.make_room(self.line.len() as u64)?;
        let (Some(open), Some(last)) = (&mut self.open, self.segments.back_mut()) else { return Ok(()) };
        if let Err(error) = open.write_all(&self.line) {
            // Half a line may be there: what follows begins elsewhere.
            self.open = None;
            return Err(error);
        }
        last.bytes += self.line.len() as u64;
        last.newest = at;
        Ok(())
    }

    fn begin(&mut self, at: Timestamp) -> io::Result<()> {
        self.flush()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let number = self.segments.back().map_or(0, |last| last.number + 1);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(number))?;
        self.open = Some(BufWriter::new(file));
        self.segments.push_back(Segment { number, bytes: 0, oldest: at, newest: at });
        Ok(())
    }

    /// Removes the oldest segments until so many bytes more may be kept. A message larger than all that may be kept stays alone.
    pub fn make_room(&mut self, more: u64) -> io::Result<()> {
        let mut bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        while bytes + more > self.how.bytes_max && self.segments.len() > 1 {
            bytes -= self.segments[0].bytes;
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Removes the segments all of which is too old.
    pub fn sweep(&mut self, now: Timestamp) -> io::Result<()> {
        while self.segments.front().is_some_and(|oldest| now.since(oldest.newest) > self.how.ttl) {
            if self.segments.len() == 1 {
                self.open = None;
            }
            self.remove_oldest()?;
        }
        Ok(())
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.segments.front() else { return Ok(()) };
        match fs::remove_file(self.path(oldest.number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.segments.pop_front();
        Ok(())
    }

    /// Writes each segment that has the message anew without it. Its partition does not count: a stage may have changed the key.
    pub fn erase(&mut self, message: MessageId) -> io::Result<()> {
        // What can't be written is left out: it keeps nobody from erasing.
        let _lost = self.flush();
        self.open = None;
        let wanted = message.in_partition(0);
        for at in 0..self.segments.len() {
            let path = self.path(self.segments[at].number);
            let text = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read?,
            };
            let stays = |line: &&[u8]| match serde_json::from_slice::<Line<'_>>(line) {
                Ok(line) => line.message_id.in_partition(0) != wanted,
                Err(_) => false,
            };
            let left: Vec<u8> = text.split_inclusive(|byte| *byte == b'\n').filter(stays).flatten().copied().collect();
            if left.len() < text.len() {
                self.segments[at].bytes = left.len() as u64;
                if rewrite(&path, &left).is_err() {
                    // On a full disk, say. All of it goes then: the messages beside it are worth less than the word that is given.
                    self.segments[at].bytes = 0;
                    fs::remove_file(&path)?;
                }
                File::open(&self.dir)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// What was added is in the files.
    pub fn flush(&mut self) -> io::Result<()> {
        let flushed = self.open.as_mut().map_or(Ok(()), io::Write::flush);
        if flushed.is_err() {
            // Tried again, the buffer would be written behind half of itself.
            if let Some(broken) = self.open.take() {
                let _unwritten = broken.into_parts();
            }
        }
        flushed
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.{EXTENSION}"))
    }
}

/// Puts `text` in the place of what is at `path`, which keeps its age.
fn rewrite(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension(REWRITTEN);
    let written = (|| {
        let modified = fs::metadata(path)?.modified()?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text)?;
        file.set_modified(modified)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // It may not have been made.
        let _gone = fs::remove_file(&new);
    }
    written
}

/// Removes what a crash has left of a segment that was written anew.
fn remove_rewritten(dir: &Path) {
    let paths = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == REWRITTEN)) {
        // What can't be removed now is, at the next start.
        let _left = fs::remove_file(path);
    }
}

/// The segments in `dir`, oldest first.
fn listed(dir: &Path) -> Vec<(u64, PathBuf)> {
    let mut all: Vec<(u64, PathBuf)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let is_segment = path.extension().is_some_and(|extension| extension == EXTENSION);
            let number = path.file_stem()?.to_str()?.parse().ok()?;
            is_segment.then_some((number, path))
        })
        .collect();
    all.sort_unstable();
    all
}

/// Reads what was kept, oldest first.
#[derive(Debug)]
pub struct Reader {
    files: VecDeque<PathBuf>,
    current: Option<BufReader<File>>,
    from: Timestamp,
    line: Vec<u8>,
    read: u64,
    /// Bytes of all files when reading began.
    pub bytes: u64,
}

impl Reader {
    /// Of what is in `dir` and arrived at `from` or later.
    pub(super) fn open(dir: &Path, from: Timestamp) -> io::Result<Reader> {
        let (mut files, mut bytes) = (VecDeque::new(), 0);
        for (_, path) in listed(dir) {
            bytes += fs::metadata(&path).map_or(0, |about| about.len());
            files.push_back(path);
        }
        Ok(Reader { files, current: None, from, line: Vec::new(), read: 0, bytes })
    }

    fn next_draft(&mut self) -> io::Result<Option<Draft>> {
        loop {
            let Some(file) = &mut self.current else {
                let Some(path) = self.files.pop_front() else { return Ok(None) };
                match File::open(path) {
                    Ok(file) => self.current = Some(BufReader::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                continue;
            };
            self.line.clear();
            let read = file.read_until(b'\n', &mut self.line)?;
            if read == 0 {
                self.current = None;
                continue;
            }
            self.read += read as u64;
            let line = serde_json::from_slice::<Line<'_>>(&self.line).ok();
            let line = line.filter(|line| line.arrived_at >= self.from);
            if let Some(draft) = line.and_then(Line::into_draft) {
                return Ok(Some(draft));
            }
        }
    }

    /// Bytes that were read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read
    }
}

/// Lines that can't be read are passed over, and files that have gone meanwhile.
impl Iterator for Reader {
    type Item = io::Result<Draft>;

    fn next(&mut self) -> Option<io::Result<Draft>> {
        self.next_draft().transpose()
    }
}
