//! Condition variables.

use std::io::pipe;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::scope;
use shmkit::sync::LockResult;
use shmkit::{Condvar, LockError, Mutex, MutexGuard, Orphan, ShmSafe};

use super::{LONG, count, kill, listen, shared, tell_and_hang, until, until_asleep};
use crate::common::{Random, quietly};

/// A stock of items: made, taken, and the most there may be.
#[derive(ShmSafe)]
struct Stock {
    items: Mutex<[u64; 2]>,
    changed: Condvar,
    turns: AtomicU64,
}

fn stock() -> Stock {
    Stock {
        items: Mutex::new([0, 0]),
        changed: Condvar::new(),
        turns: AtomicU64::new(0),
    }
}

/// The lock, with what a killed holder may have left: a pair of numbers.
fn whatever<'a>(
    locked: LockResult<MutexGuard<'a, [u64; 2]>, Orphan<'a, [u64; 2]>>,
) -> MutexGuard<'a, [u64; 2]> {
    match locked {
        Ok(guard) => guard,
        Err(LockError::OwnerDied(orphan)) => orphan.into_guard(),
        Err(error) => panic!("{error}"),
    }
}

pub fn producers_and_consumers() {
    const ITEMS: u64 = 3000;
    const ROOM: u64 = 4;
    let stock = shared(stock());
    scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..ITEMS {
                    let guard = stock.items.lock().unwrap();
                    let mut guard = stock
                        .changed
                        .wait_while(guard, |items| items[0] - items[1] >= ROOM)
                        .unwrap();
                    guard[0] += 1;
                    stock.changed.notify_all();
                }
            })
            .unwrap();
            s.spawn(|| {
                for _ in 0..ITEMS {
                    let guard = stock.items.lock().unwrap();
                    let (mut guard, result) = stock
                        .changed
                        .wait_timeout_while(guard, LONG, |items| items[0] == items[1])
                        .unwrap();
                    assert!(!result.timed_out());
                    guard[1] += 1;
                    stock.changed.notify_all();
                }
            })
            .unwrap();
        }
    });
    assert_eq!(*stock.items.lock().unwrap(), [2 * ITEMS; 2]);
}

pub fn a_woken_waiter_is_killed() {
    let stock = shared(stock());
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        // Acts on no notification: it is killed with the mutex as soon as it has been woken.
        let victim = s
            .spawn(|| {
                let guard = stock.items.lock().unwrap();
                let _guard = stock.changed.wait_while(guard, |items| items[0] == 0);
                tell_and_hang(&writer);
            })
            .unwrap();
        until_asleep(victim.id().pid());
        let other = s
            .spawn(|| {
                let mut guard = whatever(stock.items.lock());
                while guard[0] == 0 {
                    guard = whatever(stock.changed.wait(guard));
                }
                guard[1] = 1;
            })
            .unwrap();
        until_asleep(other.id().pid());
        whatever(stock.items.lock())[0] = 1;
        stock.changed.notify_one();
        // Both look sooner or later; the victim may be the second, and is killed then.
        listen(&reader);
        kill(victim);
        other.join().unwrap();
    });
    assert_eq!(*whatever(stock.items.lock()), [1, 1]);
}

pub fn waiters_killed_at_random() {
    const KILLS: u64 = 60;
    let stock = shared(stock());
    let mut random = Random::new(1);
    scope(|s| {
        let consumer = || -> u8 {
            loop {
                let mut guard = whatever(stock.items.lock());
                while guard[0] == guard[1] {
                    guard = whatever(stock.changed.wait(guard));
                }
                guard[1] += 1;
                drop(guard);
                count(&stock.turns);
            }
        };
        let survivor = s.spawn(consumer).unwrap();
        for _ in 0..KILLS {
            let victim = s.spawn(consumer).unwrap();
            for _ in 0..random.next() % 50 {
                whatever(stock.items.lock())[0] += 1;
                stock.changed.notify_one();
            }
            kill(victim);
            // One notification an item, and no more: the survivor gets to all of them.
            until("all consumed", || {
                let guard = whatever(stock.items.lock());
                guard[0] == guard[1]
            });
        }
        kill(survivor);
    });
    let [made, taken] = *whatever(stock.items.lock());
    assert_eq!(made, taken);
    let turns = stock.turns.load(Ordering::SeqCst);
    assert!(
        turns <= taken && taken <= turns + KILLS + 1,
        "{turns} of {taken}"
    );
}

pub fn owner_killed_during_a_wait() {
    let stock = shared(stock());
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let waiter = s
            .spawn(|| {
                let guard = stock.items.lock().unwrap();
                matches!(stock.changed.wait(guard), Err(LockError::OwnerDied(_)))
            })
            .unwrap();
        until_asleep(waiter.id().pid());
        let victim = s
            .spawn(|| {
                let _guard = stock.items.lock().unwrap();
                stock.changed.notify_one();
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        kill(victim);
        assert!(waiter.join().unwrap());
    });
}

pub fn waits_time_out() {
    let stock = shared(stock());
    let guard = stock.items.lock().unwrap();
    let limit = Duration::from_millis(30);
    let began = Instant::now();
    let (guard, result) = stock.changed.wait_timeout(guard, limit).unwrap();
    assert!(result.timed_out() && began.elapsed() >= limit);
    drop(guard);
    // Not if it is notified: the child waits for nothing else.
    scope(|s| {
        let child = s
            .spawn(|| {
                let mut guard = stock.items.lock().unwrap();
                let mut timed_out = false;
                while guard[0] == 0 {
                    let (again, result) = stock.changed.wait_timeout(guard, LONG).unwrap();
                    guard = again;
                    timed_out |= result.timed_out();
                }
                timed_out
            })
            .unwrap();
        until_asleep(child.id().pid());
        stock.items.lock().unwrap()[0] = 1;
        stock.changed.notify_one();
        assert!(!child.join().unwrap());
    });
    let outside = Condvar::new();
    outside.notify_all();
    let guard = stock.items.lock().unwrap();
    assert!(matches!(outside.wait(guard), Err(LockError::NotInPool)));
    assert!(stock.items.lock().is_ok());
}

pub fn a_panic_hides_no_timeout() {
    let pair = shared((Mutex::new([0_u64, 0]), Condvar::new()));
    let (mutex, condvar) = &*pair;
    let guard = mutex.lock().unwrap();
    quietly(|| {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _guard = guard;
            panic!("with the lock");
        }));
        assert!(panicked.is_err());
    });
    let Err(LockError::Panicked(guard)) = mutex.lock() else {
        panic!("not poisoned");
    };
    match condvar.wait_timeout(guard, Duration::from_millis(1)) {
        Err(LockError::Panicked((guard, result))) => {
            assert_eq!((*guard, result.timed_out()), ([0, 0], true));
        }
        other => panic!("{other:?}"),
    }
}

pub fn broadcast() {
    let stock = shared(stock());
    scope(|s| {
        let children = [0; 8].map(|_| {
            s.spawn(|| {
                let guard = stock.items.lock().unwrap();
                count(&stock.turns);
                let guard = stock.changed.wait_while(guard, |items| items[0] == 0);
                drop(guard.unwrap());
            })
            .unwrap()
        });
        until("all wait", || stock.turns.load(Ordering::SeqCst) == 8);
        stock.items.lock().unwrap()[0] = 1;
        stock.changed.notify_all();
        for child in children {
            child.join().unwrap();
        }
    });
}
