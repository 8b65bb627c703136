//! [`Condvar`]: a counter of notifications, on which waiters sleep.
//!
//! # Rationale
//!
//! A waiter reads the counter, unlocks, and sleeps while the counter is what it read. A notification raises the
//! counter and wakes. As the counter is read with the mutex held, a notification for a change that is made under
//! the mutex afterwards changes the counter: none is missed. Neither the number of pending notifications nor the
//! number of waiters is stored anywhere, so there is nothing that a death can put wrong. Before it sleeps, a
//! waiter watches the counter for a moment, as far as that has paid off so far (`participants::habit`).
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | the notifier, after counting | a counter that has changed, sleepers not woken | they see it within `lock::TICK` |
//! | a waiter that was woken, before it acts | a counter that has changed | the others see it within `lock::TICK`, or when recovery wakes them (`watched.condition`) |
//! | a waiter that has the mutex again | a dead tag | the next to lock the mutex gets `OwnerDied` |
//!
//! Invariants
//! 1. The counter only rises (modulo 2^32, which is more than one sleep can miss).
//! 2. `watched.condition` names the condition variable from before the unlock until the mutex is
//!    held again.
//! 3. A wait ends once the counter is not what it was, so there are more wake-ups than
//!    notifications.

use std::fmt;
use std::marker::PhantomPinned;
use std::time::Duration;

use super::Orphan;
use super::lock_error::{LockError, LockResult};
use super::mutex::{Locked, MutexGuard};
use crate::layout::arena::Arena;
use crate::layout::{Field, Movable, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::habit::attempt_awake;
use crate::participants::here::{Here, here};
use crate::participants::lock;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU32, Ordering};
use crate::sys::futex;

/// A condition variable: a place to wait for changes that others make under a
/// [`Mutex`](crate::Mutex).
///
/// A wait may end without a notification, so check the condition in a loop, or use
/// [`wait_while`](Self::wait_while). This is more common than with the standard library's condition
/// variable: after [`notify_one`](Self::notify_one) one waiter is woken at once, and the others
/// also look within a few milliseconds, because the one that was woken may be dead.
///
/// # Crash behaviour
///
/// A waiter or a notifier that is killed takes no notification away from the others.
///
/// ```
/// use shmkit::{Condvar, Mutex, Pool, ShmSafe};
///
/// #[derive(ShmSafe)]
/// struct Gate {
///     open: Mutex<u8>,
///     changed: Condvar,
/// }
///
/// let pool = Pool::builder().create()?;
/// let gate = pool.create(Gate { open: Mutex::new(0), changed: Condvar::new() })?;
/// std::thread::scope(|s| {
///     s.spawn(|| {
///         *gate.open.lock().unwrap() = 1;
///         gate.changed.notify_all();
///     });
///     let open = gate.open.lock().unwrap();
///     let open = gate.changed.wait_while(open, |open| *open == 0).unwrap();
///     assert_eq!(*open, 1);
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Condvar {
    counter: AtomicU32,
    _in_place: PhantomPinned,
}

// SAFETY: an atomic word, which means the same to everybody; no `Drop`.
unsafe impl ShmSafe for Condvar {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Condvar",
        const { &[Field::at::<std::sync::atomic::AtomicU32>("counter", 0)] },
    )
    .in_place();
}

/// Says whether a wait ended because its time was up.
///
/// ```
/// use std::time::Duration;
/// use shmkit::{Condvar, Mutex, Pool};
///
/// let pool = Pool::builder().create()?;
/// let lonely = pool.create((Mutex::new(0_u8), Condvar::new()))?;
/// let guard = lonely.0.lock().unwrap();
/// let (_guard, result) = lonely.1.wait_timeout(guard, Duration::from_millis(1)).unwrap();
/// assert!(result.timed_out(), "nobody notifies");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// True if the time was up.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Condvar, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let gate = pool.create((Mutex::new(false), Condvar::new()))?;
    /// let (open, changed) = &*gate;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         *open.lock().unwrap() = true;
    ///         changed.notify_all();
    ///     });
    ///     let mut guard = open.lock().unwrap();
    ///     while !*guard {
    ///         let (again, result) = changed.wait_timeout(guard, Duration::MAX).unwrap();
    ///         assert!(!result.timed_out());
    ///         guard = again;
    ///     }
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn timed_out(self) -> bool {
        self.0
    }
}

impl Condvar {
    /// A condition variable on which nobody waits, to be put into a pool.
    ///
    /// ```
    /// # use shmkit::{Condvar, LockError, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let number = pool.create(Mutex::new(1_u8))?;
    /// // Like all of its kind, it works in a pool only.
    /// let local = Condvar::new();
    /// let refused = local.wait(number.lock().unwrap());
    /// assert!(matches!(refused, Err(LockError::NotInPool)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Condvar {
            counter: AtomicU32::new(0),
            _in_place: PhantomPinned,
        }
    }

    /// Wakes one waiter, if there is one. Others may wake up and look, too.
    ///
    /// ```
    /// # use shmkit::{Condvar, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let letters = pool.create((Mutex::new(0_u32), Condvar::new()))?;
    /// let (count, arrived) = &*letters;
    /// std::thread::scope(|s| {
    ///     let reader = s.spawn(|| {
    ///         let guard = count.lock().unwrap();
    ///         *arrived.wait_while(guard, |count| *count == 0).unwrap()
    ///     });
    ///     *count.lock().unwrap() = 1;
    ///     arrived.notify_one();
    ///     assert_eq!(reader.join().unwrap(), 1);
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// Wakes all waiters.
    ///
    /// ```
    /// # use shmkit::{Condvar, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let gate = pool.create((Mutex::new(false), Condvar::new()))?;
    /// let (open, changed) = &*gate;
    /// std::thread::scope(|s| {
    ///     let pass = || *changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap();
    ///     let waiters = [s.spawn(pass), s.spawn(pass)];
    ///     *open.lock().unwrap() = true;
    ///     changed.notify_all();
    ///     assert_eq!(waiters.map(|waiter| waiter.join().unwrap()), [true, true]);
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn notify_all(&self) {
        self.notify(u32::MAX);
    }

    fn notify(&self, count: u32) {
        // Release pairs with the Acquire of the waiter that sees it. If the mutex is not held, this
        // alone orders the notifier's stores before what the waiter does.
        self.counter.fetch_add(1, Ordering::Release);
        futex::wake(&self.counter, count);
    }

    /// Unlocks, waits for a notification, and locks again.
    ///
    /// # Errors
    ///
    /// Those of [`Mutex::lock`](crate::Mutex::lock); in particular `OwnerDied` if somebody was killed
    /// while holding the mutex meanwhile. [`LockError::NotInPool`], with the mutex unlocked, if the
    /// condition variable is not part of an object in a pool.
    ///
    /// # Crash behaviour
    ///
    /// A waiter that is killed is like one that never waited, or it holds the mutex.
    ///
    /// ```
    /// # use shmkit::{Condvar, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let gate = pool.create((Mutex::new(false), Condvar::new()))?;
    /// let (open, changed) = &*gate;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         *open.lock().unwrap() = true;
    ///         changed.notify_one();
    ///     });
    ///     let mut guard = open.lock().unwrap();
    ///     while !*guard {
    ///         guard = changed.wait(guard).unwrap();
    ///     }
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait<'a, T: ShmSafe>(
        &self,
        guard: MutexGuard<'a, T>,
    ) -> LockResult<MutexGuard<'a, T>, Orphan<'a, T>> {
        self.wait_until(guard, Deadline::NEVER).0
    }

    /// Waits as long as the condition is true.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// If `condition` does; the mutex is poisoned then.
    ///
    /// ```
    /// # use shmkit::{Condvar, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let work = pool.create((Mutex::new(3_u32), Condvar::new()))?;
    /// let (left, changed) = &*work;
    /// std::thread::scope(|s| {
    ///     for _ in 0..3 {
    ///         s.spawn(|| {
    ///             *left.lock().unwrap() -= 1;
    ///             changed.notify_one();
    ///         });
    ///     }
    ///     let left = changed.wait_while(left.lock().unwrap(), |left| *left > 0).unwrap();
    ///     assert_eq!(*left, 0);
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_while<'a, T: ShmSafe + Movable>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>, Orphan<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// As [`wait`](Self::wait), but for at most that time. The time limit does not apply to locking
    /// again.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Condvar, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let lonely = pool.create((Mutex::new(0_u8), Condvar::new()))?;
    /// let (mutex, condvar) = &*lonely;
    /// let guard = mutex.lock().unwrap();
    /// let (_guard, result) = condvar.wait_timeout(guard, Duration::from_millis(1)).unwrap();
    /// assert!(result.timed_out());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout<'a, T: ShmSafe>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult), Orphan<'a, T>> {
        let (locked, result) = self.wait_until(guard, Deadline::after(timeout));
        both(locked, result)
    }

    /// As [`wait_while`](Self::wait_while), but for at most that time; `condition` is called once more when the
    /// time is over.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// If `condition` does; the mutex is poisoned then.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Condvar, Mutex, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let account = pool.create((Mutex::new(1_u64), Condvar::new()))?;
    /// let (balance, changed) = &*account;
    /// let soon = Duration::from_millis(1);
    /// let guard = balance.lock().unwrap();
    /// let (guard, result) = changed.wait_timeout_while(guard, soon, |b| *b < 5).unwrap();
    /// assert!(result.timed_out());
    /// let (_guard, result) = changed.wait_timeout_while(guard, soon, |b| *b < 1).unwrap();
    /// assert!(!result.timed_out());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout_while<'a, T: ShmSafe + Movable>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult), Orphan<'a, T>> {
        let deadline = Deadline::after(timeout);
        let mut over = WaitTimeoutResult(false);
        loop {
            if !condition(&mut guard) {
                return Ok((guard, WaitTimeoutResult(false)));
            }
            if over.timed_out() {
                return Ok((guard, over));
            }
            let (locked, result) = self.wait_until(guard, deadline);
            (guard, over) = both(locked, result)?;
        }
    }

    fn wait_until<'a, T: ShmSafe>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Deadline,
    ) -> (Locked<'a, T>, WaitTimeoutResult) {
        let address = std::ptr::from_ref(self).addr();
        if Arena::containing(address).is_none() {
            return (Err(LockError::NotInPool), WaitTimeoutResult(false));
        }
        let mutex = MutexGuard::mutex(&guard);
        // The guard's own slot is not used: in a forked child the guard is a copy, and its slot is
        // the parent's.
        let here = match here(mutex) {
            Ok(here) => here,
            Err(nowhere) => return (Err(nowhere.into()), WaitTimeoutResult(false)),
        };
        let condition = &here.slot.watched.condition;
        condition.store(address as u64, Ordering::Release);
        let seen = self.counter.load(Ordering::Acquire);
        drop(guard);
        let notified = || (self.counter.load(Ordering::Acquire) != seen).then_some(());
        let timed_out =
            attempt_awake(deadline, notified).is_none() && self.sleep(here, seen, deadline);
        let locked = mutex.relock(here);
        condition.store(0, Ordering::Release);
        (locked, WaitTimeoutResult(timed_out))
    }

    /// Sleeps as long as the counter is what was seen; true if the time is over before it changes.
    fn sleep(&self, here: Here, seen: u32, deadline: Deadline) -> bool {
        while self.counter.load(Ordering::Acquire) == seen {
            if deadline.is_over() {
                return true;
            }
            let Here { arena, slot } = here;
            lock::sleep(arena, slot, &self.counter, seen, Tag::NOBODY, deadline);
        }
        false
    }
}

/// The result of a wait with a time limit.
fn both<T: ShmSafe>(
    locked: Locked<'_, T>,
    result: WaitTimeoutResult,
) -> LockResult<(MutexGuard<'_, T>, WaitTimeoutResult), Orphan<'_, T>> {
    match locked {
        Ok(guard) => Ok((guard, result)),
        Err(error) => Err(error.map(|guard| (guard, result))),
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Condvar::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar { .. }")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::Mutex;
    use crate::pool::Scratch;

    /// So that recovery wakes the others, if the waiter dies with a notification that one of them needs.
    #[test]
    fn a_slot_says_what_its_thread_waits_for() {
        let pool = Scratch::new();
        let shared = pool.create((Mutex::new(false), Condvar::new())).unwrap();
        let counter = std::ptr::from_ref(&shared.1).addr() as u64;
        let is_waited_for = || {
            let mut slots = pool.0.slots().map(|(_, slot)| &slot.watched.condition);
            slots.any(|condition| condition.load(Ordering::Acquire) == counter)
        };
        let theirs = shared.clone();
        let (tell, told) = mpsc::channel();
        let waiter = thread::spawn(move || {
            let guard = theirs.0.lock().unwrap();
            tell.send(()).unwrap();
            drop(theirs.1.wait_while(guard, |over| !*over).unwrap());
        });
        told.recv().unwrap();
        // It gives up the mutex only by waiting.
        let mut over = shared.0.lock().unwrap();
        assert!(is_waited_for());
        *over = true;
        drop(over);
        shared.1.notify_one();
        waiter.join().unwrap();
        assert!(!is_waited_for());
    }
}
