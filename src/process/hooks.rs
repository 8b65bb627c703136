//! The seam between the pool layer and the processes above it.
//!
//! The pool hooks itself into every fork by `pthread_atfork`. What such handlers cannot do (refuse
//! the fork, see that it failed, see the orderly end of a child and its reaping) is called from
//! here. Before the first pool exists nothing is installed, and there is nothing to do.
//!
//! The functions must neither panic nor unwind: some run in a child, where unwinding ends in
//! `abort`.

use std::sync::OnceLock;

use super::SpawnError;

/// What the pool layer does around the life of a child.
#[derive(Debug)]
pub(crate) struct Hooks {
    /// The number of guards, claims, views, pins and leases this process holds, leaked ones
    /// included. A fork would copy them, so `spawn` is refused while it is not zero.
    pub(crate) guards_held: fn() -> usize,
    /// The last step before the fork; an error cancels it. Followed by the fork, and by
    /// `fork_failed` if that fails.
    pub(crate) before_fork: fn() -> Result<(), SpawnError>,
    /// The fork that `before_fork` prepared made no process.
    pub(crate) fork_failed: fn(),
    /// The fork made the process with this pid. Called in the parent.
    pub(crate) forked: fn(pid: u32),
    /// Runs in a child that ends in order, after its closure returned or panicked and its result
    /// is written, as the last thing before `_exit`. A child that is killed, or leaves by
    /// `exit`, does not come here.
    pub(crate) child_ending: fn(),
    /// The child that had this pid has ended and been reaped, in whatever way it ended. The number
    /// may already belong to another process.
    pub(crate) child_reaped: fn(pid: u32),
}

static HOOKS: OnceLock<Hooks> = OnceLock::new();

/// Installs the hooks, for the life of the process and its forked children. Whether these are the
/// first: later ones change nothing.
pub(crate) fn install(hooks: Hooks) -> bool {
    HOOKS.set(hooks).is_ok()
}

/// The hooks, if there are any.
pub(crate) fn installed() -> Option<&'static Hooks> {
    HOOKS.get()
}
