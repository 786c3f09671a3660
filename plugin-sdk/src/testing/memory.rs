//! A batch in memory: the second `Source`, with the broker's rules.
//! Invariant: it forbids what the contract forbids (by panic, where the host traps). Never skips a rule for comfort.

use std::cell::RefCell;

use super::{Circumstances, Emitted, Input, Outcome, Verdict};
use crate::{
    Emit, Position, Rejection,
    column::{ABSENT, Column},
    source::Source,
};

struct Slot {
    message: Input,
    changed: bool,
    dropped: Option<String>,
    rejections: Vec<Rejection>,
    emitted: Vec<Emitted>,
    payload_reads: usize,
}

pub(super) struct Memory<'c> {
    slots: RefCell<Vec<Slot>>,
    circumstances: &'c Circumstances,
}

impl<'c> Memory<'c> {
    pub(super) fn new(messages: Vec<Input>, circumstances: &'c Circumstances) -> Self {
        let slot = |message| Slot {
            message,
            changed: false,
            dropped: None,
            rejections: Vec::new(),
            emitted: Vec::new(),
            payload_reads: 0,
        };
        Self { slots: RefCell::new(messages.into_iter().map(slot).collect()), circumstances }
    }

    pub(super) fn into_outcomes(self) -> impl Iterator<Item = Outcome> {
        self.slots.into_inner().into_iter().map(|slot| {
            let Slot { message, changed, dropped, rejections, emitted, payload_reads } = slot;
            let verdict = match dropped {
                // A reject outweighs a drop: a message that is wrong must not vanish as if it were well.
                _ if !rejections.is_empty() => Verdict::Rejected(rejections),
                Some(reason) => Verdict::Dropped(reason),
                None if changed => Verdict::Changed,
                None => Verdict::Passed,
            };
            Outcome { verdict, message, emitted, payload_reads }
        })
    }

    fn read<T>(&self, i: u32, get: impl FnOnce(&Input) -> T) -> T {
        get(&self.slots.borrow()[i as usize].message)
    }

    fn edit(&self, i: u32, change: impl FnOnce(&mut Input)) {
        let slot = &mut self.slots.borrow_mut()[i as usize];
        change(&mut slot.message);
        slot.changed = true;
    }

    fn refuse_on_the_way_out(&self, what: &str) {
        assert!(!self.circumstances.on_the_way_out, "{what} on the way out: the message is stored");
    }
}

fn column<'v>(values: impl Iterator<Item = Option<&'v [u8]>>) -> Column {
    let mut column = Column { data: Vec::new(), lens: Vec::new() };
    for value in values {
        column.lens.push(value.map_or(ABSENT, |v| u32::try_from(v.len()).expect("a test's value is below 4 GiB")));
        column.data.extend_from_slice(value.unwrap_or_default());
    }
    column
}

impl Source for Memory<'_> {
    fn len(&self) -> u32 {
        u32::try_from(self.slots.borrow().len()).expect("a batch is bounded by BATCH_MESSAGES_MAX")
    }
    fn topic(&self) -> String {
        self.circumstances.topic.clone()
    }
    fn id(&self, i: u32) -> String {
        self.read(i, |m| m.id.clone())
    }
    fn published_at_ms(&self, i: u32) -> u64 {
        self.read(i, |m| m.published_at_ms)
    }
    fn payload(&self, i: u32) -> Vec<u8> {
        self.slots.borrow_mut()[i as usize].payload_reads += 1;
        self.read(i, |m| m.payload.clone())
    }
    fn payload_len(&self, i: u32) -> u32 {
        self.read(i, |m| u32::try_from(m.payload.len()).expect("a test's payload is below 4 GiB"))
    }
    fn content_type(&self, i: u32) -> String {
        self.read(i, |m| m.content_type.clone())
    }
    fn schema_version(&self, i: u32) -> Option<String> {
        self.read(i, |m| m.schema_version.clone())
    }
    fn header(&self, i: u32, name: &str) -> Option<String> {
        self.read(i, |m| m.header_value(name).map(str::to_owned))
    }
    fn header_names(&self, i: u32) -> Vec<String> {
        self.read(i, |m| m.headers.iter().map(|(name, _)| name.clone()).collect())
    }
    fn key(&self, i: u32) -> Option<String> {
        self.read(i, |m| m.key.clone())
    }
    fn correlation_id(&self, i: u32) -> Option<String> {
        self.read(i, |m| m.correlation_id.clone())
    }
    fn priority(&self, i: u32) -> u8 {
        self.read(i, |m| m.priority)
    }
    fn attempt(&self, i: u32) -> u32 {
        self.read(i, |m| m.attempt)
    }
    fn position(&self, i: u32) -> Option<Position> {
        self.read(i, |m| m.position)
    }
    fn header_column(&self, name: &str) -> Column {
        column(self.slots.borrow().iter().map(|s| s.message.header_value(name).map(str::as_bytes)))
    }
    fn payload_column(&self) -> Column {
        self.slots.borrow_mut().iter_mut().for_each(|s| s.payload_reads += 1);
        column(self.slots.borrow().iter().map(|s| Some(s.message.payload.as_slice())))
    }
    fn drop_message(&self, i: u32, reason: &str) {
        self.slots.borrow_mut()[i as usize].dropped = Some(reason.into());
    }
    fn reject(&self, i: u32, code: &str, message: &str, pointer: Option<&str>) {
        let mut rejection = Rejection::new(code.to_owned(), message);
        rejection.pointer = pointer.map(str::to_owned);
        self.slots.borrow_mut()[i as usize].rejections.push(rejection);
    }
    fn set_payload(&self, i: u32, payload: &[u8]) {
        self.edit(i, |m| m.payload = payload.to_vec());
    }
    fn set_content_type(&self, i: u32, content_type: &str) {
        self.edit(i, |m| m.content_type = content_type.into());
    }
    fn set_header(&self, i: u32, name: &str, value: &str) {
        self.edit(i, |m| match m.headers.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.into(),
            None => m.headers.push((name.into(), value.into())),
        });
    }
    fn remove_header(&self, i: u32, name: &str) {
        if self.read(i, |m| m.header_value(name).is_some()) {
            self.edit(i, |m| m.headers.retain(|(n, _)| n != name));
        }
    }
    fn set_key(&self, i: u32, key: Option<&str>) {
        self.refuse_on_the_way_out("set-key");
        self.edit(i, |m| m.key = key.map(str::to_owned));
    }
    fn emit(&self, i: u32, emit: &Emit<'_>) {
        self.refuse_on_the_way_out("emit");
        let declared = self.circumstances.emit_to.iter().any(|topic| topic == emit.topic);
        assert!(declared, "emit to {:?}, which is not among the stage's emitTo", emit.topic);
        self.slots.borrow_mut()[i as usize].emitted.push(Emitted {
            topic: emit.topic.into(),
            key: emit.key.map(str::to_owned),
            payload: emit.payload.to_vec(),
            headers: emit.headers.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
        });
    }
    fn kv_set(&self, i: u32, key: &str, value: Option<(&[u8], Option<u64>)>) {
        self.refuse_on_the_way_out("kv");
        assert!(i < self.len(), "message {i} is not in the batch");
        super::powers::kv_set(i, key, value);
    }
}
