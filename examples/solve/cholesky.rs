//! The preconditioner: relaxed modified incomplete Cholesky factors without fill of the diagonal
//! blocks of a matrix.
//!
//! A block is factored as `L D L'` where `L` has entries only where the matrix has them (Saad,
//! section 10.3; Meijerink and van der Vorst, Math. Comp. 31, 1977). A term that elimination would
//! put elsewhere is taken, times [`RELAXATION`], from the diagonal of its row and of its column
//! instead: with the factor 1 the product would have the row sums of the block, which for elliptic
//! problems brings the condition from O(h^-2) to O(h^-1) (Gustafsson, BIT 18, 1978; Saad, section
//! 10.3.5). Slightly less than 1 is safer against rounding and against the couplings that the
//! blocks cut (Axelsson and Lindskog, Numer. Math. 48, 1986).
//!
//! Blocks know nothing of each other, so any number of processes can apply them at once (block
//! Jacobi; Saad, section 12.4.1).

use std::ops::Range;

use crate::matrix::View;

/// How much of a dropped term goes to the diagonal. Here it must be less than 1 for another reason
/// too: with equal row sums, the first guess would already be the solution that is searched for,
/// which is all ones.
const RELAXATION: f64 = 0.95;

/// A pivot must keep at least this fraction of its diagonal entry. If it does not, the block is not
/// an M-matrix or is nearly singular.
const SMALLEST_PIVOT: f64 = 1e-6;

/// The factors of one block. `L'` is kept by rows, and so `L` by columns.
pub struct Factors {
    offsets: Vec<u32>,
    /// Columns, counted from the block's first.
    columns: Vec<u32>,
    /// `L'` above its diagonal of ones.
    upper: Vec<f64>,
    /// The reciprocals of `D`.
    inverse: Vec<f64>,
}

impl Factors {
    /// Factors the block of the given rows and columns. If a pivot comes out too small, the
    /// diagonal is raised until none does (Manteuffel, Math. Comp. 34, 1980), in the end so far
    /// that the factors are hardly more than the diagonal.
    pub fn of(matrix: View<'_>, block: Range<usize>) -> Factors {
        let mut shift = 0.0;
        loop {
            if let Some(factors) = Factors::shifted(matrix, block.clone(), shift) {
                return factors;
            }
            shift = if shift == 0.0 { 1e-3 } else { shift * 2.0 };
        }
    }

    fn shifted(matrix: View<'_>, block: Range<usize>, shift: f64) -> Option<Factors> {
        let mut offsets = vec![0];
        let (mut columns, mut upper, mut pivots) = (Vec::new(), Vec::new(), Vec::new());
        for row in block.clone() {
            let mut diagonal = 0.0;
            for (column, value) in matrix.row(row) {
                if column == row {
                    diagonal = value * (1.0 + shift);
                } else if column > row && column < block.end {
                    columns.push((column - block.start) as u32);
                    upper.push(value);
                }
            }
            pivots.push(diagonal);
            offsets.push(columns.len() as u32);
        }
        let smallest: Vec<f64> = pivots.iter().map(|pivot| pivot * SMALLEST_PIVOT).collect();
        let span = |row: usize| offsets[row] as usize..offsets[row + 1] as usize;
        for k in 0..pivots.len() {
            if pivots[k] < smallest[k] {
                return None;
            }
            for at in span(k) {
                let i = columns[at] as usize;
                let factor = upper[at] / pivots[k];
                pivots[i] -= factor * upper[at];
                // Row i less `factor` times what is right of i in row k; both are ordered.
                let mut target = span(i);
                for source in at + 1..offsets[k + 1] as usize {
                    let j = columns[source];
                    let term = factor * upper[source];
                    while target.start < target.end && columns[target.start] < j {
                        target.start += 1;
                    }
                    if target.start < target.end && columns[target.start] == j {
                        upper[target.start] -= term;
                    } else {
                        pivots[i] -= RELAXATION * term;
                        pivots[j as usize] -= RELAXATION * term;
                    }
                }
            }
            for at in span(k) {
                upper[at] /= pivots[k];
            }
        }
        let inverse = pivots.iter().map(|pivot| 1.0 / pivot).collect();
        Some(Factors {
            offsets,
            columns,
            upper,
            inverse,
        })
    }

    /// Replaces the block of a residual by its preconditioned residual.
    pub fn solve(&self, vector: &mut [f64]) {
        let row = |row: usize| {
            let span = self.offsets[row] as usize..self.offsets[row + 1] as usize;
            self.columns[span.clone()].iter().zip(&self.upper[span])
        };
        // L y = r, by columns of L.
        for k in 0..vector.len() {
            let value = vector[k];
            for (&column, &factor) in row(k) {
                vector[column as usize] -= factor * value;
            }
        }
        // D L' z = y, by rows of L'.
        for k in (0..vector.len()).rev() {
            let sum: f64 = row(k)
                .map(|(&column, &factor)| factor * vector[column as usize])
                .sum();
            vector[k] = vector[k] * self.inverse[k] - sum;
        }
    }
}
