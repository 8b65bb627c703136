//! A master in a program that has an event loop of its own, mio's: it serves TCP connections, and
//! has a worker process compute the answer to each line.
//!
//! ```text
//! event_loop [--port P] [--connections N]
//! ```
//!
//! Prints `port: P`, then answers a line with a number by the number's square; a line that a
//! worker cannot make sense of kills that worker alone. Ends after N connections.

#[macro_use]
#[path = "common/say.rs"]
mod say;

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use shmkit::process::{Config, Entry, JoinHandle, Master};

/// Serves squares, computed by worker processes.
#[derive(Parser)]
struct Arguments {
    /// The port; any free one unless said otherwise.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Ends after that many connections.
    #[arg(long, default_value_t = u64::MAX)]
    connections: u64,
}

static SQUARE: Entry<String, u64> = Entry::new("square", |_, line| {
    let number: u64 = line.trim().parse().expect("the line is a number");
    number.pow(2)
});

const MASTER: Token = Token(0);
const LISTENER: Token = Token(1);

type Failure = Box<dyn std::error::Error>;

struct Connection {
    stream: BufReader<TcpStream>,
    /// As far as it has arrived.
    line: String,
}

fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("event_loop: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> Result<(), Failure> {
    let mut master = Master::new(&Config::new())?;
    let mut listener = TcpListener::bind(([127, 0, 0, 1], arguments.port).into())?;
    say!("port: {}", listener.local_addr()?.port());
    let mut poll = Poll::new()?;
    let registry = poll.registry();
    registry.register(&mut listener, LISTENER, Interest::READABLE)?;
    let master_fd = master.as_fd().as_raw_fd();
    registry.register(&mut SourceFd(&master_fd), MASTER, Interest::READABLE)?;

    let mut events = Events::with_capacity(64);
    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let mut questions: Vec<(Token, JoinHandle<u64>)> = Vec::new();
    let mut accepted = 0;
    while accepted < arguments.connections || !connections.is_empty() {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            match event.token() {
                // mio tells of changes only, so all that there is is dealt with.
                MASTER => while master.dispatch()? != Default::default() {},
                LISTENER => {
                    while let Some((mut stream, _)) = would_block(listener.accept())? {
                        accepted += 1;
                        let token = Token(LISTENER.0 + accepted as usize);
                        poll.registry()
                            .register(&mut stream, token, Interest::READABLE)?;
                        let connection = Connection {
                            stream: BufReader::new(stream),
                            line: String::new(),
                        };
                        connections.insert(token, connection);
                    }
                }
                token => {
                    let Some(Connection { stream, line }) = connections.get_mut(&token) else {
                        continue;
                    };
                    while let Some(length) = would_block(stream.read_line(line))? {
                        if length == 0 {
                            connections.remove(&token);
                            break;
                        }
                        questions.push((token, master.start(&SQUARE, line)?));
                        line.clear();
                    }
                }
            }
        }
        questions = answer(questions, &mut connections)?;
    }
    master.finish()?;
    Ok(())
}

/// Answers what has been computed, and gives back what has not.
fn answer(
    questions: Vec<(Token, JoinHandle<u64>)>,
    connections: &mut HashMap<Token, Connection>,
) -> io::Result<Vec<(Token, JoinHandle<u64>)>> {
    let mut open = Vec::new();
    for (token, question) in questions {
        let answer = match question.try_join() {
            Ok(Ok(square)) => square.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(question) => {
                open.push((token, question));
                continue;
            }
        };
        if let Some(Connection { stream, .. }) = connections.get_mut(&token) {
            stream
                .get_mut()
                .write_all(format!("{answer}\n").as_bytes())?;
        }
    }
    Ok(open)
}

fn would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}
