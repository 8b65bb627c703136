//! [`RecoverableMutex`]: a lock whose value repairs itself.
//!
//! # Rationale
//!
//! If a value can always be put right from the bytes that a death leaves, no orphans are needed:
//! the next holder after a death repairs it first, under the lock. A panic of a holder also leaves
//! a half-changed value, so that is repaired in the same way, and there is no poison.
//!
//! The word is that of a mutex (`participants::lock`):
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
//! 1. A guard exists only on the thread whose tag is in the word; references come only from guards.
//! 2. PANICKED and DIED are cleared only after `recover` has returned.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::panic::RefUnwindSafe;
use std::time::Duration;

use super::Holder;
use super::lock_error::LockFailure;
use crate::layout::{Field, KillSafe, Movable, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::here::{Here, here};
use crate::participants::lock::{self, DIED, PANICKED, Refused, Taken};
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};

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
#[repr(C)]
pub struct RecoverableMutex<T: Recover> {
    word: AtomicU64,
    value: UnsafeCell<T>,
    _in_place: PhantomPinned,
}

// SAFETY: the value is reached by one thread at a time (invariant 1), and `T: ShmSafe` may be sent
// from thread to thread; the word is atomic.
unsafe impl<T: Recover> Sync for RecoverableMutex<T> {}

// What a panic leaves is repaired by the next holder.
impl<T: Recover> RefUnwindSafe for RecoverableMutex<T> {}

// SAFETY: an atomic word, which holds a tag of the pool's own tables, and a value that is listed at
// its offset; no `Drop`. It works between processes as between threads: the tag excludes both.
unsafe impl<T: Recover> ShmSafe for RecoverableMutex<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "RecoverableMutex",
        const {
            &[
                Field::at::<std::sync::atomic::AtomicU64>("word", 0),
                Field::at::<T>("value", offset_of!(Self, value)),
            ]
        },
    )
    .in_place();
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
        RecoverableMutex {
            word: AtomicU64::new(0),
            value: UnsafeCell::new(value),
            _in_place: PhantomPinned,
        }
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
        self.outcome(here, lock::try_lock(here.arena, here.slot, &self.word))
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
        let taken = lock::lock(here.arena, here.slot, &self.word, deadline);
        self.outcome(here, taken)
    }

    #[inline]
    fn outcome(
        &self,
        here: Here,
        taken: Result<Taken, Refused>,
    ) -> Result<RecoverableGuard<'_, T>, LockFailure> {
        let taken = taken?;
        let mut guard = RecoverableGuard {
            mutex: self,
            holder: Holder::new(self, here.slot),
        };
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
        let word = self.word.load(Ordering::Relaxed);
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
pub struct RecoverableGuard<'a, T: Recover> {
    mutex: &'a RecoverableMutex<T>,
    holder: Holder,
}

// SAFETY: a shared guard gives access to `&T` and nothing else.
unsafe impl<T: Recover> Sync for RecoverableGuard<'_, T> {}

impl<T: Recover> RecoverableGuard<'_, T> {
    #[cold]
    fn repair(&mut self) {
        self.recover();
        // By invariant 2.
        lock::clear(&self.mutex.word, PANICKED | DIED);
    }
}

impl<T: Recover> Deref for RecoverableGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: by invariant 1 no other thread has a reference, and by the borrow of the guard
        // nobody has a mutable one.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: Recover> DerefMut for RecoverableGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: by invariant 1 no other thread has a reference, and by the borrow of the guard
        // nobody else has one.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: Recover> Drop for RecoverableGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.holder.end(self.mutex) {
            // This is done even if the thread was unwinding before there was a guard: there may have been a second
            // panic, and a repair does no harm to a value that is in order.
            let set = if std::thread::panicking() {
                PANICKED
            } else {
                0
            };
            lock::unlock(&self.mutex.word, slot.tag(), set);
        }
    }
}

shown_as_value!(RecoverableGuard, Recover);
