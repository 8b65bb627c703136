//! Permits of semaphores: who holds one is listed in its slot, so that the dead one's come back.
//!
//! A semaphore is a counter word (`detect`); its value is the number of permits left.
//!
//! | entry's state | meaning | a death here |
//! |-----------|----------------------------------|----------------------------------|
//! | unused    | no permit                        | nothing to do |
//! | TAKING n  | change n takes one, or did       | did it happen? give it back : forget |
//! | HELD      | a permit is held                 | give it back |
//! | GIVING n  | change n gives it back, or did   | did it happen? forget : give it back |
//!
//! The entry is written before the counter is changed and struck after. Recovery runs the same
//! steps in the dead one's name, with a new sequence of the dead one's slot, so it can die itself.

use crate::layout::arena::Arena;
use crate::participants::detect;
use crate::participants::table::{Permit, Slot};
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::futex;

const TAKING: u64 = 1;
const HELD: u64 = 2;
const GIVING: u64 = 3;
const SEQUENCE_SHIFT: u32 = 2;

/// Why no permit was taken.
pub(crate) enum TakeFailure {
    /// There is none left.
    NoneLeft,
    /// The thread holds as many as a slot can list.
    ListFull,
}

/// Takes a permit if there is one; the index of its entry.
pub(crate) fn try_take(arena: Arena, slot: &Slot, word: &AtomicU64) -> Result<usize, TakeFailure> {
    let mut old = word.load(Ordering::Acquire);
    if detect::value(old) == 0 {
        return Err(TakeFailure::NoneLeft);
    }
    let free = slot
        .permits
        .iter()
        .position(|p| p.word.load(Ordering::Relaxed) == 0);
    let index = free.ok_or(TakeFailure::ListFull)?;
    let entry = &slot.permits[index];
    if slot.permit_limit.load(Ordering::Relaxed) <= index as u64 {
        slot.permit_limit.store(index as u64 + 1, Ordering::Release);
    }
    let sequence = detect::next_sequence(slot, slot.tag().slot(), Some(word));
    entry
        .state
        .store(TAKING | sequence << SEQUENCE_SHIFT, Ordering::Release);
    entry
        .word
        .store(std::ptr::from_ref(word).addr() as u64, Ordering::SeqCst);
    while detect::value(old) > 0 {
        match detect::change(
            arena,
            word,
            old,
            detect::value(old) - 1,
            slot.tag().slot(),
            sequence,
        ) {
            Ok(()) => {
                entry.state.store(HELD, Ordering::Release);
                return Ok(index);
            }
            Err(found) => old = found,
        }
    }
    entry.word.store(0, Ordering::Release);
    Err(TakeFailure::NoneLeft)
}

/// Gives a permit back, and wakes a sleeper if there was none to have: a sleeper that takes one and
/// leaves more wakes the next. `owner` is its holder's slot, alive or dead.
pub(crate) fn give(arena: Arena, owner: usize, index: usize) {
    let slot = arena.slot(owner);
    let entry = &slot.permits[index];
    let sequence = detect::next_sequence(slot, owner, word_of(arena, entry));
    entry
        .state
        .store(GIVING | sequence << SEQUENCE_SHIFT, Ordering::SeqCst);
    finish_giving(arena, owner, entry, sequence);
}

fn finish_giving(arena: Arena, owner: usize, entry: &Permit, sequence: u64) {
    let Some(word) = word_of(arena, entry) else {
        return;
    };
    let left = detect::add(arena, word, 1, Tag::new(owner, 0), sequence);
    entry.word.store(0, Ordering::Release);
    if left == Some(1) {
        futex::wake(Arena::low_half(word), 1);
    }
}

/// Consumes a permit for good: it is listed no more and will not come back.
pub(crate) fn forget(slot: &Slot, index: usize) {
    slot.permits[index].word.store(0, Ordering::Release);
}

/// The counter that an entry names, if it names one.
fn word_of(arena: Arena, entry: &Permit) -> Option<&'static AtomicU64> {
    // A counter of an object of this pool is not destroyed while an entry names it (`any_within`).
    arena.word_at(entry.word.load(Ordering::Acquire) as usize)
}

/// Gives back every permit of a dead owner. Called by the holder of its life word.
///
/// The change that was in flight, if any, comes first: it is the latest of the slot only until
/// the next one (`protocol::detect`, invariant 3).
pub(crate) fn recover(arena: Arena, owner: usize) {
    let slot = arena.slot(owner);
    for (index, entry) in slot.permits.iter().enumerate() {
        let Some(word) = word_of(arena, entry) else {
            continue;
        };
        let state = entry.state.load(Ordering::Acquire);
        let sequence = state >> SEQUENCE_SHIFT;
        let happened = || detect::happened(arena, word, owner, sequence);
        match state & ((1 << SEQUENCE_SHIFT) - 1) {
            TAKING if happened() => entry.state.store(HELD, Ordering::Release),
            TAKING => forget(slot, index),
            GIVING if happened() => forget(slot, index),
            GIVING => finish_giving(arena, owner, entry, sequence),
            _ => {}
        }
    }
    for (index, entry) in slot.permits.iter().enumerate() {
        if word_of(arena, entry).is_some() {
            give(arena, owner, index);
        }
    }
}

/// True if anybody holds a permit of a counter within the addresses.
pub(crate) fn any_within(arena: Arena, range: std::ops::Range<usize>) -> bool {
    arena.slots().any(|(_, slot)| {
        let limit = slot.permit_limit.load(Ordering::Acquire) as usize;
        slot.permits
            .iter()
            .take(limit)
            .any(|p| range.contains(&(p.word.load(Ordering::SeqCst) as usize)))
    })
}
