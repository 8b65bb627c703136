//! Access to the elements of an [`Array`] one at a time. For what a kill leaves and the invariants,
//! see `containers::array`.

use std::mem::MaybeUninit;

use super::super::claims::{Access, ClaimRefusal, Pass};
use super::super::elements;
use super::super::refusals::ElementError;
use super::{Array, STRIPES};
use crate::layout::arena::Arena;
use crate::participants::here::{Here, here};
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::pool::intents::WRITE_MAX;
use crate::{KillSafe, Movable};

impl<T: KillSafe + Movable> Array<T> {
    /// The address of an element. `_pass` keeps the block in place.
    #[inline]
    fn element(
        &self,
        arena: Arena,
        index: usize,
        _pass: &Pass<'_>,
    ) -> Result<*mut T, ElementError> {
        let (elements, len) = self.elements(arena);
        if index >= len {
            return Err(ElementError::OutOfBounds { index, len });
        }
        Ok(elements.wrapping_add(index))
    }

    /// Runs `f` with the element's address, while no claim covers the element. For an element that
    /// is not accessed by one instruction, its stripe's lock is held.
    #[inline]
    fn with_element<R>(
        &self,
        index: usize,
        access: Access,
        f: impl FnOnce(&Slot, *mut T) -> R,
    ) -> Result<R, ElementError> {
        if size_of::<T>() > WRITE_MAX {
            return Err(ElementError::TooLarge);
        }
        let Here { arena, slot } = here(self)?;
        let pass = self.claims.pass(arena, slot, index, access);
        let pass = pass.map_err(|refusal| match refusal {
            ClaimRefusal::Claimed(by) => ElementError::Claimed { by },
            ClaimRefusal::TooMany => unreachable!("an element's pass is no entry"),
        })?;
        let place = self.element(arena, index, &pass)?;
        if Self::ATOMIC {
            return Ok(f(slot, place));
        }
        let stripe = &self.stripes[index % STRIPES];
        // What a dead holder was writing has been written by now, by its intent.
        Ok(lock::with(arena, slot, stripe, || f(slot, place)))
    }

    /// Returns a copy of an element.
    ///
    /// # Errors
    ///
    /// See [`ElementError`]. An element that is claimed for reading can be read. One of more than
    /// 4096 bytes can only be accessed through claims: [`ElementError::TooLarge`].
    ///
    /// ```
    /// # use shmkit::{Array, ElementError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let primes = Array::from_slice_in(pool, &[2_u32, 3, 5])?;
    /// assert_eq!(primes.get(2)?, 5);
    /// assert_eq!(primes.get(3), Err(ElementError::OutOfBounds { index: 3, len: 3 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn get(&self, index: usize) -> Result<T, ElementError>
    where
        T: Copy,
    {
        self.with_element(index, Access::Reads, |_, place| {
            // SAFETY: the pass keeps the block in place, `index` is below its length, and by
            // invariants 2 and 3 everybody accesses the element atomically, or nobody writes to it
            // while we hold its stripe's lock.
            unsafe {
                if Self::ATOMIC {
                    elements::of_bits(elements::load(place))
                } else {
                    place.read()
                }
            }
        })
    }

    /// Overwrites an element.
    ///
    /// # Errors
    ///
    /// See [`ElementError`]; [`TooLarge`](ElementError::TooLarge) above 4096 bytes.
    ///
    /// # Crash behaviour
    ///
    /// All of the element is overwritten, or none of it.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let readings = Array::filled_in(pool, 3, 0.0)?;
    /// readings.set(1, 0.5)?;
    /// assert_eq!(*readings.claim(..)?, [0.0, 0.5, 0.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn set(&self, index: usize, value: T) -> Result<(), ElementError> {
        self.with_element(index, Access::Writes, |slot, place| {
            // SAFETY: as in `get`; and should we die writing bytes, nobody accesses the element until
            // the intent is resolved, as the stripe's lock and the pass remain in force until then.
            unsafe {
                if Self::ATOMIC {
                    elements::store(place, elements::to_bits(value));
                } else {
                    elements::write(slot, place, &value);
                }
            }
        })
    }

    /// Replaces an element by what `f` makes of it, and returns what it was. `f` runs again if
    /// somebody else changes the element meanwhile. Nothing is locked or claimed while `f` runs.
    ///
    /// # Errors
    ///
    /// See [`ElementError`]; [`TooLarge`](ElementError::TooLarge) above 4096 bytes.
    ///
    /// # Panics
    ///
    /// If `f` does. The element is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`set`](Self::set).
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let counters = Array::filled_in(pool, 8, 0_u64)?;
    /// assert_eq!(counters.update(5, |n| n + 1)?, 0);
    /// assert_eq!(counters.get(5)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update(&self, index: usize, mut f: impl FnMut(T) -> T) -> Result<T, ElementError>
    where
        T: Copy,
    {
        if Self::ATOMIC {
            // SAFETY: as in `get`.
            let load = |_: &Slot, place: *mut T| unsafe { elements::load(place) };
            let mut seen = self.with_element(index, Access::Reads, load)?;
            loop {
                // SAFETY: the bits of an element.
                let old = unsafe { elements::of_bits(seen) };
                let new = elements::to_bits(f(old));
                // SAFETY: as in `set`.
                let exchange =
                    |_: &Slot, place: *mut T| unsafe { elements::exchange(place, seen, new) };
                match self.with_element(index, Access::Writes, exchange)? {
                    Ok(()) => return Ok(old),
                    Err(now) => seen = now,
                }
            }
        }
        let (mut seen, mut now) = (MaybeUninit::<T>::uninit(), MaybeUninit::<T>::uninit());
        self.with_element(index, Access::Reads, |_, place| {
            // SAFETY: as in `get`.
            unsafe { elements::copy_bytes(place, &mut seen) };
        })?;
        loop {
            // SAFETY: copied from an element.
            let old = unsafe { seen.assume_init() };
            let new = f(old);
            let unchanged = self.with_element(index, Access::Writes, |slot, place| {
                // SAFETY: as in `set`.
                unsafe {
                    elements::copy_bytes(place, &mut now);
                    let unchanged =
                        elements::frozen_bytes(&mut now) == elements::frozen_bytes(&mut seen);
                    if unchanged {
                        elements::write(slot, place, &new);
                    }
                    unchanged
                }
            })?;
            if unchanged {
                return Ok(old);
            }
            std::mem::swap(&mut seen, &mut now);
        }
    }
}
