//! [`Orphan`]: a lock whose holder was killed, as the next holder gets it.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use super::lock_error::LockError;
use super::mutex::MutexGuard;
use crate::layout::{KillSafe, Movable, ShmSafe};
use crate::participants::lock::{self, DIED, PANICKED};
use crate::participants::pid::ProcessId;
use crate::primitive::AtomicU64;

/// What an orphan needs of a guard.
pub trait Exclusive<T> {
    /// The lock's word.
    fn word(&self) -> &AtomicU64;

    /// The value.
    fn value(&self) -> *mut T;

    /// Unlocks, without changing what the word says about the value.
    fn abandon(&self);
}

/// A lock whose holder was killed. The caller holds it now, but has no access to the value, which
/// the dead holder may have written in part.
///
/// Dropping an orphan releases the lock, and the next one to lock gets an orphan again.
///
/// ```
/// use shmkit::{LockError, Mutex, Pool, process};
///
/// let pool = Pool::builder().create()?;
/// let number = pool.create(Mutex::new(1_u32))?;
/// process::scope(|s| {
///     let child = s.spawn::<_, ()>(|| {
///         let _guard = number.lock().unwrap();
///         std::process::abort();
///     });
///     let _ = child.unwrap().join();
/// });
/// let Err(LockError::OwnerDied(orphan)) = number.lock() else { panic!() };
/// assert_eq!(*orphan.into_guard(), 1);
/// assert!(number.lock().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when the orphan is dropped"]
pub struct Orphan<'a, T: ShmSafe, G: Exclusive<T> = MutexGuard<'a, T>> {
    guard: ManuallyDrop<G>,
    owner: Option<ProcessId>,
    value: PhantomData<&'a T>,
}

impl<T: ShmSafe, G: Exclusive<T>> Orphan<'_, T, G> {
    /// Makes an orphan of a guard of a lock whose last holder was killed, so that the value may be
    /// invalid.
    pub(super) fn new(guard: G, owner: Option<ProcessId>) -> Self {
        Orphan {
            guard: ManuallyDrop::new(guard),
            owner,
            value: PhantomData,
        }
    }

    /// The process that died with the lock. `None` if that is not known any more: somebody held the
    /// lock since and dropped an orphan, or the slot or record that named the dead process now
    /// belongs to another.
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool, process};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(Mutex::new(1_u32))?;
    /// let dead = process::scope(|s| {
    ///     let child = s.spawn::<_, ()>(|| {
    ///         let _guard = number.lock().unwrap();
    ///         std::process::abort();
    ///     });
    ///     let child = child.unwrap();
    ///     let id = child.id();
    ///     let _ = child.join();
    ///     id
    /// });
    /// let Err(LockError::OwnerDied(orphan)) = number.lock() else { panic!() };
    /// assert_eq!(orphan.owner(), Some(dead));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn owner(&self) -> Option<ProcessId> {
        self.owner
    }

    /// Replaces the value, and returns an ordinary guard.
    ///
    /// # Crash behaviour
    ///
    /// If the caller is killed at any point, the next one to lock gets an orphan.
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool, process};
    /// # let pool = Pool::builder().create()?;
    /// let name = pool.create(Mutex::new(*b"half"))?;
    /// # process::scope(|s| {
    /// #     let child = s.spawn::<_, ()>(|| {
    /// #         let _guard = name.lock().unwrap();
    /// #         std::process::abort();
    /// #     });
    /// #     let _ = child.unwrap().join();
    /// # });
    /// // Somebody was killed while it had the lock.
    /// let Err(LockError::OwnerDied(orphan)) = name.lock() else { panic!() };
    /// assert_eq!(*orphan.reset(*b"anew"), *b"anew");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reset(self, value: T) -> G
    where
        T: Movable,
    {
        const { T::TYPE.assert_moves() };
        // SAFETY: the caller has the lock, and nobody has had access to the value since it was taken. The old
        // value is not dropped: a `ShmSafe` type has no drop glue.
        unsafe { self.guard.value().write(value) };
        self.cleared(DIED | PANICKED)
    }

    /// Takes the value as it is: some bytes that the dead holder wrote, and others that it had not
    /// written yet.
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool, process};
    /// # let pool = Pool::builder().create()?;
    /// let count = pool.create(Mutex::new(1_u64))?;
    /// # process::scope(|s| {
    /// #     let child = s.spawn::<_, ()>(|| {
    /// #         let _guard = count.lock().unwrap();
    /// #         std::process::abort();
    /// #     });
    /// #     let _ = child.unwrap().join();
    /// # });
    /// // Somebody was killed while it had the lock. Whatever it wrote, a number is a number.
    /// let Err(LockError::OwnerDied(orphan)) = count.lock() else { panic!() };
    /// *orphan.into_guard() += 1;
    /// assert_eq!(*count.lock().unwrap(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_guard(self) -> G
    where
        T: KillSafe,
    {
        self.cleared(DIED)
    }

    /// Takes the value as it is.
    ///
    /// # Safety
    ///
    /// The value is a valid `T`: whatever holders do with it leaves a valid value if they are
    /// stopped between any two instructions.
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool, ShmSafe, process};
    /// # let pool = Pool::builder().create()?;
    /// // Not `KillSafe`: the number is never odd.
    /// #[derive(ShmSafe)]
    /// struct Even(u64);
    ///
    /// let even = pool.create(Mutex::new(Even(2)))?;
    /// # process::scope(|s| {
    /// #     let child = s.spawn::<_, ()>(|| {
    /// #         let _guard = even.lock().unwrap();
    /// #         std::process::abort();
    /// #     });
    /// #     let _ = child.unwrap().join();
    /// # });
    /// // Somebody was killed while it had the lock.
    /// let Err(LockError::OwnerDied(orphan)) = even.lock() else { panic!() };
    /// // SAFETY: all that changes it does so by one store of an even number.
    /// let guard = unsafe { orphan.assume_valid() };
    /// assert_eq!(guard.0 % 2, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn assume_valid(self) -> G {
        self.cleared(DIED)
    }

    /// Clears flags, and gives the guard. Called once the value is valid, so that after a death
    /// before that, the next holder gets an orphan again.
    fn cleared(self, flags: u64) -> G {
        let mut this = ManuallyDrop::new(self);
        lock::clear(this.guard.word(), flags);
        // SAFETY: taken once: `this` is neither dropped nor used again.
        unsafe { ManuallyDrop::take(&mut this.guard) }
    }
}

impl<'a, T: KillSafe, G: Exclusive<T>> LockError<G, Orphan<'a, T, G>> {
    /// The guard, if the lock is held in spite of the error: an earlier holder panicked or was killed with
    /// it, and the value is taken as it is. For values of which any mixture of old and new bytes will do.
    ///
    /// # Errors
    ///
    /// The lock was not taken; the error says why.
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool, process};
    /// # let pool = Pool::builder().create()?;
    /// let count = pool.create(Mutex::new(1_u64))?;
    /// # process::scope(|s| {
    /// #     let child = s.spawn::<_, ()>(|| {
    /// #         let _guard = count.lock().unwrap();
    /// #         std::process::abort();
    /// #     });
    /// #     let _ = child.unwrap().join();
    /// # });
    /// // Somebody was killed while it had the lock.
    /// let mut guard = count.lock().or_else(LockError::into_guard).unwrap();
    /// *guard += 1;
    /// let refused = count.try_lock().or_else(LockError::into_guard);
    /// assert!(matches!(refused, Err(LockError::WouldDeadlock)));
    /// # drop((refused, guard));
    /// assert_eq!(*count.lock().unwrap(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_guard(self) -> Result<G, Self> {
        match self {
            LockError::Panicked(guard) => Ok(guard),
            LockError::OwnerDied(orphan) => Ok(orphan.into_guard()),
            refused => Err(refused),
        }
    }
}

impl<T: ShmSafe, G: Exclusive<T>> Drop for Orphan<'_, T, G> {
    fn drop(&mut self) {
        self.guard.abandon();
    }
}

impl<T: ShmSafe, G: Exclusive<T>> fmt::Debug for Orphan<'_, T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphan")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}
