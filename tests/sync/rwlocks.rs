//! Readers and writers.

use std::io::pipe;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::{SpawnError, scope};
use shmkit::sync::{LockError, LockResult, WriteGuard, WriteOrphan};
use shmkit::{RwLock, Shared};

use super::{
    LONG, holder, kill, kill_with, listen, shared, tell, tell_and_hang, until, until_asleep,
};
use crate::common::{Random, fork, leave, quietly, reap};

type Pair = RwLock<[u64; 2]>;

fn one() -> Shared<Pair> {
    shared(RwLock::new([0, 0]))
}

/// Has a child killed while it writes; its pid.
fn kill_writer(lock: &Shared<Pair>) -> u32 {
    kill_with(|| match lock.write() {
        Ok(mut guard) => {
            guard[0] += 1;
            Ok(guard)
        }
        Err(LockError::OwnerDied(orphan)) => Err(orphan),
        Err(error) => panic!("{error}"),
    })
}

#[track_caller]
fn orphan<'a, G>(outcome: LockResult<G, WriteOrphan<'a, [u64; 2]>>) -> WriteOrphan<'a, [u64; 2]> {
    match outcome {
        Err(LockError::OwnerDied(orphan)) => orphan,
        Ok(_) => panic!("locked as if nothing had happened"),
        Err(error) => panic!("{error}"),
    }
}

pub fn read_and_written_under_load() {
    const ROUNDS: u64 = 20_000;
    let world = shared((RwLock::new([0_u64; 2]), AtomicU64::new(0)));
    let (lock, inside) = &*world;
    scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..ROUNDS {
                    let mut guard = lock.write().unwrap();
                    assert_eq!(inside.swap(1, Ordering::Relaxed), 0, "not alone");
                    let [a, b] = *guard;
                    assert_eq!(a, b);
                    guard[0] = a + 1;
                    std::hint::black_box(&mut guard);
                    guard[1] = b + 1;
                    inside.store(0, Ordering::Relaxed);
                }
            })
            .unwrap();
            s.spawn(|| {
                let mut last = 0;
                while last < 2 * ROUNDS {
                    let guard = lock.read().unwrap();
                    assert_eq!(inside.load(Ordering::Relaxed), 0, "not only readers");
                    assert_eq!(guard[0], guard[1]);
                    assert!(guard[0] >= last);
                    last = guard[0];
                }
            })
            .unwrap();
        }
    });
    assert_eq!(*lock.read().unwrap(), [2 * ROUNDS; 2]);
}

pub fn read_and_written_under_kills() {
    let world = shared((RwLock::new([0_u64; 2]), AtomicU64::new(0)));
    let (lock, acknowledged) = &*world;
    // Put right: the pair is equal again.
    fn put_right<'a>(orphan: WriteOrphan<'a, [u64; 2]>) -> WriteGuard<'a, [u64; 2]> {
        let mut guard = orphan.into_guard();
        guard[1] = guard[0];
        guard
    }
    let mut random = Random::new(1);
    scope(|s| {
        let worker = || -> u8 {
            loop {
                for _ in 0..3 {
                    match lock.read() {
                        Ok(guard) => assert_eq!(guard[0], guard[1]),
                        Err(LockError::OwnerDied(orphan)) => drop(put_right(orphan)),
                        Err(error) => panic!("{error}"),
                    }
                }
                let mut guard = match lock.write() {
                    Ok(guard) => guard,
                    Err(LockError::OwnerDied(orphan)) => put_right(orphan),
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(guard[0], guard[1]);
                guard[0] += 1;
                std::hint::black_box(&mut guard);
                guard[1] += 1;
                drop(guard);
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        };
        let progress = |more: u64| {
            let goal = acknowledged.load(Ordering::SeqCst) + more;
            until("progress", || acknowledged.load(Ordering::SeqCst) > goal);
        };
        for _ in 0..60 {
            let [a, b] = [0, 1].map(|_| s.spawn(worker).unwrap());
            progress(random.next() % 1000);
            kill(a);
            // The other one goes on.
            progress(0);
            kill(b);
        }
    });
    let guard = match lock.write_timeout(LONG) {
        Ok(guard) => guard,
        Err(LockError::OwnerDied(orphan)) => put_right(orphan),
        Err(error) => panic!("{error}"),
    };
    let acknowledged = acknowledged.load(Ordering::SeqCst);
    assert_eq!(guard[0], guard[1]);
    // A killed worker had added at most one that it did not tell of.
    assert!((acknowledged..=acknowledged + 120).contains(&guard[0]));
}

pub fn readers_at_once() {
    let lock = one();
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let children = [0, 1, 2].map(|_| {
            let child = s.spawn(|| {
                let _guard = lock.read().unwrap();
                tell_and_hang(&writer);
            });
            listen(&reader);
            child.unwrap()
        });
        let limit = Duration::from_millis(30);
        let began = Instant::now();
        assert!(matches!(
            lock.write_timeout(limit),
            Err(LockError::TimedOut)
        ));
        assert!(began.elapsed() >= limit);
        assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
        // A writer that gave up is in nobody's way.
        assert!(lock.try_read().is_ok());
        let [a, b, c] = children;
        kill(a);
        kill(b);
        assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
        kill(c);
        // Dead readers do not count, and leave no orphan.
        lock.write_timeout(LONG).unwrap()[0] = 1;
    });
}

pub fn a_reader_killed_while_a_writer_waits() {
    let lock = one();
    let pipe = pipe().unwrap();
    scope(|s| {
        let reads = holder(s, &pipe, || lock.read().unwrap());
        let writes = s.spawn(|| lock.write().unwrap()[0] = 5).unwrap();
        until_asleep(writes.id().pid());
        kill(reads);
        writes.join().unwrap();
    });
    assert_eq!(*lock.read().unwrap(), [5, 0]);
}

pub fn a_waiting_writer_keeps_readers_out() {
    let lock = one();
    let guard = lock.read();
    std::thread::scope(|threads| {
        let writes = threads.spawn(|| lock.write().unwrap()[0] = 5);
        let reads = || threads.spawn(|| lock.try_read().map(|guard| guard[0]).ok());
        until("a writer waits", || reads().join().unwrap().is_none());
        let late = threads.spawn(|| lock.read_timeout(LONG).unwrap()[0]);
        drop(guard);
        writes.join().unwrap();
        assert_eq!(late.join().unwrap(), 5);
    });
}

pub fn a_writer_killed_while_it_waits() {
    let lock = one();
    let pipe = pipe().unwrap();
    scope(|s| {
        let reads = holder(s, &pipe, || lock.read().unwrap());
        for _ in 0..3 {
            let writes = s.spawn(|| drop(lock.write())).unwrap();
            until_asleep(writes.id().pid());
            kill(writes);
            // It had changed nothing, so there is no orphan.
            assert_eq!(*lock.read_timeout(LONG).unwrap(), [0, 0]);
        }
        let writes = s.spawn(|| drop(lock.write())).unwrap();
        until_asleep(writes.id().pid());
        kill(writes);
        assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
        kill(reads);
        assert!(lock.write_timeout(LONG).is_ok());
    });
}

pub fn killed_writer() {
    let lock = one();
    let pid = kill_writer(&lock);
    let first = orphan(lock.read_timeout(LONG));
    assert_eq!(first.owner().map(|owner| owner.pid()), Some(pid));
    drop(first);
    assert_eq!(orphan(lock.write()).owner(), None);
    drop(orphan(lock.try_read()));
    lock.clear_poison();
    let guard = orphan(lock.try_write()).into_guard();
    assert_eq!(*guard, [1, 0]);
    drop(guard);
    assert_eq!(*lock.read().unwrap(), [1, 0]);
    // The second dies with an orphan.
    kill_writer(&lock);
    kill_writer(&lock);
    let mut guard = orphan(lock.read()).reset([7, 8]);
    guard[1] += 1;
    assert!(matches!(lock.read(), Err(LockError::WouldDeadlock)));
    drop(guard);
    assert_eq!(*lock.write().unwrap(), [7, 9]);
    kill_writer(&lock);
    // SAFETY: two numbers are numbers whatever is written to them.
    drop(unsafe { orphan(lock.write()).assume_valid() });
    assert_eq!(*lock.read().unwrap(), [8, 9]);
}

pub fn killed_writer_while_others_wait() {
    let lock = one();
    let pipe = pipe().unwrap();
    scope(|s| {
        let owner = holder(s, &pipe, || lock.write().unwrap());
        let lock = &lock;
        let waiters = [true, false, true, false].map(|reads| {
            s.spawn(move || {
                let died = if reads {
                    lock.read_timeout(LONG)
                        .map(drop)
                        .map_err(|error| match error {
                            LockError::OwnerDied(orphan) => drop(orphan.into_guard()),
                            error => panic!("{error}"),
                        })
                } else {
                    lock.write_timeout(LONG)
                        .map(drop)
                        .map_err(|error| match error {
                            LockError::OwnerDied(orphan) => drop(orphan.into_guard()),
                            error => panic!("{error}"),
                        })
                };
                died.is_err()
            })
            .unwrap()
        });
        for waiter in &waiters {
            until_asleep(waiter.id().pid());
        }
        kill(owner);
        let told = waiters.map(|waiter| waiter.join().unwrap());
        assert_eq!(told.iter().filter(|&&told| told).count(), 1);
    });
}

pub fn rwlock_poison() {
    let lock = one();
    quietly(|| {
        let panicked = catch_unwind(|| {
            lock.write().unwrap()[0] = 1;
            let _read = lock.read().unwrap();
            panic!("reading");
        });
        assert!(panicked.is_err() && !lock.is_poisoned());
        let panicked = catch_unwind(|| {
            let mut guard = lock.write().unwrap();
            guard[0] = 2;
            panic!("writing");
        });
        assert!(panicked.is_err() && lock.is_poisoned());
    });
    match lock.read() {
        Err(LockError::Panicked(guard)) => assert_eq!(*guard, [2, 0]),
        other => panic!("{:?}", other.err()),
    }
    match lock.try_write() {
        Err(LockError::Panicked(mut guard)) => guard[1] = 2,
        other => panic!("{:?}", other.err()),
    }
    assert!(lock.is_poisoned());
    lock.clear_poison();
    assert_eq!(*lock.read().unwrap(), [2, 2]);
}

pub fn rwlock_errors() {
    let locks = shared([const { RwLock::new(0_u64) }; 40]);
    let [a, b, ..] = &*locks;
    let first = a.read().unwrap();
    let second = b.read().unwrap();
    assert!(matches!(a.read(), Err(LockError::WouldDeadlock)));
    assert!(matches!(a.try_read(), Err(LockError::WouldDeadlock)));
    assert!(matches!(a.write(), Err(LockError::WouldDeadlock)));
    assert!(matches!(a.try_write(), Err(LockError::WouldDeadlock)));
    // In any order.
    drop(first);
    let mut guard = a.write().unwrap();
    *guard = 1;
    assert!(matches!(a.write(), Err(LockError::WouldDeadlock)));
    assert!(matches!(a.try_read(), Err(LockError::WouldDeadlock)));
    assert!(matches!(
        a.read_timeout(LONG),
        Err(LockError::WouldDeadlock)
    ));
    std::thread::scope(|threads| {
        let other = threads.spawn(|| {
            let limit = Duration::from_millis(5);
            assert!(matches!(a.read_timeout(limit), Err(LockError::TimedOut)));
            assert!(matches!(a.write_timeout(limit), Err(LockError::TimedOut)));
            assert!(matches!(a.try_read(), Err(LockError::WouldBlock)));
            assert!(matches!(a.try_write(), Err(LockError::WouldBlock)));
        });
        other.join().unwrap();
    });
    drop((guard, second));
    let mut guards: Vec<_> = locks[..31]
        .iter()
        .map(|lock| lock.read().unwrap())
        .collect();
    assert!(matches!(locks[31].read(), Err(LockError::TooManyReads)));
    drop(guards.remove(7));
    guards.push(locks[31].read().unwrap());
    assert!(locks[32].write().is_ok() && locks[7].write().is_ok());
    drop(guards);
    assert!(locks.iter().all(|lock| lock.try_write().is_ok()));

    static STATIC: RwLock<u8> = RwLock::new(0);
    for lock in [&STATIC, &RwLock::new(0_u8)] {
        assert!(matches!(lock.read(), Err(LockError::NotInPool)));
        assert!(matches!(lock.try_write(), Err(LockError::NotInPool)));
    }
}

pub fn rwlock_guards_refuse_a_spawn() {
    let lock = one();
    let guard = lock.read().unwrap();
    scope(|s| {
        assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. })));
        drop(guard);
        let guard = lock.write().unwrap();
        assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. })));
        drop(guard);
        s.spawn(|| assert!(lock.write().is_ok())).unwrap();
    });
}

pub fn a_forked_read_is_void() {
    let lock = one();
    let guard = lock.read().unwrap();
    let Some(child) = fork() else {
        drop(guard);
        leave(matches!(lock.try_write(), Err(LockError::WouldBlock)));
    };
    assert_eq!(reap(child), 0);
    drop(guard);
    assert!(lock.write_timeout(LONG).is_ok());
}

pub fn a_leaked_read_outlives_its_thread() {
    let lock = one();
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s
            .spawn(|| {
                std::thread::scope(|threads| {
                    let leaks = threads.spawn(|| std::mem::forget(lock.read().unwrap()));
                    leaks.join().unwrap();
                });
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        // Its thread has ended, the process has not.
        let limit = Duration::from_millis(150);
        assert!(matches!(
            lock.write_timeout(limit),
            Err(LockError::TimedOut)
        ));
        kill(child);
    });
    assert!(lock.write_timeout(LONG).is_ok());
    tell(&writer);
}
