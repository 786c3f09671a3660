//! How a store says no. Invariant: each kind says whether anything was stored. Never carries a message's content.

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No such topic.
    #[error("there is no such topic in the store")]
    NoTopic,
    /// No such group.
    #[error("there is no such consumer group on the topic")]
    NoGroup,
    /// The batch ran on a pipeline revision that has been followed by another.
    #[error("the batch ran on an outdated pipeline revision (the partition is at {current})")]
    StaleRevision {
        /// The partition's last.
        current: u64,
    },
    /// A plugin's key changed since it was read.
    #[error("a key-value write met another version")]
    KvConflict,
    /// Nothing was stored, and it may work later: no room, stopping, a failed write.
    #[error("the store takes no writes now: {0}")]
    Unavailable(String),
    /// Nothing was stored: more waits to be written than the store holds.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// It may or may not be stored.
    #[error("it is not known whether the batch was stored: {0}")]
    OutcomeUnknown(String),
    /// The files are damaged here; the rest stays readable.
    #[error("damaged data in {file} at byte {offset}: {detail}")]
    Damaged {
        /// The file, relative to the data directory.
        file: String,
        /// The byte.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// This store cannot do that; see its capabilities.
    #[error("this store cannot do that: {0}")]
    Unsupported(&'static str),
    /// The request is not one that the store can carry out.
    #[error("{0}")]
    Invalid(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            StoreError::Unavailable(_) | StoreError::Busy(_) | StoreError::OutcomeUnknown(_) | StoreError::KvConflict
        )
    }
}

/// Why a settlement was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettleRefused {
    /// Past its deadline, settled before, of an earlier opening, or never granted.
    #[error("the lease has ended")]
    LeaseExpired,
    /// The receipt is another message's.
    #[error("the receipt belongs to another message")]
    WrongMessage,
    /// No such topic, group, or message.
    #[error("there is no such message or group")]
    NotFound,
}
