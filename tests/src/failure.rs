//! Why a test is failing, for who prints much after it was said. Invariant: what a thread panicked with last is told by that
//! thread; the usual message is printed as ever.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static WHY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Remembers, from now on, what each thread panics with.
pub(crate) fn remember() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            WHY.set(Some(panicked.to_string()));
            usual(panicked);
        }));
    });
}

/// What this thread panicked with.
pub(crate) fn why() -> Option<String> {
    WHY.take()
}
