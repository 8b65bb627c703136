//! Locks: every operation, killed after every change. Also what all cases of `sync` have in common.
//!
//! The objects are held by the process that sets up, so that nothing is freed meanwhile. After recovery the pool's
//! full check must pass with as much allocated as before, and the survivor uses the object: it must not hang, and it
//! must be told of the death.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::sync::{Orphan, Poison, ReentrantGuard};
use shmkit::{
    Condvar, KillSafe, LockError, Mutex, MutexGuard, Pool, ReentrantMutex, Shared, ShmSafe,
};

use super::engine::{Case, Crash, Suite};
use super::in_pool::{self, InPool, ensure};

/// A pool with the object of the case.
pub struct World<T: ShmSafe> {
    pub pool: Pool,
    pub object: Shared<T>,
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
    in_pool::case(format!("sync/{name}"), move || World::new(make(), &setup))
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
    pub fn new(object: T, setup: impl FnOnce(&T)) -> Self {
        let pool = in_pool::pool();
        let object = pool.create(object).expect("room");
        setup(&object);
        let before = pool.stats().allocated;
        World {
            pool,
            object,
            before,
        }
    }

    pub fn intact(&self, when: &str) -> Result<(), String> {
        let report = self.pool.check_quiescent();
        ensure(report.is_ok(), || format!("{when}: {report}"))?;
        let now = self.pool.stats().allocated;
        ensure(now == self.before, || {
            format!("{when}: {now} bytes allocated, not {}", self.before)
        })
    }
}

/// The thread has its slot, so that the operation is the operation.
pub fn slot(pool: Pool) {
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
                let waited = condvar.wait_timeout(guard, Duration::from_millis(500));
                assert!(waited.expect("the lock again").1.timed_out());
            },
            can_wait,
        )
        .without_second_order()
        .without_real_kills(),
    );
}
