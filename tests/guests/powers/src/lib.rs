//! A test guest that uses the powers that a plugin imports by name, as the header `do` of each message says: words, each with
//! its arguments, separated by `; `. Invariant: what it found is said in headers. Never meant to be useful.

wit_bindgen::generate!({ path: "../../../wit", world: "plugin-with-powers" });

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use exports::sluice::plugin::stage::{Batch, Error, Guest};
use sluice::plugin::{kv, log, metrics, schemas};

/// What `configure` was answered for the schema that its config names.
static SCHEMA: OnceLock<String> = OnceLock::new();

struct Powers;

impl Guest for Powers {
    /// `{"schema": "id"}` asks for that schema; `{"need": "word"}` refuses a definition without that word.
    fn configure(config: String) -> Result<(), Error> {
        let Some(id) = field(&config, "schema") else { return Ok(()) };
        let found = schemas::get(id).unwrap_or_else(|| "none".to_owned());
        if field(&config, "need").is_some_and(|word| !found.contains(word)) {
            return Err(Error { code: 7, message: format!("the schema {id} lacks what is needed") });
        }
        let _first = SCHEMA.set(found);
        Ok(())
    }

    fn process(batch: &Batch) -> Result<(), Error> {
        for i in 0..batch.len() {
            let Some(told) = batch.header(i, "do") else { continue };
            for words in told.split("; ") {
                obey(batch, i, &words.split(' ').collect::<Vec<_>>());
            }
        }
        Ok(())
    }
}

fn field<'a>(config: &'a str, name: &str) -> Option<&'a str> {
    config.split(&format!("\"{name}\":\"")).nth(1)?.split('"').next()
}

fn text(value: Option<Vec<u8>>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| String::from_utf8_lossy(&value).into_owned())
}

fn number(key: &str) -> u64 {
    text(kv::get(key)).parse().unwrap_or(0)
}

fn obey(batch: &Batch, i: u32, words: &[&str]) {
    match words {
        // Reads, adds one, writes.
        ["count", key] => {
            let counted = number(key) + 1;
            kv::set(batch, i, key, counted.to_string().as_bytes(), None);
            batch.set_header(i, "count", &counted.to_string());
        }
        // Drops what it has seen.
        ["once", key] => match kv::get(key) {
            Some(_) => batch.drop_message(i, "seen before"),
            None => kv::set(batch, i, key, b"seen", None),
        },
        ["get", key] => batch.set_header(i, "got", &text(kv::get(key))),
        ["set", key, value] => kv::set(batch, i, key, value.as_bytes(), None),
        ["set", key, value, ttl_ms] => kv::set(batch, i, key, value.as_bytes(), ttl_ms.parse().ok()),
        ["fill", key, bytes] => kv::set(batch, i, key, &vec![b'x'; bytes.parse().unwrap_or(0)], None),
        ["delete", key] => kv::delete(batch, i, key),
        // Until somebody else has changed it.
        ["change", key] => {
            let before = kv::get(key);
            await_value(key, |value| value != before);
            kv::set(batch, i, key, b"mine", None);
        }
        ["until", key, wanted] => {
            await_value(key, |value| text(value) == *wanted);
            kv::set(batch, i, key, b"mine", None);
        }
        ["emit", topic, rest @ ..] => {
            batch.emit(i, topic, None, b"{}", &[("do".to_owned(), rest.join(" ").replace('+', "; "))]);
        }
        ["add", name, by] => metrics::add(name, by.parse().unwrap_or(0)),
        ["gauge", name, value] => metrics::set(name, value.parse().unwrap_or(f64::NAN)),
        ["observe", name, value] => metrics::observe(name, value.parse().unwrap_or(f64::NAN)),
        ["schema"] => batch.set_header(i, "schema", SCHEMA.get().map_or("not asked for", String::as_str)),
        ["say", said] => log::write(log::Level::Warn, said),
        ["reject"] => batch.reject(i, "NO", "told to reject", None),
        ["drop"] => batch.drop_message(i, "told to drop"),
        ["trap"] => deep_down(3),
        _ => {}
    }
}

/// Bounded by the calls that the host allows, a millisecond between two.
fn await_value(key: &str, is: impl Fn(Option<Vec<u8>>) -> bool) {
    if is(kv::get(key)) {
        return;
    }
    log::write(log::Level::Info, "waiting");
    while !is(kv::get(key)) {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1) {}
    }
}

/// Functions whose names a backtrace is to show.
#[inline(never)]
fn deep_down(left: u32) {
    if std::hint::black_box(left) == 0 {
        panic!("told to trap")
    }
    deep_down(left - 1);
    std::hint::black_box(left);
}

export!(Powers);
