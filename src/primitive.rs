//! The one import of atomics and cells: std's, or loom's under `cfg(shmkit_loom)`.
//!
//! Everything that runs a protocol on shared words takes its types from here, so that the
//! protocol cores can be model-checked without a second copy of their code.

#[cfg(not(shmkit_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};

#[cfg(shmkit_loom)]
mod model;

#[cfg(shmkit_loom)]
pub use model::{AtomicU32, AtomicU64, Killed, Ordering, fence, kill_after};
