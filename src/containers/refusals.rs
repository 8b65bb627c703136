//! The errors of arrays and matrices.

use std::ops::{Range, RangeBounds};

use serde::{Deserialize, Serialize};

use crate::allocator::AllocError;
use crate::participants::here::from_nowhere;
use crate::participants::pid::ProcessId;
use crate::participants::thread::NoSlot;

/// Why an element was not read or written.
///
/// ```
/// use shmkit::{Array, ElementError, Pool};
///
/// let pool = Pool::builder().create()?;
/// let numbers = Array::filled_in(pool, 4, 0_u32)?;
/// let claim = numbers.claim_mut(..2)?;
/// assert!(matches!(numbers.set(1, 7), Err(ElementError::Claimed { .. })));
/// numbers.set(2, 7)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ElementError {
    /// There is no such element.
    #[error("index {index} of an array of {len}")]
    OutOfBounds {
        /// The index that was asked for.
        index: usize,
        /// The number of elements.
        len: usize,
    },
    /// The matrix has no such row.
    #[error("row {row} of a matrix of {rows} rows")]
    RowOutOfBounds {
        /// The index that was asked for.
        row: usize,
        /// The number of rows.
        rows: usize,
    },
    /// The matrix has no such column.
    #[error("column {column} of a matrix of {columns} columns")]
    ColumnOutOfBounds {
        /// The index that was asked for.
        column: usize,
        /// The number of columns.
        columns: usize,
    },
    /// The element is part of a claimed range.
    #[error("the element is claimed by process {by}")]
    Claimed {
        /// Whose claim it is; perhaps the caller's own.
        by: ProcessId,
    },
    /// Elements of more than 4096 bytes are accessed through claims only.
    #[error("elements of more than 4096 bytes are accessed through claims only")]
    TooLarge,
    /// The array is not part of an object in a pool.
    #[error("the array is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// Why a range was not claimed.
///
/// ```
/// use shmkit::{Array, ClaimError, Pool};
///
/// let pool = Pool::builder().create()?;
/// let numbers = Array::filled_in(pool, 4, 0_u32)?;
/// let claim = numbers.claim(1..3)?;
/// assert!(matches!(numbers.claim_mut(2..), Err(ClaimError::Claimed { .. })));
/// let beyond = numbers.claim(2..5).err();
/// assert_eq!(beyond, Some(ClaimError::OutOfBounds { start: 2, end: 5, len: 4 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ClaimError {
    /// The range goes beyond the end, or ends before it starts.
    #[error("the range {start}..{end} of {len}")]
    OutOfBounds {
        /// Its start.
        start: usize,
        /// Its end.
        end: usize,
        /// The number of elements.
        len: usize,
    },
    /// The range overlaps a claim, and one of the two is exclusive.
    #[error("the range overlaps a claim of process {by}")]
    Claimed {
        /// Whose claim it is; perhaps the caller's own.
        by: ProcessId,
    },
    /// The array already has as many claims as it can have.
    #[error("the array has 62 claims already")]
    TooManyClaims,
    /// The array is not part of an object in a pool.
    #[error("the array is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// Why an array did not grow. It is as it was.
///
/// ```
/// use shmkit::{Array, Pool, ResizeError};
///
/// let pool = Pool::builder().create()?;
/// let numbers = Array::filled_in(pool, 4, 0_u32)?;
/// assert_eq!(numbers.grow(2, 0), Err(ResizeError::Shorter { len: 4 }));
/// let claim = numbers.claim(..1)?;
/// assert!(matches!(numbers.grow(8, 0), Err(ResizeError::Claimed { .. })));
/// assert_eq!(numbers.len(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ResizeError {
    /// Some of the array is claimed.
    #[error("process {by} has a claim")]
    Claimed {
        /// Whose claim it is; perhaps the caller's own.
        by: ProcessId,
    },
    /// The array is already longer than that.
    #[error("there are {len} already")]
    Shorter {
        /// The number of elements.
        len: usize,
    },
    /// The array has as many claims as it can have, and all of them are of empty ranges. This happens
    /// only in a damaged pool.
    #[error("the array has 62 claims already")]
    TooManyClaims,
    /// There is no block for the elements.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The array is not part of an object in a pool.
    #[error("the array is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(ElementError, ClaimError, ResizeError);

/// The bounds of a range, if it lies within `len`.
pub(super) fn resolve(
    range: impl RangeBounds<usize>,
    len: usize,
) -> Result<Range<usize>, ClaimError> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let start = match range.start_bound() {
        Included(&start) => start,
        Excluded(&before) => before.saturating_add(1),
        Unbounded => 0,
    };
    let end = match range.end_bound() {
        Included(&last) => last.saturating_add(1),
        Excluded(&end) => end,
        Unbounded => len,
    };
    // There may be `usize::MAX` elements of size 0, but none of them has that index.
    let no_last = matches!(range.end_bound(), Included(&usize::MAX));
    if no_last || start > end || end > len {
        return Err(ClaimError::OutOfBounds { start, end, len });
    }
    Ok(start..end)
}
