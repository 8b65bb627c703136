//! The guards of a [`RwLock`], and how it is released. For invariants and what a kill leaves, see
//! `sync::rwlock`.

use std::ops::{Deref, DerefMut};

use super::super::Holder;
use super::super::orphan::{Exclusive, Orphan};
use super::RwLock;
use crate::layout::{Movable, ShmSafe};
use crate::participants::here::Here;
use crate::participants::lock::{self, DIED, PANICKED};
use crate::participants::readers;
use crate::primitive::{AtomicU64, Ordering};

/// The lock on a [`RwLock`], held for reading; released when it is dropped.
///
/// # Crash behaviour
///
/// A process that is killed with the guard leaves nothing behind.
///
/// ```
/// use shmkit::{Pool, RwLock};
///
/// let pool = Pool::builder().create()?;
/// let number = pool.create(RwLock::new(1_u32))?;
/// let guard = number.read().unwrap();
/// assert_eq!(*guard, 1);
/// assert!(number.try_write().is_err());
/// drop(guard);
/// assert!(number.try_write().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadGuard<'a, T: ShmSafe> {
    lock: &'a RwLock<T>,
    holder: Holder,
}

// SAFETY: a shared guard gives access to `&T` and nothing else.
unsafe impl<T: ShmSafe> Sync for ReadGuard<'_, T> {}

impl<'a, T: ShmSafe> ReadGuard<'a, T> {
    /// By invariant 2, the caller lists the lock and has seen it free.
    #[inline]
    pub(super) fn new(lock: &'a RwLock<T>, here: Here) -> Self {
        ReadGuard {
            lock,
            holder: Holder::of_reader(lock, here.slot),
        }
    }
}

impl<T: ShmSafe> RwLock<T> {
    /// Ends a [`ReadGuard`]. The guard is not passed by its address, so it can stay in registers.
    #[inline]
    fn end_reading(&self, holder: Holder) {
        if let Some(slot) = holder.end(self) {
            readers::leave(slot, &self.word);
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
        self.lock.end_reading(self.holder);
    }
}

shown_as_value!(ReadGuard, ShmSafe);

/// The lock on a [`RwLock`], held for writing; released when it is dropped.
///
/// The value can be changed through the guard if it is `Unpin`. Values that own pool memory are not
/// `Unpin`: they are used in place, through `&self`.
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
/// A process that is killed with the guard leaves a [`WriteOrphan`] to the next one to lock.
///
/// ```
/// use shmkit::{Pool, RwLock, sync::LockError};
///
/// let pool = Pool::builder().create()?;
/// let number = pool.create(RwLock::new(1_u32))?;
/// let mut guard = number.write().unwrap();
/// *guard += 1;
/// assert!(matches!(number.try_read(), Err(LockError::WouldDeadlock)));
/// drop(guard);
/// assert_eq!(*number.read().unwrap(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteGuard<'a, T: ShmSafe> {
    lock: &'a RwLock<T>,
    holder: Holder,
}

// SAFETY: a shared guard gives access to `&T` and nothing else.
unsafe impl<T: ShmSafe> Sync for WriteGuard<'_, T> {}

impl<'a, T: ShmSafe> WriteGuard<'a, T> {
    /// By invariants 1 and 3, the caller holds the word, and it is dirty.
    #[inline]
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

impl<T: ShmSafe + Movable> DerefMut for WriteGuard<'_, T> {
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
                // Stored before the value is said to be valid, so that a death in between does not
                // hide it.
                self.lock.word.fetch_or(PANICKED, Ordering::Relaxed);
            }
            // Release: after all stores to the value.
            self.lock.dirty.store(0, Ordering::Release);
            lock::unlock_for_all(&self.lock.word, slot.tag(), 0);
        }
    }
}

shown_as_value!(WriteGuard, ShmSafe);

impl<T: ShmSafe> Exclusive<T> for WriteGuard<'_, T> {
    fn word(&self) -> &AtomicU64 {
        &self.lock.word
    }

    fn value(&self) -> *mut T {
        self.lock.value.get()
    }

    fn abandon(&self) {
        if let Some(slot) = self.holder.end(self.lock) {
            // `dirty` stays 1, by invariant 1.
            lock::unlock_for_all(&self.lock.word, slot.tag(), DIED);
        }
    }
}

/// The lock of a writer that was killed, now held for writing: see [`Orphan`].
///
/// ```
/// use shmkit::{LockError, Pool, RwLock, process};
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
/// let Err(LockError::OwnerDied(orphan)) = number.read() else { panic!() };
/// assert_eq!(*orphan.into_guard(), 1);
/// assert!(number.read().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type WriteOrphan<'a, T> = Orphan<'a, T, WriteGuard<'a, T>>;
