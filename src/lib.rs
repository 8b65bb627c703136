//! shmkit

// The derive macros' output says `::shmkit`, also in this crate.
extern crate self as shmkit;

#[cfg(not(shmkit_loom))]
mod allocator;
#[cfg(not(shmkit_loom))]
mod containers;
#[cfg(not(shmkit_loom))]
pub mod layout;
#[cfg(not(shmkit_loom))]
mod participants;
#[cfg(not(shmkit_loom))]
mod pool;
#[cfg(not(shmkit_loom))]
pub mod process;
#[cfg(not(shmkit_loom))]
pub mod sync;
#[cfg(not(shmkit_loom))]
mod sys;

// All that there is for the models of `tests/loom`.
#[cfg(not(shmkit_loom))]
mod primitive;
#[cfg(shmkit_loom)]
#[doc(hidden)]
pub mod primitive;
#[cfg(not(shmkit_loom))]
mod protocol;
#[cfg(shmkit_loom)]
#[doc(hidden)]
pub mod protocol;

#[cfg(not(shmkit_loom))]
pub use allocator::check::CheckReport;
#[cfg(not(shmkit_loom))]
pub use allocator::stats::{ClassStats, Stats};
#[cfg(not(shmkit_loom))]
pub use allocator::{AllocError, FreeError};
#[cfg(not(shmkit_loom))]
pub use containers::{Foreign, Handle, HandleError, Link, LinkError, PoolAlloc, Shared, View};
#[cfg(not(shmkit_loom))]
pub use layout::{KillSafe, ShmSafe, TypeInfo};
#[cfg(not(shmkit_loom))]
pub use participants::thread::NoSlot;
#[cfg(not(shmkit_loom))]
pub use pool::{
    AttachError, CreateError, GrowError, NamedError, ObjectError, OutOfMemory, Pool, PoolBuilder,
    ReallocError, RecoverySummary, TypeError, UnlinkError,
};
pub use shmkit_derive::{KillSafe, ShmSafe};
#[cfg(not(shmkit_loom))]
pub use sync::{
    Barrier, Condvar, LockError, Mutex, MutexGuard, Orphan, Permit, ReentrantMutex, Semaphore,
};
#[cfg(not(shmkit_loom))]
pub use sys::memory::CommitError;
#[cfg(not(shmkit_loom))]
pub use sys::robust::RobustError;

#[cfg(not(shmkit_loom))]
/// What the derive macros' output calls; no part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::layout::derive_support::*;
}

/// For the crash tests; no part of the API.
#[cfg(not(shmkit_loom))]
#[doc(hidden)]
pub mod testing {
    use crate::Pool;
    use crate::layout::local;
    use crate::primitive::Ordering;
    use crate::sys::robust::{OWNER_DIED, RobustWord, TID, WAITERS};

    /// Bytes of address space that the pool has.
    pub fn mapped_len(pool: Pool) -> usize {
        local::of(pool.0).len()
    }

    /// How many links lead to each object that there is.
    pub fn link_counts(pool: Pool) -> Vec<u32> {
        (0..pool.0.object_count())
            .filter_map(|i| pool.0.object(i))
            .filter(|entry| entry.state().phase == crate::pool::objects::Phase::Live)
            .map(|entry| crate::participants::detect::value(entry.links.load(Ordering::SeqCst)))
            .collect()
    }

    /// Does to the pool what the kernel does when the thread with that tid dies.
    pub fn mark_dead(pool: Pool, tid: u32) {
        let mark = |life: &RobustWord| {
            let word = life.word.load(Ordering::Relaxed);
            if word & TID == tid && word & OWNER_DIED == 0 {
                life.word
                    .store(word & WAITERS | OWNER_DIED, Ordering::SeqCst);
            }
        };
        pool.0.slots().for_each(|(_, slot)| mark(&slot.life));
        pool.0.processes().for_each(|(_, record)| {
            if record.life.word.load(Ordering::Relaxed) & TID == tid {
                // The process itself may only be stopped: let its number be another's.
                record.start.store(1, Ordering::Relaxed);
            }
            mark(&record.life);
        });
    }
}
