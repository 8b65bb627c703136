//! The words of a queue's cells, and positions, on which `ring` is built.
//!
//! ```text
//! bit  0..3   phase
//! bit  3..15  slot of who is at it (WRITING, LEASING)
//! bit 15..64  position: the lap, and below it the cell's index
//! ```
//!
//! Positions wrap around, and are compared accordingly. Not all numbers are positions: a lap is a power of
//! two, and may be longer than there are cells.

use crate::primitive::{AtomicU64, Ordering};

const POSITIONS: u32 = 49;
const POSITION: u32 = 64 - POSITIONS;
const MASK: u64 = (1 << POSITIONS) - 1;

/// What a cell's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellPhase {
    Free = 0,
    Writing = 1,
    Full = 2,
    Leasing = 3,
    Sealed = 4,
}

/// A cell's word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub phase: CellPhase,
    pub slot: usize,
    pub position: u64,
}

impl Cell {
    /// The bits of the phase.
    pub const PHASE: u64 = 7;

    #[inline]
    pub const fn new(phase: CellPhase, slot: usize, position: u64) -> Self {
        Cell {
            phase,
            slot,
            position,
        }
    }

    /// What the word says; garbage is read as SEALED.
    #[inline]
    pub const fn unpack(word: u64) -> Self {
        let slot = (word >> 3 & 0xfff) as usize;
        let phase = match (word & Self::PHASE, slot) {
            (0, 0) => CellPhase::Free,
            (1, _) => CellPhase::Writing,
            (2, 0) => CellPhase::Full,
            (3, _) => CellPhase::Leasing,
            _ => CellPhase::Sealed,
        };
        Cell::new(phase, slot, word >> POSITION)
    }

    #[inline]
    pub const fn pack(self) -> u64 {
        self.phase as u64 | (self.slot as u64) << 3 | self.position << POSITION
    }
}

/// The number of cells, and how positions follow from it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    cells: u64,
    shift: u32,
}

impl Shape {
    /// The greatest number of cells.
    pub const MAX: u64 = 1 << 32;

    /// The shape of a ring of `cells` cells, from 1 to [`MAX`](Self::MAX).
    #[inline]
    pub const fn new(cells: u64) -> Self {
        debug_assert!(cells >= 1 && cells <= Self::MAX);
        Shape {
            cells,
            shift: 64 - (cells - 1).leading_zeros(),
        }
    }

    /// The same, given the binary logarithm of the [lap](Self::lap).
    #[inline]
    pub const fn with_log(cells: u64, log: u32) -> Self {
        Shape { cells, shift: log }
    }

    /// The binary logarithm of the [lap](Self::lap), at most 32.
    #[inline]
    pub const fn log(self) -> u32 {
        self.shift
    }

    #[inline]
    pub const fn cells(self) -> usize {
        self.cells as usize
    }

    /// The distance from a position to the next one of the same cell.
    #[inline]
    pub const fn lap(self) -> u64 {
        1 << self.shift
    }

    /// The index of a position's cell; that of the first cell if the number is not a position.
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

    /// The position that a hint gives.
    #[inline]
    pub(super) fn hint(self, word: &AtomicU64) -> u64 {
        // Acquire: everything before the position is seen as claimed, or taken. So a claim made here
        // comes after those before it, even for a thread that learns of it only from the claimant.
        word.load(Ordering::Acquire) & MASK
    }

    /// A hint as it is: bits above those of a position are dropped when a word is made of it, and when
    /// its cell is looked up.
    #[inline(always)]
    pub(super) fn hint_as_it_is(self, word: &AtomicU64) -> u64 {
        // Acquire: see `hint`.
        word.load(Ordering::Acquire)
    }

    /// Sets a hint, which was `at`, to the position after that. If it has changed since, it may be
    /// ahead, and is left alone.
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

    /// More steps than a walk takes on words that are valid.
    #[inline]
    pub(super) const fn patience(self) -> u64 {
        self.cells * 4 + 64
    }
}

/// The cell of a number that is not a position. Cold, so that the processor predicts that a number is a
/// position, and does not wait for the number of cells.
#[cold]
#[inline(never)]
const fn no_position() -> usize {
    0
}

/// A number as a position.
pub const fn position(number: u64) -> u64 {
    number & MASK
}

/// True if a position is later than another, where positions wrap around.
#[inline]
pub const fn is_ahead(position: u64, of: u64) -> bool {
    (position.wrapping_sub(of) << POSITION) as i64 > 0
}

/// To be called before an element is stored whose place was just claimed: a thread that copies any part of it, and then
/// looks again, sees that the place was claimed. Release: pairs with the Acquire fence of the thread that looks again.
///
/// The models check the fence. On x86, stores stay behind the exchange that has claimed the place.
#[inline(always)]
pub fn behind_the_claim() {
    #[cfg(any(not(target_arch = "x86_64"), shmkit_loom))]
    crate::primitive::fence(Ordering::Release);
}
