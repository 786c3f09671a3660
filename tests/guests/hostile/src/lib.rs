//! A test guest that does to the host what the header `do` of each message says. Invariant: each word of [`obey`] has a
//! test in the host that shows it hurts nobody else. Never meant to be useful.

wit_bindgen::generate!({ path: "../../../wit", world: "plugin" });

use exports::sluice::plugin::stage::{Batch, Error, Guest};
use sluice::plugin::log::{self, Level};

struct Hostile;

impl Guest for Hostile {
    fn configure(config: String) -> Result<(), Error> {
        match config.as_str() {
            c if c.contains("refuse") => Err(Error { code: 1, message: "no such config".to_owned() }),
            c if c.contains("panic") => panic!("configured to panic"),
            c if c.contains("spin") => spin(),
            _ => Ok(()),
        }
    }

    fn process(batch: &Batch) -> Result<(), Error> {
        for i in 0..batch.len() {
            if let Some(what) = batch.header(i, "do") {
                obey(batch, i, &what)?;
            }
        }
        Ok(())
    }
}

fn obey(batch: &Batch, i: u32, what: &str) -> Result<(), Error> {
    match what {
        "panic" => panic!("told to panic"),
        "spin" => spin(),
        "work" => work(),
        "bomb" => bomb(),
        "leak" => std::mem::forget(vec![1_u8; 3 << 20]),
        "recurse" => drop(recurse(1)),
        "fail" => return Err(Error { code: 3, message: "told to fail".to_owned() }),
        "edit-and-panic" => {
            batch.set_header(i, "edited", "yes");
            batch.set_payload(i, b"edited");
            panic!("after editing");
        }
        "index" => drop(batch.payload(batch.len())),
        "headers" => (0..100).for_each(|n| batch.set_header(i, &format!("h{n}"), "x")),
        "long-header" => batch.set_header(i, "h", &"x".repeat(20 << 10)),
        "payload" => batch.set_payload(i, &vec![0; 17 << 20]),
        "payloads" => (0..100).for_each(|_| batch.set_payload(i, &vec![0; 4 << 20])),
        "copy" => (0..100_000).for_each(|_| drop(batch.payload(i))),
        "emit" => batch.emit(i, "elsewhere", None, b"{}", &[]),
        "emit-allowed" => batch.emit(i, "allowed", Some("k"), b"{}", &[("a".to_owned(), "b".to_owned())]),
        "emits" => (0..1000).for_each(|_| batch.emit(i, "allowed", None, b"{}", &[])),
        "key" => batch.set_key(i, Some("k2")),
        "rejects" => (0..1000).for_each(|_| batch.reject(i, "NO", &"x".repeat(10_000), Some("/a"))),
        "reject" => {
            batch.set_payload(i, b"edited");
            batch.reject(i, "NO", "not this one", Some("/a"));
        }
        "drop" => batch.drop_message(i, "told to drop"),
        "log" => (0..10_000).for_each(|_| log::write(Level::Info, "again and again")),
        "print" => println!("printed line\nand another"),
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(3600)),
        "file" => drop(std::fs::read("/etc/passwd").map_err(|e| panic!("no file: {e}"))),
        "env" => assert!(std::env::vars().next().is_none() && std::env::args().next().is_none()),
        "net" => drop(std::net::TcpStream::connect("127.0.0.1:1").map_err(|e| panic!("no net: {e}"))),
        "clock" => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_millis());
            let first = std::collections::hash_map::RandomState::new();
            batch.set_header(i, "clock", &format!("{now} {:?}", std::mem::size_of_val(&first)));
        }
        "exit" => std::process::exit(0),
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

fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// About ten milliseconds of honest work.
fn work() {
    let mut n = 0_u64;
    for _ in 0..10_000_000_u64 {
        n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(7));
    }
}

fn bomb() {
    let mut all = Vec::new();
    loop {
        all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}

fn recurse(n: u64) -> u64 {
    let there = std::hint::black_box([n; 64]);
    if std::hint::black_box(n) == 0 { 0 } else { recurse(n + 1) + there[7] }
}

export!(Hostile);
