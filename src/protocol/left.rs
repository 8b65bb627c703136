//! Whether there may be something that was left behind, in one of many places.
//!
//! Who leaves something says so then; who looks for what was left takes the word back first. So he sees whatever
//! was left before that, by all whose word he takes, and what is left later is told by another.
//!
//! Killed between the two: what was left is told by nobody. Each death says it again (`engines::limbo`).

use crate::primitive::{AtomicU64, Ordering};

/// The word. Zero: nothing was left.
#[repr(transparent)]
pub struct Left(AtomicU64);

impl Left {
    #[must_use]
    pub fn new() -> Self {
        Left(AtomicU64::new(0))
    }

    /// Says so. The caller has left it.
    pub fn tell(&self) {
        // Read as well as written: who takes it sees what all have left who said so before.
        self.0.swap(1, Ordering::SeqCst);
    }

    /// True if there may be something; a hint.
    #[inline]
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Takes the word back. If this is true, the caller looks in all places.
    pub fn take(&self) -> bool {
        // Read as well as written: who takes it sees what it is about.
        self.0.swap(0, Ordering::SeqCst) != 0
    }
}

impl Default for Left {
    fn default() -> Self {
        Left::new()
    }
}
