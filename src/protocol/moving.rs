//! How a hash map's entries move from a table to its successor, a chunk at a time, by whichever
//! thread comes by.
//!
//! Entries are moved by copying them to their new place, unless they are there already, as a successor may share its
//! predecessor's chunk. The old entries count until all are copied and one store says so. Nobody looks for entries in
//! the new place before that, and nobody changes them in the old one. So a thread that is killed halfway leaves copies
//! that nobody sees, and the one that goes on skips what is there already.
//!
//! | a chunk's state | meaning |
//! |-----------------|---------|
//! | RAW   | nobody has written to the chunk's lines, and nobody reads them; or they are shared with the table before, and have entries that do not belong here |
//! | READY | the lines can be used |
//! | DONE  | its keys are in the successor; what is in the lines has no meaning, or belongs to the successor |
//!
//! One store gives a table its successor. Before that, keys are changed under their chunk's lock; after
//! that, they are moved first, under the same lock. So a thread that has locked a chunk looks once more
//! whether there is a successor: if not, nobody moves the chunk before the lock is given back.
//!
//! | step of a move | killed after it leaves | and then |
//! |------|------------------------|----------|
//! | the chunk to move to has been made READY | RAW, or READY | made anew, or used |
//! | an entry is copied | two entries, of which the old one counts | the next thread finds it copied |
//! | the chunk is DONE | nothing is left to do; or the chunk is RAW in the successor | the next to lock it there makes it ready |

use crate::primitive::{AtomicU64, Ordering};

pub const RAW: u64 = 0;
pub const READY: u64 = 1;
pub const DONE: u64 = 2;

/// Gives what `search` finds in a table (see `lines`), or in one that its entries have moved to by then. Whether they
/// have moved is asked before the search, as the entries that were left behind may name nodes that were freed since
/// (but if the entries had not moved when the caller was already pinned, no node that they name is freed). It is asked
/// again after the search, as what was found may be out of date.
#[inline]
pub fn follow<T: Copy>(
    mut table: T,
    search: impl Fn(T) -> Option<u64>,
    moved_to: impl Fn(T) -> Option<T>,
) -> Option<u64> {
    loop {
        if let Some(successor) = moved_to(table) {
            table = successor;
            continue;
        }
        let found = search(table);
        match moved_to(table) {
            Some(successor) => table = successor,
            None => return found,
        }
    }
}

/// Has `make` make the lines of a raw chunk; true if it was raw. The caller keeps all others from
/// changing the chunk.
pub fn ready(state: &AtomicU64, make: impl FnOnce()) -> bool {
    let is_raw = state.load(Ordering::Relaxed) == RAW;
    if is_raw {
        make();
        // Release: after the lines, should the caller die.
        state.store(READY, Ordering::Release);
    }
    is_raw
}

/// True if the chunk's keys are in the successor.
#[inline]
pub fn is_done(state: &AtomicU64) -> bool {
    state.load(Ordering::SeqCst) == DONE
}

/// Moves a ready chunk of a table that has a successor, unless it is done: `copy` brings its entries to their
/// new places, unless they are there already. On an error, the old entries still count. The caller keeps all
/// others from changing the chunk.
pub fn hand_over<E>(state: &AtomicU64, copy: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    if is_done(state) {
        return Ok(());
    }
    copy()?;
    // SeqCst: a thread that sees DONE sees the copies, and no thread changes a copy without having
    // seen DONE.
    state.store(DONE, Ordering::SeqCst);
    Ok(())
}

/// Locks a key's chunk in the table where the key is to be changed now: the first one of the chain that
/// has no successor. `passed` moves the chunk in a table on the way.
#[inline(always)]
pub fn lock_last<T: Copy, E>(
    mut table: T,
    successor: impl Fn(T) -> Option<T>,
    mut passed: impl FnMut(T) -> Result<(), E>,
    lock: impl Fn(T),
    unlock: impl Fn(T),
) -> Result<T, E> {
    loop {
        if let Some(next) = successor(table) {
            passed(table)?;
            table = next;
            continue;
        }
        lock(table);
        // If there is a successor, the chunk may have been moved, or half moved by somebody who was
        // killed or found no room. If there is none, nobody begins to move it while we have the lock.
        if successor(table).is_none() {
            return Ok(table);
        }
        unlock(table);
    }
}
