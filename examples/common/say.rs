//! `say!`: `println!` for a program whose reader may go away, as `head` does, which is no failure.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}

/// Writes a line, and ends the program if it cannot be written though there is somebody to read it.
pub fn line(text: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
