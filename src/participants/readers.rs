//! Which thread reads under which lock: each thread lists in its slot the locks under which it
//! reads.
//!
//! A reader writes only to its own slot, so readers do not slow each other down, and nobody needs
//! to give anything back for a dead one: its list is a dead slot's, which does not count. The cost
//! is the writer's, which looks at the lists of all threads. Why reader and writer cannot miss each
//! other: `protocol::readers`.
//!
//! | killed | leaves |
//! |--------|--------|
//! | anywhere between listing a lock and striking it | an entry in a dead slot, which does not count once its intent is resolved, and is cleared by recovery |

use std::ops::Range;

use crate::layout::arena::Arena;
use crate::participants::deadline::Deadline;
use crate::participants::habit::Looks;
use crate::participants::lock::{self, Exchanged};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, fence};
use crate::protocol::readers;
use crate::sys::futex;

pub(crate) use crate::protocol::readers::NotListed;

fn address(word: &AtomicU64) -> u64 {
    std::ptr::from_ref(word).addr() as u64
}

/// Lists a lock, by its word. What the caller loads from the word from here on is newer than what
/// any writer has seen that does not see the entry.
#[inline]
pub(crate) fn enter(slot: &Slot, word: &AtomicU64) -> Result<(), NotListed> {
    readers::enter(&slot.reading.locks, &slot.reading.limit, address(word)).map(drop)
}

/// Strikes the entry of a lock, and wakes those that wait for that, if there may be any.
#[inline]
pub(crate) fn leave(slot: &Slot, word: &AtomicU64) {
    let Some(entry) = own(slot, word) else {
        return;
    };
    readers::strike(entry);
    // Relaxed: a writer that came this very moment looks again within `lock::TICK`.
    if !Tag::of_word(word.load(Ordering::Relaxed)).is_nobody() {
        futex::wake(Arena::low_half(entry), u32::MAX);
    }
}

/// True if the caller's thread, which has this slot, lists the lock.
#[inline]
pub(crate) fn lists(slot: &Slot, word: &AtomicU64) -> bool {
    own(slot, word).is_some()
}

/// The entry of a lock, if the caller's thread, which has this slot, lists it.
#[inline]
fn own<'a>(slot: &'a Slot, word: &AtomicU64) -> Option<&'a AtomicU64> {
    readers::own(&slot.reading.locks, &slot.reading.limit, address(word))
}

#[inline]
fn used(slot: &Slot) -> impl Iterator<Item = &AtomicU64> {
    readers::used(&slot.reading.locks, &slot.reading.limit)
}

/// Waits until no living thread lists the lock, whose word the caller has taken; until `deadline`
/// at most. False if the time is up.
pub(crate) fn wait_for_all(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    exchanged: Exchanged,
    deadline: Deadline,
) -> bool {
    let lock = address(word);
    readers::before_looking(exchanged);
    arena.slots().all(|(index, other)| {
        used(other).all(|entry| {
            !readers::names(entry, lock) || wait_for(arena, slot, (index, entry), lock, deadline)
        })
    })
}

/// Waits until an entry of another thread is struck. False if the time is up.
#[cold]
fn wait_for(
    arena: Arena,
    slot: &Slot,
    (index, entry): (usize, &AtomicU64),
    lock: u64,
    deadline: Deadline,
) -> bool {
    let (mut looks, mut looked) = (Looks::new(), false);
    loop {
        // The owner is read before the entry: if the entry is a later owner's, that is a reader
        // that withdraws.
        let owner = Tag::new(index, arena.slot(index).state().generation);
        if !readers::names(entry, lock) || lock::is_over(arena, owner) {
            return true;
        }
        if looks.go_on() {
            continue;
        }
        if deadline.is_over() {
            if lock::look_for_parked(arena, owner, &mut looked) {
                continue;
            }
            return false;
        }
        let half = Arena::low_half(entry);
        lock::sleep(arena, slot, half, lock as u32, owner, deadline);
    }
}

/// Clears a dead slot's list. Called by the holder of its life word.
pub(crate) fn forget(slot: &Slot) {
    for entry in &slot.reading.locks {
        entry.store(0, Ordering::Release);
    }
    slot.reading.limit.store(0, Ordering::Release);
}

/// True if anybody lists a lock within the address range.
pub(crate) fn any_within(arena: Arena, range: &Range<usize>) -> bool {
    fence(Ordering::SeqCst);
    arena
        .slots()
        .any(|(_, slot)| used(slot).any(|e| range.contains(&(e.load(Ordering::SeqCst) as usize))))
}
