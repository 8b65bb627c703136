//! A walk over a table, which is asked for now and then, and of which several threads make a piece
//! each.
//!
//! One word says how many entries are left to be looked at, and where to go on. A thread that makes
//! a piece first takes it off the word and then looks at it, so that whoever asks for a walk in
//! between gets a whole one: either the demand comes before the piece is taken off (and the piece
//! is looked at after the demand), or it sets what is left back to the whole table.
//!
//! If a thread is killed after it has taken a piece, the piece is not looked at; but each death
//! asks for a new walk.

use std::ops::Range;

use crate::primitive::{AtomicU64, Ordering};

/// The word. Zero means that nothing is asked for.
#[repr(transparent)]
pub struct Sweep(AtomicU64);

/// The upper half, which says what is left, when everything is left.
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

    /// Takes the whole walk, which the caller is going to make.
    pub fn take_all(&self) {
        self.0.fetch_and(!ALL, Ordering::SeqCst);
    }

    /// Takes the next piece of the walk, of at most `piece` entries, which the caller is going to make. The
    /// table has `count` entries, and may grow.
    pub fn take(&self, count: impl Fn() -> usize, piece: usize) -> Option<Range<usize>> {
        let mut word = self.0.load(Ordering::SeqCst);
        loop {
            let entries = count();
            let left = ((word >> 32) as usize).min(entries);
            // The word may be garbage, and the table's length may have changed since the last
            // piece.
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
                    // The demand may include new entries, which are not counted in what is left.
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
