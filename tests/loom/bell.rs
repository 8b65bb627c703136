//! The bell: who waits for an element gets one, without any time limit on its sleep.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::bell;

use super::Explorer;

struct Queue {
    elements: AtomicU64,
    bell: AtomicU64,
    /// How many sleep, as the kernel knows.
    sleepers: (Mutex<usize>, Condvar),
}

impl Queue {
    fn new(bell: u64) -> Arc<Self> {
        Arc::new(Queue {
            elements: AtomicU64::new(0),
            bell: AtomicU64::new(bell),
            sleepers: (Mutex::new(0), Condvar::new()),
        })
    }

    fn kernel_wakes(&self, most: u32) -> usize {
        let mut asleep = self.sleepers.0.lock().unwrap();
        let woken = (*asleep).min(most as usize);
        *asleep -= woken;
        for _ in 0..woken {
            self.sleepers.1.notify_one();
        }
        woken
    }

    fn sleep(&self, announced: u64) {
        let mut asleep = self.sleepers.0.lock().unwrap();
        if self.bell.load(Ordering::SeqCst) == announced {
            *asleep += 1;
            drop(self.sleepers.1.wait(asleep).unwrap());
        }
    }

    /// As `engines::bell`.
    fn ring(&self) {
        if bell::has_sleepers(&self.bell) {
            let rung = bell::count(&self.bell);
            bell::wake(&self.bell, rung, 1, |most| self.kernel_wakes(most));
        }
    }

    fn push(&self) {
        self.elements.fetch_add(1, Ordering::SeqCst);
        self.ring();
    }

    fn try_pop(&self) -> bool {
        let mut found = self.elements.load(Ordering::SeqCst);
        while found > 0 {
            let taken = self.elements.compare_exchange(
                found,
                found - 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            match taken {
                Ok(_) => return true,
                Err(now) => found = now,
            }
        }
        false
    }

    /// As `containers::queue::wait`.
    fn pop(&self) {
        loop {
            let announced = bell::announce(&self.bell);
            if self.try_pop() {
                return;
            }
            self.sleep(announced);
        }
    }
}

fn pops(queue: &Arc<Queue>) -> thread::JoinHandle<()> {
    let queue = Arc::clone(queue);
    thread::spawn(move || queue.pop())
}

/// Two wait, on a bit that somebody has left, so a ring finds nobody asleep; for an element that another has taken. Then
/// there are two.
#[test]
fn who_is_about_to_sleep_looks_again() {
    let explorer = Explorer::new("bell: who is about to sleep looks again");
    explorer.run(3, || {
        let queue = Queue::new(1);
        let waiters = [pops(&queue), pops(&queue)];
        queue.ring();
        queue.push();
        queue.push();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// The same, while the ring goes on.
#[test]
fn all_are_woken_who_sleep_without_the_bit() {
    let explorer = Explorer::new("bell: all are woken who sleep without the bit");
    explorer.run(2, || {
        let queue = Queue::new(1);
        let waiters = [pops(&queue), pops(&queue)];
        let other = Arc::clone(&queue);
        let other = thread::spawn(move || {
            other.push();
            other.push();
        });
        queue.ring();
        other.join().unwrap();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}
