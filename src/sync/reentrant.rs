//! [`ReentrantMutex`]: a lock that its holder may take again, and that gives shared access only.
//!
//! # Rationale
//!
//! Two guards of one thread may exist at once, so they give `&T`. With shared access only, what a
//! killed holder leaves is a valid `T`: it has changed the value only through atomics, or through
//! types that take care of themselves. So a death is reported ([`ReentrantGuard::poison`]), but is
//! no obstacle.
//!
//! The word is that of a mutex (`participants::lock`), with `depth` beside it:
//!
//! | word | depth |
//! |------|-------|
//! | free | any number; it has no meaning |
//! | held | the number of guards that the holder has, once it has stored 1 |
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | between taking the word and storing 1 | a dead tag, an old depth | the one that takes over stores 1 |
//! | between changing the depth and anything else | a dead tag, that depth | as above |
//!
//! Invariants
//! 1. Only the holder of the word touches `depth`.
//! 2. A thread that takes the word stores 1 before it has a guard.

use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;
use std::ops::Deref;
use std::time::Duration;

use super::Holder;
use super::lock_error::LockFailure;
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::here::{Here, here};
use crate::participants::lock::{self, DIED, PANICKED, Refused, Taken};
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};

/// A lock that a thread may take again while it holds it.
///
/// # Crash behaviour
///
/// If a holder is killed, the next one to lock gets the lock at once, and its guard says what
/// happened.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use shmkit::{Pool, ReentrantMutex};
///
/// let pool = Pool::builder().create()?;
/// let number = pool.create(ReentrantMutex::new(AtomicU32::new(1)))?;
/// let outer = number.lock()?;
/// let inner = number.lock()?;
/// inner.store(2, Ordering::Relaxed);
/// assert_eq!(outer.load(Ordering::Relaxed), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct ReentrantMutex<T: ShmSafe> {
    word: AtomicU64,
    depth: AtomicU64,
    value: T,
    _in_place: PhantomPinned,
}

// SAFETY: atomic words, one of which holds a tag of the pool's own tables, and a value that is
// listed at its offset; no `Drop`.
unsafe impl<T: ShmSafe> ShmSafe for ReentrantMutex<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "ReentrantMutex",
        const {
            &[
                Field::at::<std::sync::atomic::AtomicU64>("word", 0),
                Field::at::<std::sync::atomic::AtomicU64>("depth", 8),
                Field::at::<T>("value", offset_of!(Self, value)),
            ]
        },
    )
    .in_place();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = T::OWNS;
}

/// What happened to a holder of a [`ReentrantMutex`].
///
/// ```
/// use shmkit::sync::{Poison, ReentrantGuard, ReentrantMutex};
///
/// let pool = shmkit::Pool::builder().create()?;
/// let lock = pool.create(ReentrantMutex::new(0_u8))?;
/// shmkit::process::scope(|s| {
///     let child = s.spawn::<_, ()>(|| {
///         let _guard = lock.lock().unwrap();
///         std::process::abort();
///     });
///     let _ = child.unwrap().join();
/// });
/// assert_eq!(ReentrantGuard::poison(&lock.lock()?), Some(Poison::OwnerDied));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Poison {
    /// The holder panicked with the lock held.
    Panicked,
    /// The holder was killed with the lock held.
    OwnerDied,
}

impl<T: ShmSafe> ReentrantMutex<T> {
    /// An unlocked mutex, to be put into a pool.
    ///
    /// ```
    /// # use shmkit::sync::{LockFailure, ReentrantMutex};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let number = pool.create(ReentrantMutex::new(7_u32))?;
    /// assert_eq!(*number.lock()?, 7);
    /// // It works in a pool only.
    /// assert!(matches!(ReentrantMutex::new(7_u32).lock(), Err(LockFailure::NotInPool)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(value: T) -> Self {
        ReentrantMutex {
            word: AtomicU64::new(0),
            depth: AtomicU64::new(0),
            value,
            _in_place: PhantomPinned,
        }
    }

    /// Locks the mutex, waiting as long as another live thread holds it. If this thread holds it
    /// already, it is locked once more.
    ///
    /// # Errors
    ///
    /// See [`LockFailure`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed holds the lock, or it does not; if it does, the lock passes to the
    /// next one.
    ///
    /// ```
    /// # use shmkit::sync::ReentrantMutex;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let number = pool.create(ReentrantMutex::new(7_u32))?;
    /// let outer = number.lock()?;
    /// // Once more, by the same thread.
    /// let inner = number.lock()?;
    /// drop(outer);
    /// std::thread::scope(|s| {
    ///     s.spawn(|| assert!(number.try_lock().is_err(), "there is the inner one"));
    /// });
    /// assert_eq!(*inner, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock(&self) -> Result<ReentrantGuard<'_, T>, LockFailure> {
        self.lock_until(Deadline::NEVER)
    }

    /// Locks the mutex if no other live thread holds it.
    ///
    /// # Errors
    ///
    /// See [`LockFailure`].
    ///
    /// ```
    /// # use shmkit::sync::{LockFailure, ReentrantMutex};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let number = pool.create(ReentrantMutex::new(7_u32))?;
    /// let guards = (number.try_lock()?, number.try_lock()?);
    /// std::thread::scope(|s| {
    ///     s.spawn(|| assert_eq!(number.try_lock().err(), Some(LockFailure::WouldBlock)));
    /// });
    /// drop(guards);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_lock(&self) -> Result<ReentrantGuard<'_, T>, LockFailure> {
        let here = here(self)?;
        self.outcome(here, lock::try_lock(here.arena, here.slot, &self.word))
    }

    /// As [`lock`](Self::lock), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// See [`LockFailure`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::sync::{LockFailure, ReentrantMutex};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let number = pool.create(ReentrantMutex::new(7_u32))?;
    /// let guard = number.lock_timeout(Duration::from_millis(1))?;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         let late = number.lock_timeout(Duration::from_millis(1));
    ///         assert_eq!(late.err(), Some(LockFailure::TimedOut));
    ///     });
    /// });
    /// assert_eq!(*guard, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock_timeout(&self, timeout: Duration) -> Result<ReentrantGuard<'_, T>, LockFailure> {
        self.lock_until(Deadline::after(timeout))
    }

    /// Forgets that a holder panicked or was killed.
    ///
    /// ```
    /// # use std::panic::{AssertUnwindSafe, catch_unwind};
    /// # use shmkit::sync::{Poison, ReentrantGuard, ReentrantMutex};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let lock = pool.create(ReentrantMutex::new(0_u8))?;
    /// let _ = catch_unwind(AssertUnwindSafe(|| {
    ///     let _guard = lock.lock();
    ///     panic!("with the lock");
    /// }));
    /// assert_eq!(ReentrantGuard::poison(&lock.lock()?), Some(Poison::Panicked));
    /// lock.clear_poison();
    /// assert_eq!(ReentrantGuard::poison(&lock.lock()?), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear_poison(&self) {
        lock::clear(&self.word, PANICKED | DIED);
    }

    fn lock_until(&self, deadline: Deadline) -> Result<ReentrantGuard<'_, T>, LockFailure> {
        let here = here(self)?;
        let taken = lock::lock(here.arena, here.slot, &self.word, deadline);
        self.outcome(here, taken)
    }

    fn outcome(
        &self,
        here: Here,
        taken: Result<Taken, Refused>,
    ) -> Result<ReentrantGuard<'_, T>, LockFailure> {
        // Relaxed throughout: by invariant 1, the word orders what different threads do to `depth`.
        match taken {
            Ok(_) => self.depth.store(1, Ordering::Relaxed),
            Err(Refused::Held) => {
                let depth = self.depth.load(Ordering::Relaxed);
                // In a damaged pool, it may be any number.
                self.depth.store(depth.saturating_add(1), Ordering::Relaxed);
            }
            Err(refused) => return Err(refused.into()),
        }
        Ok(ReentrantGuard {
            mutex: self,
            holder: Holder::new(self, here.slot),
        })
    }
}

impl<T: ShmSafe + Default> Default for ReentrantMutex<T> {
    fn default() -> Self {
        ReentrantMutex::new(T::default())
    }
}

impl<T: ShmSafe> fmt::Debug for ReentrantMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Relaxed);
        f.debug_struct("ReentrantMutex")
            .field("locked", &!Tag::of_word(word).is_nobody())
            .finish_non_exhaustive()
    }
}

/// A lock on a [`ReentrantMutex`], held; the last one of the thread to be dropped releases it.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use shmkit::sync::ReentrantMutex;
///
/// let pool = shmkit::Pool::builder().create()?;
/// let total = pool.create(ReentrantMutex::new(AtomicU32::new(0)))?;
/// let guard = total.lock()?;
/// // What is in it is shared, so it takes a type that changes through `&`.
/// guard.fetch_add(5, Ordering::Relaxed);
/// drop(guard);
/// assert_eq!(total.lock()?.load(Ordering::Relaxed), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReentrantGuard<'a, T: ShmSafe> {
    mutex: &'a ReentrantMutex<T>,
    holder: Holder,
}

// SAFETY: a shared guard gives access to `&T` and a look at the word, and nothing else.
unsafe impl<T: ShmSafe> Sync for ReentrantGuard<'_, T> {}

impl<T: ShmSafe> ReentrantGuard<'_, T> {
    /// What happened to a holder since the last [`ReentrantMutex::clear_poison`]; if both happened,
    /// the worse.
    ///
    /// ```
    /// # use std::panic::{AssertUnwindSafe, catch_unwind};
    /// # use shmkit::sync::{Poison, ReentrantGuard, ReentrantMutex};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let lock = pool.create(ReentrantMutex::new(0_u8))?;
    /// assert_eq!(ReentrantGuard::poison(&lock.lock()?), None);
    /// let _ = catch_unwind(AssertUnwindSafe(|| {
    ///     let _guard = lock.lock();
    ///     panic!("with the lock");
    /// }));
    /// assert_eq!(ReentrantGuard::poison(&lock.lock()?), Some(Poison::Panicked));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn poison(this: &Self) -> Option<Poison> {
        let word = this.mutex.word.load(Ordering::Relaxed);
        if word & DIED != 0 {
            Some(Poison::OwnerDied)
        } else if word & PANICKED != 0 {
            Some(Poison::Panicked)
        } else {
            None
        }
    }
}

impl<T: ShmSafe> Deref for ReentrantGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.mutex.value
    }
}

impl<T: ShmSafe> Drop for ReentrantGuard<'_, T> {
    fn drop(&mut self) {
        let Some(slot) = self.holder.end(self.mutex) else {
            return;
        };
        let depth = self.mutex.depth.load(Ordering::Relaxed).saturating_sub(1);
        self.mutex.depth.store(depth, Ordering::Relaxed);
        if self.holder.unwound() {
            self.mutex.word.fetch_or(PANICKED, Ordering::Relaxed);
        }
        if depth == 0 {
            lock::unlock(&self.mutex.word, slot.tag(), 0);
        }
    }
}

shown_as_value!(ReentrantGuard, ShmSafe);
