//! Creatures meet in pairs and take the colour that neither of them has. Each creature is a process,
//! and so is the place where they meet; they talk by mailboxes.
//!
//! ```text
//! chameneos [MEETINGS] [--creatures N]
//! ```
//!
//! After that many meetings the place sends all creatures home. The meetings of all creatures then
//! sum to twice those of the place; if not, the program exits with 1.

#[macro_use]
#[path = "common/say.rs"]
mod say;
#[path = "common/ends.rs"]
mod ends;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use ends::{end_of, those_that_ended};
use shmkit::process::{Scope, scope};
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

/// A creature has arrived.
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

/// The colour of a creature after a meeting: its own if both had the same, otherwise the third
/// colour.
fn complement(own: u32, mate: u32) -> u32 {
    if own == mate { own } else { 3 - own - mate }
}

type Failure = Box<dyn std::error::Error>;

/// All mailboxes.
#[derive(Clone, Copy)]
struct Mail<'a> {
    visits: &'a Mailbox<Visit>,
    /// The mailboxes of the creatures, by number.
    answers: &'a [Shared<Mailbox<Answer>>],
}

impl Mail<'_> {
    /// Ends all waits for mail if a process has failed: they would never end by themselves.
    fn or_close<T, E>(self, result: Result<T, E>) -> Result<T, E> {
        if result.is_err() {
            self.visits.close();
            self.answers.iter().for_each(|mailbox| mailbox.close());
        }
        result
    }
}

/// The place: pairs the creatures in the order of their arrival, then sends all of them home.
fn place(mail: Mail<'_>, meetings: u64) -> Result<(), Failure> {
    let visits = mail.visits.receiver()?;
    let answer = |to: Visit, mate| mail.answers[to.creature as usize].send(Answer { mate });
    for _ in 0..meetings {
        let pair = (visits.recv()?, visits.recv()?);
        answer(pair.0, pair.1.colour)?;
        answer(pair.1, pair.0.colour)?;
    }
    for _ in mail.answers {
        answer(visits.recv()?, CLOSED)?;
    }
    Ok(())
}

/// A creature's life: how many it has met, and the colour that it ends with.
fn creature(mail: Mail<'_>, creature: u32) -> Result<(u64, u32), Failure> {
    let answers = mail.answers[creature as usize].receiver()?;
    let (mut colour, mut met) = (creature % 3, 0);
    loop {
        mail.visits.send(Visit { creature, colour })?;
        match answers.recv()?.mate {
            CLOSED => return Ok((met, colour)),
            mate => colour = complement(colour, mate),
        }
        met += 1;
    }
}

/// Runs the place and the creatures; returns each creature's meetings, and its colour at the end.
fn all_meet<'s>(
    s: &'s Scope<'s, '_>,
    mail: Mail<'s>,
    arguments: Arguments,
) -> Result<Vec<(u64, u32)>, Failure> {
    let place = s.spawn(move || {
        let done = mail.or_close(place(mail, arguments.meetings));
        done.map(|()| NOBODY).map_err(|e| e.to_string())
    })?;
    let mut running = vec![(arguments.creatures as usize, end_of(&place)?, place)];
    for number in 0..arguments.creatures {
        let creature = s.spawn(move || {
            let end = mail.or_close(creature(mail, number));
            end.map_err(|e| e.to_string())
        })?;
        running.push((number as usize, end_of(&creature)?, creature));
    }
    let mut ends = vec![NOBODY; running.len()];
    while !running.is_empty() {
        for (number, _, child) in those_that_ended(&mut running) {
            // A process that was killed has closed nothing.
            ends[number] =
                mail.or_close(child.join().map_err(Failure::from).and_then(|end| Ok(end?)))?;
        }
    }
    ends.truncate(arguments.creatures as usize);
    Ok(ends)
}

/// What the place shares with the creatures.
const NOBODY: (u64, u32) = (0, 0);

fn meet(arguments: Arguments) -> Result<bool, Failure> {
    let pool = Pool::builder().create()?;
    let visits = pool.create(Mailbox::new(arguments.creatures as usize))?;
    let answers =
        (0..arguments.creatures).map(|_| pool.create(Mailbox::new(1)).map_err(Failure::from));
    let answers = answers.collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let mail = Mail {
        visits: &visits,
        answers: &answers,
    };
    let ends = scope(|s| mail.or_close(all_meet(s, mail, arguments)))?;
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
        Err(error) => say::failed(&*error),
    }
}
