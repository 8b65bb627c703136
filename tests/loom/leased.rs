//! Entries of leases: who copies what has come back has it whole, with its position, and what a dead holder had last comes
//! back.

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::cells::behind_the_claim;
use shmkit::protocol::leased::{self, FREE, HELD, Seen, TAKING};
use shmkit::protocol::tag::Tag;

use super::Explorer;

/// An entry, and who may die.
struct Entry {
    word: AtomicU64,
    position: AtomicU64,
    element: [AtomicU64; 2],
    gone: AtomicU64,
}

fn holder() -> Tag {
    Tag::new(1, 1)
}

impl Entry {
    /// With the element of that position in it, which is its number, too.
    fn new(word: u64, position: u64) -> Arc<Self> {
        Arc::new(Entry {
            word: AtomicU64::new(word),
            position: AtomicU64::new(position),
            element: [position, !position].map(AtomicU64::new),
            gone: AtomicU64::new(0),
        })
    }

    fn exchange(&self, from: u64, to: u64) -> bool {
        self.word
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Leases the element of that position into the entry, which is free: as `containers::queue` does.
    fn lease(&self, position: u64) {
        assert!(self.exchange(FREE, holder().word() | TAKING));
        leased::prepare(&self.position, position);
        behind_the_claim();
        self.element[0].store(position, Ordering::Relaxed);
        self.element[1].store(!position, Ordering::Relaxed);
        self.word.store(holder().word() | HELD, Ordering::Release);
    }

    fn is_back(&self) -> Option<Seen> {
        leased::is_back(&self.word, &self.position)
    }

    fn element(&self) -> [u64; 2] {
        [0, 1].map(|n| self.element[n].load(Ordering::Relaxed))
    }

    fn bury(&self) {
        let is_over = |_| self.gone.load(Ordering::Acquire) != 0;
        leased::bury(&self.word, is_over, || leased::back(9));
    }
}

/// An element that has come back is had by another, and the next one comes into the entry, while somebody copies it.
#[test]
fn a_copy_against_the_next() {
    // A fence before the second exchange would say what the position and the element are to say.
    let explorer = Explorer::without_fences("leased: a copy against the next");
    explorer.run(3, || {
        let entry = Entry::new(leased::back(1), 1);
        let other = {
            let entry = Arc::clone(&entry);
            thread::spawn(move || {
                assert!(entry.exchange(leased::back(1), FREE));
                entry.lease(2);
                entry.word.store(leased::back(2), Ordering::SeqCst);
            })
        };
        if let Some(seen) = entry.is_back() {
            let copied = entry.element();
            if entry.is_back() == Some(seen) {
                let (word, position) = (seen.word, seen.position);
                assert_eq!((word, position), (leased::back(position), copied[0]));
                assert_eq!(copied, [position, !position], "torn");
            }
        }
        other.join().unwrap();
    });
}

/// A holder has another element in the same entry, under the same word, and dies, while somebody looks after it.
#[test]
fn a_death_with_the_next() {
    let explorer = Explorer::new("leased: a death with the next");
    explorer.run(3, || {
        let entry = Entry::new(holder().word() | HELD, 1);
        let other = {
            let entry = Arc::clone(&entry);
            thread::spawn(move || {
                entry.word.store(FREE, Ordering::SeqCst);
                entry.lease(2);
                entry.gone.store(1, Ordering::Release);
            })
        };
        entry.bury();
        other.join().unwrap();
        entry.bury();
        let word = entry.word.load(Ordering::SeqCst);
        assert_eq!(word, leased::back(9));
        assert_eq!(entry.is_back().map(|seen| seen.position), Some(2));
        assert_eq!(entry.element(), [2, !2]);
    });
}
