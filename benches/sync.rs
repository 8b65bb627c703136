//! Locks that several want beside std's and parking_lot's, what is waited for beside std's barrier and POSIX's semaphore,
//! and a buffer of bytes beside memcpy.
//!
//! Each round measures every contender once, so that what else the machine does meets all; the
//! figures are medians over the rounds.

use std::cell::{Cell, UnsafeCell};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::scope;
use shmkit::{Barrier, Buffer, Event, Mutex, Pool, RwLock, Semaphore};

const ROUNDS: usize = 31;

type Contender<'a> = (&'a str, Box<dyn FnMut() -> f64 + 'a>);

/// Prints the median of each contender and its ratio to the first one.
fn compare(what: &str, unit: &str, contenders: &mut [Contender<'_>]) {
    let mut figures = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (figures, (_, run)) in figures.iter_mut().zip(contenders.iter_mut()) {
            figures.push(run());
        }
    }
    let mut first = None;
    for (figures, (name, _)) in figures.iter_mut().zip(contenders) {
        figures.sort_by(f64::total_cmp);
        let median = figures[ROUNDS / 2];
        let base = *first.get_or_insert(median);
        println!(
            "{what}/{name}: {median:.2} {unit}, ratio {:.2}",
            median / base
        );
    }
}

/// Nanoseconds of one of many.
fn nanos(one: impl FnMut()) -> f64 {
    nanos_of(200_000, one)
}

fn nanos_of(times: u32, mut one: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..times {
        one();
    }
    began.elapsed().as_nanos() as f64 / f64::from(times)
}

/// Nanoseconds of one of many that two threads do at once.
fn two(one: &(dyn Fn() + Sync)) -> f64 {
    std::thread::scope(|s| {
        let other = s.spawn(|| nanos(one));
        let here = nanos(one);
        f64::midpoint(here, other.join().unwrap())
    })
}

/// Some work: additions that wait for each other.
fn work(steps: u64) -> u64 {
    (0..steps).fold(0, |sum, step| black_box(sum + step))
}

/// Two threads that want a mutex, with so much work while they hold it, and half to one and a half times so much
/// in between.
fn mutexes_by_two(held: u64, between: u64) {
    thread_local! {
        static TURN: Cell<u64> = const { Cell::new(0) };
    }
    let pool = Pool::builder().create().unwrap();
    let ours = pool.create(Mutex::new(0_u64)).unwrap();
    let std = std::sync::Mutex::new(0_u64);
    let parking_lot = parking_lot::Mutex::new(0_u64);
    let pause = || {
        let turn = TURN.with(|turn| turn.replace(turn.get().wrapping_add(0x9e37_79b9_7f4a_7c15)));
        work(between / 2 + between * (turn >> 54) / 1024);
    };
    compare(
        &format!("mutex_by_two_{held}_{between}"),
        "ns",
        &mut [
            (
                "std",
                Box::new(|| {
                    two(&|| {
                        *std.lock().unwrap() += work(held);
                        pause();
                    })
                }),
            ),
            (
                "parking_lot",
                Box::new(|| {
                    two(&|| {
                        *parking_lot.lock() += work(held);
                        pause();
                    })
                }),
            ),
            (
                "shmkit",
                Box::new(|| {
                    two(&|| {
                        *ours.lock().unwrap() += work(held);
                        pause();
                    })
                }),
            ),
        ],
    );
}

fn rwlocks() {
    let pool = Pool::builder().create().unwrap();
    let ours = pool.create(RwLock::new(1_u64)).unwrap();
    let std = std::sync::RwLock::new(1_u64);
    let parking_lot = parking_lot::RwLock::new(1_u64);
    compare(
        "rwlock_read",
        "ns",
        &mut [
            (
                "std",
                Box::new(|| {
                    nanos(|| {
                        black_box(*std.read().unwrap());
                    })
                }),
            ),
            (
                "parking_lot",
                Box::new(|| {
                    nanos(|| {
                        black_box(*parking_lot.read());
                    })
                }),
            ),
            (
                "shmkit",
                Box::new(|| {
                    nanos(|| {
                        black_box(*ours.read().unwrap());
                    })
                }),
            ),
        ],
    );
    compare(
        "rwlock_write",
        "ns",
        &mut [
            ("std", Box::new(|| nanos(|| *std.write().unwrap() += 1))),
            (
                "parking_lot",
                Box::new(|| nanos(|| *parking_lot.write() += 1)),
            ),
            ("shmkit", Box::new(|| nanos(|| *ours.write().unwrap() += 1))),
        ],
    );
    compare(
        "rwlock_read_by_two",
        "ns",
        &mut [
            (
                "std",
                Box::new(|| {
                    two(&|| {
                        black_box(*std.read().unwrap());
                    })
                }),
            ),
            (
                "parking_lot",
                Box::new(|| {
                    two(&|| {
                        black_box(*parking_lot.read());
                    })
                }),
            ),
            (
                "shmkit",
                Box::new(|| {
                    two(&|| {
                        black_box(*ours.read().unwrap());
                    })
                }),
            ),
        ],
    );
}

/// A semaphore of POSIX, of one permit or none.
struct Posix(UnsafeCell<libc::sem_t>);

// SAFETY: a semaphore is for several threads, by the calls below alone.
unsafe impl Sync for Posix {}

impl Posix {
    fn new(permits: u32) -> Box<Self> {
        // SAFETY: bytes that `sem_init` makes a semaphore of, where they stay.
        let made = Box::new(Posix(UnsafeCell::new(unsafe { std::mem::zeroed() })));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::sem_init(made.0.get(), 1, permits) }, 0);
        made
    }

    fn wait(&self) {
        // SAFETY: made by `new`.
        while unsafe { libc::sem_wait(self.0.get()) } != 0 {}
    }

    fn post(&self) {
        // SAFETY: made by `new`.
        assert_eq!(unsafe { libc::sem_post(self.0.get()) }, 0);
    }
}

fn semaphores() {
    let pool = Pool::builder().create().unwrap();
    let posix = Posix::new(1);
    let ours = pool.create(Semaphore::new(1)).unwrap();
    let theirs = || {
        posix.wait();
        posix.post();
    };
    let permit = || drop(ours.acquire().unwrap());
    compare(
        "semaphore",
        "ns",
        &mut [
            ("posix", Box::new(|| nanos(theirs))),
            ("shmkit", Box::new(|| nanos(permit))),
        ],
    );
    compare(
        "semaphore_by_two",
        "ns",
        &mut [
            ("posix", Box::new(|| two(&theirs))),
            ("shmkit", Box::new(|| two(&permit))),
        ],
    );
}

/// Nanoseconds of a round of two threads that wait for each other.
fn meeting(one: &(dyn Fn() + Sync), other: &(dyn Fn() + Sync)) -> f64 {
    const TIMES: u32 = 2_000;
    std::thread::scope(|s| {
        s.spawn(|| nanos_of(TIMES, other));
        nanos_of(TIMES, one)
    })
}

fn meetings() {
    let pool = Pool::builder().create().unwrap();
    let std = std::sync::Barrier::new(2);
    let theirs = || {
        std.wait();
    };
    compare(
        "barrier_of_two",
        "ns",
        &mut [
            ("std", Box::new(|| meeting(&theirs, &theirs))),
            (
                "shmkit",
                Box::new(|| {
                    // A thread that has ended would be missed.
                    let ours = pool.create(Barrier::new(2)).unwrap();
                    let waits = || {
                        ours.wait().unwrap();
                    };
                    meeting(&waits, &waits)
                }),
            ),
        ],
    );
    let posix = [(); 2].map(|()| Posix::new(0));
    let permits = [(); 2].map(|()| pool.create(Semaphore::new(0)).unwrap());
    let events = [(); 2].map(|()| pool.create(Event::new()).unwrap());
    let take = |i: usize| permits[i].acquire().unwrap().forget();
    let add = |i: usize| permits[i].add_permits(1).unwrap();
    let comes = |i: usize| {
        events[i].wait().unwrap();
        events[i].clear();
    };
    compare(
        "there_and_back",
        "ns",
        &mut [
            (
                "posix",
                Box::new(|| {
                    let ping = || {
                        posix[0].post();
                        posix[1].wait();
                    };
                    let pong = || {
                        posix[0].wait();
                        posix[1].post();
                    };
                    meeting(&ping, &pong)
                }),
            ),
            (
                "shmkit, semaphores",
                Box::new(|| {
                    let ping = || {
                        add(0);
                        take(1);
                    };
                    let pong = || {
                        take(0);
                        add(1);
                    };
                    meeting(&ping, &pong)
                }),
            ),
            (
                "shmkit, events",
                Box::new(|| {
                    let ping = || {
                        events[0].set();
                        comes(1);
                    };
                    let pong = || {
                        comes(0);
                        events[1].set();
                    };
                    meeting(&ping, &pong)
                }),
            ),
        ],
    );
}

/// Gigabytes a second, of pieces of `len` bytes.
fn bandwidth(len: usize, mut one: impl FnMut()) -> f64 {
    let times = ((8 << 20) / len) as u32;
    let began = Instant::now();
    for _ in 0..times {
        one();
    }
    len as f64 * f64::from(times) / began.elapsed().as_nanos() as f64
}

/// Appending, reading and deleting pieces.
fn pieces(len: usize) {
    let pool = Pool::builder().create().unwrap();
    let buffer = pool.create(Buffer::new()).unwrap();
    let source = vec![7_u8; len];
    // As much memory as a buffer goes through, and a copy as of a reader.
    let (mut ring, mut at) = (vec![0_u8; (2 * len).max(64 << 10)], 0);
    let mut copy = vec![0_u8; len];
    compare(
        &format!("buffer_append_{len}"),
        "GB/s",
        &mut [
            (
                "memcpy",
                Box::new(|| {
                    bandwidth(len, || {
                        ring[at..at + len].copy_from_slice(black_box(&source));
                        at = (at + len) % (ring.len() - len + 1);
                    })
                }),
            ),
            (
                "shmkit",
                Box::new(|| {
                    bandwidth(len, || {
                        let at = buffer.append(black_box(&source)).unwrap();
                        buffer.truncate_front(at).unwrap();
                    })
                }),
            ),
            (
                "shmkit, and read_at",
                Box::new(|| {
                    bandwidth(len, || {
                        let at = buffer.append(black_box(&source)).unwrap();
                        assert_eq!(buffer.read_at(at, &mut copy).unwrap(), len);
                        buffer.truncate_front(at + len as u64).unwrap();
                    })
                }),
            ),
        ],
    );
}

/// Two processes that append, read and delete pieces of one buffer.
fn pieces_by_two(len: usize) {
    /// Few, so that a round is seldom interrupted.
    const TIMES: u64 = 1000;
    const ROUNDS: usize = 101;
    let pool = Pool::builder().create().unwrap();
    let buffer = pool.create(Buffer::new()).unwrap();
    let begin = pool.create(AtomicU64::new(0)).unwrap();
    let mut figures: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            begin.store(0, Ordering::SeqCst);
            let times: [Duration; 2] = scope(|s| {
                let workers = [0, 1].map(|_| {
                    s.spawn(|| {
                        let source = vec![7_u8; len];
                        let mut copy = vec![0_u8; len];
                        begin.fetch_add(1, Ordering::SeqCst);
                        while begin.load(Ordering::SeqCst) < 2 {}
                        let began = Instant::now();
                        for _ in 0..TIMES {
                            let at = buffer.append(&source).unwrap();
                            // Unless the other one has deleted it.
                            let _ = buffer.read_at(at, &mut copy);
                            buffer.truncate_front(at + len as u64).unwrap();
                        }
                        began.elapsed()
                    })
                    .unwrap()
                });
                workers.map(|worker| worker.join().unwrap())
            });
            let slower = times.iter().max().unwrap();
            (2 * TIMES * len as u64) as f64 / slower.as_nanos() as f64
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "buffer_by_two_{len}/shmkit: {:.2} GB/s",
        figures[ROUNDS / 2]
    );
}

fn main() {
    pieces_by_two(4 << 10);
    for (held, between) in [(0, 0), (0, 20), (0, 50), (20, 100), (100, 400), (200, 1000)] {
        mutexes_by_two(held, between);
    }
    rwlocks();
    semaphores();
    meetings();
    for len in [64, 4 << 10, 64 << 10, 1 << 20] {
        pieces(len);
    }
}
