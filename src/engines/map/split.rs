//! How a chunk of a table becomes two chunks of a successor that shares it.
//!
//! Half of the entries stay where they are. The others belong to the chunk that comes as many chunks later as the table
//! has, and are copied there. From then on the successor counts, and these entries are removed from the old chunk.
//! Entries that stay, but did not fit into the line where the search for them begins, are brought to that line if there
//! is room now.
//!
//! | step, under the locks of the chunk in both tables | killed after it leaves | and then |
//! |---|---|---|
//! | entries are copied | copies that do not count | the next one finds them |
//! | the chunk is DONE | entries that do not belong to it, which nobody looks for there | they are removed |
//! | they are removed from a line | the same in other lines | they are removed |
//! | an entry is where its search begins | the same entry twice | the copy is removed |
//! | the copy is removed | counts that are too high | counted anew |
//! | the chunk is READY in the successor | nothing is left to do | |
//!
//! All steps but the first are done by the thread that has copied, or otherwise by whoever next takes the
//! chunk's lock in the successor ([`ready`]). Until then, a walk over the entries skips those that do not
//! belong there.
//!
//! The locks in the successor are taken before the chunk is DONE, when nobody else asks for them: so a thread that
//! moves a chunk to help with the table waits for no thread that changes something in it.

use std::convert::Infallible;

use super::table::Table;
use super::{DAMAGED, Mode, edit};
use crate::allocator::AllocError;
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::protocol::lines::{self, Chunk, Rest};
use crate::protocol::moving;

/// Makes a chunk ready that is done in the table before. The caller holds its lock. True if the chunk was not
/// ready.
#[inline]
pub(super) fn ready<M: Mode>(table: Table, index: usize) -> bool {
    let state = &table.state(index).word;
    moving::ready(state, || make_ready(table, index, M::hash_of))
}

/// A chunk of the table's own has no entries at first. A chunk that it shares with the table before still has some that
/// are elsewhere now, as the thread that has copied them was killed.
#[cold]
pub(super) fn make_ready(table: Table, index: usize, hash_of: impl Fn([u64; 2], u64) -> u64) {
    let chunk = table.chunk(index);
    if !table.is_inherited(index) {
        return lines::clear(chunk);
    }
    let seed = table.seed();
    let Ok(rest) = Rest::of(chunk, |key, _| {
        let hash = hash_of(seed, key);
        Ok::<_, Infallible>((hash, table.index(hash) == index))
    });
    rest.leave(chunk);
}

/// Moves the entries that belong elsewhere in a successor that shares the chunk. The chunk is not done, and the caller
/// holds its lock.
pub(super) fn split<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (table, index): (Table, usize),
    successor: Table,
) -> Result<(), AllocError> {
    let lower = successor.state(index);
    edit::lock(arena, slot, lower);
    let (word, chunk) = (&table.state(index).word, table.chunk(index));
    let mut rest = None;
    let split = moving::hand_over(word, || {
        rest = Some(copy_upper::<M>(arena, slot, (table, index), successor)?);
        Ok(())
    });
    if let Some(rest) = rest {
        moving::ready(&lower.word, || rest.leave(chunk));
    }
    lock::unlock(&lower.lock, slot.tag(), 0);
    split
}

/// Copies the entries that belong to the chunk that comes as many chunks later as the table has, and
/// gives what is left.
fn copy_upper<M: Mode>(
    arena: Arena,
    slot: &Slot,
    (table, index): (Table, usize),
    successor: Table,
) -> Result<Rest, AllocError> {
    let seed = table.seed();
    let upper = index + table.chunks();
    let state = successor.state(upper);
    edit::lock(arena, slot, state);
    let is_new = ready::<M>(successor, upper);
    let to = successor.chunk(upper);
    let rest = Rest::of(table.chunk(index), |key, value| {
        let hash = M::hash_of(seed, key);
        let stays = successor.index(hash) != upper;
        let is_there = stays
            || if is_new {
                lines::add_new(to, hash, key, value)
            } else {
                add_to::<M>(to, hash, key, value)
            };
        // There is room, except in a damaged pool.
        is_there.then_some((hash, stays)).ok_or(DAMAGED)
    });
    lock::unlock(&state.lock, slot.tag(), 0);
    rest
}

/// Adds an entry to a chunk, unless the chunk has it; false if there is no room. The caller holds
/// the chunk's lock.
pub(super) fn add_to<M: Mode>(chunk: Chunk, hash: u64, key: u64, value: u64) -> bool {
    lines::add(chunk, hash, key, value, |found| M::FLAT || found == value)
}
