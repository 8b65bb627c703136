//! One pool, many processes: blocks freed by processes other than those that allocated them; participants
//! that come and go.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::process::scope;
use shmkit::{Pool, testing};

use super::common::{
    Random, TestPool, address, allocate, assert_sound, block_at, blocks, fill, filled_by_the_dead,
    free, killed, layout, verify,
};
use super::sizes::class_sizes;

/// Hands a block over through a word that must be empty, waiting until it is.
fn put(word: &AtomicU64, block: u64) {
    while word
        .compare_exchange(0, block, Ordering::AcqRel, Ordering::Relaxed)
        .is_err()
    {
        std::thread::yield_now();
    }
}

fn take(word: &AtomicU64) -> u64 {
    loop {
        let block = word.swap(0, Ordering::AcqRel);
        if block != 0 {
            return block;
        }
        std::thread::yield_now();
    }
}

pub fn producer_and_consumer() {
    const COUNT: usize = 200_000;
    const WORDS: usize = 64;
    let pool = TestPool::new();
    let words = pool.create([const { AtomicU64::new(0) }; WORDS]).unwrap();
    let fixed = pool.stats().allocated;
    let words_ref = &words;
    scope(|s| {
        let pool = *pool;
        let producer = s.spawn(move || {
            let mut random = Random::new(1);
            for i in 0..COUNT {
                let size = 8 + random.below(if i % 100 == 0 { 100_000 } else { 600 });
                let block = allocate(pool, size);
                fill(block, size);
                put(&words_ref[i % WORDS], address(block));
            }
        });
        let consumer = s.spawn(move || {
            for i in 0..COUNT {
                let block = block_at(take(&words_ref[i % WORDS])).unwrap();
                verify(block);
                free(pool, block);
            }
        });
        producer.unwrap().join().unwrap();
        consumer.unwrap().join().unwrap();
    });
    let stats = pool.stats();
    assert_eq!(stats.allocated, fixed);
    // What is in flight is a few blocks: the pool has not grown with the count.
    assert!(stats.total <= 64 << 20, "{stats:?}");
    assert_sound(*pool);
    drop(words);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn freed_by_many_at_once() {
    const BLOCKS: usize = 20_000;
    let pool = TestPool::new();
    let size = |i: usize| 8 + i * 37 % 2000;
    for round in 0..3 {
        let taken: Vec<_> = (0..BLOCKS)
            .map(|i| address(allocate(*pool, size(i))))
            .collect();
        for (i, &block) in taken.iter().enumerate() {
            fill(block_at(block).unwrap(), size(i));
        }
        scope(|s| {
            let (pool, taken) = (*pool, &taken);
            for part in 0..4 {
                let child = s.spawn(move || {
                    // Neighbours' bits, in the same words, at the same time.
                    for &block in taken.iter().skip(part).step_by(4) {
                        let block = block_at(block).unwrap();
                        verify(block);
                        free(pool, block);
                    }
                });
                child.unwrap();
            }
        });
        assert_eq!(pool.stats().allocated, 0, "round {round}");
        assert_sound(*pool);
    }
    assert!(pool.stats().total <= 160 << 20, "{:?}", pool.stats());
}

pub fn threads_come_and_go() {
    let pool = TestPool::new();
    let shared = *pool;
    // How much the pool needs is not to depend on how many of them happen to run at once.
    let all = Barrier::new(4);
    let meet = || {
        all.wait();
    };
    let mut total = 0;
    for generation in 0..200 {
        let kept: Vec<u64> = std::thread::scope(|s| {
            let workers: Vec<_> = (0..4)
                .map(|seed| s.spawn(move || work(shared, generation * 4 + seed, meet)))
                .collect();
            let kept = workers.into_iter().map(|w| w.join().unwrap());
            kept.collect()
        });
        // The last of each is freed here, when its owner is gone.
        for block in kept {
            verify(block_at(block).unwrap());
            free(shared, block_at(block).unwrap());
        }
        if generation == 20 {
            total = pool.stats().total;
        }
    }
    let stats = pool.stats();
    assert_eq!((stats.allocated, stats.threads), (0, 1));
    assert!(stats.total <= total * 2, "{total} to {stats:?}");
    assert_sound(*pool);
}

/// Allocates blocks of all sizes, calls `meet`, and frees them; leaves one behind.
fn work(pool: shmkit::Pool, seed: u64, meet: impl FnOnce()) -> u64 {
    let mut random = Random::new(seed + 1);
    let taken: Vec<_> = (0..300)
        .map(|_| {
            let magnitude = random.below(12);
            let size = 8 + random.below(16 << magnitude);
            let block = allocate(pool, size);
            fill(block, size);
            block
        })
        .collect();
    meet();
    let (last, rest) = taken.split_last().unwrap();
    for &block in rest {
        verify(block);
        free(pool, block);
    }
    address(*last)
}

pub fn processes_come_and_go() {
    const GENERATIONS: u64 = 200;
    let pool = TestPool::new();
    let mut total = 0;
    for generation in 0..GENERATIONS {
        scope(|s| {
            let pool = *pool;
            let children =
                [0, 1].map(|seed| s.spawn(move || work(pool, generation * 2 + seed, || ())));
            for child in children {
                let block = child.unwrap().join().unwrap();
                verify(block_at(block).unwrap());
                free(pool, block_at(block).unwrap());
            }
        });
        if generation == 20 {
            total = pool.stats().total;
        }
    }
    let stats = pool.stats();
    assert_eq!(stats.allocated, 0);
    assert!(stats.total <= total * 2, "{total} to {stats:?}");
    assert_sound(*pool);
}

pub fn spans_of_the_dead_are_used() {
    const MAX: usize = 4 << 20;
    // Generations of workers that fill half of the pool and are killed: only if what they had is
    // found again does the next one get its half.
    let pool = TestPool::with(|b| b.max_size(MAX));
    let table = pool.create([const { AtomicU64::new(0) }; 1024]).unwrap();
    let fixed = blocks(*pool);
    for generation in 0..20_u64 {
        let table_ref = &table;
        scope(|s| {
            let pool = *pool;
            let child = s.spawn(move || {
                for word in &table_ref[..512] {
                    let block = allocate(pool, 4000);
                    fill(block, 4000);
                    word.store(address(block), Ordering::Release);
                }
                for word in &table_ref[512..600] {
                    let block = pool.allocate(layout(100, 8)).unwrap().cast();
                    fill(block, 100);
                    word.store(address(block), Ordering::Release);
                }
                std::process::abort()
            });
            let joined: Result<(), _> = child.unwrap().join();
            joined.unwrap_err();
        });
        assert_eq!(blocks(*pool), fixed + 600, "generation {generation}");
        assert_sound(*pool);
        for word in &table[..600] {
            let block = block_at(word.swap(0, Ordering::Acquire)).unwrap();
            verify(block);
            free(*pool, block);
        }
    }
    drop(table);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

/// Blocks that their owner left behind, freed by two others who allocate nothing: neither keeps the
/// spans, which are nobody's until they are empty.
pub fn what_is_left_behind_goes_back() {
    const BLOCKS: usize = 2000;
    let pool = TestPool::new();
    let sizes = [16, 100, 1000, 5000];
    let left = |pool: Pool| -> Vec<u64> {
        let allocating = move || {
            (0..BLOCKS)
                .map(|i| address(allocate(pool, sizes[i % sizes.len()])))
                .collect()
        };
        std::thread::spawn(allocating).join().unwrap()
    };
    for round in 0..3 {
        let blocks = left(*pool);
        let (mine, others): (Vec<_>, Vec<_>) = { blocks.iter().enumerate() }
            .partition(|(i, _)| (i / sizes.len()).is_multiple_of(2) != (round == 1));
        let free_all = |blocks: &[(usize, &u64)]| {
            for &(_, &block) in blocks {
                free(*pool, block_at(block).unwrap());
            }
        };
        free_all(&mine);
        std::thread::scope(|s| {
            let other = s.spawn(|| free_all(&others));
            other.join().unwrap();
        });
        let stats = pool.stats();
        assert_eq!(stats.allocated, 0);
        assert!(stats.classes.is_empty(), "round {round}: {stats:?}");
        assert_sound(*pool);
    }
}

/// A worker is killed whose spans have no block in use: it has freed them itself, or somebody else has
/// and it has not looked. All that it had goes back, and is enough for a block as large as the pool.
pub fn empty_spans_of_the_dead_go_back() {
    const MAX: usize = 4 << 20;
    const BLOCKS: usize = 120;
    let (stage, pool) = (TestPool::new(), TestPool::with(|b| b.max_size(MAX)));
    let words = stage.create([const { AtomicU64::new(0) }; BLOCKS]).unwrap();
    for frees_itself in [true, false] {
        scope(|s| {
            let (pool, words) = (*pool, &words);
            let child = s.spawn(move || {
                let sizes = class_sizes().into_iter().cycle().take(BLOCKS);
                let blocks: Vec<_> = sizes.map(|size| allocate(pool, size)).collect();
                for (&block, word) in blocks.iter().zip(&**words) {
                    if frees_itself {
                        free(pool, block);
                    }
                    put(word, address(block));
                }
                loop {
                    std::thread::yield_now();
                }
            });
            for word in &**words {
                let block = block_at(take(word)).unwrap();
                if !frees_itself {
                    free(pool, block);
                }
            }
            let before = pool.stats();
            assert_eq!((before.allocated, before.classes.len()), (0, 40));
            killed(child.unwrap());
        });
        pool.recover();
        let stats = pool.stats();
        assert!(stats.classes.is_empty(), "{stats:?}");
        assert_eq!((stats.allocated, stats.free), (0, stats.total));
        assert_sound(*pool);
        free(*pool, allocate(*pool, MAX));
    }
}

/// A pool is full of blocks of the dead, of which every second one was freed. Who looks for room recovers
/// the dead, and finds the room that they had within the same call.
pub fn half_free_spans_of_the_dead_are_found_in_a_full_pool() {
    const SIZE: usize = 1024;
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(4 << 20));
    filled_by_the_dead(
        *pool,
        SIZE,
        |number| number % 2 == 0,
        || {
            let ours: Vec<_> = (0..100).map(|_| allocate(*pool, SIZE)).collect();
            ours.into_iter().for_each(|block| free(*pool, block));
        },
    );
    assert_sound(*pool);
}

/// The dead are settled: nobody waits for them any more, and nobody has seen to their memory. Who needs it
/// has it before he is told that the pool is full, or that there is no memory.
pub fn memory_of_the_settled_comes_before_an_error() {
    for max in [4 << 20, 64 << 20] {
        let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(max));
        filled_by_the_dead(
            *pool,
            1024,
            |_| true,
            || {
                testing::settle(*pool);
                let stats = pool.stats();
                assert!(stats.allocated == 0 && stats.largest_contiguous < 1 << 20);
                testing::refuse_commits(Some(0));
                free(*pool, allocate(*pool, 3 << 20));
                testing::refuse_commits(None);
            },
        );
        assert_sound(*pool);
    }
}
