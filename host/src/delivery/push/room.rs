//! How many webhooks are under way on the whole broker. Invariant: never more than its bound; an endpoint that has none
//! under way comes before those that have some, and each takes at most as many as are left over, so that however many
//! endpoints are slow, there is room for one that is not. Never sends.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Notify;

/// The room that all endpoints share.
pub struct Room {
    max: usize,
    state: Mutex<State>,
    waiting: IntGauge,
}

#[derive(Default)]
struct State {
    used: usize,
    /// Have nothing under way: the next place is handed to the one that waits longest.
    first: VecDeque<Arc<Chair>>,
    /// Have so many under way, and are told when there is more: one for each place that is free again, the first for whom it is
    /// enough. The others ask again when one of their own has ended.
    more: VecDeque<(Arc<Chair>, usize)>,
}

/// One endpoint, as the room knows it.
struct Chair {
    called: Notify,
    /// Only looked at and changed under the room's lock.
    wait: Mutex<Waiting>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    No,
    First,
    More,
    /// A place was kept for it.
    Granted,
}

impl Waiting {
    fn is_in_line(self) -> bool {
        matches!(self, Waiting::First | Waiting::More)
    }
}

/// An endpoint's access to the room.
pub struct Seat {
    room: Arc<Room>,
    chair: Arc<Chair>,
}

/// The right to have one webhook under way; given back when dropped.
#[must_use = "a place that is dropped is free again"]
pub struct Place {
    room: Arc<Room>,
}

impl Room {
    /// Room for so many, at least one; `waiting` shows how many endpoints wait for it.
    #[must_use]
    pub fn new(max: usize, waiting: IntGauge) -> Arc<Room> {
        Arc::new(Room { max: max.max(1), state: Mutex::default(), waiting })
    }

    /// Access for one more endpoint.
    #[must_use]
    pub fn seat(self: &Arc<Room>) -> Seat {
        let chair = Arc::new(Chair { called: Notify::new(), wait: Mutex::new(Waiting::No) });
        Seat { room: Arc::clone(self), chair }
    }

    fn release(&self) {
        let mut state = self.state.lock();
        match state.first.pop_front() {
            Some(next) => {
                *next.wait.lock() = Waiting::Granted;
                next.called.notify_one();
            }
            None => {
                state.used -= 1;
                let left_over = self.max - state.used;
                let enough = state.more.iter().position(|(_, held)| *held < left_over);
                if let Some((next, _)) = enough.and_then(|at| state.more.remove(at)) {
                    *next.wait.lock() = Waiting::No;
                    next.called.notify_one();
                }
            }
        }
        self.show(&state);
    }

    fn show(&self, state: &State) {
        self.waiting.set(i64::try_from(state.first.len() + state.more.len()).unwrap_or(i64::MAX));
    }
}

impl Seat {
    /// A place, for an endpoint that has `held` of them. Without one it waits in line, and [`Seat::called`] tells when to
    /// ask again.
    pub fn enter(&self, held: usize) -> Option<Place> {
        let room = &self.room;
        let mut state = room.state.lock();
        let mut wait = self.chair.wait.lock();
        match *wait {
            Waiting::Granted => {
                *wait = Waiting::No;
                return Some(Place { room: Arc::clone(room) });
            }
            // As many as are left over, and no more: with `n` endpoints that want all, each has one part in `n + 1`, and one
            // part is free (Choudhury and Hahne, dynamic thresholds of shared buffers, 1998).
            _ if held < room.max - state.used => {
                if wait.is_in_line() {
                    state.forget(&self.chair);
                }
                *wait = Waiting::No;
                state.used += 1;
            }
            Waiting::First => return None,
            Waiting::More if held > 0 => {
                let own = state.more.iter_mut().find(|(chair, _)| Arc::ptr_eq(chair, &self.chair));
                own.into_iter().for_each(|(_, noted)| *noted = held);
                return None;
            }
            // What it had has ended: it has nothing now, and its turn among those.
            Waiting::More | Waiting::No => {
                state.forget(&self.chair);
                let chair = Arc::clone(&self.chair);
                if held == 0 {
                    *wait = Waiting::First;
                    state.first.push_back(chair);
                } else {
                    *wait = Waiting::More;
                    state.more.push_back((chair, held));
                }
                room.show(&state);
                return None;
            }
        }
        room.show(&state);
        Some(Place { room: Arc::clone(room) })
    }

    /// Whether it waits in line.
    #[must_use]
    pub fn waits(&self) -> bool {
        let _state = self.room.state.lock();
        self.chair.wait.lock().is_in_line()
    }

    /// There is nothing to send any more: what was kept for it goes to others.
    pub fn leave(&self) {
        let mut state = self.room.state.lock();
        let before = std::mem::replace(&mut *self.chair.wait.lock(), Waiting::No);
        match before {
            Waiting::No => return,
            Waiting::First | Waiting::More => state.forget(&self.chair),
            Waiting::Granted => {}
        }
        self.room.show(&state);
        drop(state);
        if before == Waiting::Granted {
            self.room.release();
        }
    }

    /// Until there may be a place.
    pub async fn called(&self) {
        self.chair.called.notified().await;
    }
}

impl State {
    fn forget(&mut self, chair: &Arc<Chair>) {
        self.first.retain(|other| !Arc::ptr_eq(other, chair));
        self.more.retain(|(other, _)| !Arc::ptr_eq(other, chair));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.release();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn room(max: usize) -> Arc<Room> {
        Room::new(max, IntGauge::new("waiting", "waiting").unwrap())
    }

    /// As many places as a seat that has nothing gets.
    fn fill(seat: &Seat) -> Vec<Place> {
        let mut places = Vec::new();
        while let Some(place) = seat.enter(places.len()) {
            places.push(place);
        }
        places
    }

    fn used(room: &Room) -> usize {
        room.state.lock().used
    }

    #[test]
    fn each_takes_what_is_left_over_and_leaves_as_much() {
        let room = room(100);
        let seats: Vec<Seat> = (0..4).map(|_| room.seat()).collect();
        let first = fill(&seats[0]);
        assert_eq!(first.len(), 50);
        let second = fill(&seats[1]);
        assert_eq!((second.len(), used(&room)), (25, 75));
        assert_eq!(room.waiting.get(), 2);
        drop((first, second));
        assert_eq!(used(&room), 0);
    }

    #[test]
    fn whoever_has_nothing_is_handed_the_next_place_in_turn() {
        let room = room(1);
        let seats: Vec<Seat> = (0..3).map(|_| room.seat()).collect();
        let place = seats[0].enter(0).unwrap();
        assert!(seats[1].enter(0).is_none() && seats[2].enter(0).is_none() && seats[1].enter(0).is_none());
        drop(place);
        assert!(seats[1].called().now_or_never().is_some() && seats[2].called().now_or_never().is_none());
        assert!(seats[0].enter(0).is_none(), "it was there first");
        let place = seats[1].enter(0).unwrap();
        drop(place);
        assert!(seats[2].enter(0).is_some());
    }

    #[test]
    fn what_was_kept_for_one_that_needs_it_no_more_goes_on() {
        let room = room(1);
        let seats: Vec<Seat> = (0..4).map(|_| room.seat()).collect();
        let place = seats[0].enter(0).unwrap();
        seats.iter().skip(1).for_each(|seat| assert!(seat.enter(0).is_none()));
        seats[1].leave();
        drop(place);
        seats[2].leave();
        assert!(seats[3].called().now_or_never().is_some());
        drop(seats);
        assert_eq!((used(&room), room.waiting.get()), (0, 0));
    }

    #[test]
    fn who_has_some_is_called_when_there_is_more() {
        let room = room(4);
        let (greedy, other) = (room.seat(), room.seat());
        let first = fill(&greedy);
        let second = fill(&other);
        assert_eq!((first.len(), second.len()), (2, 1));
        drop(first);
        assert!(greedy.called().now_or_never().is_some() && other.called().now_or_never().is_some(), "one a place");
        let _place = greedy.enter(0).unwrap();
        assert!(other.enter(1).is_some());
    }

    #[test]
    fn who_is_called_is_one_for_whom_there_is_enough() {
        let room = room(16);
        let (greedy, modest, holder) = (room.seat(), room.seat(), room.seat());
        // 8 and 4 of 16, and 3 of the 4 that are left.
        let (_many, some) = (fill(&greedy), fill(&modest));
        let others: Vec<Place> = (0..3).map_while(|held| holder.enter(held.min(1))).collect();
        assert_eq!((some.len(), others.len(), used(&room)), (4, 3, 15));
        drop(others);
        assert!(greedy.called().now_or_never().is_none(), "it has 8, and 4 are left over");
        drop(some);
        assert!(greedy.called().now_or_never().is_none(), "it has 8, and 8 are left over");
        assert!(modest.called().now_or_never().is_some());
    }

    proptest! {
        #[test]
        fn it_is_never_more_than_its_bound_and_nothing_is_lost(max in 1_usize..9, steps in prop::collection::vec((0_usize..5, 0_u8..3), 0..200)) {
            let room = room(max);
            let seats: Vec<Seat> = (0..5).map(|_| room.seat()).collect();
            let mut held: Vec<Vec<Place>> = (0..5).map(|_| Vec::new()).collect();
            for (who, what) in steps {
                match what {
                    0 => {
                        let place = seats[who].enter(held[who].len());
                        held[who].extend(place);
                    }
                    1 => drop(held[who].pop()),
                    _ => seats[who].leave(),
                }
                prop_assert!(held.iter().map(Vec::len).sum::<usize>() <= used(&room) && used(&room) <= max);
            }
            drop((seats, held));
            prop_assert_eq!((used(&room), room.waiting.get()), (0, 0));
        }
    }
}
