//! What a [`RwLock`] is held with, and how it is released. Invariants and deaths: `sync::rwlock`.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use super::super::{Here, Holder};
use super::RwLock;
use crate::layout::{KillSafe, ShmSafe};
use crate::participants::lock::{self, DIED, PANICKED};
use crate::participants::pid::ProcessId;
use crate::participants::readers;
use crate::primitive::Ordering;

/// The lock on a [`RwLock`], held for reading; released when it is dropped.
///
/// # Crash behaviour
///
/// A process killed with it leaves nothing behind.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadGuard<'a, T: ShmSafe> {
    lock: &'a RwLock<T>,
    entry: usize,
    holder: Holder,
}

// SAFETY: through a shared guard there is `&T` and nothing else.
unsafe impl<T: ShmSafe> Sync for ReadGuard<'_, T> {}

impl<'a, T: ShmSafe> ReadGuard<'a, T> {
    /// By invariant 2, the caller lists the lock and has seen it free.
    #[inline]
    pub(super) fn new(lock: &'a RwLock<T>, here: Here, entry: usize) -> Self {
        ReadGuard {
            lock,
            entry,
            holder: Holder::new(lock, here.slot),
        }
    }
}

impl<T: ShmSafe> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: by invariants 2 and 3 nobody has a mutable reference while the guard exists.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ShmSafe> Drop for ReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.holder.end(self.lock) {
            readers::leave(slot, self.entry, &self.lock.word);
        }
    }
}

impl<T: ShmSafe + fmt::Debug> fmt::Debug for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ShmSafe + fmt::Display> fmt::Display for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The lock on a [`RwLock`], held for writing; released when it is dropped.
///
/// The value can be changed through it if it is `Unpin`. Values that own pool memory are not: they
/// are used in place through `&self`.
///
/// ```compile_fail,E0080
/// use shmkit::{Pool, RwLock, Semaphore, ShmSafe};
///
/// #[derive(ShmSafe)]
/// struct Held(Semaphore);
///
/// // It is not in the power of safe code to make such a value move.
/// impl Unpin for Held {}
///
/// let pool = Pool::builder().create().unwrap();
/// let lock = pool.create(RwLock::new(Held(Semaphore::new(1)))).unwrap();
/// let held = std::mem::replace(&mut *lock.write().unwrap(), Held(Semaphore::new(1)));
/// ```
///
/// # Crash behaviour
///
/// A process killed with it leaves a [`WriteOrphan`] to the next.
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteGuard<'a, T: ShmSafe> {
    lock: &'a RwLock<T>,
    holder: Holder,
}

// SAFETY: through a shared guard there is `&T` and nothing else.
unsafe impl<T: ShmSafe> Sync for WriteGuard<'_, T> {}

impl<'a, T: ShmSafe> WriteGuard<'a, T> {
    /// By invariants 1 and 3, the caller holds the word, and it is dirty.
    pub(super) fn new(lock: &'a RwLock<T>, here: Here) -> Self {
        WriteGuard {
            lock,
            holder: Holder::new(lock, here.slot),
        }
    }
}

impl<T: ShmSafe> Deref for WriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: by invariant 3 no other thread has a reference, and by the borrow of the guard
        // nobody has a mutable one.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ShmSafe + Unpin> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        const { T::TYPE.assert_moves() };
        // SAFETY: by invariant 3 no other thread has a reference, and by the borrow of the guard
        // nobody else has one.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ShmSafe> Drop for WriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.holder.end(self.lock) {
            if self.holder.unwound() {
                // Before the value is said to be valid, so that a death between does not hide it.
                self.lock.word.fetch_or(PANICKED, Ordering::Relaxed);
            }
            // Release: after all stores to the value.
            self.lock.dirty.store(0, Ordering::Release);
            lock::unlock_for_all(&self.lock.word, slot.tag(), 0);
        }
    }
}

impl<T: ShmSafe + fmt::Debug> fmt::Debug for WriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ShmSafe + fmt::Display> fmt::Display for WriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The lock of a writer that was killed. It is held for writing now, but there is no access to the
/// value, of which the dead one may have written a part.
///
/// Dropped, it unlocks, and the next one to lock gets an orphan again.
///
/// ```
/// use shmkit::{Pool, RwLock, process, sync::RwLockError};
///
/// let pool = Pool::builder().create()?;
/// let number = pool.create(RwLock::new(1_u32))?;
/// process::scope(|s| {
///     let child = s.spawn::<_, ()>(|| {
///         let _guard = number.write().unwrap();
///         std::process::abort();
///     });
///     let _ = child.unwrap().join();
/// });
/// let Err(RwLockError::OwnerDied(orphan)) = number.read() else { panic!() };
/// assert_eq!(*orphan.into_guard(), 1);
/// assert!(number.read().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when the orphan is dropped"]
pub struct WriteOrphan<'a, T: ShmSafe> {
    guard: ManuallyDrop<WriteGuard<'a, T>>,
    owner: Option<ProcessId>,
}

impl<'a, T: ShmSafe> WriteOrphan<'a, T> {
    /// As for a [`WriteGuard`]: but the value may be invalid.
    pub(super) fn new(lock: &'a RwLock<T>, here: Here, owner: Option<ProcessId>) -> Self {
        WriteOrphan {
            guard: ManuallyDrop::new(WriteGuard::new(lock, here)),
            owner,
        }
    }

    /// The process that died with the lock. `None` if it is not known any more: the lock has gone
    /// through the hands of somebody who dropped an orphan, or another uses what named the dead.
    #[must_use]
    pub fn owner(&self) -> Option<ProcessId> {
        self.owner
    }

    /// Replaces the value, and has the lock as if nothing had happened.
    ///
    /// # Crash behaviour
    ///
    /// Killed anywhere: the next one gets an orphan.
    ///
    /// ```
    /// # use shmkit::{Pool, RwLock, process, sync::RwLockError};
    /// # let pool = Pool::builder().create()?;
    /// let name = pool.create(RwLock::new(*b"half"))?;
    /// # process::scope(|s| {
    /// #     let child = s.spawn::<_, ()>(|| {
    /// #         let _guard = name.write().unwrap();
    /// #         std::process::abort();
    /// #     });
    /// #     let _ = child.unwrap().join();
    /// # });
    /// // Somebody was killed while it wrote.
    /// let Err(RwLockError::OwnerDied(orphan)) = name.read() else { panic!() };
    /// assert_eq!(*orphan.reset(*b"anew"), *b"anew");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reset(self, value: T) -> WriteGuard<'a, T>
    where
        T: Unpin,
    {
        const { T::TYPE.assert_moves() };
        // SAFETY: by invariant 3 nobody has a reference to the value. The old one is not dropped:
        // a `ShmSafe` type has no drop glue.
        unsafe { self.guard.lock.value.get().write(value) };
        self.cleared(DIED | PANICKED)
    }

    /// Takes the value as it is: some bytes that the dead one wrote, and others that it did not.
    ///
    /// ```
    /// # use shmkit::{Pool, RwLock, process, sync::RwLockError};
    /// # let pool = Pool::builder().create()?;
    /// let count = pool.create(RwLock::new(1_u64))?;
    /// # process::scope(|s| {
    /// #     let child = s.spawn::<_, ()>(|| {
    /// #         let _guard = count.write().unwrap();
    /// #         std::process::abort();
    /// #     });
    /// #     let _ = child.unwrap().join();
    /// # });
    /// // Somebody was killed while it wrote. Whatever it wrote, a number is a number.
    /// let Err(RwLockError::OwnerDied(orphan)) = count.write() else { panic!() };
    /// *orphan.into_guard() += 1;
    /// assert_eq!(*count.read().unwrap(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_guard(self) -> WriteGuard<'a, T>
    where
        T: KillSafe,
    {
        self.cleared(DIED)
    }

    /// Takes the value as it is.
    ///
    /// # Safety
    ///
    /// The value is a valid `T`: whatever writers do with it leaves a valid value when it is cut off
    /// between any two instructions.
    ///
    /// ```
    /// # use shmkit::{Pool, RwLock, ShmSafe, process, sync::RwLockError};
    /// # let pool = Pool::builder().create()?;
    /// // Not `KillSafe`: the number is never odd.
    /// #[derive(ShmSafe)]
    /// struct Even(u64);
    ///
    /// let even = pool.create(RwLock::new(Even(2)))?;
    /// # process::scope(|s| {
    /// #     let child = s.spawn::<_, ()>(|| {
    /// #         let _guard = even.write().unwrap();
    /// #         std::process::abort();
    /// #     });
    /// #     let _ = child.unwrap().join();
    /// # });
    /// // Somebody was killed while it wrote.
    /// let Err(RwLockError::OwnerDied(orphan)) = even.read() else { panic!() };
    /// // SAFETY: all that changes it does so by one store of an even number.
    /// let guard = unsafe { orphan.assume_valid() };
    /// assert_eq!(guard.0 % 2, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn assume_valid(self) -> WriteGuard<'a, T> {
        self.cleared(DIED)
    }

    fn cleared(self, flags: u64) -> WriteGuard<'a, T> {
        let mut this = ManuallyDrop::new(self);
        lock::clear(&this.guard.lock.word, flags);
        // SAFETY: taken once: `this` is neither dropped nor used again.
        unsafe { ManuallyDrop::take(&mut this.guard) }
    }
}

impl<T: ShmSafe> Drop for WriteOrphan<'_, T> {
    fn drop(&mut self) {
        let lock = self.guard.lock;
        if let Some(slot) = self.guard.holder.end(lock) {
            // Dirty stays, by invariant 1.
            lock::unlock_for_all(&lock.word, slot.tag(), DIED);
        }
    }
}

impl<T: ShmSafe> fmt::Debug for WriteOrphan<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteOrphan")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}
