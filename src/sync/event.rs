//! [`Event`]: a flag that can be waited for, also in a poll loop.
//!
//! # Rationale
//!
//! A set event stays set until it is cleared, so nothing depends on who was waiting at what time: a
//! waiter that is killed takes nothing with it, and whoever looks later sees the same. It is used
//! like this: one side makes work known, then sets the event; the other clears the event, then
//! looks for work. Setting and clearing are exchanges of one word, so if the two meet, either the
//! setter's work is seen or the event is set.
//!
//! ```text
//! bit 0     SET
//! bit 1     WAITERS  somebody sleeps, or may
//! bit 2..   how often it was set; so a waiter does not miss that it was set and cleared again
//! ```
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | setting, before the exchange | nothing | |
//! | setting, after it | a set event, sleepers not woken | they look again within `lock::TICK` |
//! | waiting | WAITERS | a wake-up that nobody needs |
//!
//! # Descriptors
//!
//! A descriptor belongs to one process and cannot be kept in a pool, and a setter in another process
//! cannot reach it. So each descriptor has a thread in its own process, which sleeps on the word as
//! any waiter does, writes to the other end of a socket pair when the event was set, and ends when
//! the descriptor is closed. The thread holds the object that the event is part of, and takes no
//! signals.
//!
//! Invariants
//! 1. The count rises with each change from not set to set, and at no other time.
//! 2. The word that a descriptor's thread looks at is part of an object that the thread holds.

use std::fmt;
use std::io;
use std::marker::PhantomPinned;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layout::arena::Arena;
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::habit::attempt_awake;
use crate::participants::here::{from_nowhere, here};
use crate::participants::lock::{self, TICK};
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::pool::handles::{self, Hold};
use crate::pool::objects;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::descriptor::{Kept, to_keep};
use crate::sys::{futex, signals};

const SET: u64 = 1;
const WAITERS: u64 = 2;
const ONE: u64 = 4;

/// A flag that any process can set, and that any number of threads and poll loops can wait for.
///
/// It stays set until [`clear`](Self::clear) is called.
///
/// # Crash behaviour
///
/// The death of a waiter changes nothing. A setter that is killed has set the event, or it has not;
/// if it has, all waiters go on (up to 4 ms later if it died before it woke them).
///
/// ```
/// use shmkit::{Event, Pool};
///
/// let pool = Pool::builder().create()?;
/// let ready = pool.create(Event::new())?;
/// ready.set();
/// ready.wait()?;
/// assert!(ready.clear());
/// assert!(!ready.is_set());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Event {
    word: AtomicU64,
    _in_place: PhantomPinned,
}

// SAFETY: an atomic word; no `Drop`.
unsafe impl ShmSafe for Event {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Event",
        const { &[Field::at::<std::sync::atomic::AtomicU64>("word", 0)] },
    )
    .in_place();
}

/// Why a wait ended although the event was not set.
///
/// ```
/// use std::time::Duration;
/// use shmkit::{Event, Pool, sync::WaitError};
///
/// let pool = Pool::builder().create()?;
/// let never = pool.create(Event::new())?;
/// assert_eq!(never.wait_timeout(Duration::from_millis(1)), Err(WaitError::TimedOut));
/// assert_eq!(Event::new().wait(), Err(WaitError::NotInPool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WaitError {
    /// The event was not set before the time was up.
    #[error("the event was not set for the whole time limit")]
    TimedOut,
    /// The event is not part of an object in a pool.
    #[error("the event is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(WaitError);

impl Event {
    /// An event that is not set, to be put into a pool.
    ///
    /// ```
    /// # use shmkit::{Event, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ready = pool.create(Event::new())?;
    /// assert!(!ready.is_set());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Event {
            word: AtomicU64::new(0),
            _in_place: PhantomPinned,
        }
    }

    /// Sets the event, and wakes all waiters. What was written before is seen by the threads that
    /// go on.
    ///
    /// # Crash behaviour
    ///
    /// See [`Event`].
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use shmkit::{Event, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let shared = pool.create((AtomicU32::new(0), Event::new()))?;
    /// let (result, ready) = &*shared;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| {
    ///         result.store(42, Ordering::Relaxed);
    ///         ready.set();
    ///     });
    ///     ready.wait().unwrap();
    ///     assert_eq!(result.load(Ordering::Relaxed), 42);
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set(&self) {
        let mut found = self.word.load(Ordering::Relaxed);
        loop {
            let new = if found & SET != 0 {
                found
            } else {
                ((found & !WAITERS) | SET).wrapping_add(ONE)
            };
            // An exchange even if nothing changes: whoever clears the event next sees what was
            // written before.
            match self
                .word
                .compare_exchange(found, new, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) if found != new && found & WAITERS != 0 => {
                    futex::wake(Arena::low_half(&self.word), u32::MAX);
                    return;
                }
                Ok(_) => return,
                Err(now) => found = now,
            }
        }
    }

    /// Clears the event, and returns whether it was set. Clear it first, and then look for what it
    /// was set for.
    ///
    /// ```
    /// # use shmkit::{Event, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let news = pool.create(Event::new())?;
    /// news.set();
    /// assert!(news.clear());
    /// assert!(!news.clear(), "it was not set any more");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear(&self) -> bool {
        self.word.fetch_and(!SET, Ordering::SeqCst) & SET != 0
    }

    /// True if the event is set at this moment.
    ///
    /// ```
    /// # use shmkit::{Event, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ready = pool.create(Event::new())?;
    /// assert!(!ready.is_set());
    /// ready.set();
    /// assert!(ready.is_set());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.word.load(Ordering::SeqCst) & SET != 0
    }

    /// Waits until the event is set. The wait also ends if the event is set and cleared again
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// See [`WaitError`].
    ///
    /// ```
    /// # use shmkit::{Event, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let ready = pool.create(Event::new())?;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| ready.set());
    ///     ready.wait().unwrap();
    ///     assert!(ready.is_set());
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait(&self) -> Result<(), WaitError> {
        self.wait_until(Deadline::NEVER)
    }

    /// As [`wait`](Self::wait), but for at most that time.
    ///
    /// # Errors
    ///
    /// See [`WaitError`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Event, Pool, sync::WaitError};
    /// # let pool = Pool::builder().create()?;
    /// let ready = pool.create(Event::new())?;
    /// assert_eq!(ready.wait_timeout(Duration::from_millis(1)), Err(WaitError::TimedOut));
    /// ready.set();
    /// assert_eq!(ready.wait_timeout(Duration::from_millis(1)), Ok(()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), WaitError> {
        self.wait_until(Deadline::after(timeout))
    }

    fn wait_until(&self, deadline: Deadline) -> Result<(), WaitError> {
        let here = here(self)?;
        let first = self.word.load(Ordering::SeqCst);
        let half = Arena::low_half(&self.word);
        // The word, as long as the event has not been set since `first`.
        let unset = || {
            let found = self.word.load(Ordering::SeqCst);
            (found & SET == 0 && found / ONE == first / ONE).then_some(found)
        };
        if unset().is_some() {
            // The loop finds out what has ended this.
            let _ = attempt_awake(deadline, || unset().is_none().then_some(()));
        }
        loop {
            let Some(found) = unset() else {
                return Ok(());
            };
            if deadline.is_over() {
                return Err(WaitError::TimedOut);
            }
            if let Some(waiting) = self.announce(found) {
                let (arena, slot) = (here.arena, here.slot);
                lock::sleep(arena, slot, half, waiting as u32, Tag::NOBODY, deadline);
            }
        }
    }

    /// Announces that somebody is about to sleep on `found`. Gives the value to sleep on, if the
    /// word still was `found`.
    fn announce(&self, found: u64) -> Option<u64> {
        let waiting = found | WAITERS;
        self.word
            .compare_exchange(found, waiting, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
            .then_some(waiting)
    }

    /// Returns a descriptor for `poll`, `epoll` and what is built on them. It becomes readable when
    /// the event is set; if the event is set now, it is readable at once.
    ///
    /// The descriptor is non-blocking. To use it again, read all there is, so that it is not
    /// readable any more; then clear the event; then look for what the event was set for.
    ///
    /// Each descriptor costs a thread, which wakes up every 4 ms while nothing happens. With it the process
    /// has more than one thread, so `spawn` is refused from then on, and a master in this process starts no
    /// more workers, not even again: who awaits events can be the first worker of a [run](crate::process::run).
    /// The thread ends at most 4 ms after the descriptor and all its duplicates are closed. It takes none of the
    /// program's signals.
    ///
    /// # Errors
    ///
    /// Those of making a socket pair and a thread, and of noting that this process holds the object that the
    /// event is part of; `InvalidInput` if the event is not in a pool.
    ///
    /// # Crash behaviour
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// ```
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let event = pool.create(shmkit::Event::new())?;
    /// let mut descriptor = UnixStream::from(event.open_fd()?);
    /// event.set();
    /// descriptor.set_nonblocking(false)?;
    /// descriptor.read(&mut [0; 64])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_fd(&self) -> io::Result<OwnedFd> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, WaitError::NotInPool);
        let address = std::ptr::from_ref(self).addr();
        let arena = Arena::containing(address).ok_or_else(outside)?;
        let (index, generation) = objects::containing(arena, address).ok_or_else(outside)?;
        let hold = handles::open(arena, index, generation).map_err(io::Error::other)?;
        let (theirs, ours) = UnixStream::pair()?;
        let theirs = UnixStream::from(to_keep(theirs.into())?);
        theirs.set_nonblocking(true)?;
        ours.set_nonblocking(true)?;
        let ours = Kept::new(ours.into())?;
        let mut watch = Watch {
            word: address,
            _hold: hold.ok_or_else(outside)?,
            ours,
            told: 0,
        };
        // Read here, as the event may be set or cleared before the thread begins.
        let found = self.word.load(Ordering::SeqCst);
        watch.told = found / ONE;
        if found & SET != 0 {
            watch.tell();
        }
        let thread = std::thread::Builder::new().name("shmkit-event".into());
        signals::blocked(|| thread.spawn(move || watch.run()))?;
        Ok(theirs.into())
    }
}

impl Default for Event {
    fn default() -> Self {
        Event::new()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("set", &self.is_set())
            .finish()
    }
}

/// The state of the thread of a descriptor.
struct Watch {
    /// The event's address.
    word: usize,
    _hold: Arc<Hold>,
    /// The other end of the descriptor.
    ours: Kept,
    /// How often the event had been set when this was last reported, or when the descriptor was
    /// made.
    told: u64,
}

impl Watch {
    fn run(mut self) {
        // SAFETY: an event of an object that `_hold` holds (invariant 2), used through atomics.
        let event = unsafe { &*std::ptr::with_exposed_provenance::<Event>(self.word) };
        while self.is_open() {
            let found = event.word.load(Ordering::SeqCst);
            if found / ONE != self.told {
                self.told = found / ONE;
                self.tell();
            }
            if let Some(waiting) = event.announce(found) {
                futex::wait(Arena::low_half(&event.word), waiting as u32, TICK);
            }
        }
    }

    /// Makes the descriptor readable.
    fn tell(&self) {
        // If the socket is full, the descriptor is certainly readable; if it is closed, `is_open`
        // notices (SIGPIPE, like any signal, is blocked in this thread).
        let _ = self
            .ours
            .get()
            .and_then(|ours| rustix::io::write(ours, &[1]));
    }

    /// True if the descriptor is open. What is written to it is ignored.
    fn is_open(&self) -> bool {
        let mut ignored = [0; 64];
        let ours = self.ours.get();
        match ours.and_then(|ours| rustix::io::read(ours, &mut ignored)) {
            Ok(read) => read > 0,
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::Pool;

    #[test]
    fn what_was_before_a_descriptor_is_not_told_by_it() {
        let pool = Pool::builder().create().unwrap();
        let event = pool.create(Event::new()).unwrap();
        event.set();
        assert!(event.clear());
        let mut descriptor = UnixStream::from(event.open_fd().unwrap());
        let is_ready = |descriptor: &mut UnixStream| descriptor.read(&mut [0]).is_ok();
        // Its thread has looked when it is about to sleep.
        let until_told = || {
            while event.word.load(Ordering::SeqCst) & WAITERS == 0 {
                std::thread::yield_now();
            }
        };
        until_told();
        assert!(!is_ready(&mut descriptor));
        event.set();
        until_told();
        assert!(is_ready(&mut descriptor));
    }
}
