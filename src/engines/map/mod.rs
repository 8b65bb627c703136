//! The hash map's engine: entries in slots of a table.
//!
//! # Rationale
//!
//! Reads must wait for nobody, each change must be one store, and what costs time is memory that is
//! not cached. So an entry is two words in a table. A line of the table holds three entries, and a
//! word that says which of them are there, with a version. If keys and values fit into a word each,
//! that is all (a *flat* map): a read takes one line. Otherwise the two words are the key's hash and
//! the address of a node with key and value, which is never written again.
//!
//! A thread that changes something holds the lock of its chunk of 32 lines. A stopped writer holds
//! up other writers in this chunk and nobody else; a dead writer's lock is taken over once its
//! intent is resolved. In a flat map there is no intent: one store makes the change. With nodes, a
//! change is as in `change`: a node is allocated into the intent, one store publishes it, and what
//! was there before goes to limbo.
//!
//! When a chunk gets full, or the table gets nearly empty, the table is given a *successor* that is twice or half as
//! large. From then on, whoever wants to change something in a chunk first moves that chunk's entries over, and then
//! one more chunk. So a table is moved by the threads that use it, in small steps, and its successor's chunks are
//! cleared when entries are first moved to them. A table whose chunks have the full length keeps them when it grows,
//! and half of the entries stay where they are. Others are copied under the locks of the chunks in both tables; the old
//! entry counts until its chunk is DONE. When all chunks are done, the successor becomes the root.
//!
//! | module   | what |
//! |----------|------|
//! | `shape`  | how large a table is, and what follows from that |
//! | `table`  | the layout of a table |
//! | `hints`  | what a map knows of its table without looking |
//! | `at_once` | the most common case, in few instructions |
//! | `find`   | look-ups, and walks over all entries |
//! | `edit`   | insert, replace, remove |
//! | `growth` | tables and their successors |
//! | `split`  | how one chunk becomes two |
//! | `hash`   | the hashes |
//!
//! | intent | killed before | killed after |
//! |--------|---------------|--------------|
//! | CHANGE (`change`) | the node, or table, is freed | the old node goes to limbo |
//! | RETIRE | the table has its retirer: nothing | the root is moved on, the table goes to limbo with all its parts |
//!
//! Invariants
//! 1. The lines of a chunk, and its state, are changed only by the holder of its lock. For a chunk that two tables
//!    share, this is the lock that it has in the first of them in which it is not done.
//! 2. A key is changed, and looked for, in a table only if its chunk is done in every table before.
//! 3. A chunk is done only if every entry of it is in a later table, in the first one in which its
//!    chunk is not done.
//! 4. A slot that is live was filled before its line's word said so, with a version that no earlier
//!    word had.
//! 5. Locks are taken in the order of the chain of successors, and within a table in the order of
//!    the index.

mod at_once;
mod edit;
mod find;
mod growth;
mod hash;
mod hints;
mod shape;
mod split;
mod table;

use std::collections::HashSet;

use self::table::{Table, hidden_by};
use super::change;
use super::{Named, OP_SHIFT, limbo};
use crate::allocator::check::CheckReport;
use crate::allocator::{AllocError, block};
use crate::layout::Engine;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::Ordering;
use crate::protocol::lines::{self, SLOTS};
use crate::protocol::moving;

pub(crate) use self::at_once::put_at_once;
pub(crate) use self::edit::{Edit, Put, edit};
pub(crate) use self::find::{Entries, EntryWords, find};
pub(crate) use self::hash::{folded, seed, sip};
pub(crate) use self::hints::{Guess, Hints, Near};
pub(crate) use self::table::Stack;

const ENGINE: u64 = (Engine::Map as u64) << OP_SHIFT;
/// Intents: the operation's low bits say which.
const CHANGE: u64 = ENGINE;
const RETIRE: u64 = ENGINE | 2;

/// The kind of entries that a map has.
pub(crate) trait Mode {
    /// Keys and values are in the slots; there are no nodes.
    const FLAT: bool;
    /// Nodes hide others.
    const STACKED: bool;

    /// The hash of the key whose slot begins with that word.
    fn hash_of(seed: [u64; 2], key: u64) -> u64;
}

/// Completes or undoes what a dead thread had open. Repeatable.
pub(super) fn resolve(arena: Arena, slot: &Slot, owner: Tag, op: u64) {
    match op {
        CHANGE => change::resolve(arena, slot, owner),
        RETIRE => growth::resolve_retire(arena, slot, owner),
        _ => {}
    }
}

/// The error if garbage has taken the place of a table.
pub(crate) const DAMAGED: AllocError = AllocError::TooLarge;

/// A map's tables, the root first.
fn tables(arena: Arena, root: u64) -> impl Iterator<Item = Table> {
    let next = move |table: &Table| table.successor(arena);
    std::iter::successors(Table::at(arena, root), next)
}

/// True if an entry with that hash, in that chunk of the table at `depth` of the chain, counts.
fn counts(tables: &[Table], depth: usize, index: usize, hash: u64) -> bool {
    let (before, table) = (&tables[..depth], tables[depth]);
    !table.is_done(index)
        && table.may_hold(index, hash)
        && before.iter().all(|table| table.is_done(table.index(hash)))
}

/// The next block that a map under destruction owns: nodes, then tables, the last one first. (The
/// tables before a table are needed to say which of its entries count.)
pub(super) fn next_block(arena: Arena, first: usize, cursor: &mut usize) -> Option<Named> {
    let root = crate::engines::word(arena, first as u64)?.load(Ordering::Acquire);
    let tables: Vec<Table> = tables(arena, root).collect();
    let last = tables.last()?;
    // The nodes are freed before any part of the root is.
    let has_nodes = !last.kind().flat && tables[0].is_whole();
    if has_nodes && let Some(node) = next_node(arena, &tables, cursor) {
        return Some(node);
    }
    let (named_by, table) = match tables.len() {
        // Only this table still names the tables from which it has grown.
        1 => match last.parts(arena).rev().nth(1) {
            Some((word, part)) => (std::ptr::from_ref(word).addr(), part),
            None => (first, *last),
        },
        n => {
            let word = &tables[n - 2].header.successor;
            (std::ptr::from_ref(word).addr(), *last)
        }
    };
    Some(Named {
        word: named_by as u64,
        next: 0,
        block: table.address() as usize,
    })
}

/// The next node of a map under destruction. The cursor counts the slots of all tables.
fn next_node(arena: Arena, tables: &[Table], cursor: &mut usize) -> Option<Named> {
    let mut before = 0;
    for (depth, table) in tables.iter().enumerate() {
        let (kind, a_chunk) = (table.kind(), table.shape().capacity());
        let end = before + table.chunks() * a_chunk;
        while *cursor < end {
            let (index, at) = ((*cursor - before) / a_chunk, (*cursor - before) % a_chunk);
            *cursor += 1;
            let line = &table.chunk(index).0[at / SLOTS];
            // The thread that has split the chunk was killed, and may have left entries twice.
            if at == 0
                && table.is_inherited(index)
                && (depth == 0 || tables[depth - 1].is_done(index))
            {
                moving::ready(&table.state(index).word, || {
                    split::make_ready(*table, index, |_, hash| hash);
                });
            }
            if line.word.load(Ordering::Acquire) >> (at % SLOTS) & 1 == 0 {
                continue;
            }
            let slot = &line.slots[at % SLOTS];
            let (hash, node) = (
                slot.key.load(Ordering::Acquire),
                slot.value.load(Ordering::Acquire),
            );
            // 0: the node is freed already.
            if node == 0 || !counts(tables, depth, index, hash) {
                continue;
            }
            // If garbage leads in a circle, a node is met again that is freed already.
            let hidden = if kind.stacked && block::usable_size(arena, node as usize).is_ok() {
                hidden_by(arena, node)
            } else {
                0
            };
            // The same slot is looked at again, for the node that was hidden.
            *cursor -= 1;
            return Some(Named {
                word: std::ptr::from_ref(&slot.value).addr() as u64,
                next: hidden,
                block: node as usize,
            });
        }
        before = end;
    }
    None
}

/// Checks a map at rest.
pub(super) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    let root =
        crate::engines::word(arena, first as u64).map_or(0, |word| word.load(Ordering::Acquire));
    let tables: Vec<Table> = tables(arena, root).collect();
    if root != 0 && tables.is_empty() {
        report.problem(format_args!("the map at {first:#x} has no table"));
    }
    let mut seen = HashSet::new();
    for (depth, table) in tables.iter().enumerate() {
        let last = depth + 1 == tables.len();
        for index in 0..table.chunks() {
            if last && table.is_done(index) {
                report.problem(format_args!("the map at {first:#x} has moved to nowhere"));
            }
            if !table.kind().flat {
                check_chunk(arena, first, (&tables, depth, index), &mut seen, report);
            }
        }
    }
}

/// Checks the nodes of a chunk of the table at `depth` of the chain. `seen` are the nodes of the chunks before.
fn check_chunk(
    arena: Arena,
    first: usize,
    (tables, depth, index): (&[Table], usize, usize),
    seen: &mut HashSet<u64>,
    report: &mut CheckReport,
) {
    let table = tables[depth];
    let chunk = table.chunk(index);
    for (home, line) in chunk.0.iter().enumerate() {
        for slot in lines::live(line.word.load(Ordering::Acquire)) {
            let slot = &line.slots[slot];
            let hash = slot.key.load(Ordering::Acquire);
            let node = slot.value.load(Ordering::Acquire);
            if !counts(tables, depth, index, hash)
                || !table.is_ready(index) && lines::is_copy(chunk, home, hash, (hash, node))
            {
                continue;
            }
            let passed = chunk
                .path(hash)
                .take_while(|before| !std::ptr::eq(*before, &chunk.0[home]))
                .all(|before| lines::is_passed(before.word.load(Ordering::Acquire)));
            let retired =
                limbo::header(arena, node).is_none_or(|own| own.next.load(Ordering::Relaxed) != 0);
            let block = block::usable_size(arena, node as usize).is_ok();
            let right = table.index(hash) == index && passed;
            if !right || retired || !block || !seen.insert(node) {
                report.problem(format_args!(
                    "the map at {first:#x} has a bad node in chunk {index}"
                ));
            }
            let mut hidden = if table.kind().stacked {
                hidden_by(arena, node)
            } else {
                0
            };
            while hidden != 0 {
                if block::usable_size(arena, hidden as usize).is_err() || !seen.insert(hidden) {
                    report.problem(format_args!(
                        "the map at {first:#x} has a bad node below another in chunk {index}"
                    ));
                    break;
                }
                hidden = hidden_by(arena, hidden);
            }
        }
    }
}
