//! Plugins' values while a request is under way: what its stages read and wrote, kept beside the store until the messages are
//! stored. Invariant: what a call wrote counts only once the call has ended well; who read what was written for another
//! message is remembered, so that nothing is stored that stands on what was not. Never writes to the store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::{Error, Result};

use crate::clock::{Clock, Timestamp};
use crate::store::{ItemWrite, KvRead, KvUse, KvValue, MessageStore, kv_cost};

use super::limits;

/// The first byte of a stored value: how the rest is laid out.
const LAYOUT: u8 = 1;
/// Bytes before the plugin's own: the layout, and when the value ends.
pub const HEAD_BYTES: usize = 9;
/// Bytes of all values of a [`Scratch`], and what one costs beside its own.
const SCRATCH_BYTES_MAX: usize = 32 * 1024 * 1024;
const VALUE_COST: usize = 64;
/// Between two looks at all of them for what has ended.
const SWEPT_EVERY: Duration = Duration::from_secs(1);

/// A plugin's bytes as they are stored: layout, end in milliseconds since 1970 (0: never), bytes.
fn encode(value: &[u8], ends: Option<Timestamp>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + value.len());
    bytes.push(LAYOUT);
    bytes.extend_from_slice(&ends.map_or(0, |ends| ends.0).to_le_bytes());
    bytes.extend_from_slice(value);
    bytes
}

/// Whether a stored value, of which the head is enough, has ended.
///
/// # Errors
/// When a later version of Sluice has laid it out.
pub fn has_ended(stored: &[u8], now: Timestamp) -> std::result::Result<bool, &'static str> {
    let head: Option<&[u8; HEAD_BYTES]> = stored.first_chunk();
    let Some([LAYOUT, ends @ ..]) = head else { return Err("a stored value is laid out in a way that is not known") };
    let ends = i64::from_le_bytes(*ends);
    Ok(ends != 0 && ends <= now.0)
}

/// The plugin's bytes; none once they have ended.
fn decode(stored: &[u8], now: Timestamp) -> Result<Option<Vec<u8>>> {
    let ended = has_ended(stored, now).map_err(Error::msg)?;
    Ok((!ended).then(|| stored[HEAD_BYTES..].to_vec()))
}

/// What becomes of a message whose stages wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is an item of what is stored, at this place.
    Item(usize),
    /// Nothing of it is kept, and that is well: a stage dropped it.
    Dropped,
    /// It was turned away: as if its stages had not run.
    Refused,
}

type Key = (Arc<str>, Arc<str>);

/// What a write takes beyond what was there. What a removal gives back counts from the next request on: it may be for a
/// message that is not stored.
#[derive(Debug, Clone, Copy, Default)]
struct Growth {
    bytes: u64,
    keys: u64,
}

impl std::ops::AddAssign for Growth {
    fn add_assign(&mut self, more: Growth) {
        self.bytes += more.bytes;
        self.keys += more.keys;
    }
}

/// What the stages of one request did with values, seen by all of them. Its messages are known by their place in the request.
#[derive(Debug, Default)]
pub struct Transaction {
    state: Mutex<State>,
    /// Values are not to be had: others have changed them too often meanwhile.
    refuses: bool,
}

#[derive(Debug, Default)]
struct State {
    /// By owner. Those of the request's messages come first, then those of what was emitted.
    owners: Vec<Owner>,
    read: HashMap<Key, u64>,
    written: Vec<Written>,
    /// The last write of each key.
    latest: HashMap<Key, usize>,
    /// What namespaces grow by.
    grown: HashMap<Arc<str>, Growth>,
    /// Owners whose writes were read for others.
    linked: HashSet<usize>,
    bytes: usize,
    /// Something stands on what was taken back.
    broken: bool,
}

#[derive(Debug, Clone, Copy)]
struct Owner {
    /// The message of the request that it belongs to.
    message: usize,
    refused: bool,
}

#[derive(Debug)]
struct Written {
    owner: usize,
    key: Key,
    value: Option<Vec<u8>>,
    growth: Growth,
    kept: bool,
}

impl Transaction {
    /// Of a request of so many messages.
    #[must_use]
    pub fn new(messages: usize) -> Transaction {
        let owners = (0..messages).map(|message| Owner { message, refused: false }).collect();
        Transaction { state: Mutex::new(State { owners, ..State::default() }), refuses: false }
    }

    /// In which each use of a value is a fault of the stage.
    #[must_use]
    pub fn refusing() -> Transaction {
        Transaction { refuses: true, ..Transaction::new(0) }
    }

    /// What a message that is emitted along with `message` writes is told apart by this.
    #[must_use]
    pub fn owner_beside(&self, message: usize) -> usize {
        let mut state = self.state.lock();
        state.owners.push(Owner { message, refused: false });
        state.owners.len() - 1
    }

    /// Takes back what was written for `owner`.
    pub fn refuse(&self, owner: usize) {
        let mut state = self.state.lock();
        if let Some(owner) = state.owners.get_mut(owner) {
            owner.refused = true;
        }
        state.take_back(|written| written.owner == owner);
    }

    /// Takes back what was written for `owner` in one namespace.
    fn undo(&self, owner: usize, namespace: &str) {
        self.state.lock().take_back(|written| written.owner == owner && *written.key.0 == *namespace);
    }

    /// What is to be stored, by the fates of the request's messages; none if one of them stands on what is not stored.
    #[must_use]
    pub fn into_use(&self, fates: &[Fate]) -> Option<KvUse> {
        let mut state = std::mem::take(&mut *self.state.lock());
        let (owners, fate) = (state.owners, |owner: &Owner| fates.get(owner.message).copied().unwrap_or(Fate::Refused));
        let stands = |owner: &usize| !owners[*owner].refused && fate(&owners[*owner]) != Fate::Refused;
        if state.broken || !state.linked.iter().all(stands) {
            return None;
        }
        let item = |owner: usize| match fate(&owners[owner]) {
            Fate::Item(item) => Some(item),
            Fate::Dropped | Fate::Refused => None,
        };
        state.written.retain(|written| written.kept && stands(&written.owner));
        let written = state.written.into_iter().map(|Written { owner, key: (namespace, key), value, .. }| ItemWrite {
            item: item(owner),
            namespace,
            key,
            value,
        });
        let read = state.read.into_iter().map(|((namespace, key), version)| KvRead { namespace, key, version });
        let mut linked: Vec<usize> = state.linked.into_iter().filter_map(item).collect();
        linked.sort_unstable();
        linked.dedup();
        Some(KvUse { read: read.collect(), written: written.collect(), linked, turn: Vec::new() })
    }
}

impl State {
    fn take_back(&mut self, which: impl Fn(&Written) -> bool) {
        let mut any = false;
        for written in self.written.iter_mut().filter(|written| written.kept && which(written)) {
            self.broken |= self.linked.contains(&written.owner);
            (written.kept, any) = (false, true);
            if let Some(grown) = self.grown.get_mut(&written.key.0) {
                grown.bytes -= written.growth.bytes;
                grown.keys -= written.growth.keys;
            }
        }
        if any {
            let kept = self.written.iter().enumerate().filter(|(_, written)| written.kept);
            self.latest = kept.map(|(at, written)| (written.key.clone(), at)).collect();
        }
    }
}

/// A run's part in a transaction.
#[derive(Debug, Clone)]
pub struct KvRun {
    transaction: Arc<Transaction>,
    owner: usize,
    one: bool,
}

impl KvRun {
    /// Of a run whose messages are those of the request, in order.
    #[must_use]
    pub fn of_all(transaction: &Arc<Transaction>) -> KvRun {
        KvRun { transaction: Arc::clone(transaction), owner: 0, one: false }
    }

    /// Of a run all of whose messages are `owner`.
    #[must_use]
    pub fn of_one(transaction: &Arc<Transaction>, owner: usize) -> KvRun {
        KvRun { transaction: Arc::clone(transaction), owner, one: true }
    }

    /// Of a run whose effects are thrown away.
    #[must_use]
    pub fn detached(messages: usize) -> KvRun {
        KvRun::of_all(&Arc::new(Transaction::new(messages)))
    }

    /// Of the run's messages from `start` on.
    #[must_use]
    pub fn from(&self, start: usize) -> KvRun {
        KvRun { owner: if self.one { self.owner } else { self.owner + start }, ..self.clone() }
    }

    fn owner(&self, at: usize) -> usize {
        if self.one { self.owner } else { self.owner + at }
    }

    /// Takes back what was written for the message at `at` in one namespace.
    pub fn undo(&self, at: usize, namespace: &str) {
        self.transaction.undo(self.owner(at), namespace);
    }
}

/// Values that stand in no store: those of stages that are tried on messages of the past. What finds no room, also once what
/// has ended is gone, is not kept, and counted.
#[derive(Debug, Default)]
pub struct Scratch(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    values: HashMap<Key, Vec<u8>>,
    bytes: usize,
    lost: u64,
    /// When room was last made: looking at all of them again soon would find little.
    swept: Option<Timestamp>,
}

impl Scratch {
    /// Takes in what a batch whose messages met `fates` has written; false, and nothing is, if some of them stand on what another
    /// wrote that was turned away.
    #[must_use]
    pub fn take(&self, transaction: &Transaction, fates: &[Fate], now: Timestamp) -> bool {
        let Some(used) = transaction.into_use(fates) else { return false };
        let mut held = self.0.lock();
        for ItemWrite { namespace, key, value, .. } in used.written {
            held.set((namespace, key), value, now);
        }
        true
    }

    /// Values that found no room.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lock().lost
    }

    fn get(&self, namespace: &Arc<str>, key: &str) -> Option<Vec<u8>> {
        self.0.lock().values.get(&(Arc::clone(namespace), Arc::from(key))).cloned()
    }
}

impl Held {
    fn set(&mut self, key: Key, value: Option<Vec<u8>>, now: Timestamp) {
        if let Some(old) = self.values.remove(&key) {
            self.bytes -= scratch_cost(&key, &old);
        }
        let Some(value) = value else { return };
        let cost = scratch_cost(&key, &value);
        if self.bytes + cost > SCRATCH_BYTES_MAX && self.swept.is_none_or(|at| now.since(at) >= SWEPT_EVERY) {
            self.sweep(now);
        }
        if self.bytes + cost > SCRATCH_BYTES_MAX {
            self.lost += 1;
            return;
        }
        self.bytes += cost;
        self.values.insert(key, value);
    }

    fn sweep(&mut self, now: Timestamp) {
        self.swept = Some(now);
        self.values.retain(|_, value| !has_ended(value, now).unwrap_or(false));
        self.bytes = self.values.iter().map(|(key, value)| scratch_cost(key, value)).sum();
    }
}

fn scratch_cost(key: &Key, value: &[u8]) -> usize {
    key.0.len() + key.1.len() + value.len() + VALUE_COST
}

/// What was before the request.
#[derive(Clone)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// What is stored.
    Store(Arc<dyn MessageStore>),
    /// What stands nowhere else.
    Scratch(Arc<Scratch>),
}

/// Values as one call of a stage sees them.
pub struct CallValues {
    namespace: Arc<str>,
    before: Before,
    clock: Clock,
    /// None on the way out: what is there is read, and nothing is remembered.
    run: Option<KvRun>,
    /// By place in the window.
    owners: Vec<usize>,
    written: Vec<Written>,
    latest: HashMap<Arc<str>, usize>,
    grown: Growth,
    read: HashMap<Arc<str>, u64>,
    linked: HashSet<usize>,
    bytes: usize,
    calls_left: u32,
    refused: bool,
}

impl std::fmt::Debug for CallValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallValues").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl CallValues {
    /// Of a call whose window has the messages at `places` of the run.
    #[must_use]
    pub fn new(
        namespace: Arc<str>,
        (before, clock): (Before, Clock),
        run: Option<KvRun>,
        places: impl Iterator<Item = usize>,
    ) -> CallValues {
        let owners = run.as_ref().map(|run| places.map(|at| run.owner(at)).collect()).unwrap_or_default();
        CallValues {
            namespace,
            before,
            clock,
            run,
            owners,
            written: Vec::new(),
            latest: HashMap::new(),
            grown: Growth::default(),
            read: HashMap::new(),
            linked: HashSet::new(),
            bytes: 0,
            calls_left: limits::KV_CALLS_MAX,
            refused: false,
        }
    }

    /// Whether it was told that values are not to be had.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.refused
    }

    /// The value of `key`, as this request has left it.
    ///
    /// # Errors
    /// What the call traps with.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        self.begin(key)?;
        let now = self.clock.now();
        if let Some(at) = self.latest.get(key).copied() {
            let Written { owner, value, .. } = &self.written[at];
            let (owner, value) = (*owner, value.as_deref().map(|value| decode(value, now)).transpose()?.flatten());
            self.link(owner);
            return Ok(value);
        }
        if let Some((owner, value)) = self.of_request(key) {
            self.link(owner);
            return Ok(value.map(|value| decode(&value, now)).transpose()?.flatten());
        }
        let stored = self.stored(key)?;
        if self.run.is_some() && !self.read.contains_key(key) {
            self.read.insert(key.into(), stored.as_ref().map_or(0, |stored| stored.version));
            self.check_room()?;
        }
        Ok(stored.map(|stored| decode(&stored.value, now)).transpose()?.flatten())
    }

    /// Sets or removes `key` for the sake of the message at `place` of the window.
    ///
    /// # Errors
    /// What the call traps with.
    pub fn set(&mut self, place: usize, key: String, value: Option<(Vec<u8>, Option<u64>)>) -> Result<()> {
        self.begin(&key)?;
        if self.run.is_none() {
            return Err(Error::msg("`kv.set` and `kv.delete` are refused on the way out: the message is stored"));
        }
        let bytes = value.as_ref().map_or(0, |(value, _)| value.len());
        if bytes > limits::KV_VALUE_BYTES_MAX {
            let max = limits::KV_VALUE_BYTES_MAX;
            return Err(Error::msg(format!("a value of {bytes} bytes: at most {max} are kept under a key")));
        }
        self.bytes += key.len() + bytes + HEAD_BYTES;
        let now = self.clock.now();
        let ends = |ttl_ms: u64| Timestamp(now.0.saturating_add(i64::try_from(ttl_ms).unwrap_or(i64::MAX)));
        let value = value.map(|(value, ttl_ms)| encode(&value, ttl_ms.map(ends)));
        let growth = value.as_ref().map_or(Ok(Growth::default()), |value| self.grow(&key, value.len()))?;
        self.grown += growth;
        let key: Arc<str> = key.into();
        self.latest.insert(Arc::clone(&key), self.written.len());
        let key = (Arc::clone(&self.namespace), key);
        self.written.push(Written { owner: self.owners[place], key, value, growth, kept: true });
        self.check_room()
    }

    /// The call has ended well: what it did counts.
    pub fn end(self) {
        let Some(run) = &self.run else { return };
        let mut state = run.transaction.state.lock();
        for (key, version) in self.read {
            state.read.entry((Arc::clone(&self.namespace), key)).or_insert(version);
        }
        state.bytes += self.bytes;
        state.linked.extend(self.linked);
        *state.grown.entry(Arc::clone(&self.namespace)).or_default() += self.grown;
        for written in self.written {
            let at = state.written.len();
            state.latest.insert(written.key.clone(), at);
            state.written.push(written);
        }
    }

    fn begin(&mut self, key: &str) -> Result<()> {
        let max = limits::KV_KEY_BYTES_MAX;
        if key.is_empty() || key.len() > max {
            return Err(Error::msg(format!("a key of a value has 1 to {max} bytes, this one {}", key.len())));
        }
        self.calls_left = self.calls_left.checked_sub(1).ok_or_else(|| {
            Error::msg(format!("it asked for values more than {} times in one call", limits::KV_CALLS_MAX))
        })?;
        if self.run.as_ref().is_some_and(|run| run.transaction.refuses) {
            self.refused = true;
            return Err(Error::msg("values are not to be had"));
        }
        Ok(())
    }

    /// As the stages before, and the calls before, have left it.
    fn of_request(&self, key: &str) -> Option<(usize, Option<Vec<u8>>)> {
        let state = self.run.as_ref()?.transaction.state.lock();
        let at = state.latest.get(&(Arc::clone(&self.namespace), Arc::from(key)))?;
        let Written { owner, value, .. } = &state.written[*at];
        Some((*owner, value.clone()))
    }

    /// What was read here was written for `owner`: whoever else is in the call stands on that.
    fn link(&mut self, owner: usize) {
        if self.owners.iter().any(|other| *other != owner) {
            self.linked.insert(owner);
        }
    }

    fn stored(&self, key: &str) -> Result<Option<KvValue>> {
        let store = match &self.before {
            Before::Nothing => return Ok(None),
            Before::Scratch(scratch) => {
                return Ok(scratch.get(&self.namespace, key).map(|value| KvValue { version: 0, value }));
            }
            Before::Store(store) => store,
        };
        // The store answers from memory, behind a lock that is held for moments: the worker does not wait, and there is
        // nobody who waits for the worker while holding it.
        let answer = tokio::runtime::Handle::current().block_on(store.kv_get(&self.namespace, key));
        answer.map_err(|error| Error::msg(format!("a value could not be read: {error}")))
    }

    /// What a value of `bytes` takes beyond what this request has left under the key, if the namespace has room for it.
    fn grow(&self, key: &str, bytes: usize) -> Result<Growth> {
        // What is not stored has no bound there.
        let Before::Store(store) = &self.before else { return Ok(Growth::default()) };
        let answer = tokio::runtime::Handle::current().block_on(store.kv_room(&self.namespace, key));
        let room = answer.map_err(|error| Error::msg(format!("a value could not be set: {error}")))?;
        let cost = |value: Option<&Vec<u8>>| value.map_or(0, |value| kv_cost(&self.namespace, key, value.len()));
        let mut pending = self.grown;
        let mut before = self.latest.get(key).map(|at| cost(self.written[*at].value.as_ref()));
        if let Some(run) = &self.run {
            let state = run.transaction.state.lock();
            pending += state.grown.get(&self.namespace).copied().unwrap_or_default();
            if before.is_none() {
                let at = state.latest.get(&(Arc::clone(&self.namespace), Arc::from(key)));
                before = at.map(|at| cost(state.written[*at].value.as_ref()));
            }
        }
        let before = before.unwrap_or(room.taken);
        let taken = kv_cost(&self.namespace, key, bytes);
        let growth = Growth { bytes: taken.saturating_sub(before), keys: u64::from(before == 0) };
        let (bytes, keys) = (pending.bytes + growth.bytes, pending.keys + growth.keys);
        if (growth.bytes > 0 && bytes > room.bytes) || (growth.keys > 0 && keys > room.keys) {
            return Err(Error::msg(format!(
                "the plugin's values on this topic have no room for it: there is some for {} bytes and {} keys more, and the \
                 stages of this request have used or want {bytes} and {keys}; set values with an end (`ttl-ms`), or delete some",
                room.bytes, room.keys
            )));
        }
        Ok(growth)
    }

    fn check_room(&self) -> Result<()> {
        let Some(run) = &self.run else { return Ok(()) };
        let (bytes, keys) = {
            let state = run.transaction.state.lock();
            (state.bytes + self.bytes, state.read.len() + self.read.len())
        };
        if bytes > limits::KV_REQUEST_BYTES_MAX {
            let max = limits::KV_REQUEST_BYTES_MAX;
            return Err(Error::msg(format!("the stages of one request set values of more than {max} bytes")));
        }
        if keys > limits::KV_REQUEST_KEYS_MAX {
            let max = limits::KV_REQUEST_KEYS_MAX;
            return Err(Error::msg(format!("the stages of one request read more than {max} values")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(transaction: &Arc<Transaction>, owners: &[usize]) -> CallValues {
        let (run, clock) = (KvRun::of_all(transaction), Clock::fixed(Timestamp(1000)));
        CallValues::new("1/p".into(), (Before::Nothing, clock), Some(run), owners.iter().copied())
    }

    fn set(call: &mut CallValues, place: usize, key: &str, value: &str) {
        call.set(place, key.to_owned(), Some((value.into(), None))).unwrap();
    }

    fn written(used: &KvUse) -> Vec<(Option<usize>, &str)> {
        used.written.iter().map(|write| (write.item, &*write.key)).collect()
    }

    #[test]
    fn a_value_ends_with_its_time_and_not_before() {
        let stored = encode(b"x", Some(Timestamp(1000)));
        assert_eq!(decode(&stored, Timestamp(999)).unwrap().as_deref(), Some(&b"x"[..]));
        assert_eq!(decode(&stored, Timestamp(1000)).unwrap(), None);
        assert_eq!(decode(&encode(b"", None), Timestamp::MAX).unwrap().as_deref(), Some(&b""[..]));
        for unknown in [&b""[..], &[2, 0, 0, 0, 0, 0, 0, 0, 0], &[1, 0]] {
            assert!(decode(unknown, Timestamp(0)).is_err());
        }
    }

    #[test]
    fn writes_of_a_refused_message_are_left_out_and_those_of_the_others_stay() {
        let transaction = Arc::new(Transaction::new(3));
        let mut one = call(&transaction, &[0, 1, 2]);
        for (place, key) in ["a", "b", "c"].into_iter().enumerate() {
            set(&mut one, place, key, "x");
        }
        one.end();
        let used = transaction.into_use(&[Fate::Item(0), Fate::Refused, Fate::Dropped]).expect("none read another's");
        assert_eq!(written(&used), [(Some(0), "a"), (None, "c")]);
    }

    #[test]
    fn what_stands_on_a_refused_message_is_not_stored() {
        for fate in [Fate::Refused, Fate::Item(0)] {
            let transaction = Arc::new(Transaction::new(2));
            let mut first = call(&transaction, &[0]);
            set(&mut first, 0, "n", "1");
            assert_eq!(first.get("n").unwrap().as_deref(), Some(&b"1"[..]));
            first.end();
            assert!(transaction.state.lock().linked.is_empty(), "it read its own");
            let mut second = call(&transaction, &[1]);
            assert_eq!(second.get("n").unwrap().as_deref(), Some(&b"1"[..]), "a batch sees what it has set");
            set(&mut second, 0, "n", "2");
            second.end();
            let used = transaction.into_use(&[fate, Fate::Item(1)]);
            assert_eq!(used.is_some(), fate != Fate::Refused);
            assert_eq!(used.map(|used| used.linked), (fate != Fate::Refused).then(|| vec![0]));
        }
    }

    #[test]
    fn a_call_that_traps_leaves_nothing() {
        let transaction = Arc::new(Transaction::new(1));
        let mut trapped = call(&transaction, &[0]);
        set(&mut trapped, 0, "n", "1");
        drop(trapped);
        let mut after = call(&transaction, &[0]);
        assert_eq!(after.get("n").unwrap(), None, "there is no store here, so it is not from the call before");
        assert!(transaction.into_use(&[Fate::Item(0)]).unwrap().written.is_empty());
    }

    #[test]
    fn what_was_emitted_and_turned_away_takes_its_writes_along() {
        let transaction = Arc::new(Transaction::new(1));
        let [kept, gone] = [0, 0].map(|message| transaction.owner_beside(message));
        for (owner, key) in [(kept, "a"), (gone, "b")] {
            let run = KvRun::of_one(&transaction, owner);
            let clock = Clock::fixed(Timestamp(0));
            let mut call = CallValues::new("2/p".into(), (Before::Nothing, clock), Some(run), std::iter::once(0));
            set(&mut call, 0, key, "x");
            call.end();
        }
        transaction.refuse(gone);
        assert_eq!(written(&transaction.into_use(&[Fate::Item(5)]).unwrap()), [(Some(5), "a")]);
    }

    #[test]
    fn what_one_request_may_set_is_bounded() {
        let transaction = Arc::new(Transaction::new(1));
        let mut calls = 0;
        let refused = loop {
            let mut call = call(&transaction, &[0]);
            let value = vec![0; limits::KV_VALUE_BYTES_MAX];
            match (0..64).try_for_each(|n| call.set(0, format!("{calls}-{n}"), Some((value.clone(), None)))) {
                Ok(()) => call.end(),
                Err(error) => break error.to_string(),
            }
            calls += 1;
        };
        assert!(refused.contains("of one request"), "{refused}");
        assert_eq!(calls, limits::KV_REQUEST_BYTES_MAX / limits::KV_VALUE_BYTES_MAX / 64 - 1);
    }

    #[test]
    fn what_has_ended_leaves_its_room() {
        let scratch = Scratch::default();
        let write = |key: usize, now: i64| {
            let transaction = Arc::new(Transaction::new(1));
            let mut call = call(&transaction, &[0]);
            let value = vec![0; limits::KV_VALUE_BYTES_MAX];
            call.set(0, key.to_string(), Some((value, Some(1000)))).unwrap();
            call.end();
            assert!(scratch.take(&transaction, &[Fate::Item(0)], Timestamp(now)));
        };
        let more_than_fit = SCRATCH_BYTES_MAX / limits::KV_VALUE_BYTES_MAX + 1;
        (0..more_than_fit).for_each(|key| write(key, 0));
        let lost = scratch.lost();
        assert!(lost > 0);
        write(more_than_fit, 1_000_000_000);
        assert_eq!((scratch.lost(), scratch.0.lock().values.len()), (lost, 1));
    }

    #[test]
    fn values_that_find_no_room_are_not_kept() {
        let (scratch, namespace): (Scratch, Arc<str>) = (Scratch::default(), "1/p".into());
        let write = |key: &str, value: Option<usize>| {
            let transaction = Arc::new(Transaction::new(1));
            let mut call = call(&transaction, &[0]);
            call.set(0, key.to_owned(), value.map(|bytes| (vec![0; bytes], None))).unwrap();
            call.end();
            assert!(scratch.take(&transaction, &[Fate::Item(0)], Timestamp(0)));
        };
        let fit = SCRATCH_BYTES_MAX / limits::KV_VALUE_BYTES_MAX;
        (0..fit + 10).for_each(|number| write(&number.to_string(), Some(limits::KV_VALUE_BYTES_MAX)));
        let kept = |scratch: &Scratch| scratch.0.lock().values.len();
        assert!(kept(&scratch) < fit && scratch.0.lock().bytes <= SCRATCH_BYTES_MAX, "{}", kept(&scratch));
        assert_eq!(scratch.lost(), (fit + 10 - kept(&scratch)) as u64);
        assert!(scratch.get(&namespace, "0").is_some() && scratch.get(&namespace, &fit.to_string()).is_none());
        (0..fit).for_each(|number| write(&number.to_string(), None));
        assert_eq!((kept(&scratch), scratch.0.lock().bytes), (0, 0), "what is taken away gives its room back");
    }
}
