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
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::sync::Here;
use crate::sys::futex;

const ASLEEP: u64 = 1;
const RING: u64 = 2;

/// Wakes a sleeper, if there is one.
#[inline]
pub(super) fn ring(bell: &AtomicU64) {
    if has_sleepers(bell) {
        ring_out(bell, 1);
    }
}

/// True if somebody sleeps, or may.
#[inline]
pub(super) fn has_sleepers(bell: &AtomicU64) -> bool {
    bell.load(Ordering::SeqCst) & ASLEEP != 0
}

/// Wakes all.
pub(super) fn ring_all(bell: &AtomicU64) {
    ring_out(bell, u32::MAX);
}

/// Wakes so many; how many it were.
#[cold]
pub(super) fn ring_out(bell: &AtomicU64, most: u32) -> usize {
    let rung = count(bell);
    wake_some(bell, rung, most)
}

/// Counts a ring: what the word is now. To be followed by [`wake`], or by a ring of another bell.
pub(super) fn count(bell: &AtomicU64) -> u64 {
    bell.fetch_add(RING, Ordering::SeqCst).wrapping_add(RING)
}

/// Wakes a sleeper, for a ring that was [counted](count).
pub(super) fn wake(bell: &AtomicU64, rung: u64) {
    wake_some(bell, rung, 1);
}

fn wake_some(bell: &AtomicU64, rung: u64, most: u32) -> usize {
    let woken = futex::wake(Arena::low_half(bell), most);
    if woken == 0 {
        let _ = bell.compare_exchange(rung, rung & !ASLEEP, Ordering::SeqCst, Ordering::Relaxed);
    }
    woken
}

/// What the word is while the caller sleeps. To be followed by another look, and then by [`sleep`].
pub(crate) fn announce(bell: &AtomicU64) -> u64 {
    bell.fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP
}

/// As [`announce`], and changes the word if the bit was set: so a ring that found nobody asleep
/// before does not clear the bit any more.
pub(super) fn announce_anew(bell: &AtomicU64) -> u64 {
    count(bell);
    announce(bell)
}

/// Sleeps until a ring since [`announce`], or the death of `owner`, for a short time at most.
pub(super) fn sleep(
    here: Here,
    bell: &AtomicU64,
    announced: u64,
    owner: Tag,
    deadline: Option<Instant>,
) {
    let low = Arena::low_half(bell);
    lock::sleep(
        here.arena,
        here.slot,
        low,
        announced as u32,
        owner,
        deadline,
    );
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
