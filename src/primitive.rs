//! The one import of atomics and cells: std's, loom's under `cfg(shmkit_loom)`, or std's with
//! death added under `cfg(fuzzing)`.
//!
//! Everything that runs a protocol on shared words takes its types from here, so that the cores of
//! the protocols can be model-checked without a second copy of their code.

#[cfg(not(any(shmkit_loom, fuzzing)))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(not(shmkit_loom))]
pub(crate) use std::sync::atomic::{Ordering, compiler_fence, fence};

#[cfg(all(fuzzing, not(shmkit_loom)))]
mod mortal;

#[cfg(all(fuzzing, not(shmkit_loom)))]
pub(crate) use mortal::{AtomicU32, AtomicU64, Killed, is_killed, kill_after, spared};

/// See `mortal`: in other builds, no thread dies in part.
#[cfg(not(any(shmkit_loom, fuzzing)))]
#[inline(always)]
pub(crate) fn spared<R>(does: impl FnOnce() -> R) -> R {
    does()
}

#[cfg(shmkit_loom)]
mod model;

#[cfg(shmkit_loom)]
pub use model::{AtomicU32, AtomicU64, Killed, Ordering, fence, kill_after, without_fences};
