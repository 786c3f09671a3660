//! Lists in pages. Invariant: a page never has more than its limit. Never sorts.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Faults;
use super::wire::Iso;
use crate::window::{WINDOW_MAX, WINDOW_MIN};

/// Items in one page at most, from API.md.
pub const LIMIT_MAX: u64 = 100;
/// The window of figures for which none is asked.
const WINDOW: Duration = Duration::from_secs(3600);

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Items at most: 1 to the route's bound.
    pub limit: u64,
    /// Items left out before.
    pub offset: u64,
}

/// Which part of a list is asked for, where nothing else can be asked.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WindowQuery {
    /// Items at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Items left out before.
    offset: Option<u64>,
}

impl WindowQuery {
    /// Checked.
    pub fn window(self, faults: &mut Faults) -> Option<Window> {
        Window::read(self.limit, self.offset, faults)
    }
}

impl Window {
    /// From `limit` (by default the bound of a list) and `offset` (0).
    pub fn read(limit: Option<u64>, offset: Option<u64>, faults: &mut Faults) -> Option<Window> {
        Window::bounded(limit, offset, LIMIT_MAX, faults)
    }

    /// As [`Window::read`], with the route's own bound.
    pub fn bounded(limit: Option<u64>, offset: Option<u64>, max: u64, faults: &mut Faults) -> Option<Window> {
        let limit = limit.unwrap_or(max.min(LIMIT_MAX));
        if !(1..=max).contains(&limit) {
            faults.push("/limit", format!("is from 1 to {max}"));
            return None;
        }
        Some(Window { limit, offset: offset.unwrap_or(0) })
    }

    /// The part of a whole list, and what the answer says of it.
    pub fn of<T>(self, all: Vec<T>) -> (Vec<T>, Paging) {
        let total = all.len() as u64;
        let skip = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let part = all.into_iter().skip(skip).take(self.limit as usize).collect();
        (part, self.paging(total))
    }

    /// What the answer says of a part of `total` items.
    #[must_use]
    pub fn paging(self, total: u64) -> Paging {
        let has_more = self.offset.saturating_add(self.limit) < total;
        Paging { total, limit: self.limit, offset: self.offset, has_more }
    }
}

/// How far figures look back.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FiguresQuery {
    /// From `PT1M` to `P1D` (`PT1H`): to a full minute, to a full hour where it is longer than one.
    window: Option<Iso>,
}

impl FiguresQuery {
    /// The window, if it is one.
    pub fn window(self, faults: &mut Faults) -> Option<Duration> {
        let window = self.window.map_or(WINDOW, |Iso(window)| window);
        if !(WINDOW_MIN..=WINDOW_MAX).contains(&window) {
            faults.push("/window", "is from PT1M to P1D");
        }
        Some(window)
    }
}

/// What a list says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Paging {
    /// Items in all.
    pub total: u64,
    /// Items asked for at most.
    pub limit: u64,
    /// Items left out before.
    pub offset: u64,
    /// Whether there are more after these.
    pub has_more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_cuts_and_tells_whether_there_is_more() {
        let mut faults = Faults::default();
        let window = Window::read(Some(2), Some(1), &mut faults).unwrap();
        let (part, paging) = window.of(vec![1, 2, 3, 4]);
        assert_eq!(part, [2, 3]);
        assert_eq!(paging, Paging { total: 4, limit: 2, offset: 1, has_more: true });
        let (part, paging) = Window { limit: 5, offset: u64::MAX }.of(vec![1]);
        assert!(part.is_empty() && !paging.has_more);
    }

    #[test]
    fn limits_are_bounded() {
        for bad in [0, 101] {
            let mut faults = Faults::default();
            assert!(Window::read(Some(bad), None, &mut faults).is_none());
            assert!(faults.mentions("/limit"));
        }
    }
}
