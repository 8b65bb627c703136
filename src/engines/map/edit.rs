//! Changes of a map, under the lock of a chunk.

use std::alloc::Layout;

use super::growth;
use super::table::{
    Chunk, EMPTY, TOMB, Table, WORDS, below as below_word, hidden_by, low_bits, may_be, node_of,
    word_of,
};
use super::{CHANGE, hash};
use crate::allocator::AllocError;
use crate::engines::{change, limbo};
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};

/// A node that is found so far from where its search began asks how full the chunk is.
const FAR: usize = 4;

/// Takes the lock of a chunk. What a dead holder was doing has happened or not by then.
pub(super) fn lock(arena: Arena, slot: &Slot, chunk: &Chunk) {
    // Refused only to who holds it already: nobody locks a chunk twice, by invariant 5 of the map.
    if lock::lock(arena, slot, &chunk.lock, None).is_ok_and(|taken| taken.flags != 0) {
        lock::clear(&chunk.lock, lock::DIED);
    }
}

/// Takes the lock if it can be had now.
pub(super) fn try_lock(arena: Arena, slot: &Slot, chunk: &Chunk) -> bool {
    match lock::try_lock(arena, slot, &chunk.lock) {
        Ok(taken) => {
            if taken.flags != 0 {
                lock::clear(&chunk.lock, lock::DIED);
            }
            true
        }
        Err(_) => false,
    }
}

/// The lock of the chunk that a key belongs to, and what is there for the key.
pub(crate) struct Edit<'a> {
    arena: Arena,
    slot: &'a Slot,
    root: &'a AtomicU64,
    table: Table,
    chunk: &'static Chunk,
    hash: u64,
    /// The word that names the key's node, or a free one; `None` in a full chunk without the key.
    place: Option<&'static AtomicU64>,
    /// How far that is from where the search began.
    far: usize,
    /// The key's node; 0 for none.
    found: u64,
    /// To be done without the lock.
    after: After,
}

/// What to do for a map without a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Nothing,
    Plain,
    Stacked,
}

/// What a new node does to the one that the key has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It takes its place, and goes to limbo.
    Replace,
    /// The same in a stacked map: what the former one hid, this one hides.
    ReplaceTop,
    /// It hides it, in a stacked map.
    Push,
}

enum After {
    Nothing,
    Look,
    Removed,
}

/// Locks the chunk of a key, of which `hash_of` gives the hash, in the table where the key is to be
/// changed now, and looks for the key's node. The caller is pinned, and stays so until the edit
/// is over. `None` if the map has no table and none is made.
pub(crate) fn edit<'a>(
    arena: Arena,
    slot: &'a Slot,
    root: &'a AtomicU64,
    make: Make,
    bytes: &[u8],
    is_it: impl Fn(u64) -> bool,
) -> Result<Option<Edit<'a>>, AllocError> {
    let mut table = loop {
        match Table::at(arena, root.load(Ordering::SeqCst)) {
            Some(table) => break table,
            None if make == Make::Nothing => return Ok(None),
            None => growth::first(arena, slot, root, make == Make::Stacked)?,
        }
    };
    let hash = hash(table.seed(), bytes);
    loop {
        let index = table.index(hash);
        if let Some(successor) = table.successor(arena) {
            growth::move_chunk(arena, slot, table, index)?;
            growth::help(arena, slot, root, table);
            table = successor;
            continue;
        }
        let chunk = table.chunk(index);
        lock(arena, slot, chunk);
        // With a successor the chunk may have been moved, or half moved by somebody who was killed or
        // found no room. Without one nobody begins to move it while we have the lock.
        if table.successor(arena).is_some() {
            lock::unlock(&chunk.lock, slot.tag(), 0);
            continue;
        }
        let (mut place, mut far, mut found) = (None, 0, 0);
        let low = low_bits(hash);
        for (distance, word) in chunk.search(hash).enumerate() {
            let at = word.load(Ordering::Relaxed);
            if may_be(at, low) && is_it(node_of(arena, at)) {
                (place, far, found) = (Some(word), distance, node_of(arena, at));
                break;
            }
            if place.is_none() && matches!(at, EMPTY | TOMB) {
                (place, far) = (Some(word), distance);
            }
            if at == EMPTY {
                break;
            }
        }
        let after = After::Nothing;
        return Ok(Some(Edit {
            arena,
            slot,
            root,
            table,
            chunk,
            hash,
            place,
            far,
            found,
            after,
        }));
    }
}

impl Edit<'_> {
    /// The key's node, if it has one.
    #[inline]
    pub(crate) fn found(&self) -> Option<u64> {
        (self.found != 0).then_some(self.found)
    }

    /// Makes a node that `fill` writes (no user's code) the key's, in place of the one it has;
    /// its address. False in a full chunk: the table grows, and the caller begins anew.
    #[inline]
    pub(crate) fn put(
        &mut self,
        layout: Layout,
        bytes: usize,
        put: Put,
        fill: impl FnOnce(u64),
    ) -> Result<Option<u64>, AllocError> {
        let Some(place) = self.place else {
            self.grow()?;
            return Ok(None);
        };
        let node = change::prepare(self.arena, self.slot, CHANGE, place, layout)?;
        if let Some(own) = limbo::header(self.arena, node) {
            own.stamp.store(self.hash, Ordering::Relaxed);
        }
        let below = match put {
            Put::Replace => None,
            Put::ReplaceTop if self.found == 0 => Some(0),
            Put::ReplaceTop => Some(hidden_by(self.arena, self.found)),
            Put::Push => Some(self.found),
        };
        if let (Some(hidden), Some(word)) = (below, below_word(self.arena, node)) {
            word.store(hidden, Ordering::Relaxed);
        }
        fill(node);
        let new = word_of(self.arena, node, self.hash);
        let old = if put == Put::Push { 0 } else { self.found };
        change::publish_alone(self.slot, place, old, new);
        change::finish(self.arena, self.slot, old, bytes);
        if self.found == 0 && self.far >= FAR {
            self.after = After::Look;
        }
        Ok(Some(node))
    }

    #[cold]
    fn grow(&self) -> Result<(), AllocError> {
        growth::grow(self.arena, self.slot, self.table)
    }

    /// Removes the key's node, of that many bytes, in a stacked map: what it hides is there again.
    pub(crate) fn pop(&mut self, bytes: usize) {
        let hidden = match self.found {
            0 => 0,
            found => hidden_by(self.arena, found),
        };
        if let (true, Some(place)) = (hidden != 0, self.place) {
            change::open(self.slot, CHANGE, place);
            let new = word_of(self.arena, hidden, self.hash);
            change::publish_alone(self.slot, place, self.found, new);
            change::finish(self.arena, self.slot, self.found, bytes);
        } else {
            self.remove(bytes);
        }
    }

    /// Removes the key's node, of that many bytes.
    pub(crate) fn remove(&mut self, bytes: usize) {
        let Some(place) = self.place.filter(|_| self.found != 0) else {
            return;
        };
        change::open(self.slot, CHANGE, place);
        // By invariant 3 of the map.
        let first = std::ptr::from_ref(&self.chunk.words[0]).addr();
        let at = (std::ptr::from_ref(place).addr() - first) / size_of::<AtomicU64>();
        let word = |at: usize| &self.chunk.words[at % WORDS];
        let last = word(at + 1).load(Ordering::Relaxed) == EMPTY;
        let new = if last { EMPTY } else { TOMB };
        change::publish_alone(self.slot, place, self.found, new);
        change::finish(self.arena, self.slot, self.found, bytes);
        if last {
            let mut before = at + WORDS - 1;
            while word(before).load(Ordering::Relaxed) == TOMB {
                word(before).store(EMPTY, Ordering::SeqCst);
                before -= 1;
            }
        }
        self.found = 0;
        self.after = After::Removed;
    }
}

impl Drop for Edit<'_> {
    #[inline]
    fn drop(&mut self) {
        lock::unlock(&self.chunk.lock, self.slot.tag(), 0);
        match self.after {
            After::Nothing => {}
            After::Look => {
                growth::grow_if_crowded(self.arena, self.slot, self.table, self.chunk);
            }
            After::Removed if self.table.chunks() > 1 && self.chunk.is_empty() => {
                growth::shrink_if_lonely(self.arena, self.slot, self.root, self.table);
            }
            After::Removed => {}
        }
        limbo::collect_now_and_then(self.arena, self.slot);
    }
}
