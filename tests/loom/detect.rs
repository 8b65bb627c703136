//! Detectable changes: each happens exactly once, whichever thread dies on the way.

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::detect::{self, Marks};

use super::Explorer;

/// A thread's slot; slot 0 is nobody's.
struct Slot {
    latest: AtomicU64,
    help: AtomicU64,
    /// The sequence of the change in flight, with bit 63 set.
    intent: AtomicU64,
}

const OPEN: u64 = 1 << 63;

struct Shared {
    word: AtomicU64,
    slots: [Slot; 4],
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Shared {
            word: AtomicU64::new(0),
            slots: std::array::from_fn(|_| Slot {
                latest: AtomicU64::new(0),
                help: AtomicU64::new(0),
                intent: AtomicU64::new(0),
            }),
        })
    }

    fn marks(&self, slot: usize) -> Marks<'_> {
        Marks {
            latest: &self.slots[slot].latest,
            help: &self.slots[slot].help,
        }
    }

    fn add(&self, slot: usize, sequence: u64) {
        let marks_of = |slot| (slot != 0).then(|| self.marks(slot));
        detect::add(marks_of, &self.word, 1, slot, sequence);
    }

    /// A change with an intent.
    fn change(&self, slot: usize) {
        let sequence = detect::next_sequence(self.marks(slot), slot, Some(&self.word));
        self.slots[slot]
            .intent
            .store(OPEN | sequence, Ordering::Release);
        self.add(slot, sequence);
        self.slots[slot].intent.store(0, Ordering::Release);
    }

    /// Completes the change of a dead author.
    fn resolve(&self, slot: usize) {
        let intent = self.slots[slot].intent.load(Ordering::Acquire);
        if intent & OPEN != 0 {
            let sequence = intent & !OPEN;
            if !detect::happened(self.marks(slot), &self.word, slot, sequence) {
                self.add(slot, sequence);
            }
            self.slots[slot].intent.store(0, Ordering::Release);
        }
    }

    fn value(&self) -> u32 {
        detect::value(self.word.load(Ordering::SeqCst))
    }

    /// Slot 1 changes the word so often, and dies or not; others recover it.
    fn victim(
        &self,
        (deaths, at): &(super::Deaths, super::Death),
        (recoverers, again): &(super::Deaths, super::Death),
        times: u32,
    ) -> u32 {
        let mut begun = 0;
        let died = deaths.kill(*at, || {
            for _ in 0..times {
                begun += 1;
                self.change(1);
            }
        });
        if died {
            let intent = self.slots[1].intent.load(Ordering::Relaxed);
            if intent == 0 {
                // Died before it said what it is about: nothing happens.
                begun -= 1;
            }
            recoverers.kill(*again, || self.resolve(1));
            self.resolve(1);
        }
        begun
    }
}

/// Three authors, one of whom dies at every write of its two changes: what it began happened once.
#[test]
fn death_of_an_author() {
    let explorer = Explorer::new("detect: death of an author");
    explorer.each_death(2, |deaths, at| {
        let (victim, nobody) = ((deaths, at), Default::default());
        move || {
            let shared = Shared::new();
            let others: Vec<_> = (2..4)
                .map(|slot| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.change(slot))
                })
                .collect();
            let begun = shared.victim(&victim, &nobody, 2);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(shared.value(), 2 + begun);
        }
    });
}

/// The same, and who recovers it dies at every write too; one other author.
#[test]
fn death_of_the_recoverer() {
    let explorer = Explorer::without_fences("detect: death of an author, then of the recoverer");
    explorer.each_recovery(2, |victim, recoverer| {
        move || {
            let shared = Shared::new();
            let other = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.change(2);
                    shared.change(2);
                })
            };
            let begun = shared.victim(&victim, &recoverer, 2);
            other.join().unwrap();
            assert_eq!(shared.value(), 2 + begun);
        }
    });
}
