//! Look-ups, which only load, and never wait.
//!
//! For how a chunk is searched, and when what was found counts, see `protocol::lines` and
//! `protocol::moving`.

use super::Mode;
use super::at_once::find_at_once;
use super::hints::{Guess, Near};
use super::table::Table;
use crate::layout::arena::Arena;
use crate::primitive::Ordering;
use crate::protocol::lines::{self, Chunk, live};
use crate::protocol::moving;

/// The value's word of a key's entry, for which `is_it` is true. The caller has been pinned since
/// before it read `root`.
#[inline(always)]
pub(crate) fn find(
    arena: Arena,
    root: u64,
    (guess, near): (Guess, Near),
    of: impl FnOnce([u64; 2]) -> Guess,
    is_it: impl Fn(u64) -> bool,
) -> Option<u64> {
    match find_at_once(arena, root, near, guess, &is_it) {
        Some(found) => found,
        None => find_further(arena, root, guess, of, is_it),
    }
}

#[inline(never)]
fn find_further(
    arena: Arena,
    root: u64,
    guess: Guess,
    of: impl FnOnce([u64; 2]) -> Guess,
    is_it: impl Fn(u64) -> bool,
) -> Option<u64> {
    let table = Table::at(arena, root)?;
    let Guess { hash, key, .. } = guess.or(table, of);
    let search = |table: Table| lines::search(table.chunk(table.index(hash)), hash, key, &is_it);
    let moved_to = |table: Table| {
        let successor = table.successor(arena)?;
        table.is_done(table.index(hash)).then_some(successor)
    };
    moving::follow(table, search, moved_to)
}

/// The two words of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryWords {
    pub(crate) key: u64,
    pub(crate) value: u64,
}

/// The hashes that belong to one chunk of a table of `chunks` chunks.
#[derive(Clone, Copy)]
struct Class {
    chunks: usize,
    index: usize,
}

impl Class {
    const ALL: Class = Class {
        chunks: 1,
        index: 0,
    };

    /// The hashes that both classes have in common. One of the two is part of the other.
    fn common(self, other: Class) -> Self {
        if self.chunks > other.chunks {
            self
        } else {
            other
        }
    }

    /// The chunks of a table that have some of these hashes.
    fn within(self, table: Table) -> impl Iterator<Item = usize> {
        let chunks = table.chunks();
        (self.index & (chunks - 1)..chunks).step_by(self.chunks)
    }
}

/// The entries of a map, a chunk at a time.
///
/// First the whole chunk is read, and only then it is asked whether it is done. If so, what was
/// read is discarded, and the chunks to which its keys were moved are read instead; the same chunk
/// may be among them. So an entry that stays is seen once, and growth meanwhile costs no more than
/// a walk down the chain.
pub(crate) struct Entries<M> {
    arena: Arena,
    table: Option<Table>,
    index: usize,
    /// Chunks of successors that are still to be read, and for which hashes.
    work: Vec<(Table, usize, Class)>,
    /// The remaining entries of the present chunk.
    found: Vec<EntryWords>,
    mode: std::marker::PhantomData<fn() -> M>,
}

impl<M: Mode> Entries<M> {
    /// The caller is pinned from before it read `root` until it is done with this.
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

    /// Reads the lines of a chunk.
    fn read_lines(&mut self, chunk: Chunk) {
        for line in chunk.0 {
            let before = self.found.len();
            let mut word = line.word.load(Ordering::SeqCst);
            loop {
                self.found.extend(live(word).map(|i| EntryWords {
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
    }

    /// Reads a chunk, or finds out which ones to read instead.
    fn read(&mut self, table: Table, index: usize, wanted: Class) {
        let chunk = table.chunk(index);
        let is_raw = loop {
            if table.is_ready(index) {
                self.read_lines(chunk);
                break false;
            }
            if !table.is_inherited(index) {
                break false;
            }
            // Entries may be brought from one line to another, so everything has to be read at one
            // moment.
            let words = || chunk.0.iter().map(|line| line.word.load(Ordering::SeqCst));
            let before: Vec<u64> = words().collect();
            self.read_lines(chunk);
            if words().eq(before) {
                // Some entries may be there twice, and no others are equal.
                self.found.sort_unstable();
                self.found.dedup();
                break true;
            }
            self.found.clear();
        };
        let chunks = table.chunks();
        let class = Class { chunks, index }.common(wanted);
        match table.successor(self.arena) {
            Some(successor) if table.is_done(index) => {
                self.found.clear();
                let targets = class.within(successor);
                self.work
                    .extend(targets.map(|index| (successor, index, class)));
            }
            // Some entries belong to other chunks of the table, or to other chunks of a larger
            // table before it.
            _ if is_raw || chunks < class.chunks => {
                let seed = table.seed();
                self.found.retain(|entry| {
                    let hash = M::hash_of(seed, entry.key);
                    (hash >> 32) as usize & (class.chunks - 1) == class.index
                });
            }
            _ => {}
        }
    }
}

impl<M: Mode> Iterator for Entries<M> {
    type Item = EntryWords;

    fn next(&mut self) -> Option<EntryWords> {
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
            self.read(table, self.index - 1, Class::ALL);
        }
    }
}
