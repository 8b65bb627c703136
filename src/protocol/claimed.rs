//! An entry of a table of claims: a range of elements, and the word that says who has claimed it, and in which mode.
//! For the rationale, words and invariants, see `containers::claims`.
//!
//! A thread that only wants one element looks at the entry without its lock, the word first: so the range may be
//! that of a later claim than the word. If that range lets the element pass, the claim of the word is over, and
//! what was done under it must be seen. So the bounds are stored with Release, and loaded with Acquire.

use std::ops::Range;

use crate::primitive::{AtomicU64, Ordering};

/// Where the range begins and ends.
pub type Bounds<'a> = [&'a AtomicU64; 2];

/// The range; perhaps torn, if the caller does not hold the lock.
#[inline]
pub fn range(bounds: Bounds<'_>) -> Range<usize> {
    let [start, end] = bounds.map(|word| word.load(Ordering::Acquire) as usize);
    start..end
}

/// Changes the range. Called by the holder of the lock, which has seen that the last claim is over.
#[inline]
pub fn set_range(bounds: Bounds<'_>, range: Range<usize>) {
    for (word, bound) in bounds.into_iter().zip([range.start, range.end]) {
        word.store(bound as u64, Ordering::Release);
    }
}

/// True if a claim seems to be in the way of an element. `counts` says whether the claim of a word could be.
#[inline]
pub fn bars(
    word: &AtomicU64,
    bounds: Bounds<'_>,
    index: usize,
    counts: impl FnOnce(u64) -> bool,
) -> bool {
    // SeqCst: the caller has shown before what it wants.
    counts(word.load(Ordering::SeqCst)) && range(bounds).contains(&index)
}
