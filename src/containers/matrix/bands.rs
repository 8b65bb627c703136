//! Bands of rows, which claims of a [`Matrix`](super::Matrix) give access to: as a slice of all elements, or
//! row by row.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::{Deref, DerefMut};
use std::slice::{ChunksExact, ChunksExactMut};

use crate::containers::ranges::{Claim, ClaimMut};

/// Where a row begins in its band. If that overflows, or if rows have no elements, it is a place beyond
/// every band.
#[inline]
const fn place_of(row: usize, columns: usize) -> usize {
    match columns {
        0 => usize::MAX,
        _ => row.saturating_mul(columns),
    }
}

/// An iterator over rows.
///
/// ```
/// use shmkit::{Matrix, Pool};
///
/// let pool = Pool::builder().create()?;
/// let table = Matrix::from_rows_in(pool, &[[1, 2], [3, 4], [5, 6]])?;
/// let band = table.rows(1..)?;
/// let mut rows = band.iter_rows();
/// assert_eq!(rows.len(), 2);
/// assert_eq!((rows.next_back(), rows.next()), (Some(&[5, 6][..]), Some(&[3, 4][..])));
/// assert_eq!(rows.next(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Rows<'a, T>(ChunksExact<'a, T>);

/// An iterator over rows, for writing.
///
/// ```
/// use shmkit::{Matrix, Pool};
///
/// let pool = Pool::builder().create()?;
/// let table = Matrix::filled_in(pool, 3, 2, 0)?;
/// let mut band = table.rows_mut(..)?;
/// for (number, row) in band.iter_rows_mut().enumerate().skip(1) {
///     row.fill(number);
/// }
/// assert_eq!(*band, [0, 0, 1, 1, 2, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RowsMut<'a, T>(ChunksExactMut<'a, T>);

macro_rules! rows {
    ($rows:ident, $row:ty) => {
        impl<'a, T> Iterator for $rows<'a, T> {
            type Item = $row;

            #[inline]
            fn next(&mut self) -> Option<$row> {
                self.0.next()
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                self.0.size_hint()
            }

            fn nth(&mut self, n: usize) -> Option<$row> {
                self.0.nth(n)
            }
        }

        impl<T> DoubleEndedIterator for $rows<'_, T> {
            fn next_back(&mut self) -> Option<Self::Item> {
                self.0.next_back()
            }
        }

        impl<T> ExactSizeIterator for $rows<'_, T> {}
        impl<T> FusedIterator for $rows<'_, T> {}
    };
}

rows!(Rows, &'a [T]);
rows!(RowsMut, &'a mut [T]);

/// A band of rows, claimed for reading. It dereferences to a slice of its elements, in row-major
/// order.
///
/// ```
/// use shmkit::{Matrix, Pool};
///
/// let pool = Pool::builder().create()?;
/// let table = Matrix::from_rows_in(pool, &[[1, 2], [3, 4], [5, 6]])?;
/// let band = table.rows(1..)?;
/// assert_eq!((band.row(0), band.iter().sum::<i32>()), (&[3, 4][..], 18));
/// assert!(table.row_mut(2).is_err(), "nobody writes there meanwhile");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the claim is over when this is dropped"]
pub struct RowBand<'a, T> {
    pub(super) claim: Claim<'a, T>,
    pub(super) columns: usize,
}

/// A band of rows, claimed for writing. It dereferences to a slice of its elements, in row-major
/// order.
///
/// ```
/// use shmkit::{Matrix, Pool};
///
/// let pool = Pool::builder().create()?;
/// let table = Matrix::from_rows_in(pool, &[[1, 2], [3, 4], [5, 6]])?;
/// let mut band = table.rows_mut(1..)?;
/// band.row_mut(1)[0] = 0;
/// band.iter_mut().for_each(|n| *n *= 10);
/// assert!(table.row(2).is_err(), "nobody reads there meanwhile");
/// drop(band);
/// assert_eq!(*table.rows(..)?, [1, 2, 30, 40, 0, 60]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the claim is over when this is dropped"]
pub struct RowBandMut<'a, T> {
    pub(super) claim: ClaimMut<'a, T>,
    pub(super) columns: usize,
}

macro_rules! band {
    ($band:ident) => {
        impl<T> $band<'_, T> {
            /// The numbers of rows and columns of the band.
            ///
            /// ```
            /// # use shmkit::{Matrix, Pool};
            /// # let pool = Pool::builder().create()?;
            /// let table = Matrix::filled_in(pool, 4, 3, 0_u8)?;
            /// assert_eq!(table.rows(1..)?.dims(), (3, 3));
            /// assert_eq!(table.rows_mut(..2)?.dims(), (2, 3));
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            #[inline]
            #[must_use]
            pub fn dims(&self) -> (usize, usize) {
                (self.claim.len() / self.columns.max(1), self.columns)
            }

            /// Returns a row of the band, counted from the band's first row.
            ///
            /// # Panics
            ///
            /// If the band has no such row.
            ///
            /// ```
            /// # use shmkit::{Matrix, Pool};
            /// # let pool = Pool::builder().create()?;
            /// let table = Matrix::from_rows_in(pool, &[[1, 2], [3, 4], [5, 6]])?;
            /// assert_eq!(table.rows(1..)?.row(0), [3, 4]);
            /// assert_eq!(table.rows_mut(1..)?.row(1), [5, 6]);
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            #[inline]
            #[must_use]
            pub fn row(&self, row: usize) -> &[T] {
                &self.claim[place_of(row, self.columns)..][..self.columns]
            }

            /// Returns an iterator over the rows.
            ///
            /// ```
            /// # use shmkit::{Matrix, Pool};
            /// # let pool = Pool::builder().create()?;
            /// let table = Matrix::from_rows_in(pool, &[[1, 2], [3, 4], [5, 6]])?;
            /// let band = table.rows(1..)?;
            /// let sums: Vec<i32> = band.iter_rows().map(|row| row.iter().sum()).collect();
            /// assert_eq!(sums, [7, 11]);
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            #[inline]
            pub fn iter_rows(&self) -> Rows<'_, T> {
                Rows(self.claim.chunks_exact(self.columns.max(1)))
            }
        }

        impl<T> Deref for $band<'_, T> {
            type Target = [T];

            #[inline]
            fn deref(&self) -> &[T] {
                &self.claim
            }
        }

        impl<T> AsRef<[T]> for $band<'_, T> {
            fn as_ref(&self) -> &[T] {
                &self.claim
            }
        }

        impl<T: fmt::Debug> fmt::Debug for $band<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.iter_rows()).finish()
            }
        }
    };
}

band!(RowBand);
band!(RowBandMut);

impl<T> RowBandMut<'_, T> {
    /// True if a process died writing here, or a thread panicked; see [`ClaimMut::was_orphaned`].
    ///
    /// ```
    /// # use shmkit::process::scope;
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::filled_in(pool, 4, 2, 1_u32)?;
    /// scope(|s| {
    ///     let child = s.spawn::<_, ()>(|| {
    ///         let mut band = table.rows_mut(2..).unwrap();
    ///         band[0] = 2;
    ///         std::process::abort();
    ///     });
    ///     let _ = child.unwrap().join();
    /// });
    /// assert!(!table.rows_mut(..2)?.was_orphaned());
    /// assert!(table.rows_mut(1..)?.was_orphaned());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn was_orphaned(&self) -> bool {
        self.claim.was_orphaned()
    }

    /// Returns a row of the band, counted from the band's first row, for writing.
    ///
    /// # Panics
    ///
    /// If the band has no such row.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::filled_in(pool, 3, 2, 0)?;
    /// let mut band = table.rows_mut(1..)?;
    /// band.row_mut(1).copy_from_slice(&[7, 8]);
    /// assert_eq!(*band, [0, 0, 7, 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.claim[place_of(row, self.columns)..][..self.columns]
    }

    /// Returns an iterator over the rows, for writing.
    ///
    /// ```
    /// # use shmkit::{Matrix, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let table = Matrix::from_rows_in(pool, &[[1, 2], [3, 4], [5, 6]])?;
    /// let mut band = table.rows_mut(1..)?;
    /// band.iter_rows_mut().for_each(|row| row.swap(0, 1));
    /// drop(band);
    /// assert_eq!(*table.rows(..)?, [1, 2, 4, 3, 6, 5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn iter_rows_mut(&mut self) -> RowsMut<'_, T> {
        RowsMut(self.claim.chunks_exact_mut(self.columns.max(1)))
    }
}

impl<T> AsMut<[T]> for RowBandMut<'_, T> {
    fn as_mut(&mut self) -> &mut [T] {
        &mut self.claim
    }
}

impl<T> DerefMut for RowBandMut<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.claim
    }
}
