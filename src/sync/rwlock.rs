//! [`RwLock`]: many readers or one writer.
//!
//! # Rationale
//!
//! It must be noticed when a reader is killed, so each reader is listed, in its own slot
//! (`participants::readers`); the lock's word (`participants::lock`) names only the writer. So a
//! read is one exchange on a cache line of the reader's own, and readers on all processors do not
//! disturb each other. A writer takes the word, which keeps new readers out, and waits for those
//! that are listed: writers do not starve, but have to look at the slots of all threads.
//!
//! A writer that is killed while it waits for readers has changed nothing, and the readers go on.
//! `dirty` distinguishes it from a writer that was killed while it wrote.
//!
//! | word | dirty | meaning | next |
//! |------|---|---------|------|
//! | free             | 0 | the value is valid; listed threads read | held |
//! | free, PANICKED   | 0 | valid; a writer unwound | as above: [`LockError::Panicked`] |
//! | held             | 0 | valid; the holder waits for listed threads | dirty; or free: it gives up |
//! | held             | 1 | the holder may be changing the value; nobody reads | held, 0, by its holder |
//! | free, DIED       | 1 | perhaps not valid; nobody reads | held: [`LockError::OwnerDied`] |
//! | held by the dead | 0 | valid | held, or free, by anybody |
//! | held by the dead | 1 | as DIED | held, with DIED: [`LockError::OwnerDied`] |
//!
//! | killed | leaves | the next one gets |
//! |--------|--------|-------------------|
//! | reading, or about to | an entry in a dead slot | the lock: the entry does not count |
//! | waiting for readers | a dead tag, not dirty | the lock, and readers go on |
//! | with a [`WriteGuard`] or an orphan | a dead tag, dirty | an orphan |
//! | unlocking, once it is not dirty | a dead tag, or sleepers not woken | the lock, at their next look |
//!
//! Invariants
//! 1. `dirty` is changed only by the holder of the word. It is 1 from before a [`WriteGuard`] exists
//!    until after the value is valid again.
//! 2. A [`ReadGuard`] exists only on a thread that lists the lock, and that has seen the word free and
//!    without DIED after listing it.
//! 3. `dirty` becomes 1 only when no live thread lists the lock and has seen the word free.

mod guards;

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;
use std::panic::RefUnwindSafe;
use std::time::Duration;

pub use guards::{ReadGuard, WriteGuard, WriteOrphan};

use super::lock_error::{LockError, LockResult};
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::here::{Here, here};
use crate::participants::lock::{self, DIED, PANICKED, Taken};
use crate::participants::readers;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

/// A reader-writer lock around a value, for many readers at once or one writer, in any number of
/// threads and processes.
///
/// Writers that wait keep new readers out. A thread that locks a lock that it already holds, for
/// reading or for writing, is told so. A thread can read under 31 locks at once.
///
/// # Crash behaviour
///
/// If a reader is killed, it no longer counts. If a writer is killed with a guard, the next one to
/// lock, for reading or for writing, gets [`LockError::OwnerDied`] with the lock held.
///
/// ```
/// use shmkit::{Pool, RwLock};
///
/// let pool = Pool::builder().create()?;
/// let limits = pool.create(RwLock::new([1_u32, 5]))?;
/// assert_eq!(limits.read().unwrap()[1], 5);
/// limits.write().unwrap()[1] = 7;
/// assert_eq!(limits.read().unwrap()[1], 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct RwLock<T: ShmSafe> {
    word: AtomicU64,
    dirty: AtomicU64,
    value: UnsafeCell<T>,
    _in_place: PhantomPinned,
}

// SAFETY: the value is changed by one thread while nobody else reaches it, and shared otherwise
// (invariants 2 and 3); `T: ShmSafe` may be sent and shared. The words are atomic.
unsafe impl<T: ShmSafe> Sync for RwLock<T> {}

// As for std's lock: what a panic leaves is reported to the next holder.
impl<T: ShmSafe> RefUnwindSafe for RwLock<T> {}

// SAFETY: atomic words, one of which holds a tag of the pool's own tables, and a value that is
// listed at its offset; no `Drop`. It works between processes as between threads: lists and tag
// exclude both.
unsafe impl<T: ShmSafe> ShmSafe for RwLock<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "RwLock",
        const {
            &[
                Field::at::<std::sync::atomic::AtomicU64>("word", 0),
                Field::at::<std::sync::atomic::AtomicU64>("dirty", 8),
                Field::at::<T>("value", offset_of!(Self, value)),
            ]
        },
    )
    .in_place();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = T::OWNS;
}

type Read<'a, T> = LockResult<ReadGuard<'a, T>, WriteOrphan<'a, T>>;
type Written<'a, T> = LockResult<WriteGuard<'a, T>, WriteOrphan<'a, T>>;

/// How long a call waits.
#[derive(Clone, Copy)]
enum Patience {
    None,
    Until(Deadline),
}

impl<T: ShmSafe> RwLock<T> {
    /// An unlocked lock, to be put into a pool.
    ///
    /// ```
    /// # use shmkit::{Pool, RwLock, sync::LockError};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RwLock::new(7_u32))?;
    /// assert_eq!(*number.read().unwrap(), 7);
    /// // It works in a pool only.
    /// assert!(matches!(RwLock::new(7_u32).read(), Err(LockError::NotInPool)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(value: T) -> Self {
        RwLock {
            word: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
            value: UnsafeCell::new(value),
            _in_place: PhantomPinned,
        }
    }

    /// Locks for reading, waiting as long as a live thread writes or waits to write.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed, with or without the lock, hinders nobody.
    ///
    /// ```
    /// # use shmkit::{Pool, RwLock};
    /// # let pool = Pool::builder().create()?;
    /// let limits = pool.create(RwLock::new([1_u32, 5]))?;
    /// let guard = limits.read().unwrap();
    /// std::thread::scope(|s| {
    ///     // Others read at the same time.
    ///     s.spawn(|| assert_eq!(limits.read().unwrap()[1], 5));
    /// });
    /// assert_eq!(guard[0], 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn read(&self) -> LockResult<ReadGuard<'_, T>, WriteOrphan<'_, T>> {
        self.read_with(Patience::Until(Deadline::NEVER))
    }

    /// Locks for reading if no live thread writes or waits to write.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// ```
    /// # use shmkit::{Pool, RwLock, sync::LockError};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RwLock::new(1_u32))?;
    /// let writes = number.write().unwrap();
    /// std::thread::scope(|s| {
    ///     s.spawn(|| assert!(matches!(number.try_read(), Err(LockError::WouldBlock))));
    /// });
    /// drop(writes);
    /// assert_eq!(*number.try_read().unwrap(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_read(&self) -> LockResult<ReadGuard<'_, T>, WriteOrphan<'_, T>> {
        self.read_with(Patience::None)
    }

    /// As [`read`](Self::read), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Pool, RwLock, sync::LockError};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RwLock::new(1_u32))?;
    /// let writes = number.write().unwrap();
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         let late = number.read_timeout(Duration::from_millis(1));
    ///         assert!(matches!(late, Err(LockError::TimedOut)));
    ///     });
    /// });
    /// # drop(writes);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_timeout(
        &self,
        timeout: Duration,
    ) -> LockResult<ReadGuard<'_, T>, WriteOrphan<'_, T>> {
        self.read_with(Patience::Until(Deadline::after(timeout)))
    }

    /// Locks for writing, waiting as long as a live thread reads or writes.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed while it waits leaves the lock and the value as they are. One that
    /// is killed with the lock leaves a [`WriteOrphan`] to the next one to lock.
    ///
    /// ```
    /// # use shmkit::{LockError, Pool, RwLock};
    /// # let pool = Pool::builder().create()?;
    /// let name = pool.create(RwLock::new([0_u8; 16]))?;
    /// let guard = match name.write() {
    ///     Ok(guard) => guard,
    ///     Err(LockError::OwnerDied(orphan)) => orphan.reset([0; 16]),
    ///     Err(error) => panic!("{error}"),
    /// };
    /// assert!(matches!(name.read(), Err(LockError::WouldDeadlock)));
    /// # drop(guard);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(&self) -> LockResult<WriteGuard<'_, T>, WriteOrphan<'_, T>> {
        self.write_with(Patience::Until(Deadline::NEVER))
    }

    /// Locks for writing if no live thread reads or writes. Readers that come while the call finds
    /// this out may find the lock taken.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// ```
    /// # use shmkit::{Pool, RwLock, sync::LockError};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RwLock::new(1_u32))?;
    /// let reads = number.read().unwrap();
    /// std::thread::scope(|s| {
    ///     s.spawn(|| assert!(matches!(number.try_write(), Err(LockError::WouldBlock))));
    /// });
    /// drop(reads);
    /// *number.try_write().unwrap() = 2;
    /// assert_eq!(*number.read().unwrap(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_write(&self) -> LockResult<WriteGuard<'_, T>, WriteOrphan<'_, T>> {
        self.write_with(Patience::None)
    }

    /// As [`write`](Self::write), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Pool, RwLock, sync::LockError};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RwLock::new(1_u32))?;
    /// let reads = number.read().unwrap();
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         let late = number.write_timeout(Duration::from_millis(1));
    ///         assert!(matches!(late, Err(LockError::TimedOut)));
    ///     });
    /// });
    /// # drop(reads);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_timeout(
        &self,
        timeout: Duration,
    ) -> LockResult<WriteGuard<'_, T>, WriteOrphan<'_, T>> {
        self.write_with(Patience::Until(Deadline::after(timeout)))
    }

    /// True if a writer has panicked, and nobody has called [`clear_poison`](Self::clear_poison)
    /// since.
    ///
    /// ```
    /// # use std::panic::{AssertUnwindSafe, catch_unwind};
    /// # use shmkit::{Pool, RwLock};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RwLock::new(1_u32))?;
    /// let _ = catch_unwind(AssertUnwindSafe(|| {
    ///     let _guard = number.read();
    ///     panic!("a reader");
    /// }));
    /// assert!(!number.is_poisoned());
    /// let _ = catch_unwind(AssertUnwindSafe(|| {
    ///     let _guard = number.write();
    ///     panic!("a writer");
    /// }));
    /// assert!(number.is_poisoned());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        // Relaxed: a hint for a thread that does not hold the lock, and exact for one that does.
        self.word.load(Ordering::Relaxed) & PANICKED != 0
    }

    /// Says that the value is in order although a writer panicked. That a writer was killed is not
    /// forgotten by this.
    ///
    /// ```
    /// # use std::panic::{AssertUnwindSafe, catch_unwind};
    /// # use shmkit::{Pool, RwLock, sync::LockError};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(RwLock::new(1_u32))?;
    /// # let _ = catch_unwind(AssertUnwindSafe(|| {
    /// #     let _guard = number.write();
    /// #     panic!("a writer");
    /// # }));
    /// // A writer has panicked.
    /// let Err(LockError::Panicked(guard)) = number.read() else { panic!() };
    /// drop(guard);
    /// number.clear_poison();
    /// assert_eq!(*number.read().unwrap(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear_poison(&self) {
        lock::clear(&self.word, PANICKED);
    }

    #[inline]
    fn read_with(&self, patience: Patience) -> Read<'_, T> {
        let here = here(self)?;
        readers::enter(here.slot, &self.word)?;
        if self.word.load(Ordering::SeqCst) == 0 {
            Ok(ReadGuard::new(self, here))
        } else {
            self.read_slow(here, patience)
        }
    }

    /// Locks for reading when the word was not 0 after the lock was listed.
    #[cold]
    fn read_slow(&self, here: Here, patience: Patience) -> Read<'_, T> {
        let mut looked = false;
        loop {
            let word = self.word.load(Ordering::SeqCst);
            let owner = Tag::of_word(word);
            if owner.is_nobody() && word & DIED == 0 {
                let guard = ReadGuard::new(self, here);
                return if word & PANICKED == 0 {
                    Ok(guard)
                } else {
                    Err(LockError::Panicked(guard))
                };
            }
            readers::leave(here.slot, &self.word);
            if owner.is_nobody() || lock::is_over(here.arena, owner) {
                self.see_to_the_dead(here)?;
            } else if let Patience::Until(deadline) = patience {
                lock::wait_until_free(here.arena, here.slot, &self.word, deadline)?;
            } else if owner == here.slot.tag() {
                return Err(LockError::WouldDeadlock);
            } else if !lock::look_for_parked(here.arena, owner, &mut looked) {
                return Err(LockError::WouldBlock);
            }
            readers::enter(here.slot, &self.word)?;
        }
    }

    /// Takes the word from a dead holder: frees it if the value is valid, and gives an orphan if
    /// not.
    fn see_to_the_dead<G>(&self, here: Here) -> Result<(), LockError<G, WriteOrphan<'_, T>>> {
        match lock::try_lock(here.arena, here.slot, &self.word) {
            Ok(taken) => {
                self.check(here, &taken)?;
                lock::unlock_for_all(&self.word, here.slot.tag(), 0);
                Ok(())
            }
            // Somebody else was faster.
            Err(_) => Ok(()),
        }
    }

    /// Locks for writing, as the thread of `here`, if the lock is free and no writer has left a flag; then waits for
    /// readers. `None` in all other cases, which [`write`](Self::write) deals with.
    #[inline(always)]
    pub(crate) fn write_if_free(&self, here: Here) -> Option<WriteGuard<'_, T>> {
        let Here { arena, slot } = here;
        if readers::lists(slot, &self.word) {
            return None;
        }
        let exchanged = lock::try_fast(&self.word, slot.tag())?;
        // Relaxed: as in `check`.
        if self.dirty.load(Ordering::Relaxed) != 0 {
            lock::unlock_for_all(&self.word, slot.tag(), 0);
            return None;
        }
        // By invariant 3.
        readers::wait_for_all(arena, slot, &self.word, exchanged, Deadline::NEVER);
        Some(self.written(here))
    }

    fn write_with(&self, patience: Patience) -> Written<'_, T> {
        let here = here(self)?;
        if readers::lists(here.slot, &self.word) {
            return Err(LockError::WouldDeadlock);
        }
        let (taken, deadline) = match patience {
            Patience::None => (
                lock::try_lock(here.arena, here.slot, &self.word)?,
                Deadline::after(Duration::ZERO),
            ),
            Patience::Until(deadline) => (
                lock::lock(here.arena, here.slot, &self.word, deadline)?,
                deadline,
            ),
        };
        self.check(here, &taken)?;
        // By invariant 3.
        let Here { arena, slot } = here;
        if !readers::wait_for_all(arena, slot, &self.word, taken.exchanged, deadline) {
            lock::unlock_for_all(&self.word, here.slot.tag(), 0);
            return Err(match patience {
                Patience::None => LockError::WouldBlock,
                Patience::Until(_) => LockError::TimedOut,
            });
        }
        let guard = self.written(here);
        if taken.flags & PANICKED == 0 {
            Ok(guard)
        } else {
            Err(LockError::Panicked(guard))
        }
    }

    /// Makes the guard for a caller that has the word, when nobody reads.
    #[inline]
    fn written(&self, here: Here) -> WriteGuard<'_, T> {
        self.dirty.store(1, Ordering::Release);
        // By invariant 1: before any store to the value.
        compiler_fence(Ordering::SeqCst);
        WriteGuard::new(self, here)
    }

    /// The caller has taken the word. Checks whether the value is valid.
    #[inline]
    fn check<G>(&self, here: Here, taken: &Taken) -> Result<(), LockError<G, WriteOrphan<'_, T>>> {
        // Relaxed: taking the word has acquired what its holders wrote.
        if self.dirty.load(Ordering::Relaxed) != 0 {
            let owner = here.arena.process_of(taken.from);
            let guard = WriteGuard::new(self, here);
            return Err(LockError::OwnerDied(WriteOrphan::new(guard, owner)));
        }
        // The dead holder has left the value valid; or the pool is damaged, and this is a flag that
        // nobody has set.
        if taken.flags & DIED != 0 {
            lock::clear(&self.word, DIED);
        }
        Ok(())
    }
}

impl<T: ShmSafe + Default> Default for RwLock<T> {
    fn default() -> Self {
        RwLock::new(T::default())
    }
}

impl<T: ShmSafe> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Relaxed);
        f.debug_struct("RwLock")
            .field("written", &!Tag::of_word(word).is_nobody())
            .field("panicked", &(word & PANICKED != 0))
            .field("owner_died", &(word & DIED != 0))
            .finish_non_exhaustive()
    }
}
