//! Tables and their successors: made, moved to, retired.
//!
//! A chunk is moved by copying its entries; it counts until its state is DONE, and then the copies
//! do (`protocol::moving`). Nobody looks for a key in the successor before that, and no key of the chunk
//! changes, for whoever wants to change it moves the chunk first. So who is killed halfway leaves copies that
//! nobody sees, and who goes on leaves out what is there already: nothing has to be recorded.
//!
//! | step | killed after it leaves | and then |
//! |------|------------------------|----------|
//! | a table is made | a block that the intent names | freed, unless it was published |
//! | the chunk's lock is taken | the dead tag | taken over |
//! | the steps of a move | see `protocol::moving` | |
//! | the table has its retirer | the table | the root goes on, the table goes to limbo |
//!
//! A successor may get one itself before all is moved to it. An entry then moves to the last table
//! of the chain in which its chunk is not done.

use super::edit;
use super::table::{Kind, Shape, Table};
use super::{CHANGE, DAMAGED, Mode, RETIRE, hash};
use crate::allocator::AllocError;
use crate::engines::{change, limbo};
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::lines::{self, Chunk};
use crate::protocol::moving;

/// Chunks that are looked at for whether a table is too large.
const SAMPLE: usize = 8;

/// More tables than a chain has: each is larger than the one before, unless that is nearly empty, and is
/// followed by another only if it is full before all has moved to it.
const MOST_TABLES: usize = 64;

/// A table with fewer entries a chunk wants to be smaller.
fn lonely(shape: Shape) -> usize {
    shape.capacity() / 8
}

/// A map's first table.
#[cold]
pub(super) fn first<M: Mode>(
    arena: Arena,
    slot: &Slot,
    root: &AtomicU64,
) -> Result<(), AllocError> {
    let kind = Kind {
        number: 0,
        seed: hash::seed(),
        stacked: M::STACKED,
        flat: M::FLAT,
    };
    add(arena, slot, root, Shape::FIRST, kind, true)
}

/// Makes a table that `word` names, unless it names one already.
fn add(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    shape: Shape,
    kind: Kind,
    ready: bool,
) -> Result<(), AllocError> {
    if word.load(Ordering::SeqCst) != 0 {
        return Ok(());
    }
    let made = change::prepare(arena, slot, CHANGE, word, shape.layout())?;
    Table::make(made, shape, kind, ready);
    match change::publish(arena, slot, word, (0, 0), made) {
        Ok(()) => change::finish(arena, slot, 0, 0),
        Err(_) => change::abandon(arena, slot, made),
    }
    Ok(())
}

/// Gives the table a successor that is twice as large.
#[cold]
pub(super) fn grow(arena: Arena, slot: &Slot, table: Table) -> Result<(), AllocError> {
    let larger = table.shape().larger();
    let successor = &table.header.successor;
    add(arena, slot, successor, larger, table.kind().next(), false)?;
    table.successor(arena).map(drop).ok_or(DAMAGED)
}

/// A line of the chunk has no entry any more: gives the table a smaller successor if the chunk has
/// none and others have few.
#[cold]
pub(super) fn shrink_if_lonely(
    arena: Arena,
    slot: &Slot,
    root: &AtomicU64,
    table: Table,
    chunk: Chunk,
) {
    let Some(smaller) = table.shape().smaller() else {
        return;
    };
    // If it is not the root, entries are still on their way here.
    if !chunk.is_empty() || root.load(Ordering::Relaxed) != table.address() {
        return;
    }
    let step = (table.chunks() / SAMPLE).max(1);
    let sample = (0..table.chunks()).step_by(step).take(SAMPLE);
    let entries: usize = sample.clone().map(|index| table.chunk(index).count()).sum();
    if entries < lonely(table.shape()) * sample.count() {
        let successor = &table.header.successor;
        let _ = add(arena, slot, successor, smaller, table.kind().next(), false);
    }
}

/// Moves the chunk's entries to the table's successor. On an error it counts as before.
pub(super) fn move_chunk<M: Mode>(
    arena: Arena,
    slot: &Slot,
    table: Table,
    index: usize,
) -> Result<(), AllocError> {
    move_chunk_at::<M>(arena, slot, table, index, 0)
}

/// The same, for the sake of entries of so many tables before.
fn move_chunk_at<M: Mode>(
    arena: Arena,
    slot: &Slot,
    table: Table,
    index: usize,
    depth: usize,
) -> Result<(), AllocError> {
    if table.is_done(index) {
        return Ok(());
    }
    let state = table.state(index);
    edit::lock(arena, slot, state);
    let moved = move_locked::<M>(arena, slot, table, index, depth);
    lock::unlock(&state.lock, slot.tag(), 0);
    moved
}

fn move_locked<M: Mode>(
    arena: Arena,
    slot: &Slot,
    table: Table,
    index: usize,
    depth: usize,
) -> Result<(), AllocError> {
    let Some(successor) = table.successor(arena) else {
        return Ok(());
    };
    let chunk = table.chunk(index);
    moving::hand_over(&table.state(index).word, chunk, || {
        copy_all::<M>(arena, slot, (table, index), (successor, depth + 1))
    })
}

/// Copies the entries of a chunk whose lock the caller holds to the table's successor, at that depth of the
/// chain, or further on.
fn copy_all<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (table, index): (Table, usize),
    (successor, depth): (Table, usize),
) -> Result<(), AllocError> {
    let chunk = table.chunk(index);
    let seed = table.seed();
    // A lock for many entries: there are two chunks that they can go to, or one.
    let mut all_new = true;
    for target in targets(table, index, successor) {
        edit::lock(arena, slot, successor.state(target));
        all_new &= successor.ready(target);
    }
    let mut left = false;
    lines::entries(chunk, |key, value| {
        let hash = M::hash_of(seed, key);
        let target = successor.index(hash);
        let to = successor.chunk(target);
        left |= if all_new {
            !lines::add_new(to, hash, key, value)
        } else {
            successor.is_done(target) || !add_to::<M>(to, hash, key, value)
        };
        Ok::<(), AllocError>(())
    })?;
    for target in targets(table, index, successor) {
        lock::unlock(&successor.state(target).lock, slot.tag(), 0);
    }
    if left {
        // What found no room there goes further on, or to a table that is made for it.
        lines::entries(chunk, |key, value| {
            let hash = M::hash_of(seed, key);
            copy::<M>(arena, slot, (successor, depth), hash, key, value)
        })?;
    }
    Ok(())
}

/// Gives a chunk an entry, unless it has it; false if there is no room. Who holds the chunk's lock.
fn add_to<M: Mode>(chunk: Chunk, hash: u64, key: u64, value: u64) -> bool {
    lines::add(chunk, hash, key, value, |found| M::FLAT || found == value)
}

/// The chunks of the successor that the entries of a chunk go to.
fn targets(table: Table, index: usize, successor: Table) -> impl Iterator<Item = usize> {
    let (from, to) = (table.chunks(), successor.chunks());
    index * to / from..((index + 1) * to).div_ceil(from)
}

/// Copies one entry to a table, or to one of its successors, unless it is there. The caller holds
/// the lock of the chunk that it is in. The table is at that depth of the chain, of which garbage may be
/// made that goes on for ever.
fn copy<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (mut to, mut depth): (Table, usize),
    hash: u64,
    key: u64,
    value: u64,
) -> Result<(), AllocError> {
    while depth < MOST_TABLES {
        let index = to.index(hash);
        if let Some(successor) = to.successor(arena) {
            move_chunk_at::<M>(arena, slot, to, index, depth)?;
            (to, depth) = (successor, depth + 1);
            continue;
        }
        let state = to.state(index);
        edit::lock(arena, slot, state);
        to.ready(index);
        // It may have got a successor meanwhile, and have been moved there.
        let done = to.is_done(index);
        let added = !done && add_to::<M>(to.chunk(index), hash, key, value);
        lock::unlock(&state.lock, slot.tag(), 0);
        if added {
            return Ok(());
        }
        // A table of which a chunk is done has a successor.
        grow(arena, slot, to)?;
    }
    Err(DAMAGED)
}

/// Moves one more chunk of a table that has a successor. When there is none left, the table goes.
pub(super) fn help<M: Mode>(arena: Arena, slot: &Slot, root: &AtomicU64, table: Table) {
    let header = table.header;
    let next = header.cursor.fetch_add(1, Ordering::Relaxed) as usize;
    let index = if next < table.chunks() {
        next
    } else {
        // All are somebody's; who died or failed has left some.
        let from = header.done.load(Ordering::Relaxed) as usize;
        let left = (from..table.chunks()).find(|&index| !table.is_done(index));
        let before = left.unwrap_or(table.chunks());
        header.done.fetch_max(before as u64, Ordering::Relaxed);
        let Some(left) = left else {
            complete(arena, slot, root, table);
            return;
        };
        left
    };
    let state = table.state(index);
    // Who holds it may be moving it. A stopped one is not waited for.
    if !table.is_done(index) && edit::try_lock(arena, slot, state) {
        let _ = move_locked::<M>(arena, slot, table, index, 0);
        lock::unlock(&state.lock, slot.tag(), 0);
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
        let bytes = table.shape().layout().size();
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
