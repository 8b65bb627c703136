//! Look-ups: loads only, and no waiting.
//!
//! A key's place in a table changes only by being removed and inserted again, so one walk over its
//! chunk finds it or a moment at which it was not there. Behind the walk, and not before, a look
//! at the successor: if the chunk is done by then, the key may be there, or may have been inserted
//! there before the walk ended.

use super::table::hash_of;
use super::table::{EMPTY, MOVED, Table, is_node, low_bits, may_be, node_of};
use crate::layout::arena::Arena;
use crate::primitive::Ordering;

/// The node with that hash of which `is_it` holds. The caller is pinned since before it read `root`.
#[inline]
pub(crate) fn find(arena: Arena, root: u64, hash: u64, is_it: impl Fn(u64) -> bool) -> Option<u64> {
    let low = low_bits(hash);
    let mut table = Table::at(arena, root)?;
    loop {
        let chunk = table.chunk(table.index(hash));
        let mut moved = false;
        for word in chunk.search(hash) {
            let word = word.load(Ordering::SeqCst);
            if may_be(word, low) {
                let node = node_of(arena, word);
                if is_it(node) {
                    return Some(node);
                }
            } else if word == EMPTY {
                break;
            } else if word == MOVED {
                moved = true;
                if chunk.is_done() {
                    break;
                }
            }
        }
        let successor = table.successor(arena)?;
        if !moved && !chunk.is_done() {
            return None;
        }
        table = successor;
    }
}

/// The nodes of a map, a chunk at a time.
pub(crate) struct Nodes {
    arena: Arena,
    table: Option<Table>,
    index: usize,
    /// What is left of the chunk at hand.
    nodes: Vec<u64>,
}

impl Nodes {
    /// The caller is pinned from before it read `root` until it is done.
    pub(crate) fn new(arena: Arena, root: u64) -> Self {
        Nodes {
            arena,
            table: Table::at(arena, root),
            index: 0,
            nodes: Vec::new(),
        }
    }

    /// Adds the nodes of a chunk, and of what it has been moved to.
    fn add(&mut self, table: Table, index: usize, belongs: &dyn Fn(u64) -> bool) {
        let chunk = table.chunk(index);
        let mut moved = false;
        for word in &chunk.words {
            let mut named = word.load(Ordering::SeqCst);
            while is_node(named) {
                let node = node_of(self.arena, named);
                let hash = hash_of(self.arena, node);
                // A node that is named no more may have lost its hash to limbo.
                match word.load(Ordering::SeqCst) {
                    now if now == named => {
                        if belongs(hash) && !self.nodes.contains(&node) {
                            self.nodes.push(node);
                        }
                        break;
                    }
                    now => named = now,
                }
            }
            moved |= named == MOVED;
        }
        let Some(successor) = table.successor(self.arena) else {
            return;
        };
        if moved || chunk.is_done() {
            let (from, to) = (table.chunks(), successor.chunks());
            // What the chunk's keys are spread over; or shared with another chunk's.
            let first = index * to / from;
            let end = ((index + 1) * to).div_ceil(from);
            for next in first..end {
                self.add(successor, next, &|hash| {
                    belongs(hash) && table.index(hash) == index
                });
            }
        }
    }
}

impl Iterator for Nodes {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        loop {
            if let Some(node) = self.nodes.pop() {
                return Some(node);
            }
            let table = self.table?;
            if self.index == table.chunks() {
                self.table = None;
                return None;
            }
            self.index += 1;
            self.add(table, self.index - 1, &|_| true);
        }
    }
}
