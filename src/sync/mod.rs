//! Locks and meeting points for processes that may be killed while they use them.
//!
//! | Type | What | If a party is killed |
//! |---|---|---|
//! | [`Mutex`] | one holder at a time | the next holder gets an [`Orphan`] |
//! | [`ReentrantMutex`] | one thread at a time, shared access | the next holder's guard says so |
//! | [`RecoverableMutex`] | one holder at a time | the next holder repairs the value |
//! | [`RwLock`] | many readers or one writer | a reader leaves nothing; a writer leaves a [`WriteOrphan`] |
//! | [`Condvar`] | wait for a change under a mutex | waiters look again |
//! | [`Semaphore`] | permits | its permits come back |
//! | [`Event`] | wait until it is set, also in a poll loop | nothing |
//! | [`Barrier`] | all arrive before any goes on | the others are told that it is broken |
//!
//! All of them are parts of values in a pool, used in place through `&self`. They consist of words:
//! nothing is registered anywhere, and nothing has to be freed. In a `static` or a local variable,
//! operations that lock or wait return `NotInPool`.
//!
//! # Rationale
//!
//! Owners are named by their slot's tag (`participants`), so a thread that waits can ask whether
//! the one it waits for is alive. A sleep lasts at most a few milliseconds before the sleeper looks
//! again, which makes every wake-up an optimisation: one that dies with its sender only costs time.
//!
//! # Threads and forks
//!
//! Guards and permits stay on their thread. A thread that ends with leaked guards or permits does
//! not release them, as what they protect may still be in use. They are released when the process
//! is dead. [`Scope::spawn`](crate::process::Scope::spawn) refuses to fork while there are any. In
//! a process that was forked by other means, the copies of guards are void: dropping them does
//! nothing.

/// A guard is printed as the value that it guards.
macro_rules! shown_as_value {
    ($guard:ident, $bound:ident) => {
        impl<T: $bound + std::fmt::Debug> std::fmt::Debug for $guard<'_, T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                (**self).fmt(f)
            }
        }

        impl<T: $bound + std::fmt::Display> std::fmt::Display for $guard<'_, T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}

mod barrier;
mod condvar;
mod event;
mod lock_error;
mod mutex;
mod orphan;
mod recoverable;
mod reentrant;
mod rwlock;
mod semaphore;

use std::marker::PhantomData;

use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::thread::{self, InPool};

pub use barrier::{Barrier, BarrierError, BarrierWaitResult};
pub use condvar::{Condvar, WaitTimeoutResult};
pub use event::{Event, WaitError};
pub use lock_error::{LockError, LockFailure, LockResult};
pub use mutex::{Mutex, MutexGuard};
pub use orphan::Orphan;
pub use recoverable::{Recover, RecoverableGuard, RecoverableMutex};
pub use reentrant::{Poison, ReentrantGuard, ReentrantMutex};
pub use rwlock::{ReadGuard, RwLock, WriteGuard, WriteOrphan};
pub use semaphore::{AcquireError, AddPermitsError, Permit, Semaphore};

/// What every guard of a lock has besides the lock: which thread has taken it.
///
/// It is one word, as a guard of two words is passed in registers. A larger guard goes through
/// memory, where the processor waits for its parts each time it is copied: that takes three times as
/// long as the lock itself.
#[derive(Clone, Copy)]
struct Holder {
    /// The tag with which the thread took the lock, and perhaps [`UNWINDING`](Self::UNWINDING).
    word: u64,
    _one_thread: PhantomData<*const ()>,
}

impl Holder {
    /// The thread was already unwinding when the guard was made, so the unwinding says nothing
    /// about the guard.
    const UNWINDING: u64 = 1;

    /// The holder for the calling thread, which has taken `lock` with `slot`. The guard is counted by way
    /// of the lock, whose address is known before the slot's.
    #[inline]
    fn new<T: InPool>(lock: &T, slot: &'static Slot) -> Self {
        const { assert!(Self::UNWINDING & Tag::FLAGS != 0) };
        thread::guard_made(lock);
        let unwinding = if std::thread::panicking() {
            Self::UNWINDING
        } else {
            0
        };
        Holder {
            word: slot.tag().word() | unwinding,
            _one_thread: PhantomData,
        }
    }

    /// The same for a guard that never asks whether it [unwound](Self::unwound).
    #[inline]
    fn of_reader<T: InPool>(lock: &T, slot: &'static Slot) -> Self {
        thread::guard_made(lock);
        Holder {
            word: slot.tag().word(),
            _one_thread: PhantomData,
        }
    }

    /// Ends the guard of `lock`. Gives the slot with which to unlock, if this thread of this process
    /// still has the lock.
    #[inline]
    fn end<T: InPool>(&self, lock: &T) -> Option<&'static Slot> {
        let slot = thread::still_held(lock, Tag::of_word(self.word))?;
        thread::guard_dropped(lock);
        Some(slot)
    }

    /// True if the thread has begun to unwind since the guard was made.
    #[inline]
    fn unwound(&self) -> bool {
        self.word & Self::UNWINDING == 0 && std::thread::panicking()
    }
}
