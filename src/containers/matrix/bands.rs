//! Bands of rows: what claims of a [`Matrix`](super::Matrix) lend, as a slice of all elements and row by row.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::{Deref, DerefMut};
use std::slice::{ChunksExact, ChunksExactMut};

use crate::containers::ranges::{Claim, ClaimMut};

/// Where a row begins in its band; in none, if that is more than can be counted.
#[inline]
const fn place_of(row: usize, columns: usize) -> usize {
    row.saturating_mul(columns)
}

/// Rows one after the other.
#[derive(Debug)]
pub struct Rows<'a, T>(ChunksExact<'a, T>);

/// Rows one after the other, for writing.
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

/// A band of rows, claimed for reading; as a slice, its elements in row-major order.
pub struct RowBand<'a, T> {
    pub(super) claim: Claim<'a, T>,
    pub(super) columns: usize,
}

/// A band of rows, claimed for writing; as a slice, its elements in row-major order.
pub struct RowBandMut<'a, T> {
    pub(super) claim: ClaimMut<'a, T>,
    pub(super) columns: usize,
}

macro_rules! band {
    ($band:ident) => {
        impl<T> $band<'_, T> {
            /// How many rows and columns the band has.
            #[inline]
            #[must_use]
            pub fn dims(&self) -> (usize, usize) {
                (self.claim.len() / self.columns.max(1), self.columns)
            }

            /// A row of the band, counted from its first.
            ///
            /// # Panics
            ///
            /// If the band has no such row.
            #[inline]
            #[must_use]
            pub fn row(&self, row: usize) -> &[T] {
                &self.claim[place_of(row, self.columns)..][..self.columns]
            }

            /// The rows, one after the other.
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
    /// True if a process died writing here; see [`ClaimMut::was_orphaned`].
    #[must_use]
    pub fn was_orphaned(&self) -> bool {
        self.claim.was_orphaned()
    }

    /// A row of the band, counted from its first, for writing.
    ///
    /// # Panics
    ///
    /// If the band has no such row.
    #[inline]
    #[must_use]
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.claim[place_of(row, self.columns)..][..self.columns]
    }

    /// The rows, one after the other, for writing.
    #[inline]
    pub fn iter_rows_mut(&mut self) -> RowsMut<'_, T> {
        RowsMut(self.claim.chunks_exact_mut(self.columns.max(1)))
    }
}

impl<T> DerefMut for RowBandMut<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.claim
    }
}
