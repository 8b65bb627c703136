//! [`Receiver`]: the right to receive, which is a lock that is held. For what a death leaves, see the
//! module above.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Mailbox;
use crate::containers::queue::PopError;
use crate::engines::bell::wait_for_any;
use crate::participants::deadline::Deadline;
use crate::participants::tag::Tag;
use crate::participants::{lock, thread};
use crate::primitive::Ordering;
use crate::{Movable, ShmSafe};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RecvError {
    /// Somebody has called [`Mailbox::wake`].
    #[error("the receiver was woken")]
    Woken,
    /// There is no message, and the call does not wait.
    #[error("there is no message")]
    Empty,
    /// There was no message until the time was up.
    #[error("there was no message for the whole time limit")]
    TimedOut,
    /// The mailbox is closed, and there is no message left.
    #[error("the mailbox is closed and empty")]
    Closed,
    /// The mailbox has no slots: there will never be a message.
    #[error("the mailbox has no slots")]
    NoCapacity,
    /// The receiver belongs to another process: this is a copy made by a fork.
    #[error("the receiver is that of a process that has forked")]
    Forked,
}

/// The right to receive the messages of a [`Mailbox`].
///
/// It stays on its thread, and is given back when it is dropped. While a process has a receiver, it
/// cannot fork by `spawn`.
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
pub struct Receiver<'a, T: ShmSafe + Movable> {
    mailbox: &'a Mailbox<T>,
    tag: Tag,
    _one_thread: PhantomData<*const ()>,
}

impl<'a, T: ShmSafe + Movable> Receiver<'a, T> {
    /// Called by the thread that has taken the mailbox's lock.
    pub(super) fn new(mailbox: &'a Mailbox<T>, tag: Tag) -> Self {
        Receiver {
            mailbox,
            tag,
            _one_thread: PhantomData,
        }
    }

    /// Receives a message, waiting for one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`].
    ///
    /// # Crash behaviour
    ///
    /// The message is in the mailbox, or is lost with the caller.
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
        self.recv_until(Deadline::NEVER)
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

    /// As [`recv`](Self::recv), but waits for at most that time.
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
        self.recv_until(Deadline::after(timeout))
    }

    #[inline]
    fn recv_until(&self, deadline: Deadline) -> Result<T, RecvError> {
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
            PopError::NoCapacity => RecvError::NoCapacity,
            _ => RecvError::Closed,
        })
    }

    #[inline]
    fn is_woken(&self) -> bool {
        self.mailbox.woken.load(Ordering::SeqCst) != 0
    }

    /// True if [`try_recv`](Self::try_recv) would not give [`RecvError::Empty`]: there is a message or a wake,
    /// or the mailbox is closed. Also true if there will never be a message, as the mailbox has no slots, or
    /// as this is a copy made by a fork.
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
        let mailbox = self.mailbox;
        let never = mailbox.capacity() == 0 || thread::still_held(mailbox, self.tag).is_none();
        never || self.is_woken() || !mailbox.is_empty() || mailbox.is_closed()
    }

    /// Waits until one of several receivers is [ready](Self::is_ready), for at most that time, and
    /// returns the index of the first one that is. If the mailboxes are not all in the same pool,
    /// the wait may be a little longer.
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
        let bells: Vec<_> = receivers
            .iter()
            .map(|receiver| receiver.mailbox.messages.pushes())
            .collect();
        wait_for_any(&bells, Deadline::after(timeout), || {
            receivers.iter().position(|receiver| receiver.is_ready())
        })
    }
}

impl<T: ShmSafe + Movable> Drop for Receiver<'_, T> {
    fn drop(&mut self) {
        if thread::still_held(self.mailbox, self.tag).is_some() {
            lock::unlock(&self.mailbox.receiver, self.tag, 0);
            thread::guard_dropped(self.mailbox);
        }
    }
}

impl<T: ShmSafe + Movable> fmt::Debug for Receiver<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("mailbox", self.mailbox)
            .finish()
    }
}
