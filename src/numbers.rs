//! Matrices and arrays of numbers, as seen by programs that know nothing of this library.
//!
//! A pool is a file, and the elements of a [`Matrix`] or an [`Array`] lie in it in one piece, in
//! row-major order. So a program that knows where they are (offset, shape, strides, element type)
//! can map the file and read and write them in place, for instance with NumPy's `memmap`; see
//! `docs/numpy.md`.
//!
//! # Rationale
//!
//! A pool knows the types of its objects only by their fingerprints. There are few types that are
//! made of numbers, and this program can compute the fingerprint of each, so nothing has to be
//! stored: an object whose fingerprint is none of these is not made of numbers.
//!
//! ```
//! use shmkit::{Matrix, Pool, numbers};
//!
//! let pool = Pool::builder().create()?;
//! let table = Matrix::from_fn_in(pool, 3, 4, |row, column| (row * column) as f32)?;
//! pool.set_name("table", &table)?;
//! let found = numbers::describe(pool, "table")?;
//! assert_eq!(found.dtype, "<f4");
//! assert_eq!((found.shape, found.strides), (vec![3, 4], vec![16, 4]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod store;

use std::alloc::Layout;
use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32,
    AtomicU64, AtomicUsize,
};

use serde::Serialize;

pub use store::{StoreNumbersError, Stored, store};

use crate::layout::arena::Arena;
use crate::pool::objects::{self, ObjectPhase};
use crate::pool::{names, types};
use crate::primitive::{Ordering, fence};
use crate::{Array, KillSafe, Matrix, Movable, Pool, ShmSafe};

/// The kind of an object of numbers.
///
/// ```
/// use shmkit::numbers::{self, Kind};
/// use shmkit::{Array, Pool};
///
/// let pool = Pool::builder().create()?;
/// let halves = Array::filled_in(pool, 3, 0.5_f32)?;
/// pool.set_name("halves", &halves)?;
/// let total = pool.create(7_u64)?;
/// pool.set_name("total", &total)?;
/// assert_eq!(numbers::describe(pool, "halves")?.kind, Kind::Array);
/// assert_eq!(numbers::describe(pool, "total")?.kind, Kind::Scalar);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// A [`Matrix`]: two dimensions.
    Matrix,
    /// An [`Array`]: one dimension.
    Array,
    /// A single number, plain or atomic: no dimension.
    Scalar,
}

/// Where numbers are in a pool's file, and what they are.
///
/// ```
/// use shmkit::{Array, Pool, numbers};
///
/// let pool = Pool::builder().create()?;
/// let halves = Array::filled_in(pool, 3, 0.5_f32)?;
/// pool.set_name("halves", &halves)?;
/// let found = numbers::describe(pool, "halves")?;
/// assert_eq!((found.dtype, found.shape), ("<f4", vec![3]));
/// let first = std::ptr::with_exposed_provenance::<f32>(pool.base() + found.offset);
/// // SAFETY: it is there, and nobody writes to it.
/// assert_eq!(unsafe { first.read() }, 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Numbers {
    /// What kind of object holds them.
    pub kind: Kind,
    /// The element type as NumPy writes it: byte order, kind, bytes (`<f8`, `|u1`).
    pub dtype: &'static str,
    /// Where the first element is, in bytes from the start of the pool's file.
    pub offset: usize,
    /// The length of each dimension.
    pub shape: Vec<usize>,
    /// Bytes from one element to the next in each dimension.
    pub strides: Vec<usize>,
    /// Bytes per element.
    pub itemsize: usize,
}

impl Numbers {
    /// How many elements there are.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool, numbers};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_fn_in(pool, 3, 4, |_, _| 1_u8)?;
    /// pool.set_name("table", &table)?;
    /// assert_eq!(numbers::describe(pool, "table")?.len(), 12);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if there are none.
    ///
    /// ```
    /// # use shmkit::{Array, Pool, numbers};
    /// # let pool = Pool::builder().create()?;
    /// let none = Array::filled_in(pool, 0, 1_u8)?;
    /// pool.set_name("none", &none)?;
    /// assert!(numbers::describe(pool, "none")?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why there are no numbers of that name.
///
/// ```
/// use shmkit::numbers::{self, NumbersError};
/// use shmkit::{Mutex, Pool};
///
/// let pool = Pool::builder().create()?;
/// assert_eq!(numbers::describe(pool, "lock"), Err(NumbersError::NotFound));
/// let lock = pool.create(Mutex::new(1_u32))?;
/// pool.set_name("lock", &lock)?;
/// match numbers::describe(pool, "lock") {
///     Err(NumbersError::NotNumbers { type_name }) => assert_eq!(type_name, "Mutex"),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumbersError {
    /// There is no object of that name.
    #[error("the pool has no object of that name")]
    NotFound,
    /// The object is not a matrix, an array or a number of a type that other programs know.
    #[error("the object is a {type_name}, not a matrix, an array or a number")]
    NotNumbers {
        /// The name of its type.
        type_name: String,
    },
    /// The object's entry in the pool does not lead to a block of its size.
    #[error("the object of that name is damaged")]
    Damaged,
    /// The object was given other storage again and again while it was read.
    #[error("the object keeps changing its size")]
    Changing,
    /// This process has no memory for a copy of the elements.
    #[error("there is no memory for {bytes} bytes")]
    NoMemory {
        /// The number of bytes that the elements need.
        bytes: usize,
    },
}

/// Where a value of some type has its elements: address and shape; `None` if it is damaged.
type Extent = fn(Arena, usize) -> Option<(usize, Vec<usize>)>;

/// A type that is made of numbers.
struct Known {
    kind: Kind,
    dtype: &'static str,
    itemsize: usize,
    fingerprint: fn() -> u128,
    layout: Layout,
    extent: Extent,
}

fn fingerprint<T: ShmSafe>() -> u128 {
    T::TYPE.fingerprint()
}

/// An [`Extent`]: `address` is that of a block with a matrix's layout, which belongs to an object
/// of this very type.
fn matrix_extent<T: KillSafe + Movable>(
    arena: Arena,
    address: usize,
) -> Option<(usize, Vec<usize>)> {
    // SAFETY: such a block is mapped and aligned, and a matrix consists of atomics.
    let matrix = unsafe { &*std::ptr::with_exposed_provenance::<Matrix<T>>(address) };
    let (elements, shape) = matrix.extent(arena)?;
    Some((elements, shape.into()))
}

/// The same for arrays.
fn array_extent<T: KillSafe + Movable>(
    arena: Arena,
    address: usize,
) -> Option<(usize, Vec<usize>)> {
    // SAFETY: as for matrices.
    let array = unsafe { &*std::ptr::with_exposed_provenance::<Array<T>>(address) };
    let (elements, len) = array.extent(arena)?;
    Some((elements, vec![len]))
}

macro_rules! known {
    ($($dtype:literal: $($t:ty),+;)*) => {
        &[$($(
            Known {
                kind: Kind::Matrix,
                dtype: $dtype,
                itemsize: size_of::<$t>(),
                fingerprint: fingerprint::<Matrix<$t>>,
                layout: Layout::new::<Matrix<$t>>(),
                extent: matrix_extent::<$t>,
            },
            Known {
                kind: Kind::Array,
                dtype: $dtype,
                itemsize: size_of::<$t>(),
                fingerprint: fingerprint::<Array<$t>>,
                layout: Layout::new::<Array<$t>>(),
                extent: array_extent::<$t>,
            },
            Known {
                kind: Kind::Scalar,
                dtype: $dtype,
                itemsize: size_of::<$t>(),
                fingerprint: fingerprint::<$t>,
                layout: Layout::new::<$t>(),
                extent: |_, address| Some((address, Vec::new())),
            },
        )+)*]
    };
}

const _: () = assert!(cfg!(target_endian = "little"), "the types below say so");

static KNOWN: &[Known] = known! {
    "<f8": f64;
    "<f4": f32;
    "|u1": u8, AtomicU8;
    "<u2": u16, AtomicU16;
    "<u4": u32, AtomicU32;
    "<u8": u64, usize, AtomicU64, AtomicUsize;
    "|i1": i8, AtomicI8;
    "<i2": i16, AtomicI16;
    "<i4": i32, AtomicI32;
    "<i8": i64, isize, AtomicI64, AtomicIsize;
};

/// What a named matrix, array or number in a pool looks like at this moment. A matrix that grows
/// moves.
///
/// # Errors
///
/// See [`NumbersError`].
///
/// ```
/// # use shmkit::{Array, Pool, numbers};
/// # let pool = Pool::builder().create()?;
/// pool.set_name("levels", &Array::filled_in(pool, 10, 0_i16)?)?;
/// let levels = numbers::describe(pool, "levels")?;
/// assert_eq!((levels.dtype, levels.shape, levels.itemsize), ("<i2", vec![10], 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn describe(pool: Pool, name: &str) -> Result<Numbers, NumbersError> {
    named(pool.0, name)
}

/// How often to look again at something that keeps changing.
const TRIES: usize = 16;

pub(crate) fn named(arena: Arena, name: &str) -> Result<Numbers, NumbersError> {
    let find = || {
        let all = names::all(arena);
        all.into_iter().find(|(known, _)| known == name)
    };
    look_again(|| {
        let Some((_, index)) = find() else {
            return Some(Err(NumbersError::NotFound));
        };
        let is_still = || find().is_some_and(|(_, now)| now == index);
        look_up(arena, index, is_still)
    })
}

/// The same for an object, by its index.
pub(crate) fn of_object(arena: Arena, index: usize) -> Result<Numbers, NumbersError> {
    look_again(|| look_up(arena, index, || true))
}

/// The first result of `look` that is not damage: if storage returns to its former place, what
/// looks like damage may be none.
fn look_again(
    look: impl Fn() -> Option<Result<Numbers, NumbersError>>,
) -> Result<Numbers, NumbersError> {
    let mut last = NumbersError::Changing;
    for _ in 0..TRIES {
        match look() {
            Some(Err(NumbersError::Damaged)) => last = NumbersError::Damaged,
            Some(found) => return found,
            None => {}
        }
    }
    Err(last)
}

/// What an object is, if it has not changed meanwhile and `is_still` the one that is meant. Nothing
/// is held or pinned, since an observer cannot do that: so the object may be destroyed, and its
/// storage replaced, while we look. What two looks agree on was there, if the entry was the same
/// before and after.
fn look_up(
    arena: Arena,
    index: usize,
    is_still: impl FnOnce() -> bool,
) -> Option<Result<Numbers, NumbersError>> {
    let Some(entry) = arena.object(index) else {
        return Some(Err(NumbersError::Damaged));
    };
    let state = entry.state();
    let found = look(arena, index);
    let again = look(arena, index);
    fence(Ordering::Acquire);
    let unchanged = found == again && is_still() && entry.state() == state;
    unchanged.then_some(found)
}

fn look(arena: Arena, index: usize) -> Result<Numbers, NumbersError> {
    let entry = arena.object(index).ok_or(NumbersError::Damaged)?;
    if entry.state().phase != ObjectPhase::Live {
        return Err(NumbersError::Damaged);
    }
    let ty = types::described(arena, entry.kind()).ok_or(NumbersError::Damaged)?;
    let known = KNOWN
        .iter()
        .find(|known| (known.fingerprint)() == ty.fingerprint)
        .ok_or(NumbersError::NotNumbers { type_name: ty.name })?;
    let place = objects::address_of(arena, index, known.layout).ok_or(NumbersError::Damaged)?;
    let (address, shape) =
        (known.extent)(arena, place.addr().get()).ok_or(NumbersError::Damaged)?;
    let mut strides = vec![known.itemsize; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension].saturating_mul(shape[dimension]);
    }
    // If there are no elements, the place means nothing.
    let is_empty = shape.contains(&0);
    Ok(Numbers {
        kind: known.kind,
        dtype: known.dtype,
        offset: if is_empty {
            0
        } else {
            address.wrapping_sub(arena.base())
        },
        shape,
        strides,
        itemsize: known.itemsize,
    })
}

/// The numbers, with a copy of their bytes.
pub(crate) fn read(arena: Arena, name: &str) -> Result<(Numbers, Vec<u8>), NumbersError> {
    // A thread that makes the object grow replaces the storage, and may do so while we copy.
    for _ in 0..TRIES {
        let before = named(arena, name)?;
        let bytes = copy(arena, &before)?;
        if named(arena, name)? == before {
            return Ok((before, bytes));
        }
    }
    Err(NumbersError::Changing)
}

fn copy(arena: Arena, numbers: &Numbers) -> Result<Vec<u8>, NumbersError> {
    let mut copy = Vec::new();
    if numbers.is_empty() {
        return Ok(copy);
    }
    let bytes = numbers.len().checked_mul(numbers.itemsize);
    let bytes = bytes.ok_or(NumbersError::Damaged)?;
    let start = arena.base() + numbers.offset;
    if bytes > arena.room_at(start) || !start.is_multiple_of(numbers.itemsize) {
        return Err(NumbersError::Damaged);
    }
    let reserved = copy.try_reserve_exact(bytes);
    reserved.map_err(|_| NumbersError::NoMemory { bytes })?;
    macro_rules! elements {
        ($atomic:ident) => {
            for address in (start..start + bytes).step_by(numbers.itemsize) {
                // SAFETY: an aligned element within the pool's data. Others also access it as an
                // atomic, or have claimed it: then this is a race of the caller's making, on plain
                // bytes.
                let element = unsafe { &*std::ptr::with_exposed_provenance::<$atomic>(address) };
                copy.extend_from_slice(&element.load(Ordering::Relaxed).to_ne_bytes());
            }
        };
    }
    match numbers.itemsize {
        1 => elements!(AtomicU8),
        2 => elements!(AtomicU16),
        4 => elements!(AtomicU32),
        _ => elements!(AtomicU64),
    }
    Ok(copy)
}
