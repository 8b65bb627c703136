//! Objects that are retired and still looked at: never destroyed while a thread looks, and never lost, whoever
//! keeps them, gives them up or dies.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use shmkit::primitive::{AtomicU64, Ordering};
use shmkit::protocol::keeping::{self, Keeping};
use shmkit::protocol::lifecycle::{self, ObjectPhase, ObjectState};
use shmkit::protocol::pins;
use shmkit::protocol::sweep::Sweep;
use shmkit::protocol::tag::Tag;

use super::Explorer;

const GENERATION: u32 = 7;
const PROCESSES: usize = 3;

/// One object, and what the pool has around it.
struct Table {
    state: AtomicU64,
    keeping: Keeping,
    value: UnsafeCell<bool>,
    destroyed: AtomicBool,
    due: Sweep,
    epoch: AtomicU64,
    /// Of one thread that only looks.
    pin: AtomicU64,
    /// For each process: whether it holds the object, whether it lives, whether it has the intent to
    /// destroy open.
    holds: [AtomicU64; PROCESSES],
    lives: [AtomicU64; PROCESSES],
    intents: [AtomicU64; PROCESSES],
}

/// What one process has of its own.
struct Process {
    table: Arc<Table>,
    index: usize,
    postponed: VecDeque<(ObjectState, u64)>,
}

impl Table {
    /// The object, held by process 0, and the processes.
    fn new() -> (Arc<Self>, [Process; PROCESSES]) {
        let live = ObjectState {
            phase: ObjectPhase::Live,
            version: 0,
            generation: GENERATION,
        };
        let table = Arc::new(Table {
            state: AtomicU64::new(live.pack()),
            keeping: Keeping::new(),
            value: UnsafeCell::new(true),
            destroyed: AtomicBool::new(false),
            due: Sweep::new(),
            epoch: AtomicU64::new(1),
            pin: AtomicU64::new(0),
            holds: std::array::from_fn(|index| AtomicU64::new(u64::from(index == 0))),
            lives: std::array::from_fn(|_| AtomicU64::new(1)),
            intents: std::array::from_fn(|_| AtomicU64::new(0)),
        });
        let processes = std::array::from_fn(|index| Process {
            table: Arc::clone(&table),
            index,
            postponed: VecDeque::new(),
        });
        (table, processes)
    }

    fn show(&self) {
        pins::show(&self.pin, &self.epoch);
    }

    fn hide(&self) {
        self.look();
        pins::hide(&self.pin);
    }

    fn look(&self) {
        // SAFETY: nobody destroys it, or loom reports it.
        assert!(self.value.with(|there| unsafe { *there }));
    }

    fn pins(&self) -> impl Iterator<Item = &AtomicU64> {
        [&self.pin].into_iter()
    }

    /// What recovery does for a dead process, all of it again if it dies.
    fn recover(&self, index: usize) {
        self.lives[index].store(0, Ordering::SeqCst);
        if self.intents[index].load(Ordering::Acquire) != 0 {
            lifecycle::condemn(&self.state, index);
            self.intents[index].store(0, Ordering::Release);
        }
        keeping::end_holds(std::slice::from_ref(&self.holds[index]), &self.due);
    }
}

impl Process {
    fn me(&self) -> Tag {
        Tag::new(self.index + 1, 1)
    }

    fn open(&mut self) -> bool {
        self.table.holds[self.index].store(1, Ordering::SeqCst);
        if lifecycle::hold(&self.table.state, GENERATION) {
            return true;
        }
        self.table.holds[self.index].store(0, Ordering::SeqCst);
        self.dispose();
        false
    }

    fn let_go(&mut self) {
        self.table.look();
        self.table.holds[self.index].store(0, Ordering::SeqCst);
        self.dispose();
    }

    fn dispose(&mut self) {
        let table = &self.table;
        let is_held = || {
            let mut holds = table.holds.iter();
            holds.any(|hold| hold.load(Ordering::SeqCst) != 0)
        };
        let is_unused = || lifecycle::is_unused(|| false, is_held);
        let retired = lifecycle::retire(&table.state, is_unused, || pins::stamp(&table.epoch));
        if let Some((state, stamp)) = retired
            && !self.destroy(state, stamp)
        {
            self.postpone(state, stamp);
        }
    }

    fn destroy(&self, state: ObjectState, stamp: u64) -> bool {
        let table = &self.table;
        if lifecycle::read(&table.state) != state {
            return true;
        }
        let stamp = stamp.max(table.keeping.stamp());
        if state.phase != ObjectPhase::Condemned && !pins::is_past(table.pins(), stamp) {
            return false;
        }
        table.intents[self.index].store(1, Ordering::Release);
        if let Some(mine) = lifecycle::seize(&table.state, state, self.index) {
            // SAFETY: nobody else is at it, or loom reports it.
            table.value.with_mut(|there| unsafe { *there = false });
            table.destroyed.store(true, Relaxed);
            table.keeping.free(&table.state, mine);
        }
        table.intents[self.index].store(0, Ordering::Release);
        true
    }

    fn postpone(&mut self, state: ObjectState, stamp: u64) {
        self.postponed.push_back((state, stamp));
        self.table.keeping.keep(state, stamp, self.me());
    }

    fn is_kept(&self, state: ObjectState) -> bool {
        let keeper = self.table.keeping.keeper(state);
        keeper.is_some_and(|keeper| self.table.lives[keeper.slot() - 1].load(Ordering::SeqCst) != 0)
    }

    /// Makes the walk that is due, if one is.
    fn walk(&mut self) {
        while self.table.due.take(|| 1, 1).is_some() {
            let oldest = pins::oldest(self.table.pins());
            let state = lifecycle::read(&self.table.state);
            match state.phase {
                ObjectPhase::Retired if self.is_kept(state) => {
                    let stamp = self.table.keeping.stamp();
                    if stamp < oldest {
                        self.destroy(state, stamp);
                    }
                }
                ObjectPhase::Live | ObjectPhase::Retired | ObjectPhase::Condemned => self.dispose(),
                ObjectPhase::Free | ObjectPhase::Creating | ObjectPhase::Destroying => {}
            }
        }
    }

    /// Tries what it has postponed.
    fn retry(&mut self) {
        for (state, stamp) in std::mem::take(&mut self.postponed) {
            if !self.destroy(state, stamp) {
                self.postpone(state, stamp);
            }
        }
    }

    fn give_up(&mut self) {
        if !self.postponed.is_empty() {
            self.postponed.clear();
            let all = [&self.table.keeping].into_iter();
            keeping::give_up(all, self.me(), &self.table.due);
        }
    }

    /// Ends looks, as the last ones do, until nothing more happens: then the object is gone.
    fn check(mut self, keeper: Option<Process>) {
        self.walk();
        if let Some(mut keeper) = keeper {
            keeper.retry();
        }
        self.retry();
        assert!(self.table.destroyed.load(Relaxed), "lost");
        assert_eq!(lifecycle::read(&self.table.state).phase, ObjectPhase::Free);
    }
}

/// The only holder is dead. While it is recovered, by one who dies and then by another, a walk goes on
/// that was asked for before.
#[test]
fn ends_of_holds_against_a_walk() {
    let explorer = Explorer::new("keeping: ends of holds against a walk");
    explorer.each_death(3, |deaths, at| {
        move || {
            let (table, [_, mut walker, last]) = Table::new();
            table.due.demand();
            let walker = thread::spawn(move || walker.walk());
            if deaths.kill(at, || table.recover(0)) {
                table.recover(0);
            }
            walker.join().unwrap();
            last.check(None);
        }
    });
}

/// A keeper whose object was held again lets go of it again: somebody began to look in between, and
/// another makes a walk.
#[test]
fn keeping_again_against_a_walk() {
    let explorer = Explorer::new("keeping: keeping again against a walk");
    explorer.run(3, || {
        let (table, [mut keeper, mut walker, last]) = Table::new();
        table.show();
        keeper.let_go();
        table.hide();
        assert!(keeper.open());
        table.show();
        table.due.demand();
        let walker = thread::spawn(move || walker.walk());
        let keeper = thread::spawn(move || {
            keeper.let_go();
            keeper
        });
        table.hide();
        walker.join().unwrap();
        last.check(Some(keeper.join().unwrap()));
    });
}

/// Two processes hold the object one after the other, while somebody looks, and the second gives up
/// what it keeps.
#[test]
fn two_keepers() {
    let explorer = Explorer::new("keeping: two keepers, one of which gives up");
    explorer.run(3, || {
        let (table, [mut first, mut second, mut last]) = Table::new();
        table.show();
        let second = thread::spawn(move || {
            if second.open() {
                second.let_go();
            }
            second.give_up();
        });
        first.let_go();
        second.join().unwrap();
        last.walk();
        table.hide();
        last.check(Some(first));
    });
}

/// The same, but the second dies.
#[test]
fn a_keeper_dies() {
    let explorer = Explorer::new("keeping: one of two keepers dies");
    explorer.each_death(3, |deaths, at| {
        move || {
            let (table, [mut first, mut second, mut last]) = Table::new();
            table.show();
            let second = {
                let (deaths, table) = (deaths.clone(), Arc::clone(&table));
                thread::spawn(move || {
                    deaths.kill(at, || {
                        if second.open() {
                            second.let_go();
                        }
                    });
                    // It ends, in the one way or the other.
                    table.recover(1);
                })
            };
            first.let_go();
            second.join().unwrap();
            last.walk();
            table.hide();
            last.check(Some(first));
        }
    });
}

/// A keeper gives up while another makes a walk, and somebody looks.
#[test]
fn giving_up_against_a_walk() {
    let explorer = Explorer::new("keeping: giving up against a walk");
    explorer.run(3, || {
        let (table, [mut keeper, mut walker, last]) = Table::new();
        table.show();
        keeper.let_go();
        table.due.demand();
        let walking = thread::spawn(move || {
            walker.walk();
            walker
        });
        keeper.give_up();
        let walker = walking.join().unwrap();
        table.hide();
        last.check(Some(walker));
    });
}

/// Who destroys what was kept dies at any write. The next object of the entry that a state of the last one is the
/// same of, but for bits of the generation that a signature has no room for, is kept by nobody.
#[test]
fn the_end_of_what_was_kept() {
    /// Generations that look the same to a signature are so far apart.
    const ROUND: u32 = 1 << 23;
    let explorer = Explorer::new("keeping: the end of what was kept");
    explorer.each_death(3, |deaths, at| {
        move || {
            let (table, [mut keeper, next, _]) = Table::new();
            table.show();
            keeper.let_go();
            let kept = lifecycle::read(&table.state);
            assert!(next.is_kept(kept));
            table.hide();
            let other = {
                let table = Arc::clone(&table);
                thread::spawn(move || {
                    let free = lifecycle::read(&table.state);
                    if free.phase == ObjectPhase::Free {
                        let retired = ObjectState {
                            generation: GENERATION + ROUND,
                            ..kept
                        };
                        assert_eq!(table.keeping.keeper(retired), None, "kept by nobody");
                    }
                })
            };
            deaths.kill(at, || keeper.retry());
            other.join().unwrap();
        }
    });
}
