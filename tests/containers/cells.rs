//! Cells: compared with a variable, and shared by processes, some of which are killed.

use std::cell::Cell;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use proptest::prelude::*;
use shmkit::process::{JoinError, scope};
use shmkit::{AllocError, ChangeError, Pool, SharedCell, ShmSafe};

use crate::common::TestPool;
use crate::{Sealed, allocated, assert_sound, on_random};

#[derive(Clone, Debug)]
enum Step {
    Set(u64),
    Replace(u64),
    Update(u64),
    /// An update while which the cell is set to another value.
    Overtaken(u64, u64),
    Panics,
    /// Looks at the value, and keeps what it sees.
    Look,
    /// Ends one of the looks.
    LookAway(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u64>().prop_map(Step::Set),
        4 => any::<u64>().prop_map(Step::Replace),
        4 => any::<u64>().prop_map(Step::Update),
        1 => any::<(u64, u64)>().prop_map(|(v, other)| Step::Overtaken(v, other)),
        1 => Just(Step::Panics),
        3 => Just(Step::Look),
        2 => (0..4_usize).prop_map(Step::LookAway),
    ]
}

/// Runs the steps on a cell of what `of` makes, and on a variable.
fn compare<T>(pool: Pool, steps: &[Step], of: fn(u64) -> T)
where
    T: ShmSafe + Unpin + Copy + PartialEq + Debug,
{
    let cell = pool.create(SharedCell::new()).unwrap();
    let (mut model, mut looks) = (None, Vec::new());
    for step in steps {
        match *step {
            Step::Set(v) => {
                cell.set(of(v)).unwrap();
                model = Some(of(v));
            }
            Step::Replace(v) => {
                let old = cell.replace(of(v)).unwrap();
                assert_eq!(old.as_deref().copied(), model.replace(of(v)));
            }
            Step::Update(v) => {
                let mut seen = Vec::new();
                let update = cell.update(|now| {
                    seen.push(now.copied());
                    of(v)
                });
                assert_eq!((update, seen), (Ok(()), vec![model.replace(of(v))]));
            }
            Step::Overtaken(v, other) => {
                let mut seen = Vec::new();
                let update = cell.update(|now| {
                    seen.push(now.copied());
                    if seen.len() == 1 {
                        cell.set(of(other)).unwrap();
                    }
                    of(v)
                });
                let expected = vec![model.replace(of(v)), Some(of(other))];
                assert_eq!((update, seen), (Ok(()), expected));
            }
            Step::Panics => {
                let panics = || cell.update(|_| resume_unwind(Box::new(())));
                assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            }
            Step::Look => looks.push((cell.view(), model)),
            Step::LookAway(i) if i < looks.len() => drop(looks.remove(i)),
            Step::LookAway(_) => {}
        }
        assert_eq!((cell.get(), cell.is_empty()), (model, model.is_none()));
        for (view, seen) in &looks {
            assert_eq!(view.as_deref(), seen.as_ref());
        }
    }
    drop(looks);
    assert_sound(pool);
    assert_eq!(pool.stats().retired.blocks, 0);
    assert_eq!(cell.get(), model);
}

pub fn cells_behave_like_variables() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    on_random(150, &prop::collection::vec(step(), 1..80), |steps| {
        compare(*pool, &steps, |v| v as u8);
        compare(*pool, &steps, Sealed::new);
        compare(*pool, &steps, |v| [v; 300]);
        compare(*pool, &steps, |v| (v % 2 == 0).then_some(v));
        assert_eq!(allocated(*pool), before);
    });
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
