//! Whose turn it is: consumers of one group that wait for messages stand in line, and the first of them looks. Invariant:
//! who came first looks first, so none of them starves, and a message wakes one consumer and not all. Never looks itself.
//! Bounded by the requests under way: a line is there as long as somebody stands in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::message::{GroupId, TopicId};

type Cursor = (TopicId, GroupId);

/// All lines.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<Cursor, Arc<Line>>>);

#[derive(Debug)]
struct Line {
    /// One permit, given in the order in which it was asked for.
    first: Semaphore,
    /// More than the last who looked could take: those behind need not wait for each other.
    plenty: AtomicBool,
    standing: AtomicUsize,
}

/// A consumer's place in the line of its group, until it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    turns: &'a Turns,
    cursor: Cursor,
    line: Arc<Line>,
}

/// The right to look. Whoever is next has it when this is dropped.
#[derive(Debug)]
#[must_use = "the turn is over when this is dropped"]
pub struct Turn<'a>(#[expect(dead_code, reason = "held for its end")] SemaphorePermit<'a>);

impl Turns {
    /// Whether somebody waits for the group.
    #[must_use]
    pub fn has_line(&self, cursor: Cursor) -> bool {
        self.0.lock().contains_key(&cursor)
    }

    /// Takes the last place in the line.
    #[must_use]
    pub fn stand(&self, cursor: Cursor) -> Place<'_> {
        let line = {
            let mut lines = self.0.lock();
            let line = lines.entry(cursor).or_insert_with(|| Arc::new(Line::empty()));
            line.standing.fetch_add(1, Ordering::Relaxed);
            Arc::clone(line)
        };
        Place { turns: self, cursor, line }
    }
}

impl Line {
    fn empty() -> Line {
        Line { first: Semaphore::new(1), plenty: AtomicBool::new(false), standing: AtomicUsize::new(0) }
    }
}

impl Place<'_> {
    /// Waits until all who stood before have had their turn.
    pub async fn turn(&self) -> Turn<'_> {
        Turn(self.line.first.acquire().await.expect("a line is never closed"))
    }

    /// Whether the last who looked left some: then a turn is better given on before looking than after it.
    #[must_use]
    pub fn has_plenty(&self) -> bool {
        self.line.plenty.load(Ordering::Relaxed)
    }

    /// What a look has shown.
    pub fn saw(&self, plenty: bool) {
        self.line.plenty.store(plenty, Ordering::Relaxed);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.turns.0.lock();
        // Under the lock, under which others take their places.
        if self.line.standing.fetch_sub(1, Ordering::Relaxed) == 1 {
            lines.remove(&self.cursor);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const ORDERS: Cursor = (TopicId(1), GroupId(2));
    const OTHERS: Cursor = (TopicId(1), GroupId(3));

    #[tokio::test]
    async fn who_came_first_has_the_first_turn() {
        let turns = Turns::default();
        let places: Vec<Place<'_>> = (0..3).map(|_| turns.stand(ORDERS)).collect();
        let first = places[0].turn().await;
        let mut second = places[1].turn().boxed();
        let mut third = places[2].turn().boxed();
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none(), "asked first, but not first in line");
        let turn = second.as_mut().now_or_never().expect("it is the second's turn");
        drop(turn);
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_leaves_keeps_nobody_waiting() {
        let turns = Turns::default();
        let places: Vec<Place<'_>> = (0..3).map(|_| turns.stand(ORDERS)).collect();
        let first = places[0].turn().await;
        let (mut second, mut third) = (places[1].turn().boxed(), places[2].turn().boxed());
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(second);
        drop(first);
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_line_is_of_one_group_and_ends_with_the_last_who_stands_in_it() {
        let turns = Turns::default();
        let (one, other) = (turns.stand(ORDERS), turns.stand(OTHERS));
        let turn = one.turn().await;
        assert!(other.turn().now_or_never().is_some());
        drop(other);
        assert!(turns.has_line(ORDERS) && !turns.has_line(OTHERS));
        one.saw(true);
        let another = turns.stand(ORDERS);
        assert!(another.has_plenty());
        drop(another);
        assert!(turns.has_line(ORDERS));
        drop(turn);
        drop(one);
        assert!(!turns.has_line(ORDERS));
        assert!(!turns.stand(ORDERS).has_plenty(), "a new line knows nothing");
    }
}
