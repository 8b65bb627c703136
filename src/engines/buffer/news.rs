//! Sleeping until there is something new.

use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::futex;

/// A word to sleep on until there is news.
///
/// ```text
/// bit 0   WAITERS  somebody sleeps, or may
/// bit 1.. how often sleepers were woken
/// ```
#[repr(transparent)]
pub(crate) struct News(AtomicU64);

impl News {
    const WAITERS: u64 = 1;

    pub(super) const fn new() -> Self {
        News(AtomicU64::new(0))
    }

    /// Wakes all sleepers. What they wait for has happened by a sequentially consistent change.
    #[inline]
    pub(super) fn tell(&self) {
        let found = self.0.load(Ordering::SeqCst);
        if found & Self::WAITERS != 0 {
            self.wake(found);
        }
    }

    #[cold]
    fn wake(&self, found: u64) {
        let new = found.wrapping_add(1);
        let _ = self
            .0
            .compare_exchange(found, new, Ordering::SeqCst, Ordering::Relaxed);
        futex::wake(Arena::low_half(&self.0), u32::MAX);
    }

    /// Sleeps until `ready` says so.
    pub(crate) fn wait(&self, arena: Arena, slot: &Slot, ready: impl Fn() -> bool) {
        loop {
            let found = self.0.load(Ordering::SeqCst);
            let waiting = found | Self::WAITERS;
            let announced =
                self.0
                    .compare_exchange(found, waiting, Ordering::SeqCst, Ordering::Relaxed);
            if ready() {
                return;
            }
            if announced.is_ok() {
                let half = Arena::low_half(&self.0);
                lock::sleep(arena, slot, half, waiting as u32, Tag::NOBODY, None);
            }
        }
    }
}
