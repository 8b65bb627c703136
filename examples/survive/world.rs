//! The state that the workers share, what each does to it, and what must be true in the end.
//!
//! - A ledger under a mutex: each worker adds 1 to its own line and to the total. It acknowledges that
//!   outside of the lock, in a cell of its own. If a worker died while it held the lock, the next holder
//!   corrects the total. In the end the total is the sum of the lines, and each line is what its worker
//!   has acknowledged, or one more if the worker died between the two.
//! - Links to objects that carry a checksum: workers replace their own and look at those of others. In the
//!   end all objects are gone.
//! - A semaphore: permits are taken and given back, also for the dead. In the end all of them are
//!   available.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::sync::{LockError, Mutex, MutexGuard, Semaphore};
use shmkit::{KillSafe, Link, Pool, Shared, ShmSafe};

use crate::stalls::Stalls;

/// The maximum number of workers at once.
pub const MAX_WORKERS: usize = 64;
const LINKS: usize = 16;
const PERMITS: u32 = 3;

/// What the workers share.
#[derive(ShmSafe)]
pub struct World {
    ledger: Mutex<Ledger>,
    acknowledged: [AtomicU64; MAX_WORKERS],
    messages: [Link<Message>; LINKS],
    permits: Semaphore,
    inside: AtomicU64,
    stop: AtomicBool,
    operations: AtomicU64,
    /// When each worker began its round, in nanoseconds.
    since: [AtomicU64; MAX_WORKERS],
    /// Nanoseconds.
    longest: AtomicU64,
    /// Nanoseconds: the longest time for which a worker was held up by others, not counting the
    /// scheduler's choices.
    longest_held_up: AtomicU64,
    torn: AtomicU64,
}

#[derive(Clone, Copy, ShmSafe, KillSafe)]
struct Ledger {
    total: u64,
    lines: [u64; MAX_WORKERS],
}

#[derive(ShmSafe)]
struct Message {
    words: [u64; 8],
    checksum: u64,
}

impl Message {
    fn new(seed: u64) -> Self {
        let words = std::array::from_fn(|i| seed.wrapping_mul(i as u64 + 1));
        Message {
            words,
            checksum: words.iter().fold(seed, |sum, w| sum.rotate_left(7) ^ w),
        }
    }

    fn is_whole(&self) -> bool {
        let seed = self.words[0];
        self.words
            .iter()
            .fold(seed, |sum, w| sum.rotate_left(7) ^ w)
            == self.checksum
    }
}

impl World {
    pub const fn new() -> Self {
        World {
            ledger: Mutex::new(Ledger {
                total: 0,
                lines: [0; MAX_WORKERS],
            }),
            acknowledged: [const { AtomicU64::new(0) }; MAX_WORKERS],
            messages: [const { Link::null() }; LINKS],
            permits: Semaphore::new(PERMITS),
            inside: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            operations: AtomicU64::new(0),
            since: [const { AtomicU64::new(0) }; MAX_WORKERS],
            longest: AtomicU64::new(0),
            longest_held_up: AtomicU64::new(0),
            torn: AtomicU64::new(0),
        }
    }

    /// One worker's life: until it is told to stop, or killed.
    /// Times count from `epoch`.
    pub fn work(self: &World, index: usize, epoch: Instant) {
        let pool = pool_of(self);
        // The worker's predecessor may have died between its entry and its acknowledgement.
        let line = self.ledger().lines[index];
        self.acknowledged[index].store(line, Ordering::Relaxed);
        let mut round = line;
        let mut stalls = Stalls::new();
        while !self.stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let since = (started - epoch).as_nanos() as u64;
            self.since[index].store(since, Ordering::Relaxed);
            self.enter(index);
            self.exchange(pool, round as usize % LINKS, round);
            self.pass();
            round += 1;
            let (took, held_up) = stalls.round(started);
            raise(&self.longest, took);
            raise(&self.longest_held_up, held_up);
            self.operations.fetch_add(3, Ordering::Relaxed);
        }
    }

    /// Adds 1 to a line and to the total, and acknowledges it.
    fn enter(&self, index: usize) {
        let mut ledger = self.ledger();
        ledger.lines[index] += 1;
        ledger.total += 1;
        let line = ledger.lines[index];
        drop(ledger);
        self.acknowledged[index].store(line, Ordering::Relaxed);
    }

    /// The ledger, put right if its last holder died.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        match self.ledger.lock() {
            Ok(guard) => guard,
            Err(LockError::OwnerDied(orphan)) => {
                let mut guard = orphan.into_guard();
                guard.total = guard.lines.iter().sum();
                guard
            }
            Err(error) => panic!("the ledger's lock: {error}"),
        }
    }

    /// Replaces a message and looks at the next one.
    fn exchange(&self, pool: Pool, index: usize, seed: u64) {
        let message: Shared<Message> = match pool.create(Message::new(seed)) {
            Ok(message) => message,
            Err(refused) => panic!("no room for a message: {refused}"),
        };
        self.messages[index]
            .set(Some(&message))
            .expect("a link in the pool");
        if let Some(other) = self.messages[(index + 1) % LINKS].view()
            && !other.is_whole()
        {
            self.torn.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Passes the semaphore, which lets only some workers in at once.
    fn pass(&self) {
        let permit = self.permits.acquire().expect("a permit");
        self.inside.fetch_add(1, Ordering::Relaxed);
        drop(permit);
    }

    /// The worker, which was started at the given time, is about to be killed: the round that it is in
    /// counts as a stall.
    pub fn note_victim(&self, index: usize, born: Duration, now: Duration) {
        let since = Duration::from_nanos(self.since[index].load(Ordering::Relaxed));
        // Otherwise it has not begun a round: the time is its predecessor's.
        if since > born {
            raise(&self.longest, now.saturating_sub(since));
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    pub fn longest_stall(&self) -> Duration {
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }

    pub fn longest_held_up(&self) -> Duration {
        Duration::from_nanos(self.longest_held_up.load(Ordering::Relaxed))
    }

    /// Clears what is left and reports what is wrong. No worker runs any more.
    pub fn settle(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let ledger = *self.ledger();
        let sum: u64 = ledger.lines.iter().sum();
        if ledger.total != sum {
            problems.push(format!(
                "the total is {}, the lines sum to {sum}",
                ledger.total
            ));
        }
        for (index, (line, cell)) in ledger.lines.iter().zip(&self.acknowledged).enumerate() {
            let acknowledged = cell.load(Ordering::Relaxed);
            if *line != acknowledged && *line != acknowledged + 1 {
                problems.push(format!(
                    "worker {index} did {line}, of which {acknowledged} are acknowledged"
                ));
            }
        }
        let torn = self.torn.load(Ordering::Relaxed);
        if torn != 0 {
            problems.push(format!("{torn} messages were torn"));
        }
        let permits = self.permits.available_permits();
        if permits != PERMITS {
            problems.push(format!("{permits} permits of {PERMITS} are left"));
        }
        for link in &self.messages {
            if let Err(error) = link.set(None) {
                problems.push(format!("a link was not cleared: {error}"));
            }
        }
        problems
    }
}

/// Raises it to the given duration, if it is less.
fn raise(nanoseconds: &AtomicU64, to: Duration) {
    let to = to.as_nanos() as u64;
    if nanoseconds.load(Ordering::Relaxed) < to {
        nanoseconds.fetch_max(to, Ordering::Relaxed);
    }
}

fn pool_of(world: &World) -> Pool {
    Pool::containing(std::ptr::from_ref(world).addr()).expect("the world is in a pool")
}
