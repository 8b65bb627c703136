//! Preconditioned conjugate gradients, as each of the workers runs them.
//!
//! This is the variant of Chronopoulos and Gear (J. Comput. Appl. Math. 25, 1989; also Saad,
//! section 12.3, on reordering the inner products): all sums of an iteration are over vectors that
//! exist after one multiplication, so the workers wait for each other only twice in an iteration
//! instead of three times. With the residual `r`, the preconditioner `M` and the matrix `A`:
//!
//! ```text
//! u = M^-1 r                                                 barrier: u is whole
//! w = A u,  gamma = (r, u),  delta = (w, u),  rho = (r, r)   barrier: the sums are there
//! beta = gamma / gamma',  alpha = gamma / (delta - beta gamma / alpha')
//! p = u + beta p,  s = w + beta s,  x = x + alpha p,  r = r - alpha s
//! ```
//!
//! `p` is the search direction, `s = A p`, and the divisor of `alpha` is `p'Ap`. Updating the
//! latter two instead of computing them costs some digits (Carson, Rozloznik, Strakos, Tichy and
//! Tuma, SIAM J. Sci. Comput. 40, 2018), so once the updated residual is small enough, the true one
//! is computed, and if that is not small enough, the iteration starts again from there.
//!
//! # Who may touch what
//!
//! A worker holds exclusive claims of its rows of `x`, `r`, `w`, `p` and `s` from beginning to end,
//! and shared claims of the matrix. Only `u` and the sums change hands:
//!
//! | between the barriers        | `u`                 | sums                      |
//! |-----------------------------|---------------------|---------------------------|
//! | sums there, next `u` whole  | own rows, exclusive | all, shared, for a moment |
//! | `u` whole, sums there       | all, shared         | own blocks, exclusive     |
//!
//! A claim is given back before the barrier, so what the next phase claims is free. A mistake here
//! would cause a refused claim, not a race.

use std::ops::Range;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use shmkit::{Barrier, ClaimMut};

use crate::cholesky::Factors;
use crate::failure::Stopped;
use crate::matrix::View;
use crate::progress::Progress;
use crate::system::{SUMS, System};

/// One of the workers.
#[derive(Clone, Copy)]
pub struct Member {
    pub worker: usize,
    pub workers: usize,
}

/// What result is asked for.
#[derive(Clone, Copy)]
pub struct Goal {
    /// The norm of the residual, relative to that of `b`.
    pub tolerance: f64,
    /// The maximum number of iterations.
    pub iterations: u32,
}

/// What a worker reports. All but the time is the same for all of them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub iterations: u32,
    /// The true residual, relative to `b`.
    pub residual: f64,
    pub seconds: f64,
}

/// `p'Ap` is computed as a difference. A negative result that is no larger than this fraction of
/// the minuend may be due to rounding; then the iteration starts again.
const ROUNDING: f64 = 1e-8;

/// Solves the system together with the other workers, which all call this.
pub fn solve(
    system: &System,
    barrier: &Barrier,
    member: Member,
    goal: Goal,
) -> Result<Outcome, Stopped> {
    let blocks = system.share(member.worker, member.workers);
    let band = system.block(blocks.start).start..system.block(blocks.end - 1).end;
    let (offsets, columns, values) = (
        system.offsets.claim(..)?,
        system.columns.claim(..)?,
        system.values.claim(..)?,
    );
    let matrix = View {
        offsets: &offsets,
        columns: &columns,
        values: &values,
    };
    let mut worker = Worker {
        system,
        barrier,
        matrix,
        factors: blocks
            .clone()
            .map(|block| Factors::of(matrix, system.block(block)))
            .collect(),
        x: system.x.claim_mut(band.clone())?,
        r: system.r.claim_mut(band.clone())?,
        w: system.w.claim_mut(band.clone())?,
        p: system.p.claim_mut(band.clone())?,
        s: system.s.claim_mut(band.clone())?,
        blocks,
        band,
    };
    // Left by an earlier run.
    worker.x.fill(0.0);
    let mut progress = Progress::new(member.worker == 0, goal.tolerance);
    barrier.wait()?;
    let begun = Instant::now();
    let (iterations, residual) = worker.run(goal, &mut progress)?;
    Ok(Outcome {
        iterations,
        residual,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// The sums of an iteration.
#[derive(Clone, Copy)]
struct Sums {
    /// `(r, u)`
    gamma: f64,
    /// `(A u, u)`
    delta: f64,
    /// `(r, r)`
    rho: f64,
}

/// The coefficients of an iteration.
#[derive(Clone, Copy)]
struct Step {
    alpha: f64,
    beta: f64,
}

struct Worker<'a> {
    system: &'a System,
    barrier: &'a Barrier,
    matrix: View<'a>,
    blocks: Range<usize>,
    /// The rows of all the blocks.
    band: Range<usize>,
    factors: Vec<Factors>,
    x: ClaimMut<'a, f64>,
    r: ClaimMut<'a, f64>,
    w: ClaimMut<'a, f64>,
    p: ClaimMut<'a, f64>,
    s: ClaimMut<'a, f64>,
}

impl Worker<'_> {
    /// Every worker decides the same way at each branch, because all decide by the same sums.
    fn run(&mut self, goal: Goal, progress: &mut Progress) -> Result<(u32, f64), Stopped> {
        let mut iterations = 0;
        let mut before = f64::INFINITY;
        loop {
            let residual = self.true_residual()?;
            if residual <= goal.tolerance {
                return Ok((iterations, residual));
            } else if !residual.is_finite() {
                return Err(Stopped::Overflow { iterations });
            } else if iterations >= goal.iterations || residual > 0.5 * before {
                return Err(Stopped::NoConvergence {
                    iterations,
                    residual,
                });
            }
            before = residual;
            self.precondition()?;
            // beta must be zero in the first step, which discards the old p and s.
            let (mut gamma_before, mut alpha) = (f64::INFINITY, 1.0);
            while iterations < goal.iterations {
                let sums = self.multiply()?;
                let residual = sums.rho.sqrt() / self.system.norm;
                progress.show(iterations, residual);
                if residual <= goal.tolerance || !residual.is_finite() {
                    break;
                }
                let beta = sums.gamma / gamma_before;
                let curvature = sums.delta - beta * sums.gamma / alpha;
                if sums.delta <= 0.0 || curvature < -ROUNDING * sums.delta {
                    return Err(Stopped::Indefinite {
                        iteration: iterations,
                    });
                } else if curvature <= 0.0 {
                    break;
                }
                alpha = sums.gamma / curvature;
                gamma_before = sums.gamma;
                self.advance(Step { alpha, beta })?;
                iterations += 1;
            }
        }
    }

    /// `r = b - A x`, and its norm relative to that of `b`.
    fn true_residual(&mut self) -> Result<f64, Stopped> {
        self.system
            .u
            .claim_mut(self.band.clone())?
            .copy_from_slice(&self.x);
        self.barrier.wait()?;
        {
            let u = self.system.u.claim(..)?;
            let b = self.system.b.claim(self.band.clone())?;
            let mut sums = self.system.sums.claim_mut(self.places())?;
            for (block, sums) in self.blocks.clone().zip(sums.chunks_exact_mut(SUMS)) {
                let mut rho = 0.0;
                for row in self.system.block(block) {
                    let at = row - self.band.start;
                    let r = b[at] - self.matrix.product(row, &u);
                    self.r[at] = r;
                    rho += r * r;
                }
                sums.copy_from_slice(&[0.0, 0.0, rho]);
            }
        }
        self.barrier.wait()?;
        Ok(self.total()?.rho.sqrt() / self.system.norm)
    }

    /// `u = M^-1 r`.
    fn precondition(&mut self) -> Result<(), Stopped> {
        {
            let mut u = self.system.u.claim_mut(self.band.clone())?;
            u.copy_from_slice(&self.r);
            let mut rest = &mut u[..];
            for (block, factors) in self.blocks.clone().zip(&self.factors) {
                let (part, after) = rest.split_at_mut(self.system.block(block).len());
                factors.solve(part);
                rest = after;
            }
        }
        Ok(self.barrier.wait().map(drop)?)
    }

    /// `w = A u`, and the sums over all blocks.
    fn multiply(&mut self) -> Result<Sums, Stopped> {
        {
            let u = self.system.u.claim(..)?;
            let mut sums = self.system.sums.claim_mut(self.places())?;
            for (block, sums) in self.blocks.clone().zip(sums.chunks_exact_mut(SUMS)) {
                let rows = self.system.block(block);
                let local = rows.start - self.band.start..rows.end - self.band.start;
                let (r, w) = (&self.r[local.clone()], &mut self.w[local]);
                let (mut gamma, mut delta, mut rho) = (0.0, 0.0, 0.0);
                for (((row, &u_row), r), w) in rows.clone().zip(&u[rows]).zip(r).zip(w) {
                    *w = self.matrix.product(row, &u);
                    gamma += r * u_row;
                    delta += *w * u_row;
                    rho += r * r;
                }
                sums.copy_from_slice(&[gamma, delta, rho]);
            }
        }
        self.barrier.wait()?;
        self.total()
    }

    /// The new vectors, ending with the new `u`. Computed block by block, while a block is in the
    /// cache.
    fn advance(&mut self, step: Step) -> Result<(), Stopped> {
        {
            let mut u = self.system.u.claim_mut(self.band.clone())?;
            for (block, factors) in self.blocks.clone().zip(&self.factors) {
                let rows = self.system.block(block);
                let local = rows.start - self.band.start..rows.end - self.band.start;
                let u = &mut u[local.clone()];
                let x = &mut self.x[local.clone()];
                let r = &mut self.r[local.clone()];
                let p = &mut self.p[local.clone()];
                let s = &mut self.s[local.clone()];
                let w = &self.w[local];
                let vectors = u.iter_mut().zip(x).zip(r).zip(p).zip(s).zip(w);
                for (((((u, x), r), p), s), w) in vectors {
                    // In the first step the old p and s may be anything finite.
                    *p = *u + step.beta * *p;
                    *s = *w + step.beta * *s;
                    *x += step.alpha * *p;
                    *r -= step.alpha * *s;
                    *u = *r;
                }
                factors.solve(u);
            }
        }
        Ok(self.barrier.wait().map(drop)?)
    }

    /// Where the sums of this worker's blocks are.
    fn places(&self) -> Range<usize> {
        SUMS * self.blocks.start..SUMS * self.blocks.end
    }

    /// The sums over all blocks, added in the same order by every worker.
    fn total(&self) -> Result<Sums, Stopped> {
        let all = self.system.sums.claim(..)?;
        let sum = |which: usize| all.iter().skip(which).step_by(SUMS).sum();
        Ok(Sums {
            gamma: sum(0),
            delta: sum(1),
            rho: sum(2),
        })
    }
}
