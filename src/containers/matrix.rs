//! [`Matrix`]: an [`Array`] and the length of its rows.
//!
//! The elements are in row-major order, so a band of rows is a range of the array, claimed and
//! sliced as such. The length of a row is stored before there are elements, by the holder of the
//! GROWING claim of the empty array, and never changes once there are elements. So the number of
//! rows follows from the array's length, and one word decides about both dimensions.
//!
//! | killed | leaves |
//! |--------|--------|
//! | filling, before the array has its storage | an empty matrix; `columns` means nothing |
//! | after | the matrix |
//! | otherwise | what the array leaves |
//!
//! Invariant: if the array has elements, their number is a multiple of `columns`, which is not 0.

mod bands;
mod shape;

use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;
use std::ops::{Range, RangeBounds};

use super::array::Array;
use super::elements;
use super::ranges::{Claim, ClaimMut};
use super::refusals::resolve;
use super::{ClaimError, ElementError, ResizeError, Shared};
use crate::allocator::AllocError;
use crate::layout::arena::Arena;
use crate::layout::{Field, TypeInfo};
use crate::pool::{ObjectError, OutOfMemory, Pool};
use crate::primitive::{AtomicU64, Ordering};
use crate::{KillSafe, Movable, ShmSafe};

use shape::count;

pub use bands::{RowBand, RowBandMut, Rows, RowsMut};
pub use shape::ShapeError;

/// A matrix in a pool, made of rows of equal length, that many processes can use at once.
///
/// It is used as an [`Array`] is, with bands of rows in place of ranges.
///
/// ```
/// use shmkit::{Matrix, Pool};
///
/// let pool = Pool::builder().create()?;
/// let table = Matrix::from_fn_in(pool, 3, 4, |row, column| (10 * row + column) as f64)?;
/// assert_eq!(table.get(2, 3)?, 23.0);
/// let mut upper = table.rows_mut(..2)?;
/// let lower = table.rows(2..)?;
/// for row in upper.iter_rows_mut() {
///     row.copy_from_slice(lower.row(0));
/// }
/// assert_eq!(upper[..4], [20.0, 21.0, 22.0, 23.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Matrix<T: KillSafe + Movable> {
    cells: Array<T>,
    columns: AtomicU64,
    _in_place: PhantomPinned,
}

// SAFETY: an array, which is described at its offset, and a number. No drop glue.
unsafe impl<T: KillSafe + Movable> ShmSafe for Matrix<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Matrix",
        const { &[Field::at::<Array<T>>("cells", offset_of!(Self, cells))] },
    );
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = true;
}

impl<T: KillSafe + Movable> Matrix<T> {
    /// A matrix without elements. Once it is in a pool it can be [filled](Self::fill).
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let named = pool.create((7_u32, Matrix::<f64>::new()))?;
    /// assert_eq!(named.1.dims(), (0, 0));
    /// named.1.fill(2, 3, 0.5)?;
    /// assert_eq!(named.1.get(1, 2)?, 0.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Matrix {
            cells: Array::new(),
            columns: AtomicU64::new(0),
            _in_place: PhantomPinned,
        }
    }

    /// Makes a matrix whose elements are all `value`.
    ///
    /// # Errors
    ///
    /// See [`ShapeError`]; nothing was made.
    ///
    /// # Crash behaviour
    ///
    /// The matrix exists, held by this process, or it does not.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::filled_in(pool, 2, 3, 0.5)?;
    /// assert_eq!(table.dims(), (2, 3));
    /// assert_eq!(*table.rows(..)?, [0.5; 6]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn filled_in(
        pool: Pool,
        rows: usize,
        columns: usize,
        value: T,
    ) -> Result<Shared<Self>, ShapeError>
    where
        T: Copy,
    {
        count(rows, columns)?;
        let matrix = Self::empty_in(pool)?;
        matrix.fill(rows, columns, value)?;
        Ok(matrix)
    }

    /// Makes a matrix of what `f` returns for each row and column. `f` runs row by row, before
    /// anything is done in the pool; the elements are kept in private memory until `f` has run for
    /// all of them.
    ///
    /// # Errors
    ///
    /// As for [`filled_in`](Self::filled_in).
    ///
    /// # Panics
    ///
    /// If `f` does. Nothing was made.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let unit = Matrix::from_fn_in(pool, 2, 3, |row, column| u8::from(row == column))?;
    /// assert_eq!(*unit.rows(..)?, [1, 0, 0, 0, 1, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_fn_in(
        pool: Pool,
        rows: usize,
        columns: usize,
        mut f: impl FnMut(usize, usize) -> T,
    ) -> Result<Shared<Self>, ShapeError> {
        let len = count(rows, columns)?;
        let cells = elements::collect(len, |i| f(i / columns, i % columns));
        Self::of_cells(pool, columns, &cells.map_err(ObjectError::from)?)
    }

    /// Makes a matrix of rows, which are slices, arrays or vectors of equal length.
    ///
    /// # Errors
    ///
    /// As for [`filled_in`](Self::filled_in), and [`ShapeError::Ragged`].
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_rows_in(pool, &[[1, 2, 3], [4, 5, 6]])?;
    /// assert_eq!((table.dims(), table.get(1, 0)?), ((2, 3), 4));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_rows_in(pool: Pool, rows: &[impl AsRef<[T]>]) -> Result<Shared<Self>, ShapeError>
    where
        T: Copy,
    {
        let columns = rows.first().map_or(0, |row| row.as_ref().len());
        let mut cells = Vec::new();
        let reserved = cells.try_reserve_exact(count(rows.len(), columns)?);
        reserved.map_err(|_| ObjectError::from(AllocError::TooLarge))?;
        for (index, row) in rows.iter().enumerate() {
            // Called once only: it is the caller's code, which may return something else the next
            // time.
            let row = row.as_ref();
            let len = row.len();
            if len != columns {
                return Err(ShapeError::Ragged {
                    row: index,
                    len,
                    columns,
                });
            }
            cells.extend_from_slice(row);
        }
        Self::of_cells(pool, columns, &cells)
    }

    fn empty_in(pool: Pool) -> Result<Shared<Self>, ShapeError> {
        pool.create(Self::new())
            .map_err(|OutOfMemory { cause, .. }| cause.into())
    }

    /// `cells` are in private memory and are not used afterwards: their bytes move.
    fn of_cells(pool: Pool, columns: usize, cells: &[T]) -> Result<Shared<Self>, ShapeError> {
        let matrix = Self::empty_in(pool)?;
        matrix.shape(cells.len(), columns, |room| room.copy_from(cells))?;
        Ok(matrix)
    }

    /// Gives a matrix its elements, if it has none; it may be a field of another object.
    ///
    /// # Errors
    ///
    /// See [`ShapeError`]; the matrix is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The matrix has all its elements, or none.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool, ShapeError};
    /// # let pool = Pool::builder().create()?;
    /// let table = pool.create(Matrix::new())?;
    /// table.fill(2, 3, 7_u32)?;
    /// assert_eq!(*table.rows(..)?, [7; 6]);
    /// assert_eq!(table.fill(2, 3, 8), Err(ShapeError::NotEmpty));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fill(&self, rows: usize, columns: usize, value: T) -> Result<(), ShapeError>
    where
        T: Copy,
    {
        let len = count(rows, columns)?;
        self.shape(len, columns, |room| room.fill(value))
    }

    fn shape(
        &self,
        len: usize,
        columns: usize,
        fill: impl Fn(super::elements::NewElements<'_, T>),
    ) -> Result<(), ShapeError> {
        let mut was_empty = true;
        let from_nothing = |now| {
            was_empty = now == 0;
            if !was_empty {
                return Err(ResizeError::Shorter { len: now });
            }
            // Relaxed: nobody asks for the columns of an empty matrix, and the store of the block's
            // address is a Release.
            self.columns.store(columns as u64, Ordering::Relaxed);
            Ok(len)
        };
        let done = self.cells.reshape(from_nothing, fill);
        if !was_empty {
            return Err(ShapeError::NotEmpty);
        }
        done?;
        Ok(())
    }

    /// As [`Array::extent`]: where the elements are, and the numbers of rows and columns.
    pub(crate) fn extent(&self, arena: Arena) -> Option<(usize, [usize; 2])> {
        let (elements, len) = self.cells.extent(arena)?;
        let columns = self.columns.load(Ordering::Relaxed) as usize;
        let rows = if len == 0 {
            0
        } else {
            len.checked_div(columns)?
        };
        // By the invariant.
        (rows * columns == len).then_some((elements, [rows, columns]))
    }

    /// Makes the matrix `rows` rows high; every element of the new rows is `value`.
    ///
    /// # Errors
    ///
    /// [`ShapeError::Empty`] if it has no columns yet, or is to have no rows; [`ShapeError::Overflow`],
    /// [`ShapeError::Resize`], [`ShapeError::OutOfMemory`]. The matrix is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The matrix has grown, or it has not.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::filled_in(pool, 2, 3, 0.0)?;
    /// table.grow(5, 1.0)?;
    /// assert_eq!(table.dims(), (5, 3));
    /// assert_eq!((table.get(1, 0)?, table.get(4, 0)?), (0.0, 1.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow(&self, rows: usize, value: T) -> Result<(), ShapeError>
    where
        T: Copy,
    {
        let (_, columns) = self.dims();
        let len = count(rows, columns)?;
        self.cells.grow(len, value).map_err(|error| match error {
            // Others may have made the matrix grow meanwhile.
            ResizeError::Shorter { len } => ResizeError::Shorter { len: len / columns },
            other => other,
        })?;
        Ok(())
    }

    /// The numbers of rows and columns; both are 0 for a matrix without elements.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_rows_in(pool, &[[1, 2, 3], [4, 5, 6]])?;
    /// assert_eq!(table.dims(), (2, 3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        // Acquire, so that the columns are those that were stored before the elements.
        match self.cells.len() {
            0 => (0, 0),
            len => {
                let columns = self.columns.load(Ordering::Relaxed).max(1) as usize;
                (len / columns, columns)
            }
        }
    }

    /// True if the matrix has no elements yet.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = pool.create(Matrix::new())?;
    /// assert!(table.is_empty());
    /// table.fill(1, 1, 0_u8)?;
    /// assert!(!table.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    #[inline]
    fn index(&self, row: usize, column: usize) -> Result<usize, ElementError> {
        // In this order, and only if there are elements: columns that were stored for a filling that failed have no
        // meaning.
        let len = self.cells.len();
        let columns = match len {
            0 => 0,
            _ => self.columns.load(Ordering::Relaxed) as usize,
        };
        if column >= columns {
            return Err(ElementError::ColumnOutOfBounds { column, columns });
        }
        row.checked_mul(columns)
            .and_then(|start| start.checked_add(column))
            .filter(|&index| index < len)
            .ok_or(ElementError::RowOutOfBounds {
                row,
                rows: len / columns,
            })
    }

    /// Returns a copy of an element.
    ///
    /// # Errors
    ///
    /// See [`ElementError`]. An element of more than 4096 bytes can only be accessed through
    /// claims: [`ElementError::TooLarge`].
    ///
    /// ```
    /// # use shmkit::{ElementError, Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_rows_in(pool, &[[1, 2, 3], [4, 5, 6]])?;
    /// assert_eq!(table.get(1, 2)?, 6);
    /// let none = table.get(2, 1);
    /// assert_eq!(none, Err(ElementError::RowOutOfBounds { row: 2, rows: 2 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn get(&self, row: usize, column: usize) -> Result<T, ElementError>
    where
        T: Copy,
    {
        self.cells.get(self.index(row, column)?)
    }

    /// Overwrites an element.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    ///
    /// # Crash behaviour
    ///
    /// All of the element is overwritten, or none of it.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::filled_in(pool, 2, 2, 0_u32)?;
    /// table.set(1, 0, 7)?;
    /// assert_eq!(*table.rows(..)?, [0, 0, 7, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn set(&self, row: usize, column: usize, value: T) -> Result<(), ElementError> {
        self.cells.set(self.index(row, column)?, value)
    }

    /// Replaces an element by what `f` makes of it, and returns what it was. `f` may run again: see
    /// [`Array::update`].
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    ///
    /// # Panics
    ///
    /// If `f` does. The element is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`set`](Self::set).
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::filled_in(pool, 2, 3, 5_u32)?;
    /// assert_eq!(table.update(1, 2, |n| n + 1)?, 5);
    /// assert_eq!(table.get(1, 2)?, 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update(
        &self,
        row: usize,
        column: usize,
        f: impl FnMut(T) -> T,
    ) -> Result<T, ElementError>
    where
        T: Copy,
    {
        self.cells.update(self.index(row, column)?, f)
    }

    /// Claims a row for reading; see [`Array::claim`].
    ///
    /// # Errors
    ///
    /// See [`ClaimError`], where rows take the place of elements.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_rows_in(pool, &[[1, 2, 3], [4, 5, 6]])?;
    /// let row = table.row(1)?;
    /// assert_eq!(*row, [4, 5, 6]);
    /// assert!(table.set(1, 0, 0).is_err(), "claimed");
    /// table.set(0, 0, 0)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn row(&self, row: usize) -> Result<Claim<'_, T>, ClaimError> {
        Ok(self.rows(row..=row)?.claim)
    }

    /// Claims a row for writing; see [`Array::claim_mut`].
    ///
    /// # Errors
    ///
    /// As for [`row`](Self::row).
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_rows_in(pool, &[[3, 1, 2], [6, 5, 4]])?;
    /// table.row_mut(1)?.sort();
    /// assert_eq!(*table.rows(..)?, [3, 1, 2, 4, 5, 6]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn row_mut(&self, row: usize) -> Result<ClaimMut<'_, T>, ClaimError> {
        Ok(self.rows_mut(row..=row)?.claim)
    }

    /// Claims a band of rows for reading; see [`Array::claim`].
    ///
    /// # Errors
    ///
    /// As for [`row`](Self::row).
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_fn_in(pool, 4, 3, |row, column| (10 * row + column) as u32)?;
    /// let band = table.rows(1..3)?;
    /// assert_eq!(band.dims(), (2, 3));
    /// assert_eq!(band.row(1), [20, 21, 22]);
    /// assert_eq!(band.iter_rows().map(|row| row[0]).sum::<u32>(), 30);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rows(&self, rows: impl RangeBounds<usize>) -> Result<RowBand<'_, T>, ClaimError> {
        let (elements, columns) = self.band(rows)?;
        let claim = self.cells.claim(elements)?;
        Ok(RowBand { claim, columns })
    }

    /// Claims a band of rows for writing; see [`Array::claim_mut`].
    ///
    /// # Errors
    ///
    /// As for [`row`](Self::row).
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::filled_in(pool, 4, 3, 0_u32)?;
    /// let (mut upper, mut lower) = (table.rows_mut(..2)?, table.rows_mut(2..)?);
    /// upper.fill(1);
    /// lower.row_mut(0).copy_from_slice(&[7, 8, 9]);
    /// drop((upper, lower));
    /// assert_eq!((table.get(1, 2)?, table.get(2, 2)?), (1, 9));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rows_mut(&self, rows: impl RangeBounds<usize>) -> Result<RowBandMut<'_, T>, ClaimError> {
        let (elements, columns) = self.band(rows)?;
        let claim = self.cells.claim_mut(elements)?;
        Ok(RowBandMut { claim, columns })
    }

    /// The range of elements of some rows, and the number of columns.
    fn band(&self, rows: impl RangeBounds<usize>) -> Result<(Range<usize>, usize), ClaimError> {
        let (height, columns) = self.dims();
        let rows = resolve(rows, height)?;
        Ok((rows.start * columns..rows.end * columns, columns))
    }
}

impl<T: KillSafe + Movable> Default for Matrix<T> {
    fn default() -> Self {
        Matrix::new()
    }
}

impl<T: KillSafe + Movable> fmt::Debug for Matrix<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matrix")
            .field("dims", &self.dims())
            .finish_non_exhaustive()
    }
}
