//! Counts the ways to put N queens on a board of N by N so that none attacks another, up to
//! symmetry: turned or mirrored, a solution is the same one.
//!
//! ```text
//! nqueens [-n N] [--mode seq|sht|sht2|mp|mp2] [--workers W]
//! ```
//!
//! All solutions are searched for, and each is reduced to the smallest of the eight boards that
//! are the same up to symmetry. The modes differ in where these are collected:
//!
//! | mode | by |
//! |---|---|
//! | `seq` | one process, in its own memory |
//! | `sht`, `sht2` | workers that share one hash map, or two |
//! | `mp`, `mp2` | workers that send them to one collector, or two |
//!
//! Workers may be killed at any moment. They are started again, and the answer is the same.

#[macro_use]
#[path = "../common/say.rs"]
mod say;
mod board;
mod failure;
mod mail;
mod maps;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use shmkit::process::{Config, run};
use shmkit::{HashMap, Pool, Queue};

use failure::Failure;

/// Counts the ways to put N queens on a board, up to symmetry.
#[derive(Clone, Copy, Parser)]
struct Arguments {
    /// The number of queens, and of rows and columns.
    #[arg(short = 'n', default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=board::LARGEST as i64))]
    size: u32,
    /// Where the solutions are brought together.
    #[arg(long, value_enum, default_value = "sht")]
    mode: Mode,
    /// How many processes search.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=32))]
    workers: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// In the memory of one process
    Seq,
    /// In a hash map that the workers share
    Sht,
    /// In two of them
    Sht2,
    /// In a process that they are sent to
    Mp,
    /// In two of them
    Mp2,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = Instant::now();
    match solutions(arguments) {
        Ok(solutions) => {
            say!("seconds: {:.4}", start.elapsed().as_secs_f64());
            say!("solutions: {solutions}");
            ExitCode::SUCCESS
        }
        Err(Failure(why)) => {
            eprintln!("nqueens: {why}");
            ExitCode::FAILURE
        }
    }
}

fn solutions(arguments: Arguments) -> Result<u64, Failure> {
    let Arguments {
        size,
        mode,
        workers,
    } = arguments;
    match mode {
        Mode::Seq => Ok(alone(size)),
        Mode::Sht => with_maps(size, 1, workers),
        Mode::Sht2 => with_maps(size, 2, workers),
        Mode::Mp => with_mail(size, 1, workers),
        Mode::Mp2 => with_mail(size, 2, workers),
    }
}

fn alone(size: u32) -> u64 {
    let mut boards = board::Boards::default();
    for part in board::parts(size) {
        let found = |board| {
            boards.insert(board::representative(size, board));
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(()) = board::search(size, part, found);
    }
    boards.len() as u64
}

fn with_maps(size: u32, count: usize, workers: u32) -> Result<u64, Failure> {
    let pool = Pool::builder().create()?;
    let maps = (0..count).map(|_| pool.create(HashMap::with_hasher()));
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    let parts = pool.create(Queue::unbounded())?;
    let shared = maps::Shared {
        size,
        maps: maps.iter().map(shmkit::Shared::handle).collect(),
        parts: parts.handle(),
    };
    run(&Config::new(), &maps::COUNT, (shared, workers))?
}

fn with_mail(size: u32, count: usize, workers: u32) -> Result<u64, Failure> {
    let pool = Pool::builder().create()?;
    let collectors = (0..count).map(|_| pool.create(mail::Collector::new()).map_err(Failure::from));
    let collectors = collectors.collect::<Result<Vec<_>, _>>()?;
    let parts = pool.create(Queue::unbounded())?;
    let shared = mail::Shared {
        size,
        collectors: collectors.iter().map(shmkit::Shared::handle).collect(),
        parts: parts.handle(),
    };
    run(&Config::new(), &mail::COUNT, (shared, workers))?
}
