//! A walk over a table that is asked for at times, and made by many, a piece each.
//!
//! One word: how many entries are left to be looked at, and where to go on. Who takes a piece
//! takes it off the word first and looks at it then, so that whoever asks for a walk in between
//! gets a whole one: his demand comes before the piece is taken off (and the piece is looked at
//! after it), or it sets what is left back to all.
//!
//! Killed with a piece taken: the piece is not looked at. Each death asks for a walk of its own.

use std::ops::Range;

use crate::primitive::{AtomicU64, Ordering};

/// The word. Zero: nothing is asked for.
#[repr(transparent)]
pub struct Sweep(AtomicU64);

/// What is left, in the upper half, while all is.
const ALL: u64 = 0xffff_ffff << 32;

impl Sweep {
    #[must_use]
    pub fn new() -> Self {
        Sweep(AtomicU64::new(0))
    }

    /// Asks for a walk over the whole table.
    pub fn demand(&self) {
        self.0.fetch_or(ALL, Ordering::SeqCst);
    }

    /// True if something is left to be looked at.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ALL != 0
    }

    /// Takes the whole walk upon the caller.
    pub fn take_all(&self) {
        self.0.fetch_and(!ALL, Ordering::SeqCst);
    }

    /// Takes the next entries upon the caller, at most `piece`, of a table that has `count`, which may grow.
    pub fn take(&self, count: impl Fn() -> usize, piece: usize) -> Option<Range<usize>> {
        let mut word = self.0.load(Ordering::SeqCst);
        loop {
            let entries = count();
            let left = ((word >> 32) as usize).min(entries);
            // The word may be garbage, and the table of another length than at the last piece.
            let from = Some(word as u32 as usize)
                .filter(|&from| from < entries)
                .unwrap_or(0);
            let until = entries.min(from + piece.min(left));
            let next = ((left - (until - from)) as u64) << 32 | until as u64;
            if word & ALL == 0 {
                return None;
            }
            match self
                .0
                .compare_exchange(word, next, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => {
                    // What is new in the table may have been asked for before, and is not counted in what is left.
                    if count() != entries {
                        self.demand();
                    }
                    return Some(from..until);
                }
                Err(now) => word = now,
            }
        }
    }
}

impl Default for Sweep {
    fn default() -> Self {
        Sweep::new()
    }
}
