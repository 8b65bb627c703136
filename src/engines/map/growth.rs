//! Tables and their successors: made, moved to, retired.
//!
//! A table of full chunks grows where it lies: its successor has its chunks, and as many of its own (`shape`). A
//! chunk's entries are split between it and the one that is so many behind (`split`). A short chunk is followed by one
//! of twice the length, and a table that gets smaller by a table with nothing in common: there all entries are copied.
//!
//! A chunk counts until its state is DONE, and then the copies of its entries do (`protocol::moving`). Nobody looks for a
//! key in the successor before that, and no key of the chunk changes, for whoever wants to change it moves the chunk
//! first. So who is killed halfway leaves copies that nobody sees, and who goes on leaves out what is there already:
//! nothing has to be recorded.
//!
//! | step | killed after it leaves | and then |
//! |------|------------------------|----------|
//! | a table is made | a block that the intent names | freed, unless it was published |
//! | the chunk's lock is taken | the dead tag | taken over |
//! | the steps of a move | see `protocol::moving` | |
//! | the table has its retirer | the table | the root goes on, the table's blocks go to limbo |
//! | the intent says which block is next | some in limbo | it goes there, unless it is the last one there, and the others |
//!
//! A table that has grown where it lies is not retired: it is part of its successor, which is retired with all its parts.
//!
//! A successor may get one itself before all is moved to it. An entry then moves to the last table
//! of the chain in which its chunk is not done.

use super::edit;
use super::shape::Shape;
use super::split::{add_to, ready, split};
use super::table::{Kind, State, Table};
use super::{CHANGE, DAMAGED, Mode, RETIRE, hash};
use crate::allocator::AllocError;
use crate::engines::{change, limbo};
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};
use crate::protocol::lines::{self, Chunk};
use crate::protocol::moving;

/// The argument of RETIRE that says which of the table's blocks is next.
const PART: usize = 3;

/// What there is instead of waiting; nobody is told.
const LATER: AllocError = DAMAGED;

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
    add(arena, slot, root, Shape::FIRST, kind, None)
}

/// Makes a table that `word` names, unless it names one already: a map's first one, or what comes after `before`.
fn add(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    shape: Shape,
    kind: Kind,
    before: Option<Table>,
) -> Result<(), AllocError> {
    if word.load(Ordering::SeqCst) != 0 {
        return Ok(());
    }
    let made = change::prepare(arena, slot, CHANGE, word, shape.layout())?;
    Table::make(made, shape, kind, before);
    if change::publish(arena, slot, word, (0, 0), made) {
        change::finish(arena, slot, 0, 0);
    } else {
        change::abandon(arena, slot, made);
    }
    Ok(())
}

/// Gives the table a successor, unless it has one.
fn follow(arena: Arena, slot: &Slot, table: Table, shape: Shape) -> Result<(), AllocError> {
    let successor = &table.header.successor;
    add(
        arena,
        slot,
        successor,
        shape,
        table.kind().next(),
        Some(table),
    )
}

/// Gives the table a successor that is twice as large.
#[cold]
pub(super) fn grow(arena: Arena, slot: &Slot, table: Table) -> Result<(), AllocError> {
    follow(arena, slot, table, table.shape().larger())?;
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
        let _ = follow(arena, slot, table, smaller);
    }
}

/// Moves the chunk's entries to the table's successor. On an error it counts as before.
pub(super) fn move_chunk<M: Mode>(
    arena: Arena,
    slot: &Slot,
    table: Table,
    index: usize,
) -> Result<(), AllocError> {
    move_chunk_at::<M>(arena, slot, (table, index), 0, true)
}

/// The same, for the sake of entries of so many tables before. Who does not wait for locks may be told that it has not moved.
fn move_chunk_at<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (table, index): (Table, usize),
    depth: usize,
    waits: bool,
) -> Result<(), AllocError> {
    if table.is_done(index) {
        return Ok(());
    }
    let state = table.state(index);
    take(arena, slot, state, waits)?;
    let moved = move_locked::<M>(arena, slot, (table, index), depth, waits);
    lock::unlock(&state.lock, slot.tag(), 0);
    moved
}

/// Takes a lock; if it would have to be waited for, only if it `waits`.
fn take(arena: Arena, slot: &Slot, state: &State, waits: bool) -> Result<(), AllocError> {
    if waits {
        edit::lock(arena, slot, state);
        return Ok(());
    }
    lock::try_take(arena, slot, &state.lock)
        .then_some(())
        .ok_or(LATER)
}

/// The same by who holds the chunk's lock.
fn move_locked<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (table, index): (Table, usize),
    depth: usize,
    waits: bool,
) -> Result<(), AllocError> {
    let Some(successor) = table.successor(arena) else {
        return Ok(());
    };
    // By somebody who had the lock meanwhile. Then the lock in the successor may be anybody's.
    if table.is_done(index) {
        return Ok(());
    }
    // If nothing was moved here yet, nothing will be: it goes past.
    ready::<M>(table, index);
    if successor.is_inherited(0) {
        return split::<M>(arena, slot, (table, index), successor);
    }
    moving::hand_over(&table.state(index).word, || {
        copy_all::<M>(arena, slot, (table, index), (successor, depth + 1), waits)
    })
}

/// Copies the entries of a chunk whose lock the caller holds to the table's successor, at that depth of the
/// chain, or further on. All of them go to one chunk.
fn copy_all<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (table, index): (Table, usize),
    (successor, depth): (Table, usize),
    waits: bool,
) -> Result<(), AllocError> {
    let (chunk, seed) = (table.chunk(index), table.seed());
    let target = index & (successor.chunks() - 1);
    let (state, to) = (successor.state(target), successor.chunk(target));
    take(arena, slot, state, waits)?;
    let is_new = ready::<M>(successor, target);
    let goes_on = successor.is_done(target);
    let mut left = false;
    lines::entries(chunk, |key, value| {
        let hash = M::hash_of(seed, key);
        left |= goes_on
            || if is_new {
                !lines::add_new(to, hash, key, value)
            } else {
                !add_to::<M>(to, hash, key, value)
            };
        Ok::<(), AllocError>(())
    })?;
    lock::unlock(&state.lock, slot.tag(), 0);
    if left {
        // What found no room there goes further on, or to a table that is made for it.
        lines::entries(chunk, |key, value| {
            let hash = M::hash_of(seed, key);
            copy::<M>(arena, slot, (successor, depth), hash, (key, value), waits)
        })?;
    }
    Ok(())
}

/// Copies one entry to a table, or to one of its successors, unless it is there. The caller holds
/// the lock of the chunk that it is in. The table is at that depth of the chain, of which garbage may be
/// made that goes on for ever.
fn copy<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (mut to, mut depth): (Table, usize),
    hash: u64,
    (key, value): (u64, u64),
    waits: bool,
) -> Result<(), AllocError> {
    while depth < MOST_TABLES {
        let index = to.index(hash);
        if let Some(successor) = to.successor(arena) {
            move_chunk_at::<M>(arena, slot, (to, index), depth, waits)?;
            (to, depth) = (successor, depth + 1);
            continue;
        }
        let state = to.state(index);
        take(arena, slot, state, waits)?;
        ready::<M>(to, index);
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
    if root.load(Ordering::SeqCst) != table.address() {
        // A table before it has to go first; or it has gone.
        return;
    }
    let header = table.header;
    let next = header.cursor.fetch_add(1, Ordering::Relaxed) as usize;
    let index = if next < table.chunks() {
        next
    } else {
        // All are somebody's; who died or failed has left some.
        // Acquire and Release: what is before that is done for who has not looked at it, too.
        let from = header.done.load(Ordering::Acquire) as usize;
        let left = (from..table.chunks()).find(|&index| !table.is_done(index));
        let before = left.unwrap_or(table.chunks());
        header.done.fetch_max(before as u64, Ordering::AcqRel);
        let Some(left) = left else {
            complete(arena, slot, root, table);
            return;
        };
        left
    };
    // Who holds it may be moving it, and who holds the one that it moves to may change something there. A stopped one is
    // not waited for.
    let _ = move_chunk_at::<M>(arena, slot, (table, index), 0, false);
}

/// All chunks of the table, which is the root, are done: the root goes on. If it is not part of its successor, one thread
/// retires the table.
#[cold]
fn complete(arena: Arena, slot: &Slot, root: &AtomicU64, table: Table) {
    let Some(successor) = table.successor(arena) else {
        return;
    };
    let (this, next) = (table.address(), successor.address());
    if successor.is_inherited(0) {
        go_on(arena, root, this, next);
        return;
    }
    let address = std::ptr::from_ref(root).addr() as u64;
    slot.intent.open(RETIRE, &[address, this, next, 0]);
    let me = slot.tag().word();
    let retirer = &table.header.retirer;
    let mine = retirer
        .compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok();
    go_on(arena, root, this, next);
    if mine {
        retire(arena, slot, table, limbo::retire);
    }
    slot.intent.close();
}

/// Makes the root name a table's successor.
fn go_on(arena: Arena, root: &AtomicU64, table: u64, next: u64) {
    change::note(arena, table);
    let _ = root.compare_exchange(table, next, Ordering::SeqCst, Ordering::Relaxed);
}

/// Retires a table's blocks, one after the other. The intent says which one is next.
fn retire(arena: Arena, slot: &Slot, table: Table, retire: impl Fn(Arena, &Slot, u64, usize)) {
    let first = slot.intent.arg(PART) as usize;
    for (part, (_, table)) in table.parts(arena).enumerate().skip(first) {
        slot.intent.set_arg(PART, part as u64);
        retire(arena, slot, table.address(), table.shape().layout().size());
        compiler_fence(Ordering::SeqCst);
    }
}

/// Completes what a dead thread was retiring, if it was the one to do so.
pub(super) fn resolve_retire(arena: Arena, slot: &Slot, owner: Tag) {
    let (table, next) = (slot.intent.arg(1), slot.intent.arg(2));
    let mine = Table::at(arena, table)
        .filter(|table| table.header.retirer.load(Ordering::SeqCst) == owner.word());
    if let (Some(this), Some(root)) = (mine, crate::engines::word(arena, slot.intent.arg(0))) {
        go_on(arena, root, table, next);
        retire(arena, slot, this, limbo::retire_once);
    }
}
