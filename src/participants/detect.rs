//! Counter words whose changes can be told apart after their author's death: `protocol::detect` on
//! the slots of a pool.

use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::AtomicU64;
pub(crate) use crate::protocol::detect::value;
use crate::protocol::detect::{self, Marks};
use crate::protocol::permits::Pool;

impl Slot {
    #[inline]
    pub(super) fn marks(&self) -> Marks<'_> {
        Marks {
            latest: &self.watched.latest,
            help: &self.inbox.help,
        }
    }
}

/// The marks of the slot that a word names, if it names one.
#[inline]
fn marks_in(arena: Arena) -> impl Fn(usize) -> Option<Marks<'static>> {
    move |slot| arena.marks_of(slot)
}

/// A sequence number for a change to `word`, if that is known already, by the slot `index`.
#[inline]
pub(crate) fn next_sequence(slot: &Slot, index: usize, word: Option<&AtomicU64>) -> u64 {
    detect::next_sequence(slot.marks(), index, word)
}

/// Stores `new` with the author's mark if the word is still `old`. Otherwise returns the word
/// found.
#[inline]
pub(crate) fn change(
    arena: Arena,
    word: &AtomicU64,
    old: u64,
    new: u32,
    author_slot: usize,
    sequence: u64,
) -> Result<(), u64> {
    detect::change(marks_in(arena), word, old, new, author_slot, sequence)
}

/// Changes the value by `step`, retrying as often as needed; returns the new value, or `None` if
/// there is none so large.
#[inline]
pub(crate) fn add(
    arena: Arena,
    word: &AtomicU64,
    step: i32,
    me: Tag,
    sequence: u64,
) -> Option<u32> {
    detect::add(marks_in(arena), word, step, me.slot(), sequence)
}

/// Whether the slot's change `sequence` happened. Asked only when its author does nothing more.
pub(crate) fn happened(arena: Arena, word: &AtomicU64, slot: usize, sequence: u64) -> bool {
    detect::happened(arena.slot(slot).marks(), word, slot, sequence)
}
