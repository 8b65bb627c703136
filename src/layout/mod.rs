//! What types look like in a pool.
//!
//! - `shm_safe`: the traits of types that may live in shared memory, for the standard types.
//! - `type_info`: a type's description as data.
//! - `field`: what a description is made of.
//! - `fingerprint`: the description hashed, to compare types between programs.

pub(crate) mod arena;
mod field;
pub(crate) mod fingerprint;
pub(crate) mod header;
pub(crate) mod local;
mod shm_safe;
mod type_info;

pub use field::{Field, Variant};
#[doc(hidden)]
pub use shm_safe::derive_support;
pub use shm_safe::{KillSafe, ShmSafe};
pub use type_info::{Engine, OwnedField, OwnedKind, TypeFn, TypeInfo};

#[cfg(test)]
mod tests;
