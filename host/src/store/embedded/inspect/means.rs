//! What findings mean, for the person who has to decide what to do. Each sentence says what a broker does with the
//! directory as it is, and what is lost.

use std::fmt::Write as _;

pub(super) const TORN: &str =
    "nothing is lost: it was never acknowledged; the next start cuts it off and saves it aside";
pub(super) const SAVED_TORN: &str = "nothing is lost: it was never acknowledged; the file may be removed";
pub(super) const JOURNAL_HEADER: &str =
    "a broker refuses to start; nothing is lost by it: the file's frames can be read without it";
pub(super) const NO_CHECKPOINT: &str = "a broker refuses to start; the positions of groups, idempotency keys, scheduled messages and plugins' values that it \
     held are lost; messages are taken from the segments, and groups begin with the oldest";
pub(super) const BAD_CHECKPOINT: &str = "a broker refuses to start; unless the journal begins with frame 1, the positions of groups, idempotency keys, scheduled \
     messages and plugins' values that it held are lost; messages are taken from the segments";
pub(super) const OLD_FRAMES: &str =
    "a broker refuses to start; nothing is lost by it: the checkpoint has what these frames say";
pub(super) const FRAMES: &str = "a broker refuses to start; what these frames say is lost: messages, settings, and settlements, whose messages come again";
pub(super) const BODY: &str = "a broker refuses to start; the message is lost";
pub(super) const STALE_BODY: &str =
    "a broker starts; nothing is lost by it: the message stands in a segment, in the checkpoint, or is settled";
pub(super) const INCONSISTENT: &str =
    "a broker may refuse what it finds there; a fault of Sluice or of the machine's memory";
pub(super) const TOPIC: &str = "a broker makes the topic anew, without messages";
pub(super) const POSITION: &str = "a broker begins it with the newest message; a repair, with the oldest";
pub(super) const SEGMENT_HEADER: &str =
    "a broker starts; nothing is lost by it: the file's blocks can be read without it";
pub(super) const SPAN: &str = "a broker starts; looking up messages by time or id may miss some";

/// What it means that messages cannot be read from their segment.
pub(super) fn messages(lost: u64, rescued: u64) -> String {
    if lost + rescued == 0 {
        return "nothing is lost: these messages were erased or had left the log".to_owned();
    }
    let mut text = "a broker starts, but stops the partition here (STORE_DAMAGED)".to_owned();
    if lost > 0 {
        write!(text, "; messages lost: {lost}").expect("text takes text");
    }
    if rescued > 0 {
        write!(text, "; messages that the journal still has and a repair brings back: {rescued}")
            .expect("text takes text");
    }
    text
}
