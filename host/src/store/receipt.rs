//! The token that settles a lease. Invariant: a receipt reads back as it was written, and nothing else reads as one. Never
//! says whether its lease still lives: the store does.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::message::{GroupId, Offset, Position, TopicId};

/// Names one lease. Opaque to callers; the fields fence it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Receipt {
    /// Where the message stands.
    pub position: Position,
    /// Whose lease.
    pub group: GroupId,
    /// The opening of the store that granted it.
    pub epoch: u64,
    /// Which grant of that opening; never used twice.
    pub grant: u64,
    /// Which delivery attempt it is. Not fenced: it only tells a backoff how far it has grown.
    pub attempt: u32,
}

impl Receipt {
    /// As clients carry it: base64url of fixed-width big-endian fields, 38 bytes.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(38);
        bytes.extend(self.position.topic.0.to_be_bytes());
        bytes.extend(self.position.partition.to_be_bytes());
        bytes.extend(self.position.offset.0.to_be_bytes());
        bytes.extend(self.group.0.to_be_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend(self.grant.to_be_bytes());
        bytes.extend(self.attempt.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads [`Receipt::encode`]; `None` for anything else.
    #[must_use]
    pub fn decode(text: &str) -> Option<Receipt> {
        if text.len() > 64 {
            return None;
        }
        let bytes: [u8; 38] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let u64_at = |at: usize| bytes[at..at + 8].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let u32_at = |at: usize| bytes[at..at + 4].iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        Some(Receipt {
            position: Position {
                topic: TopicId(u32_at(0)),
                partition: u16::from_be_bytes([bytes[4], bytes[5]]),
                offset: Offset(u64_at(6)),
            },
            group: GroupId(u32_at(14)),
            epoch: u64_at(18),
            grant: u64_at(26),
            attempt: u32_at(34),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_read_back_and_nothing_else_does() {
        let receipt = Receipt {
            position: Position { topic: TopicId(7), partition: 63, offset: Offset::new(9, 12345) },
            group: GroupId(4),
            epoch: 3,
            grant: u64::MAX,
            attempt: 2,
        };
        assert_eq!(Receipt::decode(&receipt.encode()), Some(receipt));
        for bad in ["", "x", "%%%", &"A".repeat(50), &"A".repeat(1000)] {
            assert_eq!(Receipt::decode(bad), None, "{bad}");
        }
    }
}
