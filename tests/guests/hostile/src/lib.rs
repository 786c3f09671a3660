//! A test guest that does to the host what the header `do` of each message says, or in `configure` its config. Invariant:
//! what hurts is a row of `tests/guests/behaviours.rs`; the words of [`obey_quietly`] hurt nobody. Never meant to be useful.

wit_bindgen::generate!({ path: "../../../wit", world: "plugin-with-powers" });

#[macro_use]
#[path = "../../behaviours.rs"]
mod behaviours;
mod configures;
mod misdeeds;

use std::hash::{BuildHasher as _, Hasher as _};

use exports::sluice::plugin::stage::{Batch, Error, Guest};
use sluice::plugin::{kv, log, metrics, schemas};

type Done = Result<(), Error>;

struct Hostile;

impl Guest for Hostile {
    fn configure(config: String) -> Done {
        let told = config.split(r#""do":""#).nth(1).and_then(|rest| rest.split('"').next());
        macro_rules! obeyed {
            ($($word:ident)*) => {
                match told {
                    $(Some(stringify!($word)) => configures::$word(),)*
                    _ => Ok(()),
                }
            };
        }
        configures!(obeyed)
    }

    fn process(batch: &Batch) -> Done {
        for i in 0..batch.len() {
            if let Some(told) = batch.header(i, "do") {
                obey(batch, i, &told)?;
            }
        }
        Ok(())
    }
}

fn obey(batch: &Batch, i: u32, told: &str) -> Done {
    macro_rules! obeyed {
        ($($word:ident)*) => {
            match told {
                $(stringify!($word) => misdeeds::$word(batch, i),)*
                _ => obey_quietly(batch, i, told),
            }
        };
    }
    misdeeds!(obeyed)
}

fn obey_quietly(batch: &Batch, i: u32, told: &str) -> Done {
    match told {
        "key" => batch.set_key(i, Some("k2")),
        "headers-64" => (0..63).for_each(|n| batch.set_header(i, &format!("h{n}"), "x")),
        "payload-grown" => batch.set_payload(i, &vec![b'x'; 1 << 20]),
        "emit-allowed" => batch.emit(i, "allowed", Some("k"), b"{}", &[("a".to_owned(), "b".to_owned())]),
        "emits-allowed" => (0..256).for_each(|_| batch.emit(i, "allowed", None, b"{}", &[])),
        "reject" => {
            batch.set_payload(i, b"edited");
            batch.reject(i, "NO", "not this one", Some("/a"));
        }
        "drop" => batch.drop_message(i, "told to drop"),
        "say" => println!("printed line\nand another"),
        "clock" => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_millis());
            let first = std::collections::hash_map::RandomState::new();
            batch.set_header(i, "clock", &format!("{now} {:?}", std::mem::size_of_val(&first)));
        }
        "draw" => {
            let drawn = std::collections::hash_map::RandomState::new().build_hasher().finish();
            batch.set_header(i, "drawn", &drawn.to_string());
        }
        "facts" => facts(batch, i),
        _ => {}
    }
    Ok(())
}

/// Everything that can be asked of a message, as its payload.
fn facts(batch: &Batch, i: u32) {
    batch.set_header(i, "added", "1");
    batch.remove_header(i, "do");
    let column = batch.header_column("added");
    let facts = format!(
        "{} {} {} {} {} {} {:?} {:?} {:?} {:?} {} {} {:?} {:?} {}",
        batch.len(),
        batch.topic(),
        batch.id(i),
        batch.published_at(i),
        String::from_utf8_lossy(&batch.payload(i)),
        batch.content_type(i),
        batch.schema_version(i),
        batch.header_names(i),
        batch.key(i),
        batch.correlation_id(i),
        batch.priority(i),
        batch.attempt(i),
        batch.position(i),
        column.lens,
        batch.payload_column().data.len() as u32 - batch.payload_len(i),
    );
    batch.set_content_type(i, "text/plain");
    batch.set_payload(i, facts.as_bytes());
}

export!(Hostile);
