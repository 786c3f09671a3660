//! What the guest `hostile` does with a message, and what becomes of the message, of its neighbours in the batch, of the
//! instance and of another topic. Invariant: a test for each row of `misdeeds!`, made from it. Never asks how long it took.

use serde_json::json;

use crate::catalog::Actor;
use crate::catalog::model::OnFault;
use crate::pipeline::draft::{Processed, Verdict};

use super::super::{Rig, draft, guest, header, stage};
use super::Neighbour;

/// What becomes of the message.
pub(super) enum Outcome {
    /// A fault: its cause, and words of its detail.
    Fault(&'static str, &'static str),
    /// The same, but the instance is as good as before.
    FaultOfMessage(&'static str, &'static str),
    /// It is contained, and hurts not even its own message.
    Pass,
    /// Its word counts, cut to what is allowed.
    Reject,
}

/// The host's word on each row.
mod said_of {
    use super::Outcome::{self, Fault, FaultOfMessage, Pass, Reject};

    macro_rules! outcomes {
        ($($word:ident: $outcome:expr,)*) => { $(pub(in super::super) fn $word() -> Outcome { $outcome })* };
    }

    outcomes! {
        spin: Fault("TIMED_OUT", "more CPU time than the 100 ms"),
        drip: Pass,
        sleep: Fault("TRAPPED", "can neither wait"),
        bomb: Fault("OUT_OF_MEMORY", "bytes of memory and may have 67108864"),
        leak: Pass,
        recurse: Fault("TRAPPED", ""),
        recurse_and_call: Fault("TRAPPED", ""),
        panic: Fault("TRAPPED", "told to panic"),
        edit_and_panic: Fault("TRAPPED", "after editing"),
        fail: FaultOfMessage("FAILED", "told to fail!!!"),
        exit: Fault("TRAPPED", ""),
        index: Fault("TRAPPED", "message index 1 is out of range: the batch has 1"),
        drop_borrow: Fault("TRAPPED", "unknown handle index"),
        keep_borrow: Fault("TRAPPED", "borrow handles still remain"),
        payload: Fault("TRAPPED", "a payload of 17825792 bytes: the topic takes at most 1048576"),
        payload_of_the_topic: Fault("TRAPPED", "a payload of 1048577 bytes: the topic takes at most 1048576"),
        payloads: Fault("TRAPPED", "made more than 33554432 bytes of one batch"),
        copy: Fault("TRAPPED", "copied more than 67108864 bytes"),
        headers: Fault("TRAPPED", "a message has at most 64 of 16384 bytes together"),
        long_header: Fault("TRAPPED", "2 headers of 20494 bytes"),
        control_header: Fault("TRAPPED", "a control character other than a tab"),
        long_key: Fault("TRAPPED", "a partition key has 1 to 1024 bytes, this one 1048576"),
        media_type: Fault("TRAPPED", "a media type is 1 to 255 visible ASCII characters"),
        long_names: Fault("TRAPPED", "copied more than 67108864 bytes"),
        emit: Fault("TRAPPED", "it emitted to 'elsewhere', which is not in its `emitTo`"),
        emits: Fault("TRAPPED", "it emitted more than 256 messages in one call"),
        rejects: Reject,
        log: Fault("TIMED_OUT", "CPU time"),
        print: Fault("TIMED_OUT", "CPU time"),
        forged_log: Pass,
        file: Fault("TRAPPED", "no file"),
        net: Fault("TRAPPED", "neither wait nor reach the network"),
        env: Pass,
        kv_key: Fault("TRAPPED", "a key of a value has 1 to 256 bytes, this one 1048576"),
        kv_value: Fault("TRAPPED", "a value of 65537 bytes: at most 65536 are kept under a key"),
        kv_sets: Fault("TRAPPED", "it asked for values more than 4096 times in one call"),
        kv_index: Fault("TRAPPED", "message index 4096 is out of range: the batch has 1"),
        figures: Pass,
        figure_names: Pass,
        schema_late: Fault("TRAPPED", "`schemas.get` is for `configure` alone"),
    }
}

macro_rules! tests {
    ($($word:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $word() {
                shown(stringify!($word), &said_of::$word()).await;
            }
        )*
    };
}

misdeeds!(tests);

async fn shown(word: &str, outcome: &Outcome) {
    let rig = Rig::new().await;
    rig.accept("hostile", guest("hostile")).await.unwrap();
    let neighbour = Neighbour::of(&rig).await;
    for on_fault in [OnFault::Reject, OnFault::DeadLetter, OnFault::Pass] {
        let mut stage = stage("hostile", "hostile", json!({}));
        // Time enough for its own bound to come first, however slow the machine, where that is what stops it.
        let timeout_ms = if matches!(outcome, Outcome::Fault("TIMED_OUT", _)) { 100 } else { 1000 };
        (stage.on_fault, stage.timeout_ms, stage.memory_mb) = (on_fault, timeout_ms, 64);
        stage.emit_to = vec!["allowed".to_owned()];
        rig.pipelines.set(rig.scope(), vec![stage], None, &Actor::system()).await.unwrap();
        let started = rig.metric("sluice_plugin_cold_starts_total", "hostile");
        // As large as lets `copy` reach its bound in time.
        let payload = "x".repeat(64 << 10);
        let drafts = ["key", word, "key"].map(|told| draft(&payload, &[("do", told)]));
        let (mut processed, ()) = tokio::join!(rig.run(drafts.to_vec()), neighbour.is_served());

        let guilty = processed.remove(1);
        assert!(processed.iter().all(is_untouched), "its neighbours in the batch pass: {processed:?}");
        judged(outcome, &guilty, on_fault, &payload);
        assert!(is_untouched(&rig.obey(&["key"]).await[0]), "the stage goes on");
        if matches!(outcome, Outcome::Fault(..)) {
            let now = rig.metric("sluice_plugin_cold_starts_total", "hostile");
            assert!(now > started, "the instance that trapped was not entered again");
        }
    }
    told_to_operators(&rig, outcome);
}

fn is_untouched(processed: &Processed) -> bool {
    processed.verdict == Verdict::Pass && processed.draft.key.as_deref() == Some("k2")
}

fn judged(outcome: &Outcome, guilty: &Processed, on_fault: OnFault, payload: &str) {
    match (outcome, &guilty.verdict) {
        (Outcome::Fault(..) | Outcome::FaultOfMessage(..), Verdict::Pass) if on_fault == OnFault::Pass => {
            assert_eq!((&guilty.draft.payload[..], guilty.trail[0].word.as_str()), (payload.as_bytes(), "fault"));
            assert_eq!((guilty.draft.headers.len(), &guilty.draft.key, header(guilty, "edited")), (1, &None, None));
        }
        (Outcome::Fault(cause, says) | Outcome::FaultOfMessage(cause, says), Verdict::Fault(fault)) => {
            assert_eq!((fault.cause.as_str(), fault.on), (*cause, on_fault), "{}", fault.detail);
            assert!(fault.detail.contains(says), "{}", fault.detail);
            assert!(fault.detail.len() < 1100, "{} bytes", fault.detail.len());
        }
        (Outcome::Reject, Verdict::Reject(rejection)) => {
            let first = &rejection.faults[0];
            let lengths = (first.code.len(), first.message.len(), first.pointer.as_ref().map(|pointer| pointer.len()));
            assert_eq!((rejection.faults.len(), lengths), (32, (128, 1024, Some(1024))));
        }
        (Outcome::Pass, Verdict::Pass) => assert_eq!(guilty.trail[0].word.as_str(), "pass"),
        (_, verdict) => panic!("{verdict:?}"),
    }
}

/// The metric has the cause, and the plugin's log, however loud it was, the words.
fn told_to_operators(rig: &Rig, outcome: &Outcome) {
    let lines = rig.pipelines.plugin_log("hostile");
    assert!(lines.len() <= 200, "{} lines", lines.len());
    assert!(lines.iter().all(|line| !line.text.contains(char::is_control)), "{lines:?}");
    let (Outcome::Fault(cause, says) | Outcome::FaultOfMessage(cause, says)) = outcome else { return };
    assert_eq!(rig.metric("sluice_plugin_faults_total", cause), 3.0);
    // The clock stands still, so what comes after a flood is left out of the same second.
    let flooded = lines.iter().filter(|line| line.text.contains("again and again")).count() >= 90;
    let told = |text: &str| text.contains("failed on the message") && text.contains(cause) && text.contains(says);
    assert!(flooded || lines.iter().any(|line| told(&line.text)), "{lines:?}");
}
