//! The hash map's engine: nodes, named by words of a table.
//!
//! # Rationale
//!
//! Reads are to wait for nobody, and each change is to be one store. So keys and values are in
//! nodes that are never written again, and a table has a word a node. Who changes a word holds the
//! lock of its chunk, 62 words; a stopped writer holds up writers of these and nobody else, a dead
//! one's lock is taken over once its intent is resolved. Under the lock a change is `change`: a
//! node is allocated into the intent, one store publishes it, what the word named goes to limbo.
//!
//! A chunk that gets full, or a table that gets empty, is given a *successor*, of twice or half
//! as many chunks. From then on whoever wants to change something in a chunk moves that chunk's
//! nodes over first, and then one more chunk; so a table is moved by who uses it, in small steps.
//! A node moves under the locks of both chunks: it is named by the new word, then the old one is
//! MOVED; the intent names both. When all chunks are done the root becomes the successor.
//!
//! | module   | what |
//! |----------|------|
//! | `table`  | where things lie |
//! | `find`   | look-ups, and what there is in all |
//! | `edit`   | insert, replace, remove |
//! | `growth` | tables and their successors |
//! | `hash`   | SipHash-1-3 |
//!
//! | intent | killed before | killed after |
//! |--------|---------------|--------------|
//! | CHANGE (`change`) | the node is freed | the old node goes to limbo |
//! | COPY   | the new word: nothing | the old word becomes MOVED |
//! | RETIRE | the table has its retirer: nothing | the root goes on, the table goes to limbo |
//!
//! Invariants
//! 1. Words of a chunk, and its `done`, are changed by who holds its lock.
//! 2. A key is changed in a table only if its chunk is done in every table before. A chunk is done
//!    when no word of it names a node.
//! 3. A word becomes EMPTY only if the next place of the chunk is EMPTY: a search stops there anyway.
//! 4. A node is named by one word, except under a COPY.
//! 5. Locks are taken along the chain of successors.

mod edit;
mod find;
mod growth;
mod hash;
mod table;

use std::collections::HashSet;

pub(crate) use self::table::node_of;
use self::table::{MOVED, TOMB, Table, WORDS, hash_of, is_node, word_of};
use super::change;
use super::{Named, OP_SHIFT, limbo};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::layout::Engine;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::Ordering;

pub(crate) use self::edit::{Edit, Make, Put, edit};
pub(crate) use self::find::{Nodes, find};
pub(crate) use self::hash::{hash, seed};
pub(crate) use self::table::hidden_by;

const ENGINE: u64 = (Engine::Map as u64) << OP_SHIFT;
/// Intents: the operation's low bits say which.
const CHANGE: u64 = ENGINE;
const COPY: u64 = ENGINE | 1;
const RETIRE: u64 = ENGINE | 2;

/// The seed of a map's tables; `None` while it has none.
#[inline]
pub(crate) fn seed_of(arena: Arena, root: u64) -> Option<[u64; 2]> {
    Table::at(arena, root).map(Table::seed)
}

/// Completes or undoes what a dead thread had open. Repeatable.
pub(super) fn resolve(arena: Arena, slot: &Slot, owner: Tag, op: u64) {
    match op {
        CHANGE => change::resolve(arena, slot, owner),
        COPY => growth::resolve_copy(arena, slot),
        RETIRE => growth::resolve_retire(arena, slot, owner),
        _ => {}
    }
}

/// What a map under destruction owns next: nodes, then tables.
pub(super) fn next_block(arena: Arena, first: usize, cursor: &mut usize) -> Option<Named> {
    let root = crate::engines::word(arena, first as u64)?.load(Ordering::Acquire);
    let top = Table::at(arena, root)?;
    // The cursor counts the words of all tables.
    let mut before = 0;
    let stacked = top.kind().stacked;
    let mut next = Some(top);
    while let Some(table) = next {
        let words = table.chunks() * WORDS;
        while *cursor < before + words {
            let at = *cursor - before;
            let word = &table.chunk(at / WORDS).words[at % WORDS];
            let named = word.load(Ordering::Acquire);
            if is_node(named) {
                let node = node_of(arena, named);
                let hidden = if stacked { hidden_by(arena, node) } else { 0 };
                let next = match hidden {
                    0 => TOMB,
                    hidden => word_of(arena, hidden, hash_of(arena, node)),
                };
                return Some(Named {
                    word: std::ptr::from_ref(word).addr() as u64,
                    old: named,
                    next,
                    block: node as usize,
                });
            }
            *cursor += 1;
        }
        before += words;
        next = table.successor(arena);
    }
    *cursor = 0;
    Some(Named {
        word: first as u64,
        old: root,
        next: top.header.successor.load(Ordering::Acquire),
        block: root as usize,
    })
}

/// Checks a map at rest.
pub(super) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    let root =
        crate::engines::word(arena, first as u64).map_or(0, |word| word.load(Ordering::Acquire));
    let mut next = Table::at(arena, root);
    if root != 0 && next.is_none() {
        report.problem(format_args!("the map at {first:#x} has no table"));
    }
    let mut seen = HashSet::new();
    while let Some(table) = next {
        let stacked = table.kind().stacked;
        for index in 0..table.chunks() {
            let chunk = table.chunk(index);
            for word in &chunk.words {
                let word = word.load(Ordering::Acquire);
                if word == MOVED && table.successor(arena).is_none() {
                    report.problem(format_args!("the map at {first:#x} has moved to nowhere"));
                }
                if !is_node(word) {
                    continue;
                }
                let node = node_of(arena, word);
                let (hash, retired) = limbo::header(arena, node).map_or((0, true), |own| {
                    let retired = own.next.load(Ordering::Relaxed) != 0;
                    (own.stamp.load(Ordering::Relaxed), retired)
                });
                let right =
                    table.index(hash) == index && table::may_be(word, table::low_bits(hash));
                let block = block::usable_size(arena, node as usize).is_ok();
                if !right || retired || !block || chunk.is_done() || !seen.insert(node) {
                    report.problem(format_args!(
                        "the map at {first:#x} has a bad node in chunk {index}"
                    ));
                }
                let mut hidden = if stacked { hidden_by(arena, node) } else { 0 };
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
        next = table.successor(arena);
    }
}
