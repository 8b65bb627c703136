//! The words of a queue's cells, and positions: what `ring` is about.
//!
//! ```text
//! bit  0..3   phase
//! bit  3..15  slot of who is at it (WRITING, LEASING)
//! bit 15..64  position: the lap, and below it the cell's index
//! ```
//!
//! Positions are compared round the corner. Not all numbers are positions: a lap is a power of two, and may
//! be of more positions than there are cells.

use crate::primitive::{AtomicU64, Ordering};

const POSITIONS: u32 = 49;
const POSITION: u32 = 64 - POSITIONS;
const MASK: u64 = (1 << POSITIONS) - 1;

/// What a cell's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Free = 0,
    Writing = 1,
    Full = 2,
    Leasing = 3,
    Sealed = 4,
}

/// A cell's word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub phase: Phase,
    pub slot: usize,
    pub position: u64,
}

impl Cell {
    /// The bits of the phase.
    pub const PHASE: u64 = 7;

    #[inline]
    pub const fn new(phase: Phase, slot: usize, position: u64) -> Self {
        Cell {
            phase,
            slot,
            position,
        }
    }

    /// What the word says; garbage is SEALED.
    #[inline]
    pub const fn unpack(word: u64) -> Self {
        let slot = (word >> 3 & 0xfff) as usize;
        let phase = match (word & Self::PHASE, slot) {
            (0, 0) => Phase::Free,
            (1, _) => Phase::Writing,
            (2, 0) => Phase::Full,
            (3, _) => Phase::Leasing,
            _ => Phase::Sealed,
        };
        Cell::new(phase, slot, word >> POSITION)
    }

    #[inline]
    pub const fn pack(self) -> u64 {
        self.phase as u64 | (self.slot as u64) << 3 | self.position << POSITION
    }
}

/// How many cells there are, and how positions come from that.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    cells: u64,
    shift: u32,
}

impl Shape {
    /// The most cells that there can be.
    pub const MAX: u64 = 1 << 32;

    /// The shape of so many cells, 1 to [`MAX`](Self::MAX).
    #[inline]
    pub const fn new(cells: u64) -> Self {
        debug_assert!(cells >= 1 && cells <= Self::MAX);
        Shape {
            cells,
            shift: 64 - (cells - 1).leading_zeros(),
        }
    }

    /// The same, with the binary logarithm of the [lap](Self::lap) at hand.
    #[inline]
    pub const fn with_log(cells: u64, log: u32) -> Self {
        Shape { cells, shift: log }
    }

    /// The binary logarithm of the [lap](Self::lap), 32 at most.
    #[inline]
    pub const fn log(self) -> u32 {
        self.shift
    }

    #[inline]
    pub const fn cells(self) -> usize {
        self.cells as usize
    }

    /// From a position to the next one of the same cell.
    #[inline]
    pub const fn lap(self) -> u64 {
        1 << self.shift
    }

    /// The cell of a position; the first one if the position is none.
    #[inline]
    pub const fn index(self, position: u64) -> usize {
        let index = position & (self.lap() - 1);
        if index < self.cells {
            index as usize
        } else {
            no_position()
        }
    }

    #[inline]
    pub const fn next(self, position: u64) -> u64 {
        let index = position & (self.lap() - 1);
        if index + 1 < self.cells {
            position.wrapping_add(1)
        } else {
            (position & !(self.lap() - 1)).wrapping_add(self.lap()) & MASK
        }
    }

    /// The position that a hint says.
    #[inline]
    pub(super) fn hint(self, word: &AtomicU64) -> u64 {
        // Acquire: what is before the position is seen claimed, or taken. So a claim here comes after
        // those before it also to who learns of it from the claimant alone.
        word.load(Ordering::Acquire) & MASK
    }

    /// A hint as it is: what is above the bits of a position falls off where a word is made of it, and
    /// where its cell is looked for.
    #[inline(always)]
    pub(super) fn hint_as_it_is(self, word: &AtomicU64) -> u64 {
        // Acquire: see `hint`.
        word.load(Ordering::Acquire)
    }

    /// Sets a hint to the position after `at`, which it was; if it has changed since, it may be ahead.
    #[inline(always)]
    pub(super) fn go_on(self, word: &AtomicU64, at: u64) {
        if word.load(Ordering::Relaxed) == at {
            // Release: see `hint`.
            word.store(self.next(at), Ordering::Release);
        }
    }

    /// Raises a hint. Two that do so at once may leave the lower one.
    #[inline]
    pub(super) fn raise(self, word: &AtomicU64, position: u64) {
        let now = word.load(Ordering::Relaxed);
        if is_ahead(position, now) {
            // Release: see `hint`.
            word.store(position, Ordering::Release);
        }
    }

    /// More steps than a walk takes on words that make sense.
    #[inline]
    pub(super) const fn patience(self) -> u64 {
        self.cells * 4 + 64
    }
}

/// The cell of what is no position. Cold, so that the processor guesses that it is one, and does not wait
/// for the number of cells.
#[cold]
#[inline(never)]
const fn no_position() -> usize {
    0
}

/// A number as a position.
pub const fn position(number: u64) -> u64 {
    number & MASK
}

/// Whether a position is later than another, round the corner.
#[inline]
pub const fn is_ahead(position: u64, of: u64) -> bool {
    (position.wrapping_sub(of) << POSITION) as i64 > 0
}

/// Before an element is stored whose place was claimed just now: who copies any of it, and then looks again, sees that it
/// was claimed. Release: pairs with the Acquire fence of who looks again.
///
/// The models check the fence. On x86 stores stay behind the exchange that has claimed.
#[inline(always)]
pub fn behind_the_claim() {
    #[cfg(any(not(target_arch = "x86_64"), shmkit_loom))]
    crate::primitive::fence(Ordering::Release);
}
