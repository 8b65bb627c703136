//! Processes that work together: fork-join in the style of [`std::thread::scope`].
//!
//! | Module | Content |
//! |---|---|
//! | `scope` | [`scope`], [`Scope`], and the list of the children that are still to be waited for |
//! | `join` | [`ScopedJoinHandle`] and what a join can answer |
//! | `child` | one child: the fork, its life up to `_exit`, its end as the parent sees it |
//! | `frame` | the file that carries a result from child to parent |
//! | `hooks` | what the pool layer adds to the fork, the end and the reaping of a child |
//!
//! # Crash behaviour
//!
//! A child may be killed at any instruction. Its join answers [`JoinError::Signaled`], its siblings
//! and its parent go on, and a result that it had begun to write is never taken for a whole one.
//! A parent that is killed takes its children with it, and they take theirs.

mod child;
mod frame;
pub(crate) mod hooks;
mod join;
mod scope;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use join::{JoinError, KillError, ResultError, ScopedJoinHandle};
pub use scope::{Scope, SpawnError, scope};

/// Names a process of the toolkit.
///
/// It may travel in results and messages. It is a name only: the process may have ended.
///
/// ```
/// # use shmkit::process::scope;
/// scope(|s| {
///     let child = s.spawn(|| std::process::id()).unwrap();
///     let id = child.id();
///     assert_eq!(id.pid(), child.join().unwrap());
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId(u32);

impl ProcessId {
    pub(crate) const fn of_pid(pid: u32) -> Self {
        ProcessId(pid)
    }

    /// The number by which the kernel knows the process, in the pid namespace of its parent.
    #[must_use]
    pub const fn pid(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
