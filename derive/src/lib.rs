//! Derive macros for shmkit: use them through the `shmkit` crate, which documents the traits, and has the examples.
//!
//! - `shm_safe`: the description of a struct or an enum, and the checks that make it safe.
//! - `kill_safe`: the check of a struct's fields.
//! - `key`: the check of a struct's fields, and of its padding.
//! - `trace`: shows each field to a heap's tracer.
//! - `input`: what the macros read from the type: attributes and generics; and the check that this is what the
//!   compiler sees.

mod input;
mod key;
mod kill_safe;
mod shm_safe;
mod trace;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `shmkit::ShmSafe` for a struct, or for an enum with `#[repr(u8)]` or the like, whose
/// fields are all `ShmSafe`. Type parameters are bounded by `ShmSafe`.
///
/// `#[shmkit(crate = "path")]` on the type names the path of the shmkit crate, if it is not `::shmkit`. The code at
/// that path makes the checks: by writing the attribute you vouch, as with an `unsafe impl`, that the path leads to
/// this crate or to a re-export of it.
#[proc_macro_derive(ShmSafe, attributes(shmkit))]
pub fn derive_shm_safe(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    shm_safe::expand(input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// Implements `shmkit::KillSafe` for a struct whose fields are all `KillSafe`. Type parameters are
/// bounded by `KillSafe`.
///
/// Do not derive it for a struct with an invariant that unsafe code relies on: what a killed
/// process leaves may break it.
///
/// `#[shmkit(crate = "path")]` is the same promise as with [`macro@ShmSafe`].
#[proc_macro_derive(KillSafe, attributes(shmkit))]
pub fn derive_kill_safe(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    kill_safe::expand(input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// Implements `shmkit::Key` for a struct whose fields are keys that are identified by all of their bytes (numbers,
/// `bool`, `char`, arrays of these, and other derived keys; no floats, no `str`, no `Handle`) without padding
/// between or behind them, or for an enum without fields. The type must be `ShmSafe`. Type parameters are bounded
/// by `Key` and `ShmSafe`.
///
/// `#[shmkit(crate = "path")]` is the same promise as with [`macro@ShmSafe`].
#[proc_macro_derive(Key, attributes(shmkit))]
pub fn derive_key(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    key::expand(input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// Implements `shmkit::Trace` for a struct or an enum whose fields are all `Trace`. Type parameters
/// are bounded by `Trace`.
///
/// `#[shmkit(crate = "path")]` is the same promise as with [`macro@ShmSafe`].
#[proc_macro_derive(Trace, attributes(shmkit))]
pub fn derive_trace(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    trace::expand(input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}
