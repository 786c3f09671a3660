//! What it does with a message. Invariant: one function per row of `misdeeds!`; each takes far more than any bound, so that
//! a test need not know the bound. Never returns where that is the misdeed.

use std::hint::black_box;

use crate::log::{self, Level};
use crate::{Batch, Done, Error, kv, metrics, schemas};

pub fn spin(_: &Batch, _: u32) -> Done {
    let mut n = 0_u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

/// About ten milliseconds of honest work for each message: within the time of its call, over and over.
pub fn drip(_: &Batch, _: u32) -> Done {
    let mut n = 0_u64;
    for _ in 0..10_000_000_u64 {
        n = black_box(n.wrapping_mul(31).wrapping_add(7));
    }
    Ok(())
}

pub fn sleep(_: &Batch, _: u32) -> Done {
    std::thread::sleep(std::time::Duration::from_secs(3600));
    Ok(())
}

pub fn bomb(_: &Batch, _: u32) -> Done {
    let mut all = Vec::new();
    loop {
        all.push(black_box(vec![1_u8; 1 << 20]));
    }
}

/// Within its memory, but it never gives back.
pub fn leak(_: &Batch, _: u32) -> Done {
    std::mem::forget(black_box(vec![1_u8; 3 << 20]));
    Ok(())
}

pub fn recurse(_: &Batch, _: u32) -> Done {
    black_box(deeper(1, &|| {}));
    Ok(())
}

/// Into the host from every depth: its functions need room on the same stack.
pub fn recurse_and_call(batch: &Batch, i: u32) -> Done {
    black_box(deeper(1, &|| drop(batch.header_names(i))));
    Ok(())
}

fn deeper(n: u64, visit: &dyn Fn()) -> u64 {
    let there = black_box([n; 64]);
    visit();
    if black_box(n) == 0 { 0 } else { deeper(n + 1, visit) + there[7] }
}

pub fn panic(_: &Batch, _: u32) -> Done {
    panic!("told to panic");
}

pub fn edit_and_panic(batch: &Batch, i: u32) -> Done {
    batch.set_header(i, "edited", "yes");
    batch.set_payload(i, b"edited");
    panic!("after editing");
}

pub fn fail(_: &Batch, _: u32) -> Done {
    Err(Error { code: 3, message: format!("told to fail{}", "!".repeat(1 << 20)) })
}

pub fn exit(_: &Batch, _: u32) -> Done {
    std::process::exit(0);
}

pub fn index(batch: &Batch, _: u32) -> Done {
    drop(batch.payload(batch.len()));
    Ok(())
}

/// Gives the batch back and uses it.
pub fn drop_borrow(batch: &Batch, _: u32) -> Done {
    drop(unsafe { Batch::from_handle(batch.handle()) });
    batch.len();
    Ok(())
}

/// Does not give it back.
pub fn keep_borrow(batch: &Batch, _: u32) -> Done {
    black_box(batch.take_handle());
    Ok(())
}

pub fn payload(batch: &Batch, i: u32) -> Done {
    batch.set_payload(i, &vec![0; 17 << 20]);
    Ok(())
}

/// One byte more than the tests' topics take.
pub fn payload_of_the_topic(batch: &Batch, i: u32) -> Done {
    batch.set_payload(i, &vec![b'x'; (1 << 20) + 1]);
    Ok(())
}

pub fn payloads(batch: &Batch, i: u32) -> Done {
    let payload = vec![0; 1 << 20];
    (0..1000).for_each(|_| batch.set_payload(i, &payload));
    Ok(())
}

pub fn copy(batch: &Batch, _: u32) -> Done {
    (0..1_000_000).for_each(|_| drop(batch.payload_column()));
    Ok(())
}

pub fn headers(batch: &Batch, i: u32) -> Done {
    (0..1_000_000).for_each(|n| batch.set_header(i, &format!("h{n}"), "x"));
    Ok(())
}

pub fn long_header(batch: &Batch, i: u32) -> Done {
    batch.set_header(i, "h", &"x".repeat(20 << 10));
    Ok(())
}

pub fn control_header(batch: &Batch, i: u32) -> Done {
    batch.set_header(i, "h", "x\r\ninjected: yes");
    Ok(())
}

pub fn long_key(batch: &Batch, i: u32) -> Done {
    batch.set_key(i, Some(&"k".repeat(1 << 20)));
    Ok(())
}

pub fn media_type(batch: &Batch, i: u32) -> Done {
    batch.set_content_type(i, "text/plain\r\ninjected: yes");
    Ok(())
}

/// Asks for what is not there, by names as long as its memory.
pub fn long_names(batch: &Batch, i: u32) -> Done {
    let name = "n".repeat(8 << 20);
    (0..1000).for_each(|_| drop((batch.header(i, &name), batch.header_column(&name))));
    Ok(())
}

pub fn emit(batch: &Batch, i: u32) -> Done {
    batch.emit(i, "elsewhere", None, b"{}", &[]);
    Ok(())
}

pub fn emits(batch: &Batch, i: u32) -> Done {
    (0..1_000_000).for_each(|_| batch.emit(i, "allowed", None, b"{}", &[]));
    Ok(())
}

pub fn rejects(batch: &Batch, i: u32) -> Done {
    let why = "x".repeat(10_000);
    (0..1000).for_each(|_| batch.reject(i, &why, &why, Some(&why)));
    Ok(())
}

pub fn log(_: &Batch, _: u32) -> Done {
    (0..100_000_000).for_each(|_| log::write(Level::Error, "again and again"));
    Ok(())
}

pub fn print(_: &Batch, _: u32) -> Done {
    (0..100_000_000).for_each(|_| println!("again and again"));
    Ok(())
}

pub fn forged_log(_: &Batch, _: u32) -> Done {
    log::write(Level::Info, "fine\n2026-01-01T00:00:00Z ERROR sluice: all is lost\u{1b}[31m");
    Ok(())
}

pub fn file(_: &Batch, _: u32) -> Done {
    drop(std::fs::read("/etc/passwd").map_err(|e| panic!("no file: {e}")));
    Ok(())
}

pub fn net(_: &Batch, _: u32) -> Done {
    drop(std::net::TcpStream::connect("127.0.0.1:1").map_err(|e| panic!("no net: {e}")));
    Ok(())
}

/// Nothing of the broker's is there to be read.
pub fn env(_: &Batch, _: u32) -> Done {
    assert!(std::env::vars().next().is_none() && std::env::args().next().is_none());
    Ok(())
}

pub fn kv_key(batch: &Batch, i: u32) -> Done {
    kv::set(batch, i, &"k".repeat(1 << 20), b"v", None);
    Ok(())
}

pub fn kv_value(batch: &Batch, i: u32) -> Done {
    kv::set(batch, i, "k", &vec![1; 64 * 1024 + 1], None);
    Ok(())
}

pub fn kv_sets(batch: &Batch, i: u32) -> Done {
    for n in 0_u64.. {
        kv::set(batch, i, &n.to_string(), b"v", Some(u64::MAX));
    }
    Ok(())
}

/// For the sake of a message that the batch has not.
pub fn kv_index(batch: &Batch, _: u32) -> Done {
    kv::delete(batch, 4096, "k");
    Ok(())
}

pub fn figures(_: &Batch, _: u32) -> Done {
    for nonsense in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
        metrics::set("gauge", nonsense);
        metrics::observe("histogram", nonsense);
        metrics::observe("gauge", nonsense);
    }
    metrics::add("counter", u64::MAX);
    metrics::add("counter", u64::MAX);
    Ok(())
}

pub fn figure_names(_: &Batch, _: u32) -> Done {
    for n in 0..10_000 {
        metrics::add(&format!("n{n}"), 1);
        metrics::add(&format!("N {n}\n"), 1);
    }
    metrics::set(&"x".repeat(1 << 20), 1.0);
    Ok(())
}

pub fn schema_late(_: &Batch, _: u32) -> Done {
    black_box(schemas::get("order"));
    Ok(())
}
