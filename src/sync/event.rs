//! [`Event`]: a flag to wait for, also in a poll loop.
//!
//! # Rationale
//!
//! A set event stays set until it is cleared, so nothing depends on who was waiting when: a waiter
//! that is killed takes nothing with it, and whoever looks later sees the same. The use is: make
//! the work known, then set; and clear, then look for work. Setting and clearing are exchanges of
//! one word, so of a setter and a clearer that meet, the setter's work is seen or the event is set.
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
//! | waiting | WAITERS | a wake-up for nobody |
//!
//! # Descriptors
//!
//! A descriptor is a thing of one process and cannot be kept in a pool, and a setter in another
//! process cannot reach it. So each descriptor has a thread of its own process that sleeps on the
//! word like any waiter, writes to the other end of a socket pair when the event was set, and ends
//! when the descriptor is closed. It holds the object that the event is part of, and takes no signal.
//!
//! Invariants
//! 1. The count rises with each change from not set to set, and never else.
//! 2. The word that a descriptor's thread looks at is part of an object that the thread holds.

use std::fmt;
use std::io::{self, Read, Write};
use std::marker::PhantomPinned;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::deadline;
use crate::layout::arena::Arena;
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::habit::attempt_awake;
use crate::participants::here::{from_nowhere, here};
use crate::participants::lock::{self, TICK};
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::pool::handles::{self, Hold};
use crate::pool::objects;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::{descriptor, futex, signals};

const SET: u64 = 1;
const WAITERS: u64 = 2;
const ONE: u64 = 4;

/// A flag that any process sets, and any number of threads and poll loops wait for.
///
/// It stays set until [`clear`](Self::clear).
///
/// # Crash behaviour
///
/// The death of a waiter changes nothing. A setter that is killed has set it, and then all waiters
/// go on (4 ms later if it died before it woke them), or has not.
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

/// Why a wait ended without the event.
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
    /// It was not set all the time.
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

    /// Sets it, and wakes all who wait. What was written before is seen by who goes on.
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
            // An exchange also where nothing changes: whoever clears it next sees what was
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

    /// Clears it; whether it was set. Clear first, and then look for what it was set for.
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

    /// Whether it is set at this moment.
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

    /// Waits until it is set. Also goes on if it is set and cleared again meanwhile.
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
        self.wait_until(None)
    }

    /// As [`wait`](Self::wait), for that time at most.
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
        self.wait_until(deadline(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<(), WaitError> {
        let here = here(self)?;
        let first = self.word.load(Ordering::SeqCst);
        let half = Arena::low_half(&self.word);
        // What the word is, as long as it was not set.
        let unset = || {
            let found = self.word.load(Ordering::SeqCst);
            (found & SET == 0 && found / ONE == first / ONE).then_some(found)
        };
        let attempt = |()| match unset() {
            Some(_) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        };
        if unset().is_some() {
            // The loop tells what has ended the look.
            let _ = attempt_awake((), deadline, || (), attempt);
        }
        loop {
            let Some(found) = unset() else {
                return Ok(());
            };
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Err(WaitError::TimedOut);
            }
            if let Some(waiting) = self.announce(found) {
                let (arena, slot) = (here.arena, here.slot);
                lock::sleep(arena, slot, half, waiting as u32, Tag::NOBODY, deadline);
            }
        }
    }

    /// Says that somebody is about to sleep on `found`; what to sleep on, if that still is the word.
    fn announce(&self, found: u64) -> Option<u64> {
        let waiting = found | WAITERS;
        self.word
            .compare_exchange(found, waiting, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
            .then_some(waiting)
    }

    /// A descriptor for `poll`, `epoll` and what is built on them. It becomes readable when the event
    /// is set, and is so at once if the event is set now.
    ///
    /// It does not block. Read all there is to make it unreadable again, then clear the event, then
    /// look for what it was set for.
    ///
    /// It costs a thread, which wakes up every 4 ms while nothing happens. With it the process has
    /// more than one thread, so `spawn` is refused from then on; the thread ends, 4 ms later at
    /// most, when the descriptor and all its duplicates are closed. It takes none of the program's signals.
    ///
    /// # Errors
    ///
    /// Those of making a socket pair and a thread; `InvalidInput` if the event is not in a pool.
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
        let theirs = UnixStream::from(descriptor::to_keep(theirs.into())?);
        let ours = UnixStream::from(descriptor::to_keep(ours.into())?);
        theirs.set_nonblocking(true)?;
        ours.set_nonblocking(true)?;
        let mut watch = Watch {
            word: address,
            _hold: hold.ok_or_else(outside)?,
            ours,
            told: 0,
        };
        // Now: the thread may begin when the event has been set, or cleared, since.
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

/// What the thread of a descriptor has.
struct Watch {
    /// The event's address.
    word: usize,
    _hold: Arc<Hold>,
    /// The other end of the descriptor.
    ours: UnixStream,
    /// How often the event had been set when that was told last, or when the descriptor was made.
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
    fn tell(&mut self) {
        // Full: it is readable for certain. Closed: `is_open` sees that.
        let _ = self.ours.write(&[1]);
    }

    /// Whether the descriptor is open. Nobody has anything to say to us.
    fn is_open(&mut self) -> bool {
        let mut ignored = [0; 64];
        match self.ours.read(&mut ignored) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }
}
