//! Creatures meet in pairs and take the colour that neither of them has. Each creature is a process,
//! and so is the place where they meet; they talk by mailboxes.
//!
//! ```text
//! chameneos [MEETINGS] [--creatures N]
//! ```
//!
//! After so many meetings the place sends everybody home. The meetings of all creatures then sum to
//! twice those of the place, which is what the program exits with 1 for if it is not so.

#[macro_use]
#[path = "common/say.rs"]
mod say;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use shmkit::process::scope;
use shmkit::{Mailbox, Pool, Shared, ShmSafe};

/// Creatures that meet in pairs, each a process.
#[derive(Clone, Copy, Parser)]
struct Arguments {
    /// How many meetings there are.
    #[arg(default_value_t = 60_000)]
    meetings: u64,
    /// How many creatures.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=64))]
    creatures: u32,
}

const COLOURS: [&str; 3] = ["blue", "red", "yellow"];

/// A creature has come.
#[derive(Clone, Copy, Debug, ShmSafe)]
struct Visit {
    creature: u32,
    colour: u32,
}

/// What the place answers: the mate's colour, or that it is closed.
#[derive(Clone, Copy, Debug, ShmSafe)]
struct Answer {
    mate: u32,
}

const CLOSED: u32 = u32::MAX;

/// The colour of a creature after a meeting: its own if both had the same, else the third.
fn complement(own: u32, mate: u32) -> u32 {
    if own == mate { own } else { 3 - own - mate }
}

type Failure = Box<dyn std::error::Error>;

/// The place: pairs the creatures in the order of their coming, then sends all of them home.
fn place(
    visits: &Mailbox<Visit>,
    answers: &[Shared<Mailbox<Answer>>],
    meetings: u64,
) -> Result<(), Failure> {
    let visits = visits.receiver()?;
    let answer = |to: Visit, mate| answers[to.creature as usize].send(Answer { mate });
    for _ in 0..meetings {
        let pair = (visits.recv()?, visits.recv()?);
        answer(pair.0, pair.1.colour)?;
        answer(pair.1, pair.0.colour)?;
    }
    for _ in answers {
        answer(visits.recv()?, CLOSED)?;
    }
    Ok(())
}

/// A creature's life: how many it has met, and the colour that it ends with.
fn creature(
    visits: &Mailbox<Visit>,
    answers: &Mailbox<Answer>,
    creature: u32,
) -> Result<(u64, u32), Failure> {
    let answers = answers.receiver()?;
    let (mut colour, mut met) = (creature % 3, 0);
    loop {
        visits.send(Visit { creature, colour })?;
        match answers.recv()?.mate {
            CLOSED => return Ok((met, colour)),
            mate => colour = complement(colour, mate),
        }
        met += 1;
    }
}

fn meet(arguments: Arguments) -> Result<bool, Failure> {
    let pool = Pool::builder().create()?;
    let visits = pool.create(Mailbox::new(arguments.creatures as usize))?;
    let answers =
        (0..arguments.creatures).map(|_| pool.create(Mailbox::new(1)).map_err(Failure::from));
    let answers = answers.collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let ends = scope(|s| -> Result<Vec<(u64, u32)>, Failure> {
        let (visits, answers) = (&*visits, &answers[..]);
        let told = move || place(visits, answers, arguments.meetings).map_err(|e| e.to_string());
        let place = s.spawn(told)?;
        let creatures: Result<Vec<_>, _> = (0..arguments.creatures)
            .map(|number| {
                let mail = &*answers[number as usize];
                s.spawn(move || creature(visits, mail, number).map_err(|e| e.to_string()))
            })
            .collect();
        let mut ends = Vec::new();
        for creature in creatures? {
            ends.push(creature.join()??);
        }
        place.join()??;
        Ok(ends)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    for (number, &(met, colour)) in ends.iter().enumerate() {
        let (was, is) = (COLOURS[number % 3], COLOURS[colour as usize]);
        say!("{met:8} meetings, {was} to {is}");
    }
    let sum: u64 = ends.iter().map(|end| end.0).sum();
    say!("rate: {:.0} a second", arguments.meetings as f64 / seconds);
    say!("sum: {sum}");
    Ok(sum == 2 * arguments.meetings)
}

fn main() -> ExitCode {
    match meet(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("chameneos: that is not twice the meetings");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("chameneos: {error}");
            ExitCode::FAILURE
        }
    }
}
