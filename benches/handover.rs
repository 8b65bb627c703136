//! How long a lock is out of use when its owner is killed: from just before the kill to the moment
//! at which somebody who sleeps in `lock` has it.
//!
//! With a supervisor the parent reaps the dead child at once, which recovers what it held. Without
//! one the child stays a zombie, and nobody but the waiter itself does anything. The C library's robust
//! mutex, which the kernel itself hands on, shows what of that is the machine's: three processes take
//! turns on two processors.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use shmkit::process::scope;
use shmkit::{LockError, Mutex, Pool, Semaphore, Shared};

const ROUNDS: u32 = 200;

/// Whose lock is handed on, and who helps.
#[derive(Clone, Copy, PartialEq)]
enum Arm {
    Supervised,
    Alone,
    Robust,
}

/// The C library's lock for several processes whose owners may die.
struct Robust(&'static UnsafeCell<libc::pthread_mutex_t>);

impl Robust {
    fn new(pool: Pool) -> Robust {
        let layout = std::alloc::Layout::new::<UnsafeCell<libc::pthread_mutex_t>>();
        let place = pool.allocate(layout).unwrap().cast();
        let mut kind = MaybeUninit::uninit();
        // SAFETY: a new block of that layout, which is never freed, and an attribute of this frame.
        unsafe {
            assert_eq!(libc::pthread_mutexattr_init(kind.as_mut_ptr()), 0);
            assert_eq!(
                libc::pthread_mutexattr_setrobust(kind.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST),
                0
            );
            assert_eq!(
                libc::pthread_mutexattr_setpshared(kind.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED),
                0
            );
            assert_eq!(
                libc::pthread_mutex_init(place.cast().as_ptr(), kind.as_ptr()),
                0
            );
            Robust(place.as_ref())
        }
    }

    fn lock(&self) -> i32 {
        // SAFETY: initialised by `new`.
        unsafe { libc::pthread_mutex_lock(self.0.get()) }
    }

    fn put_right_and_unlock(&self) {
        // SAFETY: locked by this thread, which was told that the owner had died.
        unsafe {
            assert_eq!(libc::pthread_mutex_consistent(self.0.get()), 0);
            assert_eq!(libc::pthread_mutex_unlock(self.0.get()), 0);
        }
    }
}

// SAFETY: a lock is there to be used by several at once.
unsafe impl Sync for Robust {}

/// What the parties of a round share.
struct Stage {
    lock: Shared<Mutex<u64>>,
    robust: Robust,
    /// A permit once the owner has the lock.
    taken: Shared<Semaphore>,
    /// A permit once the waiter is about to wait.
    waits: Shared<Semaphore>,
    /// When the owner was killed.
    killed_at: Shared<AtomicU64>,
}

/// Nanoseconds, by a clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whether the process sleeps in a system call.
fn sleeps(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, state) = stat.rsplit_once(')').unwrap();
    state.trim_start().starts_with('S')
}

impl Stage {
    /// The owner's part.
    fn own(&self, arm: Arm) {
        let _guard = if arm == Arm::Robust {
            assert_eq!(self.robust.lock(), 0);
            None
        } else {
            Some(self.lock.lock().unwrap())
        };
        self.taken.add_permits(1).unwrap();
        loop {
            std::thread::park();
        }
    }

    /// The waiter's part: how long it was kept from the lock, in nanoseconds.
    fn wait(&self, arm: Arm) -> u64 {
        self.taken.acquire().unwrap().forget();
        self.waits.add_permits(1).unwrap();
        let got_at = if arm == Arm::Robust {
            assert_eq!(self.robust.lock(), libc::EOWNERDEAD);
            let got_at = now();
            self.robust.put_right_and_unlock();
            got_at
        } else {
            let outcome = self.lock.lock();
            let got_at = now();
            let Err(LockError::OwnerDied(orphan)) = outcome else {
                panic!("the owner was not found dead: {outcome:?}");
            };
            drop(orphan.reset(0));
            got_at
        };
        got_at - self.killed_at.load(Ordering::Acquire)
    }

    fn round(&self, round: u32, arm: Arm) -> u64 {
        scope(|s| {
            let owner = s.spawn(move || self.own(arm)).unwrap();
            let waiter = s.spawn(move || self.wait(arm)).unwrap();
            self.waits.acquire().unwrap().forget();
            while !sleeps(waiter.id().pid()) {
                std::thread::yield_now();
            }
            // The killer's pace: at another moment of the waiter's sleep in each round.
            std::thread::sleep(Duration::from_micros(u64::from(3000 + round * 37 % 4000)));
            let pid = Pid::from_raw(owner.id().pid() as i32).unwrap();
            self.killed_at.store(now(), Ordering::Release);
            kill_process(pid, Signal::KILL).unwrap();
            if arm == Arm::Supervised {
                owner.join().unwrap_err();
                waiter.join().unwrap()
            } else {
                let waited = waiter.join().unwrap();
                owner.join().unwrap_err();
                waited
            }
        })
    }
}

fn main() {
    let pool = Pool::builder().create().unwrap();
    let stage = Stage {
        lock: pool.create(Mutex::new(0)).unwrap(),
        robust: Robust::new(pool),
        taken: pool.create(Semaphore::new(0)).unwrap(),
        waits: pool.create(Semaphore::new(0)).unwrap(),
        killed_at: pool.create(AtomicU64::new(0)).unwrap(),
    };
    let arms = [
        ("with_supervisor", Arm::Supervised),
        ("without", Arm::Alone),
        ("pthread_robust", Arm::Robust),
    ];
    let mut waits = arms.map(|_| Vec::new());
    // By turns, so that what else the machine does meets all.
    for round in 0..ROUNDS {
        for (waits, (_, arm)) in waits.iter_mut().zip(arms) {
            waits.push(stage.round(round, arm));
        }
    }
    for (waits, (name, _)) in waits.iter_mut().zip(arms) {
        waits.sort_unstable();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        println!(
            "handover/{name}: median {:.3} ms, max {:.3} ms",
            ms(waits[waits.len() / 2]),
            ms(waits[waits.len() - 1])
        );
    }
}
