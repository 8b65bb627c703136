//! Workers that are killed at random instructions while they allocate and free.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::{Scope, ScopedJoinHandle, scope};
use shmkit::{Pool, Shared};

use super::common::{
    Random, TestPool, address, allocate, assert_sound, block_at, blocks, fill, free, killed,
    storm_time, verify,
};

const WORKERS: usize = 4;
const WORDS: usize = 256;

type Mailbox = [AtomicU64; WORDS + 1];

/// Exchanges blocks with the mailbox for ever.
fn work(pool: Pool, mailbox: &Mailbox, seed: u64) {
    let mut random = Random::new(seed);
    let (words, count) = (&mailbox[..WORDS], &mailbox[WORDS]);
    loop {
        exchange(pool, words, &mut random);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Puts a new block into one of the words, and frees what was there, which was mostly another worker's.
///
/// At any moment the caller alone knows of one block at most: the new one before the exchange, the old
/// one after it.
pub fn exchange(pool: Pool, words: &[AtomicU64], random: &mut Random) {
    let limit = match random.below(64) {
        0 => 200_000,
        1..8 => 20_000,
        _ => 500,
    };
    let size = 8 + random.below(limit);
    let block = allocate(pool, size);
    fill(block, size);
    let old = words[random.below(words.len())].swap(address(block), Ordering::AcqRel);
    if let Some(old) = block_at(old) {
        verify(old);
        free(pool, old);
    }
}

fn start<'s>(
    s: &'s Scope<'s, '_>,
    pool: Pool,
    mailbox: &'s Shared<Mailbox>,
    seed: u64,
) -> ScopedJoinHandle<'s, ()> {
    s.spawn(move || work(pool, mailbox, seed)).unwrap()
}

pub fn killed_at_random() {
    let pool = TestPool::new();
    let mailbox: Shared<Mailbox> = pool
        .create([const { AtomicU64::new(0) }; WORDS + 1])
        .unwrap();
    let fixed = blocks(*pool);
    let mut random = Random::new(0xdead);
    let mut seed = 1;
    let mut kills = 0;
    let end = Instant::now() + storm_time(Duration::from_secs(4));
    scope(|s| {
        let mut workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                seed += 1;
                start(s, *pool, &mailbox, seed)
            })
            .collect();
        while Instant::now() < end {
            // Killed after a random amount of work by all.
            let until = mailbox[WORDS].load(Ordering::Relaxed) + random.below(500) as u64;
            while mailbox[WORDS].load(Ordering::Relaxed) < until && Instant::now() < end {
                std::thread::yield_now();
            }
            let victim = workers.swap_remove(random.below(WORKERS));
            killed(victim);
            kills += 1;
            if kills % 8 == 0 {
                pool.recover();
                let report = pool.check();
                assert!(report.is_ok(), "{report}");
            }
            seed += 1;
            workers.push(start(s, *pool, &mailbox, seed));
        }
        kills += workers.len();
        workers.into_iter().for_each(killed);
    });
    pool.recover();
    assert_sound(*pool);
    let exchanges = mailbox[WORDS].load(Ordering::Relaxed);
    assert!(exchanges > 1000, "only {exchanges} exchanges");
    let mut published = 0;
    for word in &mailbox[..WORDS] {
        if let Some(block) = block_at(word.swap(0, Ordering::Acquire)) {
            verify(block);
            free(*pool, block);
            published += 1;
        }
    }
    let leaked = blocks(*pool) - fixed;
    println!("  {kills} kills, {exchanges} exchanges, {published} in the mailbox, {leaked} leaked");
    assert!(leaked <= kills, "{leaked} blocks leaked by {kills} deaths");
    assert_sound(*pool);
}
