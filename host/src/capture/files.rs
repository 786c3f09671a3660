//! The files of one topic: a message a line, in the order of arrival, cut into segments. Invariant: the oldest segment goes when
//! there are too many bytes, or when all of it is too old; a line that can't be read is passed over and
//! counted, and so is one that could not be written. Never synced.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Take, Write as _};
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
/// Bytes of lines that are written at once.
const UNWRITTEN_BYTES: usize = 8 * 1024;
/// How a line begins, and how long the id is that follows.
const ID_BEGINS: &[u8] = b"{\"messageId\":\"";
const ID_CHARS: usize = 36;
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
            drawn: None,
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

/// What became of lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// They are in a file.
    pub written: u64,
    /// They are in none.
    pub lost: u64,
}

/// What is kept of one topic.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    /// As the topic's owner wants it now.
    pub how: CaptureInput,
    segments: VecDeque<Segment>,
    /// The last one, while it is written.
    open: Option<File>,
    /// Whole lines that belong into it and are not there yet.
    unwritten: Vec<u8>,
    unwritten_count: u64,
    counts: Counts,
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
        Kept { dir, how, segments, open: None, unwritten: Vec::new(), unwritten_count: 0, counts: Counts::default() }
    }

    /// Adds a line, and removes what is too much with it: all that is kept may have `room` bytes, however much the topic's owner
    /// wants.
    pub fn add(&mut self, draft: &Draft, room: u64) -> io::Result<()> {
        if let Err(error) = self.push(draft, room) {
            self.counts.lost += 1;
            return Err(error);
        }
        if self.unwritten.len() < UNWRITTEN_BYTES { Ok(()) } else { self.flush() }
    }

    fn push(&mut self, draft: &Draft, room: u64) -> io::Result<()> {
        let at = draft.published_at;
        let mut line = serde_json::to_vec(&Line::of(draft))?;
        line.push(b'\n');
        let bytes = line.len() as u64;
        if bytes > room {
            return Err(io::Error::other("what all topics keep has reached limits.captured_bytes_max"));
        }
        let part_bytes = (self.how.bytes_max.min(room) / SEGMENTS).min(SEGMENT_BYTES_MAX);
        let part_time = self.how.ttl / SEGMENTS as u32;
        let is_full = self
            .segments
            .back()
            .is_none_or(|last| last.bytes + bytes > part_bytes || at.since(last.oldest) > part_time);
        if is_full || self.open.is_none() {
            self.begin(at)?;
        }
        self.make_room(bytes, room)?;
        let Some(last) = self.segments.back_mut() else { return Ok(()) };
        self.unwritten.append(&mut line);
        self.unwritten_count += 1;
        last.bytes += bytes;
        last.newest = at;
        Ok(())
    }

    fn begin(&mut self, at: Timestamp) -> io::Result<()> {
        self.flush()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let number = self.segments.back().map_or(0, |last| last.number + 1);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(number))?;
        self.open = Some(file);
        self.segments.push_back(Segment { number, bytes: 0, oldest: at, newest: at });
        Ok(())
    }

    /// Removes the oldest segments until so many bytes more may be kept. A message larger than all that the topic's owner wants
    /// stays alone.
    pub fn make_room(&mut self, more: u64, room: u64) -> io::Result<()> {
        let (mut bytes, bytes_max) = (self.bytes(), self.how.bytes_max.min(room));
        while bytes + more > bytes_max && self.segments.len() > 1 {
            bytes -= self.segments[0].bytes;
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Of all that is kept.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The time of what would go first.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.segments.front().map(|oldest| oldest.newest)
    }

    /// What became of lines since this was asked last.
    pub fn counted(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Removes the segments all of which is too old.
    pub fn sweep(&mut self, now: Timestamp) -> io::Result<()> {
        while self.segments.front().is_some_and(|oldest| now.since(oldest.newest) > self.how.ttl) {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Removes the segment that is the oldest.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.segments.front() else { return Ok(()) };
        match fs::remove_file(self.path(oldest.number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.segments.pop_front();
        if self.segments.is_empty() {
            self.open = None;
            self.counts.lost += std::mem::take(&mut self.unwritten_count);
            self.unwritten.clear();
        }
        Ok(())
    }

    /// Writes each segment that has one of the messages anew without it. Their partitions do not count: a stage may have changed
    /// the key.
    pub fn erase(&mut self, messages: &[MessageId]) -> io::Result<()> {
        // What can't be written is left out: it keeps nobody from erasing.
        let _lost = self.flush();
        let wanted: Vec<MessageId> = messages.iter().map(|message| message.in_partition(0)).collect();
        for at in 0..self.segments.len() {
            let path = self.path(self.segments[at].number);
            let text = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read?,
            };
            let lines = || text.split_inclusive(|byte| *byte == b'\n');
            if !lines().any(|line| goes_with(line, &wanted)) {
                continue;
            }
            let left: Vec<u8> = lines().filter(|line| !goes_with(line, &wanted)).flatten().copied().collect();
            if at + 1 == self.segments.len() {
                // Another file is in its place: what follows begins elsewhere.
                self.open = None;
            }
            self.segments[at].bytes = left.len() as u64;
            if rewrite(&path, &left).is_err() {
                // On a full disk, say. All of it goes then: the messages beside it are worth less than the word that is given.
                self.segments[at].bytes = 0;
                fs::remove_file(&path)?;
            }
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    /// What was added is in the files, or lost.
    pub fn flush(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.unwritten);
        let count = std::mem::take(&mut self.unwritten_count);
        let (Some(open), Some(last)) = (&mut self.open, self.segments.back_mut()) else {
            self.counts.lost += count;
            return Ok(());
        };
        let Err(error) = open.write_all(&lines) else {
            self.counts.written += count;
            return Ok(());
        };
        self.counts.lost += count;
        last.bytes -= lines.len() as u64;
        // Half a line may be there. Where it can't be taken away what follows begins elsewhere all the same.
        let _half = open.set_len(last.bytes);
        self.open = None;
        Err(error)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.{EXTENSION}"))
    }
}

/// Whether a line has to go with these messages. Its id stands at its beginning: only where it does not the whole line is looked at,
/// which goes, too, if it can't be read.
fn goes_with(line: &[u8], wanted: &[MessageId]) -> bool {
    let whole = || serde_json::from_slice::<Line<'_>>(line).ok().map(|line| line.message_id);
    id_at_beginning(line).or_else(whole).is_none_or(|id| wanted.contains(&id.in_partition(0)))
}

fn id_at_beginning(line: &[u8]) -> Option<MessageId> {
    let (id, rest) = line.strip_prefix(ID_BEGINS)?.split_at_checked(ID_CHARS)?;
    rest.starts_with(b"\"").then(|| std::str::from_utf8(id).ok()?.parse().ok()).flatten()
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

/// Lines that can't be read, of which it is told where they stand.
const DAMAGED_SHOWN: usize = 10;

/// Lines that can't be read.
#[derive(Debug, Default)]
pub struct Damaged {
    /// How many.
    pub count: u64,
    /// The first of them: which, from 1, of all that is kept.
    pub first: Vec<u64>,
}

/// Reads what was kept, oldest first.
#[derive(Debug)]
pub struct Reader {
    /// And how long each was when reading began: what is written meanwhile may end in the middle of a line.
    files: VecDeque<(PathBuf, u64)>,
    current: Option<BufReader<Take<File>>>,
    from: Timestamp,
    line: Vec<u8>,
    read: u64,
    lines: u64,
    damaged: Damaged,
    /// Bytes of all files when reading began.
    pub bytes: u64,
}

impl Reader {
    /// Of what is in `dir` and arrived at `from` or later.
    pub(super) fn open(dir: &Path, from: Timestamp) -> io::Result<Reader> {
        let (mut files, mut bytes) = (VecDeque::new(), 0);
        for (_, path) in listed(dir) {
            let length = fs::metadata(&path).map_or(0, |about| about.len());
            bytes += length;
            files.push_back((path, length));
        }
        Ok(Reader {
            files,
            current: None,
            from,
            line: Vec::new(),
            read: 0,
            lines: 0,
            damaged: Damaged::default(),
            bytes,
        })
    }

    fn next_draft(&mut self) -> io::Result<Option<Draft>> {
        loop {
            let Some(file) = &mut self.current else {
                let Some((path, length)) = self.files.pop_front() else { return Ok(None) };
                match File::open(path) {
                    Ok(file) => self.current = Some(BufReader::new(file.take(length))),
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
            self.lines += 1;
            let line = serde_json::from_slice::<Line<'_>>(&self.line).ok();
            let is_older = line.as_ref().is_some_and(|line| line.arrived_at < self.from);
            match line.and_then(Line::into_draft) {
                _ if is_older => {}
                Some(draft) => return Ok(Some(draft)),
                None => {
                    self.damaged.count += 1;
                    if self.damaged.first.len() < DAMAGED_SHOWN {
                        self.damaged.first.push(self.lines);
                    }
                }
            }
        }
    }

    /// Bytes that were read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read
    }

    /// Lines that were passed over so far.
    #[must_use]
    pub fn damaged(&self) -> &Damaged {
        &self.damaged
    }
}

/// Lines that can't be read are passed over and counted, and files that have gone meanwhile.
impl Iterator for Reader {
    type Item = io::Result<Draft>;

    fn next(&mut self) -> Option<io::Result<Draft>> {
        self.next_draft().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::TopicId;
    use crate::pipeline::tests::draft;

    const HOW: CaptureInput = CaptureInput { ttl: Duration::from_secs(3600), bytes_max: 1 << 20 };
    const ROOM: u64 = 1 << 40;

    fn arrived(number: u64) -> Draft {
        let at = Timestamp(1_000_000_000_000);
        Draft { id: MessageId::new(at, TopicId(1), 0, number), published_at: at, ..draft("x", &[]) }
    }

    #[test]
    fn what_no_file_takes_is_counted_as_lost_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(folder.path().join("1"), HOW);
        kept.add(&arrived(1), ROOM).unwrap();
        kept.flush().unwrap();
        assert_eq!(kept.counted(), Counts { written: 1, lost: 0 });
        let before = kept.bytes();
        for number in 2..5 {
            kept.add(&arrived(number), ROOM).unwrap();
        }
        assert_eq!(kept.counted(), Counts::default(), "they are in no file yet");
        kept.open = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        kept.flush().unwrap_err();
        assert_eq!((kept.counted(), kept.bytes()), (Counts { written: 0, lost: 3 }, before));
        kept.add(&arrived(5), ROOM).unwrap();
        kept.flush().unwrap();
        assert_eq!(kept.counted(), Counts { written: 1, lost: 0 });
        let read = Reader::open(&kept.dir, Timestamp(0)).unwrap().map(|draft| draft.unwrap().id);
        assert_eq!(read.collect::<Vec<_>>(), [arrived(1).id, arrived(5).id]);
    }

    #[test]
    fn an_erasure_writes_only_what_has_the_messages_anew_and_what_is_written_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(folder.path().join("1"), HOW);
        let add = |kept: &mut Kept, number| {
            kept.add(&arrived(number), ROOM).unwrap();
            kept.flush().unwrap();
        };
        add(&mut kept, 1);
        kept.erase(&[arrived(9).id]).unwrap();
        add(&mut kept, 2);
        assert_eq!(kept.segments.len(), 1, "of what has no such message nothing is ended");
        add(&mut kept, 3);
        kept.erase(&[arrived(1).id.in_partition(5), arrived(3).id]).unwrap();
        add(&mut kept, 4);
        assert_eq!(kept.segments.len(), 2);
        let read = Reader::open(&kept.dir, Timestamp(0)).unwrap().map(|draft| draft.unwrap().id);
        assert_eq!(read.collect::<Vec<_>>(), [arrived(2).id, arrived(4).id]);
    }

    #[test]
    fn a_line_goes_with_its_message_wherever_its_id_stands_or_where_it_cannot_be_read() {
        let (message, other) = (arrived(1), arrived(2));
        let line = serde_json::to_string(&Line::of(&message)).unwrap();
        let goes = |line: &str, with: &Draft| goes_with(line.as_bytes(), &[with.id.in_partition(0)]);
        assert_eq!(id_at_beginning(line.as_bytes()), Some(message.id));
        assert!(goes(&line, &message) && !goes(&line, &other));
        let turned = line.replacen('{', r#"{"priority":0,"#, 1);
        let turned = turned.strip_suffix(r#","priority":0}"#).unwrap().to_owned() + "}";
        assert!(id_at_beginning(turned.as_bytes()).is_none());
        assert!(goes(&turned, &message) && !goes(&turned, &other));
        for damaged in ["", "\n", "{", r#"{"messageId":"0"#, &line[..30], &line[1..]] {
            assert!(goes(damaged, &other), "{damaged}");
        }
    }
}
