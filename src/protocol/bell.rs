//! A word to sleep on until it is rung.
//!
//! ```text
//! bit 0     somebody sleeps, or may
//! bit 1..   counts the rings
//! ```
//!
//! A sleeper sets the bit, looks once more, and sleeps while the word is as it left it. Who changes
//! what it waits for does so by a sequentially consistent change and then looks at the bit: one of the
//! two sees the other.
//!
//! Nobody clears the bit when it wakes, so a ring may find nobody asleep, and clears it then; and counts that, or who is
//! about to sleep would if the next sleeper set the bit again. Who has begun to sleep before, on the bit that was there, is
//! woken: all of them, as a ring that comes next finds no bit.

use crate::primitive::{AtomicU64, Ordering};

const ASLEEP: u64 = 1;
const RING: u64 = 2;

/// True if somebody sleeps, or may.
#[inline]
pub fn has_sleepers(word: &AtomicU64) -> bool {
    word.load(Ordering::SeqCst) & ASLEEP != 0
}

/// What the word is while the caller sleeps, after another look.
pub fn announce(word: &AtomicU64) -> u64 {
    word.fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP
}

/// Counts a ring: what the word is now. To be followed by [`wake`], or by a ring of another bell.
pub fn count(word: &AtomicU64) -> u64 {
    word.fetch_add(RING, Ordering::SeqCst).wrapping_add(RING)
}

/// Wakes so many, for a ring that was [counted](count); how many it were. `kernel` wakes so many of those who sleep on
/// the word.
pub fn wake(word: &AtomicU64, rung: u64, most: u32, kernel: impl Fn(u32) -> usize) -> usize {
    let woken = kernel(most);
    let clears = || {
        let without = (rung & !ASLEEP).wrapping_add(RING);
        word.compare_exchange(rung, without, Ordering::SeqCst, Ordering::Relaxed)
    };
    if woken == 0 && clears().is_ok() {
        return kernel(u32::MAX);
    }
    woken
}
