//! Mutexes of both kinds.

use std::io::pipe;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shmkit::process::{SpawnError, scope};
use shmkit::sync::{LockFailure, Poison, ReentrantGuard};
use shmkit::{LockError, Mutex, MutexGuard, ReentrantMutex, Shared};

use super::{
    LONG, holder, kill, kill_with, listen, shared, tell, tell_and_hang, until, until_asleep,
};
use crate::common::{Random, fork, leave, quietly, reap};

/// Has a child killed while it holds the mutex; its pid.
fn kill_holder(mutex: &Shared<Mutex<[u64; 2]>>) -> u32 {
    kill_with(|| match mutex.lock() {
        Ok(mut guard) => {
            guard[0] += 1;
            Ok(guard)
        }
        Err(LockError::OwnerDied(orphan)) => Err(orphan),
        Err(error) => panic!("{error}"),
    })
}

fn one() -> Shared<Mutex<[u64; 2]>> {
    shared(Mutex::new([0, 0]))
}

#[track_caller]
fn orphan(mutex: &Mutex<[u64; 2]>) -> shmkit::Orphan<'_, [u64; 2]> {
    match mutex.lock_timeout(LONG) {
        Err(LockError::OwnerDied(orphan)) => orphan,
        Ok(_) => panic!("locked as if nothing had happened"),
        Err(error) => panic!("{error}"),
    }
}

pub fn totals_under_load() {
    const ROUNDS: u64 = 20_000;
    let mutex = one();
    scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..ROUNDS {
                    let mut guard = mutex.lock().unwrap();
                    let [a, b] = *guard;
                    assert_eq!(a, b);
                    guard[0] = a + 1;
                    std::hint::black_box(&mut guard);
                    guard[1] = b + 1;
                }
            })
            .unwrap();
        }
    });
    assert_eq!(*mutex.lock().unwrap(), [4 * ROUNDS; 2]);
}

pub fn totals_under_kills() {
    let world = shared((Mutex::new([0_u64; 2]), AtomicU64::new(0)));
    let (mutex, acknowledged) = &*world;
    let mut orphans = 0;
    let mut random = Random::new(1);
    let mut waiters = 0;
    scope(|s| {
        let worker = || -> u8 {
            loop {
                let mut guard = match mutex.lock() {
                    Ok(guard) => guard,
                    // Put right: the pair is equal again.
                    Err(LockError::OwnerDied(orphan)) => {
                        let mut guard = orphan.into_guard();
                        guard[1] = guard[0];
                        guard
                    }
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
        for _ in 0..60 {
            let children = [0, 1].map(|_| s.spawn(worker).unwrap());
            let goal = acknowledged.load(Ordering::SeqCst) + random.next() % 2000;
            until("progress", || acknowledged.load(Ordering::SeqCst) > goal);
            let [a, b] = children;
            kill(a);
            let now = acknowledged.load(Ordering::SeqCst);
            // The other one goes on.
            until("progress after a kill", || {
                acknowledged.load(Ordering::SeqCst) > now
            });
            kill(b);
            match mutex.lock_timeout(LONG) {
                Ok(guard) => assert_eq!(guard[0], guard[1]),
                Err(LockError::OwnerDied(orphan)) => {
                    orphans += 1;
                    let mut guard = orphan.into_guard();
                    guard[1] = guard[0];
                }
                Err(error) => panic!("{error}"),
            }
            waiters += 1;
        }
    });
    assert_eq!(waiters, 60);
    let guard = mutex.lock().unwrap();
    let acknowledged = acknowledged.load(Ordering::SeqCst);
    assert!(guard[0] >= acknowledged, "{} < {acknowledged}", guard[0]);
    // A killed worker had added at most one that it did not tell of.
    assert!(guard[0] <= acknowledged + 120);
    println!("  orphans seen by the parent: {orphans}");
}

pub fn killed_owner() {
    let mutex = one();
    let pid = kill_holder(&mutex);
    let orphan = orphan(&mutex);
    assert_eq!(orphan.owner().map(|owner| owner.pid()), Some(pid));
    assert_eq!(*orphan.into_guard(), [1, 0]);
}

pub fn killed_owner_while_another_waits() {
    let mutex = one();
    let pipe = pipe().unwrap();
    scope(|s| {
        let owner = holder(s, &pipe, || mutex.lock().unwrap());
        let owner_pid = owner.id().pid();
        // Several: the kernel's mark wakes one of them.
        let waiters = [0, 1, 2].map(|_| {
            s.spawn(|| match mutex.lock_timeout(LONG) {
                Err(LockError::OwnerDied(orphan)) => orphan.owner().map(|owner| owner.pid()),
                Ok(_) => panic!("locked as if nothing had happened"),
                Err(error) => panic!("{error}"),
            })
            .unwrap()
        });
        for waiter in &waiters {
            until_asleep(waiter.id().pid());
        }
        kill(owner);
        let told = waiters.map(|waiter| waiter.join().unwrap());
        // The first one took it from the dead, the others from each other.
        assert_eq!(told.iter().flatten().collect::<Vec<_>>(), [&owner_pid]);
    });
}

/// Nobody waits for what recovery does with the dead one's memory.
pub fn a_taker_leaves_the_rest_of_recovery() {
    let mutex = one();
    let pipe = pipe().unwrap();
    scope(|s| {
        let owner = holder(s, &pipe, || mutex.lock().unwrap());
        owner.kill().unwrap();
        until("dead", || owner.is_finished());
        drop(orphan(&mutex).into_guard());
        // Not reaped yet, so nobody else has recovered it.
        assert_eq!(mutex.pool().recover().threads, 1);
        assert_eq!(mutex.pool().recover().threads, 0);
        owner.join().unwrap_err();
    });
}

pub fn orphan_dropped() {
    let mutex = one();
    kill_holder(&mutex);
    drop(orphan(&mutex));
    let again = orphan(&mutex);
    assert_eq!(again.owner(), None);
    drop(again);
    assert!(matches!(mutex.try_lock(), Err(LockError::OwnerDied(_))));
    assert!(!mutex.is_poisoned());
    mutex.clear_poison();
    assert!(matches!(mutex.lock(), Err(LockError::OwnerDied(_))));
}

pub fn orphan_reset() {
    let mutex = one();
    kill_holder(&mutex);
    let mut guard = orphan(&mutex).reset([7, 8]);
    guard[1] += 1;
    assert!(matches!(mutex.lock(), Err(LockError::WouldDeadlock)));
    drop(guard);
    assert_eq!(*mutex.lock().unwrap(), [7, 9]);
}

/// A value that is replaced is not what a panic before the death has left.
pub fn only_a_reset_ends_poison() {
    for is_reset in [true, false] {
        let mutex = one();
        let panics = || {
            let _guard = mutex.lock();
            panic!("meant");
        };
        assert!(quietly(|| catch_unwind(panics)).is_err());
        kill_with(|| mutex.lock());
        let orphan = orphan(&mutex);
        drop(match is_reset {
            true => orphan.reset([7, 8]),
            false => orphan.into_guard(),
        });
        assert_eq!(mutex.is_poisoned(), !is_reset);
    }
}

pub fn orphan_into_guard() {
    let mutex = one();
    kill_holder(&mutex);
    drop(orphan(&mutex).into_guard());
    assert_eq!(*mutex.lock().unwrap(), [1, 0]);
    kill_holder(&mutex);
    // SAFETY: two numbers are numbers whatever is written to them.
    drop(unsafe { orphan(&mutex).assume_valid() });
    assert_eq!(*mutex.lock().unwrap(), [2, 0]);
}

/// An error that has a guard gives it; all others stay what they are.
pub fn a_guard_in_spite_of_the_error() {
    let mutex = one();
    kill_holder(&mutex);
    let guard = mutex.lock().or_else(LockError::into_guard).unwrap();
    assert_eq!(*guard, [1, 0]);
    let refused = mutex.try_lock().or_else(LockError::into_guard);
    assert!(matches!(refused, Err(LockError::WouldDeadlock)));
    drop((refused, guard));
    assert_eq!(*mutex.lock().unwrap(), [1, 0]);
    quietly(|| {
        let panicked = catch_unwind(|| {
            let _guard = mutex.lock().unwrap();
            panic!("with the lock");
        });
        assert!(panicked.is_err());
    });
    drop(mutex.lock().or_else(LockError::into_guard).unwrap());
    assert!(mutex.is_poisoned());
}

pub fn second_crash() {
    let mutex = one();
    for _ in 0..20 {
        // From the second on the victim dies with an orphan.
        let pid = kill_holder(&mutex);
        if pid.is_multiple_of(3) {
            assert_eq!(orphan(&mutex).owner().map(|owner| owner.pid()), Some(pid));
        }
    }
    assert_eq!(*orphan(&mutex).into_guard(), [1, 0]);
    assert!(mutex.lock().is_ok());
}

pub fn poison_by_panic() {
    let mutex = one();
    quietly(|| {
        let panicked = catch_unwind(|| {
            let mut guard = mutex.lock().unwrap();
            guard[0] = 1;
            panic!("with the lock");
        });
        assert!(panicked.is_err());
        scope(|s| assert!(s.spawn(|| mutex.is_poisoned()).unwrap().join().unwrap()));
    });
    match mutex.lock() {
        Err(LockError::Panicked(guard)) => assert_eq!(*guard, [1, 0]),
        other => panic!("{:?}", other.err()),
    }
    assert!(matches!(mutex.try_lock(), Err(LockError::Panicked(_))));
    mutex.clear_poison();
    assert!(!mutex.is_poisoned());
    assert!(mutex.lock().is_ok());
    quietly(|| {
        scope(|s| {
            let child = s.spawn(|| {
                let _guard = mutex.lock().unwrap();
                if guard_is_held(&mutex) {
                    panic!("in a child");
                }
            });
            let _: Result<(), _> = child.unwrap().join();
        });
    });
    assert!(matches!(mutex.lock(), Err(LockError::Panicked(_))));
}

fn guard_is_held(mutex: &Mutex<[u64; 2]>) -> bool {
    matches!(mutex.try_lock(), Err(LockError::WouldDeadlock))
}

pub fn unwinding_is_not_always_poison() {
    struct Locks<'a>(&'a Mutex<[u64; 2]>);
    impl Drop for Locks<'_> {
        fn drop(&mut self) {
            self.0.lock().unwrap()[0] += 1;
        }
    }
    let mutex = one();
    quietly(|| {
        let _ = catch_unwind(|| {
            let _locks = Locks(&mutex);
            panic!("without the lock");
        });
    });
    assert_eq!(*mutex.lock().unwrap(), [1, 0]);
}

pub fn errors_are_typed() {
    let mutex = one();
    let pipe = pipe().unwrap();
    scope(|s| {
        let holder = holder(s, &pipe, || mutex.lock().unwrap());
        assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
        let limit = Duration::from_millis(30);
        let began = std::time::Instant::now();
        assert!(matches!(
            mutex.lock_timeout(limit),
            Err(LockError::TimedOut)
        ));
        assert!(began.elapsed() >= limit);
        kill(holder);
    });
    let guard = orphan(&mutex).into_guard();
    assert!(matches!(mutex.lock(), Err(LockError::WouldDeadlock)));
    assert!(matches!(mutex.try_lock(), Err(LockError::WouldDeadlock)));
    assert!(matches!(
        mutex.lock_timeout(LONG),
        Err(LockError::WouldDeadlock)
    ));
    drop(guard);
}

pub fn not_in_a_pool() {
    static STATIC: Mutex<u8> = Mutex::new(0);
    let local = Mutex::new(0_u8);
    for mutex in [&STATIC, &local] {
        assert!(matches!(mutex.lock(), Err(LockError::NotInPool)));
        assert!(matches!(mutex.try_lock(), Err(LockError::NotInPool)));
    }
    let reentrant = ReentrantMutex::<u8>::default();
    assert_eq!(reentrant.lock().unwrap_err(), LockFailure::NotInPool);
}

pub fn guards_refuse_a_spawn() {
    let mutex = one();
    let guard = mutex.lock().unwrap();
    scope(|s| {
        assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. })));
        drop(guard);
        s.spawn(|| assert!(mutex.lock().is_ok())).unwrap();
    });
    kill_holder(&mutex);
    let orphan = orphan(&mutex);
    scope(|s| {
        assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. })));
        drop(orphan);
        s.spawn(|| ()).unwrap();
    });
}

pub fn a_leaked_guard_outlives_its_thread() {
    let mutex = one();
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s
            .spawn(|| {
                std::thread::scope(|threads| {
                    // Joined by its handle, which waits until the thread has ended altogether.
                    let leaks = threads.spawn(|| std::mem::forget(mutex.lock().unwrap()));
                    leaks.join().unwrap();
                });
                assert!(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
                scope(|s| assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. }))));
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        // Its thread has ended, the process has not.
        let limit = Duration::from_millis(150);
        assert!(matches!(
            mutex.lock_timeout(limit),
            Err(LockError::TimedOut)
        ));
        kill(child);
    });
    drop(orphan(&mutex).into_guard());
    assert!(mutex.lock().is_ok());
}

/// Times that this process gave the processor away.
fn sleeps() -> i64 {
    // SAFETY: the counts go to a local, which any bytes are valid for.
    unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage.ru_nvcsw
    }
}

/// The kernel marks its words at `exec`, but it is not dead: who waits for it sleeps.
pub fn an_owner_goes_on_to_another_program() {
    use std::os::unix::process::CommandExt;
    let mutex = one();
    scope(|s| {
        let child = s.spawn::<_, ()>(|| {
            let _guard = mutex.lock().unwrap();
            panic!("{}", std::process::Command::new("sleep").arg("1000").exec());
        });
        let child = child.unwrap();
        let program = format!("/proc/{}/comm", child.id().pid());
        while std::fs::read_to_string(&program).unwrap() != "sleep\n" {
            std::thread::yield_now();
        }
        let before = sleeps();
        let refused = mutex.lock_timeout(Duration::from_millis(100));
        assert!(matches!(refused, Err(LockError::TimedOut)));
        let slept = sleeps() - before;
        kill(child);
        assert!(slept >= 3, "slept {slept} times");
    });
    drop(orphan(&mutex).into_guard());
}

pub fn a_forked_guard_is_void() {
    let mutex = one();
    let guard = mutex.lock().unwrap();
    let Some(child) = fork() else {
        drop(guard);
        leave(matches!(mutex.try_lock(), Err(LockError::WouldBlock)));
    };
    assert_eq!(reap(child), 0);
    drop(guard);
    assert!(mutex.lock().is_ok());
}

pub fn many_at_once() {
    const MANY: usize = 500;
    let mutexes = shared([const { Mutex::new(0_u32) }; MANY]);
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s
            .spawn(|| {
                let _guards: Vec<MutexGuard<'_, u32>> =
                    mutexes.iter().map(|mutex| mutex.lock().unwrap()).collect();
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        assert!(matches!(
            mutexes[MANY - 1].try_lock(),
            Err(LockError::WouldBlock)
        ));
        kill(child);
    });
    let guards: Vec<_> = mutexes
        .iter()
        .map(|mutex| match mutex.lock_timeout(LONG) {
            Err(LockError::OwnerDied(orphan)) => orphan.into_guard(),
            other => panic!("{:?}", other.err()),
        })
        .collect();
    assert_eq!(guards.len(), MANY);
    drop(guards);
    assert!(mutexes.iter().all(|mutex| mutex.lock().is_ok()));
}

pub fn reentrancy() {
    let mutex = shared(ReentrantMutex::new(AtomicU64::new(0)));
    let outer = mutex.lock().unwrap();
    let inner = mutex.try_lock().unwrap();
    drop(outer);
    std::thread::scope(|threads| {
        // Joined by its handle, which waits until the thread has ended altogether.
        let other = threads.spawn(|| {
            assert_eq!(mutex.try_lock().unwrap_err(), LockFailure::WouldBlock);
            let limit = Duration::from_millis(5);
            assert_eq!(
                mutex.lock_timeout(limit).unwrap_err(),
                LockFailure::TimedOut
            );
        });
        other.join().unwrap();
    });
    drop(inner);
    scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..5000 {
                    let outer = mutex.lock().unwrap();
                    let inner = mutex.lock().unwrap();
                    let old = outer.load(Ordering::Relaxed);
                    inner.store(old + 1, Ordering::Relaxed);
                }
            })
            .unwrap();
        }
    });
    assert_eq!(mutex.lock().unwrap().load(Ordering::Relaxed), 15_000);
}

pub fn reentrant_owner_killed() {
    let mutex = shared(ReentrantMutex::new(AtomicU64::new(0)));
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s
            .spawn(|| {
                let _guards = [0; 3].map(|_| mutex.lock().unwrap());
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        kill(child);
        let guard = mutex.lock_timeout(LONG).unwrap();
        assert_eq!(ReentrantGuard::poison(&guard), Some(Poison::OwnerDied));
        drop(guard);
        // The dead one's depth is not ours.
        let told = s.spawn(|| {
            let guard = mutex.try_lock().unwrap();
            let told = ReentrantGuard::poison(&guard) == Some(Poison::OwnerDied);
            mutex.clear_poison();
            told && ReentrantGuard::poison(&guard).is_none()
        });
        assert!(told.unwrap().join().unwrap());
    });
    quietly(|| {
        let _ = catch_unwind(|| {
            let _guard = mutex.lock().unwrap();
            panic!("with the lock");
        });
    });
    let guard = mutex.lock().unwrap();
    assert_eq!(ReentrantGuard::poison(&guard), Some(Poison::Panicked));
    tell(&writer);
}
