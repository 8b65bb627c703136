//! How elements of arrays are copied: by one instruction, or as bytes.
//!
//! A value may have padding, whose bytes the language calls uninitialised wherever they are. Before
//! bytes are compared, or become an integer, they are passed through [`freeze`]: new elements when
//! they have been filled in, those of a claim when it ends.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU8, AtomicU16};

use crate::allocator::AllocError;
use crate::participants::table::Slot;
use crate::pool::intents::{self, WRITE_MAX};
use crate::primitive::{AtomicU32, AtomicU64, Ordering};

/// Whether elements of this type are accessed by one instruction.
pub(super) const fn is_atomic<T>() -> bool {
    matches!(size_of::<T>(), 1 | 2 | 4 | 8) && size_of::<T>() == align_of::<T>()
}

/// Makes memory initialised. The machine keeps the bytes that are there; for the compiler, the
/// (empty) assembler code may have written them.
#[inline(always)]
pub(super) fn freeze(bytes: *mut u8) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there are no instructions. The pointer that is passed is to memory of ours.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) bytes, options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::hint::black_box(bytes);
}

/// The bytes of a value of up to 8 bytes, in the low end.
#[inline]
pub(super) fn to_bits<T>(value: T) -> u64 {
    debug_assert!(is_atomic::<T>() && cfg!(target_endian = "little"));
    let mut word = MaybeUninit::<u64>::zeroed();
    let start = word.as_mut_ptr();
    // SAFETY: the value is not larger than the word, nor more aligned; the word is frozen.
    unsafe {
        start.cast::<T>().write(value);
        freeze(start.cast());
        word.assume_init()
    }
}

/// The value whose bytes [`to_bits`] or [`load`] gave.
///
/// # Safety
///
/// The bits are those of a valid `T`.
#[inline]
pub(super) unsafe fn of_bits<T>(bits: u64) -> T {
    debug_assert!(is_atomic::<T>() && cfg!(target_endian = "little"));
    // SAFETY: the low end of the word, which is large enough and sufficiently aligned, holds a `T`
    // by the caller's promise.
    unsafe { (&raw const bits).cast::<T>().read() }
}

/// Runs `$code` with `$word` as the atomic at `$place`.
macro_rules! with_atomic {
    ($t:ty, $place:expr, |$word:ident, $int:ident| $code:expr) => {
        match size_of::<$t>() {
            1 => with_atomic!(@ AtomicU8, u8, $place, $word, $int, $code),
            2 => with_atomic!(@ AtomicU16, u16, $place, $word, $int, $code),
            4 => with_atomic!(@ AtomicU32, u32, $place, $word, $int, $code),
            _ => with_atomic!(@ AtomicU64, u64, $place, $word, $int, $code),
        }
    };
    (@ $atomic:ident, $integer:ident, $place:expr, $word:ident, $int:ident, $code:expr) => {{
        type $int = $integer;
        // SAFETY: by the caller's promise an element of this size is at that address, aligned to
        // its size, and everybody accesses it atomically.
        let $word = unsafe { &*$place.cast::<$atomic>() };
        $code
    }};
}

/// Reads an element.
///
/// # Safety
///
/// `place` holds a `T`, for which [`is_atomic`] is true, and all accesses to it are atomic now.
#[inline]
#[allow(
    clippy::useless_conversion,
    reason = "one of the integers is a u64 already"
)]
pub(super) unsafe fn load<T>(place: *mut T) -> u64 {
    // Acquire and Release: what is published through an element is seen.
    with_atomic!(T, place, |word, Int| {
        let bits: Int = word.load(Ordering::Acquire);
        bits.into()
    })
}

/// Overwrites an element.
///
/// # Safety
///
/// As for [`load`]; the bits are those of a `T`.
#[inline]
pub(super) unsafe fn store<T>(place: *mut T, bits: u64) {
    with_atomic!(T, place, |word, Int| word
        .store(bits as Int, Ordering::Release));
}

/// Overwrites an element if its bytes are `old`; otherwise gives the bytes that it has.
///
/// # Safety
///
/// As for [`store`].
#[inline]
#[allow(
    clippy::useless_conversion,
    reason = "one of the integers is a u64 already"
)]
pub(super) unsafe fn exchange<T>(place: *mut T, old: u64, new: u64) -> Result<(), u64> {
    with_atomic!(T, place, |word, Int| {
        match word.compare_exchange(old as Int, new as Int, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(now) => Err(now.into()),
        }
    })
}

/// Copies an element's bytes, padding and all.
///
/// # Safety
///
/// `place` holds a `T`, which nobody writes to meanwhile.
pub(super) unsafe fn copy_bytes<T>(place: *const T, to: &mut MaybeUninit<T>) {
    let to = to.as_mut_ptr().cast::<u8>();
    // SAFETY: both are that long. They are copied as bytes, so that padding is copied, too.
    unsafe { to.copy_from_nonoverlapping(place.cast::<u8>(), size_of::<T>()) };
}

/// The bytes of a value as they are, whether initialised or not.
pub(super) fn frozen_bytes<T>(value: &mut MaybeUninit<T>) -> &[u8] {
    let start = value.as_mut_ptr().cast::<u8>();
    freeze(start);
    // SAFETY: the value's own bytes, frozen, and borrowed as long as it is.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }
}

/// Overwrites an element of up to [`WRITE_MAX`] bytes: all of it, or nothing if we die before the
/// write is recorded.
///
/// # Safety
///
/// `place` is in a pool in which `slot` is this thread's slot, and holds a `T`. Nobody else
/// accesses it; should this thread die, nobody does until its intent is resolved.
pub(super) unsafe fn write<T>(slot: &Slot, place: *mut T, value: &T) {
    debug_assert!(size_of::<T>() <= WRITE_MAX);
    let source = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: both are that long; the rest by the caller's promise.
    unsafe { intents::write(slot, place.cast(), source, size_of::<T>()) };
}

/// New elements that are to be written.
pub(super) struct NewElements<'a, T>(pub(super) &'a mut [MaybeUninit<T>]);

impl<T> NewElements<'_, T> {
    pub(super) fn fill(self, value: T)
    where
        T: Copy,
    {
        // There may be 2^64 elements of size 0.
        if size_of::<T>() > 0 {
            self.0.fill(MaybeUninit::new(value));
        }
    }

    /// Copies `values`, which are as many as there is room for. Either they are not used any more,
    /// or they may be copied.
    pub(super) fn copy_from(self, values: &[T]) {
        debug_assert_eq!(values.len(), self.0.len());
        let len = values.len().min(self.0.len());
        // SAFETY: both have that many; private memory and a new block do not overlap.
        unsafe {
            let room = self.0.as_mut_ptr().cast::<T>();
            room.copy_from_nonoverlapping(values.as_ptr(), len);
        }
    }
}

/// `f(0)`, `f(1)` and so on, in private memory.
pub(super) fn collect<T>(len: usize, f: impl FnMut(usize) -> T) -> Result<Vec<T>, AllocError> {
    let mut elements = Vec::new();
    elements
        .try_reserve_exact(len)
        .map_err(|_| AllocError::TooLarge)?;
    elements.extend((0..len).map(f));
    Ok(elements)
}
