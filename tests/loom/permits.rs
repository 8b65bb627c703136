//! Permits of a semaphore: no more are held than there are, all come back, and who waits for one gets it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::detect::{self, Marks};
use shmkit::protocol::permits::{self, Holder, Permit, Pool, TakeFailure};

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
    sleepers: (Mutex<usize>, Condvar),
    /// The ledger: permits, and how many are held.
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

    fn wake(self, _: &AtomicU64) {
        self.wake_some(1);
    }
}

impl Semaphore {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Semaphore {
            word: AtomicU64::new(permits as u64),
            slots: std::array::from_fn(|_| Slot::new()),
            sleepers: (Mutex::new(0), Condvar::new()),
            permits,
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
        detect::value(self.word.load(Ordering::Relaxed))
    }

    fn wake_some(&self, most: usize) {
        let mut sleepers = self.sleepers.0.lock().unwrap();
        for _ in 0..most.min(*sleepers) {
            *sleepers -= 1;
            self.sleepers.1.notify_one();
        }
    }

    /// Sleeps while none is left, without any time limit.
    fn sleep(&self) {
        let mut sleepers = self.sleepers.0.lock().unwrap();
        if detect::value(self.word.load(Ordering::SeqCst)) == 0 {
            *sleepers += 1;
            drop(self.sleepers.1.wait(sleepers).unwrap());
        }
    }

    fn take(&self, slot: usize) -> Option<usize> {
        match permits::try_take(self, self.holder(slot), &self.word) {
            Ok(index) => {
                assert!(self.held.fetch_add(1, Relaxed) < self.permits, "too many");
                Some(index)
            }
            Err(failure) => {
                assert_eq!(failure, TakeFailure::NoneLeft);
                None
            }
        }
    }

    /// As `Semaphore::acquire_timeout`: until the time is up, which it is after so many sleeps.
    fn acquire_until(&self, slot: usize, mut sleeps: usize) -> Option<usize> {
        let mut taken = self.take(slot);
        let at_once = taken.is_some();
        while taken.is_none() {
            if sleeps == 0 {
                return self.take(slot);
            }
            self.sleep();
            sleeps -= 1;
            taken = self.take(slot);
        }
        if !at_once && self.left() > 0 {
            self.wake_some(1);
        }
        taken
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
        self.wake_some(usize::MAX);
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

/// Two sleep for permits that are given back one after the other, of which the first wakes only one of them.
#[test]
fn who_is_woken_wakes_another() {
    let explorer = Explorer::new("permits: who is woken wakes another");
    explorer.run(1, || {
        let semaphore = Semaphore::new(2);
        let taken = [0; 2].map(|_| semaphore.acquire(1));
        let others = [2, 3].map(|slot| other(&semaphore, slot, usize::MAX));
        while *semaphore.sleepers.0.lock().unwrap() < others.len() {
            thread::yield_now();
        }
        taken.into_iter().for_each(|index| semaphore.give(1, index));
        others.into_iter().for_each(|other| other.join().unwrap());
        semaphore.check();
    });
}

/// The time of one of them may be up once he was woken, for a permit that another one has taken.
#[test]
fn who_is_woken_gives_up() {
    let explorer = Explorer::new("permits: who is woken gives up");
    explorer.run(1, || {
        let semaphore = Semaphore::new(1);
        let index = semaphore.acquire(1);
        let others =
            [(2, 1), (3, usize::MAX)].map(|(slot, sleeps)| other(&semaphore, slot, sleeps));
        semaphore.give(1, index);
        if let Some(index) = semaphore.acquire_until(1, 0) {
            semaphore.give(1, index);
        }
        others.into_iter().for_each(|other| other.join().unwrap());
        semaphore.check();
    });
}
