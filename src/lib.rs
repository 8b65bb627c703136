//! Shared-memory data structures whose users may be killed at any instruction.
//!
//! A [`Pool`] is memory that several processes have mapped at the same address. It hosts an
//! allocator, locks ([`sync`]), arrays, matrices and objects of your own types
//! (`#[derive(ShmSafe)]`), used from every process through ordinary references. [`process::scope`]
//! starts worker processes. A worker that is killed, at whatever instruction, leaves nothing
//! locked, torn or leaked; whoever meets what it held takes it over.
//!
//! ```
//! use shmkit::process::scope;
//! use shmkit::sync::Mutex;
//! use shmkit::Pool;
//!
//! let pool = Pool::builder().create()?;
//! let total = pool.create(Mutex::new(0_u64))?;
//! scope(|s| {
//!     for worker in 1..=4 {
//!         let total = &total;
//!         s.spawn(move || *total.lock().unwrap() += worker).unwrap();
//!     }
//! });
//! assert_eq!(*total.lock().unwrap(), 10);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Layers
//!
//! Imports point downward only; `docs/design.md` says why things are as they are, and
//! `docs/recovery.md` what a kill leaves, operation by operation.
//!
//! ```text
//! process        scope, spawn, join; run, a master and its workers
//! containers     Shared, Handle, Link, Array, Matrix, Foreign
//! sync           Mutex, ReentrantMutex, Condvar, Semaphore, Barrier
//! pool           create, attach, objects, names
//! allocator      slices, spans, runs, growth
//! participants   who is attached, who lives, recovery of the dead
//! protocol       the steps on shared words that the models check
//! layout         where things lie, what types look like
//! sys            the only code that talks to the kernel
//! ```

#[cfg(not(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_endian = "little"
)))]
compile_error!("shmkit is for 64-bit little-endian Linux");

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
pub use exports::*;

/// The README's example compiles and runs.
#[cfg(all(doctest, not(shmkit_loom)))]
#[doc = include_str!("../README.md")]
mod readme {}

/// What the crate's root offers.
#[cfg(not(shmkit_loom))]
mod exports {
    pub use crate::allocator::check::CheckReport;
    pub use crate::allocator::stats::{ClassStats, Stats};
    pub use crate::allocator::{AllocError, FreeError};
    pub use crate::containers::{
        Array, Claim, ClaimError, ClaimMut, ElementError, Foreign, Handle, HandleError, Link,
        LinkError, Matrix, PoolAlloc, ResizeError, RowBand, RowBandMut, Rows, RowsMut, ShapeError,
        Shared, View,
    };
    pub use crate::layout::{KillSafe, ShmSafe, TypeInfo};
    pub use crate::participants::thread::NoSlot;
    pub use crate::pool::{
        AttachError, CreateError, GrowError, NamedError, ObjectError, OutOfMemory, Pool,
        PoolBuilder, ReallocError, RecoverySummary, TypeError, UnlinkError,
    };
    pub use crate::sync::{
        Barrier, Condvar, LockError, Mutex, MutexGuard, Orphan, Permit, ReentrantMutex, Semaphore,
    };
    pub use crate::sys::memory::CommitError;
    pub use shmkit_derive::{KillSafe, ShmSafe};
}

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

    pub use crate::process::testing::Jobs;

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
