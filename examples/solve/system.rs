//! A system of equations and the vectors of its solution, in a pool.

use std::ops::Range;

use shmkit::{Array, KillSafe, Pool, Shared};

use crate::failure::Failure;
use crate::matrix::Csr;
use crate::say;

/// A matrix is cut into this many blocks of rows, however many workers there are, so that with
/// any number of workers up to this the arithmetic is the same, to the last bit. Most small
/// numbers of workers divide it.
pub const BLOCKS: usize = 12;

/// How many numbers a block contributes to the sums over all blocks.
pub const SUMS: usize = 3;

/// A system `A x = b`, and what the workers share while they solve it. The names of the vectors
/// are explained in the module `gradients`.
pub struct System {
    pub rows: usize,
    /// The norm of `b`.
    pub norm: f64,
    pub offsets: Shared<Array<u32>>,
    pub columns: Shared<Array<u32>>,
    pub values: Shared<Array<f64>>,
    pub b: Shared<Array<f64>>,
    pub x: Shared<Array<f64>>,
    pub r: Shared<Array<f64>>,
    pub u: Shared<Array<f64>>,
    pub w: Shared<Array<f64>>,
    pub p: Shared<Array<f64>>,
    pub s: Shared<Array<f64>>,
    /// [`SUMS`] numbers of each block.
    pub sums: Shared<Array<f64>>,
    blocks: usize,
}

/// Refuses a system that a pool of `limit` MiB has no room for.
pub fn check_size(rows: u64, entries: u64, limit: u64) -> Result<(), Failure> {
    let (index, number) = (size_of::<u32>() as u64, size_of::<f64>() as u64);
    // The sizes are read from a file and may be any numbers.
    let of_entries = entries.saturating_mul(index + number);
    let bytes = of_entries.saturating_add(rows.saturating_mul(index + 7 * number));
    // Plus some room for the pool's own tables.
    let needed = bytes.div_ceil(1 << 20) + 1;
    if needed > limit {
        return Err(Failure::TooLarge { needed, limit });
    }
    Ok(())
}

impl System {
    /// Puts a matrix into a new pool of `limit` MiB at most, with the right-hand side whose
    /// solution is all ones.
    pub fn new(matrix: &Csr, workers: usize, limit: u64) -> Result<System, Failure> {
        let rows = matrix.rows();
        check_size(rows as u64, matrix.values.len() as u64, limit)?;
        let sums_of_rows: Vec<f64> = matrix
            .offsets
            .windows(2)
            .map(|ends| {
                matrix.values[ends[0] as usize..ends[1] as usize]
                    .iter()
                    .sum()
            })
            .collect();
        let norm = norm(&sums_of_rows);
        if norm == 0.0 {
            return Err(Failure::Indefinite("all rows sum to zero".into()));
        }
        let pool = Pool::builder()
            .max_size((limit as usize) << 20)
            .create()
            .map_err(|error| Failure::Pool(say::why(&error)))?;
        let blocks = BLOCKS.max(workers).min(rows);
        let zeros = || filled(pool, &vec![0.0; rows]);
        Ok(System {
            rows,
            norm,
            offsets: filled(pool, &matrix.offsets)?,
            columns: filled(pool, &matrix.columns)?,
            values: filled(pool, &matrix.values)?,
            b: filled(pool, &sums_of_rows)?,
            x: zeros()?,
            r: zeros()?,
            u: zeros()?,
            w: zeros()?,
            p: zeros()?,
            s: zeros()?,
            sums: filled(pool, &vec![0.0; SUMS * blocks])?,
            blocks,
        })
    }

    pub fn pool(&self) -> Pool {
        self.x.pool()
    }

    /// The blocks that belong to a worker.
    pub fn share(&self, worker: usize, workers: usize) -> Range<usize> {
        self.blocks * worker / workers..self.blocks * (worker + 1) / workers
    }

    /// The rows of a block.
    pub fn block(&self, block: usize) -> Range<usize> {
        let start = |block: usize| self.rows * block / self.blocks;
        start(block)..start(block + 1)
    }

    /// How far the solution is from the known one, at worst.
    pub fn error(&self) -> Result<f64, Failure> {
        let x = self.x.claim(..);
        let x = x.map_err(|error| Failure::Pool(say::why(&error)))?;
        Ok(x.iter().map(|x| (x - 1.0).abs()).fold(0.0, f64::max))
    }
}

/// The Euclidean norm, without overflow on the way.
fn norm(vector: &[f64]) -> f64 {
    let largest = vector.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    let sum: f64 = vector.iter().map(|x| (x / largest).powi(2)).sum();
    largest * sum.sqrt()
}

fn filled<T: KillSafe + Unpin + Copy>(pool: Pool, from: &[T]) -> Result<Shared<Array<T>>, Failure> {
    Array::from_fn_in(pool, from.len(), |i| from[i])
        .map_err(|refused| Failure::Pool(say::why(&refused.cause)))
}
