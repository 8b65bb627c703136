//! The lock: one holder at a time, nobody waits for ever, and the next one knows of a death.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::lock_word::{self, DIED, Refused, WAITERS};
use shmkit::protocol::tag::Tag;

use super::{Death, Deaths, Explorer};

struct Lock {
    word: AtomicU64,
    /// Whose life words are marked, a bit a slot.
    gone: AtomicU64,
    /// The kernel's list of sleepers.
    sleepers: (Mutex<()>, Condvar),
    /// The ledger: the slot within, or 0; deaths within that nobody has been told of.
    within: AtomicUsize,
    untold: AtomicUsize,
    data: UnsafeCell<u32>,
}

fn tag(slot: usize) -> Tag {
    Tag::new(slot, 1)
}

impl Lock {
    fn new() -> Arc<Self> {
        Arc::new(Lock {
            word: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            sleepers: (Mutex::new(()), Condvar::new()),
            within: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
            data: UnsafeCell::new(0),
        })
    }

    fn is_gone(&self, owner: Tag) -> bool {
        self.gone.load(Ordering::Acquire) & (1 << owner.slot()) != 0
    }

    /// Sleeps while the word is as expected and its owner lives, without any time limit.
    fn sleep(&self, expected: u64, owner: Tag) {
        let queue = self.sleepers.0.lock().unwrap();
        if self.word.load(Ordering::SeqCst) == expected && !self.is_gone(owner) {
            drop(self.sleepers.1.wait(queue).unwrap());
        }
    }

    /// As `participants::lock`, without the spinning: until the time is up, which it is after so many sleeps. False then.
    fn lock_until(&self, slot: usize, sleeps: usize) -> bool {
        let (me, mut left) = (tag(slot), sleeps);
        let flags = if lock_word::try_fast(&self.word, me).is_some() {
            0
        } else {
            let mut slept = 0;
            loop {
                let found = self.word.load(Ordering::Relaxed);
                match lock_word::attempt(&self.word, me, found, slept, |o| self.is_gone(o)) {
                    Ok((flags, _)) => break flags,
                    Err(refused) => assert_eq!(refused, Refused::Busy),
                }
                if left == 0 {
                    if lock_word::was_woken_for_others(found, slept) {
                        let _queue = self.sleepers.0.lock().unwrap();
                        self.sleepers.1.notify_all();
                    }
                    return false;
                }
                if Tag::of_word(found).is_nobody() {
                    continue;
                }
                if let Some(waiting) = lock_word::announce(&self.word, found) {
                    self.sleep(waiting, Tag::of_word(found));
                    slept = WAITERS;
                    left -= 1;
                }
            }
        };
        assert_eq!(self.within.swap(slot, Relaxed), 0, "two hold it");
        // SAFETY: exclusive, or loom reports it.
        self.data.with_mut(|data| unsafe { *data += 1 });
        let told = flags & DIED != 0;
        assert_eq!(told, self.untold.swap(0, Relaxed) != 0);
        if told {
            lock_word::clear(&self.word, DIED);
        }
        true
    }

    fn lock(&self, slot: usize) {
        assert!(self.lock_until(slot, usize::MAX));
    }

    fn unlock(&self, slot: usize) {
        // The ledger goes by what was written last: see `killed`.
        let free = || self.within.store(0, Relaxed);
        free();
        if lock_word::unlock_fast(&self.word, tag(slot)) {
            return;
        }
        if lock_word::unlock_slow(&self.word, 0) {
            let _queue = self.sleepers.0.lock().unwrap();
            self.sleepers.1.notify_one();
        }
    }

    /// What the kernel and then recovery do: the mark, and a wake for all who slept on it.
    fn bury(&self, slot: usize) {
        if Tag::of_word(self.word.load(Ordering::Relaxed)) == tag(slot) {
            self.untold.store(1, Relaxed);
        }
        self.within.compare_exchange(slot, 0, Relaxed, Relaxed).ok();
        self.gone.fetch_or(1 << slot, Ordering::Release);
        let _queue = self.sleepers.0.lock().unwrap();
        self.sleepers.1.notify_all();
    }
}

/// Three threads, one of which dies at every write: before it holds the lock, with it, on its way
/// out. Nobody is within with another, the next one is told of a death with the lock (and nobody
/// else), and all others get it, without any time limit on their sleep.
#[test]
fn death_of_a_holder() {
    let explorer = Explorer::new("lock: death of a holder");
    explorer.each_death(2, |deaths: Deaths, at: Death| {
        move || {
            let lock = Lock::new();
            let others: Vec<_> = (2..4)
                .map(|slot| {
                    let lock = Arc::clone(&lock);
                    thread::spawn(move || {
                        lock.lock(slot);
                        lock.unlock(slot);
                    })
                })
                .collect();
            let died = deaths.kill(at, || {
                lock.lock(1);
                lock.unlock(1);
            });
            if died {
                lock.bury(1);
            }
            others.into_iter().for_each(|other| other.join().unwrap());
            // SAFETY: the others have ended.
            let entered = lock.data.with(|data| unsafe { *data });
            assert!(entered == 3 || died && entered == 2);
        }
    });
}

/// One is woken for the lock, but another one takes it, and then his time is up: a third one who sleeps gets it still.
#[test]
fn who_is_woken_gives_up() {
    let explorer = Explorer::new("lock: who is woken gives up");
    explorer.run(3, || {
        let lock = Lock::new();
        lock.lock(1);
        let others: Vec<_> = [(2, 1), (3, usize::MAX)]
            .map(|(slot, sleeps)| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || {
                    if lock.lock_until(slot, sleeps) {
                        lock.unlock(slot);
                    }
                })
            })
            .into();
        lock.unlock(1);
        lock.lock(1);
        lock.unlock(1);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}
