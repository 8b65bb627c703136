//! A word that says whether something may have been left behind, in one of many places.
//!
//! A thread that leaves something sets the word afterwards; a thread that looks for what was left first takes
//! the word back. So the latter sees whatever was left before by every thread that had set the word, and for
//! what is left later the word is set again.
//!
//! If a thread is killed between leaving something and setting the word, nothing says so; but each death
//! sets the word again (`engines::limbo`).

use crate::primitive::{AtomicU64, Ordering};

/// The word. Zero means that nothing was left.
#[repr(transparent)]
pub struct Left(AtomicU64);

impl Left {
    #[must_use]
    pub fn new() -> Self {
        Left(AtomicU64::new(0))
    }

    /// Says that something was left. The caller has left it before.
    pub fn tell(&self) {
        // The word is read as well as written: a thread that takes it sees what was left by all
        // threads that set it before.
        self.0.swap(1, Ordering::SeqCst);
    }

    /// True if there may be something; a hint.
    #[inline]
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Takes the word back. If this is true, the caller has to look in all places.
    pub fn take(&self) -> bool {
        // The word is read as well as written, so that the caller sees what was left.
        self.0.swap(0, Ordering::SeqCst) != 0
    }
}

impl Default for Left {
    fn default() -> Self {
        Left::new()
    }
}
