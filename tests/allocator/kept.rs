//! Runs that are kept when they are freed: they can be taken again, and are free for everything else.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use shmkit::inspect::Use;
use shmkit::process::scope;
use shmkit::{AllocError, FreeError, Pool, testing};

use super::common::{TestPool, allocate, assert_sound, fill, free, layout, try_free, verify};

const SLICE: usize = 16 << 10;
/// What a thread keeps at the most.
const MOST: usize = 2 << 20;

fn kept(pool: Pool) -> usize {
    testing::slices(pool).matches('k').count()
}

/// Twice a second what is kept is released: what happens before that happens in one of a few attempts.
#[track_caller]
fn before_it_ages(mut happens: impl FnMut() -> bool) {
    assert!((0..10).any(|_| happens()));
}

/// A thread that has freed runs of that size, as many as it keeps, and lives on until the end of `then`.
fn with_a_keeper(pool: Pool, size: usize, then: impl FnOnce()) {
    let (has_freed, wait) = channel();
    let (end, ended) = channel::<()>();
    std::thread::scope(|s| {
        s.spawn(move || {
            before_it_ages(|| keep(pool, size));
            has_freed.send(()).unwrap();
            let _ = ended.recv();
        });
        wait.recv().unwrap();
        then();
        drop(end);
    });
}

/// Frees runs of that size, as many as a thread keeps. True if it keeps them.
fn keep(pool: Pool, size: usize) -> bool {
    let most = (MOST / size).min(8);
    let runs: Vec<_> = (0..most).map(|_| allocate(pool, size)).collect();
    runs.into_iter().for_each(|run| free(pool, run));
    kept(pool) == most
}

pub fn a_kept_run_is_taken_again() {
    let pool = TestPool::with(|b| b.initial_size(8 << 20));
    // All that may be kept, and what may not.
    for slices in [3, 4, 5, 64, 65, 127] {
        let size = slices * SLICE - 100;
        let longer = allocate(*pool, size + SLICE);
        fill(longer, size + SLICE);
        before_it_ages(|| {
            let [below, run] = [(); 2].map(|()| allocate(*pool, size));
            free(*pool, below);
            free(*pool, run);
            // The one that was freed last, though another one lies lower; and each once.
            let again = [(); 2].map(|()| allocate(*pool, size));
            let sizes = again.map(|block| pool.usable_size(block));
            assert_eq!(sizes, [Ok(slices * SLICE); 2]);
            assert_ne!(again[0], again[1]);
            again.iter().for_each(|&block| fill(block, size));
            again.iter().for_each(|&block| verify(block));
            again.iter().for_each(|&block| free(*pool, block));
            again[0] == run && (again[1] == below || 2 * slices * SLICE > MOST)
        });
        verify(longer);
        free(*pool, longer);
        assert_sound(*pool);
    }
    // Where it lies may be asked for: then it is none that lies elsewhere.
    let aligned = pool.allocate(layout(3 * SLICE, 1 << 20)).unwrap().cast();
    assert!(aligned.addr().get().is_multiple_of(1 << 20));
    free(*pool, aligned);
    assert_eq!(pool.stats().allocated, 0);
}

pub fn what_is_kept_is_bounded() {
    let pool = TestPool::with(|b| b.initial_size(32 << 20));
    for (size, most) in [
        (3 * SLICE, 8),
        (1 << 20, 2),
        (2 << 20, 0),
        (MOST - SLICE, 1),
    ] {
        before_it_ages(|| {
            pool.purge().unwrap();
            assert_eq!(kept(*pool), 0);
            let runs: Vec<_> = (0..12).map(|_| allocate(*pool, size)).collect();
            runs.into_iter().for_each(|run| free(*pool, run));
            assert!(kept(*pool) <= most, "{size}");
            kept(*pool) == most
        });
        let stats = pool.stats();
        assert_eq!((stats.allocated, stats.free), (0, stats.total));
        assert_sound(*pool);
    }
}

pub fn what_is_not_needed_is_released() {
    let pool = TestPool::with(|b| b.initial_size(8 << 20));
    before_it_ages(|| {
        pool.purge().unwrap();
        let seen = keep(*pool, 3 * SLICE);
        // Others are needed now, twice.
        let left = [(); 3].map(|()| {
            let other = allocate(*pool, 40 * SLICE);
            (other, kept(*pool))
        });
        left.iter().for_each(|&(other, _)| free(*pool, other));
        seen && left.map(|(_, left)| left) == [8, 0, 0]
    });
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn kept_runs_count_as_free() {
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(4 << 20));
    let parts = || shmkit::inspect::map(*pool).parts;
    with_a_keeper(*pool, 1 << 20, || {
        let stats = pool.stats();
        assert_eq!((stats.allocated, stats.runs.allocated), (0, 0));
        assert_eq!(stats.largest_contiguous, stats.total);
        assert_eq!(pool.check().runs, 0);
        let slices: usize = parts().iter().map(|part| part.slices).sum();
        assert_eq!(slices * SLICE, stats.total);
        let is_free = |usage: &Use| matches!(usage, Use::Free { .. });
        assert!(parts().iter().all(|part| is_free(&part.usage)));
        let leaks = shmkit::inspect::leaks(*pool);
        assert!(leaks.blocks.is_empty(), "{leaks:?}");
    });
}

pub fn kept_runs_are_no_blocks() {
    let pool = TestPool::new();
    for size in [3 * SLICE, 5 * SLICE, 1 << 20] {
        let mut run = NonNull::dangling();
        before_it_ages(|| {
            run = allocate(*pool, size);
            free(*pool, run);
            kept(*pool) == 1
        });
        for offset in [0, 16, SLICE, SLICE + 16, size - SLICE, size - 1] {
            // SAFETY: within what was a block.
            let address = unsafe { run.add(offset) };
            assert_eq!(
                try_free(*pool, address),
                Err(FreeError::NotAllocated),
                "{offset}"
            );
            assert_eq!(pool.usable_size(address), Err(FreeError::NotAllocated));
        }
        assert_eq!(kept(*pool), 1);
        pool.purge().unwrap();
    }
}

/// The largest block and the smallest, as if nothing were kept.
fn all_sizes_fill(pool: Pool) {
    let max = pool.stats().maximum;
    let whole = allocate(pool, max);
    assert_eq!(pool.allocate(layout(SLICE, 8)), Err(AllocError::PoolFull));
    free(pool, whole);
    for size in [16, 3000, 40_000, 3 * SLICE, 100_000] {
        let mut taken: Vec<NonNull<u8>> = Vec::new();
        while let Ok(block) = pool.allocate(layout(size, 8)) {
            taken.push(block.cast());
        }
        let least = max - max / 8 - 8 * size;
        assert!(taken.len() * size >= least, "{size}: {}", taken.len());
        taken.into_iter().for_each(|block| free(pool, block));
        assert_eq!(pool.stats().allocated, 0);
        assert_sound(pool);
    }
}

pub fn kept_by_another_thread_in_a_full_pool() {
    for size in [3 * SLICE, 256 << 10, 1 << 20] {
        let pool = TestPool::with(|b| b.initial_size(MOST).max_size(MOST));
        with_a_keeper(*pool, size, || all_sizes_fill(*pool));
    }
}

pub fn kept_by_the_dead_in_a_full_pool() {
    for size in [3 * SLICE, 256 << 10, 1 << 20] {
        let pool = TestPool::with(|b| b.initial_size(MOST).max_size(MOST));
        before_it_ages(|| {
            let dies = || {
                keep(*pool, size);
                std::process::abort();
            };
            scope(|s| s.spawn::<_, ()>(dies).unwrap().join().unwrap_err());
            kept(*pool) == (MOST / size).min(8)
        });
        all_sizes_fill(*pool);
    }
}

pub fn a_pool_does_not_grow_for_what_is_kept() {
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(64 << 20));
    with_a_keeper(*pool, 256 << 10, || {
        let block = allocate(*pool, 3 << 20);
        assert_eq!(pool.stats().total, 4 << 20);
        free(*pool, block);
    });
}

pub fn a_run_grows_into_a_kept_one() {
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(4 << 20));
    let run = allocate(*pool, 100_000);
    fill(run, 100_000);
    before_it_ages(|| {
        let behind = allocate(*pool, 100_000);
        free(*pool, behind);
        assert!(behind > run);
        kept(*pool) == 1
    });
    // SAFETY: nobody else uses the block.
    let grown = unsafe { pool.reallocate(run, layout(150_000, 8)) }.unwrap();
    assert_eq!((grown.cast(), kept(*pool)), (run, 0));
    verify(run);
    free(*pool, run);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn memory_of_what_is_kept_goes_back() {
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(4 << 20));
    let committed = || pool.stats().committed;
    with_a_keeper(*pool, 256 << 10, || {
        let before = committed();
        assert!(pool.purge().unwrap() >= MOST);
        assert!(committed() + MOST <= before);
        assert_eq!(kept(*pool), 0);
    });
    with_a_keeper(*pool, 256 << 10, || {
        let before = committed();
        // Dirty and aged, a hole.
        testing::age(*pool);
        testing::age(*pool);
        assert!(committed() + MOST <= before);
    });
}

/// The slot's next thread has the notes of the one before, of which some are of what others have by now.
pub fn notes_of_the_one_before() {
    let pool = TestPool::with(|b| b.initial_size(8 << 20).max_size(8 << 20));
    let shared = *pool;
    // This thread has a slot of its own.
    free(shared, allocate(shared, 16));
    let address = |run: NonNull<u8>| run.addr().get() as u64;
    let freed = AtomicU64::new(0);
    let alone = |f: &(dyn Fn() + Sync)| std::thread::scope(|s| s.spawn(f).join().unwrap());
    before_it_ages(|| {
        alone(&|| {
            let runs = [(); 3].map(|()| allocate(shared, 5 * SLICE));
            freed.store(address(runs[2]), Ordering::Relaxed);
            runs.into_iter().for_each(|run| free(shared, run));
        });
        alone(&|| {
            let run = allocate(shared, 5 * SLICE);
            freed.fetch_xor(address(run), Ordering::Relaxed);
            free(shared, run);
        });
        freed.load(Ordering::Relaxed) == 0
    });
    // All is released, and somebody's, partly as runs of that size.
    let mut taken = vec![allocate(*pool, 6 << 20)];
    while let Ok(block) = pool.allocate(layout(5 * SLICE, 8)) {
        taken.push(block.cast());
    }
    taken.iter().for_each(|&block| fill(block, 5 * SLICE));
    alone(&|| {
        let refused = shared.allocate(layout(5 * SLICE, 8));
        assert_eq!(refused, Err(AllocError::PoolFull));
    });
    for block in taken {
        verify(block);
        free(*pool, block);
    }
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

/// Threads that take and free runs of a few sizes, while others release what they keep.
pub fn kept_and_released_at_once() {
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(8 << 20));
    let shared = *pool;
    std::thread::scope(|s| {
        for thread in 0..4_usize {
            s.spawn(move || {
                for round in 0..3000_usize {
                    let size = [3, 5, 30, 65][(round / 7 + thread) % 4] * SLICE;
                    let Ok(block) = shared.allocate(layout(size, 8)) else {
                        continue;
                    };
                    fill(block.cast(), 64);
                    match round % 50 {
                        0 => _ = shared.purge().unwrap(),
                        25 => testing::age(shared),
                        _ => {}
                    }
                    verify(block.cast());
                    free(shared, block.cast());
                }
            });
        }
    });
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
    let whole = allocate(*pool, 8 << 20);
    free(*pool, whole);
}

/// One thread takes and frees a run; another wants more than is free beside it, so that it releases what the first
/// keeps all the time, and has it itself for a moment if that is free.
pub fn taken_and_released_at_once() {
    let pool = TestPool::with(|b| b.initial_size(8 * SLICE).max_size(8 * SLICE));
    let shared = *pool;
    let loops = move |slices: usize| {
        let mut had = 0;
        for round in 0_u64.. {
            let Ok(block) = shared.allocate(layout(slices * SLICE, 8)) else {
                continue;
            };
            let block = block.cast::<u64>();
            // SAFETY: a block of this thread's, which is longer than that.
            unsafe {
                block.write_volatile(round << 4 | slices as u64);
                assert_eq!(block.read_volatile(), round << 4 | slices as u64);
            }
            free(shared, block.cast());
            had += 1;
            if had == 20_000 || round > 2_000_000 {
                break;
            }
        }
    };
    std::thread::scope(|s| {
        s.spawn(move || loops(5));
        s.spawn(move || loops(6));
    });
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}
