//! What a record says about time. Invariant: a time is the broker's word, or a bound that its clock can't have passed (it
//! never runs ahead of the one that the tests move); what it showed before it was killed says nothing of what it shows
//! after, but what was due then is due for good. One rule a function.

use super::judge::Facts;
use super::{Entry, Moment};

/// Every promise about time that was broken, in a sentence each.
pub(super) fn violations(facts: &Facts, entries: &[Entry], found: &mut Vec<String>) {
    let kills = Kills::of(entries);
    not_early(facts, &kills, found);
    not_expired(facts, found);
    not_after_ack(facts, entries, &kills, found);
    no_late_ack(entries, found);
    never_backwards(entries, found);
}

/// When the broker was killed, and how far its clock may have been by then.
struct Kills(Vec<(Moment, i64)>);

impl Kills {
    fn of(entries: &[Entry]) -> Kills {
        let kill = |(at, entry): (Moment, &Entry)| match entry {
            Entry::Killed { by_ms } => Some((at, *by_ms)),
            _ => None,
        };
        Kills(entries.iter().enumerate().filter_map(kill).collect())
    }

    /// How far the clocks of those that were killed before this moment had come.
    fn reached(&self, before: Moment) -> i64 {
        self.0.iter().filter(|(at, _)| *at < before).map(|(_, by)| *by).max().unwrap_or(i64::MIN)
    }

    fn last_before(&self, moment: Moment) -> Option<Moment> {
        self.0.iter().map(|(at, _)| *at).rfind(|at| *at < moment)
    }
}

fn not_early(facts: &Facts, kills: &Kills, found: &mut Vec<String>) {
    for (tag, life) in &facts.lives {
        let Some(due) = life.terms.due_ms else { continue };
        for handed in &life.handed {
            if let Some(times) = handed.times
                && times.to_ms < due
                && kills.reached(handed.at) < due
            {
                found.push(format!("{tag} was delivered at {} and due at {due}: too early", times.to_ms));
            }
        }
    }
}

fn not_expired(facts: &Facts, found: &mut Vec<String>) {
    for (tag, life) in &facts.lives {
        let Some(expires) = life.terms.expires_ms else { continue };
        for times in life.handed.iter().filter_map(|handed| handed.times) {
            if times.from_ms >= expires {
                found.push(format!("{tag} was delivered at {} and had expired at {expires}", times.from_ms));
            }
        }
    }
}

/// A delivery that arrived after the ack's answer may have begun before it; not if it says itself that it began later. A
/// stream from before a kill may still be read after it, when another clock counts.
fn not_after_ack(facts: &Facts, entries: &[Entry], kills: &Kills, found: &mut Vec<String>) {
    for (tag, life) in &facts.lives {
        let Some(acked) = life.ack_confirmed else { continue };
        let Entry::AckConfirmed { by_ms: Some(by_ms), .. } = &entries[acked] else { continue };
        let since = kills.last_before(acked);
        for handed in
            life.handed.iter().filter(|handed| handed.at > acked && since.is_none_or(|kill| handed.began > kill))
        {
            if handed.times.is_some_and(|times| times.from_ms > *by_ms) && kills.last_before(handed.at) == since {
                found.push(format!("{tag} was delivered at {:?}, after its ack confirmed by {by_ms}", handed.times));
            }
        }
    }
}

/// An ack under a lease is refused once the broker's clock has shown that its deadline is over.
fn no_late_ack(entries: &[Entry], found: &mut Vec<String>) {
    let mut shown = i64::MIN;
    let mut late = std::collections::BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Clock { ms } => shown = shown.max(*ms),
            Entry::Killed { .. } => shown = i64::MIN,
            Entry::AckAsked { tag, until_ms } => {
                late.remove(tag);
                if let Some(until) = until_ms.filter(|until| *until < shown) {
                    late.insert(tag, (until, shown));
                }
            }
            Entry::AckConfirmed { tag, .. } => {
                if let Some((until, shown)) = late.remove(tag) {
                    found.push(format!("{tag} was acked at {shown} under a lease that had ended at {until}"));
                }
            }
            _ => {}
        }
    }
}

/// The one who asks for the time waits for each answer, so they come in the order of the broker's clock.
fn never_backwards(entries: &[Entry], found: &mut Vec<String>) {
    let mut shown = i64::MIN;
    for entry in entries {
        match entry {
            Entry::Clock { ms } if *ms < shown => found.push(format!("the clock went backwards from {shown} to {ms}")),
            Entry::Clock { ms } => shown = *ms,
            Entry::Killed { .. } => shown = i64::MIN,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{History, Promise, Terms, Times};

    fn at(ms: i64) -> Times {
        Times { from_ms: ms, to_ms: ms, until_ms: Some(ms + 100) }
    }

    fn accept(history: &History, tag: &str, terms: Terms) {
        history.publish_on_terms_asked(tag, None, terms);
        history.publish_accepted(tag, tag);
    }

    fn deliver(history: &History, tag: &str, times: Times) {
        history.delivered_at(tag, tag, history.consume_began(), times);
    }

    /// A stream that was opened before all.
    fn stream(history: &History, tag: &str, times: Times) {
        history.delivered_at(tag, tag, 0, times);
    }

    fn violations(story: impl Fn(&History)) -> Vec<String> {
        let history = History::of(Promise::AtLeastOnce);
        story(&history);
        history.violations()
    }

    #[test]
    fn what_keeps_to_the_clock_breaks_nothing() {
        let found = violations(|history| {
            accept(history, "a", Terms { due_ms: Some(1000), expires_ms: Some(1200), priority: 0 });
            deliver(history, "a", at(1000));
            // Its lease is over by the broker's clock.
            deliver(history, "a", at(1100));
            history.clock_shown(1150);
            history.ack_asked_until("a", 1200);
            history.ack_confirmed_by("a", 1190);
            // Granted before the ack, and on its way for long.
            stream(history, "a", Times { until_ms: Some(1000), ..at(999 + 1) });
            // Never delivered, as it expired.
            accept(history, "b", Terms { expires_ms: Some(1200), ..Terms::default() });
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_clock_that_is_set_back_over_a_restart_is_believed() {
        let found = violations(|history| {
            accept(history, "a", Terms { due_ms: Some(1000), ..Terms::default() });
            history.clock_shown(1500);
            let ending = history.leases_may_end();
            history.killed(1500);
            history.leases_ended(ending);
            history.clock_shown(400);
            // It was due before.
            deliver(history, "a", at(500));
            history.ack_asked_until("a", 600);
            history.ack_confirmed_by("a", 550);
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_found() {
        type Story = fn(&History);
        let stories: &[(&str, Story)] = &[
            ("too early", |history| {
                accept(history, "a", Terms { due_ms: Some(1000), ..Terms::default() });
                deliver(history, "a", at(999));
            }),
            ("too early", |history| {
                accept(history, "a", Terms { due_ms: Some(1000), ..Terms::default() });
                history.killed(999);
                deliver(history, "a", at(500));
            }),
            ("had expired", |history| {
                accept(history, "a", Terms { expires_ms: Some(1000), ..Terms::default() });
                deliver(history, "a", at(1000));
            }),
            ("after its ack", |history| {
                history.consume_began();
                accept(history, "a", Terms::default());
                stream(history, "a", at(1000));
                history.ack_asked("a");
                history.ack_confirmed_by("a", 1050);
                stream(history, "a", at(1100));
            }),
            ("under a lease that had ended", |history| {
                accept(history, "a", Terms::default());
                deliver(history, "a", at(1000));
                history.clock_shown(1101);
                history.ack_asked_until("a", 1100);
                history.ack_confirmed_by("a", 1200);
            }),
            ("leased twice", |history| {
                accept(history, "a", Terms::default());
                deliver(history, "a", at(1000));
                deliver(history, "a", at(1099));
            }),
            ("went backwards", |history| {
                history.clock_shown(1000);
                history.clock_shown(999);
            }),
        ];
        for (expected, story) in stories {
            let found = violations(story);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
    }
}
