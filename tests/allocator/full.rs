//! Full pools: allocation fails with an error that says so, and all memory is available again when the blocks
//! are freed.

use std::ptr::NonNull;

use shmkit::{AllocError, Pool, testing};

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

/// A thread's last span of each class stays with it as long as there is room elsewhere.
pub fn empty_spans_are_used_in_a_full_pool() {
    for (guard, most) in [(false, MAX), (true, MAX - (16 << 10))] {
        let pool = TestPool::with(|b| b.max_size(MAX).guard(guard));
        for size in class_sizes() {
            let block = pool.allocate(layout(size, 8)).unwrap().cast();
            free(*pool, block);
        }
        let spans = || -> usize { pool.stats().classes.iter().map(|class| class.spans).sum() };
        let kept = spans();
        assert!(kept > 20, "{kept}");
        // They stay if they are of no use.
        assert_eq!(pool.allocate(layout(MAX + 1, 8)), Err(AllocError::PoolFull));
        assert_eq!(spans(), kept);
        let all = pool.allocate(layout(most, 8)).unwrap().cast();
        assert_eq!(spans(), 0);
        free(*pool, all);
        assert_all_free(*pool);
    }
}

/// What a thread knows of its spans by their addresses is not believed of what takes their place.
pub fn given_back_spans_are_not_known() {
    let pool = TestPool::with(|b| b.max_size(MAX));
    for (size, other) in [(48, 64), (64, 48), (1024, 96), (96, 1024)] {
        let two: Vec<_> = (0..2)
            .map(|_| pool.allocate(layout(size, 8)).unwrap().cast())
            .collect();
        two.into_iter().for_each(|block| free(*pool, block));
        let mut taken = fill_up(*pool, || other);
        // The last block of a slice may start where one of the first size did.
        taken.reverse();
        // The span of the first size went back, and its slices are in use.
        let spans = pool.stats().classes;
        assert!(
            spans
                .iter()
                .all(|class| class.block_size != size || class.spans == 0)
        );
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

pub fn a_block_shrinks_in_a_full_pool() {
    let pool = TestPool::with(|b| b.max_size(MAX));
    let block = pool.allocate(layout(100_000, 8)).unwrap().cast();
    fill(block, 6000);
    let mut taken = fill_up(*pool, || 30_000);
    taken.extend(fill_up(*pool, || 8000));
    taken.extend(fill_up(*pool, || 6000));
    assert_eq!(pool.allocate(layout(6000, 8)), Err(AllocError::PoolFull));
    // SAFETY: nobody else uses the block.
    let moved = unsafe { pool.reallocate(block, layout(6000, 8)) }.unwrap();
    assert_eq!((moved.cast(), moved.len()), (block, 6000), "it stays");
    // SAFETY: as above.
    let refused = unsafe { pool.reallocate(block, layout(120_000, 8)) };
    refused.unwrap_err();
    taken.push(block);
    empty(*pool, taken);
}

pub fn the_largest_free_block_is_told() {
    let pool = TestPool::with(|b| b.max_size(MAX));
    let mut taken = fill_up(*pool, || 1 << 14);
    assert_eq!(pool.stats().largest_contiguous, 0);
    let last = taken.swap_remove(taken.len() / 2);
    free(*pool, last);
    assert_eq!(pool.stats().largest_contiguous, 1 << 14);
    empty(*pool, taken);
}

/// Slices that were to be taken, some of them without memory, are as they were when they get none: free, found
/// again, and without the memory that some of them had got by then.
pub fn slices_that_get_no_memory_are_as_before() {
    const SLICES: usize = 256;
    let pool = TestPool::with(|b| b.initial_size(SLICES << 14).max_size((4 * SLICES) << 14));
    // Memory that is no slice's.
    let beside = || {
        let memory = rustix::fs::fstat(pool.fd()).unwrap().st_blocks as usize * 512;
        memory - pool.stats().committed
    };
    let run = |slices: usize| pool.allocate(layout(slices << 14, 8)).map(|run| run.cast());
    // Slices without memory, used ones of a run that is too long to be kept, and again such without memory.
    let runs = [20, 130, 20].map(|slices| run(slices).unwrap());
    let rest = run(SLICES - 170).unwrap();
    free(*pool, runs[0]);
    free(*pool, runs[2]);
    pool.purge().unwrap();
    free(*pool, runs[1]);
    let before = beside();

    testing::refuse_commits(Some(1));
    let refused = run(170);
    testing::refuse_commits(None);
    assert!(refused.is_err());
    assert_eq!(beside(), before);
    let again = run(170).unwrap();
    assert_eq!((again, pool.stats().total), (runs[0], SLICES << 14));
    free(*pool, again);
    free(*pool, rest);
    assert_all_free(*pool);
}
