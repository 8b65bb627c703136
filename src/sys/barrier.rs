//! A full memory fence on every thread at once, by the kernel: `membarrier(2)`.
//!
//! Of two who each store something and then look for what the other has stored, one at least must see the
//! other, and for that each needs a full fence between the two, which costs as much as a locked
//! instruction. Where one of them does it often and the other seldom, the seldom one can have the kernel
//! run a fence on all processors that run a thread of a process that has [registered](register). Then the
//! other needs none: the fence came before its store, and its look finds what was stored before; or
//! behind its store, which is seen. A thread that does not run has passed a fence when it was taken off the
//! processor, and passes one when it runs again.

use rustix::thread::{MembarrierCommand, membarrier};

/// Has this process take part, and the children that it forks, until they call `exec`. Repeatable. False if the system
/// refuses.
///
/// Takes some milliseconds in a process that has threads already, microseconds otherwise.
pub(crate) fn register() -> bool {
    membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// Runs a full fence on every thread of the processes that take part. False if the system refuses, twice: the call may
/// have had no memory.
pub(crate) fn on_all() -> bool {
    let run = || membarrier(MembarrierCommand::GlobalExpedited).is_ok();
    run() || run()
}
