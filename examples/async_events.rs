//! Worker processes push their results to a queue in shared memory; a task of tokio awaits them, beside
//! other tasks on the same thread, which are not held up.
//!
//! ```text
//! async_events [--workers N] [--results M]
//! ```
//!
//! Each worker finds prime numbers, its share of them, pushes each, and sets an event. The task
//! awaits the event's descriptor, and takes what is there. It ends when all workers have.

#[macro_use]
#[path = "common/say.rs"]
mod say;

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use shmkit::process::{Scope, scope};
use shmkit::{Event, Pool, PopError, PushRefusal, Queue, ShmSafe};
use tokio::io::unix::AsyncFd;

/// Awaits what worker processes find.
#[derive(Parser, Clone, Copy)]
struct Arguments {
    /// How many processes look.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
    workers: usize,
    /// How many prime numbers each of them finds.
    #[arg(long, default_value_t = 100)]
    results: usize,
}

type Failure = Box<dyn std::error::Error>;

/// What the workers and the task share: make the work known, then set; clear, then look.
#[derive(ShmSafe)]
struct Office {
    found: Queue<u64>,
    news: Event,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => say::failed(&*error),
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let pool = Pool::builder().create()?;
    let office = Office {
        found: Queue::bounded(16),
        news: Event::new(),
    };
    let office = pool.create(office).map_err(|refused| refused.to_string())?;
    let (found, ticks) = scope(|s| {
        let found = have_found(s, &office, arguments);
        // After a failure there are workers left, which would wait for room.
        office.found.close();
        found
    })?;
    let largest = found.iter().max().copied().unwrap_or(0);
    say!("{} found, the largest {largest}", found.len());
    eprintln!("{ticks} ticks of a clock meanwhile");
    Ok(())
}

/// Everything that the workers find, and how often a clock ticked meanwhile.
fn have_found<'s>(
    s: &'s Scope<'s, '_>,
    office: &'s Office,
    arguments: Arguments,
) -> Result<(Vec<u64>, u32), Failure> {
    // The processes are started before the runtime, whose threads would not exist in them.
    let workers: Vec<_> = (0..arguments.workers)
        .map(|worker| s.spawn(move || find(office, worker, arguments)))
        .collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = || workers.iter().all(|worker| worker.is_finished());
    let found = runtime.block_on(await_results(office, ended))?;
    for worker in workers {
        worker.join()?;
    }
    Ok(found)
}

/// A worker: finds the prime numbers that are its share, which is one of every N for N workers.
fn find(office: &Office, worker: usize, arguments: Arguments) {
    let is_prime = |n: &u64| {
        (2..)
            .take_while(|d| d * d <= *n)
            .all(|d| !n.is_multiple_of(d))
    };
    let own = (2..)
        .filter(is_prime)
        .skip(worker)
        .step_by(arguments.workers);
    for prime in own.take(arguments.results) {
        match office.found.push(prime) {
            Ok(()) => office.news.set(),
            // Nobody takes the results any more.
            Err(refused) if refused.cause == PushRefusal::Closed => return,
            Err(refused) => panic!("{refused}"),
        }
    }
}

/// Takes what is found until the workers have ended; also returns how often a clock ticked meanwhile.
async fn await_results(
    office: &Office,
    ended: impl Fn() -> bool,
) -> Result<(Vec<u64>, u32), Failure> {
    let stream = UnixStream::from(office.news.open_fd()?);
    // SAFETY: the stream owns its descriptor, keeps it open and never changes it.
    let descriptor = unsafe { AsyncFd::register(stream) }?;
    let mut clock = tokio::time::interval(Duration::from_millis(1));
    let (mut found, mut ticks) = (Vec::new(), 0);
    loop {
        // Checked before the queue: everything that ended workers pushed is there then.
        let last = ended();
        office.news.clear();
        loop {
            match office.found.try_pop() {
                Ok(prime) => found.push(prime),
                Err(PopError::Empty) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if last {
            return Ok((found, ticks));
        }
        tokio::select! {
            ready = descriptor.readable() => {
                let mut ready = ready?;
                // The bytes say nothing but that the event was set.
                let _ = ready.try_io(|stream| drain(stream.get_ref()));
            }
            _ = clock.tick() => ticks += 1,
        }
    }
}

/// Reads all that is there.
fn drain(mut stream: &UnixStream) -> io::Result<()> {
    while stream.read(&mut [0; 64])? > 0 {}
    Ok(())
}
