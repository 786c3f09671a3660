//! Headers that a stage reads message by message, fetched for the whole batch once a second message is asked for one.
//! Invariant: what it answers is what the host would answer; a header that is edited is left to the host from then on.
//! Never fetches a column for a name that was read once.

use std::cell::RefCell;

use crate::{column::Column, source::Source};

/// Names that are remembered; further ones are asked for message by message.
const NAMES_MAX: usize = 8;

/// What was read so far of one batch.
#[derive(Default)]
pub(crate) struct Headers(RefCell<Vec<Read>>);

struct Read {
    name: String,
    so_far: SoFar,
}

enum SoFar {
    Once,
    All(Values),
    Edited,
}

struct Values {
    column: Column,
    /// Where each value ends in the data.
    ends: Vec<usize>,
}

impl Headers {
    /// The header of one message.
    pub(crate) fn get(&self, source: &dyn Source, i: u32, name: &str) -> Option<String> {
        let mut reads = self.0.borrow_mut();
        let Some(read) = reads.iter_mut().find(|read| read.name == name) else {
            if reads.len() < NAMES_MAX {
                reads.push(Read { name: name.to_owned(), so_far: SoFar::Once });
            }
            return source.header(i, name);
        };
        match &mut read.so_far {
            SoFar::Edited => source.header(i, name),
            SoFar::All(values) => values.get(i),
            once @ SoFar::Once => {
                let values = Values::of(source.header_column(name));
                let value = values.get(i);
                *once = SoFar::All(values);
                value
            }
        }
    }

    /// The header of one of them is not what it was.
    pub(crate) fn edited(&self, name: &str) {
        if let Some(read) = self.0.borrow_mut().iter_mut().find(|read| read.name == name) {
            read.so_far = SoFar::Edited;
        }
    }
}

impl Values {
    fn of(column: Column) -> Values {
        let mut end = 0;
        let ends = column.iter().map(|value| {
            end += value.map_or(0, <[u8]>::len);
            end
        });
        Values { ends: ends.collect(), column }
    }

    fn get(&self, i: u32) -> Option<String> {
        let i = i as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        // The contract's headers are strings, so each value is UTF-8; a host that breaks this deserves the trap.
        let text = |bytes| std::str::from_utf8(bytes).expect("header values are UTF-8").to_owned();
        self.column.is_there(i).then(|| text(&self.column.data[start..self.ends[i]]))
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Batch, Error, Stage,
        testing::{Input, Verdict, run},
    };

    /// Reads a header of every message twice over and sets it in between, one message at a time.
    #[derive(serde::Deserialize)]
    struct Upper {}

    impl Stage for Upper {
        fn process(&self, batch: &Batch<'_>) -> Result<(), Error> {
            let before: Vec<Option<String>> = batch.iter().map(|message| message.header("kind")).collect();
            for message in batch {
                let kind = message.header("kind");
                assert_eq!(kind, before[message.index()], "nobody has edited this one yet");
                let Some(kind) = kind else { continue };
                if kind == "gone" {
                    message.remove_header("kind");
                    assert_eq!(message.header("kind"), None);
                } else {
                    message.set_header("kind", &kind.to_uppercase());
                    assert_eq!(message.header("kind"), Some(kind.to_uppercase()));
                }
                assert_eq!(message.header("other").as_deref(), Some("1"), "of this message, whatever was read before");
            }
            Ok(())
        }
    }

    #[test]
    fn what_is_read_is_what_the_host_has_before_and_after_edits() {
        let message = |kind: Option<&str>| {
            let message = Input::new("{}").header("other", "1");
            kind.map_or(message.clone(), |kind| message.header("kind", kind))
        };
        let kinds = [Some("a"), None, Some(""), Some("gone"), Some("büc")];
        let outcomes = run::<Upper>("{}", kinds.map(message)).expect("no fault");
        let after: Vec<Option<&str>> = outcomes.iter().map(|outcome| outcome.message.header_value("kind")).collect();
        assert_eq!(after, [Some("A"), None, Some(""), None, Some("BÜC")]);
        assert_eq!(outcomes[1].verdict, Verdict::Passed);
    }

    /// Reads more headers of every message than are remembered.
    #[derive(serde::Deserialize)]
    struct Many {}

    impl Stage for Many {
        fn process(&self, batch: &Batch<'_>) -> Result<(), Error> {
            for message in batch {
                for n in 0..super::NAMES_MAX + 2 {
                    let expected = (n % 2 == 0).then(|| format!("{n} of {}", message.index()));
                    assert_eq!(message.header(&format!("h{n}")), expected);
                }
            }
            Ok(())
        }
    }

    #[test]
    fn more_headers_than_are_remembered_are_read_all_the_same() {
        let named = |message: Input, i: usize, n: usize| message.header(&format!("h{n}"), &format!("{n} of {i}"));
        let even = || (0..super::NAMES_MAX + 2).step_by(2);
        let message = |i: usize| even().fold(Input::new("{}"), |message, n| named(message, i, n));
        run::<Many>("{}", (0..3).map(message)).expect("no fault");
    }
}
