//! Walks in pieces: whatever was there when a walk was asked for is looked at, by whichever
//! thread, before no walk is due any more.

use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::sweep::Sweep;

use super::Explorer;

const ENTRIES: usize = 2;

struct Table {
    due: Sweep,
    /// How many entries there are: it only rises.
    count: AtomicU64,
    /// 1: somebody must look at the entry.
    left: [AtomicU64; ENTRIES],
}

impl Table {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Table {
            due: Sweep::new(),
            count: AtomicU64::new(count as u64),
            left: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    fn leave(&self, entry: usize) {
        self.left[entry].store(1, Ordering::SeqCst);
        self.due.demand();
    }

    fn look(&self) -> bool {
        let count = || self.count.load(Ordering::Acquire) as usize;
        let Some(piece) = self.due.take(count, 1) else {
            return false;
        };
        for entry in piece {
            self.left[entry].store(0, Ordering::SeqCst);
        }
        true
    }

    fn check(&self) {
        while self.look() {}
        for left in &self.left {
            assert_eq!(left.load(Ordering::SeqCst), 0, "passed over");
        }
    }
}

/// Something is left twice while somebody makes a walk.
#[test]
fn demands_against_a_walk() {
    let explorer = Explorer::without_fences("sweep: demands against a walk");
    explorer.run(3, || {
        let table = Table::new(ENTRIES);
        table.leave(1);
        let walker = {
            let table = Arc::clone(&table);
            thread::spawn(move || while table.look() {})
        };
        let other = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.leave(0))
        };
        table.leave(1);
        walker.join().unwrap();
        other.join().unwrap();
        table.check();
    });
}

/// Who makes a walk dies; its death asks for another.
#[test]
fn a_walker_dies() {
    let explorer = Explorer::without_fences("sweep: a walker dies");
    explorer.each_death(3, |deaths, at| {
        move || {
            let table = Table::new(ENTRIES);
            table.leave(1);
            let walker = {
                let (table, deaths) = (Arc::clone(&table), deaths.clone());
                thread::spawn(move || {
                    if deaths.kill(at, || while table.look() {}) {
                        table.due.demand();
                    }
                })
            };
            table.leave(0);
            walker.join().unwrap();
            table.check();
        }
    });
}

/// The table grows, and something is left in a new entry, while somebody makes a walk.
#[test]
fn a_table_grows() {
    let explorer = Explorer::without_fences("sweep: a table grows");
    explorer.run(3, || {
        let table = Table::new(1);
        table.leave(0);
        let walker = {
            let table = Arc::clone(&table);
            thread::spawn(move || while table.look() {})
        };
        table.count.fetch_max(2, Ordering::AcqRel);
        table.leave(1);
        walker.join().unwrap();
        table.check();
    });
}
