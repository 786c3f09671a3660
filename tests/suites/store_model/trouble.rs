//! What may be so after trouble. Invariant: as many oracles as there are possible pasts; one that the store's answers
//! contradict goes, and the last one's contradiction is the test's failure.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use sluice::clock::Timestamp;
use sluice::message::TopicId;
use sluice::store::embedded::{OpenError, Torn};
use sluice::store::{LeaseRequest, Leased, Page, StoreError};
use sluice_tests::store_backends::Peek;
use sluice_tests::store_oracle::Oracle;

/// Few pasts stay possible for long: the next look at the store decides.
const ORACLES_MAX: usize = 64;

/// See the module.
pub(super) struct Oracles {
    possible: Vec<Oracle>,
    /// What also may be so after a crash: the last frame whose sync failed is there after all. In the running store it is
    /// not, and the next frame that is written rules it out.
    unless_lost: Vec<Oracle>,
}

impl Oracles {
    pub(super) fn new(oracle: Oracle) -> Oracles {
        Oracles { possible: vec![oracle], unless_lost: Vec::new() }
    }

    /// One of them, for what all agree on, or for picking something to do.
    pub(super) fn one(&self) -> &Oracle {
        &self.possible[0]
    }

    pub(super) fn set_time(&mut self, now: Timestamp) {
        for oracle in self.possible.iter_mut().chain(&mut self.unless_lost) {
            oracle.now = now;
        }
    }

    /// Judges an answer by all; those go that it contradicts.
    pub(super) fn each(&mut self, judge: impl Fn(&mut Oracle)) {
        if let [only] = &mut self.possible[..] {
            judge(only);
            return;
        }
        let mut contradiction = None;
        self.possible.retain_mut(|oracle| match quietly(|| judge(oracle)) {
            Ok(()) => true,
            Err(panic) => {
                contradiction = Some(panic);
                false
            }
        });
        if let (true, Some(contradiction)) = (self.possible.is_empty(), contradiction) {
            resume_unwind(contradiction);
        }
    }

    /// Something was done or not: both may be so.
    pub(super) fn either(&mut self, done: impl Fn(&mut Oracle)) {
        let mut others = self.possible.clone();
        others.iter_mut().for_each(done);
        self.possible.append(&mut others);
        assert!(self.possible.len() <= ORACLES_MAX, "the store's answers decide nothing");
    }

    /// Something was not done, unless the store is opened again before it writes anything more.
    pub(super) fn unless_lost(&mut self, done: impl Fn(&mut Oracle)) {
        self.unless_lost = self.possible.clone();
        self.unless_lost.iter_mut().for_each(done);
    }

    /// What was granted is not written, so it does not rule out what may be there after a crash.
    pub(super) fn granted(&mut self, request: &LeaseRequest, granted: &Leased) {
        self.unless_lost.iter_mut().for_each(|oracle| oracle.lease_unseen(request, granted));
    }

    pub(super) fn reopen(&mut self, crashed: bool) {
        self.possible.iter_mut().for_each(|oracle| oracle.reopen(crashed));
        // Its own notes were never written, however the store was closed.
        self.unless_lost.iter_mut().for_each(|oracle| oracle.reopen(true));
        self.possible.append(&mut self.unless_lost);
        assert!(self.possible.len() <= ORACLES_MAX, "the store's answers decide nothing");
    }
}

/// Runs what may panic as a matter of course.
fn quietly(what: impl FnOnce()) -> std::thread::Result<()> {
    thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) } }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(what));
    QUIET.set(false);
    result
}

/// A store over a flipped bit told of damage in that file, or read what is there; never anything else.
pub(super) fn judge_peek(peek: &Peek, pages: &[(TopicId, Page)], torn: Option<&Torn>) {
    let told = format!("a bit was flipped in {} at byte {}", peek.path.display(), peek.offset);
    let opened = match &peek.found {
        Err(OpenError::Damaged { file, .. } | OpenError::OtherFormat { file, .. }) => {
            assert!(peek.path.ends_with(file), "{told}, and {file} was blamed");
            return;
        }
        Err(error) => panic!("{told}: {error}"),
        Ok(opened) => opened,
    };
    if opened.torn.as_ref() != torn {
        // In the last frame it can't be told from a frame that was never finished; what was cut off is saved and named.
        let cut = opened.torn.as_ref().unwrap_or_else(|| panic!("{told}, and a torn end healed"));
        assert!(peek.path.ends_with(&cut.file) && cut.offset <= peek.offset, "{told}, and was cut off: {cut:?}");
        return;
    }
    for (topic, page) in pages {
        match &opened.pages[topic] {
            Ok(read) => assert_eq!(read.messages, page.messages, "{told}"),
            Err(StoreError::Damaged { file, .. }) => {
                assert!(peek.path.ends_with(file), "{told}, and {file} was blamed");
            }
            Err(error) => panic!("{told}: {error}"),
        }
    }
}
