//! A word to sleep on until it is rung.
//!
//! ```text
//! bit 0     somebody sleeps, or may
//! bit 1..   counts the rings
//! ```
//!
//! A sleeper sets the bit, looks once more, and sleeps while the word is as it left it. A thread that
//! changes what the sleeper waits for does so by a sequentially consistent change, and then looks at
//! the bit: one of the two sees the other, if the sleeper's look is sequentially consistent, too.
//!
//! A sleeper that wakes does not clear the bit, so a ring may find nobody asleep; it clears the bit then. The clearing
//! also changes the count: otherwise a thread that is about to sleep would fall asleep if the next sleeper set the bit
//! again. Threads that began to sleep before the clearing, on the bit that was set, are woken: all of them, as the next
//! ring finds the bit clear.

use crate::primitive::{AtomicU64, Ordering};

const ASLEEP: u64 = 1;
const RING: u64 = 2;

/// True if somebody sleeps, or may be asleep.
#[inline]
pub fn has_sleepers(word: &AtomicU64) -> bool {
    word.load(Ordering::SeqCst) & ASLEEP != 0
}

/// Announces a sleep. Gives the word on which the caller sleeps, after it has looked once more.
pub fn announce(word: &AtomicU64) -> u64 {
    word.fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP
}

/// Counts a ring, and gives what the word is now. To be followed by [`wake`], or by a ring of
/// another bell.
pub fn count(word: &AtomicU64) -> u64 {
    word.fetch_add(RING, Ordering::SeqCst).wrapping_add(RING)
}

/// Wakes up to `most` sleepers, for a ring that was [counted](count), and says how many it woke. `kernel` wakes up to
/// that many of those that sleep on the word.
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
