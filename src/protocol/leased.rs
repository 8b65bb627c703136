//! The words of an entry that elements of a queue are leased into, as far as who does not have it reads them, or takes it
//! over. Rationale, states, invariants: `engines::leases`.

use super::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, fence};

pub const FREE: u64 = 0;
pub const TAKING: u64 = 1;
pub const HELD: u64 = 2;
pub const BACK: u64 = 3;
/// A state is in the bits below a tag, or a turn.
pub const STATE: u64 = Tag::FLAGS;
/// Where the turn begins in a word that is BACK.
pub const TURN: u32 = STATE.count_ones();

/// An element that is BACK, as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub word: u64,
    pub position: u64,
}

/// The word of an element that waits to be had again, since that turn.
#[inline]
pub fn back(turn: u64) -> u64 {
    turn << TURN | BACK
}

/// Notes the position of the element that is about to come into the entry, by who has made it TAKING.
#[inline]
pub fn prepare(position: &AtomicU64, next: u64) {
    // Release: pairs with the fence of the next look, which finds then that the word has changed.
    position.store(next, Ordering::Release);
}

/// What is seen if the element is BACK. If it is the same once more after the element was copied, all of it is whole.
#[inline]
pub fn is_back(word: &AtomicU64, position: &AtomicU64) -> Option<Seen> {
    // Before this look: pairs with the Release fence of who stores an element.
    fence(Ordering::Acquire);
    // Acquire: the element, and the position.
    let word = word.load(Ordering::Acquire);
    // Relaxed: who finds one that was prepared since sees at the next look, behind its fence, that the word has changed.
    let position = position.load(Ordering::Relaxed);
    (word & STATE == BACK).then_some(Seen { word, position })
}

/// Takes the entry from an owner that is over: it is free, or its element comes back, with the word that `announce`
/// gives.
#[inline]
pub fn bury(word: &AtomicU64, is_over: impl FnOnce(Tag) -> bool, announce: impl FnOnce() -> u64) {
    // Relaxed: the exchange says whether it still is so.
    let found = word.load(Ordering::Relaxed);
    let state = found & STATE;
    if !matches!(state, TAKING | HELD) || !is_over(Tag::of_word(found)) {
        return;
    }
    let next = match state {
        HELD => announce(),
        _ => FREE,
    };
    let _ = word.compare_exchange(found, next, Ordering::SeqCst, Ordering::Relaxed);
}
