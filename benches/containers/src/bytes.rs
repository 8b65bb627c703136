//! The buffer. An operation is a chunk.

use std::hint::black_box;
use std::io::{Read, Write};

use shmkit::{Buffer, Shared};

use crate::crew::Crew;
use crate::maps::pool;

/// A large chunk, and how many of them are kept.
const LARGE: usize = 64 * 1024;
const KEPT: usize = 16;
const CHUNKS: u64 = 20_000;
/// The original's chunk, and how many of them its reader lets the writer get ahead.
const SMALL: usize = 4096;
const AHEAD: usize = 16;

pub fn run(crew: &Crew, bench: &str, subject: &str) {
    match (bench, subject) {
        ("buffer_append_64k", "shmkit") => {
            large(crew, false);
        }
        ("buffer_through_64k", "shmkit") => {
            large(crew, true);
        }
        ("buffer_append_64k", "memcpy") => memcpy(crew, false),
        ("buffer_through_64k", "memcpy") => memcpy(crew, true),
        ("buffer_add", _) => small(crew, |buffer, chunk, _| {
            let at = buffer.append(chunk).expect("room");
            buffer.truncate_front(at + SMALL as u64).expect("a chunk");
        }),
        ("buffer_cycle", _) => small(crew, |buffer, chunk, into| {
            let at = buffer.append(chunk).expect("room");
            buffer.read_at(at, into).expect("a chunk");
            black_box(&into);
            buffer.truncate_front(at + SMALL as u64).expect("a chunk");
        }),
        ("buffer_sub", _) => sub(crew),
        ("buffer_stream", _) => stream(crew),
        other => panic!("{other:?}"),
    }
}

/// Chunks come at one end and go at the other, `KEPT` behind. With `out` each is copied out.
fn large(crew: &Crew, out: bool) {
    let buffer = pool().create(Buffer::new()).expect("a buffer");
    let chunk = vec![b'x'; LARGE];
    crew.run(|_, gate| {
        let mut into = vec![0; LARGE];
        gate.work(|| {
            for _ in 0..CHUNKS {
                let at = buffer.append(&chunk).expect("room");
                if out {
                    assert_eq!(buffer.read_at(at, &mut into).expect("a chunk"), LARGE);
                    black_box(&into);
                }
                let start = at.saturating_sub((KEPT * LARGE) as u64);
                buffer.truncate_front(start).expect("a chunk");
            }
        });
        CHUNKS
    });
}

/// As many bytes, in and out of as many blocks of memory.
fn memcpy(crew: &Crew, out: bool) {
    let chunk = vec![b'x'; LARGE];
    crew.run(|_, gate| {
        let mut kept = vec![0; LARGE * (KEPT + 1)];
        let mut into = vec![0; LARGE];
        gate.work(|| {
            for i in 0..CHUNKS as usize {
                let place = i % (KEPT + 1) * LARGE;
                let place = &mut kept[place..place + LARGE];
                black_box(&mut *place).copy_from_slice(black_box(&chunk));
                if out {
                    into.copy_from_slice(black_box(place));
                    black_box(&into);
                }
            }
        });
        CHUNKS
    });
}

/// Small chunks, by each worker for itself.
fn small(crew: &Crew, operation: impl Fn(&Shared<Buffer>, &[u8], &mut [u8]) + Sync) {
    let buffer = pool().create(Buffer::new()).expect("a buffer");
    crew.run(|_, gate| {
        let chunk = vec![b'x'; SMALL];
        let mut into = vec![0; SMALL];
        gate.work(|| (0..20 * CHUNKS).for_each(|_| operation(&buffer, &chunk, &mut into)));
        20 * CHUNKS
    });
}

/// Copies out of a buffer that does not change.
fn sub(crew: &Crew) {
    let buffer = pool().create(Buffer::new()).expect("a buffer");
    for _ in 0..AHEAD {
        buffer.append(&[b'x'; SMALL]).expect("room");
    }
    crew.run(|_, gate| {
        let mut into = vec![0; SMALL];
        gate.work(|| {
            for i in 0..20 * CHUNKS {
                let at = i % AHEAD as u64 * SMALL as u64;
                buffer.read_at(at, &mut into).expect("a chunk");
                black_box(&into);
            }
        });
        20 * CHUNKS
    });
}

/// Worker 0 writes, worker 1 reads and deletes.
fn stream(crew: &Crew) {
    let capacity = (AHEAD * SMALL) as u64;
    let buffer = pool()
        .create(Buffer::with_capacity(capacity))
        .expect("a buffer");
    crew.run(|worker, gate| {
        let mut chunk = vec![b'x'; SMALL];
        let chunks = 5 * CHUNKS;
        if worker == 0 {
            gate.work(|| {
                for _ in 0..chunks {
                    (&mut &*buffer).write_all(&chunk).expect("room");
                }
            });
            return 0;
        }
        gate.work(|| {
            let mut reader = buffer.reader(0);
            for _ in 0..chunks {
                reader.read_exact(&mut chunk).expect("a chunk");
                buffer.truncate_front(reader.position()).expect("a chunk");
            }
        });
        chunks
    });
}
