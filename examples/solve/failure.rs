//! What can go wrong, in one line each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shmkit::ClaimError;
use shmkit::sync::BarrierError;

use crate::say;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    #[error("the matrix is not symmetric: entries ({row}, {column}) and ({column}, {row}) differ")]
    Asymmetric { row: usize, column: usize },
    #[error("the matrix is not positive definite: {0}")]
    Indefinite(String),
    #[error("the system needs about {needed} MiB, more than the pool's {limit} MiB (--pool-mib)")]
    TooLarge { needed: u64, limit: u64 },
    #[error("the pool: {0}")]
    Pool(String),
    #[error("worker {worker} failed: {problem}")]
    Worker { worker: usize, problem: String },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a worker stopped before it had an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Stopped {
    #[error("a worker died, and the others cannot go on")]
    Broken,
    #[error("the workers cannot share the pool: {0}")]
    Sharing(String),
    #[error("the matrix is not positive definite: p'Ap <= 0 in iteration {iteration}")]
    Indefinite { iteration: u32 },
    #[error("no convergence: the residual is {residual:.3e} after {iterations} iterations")]
    NoConvergence { iterations: u32, residual: f64 },
    #[error("numbers too large for double precision after {iterations} iterations")]
    Overflow { iterations: u32 },
}

impl From<BarrierError> for Stopped {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Broken => Stopped::Broken,
            other => Stopped::Sharing(say::why(&other)),
        }
    }
}

impl From<ClaimError> for Stopped {
    fn from(error: ClaimError) -> Self {
        Stopped::Sharing(say::why(&error))
    }
}
