//! The most common case, in as few instructions as possible: the table is the one that the map's hints are about,
//! it is not moving, and a search ends in the line where it begins. In all other cases nothing is done here, and
//! `find` and `edit` begin anew.
//!
//! Putting a value is one store under the chunk's lock, as in `edit`: a thread that is killed before the store leaves
//! the lock, and bytes in a slot without an entry.

use super::hints::{Guess, Near};
use super::table::Header;
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::primitive::Ordering;
use crate::protocol::lines::{self, Chunk, Said};
use crate::protocol::moving::READY;

/// What the table has for the key; `None` if it takes more than one look to find out. The caller has been pinned
/// since before it read `root`.
#[inline(always)]
pub(super) fn find_at_once(
    arena: Arena,
    root: u64,
    near: Near,
    Guess { seed, hash, key }: Guess,
    is_it: impl Fn(u64) -> bool,
) -> Option<Option<u64>> {
    let data = arena.data_range();
    let header = near.header(data, root, seed)?;
    let line = near.line(data)?;
    // Asked before the search and after it: see `moving::follow`.
    if !is_last(header) {
        return None;
    }
    let found = match lines::ask(line, key, &is_it) {
        Said::Value(value) => Some(value),
        Said::Nothing => None,
        Said::GoesOn | Said::Changed => search(near.chunk(data)?, hash, key, is_it),
    };
    is_last(header).then_some(found)
}

#[inline(never)]
fn search(chunk: Chunk, hash: u64, key: u64, is_it: impl Fn(u64) -> bool) -> Option<u64> {
    lines::search(chunk, hash, key, &is_it)
}

/// Gives the key a value in a flat map, if `may` agrees to the one that it has, which is returned. `None` if this is
/// not the common case, or if `may` does not agree. The caller has been pinned since before it read `root`.
#[inline]
pub(crate) fn put_at_once(
    (arena, slot): (Arena, &Slot),
    root: u64,
    near: Near,
    (Guess { seed, hash, key }, value): (Guess, u64),
    may: impl Fn(Option<u64>) -> bool,
) -> Option<Option<u64>> {
    let data = arena.data_range();
    let header = near.header(data, root, seed)?;
    let chunk = near.chunk(data)?;
    let state = near.state(data, header)?;
    let line = chunk.on_path(hash, 0);
    if !is_last(header) {
        return None;
    }
    lock::try_fast(&state.lock, slot.tag())?;
    let mut put = None;
    // Asked once more, with the lock: see `moving::lock_last`. The thread that has split the chunk may have been killed
    // before the chunk was ready.
    if is_last(header) && state.word.load(Ordering::Relaxed) == READY {
        put = match lines::put_first(line, (key, value), &may) {
            None => put_further(chunk, hash, (key, value), may),
            put => put,
        };
    }
    lock::unlock(&state.lock, slot.tag(), 0);
    put
}

#[inline(never)]
fn put_further(
    chunk: Chunk,
    hash: u64,
    (key, value): (u64, u64),
    may: impl Fn(Option<u64>) -> bool,
) -> Option<Option<u64>> {
    let (place, found) = lines::look(chunk, hash, key, |_| true);
    let place = place.filter(|_| may(found))?;
    lines::put(chunk, hash, place, (key, value), found.is_some());
    Some(found)
}

/// True if the table's entries are not moving.
#[inline]
fn is_last(header: &Header) -> bool {
    header.successor.load(Ordering::SeqCst) == 0
}
