//! [`RecoverableMutex`]: a lock whose value repairs itself.
//!
//! # Rationale
//!
//! If a value can always be put right from the bytes that a death leaves, no orphans are needed:
//! the next holder after a death repairs it first, under the lock. A panic of a holder also leaves
//! a half-changed value, so that is repaired in the same way, and there is no poison.
//!
//! It is a [`Mutex`] whose word is read in another way:
//!
//! | word | meaning | next |
//! |------|---------|------|
//! | free                     | the value is in order | held |
//! | free, PANICKED or DIED   | to be repaired | held, and [`Recover::recover`] runs |
//! | held, with either        | the holder repairs it | both cleared, once it is repaired |
//! | held                     | the holder may be changing the value | free |
//! | held by the dead         | as DIED | held, with DIED |
//!
//! | killed, or unwinding | leaves | and then |
//! |--------|--------|----------|
//! | with a guard | a dead tag; or PANICKED | the next one repairs |
//! | while it repairs, also in `recover` | a dead tag; or the flags as they were | the next one repairs anew |
//! | after the flags are cleared | as with a guard | the next one repairs what is in order, without harm |
//!
//! Invariants
//! 1. PANICKED and DIED are cleared only after `recover` has returned.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::lock_error::LockFailure;
use super::mutex::{Mutex, MutexGuard};
use crate::layout::{KillSafe, Movable, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::here::{Here, here};
use crate::participants::lock::{self, DIED, PANICKED, Refused, Taken};
use crate::participants::tag::Tag;
use crate::primitive::Ordering;

/// A value that can be put right, whatever a killed process has left of a change to it.
///
/// ```
/// use shmkit::{KillSafe, Recover, ShmSafe};
///
/// /// A sum and its parts; the parts count.
/// #[derive(ShmSafe, KillSafe)]
/// struct Votes {
///     parts: [u64; 3],
///     sum: u64,
/// }
///
/// impl Recover for Votes {
///     fn recover(&mut self) {
///         self.sum = self.parts.iter().sum();
///     }
/// }
///
/// let mut votes = Votes { parts: [1, 2, 3], sum: 3 };
/// votes.recover();
/// assert_eq!(votes.sum, 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Recover: KillSafe + Movable {
    /// Puts the value right.
    ///
    /// It runs under the lock, in the next process that locks after a holder was killed or
    /// panicked. It may itself be killed or panic at any point; then it runs again, on what it
    /// left. So it must come to the same result however often it is begun, and must not change a
    /// value that is in order.
    ///
    /// ```
    /// # use std::panic::{AssertUnwindSafe, catch_unwind};
    /// # use shmkit::{KillSafe, Pool, Recover, RecoverableMutex, ShmSafe};
    /// #[derive(ShmSafe, KillSafe)]
    /// struct Pair(u32, u32);
    ///
    /// impl Recover for Pair {
    ///     fn recover(&mut self) {
    ///         self.1 = self.0;
    ///     }
    /// }
    ///
    /// let pool = Pool::builder().create()?;
    /// let pair = pool.create(RecoverableMutex::new(Pair(1, 1)))?;
    /// let _ = catch_unwind(AssertUnwindSafe(|| {
    ///     pair.lock().unwrap().0 = 2;
    ///     let _guard = pair.lock();
    ///     panic!("before the other");
    /// }));
    /// assert_eq!(pair.lock()?.1, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn recover(&mut self);
}

/// A lock around a value that is repaired, by [`Recover::recover`], after a holder was killed or
/// panicked.
///
/// # Crash behaviour
///
/// If a holder is killed, the next one to lock repairs the value and then has the lock. If that one
/// is killed meanwhile, the one after it does the same.
///
/// ```
/// use shmkit::{KillSafe, Pool, Recover, RecoverableMutex, ShmSafe};
///
/// /// A sum and its parts; the parts count.
/// #[derive(ShmSafe, KillSafe)]
/// struct Votes {
///     parts: [u64; 3],
///     sum: u64,
/// }
///
/// impl Recover for Votes {
///     fn recover(&mut self) {
///         self.sum = self.parts.iter().sum();
///     }
/// }
///
/// let pool = Pool::builder().create()?;
/// let votes = pool.create(RecoverableMutex::new(Votes { parts: [0; 3], sum: 0 }))?;
/// shmkit::process::scope(|s| {
///     let child = s.spawn::<_, ()>(|| {
///         votes.lock().unwrap().parts[1] += 1;
///         let mut guard = votes.lock().unwrap();
///         guard.parts[2] += 1;
///         std::process::abort();
///     });
///     let _ = child.unwrap().join();
/// });
/// assert_eq!(votes.lock()?.sum, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(transparent)]
pub struct RecoverableMutex<T: Recover>(Mutex<T>);

// SAFETY: a mutex, which is `ShmSafe`.
unsafe impl<T: Recover> ShmSafe for RecoverableMutex<T> {
    const TYPE: &'static TypeInfo =
        &TypeInfo::library::<Self>("RecoverableMutex", Mutex::<T>::FIELDS).in_place();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = T::OWNS;
}

impl<T: Recover> RecoverableMutex<T> {
    /// An unlocked mutex, to be put into a pool.
    ///
    /// ```
    /// # use shmkit::{KillSafe, Pool, Recover, RecoverableMutex, ShmSafe, sync::LockFailure};
    /// # #[derive(ShmSafe, KillSafe)]
    /// # struct Number(u32);
    /// # impl Recover for Number {
    /// #     fn recover(&mut self) {}
    /// # }
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RecoverableMutex::new(Number(7)))?;
    /// assert_eq!(number.lock()?.0, 7);
    /// // It works in a pool only.
    /// let local = RecoverableMutex::new(Number(7));
    /// assert!(matches!(local.lock(), Err(LockFailure::NotInPool)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(value: T) -> Self {
        RecoverableMutex(Mutex::new(value))
    }

    /// Locks the mutex, waiting as long as a live thread holds it, and repairs the value if a
    /// holder was killed or panicked.
    ///
    /// # Errors
    ///
    /// See [`LockFailure`].
    ///
    /// # Panics
    ///
    /// If [`Recover::recover`] does. The lock is free then, and the next one to lock repairs the
    /// value.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed holds the lock, or it does not. If it does, the next one to lock
    /// repairs the value.
    ///
    /// ```
    /// # use shmkit::{KillSafe, Pool, Recover, RecoverableMutex, ShmSafe, process};
    /// # #[derive(ShmSafe, KillSafe)]
    /// # struct Pair(u32, u32);
    /// # impl Recover for Pair {
    /// #     fn recover(&mut self) {
    /// #         self.1 = self.0;
    /// #     }
    /// # }
    /// # let pool = Pool::builder().create()?;
    /// // What recovers it makes the second number equal to the first.
    /// let pair = pool.create(RecoverableMutex::new(Pair(1, 1)))?;
    /// process::scope(|s| {
    ///     let child = s.spawn::<_, ()>(|| {
    ///         let mut guard = pair.lock().unwrap();
    ///         guard.0 = 2;
    ///         std::process::abort();
    ///     });
    ///     let _ = child.unwrap().join();
    /// });
    /// assert_eq!(pair.lock()?.1, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock(&self) -> Result<RecoverableGuard<'_, T>, LockFailure> {
        self.lock_until(Deadline::NEVER)
    }

    /// Locks the mutex if no live thread holds it.
    ///
    /// # Errors
    ///
    /// See [`LockFailure`].
    ///
    /// # Panics
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// ```
    /// # use shmkit::{KillSafe, Pool, Recover, RecoverableMutex, ShmSafe, sync::LockFailure};
    /// # #[derive(ShmSafe, KillSafe)]
    /// # struct Number(u32);
    /// # impl Recover for Number {
    /// #     fn recover(&mut self) {}
    /// # }
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RecoverableMutex::new(Number(7)))?;
    /// let guard = number.try_lock()?;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| assert_eq!(number.try_lock().err(), Some(LockFailure::WouldBlock)));
    /// });
    /// assert_eq!(guard.0, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_lock(&self) -> Result<RecoverableGuard<'_, T>, LockFailure> {
        let here = here(self)?;
        self.outcome(here, lock::try_lock(here.arena, here.slot, &self.0.word))
    }

    /// As [`lock`](Self::lock), but waits for at most that time. (The time for a repair is not
    /// limited.)
    ///
    /// # Errors
    ///
    /// See [`LockFailure`].
    ///
    /// # Panics
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{KillSafe, Pool, Recover, RecoverableMutex, ShmSafe, sync::LockFailure};
    /// # #[derive(ShmSafe, KillSafe)]
    /// # struct Number(u32);
    /// # impl Recover for Number {
    /// #     fn recover(&mut self) {}
    /// # }
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RecoverableMutex::new(Number(7)))?;
    /// let guard = number.lock_timeout(Duration::from_millis(1))?;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         let late = number.lock_timeout(Duration::from_millis(1));
    ///         assert_eq!(late.err(), Some(LockFailure::TimedOut));
    ///     });
    /// });
    /// assert_eq!(guard.0, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock_timeout(&self, timeout: Duration) -> Result<RecoverableGuard<'_, T>, LockFailure> {
        self.lock_until(Deadline::after(timeout))
    }

    fn lock_until(&self, deadline: Deadline) -> Result<RecoverableGuard<'_, T>, LockFailure> {
        let here = here(self)?;
        let taken = lock::lock(here.arena, here.slot, &self.0.word, deadline);
        self.outcome(here, taken)
    }

    #[inline]
    fn outcome(
        &self,
        here: Here,
        taken: Result<Taken, Refused>,
    ) -> Result<RecoverableGuard<'_, T>, LockFailure> {
        let taken = taken?;
        let mut guard = RecoverableGuard(ManuallyDrop::new(MutexGuard::new(&self.0, here.slot)));
        if taken.flags != 0 {
            guard.repair();
        }
        Ok(guard)
    }
}

impl<T: Recover + Default> Default for RecoverableMutex<T> {
    fn default() -> Self {
        RecoverableMutex::new(T::default())
    }
}

impl<T: Recover> fmt::Debug for RecoverableMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.0.word.load(Ordering::Relaxed);
        f.debug_struct("RecoverableMutex")
            .field("locked", &!Tag::of_word(word).is_nobody())
            .field("to_be_repaired", &(word & (PANICKED | DIED) != 0))
            .finish_non_exhaustive()
    }
}

/// The lock on a [`RecoverableMutex`], held; released when it is dropped.
///
/// ```
/// # use shmkit::{KillSafe, Pool, Recover, RecoverableMutex, ShmSafe, sync::LockFailure};
/// # #[derive(ShmSafe, KillSafe)]
/// # struct Number(u32);
/// # impl Recover for Number {
/// #     fn recover(&mut self) {}
/// # }
/// let pool = Pool::builder().create()?;
/// let number = pool.create(RecoverableMutex::new(Number(7)))?;
/// let mut guard = number.lock()?;
/// guard.0 += 1;
/// assert_eq!(number.lock().err(), Some(LockFailure::WouldDeadlock));
/// drop(guard);
/// assert_eq!(number.lock()?.0, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when the guard is dropped"]
pub struct RecoverableGuard<'a, T: Recover>(ManuallyDrop<MutexGuard<'a, T>>);

impl<T: Recover> RecoverableGuard<'_, T> {
    #[cold]
    fn repair(&mut self) {
        self.recover();
        // By invariant 1.
        lock::clear(&MutexGuard::mutex(&self.0).word, PANICKED | DIED);
    }
}

impl<T: Recover> Deref for RecoverableGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Recover> DerefMut for RecoverableGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Recover> Drop for RecoverableGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // This is set even if the thread was unwinding before there was a guard: there may have been a second panic, and
        // a repair does no harm to a value that is in order.
        let is_panicking = std::thread::panicking();
        self.0.release(if is_panicking { PANICKED } else { 0 });
    }
}

shown_as_value!(RecoverableGuard, Recover);
