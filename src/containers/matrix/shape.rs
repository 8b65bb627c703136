//! [`ShapeError`]: why a matrix does not get the shape that it is to have.

use serde::{Deserialize, Serialize};

use super::super::ResizeError;
use crate::pool::ObjectError;

/// Why a matrix was not made, or not filled.
///
/// ```
/// use shmkit::{Matrix, Pool, ShapeError};
///
/// let pool = Pool::builder().create()?;
/// let ragged = Matrix::from_rows_in(pool, &[vec![1, 2], vec![3]]).err();
/// assert_eq!(ragged, Some(ShapeError::Ragged { row: 1, len: 1, columns: 2 }));
/// let empty = Matrix::filled_in(pool, 0, 5, 0_u8).err();
/// assert_eq!(empty, Some(ShapeError::Empty { rows: 0, columns: 5 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ShapeError {
    /// A matrix has at least one row and one column.
    #[error("{rows} rows of {columns}: a matrix has one row and one column at least")]
    Empty {
        /// The rows that were asked for.
        rows: usize,
        /// The columns that were asked for.
        columns: usize,
    },
    /// There would be more elements than can be counted.
    #[error("{rows} rows of {columns} are more elements than can be counted")]
    Overflow {
        /// The rows that were asked for.
        rows: usize,
        /// The columns that were asked for.
        columns: usize,
    },
    /// A row is not as long as the first.
    #[error("row {row} has {len} elements, and the first has {columns}")]
    Ragged {
        /// The index of the row.
        row: usize,
        /// Its length.
        len: usize,
        /// The length of the first row.
        columns: usize,
    },
    /// The matrix has elements already.
    #[error("the matrix has elements already")]
    NotEmpty,
    /// There is no room for the matrix.
    #[error(transparent)]
    OutOfMemory(#[from] ObjectError),
    /// It could not grow, for another reason than want of memory.
    #[error(transparent)]
    Resize(ResizeError),
}

/// The number of elements.
pub(super) fn count(rows: usize, columns: usize) -> Result<usize, ShapeError> {
    if rows == 0 || columns == 0 {
        return Err(ShapeError::Empty { rows, columns });
    }
    rows.checked_mul(columns)
        .ok_or(ShapeError::Overflow { rows, columns })
}

/// Want of memory is said in one way.
impl From<ResizeError> for ShapeError {
    fn from(error: ResizeError) -> Self {
        match error {
            ResizeError::Alloc(error) => ObjectError::from(error).into(),
            ResizeError::NoSlot(error) => ObjectError::from(error).into(),
            other => ShapeError::Resize(other),
        }
    }
}
