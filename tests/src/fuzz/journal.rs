//! Recovery from a journal that is not as it was written. Invariant: see [`damage`](super::damage). The files are those of
//! a process that was killed: no checkpoint, every kind of op that a client's call can cause.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sluice::clock::Clock;
use sluice::message::{GroupId, Message};
use sluice::store::{AppendItem, AppendOutcome, KvWrite, MessageStore, SeekTo, Settlement};

use super::damage::{Edit, Image, Input};
use super::{Seed, runtime};
use crate::store_bed::{Backend, Bed, GROUP, OTHER, TOPIC, batch, failure, group, item, key};

/// Opens, changes, looks.
///
/// # Panics
/// When the store breaks a promise.
pub fn run(input: &[u8]) {
    image().run(input);
}

/// The journal as it is, and edits of each kind in it.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let first = image().content("journal-0000000001.log");
    let last = image().content("journal-0000000002.log");
    let edits = |edits: &[Edit]| Input::Edits(edits.to_vec()).encode();
    vec![
        ("untouched", edits(&[])),
        ("first_file", Input::Content(first).encode()),
        ("last_file", Input::Content(last).encode()),
        ("flip", edits(&[Edit::Flip { file: 0, at: 300, bits: 4 }, Edit::Flip { file: 1, at: 90, bits: 1 }])),
        ("torn", edits(&[Edit::Cut { file: 1, at: 700 }])),
        ("erased_bytes", edits(&[Edit::Fill { file: 0, at: 260, len: 40, byte: 0xe5 }])),
        ("zeros", edits(&[Edit::Fill { file: 1, at: 500, len: 4000, byte: 0 }])),
        ("stray", edits(&[Edit::Stray { from: 0, from_at: 40, len: 400, file: 1, at: 600 }])),
        ("exchanged", edits(&[Edit::Replace { from: 0, file: 1 }, Edit::Seal { file: 1, nth: 255 }])),
        ("gone", edits(&[Edit::Remove { file: 0 }])),
        ("sealed", edits(&[Edit::Write { file: 0, at: 80, bytes: vec![1, 2, 3, 4] }, Edit::Seal { file: 0, nth: 0 }])),
    ]
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| runtime().block_on(killed()))
}

/// The store of a bed on an image's disk.
pub(super) struct OnImage(pub(super) Arc<Image>);

impl Backend for OnImage {
    fn cut(&self) {}

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        let opened = self.0.open(self.0.disk(), clock).expect("an undamaged store opens");
        async move { Arc::new(opened) as Arc<dyn MessageStore> }.boxed()
    }
}

/// What a killed process leaves behind; its second life made the second file.
async fn killed() -> Image {
    let image = Arc::new(Image::new(|name| name.starts_with("journal-")));
    let mut bed = Bed::new(OnImage(Arc::clone(&image))).await.with_dead_letters().await;
    let mut written = Vec::new();
    fill(&bed, &mut written).await;
    bed.crash().await;
    fill(&bed, &mut written).await;
    drop(bed);
    remembered(image, &written)
}

/// The image once nobody writes to it.
pub(super) fn remembered(image: Arc<Image>, written: &[Message]) -> Image {
    let mut image = Arc::into_inner(image).expect("the bed has let go of it");
    image.remember(written.iter());
    image
}

/// One call of each kind that writes; adds what it published.
async fn fill(bed: &Bed, written: &mut Vec<Message>) {
    let mut publish = async |message: Message, change: &dyn Fn(&mut AppendItem)| {
        let mut item = item(message.clone());
        change(&mut item);
        // In its second life the one with a key is a duplicate.
        if matches!(bed.append_one(item).await, AppendOutcome::Stored(_) | AppendOutcome::Scheduled) {
            written.push(message);
        }
    };
    for text in ["one", "two", "three", "four", "five", "six"] {
        publish(bed.message(text), &|_| {}).await;
    }
    publish(bed.urgent(7, "urgent"), &|_| {}).await;
    publish(bed.keyed("k", "keyed"), &|item| item.dedup = key("once", "keyed")).await;
    let due = bed.later(Duration::from_secs(10));
    for text in ["later", "never"] {
        publish(bed.message(text), &|item| {
            if let sluice::store::Entry::Log { due: at, .. } = &mut item.entry {
                *at = Some(due);
            }
        })
        .await;
    }
    publish(bed.message("for one group"), &|item| {
        if let sluice::store::Entry::Log { target, .. } = &mut item.entry {
            *target = Some(OTHER);
        }
    })
    .await;
    deliver(bed).await;
}

/// Grants, settlements of each kind, and what an operator does; but for erasing, which writes a checkpoint.
async fn deliver(bed: &Bed) {
    bed.put_group(group(TOPIC, OTHER)).await.expect("the store does it");
    let leases = bed.take(4).await;
    bed.ack(&leases[..1]).await;
    bed.nack(&leases[1], Duration::from_secs(5)).await.expect("the lease lives");
    bed.end(&leases[2], Settlement::DeadLetter { failure: failure() }).await.expect("the lease lives");
    bed.pass(Duration::from_secs(11)).await;
    bed.seek(TOPIC, OTHER, SeekTo::Latest).await.expect("the store does it");
    bed.purge(TOPIC, OTHER).await.expect("the store does it");
    let mut writes = batch(Vec::new());
    let expected_version = bed.kv_get("n", "k").await.expect("the store does it").map_or(0, |value| value.version);
    writes.kv = vec![KvWrite { namespace: "n".into(), key: "k".into(), expected_version, value: Some(vec![7; 9]) }];
    bed.append(writes).await.expect("the store does it");
    bed.put_group(group(TOPIC, GroupId(9))).await.expect("the store does it");
    bed.delete_group(TOPIC, GroupId(9)).await.expect("the store does it");
    bed.figures(GROUP).await;
}
