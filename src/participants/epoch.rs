//! Pins: what a thread may still be looking at is not freed.
//!
//! A thread that follows a pointer into the pool that others may unlink shows, in its slot, the
//! epoch at which it started. A thread that unlinks something stamps it with the epoch and advances
//! the epoch; the thing may be freed once every pin shown is later than the stamp.
//!
//! Why that is enough: a pin later than the stamp was read from the epoch after the unlinking, so
//! its owner cannot find the thing any more. If a pin is not shown yet when the pins are read, its
//! owner then looks at a link that is already gone (both sides put a full fence between the two). A
//! dead owner's pin counts until its intent is resolved; a stopped owner's pin delays the freeing
//! of memory, and nothing else.

use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::primitive::Ordering;
use crate::protocol::pins;

/// Starts looking. Looks nest.
#[inline]
pub(crate) fn pin(arena: Arena, slot: &Slot) {
    let depth = slot.pin_depth.load(Ordering::Relaxed);
    slot.pin_depth.store(depth + 1, Ordering::Relaxed);
    if depth == 0 {
        pins::show(&slot.watched.pin, &arena.header().epoch);
    }
}

/// Ends a look.
#[inline]
pub(crate) fn unpin(slot: &Slot) {
    let depth = slot.pin_depth.load(Ordering::Relaxed);
    slot.pin_depth.store(depth - 1, Ordering::Relaxed);
    if depth == 1 {
        pins::hide(&slot.watched.pin);
    }
}

/// The stamp for something that was unlinked just now.
pub(crate) fn stamp(arena: Arena) -> u64 {
    pins::stamp(&arena.header().epoch)
}

/// The oldest epoch since which somebody has been looking; the largest number if nobody is.
/// Whatever was stamped before it is past.
pub(crate) fn oldest(arena: Arena) -> u64 {
    pins::oldest(arena.slots().map(|(_, slot)| &slot.watched.pin))
}

/// True if nobody can still be looking at what has that stamp.
pub(crate) fn is_past(arena: Arena, stamp: u64) -> bool {
    pins::is_past(arena.slots().map(|(_, slot)| &slot.watched.pin), stamp)
}
