//! Tables and their successors: how they are made, moved to, and retired.
//!
//! A table whose chunks have the full length grows in place: its successor has the same chunks, and as many of its own
//! (`shape`). A chunk's entries are split between it and the chunk that comes that many chunks later (`split`). A
//! short chunk is followed by one of twice the length, and a table that gets smaller by a table that shares nothing
//! with it: there, all entries are copied.
//!
//! A chunk counts until its state is DONE; from then on the copies of its entries count (`protocol::moving`). Nobody
//! looks for a key in the successor before that, and no key of the chunk changes, as whoever wants to change it moves
//! the chunk first. So a thread that is killed halfway leaves copies that nobody sees, and the one that goes on skips
//! what is there already: nothing has to be recorded.
//!
//! | step | killed after it leaves | and then |
//! |------|------------------------|----------|
//! | a table is made | a block that the intent names | freed, unless it was published |
//! | the chunk's lock is taken | the dead tag | taken over |
//! | the steps of a move | see `protocol::moving` | |
//! | the table has its retirer | the table | the root is moved on, the table's blocks go to limbo |
//! | the intent says which block is next | some blocks in limbo | it goes there, unless it is the last one there; so do the others |
//!
//! A table that has grown in place is not retired: it is part of its successor, which is retired with all its parts.
//!
//! A successor may itself get a successor before everything is moved to it. An entry then moves to
//! the last table of the chain in which its chunk is not done.

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

/// The error that stands for not waiting; it is not reported to anybody.
const LATER: AllocError = DAMAGED;

/// The number of chunks that are examined to find out whether a table is too large.
const SAMPLE: usize = 8;

/// More tables than a chain has: each table is larger than the one before, unless that one is nearly
/// empty, and it is followed by another only if it is full before everything has moved to it.
const MOST_TABLES: usize = 64;

/// A table with fewer entries per chunk should be smaller.
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

/// Makes a table that `word` names, unless it names one already: a map's first table, or the one that comes after
/// `before`.
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

/// Called when a line of the chunk has no entry any more. Gives the table a smaller successor if
/// the chunk has no entries and others have few.
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
    // If the table is not the root, entries are still being moved here.
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

/// Moves the chunk's entries to the table's successor. On an error, the chunk counts as before.
pub(super) fn move_chunk<M: Mode>(
    arena: Arena,
    slot: &Slot,
    table: Table,
    index: usize,
) -> Result<(), AllocError> {
    move_chunk_at::<M>(arena, slot, (table, index), 0, true)
}

/// The same, called in order to move entries that come from a table `depth` tables before. If `waits` is false, locks
/// are not waited for, and the result may be that the chunk was not moved.
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

/// Takes a lock. Waits for it only if `waits` is true.
fn take(arena: Arena, slot: &Slot, state: &State, waits: bool) -> Result<(), AllocError> {
    if waits {
        edit::lock(arena, slot, state);
        return Ok(());
    }
    lock::try_take(arena, slot, &state.lock)
        .then_some(())
        .ok_or(LATER)
}

/// The same for a caller that holds the chunk's lock.
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
    // Somebody who had the lock meanwhile has moved the chunk. Then anybody may have the lock in
    // the successor.
    if table.is_done(index) {
        return Ok(());
    }
    // If nothing was moved here yet, nothing will be: it moves directly to the successor.
    ready::<M>(table, index);
    if successor.is_inherited(0) {
        return split::<M>(arena, slot, (table, index), successor);
    }
    moving::hand_over(&table.state(index).word, || {
        copy_all::<M>(arena, slot, (table, index), (successor, depth + 1), waits)
    })
}

/// Copies the entries of a chunk, whose lock the caller holds, to the table's successor, which is at that
/// depth of the chain, or to a table after it. In the successor, all of them belong to one chunk.
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
        // Entries that found no room there go to a table further on, or to one that is made for
        // them.
        lines::entries(chunk, |key, value| {
            let hash = M::hash_of(seed, key);
            copy::<M>(arena, slot, (successor, depth), hash, (key, value), waits)
        })?;
    }
    Ok(())
}

/// Copies one entry to a table, or to one of its successors, unless it is there already. The caller
/// holds the lock of the chunk that the entry is in. `depth` is the depth of the table in the chain; it
/// is limited, as a chain that is garbage may go on for ever.
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
        // The table may have got a successor meanwhile, and the chunk may have been moved there.
        let done = to.is_done(index);
        let added = !done && add_to::<M>(to.chunk(index), hash, key, value);
        lock::unlock(&state.lock, slot.tag(), 0);
        if added {
            return Ok(());
        }
        // A table that has a chunk that is done has a successor.
        grow(arena, slot, to)?;
    }
    Err(DAMAGED)
}

/// Moves one more chunk of a table that has a successor. When none is left, the table is given up.
pub(super) fn help<M: Mode>(arena: Arena, slot: &Slot, root: &AtomicU64, table: Table) {
    if root.load(Ordering::SeqCst) != table.address() {
        // A table before this one has to go first, or this one has gone.
        return;
    }
    let header = table.header;
    let next = header.cursor.fetch_add(1, Ordering::Relaxed) as usize;
    let index = if next < table.chunks() {
        next
    } else {
        // Every chunk was taken by somebody; threads that died or failed have left some. Acquire
        // and Release: the chunks before `done` are also seen as done by a thread that has not
        // looked at them.
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
    // The holder of its lock may be moving it, and the holder of the lock of the chunk that it moves to may be changing
    // something there. If such a holder is stopped, it is not waited for.
    let _ = move_chunk_at::<M>(arena, slot, (table, index), 0, false);
}

/// Called when all chunks of the table, which is the root, are done: makes the root name the successor. If the table is
/// not part of its successor, one thread retires it.
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

/// Completes the retiring of a table by a dead thread, if that thread was the one to do so.
pub(super) fn resolve_retire(arena: Arena, slot: &Slot, owner: Tag) {
    let (table, next) = (slot.intent.arg(1), slot.intent.arg(2));
    let mine = Table::at(arena, table)
        .filter(|table| table.header.retirer.load(Ordering::SeqCst) == owner.word());
    if let (Some(this), Some(root)) = (mine, crate::engines::word(arena, slot.intent.arg(0))) {
        go_on(arena, root, table, next);
        retire(arena, slot, this, limbo::retire_once);
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::Layout;
    use std::sync::mpsc;

    use super::*;
    use crate::engines::map::{Guess, Hints};
    use crate::participants::{epoch, thread};
    use crate::pool::Scratch;

    /// Numbers, which belong to a table's chunks by turns.
    struct Numbers;

    impl Mode for Numbers {
        const FLAT: bool = true;
        const STACKED: bool = false;

        fn hash_of(_: [u64; 2], key: u64) -> u64 {
            key << 32 | key.wrapping_mul(0x9e37_79b9) & u64::from(u32::MAX)
        }
    }

    fn put(arena: Arena, slot: &Slot, root: &AtomicU64, key: u64) {
        let hints = Hints::new();
        let guess = |seed| Guess {
            seed,
            hash: Numbers::hash_of(seed, key),
            key,
        };
        loop {
            let done = edit::edit::<Numbers, _>(
                arena,
                slot,
                (root, &hints),
                true,
                guess([0; 2]),
                (guess, |_| true),
                |edit| edit.put_flat(key),
            );
            if done.unwrap().unwrap() == Ok(true) {
                return;
            }
        }
    }

    #[test]
    fn who_helps_waits_for_nobody() {
        let pool = Scratch::of_size(4 << 20);
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let root = pool.allocate(Layout::new::<AtomicU64>()).unwrap().cast();
        // SAFETY: a new block of that layout, which is not freed.
        let root: &AtomicU64 = unsafe {
            root.write(AtomicU64::new(0));
            root.as_ref()
        };
        epoch::pin(arena, slot);
        let grows = |table: &Table| table.chunks() > 2 && table.successor(arena).is_some();
        let table = (0..).find_map(|key| {
            put(arena, slot, root, key);
            Table::at(arena, root.load(Ordering::Relaxed)).filter(grows)
        });
        let table = table.unwrap();
        let is_left = |index: &usize| !table.is_done(*index);
        let left = (0..table.chunks()).rev().find(is_left).unwrap();
        let help_all =
            || (0..2 * table.chunks()).for_each(|_| help::<Numbers>(arena, slot, root, table));
        let (lock, over) = (&table.state(left).lock, AtomicU64::new(0));
        std::thread::scope(|s| {
            let (tell, taken) = mpsc::channel();
            let over = &over;
            let holder = s.spawn(move || {
                let slot = thread::slot(arena).unwrap();
                lock::take(arena, slot, lock);
                let held = lock.load(Ordering::Relaxed);
                tell.send(()).unwrap();
                // Until somebody waits.
                while over.load(Ordering::Relaxed) == 0 && lock.load(Ordering::Relaxed) == held {
                    std::thread::yield_now();
                }
                let is_waited_for = lock.load(Ordering::Relaxed) != held;
                lock::unlock(lock, slot.tag(), 0);
                is_waited_for
            });
            taken.recv().unwrap();
            help_all();
            over.store(1, Ordering::Relaxed);
            assert!(!holder.join().unwrap());
        });
        assert!(!table.is_done(left));
        help_all();
        assert_ne!(root.load(Ordering::Relaxed), table.address());
        epoch::unpin(slot);
    }
}
