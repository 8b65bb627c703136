//! Thousands of deaths: groups of workers, each the threads of one process, get SIGKILL after a
//! random time, at whatever instructions they are executing, while another group goes on.
//!
//! Workers allocate and free blocks, and make and link objects. Each death may leave at most one
//! raw block that only the dead worker knew of; everything that objects had is free or linked
//! again. That is counted to the byte whenever all are dead.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shmkit::process::{Scope, ScopedJoinHandle, scope};
use shmkit::{Link, Pool, Shared, ShmSafe, inspect};

use super::common::{Random, TestPool, assert_sound, block_at, died, free, verify};
use super::storm::exchange;

/// Workers of a process, threads of it.
const GROUP: u64 = 4;
/// Processes at work at once.
const GROUPS: usize = 2;
/// Kills of processes from one count to the next.
const ROUND: usize = 200;
const WORDS: usize = 128;

#[derive(ShmSafe)]
struct Small {
    value: u64,
    other: Link<Small>,
}

#[derive(ShmSafe)]
struct Large {
    values: [u64; 400],
}

#[derive(ShmSafe)]
struct Stage {
    blocks: [AtomicU64; WORDS],
    small: [Link<Small>; 32],
    large: [Link<Large>; 8],
    done: AtomicU64,
    /// Workers that were refused something, or found a block that is not as they left it.
    failed: AtomicU64,
}

fn stage() -> Stage {
    Stage {
        blocks: [const { AtomicU64::new(0) }; WORDS],
        small: [const { Link::null() }; 32],
        large: [const { Link::null() }; 8],
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    }
}

/// Counts a worker that panics, which would be killed in time all the same.
struct Watch<'a>(&'a Stage);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Works for ever.
fn work(pool: Pool, stage: &Stage, seed: u64) {
    let _watch = Watch(stage);
    let mut random = Random::new(seed);
    loop {
        match random.below(16) {
            0 => stage.small[random.below(32)].set(None).unwrap(),
            1..4 => {
                let other = Link::null();
                let value = random.next();
                let small = pool.create(Small { value, other }).unwrap();
                if let Some(other) = stage.small[random.below(32)].get() {
                    small.other.set(Some(&other)).unwrap();
                    // No chain, or they would only ever grow.
                    other.other.set(None).unwrap();
                }
                stage.small[random.below(32)].set(Some(&small)).unwrap();
            }
            4 => {
                let values = [random.next(); 400];
                let large = pool.create(Large { values }).unwrap();
                stage.large[random.below(8)].set(Some(&large)).unwrap();
            }
            _ => exchange(pool, &stage.blocks, &mut random),
        }
        stage.done.fetch_add(1, Ordering::Relaxed);
    }
}

fn start<'s>(
    s: &'s Scope<'s, '_>,
    pool: Pool,
    stage: &'s Shared<Stage>,
    seed: u64,
) -> ScopedJoinHandle<'s, ()> {
    let group = move || {
        std::thread::scope(|threads| {
            for worker in 0..GROUP {
                threads.spawn(move || work(pool, stage, seed * GROUP + worker));
            }
            // Who sleeps takes the processor from whoever has it when it wakes.
            let microseconds = 50 + Random::new(seed).below(600) as u64;
            std::thread::sleep(Duration::from_micros(microseconds));
            // SAFETY: ends this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        });
    };
    s.spawn(group).unwrap()
}

/// Nobody is at work: everything is where it belongs, but for the blocks that the dead had in hand.
fn count_all(pool: Pool, deaths: u64) -> usize {
    pool.recover();
    assert_sound(pool);
    let leaks = inspect::leaks(pool);
    assert_eq!(leaks.objects, 0, "objects that nobody can reach");
    let in_hand = leaks.blocks.len();
    assert!(
        in_hand as u64 <= deaths,
        "{in_hand} blocks lost by {deaths} deaths"
    );
    for (address, _) in leaks.blocks {
        free(pool, block_at(address as u64).unwrap());
    }
    assert_sound(pool);
    in_hand
}

pub fn killed_by_the_thousand() {
    let wanted = env::var("SHMKIT_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok());
    let wanted: u64 = wanted.unwrap_or(20_000);
    let pool = TestPool::with(|b| b.max_size(256 << 20));
    let stage: Shared<Stage> = pool.create(stage()).unwrap();
    let fixed = pool.stats().allocated;
    let (mut seed, mut in_hand, mut processes) = (0, 0, 0);
    while pool.stats().recoveries < wanted {
        let before = pool.stats().recoveries;
        scope(|s| {
            let mut start = || {
                seed += 1;
                processes += 1;
                start(s, *pool, &stage, seed)
            };
            let mut groups: Vec<_> = (0..GROUPS).map(|_| start()).collect();
            for kill in 0..ROUND {
                died(groups.remove(0));
                if kill % 16 == 0 {
                    pool.recover();
                    let report = pool.check();
                    assert!(report.is_ok(), "{report}");
                }
                groups.push(start());
            }
            groups.into_iter().for_each(died);
        });
        pool.recover();
        in_hand += count_all(*pool, pool.stats().recoveries - before);
        let failed = stage.failed.load(Ordering::Relaxed);
        assert_eq!(failed, 0, "workers that panicked");
        // Nobody is left who has spans of free blocks at hand but this thread.
        let spans: usize = pool.stats().classes.iter().map(|c| c.spans).sum();
        let used = pool
            .stats()
            .classes
            .iter()
            .map(|c| c.allocated)
            .sum::<usize>();
        assert!(spans <= used + 64, "{spans} spans for {used} blocks");
    }
    let deaths = pool.stats().recoveries;
    for word in &stage.blocks {
        if let Some(block) = block_at(word.swap(0, Ordering::Acquire)) {
            verify(block);
            free(*pool, block);
        }
    }
    stage.small.iter().for_each(|link| link.set(None).unwrap());
    stage.large.iter().for_each(|link| link.set(None).unwrap());
    assert_eq!(count_all(*pool, 0), 0);
    assert_eq!(pool.stats().allocated, fixed, "bytes are left");
    let done = stage.done.load(Ordering::Relaxed);
    println!(
        "  {deaths} threads died of SIGKILL in {processes} processes, {done} operations, {in_hand} blocks in the hands of the dead, all else accounted for"
    );
}
