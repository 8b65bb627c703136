//! Sends small messages to another process, and prints how many per second.
//!
//! ```text
//! mailbox_speed [COUNT] [--slots N]
//! ```

#[macro_use]
#[path = "common/say.rs"]
mod say;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use shmkit::process::scope;
use shmkit::{Mailbox, Pool, PushError, PushRefusal, RecvError};

/// Sends small messages to another process.
#[derive(Clone, Copy, Parser)]
struct Arguments {
    /// How many messages.
    #[arg(default_value_t = 1_000_000)]
    count: u64,
    /// How many fit into the mailbox.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    slots: u32,
}

type Message = [u64; 3];

/// The sum of the messages, which are consecutive numbers.
fn expected(count: u64) -> u64 {
    (0..count).fold(0, |sum, n| {
        message(n).iter().fold(sum, |s, x| s.wrapping_add(*x))
    })
}

fn message(n: u64) -> Message {
    [n, n ^ 1, n.rotate_left(7)]
}

/// Receives until the mailbox is closed; returns how many messages came, and their sum.
fn receive(mailbox: &Mailbox<Message>) -> Result<(u64, u64), RecvError> {
    let receiver = mailbox.receiver().map_err(|_| RecvError::Closed)?;
    let (mut count, mut sum) = (0, 0_u64);
    loop {
        match receiver.recv() {
            Ok(message) => sum = message.iter().fold(sum, |s, x| s.wrapping_add(*x)),
            Err(RecvError::Closed) => return Ok((count, sum)),
            Err(error) => return Err(error),
        }
        count += 1;
    }
}

/// Sends a message, unless the receiver has ended, for instance because it was killed: the mailbox does not know
/// of that.
fn send_unless(
    mailbox: &Mailbox<Message>,
    mut message: Message,
    over: impl Fn() -> bool,
) -> Result<(), PushError<Message>> {
    /// How long it waits between two checks.
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        match mailbox.send_timeout(message, LOOK) {
            Err(full) if full.cause == PushRefusal::TimedOut && !over() => message = full.value,
            sent => return sent,
        }
    }
}

fn send(arguments: Arguments) -> Result<f64, Box<dyn std::error::Error>> {
    let pool = Pool::builder().create()?;
    let mailbox = pool.create(Mailbox::new(arguments.slots as usize))?;
    let start = Instant::now();
    let (count, sum) = scope(|s| -> Result<_, Box<dyn std::error::Error>> {
        let receiver = s.spawn(|| {
            let received = receive(&mailbox);
            // If the receiver has failed, nobody makes room.
            mailbox.close();
            received.map_err(|error| error.to_string())
        })?;
        let over = || receiver.is_finished();
        let sent = (0..arguments.count).try_for_each(|n| send_unless(&mailbox, message(n), over));
        mailbox.close();
        let received = receiver.join()??;
        sent?;
        Ok(received)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if (count, sum) != (arguments.count, expected(arguments.count)) {
        return Err(format!("{count} messages of sum {sum} have come").into());
    }
    say!("sum: {sum}");
    Ok(seconds)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match send(arguments) {
        Ok(seconds) => {
            say!("received: {}", arguments.count);
            say!("rate: {:.0} a second", arguments.count as f64 / seconds);
            ExitCode::SUCCESS
        }
        Err(error) => say::failed(&*error),
    }
}
