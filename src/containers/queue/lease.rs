//! [`Lease`]: a leased element. See `engines::leases`.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use super::raw::Raw;
use crate::engines::leases::LeaseEntry;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::thread;
use crate::{Movable, ShmSafe};

/// An element that was popped, but not for good.
///
/// [`ack`](Self::ack) consumes it. A lease that is dropped gives the element back, to be popped
/// before all others, and so does the death of its process. The lease shows a copy of the element:
/// changes to atomics in it are not in the element that goes back.
///
/// Leases stay on their thread. While a process has leases, it cannot fork by `spawn`.
///
/// ```
/// use shmkit::process::scope;
/// use shmkit::{Pool, Queue};
///
/// let pool = Pool::builder().create()?;
/// let jobs = pool.create(Queue::bounded(8))?;
/// (1..=2).try_for_each(|job| jobs.push(job))?;
/// scope(|s| {
///     let worker = s.spawn::<_, ()>(|| {
///         let job = jobs.lease().unwrap();
///         assert_eq!(*job, 1);
///         std::process::abort();
///     });
///     assert!(worker.unwrap().join().is_err());
/// });
/// let job = jobs.lease()?;
/// println!("job {job} again");
/// assert_eq!(job.ack(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the element goes back to the queue when the lease is dropped"]
pub struct Lease<'a, T: ShmSafe + Movable> {
    queue: &'a Raw<T>,
    /// The tag of the thread that has the lease.
    tag: Tag,
    entry: LeaseEntry,
    attempts: u32,
    value: T,
    _one_thread: PhantomData<*const ()>,
}

// SAFETY: a shared lease gives shared access to the value.
unsafe impl<T: ShmSafe + Movable> Sync for Lease<'_, T> {}

impl<'a, T: ShmSafe + Movable> Lease<'a, T> {
    /// A lease of the entry, which `slot` holds. The slot is this thread's.
    #[inline]
    pub(super) fn new(queue: &'a Raw<T>, slot: &'static Slot, entry: LeaseEntry, value: T) -> Self {
        thread::guard_made(slot);
        Lease {
            queue,
            tag: slot.tag(),
            attempts: entry.count_attempt(),
            entry,
            value,
            _one_thread: PhantomData,
        }
    }

    #[inline]
    fn settle(&self, consumed: bool) {
        // A copy in a forked child settles nothing.
        if thread::still_held(self.queue, self.tag).is_some() {
            self.queue.settle(self.entry, consumed);
            thread::guard_dropped(self.queue);
        }
    }

    /// How often the element has been leased, including this time: 1 at first. A higher number means that it was given
    /// back, or that a process died with it. An element that kills each worker that has it comes back first each time:
    /// after some attempts it should be put aside.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let [jobs, failed] = [pool.create(Queue::bounded(8))?, pool.create(Queue::bounded(8))?];
    /// jobs.push("bad job".len())?;
    /// while let Ok(job) = jobs.try_lease() {
    ///     if job.attempts() > 3 {
    ///         failed.push(*job)?;
    ///         job.ack();
    ///     }
    /// }
    /// assert_eq!((jobs.len(), failed.len()), (0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Consumes the element, and returns its value.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has consumed the element, or it can be popped again.
    ///
    /// ```
    /// # use shmkit::{Pool, Queue};
    /// # let pool = Pool::builder().create()?;
    /// let jobs = pool.create(Queue::bounded(8))?;
    /// (1..=2).try_for_each(|job| jobs.push(job))?;
    /// drop(jobs.lease()?);
    /// assert_eq!(jobs.lease()?.ack(), 1, "it was given back");
    /// assert_eq!(jobs.lease()?.ack(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn ack(self) -> T {
        self.settle(true);
        let lease = std::mem::ManuallyDrop::new(self);
        // SAFETY: the lease is neither used nor dropped any more.
        unsafe { std::ptr::read(&lease.value) }
    }
}

impl<T: ShmSafe + Movable> Deref for Lease<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: ShmSafe + Movable> Drop for Lease<'_, T> {
    fn drop(&mut self) {
        self.settle(false);
    }
}

impl<T: ShmSafe + Movable + fmt::Display> fmt::Display for Lease<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: ShmSafe + Movable + fmt::Debug> fmt::Debug for Lease<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.value).finish()
    }
}
