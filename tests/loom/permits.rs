//! Permits of a semaphore: no more are held than there are, all come back, and a thread that waits for one gets
//! it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::detect::Marks;
use shmkit::protocol::permits::{self, Holder, MOST, Permit, Pool, TakeFailure};

use super::{Death, Deaths, Explorer};

/// Slot 0 is nobody's.
const SLOTS: usize = 4;

struct Slot {
    permits: [Permit; 2],
    limit: AtomicU64,
    latest: AtomicU64,
    help: AtomicU64,
}

impl Slot {
    fn new() -> Self {
        let word = || AtomicU64::new(0);
        let permit = |_| Permit {
            word: word(),
            state: word(),
        };
        Slot {
            permits: std::array::from_fn(permit),
            limit: word(),
            latest: word(),
            help: word(),
        }
    }
}

struct Semaphore {
    word: AtomicU64,
    slots: [Slot; SLOTS],
    /// The kernel's list of sleepers, and how many they are.
    sleepers: (Mutex<u32>, Condvar),
    /// The ledger: permits, also those that will be added, and how many are held.
    permits: usize,
    held: AtomicUsize,
}

impl<'a> Pool<'a> for &'a Semaphore {
    fn marks_of(self, slot: usize) -> Option<Marks<'a>> {
        (slot != 0).then(|| self.holder(slot).marks)
    }

    fn word(self, address: u64) -> Option<&'a AtomicU64> {
        (address != 0).then_some(&self.word)
    }

    fn wake(self, _: &AtomicU64, most: u32) {
        let mut sleepers = self.sleepers.0.lock().unwrap();
        for _ in 0..most.min(*sleepers) {
            *sleepers -= 1;
            self.sleepers.1.notify_one();
        }
    }
}

impl Semaphore {
    fn new(permits: usize) -> Arc<Self> {
        Semaphore::with_more(permits, 0)
    }

    /// So many, to which `more` will be added.
    fn with_more(permits: usize, more: usize) -> Arc<Self> {
        Arc::new(Semaphore {
            word: AtomicU64::new(permits as u64),
            slots: std::array::from_fn(|_| Slot::new()),
            sleepers: (Mutex::new(0), Condvar::new()),
            permits: permits + more,
            held: AtomicUsize::new(0),
        })
    }

    fn holder(&self, index: usize) -> Holder<'_> {
        let slot = &self.slots[index];
        let (latest, help) = (&slot.latest, &slot.help);
        Holder {
            slot: index,
            permits: &slot.permits,
            limit: &slot.limit,
            marks: Marks { latest, help },
        }
    }

    fn left(&self) -> u32 {
        permits::left(self.word.load(Ordering::Relaxed))
    }

    /// Sleeps while the word's low half is as expected, without any time limit.
    fn sleep(&self, expected: u32) {
        let mut sleepers = self.sleepers.0.lock().unwrap();
        if self.word.load(Ordering::SeqCst) as u32 == expected {
            *sleepers += 1;
            drop(self.sleepers.1.wait(sleepers).unwrap());
        }
    }

    fn take(&self, slot: usize, slept: bool) -> Option<(usize, u32)> {
        match permits::try_take(self, self.holder(slot), &self.word, slept) {
            Ok(taken) => {
                assert!(self.held.fetch_add(1, Relaxed) < self.permits, "too many");
                Some(taken)
            }
            Err(failure) => {
                assert_eq!(failure, TakeFailure::NoneLeft);
                None
            }
        }
    }

    /// As `Semaphore::acquire_timeout`, without the looks: until the time is up, which it is after so many sleeps.
    fn acquire_until(&self, slot: usize, mut sleeps: usize) -> Option<usize> {
        let mut slept = false;
        loop {
            if let Some((index, rest)) = self.take(slot, slept) {
                if slept && rest > 0 {
                    self.wake(&self.word, 1);
                }
                return Some(index);
            }
            if sleeps == 0 {
                if slept {
                    permits::give_up(self, &self.word);
                }
                return None;
            }
            if let Some(waiting) = permits::announce(&self.word) {
                self.sleep(waiting);
                slept = true;
                sleeps -= 1;
            }
        }
    }

    fn until_asleep(&self, others: u32) {
        while *self.sleepers.0.lock().unwrap() < others {
            thread::yield_now();
        }
    }

    fn acquire(&self, slot: usize) -> usize {
        let taken = self.acquire_until(slot, usize::MAX);
        taken.expect("the time is never up")
    }

    fn give(&self, slot: usize, index: usize) {
        self.held.fetch_sub(1, Relaxed);
        permits::give(self, self.holder(slot), index);
    }

    /// What the kernel and then recovery do, which may die; and after a while all who sleep look again.
    fn bury(&self, slot: usize, (recoverers, at): &(Deaths, Death), held: usize) {
        self.held.fetch_sub(held, Relaxed);
        recoverers.kill(*at, || permits::recover(self, self.holder(slot)));
        permits::recover(self, self.holder(slot));
        self.wake(&self.word, u32::MAX);
    }

    fn check(&self) {
        assert_eq!(self.left() as usize, self.permits);
        for slot in &self.slots {
            for entry in &slot.permits {
                assert_eq!(entry.word.load(Ordering::Relaxed), 0, "listed still");
            }
        }
    }
}

/// A thread that takes a permit and gives it back.
fn other(semaphore: &Arc<Semaphore>, slot: usize, sleeps: usize) -> thread::JoinHandle<()> {
    let semaphore = Arc::clone(semaphore);
    thread::spawn(move || {
        if let Some(index) = semaphore.acquire_until(slot, sleeps) {
            semaphore.give(slot, index);
        }
    })
}

/// Who has a permit takes another one, and gives one back; he dies at every write, and so does who recovers him.
/// Another one waits for one meanwhile.
#[test]
fn death_of_a_holder() {
    let explorer = Explorer::without_fences("permits: death of a holder, then of the recoverer");
    explorer.each_recovery(1, |(deaths, at), recoverer| {
        move || {
            let semaphore = Semaphore::new(2);
            let first = semaphore.acquire(1);
            let other = other(&semaphore, 2, usize::MAX);
            let mut second = None;
            let died = deaths.kill(at, || {
                second = Some(semaphore.acquire(1));
                semaphore.give(1, first);
            });
            if died {
                semaphore.bury(1, &recoverer, 1);
            } else {
                semaphore.give(1, second.unwrap());
            }
            other.join().unwrap();
            semaphore.check();
        }
    });
}

/// Three want one permit, or two; each gets one.
#[test]
fn everybody_gets_one() {
    for (permits, preemptions) in [(1, 2), (2, 1)] {
        let explorer = Explorer::new("permits: everybody gets one");
        explorer.run(preemptions, move || {
            let semaphore = Semaphore::new(permits);
            let others = [2, 3].map(|slot| other(&semaphore, slot, usize::MAX));
            let index = semaphore.acquire(1);
            semaphore.give(1, index);
            others.into_iter().for_each(|other| other.join().unwrap());
            semaphore.check();
        });
    }
}

/// Two sleep for permits that are given back one after the other, of which the first wakes only one of them.
#[test]
fn who_is_woken_wakes_another() {
    let explorer = Explorer::new("permits: who is woken wakes another");
    explorer.run(1, || {
        let semaphore = Semaphore::new(2);
        let taken = [0; 2].map(|_| semaphore.acquire(1));
        let others = [2, 3].map(|slot| other(&semaphore, slot, usize::MAX));
        semaphore.until_asleep(2);
        taken.into_iter().for_each(|index| semaphore.give(1, index));
        others.into_iter().for_each(|other| other.join().unwrap());
        semaphore.check();
    });
}

/// One comes back and one is added, for two who wait.
#[test]
fn those_that_come_are_had() {
    let explorer = Explorer::new("permits: those that come are had");
    explorer.run(1, || {
        let semaphore = Semaphore::with_more(1, 1);
        let index = semaphore.acquire(1);
        let others = [2, 3].map(|slot| other(&semaphore, slot, usize::MAX));
        semaphore.give(1, index);
        assert!(permits::add(&*semaphore, &semaphore.word, 1, MOST));
        others.into_iter().for_each(|other| other.join().unwrap());
        semaphore.check();
    });
}

/// One is woken, but another one takes the permit, and then his time is up: a third one who sleeps gets it still.
#[test]
fn who_is_woken_gives_up() {
    let explorer = Explorer::new("permits: who is woken gives up");
    explorer.run(1, || {
        let semaphore = Semaphore::new(1);
        let index = semaphore.acquire(1);
        let others =
            [(2, 1), (3, usize::MAX)].map(|(slot, sleeps)| other(&semaphore, slot, sleeps));
        semaphore.until_asleep(2);
        semaphore.give(1, index);
        let index = semaphore.acquire(1);
        semaphore.give(1, index);
        others.into_iter().for_each(|other| other.join().unwrap());
        semaphore.check();
    });
}
