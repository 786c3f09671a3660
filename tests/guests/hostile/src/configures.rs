//! What it does in `configure`. Invariant: one function per row of `configures!`. Never sees a message.

use std::hint::black_box;

use crate::log::{self, Level};
use crate::{Done, Error, kv, schemas};

pub fn configure_spin() -> Done {
    let mut n = 0_u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

pub fn configure_panic() -> Done {
    panic!("configured to panic");
}

pub fn configure_bomb() -> Done {
    let mut all = Vec::new();
    loop {
        all.push(black_box(vec![1_u8; 1 << 20]));
    }
}

pub fn configure_recurse() -> Done {
    black_box(deeper(1));
    Ok(())
}

fn deeper(n: u64) -> u64 {
    let there = black_box([n; 64]);
    if black_box(n) == 0 { 0 } else { deeper(n + 1) + there[7] }
}

pub fn configure_refuse() -> Done {
    Err(Error { code: 1, message: format!("no such config{}", "!".repeat(1 << 20)) })
}

pub fn configure_log() -> Done {
    loop {
        log::write(Level::Error, &"again and again ".repeat(1000));
    }
}

pub fn configure_kv() -> Done {
    black_box(kv::get("k"));
    Ok(())
}

pub fn configure_schemas() -> Done {
    for n in 0_u64.. {
        black_box(schemas::get(&format!("s{n}")));
    }
    Ok(())
}
