//! [`Mailbox`]: many senders, one receiver.
//!
//! # Rationale
//!
//! The messages are in a queue (`containers::queue`), with all that it promises. Who receives holds
//! an owner-tagged lock (`participants::lock`) for as long as it has a [`Receiver`]: so there is one
//! at a time, and the lock of a dead one is taken over by the next. A wake is one more word, which
//! the receiver looks at before it looks for messages.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | sending | as a push | |
//! | receiving | as a pop | |
//! | with the receiver | the dead tag | whoever asks for the receiver next gets it |
//! | waking, before the word is set | nothing | |
//! | waking, after it | a receiver that sleeps on | it looks within `lock::TICK` |
//! | woken, before it returns | no wake | the wake has died with the receiver |

use std::fmt;
use std::marker::{PhantomData, PhantomPinned};
use std::mem::offset_of;
use std::time::{Duration, Instant};

use super::queue::raw::Raw;
use super::queue::{PopError, PushError};
use crate::ShmSafe;
use crate::engines::bell::sleep_on_any;
use crate::engines::queue::Root;
use crate::layout::{Field, TypeInfo};
use crate::participants::here::{Here, from_nowhere, here};
use crate::participants::lock::{self, Taken};
use crate::participants::tag::Tag;
use crate::participants::thread::{self, NoSlot};
use crate::primitive::{AtomicU64, Ordering};
use crate::sync::deadline;

/// Messages from any number of senders to one receiver, in whatever processes.
///
/// The receiver is whoever has called [`receiver`](Self::receiver) and not dropped what it got.
/// Messages wait for it, also while there is none. A mailbox has a fixed number of slots; senders
/// wait while all are taken.
///
/// # Crash behaviour
///
/// Sending and receiving are a push and a pop of a [`Queue`](crate::Queue): they happened or did not,
/// and nobody waits for the dead. If the receiver dies, the next one to ask becomes the receiver, and
/// finds the messages that the dead one had not taken.
///
/// ```
/// use shmkit::process::scope;
/// use shmkit::{Mailbox, Pool, RecvError};
///
/// let pool = Pool::builder().create()?;
/// let mailbox = pool.create(Mailbox::new(4))?;
/// let receiver = mailbox.receiver()?;
/// assert!(mailbox.receiver().is_err(), "there is one");
/// drop(receiver);
/// scope(|s| {
///     for sender in 0..3_u64 {
///         let mailbox = &mailbox;
///         s.spawn(move || mailbox.send(sender).unwrap()).unwrap();
///     }
///     let receiver = mailbox.receiver().unwrap();
///     let sum: u64 = (0..3).map(|_| receiver.recv().unwrap()).sum();
///     assert_eq!(sum, 3);
///     mailbox.wake();
///     assert_eq!(receiver.recv(), Err(RecvError::Woken));
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Mailbox<T: ShmSafe + Unpin> {
    messages: Raw<T>,
    /// The receiver's lock: a word of `participants::lock`.
    receiver: AtomicU64,
    /// Not 0 if the receiver is to be woken.
    woken: AtomicU64,
    _in_place: PhantomPinned,
}

// SAFETY: as for a queue, and two atomic words, one with a tag of the pool's own table.
unsafe impl<T: ShmSafe + Unpin> ShmSafe for Mailbox<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Mailbox",
        const {
            &[
                Field::at::<Root>("root", offset_of!(Self, messages)),
                Field::mention::<T>("T"),
            ]
        },
    )
    .holding::<T>();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = true;
}

/// Why there is no [`Receiver`] to be had.
///
/// ```
/// use shmkit::{Mailbox, Pool, ReceiverError};
///
/// let pool = Pool::builder().create()?;
/// let mailbox = pool.create(Mailbox::<u32>::new(4))?;
/// let receiver = mailbox.receiver()?;
/// assert_eq!(mailbox.receiver().err(), Some(ReceiverError::Taken));
/// let nowhere = Mailbox::<u32>::new(4);
/// assert_eq!(nowhere.receiver().err(), Some(ReceiverError::NotInPool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiverError {
    /// Somebody alive has it, perhaps this thread.
    #[error("the mailbox has a receiver")]
    Taken,
    /// The mailbox is not part of an object in a pool.
    #[error("the mailbox is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(ReceiverError);

/// Why no message was received.
///
/// ```
/// use shmkit::{Mailbox, Pool, RecvError};
///
/// let pool = Pool::builder().create()?;
/// let mailbox = pool.create(Mailbox::<u32>::new(4))?;
/// let receiver = mailbox.receiver()?;
/// assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
/// mailbox.wake();
/// assert_eq!(receiver.recv(), Err(RecvError::Woken));
/// mailbox.close();
/// assert_eq!(receiver.recv(), Err(RecvError::Closed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Somebody has called [`Mailbox::wake`].
    #[error("the receiver was woken")]
    Woken,
    /// There is no message, and the call does not wait.
    #[error("there is no message")]
    Empty,
    /// There was no message all the time.
    #[error("there was no message for the whole time limit")]
    TimedOut,
    /// The mailbox is closed, and there is no message left.
    #[error("the mailbox is closed and empty")]
    Closed,
    /// The mailbox has no slots: there will never be a message.
    #[error("the mailbox has no slots")]
    NoSlots,
    /// The receiver belongs to another process: this is a copy that a fork has made.
    #[error("the receiver is that of a process that has forked")]
    Forked,
}

impl<T: ShmSafe + Unpin> Mailbox<T> {
    /// A mailbox for so many messages, to be put into a pool.
    ///
    /// # Panics
    ///
    /// If there are more than 2^32.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(2))?;
    /// mailbox.send(1)?;
    /// mailbox.send(2)?;
    /// assert!(mailbox.try_send(3).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Mailbox {
            messages: Raw::bounded(capacity),
            receiver: AtomicU64::new(0),
            woken: AtomicU64::new(0),
            _in_place: PhantomPinned,
        }
    }

    /// Sends a message, waiting for room.
    ///
    /// # Errors
    ///
    /// See [`PushRefusal`](crate::PushRefusal). The message comes back with the error.
    ///
    /// # Crash behaviour
    ///
    /// The message is sent, whole, or not.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// mailbox.send("one".len())?;
    /// mailbox.send("three".len())?;
    /// let receiver = mailbox.receiver()?;
    /// assert_eq!((receiver.recv()?, receiver.recv()?), (3, 5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn send(&self, message: T) -> Result<(), PushError<T>> {
        self.messages.push_until(message, None)
    }

    /// Sends a message if there is room.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`PushRefusal::Full`](crate::PushRefusal::Full).
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool, PushRefusal};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(1))?;
    /// mailbox.try_send(7)?;
    /// let refused = mailbox.try_send(8).unwrap_err();
    /// assert_eq!((refused.value, refused.cause), (8, PushRefusal::Full));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_send(&self, message: T) -> Result<(), PushError<T>> {
        self.messages.try_push(message)
    }

    /// As [`send`](Self::send), for that time at most.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`PushRefusal::TimedOut`](crate::PushRefusal::TimedOut).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Mailbox, Pool, PushRefusal};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(1))?;
    /// let limit = Duration::from_millis(1);
    /// mailbox.send_timeout(7, limit)?;
    /// let refused = mailbox.send_timeout(8, limit).unwrap_err();
    /// assert_eq!((refused.value, refused.cause), (8, PushRefusal::TimedOut));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_timeout(&self, message: T, timeout: Duration) -> Result<(), PushError<T>> {
        self.messages.push_until(message, deadline(timeout))
    }

    /// Makes the caller the receiver, until it drops what it gets.
    ///
    /// # Errors
    ///
    /// See [`ReceiverError`].
    ///
    /// # Crash behaviour
    ///
    /// The receiver of a dead process is to be had again.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// mailbox.send(7)?;
    /// let receiver = mailbox.receiver()?;
    /// assert!(mailbox.receiver().is_err(), "there is one");
    /// drop(receiver);
    /// assert_eq!(mailbox.receiver()?.recv(), Ok(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn receiver(&self) -> Result<Receiver<'_, T>, ReceiverError> {
        let Here { arena, slot } = here(self)?;
        let Taken { flags, .. } =
            lock::try_lock(arena, slot, &self.receiver).map_err(|_| ReceiverError::Taken)?;
        // What a dead receiver was doing has happened or not: there is nothing to be put right.
        lock::clear(&self.receiver, flags);
        thread::guard_made(slot);
        Ok(Receiver {
            mailbox: self,
            tag: slot.tag(),
            _one_thread: PhantomData,
        })
    }

    /// Wakes the receiver without a message: its wait, or else its next look, answers
    /// [`RecvError::Woken`]. Wakes that the receiver has not seen yet are one. One that comes during a
    /// receive may be seen by the next.
    ///
    /// # Crash behaviour
    ///
    /// The receiver is woken or not; if the caller is killed in between, within milliseconds.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool, RecvError};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::<u64>::new(4))?;
    /// let receiver = mailbox.receiver()?;
    /// mailbox.wake();
    /// assert_eq!(receiver.recv(), Err(RecvError::Woken));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wake(&self) {
        // A constant stays as it is: only what is in a pool is shared.
        if here(self).is_ok() {
            self.woken.store(1, Ordering::SeqCst);
            self.messages.announce_push();
        }
    }

    /// How many messages wait.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// mailbox.send(7)?;
    /// mailbox.send(8)?;
    /// assert_eq!(mailbox.len(), 2);
    /// mailbox.receiver()?.recv()?;
    /// assert_eq!(mailbox.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// True if no message waits.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// assert!(mailbox.is_empty());
    /// mailbox.send(7)?;
    /// assert!(!mailbox.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many messages can wait.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// mailbox.send(7)?;
    /// assert_eq!(mailbox.capacity(), 4, "those that are taken, too");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.messages.capacity().unwrap_or(0)
    }

    /// Refuses all messages from now on. The receiver can still take those that wait.
    ///
    /// # Crash behaviour
    ///
    /// The mailbox is closed or not.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool, PushRefusal, RecvError};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// mailbox.send(7)?;
    /// mailbox.close();
    /// assert_eq!(mailbox.send(8).unwrap_err().cause, PushRefusal::Closed);
    /// let receiver = mailbox.receiver()?;
    /// assert_eq!(receiver.recv(), Ok(7));
    /// assert_eq!(receiver.recv(), Err(RecvError::Closed));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) {
        self.messages.close();
    }

    /// True once the mailbox is closed.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::<u32>::new(4))?;
    /// assert!(!mailbox.is_closed());
    /// mailbox.close();
    /// assert!(mailbox.is_closed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }
}

impl<T: ShmSafe + Unpin> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("closed", &self.is_closed())
            .finish()
    }
}

/// The right to receive the messages of a [`Mailbox`].
///
/// It stays on its thread, and is given back when it is dropped. While a process has one it does not
/// fork by `spawn`.
///
/// ```
/// use shmkit::process::scope;
/// use shmkit::{Mailbox, Pool};
///
/// let pool = Pool::builder().create()?;
/// let mailbox = pool.create(Mailbox::new(4))?;
/// let first = scope(|s| {
///     s.spawn(|| mailbox.send(7_u32).unwrap()).unwrap();
///     let receiver = mailbox.receiver().unwrap();
///     receiver.recv().unwrap()
/// });
/// assert_eq!(first, 7);
/// assert!(mailbox.receiver().is_ok(), "that one is dropped");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the mailbox has no receiver any more when this is dropped"]
pub struct Receiver<'a, T: ShmSafe + Unpin> {
    mailbox: &'a Mailbox<T>,
    tag: Tag,
    _one_thread: PhantomData<*const ()>,
}

impl<T: ShmSafe + Unpin> Receiver<'_, T> {
    /// Receives a message, waiting for one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`].
    ///
    /// # Crash behaviour
    ///
    /// The message is in the mailbox, or gone with the caller.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// let receiver = mailbox.receiver()?;
    /// mailbox.send(7)?;
    /// mailbox.send(8)?;
    /// assert_eq!((receiver.recv()?, receiver.recv()?), (7, 8));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_until(None)
    }

    /// Receives a message if there is one.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`RecvError::Empty`].
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool, RecvError};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// let receiver = mailbox.receiver()?;
    /// mailbox.send(7)?;
    /// assert_eq!(receiver.try_recv(), Ok(7));
    /// assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_recv(&self) -> Result<T, RecvError> {
        self.look(|| self.mailbox.messages.try_pop())
    }

    /// As [`recv`](Self::recv), for that time at most.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`RecvError::TimedOut`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Mailbox, Pool, RecvError};
    /// # let pool = Pool::builder().create()?;
    /// let mailbox = pool.create(Mailbox::new(4))?;
    /// let receiver = mailbox.receiver()?;
    /// mailbox.send(7)?;
    /// let limit = Duration::from_millis(1);
    /// assert_eq!(receiver.recv_timeout(limit), Ok(7));
    /// assert_eq!(receiver.recv_timeout(limit), Err(RecvError::TimedOut));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        self.recv_until(deadline(timeout))
    }

    #[inline]
    fn recv_until(&self, deadline: Option<Instant>) -> Result<T, RecvError> {
        self.look(|| {
            let messages = &self.mailbox.messages;
            messages.pop_until(deadline, || {
                if self.is_woken() {
                    return Err(PopError::Closed);
                }
                messages.try_pop()
            })
        })
    }

    /// Looks for a wake, and for a message.
    #[inline]
    fn look(&self, pop: impl FnOnce() -> Result<T, PopError>) -> Result<T, RecvError> {
        if thread::still_held(self.mailbox, self.tag).is_none() {
            return Err(RecvError::Forked);
        }
        if self.is_woken() && self.mailbox.woken.swap(0, Ordering::SeqCst) != 0 {
            return Err(RecvError::Woken);
        }
        pop().or_else(|error| self.refused(error))
    }

    #[cold]
    fn refused(&self, error: PopError) -> Result<T, RecvError> {
        // A wake ends a wait.
        if self.mailbox.woken.swap(0, Ordering::SeqCst) != 0 {
            return Err(RecvError::Woken);
        }
        Err(match error {
            PopError::Empty => RecvError::Empty,
            PopError::TimedOut => RecvError::TimedOut,
            PopError::NoCapacity => RecvError::NoSlots,
            _ => RecvError::Closed,
        })
    }

    #[inline]
    fn is_woken(&self) -> bool {
        self.mailbox.woken.load(Ordering::SeqCst) != 0
    }

    /// True if a look would not find the mailbox empty: there is a message or a wake, or it is closed.
    ///
    /// ```
    /// # use shmkit::{Mailbox, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let letters = pool.create(Mailbox::<u32>::new(4))?;
    /// let receiver = letters.receiver()?;
    /// assert!(!receiver.is_ready());
    /// letters.send(7)?;
    /// assert!(receiver.is_ready());
    /// assert_eq!(receiver.recv()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_woken() || !self.mailbox.is_empty() || self.mailbox.is_closed()
    }

    /// Waits until one of several receivers is [ready](Self::is_ready), for that time at most; the
    /// first one that is. All mailboxes are in the same pool, or the wait is a little longer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use shmkit::{Mailbox, Pool, Receiver};
    ///
    /// let pool = Pool::builder().create()?;
    /// let (a, b) = (pool.create(Mailbox::new(4))?, pool.create(Mailbox::new(4))?);
    /// let (ours, theirs) = (a.receiver()?, b.receiver()?);
    /// b.send(7)?;
    /// let limit = Duration::from_secs(1);
    /// assert_eq!(Receiver::wait_any(&[&ours, &theirs], limit), Some(1));
    /// assert_eq!(theirs.try_recv(), Ok(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn wait_any(receivers: &[&Self], timeout: Duration) -> Option<usize> {
        let deadline = deadline(timeout);
        let bells: Vec<_> = receivers
            .iter()
            .map(|receiver| receiver.mailbox.messages.pushes())
            .collect();
        loop {
            let announced: Vec<_> = bells.iter().map(|bell| bell.announce()).collect();
            if let Some(ready) = receivers.iter().position(|receiver| receiver.is_ready()) {
                return Some(ready);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
            sleep_on_any(&bells, &announced, deadline);
        }
    }
}

impl<T: ShmSafe + Unpin> Drop for Receiver<'_, T> {
    fn drop(&mut self) {
        if thread::still_held(self.mailbox, self.tag).is_some() {
            lock::unlock(&self.mailbox.receiver, self.tag, 0);
            thread::guard_dropped(self.mailbox);
        }
    }
}

impl<T: ShmSafe + Unpin> fmt::Debug for Receiver<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("mailbox", self.mailbox)
            .finish()
    }
}
