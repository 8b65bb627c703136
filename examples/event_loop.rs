//! A master in a program that has an event loop of its own, mio's: it serves TCP connections, and
//! has a worker process compute the answer to each line.
//!
//! ```text
//! event_loop [--port P] [--connections N]
//! ```
//!
//! Prints `port: P`, then answers a line with a number by the number's square. A line that a worker
//! cannot parse kills only that worker, and a connection that fails is dropped without effect on
//! others. A client that sends no more still gets its answers. The program ends after N
//! connections.

#[macro_use]
#[path = "common/say.rs"]
mod say;

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use shmkit::process::{Config, Entry, JoinHandle, Master, StartError};

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
    number.checked_pow(2).expect("the square is a number")
});

const MASTER: Token = Token(0);
const LISTENER: Token = Token(1);

/// Lines must be shorter than this, in bytes.
const TOO_LONG: usize = 1 << 10;

type Failure = Box<dyn std::error::Error>;

struct Connection {
    stream: BufReader<TcpStream>,
    /// The input as far as it has arrived.
    line: Vec<u8>,
    /// How many answers are still to come.
    questions: usize,
    /// No more lines come; the client may still wait for answers.
    is_read: bool,
}

impl Connection {
    /// The next line, once all of it has arrived; empty at the end.
    fn next_line(&mut self) -> io::Result<String> {
        let room = (TOO_LONG - self.line.len()) as u64;
        let mut stream = self.stream.by_ref().take(room);
        stream.read_until(b'\n', &mut self.line)?;
        if self.line.len() == TOO_LONG {
            return Err(io::Error::other("a line is too long"));
        }
        // If it is not text, a worker will say so.
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        Ok(line)
    }

    /// Has workers started for the lines that have arrived.
    fn read(&mut self, mut start: impl FnMut(String) -> Result<(), StartError>) -> io::Result<()> {
        while let Some(line) = would_block(self.next_line())? {
            if line.is_empty() {
                self.is_read = true;
                break;
            }
            match start(line) {
                Ok(()) => self.questions += 1,
                Err(refused) => self.answer(&refused.to_string())?,
            }
        }
        Ok(())
    }

    /// Whether all that was asked has been answered, and nothing more will be asked.
    fn is_over(&self) -> bool {
        self.is_read && self.questions == 0
    }

    /// A client that reads no answers, so that there is no room for this one, is an error as well.
    fn answer(&mut self, answer: &str) -> io::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(format!("{answer}\n").as_bytes())
    }
}

fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => say::failed(&*error),
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
                // mio reports only changes, so everything that is pending is dealt with.
                MASTER => while master.dispatch()? != Default::default() {},
                LISTENER => {}
                token => {
                    let Some(connection) = connections.get_mut(&token) else {
                        continue;
                    };
                    let read = connection.read(|line| {
                        questions.push((token, master.start(&SQUARE, &line)?));
                        Ok(())
                    });
                    if is_dropped(read) || connection.is_over() {
                        connections.remove(&token);
                    }
                }
            }
        }
        // Whatever has happened: a connection that was refused for lack of descriptors is tried
        // again.
        while let Some(mut stream) = accept(&listener) {
            accepted += 1;
            let token = Token(LISTENER.0 + accepted as usize);
            let registered = poll
                .registry()
                .register(&mut stream, token, Interest::READABLE);
            if is_dropped(registered) {
                continue;
            }
            let connection = Connection {
                stream: BufReader::new(stream),
                line: Vec::new(),
                questions: 0,
                is_read: false,
            };
            connections.insert(token, connection);
        }
        questions = answer(questions, &mut connections);
    }
    master.finish()?;
    Ok(())
}

/// The next connection, if there is one that can be accepted.
fn accept(listener: &TcpListener) -> Option<TcpStream> {
    loop {
        match would_block(listener.accept()) {
            Ok(accepted) => return accepted.map(|(stream, _)| stream),
            // Aborted by the client. There may be others behind it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                eprintln!("event_loop: no connection is accepted: {error}");
                return None;
            }
        }
    }
}

/// Whether something has failed for which a connection is dropped; prints a message if so.
fn is_dropped(done: io::Result<()>) -> bool {
    if let Err(error) = &done {
        eprintln!("event_loop: a connection is dropped: {error}");
    }
    done.is_err()
}

/// Sends the answers that have been computed, and gives back the jobs whose answers have not.
fn answer(
    questions: Vec<(Token, JoinHandle<u64>)>,
    connections: &mut HashMap<Token, Connection>,
) -> Vec<(Token, JoinHandle<u64>)> {
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
        let Some(connection) = connections.get_mut(&token) else {
            continue;
        };
        connection.questions -= 1;
        if is_dropped(connection.answer(&answer)) || connection.is_over() {
            connections.remove(&token);
        }
    }
    open
}

fn would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}
