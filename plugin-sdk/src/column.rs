//! One value per message of a batch, copied out of the host at once.
//! Invariant: the lengths of the values that are there add up to the data. Never re-reads the host.

/// The length that stands for "this message has no such value".
pub(crate) const ABSENT: u32 = u32::MAX;

/// Values side by side, as the host hands them over.
#[derive(Clone, Debug)]
pub struct Column {
    pub(crate) data: Vec<u8>,
    pub(crate) lens: Vec<u32>,
}

impl Column {
    /// Whether message `i` has such a value.
    pub(crate) fn is_there(&self, i: usize) -> bool {
        self.lens[i] != ABSENT
    }

    /// The values in the order of the batch.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> {
        let mut start = 0usize;
        self.lens.iter().map(move |&len| {
            if len == ABSENT {
                return None;
            }
            let end = start + len as usize;
            let value = &self.data[start..end];
            start = end;
            Some(value)
        })
    }
}

/// One header of every message of a batch; see [`Batch::header_column`](crate::Batch::header_column).
#[derive(Clone, Debug)]
pub struct HeaderColumn(pub(crate) Column);

impl HeaderColumn {
    /// Per message, in order: the header's value, or `None` where it is not set.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&str>> {
        // The contract's headers are strings, so each value is UTF-8; a host that breaks this deserves the trap.
        self.0.iter().map(|value| value.map(|bytes| std::str::from_utf8(bytes).expect("header values are UTF-8")))
    }
}

/// The payloads of a batch; see [`Batch::payload_column`](crate::Batch::payload_column).
#[derive(Clone, Debug)]
pub struct PayloadColumn(pub(crate) Column);

impl PayloadColumn {
    /// The payloads, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.0.iter().map(Option::unwrap_or_default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_value_is_told_from_an_empty_one() {
        let column = HeaderColumn(Column { data: b"abc".to_vec(), lens: vec![1, ABSENT, 0, 2] });
        assert_eq!(column.iter().collect::<Vec<_>>(), [Some("a"), None, Some(""), Some("bc")]);
        assert_eq!(column.iter().len(), 4);
    }
}
