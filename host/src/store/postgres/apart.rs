//! What is due is done for all topics at once, and topic by topic where that fails. Invariant: a topic that somebody holds for long, or
//! that is damaged, keeps its own work waiting, for some seconds at a time, and nobody else's; those that have not failed lately come
//! first. Decides nothing about what is due.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::Shared;
use super::sql::topic_id;
use crate::store::StoreError;
use crate::telemetry::Stopwatch;

/// How long a topic is set aside.
const ASIDE_FOR: Duration = Duration::from_secs(10);
/// For how long it is remembered that one was.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// How long one call goes on topic by topic: what else is due waits for that. At least one is tried.
pub(super) const ONE_BY_ONE_MAX: Duration = Duration::from_secs(3);

/// Work that is due, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// Scheduled messages.
    Due,
    /// Leases that are past their deadline.
    Ended,
    /// Keys whose window has passed.
    Keys,
}

/// Which topics something is done for.
pub(super) struct Topics {
    /// This one alone.
    pub only: Option<i32>,
    /// Without these.
    pub but: Vec<i32>,
}

/// What came of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    All,
    /// There is more.
    More,
    /// Another broker is at it.
    Elsewhere,
}

struct Failed {
    since: Stopwatch,
    times: u32,
}

/// Topics that are set aside, and those that were.
#[derive(Default)]
pub(super) struct Aside(HashMap<(Part, i32), Failed>);

impl Aside {
    /// Those that are left out of a part now.
    pub fn of(&mut self, part: Part) -> Vec<i32> {
        self.0.retain(|_, failed| failed.since.elapsed() < KNOWN_FOR);
        let now = self.0.iter().filter(|((of, _), failed)| *of == part && failed.since.elapsed() < ASIDE_FOR);
        now.map(|((_, topic), _)| *topic).collect()
    }

    pub fn failed(&mut self, part: Part, topic: i32) {
        let failed = self.0.entry((part, topic)).or_insert(Failed { since: Stopwatch::start(), times: 0 });
        (failed.since, failed.times) = (Stopwatch::start(), failed.times + 1);
    }

    fn times(&self, part: Part, topic: i32) -> u32 {
        self.0.get(&(part, topic)).map_or(0, |failed| failed.times)
    }

    /// Whether something is left out now.
    pub fn is_any(&self) -> bool {
        self.0.values().any(|failed| failed.since.elapsed() < ASIDE_FOR)
    }
}

impl Shared {
    /// Does a part for all topics; if that fails, for each that was met by itself.
    pub(super) async fn each_apart(&self, part: Part) -> Result<Done, StoreError> {
        let mut met = BTreeSet::new();
        let all = Topics { only: None, but: self.aside.lock().of(part) };
        let error = match self.part(part, &all, &mut met).await {
            // It is not about a topic, or was bad luck.
            Err(error) if !met.is_empty() && !self.may_repeat(&error) => error,
            done => return done,
        };
        tracing::warn!(%error, "what is due could not be done for all topics at once: it is done one by one");
        let mut topics: Vec<i32> = met.into_iter().collect();
        {
            let aside = self.aside.lock();
            topics.sort_by_key(|topic| (aside.times(part, *topic), *topic));
        }
        let (begun, mut done) = (Stopwatch::start(), Done::All);
        for (nth, topic) in topics.into_iter().enumerate() {
            if nth > 0 && begun.elapsed() >= ONE_BY_ONE_MAX {
                return Ok(Done::More);
            }
            let mut met = BTreeSet::new();
            match self.part(part, &Topics { only: Some(topic), but: Vec::new() }, &mut met).await {
                // Nothing was there that nobody holds.
                Ok(Done::All) if met.is_empty() => {}
                Ok(Done::All) => _ = self.aside.lock().0.remove(&(part, topic)),
                Ok(Done::More) => done = Done::More,
                Ok(Done::Elsewhere) => return Ok(Done::Elsewhere),
                Err(error) if self.may_repeat(&error) => done = Done::More,
                Err(error) if met.is_empty() => return Err(error),
                Err(error) => {
                    let topic_id = topic_id(topic).0;
                    tracing::warn!(%error, topic_id, ?part, "what is due in a topic waits for some seconds; the others go on");
                    self.aside.lock().failed(part, topic);
                }
            }
        }
        Ok(done)
    }

    async fn part(&self, part: Part, topics: &Topics, met: &mut BTreeSet<i32>) -> Result<Done, StoreError> {
        match part {
            Part::Due => self.enter_due(topics, met).await,
            Part::Ended => self.end_expired(topics, met).await,
            // Meets none: each topic has a transaction of its own anyway.
            Part::Keys => self.age_keys(&topics.but).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_set_aside_for_its_own_work_alone() {
        let mut aside = Aside::default();
        aside.failed(Part::Keys, 7);
        assert_eq!((aside.of(Part::Keys), aside.of(Part::Due), aside.is_any()), (vec![7], Vec::new(), true));
        aside.failed(Part::Due, 8);
        aside.failed(Part::Due, 8);
        assert_eq!((aside.of(Part::Due), aside.times(Part::Due, 8), aside.times(Part::Due, 7)), (vec![8], 2, 0));
    }
}
