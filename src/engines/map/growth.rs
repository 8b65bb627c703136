//! Tables and their successors: made, moved to, retired.
//!
//! | step | killed after it leaves | and then |
//! |------|------------------------|----------|
//! | a table is made | a block that the intent names | freed, unless it was published |
//! | the chunk's lock is taken | the dead tag | taken over |
//! | COPY: the successor's word names the node | two words that name it | the old one becomes MOVED |
//! | COPY: the old word is MOVED | one | the next one goes on with the chunk |
//! | the chunk is done | the lock | taken over |
//! | the table has its retirer | the table | the root goes on, the table goes to limbo |
//!
//! A successor may get one itself before all is moved to it. A node then moves to the last table of
//! the chain in which its chunk is not done.

use super::edit;
use super::table::{Chunk, EMPTY, Kind, MOVED, TOMB, Table, WORDS, hash_of, is_node, node_of};
use super::{CHANGE, COPY, RETIRE, hash};
use crate::allocator::AllocError;
use crate::engines::{change, limbo};
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

/// A chunk with so many nodes wants a larger table.
const CROWDED: usize = 48;
/// A table with fewer nodes a chunk wants to be smaller.
const LONELY: usize = 6;
/// Chunks that are looked at for that.
const SAMPLE: usize = 8;

/// A map's first table.
#[cold]
pub(super) fn first(
    arena: Arena,
    slot: &Slot,
    root: &AtomicU64,
    stacked: bool,
) -> Result<(), AllocError> {
    let seed = hash::seed();
    add(arena, slot, root, 1, Kind { seed, stacked })
}

/// Makes a table of `chunks` that `word` names, unless it names one already.
fn add(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    chunks: usize,
    kind: Kind,
) -> Result<(), AllocError> {
    if word.load(Ordering::SeqCst) != 0 {
        return Ok(());
    }
    let made = change::prepare(arena, slot, CHANGE, word, Table::layout(chunks))?;
    Table::make(made, chunks, kind);
    match change::publish(arena, slot, word, (0, 0), made) {
        Ok(()) => change::finish(arena, slot, 0, 0),
        Err(_) => change::abandon(arena, slot, made),
    }
    Ok(())
}

/// Gives the table a successor of twice as many chunks.
#[cold]
pub(super) fn grow(arena: Arena, slot: &Slot, table: Table) -> Result<(), AllocError> {
    let chunks = table.chunks() * 2;
    add(arena, slot, &table.header.successor, chunks, table.kind())
}

/// A node was added to the chunk, far from where its search begins. The caller has no locks.
#[cold]
pub(super) fn grow_if_crowded(arena: Arena, slot: &Slot, table: Table, chunk: &Chunk) {
    if chunk.count() >= CROWDED {
        // No room for it now: the chunk still has some.
        let _ = grow(arena, slot, table);
    }
}

/// The chunk has no node any more: gives the table a smaller successor if others have few.
#[cold]
pub(super) fn shrink_if_lonely(arena: Arena, slot: &Slot, root: &AtomicU64, table: Table) {
    if root.load(Ordering::Relaxed) != table.address() {
        // Nodes are still on their way here.
        return;
    }
    let step = (table.chunks() / SAMPLE).max(1);
    let sample = (0..table.chunks()).step_by(step).take(SAMPLE);
    let nodes: usize = sample.clone().map(|index| table.chunk(index).count()).sum();
    if nodes < LONELY * sample.count() {
        let chunks = table.chunks() / 2;
        let successor = &table.header.successor;
        let _ = add(arena, slot, successor, chunks, table.kind());
    }
}

/// Moves the chunk's nodes to the table's successor. On an error some are moved, and none is lost.
pub(super) fn move_chunk(
    arena: Arena,
    slot: &Slot,
    table: Table,
    index: usize,
) -> Result<(), AllocError> {
    let chunk = table.chunk(index);
    if chunk.is_done() {
        return Ok(());
    }
    edit::lock(arena, slot, chunk);
    let moved = move_locked(arena, slot, table, index);
    lock::unlock(&chunk.lock, slot.tag(), 0);
    moved
}

fn move_locked(arena: Arena, slot: &Slot, table: Table, index: usize) -> Result<(), AllocError> {
    let chunk = table.chunk(index);
    if chunk.is_done() {
        return Ok(());
    }
    let Some(successor) = table.successor(arena) else {
        return Ok(());
    };
    // A lock for many nodes: there are two chunks that they can go to, or one.
    for (index, to) in targets(table, index, successor) {
        edit::lock(arena, slot, to);
        if !to.is_done() {
            for word in &chunk.words {
                let named = word.load(Ordering::Relaxed);
                if !is_node(named) {
                    continue;
                }
                let hash = hash_of(arena, node_of(arena, named));
                if successor.index(hash) == index
                    && let Some(place) = free_place(to, hash)
                {
                    copy_locked(slot, word, named, place);
                }
            }
        }
        lock::unlock(&to.lock, slot.tag(), 0);
    }
    // What found no room there goes further on, or to a table that is made for it.
    for word in &chunk.words {
        let named = word.load(Ordering::Relaxed);
        if is_node(named) {
            let hash = hash_of(arena, node_of(arena, named));
            copy(arena, slot, word, named, successor, hash)?;
        }
    }
    chunk.done.store(1, Ordering::SeqCst);
    Ok(())
}

/// The chunks of the successor that the nodes of a chunk go to, with their indexes.
fn targets(
    table: Table,
    index: usize,
    successor: Table,
) -> impl Iterator<Item = (usize, &'static Chunk)> {
    let (from, to) = (table.chunks(), successor.chunks());
    let indexes = index * to / from..((index + 1) * to).div_ceil(from);
    indexes.map(move |index| (index, successor.chunk(index)))
}

/// The first place for a key that is not in the chunk, whose lock the caller has.
fn free_place(chunk: &Chunk, hash: u64) -> Option<&AtomicU64> {
    let is_free = |word: &&AtomicU64| matches!(word.load(Ordering::Relaxed), EMPTY | TOMB);
    chunk.search(hash).find(is_free)
}

/// Moves one node. The caller has the locks of both chunks.
fn copy_locked(slot: &Slot, from: &AtomicU64, named: u64, place: &AtomicU64) {
    let address = |word: &AtomicU64| std::ptr::from_ref(word).addr() as u64;
    slot.intent
        .open(COPY, &[address(from), named, address(place)]);
    // Release: who finds the word finds what the node's author has written.
    place.store(named, Ordering::Release);
    compiler_fence(Ordering::SeqCst);
    // Release: who finds MOVED finds the node in its new place.
    from.store(MOVED, Ordering::Release);
    slot.intent.close();
}

/// Moves one node to a table, or to one of its successors. The caller holds the lock of `from`.
fn copy(
    arena: Arena,
    slot: &Slot,
    from: &AtomicU64,
    named: u64,
    mut to: Table,
    hash: u64,
) -> Result<(), AllocError> {
    loop {
        let chunk = to.chunk(to.index(hash));
        if let Some(successor) = to.successor(arena) {
            move_chunk(arena, slot, to, to.index(hash))?;
            to = successor;
            continue;
        }
        edit::lock(arena, slot, chunk);
        let free = free_place(chunk, hash);
        let done = chunk.is_done() && to.successor(arena).is_some();
        if let (false, Some(place)) = (done, free) {
            copy_locked(slot, from, named, place);
        }
        lock::unlock(&chunk.lock, slot.tag(), 0);
        if !done {
            if free.is_some() {
                return Ok(());
            }
            grow(arena, slot, to)?;
        }
    }
}

/// Completes a copy of a dead thread, if the node was named by the successor.
pub(super) fn resolve_copy(arena: Arena, slot: &Slot) {
    let named = slot.intent.arg(1);
    let word = |i: usize| crate::engines::word(arena, slot.intent.arg(i));
    if let (Some(from), Some(place)) = (word(0), word(2))
        && place.load(Ordering::SeqCst) == named
    {
        from.store(MOVED, Ordering::SeqCst);
    }
}

/// Moves one more chunk of a table that has a successor. When there is none left, the table goes.
pub(super) fn help(arena: Arena, slot: &Slot, root: &AtomicU64, table: Table) {
    let header = table.header;
    let next = header.cursor.fetch_add(1, Ordering::Relaxed) as usize;
    let index = if next < table.chunks() {
        next
    } else {
        // All are somebody's; who died or failed has left some.
        let from = header.done.load(Ordering::Relaxed) as usize;
        let left = (from..table.chunks()).find(|&index| !table.chunk(index).is_done());
        let before = left.unwrap_or(table.chunks());
        header.done.fetch_max(before as u64, Ordering::Relaxed);
        let Some(left) = left else {
            complete(arena, slot, root, table);
            return;
        };
        left
    };
    let chunk = table.chunk(index);
    // Who holds it may be moving it. A stopped one is not waited for.
    if !chunk.is_done() && edit::try_lock(arena, slot, chunk) {
        let _ = move_locked(arena, slot, table, index);
        lock::unlock(&chunk.lock, slot.tag(), 0);
    }
}

/// All chunks of the table are done: the root goes on, and one thread retires the table.
#[cold]
fn complete(arena: Arena, slot: &Slot, root: &AtomicU64, table: Table) {
    if root.load(Ordering::SeqCst) != table.address() {
        // A table before it has to go first; or it has gone.
        return;
    }
    let next = table.header.successor.load(Ordering::SeqCst);
    let address = std::ptr::from_ref(root).addr() as u64;
    slot.intent.open(RETIRE, &[address, table.address(), next]);
    let me = slot.tag().word();
    let retirer = &table.header.retirer;
    let mine = retirer
        .compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok();
    go_on(arena, root, table.address(), next);
    if mine {
        let bytes = Table::layout(table.chunks()).size();
        limbo::retire(arena, slot, table.address(), bytes);
    }
    slot.intent.close();
}

/// Makes the root name a table's successor.
fn go_on(arena: Arena, root: &AtomicU64, table: u64, next: u64) {
    change::note(arena, table);
    let _ = root.compare_exchange(table, next, Ordering::SeqCst, Ordering::Relaxed);
}

/// Completes what a dead thread was retiring, if it was the one to do so.
pub(super) fn resolve_retire(arena: Arena, slot: &Slot, owner: Tag) {
    let (table, next) = (slot.intent.arg(1), slot.intent.arg(2));
    let mine = Table::at(arena, table)
        .is_some_and(|table| table.header.retirer.load(Ordering::SeqCst) == owner.word());
    if let (true, Some(root)) = (mine, crate::engines::word(arena, slot.intent.arg(0))) {
        go_on(arena, root, table, next);
        limbo::retire_once(arena, slot, table);
    }
}

const _: () = assert!(CROWDED < WORDS && 2 * LONELY < CROWDED);
