//! Refusals on demand: so that a test can see what each operation does if there is no memory at
//! each place in turn. Consulted only on rare paths.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What is refused from some time on.
pub(crate) struct Refusal(
    /// How many more requests are granted, plus one; 0 to grant all.
    AtomicUsize,
);

/// Memory that a pool asks the kernel for.
pub(crate) static COMMITS: Refusal = Refusal(AtomicUsize::new(0));
/// Blocks of guarded pools.
pub(crate) static BLOCKS: Refusal = Refusal(AtomicUsize::new(0));

impl Refusal {
    /// Grants `granted` more requests, or all.
    pub(crate) fn after(&self, granted: Option<usize>) {
        self.0
            .store(granted.map_or(0, |n| n + 1), Ordering::Relaxed);
    }

    /// True if this request is refused.
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
