//! shmkit past one machine: a pool for each node, and MPI between their leaders.
//!
//! A *leader* is an MPI rank. It makes a pool, forks its workers, and only then initialises MPI: a
//! fork of a process that uses MPI is not safe, and workers need none. Workers and leader share the
//! pool; leaders send rows of matrices, and sums, from pool memory into pool memory.
//!
//! | what | by |
//! |---|---|
//! | fork, then initialise | [`lead`] |
//! | neighbouring rows | [`Leader::exchange_halo`] |
//! | sums over all nodes | [`Leader::sum`], [`Leader::sum_into`] |
//! | anything else | [`Leader::world`], and claims as buffers |
//!
//! # Crash behaviour
//!
//! A worker that is killed leaves its node's pool sound, and can be recovered from, as always. MPI
//! itself survives no rank: a leader that dies ends the job, and its workers with it.
//!
//! ```no_run
//! use shmkit::{Array, Barrier, Pool};
//!
//! let pool = Pool::builder().create()?;
//! let parts = Array::filled_in(pool, 2, 0.0)?;
//! let gate = pool.create(Barrier::new(3))?;
//! let work = |number: usize| {
//!     parts.set(number, 1.0 + number as f64).unwrap();
//!     gate.wait().unwrap();
//! };
//! let total = shmkit_mpi::lead(2, work, |leader| {
//!     gate.wait().unwrap();
//!     // 3 for each rank.
//!     leader.sum(&parts).unwrap()
//! })?;
//! println!("{total}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::point_to_point::send_receive_into;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence};
use shmkit::process::{JoinError, SpawnError, scope};
use shmkit::{Array, ClaimError, KillSafe, Matrix};

/// Why a node did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeadError {
    /// A worker could not be forked. Those that had been were killed; MPI was not initialised.
    #[error("a worker could not be started")]
    Spawn(#[from] SpawnError),
    /// A worker failed after the leader had come to its end.
    #[error("a worker failed")]
    Worker(#[from] JoinError),
    /// MPI was initialised in this process before.
    #[error("MPI is initialised already: workers are forked before")]
    Initialised,
}

/// An MPI rank that leads the workers of its node.
pub struct Leader {
    world: SimpleCommunicator,
    /// Dropped last: finalises MPI.
    _universe: Universe,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").finish_non_exhaustive()
    }
}

/// Forks workers, which call `work` with their number, initialises MPI, and calls `lead` in this
/// process. Waits for the workers, and finalises MPI.
///
/// A panic in `lead` ends the job, with all its ranks.
///
/// # Errors
///
/// See [`LeadError`].
///
/// ```no_run
/// let ranks = shmkit_mpi::lead(0, |_| (), |leader| leader.ranks())?;
/// println!("{ranks} ranks, of one process each");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn lead<W, R>(workers: usize, work: W, lead: impl FnOnce(&Leader) -> R) -> Result<R, LeadError>
where
    W: Fn(usize) + Copy + Send,
{
    scope(|s| {
        let mut started = Vec::new();
        for number in 0..workers {
            match s.spawn(move || work(number)) {
                Ok(worker) => started.push(worker),
                Err(error) => {
                    // They may be waiting for the others.
                    for worker in started {
                        let _ = worker.kill();
                        let _ = worker.join();
                    }
                    return Err(error.into());
                }
            }
        }
        let Some(universe) = mpi::initialize() else {
            for worker in started {
                let _ = worker.kill();
                let _ = worker.join();
            }
            return Err(LeadError::Initialised);
        };
        let leader = Leader {
            world: universe.world(),
            _universe: universe,
        };
        // Not finalised on the way out of a panic: that would wait for the other ranks.
        let result = catch_unwind(AssertUnwindSafe(|| lead(&leader)));
        let result = result.unwrap_or_else(|_| leader.abort());
        for worker in started {
            worker.join()?;
        }
        Ok(result)
    })
}

impl Leader {
    /// All ranks.
    #[must_use]
    pub fn world(&self) -> &SimpleCommunicator {
        &self.world
    }

    /// This one's number.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    /// How many there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.world.size() as usize
    }

    /// The rows of so many that are this rank's; the ranks before have those before.
    ///
    /// ```no_run
    /// # shmkit_mpi::lead(0, |_| (), |leader| {
    /// // Of a grid of a thousand rows, this rank computes these.
    /// for row in leader.rows(1000) {
    ///     println!("rank {}: row {row}", leader.rank());
    /// }
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn rows(&self, of: usize) -> Range<usize> {
        share(of, self.ranks(), self.rank())
    }

    /// Ends the job, with all its ranks and their workers.
    pub fn abort(&self) -> ! {
        self.world.abort(1)
    }

    /// Gives the first and last row of this rank's part of a grid to its neighbours, and gets
    /// theirs. The matrix has a row more at either end, where those come to lie; at the ends of the
    /// grid, which have no neighbour, these are left as they are. All ranks call this.
    ///
    /// # Errors
    ///
    /// [`ClaimError`], if somebody else uses these rows. Nothing was sent then, and the other ranks
    /// wait: [abort](Self::abort).
    ///
    /// # Panics
    ///
    /// If the matrix has less than three rows.
    ///
    /// ```no_run
    /// # let pool = shmkit::Pool::builder().create()?;
    /// # shmkit_mpi::lead(0, |_| (), |leader| {
    /// // This rank's rows, and one more at either end.
    /// let rows = leader.rows(1000).len() + 2;
    /// let grid = shmkit::Matrix::filled_in(pool, rows, 1000, leader.rank() as f64).unwrap();
    /// leader.exchange_halo(&grid).unwrap();
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn exchange_halo<T>(&self, grid: &Matrix<T>) -> Result<(), ClaimError>
    where
        T: Equivalence + KillSafe + Unpin,
    {
        let (rows, _) = grid.dims();
        assert!(rows >= 3, "a row, and one at either end");
        let above = self.rank().checked_sub(1).map(|rank| (rank, 1, 0));
        let next = Some(self.rank() + 1).filter(|&rank| rank < self.ranks());
        let below = next.map(|rank| (rank, rows - 2, rows - 1));
        let mut claims = Vec::new();
        // In pairs, of which each rank is in one at a time: no rank waits for one that waits.
        let (first, second) = if self.rank().is_multiple_of(2) {
            (below, above)
        } else {
            (above, below)
        };
        for (rank, own, halo) in [first, second].into_iter().flatten() {
            claims.push((rank, grid.row(own)?, grid.row_mut(halo)?));
        }
        for (rank, own, halo) in &mut claims {
            let neighbour = self.world.process_at_rank(*rank as i32);
            send_receive_into(&own[..], &neighbour, &mut halo[..], &neighbour);
        }
        Ok(())
    }

    /// The sum of all elements of all ranks' arrays. All ranks call this.
    ///
    /// # Errors
    ///
    /// [`ClaimError`], if somebody else uses elements exclusively. The other ranks wait then:
    /// [abort](Self::abort).
    ///
    /// ```no_run
    /// # let pool = shmkit::Pool::builder().create()?;
    /// # shmkit_mpi::lead(0, |_| (), |leader| {
    /// let parts = shmkit::Array::from_slice_in(pool, &[1.0, 2.0]).unwrap();
    /// assert_eq!(leader.sum(&parts).unwrap(), 3.0 * leader.ranks() as f64);
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sum(&self, parts: &Array<f64>) -> Result<f64, ClaimError> {
        let own: f64 = parts.claim(..)?.iter().sum();
        let mut sum = 0.0;
        self.world
            .all_reduce_into(&own, &mut sum, SystemOperation::sum());
        Ok(sum)
    }

    /// Sums the ranks' arrays element by element, from pool memory into pool memory. All ranks call
    /// this, with arrays of one length.
    ///
    /// # Errors
    ///
    /// As for [`sum`](Self::sum).
    ///
    /// # Panics
    ///
    /// If the two arrays differ in length.
    ///
    /// ```no_run
    /// # let pool = shmkit::Pool::builder().create()?;
    /// # shmkit_mpi::lead(0, |_| (), |leader| {
    /// let own = shmkit::Array::from_slice_in(pool, &[1_u64, 2]).unwrap();
    /// let all = shmkit::Array::filled_in(pool, 2, 0_u64).unwrap();
    /// leader.sum_into(&own, &all).unwrap();
    /// assert_eq!(all.get(1).unwrap(), 2 * leader.ranks() as u64);
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sum_into<T>(&self, from: &Array<T>, into: &Array<T>) -> Result<(), ClaimError>
    where
        T: Equivalence + KillSafe + Unpin,
    {
        let (from, mut into) = (from.claim(..)?, into.claim_mut(..)?);
        assert_eq!(from.len(), into.len(), "two arrays of one length");
        self.world
            .all_reduce_into(&from[..], &mut into[..], SystemOperation::sum());
        Ok(())
    }
}

/// A part of so many things: the parts are in order, and differ in size by one at most.
///
/// ```
/// assert_eq!(shmkit_mpi::share(10, 3, 0), 0..3);
/// assert_eq!(shmkit_mpi::share(10, 3, 2), 6..10);
/// ```
#[must_use]
pub fn share(of: usize, parts: usize, part: usize) -> Range<usize> {
    of * part / parts..of * (part + 1) / parts
}
