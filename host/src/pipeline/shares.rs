//! Shares of the threads that run plugins, by the prefix of topics' names. Invariant: topics of a quota together never hold more
//! threads of a kind than its share, and where there is room for one, it is kept for the one that has waited for longest. Never
//! takes a batch.

use std::collections::VecDeque;

use crate::catalog::model::Scope;
use crate::config::{PluginQuota, longest_prefix};

use super::queue::{QueueLimits, Runs};
use super::quotas::{Of, QuotaGauges, QuotaMetrics};

/// The quota of a topic, by its place among the shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota(usize);

/// See the module.
#[derive(Debug)]
pub struct Shares(Vec<Share>);

#[derive(Debug)]
struct Share {
    prefix: String,
    quick: Places,
    slow: Places,
    gauges: QuotaGauges,
}

/// Threads of one kind.
#[derive(Debug, Default)]
struct Places {
    /// None: as many as there are.
    at_most: Option<usize>,
    held: usize,
    /// Scopes that have their turn again, each with a place that is kept for it until then: whoever comes meanwhile is behind.
    promised: Vec<Scope>,
    /// Scopes that found no room: they are out of the others' way until there is some. So there is none while there are any.
    parked: VecDeque<Scope>,
}

impl Places {
    fn has_room(&self) -> bool {
        self.at_most.is_none_or(|at_most| self.held + self.promised.len() < at_most)
    }
}

impl Shares {
    /// Of these quotas.
    #[must_use]
    pub fn new(quotas: &[PluginQuota], limits: &QueueLimits, metrics: &QuotaMetrics) -> Shares {
        let share = |quota: &PluginQuota| {
            let places = |runs| {
                let at_most = quota.share.map(|share| threads(share, limits.threads(runs)));
                Places { at_most, ..Places::default() }
            };
            let (quick, slow) = (places(Runs::Quick), places(Runs::Slow));
            let gauges = metrics.of(&quota.prefix);
            if let (Some(quick), Some(slow)) = (quick.at_most, slow.at_most) {
                metrics.limit(&quota.prefix, Of::Threads, (quick + slow) as u64);
            }
            Share { prefix: quota.prefix.clone(), quick, slow, gauges }
        };
        Shares(quotas.iter().map(share).collect())
    }

    /// The quota that a topic of this name is under.
    #[must_use]
    pub fn quota(&self, topic: &str) -> Option<Quota> {
        longest_prefix(self.0.iter().enumerate().map(|(at, share)| (share.prefix.as_str(), Quota(at))), topic)
    }

    /// Whether one more batch of `scope` may run.
    #[must_use]
    pub fn has_room(&self, quota: Option<Quota>, runs: Runs, scope: Scope) -> bool {
        let Some(quota) = quota else { return true };
        let places = self.places(quota, runs);
        places.promised.contains(&scope) || places.has_room()
    }

    /// So many of its messages wait now, and waited before.
    pub fn wait(&self, quota: Option<Quota>, messages: usize, before: usize) {
        if let Some(Quota(at)) = quota {
            let count = |messages: usize| i64::try_from(messages).unwrap_or(i64::MAX);
            self.0[at].gauges.waiting.add(count(messages) - count(before));
        }
    }

    /// A batch of `scope` begins, in the place that was kept for it if one was.
    pub fn begins(&mut self, quota: Option<Quota>, runs: Runs, scope: Scope) {
        if let Some(quota) = quota {
            let places = self.places_mut(quota, runs);
            places.promised.retain(|promised| *promised != scope);
            places.held += 1;
            self.0[quota.0].gauges.threads.inc();
        }
    }

    /// One of its batches has ended.
    pub fn ends(&mut self, quota: Option<Quota>, runs: Runs) {
        if let Some(quota) = quota {
            self.places_mut(quota, runs).held -= 1;
            self.0[quota.0].gauges.threads.dec();
        }
    }

    /// Puts a scope aside that finds no room.
    pub fn park(&mut self, quota: Option<Quota>, runs: Runs, scope: Scope) {
        if let Some(quota) = quota {
            self.places_mut(quota, runs).parked.push_back(scope);
        }
    }

    /// The scope waits for no place any more, and none is kept for it.
    pub fn leaves(&mut self, quota: Option<Quota>, runs: Runs, scope: Scope) {
        if let Some(quota) = quota {
            let places = self.places_mut(quota, runs);
            places.parked.retain(|parked| *parked != scope);
            places.promised.retain(|promised| *promised != scope);
        }
    }

    /// The scope that has been aside for longest, if there is room for it now; that is kept for it.
    pub fn wake(&mut self, quota: Option<Quota>, runs: Runs) -> Option<Scope> {
        let places = self.places_mut(quota?, runs);
        let scope = if places.has_room() { places.parked.pop_front()? } else { return None };
        places.promised.push(scope);
        Some(scope)
    }

    fn places(&self, Quota(at): Quota, runs: Runs) -> &Places {
        match runs {
            Runs::Quick => &self.0[at].quick,
            Runs::Slow => &self.0[at].slow,
        }
    }

    fn places_mut(&mut self, Quota(at): Quota, runs: Runs) -> &mut Places {
        match runs {
            Runs::Quick => &mut self.0[at].quick,
            Runs::Slow => &mut self.0[at].slow,
        }
    }
}

/// The share of so many threads: rounded down, and at least one, or nothing would ever run.
fn threads(share: f64, of: usize) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share is within 0 and 1, threads are few"
    )]
    // 0.29 * 100 is a little less than 29.
    let threads = (share * of as f64 + 1e-9) as usize;
    threads.clamp(1, of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down_and_never_nothing() {
        assert_eq!(threads(0.29, 100), 29, "a fraction that binary numbers do not have");
        let rows = [(0.25, 9, 2), (0.25, 3, 1), (0.01, 9, 1), (1.0, 3, 3), (0.5, 3, 1), (0.5, 4, 2)];
        for (share, of, expected) in rows {
            assert_eq!(threads(share, of), expected, "{share} of {of}");
        }
    }
}
