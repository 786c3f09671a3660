//! Reading segments, and the checkpoint that names them, when they are not as they were written. Invariant: see
//! [`damage`](super::damage). The files are those of a process that was stopped in good order.

use std::sync::{Arc, OnceLock};

use super::damage::{Edit, Image, Input};
use super::journal::{OnImage, remembered};
use super::{Seed, runtime};
use crate::store_bed::{Bed, DEAD, GROUP, OTHER, TOPIC, failure, group};
use sluice::store::Settlement;

/// Opens, changes, looks.
///
/// # Panics
/// When the store breaks a promise.
pub fn run(input: &[u8]) {
    image().run(input);
}

/// The files as they are, and edits of each kind in them. The checkpoint comes first of their names, then the segments.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let edits = |edits: &[Edit]| Input::Edits(edits.to_vec()).encode();
    vec![
        ("untouched", edits(&[])),
        ("last_segment", Input::Content(image().content(LAST)).encode()),
        ("flip_checkpoint", edits(&[Edit::Flip { file: 0, at: 200, bits: 1 }])),
        ("flip_head", edits(&[Edit::Flip { file: 1, at: 90, bits: 1 }])),
        ("flip_body", edits(&[Edit::Flip { file: 1, at: 3000, bits: 8 }])),
        ("short", edits(&[Edit::Cut { file: 1, at: 2000 }])),
        ("gone", edits(&[Edit::Remove { file: 2 }])),
        ("exchanged", edits(&[Edit::Replace { from: 1, file: 2 }])),
        ("stray", edits(&[Edit::Stray { from: 1, from_at: 40, len: 900, file: 2, at: 40 }])),
        ("erased_bytes", edits(&[Edit::Fill { file: 1, at: 2500, len: 600, byte: 0xe5 }])),
        ("sealed_head", edits(&[Edit::Write { file: 1, at: 80, bytes: vec![200, 1] }, Edit::Seal { file: 1, nth: 0 }])),
        (
            "sealed_checkpoint",
            edits(&[Edit::Write { file: 0, at: 90, bytes: vec![9, 9] }, Edit::Seal { file: 0, nth: 0 }]),
        ),
    ]
}

/// Of the topic's dead letters.
const LAST: &str = "topic-2/00-0-000000000000000.seg";

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| runtime().block_on(stopped()))
}

/// What a process leaves behind that was stopped: a checkpoint, segments of two topics and three lanes, an empty journal.
async fn stopped() -> Image {
    let image = Arc::new(Image::new(|name| name == "checkpoint" || name.ends_with(".seg")));
    let bed = Bed::new(OnImage(Arc::clone(&image))).await.with_dead_letters().await;
    bed.put_group(group(TOPIC, OTHER)).await.expect("the store does it");
    let mut written = Vec::new();
    for number in 0..40 {
        let text = format!("message {number} {}", "x".repeat(150));
        let message = match number % 10 {
            3 => bed.urgent(5, &text),
            6 => bed.keyed("k", &text),
            _ => bed.message(&text),
        };
        written.push(message.clone());
        bed.store(vec![message]).await;
    }
    let leases = bed.take(9).await;
    bed.ack(&leases[..3]).await;
    for lease in &leases[3..6] {
        bed.end(lease, Settlement::DeadLetter { failure: failure() }).await.expect("the lease lives");
    }
    let erased = written.remove(20);
    assert!(bed.erase(erased.id).await.expect("the store does it"));
    assert_eq!((bed.dead().await.len(), bed.figures(GROUP).await.acked_total), (3, 3));
    assert!(bed.topics().await.expect("the store does it").contains(&DEAD));
    bed.close().await.expect("the store does it");
    drop(bed);
    remembered(image, &written)
}
