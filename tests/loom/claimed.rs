//! Claims of ranges one after the other in the same entry, and a thread that wants an element of the first.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::claimed;

use super::Explorer;

/// Words of the first claim and of the second.
const FIRST: u64 = 1;
const SECOND: u64 = 2;

struct Entry {
    start: AtomicU64,
    end: AtomicU64,
    word: AtomicU64,
    /// Element 0, which the first claim is of.
    element: UnsafeCell<u64>,
}

/// Whoever finds that its element is not claimed sees what was done to it under the claim before.
#[test]
fn a_later_range_lets_pass() {
    Explorer::new("claimed: two ranges in one entry").run(3, || {
        let entry = Arc::new(Entry {
            start: AtomicU64::new(0),
            end: AtomicU64::new(1),
            word: AtomicU64::new(FIRST),
            element: UnsafeCell::new(0),
        });
        let owner = Arc::clone(&entry);
        let owner = thread::spawn(move || {
            // SAFETY: claimed, or loom reports it.
            owner.element.with_mut(|element| unsafe { *element = 7 });
            // Weaker than claims do it, for the models' SeqCst has a fence that would do the work of the bounds.
            owner.word.swap(0, Ordering::Release);
            claimed::set_range([&owner.start, &owner.end], 1..2);
            owner.word.store(SECOND, Ordering::SeqCst);
        });
        let bounds = [&entry.start, &entry.end];
        if !claimed::bars(&entry.word, bounds, 0, |word| word != 0) {
            // SAFETY: not claimed any more, or loom reports it.
            let seen = entry.element.with(|element| unsafe { *element });
            assert_eq!(seen, 7);
        }
        owner.join().unwrap();
    });
}
