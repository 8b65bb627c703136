//! Where things lie in a pool, and what types look like there.
//!
//! - `arena`: the address space of a pool; where each table lies.
//! - `header`: the first page: what says that a file is a pool, and which one.
//! - `local`: what this process keeps about the pools that it has mapped.
//! - `shm_safe`: the traits of types that may live in shared memory, for the standard types.
//! - `type_info`: a type's description as data.
//! - `owned`: which words of a value own pool memory.
//! - `field`: what a description is made of.
//! - `fnv`: a simple hash.
//! - `fingerprint`: the description hashed, to compare types between programs.

pub(crate) mod arena;
mod field;
pub(crate) mod fingerprint;
pub(crate) mod fnv;
pub(crate) mod header;
pub(crate) mod local;
mod owned;
mod shm_safe;
mod type_info;

pub use field::{Field, Variant};
pub use owned::{Engine, OwnedField, OwnedKind};
#[doc(hidden)]
pub use shm_safe::derive_support;
pub use shm_safe::{KillSafe, Movable, ShmSafe};
pub use type_info::{TypeFn, TypeInfo};

#[cfg(test)]
mod tests;
