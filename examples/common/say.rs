//! `say!`: `println!` for a program whose reader may go away, as `head` does, which is not a failure. Also the message
//! that is printed for a failure.
#![allow(dead_code, reason = "each example uses a part of it")]

use std::error::Error;
use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}

/// Writes a line. If that fails for another reason than that the reader has gone, ends the program.
pub fn line(text: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// What went wrong, and its causes.
pub fn why(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words += &format!(": {error}");
        cause = error.source();
    }
    words
}

pub fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("{}: {}", env!("CARGO_BIN_NAME"), why(error));
    ExitCode::FAILURE
}
