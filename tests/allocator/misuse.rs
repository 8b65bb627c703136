//! Misuse gives an error, and changes nothing.

use std::ptr::NonNull;

use shmkit::process::scope;
use shmkit::{FreeError, Pool, ReallocError};

use super::common::{
    TestPool, allocate, assert_sound, blocks, fill, free, layout, try_free, verify,
};

/// Sizes that take different ways: small, with a big span, the largest of a span, runs.
const SIZES: [usize; 6] = [16, 200, 9000, 32 << 10, 100_000, 3 << 20];

/// Asserts that freeing, measuring and moving are all refused so, and that nothing changes.
#[track_caller]
fn refused(pool: Pool, block: NonNull<u8>, error: FreeError) {
    // Whoever asks takes part in the pool from then on.
    let data = || {
        let stats = pool.stats();
        (stats.total, stats.allocated, stats.runs, stats.classes)
    };
    let before = data();
    assert_eq!(try_free(pool, block), Err(error), "free");
    assert_eq!(pool.usable_size(block), Err(error), "usable size");
    // SAFETY: no block, which is refused by contract.
    let moved = unsafe { pool.reallocate(block, layout(64, 8)) };
    match moved {
        Err(ReallocError::NotABlock(refused)) => assert_eq!(refused, error, "move"),
        other => panic!("{other:?}"),
    }
    assert_eq!(data(), before);
    assert_sound(pool);
}

pub fn freed_twice() {
    let pool = TestPool::new();
    for size in SIZES {
        let (kept, block) = (allocate(*pool, size), allocate(*pool, size));
        fill(kept, size);
        free(*pool, block);
        refused(*pool, block, FreeError::NotAllocated);
        // SAFETY: nobody else uses the block.
        let moved = unsafe { pool.reallocate(kept, layout(size * 3, 8)) }.unwrap();
        // A run grows where it lies.
        if moved.cast() != kept {
            refused(*pool, kept, FreeError::NotAllocated);
        }
        free(*pool, moved.cast());
        refused(*pool, moved.cast(), FreeError::NotAllocated);
    }
    assert_eq!(pool.stats().allocated, 0);
}

pub fn freed_twice_by_another_process() {
    let pool = TestPool::new();
    for size in SIZES {
        let kept = allocate(*pool, size);
        fill(kept, size);
        let block = allocate(*pool, size).expose();
        scope(|s| {
            // Freed there, then there again, then here.
            let child = s.spawn(|| {
                free(*pool, at(block));
                refused(*pool, at(block), FreeError::NotAllocated);
            });
            child.unwrap().join().unwrap();
        });
        refused(*pool, at(block), FreeError::NotAllocated);
        let block = allocate(*pool, size).expose();
        free(*pool, at(block));
        scope(|s| {
            let child = s.spawn(|| refused(*pool, at(block), FreeError::NotAllocated));
            child.unwrap().join().unwrap();
        });
        verify(kept);
        free(*pool, kept);
    }
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

trait Expose {
    fn expose(self) -> usize;
}

impl Expose for NonNull<u8> {
    fn expose(self) -> usize {
        self.as_ptr().expose_provenance()
    }
}

fn at(address: usize) -> NonNull<u8> {
    NonNull::new(std::ptr::with_exposed_provenance_mut(address)).unwrap()
}

pub fn freed_twice_by_another_thread() {
    let pool = TestPool::new();
    let shared = *pool;
    for size in SIZES {
        let kept = allocate(*pool, size);
        let block = allocate(*pool, size).expose();
        let there = std::thread::spawn(move || {
            free(shared, at(block));
            try_free(shared, at(block))
        });
        assert_eq!(there.join().unwrap(), Err(FreeError::NotAllocated));
        refused(*pool, at(block), FreeError::NotAllocated);
        free(*pool, kept);
    }
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn freed_in_a_span_that_went_back() {
    let pool = TestPool::new();
    let shared = *pool;
    let first: Vec<_> = (0..8).map(|_| allocate(*pool, 2048)).collect();
    let kept = allocate(*pool, 2048);
    let old: Vec<_> = first.iter().map(|&block| block.expose()).collect();
    // The span goes back with its last block, and is another thread's now, of smaller blocks.
    first.into_iter().for_each(|block| free(*pool, block));
    let theirs = std::thread::spawn(move || {
        let small: Vec<_> = (0..64).map(|_| allocate(shared, 16).expose()).collect();
        assert!(small.contains(&old[0]), "the slice is used again");
        (small, old)
    });
    let (small, old) = theirs.join().unwrap();
    for &block in &old[1..] {
        refused(*pool, at(block), FreeError::NotAllocated);
    }
    small.into_iter().for_each(|block| free(*pool, at(block)));
    free(*pool, kept);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn not_the_start_of_a_block() {
    let pool = TestPool::new();
    for size in SIZES {
        let block = allocate(*pool, size);
        fill(block, size);
        for offset in [1, 7, 8, size / 2, size - 1] {
            // SAFETY: within the block.
            let inside = unsafe { block.add(offset) };
            refused(*pool, inside, FreeError::Interior);
        }
        verify(block);
        free(*pool, block);
    }
    // The room that is left at the end of a span whose slices are no multiple of its blocks.
    let block = allocate(*pool, 20 << 10);
    let behind = at((block.addr().get() + (20 << 10)) | 0x3fff);
    assert!(try_free(*pool, behind).is_err());
    free(*pool, block);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn not_of_this_pool() {
    let (pool, other) = (TestPool::new(), TestPool::new());
    let theirs = allocate(*other, 100);
    fill(theirs, 100);
    refused(*pool, theirs, FreeError::Foreign);
    verify(theirs);
    assert_eq!(blocks(*other), 1);
    let mut local = Box::new(7_u64);
    refused(*pool, NonNull::from(&mut *local).cast(), FreeError::Foreign);
    refused(*pool, NonNull::dangling(), FreeError::Foreign);
    for outside in [
        at(pool.base()),
        at(pool.base() + (1 << 20)),
        at(pool.base() + (1 << 40) - 8),
        at(pool.base() - 8),
        at(usize::MAX & !7),
    ] {
        refused(*pool, outside, FreeError::Foreign);
    }
    // Beyond what the pool has grown to.
    let beyond = at(pool.base() + (40 << 30) + pool.stats().total);
    refused(*pool, beyond, FreeError::Foreign);
    free(*other, theirs);
}

pub fn never_allocated() {
    let pool = TestPool::new();
    let data = pool.base() + (40 << 30);
    refused(*pool, at(data), FreeError::NotAllocated);
    refused(*pool, at(data + 12345), FreeError::NotAllocated);
    let first = allocate(*pool, 64);
    let next = at(first.addr().get() + 64);
    refused(*pool, next, FreeError::NotAllocated);
    free(*pool, first);
}
