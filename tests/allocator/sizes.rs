//! Sizes, alignments, statistics, and memory given back.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use shmkit::{AllocError, ReallocError, testing};

use super::common::{
    Random, TestPool, address, allocate, assert_sound, blocks, fill, free, layout, verify,
};

const SLICE: usize = 16 << 10;

/// Sizes at which the class of a block changes, from the documented rule: steps of 16 to 128,
/// four steps a doubling to 32 KiB.
pub fn class_sizes() -> Vec<usize> {
    let small = (1..=8).map(|i| i * 16);
    let large = (0..8).flat_map(|d| (1..=4).map(move |step| (128 << d) + step * (32 << d)));
    small.chain(large).collect()
}

pub fn sizes_around_class_borders() {
    let pool = TestPool::new();
    let mut taken = BTreeMap::new();
    let classes = class_sizes();
    assert_eq!(classes.len(), 40);
    for (i, &border) in classes.iter().enumerate() {
        let next = classes.get(i + 1).copied().unwrap_or(3 * SLICE);
        for (size, usable) in [(border - 1, border), (border, border), (border + 1, next)] {
            let block = allocate(*pool, size);
            assert_eq!(pool.usable_size(block), Ok(usable), "for {size}");
            fill(block, usable);
            taken.insert(block, usable);
        }
    }
    let ends = taken.iter().map(|(block, size)| block.addr().get() + size);
    for (end, next) in ends.zip(taken.keys().skip(1)) {
        assert!(end <= next.addr().get(), "blocks overlap");
    }
    assert_sound(*pool);
    for block in taken.into_keys() {
        verify(block);
        free(*pool, block);
    }
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn alignments() {
    let pool = TestPool::new();
    let mut taken = Vec::new();
    for shift in 0..=20 {
        let align = 1usize << shift;
        for size in [
            0,
            1,
            align / 2,
            align - 1,
            align,
            align + 1,
            3 * align,
            5000,
        ] {
            let block = pool.allocate(layout(size, align)).unwrap();
            assert_eq!(block.len(), size);
            let block = block.cast::<u8>();
            let usable = pool.usable_size(block).unwrap();
            assert!(
                block.addr().get().is_multiple_of(align),
                "{size} at {align}"
            );
            assert!(usable >= size);
            fill(block, usable);
            taken.push(block);
        }
    }
    assert_sound(*pool);
    for block in taken {
        verify(block);
        free(*pool, block);
    }
    assert_eq!(pool.stats().allocated, 0);
}

pub fn large_blocks() {
    let pool = TestPool::new();
    const MIB: usize = 1 << 20;
    for size in [
        32 * 1024 + 1,
        SLICE * 3,
        MIB - 1,
        2 * MIB,
        7 * MIB + 5,
        96 * MIB,
    ] {
        let block = allocate(*pool, size);
        assert_eq!(pool.usable_size(block), Ok(size.next_multiple_of(SLICE)));
        if size >= 2 * MIB {
            assert!(block.addr().get().is_multiple_of(2 * MIB), "{size}");
        }
        // SAFETY: the first and last byte of our block.
        unsafe {
            block.write(1);
            block.add(size - 1).write(2);
        }
        let other = allocate(*pool, size);
        let (low, high) = (block.min(other), block.max(other));
        assert!(high.addr().get() - low.addr().get() >= size);
        free(*pool, block);
        free(*pool, other);
        assert_sound(*pool);
    }
    assert_eq!(pool.stats().allocated, 0);
    let huge = pool.allocate(layout(100, 1 << 30)).unwrap().cast::<u8>();
    assert!(huge.addr().get().is_multiple_of(1 << 30));
    free(*pool, huge);
}

pub fn no_pool_can_hold_it() {
    let pool = TestPool::with(|b| b.max_size(8 << 20));
    let before = pool.stats();
    let refused = |size, align| pool.allocate(layout(size, align)).unwrap_err();
    assert_eq!(refused(985 << 30, 8), AllocError::TooLarge);
    assert_eq!(refused(isize::MAX as usize - 4096, 1), AllocError::TooLarge);
    assert_eq!(refused(1, 2 << 30), AllocError::TooLarge);
    assert_eq!(refused(984 << 30, 8), AllocError::PoolFull);
    assert_eq!(refused((8 << 20) + 1, 8), AllocError::PoolFull);
    assert_eq!(refused(9 << 20, 8), AllocError::PoolFull);
    let after = pool.stats();
    assert_eq!((after.allocated, after.free), (0, after.total));
    assert!(after.total >= before.total && after.total <= 8 << 20);
    let whole = allocate(*pool, 8 << 20);
    free(*pool, whole);
    assert_sound(*pool);
}

pub fn reallocation() {
    let pool = TestPool::new();
    let mut block = allocate(*pool, 8);
    fill(block, 8);
    let mut size = 8;
    let sizes = [
        100,
        90,
        33,
        5000,
        40_000,
        48 << 10,
        1 << 20,
        3 << 20,
        200_000,
        64,
        16,
    ];
    for new in sizes {
        // SAFETY: our block of `size` bytes, written before.
        let before = unsafe { std::slice::from_raw_parts(block.as_ptr(), size.min(new)) }.to_vec();
        // SAFETY: nobody else uses the block.
        let moved = unsafe { pool.reallocate(block, layout(new, 16)) }.unwrap();
        assert_eq!(moved.len(), new);
        // SAFETY: the new block has at least these bytes.
        let after = unsafe { std::slice::from_raw_parts(moved.cast().as_ptr(), before.len()) };
        assert_eq!(before, after, "{size} to {new}");
        block = moved.cast();
        size = new;
        fill(block, size);
        assert_eq!(blocks(*pool), 1);
    }
    // SAFETY: as above.
    let aligned = unsafe { pool.reallocate(block, layout(16, 1 << 16)) }.unwrap();
    assert!(aligned.cast::<u8>().addr().get().is_multiple_of(1 << 16));
    free(*pool, aligned.cast());
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

pub fn runs_grow_where_they_lie() {
    let pool = TestPool::with(|b| b.max_size(64 << 20));
    let mut size = 100_000;
    let block = allocate(*pool, size);
    fill(block, size);
    // Also beyond what the pool has.
    while size < 20 << 20 {
        verify(block);
        size = size * 3 / 2;
        // SAFETY: nobody else uses the block.
        let grown = unsafe { pool.reallocate(block, layout(size, 8)) }.unwrap();
        assert_eq!((grown.cast(), grown.len()), (block, size));
        assert!(pool.usable_size(block).unwrap() >= size);
        assert_sound(*pool);
        fill(block, size);
    }
    // Not into what is somebody's.
    let behind = allocate(*pool, 100_000);
    fill(behind, 100_000);
    assert!(behind > block);
    // SAFETY: nobody else uses the block.
    let moved = unsafe { pool.reallocate(block, layout(size + (1 << 20), 8)) }
        .unwrap()
        .cast();
    assert_ne!(moved, block);
    verify(moved);
    verify(behind);
    free(*pool, moved);
    free(*pool, behind);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

/// All that is free behind it and all that the pool can grow by is not enough, though the pool can grow.
pub fn no_run_grows_beyond_the_pool() {
    let (size, max) = (3 << 20, 6 << 20);
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(max));
    let block = allocate(*pool, size);
    fill(block, size);
    // SAFETY: nobody else uses the block.
    let refused = unsafe { pool.reallocate(block, layout(max + 20 * SLICE, 8)) };
    let full = ReallocError::Alloc(AllocError::PoolFull);
    assert_eq!((refused, pool.usable_size(block)), (Err(full), Ok(size)));
    verify(block);
    assert_sound(*pool);
}

pub fn statistics_add_up() {
    let pool = TestPool::with(|b| b.initial_size(4 << 20).max_size(64 << 20));
    let fresh = pool.stats();
    assert_eq!((fresh.total, fresh.maximum), (4 << 20, 64 << 20));
    assert_eq!((fresh.allocated, fresh.free), (0, 4 << 20));
    assert_eq!(fresh.largest_contiguous, 4 << 20);
    assert_eq!(fresh.committed, 4 << 20);
    let small: Vec<_> = (0..100).map(|_| allocate(*pool, 64)).collect();
    let run = allocate(*pool, 100_000);
    let stats = pool.stats();
    assert_eq!(stats.allocated, 6400 + 7 * SLICE);
    assert_eq!(stats.free + stats.allocated, stats.total);
    assert_eq!(
        (stats.runs.allocated, stats.runs.allocated_bytes),
        (1, 7 * SLICE)
    );
    let [class] = stats.classes[..] else {
        panic!("{:?}", stats.classes);
    };
    assert_eq!((class.block_size, class.allocated), (64, 100));
    assert_eq!(class.allocated_bytes, 6400);
    assert!(class.free >= 100 && class.spans == 1);
    assert_eq!((stats.threads, stats.processes), (1, 1));
    assert!(stats.largest_contiguous < 4 << 20);
    let fits = allocate(*pool, stats.largest_contiguous);
    assert_eq!(pool.stats().total, stats.total, "it fits without growing");
    for block in small.into_iter().chain([run, fits]) {
        free(*pool, block);
    }
    let end = pool.stats();
    assert_eq!((end.allocated, end.free), (0, end.total));
}

fn memory(pool: &TestPool) -> i64 {
    rustix::fs::fstat(pool.fd()).unwrap().st_blocks * 512
}

pub fn purging_gives_memory_back() {
    let pool = TestPool::new();
    let empty = memory(&pool);
    let taken: Vec<NonNull<u8>> = (0..64).map(|_| allocate(*pool, 1 << 20)).collect();
    let small: Vec<_> = (0..2000).map(|_| allocate(*pool, 8000)).collect();
    for &block in &taken {
        fill(block, 1 << 20);
    }
    let full = memory(&pool);
    assert!(full >= empty + (80 << 20), "{empty} to {full}");
    for block in taken.into_iter().chain(small) {
        free(*pool, block);
    }
    let held = pool.stats();
    pool.purge().unwrap();
    let purged = memory(&pool);
    assert!(purged <= empty + (8 << 20), "{empty}, {full}, {purged}");
    let stats = pool.stats();
    assert_eq!(stats.total, held.total, "the pool stays as large");
    assert!(stats.committed < 8 << 20, "{stats:?}");
    assert_sound(*pool);
    // Used again: committed again, and zero or not, it can be written.
    let again: Vec<_> = (0..64).map(|_| allocate(*pool, 1 << 20)).collect();
    for &block in &again {
        fill(block, 1 << 20);
    }
    assert_eq!(pool.stats().total, held.total);
    for block in again {
        verify(block);
        free(*pool, block);
    }
    assert_sound(*pool);
}

/// The last block of a span that a container frees takes the span with it, as any other does.
pub fn spans_of_objects_go_back() {
    let pool = TestPool::new();
    let spans = || {
        let classes = pool.stats().classes;
        classes.iter().map(|class| class.spans).sum::<usize>()
    };
    // Some to a slice, and one to a slice.
    let small: Vec<_> = (0..41)
        .map(|_| pool.create([0_u8; 2000]).unwrap())
        .collect();
    let large: Vec<_> = (0..3)
        .map(|_| pool.create([0_u8; 16_000]).unwrap())
        .collect();
    assert_eq!(spans(), 5);
    drop((small, large));
    // Those that blocks come from stay.
    assert_eq!(spans(), 2);
}

pub fn free_memory_ages_and_goes_back() {
    let pool = TestPool::new();
    let empty = memory(&pool);
    let block = allocate(*pool, 8 << 20);
    fill(block, 8 << 20);
    assert!(memory(&pool) >= empty + (8 << 20));
    free(*pool, block);
    // Dirty, aged, a hole; the clock may have come to the first of it.
    testing::age(*pool);
    testing::age(*pool);
    let aged = memory(&pool);
    // What the pool grew by and nobody used stays.
    assert!(aged <= empty + (4 << 20), "{empty}, {aged}");
    // It is committed again when it is claimed.
    let again = allocate(*pool, 8 << 20);
    fill(again, 8 << 20);
    assert!(memory(&pool) >= empty + (8 << 20));
    verify(again);
    free(*pool, again);
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

/// What was freed a moment ago has its time, also where what is beside it goes back.
pub fn each_slice_ages_by_itself() {
    const SIZE: usize = 1 << 20;
    let pool = TestPool::new();
    let committed = || pool.stats().committed;
    loop {
        let [first, second] = [SIZE; 2].map(|size| allocate(*pool, size));
        assert_eq!(address(first) + SIZE as u64, address(second));
        let all = committed();
        free(*pool, first);
        testing::age(*pool);
        free(*pool, second);
        if committed() == all {
            for left in [all - SIZE, all - 2 * SIZE] {
                testing::age(*pool);
                assert_eq!(committed(), left);
            }
            break;
        }
        // The clock has come to it by itself, which it does twice a second.
        pool.purge().unwrap();
    }
}

/// What was freed is the kernel's again within two seconds, if somebody allocates now and then.
pub fn freed_memory_goes_back_within_two_seconds() {
    const STEP: Duration = Duration::from_millis(20);
    let pool = TestPool::new();
    let empty = memory(&pool);
    let mut taken: Vec<_> = (0..32).map(|_| allocate(*pool, 1 << 20)).collect();
    for size in [100, 1000, 8000] {
        taken.extend((0..1000).map(|_| allocate(*pool, size)));
    }
    let full = memory(&pool);
    assert!(full >= empty + (40 << 20), "{empty}, {full}");
    taken.into_iter().for_each(|block| free(*pool, block));
    // The time in which this thread could work: a machine that stands still does not count.
    let mut waited = Duration::ZERO;
    while memory(&pool) > empty + (4 << 20) {
        assert!(
            waited < Duration::from_secs(2),
            "{} of {full} bytes are left",
            memory(&pool)
        );
        let begun = Instant::now();
        std::thread::sleep(STEP);
        for size in [16, 100_000] {
            free(*pool, allocate(*pool, size));
        }
        waited += begun.elapsed().min(2 * STEP);
    }
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}

/// Blocks of random sizes come and go at random, and what is live stays as much: how much memory that
/// takes, when what is free has gone back; then again, when one in twenty is left.
pub fn fragmentation_after_churn_is_bounded() {
    const LIVE: usize = 16 << 20;
    const CHANGES: usize = 400_000;
    let pool = TestPool::new();
    let empty = memory(&pool);
    let mut random = Random::new(0xf4a6);
    let (mut taken, mut live) = (Vec::new(), 0);
    for _ in 0..CHANGES {
        if live < LIVE {
            // As many of each magnitude, up to 32 KiB.
            let most = 16 << random.below(12);
            let size = 1 + random.below(most);
            live += size;
            taken.push((allocate(*pool, size), size));
        } else {
            let (block, size) = taken.swap_remove(random.below(taken.len()));
            live -= size;
            free(*pool, block);
        }
    }
    let memory_of = |live: usize| {
        pool.purge().unwrap();
        let memory = (memory(&pool) - empty) as f64;
        println!("  {:.2} of {} KiB", memory / live as f64, live >> 10);
        memory
    };
    assert!(memory_of(live) <= 1.5 * live as f64);
    let before = live;
    taken.retain(|&(block, size)| {
        let stays = random.below(20) == 0;
        if !stays {
            live -= size;
            free(*pool, block);
        }
        stays
    });
    // Blocks do not move, so each that is left keeps its span.
    assert!(memory_of(live) <= before as f64);
    for (block, _) in taken {
        free(*pool, block);
    }
    pool.purge().unwrap();
    assert!(memory(&pool) <= empty + (4 << 20));
    assert_eq!(pool.stats().allocated, 0);
    assert_sound(*pool);
}
