//! Which element of a queue is the first, where that was told.
//!
//! # Rationale
//!
//! A push that is on its way has its place already (see `ring`), and may be stopped. So who wants the
//! first element goes past it. Who *takes* what is behind it, has that; who only *looks* would tell an
//! element that is not the first any more once that push ends. So who looks past a push names the element
//! foremost before it tells it, and who takes an element looks at that word once it has seen the element.
//! Pushes have nothing to do with it, and a pop reads one word more.
//!
//! The word is as a cell's:
//!
//! | word | meaning | next, by whom |
//! |-----------|----------------------------------------|------------------------------------------|
//! | FREE n    | no element behind a push was told      | WRITING n, by who looks past a push      |
//! | WRITING n | somebody looks past a push             | FULL p, by who has seen that p is the first, also if it is to be taken |
//! | FULL p    | p is the first, as long as it is there | FREE p + 1, by who takes it, or finds it taken |
//!
//! Invariants
//! 1. Words are distinct over time: a position is named only if its element was seen while the word was
//!    WRITING, and then never again, as the word goes on only once the element is taken.
//! 2. The word becomes FULL p only if, while it was WRITING n, p was seen there, and each push that was gone
//!    past on its way, once more; also in the rings before, and what keeps the end of one for a lap.
//! 3. Who takes or tells an element that was not named has seen FREE *after* it has seen the element. So if
//!    that comes before a p which is named later, it was there before the word was WRITING, and 2 does not
//!    hold for p.
//! 4. What FULL p says is true also if nobody was told, and WRITING n is of use to everybody. So a death at
//!    any step leaves nothing to repair, and who fails has been passed by another.
//!
//! It is a word about the rings: what has come back from leases comes before all that.

use super::cells::{Cell, Phase, position};
use super::ring::Take;
use crate::primitive::{AtomicU64, Ordering};

/// The position of the element that was told to be the first. At first FREE 0, which is 0.
#[repr(transparent)]
pub struct Foremost(pub AtomicU64);

impl Foremost {
    fn exchange(&self, from: u64, to: Cell) -> bool {
        self.0
            .compare_exchange(from, to.pack(), Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether no element behind a push was told, and nobody is about to tell one.
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        // SeqCst: after the look at the element, also for who has made the word WRITING and then seen
        // that element's push on its way.
        self.0.load(Ordering::SeqCst) & Cell::PHASE == Phase::Free as u64
    }

    /// Whether somebody may be about to tell one.
    pub fn is_open(&self) -> bool {
        !self.is_none() && self.position().is_none()
    }

    /// What the word says.
    pub fn word(&self) -> Cell {
        Cell::unpack(self.0.load(Ordering::SeqCst))
    }

    /// The position that was told.
    pub fn position(&self) -> Option<u64> {
        let word = self.word();
        (word.phase == Phase::Full).then_some(word.position)
    }

    /// Whether the element at a position, which was seen, is the first. It is named if it is `to_stay`
    /// although a push was gone past, or if others may be about to name one. `still` is whether it is there,
    /// and what was gone past is as it was.
    #[inline]
    pub fn is_first(&self, at: u64, to_stay: bool, still: impl FnOnce() -> bool) -> bool {
        !to_stay && self.is_none() || self.name(at, still)
    }

    /// False if another was named, or somebody was faster.
    #[cold]
    fn name(&self, at: u64, still: impl FnOnce() -> bool) -> bool {
        let found = self.0.load(Ordering::SeqCst);
        let word = Cell::unpack(found);
        let naming = Cell::new(Phase::Writing, 0, word.position);
        let is_open = match word.phase {
            Phase::Full => false,
            // Or it is garbage.
            _ => found == naming.pack() || self.exchange(found, naming),
        };
        is_open && still() && self.exchange(naming.pack(), Cell::new(Phase::Full, 0, at))
    }

    /// Takes the element that was told, or looks at it, by `take`, which answers whether it did; `None` if it
    /// found it gone.
    pub fn take_told(
        &self,
        at: u64,
        how: Take,
        take: impl FnOnce() -> Option<bool>,
    ) -> Option<bool> {
        let taken = take();
        // Not before it is gone: who sees the word FREE takes another one.
        if taken.is_none_or(|taken| taken && !how.leaves()) {
            self.is_over(at);
        }
        taken
    }

    /// An element was taken that may have been named for that.
    #[inline]
    pub fn taken(&self, at: u64) {
        if !self.is_none() {
            self.is_over(at);
        }
    }

    #[cold]
    fn is_over(&self, at: u64) {
        let next = Cell::new(Phase::Free, 0, position(at.wrapping_add(1)));
        self.exchange(Cell::new(Phase::Full, 0, at).pack(), next);
    }
}
