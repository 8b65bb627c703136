//! Changes of a map, under the lock of a chunk.
//!
//! A change is one store, of a line's word (an entry comes or goes) or of a slot's second word (another
//! value): see `protocol::lines` for what a kill leaves in the lines. Before this, in a map that is not
//! flat, the node is made: a block that the intent names, and that recovery frees.
//!
//! A removal first changes the line's word, then the counts of entries that have passed the lines
//! before, which a kill may leave too high. They are right again when the chunk is moved.

use std::alloc::Layout;
use std::marker::PhantomData;

use super::growth;
use super::hints::{Guess, Hints};
use super::split;
use super::table::{Stack, State, Table, below as below_word, hidden_by};
use super::{CHANGE, DAMAGED, Mode};
use crate::allocator::AllocError;
use crate::engines::{change, limbo};
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::lines::{self, Chunk, Place};
use crate::protocol::moving;

/// Takes the lock of a chunk. What a dead holder was doing has happened or not by then; nobody locks a chunk twice, by
/// invariant 5 of the map.
#[inline]
pub(super) fn lock(arena: Arena, slot: &Slot, state: &State) {
    lock::take(arena, slot, &state.lock);
}

/// The lock of the chunk that a key belongs to, and what the chunk has for the key.
pub(crate) struct Edit<'a, M: Mode> {
    arena: Arena,
    slot: &'a Slot,
    root: &'a AtomicU64,
    table: Table,
    index: usize,
    chunk: Chunk<'static>,
    hash: u64,
    key: u64,
    /// The key's slot, or one without an entry; `None` in a full chunk without the key.
    place: Option<Place>,
    /// The key's value.
    found: Option<u64>,
    /// A line was left without entries, so the table may be too large. That is examined without the
    /// lock.
    emptied: bool,
    mode: PhantomData<fn() -> M>,
}

/// What a new node does to the node that the key has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The new node replaces the old one, which goes to limbo.
    Replace,
    /// The same in a stacked map: the new node hides what the old one hid.
    ReplaceTop,
    /// The new node hides the old one, in a stacked map.
    Push,
}

/// Locks the chunk of a key in the table where the key is to be changed now, looks for the key, and
/// has `with` make the change. `of` gives the key's words, by the map's seed. The caller is pinned. A
/// map without a table gets one if `make` is true; otherwise the result is `None`.
///
/// An edit is made in the place where it is used, and not passed on: it is large, and if something
/// is copied right after it was made, the processor waits for its parts.
#[inline]
pub(crate) fn edit<M: Mode, R>(
    arena: Arena,
    slot: &Slot,
    (root, hints): (&AtomicU64, &Hints),
    make: bool,
    guess: Guess,
    (of, is_it): (impl FnOnce([u64; 2]) -> Guess, impl Fn(u64) -> bool),
    with: impl FnOnce(&mut Edit<'_, M>) -> R,
) -> Result<Option<R>, AllocError> {
    let first = loop {
        let address = root.load(Ordering::SeqCst);
        match Table::at(arena, address) {
            Some(table) => break table,
            None if address != 0 => return Err(DAMAGED),
            None if !make => return Ok(None),
            None => growth::first::<M>(arena, slot, root)?,
        }
    };
    let Guess { hash, key, .. } = guess.or(first, of);
    let table = moving::lock_last(
        first,
        |table: Table| table.successor(arena),
        |table| {
            growth::move_chunk::<M>(arena, slot, table, table.index(hash))?;
            growth::help::<M>(arena, slot, root, table);
            Ok::<(), AllocError>(())
        },
        |table| {
            let index = table.index(hash);
            hints.set(table, index);
            lock(arena, slot, table.state(index));
        },
        |table| lock::unlock(&table.state(table.index(hash)).lock, slot.tag(), 0),
    )?;
    let index = table.index(hash);
    split::ready::<M>(table, index);
    let chunk = table.chunk(index);
    let (place, found) = lines::look(chunk, hash, key, is_it);
    let mut edit = Edit {
        arena,
        slot,
        root,
        table,
        index,
        chunk,
        hash,
        key,
        place,
        found,
        emptied: false,
        mode: PhantomData,
    };
    Ok(Some(with(&mut edit)))
}

impl<M: Mode> Edit<'_, M> {
    /// The key's value, if it has one: the value itself in a flat map, otherwise its node's
    /// address.
    #[inline]
    pub(crate) fn found(&self) -> Option<u64> {
        self.found
    }

    /// Gives the key a value, in a flat map. False in a full chunk: the table grows, and the caller
    /// begins anew.
    #[inline]
    pub(crate) fn put_flat(&mut self, value: u64) -> Result<bool, AllocError> {
        let Some(place) = self.place else {
            self.grow()?;
            return Ok(false);
        };
        let entry = (self.key, value);
        lines::put(self.chunk, self.hash, place, entry, self.found.is_some());
        Ok(true)
    }

    /// Gives the key a new node, in place of the one that it has, and returns the node's address.
    /// `fill_node`, which runs none of the user's code, writes it. `None` in a full chunk: the
    /// table grows, and the caller begins anew.
    #[inline]
    pub(crate) fn put(
        &mut self,
        layout: Layout,
        bytes: usize,
        put: Put,
        fill_node: impl FnOnce(u64),
    ) -> Result<Option<u64>, AllocError> {
        let Some(place) = self.place else {
            self.grow()?;
            return Ok(None);
        };
        let line = self.chunk.on_path(self.hash, place.distance);
        let value = &line.slots[place.slot].value;
        let changed = if self.found.is_some() {
            value
        } else {
            &line.word
        };
        let node = change::prepare(self.arena, self.slot, CHANGE, changed, layout)?;
        let found = self.found.unwrap_or(0);
        let below = match put {
            Put::Replace => None,
            Put::ReplaceTop if found == 0 => Some(0),
            Put::ReplaceTop => Some(hidden_by(self.arena, found)),
            Put::Push => Some(found),
        };
        if let (Some(hidden), Some(word)) = (below, below_word(self.arena, node)) {
            word.store(hidden, Ordering::Relaxed);
        }
        fill_node(node);
        let new = if self.found.is_some() {
            node
        } else {
            lines::fill(self.chunk, self.hash, place, self.key, node).1
        };
        let old = if put == Put::Push { 0 } else { found };
        change::publish_alone(self.slot, changed, old, new);
        change::finish(self.arena, self.slot, old, bytes);
        Ok(Some(node))
    }

    #[cold]
    fn grow(&self) -> Result<(), AllocError> {
        growth::grow(self.arena, self.slot, self.table)
    }

    /// Removes the key's node, of that many bytes, in a stacked map: what it hides is visible
    /// again.
    pub(crate) fn pop(&mut self, bytes: usize) {
        let (Some(place), Some(found)) = (self.place, self.found) else {
            return;
        };
        let hidden = hidden_by(self.arena, found);
        if hidden == 0 {
            self.remove(bytes);
            return;
        }
        let line = self.chunk.on_path(self.hash, place.distance);
        let value = &line.slots[place.slot].value;
        change::open(self.slot, CHANGE, value);
        change::publish_alone(self.slot, value, found, hidden);
        change::finish(self.arena, self.slot, found, bytes);
    }

    /// Removes all of the key's nodes, of that many bytes each, in a stacked map, the one on top first. Nobody puts another
    /// on top meanwhile.
    pub(crate) fn pop_all(&mut self, bytes: usize) {
        for node in Stack::new(self.arena, self.found.unwrap_or(0)) {
            // If garbage leads in a circle, a node is met again that has gone already.
            let own = limbo::header(self.arena, node);
            if own.is_none_or(|own| own.next.load(Ordering::Relaxed) != 0) {
                break;
            }
            self.found = Some(node);
            self.pop(bytes);
        }
    }

    /// Removes the key, and its node, of that many bytes, if the map has nodes.
    pub(crate) fn remove(&mut self, bytes: usize) {
        let (Some(place), Some(found)) = (self.place, self.found.take()) else {
            return;
        };
        let line = self.chunk.on_path(self.hash, place.distance);
        let word = &line.word;
        let new = lines::turned(word.load(Ordering::Relaxed), place.slot);
        if M::FLAT {
            word.store(new, Ordering::Release);
        } else {
            change::open(self.slot, CHANGE, word);
            change::publish_alone(self.slot, word, found, new);
            change::finish(self.arena, self.slot, found, bytes);
        }
        lines::unpass(self.chunk, self.hash, place.distance);
        self.emptied = lines::is_idle(new);
    }
}

impl<M: Mode> Drop for Edit<'_, M> {
    #[inline]
    fn drop(&mut self) {
        // In the fuzzer, threads that are "killed" unwind, which really killed ones do not.
        #[cfg(fuzzing)]
        if crate::primitive::is_killed() {
            return;
        }
        let state = self.table.state(self.index);
        lock::unlock(&state.lock, self.slot.tag(), 0);
        if self.emptied {
            growth::shrink_if_lonely(self.arena, self.slot, self.root, self.table, self.chunk);
        }
        // In a flat map, this collects tables that it has outgrown.
        limbo::collect_now_and_then(self.arena, self.slot);
    }
}
