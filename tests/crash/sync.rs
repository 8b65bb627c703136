//! Locks and meeting points: every operation, killed after every change.
//!
//! The objects are held by the process that sets up, so that nothing is freed meanwhile. After recovery the pool's
//! full check must pass with as much allocated as before, and the survivor uses the object: it must not hang, and
//! it must be told of what died.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::sync::{AcquireError, BarrierError, Orphan, Poison, ReentrantGuard};
use shmkit::{
    Barrier, Condvar, KillSafe, LockError, Mutex, MutexGuard, Pool, ReentrantMutex, Semaphore,
    Shared, ShmSafe,
};

use super::engine::{Case, Crash, Suite};
use super::in_pool::{self, InPool, ensure};

/// A pool with the object of the case.
pub struct World<T: ShmSafe> {
    pool: Pool,
    object: Shared<T>,
    /// Bytes allocated when the operation started.
    before: usize,
}

impl<T: ShmSafe> InPool for World<T> {
    fn pool(&self) -> Pool {
        self.pool
    }
}

/// A case on an object that `make` makes and `setup` brings into the state where the operation finds it.
pub fn case<T: ShmSafe + Debug>(
    name: &'static str,
    make: impl Fn() -> T + 'static,
    setup: impl Fn(&T) + 'static,
    operation: impl Fn(&T) + 'static,
    check: impl Fn(&T, &Crash) -> Result<(), String> + 'static,
) -> Case<World<T>> {
    in_pool::case(format!("sync/{name}"), move || {
        let pool = Pool::builder().max_size(16 << 20).create().expect("a pool");
        let object = pool.create(make()).expect("room");
        setup(&object);
        let before = pool.stats().allocated;
        World {
            pool,
            object,
            before,
        }
    })
    .attach(|world| slot(world.pool))
    .operation(move |world| operation(&world.object))
    .verify(move |world, crash| {
        // What died in recovery is dead now too.
        world.pool.recover();
        world.intact("after recovery")?;
        check(&world.object, crash)?;
        world.intact("after use")
    })
}

impl<T: ShmSafe> World<T> {
    fn intact(&self, when: &str) -> Result<(), String> {
        let report = self.pool.check_quiescent();
        ensure(report.is_ok(), || format!("{when}: {report}"))?;
        let now = self.pool.stats().allocated;
        ensure(now == self.before, || {
            format!("{when}: {now} bytes allocated, not {}", self.before)
        })
    }
}

/// The thread has its slot, so that the operation is the operation.
fn slot(pool: Pool) {
    let block = pool.allocate(std::alloc::Layout::new::<u8>());
    // SAFETY: allocated just now.
    unsafe { pool.deallocate(block.expect("a slot").cast()) }.expect("a free");
}

pub fn nothing<T>(_: &T) {}

/// Runs `act` in a child that is killed after it, and reaped. If `act` does not end, the child is killed once `waits`
/// is true.
pub fn killed_in<T>(object: &T, act: impl FnOnce(&T), waits: impl Fn(&T) -> bool) {
    // SAFETY: the process has one thread, so the child may do what it likes.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "a child");
    if child == 0 {
        act(object);
        // SAFETY: ends this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        // SAFETY: a child of this process; the status is not asked for.
        let reaped = unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) };
        if reaped == child {
            break;
        }
        if waits(object) {
            // SAFETY: as above, and not reaped so far.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::yield_now();
    }
}

pub fn says(object: &impl Debug, what: &str) -> bool {
    format!("{object:?}").contains(what)
}

pub fn cases(suite: &mut Suite) {
    mutexes(suite);
    reentrant(suite);
    condvars(suite);
    semaphores(suite);
    barriers(suite);
}

/// Two numbers that are changed one after the other.
#[derive(Clone, Copy, PartialEq, Debug, ShmSafe, KillSafe)]
pub struct Pair(pub u64, pub u64);

pub const OLD: Pair = Pair(0, 0);
pub const HALF: Pair = Pair(1, 0);
pub const NEW: Pair = Pair(7, 7);

impl Pair {
    pub fn is_mix(self, a: Pair, b: Pair) -> bool {
        [a.0, b.0].contains(&self.0) && [a.1, b.1].contains(&self.1)
    }
}

/// What the survivor finds, and whether it was told of a death. The lock is as new then.
fn found(mutex: &Mutex<Pair>) -> Result<(Pair, bool), String> {
    let (guard, died) = match mutex.lock() {
        Ok(guard) => (guard, false),
        Err(LockError::OwnerDied(orphan)) => (orphan.into_guard(), true),
        Err(other) => return Err(format!("{other:?}")),
    };
    let value = *guard;
    drop(guard);
    let again = mutex.lock().map_err(|e| format!("the second time {e:?}"))?;
    ensure(*again == value, || format!("{value:?} became {:?}", *again))?;
    ensure(
        matches!(mutex.lock(), Err(LockError::WouldDeadlock)),
        || "not found out that it is held".into(),
    )?;
    drop(again);
    ensure(says(mutex, "locked: false"), || format!("{mutex:?}"))?;
    Ok((value, died))
}

/// A mutex whose holder was killed between the halves of a change.
fn orphaned(mutex: &Mutex<Pair>) {
    killed_in(
        mutex,
        |mutex| {
            let mut guard = mutex.lock().expect("the lock");
            guard.0 = HALF.0;
            std::mem::forget(guard);
        },
        |_| false,
    );
}

fn take_over(mutex: &Mutex<Pair>) -> Orphan<'_, Pair> {
    match mutex.lock() {
        Err(LockError::OwnerDied(orphan)) => orphan,
        other => panic!("{other:?}"),
    }
}

fn mutexes(suite: &mut Suite) {
    suite.run(case(
        "mutex, lock and unlock",
        || Mutex::new(OLD),
        nothing,
        |mutex| {
            let mut guard = mutex.lock().expect("the lock");
            guard.0 = 7;
            guard.1 = 7;
        },
        |mutex, crash| {
            let (value, died) = found(mutex)?;
            ensure(!(crash.finished && (died || value != NEW)), || {
                format!("{value:?} when it had returned, died: {died}")
            })?;
            ensure(died || value == OLD || value == NEW, || {
                format!("not told of {value:?}")
            })?;
            ensure(value.is_mix(OLD, NEW), || format!("{value:?}"))
        },
    ));
    suite.run(case(
        "mutex, try_lock and unlock",
        || Mutex::new(OLD),
        nothing,
        |mutex| mutex.try_lock().expect("the lock").0 = HALF.0,
        |mutex, crash| {
            let (value, died) = found(mutex)?;
            ensure(value.is_mix(OLD, HALF), || format!("{value:?}"))?;
            ensure(!(crash.finished && (died || value != HALF)), || {
                format!("{value:?} when it had returned, died: {died}")
            })
        },
    ));
    suite.run(case(
        "mutex, take over and reset",
        || Mutex::new(OLD),
        orphaned,
        |mutex| drop(take_over(mutex).reset(NEW)),
        |mutex, crash| {
            let (value, died) = found(mutex)?;
            ensure(!(crash.finished && died), || "told of nothing".into())?;
            ensure(died || value == NEW, || format!("not told of {value:?}"))?;
            ensure(value.is_mix(HALF, NEW), || format!("{value:?}"))
        },
    ));
    suite.run(case(
        "mutex, take over as it is",
        || Mutex::new(OLD),
        orphaned,
        |mutex| take_over(mutex).into_guard().1 = 1,
        |mutex, crash| {
            let (value, died) = found(mutex)?;
            ensure(!(crash.finished && died), || "told of nothing".into())?;
            ensure(died || value == Pair(1, 1), || {
                format!("not told of {value:?}")
            })?;
            ensure(value.is_mix(HALF, Pair(1, 1)), || format!("{value:?}"))
        },
    ));
    suite.run(
        case(
            "mutex, take over and pass on",
            || Mutex::new(OLD),
            orphaned,
            |mutex| drop(take_over(mutex)),
            |mutex, _| {
                let (value, died) = found(mutex)?;
                ensure(died && value == HALF, || {
                    format!("{value:?}, told of a death: {died}")
                })
            },
        )
        .at_least(4),
    );
}

fn reentrant(suite: &mut Suite) {
    let check = |mutex: &ReentrantMutex<AtomicU64>, crash: &Crash, poisoned: bool| {
        let guard = mutex.lock().map_err(|e| format!("{e:?}"))?;
        let poison = ReentrantGuard::poison(&guard);
        ensure(
            [None, Some(Poison::OwnerDied)].contains(&poison) && !(poisoned && poison.is_none()),
            || format!("poison: {poison:?}"),
        )?;
        let value = guard.load(Ordering::Relaxed);
        ensure(value == 5 || value == 0 && !crash.finished, || {
            format!("{value}")
        })?;
        ensure(
            poison.is_some() || poisoned || value == 5 || !crash.finished,
            || format!("not told of {value}"),
        )?;
        ensure(!(crash.finished && !poisoned && poison.is_some()), || {
            "told of nothing".into()
        })?;
        let inner = mutex.lock().map_err(|e| format!("again: {e:?}"))?;
        drop(guard);
        ensure(says(mutex, "locked: true"), || "unlocked early".into())?;
        drop(inner);
        ensure(says(mutex, "locked: false"), || "not unlocked".into())?;
        mutex.clear_poison();
        let guard = mutex.lock().map_err(|e| format!("at last: {e:?}"))?;
        ensure(ReentrantGuard::poison(&guard).is_none(), || {
            "poisoned for ever".into()
        })
    };
    let twice = |mutex: &ReentrantMutex<AtomicU64>| {
        let outer = mutex.lock().expect("the lock");
        let inner = mutex.lock().expect("the lock again");
        inner.store(5, Ordering::Relaxed);
        drop(inner);
        drop(outer);
    };
    suite.run(case(
        "reentrant mutex, twice",
        || ReentrantMutex::new(AtomicU64::new(0)),
        nothing,
        twice,
        move |mutex, crash| check(mutex, crash, false),
    ));
    suite.run(case(
        "reentrant mutex, twice after a death",
        || ReentrantMutex::new(AtomicU64::new(0)),
        |mutex| {
            killed_in(
                mutex,
                |mutex| {
                    // The depth that it leaves is 2.
                    std::mem::forget((mutex.lock(), mutex.lock()));
                },
                |_| false,
            );
        },
        twice,
        move |mutex, crash| check(mutex, crash, true),
    ));
}

type Gate = (Mutex<Pair>, Condvar);

fn gate() -> Gate {
    (Mutex::new(OLD), Condvar::new())
}

/// A survivor can lock, wait, and lock again.
fn can_wait((mutex, condvar): &Gate, crash: &Crash) -> Result<(), String> {
    let (_, died) = found(mutex)?;
    ensure(!(crash.finished && died), || "told of nothing".into())?;
    let guard: MutexGuard<Pair> = mutex.lock().map_err(|e| format!("{e:?}"))?;
    let (guard, result) = condvar
        .wait_timeout(guard, Duration::from_millis(1))
        .map_err(|e| format!("{e:?}"))?;
    ensure(result.timed_out(), || "woken by nobody".into())?;
    drop(guard);
    condvar.notify_all();
    ensure(found(mutex)? == (OLD, false), || "changed".into())
}

fn condvars(suite: &mut Suite) {
    suite.run(
        case(
            "condvar, notify_one",
            gate,
            nothing,
            |(_, condvar)| condvar.notify_one(),
            can_wait,
        )
        .at_least(3),
    );
    suite.run(case(
        "condvar, notify_all with the lock",
        gate,
        nothing,
        |(mutex, condvar)| {
            let _guard = mutex.lock().expect("the lock");
            condvar.notify_all();
        },
        can_wait,
    ));
    // How often it looks depends on the clock, so no two runs are alike.
    suite.run(
        case(
            "condvar, wait_timeout",
            gate,
            nothing,
            |(mutex, condvar)| {
                let guard = mutex.lock().expect("the lock");
                let waited = condvar.wait_timeout(guard, Duration::from_millis(60));
                assert!(waited.expect("the lock again").1.timed_out());
            },
            can_wait,
        )
        .without_second_order()
        .without_real_kills(),
    );
}

/// All `permits` are there, can be taken and given back, and no more.
fn has(semaphore: &Semaphore, permits: u32) -> Result<(), String> {
    let available = semaphore.available_permits();
    ensure(available == permits, || {
        format!("{available} permits, not {permits}")
    })?;
    let taken: Vec<_> = (0..permits).map(|_| semaphore.acquire()).collect();
    ensure(taken.iter().all(Result::is_ok), || format!("{taken:?}"))?;
    let more = semaphore.try_acquire().map(|_| ());
    ensure(more == Err(AcquireError::WouldBlock), || {
        format!("{more:?}")
    })?;
    drop(taken);
    let available = semaphore.available_permits();
    ensure(available == permits, || {
        format!("{available} permits after use, not {permits}")
    })
}

/// As many as before, or if it may have happened `changed`; exactly that when it had returned.
fn has_either(s: &Semaphore, crash: &Crash, old: u32, changed: u32) -> Result<(), String> {
    let unchanged = s.available_permits() == old && !crash.finished;
    has(s, if unchanged { old } else { changed })
}

fn semaphores(suite: &mut Suite) {
    suite.run(case(
        "semaphore, acquire and give back",
        || Semaphore::new(2),
        nothing,
        |semaphore| drop(semaphore.acquire().expect("a permit")),
        |semaphore, _| has(semaphore, 2),
    ));
    suite.run(case(
        "semaphore, two at once",
        || Semaphore::new(3),
        nothing,
        |semaphore| {
            let first = semaphore.acquire().expect("a permit");
            let second = semaphore.acquire().expect("a permit");
            drop(first);
            let third = semaphore.acquire().expect("a permit");
            drop(second);
            drop(third);
        },
        |semaphore, _| has(semaphore, 3),
    ));
    suite.run(case(
        "semaphore, acquire and forget",
        || Semaphore::new(2),
        nothing,
        |semaphore| semaphore.acquire().expect("a permit").forget(),
        |semaphore, crash| has_either(semaphore, crash, 2, 1),
    ));
    suite.run(
        case(
            "semaphore, add_permits",
            || Semaphore::new(2),
            nothing,
            |semaphore| semaphore.add_permits(3).expect("room"),
            |semaphore, crash| has_either(semaphore, crash, 2, 5),
        )
        .at_least(3),
    );
    suite.run(case(
        "semaphore, add_permits with one held",
        || Semaphore::new(2),
        nothing,
        |semaphore| {
            let permit = semaphore.acquire().expect("a permit");
            semaphore.add_permits(3).expect("room");
            drop(permit);
        },
        |semaphore, crash| has_either(semaphore, crash, 2, 5),
    ));
    suite.run(case(
        "semaphore, try_acquire with none left",
        || Semaphore::new(1),
        nothing,
        |semaphore| {
            let permit = semaphore.acquire().expect("a permit");
            let second = semaphore.try_acquire().map(|_| ());
            assert_eq!(second, Err(AcquireError::WouldBlock));
            drop(permit);
        },
        |semaphore, _| has(semaphore, 1),
    ));
    suite.run(
        case(
            "semaphore, recover a dead holder's",
            || Semaphore::new(3),
            |semaphore| {
                killed_in(
                    semaphore,
                    |s| std::mem::forget((s.acquire(), s.acquire())),
                    |_| false,
                );
            },
            |semaphore| {
                // After a sleep of a tick a waiter does what is to be done for the dead.
                let one = semaphore.acquire().expect("a permit");
                let two = semaphore.acquire().expect("the dead one's");
                drop((one, two));
            },
            |semaphore, _| has(semaphore, 3),
        )
        .without_real_kills(),
    );
    suite.run(
        in_pool::case("sync/recover several dead at once", || {
            let pool = Pool::builder().max_size(16 << 20).create().expect("a pool");
            let object = pool.create(Semaphore::new(3)).expect("room");
            let before = pool.stats().allocated;
            let hangs = |semaphore: &Semaphore| {
                slot(pool);
                std::mem::forget(semaphore.acquire());
                loop {
                    std::thread::park();
                }
            };
            let threads = |semaphore: &Semaphore| {
                std::thread::scope(|threads| {
                    for _ in 0..3 {
                        threads.spawn(|| hangs(semaphore));
                    }
                });
            };
            killed_in(&*object, threads, |s| s.available_permits() == 0);
            World {
                pool,
                object,
                before,
            }
        })
        .operation(|world| {
            // Without a slot: who gets one has recovered all of them before.
            assert_eq!(world.pool.recover().threads, 3);
            has(&world.object, 3).expect("the permits of all");
        })
        .verify(|world, _| {
            world.pool.recover();
            world.intact("after recovery")?;
            has(&world.object, 3)
        })
        .without_real_kills(),
    );
}

/// A barrier of three with one killed while it waits.
fn party_killed(barrier: &Barrier) {
    killed_in(
        barrier,
        |barrier| {
            let _ = barrier.wait();
        },
        |barrier| says(barrier, "arrived: 1"),
    );
}

fn barriers(suite: &mut Suite) {
    let waits = |barrier: &Barrier, _: &Crash| {
        for _ in 0..3 {
            let result = barrier.wait().map(|result| result.is_leader());
            ensure(result == Ok(true), || format!("{result:?}"))?;
        }
        ensure(!barrier.is_broken(), || "broken".into())
    };
    suite.run(case(
        "barrier, the first wait",
        || Barrier::new(1),
        nothing,
        |barrier| assert!(barrier.wait().expect("all").is_leader()),
        waits,
    ));
    suite.run(case(
        "barrier, two waits after others'",
        || Barrier::new(1),
        |barrier| assert!(barrier.wait().expect("all").is_leader()),
        |barrier| {
            assert!(barrier.wait().expect("all").is_leader());
            assert!(barrier.wait().expect("all").is_leader());
        },
        waits,
    ));
    suite.run(
        case(
            "barrier, reset",
            || Barrier::new(1),
            |barrier| assert!(barrier.wait().expect("all").is_leader()),
            Barrier::reset,
            waits,
        )
        .at_least(3),
    );
    // How often it looks before it finds the dead one out depends on the clock.
    suite.run(
        case(
            "barrier, wait for the dead",
            || Barrier::new(3),
            party_killed,
            |barrier| assert_eq!(barrier.wait().err(), Some(BarrierError::Broken)),
            |barrier, crash| {
                let counted = says(barrier, "arrived: 2");
                match barrier.wait() {
                    // The third to arrive, after two that are dead now.
                    Ok(result) if counted && !crash.finished && result.is_leader() => {}
                    Err(BarrierError::Broken) => {}
                    other => return Err(format!("{other:?}")),
                }
                barrier.reset();
                ensure(says(barrier, "arrived: 0, broken: false"), || {
                    format!("{barrier:?}")
                })
            },
        )
        .without_real_kills(),
    );
    suite.run(
        case(
            "barrier, reset of a broken one",
            || Barrier::new(3),
            |barrier| {
                party_killed(barrier);
                assert_eq!(barrier.wait().err(), Some(BarrierError::Broken));
            },
            Barrier::reset,
            |barrier, crash| {
                let broken = barrier.is_broken();
                ensure(!(broken && crash.finished), || "not reset".into())?;
                if broken {
                    let result = barrier.wait().err();
                    ensure(result == Some(BarrierError::Broken), || {
                        format!("{result:?}")
                    })?;
                    barrier.reset();
                }
                ensure(says(barrier, "arrived: 0, broken: false"), || {
                    format!("{barrier:?}")
                })
            },
        )
        .at_least(3),
    );
}
