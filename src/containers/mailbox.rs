//! [`Mailbox`]: many senders, one receiver.
//!
//! # Rationale
//!
//! The messages are in a queue (`containers::queue`), with all that it promises. The receiving
//! thread holds an owner-tagged lock (`participants::lock`) for as long as it has a [`Receiver`]: so
//! there is one receiver at a time, and the lock of a dead one is taken over by the next. A wake is
//! one more word, which the receiver looks at before it looks for messages.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | sending | as a push | |
//! | receiving | as a pop | |
//! | holding the receiver | the dead tag | whoever asks for the receiver next gets it |
//! | waking, before the word is set | nothing | |
//! | waking, after it | a receiver that sleeps on | it looks within `lock::TICK` |
//! | woken, before it returns | no wake | the wake has died with the receiver |

use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::queue::PushError;
use super::queue::raw::Raw;
use crate::engines::queue::Root;
use crate::layout::arena::Arena;
use crate::layout::{Field, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::here::{Here, from_nowhere, here};
use crate::participants::lock::{self, Taken};
use crate::participants::thread::{self, NoSlot};
use crate::primitive::{AtomicU64, Ordering};
use crate::{Movable, ShmSafe};

mod receiver;

pub use receiver::{Receiver, RecvError};

/// Messages from any number of senders to one receiver, in any processes.
///
/// The receiver is whoever has called [`receiver`](Self::receiver) and has not dropped the result.
/// Messages wait in the mailbox, also while there is no receiver. A mailbox has a fixed number of
/// slots; senders wait while all of them are taken.
///
/// # Crash behaviour
///
/// Sending and receiving are a push and a pop of a [`Queue`](crate::Queue): they have happened or
/// they have not, and nobody waits for the dead. If the receiver dies, the next thread to ask becomes
/// the receiver, and finds the messages that the dead one had not taken.
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
pub struct Mailbox<T: ShmSafe + Movable> {
    messages: Raw<T>,
    /// The receiver's lock: a word of `participants::lock`.
    receiver: AtomicU64,
    /// Not 0 if the receiver is to be woken.
    woken: AtomicU64,
    _in_place: PhantomPinned,
}

// SAFETY: as for a queue; and two atomic words, one of which holds a tag of the pool's own table.
unsafe impl<T: ShmSafe + Movable> ShmSafe for Mailbox<T> {
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

/// Why the caller does not become the [`Receiver`].
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReceiverError {
    /// Somebody who is alive has it, perhaps this thread.
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

impl<T: ShmSafe + Movable> Mailbox<T> {
    /// A mailbox for `capacity` messages, to be put into a pool.
    ///
    /// # Panics
    ///
    /// If `capacity` is more than 2^32.
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
    /// The whole message is sent, or nothing.
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
        self.messages.push_until(message, Deadline::NEVER)
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

    /// As [`send`](Self::send), but waits for at most that time.
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
        self.messages.push_until(message, Deadline::after(timeout))
    }

    /// Makes the caller the receiver, until it drops the result.
    ///
    /// # Errors
    ///
    /// See [`ReceiverError`].
    ///
    /// # Crash behaviour
    ///
    /// If the process that is the receiver is killed, another caller can become the receiver.
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
        // What a dead receiver was doing has happened or it has not: there is nothing to be put
        // right.
        lock::clear(&self.receiver, flags);
        thread::guard_made(slot);
        Ok(Receiver::new(self, slot.tag()))
    }

    /// Wakes the receiver without a message: its wait, or otherwise its next look, gives
    /// [`RecvError::Woken`]. Several wakes that the receiver has not seen yet count as one. A wake
    /// that comes during a receive may be seen by the next one.
    ///
    /// # Crash behaviour
    ///
    /// The receiver is woken, or it is not; if the caller is killed in between, it may be woken a
    /// few milliseconds later.
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
        // A constant must not be changed: only what is in a pool is shared. This takes no slot.
        if Arena::containing(std::ptr::from_ref(self).addr()).is_some() {
            self.woken.store(1, Ordering::SeqCst);
            self.messages.announce_push();
        }
    }

    /// The number of messages that wait.
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

    /// The number of messages that can wait.
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
    /// The mailbox is closed, or it is not.
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

impl<T: ShmSafe + Movable> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("closed", &self.is_closed())
            .finish()
    }
}
