//! [`ScopedJoinHandle`] and what a join can return.
//!
//! # Crash behaviour
//!
//! A handle is only a place in its scope's list: the scope reaps the child of a handle that was
//! dropped or forgotten.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::ProcessId;
use super::encode::decode;
use super::scope::Children;
use crate::sys::{process, watch};

/// Why a child gave no result. This concerns only that child: its siblings and its parent go on.
///
/// ```
/// use shmkit::process::{JoinError, scope};
/// scope(|s| {
///     let exits = s.spawn(|| -> u8 { std::process::exit(3) }).unwrap();
///     assert!(matches!(exits.join(), Err(JoinError::Exited(3))));
/// });
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The closure panicked, with this message.
    #[error("the process panicked: {0}")]
    Panicked(String),
    /// The process exited with this code, zero included, before its closure returned. (Code 74 may also mean
    /// that the closure returned, and that neither its value nor why there is none could be written.)
    #[error("the process exited with code {0} before it had a result")]
    Exited(i32),
    /// This signal ended the process. A call of `abort` and a stack overflow also appear as
    /// signals.
    #[error("the process was ended by signal {0}")]
    Signaled(i32),
    /// Somebody else has joined the process and has its result. A [`ScopedJoinHandle`], which
    /// `join` consumes, never returns this.
    #[error("the process was joined before")]
    AlreadyJoined,
    /// The closure returned, but its value did not arrive.
    #[error("the result of the process did not arrive")]
    NoResult(#[from] ResultError),
    /// The worker could not deserialise its argument, for the reason given.
    #[error("the argument of the process could not be deserialised: {0}")]
    BadArgument(String),
    /// The master could not start the process, for the reason given.
    #[error("the master could not start the process: {0}")]
    NotStarted(String),
    /// The entry point of that name has other types in the program that has defined it.
    #[error("the entry point {0:?} has other types in the program that serves it")]
    OtherTypes(String),
    /// The caller is the master, which must not wait for a worker, or the worker itself.
    #[error("neither the master nor the worker itself can wait for the worker")]
    WouldDeadlock,
    /// The calling process does not take part in the run to which the handle belongs, or no longer
    /// does; or that run is over.
    #[error("this process does not take part in the run that the worker belongs to")]
    NoSuchRun,
}

/// Why a value that a closure returned did not arrive.
///
/// ```
/// use shmkit::process::{JoinError, ResultError};
/// let error = JoinError::from(ResultError::Lost);
/// assert!(matches!(error, JoinError::NoResult(ResultError::Lost)));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// The value's `Serialize` failed in the child; the text says why.
    #[error("the result could not be serialised: {0}")]
    Encode(String),
    /// The type's `Deserialize` does not accept the bytes: it is not the inverse of its
    /// `Serialize`, or needs a self-describing format.
    #[error("the result could not be deserialised: {0}")]
    Decode(String),
    /// The child could not write the value, mostly for lack of memory.
    #[error("the result could not be written")]
    Write(#[source] io::Error),
    /// The parent could not read the value.
    #[error("the result could not be read")]
    Read(#[source] io::Error),
    /// There is no complete value, and the reason is unknown: the child's exit status went to
    /// somebody else, because SIGCHLD is ignored or other code in this process waits for any child.
    #[error("the process left no result, and its exit status was taken by somebody else")]
    Lost,
}

/// Why a child was not killed.
///
/// ```
/// use shmkit::process::{KillError, scope};
/// scope(|s| {
///     let child = s.spawn(|| ()).unwrap();
///     while !child.is_finished() {}
///     assert!(matches!(child.kill(), Err(KillError::Ended)));
/// });
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KillError {
    /// It had ended before.
    #[error("the process has ended already")]
    Ended,
    /// The kernel refused, for instance because the child changed its credentials.
    #[error("the process could not be killed")]
    Refused(#[source] io::Error),
}

/// A child of a [`Scope`](super::Scope); the counterpart of [`std::thread::ScopedJoinHandle`].
///
/// Dropping it neither ends the child nor lets it go: the scope waits for it.
///
/// ```
/// use shmkit::process::scope;
/// scope(|s| {
///     let child = s.spawn(|| std::process::id()).unwrap();
///     assert_ne!(child.join().unwrap(), std::process::id());
/// });
/// ```
pub struct ScopedJoinHandle<'s, R> {
    children: &'s Children,
    /// Names the child in the list, since pids repeat.
    serial: u64,
    pid: u32,
    result: PhantomData<fn() -> R>,
}

impl<'s, R> ScopedJoinHandle<'s, R> {
    pub(super) fn new(children: &'s Children, serial: u64, pid: u32) -> Self {
        ScopedJoinHandle {
            children,
            serial,
            pid,
            result: PhantomData,
        }
    }

    /// The child's name. It stays the same when the child has ended.
    ///
    /// ```
    /// use shmkit::process::scope;
    /// scope(|s| {
    ///     let child = s.spawn(|| std::process::id()).unwrap();
    ///     let id = child.id();
    ///     assert_eq!(id.pid(), child.join().unwrap());
    /// });
    /// ```
    #[must_use]
    pub fn id(&self) -> ProcessId {
        ProcessId::of_pid(self.pid)
    }

    /// Waits for the child to end, and returns what its closure returned.
    ///
    /// # Errors
    ///
    /// How the child ended instead, or why its value did not arrive. A child that failed and was
    /// joined does not make its scope panic.
    ///
    /// # Panics
    ///
    /// If the `Deserialize` of `R` panics. The child has then been reaped.
    ///
    /// # Crash behaviour
    ///
    /// A child that is killed wakes its joiner at once. If the child is stopped, the join waits.
    ///
    /// ```
    /// # use shmkit::process::{JoinError, scope};
    /// scope(|s| {
    ///     let fine = s.spawn(|| vec![1, 2, 3]).unwrap();
    ///     let ends = s.spawn(|| -> u8 { std::process::exit(3) }).unwrap();
    ///     assert_eq!(fine.join().unwrap(), [1, 2, 3]);
    ///     assert!(matches!(ends.join(), Err(JoinError::Exited(3))));
    /// });
    /// ```
    pub fn join(self) -> Result<R, JoinError>
    where
        R: DeserializeOwned,
    {
        let child = self
            .children
            .take(self.serial)
            .ok_or(JoinError::AlreadyJoined)?;
        child.finish(|bytes| decode(bytes).map_err(ResultError::Decode))
    }

    /// Ends the child by SIGKILL. It is reaped by [`join`](Self::join) or by the scope.
    ///
    /// # Errors
    ///
    /// [`KillError::Ended`] if it ended before, otherwise what the kernel answered.
    ///
    /// ```
    /// # use shmkit::process::{JoinError, scope};
    /// scope(|s| {
    ///     let child = s.spawn(|| -> () { loop { std::thread::park() } }).unwrap();
    ///     child.kill().unwrap();
    ///     assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
    /// });
    /// ```
    pub fn kill(&self) -> Result<(), KillError> {
        // A child that has not been waited for keeps its number, so the number names this child and
        // no other.
        if process::has_ended(self.pid) {
            return Err(KillError::Ended);
        }
        process::kill(self.pid).map_err(KillError::Refused)
    }

    /// Whether the child has ended, in whatever way; then [`join`](Self::join) does not wait.
    ///
    /// ```
    /// use shmkit::process::scope;
    /// scope(|s| {
    ///     let child = s.spawn(|| std::process::id()).unwrap();
    ///     while !child.is_finished() {}
    /// });
    /// ```
    #[must_use]
    pub fn is_finished(&self) -> bool {
        process::has_ended(self.pid)
    }

    /// Waits for the child to end, in whatever way, no longer than `timeout`; returns whether it has ended.
    ///
    /// # Errors
    ///
    /// Those of `pidfd_open`: there is no descriptor left, for one.
    ///
    /// ```
    /// use std::time::Duration;
    /// use shmkit::process::scope;
    /// scope(|s| {
    ///     let child = s.spawn(|| -> () { loop { std::thread::park() } }).unwrap();
    ///     assert!(!child.wait_timeout(Duration::from_millis(1)).unwrap());
    ///     child.kill().unwrap();
    ///     assert!(child.wait_timeout(Duration::MAX).unwrap());
    ///     assert!(child.join().is_err());
    /// });
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<bool> {
        if !self.is_finished() {
            match watch::pidfd(self.pid) {
                Ok(pidfd) => watch::wait_ended(pidfd.as_fd(), timeout),
                // Where children are reaped by themselves (SIGCHLD is ignored), it may be gone by now.
                Err(_) if self.is_finished() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.is_finished())
    }
}

impl<R> Drop for ScopedJoinHandle<'_, R> {
    fn drop(&mut self) {
        self.children.abandon(self.serial);
    }
}

impl<R> fmt::Debug for ScopedJoinHandle<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJoinHandle")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
