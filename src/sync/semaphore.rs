//! [`Semaphore`]: a counter of permits (`participants::detect`), and in each thread's slot a list of
//! those that it holds (`participants::permits`).
//!
//! # Rationale
//!
//! A permit that is held must come back when its holder is killed, so the holder lists it. The
//! counter's changes are detectable: recovery knows whether a dead thread's last change happened.
//! Permits that are added belong to nobody, so adding is one exchange and needs no list.
//!
//! A thread that finds no permit keeps looking for a moment (`habit`), and then sleeps on the word's
//! low half, once that says WAITERS. A thread that gives a permit back and does not find WAITERS makes
//! no call to the kernel.
//!
//! | left | WAITERS | sleepers |
//! |------|---------|----------|
//! | 0 | set | may sleep |
//! | 0 | not set | one thread is under way that sets it again, or finds a permit; or there are none |
//! | more | not set | for each permit that came one was woken; after a sleep, one that leaves some wakes another |
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | taking or giving a permit | an entry TAKING or GIVING | recovery gives the permit back, once |
//! | with a permit | an entry HELD | recovery gives it back |
//! | adding permits, before the exchange | nothing | |
//! | giving or adding, after it | sleepers not woken, WAITERS clear | they look within `lock::TICK` |
//! | about to sleep | WAITERS, perhaps for nobody | a wake that nobody needs |
//! | woken, before it takes a permit | the others asleep | as above, or recovery wakes one |
//!
//! Invariants
//! 1. The counter and the listed permits together are the number of permits that were made and
//!    added, less those that were forgotten.
//! 2. The counter is at most [`Semaphore::MAX_PERMITS`] after adding, and all slots together list
//!    no more than the difference to `permits::MOST`: giving back does not overflow.
//! 3. If somebody sleeps, WAITERS is set, or there is a live thread that was woken or is about to wake one. So WAITERS
//!    is set before a sleep, and by a thread that takes the last permit after a sleep; it is cleared by a thread that
//!    wakes; and a thread that has slept and goes without a permit wakes the others, if WAITERS is clear.

use std::fmt;
use std::marker::{PhantomData, PhantomPinned};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::layout::arena::{Arena, SLOTS};
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::habit::attempt_awake;
use crate::participants::here::{Here, arena_at, from_nowhere, here};
use crate::participants::permits::{self, Pool as _, TakeFailure};
use crate::participants::table::PERMITS;
use crate::participants::tag::Tag;
use crate::participants::thread;
use crate::participants::thread::NoSlot;
use crate::participants::{lock, recovery};
use crate::primitive::{AtomicU64, Ordering};

/// A number of permits that any number of threads and processes can acquire.
///
/// # Crash behaviour
///
/// The permits of a process that is killed come back, including one that it was just taking or
/// giving back. Those that it has consumed ([`Permit::forget`]) do not come back, and those that it
/// has added are not taken away.
///
/// ```
/// use shmkit::{Pool, Semaphore};
///
/// let pool = Pool::builder().create()?;
/// let licences = pool.create(Semaphore::new(2))?;
/// let permit = licences.acquire()?;
/// assert_eq!(licences.available_permits(), 1);
/// drop(permit);
/// assert_eq!(licences.available_permits(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Semaphore {
    word: AtomicU64,
    _in_place: PhantomPinned,
}

// SAFETY: an atomic word that names a slot of the pool's own table; no `Drop`.
unsafe impl ShmSafe for Semaphore {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Semaphore",
        const { &[Field::at::<std::sync::atomic::AtomicU64>("word", 0)] },
    )
    .in_place();
}

/// Why no permit was acquired.
///
/// ```
/// use shmkit::sync::{AcquireError, Semaphore};
///
/// # let pool = shmkit::Pool::builder().create()?;
/// let permits = pool.create(Semaphore::new(100))?;
/// let mut held = Vec::new();
/// let refused = loop {
///     match permits.try_acquire() {
///         Ok(permit) => held.push(permit),
///         Err(error) => break error,
///     }
/// };
/// assert_eq!((refused, held.len()), (AcquireError::TooManyHeld, 28));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AcquireError {
    /// There is no permit left, and the call does not wait.
    #[error("no permit is left")]
    WouldBlock,
    /// There was no permit left until the time was up.
    #[error("no permit was left for the whole time limit")]
    TimedOut,
    /// The thread already holds as many permits as it can, of all semaphores of the pool together: 28.
    #[error("the thread holds as many permits as a thread can")]
    TooManyHeld,
    /// The semaphore is not part of an object in a pool.
    #[error("the semaphore is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(AcquireError);

/// Why no permits were added. The semaphore is as it was.
///
/// ```
/// use shmkit::sync::{AddPermitsError, Semaphore};
///
/// // Not in a pool.
/// let permits = Semaphore::new(1);
/// assert_eq!(permits.add_permits(1), Err(AddPermitsError::NotInPool));
/// assert_eq!(permits.available_permits(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AddPermitsError {
    /// There would be more than [`Semaphore::MAX_PERMITS`].
    #[error("a semaphore has {} permits at most", Semaphore::MAX_PERMITS)]
    Overflow,
    /// The semaphore is not part of an object in a pool.
    #[error("the semaphore is not in a pool")]
    NotInPool,
}

impl Semaphore {
    /// The greatest number of permits that can be available after adding some.
    ///
    /// ```
    /// # use shmkit::sync::{AddPermitsError, Semaphore};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let full = pool.create(Semaphore::new(Semaphore::MAX_PERMITS))?;
    /// assert_eq!(full.add_permits(1), Err(AddPermitsError::Overflow));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const MAX_PERMITS: u32 = permits::MOST - (PERMITS * SLOTS.max) as u32;

    /// A semaphore, to be put into a pool.
    ///
    /// # Panics
    ///
    /// If `permits` is more than [`MAX_PERMITS`](Self::MAX_PERMITS).
    ///
    /// ```
    /// # use shmkit::sync::Semaphore;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let desks = pool.create(Semaphore::new(2))?;
    /// assert_eq!(desks.available_permits(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(permits: u32) -> Self {
        assert!(permits <= Self::MAX_PERMITS, "too many permits");
        Semaphore {
            word: AtomicU64::new(permits as u64),
            _in_place: PhantomPinned,
        }
    }

    /// The number of permits that are available at this moment.
    ///
    /// ```
    /// # use shmkit::sync::Semaphore;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let desks = pool.create(Semaphore::new(3))?;
    /// let _desks = (desks.acquire()?, desks.acquire()?);
    /// assert_eq!(desks.available_permits(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn available_permits(&self) -> u32 {
        permits::left(self.word.load(Ordering::Relaxed))
    }

    /// Takes a permit, waiting for one. A thread can hold at most 28 permits, of all semaphores of
    /// the pool together.
    ///
    /// # Errors
    ///
    /// See [`AcquireError`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has taken no permit, or its permit comes back.
    ///
    /// ```
    /// # use shmkit::sync::Semaphore;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let desks = pool.create(Semaphore::new(2))?;
    /// let desk = desks.acquire()?;
    /// assert_eq!(desks.available_permits(), 1);
    /// drop(desk);
    /// assert_eq!(desks.available_permits(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn acquire(&self) -> Result<Permit<'_>, AcquireError> {
        self.acquire_until(Deadline::NEVER)
    }

    /// Takes a permit if one is available.
    ///
    /// # Errors
    ///
    /// See [`AcquireError`].
    ///
    /// ```
    /// # use shmkit::sync::{AcquireError, Semaphore};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let none = pool.create(Semaphore::new(0))?;
    /// assert_eq!(none.try_acquire().unwrap_err(), AcquireError::WouldBlock);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_>, AcquireError> {
        let here = here(self)?;
        match self.take(here, false) {
            // Gets back the permits of the dead, for callers that try again and again.
            Err(TakeFailure::NoneLeft) if recovery::settle_in_turn(here.arena) => {
                self.take(here, false)
            }
            taken => taken,
        }
        .map(|(permit, _)| permit)
        .map_err(refused)
    }

    /// As [`acquire`](Self::acquire), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// See [`AcquireError`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::sync::{AcquireError, Semaphore};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let desk = pool.create(Semaphore::new(1))?;
    /// let _permit = desk.acquire_timeout(Duration::from_millis(1))?;
    /// let late = desk.acquire_timeout(Duration::from_millis(1));
    /// assert_eq!(late.unwrap_err(), AcquireError::TimedOut);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Permit<'_>, AcquireError> {
        self.acquire_until(Deadline::after(timeout))
    }

    /// Adds permits.
    ///
    /// # Errors
    ///
    /// See [`AddPermitsError`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has added all of them or none.
    ///
    /// ```
    /// # use shmkit::sync::{AddPermitsError, Semaphore};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let items = pool.create(Semaphore::new(0))?;
    /// items.add_permits(3)?;
    /// items.acquire()?.forget();
    /// assert_eq!(items.available_permits(), 2);
    /// assert_eq!(items.add_permits(u32::MAX), Err(AddPermitsError::Overflow));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add_permits(&self, permits: u32) -> Result<(), AddPermitsError> {
        let address = std::ptr::from_ref(self).addr();
        let arena = Arena::containing(address).ok_or(AddPermitsError::NotInPool)?;
        if permits == 0 {
            return Ok(());
        }
        match permits::add(arena, &self.word, permits, Self::MAX_PERMITS) {
            true => Ok(()),
            false => Err(AddPermitsError::Overflow),
        }
    }

    #[inline]
    fn acquire_until(&self, deadline: Deadline) -> Result<Permit<'_>, AcquireError> {
        let here = here(self)?;
        match self.take(here, false) {
            Err(TakeFailure::NoneLeft) => self.acquire_slow(here, deadline),
            Err(failure) => Err(refused(failure)),
            Ok((permit, _)) => Ok(permit),
        }
    }

    #[cold]
    fn acquire_slow(&self, here: Here, deadline: Deadline) -> Result<Permit<'_>, AcquireError> {
        let attempt = || match self.take(here, false) {
            Err(TakeFailure::NoneLeft) => None,
            taken => Some(taken),
        };
        if let Some(taken) = attempt_awake(deadline, attempt) {
            return taken.map(|(permit, _)| permit).map_err(refused);
        }
        let low = Arena::low_half(&self.word);
        let (mut slept, mut is_late) = (false, false);
        loop {
            match self.take(here, slept) {
                Err(TakeFailure::NoneLeft) => {}
                Err(failure) => return Err(refused(failure)),
                Ok((permit, rest)) => {
                    if slept && rest > 0 {
                        here.arena.wake(&self.word, 1);
                    }
                    return Ok(permit);
                }
            }
            if is_late {
                if slept {
                    permits::give_up(here.arena, &self.word);
                }
                return Err(AcquireError::TimedOut);
            }
            if deadline.is_over() {
                // Gets back the permits of the dead, for callers that ask again and again with a
                // short time limit.
                recovery::settle_in_turn(here.arena);
                is_late = true;
            } else if let Some(waiting) = permits::announce(&self.word) {
                lock::sleep(here.arena, here.slot, low, waiting, Tag::NOBODY, deadline);
                slept = true;
            }
        }
    }

    /// Takes a permit, and says how many are left.
    #[inline]
    fn take(&self, here: Here, slept: bool) -> Result<(Permit<'_>, u32), TakeFailure> {
        let (index, rest) = permits::try_take(here.arena, here.slot, &self.word, slept)?;
        thread::guard_made(here.slot);
        let permit = Permit {
            semaphore: self,
            tag: here.slot.tag(),
            index,
            _one_thread: PhantomData,
        };
        Ok((permit, rest))
    }
}

fn refused(failure: TakeFailure) -> AcquireError {
    match failure {
        TakeFailure::NoneLeft => AcquireError::WouldBlock,
        TakeFailure::ListFull => AcquireError::TooManyHeld,
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("available", &self.available_permits())
            .finish()
    }
}

/// A permit of a [`Semaphore`]. It is given back when it is dropped.
///
/// ```
/// use shmkit::sync::Semaphore;
///
/// let pool = shmkit::Pool::builder().create()?;
/// let desks = pool.create(Semaphore::new(1))?;
/// {
///     let _desk = desks.acquire()?;
///     assert!(desks.try_acquire().is_err());
/// }
/// assert!(desks.try_acquire().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the permit is given back when it is dropped"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    tag: Tag,
    index: usize,
    _one_thread: PhantomData<*const ()>,
}

// SAFETY: a shared permit gives access to nothing.
unsafe impl Sync for Permit<'_> {}

impl Permit<'_> {
    /// Consumes the permit: it does not come back, unless it is replaced by
    /// [`Semaphore::add_permits`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has consumed it, or it comes back.
    ///
    /// ```
    /// # use shmkit::sync::Semaphore;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let tickets = pool.create(Semaphore::new(2))?;
    /// tickets.acquire()?.forget();
    /// assert_eq!(tickets.available_permits(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn forget(self) {
        if let Some(slot) = thread::still_held(self.semaphore, self.tag) {
            permits::forget(slot, self.index);
            thread::guard_dropped(self.semaphore);
        }
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if thread::still_held(self.semaphore, self.tag).is_some() {
            let arena = arena_at(std::ptr::from_ref(self.semaphore).addr());
            permits::give(arena, self.tag.slot(), self.index);
            thread::guard_dropped(self.semaphore);
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit { .. }")
    }
}
