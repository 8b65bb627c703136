//! Refusals on demand: so that a test can see what each operation does when there is no memory at
//! each place in turn. Asked only where something is seldom anyway.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What is refused from some time on.
pub(crate) struct Refusal(
    /// How many more are granted, plus one; 0 for all.
    AtomicUsize,
);

/// Memory that a pool asks the kernel for.
pub(crate) static COMMITS: Refusal = Refusal(AtomicUsize::new(0));
/// Blocks of guarded pools.
pub(crate) static BLOCKS: Refusal = Refusal(AtomicUsize::new(0));

impl Refusal {
    /// Grants so many more, or all.
    pub(crate) fn after(&self, granted: Option<usize>) {
        self.0
            .store(granted.map_or(0, |n| n + 1), Ordering::Relaxed);
    }

    /// True if this one is refused.
    #[inline]
    pub(crate) fn refuses(&self) -> bool {
        match self.0.load(Ordering::Relaxed) {
            0 => false,
            1 => true,
            n => {
                self.0.store(n - 1, Ordering::Relaxed);
                false
            }
        }
    }
}
