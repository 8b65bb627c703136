//! Workers that update shared state in a loop, and a killer that kills one of them every few
//! milliseconds and puts another in its place.
//!
//! ```text
//! survive [--seconds S] [--workers W] [--kill-every-ms M]
//! ```
//!
//! At the end nothing may be lost, doubled, torn, stuck or leaked; the program says what it found
//! and exits with 1 if anything is wrong. See `world.rs` for what the workers do, and `stalls.rs`
//! for which stalls count and which are due to the scheduler.

#[macro_use]
#[path = "../common/say.rs"]
mod say;
mod stalls;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use shmkit::Pool;
use shmkit::process::{JoinError, Scope, ScopedJoinHandle, scope};
use world::World;

/// Kills workers at random instructions and checks that nobody else is hurt.
#[derive(Parser)]
struct Arguments {
    /// How long, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=A_YEAR))]
    seconds: u64,
    /// How many workers there are at any time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=world::MAX_WORKERS as i64))]
    workers: u16,
    /// Milliseconds from one kill to the next.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(..=A_YEAR * 1000))]
    kill_every_ms: u64,
}

/// In seconds.
const A_YEAR: u64 = 31_536_000;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => say::failed(&*error),
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let pool = Pool::builder().create()?;
    let before = pool.stats().allocated;
    let world = pool.create(World::new())?;
    let kills = scope(|s| storm(s, &world, arguments))?;
    pool.recover();
    let mut problems = world.settle();

    say!("kills: {kills}");
    say!("operations: {}", world.operations());
    say!("recoveries: {}", pool.stats().recoveries);
    say!(
        "longest stall: {:.1} ms",
        world.longest_stall().as_secs_f64() * 1000.0
    );
    say!(
        "longest held up by others: {:.1} ms",
        world.longest_held_up().as_secs_f64() * 1000.0
    );
    drop(world);
    pool.recover();
    let left = pool.stats().allocated;
    if left != before {
        problems.push(format!(
            "{left} bytes are allocated at the end, {before} were at the start"
        ));
    }
    let report = pool.check_quiescent();
    say!("check: {report}");
    for problem in &problems {
        say!("wrong: {problem}");
    }
    Ok(problems.is_empty() && report.is_ok())
}

/// Kills and replaces workers until the time is up, then stops the rest; returns how many were
/// killed.
fn storm<'s>(
    s: &'s Scope<'s, '_>,
    world: &'s World,
    arguments: &Arguments,
) -> Result<u64, Box<dyn std::error::Error>> {
    let mut workers = Vec::new();
    let killed = kill_and_replace(s, world, arguments, &mut workers);
    // Also after an error: the scope waits for all workers that have been started.
    world.stop();
    let mut kills = 0;
    // All of them are joined: a child that was killed and is not joined makes the scope panic.
    for end in workers.into_iter().map(ended).collect::<Vec<_>>() {
        kills += u64::from(end?);
    }
    Ok(kills + killed?)
}

/// Starts the workers, then kills and replaces one at a time until the time is up; returns how many
/// of the killed ones have ended. `all` has the others: the workers by number, and after them those
/// that were killed.
fn kill_and_replace<'s>(
    s: &'s Scope<'s, '_>,
    world: &'s World,
    arguments: &Arguments,
    all: &mut Vec<ScopedJoinHandle<'s, ()>>,
) -> Result<u64, Box<dyn std::error::Error>> {
    let begun = Instant::now();
    let start = |index: usize| s.spawn(move || world.work(index, begun));
    let count = usize::from(arguments.workers);
    for index in 0..count {
        all.push(start(index)?);
    }
    let mut born = vec![begun.elapsed(); count];
    let mut kills = 0;
    // A linear congruential generator (Knuth, MMIX) picks the victims.
    let mut random = u64::from(std::process::id());
    let end = begun + Duration::from_secs(arguments.seconds);
    let pace = Duration::from_millis(arguments.kill_every_ms);
    let mut due = begun;
    loop {
        // The killer's pace follows the clock, so that the time that a kill and a wake-up take is
        // made up for.
        due += pace;
        std::thread::sleep(due.min(end).saturating_duration_since(Instant::now()));
        if Instant::now() >= end {
            return Ok(kills);
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let victim = (random >> 33) as usize % count;
        world.note_victim(victim, born[victim], begun.elapsed());
        all[victim].kill()?;
        let killed = std::mem::replace(&mut all[victim], start(victim)?);
        born[victim] = begun.elapsed();
        all.push(killed);
        // A worker takes a moment to die; the others find out by themselves.
        while let Some(at) = all[count..].iter().position(ScopedJoinHandle::is_finished) {
            kills += u64::from(ended(all.swap_remove(count + at))?);
        }
    }
}

/// Waits for a worker, and returns whether it was killed. Any end other than a kill or an orderly
/// one is an error.
fn ended(worker: ScopedJoinHandle<'_, ()>) -> Result<bool, JoinError> {
    match worker.join() {
        Ok(()) => Ok(false),
        Err(JoinError::Signaled(libc::SIGKILL)) => Ok(true),
        Err(other) => Err(other),
    }
}
