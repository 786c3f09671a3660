//! What strangers and broken disks can feed the broker: texts that claim to be receipts, names, times, tokens, trace contexts;
//! journals with bytes changed. Invariant: nothing panics, and what is accepted is what was written. `make fuzz` runs many
//! more cases.

#[path = "parsers/corpus.rs"]
mod corpus;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use sluice::api::auth::scope::Scope;
use sluice::clock::{Clock, Timestamp};
use sluice::config::{format_duration, parse_duration};
use sluice::message::{GroupId, MessageId, Offset, PRIORITY_MAX, Position, TopicId, TopicName};
use sluice::store::embedded::{EmbeddedOptions, EmbeddedStore};
use sluice::store::{MessageStore, ReadFrom, ReadRequest, Receipt};
use sluice::telemetry::{parse_traceparent, parse_tracestate};
use sluice_tests::broker::files_below;
use sluice_tests::store_backends::cramped;
use sluice_tests::store_bed::{Backend, Bed, START, TOPIC};

/// Opening a store takes some milliseconds, so damage is tried less often than texts are.
const TEXTS_PER_DAMAGE: u32 = 8;

fn receipt() -> impl Strategy<Value = Receipt> {
    let place = (any::<u32>(), any::<u16>(), 0..=PRIORITY_MAX, 0..1_u64 << 48);
    (place, any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
        |((topic, partition, lane, sequence), group, epoch, grant, attempt)| Receipt {
            position: Position { topic: TopicId(topic), partition, offset: Offset::new(lane, sequence) },
            group: GroupId(group),
            epoch,
            grant,
            attempt,
        },
    )
}

proptest! {
    #[test]
    fn a_receipt_reads_back_and_a_changed_one_is_another(receipt in receipt(), at in any::<prop::sample::Index>(), new in "[A-Za-z0-9_-]") {
        let text = receipt.encode();
        prop_assert_eq!(Receipt::decode(&text), Some(receipt));
        let at = at.index(text.len());
        let mut changed = text.clone();
        changed.replace_range(at..=at, &new);
        prop_assert!(changed == text || Receipt::decode(&changed) != Some(receipt));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        if let Some(receipt) = Receipt::decode(&text) {
            prop_assert_eq!(receipt.encode(), text.clone());
        }
        if let Ok(name) = text.parse::<TopicName>() {
            prop_assert_eq!(name.as_str(), text.as_str());
        }
        if let Ok(id) = text.parse::<MessageId>() {
            prop_assert_eq!(id.to_string().parse::<MessageId>(), Ok(id));
        }
        if let Ok(duration) = parse_duration(&text) {
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        if let Ok(at) = Timestamp::parse_rfc3339(&text) {
            prop_assert_eq!(Timestamp::parse_rfc3339(&at.rfc3339()), Ok(at));
        }
        let _ = (parse_traceparent(&text), parse_tracestate(&text));
    }

    #[test]
    fn a_text_that_looks_right_is_read_or_refused(
        duration in "P([0-9]{1,6}[YMWD]){0,3}(T([0-9]{1,6}(\\.[0-9]{1,12})?[HMS]){0,3})?",
        time in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,12})?(Z|[+-][0-9]{2}:[0-9]{2})",
        trace in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
    ) {
        if let Ok(duration) = parse_duration(&duration) {
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        if let Ok(at) = Timestamp::parse_rfc3339(&time) {
            prop_assert_eq!(Timestamp::parse_rfc3339(&at.rfc3339()), Ok(at));
        }
        if let Some(context) = parse_traceparent(&trace) {
            prop_assert_eq!(parse_traceparent(&context.parent), Some(context));
        }
    }

    #[test]
    fn a_scope_reaches_what_its_globs_match_and_no_more(glob in "[a-c.*]{0,12}", name in "[a-c.]{1,12}") {
        let scope = Scope::new(Some(std::slice::from_ref(&glob)));
        prop_assert_eq!(scope.allows(&name), matches(glob.as_bytes(), name.as_bytes()), "{} {}", glob, name);
    }
}

/// The definition of a glob, as plainly as it can be said.
fn matches(glob: &[u8], name: &[u8]) -> bool {
    match (glob.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|taken| matches(rest, &name[taken..])),
        (Some((wanted, rest)), Some((found, left))) => wanted == found && matches(rest, left),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases((ProptestConfig::default().cases / TEXTS_PER_DAMAGE).max(1)))]

    #[test]
    fn a_journal_with_a_byte_changed_gives_back_what_was_written_or_says_so(
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bits in 1..=u8::MAX,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(damage(file, at, bits));
    }
}

/// A store in this folder, with bounds so small that a few messages reach every kind of file.
struct InFolder(PathBuf);

impl InFolder {
    fn options(folder: &Path, clock: Clock) -> EmbeddedOptions {
        EmbeddedOptions { limits: cramped(), ..EmbeddedOptions::new(folder, clock) }
    }
}

impl Backend for InFolder {
    fn cut(&self) {}

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let options = InFolder::options(&self.0, clock.clone());
            Arc::new(EmbeddedStore::open(options).expect("an undamaged store opens")) as Arc<dyn MessageStore>
        }
        .boxed()
    }
}

/// Twenty messages, one byte changed in one file, and a look at what is left.
async fn damage(file: prop::sample::Index, at: prop::sample::Index, bits: u8) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let written: BTreeSet<String> = (0..20).map(|n| format!("message {n} {}", "x".repeat(200))).collect();
    {
        let bed = Bed::new(InFolder(folder.path().to_owned())).await.simple().await;
        for text in &written {
            bed.publish(&[text]).await;
        }
    }
    let mut files = files_below(folder.path());
    files.retain(|path| path.metadata().is_ok_and(|file| file.len() > 0));
    let file = file.get(&files);
    let mut bytes = std::fs::read(file).expect("readable");
    // What was preallocated and never written says nothing.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
    let at = at.index(end);
    bytes[at] ^= bits;
    std::fs::write(file, &bytes).expect("writable");

    let Ok(store) = EmbeddedStore::open(InFolder::options(folder.path(), Clock::fixed(START))) else { return };
    let request =
        ReadRequest { topic: TOPIC, partition: None, from: ReadFrom::Earliest, limit: 100, bytes_max: 1 << 20 };
    if let Ok(page) = store.read(request).await {
        for (_, message) in page.messages {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            assert!(written.contains(&text), "{}:{at}: '{text}' was never written", file.display());
        }
    }
    // What is damaged may refuse this too.
    let _ = store.close().await;
}
