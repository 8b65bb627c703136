//! How long a lock is out of use when its owner is killed: from just before the kill to the moment
//! at which somebody who sleeps in `lock` has it.
//!
//! With a supervisor the parent reaps the dead child at once, which recovers what it held. Without
//! one the child stays a zombie, and nobody but the waiter itself does anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use shmkit::process::scope;
use shmkit::{LockError, Mutex, Pool, Shared};

const ROUNDS: u32 = 200;

/// What the parties of a round share.
struct Stage {
    lock: Shared<Mutex<u64>>,
    /// 1 when the owner has the lock, 2 when the waiter is about to wait.
    step: Shared<AtomicU64>,
    /// When the owner was killed.
    killed_at: Shared<AtomicU64>,
}

/// Nanoseconds, by a clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Stage {
    fn reach(&self, step: u64) {
        self.step.store(step, Ordering::Release);
    }

    fn await_step(&self, step: u64) {
        while self.step.load(Ordering::Acquire) < step {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The owner's part.
    fn own(&self) {
        let _guard = self.lock.lock().unwrap();
        self.reach(1);
        loop {
            std::thread::park();
        }
    }

    /// The waiter's part: how long it was kept from the lock, in nanoseconds.
    fn wait(&self) -> u64 {
        self.await_step(1);
        self.reach(2);
        let outcome = self.lock.lock();
        let got_at = now();
        let Err(LockError::OwnerDied(orphan)) = outcome else {
            panic!("the owner was not found dead: {outcome:?}");
        };
        drop(orphan.reset(0));
        got_at - self.killed_at.load(Ordering::Acquire)
    }

    fn round(&self, round: u32, supervised: bool) -> u64 {
        self.reach(0);
        scope(|s| {
            let owner = s.spawn(|| self.own()).unwrap();
            let waiter = s.spawn(|| self.wait()).unwrap();
            self.await_step(2);
            // The waiter is asleep by then; at another moment of its sleep in each round.
            std::thread::sleep(Duration::from_micros(u64::from(3000 + round * 37 % 4000)));
            let pid = Pid::from_raw(owner.id().pid() as i32).unwrap();
            self.killed_at.store(now(), Ordering::Release);
            kill_process(pid, Signal::KILL).unwrap();
            if supervised {
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
        step: pool.create(AtomicU64::new(0)).unwrap(),
        killed_at: pool.create(AtomicU64::new(0)).unwrap(),
    };
    let mut waits = [Vec::new(), Vec::new()];
    // By turns, so that what else the machine does meets both.
    for round in 0..ROUNDS {
        waits[0].push(stage.round(round, true));
        waits[1].push(stage.round(round, false));
    }
    for (name, waits) in ["with_supervisor", "without"].into_iter().zip(&mut waits) {
        waits.sort_unstable();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        println!(
            "handover/{name}: median {:.3} ms, max {:.3} ms",
            ms(waits[waits.len() / 2]),
            ms(waits[waits.len() - 1])
        );
    }
}
