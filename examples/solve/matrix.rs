//! Sparse symmetric matrices in compressed rows (CSR), the tests that a matrix must pass before
//! conjugate gradients make sense for it, and the model problem.

use std::ops::Range;

use crate::failure::Failure;

/// A square matrix by rows: the entries of row `i` are `offsets[i]..offsets[i + 1]`, ordered by
/// column.
pub struct Csr {
    pub offsets: Vec<u32>,
    pub columns: Vec<u32>,
    pub values: Vec<f64>,
}

/// Entries `a_ij` and `a_ji` that differ by more than this, relatively, are not equal.
const SYMMETRY: f64 = 1e-12;

impl Csr {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    pub fn view(&self) -> View<'_> {
        View {
            offsets: &self.offsets,
            columns: &self.columns,
            values: &self.values,
        }
    }

    /// The 5-point Laplacian on a grid of `side` by `side` points with zero boundary values: 4 on
    /// the diagonal, -1 for each neighbour (Saad, "Iterative Methods for Sparse Linear Systems",
    /// 2nd edition, section 2.2.2).
    pub fn poisson(side: u32) -> Csr {
        let rows = side as usize * side as usize;
        let mut matrix = Csr {
            offsets: Vec::with_capacity(rows + 1),
            columns: Vec::with_capacity(5 * rows),
            values: Vec::with_capacity(5 * rows),
        };
        matrix.offsets.push(0);
        for y in 0..side {
            for x in 0..side {
                let row = y * side + x;
                let mut entry = |exists: bool, column: u32, value: f64| {
                    if exists {
                        matrix.columns.push(column);
                        matrix.values.push(value);
                    }
                };
                entry(y > 0, row.wrapping_sub(side), -1.0);
                entry(x > 0, row.wrapping_sub(1), -1.0);
                entry(true, row, 4.0);
                entry(x + 1 < side, row + 1, -1.0);
                entry(y + 1 < side, row.wrapping_add(side), -1.0);
                matrix.offsets.push(matrix.columns.len() as u32);
            }
        }
        matrix
    }

    /// Scales the matrix so that its largest entry lies in a range in which neither squares nor reciprocals of such
    /// numbers leave the range of `f64`. The scaled matrix has the same solutions: it is multiplied by a power of
    /// two. The matrix must have passed [`check`](Self::check), so it has entries.
    pub fn scale(&mut self) {
        const STEP: f64 = (1_u128 << 100) as f64;
        let largest = |values: &[f64]| values.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        // In steps: the reciprocal of a number may be out of range.
        while largest(&self.values) > STEP {
            self.values.iter_mut().for_each(|value| *value /= STEP);
        }
        while largest(&self.values) < 1.0 / STEP {
            self.values.iter_mut().for_each(|value| *value *= STEP);
        }
    }

    /// Whether the matrix can be symmetric and positive definite. The check is complete for symmetry; for
    /// definiteness it tests the two conditions that can be read off the entries: a positive diagonal, and positive
    /// 2 by 2 principal minors (Horn and Johnson, "Matrix Analysis", 7.1.P1). The iteration finds the rest.
    pub fn check(&self) -> Result<(), Failure> {
        let view = self.view();
        let mut diagonal = Vec::with_capacity(self.rows());
        for row in 0..self.rows() {
            let value = view.entry(row, row);
            if value <= 0.0 {
                return Err(Failure::Indefinite(format!(
                    "diagonal entry {} is {value}",
                    row + 1
                )));
            }
            diagonal.push(value);
        }
        for row in 0..self.rows() {
            for (column, value) in view.row(row) {
                if column == row {
                    continue;
                }
                let mirrored = view.entry(column, row);
                if (value - mirrored).abs() > SYMMETRY * value.abs().max(mirrored.abs()) {
                    return Err(Failure::Asymmetric {
                        row: row + 1,
                        column: column + 1,
                    });
                }
                if value.abs() >= diagonal[row].sqrt() * diagonal[column].sqrt() {
                    return Err(Failure::Indefinite(format!(
                        "entry ({}, {}) is too large for its diagonal entries",
                        row + 1,
                        column + 1
                    )));
                }
            }
        }
        Ok(())
    }
}

/// The arrays of a [`Csr`], wherever they are.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub offsets: &'a [u32],
    pub columns: &'a [u32],
    pub values: &'a [f64],
}

impl<'a> View<'a> {
    fn span(self, row: usize) -> Range<usize> {
        self.offsets[row] as usize..self.offsets[row + 1] as usize
    }

    /// The entries of a row, with their columns.
    pub fn row(self, row: usize) -> impl Iterator<Item = (usize, f64)> + 'a {
        let span = self.span(row);
        let columns = self.columns[span.clone()].iter();
        columns
            .map(|&column| column as usize)
            .zip(self.values[span].iter().copied())
    }

    /// The entry in the given place, which is zero if none is stored.
    fn entry(self, row: usize, column: usize) -> f64 {
        let span = self.span(row);
        let found = self.columns[span.clone()].binary_search(&(column as u32));
        found.map_or(0.0, |at| self.values[span.start + at])
    }

    /// A row times a vector.
    #[inline]
    pub fn product(self, row: usize, vector: &[f64]) -> f64 {
        self.row(row)
            .map(|(column, value)| value * vector[column])
            .sum()
    }
}
