//! Look-ups: loads only, and no waiting.
//!
//! How a chunk is searched, and when what was found counts: `protocol::lines` and
//! `protocol::moving`.

use super::Mode;
use super::at_once::find_at_once;
use super::table::{Guess, Near, Table};
use crate::layout::arena::Arena;
use crate::primitive::Ordering;
use crate::protocol::lines::{self, live};
use crate::protocol::moving;

/// The value's word of the entry of a key of which `is_it` holds. The caller is pinned since before it
/// read `root`.
#[inline]
pub(crate) fn find(
    arena: Arena,
    root: u64,
    (guess, near): (Guess, Near),
    of: impl FnOnce([u64; 2]) -> Guess,
    is_it: impl Fn(u64) -> bool,
) -> Option<u64> {
    let Guess { seed, hash, key } = guess;
    match find_at_once(arena, root, near, (seed, key), &is_it) {
        Some(found) => found,
        None => find_further(arena, root, (seed, hash, key), of, is_it),
    }
}

#[inline(never)]
fn find_further(
    arena: Arena,
    root: u64,
    (seed, hash, key): ([u64; 2], u64, u64),
    of: impl FnOnce([u64; 2]) -> Guess,
    is_it: impl Fn(u64) -> bool,
) -> Option<u64> {
    let table = Table::at(arena, root)?;
    let Guess { hash, key, .. } = Guess { seed, hash, key }.or(table, of);
    let search = |table: Table| lines::search(table.chunk(table.index(hash)), hash, key, &is_it);
    let moved_to = |table: Table| {
        let successor = table.successor(arena)?;
        table.is_done(table.index(hash)).then_some(successor)
    };
    moving::follow(table, search, moved_to)
}

/// The two words of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: u64,
    pub(crate) value: u64,
}

/// Hashes with these upper halves, the end not included.
#[derive(Clone, Copy)]
struct Range {
    from: u64,
    end: u64,
}

impl Range {
    fn of(table: Table, index: usize) -> Self {
        let chunks = table.chunks() as u64;
        let at = |index: u64| (index << 32) / chunks;
        Range {
            from: at(index as u64),
            end: at(index as u64 + 1),
        }
    }

    fn common(self, other: Range) -> Self {
        Range {
            from: self.from.max(other.from),
            end: self.end.min(other.end),
        }
    }

    fn contains(self, hash: u64) -> bool {
        (self.from..self.end).contains(&(hash >> 32))
    }
}

/// The entries of a map, a chunk at a time.
///
/// A chunk is read whole, and only then it is asked whether it is done. If so, what was read is
/// forgotten, and the chunks are read that its keys were moved to, of which it may be the same. So
/// an entry that stays is seen once, and growth meanwhile costs a walk down and no more.
pub(crate) struct Entries<M> {
    arena: Arena,
    table: Option<Table>,
    index: usize,
    /// Chunks of successors that are to be read, and for which hashes.
    work: Vec<(Table, usize, Range)>,
    /// What is left of the chunk at hand.
    found: Vec<Entry>,
    mode: std::marker::PhantomData<fn() -> M>,
}

impl<M: Mode> Entries<M> {
    /// The caller is pinned from before it read `root` until it is done.
    pub(crate) fn new(arena: Arena, root: u64) -> Self {
        Entries {
            arena,
            table: Table::at(arena, root),
            index: 0,
            work: Vec::new(),
            found: Vec::new(),
            mode: std::marker::PhantomData,
        }
    }

    pub(crate) fn arena(&self) -> Arena {
        self.arena
    }

    /// Reads a chunk, or finds out which ones to read instead.
    fn read(&mut self, table: Table, index: usize, wanted: Range) {
        for line in table.chunk(index).0 {
            let before = self.found.len();
            let mut word = line.word.load(Ordering::SeqCst);
            loop {
                self.found.extend(live(word).map(|i| Entry {
                    key: line.slots[i].key.load(Ordering::Acquire),
                    value: line.slots[i].value.load(Ordering::Acquire),
                }));
                match line.word.load(Ordering::SeqCst) {
                    now if now == word => break,
                    now => word = now,
                }
                self.found.truncate(before);
            }
        }
        let own = Range::of(table, index);
        match table.successor(self.arena) {
            Some(successor) if table.is_done(index) => {
                self.found.clear();
                let wanted = own.common(wanted);
                let to = successor.chunks() as u64;
                let first = (wanted.from * to) >> 32;
                let end = (wanted.end * to).div_ceil(1 << 32);
                let targets = (first..end).map(|index| (successor, index as usize, wanted));
                self.work.extend(targets);
            }
            _ if own.from < wanted.from || own.end > wanted.end => {
                let seed = table.seed();
                self.found
                    .retain(|entry| wanted.contains(M::hash_of(seed, entry.key)));
            }
            _ => {}
        }
    }
}

impl<M: Mode> Iterator for Entries<M> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(entry) = self.found.pop() {
                return Some(entry);
            }
            if let Some((table, index, wanted)) = self.work.pop() {
                self.read(table, index, wanted);
                continue;
            }
            let table = self.table?;
            if self.index == table.chunks() {
                self.table = None;
                return None;
            }
            self.index += 1;
            let all = Range {
                from: 0,
                end: 1 << 32,
            };
            self.read(table, self.index - 1, all);
        }
    }
}
