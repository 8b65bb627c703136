//! Elements as words: how a value gets into a cell, and out of a cell that may change meanwhile.
//!
//! A consumer copies an element before it knows that the element is its own, so both sides use
//! atomic words. What was copied becomes a value only once it is known to be whole.

use std::mem::MaybeUninit;

use crate::ShmSafe;
use crate::containers::elements::freeze;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::cells::behind_the_claim;

/// The number of words that an element takes.
pub(super) const fn words<T>() -> usize {
    size_of::<T>().div_ceil(8)
}

/// The number of bytes in the last word, if the element does not fill it; otherwise 0.
const fn rest<T>() -> usize {
    size_of::<T>() % 8
}

/// Stores a value's bytes.
///
/// # Safety
///
/// `to` is the first of `words::<T>()` words of the pool to which nobody else stores now.
#[inline]
pub(super) unsafe fn store<T: ShmSafe>(value: &mut T, to: *const AtomicU64) {
    behind_the_claim();
    let from = std::ptr::from_mut(value).cast::<u8>();
    if const { !T::TYPE.is_plain() } {
        // From here on, padding counts as initialised.
        freeze(from);
    }
    // SAFETY: within the value, and within the words by the caller's promise.
    unsafe {
        for i in 0..size_of::<T>() / 8 {
            let word = from.add(8 * i).cast::<u64>().read_unaligned();
            // Relaxed: the cell's word publishes it.
            (*to.add(i)).store(word, Ordering::Relaxed);
        }
        if rest::<T>() > 0 {
            let whole = size_of::<T>() / 8;
            let mut last = [0; 8];
            last.as_mut_ptr()
                .copy_from_nonoverlapping(from.add(8 * whole), rest::<T>());
            (*to.add(whole)).store(u64::from_ne_bytes(last), Ordering::Relaxed);
        }
    }
}

/// Copies an element, or whatever a cell holds while it changes.
///
/// # Safety
///
/// `from` is the first of `words::<T>()` words of the pool, which others access only as atomics.
#[inline]
pub(super) unsafe fn load<T>(from: *const AtomicU64, to: &mut MaybeUninit<T>) {
    let to = to.as_mut_ptr().cast::<u8>();
    // SAFETY: within the words by the caller's promise, and within the value.
    unsafe {
        for i in 0..size_of::<T>() / 8 {
            // Relaxed: the exchange that comes next says whether the copy is valid.
            let word = (*from.add(i)).load(Ordering::Relaxed);
            to.add(8 * i).cast::<u64>().write_unaligned(word);
        }
        if rest::<T>() > 0 {
            let whole = size_of::<T>() / 8;
            let last = (*from.add(whole)).load(Ordering::Relaxed).to_ne_bytes();
            to.add(8 * whole)
                .copy_from_nonoverlapping(last.as_ptr(), rest::<T>());
        }
    }
}

/// Copies an element from cell to cell, as [`load`] does.
///
/// # Safety
///
/// As for [`load`] and [`store`].
pub(super) unsafe fn copy<T>(from: *const AtomicU64, to: *const AtomicU64) {
    behind_the_claim();
    for i in 0..words::<T>() {
        // SAFETY: within the words by the caller's promise. Relaxed: as above.
        unsafe { (*to.add(i)).store((*from.add(i)).load(Ordering::Relaxed), Ordering::Relaxed) };
    }
}
