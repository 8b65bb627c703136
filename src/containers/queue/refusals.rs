//! The errors of queues and mailboxes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::allocator::AllocError;
use crate::participants::here::from_nowhere;
use crate::participants::thread::NoSlot;

/// A value that was not pushed, and why.
///
/// ```
/// use shmkit::{Pool, PushRefusal, Queue, ShmSafe};
///
/// #[derive(ShmSafe)]
/// struct Job(u64);
///
/// let pool = Pool::builder().create()?;
/// let jobs = pool.create(Queue::bounded(1))?;
/// jobs.push(Job(1))?;
/// let refused = jobs.try_push(Job(2)).unwrap_err();
/// assert_eq!((refused.value.0, refused.cause), (2, PushRefusal::Full));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("the value was not pushed")]
pub struct PushError<T> {
    /// The value.
    pub value: T,
    /// Why it was not pushed.
    #[source]
    pub cause: PushRefusal,
}

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushError")
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

/// Why a value was not pushed.
///
/// ```
/// use shmkit::{Pool, PushRefusal, Queue};
///
/// let pool = Pool::builder().create()?;
/// let queue = pool.create(Queue::bounded(1))?;
/// queue.push(7)?;
/// assert_eq!(queue.try_push(8).unwrap_err().cause, PushRefusal::Full);
/// queue.close();
/// assert_eq!(queue.push(8).unwrap_err().cause, PushRefusal::Closed);
/// let nothing = pool.create(Queue::bounded(0))?;
/// assert_eq!(nothing.push(7).unwrap_err().cause, PushRefusal::NoCapacity);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PushRefusal {
    /// There is no room, and the call does not wait.
    #[error("there is no room")]
    Full,
    /// There was no room until the time was up.
    #[error("there was no room for the whole time limit")]
    TimedOut,
    /// The queue or mailbox is closed.
    #[error("it is closed")]
    Closed,
    /// The queue has a capacity of 0: nothing can ever be pushed.
    #[error("it has a capacity of 0")]
    NoCapacity,
    /// There is no block for the elements.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The queue or mailbox is not part of an object in a pool.
    #[error("it is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// Why nothing was popped.
///
/// ```
/// use shmkit::{Pool, PopError, Queue};
///
/// let pool = Pool::builder().create()?;
/// let queue = pool.create(Queue::<u32>::unbounded())?;
/// assert_eq!(queue.try_pop(), Err(PopError::Empty));
/// queue.close();
/// assert_eq!(queue.pop(), Err(PopError::Closed));
/// assert_eq!(Queue::<u32>::unbounded().pop(), Err(PopError::NotInPool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PopError {
    /// There is no element, and the call does not wait.
    #[error("there is no element")]
    Empty,
    /// There was no element until the time was up; or none that could be leased, as others had all leases.
    #[error("there was no element for the whole time limit, or as many as possible were leased")]
    TimedOut,
    /// The queue is closed, and there is no element left, except those that the calling thread itself may
    /// give back from leases.
    #[error("it is closed and empty")]
    Closed,
    /// The queue has a capacity of 0: there will never be an element.
    #[error("it has a capacity of 0")]
    NoCapacity,
    /// As many elements are leased as a queue can lease out, 64: to others, and the call does not wait; or all of them
    /// to the calling thread.
    #[error("64 elements are leased already")]
    TooManyLeases,
    /// There is no block for the leases.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The queue or mailbox is not part of an object in a pool.
    #[error("it is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(PushRefusal, PopError);
