//! Bytes from one process to another, through a buffer that holds a few pieces at a time.
//!
//! ```text
//! pipeline [--mib M] [--piece-kib P] [--pieces N]
//! ```
//!
//! The consumer computes a checksum of every byte that it gets, in place; at the end it is compared
//! with that of the bytes that should have come. Each piece has its number in it, so one that is
//! missing, or comes twice or late, is noticed.

#[macro_use]
#[path = "common/say.rs"]
mod say;
#[path = "common/ends.rs"]
mod ends;

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use ends::{end_of, until_one_ends};
use shmkit::process::scope;
use shmkit::{Buffer, Pool};

/// Bytes from one process to another.
#[derive(Clone, Copy, Parser)]
struct Arguments {
    /// How many MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    mib: u64,
    /// KiB that are written at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 10))]
    piece_kib: u64,
    /// Pieces that the buffer holds.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1 << 10))]
    pieces: u64,
}

/// The bytes to be sent, piece by piece.
struct Pieces {
    piece: Vec<u8>,
    left: u64,
    number: u64,
}

impl Pieces {
    fn new(arguments: Arguments) -> Pieces {
        let len = arguments.piece_kib << 10;
        // Multiplications spread the bytes; the exact ones do not matter.
        let byte = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        Pieces {
            piece: (0..len).map(byte).collect(),
            left: arguments.mib << 20,
            number: 0,
        }
    }

    fn next(&mut self) -> Option<&[u8]> {
        let len = self.left.min(self.piece.len() as u64);
        self.left -= len;
        self.number += 1;
        self.piece[..8].copy_from_slice(&self.number.to_le_bytes());
        (len > 0).then(|| &self.piece[..len as usize])
    }
}

fn produce(mut buffer: &Buffer, arguments: Arguments) -> std::io::Result<()> {
    let mut pieces = Pieces::new(arguments);
    while let Some(piece) = pieces.next() {
        buffer.write_all(piece)?;
    }
    Ok(())
}

/// Closes the buffer when this side ends, which ends the other side's wait for bytes or for room.
fn and_close<T>(buffer: &Buffer, result: std::io::Result<T>) -> Result<T, String> {
    let closed = buffer.close().map_err(|error| error.to_string());
    let value = result.map_err(|error| error.to_string())?;
    closed.map(|()| value)
}

/// The checksum of all bytes until the buffer is closed, and their number.
fn consume(buffer: &Buffer) -> std::io::Result<(u32, u64)> {
    let (mut checksum, mut at) = (crc32fast::Hasher::new(), 0);
    let mut one = [0];
    loop {
        let end = buffer.end();
        if end == at {
            // Waits for more: the first byte of that is copied.
            if buffer.reader(at).read(&mut one)? == 0 {
                return Ok((checksum.finalize(), at));
            }
            checksum.update(&one);
            at += 1;
            continue;
        }
        let view = buffer.view(at..end).map_err(std::io::Error::other)?;
        view.chunks().for_each(|bytes| checksum.update(bytes));
        drop(view);
        at = end;
        buffer.truncate_front(at).map_err(std::io::Error::other)?;
    }
}

/// The checksum of the bytes, computed without another process.
fn checksum(arguments: Arguments) -> u32 {
    let (mut checksum, mut pieces) = (crc32fast::Hasher::new(), Pieces::new(arguments));
    while let Some(piece) = pieces.next() {
        checksum.update(piece);
    }
    checksum.finalize()
}

fn pipe(arguments: Arguments) -> Result<f64, Box<dyn std::error::Error>> {
    let pool = Pool::builder().create()?;
    let capacity = arguments.pieces * (arguments.piece_kib << 10);
    let buffer = pool.create(Buffer::with_capacity(capacity))?;
    let start = Instant::now();
    let (got, bytes) = scope(|s| -> Result<_, Box<dyn std::error::Error>> {
        let buffer = &*buffer;
        let consumer = s.spawn(|| and_close(buffer, consume(buffer)))?;
        let producer = s.spawn(move || and_close(buffer, produce(buffer, arguments)));
        if let Ok(producer) = &producer {
            until_one_ends(&[end_of(&consumer)?, end_of(producer)?]);
        }
        // A process that was killed has not closed it.
        buffer.close()?;
        let consumed = consumer.join()??;
        producer?.join()??;
        Ok(consumed)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let sent = checksum(arguments);
    if (got, bytes) != (sent, arguments.mib << 20) {
        return Err(
            format!("{bytes} bytes have come, of checksum {got:08x}, not {sent:08x}").into(),
        );
    }
    say!("checksum: {got:08x}");
    Ok(seconds)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match pipe(arguments) {
        Ok(seconds) => {
            say!("rate: {:.0} MiB/s", arguments.mib as f64 / seconds);
            ExitCode::SUCCESS
        }
        Err(error) => say::failed(&*error),
    }
}
