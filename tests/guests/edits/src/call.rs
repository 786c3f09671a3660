//! One call of the host. Invariant: reads of the script what it needs before it is called, so that it can be called again.
//! Never keeps anything from one call to the next.

use std::hint::black_box;

use crate::script::{Bytes, Script};
use crate::sluice::plugin::log::{self, Level};
use crate::{Batch, Error};

type Call = Box<dyn Fn(&Batch) -> Result<(), Error>>;

/// Every function of the world, by number; past them, what a guest does to itself.
pub fn read(word: u8, script: &mut Script<'_>) -> Call {
    match word % 33 {
        0..=14 => ask(word % 33, script),
        15..=24 => edit(word % 33, script),
        25..=27 => speak(word % 33, script),
        _ => misbehave(word % 33, script),
    }
}

/// A question; the answer is of no interest.
fn asks<T>(question: impl Fn(&Batch) -> T + 'static) -> Call {
    Box::new(move |batch| {
        black_box(question(batch));
        Ok(())
    })
}

fn ask(word: u8, script: &mut Script<'_>) -> Call {
    let i = script.index();
    match word {
        0 => asks(|batch| (batch.len(), batch.topic())),
        1 => asks(move |batch| batch.id(i)),
        2 => asks(move |batch| batch.published_at(i)),
        3 => asks(move |batch| batch.payload(i)),
        4 => asks(move |batch| batch.payload_len(i)),
        5 => asks(move |batch| batch.content_type(i)),
        6 => asks(move |batch| batch.schema_version(i)),
        7 => asks(move |batch| batch.header_names(i)),
        8 => asks(move |batch| batch.key(i)),
        9 => asks(move |batch| batch.correlation_id(i)),
        10 => asks(move |batch| (batch.priority(i), batch.attempt(i))),
        11 => asks(move |batch| batch.position(i)),
        12 => {
            let name = script.bytes();
            asks(move |batch| batch.header(i, name.text()))
        }
        13 => {
            let name = script.bytes();
            asks(move |batch| batch.header_column(name.text()))
        }
        _ => asks(|batch| batch.payload_column()),
    }
}

fn edit(word: u8, script: &mut Script<'_>) -> Call {
    let i = script.index();
    match word {
        15 => {
            let reason = script.bytes();
            asks(move |batch| batch.drop_message(i, reason.text()))
        }
        16 => {
            let (code, message, pointer) = (script.bytes(), script.bytes(), script.maybe());
            asks(move |batch| batch.reject(i, code.text(), message.text(), pointer.as_ref().map(Bytes::text)))
        }
        17 => {
            let payload = script.bytes();
            asks(move |batch| batch.set_payload(i, payload.bytes()))
        }
        18 => {
            let media_type = script.bytes();
            asks(move |batch| batch.set_content_type(i, media_type.text()))
        }
        19 | 20 => {
            let (name, value) = (script.bytes(), script.bytes());
            asks(move |batch| batch.set_header(i, name.text(), value.text()))
        }
        21 => {
            let name = script.bytes();
            asks(move |batch| batch.remove_header(i, name.text()))
        }
        22 => {
            let key = script.maybe();
            asks(move |batch| batch.set_key(i, key.as_ref().map(Bytes::text)))
        }
        _ => {
            let (topic, key, payload, headers) = (script.topic(), script.maybe(), script.bytes(), script.pairs());
            asks(move |batch| {
                batch.emit(i, topic.text(), key.as_ref().map(Bytes::text), payload.bytes(), &headers);
            })
        }
    }
}

fn speak(word: u8, script: &mut Script<'_>) -> Call {
    let level = [Level::Debug, Level::Info, Level::Warn, Level::Error][usize::from(script.byte() % 4)];
    match word {
        25 => {
            let len = usize::from(script.byte()) * 64;
            asks(move |_| println!("{}", "x".repeat(len)))
        }
        _ => {
            let message = script.bytes();
            asks(move |_| log::write(level, message.text()))
        }
    }
}

fn misbehave(word: u8, script: &mut Script<'_>) -> Call {
    match word {
        // Another handle's batch, and its end.
        28 => {
            let (handle, i) = (script.number(), script.index());
            asks(move |_| {
                // SAFETY: it is none of ours, which the host must see.
                let other = std::mem::ManuallyDrop::new(unsafe { Batch::from_handle(handle) });
                other.payload(i)
            })
        }
        29 => {
            let handle = script.number();
            // SAFETY: as above.
            asks(move |_| drop(unsafe { Batch::from_handle(handle) }))
        }
        // SAFETY: as above; from now on the batch is gone.
        30 => asks(|batch| drop(unsafe { Batch::from_handle(batch.handle()) })),
        31 => {
            let len = usize::from(script.byte()) * 1024;
            Box::new(move |_| Err(Error { code: 1, message: "!".repeat(len) }))
        }
        _ => Box::new(|_| panic!("the script says so")),
    }
}
