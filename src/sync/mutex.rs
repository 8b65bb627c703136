//! [`Mutex`]: one word (`participants::lock`) and the value.
//!
//! # Rationale
//!
//! The word names the holder, so relocking is an error and not a deadlock, and whoever wants the
//! lock finds out that its holder is dead. What a dead holder leaves need not be a valid `T`:
//! SIGKILL can strike in the middle of a `memcpy`. So its lock is handed on as an [`Orphan`], which
//! has no access to the value until the value is made valid again.
//!
//! | word | meaning | next |
//! |------|---------|------|
//! | free              | the value is valid | held |
//! | free, PANICKED    | valid, a holder unwound | held: [`LockError::Panicked`] |
//! | free, DIED        | perhaps not valid | held: [`LockError::OwnerDied`] |
//! | held              | the holder may be changing the value | free |
//! | held by the dead  | as DIED | held, with DIED: [`LockError::OwnerDied`] |
//!
//! | killed | leaves | the next one gets |
//! |--------|--------|-------------------|
//! | with a guard | a dead tag | an orphan |
//! | with an orphan, also inside `reset` or after it | a dead tag, DIED | an orphan |
//! | after the exchange that unlocks | a free lock, sleepers not woken | the lock, at their next look |
//!
//! Invariants
//! 1. A guard or an orphan exists only on the thread whose tag is in the word.
//! 2. References to the value come only from guards.
//! 3. DIED is cleared only by a holder, once the value is valid.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::panic::RefUnwindSafe;
use std::time::Duration;

use super::Holder;
use super::lock_error::{LockError, LockResult};
use super::orphan::{Exclusive, Orphan};
use crate::layout::{Field, Movable, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::here::{Here, here};
use crate::participants::lock::{self, DIED, PANICKED, Taken};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};

/// A mutual exclusion lock around a value, for any number of threads and processes.
///
/// It always checks for errors: a thread that locks a mutex that it already holds is told so.
///
/// # Crash behaviour
///
/// If a holder is killed, the next one to lock gets [`LockError::OwnerDied`] with the lock held,
/// within milliseconds and without a supervisor. However many holders die one after another,
/// somebody gets the lock in the end.
///
/// ```
/// use shmkit::{Mutex, Pool};
///
/// let pool = Pool::builder().create()?;
/// let total = pool.create(Mutex::new(0_u64))?;
/// *total.lock().unwrap() += 5;
/// assert_eq!(*total.lock().unwrap(), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Mutex<T: ShmSafe> {
    pub(super) word: AtomicU64,
    value: UnsafeCell<T>,
    _in_place: PhantomPinned,
}

// SAFETY: the value is reached by one thread at a time (invariants 1 and 2), and `T: ShmSafe` may
// be sent from thread to thread; the word is atomic.
unsafe impl<T: ShmSafe> Sync for Mutex<T> {}

// As for std's mutex: what a panic leaves is reported to the next holder.
impl<T: ShmSafe> RefUnwindSafe for Mutex<T> {}

// SAFETY: an atomic word, which holds a tag of the pool's own tables, and a value that is listed at
// its offset; no `Drop`. It works between processes as between threads: the tag excludes both.
unsafe impl<T: ShmSafe> ShmSafe for Mutex<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>("Mutex", Self::FIELDS).in_place();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = T::OWNS;
}

pub(super) type Locked<'a, T> = LockResult<MutexGuard<'a, T>, Orphan<'a, T>>;

impl<T: ShmSafe> Mutex<T> {
    pub(super) const FIELDS: &'static [Field] = &[
        Field::at::<std::sync::atomic::AtomicU64>("word", 0),
        Field::at::<T>("value", offset_of!(Self, value)),
    ];

    /// An unlocked mutex, to be put into a pool.
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(Mutex::new(7_u32))?;
    /// assert_eq!(*number.lock().unwrap(), 7);
    /// // It works in a pool only.
    /// assert!(matches!(Mutex::new(7_u32).lock(), Err(LockError::NotInPool)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(value: T) -> Self {
        Mutex {
            word: AtomicU64::new(0),
            value: UnsafeCell::new(value),
            _in_place: PhantomPinned,
        }
    }

    /// Locks the mutex, waiting as long as a live thread holds it.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; [`Panicked`](LockError::Panicked) and [`OwnerDied`](LockError::OwnerDied)
    /// hold the lock, and release it when they are dropped.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed holds the lock, or it does not. If it does, the next one to lock
    /// gets an [`Orphan`].
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let name = pool.create(Mutex::new([0_u8; 16]))?;
    /// let guard = match name.lock() {
    ///     Ok(guard) => guard,
    ///     Err(LockError::OwnerDied(orphan)) => orphan.reset([0; 16]),
    ///     Err(error) => panic!("{error}"),
    /// };
    /// assert!(matches!(name.lock(), Err(LockError::WouldDeadlock)));
    /// # drop(guard);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>, Orphan<'_, T>> {
        let here = here(self)?;
        if lock::try_fast(&self.word, here.slot.tag()).is_some() {
            Ok(MutexGuard::new(self, here.slot))
        } else {
            self.lock_until(here, Deadline::NEVER)
        }
    }

    /// Locks the mutex if no live thread holds it.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(Mutex::new(1_u32))?;
    /// let guard = number.try_lock().unwrap();
    /// std::thread::scope(|s| {
    ///     s.spawn(|| assert!(matches!(number.try_lock(), Err(LockError::WouldBlock))));
    /// });
    /// # drop(guard);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_lock(&self) -> LockResult<MutexGuard<'_, T>, Orphan<'_, T>> {
        let here = here(self)?;
        let taken = lock::try_lock(here.arena, here.slot, &self.word)?;
        self.taken(here, taken)
    }

    /// As [`lock`](Self::lock), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{LockError, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(Mutex::new(1_u32))?;
    /// let guard = number.lock_timeout(Duration::from_millis(1)).unwrap();
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         let late = number.lock_timeout(Duration::from_millis(1));
    ///         assert!(matches!(late, Err(LockError::TimedOut)));
    ///     });
    /// });
    /// # drop(guard);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock_timeout(&self, timeout: Duration) -> LockResult<MutexGuard<'_, T>, Orphan<'_, T>> {
        let here = here(self)?;
        self.lock_until(here, Deadline::after(timeout))
    }

    /// True if a holder has panicked, and nobody has called [`clear_poison`](Self::clear_poison)
    /// since.
    ///
    /// ```
    /// # use std::panic::{AssertUnwindSafe, catch_unwind};
    /// # use shmkit::{Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(Mutex::new(1_u32))?;
    /// assert!(!number.is_poisoned());
    /// let _ = catch_unwind(AssertUnwindSafe(|| {
    ///     let _guard = number.lock();
    ///     panic!("with the lock");
    /// }));
    /// assert!(number.is_poisoned());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        // Relaxed: a hint for a thread that does not hold the lock, and exact for one that does.
        self.word.load(Ordering::Relaxed) & PANICKED != 0
    }

    /// Says that the value is in order although a holder panicked: from now on, locking does not
    /// give [`LockError::Panicked`]. That a holder was killed is not forgotten by this.
    ///
    /// ```
    /// # use std::panic::{AssertUnwindSafe, catch_unwind};
    /// # use shmkit::{LockError, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(Mutex::new(1_u32))?;
    /// # let _ = catch_unwind(AssertUnwindSafe(|| {
    /// #     let _guard = number.lock();
    /// #     panic!("with the lock");
    /// # }));
    /// // A holder has panicked.
    /// let Err(LockError::Panicked(mut guard)) = number.lock() else { panic!() };
    /// *guard = 0;
    /// drop(guard);
    /// number.clear_poison();
    /// assert_eq!(*number.lock().unwrap(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear_poison(&self) {
        lock::clear(&self.word, PANICKED);
    }

    #[cold]
    pub(super) fn lock_until(&self, here: Here, deadline: Deadline) -> Locked<'_, T> {
        let taken = lock::lock(here.arena, here.slot, &self.word, deadline)?;
        self.taken(here, taken)
    }

    /// Locks again after a wait for something that the lock's holder has announced.
    #[cold]
    pub(super) fn relock(&self, here: Here) -> Locked<'_, T> {
        let taken = lock::relock(here.arena, here.slot, &self.word)?;
        self.taken(here, taken)
    }

    /// What the caller, which has just taken the lock, is given.
    #[inline]
    fn taken(&self, here: Here, taken: Taken) -> Locked<'_, T> {
        let guard = MutexGuard::new(self, here.slot);
        if taken.flags & DIED != 0 {
            let owner = here.arena.process_of(taken.from);
            Err(LockError::OwnerDied(Orphan::new(guard, owner)))
        } else if taken.flags & PANICKED != 0 {
            Err(LockError::Panicked(guard))
        } else {
            Ok(guard)
        }
    }
}

impl<T: ShmSafe + Default> Default for Mutex<T> {
    fn default() -> Self {
        Mutex::new(T::default())
    }
}

impl<T: ShmSafe> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Relaxed);
        f.debug_struct("Mutex")
            .field("locked", &!Tag::of_word(word).is_nobody())
            .field("panicked", &(word & PANICKED != 0))
            .field("owner_died", &(word & DIED != 0))
            .finish_non_exhaustive()
    }
}

/// The lock on a [`Mutex`], held; released when it is dropped.
///
/// The value can be changed through the guard if it is `Unpin`. Values that own pool memory are not
/// `Unpin`: they are used in place, through `&self`.
///
/// ```compile_fail,E0080
/// use shmkit::{Pool, Mutex, Semaphore, ShmSafe};
///
/// #[derive(ShmSafe)]
/// struct Held(Semaphore);
///
/// // It is not in the power of safe code to make such a value move.
/// impl Unpin for Held {}
///
/// let pool = Pool::builder().create().unwrap();
/// let lock = pool.create(Mutex::new(Held(Semaphore::new(1)))).unwrap();
/// let held = std::mem::replace(&mut *lock.lock().unwrap(), Held(Semaphore::new(1)));
/// ```
///
/// # Crash behaviour
///
/// A process that is killed with a guard leaves an [`Orphan`] to the next one to lock.
///
/// ```
/// use shmkit::{LockError, Mutex, Pool};
///
/// let pool = Pool::builder().create()?;
/// let total = pool.create(Mutex::new(1_u32))?;
/// let mut guard = total.lock().unwrap();
/// *guard += 1;
/// assert!(matches!(total.try_lock(), Err(LockError::WouldDeadlock)));
/// drop(guard);
/// assert_eq!(*total.lock().unwrap(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when the guard is dropped"]
pub struct MutexGuard<'a, T: ShmSafe> {
    mutex: &'a Mutex<T>,
    holder: Holder,
}

// SAFETY: a shared guard gives access to `&T` and nothing else.
unsafe impl<T: ShmSafe> Sync for MutexGuard<'_, T> {}

impl<'a, T: ShmSafe> MutexGuard<'a, T> {
    /// The calling thread has taken the lock with `slot`.
    #[inline]
    pub(super) fn new(mutex: &'a Mutex<T>, slot: &'static Slot) -> Self {
        MutexGuard {
            mutex,
            holder: Holder::new(mutex, slot),
        }
    }

    /// The mutex that is locked.
    pub(super) fn mutex(this: &Self) -> &'a Mutex<T> {
        this.mutex
    }

    /// Gives the lock back with flags set.
    #[inline]
    pub(super) fn release(&self, set: u64) {
        if let Some(slot) = self.holder.end(self.mutex) {
            lock::unlock(&self.mutex.word, slot.tag(), set);
        }
    }
}

impl<T: ShmSafe> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: by invariants 1 and 2 no other thread has a reference, and by the borrow of the
        // guard nobody has a mutable one.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ShmSafe + Movable> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        const { T::TYPE.assert_moves() };
        // SAFETY: by invariants 1 and 2 no other thread has a reference, and by the borrow of the
        // guard nobody else has one.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ShmSafe> Drop for MutexGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.release(if self.holder.unwound() { PANICKED } else { 0 });
    }
}

shown_as_value!(MutexGuard, ShmSafe);

impl<T: ShmSafe> Exclusive<T> for MutexGuard<'_, T> {
    fn word(&self) -> &AtomicU64 {
        &self.mutex.word
    }

    fn value(&self) -> *mut T {
        self.mutex.value.get()
    }

    fn abandon(&self) {
        // DIED has been in the word since the lock was taken, and stays, by invariant 3. A panic
        // meanwhile says nothing about the value, which nobody saw.
        self.release(0);
    }
}
