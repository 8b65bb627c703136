//! An entry of a table of claims: a range of elements, and the word that says who has it and how. Rationale, words and
//! invariants: `containers::claims`.
//!
//! Who only wants one element looks at the entry without its lock, the word first: so the range may be a later
//! claim's than the word. If that range lets the element pass, the claim that the word is of is over, and what was
//! done under it must be seen: the bounds are stored with Release, and loaded with Acquire.

use std::ops::Range;

use crate::primitive::{AtomicU64, Ordering};

/// Where the range begins and ends.
pub type Bounds<'a> = [&'a AtomicU64; 2];

/// The range, torn perhaps for who has no lock.
#[inline]
pub fn range(bounds: Bounds<'_>) -> Range<usize> {
    let [start, end] = bounds.map(|word| word.load(Ordering::Acquire) as usize);
    start..end
}

/// Changes the range. By the holder of the lock, who has seen that the last claim is over.
#[inline]
pub fn set_range(bounds: Bounds<'_>, range: Range<usize>) {
    for (word, bound) in bounds.into_iter().zip([range.start, range.end]) {
        word.store(bound as u64, Ordering::Release);
    }
}

/// Whether a claim seems to be in the way of an element; `counts` says of a word whether its claim could be.
#[inline]
pub fn bars(
    word: &AtomicU64,
    bounds: Bounds<'_>,
    index: usize,
    counts: impl FnOnce(u64) -> bool,
) -> bool {
    // SeqCst: whoever looks has shown what it wants before.
    counts(word.load(Ordering::SeqCst)) && range(bounds).contains(&index)
}
