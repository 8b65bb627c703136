//! Multiplies matrices on worker processes: many small ones, and one large one by bands of rows.
//! The products are compared with those of one process alone.
//!
//! The multiplication is timed, on both sides with all memory mapped. Mapping it costs a process
//! that was just forked more than multiplying small matrices: each page of memory causes a fault
//! when it is used for the first time. The time including that, and including starting and joining
//! the workers, is printed as well.
//!
//! ```text
//! matmul [--count N] [--small S] [--large L] [--workers W]
//! ```

#[macro_use]
#[path = "common/say.rs"]
mod say;

use std::error::Error;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use shmkit::process::{Config, Entry, Worker, run};
use shmkit::sync::Barrier;
use shmkit::{Handle, Matrix, Pool, ShmSafe};

/// Multiplies matrices on worker processes.
#[derive(Clone, Copy, Parser)]
struct Arguments {
    /// How many small matrices.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// The order of the small ones.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    small: u32,
    /// The order of the large one.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=8000))]
    large: u32,
    /// How many workers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
}

/// The factors and products of a batch, one matrix below the other, and which one is next.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Batch {
    order: usize,
    left: Handle<Matrix<f64>>,
    right: Handle<Matrix<f64>>,
    product: Handle<Matrix<f64>>,
    next: Handle<Next>,
    /// All workers pass it at the beginning of what is timed.
    gate: Handle<Barrier>,
    workers: u32,
}

#[derive(ShmSafe)]
struct Next(AtomicUsize);

static WORK: Entry<Batch, Result<Share, String>> =
    Entry::new("work", |_, batch| batch.work().map_err(|e| e.to_string()));
static MULTIPLY: Entry<(Batch, u32), Result<Spent, String>> =
    Entry::new("multiply", |worker, (batch, workers)| {
        multiply(worker, batch, workers).map_err(|e| e.to_string())
    });

/// When a worker has worked, in seconds of the clock that all processes share, and for how much of
/// that time it had a processor.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Share {
    begun: f64,
    ended: f64,
    processor: f64,
}

/// Seconds.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Spent {
    /// Wall time.
    wall: f64,
    /// Processor time: that of the worker that had the most.
    processor: f64,
}

/// The processor time of this process. It tells how much work there was, on a machine where other
/// programs take their share of the wall time.
fn processor_seconds() -> f64 {
    seconds(ClockId::ProcessCPUTime)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// How often the first worker looks at all others while it waits for one.
const LOOK: Duration = Duration::from_millis(20);

/// The first worker: has others do the work, and returns the time that it took them. If one fails,
/// those that wait for it at the gate are ended with the run.
fn multiply(worker: &Worker, batch: Batch, workers: u32) -> Result<Spent, Box<dyn Error>> {
    let mut running = (0..workers)
        .map(|_| worker.start(&WORK, &batch))
        .collect::<Result<Vec<_>, _>>()?;
    let mut shares: Vec<Share> = Vec::new();
    while let Some(one) = running.first() {
        one.wait_timeout(LOOK)?;
        for handle in std::mem::take(&mut running) {
            match handle.try_join() {
                Ok(ended) => shares.push(ended??),
                Err(works) => running.push(works),
            }
        }
    }
    let begun = shares.iter().map(|share| share.begun);
    let ended = shares.iter().map(|share| share.ended);
    let processor = shares.iter().map(|share| share.processor);
    Ok(Spent {
        wall: ended.fold(0.0, f64::max) - begun.fold(f64::INFINITY, f64::min),
        processor: processor.fold(0.0, f64::max),
    })
}

impl Batch {
    /// Takes rows until there are none left.
    fn work(&self) -> Result<Share, Box<dyn Error>> {
        let (left, right) = (self.left.open()?, self.right.open()?);
        let (product, next) = (self.product.open()?, self.next.open()?);
        let rows = product.dims().0;
        let gate = self.gate.open()?;
        [&left, &right, &product]
            .into_iter()
            .try_for_each(|matrix| map(matrix))?;
        gate.wait()?;
        let (begun, busy) = (seconds(ClockId::Monotonic), processor_seconds());
        loop {
            let Some(band) = self.take(&next, rows) else {
                return Ok(Share {
                    begun,
                    ended: seconds(ClockId::Monotonic),
                    processor: processor_seconds() - busy,
                });
            };
            let factor = left.rows(band.clone())?;
            let mut target = product.rows_mut(band.clone())?;
            // The matrix to which these rows belong.
            let matrix = band.start / self.order * self.order;
            let other = right.rows(matrix..matrix + self.order)?;
            gemm(self.order, band.len(), &factor, &other, &mut target);
        }
    }

    /// The next rows of the product for a worker: one matrix if there are many; its share of the
    /// rows if there is only one. A multiplication begins by packing the whole other matrix, so a
    /// worker does that once.
    fn take(&self, next: &Next, rows: usize) -> Option<Range<usize>> {
        let step = match rows == self.order {
            true => rows.div_ceil(self.workers as usize),
            false => self.order,
        };
        let first = next.0.fetch_add(step, Ordering::Relaxed);
        (first < rows).then(|| first..rows.min(first + step))
    }
}

/// Fills this process's page tables, by reading something in each page.
fn map(matrix: &Matrix<f64>) -> Result<(), Box<dyn Error>> {
    let rows = matrix.rows(..)?;
    let sum: f64 = rows.iter().step_by(4096 / size_of::<f64>()).sum();
    std::hint::black_box(sum);
    Ok(())
}

/// `product = left * right`, for some rows of `left`.
fn gemm(order: usize, rows: usize, left: &[f64], right: &[f64], product: &mut [f64]) {
    assert!(left.len() == rows * order && product.len() == left.len());
    assert!(right.len() == order * order);
    let stride = order as isize;
    // SAFETY: the slices have the lengths that the sizes and strides say, by the assertions.
    unsafe {
        matrixmultiply::dgemm(
            rows,
            order,
            order,
            1.0,
            left.as_ptr(),
            stride,
            1,
            right.as_ptr(),
            stride,
            1,
            0.0,
            product.as_mut_ptr(),
            stride,
            1,
        );
    }
}

/// Small whole numbers: their products are exact in every order of summation.
fn element(seed: usize, row: usize, column: usize) -> f64 {
    ((row * 31 + column * 17 + seed) % 13) as f64 - 6.0
}

/// Multiplies `count` matrices of one order, and reports.
fn report(name: &str, order: usize, count: usize, workers: u32) -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().create()?;
    let rows = order * count;
    let left = Matrix::from_fn_in(pool, rows, order, |row, column| element(1, row, column))?;
    let right = Matrix::from_fn_in(pool, rows, order, |row, column| element(2, row, column))?;
    let product = Matrix::filled_in(pool, rows, order, f64::NAN)?;
    let next = pool.create(Next(AtomicUsize::new(0)))?;
    let gate = pool.create(Barrier::new(workers))?;
    let batch = Batch {
        order,
        left: left.handle(),
        right: right.handle(),
        product: product.handle(),
        next: next.handle(),
        gate: gate.handle(),
        workers,
    };
    let start = Instant::now();
    let spent = run(&Config::new(), &MULTIPLY, (batch, workers))??;
    let whole = start.elapsed().as_secs_f64();

    // It is written to, so that it is mapped.
    let mut alone = vec![f64::NAN; rows * order];
    let (left, right) = (left.rows(..)?, right.rows(..)?);
    let (start, busy) = (Instant::now(), processor_seconds());
    for matrix in 0..count {
        let part: Range<usize> = matrix * order * order..(matrix + 1) * order * order;
        gemm(
            order,
            order,
            &left[part.clone()],
            &right[part.clone()],
            &mut alone[part],
        );
    }
    let alone_spent = Spent {
        wall: start.elapsed().as_secs_f64(),
        processor: processor_seconds() - busy,
    };
    if *product.rows(..)? != alone[..] {
        return Err(format!("the {name} product is wrong").into());
    }
    let operations = 2.0 * count as f64 * (order as f64).powi(3);
    let sum: f64 = alone.iter().sum();
    say!(
        "{name}: {count} of order {order}, sum {sum}, {:.2} GFLOP/s, speedup {:.2}, by the \
         processors' time {:.2}; seconds {:.4}, with start and end of the workers {whole:.4}",
        operations / spent.wall / 1e9,
        alone_spent.wall / spent.wall,
        alone_spent.processor / spent.processor,
        spent.wall
    );
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Arguments {
        count,
        small,
        large,
        workers,
    } = arguments;
    let (small, large) = (small as usize, large as usize);
    let done = report("small", small, count as usize, workers)
        .and_then(|()| report("large", large, 1, workers));
    match done {
        Ok(()) => {
            say!("products: right");
            ExitCode::SUCCESS
        }
        Err(error) => say::failed(&*error),
    }
}
