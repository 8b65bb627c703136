//! Pools that are full: an error that says so, and all of it back when the blocks are freed.

use std::ptr::NonNull;

use shmkit::{AllocError, Pool};

use super::common::{Random, TestPool, assert_sound, fill, free, layout, verify};
use super::sizes::class_sizes;

const MAX: usize = 2 << 20;

/// Allocates until the pool is full.
fn fill_up(pool: Pool, mut size: impl FnMut() -> usize) -> Vec<NonNull<u8>> {
    let mut taken = Vec::new();
    loop {
        let size = size();
        match pool.allocate(layout(size, 8)) {
            Ok(block) => {
                let block = block.cast();
                if size >= 8 {
                    fill(block, size);
                }
                taken.push(block);
            }
            Err(error) => {
                assert_eq!(error, AllocError::PoolFull);
                return taken;
            }
        }
    }
}

#[track_caller]
fn empty(pool: Pool, taken: Vec<NonNull<u8>>) {
    for block in taken {
        verify(block);
        free(pool, block);
    }
    assert_all_free(pool);
}

#[track_caller]
fn assert_all_free(pool: Pool) {
    let stats = pool.stats();
    assert_eq!((stats.allocated, stats.free), (0, stats.total));
    assert_sound(pool);
}

pub fn every_class_fills_the_pool() {
    let pool = TestPool::with(|b| b.max_size(MAX));
    for size in class_sizes() {
        let taken = fill_up(*pool, || size);
        let stats = pool.stats();
        assert_eq!(stats.total, MAX);
        // Refused only when what is left is less than a small span of the class needs, and what
        // spans cannot use at their ends.
        let used = taken.len() * size;
        assert!(used >= MAX - MAX / 8 - 8 * size, "{size}: {used} of {MAX}");
        assert_eq!(pool.allocate(layout(size, 8)), Err(AllocError::PoolFull));
        assert_sound(*pool);
        // A free block is usable again, while the pool is full.
        let mut taken = taken;
        let last = taken.swap_remove(taken.len() / 2);
        free(*pool, last);
        let again = pool.allocate(layout(size, 8)).unwrap().cast();
        fill(again, size);
        taken.push(again);
        assert_eq!(pool.allocate(layout(size, 8)), Err(AllocError::PoolFull));
        empty(*pool, taken);
    }
}

pub fn large_blocks_fill_the_pool() {
    let pool = TestPool::with(|b| b.max_size(MAX));
    for size in [40_000, 1 << 16, 100_000, 1 << 20, MAX] {
        let taken = fill_up(*pool, || size);
        assert_eq!(taken.len(), MAX / size.next_multiple_of(16 << 10), "{size}");
        empty(*pool, taken);
    }
}

pub fn mixed_sizes_fill_the_pool() {
    let pool = TestPool::with(|b| b.max_size(8 << 20));
    let mut random = Random::new(7);
    for _ in 0..20 {
        let taken = fill_up(*pool, || {
            let magnitude = 4 + random.below(16);
            8 + random.below(1 << magnitude)
        });
        // Back in another order.
        let mut taken = taken;
        for i in (1..taken.len()).rev() {
            taken.swap(i, random.below(i + 1));
        }
        empty(*pool, taken);
    }
}

pub fn memory_comes_back_to_other_classes() {
    let pool = TestPool::with(|b| b.max_size(MAX));
    let classes = class_sizes();
    let counts: Vec<_> = classes
        .iter()
        .map(|&size| {
            let taken = fill_up(*pool, || size);
            let count = taken.len();
            empty(*pool, taken);
            count
        })
        .collect();
    // Backwards: what the other classes have had is not lost to them.
    for (&size, &count) in classes.iter().zip(&counts).rev() {
        let taken = fill_up(*pool, || size);
        let least = count - count / 8 - 8;
        assert!(
            taken.len() >= least.min(count),
            "{size}: {} of {count}",
            taken.len()
        );
        empty(*pool, taken);
    }
    let whole = pool.allocate(layout(MAX - (1 << 20), 8)).unwrap().cast();
    free(*pool, whole);
    assert_all_free(*pool);
}
