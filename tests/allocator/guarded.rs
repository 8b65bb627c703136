//! Guarded pools: writes past a block's end or after its free are found, and nothing else is
//! reported.

use std::ptr::NonNull;

use shmkit::process::scope;
use shmkit::{FreeError, Pool};

use super::common::{
    Random, TestPool, allocate, assert_sound, blocks, fill, free, layout, try_free, verify,
};

const SIZES: [usize; 8] = [1, 16, 40, 200, 1000, 9000, 32 << 10, 100_000];

fn guarded() -> TestPool {
    TestPool::with(|builder| builder.max_size(16 << 20).guard(true))
}

/// Writes where the program must not, in memory that is the pool's.
fn write(block: NonNull<u8>, offset: usize, byte: u8) -> u8 {
    // SAFETY: the pool is mapped there, and nobody else uses it; that it is the guard's is the point.
    unsafe {
        let place = block.add(offset);
        let before = place.read();
        place.write(byte);
        before
    }
}

#[track_caller]
fn problems(pool: Pool, containing: &str) -> usize {
    let report = pool.check_quiescent();
    let is_it = |problem: &&String| problem.contains(containing);
    assert_eq!(
        report.problems.iter().filter(is_it).count(),
        report.problems.len(),
        "{report}"
    );
    report.problems.len()
}

pub fn written_past_the_end() {
    let pool = guarded();
    for size in SIZES {
        for beyond in [0, 1, 7, 8, 16, 23] {
            let block = pool.allocate(layout(size, 1)).unwrap().cast();
            assert_eq!(pool.usable_size(block), Ok(size));
            let before = write(block, size + beyond, 0x11);
            if before == 0x11 {
                continue;
            }
            assert_eq!(problems(*pool, "beyond its end"), 1, "{size} {beyond}");
            assert_eq!(
                try_free(*pool, block),
                Err(FreeError::Overrun),
                "{size} {beyond}"
            );
            assert_eq!(blocks(*pool), 1, "it stays");
            write(block, size + beyond, before);
            assert_sound(*pool);
            free(*pool, block);
        }
    }
    assert_eq!(pool.stats().allocated, 0);
}

pub fn written_past_the_end_by_others() {
    let pool = guarded();
    let block = allocate(*pool, 100);
    let address = block.as_ptr().expose_provenance();
    scope(|s| {
        let child = s.spawn(|| {
            let block = NonNull::new(std::ptr::with_exposed_provenance_mut(address)).unwrap();
            write(block, 100, 0);
            assert_eq!(try_free(*pool, block), Err(FreeError::Overrun));
        });
        child.unwrap().join().unwrap();
    });
    assert_eq!(try_free(*pool, block), Err(FreeError::Overrun));
    write(block, 100, 0xa5);
    free(*pool, block);
    assert_sound(*pool);
}

pub fn written_after_the_free() {
    for size in SIZES.into_iter().filter(|&size| size <= 9000) {
        for by_another in [false, true] {
            let pool = guarded();
            // One that keeps the span.
            let (kept, block) = (allocate(*pool, size.max(8)), allocate(*pool, size.max(8)));
            if by_another {
                let (shared, address) = (*pool, block.as_ptr().expose_provenance());
                let there = std::thread::spawn(move || {
                    let address = std::ptr::with_exposed_provenance_mut(address);
                    free(shared, NonNull::new(address).unwrap());
                });
                there.join().unwrap();
            } else {
                free(*pool, block);
            }
            assert_sound(*pool);
            write(block, size / 2, 0x22);
            assert_eq!(problems(*pool, "the free block"), 1);
            // It is never handed out again, and goes on being reported.
            let others: Vec<_> = (0..3000)
                .map(|_| pool.allocate(layout(size.max(8), 8)))
                .collect();
            let others = others.into_iter().flatten().map(NonNull::cast::<u8>);
            for other in others.collect::<Vec<_>>() {
                assert_ne!(other, block);
                free(*pool, other);
            }
            assert_eq!(problems(*pool, "after it was freed"), 1);
            assert_eq!(try_free(*pool, block), Err(FreeError::NotAllocated));
            free(*pool, kept);
        }
    }
}

pub fn nothing_is_found_where_nothing_is_wrong() {
    let pool = guarded();
    let mut random = Random::new(5);
    let mut live: Vec<(NonNull<u8>, usize)> = Vec::new();
    for _ in 0..20_000 {
        if random.below(100) < 52 && live.len() < 400 {
            let magnitude = 3 + random.below(12);
            let size = 8 + random.below(1 << magnitude);
            let align = 1 << random.below(8);
            let block = pool.allocate(layout(size, align)).unwrap().cast::<u8>();
            assert!(block.addr().get().is_multiple_of(align));
            fill(block, size);
            live.push((block, size));
        } else if !live.is_empty() {
            let i = random.below(live.len());
            let (block, size) = live.swap_remove(i);
            verify(block);
            if random.below(4) == 0 {
                let new = 8 + random.below(2 * size);
                // SAFETY: nobody else uses the block.
                let moved = unsafe { pool.reallocate(block, layout(new, 8)) }
                    .unwrap()
                    .cast();
                fill(moved, new);
                live.push((moved, new));
            } else {
                free(*pool, block);
            }
        }
    }
    assert_sound(*pool);
    // Containers in it, and processes that come and go.
    let map = pool.create(shmkit::HashMap::<str, u64>::new()).unwrap();
    scope(|s| {
        for worker in 0..3 {
            let map = &map;
            s.spawn(move || {
                for n in 0..500_u64 {
                    map.insert(&format!("{worker} {n}"), n).unwrap();
                    map.remove(&format!("{worker} {}", n / 2));
                }
            })
            .unwrap();
        }
    });
    assert_sound(*pool);
    drop(map);
    for (block, _) in live {
        verify(block);
        free(*pool, block);
    }
    pool.recover();
    assert_sound(*pool);
}
