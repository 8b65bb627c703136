//! Puts numbers of other programs into a pool.

use super::TRIES;
use crate::{
    AllocError, Array, ClaimError, KillSafe, Matrix, Movable, NamedError, OutOfMemory, Pool,
    ShapeError,
};

/// Why numbers were not stored.
///
/// ```
/// use shmkit::numbers::{self, StoreNumbersError};
///
/// let pool = shmkit::Pool::builder().create()?;
/// match numbers::store(pool, "bytes", "|u1", &[3], &[1, 2]) {
///     Err(StoreNumbersError::WrongLength { bytes, needed }) => assert_eq!((bytes, needed), (2, 3)),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreNumbersError {
    /// Elements of that type cannot be stored.
    #[error("elements of the type {dtype} cannot be stored")]
    UnknownType {
        /// The requested type.
        dtype: String,
    },
    /// Matrices have two dimensions, arrays one, and single numbers none; in a matrix, no dimension
    /// is 0.
    #[error("numbers of the shape {shape:?} cannot be stored")]
    UnknownShape {
        /// The requested shape.
        shape: Vec<usize>,
    },
    /// There are fewer or more bytes than the shape requires.
    #[error("there are {bytes} bytes, and the shape asks for {needed}")]
    WrongLength {
        /// The number of bytes given.
        bytes: usize,
        /// The number of bytes needed.
        needed: usize,
    },
    /// The object of that name has another shape.
    #[error("the object of that name has the shape {found:?}, and the numbers have {shape:?}")]
    OtherShape {
        /// The object's shape.
        found: Vec<usize>,
        /// The numbers' shape.
        shape: Vec<usize>,
    },
    /// The object of that name is of another type, or has no room for its name.
    #[error(transparent)]
    Named(#[from] NamedError),
    /// The name led to a different object each time it was looked up.
    #[error("the name keeps changing its object")]
    Changing,
    /// Somebody has claimed elements of the object.
    #[error("the object of that name is in use")]
    Claimed(#[from] ClaimError),
    /// There is no room for the matrix.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// There is no room for the array.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// How numbers were stored.
///
/// ```
/// use shmkit::numbers::{self, Stored};
///
/// let pool = shmkit::Pool::builder().create()?;
/// let stored = numbers::store(pool, "bytes", "|u1", &[2], &[1, 2])?;
/// assert_eq!(stored, Stored::Created);
/// let stored = numbers::store(pool, "bytes", "|u1", &[2], &[3, 4])?;
/// assert_eq!(stored, Stored::Overwritten);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stored {
    /// A new object has them.
    Created,
    /// The object of that name has them now; for a single number, a new object that has taken over
    /// the name.
    Overwritten,
}

/// Puts numbers into the matrix (two dimensions) or array (one) of that name: over the elements of
/// the existing one, which must have the same type and shape, or into a new one if there is none. A
/// single number (no dimension) may have references to it, so it is not changed: a new one takes
/// over its name. `bytes` are the elements in row-major order and this machine's byte order.
///
/// # Errors
///
/// See [`StoreNumbersError`]; nothing was stored.
///
/// # Crash behaviour
///
/// A new object has its name and all its numbers, or there is none. Overwriting is done under an
/// exclusive claim: a death in the middle leaves some old numbers and some new ones, each whole,
/// and the claim is over. The name of a single number leads to the old one or to the new one.
///
/// ```
/// # use shmkit::{Array, Pool, numbers};
/// # let pool = Pool::builder().create()?;
/// let bytes: Vec<u8> = [0.5_f64, 1.5].iter().flat_map(|x| x.to_ne_bytes()).collect();
/// let stored = numbers::store(pool, "halves", "<f8", &[2], &bytes)?;
/// assert_eq!(stored, numbers::Stored::Created);
/// assert_eq!(pool.named::<Array<f64>>("halves")?.get(1)?, 1.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn store(
    pool: Pool,
    name: &str,
    dtype: &str,
    shape: &[usize],
    bytes: &[u8],
) -> Result<Stored, StoreNumbersError> {
    macro_rules! stored {
        ($($dtype:literal: $t:ty;)*) => {
            match dtype {
                $($dtype => store_as::<$t>(pool, name, shape, bytes),)*
                _ => Err(StoreNumbersError::UnknownType {
                    dtype: dtype.into(),
                }),
            }
        };
    }
    stored! {
        "<f8": f64; "<f4": f32;
        "|u1": u8; "<u2": u16; "<u4": u32; "<u8": u64;
        "|i1": i8; "<i2": i16; "<i4": i32; "<i8": i64;
    }
}

/// Copies, with one store for each element: if the process is killed on the way, each element is
/// the old one or the new one.
fn overwrite<T: bytemuck::Pod + KillSafe>(target: &mut [T], elements: &[T]) {
    for (target, element) in target.iter_mut().zip(elements) {
        // SAFETY: a place in the slice, to which we may write.
        unsafe { std::ptr::write_volatile(target, *element) };
    }
}

fn store_as<T>(
    pool: Pool,
    name: &str,
    shape: &[usize],
    bytes: &[u8],
) -> Result<Stored, StoreNumbersError>
where
    T: bytemuck::Pod + KillSafe + Movable,
{
    let count = shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len));
    let needed = count.and_then(|count| count.checked_mul(size_of::<T>()));
    let needed = needed.unwrap_or(usize::MAX);
    if needed != bytes.len() {
        let bytes = bytes.len();
        return Err(StoreNumbersError::WrongLength { bytes, needed });
    }
    let mut elements: Vec<T> = Vec::new();
    let reserved = elements.try_reserve_exact(bytes.len() / size_of::<T>());
    reserved.map_err(|_| OutOfMemory {
        value: (),
        cause: AllocError::TooLarge.into(),
    })?;
    let each = bytes.chunks_exact(size_of::<T>());
    elements.extend(each.map(bytemuck::pod_read_unaligned::<T>));
    for _ in 0..TRIES {
        match store_once(pool, name, shape, &elements) {
            // Another participant has given the name to another object meanwhile, or removed it.
            Err(StoreNumbersError::Named(NamedError::NameTaken | NamedError::NotFound)) => {}
            other => return other,
        }
    }
    Err(StoreNumbersError::Changing)
}

/// The same for as many elements as the shape requires; it is also an error if the name gets or
/// loses its object meanwhile.
fn store_once<T>(
    pool: Pool,
    name: &str,
    shape: &[usize],
    elements: &[T],
) -> Result<Stored, StoreNumbersError>
where
    T: bytemuck::Pod + KillSafe + Movable,
{
    let other = |found: Vec<usize>| StoreNumbersError::OtherShape {
        found,
        shape: shape.into(),
    };
    match *shape {
        [] => {
            let old = match pool.named::<T>(name) {
                Ok(number) => Some(number),
                Err(NamedError::NotFound) => None,
                Err(error) => return Err(error.into()),
            };
            let new = pool.create(elements[0]);
            let new = new.map_err(|refused| NamedError::Object(refused.cause))?;
            if let Some(old) = old {
                // Programs may have references to its value, which must not change.
                pool.pass_name_on(name, &old, &new)?;
                return Ok(Stored::Overwritten);
            }
            pool.set_name(name, &new)?;
        }
        [len] => {
            match pool.named::<Array<T>>(name) {
                Ok(array) if array.len() != len => return Err(other(vec![array.len()])),
                Ok(array) => {
                    overwrite(&mut array.claim_mut(..)?, elements);
                    return Ok(Stored::Overwritten);
                }
                Err(NamedError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
            let array = Array::from_slice_in(pool, elements)?;
            pool.set_name(name, &array)?;
        }
        [rows, columns] if rows > 0 && columns > 0 => {
            match pool.named::<Matrix<T>>(name) {
                Ok(matrix) if matrix.dims() != (rows, columns) => {
                    let (rows, columns) = matrix.dims();
                    return Err(other(vec![rows, columns]));
                }
                Ok(matrix) => {
                    overwrite(&mut matrix.rows_mut(..)?, elements);
                    return Ok(Stored::Overwritten);
                }
                Err(NamedError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
            let cell = |row, column| elements[row * columns + column];
            let matrix = Matrix::from_fn_in(pool, rows, columns, cell)?;
            pool.set_name(name, &matrix)?;
        }
        _ => {
            return Err(StoreNumbersError::UnknownShape {
                shape: shape.into(),
            });
        }
    }
    Ok(Stored::Created)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::describe;
    use crate::pool::Scratch;

    #[test]
    fn a_matrix_has_rows_and_columns() {
        let pool = Scratch::new();
        for shape in [&[0, 5][..], &[5, 0], &[1, 1, 1]] {
            let bytes = vec![7; shape.iter().product()];
            match store(*pool, "none", "|u1", shape, &bytes) {
                Err(StoreNumbersError::UnknownShape { shape: told }) => assert_eq!(told, shape),
                other => panic!("{other:?}"),
            }
        }
        assert!(pool.names().is_empty());
    }

    #[test]
    fn an_array_of_nothing_has_no_place() {
        let pool = Scratch::new();
        let stored = store(*pool, "nothing", "<f8", &[0], &[]);
        assert!(matches!(stored, Ok(Stored::Created)));
        let found = describe(*pool, "nothing").unwrap();
        assert_eq!((found.offset, found.shape), (0, vec![0]));
    }
}
