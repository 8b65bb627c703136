//! Until when a wait goes on.

use std::time::{Duration, Instant};

/// The moment after which a wait gives up, if there is one.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The wait goes on for ever.
    pub(crate) const NEVER: Self = Deadline(None);

    /// The wait gives up after that time; never, if that is beyond the range of the clock.
    #[inline]
    pub(crate) fn after(time: Duration) -> Self {
        Deadline(Instant::now().checked_add(time))
    }

    #[inline]
    pub(crate) fn is_over(self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }

    /// True if more than that time is left.
    #[inline]
    pub(crate) fn leaves(self, time: Duration) -> bool {
        self.0.is_none_or(|end| end > Instant::now() + time)
    }

    /// The time that is left, `most` at most.
    #[inline]
    pub(crate) fn left(self, most: Duration) -> Duration {
        self.0.map_or(most, |end| {
            end.saturating_duration_since(Instant::now()).min(most)
        })
    }
}
