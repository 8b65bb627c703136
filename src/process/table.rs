//! What the tables of the control pool have in common: a fixed number of places, each with a state
//! word, of which a first part has ever been used.
//!
//! A state word has its phase in the low four bits. Above it is what the phase needs: the tag of
//! the thread that holds the place, or the id of what is there. Zero is a place that is free.
//!
//! # Crash behaviour
//!
//! A claimant that dies leaves its tag in the word, so that the master sees that it is gone
//! ([`is_abandoned`]). If it dies before it has raised `used`, the place is past the ones that the
//! master walks, until another thread claims it or one behind it: the place stays held, and nothing
//! else is lost.

use crate::ShmSafe;
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};

/// The bits of the phase.
pub(super) const PHASE: u64 = 0xf;

/// The state of a place.
#[derive(ShmSafe)]
pub(super) struct StateWord(AtomicU64);

impl StateWord {
    /// Sequentially consistent, for decisions that depend on two words; see `resources.rs`.
    pub(super) fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// The holder's step.
    pub(super) fn store(&self, state: u64) {
        self.0.store(state, Ordering::SeqCst);
    }

    /// Turns the word, if it is `from`.
    pub(super) fn turn(&self, from: u64, to: u64) -> bool {
        self.0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// How many places at the start of a table were ever used.
#[derive(ShmSafe)]
pub(super) struct Used(AtomicU32);

impl Used {
    /// Those places. Garbage in the word reaches no further than the table.
    pub(super) fn of<'a, T>(&self, places: &'a [T]) -> &'a [T] {
        let used = self.0.load(Ordering::Acquire) as usize;
        &places[..used.min(places.len())]
    }

    /// Claims the lowest free place, so that walks are short.
    pub(super) fn claim<T>(
        &self,
        places: &[T],
        word: impl Fn(&T) -> &StateWord,
        claimed: u64,
    ) -> Option<usize> {
        let index = places.iter().position(|place| {
            let word = word(place);
            word.load() == 0 && word.turn(0, claimed)
        })?;
        self.0.fetch_max(index as u32 + 1, Ordering::AcqRel);
        Some(index)
    }
}

/// Whether the thread that a word names is dead, and whatever it was doing has either happened or
/// not.
pub(super) fn is_abandoned(arena: Arena, word: u64) -> bool {
    lock::is_over(arena, Tag::of_word(word))
}
