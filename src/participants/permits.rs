//! Permits of semaphores: a thread that holds one lists it in its slot, so that a dead thread's
//! permits come back (`protocol::permits`).

use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::detect::Marks;
use crate::protocol::permits::{self, Holder};
pub(crate) use crate::protocol::permits::{MOST, Pool, TakeFailure, add, announce, give_up, left};
use crate::sys::futex;

impl Pool<'static> for Arena {
    #[inline]
    fn marks_of(self, slot: usize) -> Option<Marks<'static>> {
        (slot != 0 && slot < self.slot_count()).then(|| self.slot(slot).marks())
    }

    fn word(self, address: u64) -> Option<&'static AtomicU64> {
        // A counter of an object of this pool is not destroyed while an entry names it (`any_within`).
        self.word_at(address as usize)
    }

    fn wake(self, word: &AtomicU64, most: u32) {
        futex::wake(Arena::low_half(word), most);
    }
}

#[inline]
fn holder(slot: &Slot, index: usize) -> Holder<'_> {
    Holder {
        slot: index,
        permits: &slot.permits,
        limit: &slot.permit_limit,
        marks: slot.marks(),
    }
}

/// Takes a permit if there is one: returns the index of its entry, and how many are left. `slept`
/// is true for a thread that has slept until one came.
#[inline]
pub(crate) fn try_take(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    slept: bool,
) -> Result<(usize, u32), TakeFailure> {
    permits::try_take(arena, holder(slot, slot.tag().slot()), word, slept)
}

/// Gives back a permit that a slot holds.
#[inline]
pub(crate) fn give(arena: Arena, owner: usize, index: usize) {
    permits::give(arena, holder(arena.slot(owner), owner), index);
}

/// Consumes a permit for good.
pub(crate) fn forget(slot: &Slot, index: usize) {
    permits::forget(&slot.permits[index]);
}

/// Gives back every permit of a dead owner. Called by the holder of its life word.
pub(crate) fn recover(arena: Arena, owner: usize) {
    permits::recover(arena, holder(arena.slot(owner), owner));
}

/// True if anybody holds a permit of a counter within the address range.
pub(crate) fn any_within(arena: Arena, range: std::ops::Range<usize>) -> bool {
    arena.slots().any(|(_, slot)| {
        let limit = slot.permit_limit.load(Ordering::Acquire) as usize;
        slot.permits
            .iter()
            .take(limit)
            .any(|p| range.contains(&(p.word.load(Ordering::SeqCst) as usize)))
    })
}
