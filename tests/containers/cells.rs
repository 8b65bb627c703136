//! Cells: against a variable, shared by processes, some of which are killed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use shmkit::process::{JoinError, scope};
use shmkit::{AllocError, ChangeError, SharedCell};

use crate::common::TestPool;
use crate::{Sealed, allocated, assert_sound};

pub fn a_cell_is_a_variable() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let cell = pool.create(SharedCell::new()).unwrap();
    assert!(cell.is_empty() && cell.get().is_none() && cell.view().is_none());
    assert!(cell.replace(1_u64).unwrap().is_none());
    assert_eq!(cell.get(), Some(1));
    for n in 1..1000 {
        let seen = cell.view().unwrap();
        assert_eq!(*cell.replace(n + 1).unwrap().unwrap(), n);
        assert_eq!((*seen, *cell.view().unwrap()), (n, n + 1));
    }
    cell.update(|n| n.unwrap() * 2).unwrap();
    assert_eq!(cell.get(), Some(2000));
    drop(cell);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn cells_outside_of_a_pool() {
    let cell = SharedCell::new();
    let refused = cell.set(5_u8).unwrap_err();
    assert_eq!((refused.value, refused.cause), (5, ChangeError::NotInPool));
    assert_eq!(cell.update(|_| 5), Err(ChangeError::NotInPool));
    assert!(cell.get().is_none() && cell.view().is_none());
}

pub fn an_update_that_panics_changes_nothing() {
    let pool = TestPool::new();
    let cell = pool.create(SharedCell::new()).unwrap();
    cell.set(3_u64).unwrap();
    let update = || cell.update(|_| panic!("no"));
    assert!(catch_unwind(AssertUnwindSafe(update)).is_err());
    assert_eq!(cell.get(), Some(3));
    // Its pin is gone: a fork is allowed, and what is replaced is freed.
    scope(|s| s.spawn(|| ()).unwrap().join().unwrap());
    let runs = Cell::new(0);
    let update = cell.update(|now| {
        if runs.replace(runs.get() + 1) == 0 {
            cell.set(10).unwrap();
        }
        now.unwrap() + 1
    });
    assert_eq!((update, runs.get(), cell.get()), (Ok(()), 2, Some(11)));
    pool.recover();
    assert_eq!(pool.stats().retired.blocks, 0);
}

pub fn a_view_holds_back_what_it_sees() {
    let pool = TestPool::new();
    let cell = pool.create(SharedCell::new()).unwrap();
    cell.set([1_u64; 100]).unwrap();
    let view = cell.view().unwrap();
    for n in 0..200 {
        cell.set([n; 100]).unwrap();
    }
    let retired = pool.stats().retired;
    assert!(retired.held_back >= 64 * 800, "{retired:?}");
    assert!(view.iter().all(|&n| n == 1));
    drop(view);
    pool.recover();
    let retired = pool.stats().retired;
    assert_eq!(
        (retired.blocks, retired.bytes, retired.held_back),
        (0, 0, 0)
    );
}

pub fn a_full_pool_keeps_the_cell() {
    let pool = TestPool::with(|builder| builder.initial_size(1 << 20).max_size(1 << 20));
    let cell = pool.create(SharedCell::new()).unwrap();
    cell.set([7_u64; 512]).unwrap();
    let mut blocks = Vec::new();
    let size = std::alloc::Layout::from_size_align(4096, 8).unwrap();
    while let Ok(block) = pool.allocate(size) {
        blocks.push(block.cast::<u8>());
    }
    let mut refused = None;
    for _ in 0..100 {
        // While there is room for it, each old block makes room for the next.
        match cell.set([8; 512]) {
            Ok(()) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    match refused {
        Some(error) => {
            assert_eq!(error.value, [8; 512]);
            assert_eq!(error.cause, ChangeError::Alloc(AllocError::PoolFull));
            assert!([[7; 512], [8; 512]].contains(&cell.get().unwrap()));
        }
        None => assert_eq!(cell.get(), Some([8; 512])),
    }
    for block in blocks {
        // SAFETY: allocated above, used by nobody.
        unsafe { pool.deallocate(block) }.unwrap();
    }
    cell.set([9; 512]).unwrap();
    assert_eq!(cell.get(), Some([9; 512]));
    assert_sound(*pool);
}

pub fn updates_of_a_cell_are_counted() {
    let pool = TestPool::new();
    let cell = pool.create(SharedCell::new()).unwrap();
    scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..10_000 {
                    cell.update(|n: Option<&Sealed>| Sealed::new(n.map_or(0, |n| n.a) + 1))
                        .unwrap();
                    assert!(cell.view().unwrap().is_whole());
                }
            })
            .unwrap();
        }
    });
    assert_eq!(cell.get(), Some(Sealed::new(30_000)));
    pool.recover();
    assert_eq!(pool.stats().retired.blocks, 0);
    assert_sound(*pool);
}

pub fn killed_setters_of_cells_lose_nothing() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let cell = pool.create(SharedCell::new()).unwrap();
    let done = pool.create(AtomicU64::new(0)).unwrap();
    cell.set(Sealed::new(0)).unwrap();
    let mut killed = 0;
    for round in 0..100_u64 {
        scope(|s| {
            let children: Vec<_> = (0..2)
                .map(|_| {
                    let work = || {
                        for _ in 0_u64.. {
                            cell.update(|n| Sealed::new(n.unwrap().a + 1)).unwrap();
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    s.spawn(work).unwrap()
                })
                .collect();
            let start = done.load(Ordering::Relaxed);
            while done.load(Ordering::Relaxed) - start < 50 + round * 3 {
                assert!(cell.view().unwrap().is_whole());
            }
            for child in children {
                child.kill().unwrap();
                assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
                killed += 1;
            }
        });
        // Each of the dead may have been between its update and its count.
        let (now, counted) = (cell.get().unwrap(), done.load(Ordering::Relaxed));
        assert!(now.is_whole());
        assert!((counted..=counted + killed).contains(&now.a), "{now:?}");
    }
    drop((cell, done));
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn a_stopped_viewer_holds_up_memory_only() {
    let pool = TestPool::new();
    let cell = pool.create(SharedCell::new()).unwrap();
    let viewing = pool.create(AtomicU32::new(0)).unwrap();
    cell.set(Sealed::new(1)).unwrap();
    scope(|s| {
        let work = || {
            let view = cell.view().unwrap();
            viewing.store(1, Ordering::Release);
            while view.is_whole() {}
        };
        let child = s.spawn(work).unwrap();
        while viewing.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let stats = pool.stats();
        assert!(stats.processes >= 2);
        for n in 0..1000 {
            cell.set(Sealed::new(n)).unwrap();
        }
        pool.recover();
        assert_eq!(pool.stats().retired.blocks, 1000);
        assert!(pool.stats().retired.held_back > 0);
        child.kill().unwrap();
        assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
    });
    pool.recover();
    assert_eq!(pool.stats().retired.blocks, 0);
    assert_eq!(cell.get(), Some(Sealed::new(999)));
}
