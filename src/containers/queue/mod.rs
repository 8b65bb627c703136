//! [`Queue`]: many producers, many consumers, first in, first out.
//!
//! | module     | what |
//! |------------|------|
//! | `raw`      | a queue of elements of one type; what a kill leaves of its operations; closing |
//! | `push`     | pushing |
//! | `take`     | popping, leasing |
//! | `back`     | elements that have come back from leases |
//! | `looks`    | looking at elements without taking them |
//! | `element`  | elements as words |
//! | `wait`     | waiting, and which producer has the turn |
//! | `lease`    | [`Lease`]: an element that was popped, but not for good |
//! | `snapshot` | copies of all elements |
//! | `refusals` | the errors |
//!
//! The steps on the cells, and the reasons for them, are in `protocol::ring`; what is done for the
//! dead is in `engines::queue` and `engines::leases`.

mod back;
mod element;
mod lease;
mod looks;
mod push;
pub(crate) mod raw;
mod refusals;
mod snapshot;
mod take;
mod wait;

use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;
use std::time::Duration;

use crate::engines::queue::Root;
use crate::layout::{Field, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::{Movable, ShmSafe};
use raw::Raw;

pub use lease::Lease;
pub use refusals::{PopError, PushError, PushRefusal};
pub use snapshot::Snapshot;

/// A queue for any number of producers and consumers in any number of processes.
///
/// First in, first out: an element that was pushed before another push began is popped first. A
/// consumer takes elements that must not be lost if it dies by [`lease`](Self::lease).
///
/// A queue is a mere constant until it is in a pool and used for the first time; then the memory
/// for all its places is allocated. A capacity of 0 is refused at each use.
///
/// # Crash behaviour
///
/// - A push whose caller is killed has happened or it has not. A place that was claimed and not
///   filled is free again once producers have come round to it; consumers go past it at once, and
///   nobody waits for the dead.
/// - A pop whose caller is killed has happened or it has not. If it has, the element is lost with the
///   caller.
/// - A *stopped* caller holds up nobody but itself, with two exceptions: a caller that is stopped
///   in the middle of a push, or of taking an element into a lease, keeps its place, and producers
///   that have come round to that place wait for it; and a producer that is stopped while it has
///   the turn makes those that wait for room hold back for 40 ms, once for all of them.
///
/// ```
/// use shmkit::process::scope;
/// use shmkit::{Pool, PopError, Queue};
///
/// let pool = Pool::builder().create()?;
/// let jobs = pool.create(Queue::bounded(16))?;
/// let results = pool.create(Queue::bounded(16))?;
/// scope(|s| {
///     for _ in 0..2 {
///         let (jobs, results) = (&jobs, &results);
///         s.spawn(move || {
///             while let Ok(n) = jobs.pop() {
///                 results.push(n * n).unwrap();
///             }
///         })
///         .unwrap();
///     }
///     (1..=10_u64).for_each(|n| jobs.push(n).unwrap());
///     jobs.close();
/// });
/// let sum: u64 = std::iter::from_fn(|| results.try_pop().ok()).sum();
/// assert_eq!(sum, 385);
/// assert_eq!(jobs.try_pop(), Err(PopError::Closed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Queue<T: ShmSafe + Movable> {
    raw: Raw<T>,
    _in_place: PhantomPinned,
}

// SAFETY: atomics, and blocks of `T`s that the engine finds from the root, which is listed at its
// offset. Elements are sent from process to process, which `T: ShmSafe` allows. No drop glue.
unsafe impl<T: ShmSafe + Movable> ShmSafe for Queue<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Queue",
        const {
            &[
                Field::at::<Root>("root", offset_of!(Self, raw)),
                Field::mention::<T>("T"),
            ]
        },
    )
    .holding::<T>();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = true;
}

impl<T: ShmSafe + Movable> Queue<T> {
    /// A queue with `capacity` places, to be put into a pool.
    ///
    /// # Panics
    ///
    /// If `capacity` is more than 2^32.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(2))?;
    /// queue.push(1)?;
    /// queue.push(2)?;
    /// assert!(queue.try_push(3).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn bounded(capacity: usize) -> Self {
        Queue {
            raw: Raw::bounded(capacity),
            _in_place: PhantomPinned,
        }
    }

    /// A queue with an unlimited number of places, to be put into a pool. It gets more places when
    /// it needs them, as long as the pool has memory. As a `VecDeque` does, it keeps them.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::unbounded())?;
    /// (0..1000).try_for_each(|n| queue.push(n))?;
    /// assert_eq!((queue.len(), queue.capacity()), (1000, None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn unbounded() -> Self {
        Queue {
            raw: Raw::unbounded(),
            _in_place: PhantomPinned,
        }
    }

    /// Pushes an element, waiting for room.
    ///
    /// # Errors
    ///
    /// See [`PushRefusal`]. The value comes back with the error.
    ///
    /// # Crash behaviour
    ///
    /// The element is in the queue, or it is not; see [`Queue`].
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// queue.push(7)?;
    /// queue.push(8)?;
    /// assert_eq!((queue.pop()?, queue.pop()?), (7, 8));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn push(&self, value: T) -> Result<(), PushError<T>> {
        self.raw.push_until(value, Deadline::NEVER)
    }

    /// Pushes an element if there is room.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push), and [`PushRefusal::Full`].
    ///
    /// ```
    /// # use shmkit::{Pool, PushRefusal, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(1))?;
    /// queue.try_push(7)?;
    /// let refused = queue.try_push(8).unwrap_err();
    /// assert_eq!((refused.value, refused.cause), (8, PushRefusal::Full));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_push(&self, value: T) -> Result<(), PushError<T>> {
        self.raw.try_push(value)
    }

    /// As [`push`](Self::push), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push), and [`PushRefusal::TimedOut`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Pool, PushRefusal, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(1))?;
    /// let limit = Duration::from_millis(1);
    /// queue.push_timeout(7, limit)?;
    /// let refused = queue.push_timeout(8, limit).unwrap_err();
    /// assert_eq!((refused.value, refused.cause), (8, PushRefusal::TimedOut));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn push_timeout(&self, value: T, timeout: Duration) -> Result<(), PushError<T>> {
        self.raw.push_until(value, Deadline::after(timeout))
    }

    /// Pops the first element, waiting for one.
    ///
    /// # Errors
    ///
    /// See [`PopError`].
    ///
    /// # Crash behaviour
    ///
    /// The element is in the queue, or it is lost with the caller; see [`lease`](Self::lease) for
    /// elements that must not be lost.
    ///
    /// ```
    /// # use shmkit::{Pool, PopError, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// queue.push(7)?;
    /// queue.close();
    /// assert_eq!(queue.pop(), Ok(7));
    /// assert_eq!(queue.pop(), Err(PopError::Closed));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn pop(&self) -> Result<T, PopError> {
        self.raw.pop_by(Deadline::NEVER)
    }

    /// Pops the first element if there is one.
    ///
    /// # Errors
    ///
    /// As for [`pop`](Self::pop), and [`PopError::Empty`].
    ///
    /// ```
    /// # use shmkit::{Pool, PopError, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// queue.push(7)?;
    /// assert_eq!(queue.try_pop(), Ok(7));
    /// assert_eq!(queue.try_pop(), Err(PopError::Empty));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_pop(&self) -> Result<T, PopError> {
        self.raw.try_pop()
    }

    /// As [`pop`](Self::pop), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// As for [`pop`](Self::pop), and [`PopError::TimedOut`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Pool, PopError, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// queue.push(7)?;
    /// let limit = Duration::from_millis(1);
    /// assert_eq!(queue.pop_timeout(limit), Ok(7));
    /// assert_eq!(queue.pop_timeout(limit), Err(PopError::TimedOut));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pop_timeout(&self, timeout: Duration) -> Result<T, PopError> {
        self.raw.pop_by(Deadline::after(timeout))
    }

    /// Leases the first element, waiting for one. Up to 64 elements of a queue can be leased at a time: if so many are,
    /// the call waits for one of these leases to end.
    ///
    /// # Errors
    ///
    /// As for [`pop`](Self::pop), and [`PopError::TooManyLeases`] if the calling thread has all of the leases.
    ///
    /// # Crash behaviour
    ///
    /// The element of a dead holder can be popped again, before all others. If the holder is
    /// stopped, or if its thread ends and leaks the lease, the element stays leased until the
    /// holder's process is dead.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// queue.push("one".len())?;
    /// drop(queue.lease()?);
    /// let lease = queue.lease()?;
    /// assert_eq!(*lease, 3);
    /// assert_eq!(lease.ack(), 3);
    /// assert!(queue.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Only the element's bytes come back, so another crate's collection cannot be leased:
    ///
    /// ```compile_fail,E0080
    /// # use shmkit::{Foreign, Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::<Foreign<u64>>::unbounded())?;
    /// let lease = queue.lease()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lease(&self) -> Result<Lease<'_, T>, PopError> {
        self.raw.lease_by(Deadline::NEVER)
    }

    /// Leases the first element if there is one.
    ///
    /// # Errors
    ///
    /// As for [`lease`](Self::lease), but [`PopError::TooManyLeases`] whoever has the leases; and
    /// [`PopError::Empty`].
    ///
    /// # Crash behaviour
    ///
    /// As for [`lease`](Self::lease).
    ///
    /// ```
    /// # use shmkit::{Pool, PopError, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// queue.push(7)?;
    /// let lease = queue.try_lease()?;
    /// assert_eq!(queue.try_lease().err(), Some(PopError::Empty));
    /// drop(lease);
    /// assert_eq!(*queue.try_lease()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_lease(&self) -> Result<Lease<'_, T>, PopError> {
        self.raw.try_lease()
    }

    /// As [`lease`](Self::lease), but waits for at most that time.
    ///
    /// # Errors
    ///
    /// As for [`lease`](Self::lease), and [`PopError::TimedOut`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::{Pool, PopError, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// queue.push(7)?;
    /// let limit = Duration::from_millis(1);
    /// let lease = queue.lease_timeout(limit)?;
    /// assert_eq!(queue.lease_timeout(limit).err(), Some(PopError::TimedOut));
    /// assert_eq!(lease.ack(), 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lease_timeout(&self, timeout: Duration) -> Result<Lease<'_, T>, PopError> {
        self.raw.lease_by(Deadline::after(timeout))
    }

    /// Returns a copy of the first element, if there is one. The element may be popped by somebody else at
    /// any moment. It is what the next pop gives, unless another one comes back from a lease meanwhile. A
    /// push that is under way, and perhaps stopped, comes after it.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// assert_eq!(queue.peek(), None);
    /// queue.push(7)?;
    /// queue.push(8)?;
    /// assert_eq!((queue.peek(), queue.len()), (Some(7), 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn peek(&self) -> Option<T>
    where
        T: Copy,
    {
        self.raw.peek()
    }

    /// Returns copies of all elements, as they were at one moment, first to last. If the queue changes
    /// too fast for that, they are copies of the elements that are in the queue all the time, and
    /// perhaps of some that come or go. Elements that were being pushed or popped at that moment may
    /// come between the copied ones, later or before.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// (1..=3).try_for_each(|n| queue.push(n))?;
    /// assert!(queue.iter().eq([1, 2, 3]));
    /// assert_eq!(queue.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn iter(&self) -> Snapshot<T>
    where
        T: Copy,
    {
        Snapshot(self.raw.snapshot().into_iter())
    }

    /// Counts the elements, without those that are leased. They are counted one by one, so it takes
    /// time proportional to their number, and elements that come or go meanwhile may be counted or
    /// not.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// (1..=3).try_for_each(|n| queue.push(n))?;
    /// let lease = queue.lease()?;
    /// assert_eq!(queue.len(), 2);
    /// drop(lease);
    /// assert_eq!(queue.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// True if there are no elements.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// assert!(queue.is_empty());
    /// queue.push(7)?;
    /// assert!(!queue.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The number of elements that can be pushed before one is taken; `None` if there is no limit. A
    /// leased element has been taken, so those that come back, at most 64, are in addition to this
    /// number.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// assert_eq!(pool.create(Queue::<u32>::bounded(5))?.capacity(), Some(5));
    /// assert_eq!(pool.create(Queue::<u32>::unbounded())?.capacity(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn capacity(&self) -> Option<usize> {
        self.raw.capacity()
    }

    /// Pops as many elements as there are now. Each pop is atomic, but the whole is not. Leased
    /// elements stay leased, and may come back.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has popped some of the elements, the first ones.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::bounded(8))?;
    /// (1..=3).try_for_each(|n| queue.push(n))?;
    /// queue.clear();
    /// queue.push(4)?;
    /// assert!(queue.iter().eq([4]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear(&self) {
        for _ in 0..self.len() {
            if self.raw.try_pop().is_err() {
                break;
            }
        }
    }

    /// Refuses all pushes from now on. Elements that are in the queue can be popped; after that, pops give
    /// [`PopError::Closed`], or wait for elements that others have leased, as these may come back. They do not wait
    /// for the calling thread's own leases; what that thread gives back after `Closed` can be popped again.
    ///
    /// # Crash behaviour
    ///
    /// The queue is closed, or it is not. Threads that sleep when the caller is killed find out within
    /// milliseconds.
    ///
    /// ```
    /// # use shmkit::{Pool, PopError, PushRefusal, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::unbounded())?;
    /// queue.push(7)?;
    /// queue.close();
    /// assert_eq!(queue.push(8).unwrap_err().cause, PushRefusal::Closed);
    /// assert_eq!((queue.pop(), queue.pop()), (Ok(7), Err(PopError::Closed)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) {
        self.raw.close();
    }

    /// True once the queue is closed.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let queue = pool.create(Queue::<u32>::bounded(8))?;
    /// assert!(!queue.is_closed());
    /// queue.close();
    /// assert!(queue.is_closed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.raw.is_closed()
    }
}

impl<T: ShmSafe + Movable> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("closed", &self.is_closed())
            .finish()
    }
}

/// An [unbounded](Queue::unbounded) queue, so that a struct with queues can derive `Default`.
///
/// ```
/// use shmkit::{Pool, Queue, ShmSafe};
///
/// #[derive(Default, ShmSafe)]
/// struct Work {
///     todo: Queue<u64>,
///     done: Queue<u64>,
/// }
///
/// let pool = Pool::builder().create()?;
/// let work = pool.create(Work::default())?;
/// work.todo.push(1)?;
/// work.done.push(work.todo.pop()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl<T: ShmSafe + Movable> Default for Queue<T> {
    fn default() -> Self {
        Queue::unbounded()
    }
}

impl<T: ShmSafe + Movable + Copy> IntoIterator for &Queue<T> {
    type Item = T;
    type IntoIter = Snapshot<T>;

    fn into_iter(self) -> Snapshot<T> {
        self.iter()
    }
}
