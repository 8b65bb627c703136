//! Streams of bytes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::prelude::*;
use shmkit::process::{SpawnError, scope};
use shmkit::{AllocError, AppendError, Buffer, Pool, RangeError, Shared, ShmSafe};

use crate::workers::until;
use crate::{allocated, assert_sound, on_random, pool};

fn one() -> Shared<Buffer> {
    pool().create(Buffer::new()).unwrap()
}

fn bounded(capacity: u64) -> Shared<Buffer> {
    pool().create(Buffer::with_capacity(capacity)).unwrap()
}

fn bytes(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (number * 131 + i * 7) as u8)
        .collect()
}

#[derive(Clone, Debug)]
enum Operation {
    Append(usize),
    Truncate(f64),
    Clear,
    View(f64, f64),
    ReadAt(f64, usize),
}

fn operations() -> impl Strategy<Value = Operation> {
    let lens = prop_oneof![
        0..40_usize,
        200..1200_usize,
        7000..20_000_usize,
        Just(70_000)
    ];
    prop_oneof![
        8 => lens.prop_map(Operation::Append),
        3 => (0.0..1.0).prop_map(Operation::Truncate),
        1 => Just(Operation::Clear),
        4 => (0.0..1.0, 0.0..1.0).prop_map(|(a, b)| Operation::View(a, b)),
        2 => (0.0..1.0, 0..30_000_usize).prop_map(|(a, len)| Operation::ReadAt(a, len)),
    ]
}

/// What it must be: a start and the bytes from there on.
#[derive(Default)]
struct Model {
    start: u64,
    bytes: VecDeque<u8>,
    number: u64,
}

impl Model {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// The place at a fraction of what there is.
    fn at(&self, fraction: f64) -> u64 {
        self.start + (self.bytes.len() as f64 * fraction) as u64
    }

    fn slice(&self, from: u64, to: u64) -> Vec<u8> {
        let range = (from - self.start) as usize..(to - self.start) as usize;
        self.bytes.range(range).copied().collect()
    }

    fn step(&mut self, buffer: &Buffer, operation: &Operation) {
        match *operation {
            Operation::Append(len) => {
                self.number += 1;
                let more = bytes(self.number, len);
                assert_eq!(buffer.append(&more), Ok(self.end()));
                let at = self.end();
                self.bytes.extend(&more);
                let view = buffer.view(at..self.end()).unwrap();
                assert_eq!(view.as_slice(), Some(&more[..]));
            }
            Operation::Truncate(fraction) => {
                let to = self.at(fraction);
                assert_eq!(buffer.truncate_front(to), Ok(()));
                self.bytes.drain(..(to - self.start) as usize);
                // Not back.
                assert_eq!(buffer.truncate_front(self.start), Ok(()));
                self.start = to;
            }
            Operation::Clear => {
                assert_eq!(buffer.clear(), Ok(()));
                self.start = self.end();
                self.bytes.clear();
            }
            Operation::View(a, b) => {
                let (from, to) = (self.at(a.min(b)), self.at(a.max(b)));
                let view = buffer.view(from..to).unwrap();
                assert_eq!(view.len() as u64, to - from);
                assert_eq!(view.to_vec(), self.slice(from, to));
            }
            Operation::ReadAt(a, len) => {
                let from = self.at(a);
                let mut into = vec![0; len];
                let read = buffer.read_at(from, &mut into).unwrap();
                let to = self.end().min(from + len as u64);
                assert_eq!(&into[..read], &self.slice(from, to)[..]);
            }
        }
        assert_eq!((buffer.start(), buffer.end()), (self.start, self.end()));
        assert_eq!(buffer.len(), self.bytes.len() as u64);
    }
}

pub fn buffer_behaves_like_its_model() {
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let before = allocated(pool);
    let operations = prop::collection::vec(operations(), 1..120);
    on_random(60, &operations, |operations| {
        let buffer = pool.create(Buffer::new()).unwrap();
        let mut model = Model::default();
        for operation in &operations {
            model.step(&buffer, operation);
        }
        let report = pool.check_quiescent();
        assert!(report.is_ok(), "{report}");
        drop(buffer);
        assert_eq!(pool.stats().allocated, before);
    });
}

pub fn buffer_refusals() {
    let buffer = one();
    assert_eq!(buffer.append(b""), Ok(0));
    assert_eq!(buffer.append(b"0123456789"), Ok(0));
    buffer.truncate_front(3).unwrap();
    let refused = |range| buffer.view(range).map(drop).unwrap_err();
    assert_eq!(refused(2..5), RangeError::Deleted { start: 3 });
    assert_eq!(refused(3..11), RangeError::BeyondEnd { end: 10 });
    assert_eq!(
        refused(u64::MAX - 1..u64::MAX),
        RangeError::BeyondEnd { end: 10 }
    );
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let reversed = refused(5..4);
    assert_eq!(reversed, RangeError::Reversed);
    assert_eq!(
        buffer.truncate_front(11),
        Err(RangeError::BeyondEnd { end: 10 })
    );
    assert_eq!(buffer.read_at(10, &mut [0; 4]), Ok(0));
    assert_eq!(
        buffer.read_at(11, &mut [0; 4]),
        Err(RangeError::BeyondEnd { end: 10 })
    );
    assert!(buffer.view(10..10).unwrap().as_slice() == Some(&[]));
    assert_eq!((buffer.start(), buffer.end()), (3, 10));

    let small = bounded(8);
    assert_eq!(small.append(&[0; 9]), Err(AppendError::TooLong { len: 9 }));
    small.append(&[1; 6]).unwrap();
    assert_eq!(small.append(&[2; 3]), Err(AppendError::Full));
    small.append(&[2; 2]).unwrap();
    assert_eq!(small.append(&[3]), Err(AppendError::Full));
    small.truncate_front(1).unwrap();
    assert_eq!(small.append(&[3]), Ok(8));
    small.close().unwrap();
    small.close().unwrap();
    small.clear().unwrap();
    assert_eq!(small.append(&[3]), Err(AppendError::Closed));
    assert_eq!(small.append(&[]), Err(AppendError::Closed));
    assert_eq!(
        (small.start(), small.end(), small.is_closed()),
        (9, 9, true)
    );
    // Nobody waits for room that there will never be.
    let none = bounded(0);
    assert_eq!(none.append(&[1]), Err(AppendError::TooLong { len: 1 }));
    assert_eq!(none.append(&[]), Ok(0));
    let refused = (&*none).write(&[1]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    // Closed before anything was appended.
    let never = one();
    never.close().unwrap();
    assert_eq!(never.append(&[3]), Err(AppendError::Closed));
    assert!(never.is_closed() && never.is_empty());
    assert_eq!(never.reader(0).read(&mut [0; 4]).unwrap(), 0);

    let outside = Buffer::new();
    assert_eq!(outside.append(b"x"), Err(AppendError::NotInPool));
    assert_eq!(outside.view(0..0).map(drop), Err(RangeError::NotInPool));
    assert_eq!(outside.truncate_front(0), Err(RangeError::NotInPool));
    assert!(outside.is_empty() && !outside.is_closed());
}

pub fn a_full_pool_loses_no_bytes() {
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    let buffer = pool.create(Buffer::new()).unwrap();
    let mut appended = 0;
    for size in [300_000, 20_000, 5000, 700, 60, 1] {
        loop {
            match buffer.append(&bytes(appended, size)) {
                Ok(at) => assert_eq!(at, appended),
                Err(AppendError::Alloc(AllocError::PoolFull)) => break,
                Err(error) => panic!("{error}"),
            }
            appended += size as u64;
        }
    }
    assert_eq!(buffer.end(), appended);
    assert_sound(pool);
    let first = buffer.view(0..300_000).unwrap();
    assert_eq!(first.as_slice().unwrap(), bytes(0, 300_000));
    // Deleted, but looked at: there is no room yet.
    buffer.truncate_front(300_000).unwrap();
    assert!(buffer.append(&[0; 250_000]).is_err());
    assert_eq!(first.as_slice().unwrap(), bytes(0, 300_000));
    drop(first);
    assert_eq!(buffer.append(&[0; 250_000]), Ok(appended));
    buffer.clear().unwrap();
    buffer.append(&[1; 300_000]).unwrap();
    assert_sound(pool);
}

pub fn deleting_returns_memory() {
    let pool = pool();
    let before = allocated(pool);
    let buffer = pool.create(Buffer::new()).unwrap();
    for round in 0..20 {
        for number in 0..300 {
            buffer.append(&bytes(number, 1000)).unwrap();
        }
        buffer.append(&bytes(round, 300_000)).unwrap();
        let full = allocated(pool);
        assert!(full >= before + 600_000);
        let half = buffer.start() + buffer.len() / 2;
        buffer.truncate_front(half).unwrap();
        assert!(allocated(pool) < full - 200_000);
        buffer.clear().unwrap();
        assert!(allocated(pool) <= before + (40 << 10));
    }
    drop(buffer);
    assert_eq!(allocated(pool), before);
}

/// Also those that a closed one ends with, unless there was no memory when it was closed.
pub fn deleting_from_closed_buffers_returns_memory() {
    const LARGE: usize = 300_000;
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    for is_full in [false, true] {
        let buffer = pool.create(Buffer::new()).unwrap();
        let before = allocated(pool);
        buffer.append(&bytes(0, LARGE)).unwrap();
        let other = pool.create(Buffer::new()).unwrap();
        if is_full {
            for size in [LARGE, 20_000, 5000, 700, 60, 1] {
                while other.append(&bytes(1, size)).is_ok() {}
            }
        }
        buffer.close().unwrap();
        assert_eq!((buffer.end(), buffer.is_closed()), (LARGE as u64, true));
        let view = buffer.view(0..LARGE as u64).unwrap();
        assert_eq!(view.as_slice().unwrap(), bytes(0, LARGE));
        drop(view);
        drop(other);
        buffer.clear().unwrap();
        assert!(is_full || allocated(pool) <= before + (40 << 10));
        assert_eq!(buffer.append(&[1]), Err(AppendError::Closed));
        drop(buffer);
        assert_sound(pool);
    }
}

pub fn views_keep_their_bytes() {
    let pool = pool();
    let buffer = pool.create(Buffer::new()).unwrap();
    let all: Vec<u8> = (0..100).flat_map(|number| bytes(number, 1000)).collect();
    for piece in all.chunks(1000) {
        buffer.append(piece).unwrap();
    }
    let view = buffer.view(500..99_500).unwrap();
    assert!(view.as_slice().is_none() && view.chunks().count() > 3);
    scope(|s| assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. }))));
    buffer.clear().unwrap();
    for number in 0..100 {
        buffer.append(&bytes(number + 50, 1000)).unwrap();
    }
    assert_eq!(view.to_vec(), &all[500..99_500]);
    let full = allocated(pool);
    drop(view);
    assert!(allocated(pool) < full - 90_000);
    assert_sound(pool);
}

/// A record: its length, its writer, its number, and bytes that follow from them.
fn record(writer: u64, number: u64) -> Vec<u8> {
    let len = match number % 50 {
        0 => 9000 + (number * 37 % 3000) as usize,
        n if n % 7 == 0 => 900,
        _ => (number * 13 % 90) as usize,
    };
    let mut record = Vec::with_capacity(24 + len);
    for word in [len as u64, writer, number] {
        record.extend(word.to_le_bytes());
    }
    record.extend(bytes(writer * 1000 + number, len));
    record
}

/// Reads a record that must be whole; its writer and number.
fn read_record(mut from: impl Read) -> Option<(u64, u64)> {
    let mut head = [0; 24];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
        outcome => outcome.unwrap(),
    }
    let word = |i: usize| u64::from_le_bytes(head[i * 8..][..8].try_into().unwrap());
    let (len, writer, number) = (word(0), word(1), word(2));
    let expected = record(writer, number);
    assert_eq!(len as usize + 24, expected.len());
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body).unwrap();
    assert!(body == expected[24..], "torn");
    Some((writer, number))
}

pub fn appended_by_many() {
    const WRITERS: u64 = 3;
    const RECORDS: u64 = 4000;
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let buffer = pool.create(Buffer::new()).unwrap();
    scope(|s| {
        for writer in 0..WRITERS {
            let buffer = &buffer;
            s.spawn(move || {
                for number in 0..RECORDS {
                    let record = record(writer, number);
                    let at = buffer.append(&record).unwrap();
                    let view = buffer.view(at..at + record.len() as u64).unwrap();
                    assert!(view.as_slice() == Some(&record[..]));
                }
            })
            .unwrap();
        }
        // A reader at the same time sees whole records, of each writer in order.
        let mut next = [0; WRITERS as usize];
        let mut reader = buffer.reader(0);
        for _ in 0..WRITERS * RECORDS {
            let (writer, number) = read_record(&mut reader).unwrap();
            assert_eq!(number, next[writer as usize]);
            next[writer as usize] += 1;
        }
        assert_eq!(reader.position(), buffer.end());
    });
    assert_sound(pool);
}

#[derive(ShmSafe)]
struct World {
    buffer: Buffer,
    /// How many records each writer knows to be appended.
    told: [AtomicU64; 2],
}

pub fn killed_writers_tear_nothing() {
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let world = pool
        .create(World {
            buffer: Buffer::new(),
            told: [const { AtomicU64::new(0) }; 2],
        })
        .unwrap();
    let mut next = [0_u64; 2];
    let mut seed = 88_172_645_463_325_252_u64;
    scope(|s| {
        for round in 0..60 {
            let children = [0, 1].map(|writer| {
                let world = &world;
                let from = next[writer as usize];
                s.spawn::<_, ()>(move || {
                    for number in from.. {
                        world.buffer.append(&record(writer, number)).unwrap();
                        world.told[writer as usize].store(number + 1, Ordering::SeqCst);
                        // Killed with a view open now and then.
                        if number % 64 == 0 && round % 2 == 1 {
                            let _ = world.buffer.view(world.buffer.start()..world.buffer.end());
                        }
                    }
                })
                .unwrap()
            });
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let goal = next.iter().sum::<u64>() + seed % 2000;
            let told = |i: usize| world.told[i].load(Ordering::SeqCst);
            while told(0) + told(1) < goal {
                std::thread::yield_now();
            }
            for child in children {
                kill(Pid::from_raw(child.id().pid() as i32), Signal::SIGKILL).unwrap();
                assert!(child.join().is_err());
            }
            // All that was told is there, once, in order, whole; at most one more a writer.
            let (start, end) = (world.buffer.start(), world.buffer.end());
            let view = world.buffer.view(start..end).unwrap().to_vec();
            let mut rest = &view[..];
            while let Some((writer, number)) = read_record(&mut rest) {
                assert_eq!(number, next[writer as usize]);
                next[writer as usize] += 1;
            }
            for (writer, &next) in next.iter().enumerate() {
                assert!((told(writer)..=told(writer) + 1).contains(&next));
                world.told[writer].store(next, Ordering::SeqCst);
            }
            world.buffer.clear().unwrap();
            assert_sound(pool);
        }
    });
    let before = allocated(pool);
    assert!(before < 100 << 10, "{before} bytes are left");
}

pub fn killed_deleters_lose_nothing() {
    let pool = Pool::builder().max_size(64 << 20).create().unwrap();
    let world = pool
        .create(World {
            buffer: Buffer::with_capacity(200_000),
            told: [const { AtomicU64::new(0) }; 2],
        })
        .unwrap();
    let told = |i: usize| world.told[i].load(Ordering::SeqCst);
    // A writer that lives; deleters that read a record, tell of it, and delete it.
    scope(|s| {
        let writer = s
            .spawn(|| {
                for number in 0.. {
                    let record = record(0, number);
                    while let Err(error) = world.buffer.append(&record) {
                        assert_eq!(error, AppendError::Full);
                        if world.told[1].load(Ordering::SeqCst) != 0 {
                            return;
                        }
                        std::thread::yield_now();
                    }
                }
            })
            .unwrap();
        for round in 1..=60 {
            let deleter = s
                .spawn::<_, ()>(|| {
                    let mut reader = world.buffer.reader(world.buffer.start());
                    loop {
                        let (_, number) = read_record(&mut reader).unwrap();
                        // Killed between telling and deleting: told twice.
                        let before = world.told[0].swap(number + 1, Ordering::SeqCst);
                        assert!(before == number || before == number + 1);
                        world.buffer.truncate_front(reader.position()).unwrap();
                    }
                })
                .unwrap();
            let goal = round * 300;
            while told(0) < goal {
                std::thread::yield_now();
            }
            kill(Pid::from_raw(deleter.id().pid() as i32), Signal::SIGKILL).unwrap();
            assert!(deleter.join().is_err());
        }
        world.told[1].store(1, Ordering::SeqCst);
        writer.join().unwrap();
    });
    assert_sound(pool);
    world.buffer.clear().unwrap();
    let left = allocated(pool);
    assert!(left < 100 << 10, "{left} bytes are left");
}

pub fn a_stopped_writer_blocks_nobody() {
    let buffer = one();
    scope(|s| {
        for _ in 0..30 {
            let writer = s
                .spawn::<_, ()>(|| {
                    loop {
                        buffer.append(&[7; 6000]).unwrap();
                        buffer.clear().unwrap();
                    }
                })
                .unwrap();
            let pid = Pid::from_raw(writer.id().pid() as i32);
            let from = buffer.end();
            while buffer.end() == from {
                std::thread::yield_now();
            }
            kill(pid, Signal::SIGSTOP).unwrap();
            // Wherever it was stopped.
            for number in 0..50 {
                let at = buffer.append(&bytes(number, 100)).unwrap();
                let view = buffer.view(at..at + 100).unwrap();
                assert!(view.to_vec() == bytes(number, 100));
            }
            kill(pid, Signal::SIGKILL).unwrap();
            assert!(writer.join().is_err());
        }
    });
    assert_sound(buffer.pool());
}

pub fn readers_and_writers_wait() {
    const LEN: usize = 300_000;
    let pipe = bounded(4096);
    scope(|s| {
        let sum = s
            .spawn(|| {
                let mut reader = pipe.reader(0);
                let (mut all, mut piece) = (Vec::<u8>::new(), [0; 1000]);
                loop {
                    let read = reader.read(&mut piece).unwrap();
                    if read == 0 {
                        return all == bytes(3, LEN);
                    }
                    all.extend(&piece[..read]);
                    // Makes room for the writer.
                    pipe.truncate_front(reader.position()).unwrap();
                }
            })
            .unwrap();
        (&mut &*pipe).write_all(&bytes(3, LEN)).unwrap();
        assert!(pipe.len() <= 4096);
        pipe.close().unwrap();
        assert!(sum.join().unwrap());
        let broken = (&mut &*pipe).write(b"more").unwrap_err();
        assert_eq!(broken.kind(), std::io::ErrorKind::BrokenPipe);
        // A reader that comes too late.
        let late = pipe.reader(0).read(&mut [0; 4]).unwrap_err();
        assert_eq!(late.kind(), std::io::ErrorKind::InvalidInput);
    });
    assert_sound(pipe.pool());
}

fn until_asleep(child: u32) {
    let asleep = || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().starts_with(" S")
    };
    until(asleep);
}

pub fn readers_and_writers_give_up() {
    let pipe = bounded(10);
    let give_up = |limit: Duration| {
        let (mut reader, mut writer) = (pipe.reader(pipe.end()), pipe.writer());
        let gives_up = |result: std::io::Result<usize>, began: Instant| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
            assert!(began.elapsed() >= limit);
        };
        reader.set_timeout(Some(limit));
        let began = Instant::now();
        gives_up(reader.read(&mut [0; 4]), began);
        writer.set_timeout(Some(limit));
        // What there is room for.
        assert_eq!(writer.write(&bytes(5, 14)).unwrap(), 10);
        let began = Instant::now();
        gives_up(writer.write(b"more"), began);
        pipe.clear().unwrap();
    };
    for limit in [0, 20].map(Duration::from_millis) {
        scope(|s| {
            let they = s.spawn(|| give_up(limit)).unwrap();
            until(|| they.is_finished());
            they.join().unwrap();
        });
    }
    let mut writer = pipe.writer();
    writer.set_timeout(Some(Duration::from_millis(20)));
    assert_eq!(
        (pipe.start(), pipe.end()),
        (20, 20),
        "nothing was lost, or doubled"
    );
    writer.write_all(&bytes(6, 10)).unwrap();
    scope(|s| {
        let reads = || {
            let mut reader = pipe.reader(30);
            reader.set_timeout(Some(Duration::MAX));
            reader.read(&mut [0; 8]).unwrap()
        };
        let reads = s.spawn(reads).unwrap();
        until_asleep(reads.id().pid());
        pipe.truncate_front(24).unwrap();
        assert_eq!(writer.write(b"better late").unwrap(), 4);
        assert_eq!(reads.join().unwrap(), 4);
    });
    assert_sound(pipe.pool());
}

/// Whole records by two writers and through a small buffer: nothing comes between the bytes of one.
pub fn records_stay_whole() {
    const RECORDS: u8 = 200;
    let pipe = bounded(100);
    scope(|s| {
        let writes = |number: u8| {
            let mut writer = pipe.writer();
            for record in 0..RECORDS {
                let len = 1 + usize::from(record) % 60;
                writer
                    .append(&[&[number, len as u8], &vec![record; len][..]].concat())
                    .unwrap();
            }
        };
        let writers = [0, 1].map(|number| s.spawn(move || writes(number)).unwrap());
        let mut reader = pipe.reader(0);
        let mut next = [0; 2];
        for _ in 0..2 * u64::from(RECORDS) {
            let mut head = [0; 2];
            reader.read_exact(&mut head).unwrap();
            let [number, len] = head.map(usize::from);
            let mut record = vec![0; len];
            reader.read_exact(&mut record).unwrap();
            assert!(
                record.iter().all(|&byte| byte == next[number]),
                "{number}: {record:?}"
            );
            next[number] += 1;
            pipe.truncate_front(reader.position()).unwrap();
        }
        assert_eq!(next, [RECORDS; 2]);
        for writer in writers {
            writer.join().unwrap();
        }
    });
    let mut writer = pipe.writer();
    assert_eq!(
        writer.append(&[0; 101]),
        Err(AppendError::TooLong { len: 101 })
    );
    writer.append(&[7; 100]).unwrap();
    writer.set_timeout(Some(Duration::ZERO));
    assert_eq!(writer.append(&[7]), Err(AppendError::TimedOut));
    assert_eq!(writer.append(&[]), Ok(pipe.end()));
    pipe.close().unwrap();
    assert_eq!(writer.append(&[7]), Err(AppendError::Closed));
    assert_sound(pipe.pool());
}

pub fn closing_wakes_all() {
    let pipe = bounded(10);
    pipe.append(&[1; 10]).unwrap();
    scope(|s| {
        let reads = s.spawn(|| pipe.reader(10).read(&mut [0; 4]).unwrap());
        let writes = s.spawn(|| (&mut &*pipe).write(&[1; 4]).is_err());
        let (reads, writes) = (reads.unwrap(), writes.unwrap());
        // Asleep, or not yet begun; if so, they find it closed.
        for child in [&reads.id(), &writes.id()] {
            until_asleep(child.pid());
        }
        pipe.close().unwrap();
        assert_eq!(reads.join().unwrap(), 0);
        assert!(writes.join().unwrap());
    });
}

/// No trait of the library has a `write` that comes before that of `io::Write`.
pub fn a_buffer_is_written_to_whatever_is_imported() {
    #[allow(unused_imports, reason = "the names are what is tested")]
    use shmkit::*;

    let buffer = one();
    (&*buffer).write_all(b"seven").unwrap();
    assert_eq!((&*buffer).write(b"eleven").unwrap(), 6);
    assert_eq!(buffer.view(0..11).unwrap().to_vec(), b"seveneleven");
}
