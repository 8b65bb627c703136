//! Solves the Poisson equation on a square grid, by conjugate gradients: ranks of MPI have bands of
//! rows, and the workers of each rank bands of those, in the rank's pool.
//!
//! ```text
//! mpirun -n 2 solve_mpi [--poisson N] [--workers W] [--tolerance T]
//! ```
//!
//! The right-hand side is the one that all ones solve, as in the example `solve`, so the error is
//! known. A rank's vectors lie in its pool; the search direction has the neighbours' rows around it.
//!
//! | phase | leader | workers |
//! |---|---|---|
//! | 1 | exchanges rows of `p` | |
//! | 2 | | `q = A p`, parts of `(p, q)` |
//! | 3 | sums them over all ranks | |
//! | 4 | | `x += alpha p`, `r -= alpha q`, parts of `(r, r)` |
//! | 5 | sums them over all ranks | |
//! | 6 | | `p = r + beta p` |
//!
//! Between the phases all pass a barrier.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use shmkit::{Array, Barrier, Handle, KillSafe, Matrix, Pool, SharedCell, ShmSafe};
use shmkit_mpi::{Leader, lead, share};

/// Solves the Poisson equation by MPI ranks with worker processes.
#[derive(Clone, Copy, Parser)]
struct Arguments {
    /// Rows and columns of the grid.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    poisson: u32,
    /// Workers a rank.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// The residual to be reached, in parts of the right-hand side.
    #[arg(long, default_value_t = 1e-10, value_parser = tolerance)]
    tolerance: f64,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && number < 1.0 => Ok(number),
        _ => Err("a number between 0 and 1".into()),
    }
}

/// A rank's vectors. They are made when the rank is known, which is after the fork.
#[derive(Clone, Copy, ShmSafe)]
struct Vectors {
    /// With a row more at either end.
    p: Handle<Matrix<f64>>,
    q: Handle<Matrix<f64>>,
    r: Handle<Matrix<f64>>,
    x: Handle<Matrix<f64>>,
}

/// What the leader has computed, for the workers.
#[derive(Clone, Copy, Default, ShmSafe, KillSafe)]
struct Step {
    alpha: f64,
    beta: f64,
    done: u64,
}

#[derive(ShmSafe)]
struct Node {
    vectors: SharedCell<Vectors>,
    step: SharedCell<Step>,
    /// By worker.
    parts: Array<f64>,
    gate: Barrier,
}

type Failure = Box<dyn std::error::Error>;

/// What a worker does, in its band of the rank's rows.
fn work(node: &Node, number: usize, workers: usize) -> Result<(), Failure> {
    node.gate.wait()?;
    let vectors = node.vectors.get().ok_or("there are no vectors")?;
    let (p, q) = (vectors.p.open()?, vectors.q.open()?);
    let (r, x) = (vectors.r.open()?, vectors.x.open()?);
    let (rows, columns) = q.dims();
    let band = share(rows, workers, number);
    let with_halo = band.start..band.end + 2;
    let inner = band.start + 1..band.end + 1;
    let (mut q, mut r) = (q.rows_mut(band.clone())?, r.rows_mut(band.clone())?);
    let mut x = x.rows_mut(band)?;
    loop {
        // 1, the leader's.
        node.gate.wait()?;
        {
            let p = p.rows(with_halo.clone())?;
            let mut part = 0.0;
            for (row, q) in q.iter_rows_mut().enumerate() {
                let [above, own, below] = [0, 1, 2].map(|at| p.row(row + at));
                for column in 0..columns {
                    let left = column.checked_sub(1).map_or(0.0, |left| own[left]);
                    let right = own.get(column + 1).copied().unwrap_or(0.0);
                    q[column] = 4.0 * own[column] - above[column] - below[column] - left - right;
                    part += q[column] * own[column];
                }
            }
            node.parts.set(number, part)?;
        }
        node.gate.wait()?;
        // 3, the leader's.
        node.gate.wait()?;
        let alpha = node.step.get().ok_or("there is no step")?.alpha;
        {
            let p = p.rows(inner.clone())?;
            for ((x, r), (p, q)) in x.iter_mut().zip(r.iter_mut()).zip(p.iter().zip(q.iter())) {
                *x += alpha * p;
                *r -= alpha * q;
            }
        }
        node.parts.set(number, r.iter().map(|r| r * r).sum())?;
        node.gate.wait()?;
        // 5, the leader's.
        node.gate.wait()?;
        let step = node.step.get().ok_or("there is no step")?;
        if step.done == 1 {
            return Ok(());
        }
        let mut p = p.rows_mut(inner.clone())?;
        for (p, r) in p.iter_mut().zip(r.iter()) {
            *p = r + step.beta * *p;
        }
        drop(p);
        node.gate.wait()?;
    }
}

struct Outcome {
    iterations: u64,
    residual: f64,
    error: f64,
    seconds: f64,
}

/// What the leader does.
fn conduct(
    leader: &Leader,
    node: &Node,
    pool: Pool,
    arguments: Arguments,
) -> Result<Outcome, Failure> {
    let size = arguments.poisson as usize;
    let band = leader.rows(size);
    if band.is_empty() {
        return Err("there are more ranks than rows".into());
    }
    // A times all ones: what the missing neighbours would have taken away.
    let edge = |at: usize| f64::from(u8::from(at == 0) + u8::from(at + 1 == size));
    let right = |row: usize, column: usize| edge(band.start + row) + edge(column);
    let rows = band.len();
    let within = |row: usize| (1..=rows).contains(&row);
    let p = Matrix::from_fn_in(pool, rows + 2, size, |row, column| {
        if within(row) {
            right(row - 1, column)
        } else {
            0.0
        }
    })?;
    let r = Matrix::from_fn_in(pool, rows, size, right)?;
    let [q, x] = [0.0, 0.0].map(|zero| Matrix::filled_in(pool, rows, size, zero));
    let (q, x) = (q?, x?);
    node.vectors.set(Vectors {
        p: p.handle(),
        q: q.handle(),
        r: r.handle(),
        x: x.handle(),
    })?;
    let norm = Array::filled_in(pool, 1, r.rows(..)?.iter().map(|r| r * r).sum())?;
    let of_right = leader.sum(&norm)?;
    node.gate.wait()?;
    let start = Instant::now();
    let (mut rho, mut iterations) = (of_right, 0);
    loop {
        leader.exchange_halo(&p)?;
        node.gate.wait()?;
        node.gate.wait()?;
        let alpha = rho / leader.sum(&node.parts)?;
        node.step.set(Step {
            alpha,
            ..Step::default()
        })?;
        node.gate.wait()?;
        node.gate.wait()?;
        let next = leader.sum(&node.parts)?;
        iterations += 1;
        let done = next <= arguments.tolerance.powi(2) * of_right;
        let beta = next / rho;
        let step = Step {
            alpha,
            beta,
            done: done.into(),
        };
        rho = next;
        node.step.set(step)?;
        node.gate.wait()?;
        if done {
            break;
        }
        if iterations >= 10 * (size * size) as u64 {
            return Err(format!("no convergence in {iterations} iterations").into());
        }
        node.gate.wait()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    // Squares of differences from the known answer, of all ranks.
    let worker_rows = x.rows(..);
    let distance = match worker_rows {
        Ok(rows) => rows.iter().map(|x| (x - 1.0) * (x - 1.0)).sum(),
        // The workers have their claims until they have seen that it is done.
        Err(_) => loop {
            std::thread::yield_now();
            if let Ok(rows) = x.rows(..) {
                break rows.iter().map(|x| (x - 1.0) * (x - 1.0)).sum();
            }
        },
    };
    let own = Array::filled_in(pool, 1, distance)?;
    let total = Array::filled_in(pool, 1, 0.0)?;
    leader.sum_into(&own, &total)?;
    Ok(Outcome {
        iterations,
        residual: (rho / of_right).sqrt(),
        error: (total.get(0)? / (size * size) as f64).sqrt(),
        seconds,
    })
}

fn solve(arguments: Arguments) -> Result<(), Failure> {
    let pool = Pool::builder().create()?;
    let workers = arguments.workers as usize;
    let node = pool.create(Node {
        vectors: SharedCell::new(),
        step: SharedCell::new(),
        parts: Array::new(),
        gate: Barrier::new(arguments.workers + 1),
    })?;
    node.parts.grow(workers, 0.0)?;
    let node = &*node;
    let work = |number| work(node, number, workers).expect("a worker comes to its end");
    lead(workers, work, |leader| {
        match conduct(leader, node, pool, arguments) {
            Ok(outcome) if leader.rank() == 0 => {
                println!("iterations: {}", outcome.iterations);
                println!("residual: {:.3e}", outcome.residual);
                println!("error: {:.3e}", outcome.error);
                println!("seconds: {:.6}", outcome.seconds);
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("solve_mpi: rank {}: {error}", leader.rank());
                leader.abort();
            }
        }
    })?;
    Ok(())
}

fn main() -> ExitCode {
    match solve(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("solve_mpi: {error}");
            ExitCode::FAILURE
        }
    }
}
