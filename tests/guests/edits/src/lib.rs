//! A test guest that calls the host as the first message's payload says, byte by byte: any function, with any index, any
//! text, any handle and any place in memory. Invariant: every script means something and ends; what it does follows from
//! the script alone. Never judges what the host answers: the fuzz target does (`tests/src/fuzz/guest_edits.rs`).

wit_bindgen::generate!({ path: "../../../wit", world: "plugin" });

mod call;
mod script;

use exports::sluice::plugin::stage::{Batch, Error, Guest};
use script::Script;

/// Calls of one script: above every bound of the host that counts calls.
const CALLS_MAX: usize = 1_000;

struct Edits;

impl Guest for Edits {
    fn configure(_: String) -> Result<(), Error> {
        Ok(())
    }

    fn process(batch: &Batch) -> Result<(), Error> {
        let payload = batch.payload(0);
        let mut script = Script::new(&payload, batch.len());
        let mut calls = 0;
        while let Some(word) = script.word() {
            // One call, or the same one again and again: bounds on numbers are within reach of a short script.
            let times = if word & 0x80 == 0 { 1 } else { usize::from(script.byte()) * 2 };
            let call = call::read(word & 0x7f, &mut script);
            for _ in 0..times {
                calls += 1;
                if calls > CALLS_MAX {
                    return Ok(());
                }
                call(batch)?;
            }
        }
        Ok(())
    }
}

export!(Edits);
