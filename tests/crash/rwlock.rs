//! Readers and writers, and the mutex that repairs: every operation, killed after every change.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use shmkit::sync::{LockError, WriteOrphan};
use shmkit::{KillSafe, Recover, RecoverableMutex, RwLock, ShmSafe};

use super::engine::{Crash, Suite};
use super::in_pool::ensure;
use super::sync::{HALF, NEW, OLD, Pair, case, killed_in, nothing, says};

pub fn cases(suite: &mut Suite) {
    rwlocks(suite);
    recoverable(suite);
}

/// What the survivor finds, and whether it was told of a death. The lock is as new then.
fn found(lock: &RwLock<Pair>) -> Result<(Pair, bool), String> {
    let (value, died) = match lock.try_read() {
        Ok(guard) => (*guard, false),
        Err(LockError::OwnerDied(orphan)) => (*orphan.into_guard(), true),
        Err(other) => return Err(format!("{other:?}")),
    };
    let guard = lock.try_write();
    let guard = guard.map_err(|error| format!("writing: {error:?}"))?;
    ensure(*guard == value, || format!("{value:?} became {:?}", *guard))?;
    ensure(matches!(lock.read(), Err(LockError::WouldDeadlock)), || {
        "not found out that it is held".into()
    })?;
    drop(guard);
    let guard = lock.read().map_err(|error| format!("reading: {error:?}"))?;
    ensure(
        matches!(lock.write(), Err(LockError::WouldDeadlock)),
        || "not found out that it is read".into(),
    )?;
    drop(guard);
    ensure(says(lock, "written: false"), || format!("{lock:?}"))?;
    Ok((value, died))
}

/// A lock whose writer was killed between the halves of a change.
fn orphaned(lock: &RwLock<Pair>) {
    killed_in(
        lock,
        |lock| {
            let mut guard = lock.write().expect("the lock");
            guard.0 = HALF.0;
            std::mem::forget(guard);
        },
        |_| false,
    );
}

fn take_over(lock: &RwLock<Pair>) -> WriteOrphan<'_, Pair> {
    match lock.read() {
        Err(LockError::OwnerDied(orphan)) => orphan,
        Ok(_) => panic!("no orphan"),
        Err(other) => panic!("{other}"),
    }
}

fn rwlocks(suite: &mut Suite) {
    suite.run(case(
        "rwlock, read and unlock",
        || RwLock::new(OLD),
        nothing,
        |lock| assert_eq!(*lock.read().expect("the lock"), OLD),
        |lock, _| ensure(found(lock)? == (OLD, false), || "changed".into()),
    ));
    suite.run(case(
        "rwlock, two reads at once",
        || (RwLock::new(OLD), RwLock::new(NEW)),
        nothing,
        |(a, b)| {
            let first = a.read().expect("the lock");
            let second = b.try_read().expect("the other lock");
            assert_ne!(*first, *second);
            drop(first);
            drop(a.read().expect("the lock again"));
            drop(second);
        },
        |(a, b), _| {
            let both = [found(a)?, found(b)?];
            ensure(both == [(OLD, false), (NEW, false)], || format!("{both:?}"))
        },
    ));
    suite.run(case(
        "rwlock, write and unlock",
        || RwLock::new(OLD),
        nothing,
        |lock| {
            let mut guard = lock.write().expect("the lock");
            guard.0 = 7;
            guard.1 = 7;
        },
        |lock, crash| {
            let (value, died) = found(lock)?;
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
        "rwlock, write and unwind",
        || RwLock::new(OLD),
        nothing,
        |lock| {
            let unwinds = || {
                let mut guard = lock.write().expect("the lock");
                guard.0 = HALF.0;
                resume_unwind(Box::new(()))
            };
            catch_unwind(AssertUnwindSafe(unwinds)).expect_err("as told");
        },
        |lock, crash| {
            let (value, told) = match lock.try_read() {
                Ok(guard) => (*guard, None),
                Err(LockError::Panicked(guard)) => (*guard, Some("a panic")),
                Err(LockError::OwnerDied(orphan)) => (*orphan.into_guard(), Some("a death")),
                Err(other) => return Err(format!("{other:?}")),
            };
            ensure(told.is_some() || value == OLD && !crash.finished, || {
                format!("not told of {value:?}")
            })?;
            lock.clear_poison();
            ensure(found(lock)? == (value, false), || "told again".into())
        },
    ));
    suite.run(
        case(
            "rwlock, try_write that gives up",
            || RwLock::new(OLD),
            // Its reader lives as long as the case.
            |lock| std::mem::forget(lock.read()),
            |lock| {
                // The same thread reads in the process that set up; here it is another's.
                assert!(matches!(lock.try_write(), Err(LockError::WouldBlock)));
            },
            |lock, _| {
                let read = lock.try_read().map(|guard| *guard);
                ensure(matches!(read, Ok(OLD)), || format!("{:?}", read.err()))?;
                let write = lock.try_write().map(drop);
                ensure(matches!(write, Err(LockError::WouldBlock)), || {
                    format!("{write:?}")
                })
            },
        )
        .at_least(4),
    );
    suite.run(case(
        "rwlock, write where a reader died",
        || RwLock::new(OLD),
        |lock| killed_in(lock, |lock| std::mem::forget(lock.read()), |_| false),
        |lock| *lock.write().expect("the lock") = NEW,
        |lock, crash| {
            let (value, died) = found(lock)?;
            ensure(!(crash.finished && (died || value != NEW)), || {
                format!("{value:?} when it had returned, died: {died}")
            })?;
            ensure(value.is_mix(OLD, NEW), || format!("{value:?}"))
        },
    ));
    suite.run(case(
        "rwlock, take over and reset",
        || RwLock::new(OLD),
        orphaned,
        |lock| drop(take_over(lock).reset(NEW)),
        |lock, crash| {
            let (value, died) = found(lock)?;
            ensure(!(crash.finished && died), || "told of nothing".into())?;
            ensure(died || value == NEW, || format!("not told of {value:?}"))?;
            ensure(value.is_mix(HALF, NEW), || format!("{value:?}"))
        },
    ));
    suite.run(case(
        "rwlock, take over and pass on",
        || RwLock::new(OLD),
        orphaned,
        |lock| drop(take_over(lock)),
        |lock, _| {
            let (value, died) = found(lock)?;
            ensure(died && value == HALF, || {
                format!("{value:?}, told of a death: {died}")
            })
        },
    ));
}

/// Three numbers that are to be equal; the first one counts.
#[derive(Debug, ShmSafe, KillSafe)]
struct Triple([u64; 3]);

impl Recover for Triple {
    fn recover(&mut self) {
        self.0[1] = self.0[0];
        self.0[2] = self.0[0];
    }
}

/// The value is in order whenever it is locked, and `new` when the operation had returned.
fn in_order(
    lock: &RecoverableMutex<Triple>,
    crash: &Crash,
    allowed: &[u64],
    new: u64,
) -> Result<(), String> {
    for _ in 0..2 {
        let guard = lock.try_lock().map_err(|error| format!("{error:?}"))?;
        let [a, b, c] = guard.0;
        ensure(a == b && b == c && allowed.contains(&a), || {
            format!("{:?}", guard.0)
        })?;
        ensure(!crash.finished || a == new, || "it had returned".into())?;
    }
    ensure(says(lock, "locked: false, to_be_repaired: false"), || {
        format!("{lock:?}")
    })
}

fn recoverable(suite: &mut Suite) {
    let add = |lock: &RecoverableMutex<Triple>| {
        let mut guard = lock.lock().expect("the lock");
        for number in &mut guard.0 {
            *number += 1;
        }
    };
    suite.run(case(
        "recoverable mutex, lock and unlock",
        || RecoverableMutex::new(Triple([0; 3])),
        nothing,
        add,
        |lock, crash| in_order(lock, crash, &[0, 1], 1),
    ));
    suite.run(case(
        "recoverable mutex, repair",
        || RecoverableMutex::new(Triple([0; 3])),
        |lock| {
            killed_in(
                lock,
                |lock| {
                    let mut guard = lock.lock().expect("the lock");
                    guard.0[0] = 5;
                    std::mem::forget(guard);
                },
                |_| false,
            );
        },
        add,
        |lock, crash| in_order(lock, crash, &[5, 6], 6),
    ));
}
