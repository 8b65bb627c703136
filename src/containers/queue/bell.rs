//! Waking those who sleep until something is pushed, or popped.
//!
//! ```text
//! bit 0     somebody sleeps, or may
//! bit 1..   counts the rings
//! ```
//!
//! A sleeper sets the bit, looks once more, and sleeps while the word is as it left it. Who changes
//! the queue does so by a sequentially consistent exchange and then looks at the bit: one of the two
//! sees the other. (A push is seen from its claim on. Should the element be a moment late, the
//! sleeper's time limit is what it costs.) A ring wakes one. One that finds nobody asleep clears the
//! bit; who is about to sleep then does not, as the word has changed. A ring that died with its
//! ringer costs the sleepers their time limit, `lock::TICK`.

use std::time::Instant;

use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::futex;

const ASLEEP: u64 = 1;
const RING: u64 = 2;

/// Wakes a sleeper, if there is one.
#[inline]
pub(super) fn ring(bell: &AtomicU64) {
    if bell.load(Ordering::SeqCst) & ASLEEP != 0 {
        ring_out(bell, 1);
    }
}

/// Wakes all.
pub(super) fn ring_all(bell: &AtomicU64) {
    ring_out(bell, u32::MAX);
}

#[cold]
fn ring_out(bell: &AtomicU64, count: u32) {
    let rung = bell.fetch_add(RING, Ordering::SeqCst).wrapping_add(RING);
    if futex::wake(Arena::low_half(bell), count) == 0 {
        let _ = bell.compare_exchange(rung, rung & !ASLEEP, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// What the word is while the caller sleeps. To be followed by another look, and then by [`sleep`].
pub(crate) fn announce(bell: &AtomicU64) -> u64 {
    bell.fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP
}

/// Sleeps until a ring since [`announce`], for a short time at most.
pub(super) fn sleep(
    arena: Arena,
    slot: &Slot,
    bell: &AtomicU64,
    announced: u64,
    deadline: Option<Instant>,
) {
    let low = Arena::low_half(bell);
    lock::sleep(arena, slot, low, announced as u32, Tag::NOBODY, deadline);
}

/// Sleeps until a ring of one of several bells since each was [announced](announce), for a short time
/// at most. Beyond 128 bells, the others are looked at after that time.
pub(crate) fn sleep_on_any(bells: &[&AtomicU64], announced: &[u64], deadline: Option<Instant>) {
    let left = deadline.map_or(lock::TICK, |deadline| {
        deadline
            .saturating_duration_since(Instant::now())
            .min(lock::TICK)
    });
    let words: Vec<_> = bells
        .iter()
        .zip(announced)
        .take(futex::WORDS)
        .map(|(bell, &word)| (Arena::low_half(bell), word as u32))
        .collect();
    futex::wait_any(&words, left);
}
