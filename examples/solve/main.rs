//! Solves a large sparse system of equations on several processes that share its vectors.
//!
//! `solve [FILE] [--poisson N] [--workers W] [--tolerance T] [--pool-mib M]`
//!
//! | module      | what |
//! |-------------|------|
//! | `market`    | reading Matrix Market files |
//! | `matrix`    | compressed rows, what can be checked of a matrix, the model problem |
//! | `system`    | matrix and vectors in a pool |
//! | `cholesky`  | the preconditioner |
//! | `gradients` | the iteration, as each worker runs it |
//! | `progress`  | a line on the terminal |
//! | `failure`   | what can go wrong |
//! | `ends`      | waiting for whichever worker ends first |
//! | `say`       | lines for a reader that may go away |
//!
//! The right-hand side is that of the solution `(1, ..., 1)`, so the error is known. The system is
//! solved by one worker and by several, with the same code and the same arithmetic.

#[macro_use]
#[path = "../common/say.rs"]
mod say;
mod cholesky;
#[path = "../common/ends.rs"]
mod ends;
mod failure;
mod gradients;
mod market;
mod matrix;
mod progress;
mod system;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use shmkit::Barrier;
use shmkit::process::scope;

use ends::{end_of, those_that_ended};
use failure::{Failure, Stopped};
use gradients::{Goal, Member, Outcome};
use matrix::Csr;
use system::System;

/// An array of the pool has room for 62 claims at once, a barrier for 64 parties.
const MOST_WORKERS: u64 = 60;

/// Solves A x = b by conjugate gradients on several processes
#[derive(Parser)]
#[command(name = "solve")]
struct Options {
    /// A Matrix Market file with a symmetric positive definite matrix [default: 494_bus.mtx]
    #[arg(conflicts_with = "poisson")]
    file: Option<PathBuf>,
    /// Solve the 5-point Poisson equation on an N by N grid instead
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    poisson: Option<u32>,
    /// Worker processes [default: the number of processors]
    #[arg(long, value_name = "W", value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_WORKERS))]
    workers: Option<usize>,
    /// The residual to be reached, in parts of b
    #[arg(long, value_name = "T", default_value_t = 1e-10, value_parser = tolerance)]
    tolerance: f64,
    /// The most memory that the pool may take
    #[arg(long, value_name = "MIB", default_value_t = 4096,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pool_mib: u64,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err("a number between 0 and 1 is needed".into()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let report = match run(&options) {
        Ok(report) => report,
        Err(failure) => return say::failed(&failure),
    };
    say!("{report}");
    ExitCode::SUCCESS
}

/// Solves the system with one worker and with several, and returns what is to be printed.
fn run(options: &Options) -> Result<String, Failure> {
    let mut matrix = read(options)?;
    matrix.check()?;
    matrix.scale();
    let default = available_parallelism().map_or(1, usize::from);
    let workers = options
        .workers
        .unwrap_or(default.min(MOST_WORKERS as usize))
        .min(matrix.rows());
    let system = System::new(&matrix, workers, options.pool_mib)?;
    let mut report = format!(
        "{} unknowns, {} entries\n",
        matrix.rows(),
        matrix.values.len()
    );
    drop(matrix);
    let goal = Goal {
        tolerance: options.tolerance,
        iterations: u32::try_from(10 * system.rows)
            .unwrap_or(u32::MAX)
            .max(1000),
    };
    let mut solve = |workers| -> Result<Outcome, Failure> {
        let outcome = solve(&system, workers, goal)?;
        report += &format!(
            "{workers} worker{}: {} iterations, residual {:.3e}, error {:.3e}, {:.6} seconds\n",
            if workers == 1 { "" } else { "s" },
            outcome.iterations,
            outcome.residual,
            system.error()?,
            outcome.seconds,
        );
        Ok(outcome)
    };
    let alone = solve(1)?;
    let together = if workers == 1 { alone } else { solve(workers)? };
    Ok(format!(
        "{report}iterations: {}\nresidual: {:.3e}\nerror: {:.3e}\nseconds: {:.6}\nspeedup: {:.2}",
        together.iterations,
        together.residual,
        system.error()?,
        together.seconds,
        alone.seconds / together.seconds,
    ))
}

fn read(options: &Options) -> Result<Csr, Failure> {
    if let Some(side) = options.poisson {
        let rows = u64::from(side).pow(2);
        system::check_size(rows, 5 * rows, options.pool_mib)?;
        return Ok(Csr::poisson(side));
    }
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/494_bus.mtx");
    let file = options.file.clone().unwrap_or_else(|| bundled.into());
    market::read(&file, options.pool_mib)
}

/// Solves the system with that many workers.
fn solve(system: &System, workers: usize, goal: Goal) -> Result<Outcome, Failure> {
    let barrier = system
        .pool()
        .create(Barrier::new(workers as u32))
        .map_err(|refused| Failure::Pool(say::why(&refused.cause)))?;
    let barrier = &*barrier;
    scope(|s| {
        let mut running = Vec::with_capacity(workers);
        let mut ended = Ended::default();
        for worker in 0..workers {
            let member = Member { worker, workers };
            let child = match s.spawn(move || gradients::solve(system, barrier, member, goal)) {
                Ok(child) => child,
                Err(error) => {
                    ended.failed(worker, say::why(&error));
                    continue;
                }
            };
            match end_of(&child) {
                Ok(end) => running.push((worker, end, child)),
                Err(error) => {
                    ended.failed(worker, say::why(&error));
                    // It may have ended before. A child that is killed and not joined makes the scope panic.
                    let _ = child.kill();
                    let _ = child.join();
                }
            }
        }
        while !running.is_empty() {
            // The barrier does not know of a worker that never reached it, but this process does: the others
            // wait in vain.
            if ended.is_failure() {
                for (_, _, child) in &running {
                    let _ = child.kill();
                }
            }
            for (worker, _, child) in those_that_ended(&mut running) {
                match child.join() {
                    Ok(result) => ended.returned(result),
                    Err(error) => ended.failed(worker, say::why(&error)),
                }
            }
        }
        ended.outcome()
    })
}

/// What is known of the workers that have ended.
#[derive(Default)]
struct Ended {
    slowest: Option<Outcome>,
    stopped: Option<Stopped>,
    failure: Option<Failure>,
}

impl Ended {
    fn failed(&mut self, worker: usize, problem: String) {
        self.failure
            .get_or_insert(Failure::Worker { worker, problem });
    }

    fn returned(&mut self, result: Result<Outcome, Stopped>) {
        match result {
            Ok(outcome) if self.slowest.is_none_or(|o| o.seconds < outcome.seconds) => {
                self.slowest = Some(outcome);
            }
            Ok(_) => {}
            // The others only report that a worker is missing; that worker's own error is better.
            Err(reason) if self.stopped.is_none() || reason != Stopped::Broken => {
                self.stopped = Some(reason);
            }
            Err(_) => {}
        }
    }

    fn is_failure(&self) -> bool {
        self.failure.is_some() || self.stopped.is_some()
    }

    fn outcome(self) -> Result<Outcome, Failure> {
        match (self.failure, self.stopped, self.slowest) {
            (Some(failure), ..) => Err(failure),
            (None, Some(reason), _) => Err(reason.into()),
            (None, None, Some(outcome)) => Ok(outcome),
            (None, None, None) => Err(Stopped::Broken.into()),
        }
    }
}
