//! [`LockError`]: why a lock of any kind was not simply locked.

use std::convert::Infallible;
use std::fmt;

use crate::participants::here::Nowhere;
use crate::participants::lock::Refused;
use crate::participants::readers::NotListed;
use crate::participants::thread::NoSlot;

/// The result of locking: the guard, or why it is not simply that.
///
/// ```
/// use shmkit::sync::{LockResult, MutexGuard, Orphan};
/// use shmkit::{Mutex, Pool};
///
/// /// What the lock guards; 0 if nobody can say that it is right.
/// fn value_or_zero(locked: LockResult<MutexGuard<'_, u32>, Orphan<'_, u32>>) -> u32 {
///     locked.map_or(0, |guard| *guard)
/// }
///
/// let pool = Pool::builder().create()?;
/// let number = pool.create(Mutex::new(7_u32))?;
/// assert_eq!(value_or_zero(number.lock()), 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type LockResult<G, O> = Result<G, LockError<G, O>>;

/// Why a lock was not simply locked. `G` is the guard that was asked for, and `O` is what is given in
/// its place after a death.
///
/// With [`Panicked`](Self::Panicked) and [`OwnerDied`](Self::OwnerDied) the lock is held, and is released when
/// the error is dropped. So the error borrows the lock, and `?` does not turn it into a `Box<dyn Error>`:
/// match it first, or take its text.
///
/// ```
/// use shmkit::{LockError, Mutex, Pool, RwLock};
///
/// let pool = Pool::builder().create()?;
/// let name = pool.create(Mutex::new([0_u8; 16]))?;
/// let guard = match name.lock() {
///     Ok(guard) => guard,
///     Err(LockError::OwnerDied(orphan)) => orphan.reset([0; 16]),
///     Err(error) => return Err(error.to_string().into()),
/// };
/// assert!(matches!(name.lock(), Err(LockError::WouldDeadlock)));
/// # drop(guard);
/// let limits = pool.create(RwLock::new([1_u32, 5]))?;
/// let limits = limits.read().map_err(|error| error.to_string())?;
/// assert_eq!(limits[1], 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError<G, O> {
    /// The lock is held now; an earlier holder panicked with it. The value is valid, but may be half
    /// changed.
    #[error("a holder of the lock panicked")]
    Panicked(G),
    /// The lock is held now (a [`RwLock`](super::RwLock) for writing); an earlier holder was killed
    /// with it.
    #[error("a holder of the lock was killed")]
    OwnerDied(O),
    /// This thread has the lock already.
    #[error("this thread has the lock already")]
    WouldDeadlock,
    /// Somebody else has the lock, and the call does not wait.
    #[error("the lock is held")]
    WouldBlock,
    /// Others had the lock until the time was up.
    #[error("the lock was held for the whole time limit")]
    TimedOut,
    /// The thread already reads under as many locks of the pool as it can. (Only for a
    /// [`RwLock`](super::RwLock).)
    #[error("the thread reads under as many locks as a thread can")]
    TooManyReads,
    /// The lock is not part of an object in a pool.
    #[error("the lock is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// Why a [`ReentrantMutex`](super::ReentrantMutex) or a [`RecoverableMutex`](super::RecoverableMutex) was
/// not taken: locks that report in other ways what happened to earlier holders. Nothing is held, so `?` can
/// pass the error on.
///
/// ```
/// use shmkit::sync::LockFailure;
/// use shmkit::{Pool, ReentrantMutex};
///
/// let pool = Pool::builder().create()?;
/// let number = pool.create(ReentrantMutex::new(5_u8))?;
/// let guard = number.lock()?;
/// std::thread::scope(|s| {
///     s.spawn(|| assert_eq!(number.try_lock().unwrap_err(), LockFailure::WouldBlock));
/// });
/// # drop(guard);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type LockFailure = LockError<Infallible, Infallible>;

impl<G, O> LockError<G, O> {
    /// The same error, with what `f` makes of the guard.
    pub(super) fn map<H>(self, f: impl FnOnce(G) -> H) -> LockError<H, O> {
        match self {
            LockError::Panicked(guard) => LockError::Panicked(f(guard)),
            LockError::OwnerDied(orphan) => LockError::OwnerDied(orphan),
            LockError::WouldDeadlock => LockError::WouldDeadlock,
            LockError::WouldBlock => LockError::WouldBlock,
            LockError::TimedOut => LockError::TimedOut,
            LockError::TooManyReads => LockError::TooManyReads,
            LockError::NotInPool => LockError::NotInPool,
            LockError::NoSlot(no_slot) => LockError::NoSlot(no_slot),
        }
    }
}

impl<G, O> fmt::Debug for LockError<G, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockError::Panicked(_) => "Panicked(..)",
            LockError::OwnerDied(_) => "OwnerDied(..)",
            LockError::WouldDeadlock => "WouldDeadlock",
            LockError::WouldBlock => "WouldBlock",
            LockError::TimedOut => "TimedOut",
            LockError::TooManyReads => "TooManyReads",
            LockError::NotInPool => "NotInPool",
            LockError::NoSlot(_) => "NoSlot",
        })
    }
}

impl<G, O> From<Nowhere> for LockError<G, O> {
    fn from(nowhere: Nowhere) -> Self {
        match nowhere {
            Nowhere::NotInPool => LockError::NotInPool,
            Nowhere::NoSlot => LockError::NoSlot(NoSlot),
        }
    }
}

impl<G, O> From<Refused> for LockError<G, O> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Held => LockError::WouldDeadlock,
            Refused::Busy => LockError::WouldBlock,
            Refused::TimedOut => LockError::TimedOut,
        }
    }
}

impl<G, O> From<NotListed> for LockError<G, O> {
    fn from(why: NotListed) -> Self {
        match why {
            NotListed::Already => LockError::WouldDeadlock,
            NotListed::Full => LockError::TooManyReads,
        }
    }
}
