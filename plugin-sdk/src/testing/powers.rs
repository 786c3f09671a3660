//! The powers in memory: values by key, figures, schemas, for the stage that runs on this thread.
//! Invariant: values are kept as the broker keeps them, with the message that they are set for or not at all; what would trap
//! there panics here. Never shared between benches.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use crate::{kv, metrics::NAMES_MAX};

/// A value and until when it is kept, in milliseconds of the bench's time.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub value: Vec<u8>,
    pub until_ms: Option<u64>,
}

/// The values of one bench.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    pub kept: HashMap<String, Kept>,
    /// What the batch that runs has set, or removed, in order, and for which message.
    pending: Vec<(u32, String, Option<Kept>)>,
    pub now_ms: u64,
}

impl Values {
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        let set = self.pending.iter().rev().find(|(_, pending, _)| pending == key);
        let kept = match set {
            Some((_, _, value)) => value.as_ref(),
            None => self.kept.get(key),
        };
        let alive = |kept: &&Kept| kept.until_ms.is_none_or(|until| until > self.now_ms);
        kept.filter(alive).map(|kept| kept.value.as_slice())
    }

    /// The batch has ended: what was set for messages that are stored stays.
    pub fn end(&mut self, is_stored: impl Fn(u32) -> bool) {
        for (i, key, value) in std::mem::take(&mut self.pending) {
            match value {
                _ if !is_stored(i) => {}
                Some(value) => drop(self.kept.insert(key, value)),
                None => drop(self.kept.remove(&key)),
            }
        }
    }
}

/// What a stage counted; see [`figures`](super::figures).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The sums of its counters.
    pub counters: BTreeMap<String, u64>,
    /// The last values of its gauges.
    pub gauges: BTreeMap<String, f64>,
    /// What was observed for its histograms, in order.
    pub observed: BTreeMap<String, Vec<f64>>,
}

thread_local! {
    /// Those of the bench that runs on this thread.
    static VALUES: RefCell<Option<Values>> = const { RefCell::new(None) };
    static SCHEMAS: RefCell<Option<HashMap<String, String>>> = const { RefCell::new(None) };
    static FIGURES: RefCell<Figures> = const { RefCell::new(Figures { counters: BTreeMap::new(), gauges: BTreeMap::new(), observed: BTreeMap::new() }) };
}

/// Runs with these values at hand, and gives them back.
pub(super) fn with_values<T>(values: Values, run: impl FnOnce() -> T) -> (Values, T) {
    VALUES.set(Some(values));
    let made = run();
    (VALUES.take().expect("it was set above"), made)
}

/// Runs with these schemas registered.
pub(super) fn with_schemas<T>(schemas: HashMap<String, String>, run: impl FnOnce() -> T) -> T {
    SCHEMAS.set(Some(schemas));
    let made = run();
    SCHEMAS.set(None);
    made
}

pub(crate) fn kv_get(key: &str) -> Option<Vec<u8>> {
    check_key(key);
    VALUES.with_borrow(|values| {
        let values = values.as_ref().expect("kv::get outside of `process`: there is no batch");
        values.get(key).map(<[u8]>::to_vec)
    })
}

pub(super) fn kv_set(i: u32, key: &str, value: Option<(&[u8], Option<u64>)>) {
    check_key(key);
    let bytes = value.map_or(0, |(value, _)| value.len());
    let bound = kv::VALUE_BYTES_MAX;
    assert!(bytes <= bound, "the value of {key:?} has {bytes} bytes; at most {bound} are allowed");
    VALUES.with_borrow_mut(|values| {
        let values = values.as_mut().expect("a message exists only while a batch runs");
        let until = |ttl: u64| values.now_ms.saturating_add(ttl);
        let kept = value.map(|(value, ttl)| Kept { value: value.to_vec(), until_ms: ttl.map(until) });
        values.pending.push((i, key.to_owned(), kept));
    });
}

fn check_key(key: &str) {
    let (bytes, bound) = (key.len(), kv::KEY_BYTES_MAX);
    assert!(bytes <= bound, "a key has {bytes} bytes; at most {bound} are allowed");
}

pub(crate) fn schema(id: &str) -> Option<String> {
    SCHEMAS.with_borrow(|schemas| {
        let schemas = schemas.as_ref().expect("schemas::get elsewhere than while a Bench configures the stage");
        schemas.get(id).cloned()
    })
}

pub(crate) fn count(name: &str, count: impl FnOnce(&mut Figures, String)) {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let is_name = name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(letters);
    assert!(is_name, "{name:?} is no name of a metric: [a-z][a-z0-9_]{{0,63}}");
    FIGURES.with_borrow_mut(|figures| {
        let known = [
            figures.counters.contains_key(name),
            figures.gauges.contains_key(name),
            figures.observed.contains_key(name),
        ];
        let names = figures.counters.len() + figures.gauges.len() + figures.observed.len();
        if known.contains(&true) || names < NAMES_MAX {
            count(figures, name.to_owned());
        }
    });
}

pub(super) fn take_figures() -> Figures {
    FIGURES.take()
}
