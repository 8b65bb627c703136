//! Mutexes that repair.

use std::io::{PipeReader, PipeWriter, pipe};
use std::panic::catch_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shmkit::process::scope;
use shmkit::sync::LockFailure;
use shmkit::{KillSafe, Recover, RecoverableMutex, Shared, ShmSafe};

use super::{LONG, kill, listen, shared, tell_and_hang, until};
use crate::common::{Random, quietly};

/// Where a `recover` that hangs tells of it.
static HANGS: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();

/// What `recover` does besides: nothing, panic, or hang, each for as often as it says.
#[derive(Debug, Default, ShmSafe, KillSafe)]
struct Ledger {
    parts: [u64; 4],
    sum: u64,
    repairs: u64,
    panics: u64,
    hangs: u64,
}

impl Recover for Ledger {
    fn recover(&mut self) {
        self.repairs += 1;
        if self.panics > 0 {
            self.panics -= 1;
            panic!("cannot repair");
        }
        if self.hangs > 0 {
            self.hangs -= 1;
            tell_and_hang(&HANGS.get().unwrap().1);
        }
        self.sum = self.parts.iter().sum();
    }
}

type Lock = RecoverableMutex<Ledger>;

fn one() -> Shared<Lock> {
    shared(RecoverableMutex::new(Ledger::default()))
}

fn kill_holder(lock: &Shared<Lock>) {
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let child = s
            .spawn(|| {
                let mut guard = lock.lock().unwrap();
                guard.parts[1] += 1;
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        kill(child);
    });
}

pub fn repaired_after_a_kill() {
    let lock = one();
    kill_holder(&lock);
    let guard = lock.lock_timeout(LONG).unwrap();
    assert_eq!((guard.sum, guard.repairs), (1, 1));
    drop(guard);
    // Once is enough.
    assert_eq!(lock.try_lock().unwrap().repairs, 1);
    kill_holder(&lock);
    assert_eq!(lock.try_lock().unwrap().sum, 2);
}

pub fn repaired_after_a_panic() {
    let lock = one();
    quietly(|| {
        let panicked = catch_unwind(|| {
            let mut guard = lock.lock().unwrap();
            guard.parts[0] = 3;
            panic!("with the lock");
        });
        assert!(panicked.is_err());
    });
    assert!(format!("{lock:?}").contains("to_be_repaired: true"));
    let guard = lock.lock().unwrap();
    assert_eq!((guard.sum, guard.repairs), (3, 1));
}

/// Who unwinds already may lock, and panic once more.
pub fn repaired_after_a_panic_while_unwinding() {
    struct TidiesUp<'a>(&'a Lock);

    impl Drop for TidiesUp<'_> {
        fn drop(&mut self) {
            let panicked = catch_unwind(|| {
                let mut guard = self.0.lock().unwrap();
                guard.parts[0] = 3;
                panic!("with the lock");
            });
            assert!(panicked.is_err());
        }
    }

    let lock = one();
    quietly(|| {
        let panicked = catch_unwind(|| {
            let _tidies_up = TidiesUp(&lock);
            panic!("without the lock");
        });
        assert!(panicked.is_err());
    });
    assert_eq!(lock.lock().unwrap().sum, 3);
}

pub fn killed_while_repairing() {
    let (reader, _) = HANGS.get_or_init(|| pipe().unwrap());
    let lock = one();
    lock.lock().unwrap().hangs = 3;
    kill_holder(&lock);
    for round in 1..=3 {
        scope(|s| {
            let child = s.spawn(|| drop(lock.lock())).unwrap();
            listen(reader);
            assert_eq!(lock.try_lock().unwrap_err(), LockFailure::WouldBlock);
            kill(child);
        });
        assert!(format!("{lock:?}").contains("locked: true"), "{round}");
    }
    let guard = lock.lock_timeout(LONG).unwrap();
    assert_eq!((guard.sum, guard.repairs, guard.hangs), (1, 4, 0));
}

pub fn panic_while_repairing() {
    let lock = one();
    lock.lock().unwrap().panics = 2;
    kill_holder(&lock);
    quietly(|| {
        for _ in 0..2 {
            let panicked = catch_unwind(|| drop(lock.lock()));
            let told = panicked.unwrap_err();
            assert_eq!(*told.downcast_ref::<&str>().unwrap(), "cannot repair");
            // Free, and still to be repaired.
            assert!(format!("{lock:?}").contains("locked: false, to_be_repaired: true"));
        }
    });
    let guard = lock.lock().unwrap();
    assert_eq!((guard.sum, guard.repairs), (1, 3));
}

pub fn repaired_under_kills() {
    let world = shared((RecoverableMutex::new(Ledger::default()), AtomicU64::new(0)));
    let (lock, acknowledged) = &*world;
    let mut random = Random::new(1);
    scope(|s| {
        let worker = || -> u8 {
            let mut i = 0;
            loop {
                let mut guard = lock.lock().unwrap();
                assert_eq!(guard.sum, guard.parts.iter().sum());
                i = (i + 1) % 4;
                guard.parts[i] += 1;
                std::hint::black_box(&mut guard);
                guard.sum += 1;
                drop(guard);
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        };
        for _ in 0..60 {
            let [a, b] = [0, 1].map(|_| s.spawn(worker).unwrap());
            let goal = acknowledged.load(Ordering::SeqCst) + random.next() % 1000;
            until("progress", || acknowledged.load(Ordering::SeqCst) > goal);
            kill(a);
            kill(b);
        }
    });
    let guard = lock.lock_timeout(LONG).unwrap();
    let acknowledged = acknowledged.load(Ordering::SeqCst);
    assert_eq!(guard.sum, guard.parts.iter().sum());
    assert!((acknowledged..=acknowledged + 120).contains(&guard.sum));
    println!("  repaired {} times", guard.repairs);
}

pub fn recoverable_errors() {
    let lock = one();
    let guard = lock.lock().unwrap();
    assert_eq!(lock.lock().unwrap_err(), LockFailure::WouldDeadlock);
    assert_eq!(lock.try_lock().unwrap_err(), LockFailure::WouldDeadlock);
    std::thread::scope(|threads| {
        let other = threads.spawn(|| {
            assert_eq!(lock.try_lock().unwrap_err(), LockFailure::WouldBlock);
            let limit = Duration::from_millis(5);
            assert_eq!(lock.lock_timeout(limit).unwrap_err(), LockFailure::TimedOut);
        });
        other.join().unwrap();
    });
    drop(guard);
    let outside = RecoverableMutex::new(Ledger::default());
    assert_eq!(outside.lock().unwrap_err(), LockFailure::NotInPool);
}
