//! What mostly happens, in as few instructions as can be: the table is the one that the map's hints mean, it is not
//! moving, and a search ends in the line where it begins. Whatever is otherwise is nobody's concern here:
//! nothing is done then, and `find` and `edit` begin anew.
//!
//! A value that is put is one store under the chunk's lock, as in `edit`: who is killed before it leaves the lock, and
//! bytes in a slot of nobody.

use super::hints::{Guess, Near};
use super::table::Header;
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::primitive::Ordering;
use crate::protocol::lines::{self, Chunk, Said};
use crate::protocol::moving::READY;

/// What there is for the key. `None` if it takes more than a look to tell. The caller is pinned since before it read
/// `root`.
#[inline(always)]
pub(super) fn find_at_once(
    arena: Arena,
    root: u64,
    near: Near,
    Guess { seed, hash, key }: Guess,
    is_it: impl Fn(u64) -> bool,
) -> Option<Option<u64>> {
    let room = arena.room();
    let header = near.header(room, root, seed)?;
    let line = near.line(room)?;
    // Before the search and behind it: see `moving::follow`.
    if !is_last(header) {
        return None;
    }
    let found = match lines::ask(line, key, &is_it) {
        Said::Value(value) => Some(value),
        Said::Nothing => None,
        Said::GoesOn | Said::Changed => search(near.chunk(room)?, hash, key, is_it),
    };
    is_last(header).then_some(found)
}

#[inline(never)]
fn search(chunk: Chunk, hash: u64, key: u64, is_it: impl Fn(u64) -> bool) -> Option<u64> {
    lines::search(chunk, hash, key, &is_it)
}

/// Gives the key a value in a flat map, if `may` agrees to the one that it has, which is given back. `None` if that takes
/// more, or is not agreed to. The caller is pinned since before it read `root`.
#[inline]
pub(crate) fn put_at_once(
    (arena, slot): (Arena, &Slot),
    root: u64,
    near: Near,
    (Guess { seed, hash, key }, value): (Guess, u64),
    may: impl Fn(Option<u64>) -> bool,
) -> Option<Option<u64>> {
    let room = arena.room();
    let header = near.header(room, root, seed)?;
    let chunk = near.chunk(room)?;
    let state = near.state(room, header)?;
    let line = chunk.on_path(hash, 0);
    if !is_last(header) {
        return None;
    }
    lock::try_fast(&state.lock, slot.tag())?;
    let mut put = None;
    // Once more, with the lock: see `moving::lock_last`. Who has split the chunk may have been killed before it was ready.
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
