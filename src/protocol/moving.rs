//! A hash map's entries move from a table to its successor, a chunk at a time, by whoever comes by.
//!
//! Entries move by being copied to where they are to be, unless they are there, as a successor has its predecessor's
//! chunk, too. They count where they were until all are copied and one store says so. Nobody looks for them in the new place before that, and nobody changes
//! them in the old one. So who is killed halfway leaves copies that nobody sees, and who goes on leaves
//! out what is there already.
//!
//! | a chunk's state | meaning |
//! |-----------------|---------|
//! | RAW   | nobody has written to the chunk's lines, and nobody reads them; or they are the ones of the table before, and have entries that do not belong here |
//! | READY | they are lines |
//! | DONE  | its keys are in the successor; what is in the lines is nobody's concern, or the successor's |
//!
//! A table has a successor from one store on. Before that its keys are changed under their chunk's lock;
//! after that they are moved first, under the same lock. So who has locked a chunk looks once more
//! whether there is a successor: if not, nobody moves the chunk before the lock is given back.
//!
//! | step of a move | killed after it leaves | and then |
//! |------|------------------------|----------|
//! | the chunk to move to has lines | RAW, or READY | made anew, or used |
//! | an entry is copied | two entries, of which the old one counts | the next one finds it copied |
//! | the chunk is DONE | nothing is left to do; or the chunk is RAW in the successor | who has its lock there next makes it ready |

use crate::primitive::{AtomicU64, Ordering};

pub const RAW: u64 = 0;
pub const READY: u64 = 1;
pub const DONE: u64 = 2;

/// What `search` finds in a table (see `lines`), or in one that its entries have moved to by then. That is asked before
/// the search, as what they have left behind may name nodes that were freed since (no node that is named where
/// they had not moved when the caller was pinned already is). And behind it, as what was found may be out of date.
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

/// Has `make` make lines of a raw chunk's; true if it was one. Who keeps all others from it.
pub fn ready(state: &AtomicU64, make: impl FnOnce()) -> bool {
    let is_raw = state.load(Ordering::Relaxed) == RAW;
    if is_raw {
        make();
        // Release: behind the lines, should the caller die.
        state.store(READY, Ordering::Release);
    }
    is_raw
}

/// True if the chunk's keys are in the successor.
#[inline]
pub fn is_done(state: &AtomicU64) -> bool {
    state.load(Ordering::SeqCst) == DONE
}

/// Moves a ready chunk unless it is done, of a table that has a successor: `copy` brings its entries to where
/// they are to be, unless they are there. On an error they count where they were. Who keeps all others
/// from the chunk.
pub fn hand_over<E>(state: &AtomicU64, copy: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    if is_done(state) {
        return Ok(());
    }
    copy()?;
    // SeqCst: who sees it sees the copies, and nobody changes one who has not seen it.
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
        // With a successor the chunk may have been moved, or half moved by somebody who was killed or
        // found no room. Without one nobody begins to move it while we have the lock.
        if successor(table).is_none() {
            return Ok(table);
        }
        unlock(table);
    }
}
