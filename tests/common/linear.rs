//! Linearizability: a recorder of what processes do to an object, and a check of the record.
//!
//! An operation that was called and has not returned, because its process was killed, may have taken
//! effect or not. The check is Wing's and Gong's search (*Testing and verifying concurrent objects*,
//! 1993) with Lowe's table of the states that were tried (*Testing for linearizability*, 2017).

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::ShmSafe;

/// An operation, when it was called, and when it returned what.
#[derive(Clone, Debug)]
pub struct Event<O, R> {
    pub op: O,
    pub call: u64,
    pub ret: Option<(u64, R)>,
}

/// True if the operations can be put in an order that explains what they returned, and in which one
/// that returned before another was called comes first. At most 64 operations.
pub fn is_linearizable<S, O, R>(
    initial: &S,
    events: &[Event<O, R>],
    apply: impl Fn(&S, &O) -> (S, R),
) -> bool
where
    S: Clone + Eq + Hash,
    R: PartialEq,
{
    assert!(events.len() <= 64);
    let returned = |i: &usize| events[*i].ret.is_some();
    let all: u64 = (0..events.len()).filter(returned).map(|i| 1 << i).sum();
    let mut tried = HashSet::new();
    let mut work = vec![(0_u64, initial.clone())];
    while let Some((done, state)) = work.pop() {
        if done & all == all {
            return true;
        }
        if !tried.insert((done, state.clone())) {
            continue;
        }
        let left = || (0..events.len()).filter(|i| done >> i & 1 == 0);
        let first_return = left().filter_map(|i| events[i].ret.as_ref().map(|(at, _)| *at));
        let until = first_return.min().unwrap_or(u64::MAX);
        for i in left().filter(|&i| events[i].call < until) {
            let (next, answer) = apply(&state, &events[i].op);
            if events[i]
                .ret
                .as_ref()
                .is_none_or(|(_, seen)| *seen == answer)
            {
                work.push((done | 1 << i, next));
            }
        }
    }
    false
}

/// What each of `W` processes did, up to `N` operations of four words each.
#[derive(ShmSafe)]
pub struct Record<const W: usize, const N: usize> {
    clock: AtomicU64,
    entries: [[[AtomicU64; 6]; N]; W],
}

impl<const W: usize, const N: usize> Record<W, N> {
    pub const fn new() -> Self {
        Record {
            clock: AtomicU64::new(1),
            entries: [const { [const { [const { AtomicU64::new(0) }; 6] }; N] }; W],
        }
    }

    /// Does an operation, described by three words, which answers with one.
    pub fn run(&self, worker: usize, n: usize, what: [u64; 3], operation: impl FnOnce() -> u64) {
        let entry = &self.entries[worker][n];
        for (word, what) in entry.iter().zip(what) {
            word.store(what, Ordering::Relaxed);
        }
        entry[3].store(self.clock.fetch_add(1, Ordering::SeqCst), Ordering::Release);
        let answer = operation();
        entry[4].store(answer, Ordering::Relaxed);
        entry[5].store(self.clock.fetch_add(1, Ordering::SeqCst), Ordering::Release);
    }

    /// All that was done. The processes have ended.
    pub fn events(&self) -> Vec<Event<[u64; 3], u64>> {
        let read = |word: &AtomicU64| word.load(Ordering::Acquire);
        let entries = self.entries.iter().flatten();
        entries
            .filter(|entry| read(&entry[3]) != 0)
            .map(|entry| Event {
                op: [read(&entry[0]), read(&entry[1]), read(&entry[2])],
                call: read(&entry[3]),
                ret: Some((read(&entry[5]), read(&entry[4]))).filter(|(at, _)| *at != 0),
            })
            .collect()
    }
}
