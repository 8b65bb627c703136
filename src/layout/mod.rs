//! What types look like in a pool.
//!
//! - `shm_safe`: the traits of types that may live in shared memory, for the standard types.
//! - `type_info`: a type's description as data.
//! - `fingerprint`: the description hashed, to compare types between programs.

pub(crate) mod arena;
pub(crate) mod fingerprint;
pub(crate) mod header;
pub(crate) mod local;
mod shm_safe;
mod type_info;

#[doc(hidden)]
pub use shm_safe::derive_support;
pub use shm_safe::{KillSafe, ShmSafe};
pub use type_info::{Engine, Field, OwnedField, OwnedKind, TypeFn, TypeInfo, Variant};

#[cfg(test)]
mod tests;
