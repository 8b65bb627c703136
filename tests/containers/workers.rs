//! Arrays used by several processes, some of which are killed.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use shmkit::process::{JoinError, ScopedJoinHandle, scope};
use shmkit::{Array, ClaimError, ElementError, ResizeError};

use crate::common::{fork, leave, reap};
use crate::{Page, Sealed, allocated, assert_sound, pool};

pub fn die() {
    raise(Signal::SIGKILL).unwrap();
}

#[track_caller]
pub fn was_killed(child: ScopedJoinHandle<'_, ()>) {
    let end = child.join();
    assert!(matches!(end, Err(JoinError::Signaled(9))), "{end:?}");
}

/// Longer than anything takes, on whatever machine.
const LONG: Duration = Duration::from_secs(60);

/// Waits for others, who do not sleep.
#[track_caller]
pub fn until(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LONG, "others never come so far");
        std::thread::yield_now();
    }
}

pub fn disjoint_bands_in_parallel() {
    let array = Array::filled_in(pool(), 4096, 0_u64).unwrap();
    scope(|s| {
        for worker in 0..4_usize {
            let array = &array;
            s.spawn(move || {
                let range = worker * 1024..(worker + 1) * 1024;
                for round in 0..200 {
                    let mut band = array.claim_mut(range.clone()).unwrap();
                    assert!(!band.was_orphaned());
                    assert!(band.iter().all(|&v| v == round));
                    band.fill(round + 1);
                }
            })
            .unwrap();
        }
    });
    assert!(array.claim(..).unwrap().iter().all(|&v| v == 200));
}

pub fn the_claims_of_the_killed_are_over() {
    let array = Array::filled_in(pool(), 100, 0_u64).unwrap();
    scope(|s| {
        let child = s.spawn(|| {
            let _reads = array.claim(50..60).unwrap();
            let mut band = array.claim_mut(10..20).unwrap();
            band[0] = 7;
            die();
        });
        was_killed(child.unwrap());
    });
    assert_eq!(array.set(55, 1), Ok(()));
    assert_eq!(array.get(10), Ok(7));
    assert_eq!(array.claim(..).unwrap()[10], 7);
    assert!(!array.claim_mut(20..).unwrap().was_orphaned());
    assert!(!array.claim_mut(..10).unwrap().was_orphaned());
    assert!(array.claim_mut(19..21).unwrap().was_orphaned());
    assert!(!array.claim_mut(19..21).unwrap().was_orphaned());
    assert!(array.claim_mut(..).unwrap().was_orphaned());
    assert!(!array.claim_mut(..).unwrap().was_orphaned());
    array.grow(200, 1).unwrap();
}

pub fn marks_of_the_killed_are_struck() {
    let array = Array::filled_in(pool(), 100, 0_u8).unwrap();
    let orphaned = |range: std::ops::Range<usize>| array.claim_mut(range).unwrap().was_orphaned();
    scope(|s| {
        let child = s.spawn(|| {
            let _band = array.claim_mut(40..60).unwrap();
            die();
        });
        was_killed(child.unwrap());
    });
    array.grow(120, 0).unwrap();
    assert!(orphaned(45..50), "in the middle");
    assert!(orphaned(30..45), "the left part");
    assert!(!orphaned(40..45));
    assert!(orphaned(58..70), "the right part");
    assert!(!orphaned(58..60));
    // A successor that dies leaves its own mark.
    scope(|s| {
        let child = s.spawn(|| {
            let band = array.claim_mut(50..100).unwrap();
            assert!(band.was_orphaned());
            die();
        });
        was_killed(child.unwrap());
    });
    assert!(orphaned(99..100) && orphaned(0..120) && !orphaned(0..120));
}

pub fn more_are_killed_than_there_are_claims() {
    let array = Array::filled_in(pool(), 200, 0_u8).unwrap();
    for round in 0..2 {
        scope(|s| {
            let array = &array;
            let child = s.spawn(move || {
                let claims: Vec<_> = (0..60)
                    .map(|i| array.claim_mut(round * 60 + i..=round * 60 + i).unwrap())
                    .collect();
                assert_eq!(claims.len(), 60);
                die();
            });
            was_killed(child.unwrap());
        });
    }
    let claims: Vec<_> = (0..50).map(|i| array.claim(i..).unwrap()).collect();
    drop(claims);
    assert!((0..120).all(|i| array.claim_mut(i..=i).unwrap().was_orphaned()));
    assert!(!array.claim_mut(120..).unwrap().was_orphaned());
    assert!(!array.claim_mut(..).unwrap().was_orphaned());
}

pub fn a_forked_copy_of_a_claim_is_void() {
    let array = Array::filled_in(pool(), 10, 0_u64).unwrap();
    let claim = array.claim_mut(2..5).unwrap();
    let Some(child) = fork() else {
        drop(claim);
        leave(true);
    };
    assert_eq!(reap(child), 0);
    assert!(array.claim(..).is_err(), "the child's copy ended the claim");
    drop(claim);
    assert!(array.claim_mut(..).is_ok());
}

pub fn sets_are_never_torn() {
    let array = Array::filled_in(pool(), 8, Sealed::new(0)).unwrap();
    scope(|s| {
        for worker in 1..4_u64 {
            let array = &array;
            s.spawn(move || {
                for round in 0..20_000 {
                    let index = (round % 8) as usize;
                    array.set(index, Sealed::new(worker << 32 | round)).unwrap();
                    assert!(array.get((index + 3) % 8).unwrap().is_whole());
                }
            })
            .unwrap();
        }
    });
    assert!(array.claim(..).unwrap().iter().all(|e| e.is_whole()));
}

pub fn updates_are_counted() {
    let pool = pool();
    let (small, wide) = (
        Array::filled_in(pool, 3, 0_u32).unwrap(),
        Array::filled_in(pool, 3, Sealed::new(0)).unwrap(),
    );
    scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..10_000 {
                    small.update(1, |n| n + 1).unwrap();
                    wide.update(1, |n| Sealed::new(n.a + 1)).unwrap();
                }
            })
            .unwrap();
        }
    });
    assert_eq!(
        (small.get(1), wide.get(1)),
        (Ok(30_000), Ok(Sealed::new(30_000)))
    );
}

pub fn killed_setters_tear_nothing() {
    let pool = pool();
    let array = Array::filled_in(pool, 8, Page::new(0)).unwrap();
    let written = pool.create(AtomicU32::new(0)).unwrap();
    let mut torn = 0;
    for round in 0..150_u64 {
        scope(|s| {
            let children: Vec<_> = (0..2_u64)
                .map(|worker| {
                    let (array, written) = (&array, &written);
                    s.spawn(move || {
                        for n in 0_u64.. {
                            let value = Page::new(round << 40 | worker << 32 | n);
                            array.set((n % 8) as usize, value).unwrap();
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                    .unwrap()
                })
                .collect();
            let start = written.load(Ordering::Relaxed);
            until(|| written.load(Ordering::Relaxed).wrapping_sub(start) > 100 + round as u32 * 7);
            for child in children {
                child.kill().unwrap();
                was_killed(child);
                // The other one goes on, so nothing fails here.
                torn += (0..8)
                    .filter(|&i| !array.get(i).unwrap().is_whole())
                    .count();
            }
        });
        assert_eq!(torn, 0, "round {round}");
        let all = array.claim_mut(..).unwrap();
        assert!(!all.was_orphaned() && all.iter().all(|e| e.is_whole()));
    }
    assert_sound(pool);
}

pub fn growth_under_use() {
    let pool = pool();
    let array = Array::filled_in(pool, 16, Sealed::new(1)).unwrap();
    let stop = pool.create(AtomicBool::new(false)).unwrap();
    scope(|s| {
        for worker in 0..2_usize {
            let (array, stop) = (&array, &stop);
            s.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = array.len() - 1 - worker;
                    assert!(array.get(index).unwrap().is_whole());
                    array.set(worker, Sealed::new(index as u64)).unwrap();
                    match array.claim(worker + 2..) {
                        Ok(part) => assert!(part.iter().all(|e| e.is_whole())),
                        Err(error) => panic!("{error}"),
                    }
                }
            })
            .unwrap();
        }
        let mut len = 16;
        while len < 2000 {
            match array.grow(len + 10, Sealed::new(len as u64)) {
                Ok(()) => len += 10,
                Err(ResizeError::Claimed { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(array.len(), 2006);
    assert!(array.claim(..).unwrap().iter().all(|e| e.is_whole()));
    assert_sound(pool);
}

pub fn killed_growers() {
    let pool = pool();
    drop(Array::filled_in(pool, 16, 3_u64).unwrap());
    let before = allocated(pool);
    let array = Array::filled_in(pool, 16, 3_u64).unwrap();
    let grown = pool.create(AtomicU32::new(0)).unwrap();
    for round in 0..100 {
        scope(|s| {
            let child = s.spawn(|| {
                loop {
                    match array.grow(array.len() + 1, 3) {
                        Ok(()) => grown.fetch_add(1, Ordering::Relaxed),
                        Err(error) => panic!("{error}"),
                    };
                }
            });
            let child = child.unwrap();
            let start = grown.load(Ordering::Relaxed);
            until(|| grown.load(Ordering::Relaxed) - start > 5 + round % 13);
            child.kill().unwrap();
            was_killed(child);
        });
        let len = array.len();
        match array.get(len) {
            // The dead one's last step counts from here on.
            Ok(value) => assert_eq!((value, array.len()), (3, len + 1)),
            Err(error) => assert!(matches!(error, ElementError::OutOfBounds { .. })),
        }
        match array.claim(..) {
            Ok(all) => assert!(all.iter().all(|&v| v == 3)),
            Err(ClaimError::Claimed { by }) => panic!("claimed by dead {by}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(array.len() as u32 >= 16 + grown.load(Ordering::Relaxed));
    drop((array, grown));
    assert_eq!(allocated(pool), before);
    assert_sound(pool);
}

/// A process in which a thread does something and ends, and which then dies. It is no scope's, which would recover it.
pub fn left_by_a_thread_of_the_killed(work: impl Fn() + Sync) {
    let Some(child) = fork() else {
        std::thread::scope(|s| s.spawn(&work).join().unwrap());
        die();
        leave(false);
    };
    assert_eq!(reap(child), 9);
}

/// Nobody waits for what they have, so nobody else would look for the dead.
pub fn the_claims_of_threads_that_have_ended_are_over() {
    let array = Array::filled_in(pool(), 8, 1_u64).unwrap();
    let left = || left_by_a_thread_of_the_killed(|| std::mem::forget(array.claim_mut(..).unwrap()));
    left();
    until(|| array.claim_mut(..).is_ok());
    left();
    until(|| array.set(0, 3).is_ok());
    left();
    until(|| array.grow(10, 3).is_ok());
    assert_eq!(array.get(9), Ok(3));
}
