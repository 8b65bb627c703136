//! Which types may live in shared memory: [`ShmSafe`], and [`KillSafe`] for those that survive a
//! half-made write.
//!
//! # Rationale
//!
//! A value in a pool is seen by several processes, at the same address but in different programs,
//! and it outlives any of them. So it holds nothing that is meaningful in only one process
//! (references, raw pointers, functions, the standard library's locks), and its destruction runs no
//! code of its type: the process that destroys it may not contain that code. [`ShmSafe::TYPE`]
//! describes as data what a destructor would do.
//!
//! [`KillSafe`] is about SIGKILL in the middle of a copy. Types for which *every* bit pattern is
//! valid qualify. `bool`, `char`, `NonZero*`, `Duration` and enums have invalid patterns: the mix
//! of 0x0100 and 0x0001 is zero. (One byte cannot tear, so `bool` alone would be fine, but the rule
//! "any bits" is easier to keep.) Padding does not matter: its bytes carry nothing, before or
//! after.

use core::marker::PhantomData;
use core::mem::{MaybeUninit, offset_of};
use core::num::{
    NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroI128, NonZeroIsize, NonZeroU8,
    NonZeroU16, NonZeroU32, NonZeroU64, NonZeroU128, NonZeroUsize, Wrapping,
};
// The types that users put into pools. The library's own protocols use `crate::primitive`.
use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16,
    AtomicU32, AtomicU64, AtomicUsize,
};
use core::time::Duration;

use super::field::Field;
use super::type_info::TypeInfo;

/// A type whose values may live in shared memory.
///
/// Use the derive macro of the same name. It takes structs and enums whose every field is
/// `ShmSafe`, adds `T: ShmSafe` for every type parameter, and refuses types with a `Drop`
/// implementation, unions, and enums without a `repr` of an integer.
///
/// ```
/// use std::sync::atomic::AtomicU64;
/// use shmkit::ShmSafe;
///
/// #[derive(ShmSafe)]
/// struct Counter<T> {
///     hits: AtomicU64,
///     last: T,
///     state: State,
/// }
///
/// #[derive(ShmSafe)]
/// #[repr(u8)]
/// enum State {
///     Idle,
///     Busy { since: u64 },
/// }
///
/// fn assert_shm_safe<T: ShmSafe>() {}
/// assert_shm_safe::<Counter<[f32; 4]>>();
/// ```
///
/// Deriving it states that a value written by any program with a type of the same fingerprint is
/// valid for this one. Fingerprints cover names and layouts, not paths: if unsafe code relies on an
/// invariant of private fields, give the type a unique name.
///
/// A crate that re-exports this one states where: `#[shmkit(crate = "path")]`. The checks are
/// whatever that path leads to, so the attribute is a promise like that of an `unsafe impl`: that
/// it is this crate.
///
/// # Safety
///
/// - A value means the same in every process that maps its pool: it holds no address of memory
///   outside the pool and no handle of one process. If that is so only for processes of one program
///   image, [`IMAGE_BOUND`](Self::IMAGE_BOUND) is true.
/// - [`TYPE`](Self::TYPE) describes `Self`: every stored value that is `ShmSafe` in its own right
///   is listed at its offset, and so is every word that owns pool memory.
/// - [`OWNS`](Self::OWNS) is true if some field owns pool memory.
/// - There is no `Drop` and no drop glue.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot live in shared memory",
    label = "not `ShmSafe`",
    note = "shared memory holds no references, raw pointers, functions, or types of one process; \
            `#[derive(ShmSafe)]` admits structs and enums made of `ShmSafe` fields"
)]
pub unsafe trait ShmSafe: Send + Sync + 'static {
    /// The description of the type.
    ///
    /// ```
    /// # use shmkit::ShmSafe;
    /// #[derive(ShmSafe)]
    /// struct Point {
    ///     x: f64,
    ///     y: f64,
    /// }
    ///
    /// assert_eq!((Point::TYPE.name(), Point::TYPE.size()), ("Point", 16));
    /// ```
    const TYPE: &'static TypeInfo;

    /// Whether values are meaningful in only one program image, because they hold the address of a
    /// static or a function in it.
    ///
    /// ```
    /// # use shmkit::{Foreign, ShmSafe};
    /// #[derive(ShmSafe)]
    /// struct Step {
    ///     number: u32,
    ///     name: Foreign<String>,
    /// }
    ///
    /// assert!(Step::IMAGE_BOUND);
    /// assert!(!<[u32; 4]>::IMAGE_BOUND);
    /// ```
    const IMAGE_BOUND: bool = false;

    /// Whether some field owns pool memory, such as a link or the storage of an array.
    ///
    /// ```
    /// # use shmkit::{Array, ShmSafe};
    /// #[derive(ShmSafe)]
    /// struct Table {
    ///     width: usize,
    ///     cells: Array<f64>,
    /// }
    ///
    /// assert!(Table::OWNS);
    /// assert!(!<[f64; 100]>::OWNS);
    /// ```
    const OWNS: bool = false;
}

/// A [`ShmSafe`] type for which every byte-wise mix of two valid values is a valid value.
///
/// A process that is killed while it overwrites a value leaves some old bytes and some new ones.
/// What it leaves of a `KillSafe` value is a value: perhaps not one that anybody wrote, but one
/// that safe code may read. Integers and floats qualify, and so do arrays, tuples and structs of
/// them; derive it for structs.
///
/// ```
/// use shmkit::{KillSafe, ShmSafe};
///
/// #[derive(Clone, Copy, ShmSafe, KillSafe)]
/// struct Complex {
///     re: f64,
///     im: f64,
/// }
///
/// fn assert_kill_safe<T: KillSafe>() {}
/// assert_kill_safe::<[Complex; 8]>();
/// ```
///
/// # Safety
///
/// For any two valid values, taking each byte from either gives a valid value, also with regard to
/// what unsafe code relies on. `Self` owns no pool memory.
#[diagnostic::on_unimplemented(
    message = "a half-written `{Self}` may be invalid",
    label = "not `KillSafe`",
    note = "a killed process leaves any mix of old and new bytes; `KillSafe` holds for integers, \
            floats, and arrays, tuples and structs (by `#[derive(KillSafe)]`) of them"
)]
pub unsafe trait KillSafe: ShmSafe {
    /// Where the derive macro puts the check of the fields.
    #[doc(hidden)]
    const FIELDS: () = ();
}

/// What can be moved into a container and out of it: [`Unpin`], by another name.
///
/// Locks, links, events and containers are used where they are, by threads that may wait for them,
/// so they are not `Unpin`, and no container takes them by value. This trait holds for all types
/// that are `Unpin`, so there is nothing to implement; it exists for the message that the compiler
/// gives if a type is not. Generic code may require either.
///
/// ```
/// use shmkit::{Movable, Queue, ShmSafe};
///
/// fn drain<T: ShmSafe + Movable>(queue: &Queue<T>) -> Vec<T> {
///     std::iter::from_fn(|| queue.try_pop().ok()).collect()
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is used where it is, and cannot be moved",
    label = "not `Movable`",
    note = "locks, links and containers, and types that have such fields, are neither copied nor moved; \
            where values are stored, a `Handle` (`Shared::handle`) stands for an object that is allocated by itself"
)]
pub trait Movable: Unpin {}

#[diagnostic::do_not_recommend]
impl<T: ?Sized + Unpin> Movable for T {}

/// What the derive macros' output calls.
#[doc(hidden)]
pub mod derive_support {
    pub use crate::layout::{Field, TypeInfo, Variant};
    use crate::layout::{KillSafe, ShmSafe};

    /// Implemented by derived types and, in a blanket, by types with `Drop`: a type that is both
    /// has conflicting implementations. The trick is known from the pin-project crate.
    pub trait ShmSafeTypesHaveNoDrop {}

    #[expect(
        drop_bounds,
        reason = "exactly the types that implement Drop are meant"
    )]
    impl<T: ?Sized + Drop> ShmSafeTypesHaveNoDrop for T {}

    /// Compiles only for the address of a `T`.
    pub const fn is<T: ?Sized>(_: *const T) {}

    /// Compiles only for kill-safe types.
    pub const fn kill_safe<T: KillSafe>() {}

    /// Compiles only for types whose values are their bytes: see `TypeInfo::is_plain`.
    pub const fn assert_plain<T: ShmSafe>() {
        assert!(
            T::TYPE.is_plain(),
            "a key is told by its bytes: no padding between or behind its fields, no atomics"
        );
    }

    /// False. If the field owns pool memory, this does not compile.
    pub const fn owns_nothing(field: Field) -> bool {
        assert!(
            !field.owns(),
            "a value that owns pool memory cannot sit in an enum or an Option: it must be found \
             at a fixed offset by processes that do not know the type"
        );
        false
    }
}

use derive_support::owns_nothing;

macro_rules! scalars {
    ($($ty:ident)*) => {$(
        // SAFETY: plain bytes without an address, described by name and size.
        unsafe impl ShmSafe for $ty {
            const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>(stringify!($ty));
        }
    )*};
}

macro_rules! plain_scalars {
    ($($ty:ident)*) => {$(
        // SAFETY: plain bytes without an address, described by name and size.
        unsafe impl ShmSafe for $ty {
            const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>(stringify!($ty)).plain();
        }
    )*};
}

macro_rules! any_bits {
    ($($ty:ident)*) => {$(
        // SAFETY: every bit pattern is a value.
        unsafe impl KillSafe for $ty {}
    )*};
}

scalars! {
    AtomicU8 AtomicU16 AtomicU32 AtomicU64 AtomicUsize
    AtomicI8 AtomicI16 AtomicI32 AtomicI64 AtomicIsize AtomicBool
}

plain_scalars! {
    u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64
    bool char
    NonZeroU8 NonZeroU16 NonZeroU32 NonZeroU64 NonZeroU128 NonZeroUsize
    NonZeroI8 NonZeroI16 NonZeroI32 NonZeroI64 NonZeroI128 NonZeroIsize
}

any_bits! {
    u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64
    AtomicU8 AtomicU16 AtomicU32 AtomicU64 AtomicUsize
    AtomicI8 AtomicI16 AtomicI32 AtomicI64 AtomicIsize
}

/// The library's own words, if the fuzzer has made them other types than the standard library's.
#[cfg(fuzzing)]
mod mortal {
    use super::{ShmSafe, TypeInfo};
    use crate::primitive::{AtomicU32, AtomicU64};

    scalars! { AtomicU32 AtomicU64 }
}

// SAFETY: two numbers; their order is the compiler's choice, which the fingerprint includes.
unsafe impl ShmSafe for Duration {
    const TYPE: &'static TypeInfo = &TypeInfo::scalar::<Self>("Duration").compiler_layout();
}

// SAFETY: there are no bytes.
unsafe impl<T: ShmSafe> ShmSafe for PhantomData<T> {
    const TYPE: &'static TypeInfo =
        &TypeInfo::library::<Self>("PhantomData", const { &[Field::mention::<T>("T")] });
}

// SAFETY: there are no bytes.
unsafe impl<T: ShmSafe> KillSafe for PhantomData<T> {}

// SAFETY: the one field is ShmSafe and described at its place.
unsafe impl<T: ShmSafe> ShmSafe for Wrapping<T> {
    const TYPE: &'static TypeInfo =
        &TypeInfo::record::<Self>("Wrapping", const { &[Field::at::<T>("0", 0)] });
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = T::OWNS;
}

// SAFETY: `Wrapping` adds no invariant to its field.
unsafe impl<T: KillSafe> KillSafe for Wrapping<T> {}

// SAFETY: the elements are ShmSafe and described; they own if and only if one of them does.
unsafe impl<T: ShmSafe, const N: usize> ShmSafe for [T; N] {
    const TYPE: &'static TypeInfo = &TypeInfo::sequence::<Self, T>("array", N);
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = T::OWNS;
}

// SAFETY: a mix of two arrays is an array of mixes.
unsafe impl<T: KillSafe, const N: usize> KillSafe for [T; N] {}

// SAFETY: a `T` or nothing, and a `T` that owns does not compile, so nothing is left to describe by
// offset. The layout is the compiler's choice, which the fingerprint includes.
unsafe impl<T: ShmSafe> ShmSafe for Option<T> {
    const TYPE: &'static TypeInfo =
        &TypeInfo::library::<Self>("Option", const { &[Field::within::<T>("Some")] })
            .compiler_layout();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = owns_nothing(Field::within::<T>("T"));
}

// SAFETY: a `T` or any bytes, none of which can be read safely as more than bytes; KillSafe types
// own nothing.
unsafe impl<T: KillSafe> ShmSafe for MaybeUninit<T> {
    const TYPE: &'static TypeInfo =
        &TypeInfo::library::<Self>("MaybeUninit", const { &[Field::within::<T>("value")] });
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = owns_nothing(Field::within::<T>("T"));
}

// SAFETY: every bit pattern is a value, and if both values were initialised, so is the mix, by `T:
// KillSafe`.
unsafe impl<T: KillSafe> KillSafe for MaybeUninit<T> {}

macro_rules! tuples {
    ($(($($name:ident $index:tt),*))*) => {$(
        // SAFETY: every field is ShmSafe and described at its offset.
        unsafe impl<$($name: ShmSafe),*> ShmSafe for ($($name,)*) {
            const TYPE: &'static TypeInfo = &TypeInfo::record::<Self>("tuple", const {
                &[$(Field::at::<$name>(stringify!($index), offset_of!(Self, $index))),*]
            });
            const IMAGE_BOUND: bool = false $(|| $name::IMAGE_BOUND)*;
            const OWNS: bool = false $(|| $name::OWNS)*;
        }

        // SAFETY: a mix of two tuples is a tuple of mixes.
        unsafe impl<$($name: KillSafe),*> KillSafe for ($($name,)*) {}
    )*};
}

tuples! {
    ()
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
}
