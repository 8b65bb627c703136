//! Processes that work together: fork-join in the style of [`std::thread::scope`], and [`run`], a
//! master with workers that start one another.
//!
//! [`scope`] is for work that begins and ends in one function. [`run`] is for a program made of
//! workers: the calling process becomes the master, which does nothing but start workers, reap
//! them, and repair what the dead have left. A run with a [name](Config::name) can be joined by
//! programs that were started separately: [`Peer`].
//!
//! | Module | Content |
//! |---|---|
//! | `scope` | [`scope`], [`Scope`], and the list of the children that are still to be waited for |
//! | `join` | [`ScopedJoinHandle`] and what a join can return |
//! | `child` | one child: the fork, its life up to `_exit`, its end as the parent sees it |
//! | `frame` | the file that carries a result from child to parent |
//! | `entry` | [`Entry`]: a function that can be started as a process |
//! | `table` | the state words of the tables in the control pool, and who may change them |
//! | `encode` | values to bytes and back |
//! | `jobs` | the table that master and workers share; the states of a job |
//! | `part` | which job a process runs, and how it wakes the master |
//! | `worker` | [`Worker`]: what a running entry point is given |
//! | `handle` | [`JoinHandle`]: join, detach, kill, from any worker |
//! | `config` | [`Config`], [`StartOptions`] |
//! | `supervise` | how a worker ended, and whether it is started again |
//! | `run` | [`run`]: a master for as long as its first worker lives |
//! | `master` | [`Master`]: start, reap, shut down |
//! | `peers` | the programs that take part in a run without being forked by its master |
//! | `peer` | [`Peer`]: such a program, as it sees itself |
//! | `signature`, `shape` | what an entry's types look like to other programs |
//! | `resource` | [`Resource`]: a file, a pool, a semaphore |
//! | `resources` | [`Resources`]: what is removed when nobody uses it any more |
//! | `journal` | what the next run removes after a crash |
//! | `pid_file` | who the master is, and that there is one |
//! | `testing` | for the crash tests: the job table by itself |
//!
//! # Crash behaviour
//!
//! A child may be killed at any instruction. Its join returns [`JoinError::Signaled`], its siblings
//! and its parent go on, and a result that it had begun to write is never taken for a whole one. A
//! parent that is killed takes its children with it, and they take theirs.

mod child;
mod config;
mod encode;
mod entry;
mod frame;
mod handle;
mod jobs;
mod join;
mod journal;
mod master;
mod part;
mod peer;
mod peers;
mod pid_file;
mod resource;
mod resources;
mod run;
mod scope;
mod shape;
mod signature;
mod supervise;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::fmt;

use serde::{Deserialize, Serialize};

/// For the crash tests: the job table by itself.
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;

pub use crate::participants::pid::ProcessId;
pub use config::{Config, StartOptions};
pub use entry::{Entry, Wire};
pub use handle::JoinHandle;
pub use join::{JoinError, KillError, ResultError, ScopedJoinHandle};
pub use journal::JournalError;
pub use master::{Dispatched, Master};
pub use peer::{Peer, PeerError};
pub use resource::Resource;
pub use resources::{Inherit, Managed, ResourceError, ResourceId, Resources};
pub use run::{RunError, run};
pub use scope::{Scope, SpawnError, scope};
pub use supervise::{Backoff, Restart, WorkerEnd};
pub use worker::{StartError, Worker};

/// The number of a worker of a [`run`]: 1 for the first worker, and one more for each further one.
/// A worker that is started again keeps its number.
///
/// ```
/// use shmkit::process::{Config, Entry, WorkerId, run};
///
/// static ID: Entry<(), WorkerId> = Entry::new("id", |worker, ()| worker.id());
/// assert_eq!(run(&Config::new(), &ID, ())?.number(), 1);
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub(crate) u64);

impl WorkerId {
    /// The number.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    /// static ID: Entry<(), u64> = Entry::new("id", |worker, ()| worker.id().number());
    /// assert_eq!(run(&Config::new(), &ID, ())?, 1);
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
