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
pub use sys::memory::CommitError;
#[cfg(not(shmkit_loom))]
pub use sys::robust::RobustError;

#[cfg(not(shmkit_loom))]
/// What the derive macros' output calls; no part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::layout::derive_support::*;
}
