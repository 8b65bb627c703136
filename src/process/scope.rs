//! [`scope`], [`Scope`], and the list of the children that are still to be waited for.
//!
//! # Why the closures are `Copy`
//!
//! A forked child works on a copy of its parent's memory. What it changes there is lost, and what
//! it owns there is owned twice. The bounds `Copy + Send`, and `Scope: !Sync`, turn that into
//! compiler errors: a closure that captures `&mut`, an owned value, `&Cell`, a handle or the scope
//! itself is refused, while shared references and `Copy` handles pass.
//!
//! # Invariants
//!
//! 1. A child is in the list from its fork until somebody takes it out to reap it, and whoever
//!    takes it out reaps it. So none is reaped twice, and none is left when `scope` returns.
//! 2. The list is ordered by serial number, so a handle finds its child by bisection.
//! 3. No borrow of the list is held while a child is waited for, or while any other code runs.
//!
//! # Crash behaviour
//!
//! The list is private memory of one process. A forked child has a copy and never looks at it:
//! nothing that leads there can be captured. If the parent is killed, its children are killed.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::child::{self, Child, OtherThreads};
use super::frame;
use super::master::LOG;
use super::{JoinError, ScopedJoinHandle};
use crate::pool::tell;
use crate::sys::descriptor::Kept;

/// Why no child was started. Nothing has changed, and the spawn may be tried again.
///
/// ```
/// use shmkit::process::{SpawnError, scope};
/// use std::sync::mpsc::channel;
///
/// let (tell, told) = channel::<()>();
/// let thread = std::thread::spawn(move || told.recv());
/// scope(|s| {
///     let refused = s.spawn(|| ());
///     assert!(matches!(refused, Err(SpawnError::MultiThreaded { tasks: 2 })));
/// });
/// drop(tell);
/// # let _ = thread.join();
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The process has other threads, whose locks would stay locked for ever in the child. See
    /// [`Scope::spawn_with_threads`]. Threads that are about to end, as those of `std::thread::scope` may be when it
    /// returns, are waited for, 50 ms at most.
    #[error(
        "this process has {tasks} threads; a process can be forked safely only while it has one"
    )]
    MultiThreaded {
        /// The number of threads, the caller's included.
        tasks: usize,
    },
    /// The process holds guards, claims, views, pins or leases, which the fork would copy. Leaked
    /// ones count for ever.
    #[error("this process holds {count} guards of shared memory, which a fork would copy")]
    GuardsHeld {
        /// How many.
        count: usize,
    },
    /// A pool that this process has attached has no free process record for the child.
    #[error("a pool has no free process record for the child")]
    NoProcessRecord,
    /// Children of this thread would be in another time namespace than a pool that this process has
    /// attached: nobody could tell whether they live, and they could not tell whether others do.
    #[error("the child would be in another time namespace than a pool")]
    OtherTimeNamespace,
    /// The threads of this process could not be counted.
    #[error("the threads of this process could not be counted")]
    Tasks(#[source] io::Error),
    /// The file for the result could not be made, mostly for lack of descriptors.
    #[error("no file for the result could be made")]
    ResultFile(#[source] io::Error),
    /// Buffered output could not be written, and would have been copied into the child.
    #[error("standard output could not be flushed before the fork")]
    Flush(#[source] io::Error),
    /// The fork failed.
    #[error("the fork failed")]
    Fork(#[source] io::Error),
}

/// Runs `f` with a scope in which child processes can be started that borrow from the caller, and
/// waits for all of them; the counterpart of [`std::thread::scope`].
///
/// # Panics
///
/// If `f` panics, after the children have been waited for; and if a child failed that was not
/// joined.
///
/// # Crash behaviour
///
/// A child may be killed at any instruction; see [`ScopedJoinHandle::join`]. If the calling
/// process is killed, its children are killed with it, and theirs with them. (The kernel ties a
/// child to the *thread* that started it, and forgets the tie if the child changes its
/// credentials.) No zombie and no descriptor stays behind, however `f` ends.
///
/// ```
/// use shmkit::process::scope;
///
/// let words = vec!["one".to_string(), "three".to_string()];
/// let lengths = scope(|s| {
///     let children: Vec<_> = words.iter().map(|word| s.spawn(move || word.len())).collect();
///     children.into_iter().map(|child| child.unwrap().join().unwrap()).collect::<Vec<_>>()
/// });
/// assert_eq!(lengths, [3, 5]);
/// ```
pub fn scope<'env, T>(f: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> T) -> T {
    let scope = Scope {
        children: Children::default(),
        scope: PhantomData,
        env: PhantomData,
    };
    // Nobody sees what `f` left half done, since the panic goes on below.
    let outcome = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    let failure = scope.children.finish_all();
    match (outcome, failure) {
        (Err(payload), _) => resume_unwind(payload),
        (Ok(_), Some((pid, error))) => {
            panic!("child process {pid}, which was not joined, failed: {error}")
        }
        (Ok(value), None) => value,
    }
}

/// Where child processes are started; made by [`scope`].
///
/// It is neither `Send` nor `Sync`, and so cannot be passed to a child:
///
/// ```compile_fail
/// shmkit::process::scope(|s| {
///     s.spawn(|| { let _ = s.spawn(|| ()); }).unwrap();
/// });
/// ```
///
/// A child opens a scope of its own:
///
/// ```
/// # use shmkit::process::scope;
/// let grandchild = || scope(|s| s.spawn(|| 7).unwrap().join().unwrap());
/// assert_eq!(scope(|s| s.spawn(grandchild).unwrap().join().unwrap()), 7);
/// ```
pub struct Scope<'s, 'env: 's> {
    children: Children,
    // Both lifetimes are invariant, as in `std::thread::Scope`.
    scope: PhantomData<&'s mut &'s ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'s> Scope<'s, '_> {
    /// Forks a child that runs `f`, and sends back what `f` returns.
    ///
    /// The child works on a copy of this process's memory as it is now; only shared memory is
    /// shared. It ends with `f`: no destructor of the copied values, no `atexit` handler and no
    /// destructor of thread-local values runs, and threads that it started end with it. Standard
    /// output and C's stdio are flushed before the fork here, and at the end there.
    ///
    /// # Errors
    ///
    /// See [`SpawnError`]. In particular, the process must have a single thread; the functions of
    /// the standard test harness run in threads of their own, so tests need `harness = false`.
    ///
    /// # Crash behaviour
    ///
    /// If a child panics, exits, is killed or cannot send its value, its join returns an error;
    /// nothing else is affected.
    ///
    /// ```
    /// # use shmkit::process::scope;
    /// let numbers = [1, 2, 3];
    /// let sum = scope(|s| s.spawn(|| numbers.iter().sum::<i32>()).unwrap().join().unwrap());
    /// assert_eq!(sum, 6);
    /// ```
    ///
    /// What would be lost or owned twice does not compile: mutable borrows,
    ///
    /// ```compile_fail
    /// let mut sum = 0;
    /// shmkit::process::scope(|s| { s.spawn(|| sum += 1).unwrap(); });
    /// ```
    ///
    /// owned values,
    ///
    /// ```compile_fail
    /// let text = String::new();
    /// shmkit::process::scope(|s| { s.spawn(move || text.len()).unwrap(); });
    /// ```
    ///
    /// cells,
    ///
    /// ```compile_fail
    /// let cell = std::cell::Cell::new(0);
    /// shmkit::process::scope(|s| { s.spawn(|| cell.set(1)).unwrap(); });
    /// ```
    ///
    /// and borrows of what does not outlive the scope:
    ///
    /// ```compile_fail
    /// shmkit::process::scope(|s| { let local = 1; s.spawn(|| local).unwrap(); });
    /// ```
    pub fn spawn<F, R>(&'s self, f: F) -> Result<ScopedJoinHandle<'s, R>, SpawnError>
    where
        F: FnOnce() -> R + Copy + Send + 's,
        R: Serialize + DeserializeOwned,
    {
        // SAFETY: with other threads the fork is refused, so nothing is asked of `f`.
        unsafe { self.start(OtherThreads::Refused, f) }
    }

    /// As [`spawn`](Self::spawn), in a process that may have other threads.
    ///
    /// The other threads do not exist in the child. The locks of the allocator and of stdio (those
    /// of glibc, and of [`std::io::stdout`] and [`std::io::stderr`]) are taken care of; for that,
    /// this call waits for a thread that holds one of the latter.
    ///
    /// # Safety
    ///
    /// In the child, `f` must do nothing that relies on what another thread had locked or half done
    /// at the moment of the fork: such a lock is never released there, and such data is never
    /// completed.
    ///
    /// # Errors
    ///
    /// See [`SpawnError`].
    ///
    /// # Crash behaviour
    ///
    /// As for `spawn`; the child dies with the thread that started it, which stays in the scope
    /// until then.
    ///
    /// ```
    /// # use shmkit::process::{SpawnError, scope};
    /// let thread = std::thread::spawn(std::thread::park);
    /// scope(|s| {
    ///     assert!(matches!(s.spawn(|| 1), Err(SpawnError::MultiThreaded { tasks: 2 })));
    ///     // SAFETY: the closure uses nothing of the other thread's.
    ///     let child = unsafe { s.spawn_with_threads(|| 1) }.unwrap();
    ///     assert_eq!(child.join().unwrap(), 1);
    /// });
    /// thread.thread().unpark();
    /// ```
    pub unsafe fn spawn_with_threads<F, R>(
        &'s self,
        f: F,
    ) -> Result<ScopedJoinHandle<'s, R>, SpawnError>
    where
        F: FnOnce() -> R + Copy + Send + 's,
        R: Serialize + DeserializeOwned,
    {
        // SAFETY: the caller vouches for `f` among other threads.
        unsafe { self.start(OtherThreads::Allowed, f) }
    }

    /// # Safety
    ///
    /// That of [`child::start`], for `f`.
    unsafe fn start<F, R>(
        &'s self,
        threads: OtherThreads,
        f: F,
    ) -> Result<ScopedJoinHandle<'s, R>, SpawnError>
    where
        F: FnOnce() -> R + Copy + Send + 's,
        R: Serialize + DeserializeOwned,
    {
        self.children.make_room();
        let mut body = |file: &Kept, own| {
            let value = f();
            child::end_copy_of(own, 0);
            let written = file.get().and_then(|file| frame::write_value(file, &value));
            // The value now belongs to the parent; the child ends without destructors.
            std::mem::forget(value);
            written
        };
        // SAFETY: passed on to our caller; only serialising and writing are added to `f`.
        let child = unsafe { child::start(threads, &mut body) }?;
        let pid = child.pid;
        let serial = self.children.add(child);
        tell(|| log::debug!(target: LOG, "spawned process {pid}"));
        Ok(ScopedJoinHandle::new(&self.children, serial, pid))
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("children", &self.children.list.borrow().len())
            .finish_non_exhaustive()
    }
}

/// The children that are still to be reaped.
#[derive(Default)]
pub(super) struct Children {
    list: RefCell<Vec<ListedChild>>,
    next_serial: Cell<u64>,
    /// The list length at which children without a handle are looked through.
    sweep_at: Cell<usize>,
    /// The first child that failed with nobody to join it.
    failure: RefCell<Option<(u32, JoinError)>>,
}

struct ListedChild {
    serial: u64,
    child: Child,
    /// Its handle was dropped, so only the scope will reap it.
    abandoned: bool,
}

/// A list shorter than this is not swept.
const SWEEP_MIN: usize = 16;

impl Children {
    /// Makes room for one more, so that nothing can fail between a fork and its `add`. Reaps
    /// abandoned children that have ended whenever the list has doubled: a scope that drops its
    /// handles then holds a bounded number of zombies and descriptors, for little work.
    fn make_room(&self) {
        if self.list.borrow().len() >= self.sweep_at.get().max(SWEEP_MIN) {
            // The list is free while the hooks run (invariant 3).
            let list = self.list.take();
            let kept = list
                .into_iter()
                .filter_map(|entry| self.reap_if_abandoned(entry))
                .collect();
            self.list.replace(kept);
            self.sweep_at.set(self.list.borrow().len() * 2);
        }
        self.list.borrow_mut().reserve(1);
    }

    fn reap_if_abandoned(&self, entry: ListedChild) -> Option<ListedChild> {
        if !entry.abandoned {
            return Some(entry);
        }
        let pid = entry.child.pid;
        match entry.child.try_finish_unread() {
            Ok(outcome) => {
                self.note(pid, outcome);
                None
            }
            Err(child) => Some(ListedChild { child, ..entry }),
        }
    }

    fn add(&self, child: Child) -> u64 {
        let serial = self.next_serial.get();
        self.next_serial.set(serial + 1);
        self.list.borrow_mut().push(ListedChild {
            serial,
            child,
            abandoned: false,
        });
        serial
    }

    /// Takes a child out, to be reaped by the caller.
    pub(super) fn take(&self, serial: u64) -> Option<Child> {
        let mut list = self.list.borrow_mut();
        let at = list
            .binary_search_by_key(&serial, |entry| entry.serial)
            .ok()?;
        Some(list.remove(at).child)
    }

    /// The handle of a child is gone. Nothing happens if the child was taken out before.
    pub(super) fn abandon(&self, serial: u64) {
        let mut list = self.list.borrow_mut();
        if let Ok(at) = list.binary_search_by_key(&serial, |entry| entry.serial) {
            list[at].abandoned = true;
        }
    }

    /// Waits for all children; returns the first failure.
    fn finish_all(&self) -> Option<(u32, JoinError)> {
        for entry in self.list.take() {
            let pid = entry.child.pid;
            self.note(pid, entry.child.finish_unread());
        }
        self.failure.take()
    }

    fn note(&self, pid: u32, outcome: Result<(), JoinError>) {
        if let Err(error) = outcome {
            self.failure.borrow_mut().get_or_insert((pid, error));
        }
    }
}
