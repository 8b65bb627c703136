//! Starts worker processes and joins them, one after another or many at once, and prints how many
//! per second; for comparison, it can do the same by bare fork, exit and wait.
//!
//! ```text
//! create_join [--count N] [--at-once M] [--against-fork]
//! ```

#[macro_use]
#[path = "common/say.rs"]
mod say;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde::{Deserialize, Serialize};
use shmkit::process::{Config, Entry, JoinError, StartError, Worker, run};

/// Starts and joins processes.
#[derive(Clone, Parser, Serialize, Deserialize)]
struct Arguments {
    /// How many, in all.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// How many there are at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    at_once: u64,
    /// Also measures fork, exit and wait by themselves, in turns, and prints the ratio.
    #[arg(long)]
    against_fork: bool,
}

static NEXT: Entry<u64, u64> = Entry::new("next", |_, n| n + 1);
static MEASURE: Entry<Arguments, Result<Measured, String>> = Entry::new("measure", measure);

#[derive(Serialize, Deserialize)]
struct Measured {
    seconds: f64,
    fork_seconds: Option<f64>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("a worker was not started")]
    Start(#[from] StartError),
    #[error("a worker failed")]
    Join(#[from] JoinError),
    #[error("a fork failed")]
    Fork(#[from] nix::Error),
    #[error("a worker computed {0} wrongly")]
    Wrong(u64),
}

/// The first worker.
fn measure(worker: &Worker, arguments: Arguments) -> Result<Measured, String> {
    measured(worker, &arguments).map_err(|failure| say::why(&failure))
}

fn measured(worker: &Worker, arguments: &Arguments) -> Result<Measured, Failure> {
    // In rounds, so that both sides run under the same conditions.
    const ROUNDS: u64 = 10;
    let (mut ours, mut forks) = (Vec::new(), Vec::new());
    let mut left = arguments.count;
    for round in 0..ROUNDS {
        let count = left / (ROUNDS - round);
        left -= count;
        let start = Instant::now();
        start_and_join(worker, count, arguments.at_once)?;
        ours.push(start.elapsed().as_secs_f64());
        if arguments.against_fork {
            let start = Instant::now();
            (0..count).try_for_each(|_| fork_and_wait())?;
            forks.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(Measured {
        seconds: ours.iter().sum(),
        fork_seconds: arguments.against_fork.then(|| forks.iter().sum()),
    })
}

fn start_and_join(worker: &Worker, count: u64, at_once: u64) -> Result<(), Failure> {
    for first in (0..count).step_by(at_once as usize) {
        let last = count.min(first + at_once);
        let started: Result<Vec<_>, _> = (first..last).map(|n| worker.start(&NEXT, &n)).collect();
        for (n, handle) in (first..last).zip(started?) {
            if handle.join()? != n + 1 {
                return Err(Failure::Wrong(n));
            }
        }
    }
    Ok(())
}

/// Forks by the bare system call, without what libraries do around a fork.
fn fork_and_wait() -> Result<(), nix::Error> {
    // SAFETY: no memory and no stack is passed, so this forks; the child only exits.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: no memory is passed.
        unsafe { libc::_exit(0) };
    }
    let child = nix::errno::Errno::result(child)?;
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child as i32), None)?;
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let count = arguments.count;
    let measured = match run(&Config::new(), &MEASURE, arguments) {
        Ok(Ok(measured)) => measured,
        Ok(Err(failure)) => return failed(&failure),
        Err(error) => return say::failed(&error),
    };
    if let Some(seconds) = measured.fork_seconds {
        say!("fork and wait: {:.0} a second", count as f64 / seconds);
        say!("ratio: {:.2}", measured.seconds / seconds);
    }
    say!("joined: {count}");
    say!("rate: {:.0} a second", count as f64 / measured.seconds);
    ExitCode::SUCCESS
}

fn failed(why: &str) -> ExitCode {
    eprintln!("create_join: {why}");
    ExitCode::FAILURE
}
