//! Which element of a queue is the first, if one was reported as the first.
//!
//! # Rationale
//!
//! A push that is under way has its place already (see `ring`), and may be stopped. So a thread that
//! wants the first element goes past it. A thread that *takes* the element behind it then has that
//! element; but a thread that only *looks* would report an element that is no longer the first once the
//! push ends. So a thread that looks past a push names the element foremost before it reports it, and a
//! thread that takes an element looks at that word once it has seen the element. Pushes are not affected,
//! and a pop reads one more word.
//!
//! The word is laid out as a cell's:
//!
//! | word | meaning | next, by whom |
//! |-----------|----------------------------------------|------------------------------------------|
//! | FREE n    | no element behind a push was reported  | WRITING n, by a thread that looks past a push |
//! | WRITING n | somebody looks past a push             | FULL p, by whoever has seen that p is first, also to take it |
//! | FULL p    | p is the first, as long as it is there | FREE p + 1, by whoever takes it, or finds it taken |
//!
//! Invariants
//! 1. Words are distinct over time: a position is named only if its element was seen while the word was
//!    WRITING, and then never again, as the word goes on only once the element is taken.
//! 2. The word becomes FULL p only if, while it was WRITING n, p was seen once more to be there, and each
//!    push that was passed was seen once more to be under way. This includes the rings before, and whatever
//!    keeps the cell at the end of one for a lap.
//! 3. A thread that takes or reports an element that was not named has seen FREE *after* it saw the
//!    element. So if that element comes before a p that is named later, it was there before the word was
//!    WRITING, and 2 does not hold for p.
//! 4. What FULL p says is true even if p was not reported to anybody, and WRITING n can be used by
//!    everybody. So a death at any step leaves nothing to repair, and a thread fails only if another has
//!    gone on before it.
//!
//! The word is about the rings only: elements that have come back from leases come before all of
//! this.

use super::cells::{Cell, CellPhase, position};
use super::ring::Take;
use crate::primitive::{AtomicU64, Ordering};

/// The position of the element that was reported as the first. Initially FREE 0, which is 0.
#[repr(transparent)]
pub struct Foremost(pub AtomicU64);

impl Foremost {
    fn exchange(&self, from: u64, to: Cell) -> bool {
        self.0
            .compare_exchange(from, to.pack(), Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// True if no element behind a push was reported, and nobody is about to report one.
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        // SeqCst: after the look at the element, also with respect to a thread that has made the word
        // WRITING and has then seen that element's push under way.
        self.0.load(Ordering::SeqCst) & Cell::PHASE == CellPhase::Free as u64
    }

    /// True if somebody may be about to report one.
    pub fn is_open(&self) -> bool {
        !self.is_none() && self.position().is_none()
    }

    /// What the word says.
    pub fn word(&self) -> Cell {
        Cell::unpack(self.0.load(Ordering::SeqCst))
    }

    /// The position that was reported.
    pub fn position(&self) -> Option<u64> {
        let word = self.word();
        (word.phase == CellPhase::Full).then_some(word.position)
    }

    /// True if the element at a position, which the caller has seen, is the first. It is named if it is
    /// `to_stay` and a push was passed, or if others may be about to name one. `still` says whether the
    /// element is still there, and what was passed is as it was.
    #[inline]
    pub fn is_first(&self, at: u64, to_stay: bool, still: impl FnOnce() -> bool) -> bool {
        !to_stay && self.is_none() || self.name(at, still)
    }

    /// Names the element at a position. False if another was named, or somebody was faster.
    #[cold]
    fn name(&self, at: u64, still: impl FnOnce() -> bool) -> bool {
        let found = self.0.load(Ordering::SeqCst);
        let word = Cell::unpack(found);
        let naming = Cell::new(CellPhase::Writing, 0, word.position);
        let is_open = match word.phase {
            CellPhase::Full => false,
            // WRITING or FREE; or garbage.
            _ => found == naming.pack() || self.exchange(found, naming),
        };
        is_open && still() && self.exchange(naming.pack(), Cell::new(CellPhase::Full, 0, at))
    }

    /// Takes the element that was reported, or looks at it, by `take`, which says whether it did so; `None`
    /// if the element was gone.
    pub fn take_told(
        &self,
        at: u64,
        how: Take,
        take: impl FnOnce() -> Option<bool>,
    ) -> Option<bool> {
        let taken = take();
        // Not before the element is gone: a thread that sees the word FREE takes another one.
        if taken.is_none_or(|taken| taken && !how.leaves()) {
            self.is_over(at);
        }
        taken
    }

    /// Called when an element was taken that may have been named.
    #[inline]
    pub fn taken(&self, at: u64) {
        if !self.is_none() {
            self.is_over(at);
        }
    }

    #[cold]
    fn is_over(&self, at: u64) {
        let next = Cell::new(CellPhase::Free, 0, position(at.wrapping_add(1)));
        self.exchange(Cell::new(CellPhase::Full, 0, at).pack(), next);
    }
}
