//! shmkit

// The derive macros' output says `::shmkit`, also in this crate.
extern crate self as shmkit;

mod allocator;
pub mod layout;
mod participants;
mod primitive;
pub mod process;
mod sys;

pub use layout::{KillSafe, ShmSafe, TypeInfo};
pub use shmkit_derive::{KillSafe, ShmSafe};

/// What the derive macros' output calls; no part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::layout::derive_support::*;
}
