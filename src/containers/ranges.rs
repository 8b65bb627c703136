//! Claimed ranges as slices: [`Claim`] and [`ClaimMut`].

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::claims::Taken;
use super::elements::freeze;

/// A claimed range, or an empty range, which needs no claim.
pub(super) struct Claimed<'a, T> {
    /// The first element, in a block that stays in place as long as the claim exists.
    first: NonNull<T>,
    len: usize,
    taken: Option<Taken<'a>>,
    /// A claim belongs to its thread: it would be copied by a fork of the process, and ends with
    /// the process.
    _one_thread: PhantomData<*const ()>,
}

impl<'a, T> Claimed<'a, T> {
    /// The claim of `len` elements at `first`; without `taken`, of no elements.
    pub(super) fn new(first: NonNull<T>, len: usize, taken: Option<Taken<'a>>) -> Self {
        debug_assert_eq!(len == 0, taken.is_none());
        Claimed {
            first,
            len,
            taken,
            _one_thread: PhantomData,
        }
    }
}

impl<T> Drop for Claimed<'_, T> {
    fn drop(&mut self) {
        // Before the claim is over, as then elements are read as integers: with what padding was written.
        freeze(self.first.as_ptr().cast());
    }
}

/// A range of an array, claimed for reading; see [`Array::claim`](crate::Array::claim).
///
/// ```
/// use shmkit::{Array, Pool};
///
/// let pool = Pool::builder().create()?;
/// let numbers = Array::from_slice_in(pool, &[4, 2, 9, 1])?;
/// let (all, upper) = (numbers.claim(..)?, numbers.claim(2..)?);
/// // Slices, which others may read, too.
/// assert_eq!((all.iter().max(), &upper[..]), (Some(&9), &[9, 1][..]));
/// assert!(numbers.set(3, 0).is_err());
/// drop((all, upper));
/// numbers.set(3, 0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the claim is over when this is dropped"]
pub struct Claim<'a, T>(pub(super) Claimed<'a, T>);

impl<T> Deref for Claim<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: elements of the block, which stays as long as the claim exists; nobody writes to
        // them, as operations that write and exclusive claims are refused. Without elements, a
        // dangling pointer.
        unsafe { std::slice::from_raw_parts(self.0.first.as_ptr(), self.0.len) }
    }
}

macro_rules! slices {
    ($claim:ident) => {
        impl<T> AsRef<[T]> for $claim<'_, T> {
            fn as_ref(&self) -> &[T] {
                self
            }
        }

        impl<'a, T> IntoIterator for &'a $claim<'_, T> {
            type Item = &'a T;
            type IntoIter = std::slice::Iter<'a, T>;

            fn into_iter(self) -> Self::IntoIter {
                self.iter()
            }
        }
    };
}

slices!(Claim);
slices!(ClaimMut);

impl<T> AsMut<[T]> for ClaimMut<'_, T> {
    fn as_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<'a, T> IntoIterator for &'a mut ClaimMut<'_, T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T: fmt::Debug> fmt::Debug for Claim<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A range of an array, claimed for writing; see [`Array::claim_mut`](crate::Array::claim_mut).
///
/// ```
/// use shmkit::{Array, Pool};
///
/// let pool = Pool::builder().create()?;
/// let numbers = Array::from_slice_in(pool, &[1, 2, 3])?;
/// let mut claim = numbers.claim_mut(1..)?;
/// for number in &mut claim {
///     *number *= 10;
/// }
/// let sum: i32 = (&claim).into_iter().sum();
/// assert_eq!((sum, claim.as_ref()), (50, &[20, 30][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the claim is over when this is dropped"]
pub struct ClaimMut<'a, T> {
    claimed: Claimed<'a, T>,
    _invariant: PhantomData<&'a mut T>,
}

impl<'a, T> ClaimMut<'a, T> {
    pub(super) fn new(claimed: Claimed<'a, T>) -> Self {
        ClaimMut {
            claimed,
            _invariant: PhantomData,
        }
    }

    /// True if a process died with an exclusive claim of some of these elements, or a thread panicked
    /// with one, and nobody has claimed them exclusively since. They may be half written: each byte is
    /// an old or a new one.
    ///
    /// It errs on one side only: it is also true for elements between those of several such claims,
    /// once the table of claims is full of them; and, where elements in the middle of such a claim
    /// have been claimed exclusively since, it remains true for all of its elements.
    ///
    /// ```
    /// # use shmkit::process::scope;
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let numbers = Array::filled_in(pool, 8, 1_u64)?;
    /// scope(|s| {
    ///     let child = s.spawn::<_, ()>(|| {
    ///         let mut claim = numbers.claim_mut(..4).unwrap();
    ///         claim[0] = 2;
    ///         std::process::abort();
    ///     });
    ///     let _ = child.unwrap().join();
    /// });
    /// let mut claim = numbers.claim_mut(..)?;
    /// assert!(claim.was_orphaned());
    /// claim.fill(1);
    /// drop(claim);
    /// assert!(!numbers.claim_mut(..)?.was_orphaned());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn was_orphaned(&self) -> bool {
        self.claimed.taken.as_ref().is_some_and(|t| t.orphaned)
    }
}

impl<T> Deref for ClaimMut<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: as for `Claim`; nobody else accesses the elements at all.
        unsafe { std::slice::from_raw_parts(self.claimed.first.as_ptr(), self.claimed.len) }
    }
}

impl<T> DerefMut for ClaimMut<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.claimed.first.as_ptr(), self.claimed.len) }
    }
}

impl<T: fmt::Debug> fmt::Debug for ClaimMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
