//! shmkit

// The derive macros' output says `::shmkit`, also in this crate.
extern crate self as shmkit;

mod allocator;
mod containers;
pub mod layout;
mod participants;
mod pool;
mod primitive;
pub mod process;
pub mod sync;
mod sys;

pub use allocator::check::CheckReport;
pub use allocator::stats::{ClassStats, Stats};
pub use allocator::{AllocError, FreeError};
pub use containers::{Foreign, Handle, HandleError, Link, LinkError, PoolAlloc, Shared, View};
pub use layout::{KillSafe, ShmSafe, TypeInfo};
pub use participants::thread::NoSlot;
pub use pool::{
    AttachError, CreateError, GrowError, NamedError, ObjectError, OutOfMemory, Pool, PoolBuilder,
    ReallocError, RecoverySummary, TypeError, UnlinkError,
};
pub use shmkit_derive::{KillSafe, ShmSafe};
pub use sync::{
    Barrier, Condvar, LockError, Mutex, MutexGuard, Orphan, Permit, ReentrantMutex, Semaphore,
};
pub use sys::memory::CommitError;
pub use sys::robust::RobustError;

/// What the derive macros' output calls; no part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::layout::derive_support::*;
}
