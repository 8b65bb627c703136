//! The engine of `Heap`: a table of objects, and the log of the transaction under way.
//!
//! | module  | what |
//! |---------|------|
//! | `table` | objects, by index |
//! | `log`   | what a transaction has overwritten and made, and how that is undone |
//!
//! # Rationale
//!
//! A change of a graph touches many places, so changes are made in place, by one thread at a time,
//! and the old bytes are first written to a log. The heap's lock is an `RwLock`, whose `dirty` says
//! that its holder died: whoever takes the lock then undoes what the log has, before anybody looks.
//! So recovery has to deal only with the one block that was just being allocated or freed.
//!
//! The log consists of bytes and indexes. Undoing, freeing and destroying need no types; only programs
//! that have the root's type know what leads from object to object, and only they mark
//! (`containers::heap`).
//!
//! | word | meaning | next |
//! |------|---------|------|
//! | lock not dirty | no chunk of the log has the number `tx`; the heap is whole | dirty |
//! | dirty, no chunk with `tx` | nothing has been changed, or all is committed or undone | the first chunk, empty |
//! | dirty, chunks with `tx` | what they record is to be undone, should the holder die | `tx` + 1: that is the commit |
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before a record counts | bytes behind the end of the log | |
//! | once it counts, before what it records | a record without effect: an image of what is there, or a birth without a block | undoing it changes nothing |
//! | filling an empty word with a block (`pool::intents`, REPLACE) | the block is named, or freed by recovery | undone with its birth; a log that is larger |
//! | replacing the table by a larger one (the same) | either; recovery frees the other | a table that is larger |
//! | changing an object | old and new bytes | the next to lock for writing writes the old ones back |
//! | at the commit: before `tx` rises | all records | undone |
//! | after | a log that does not count | the next writer has nothing to undo |
//! | undoing | some of it undone | done again from the end: images and births can be repeated |
//! | freeing a block: intent DROP | the word names the block, or `freeing` does | recovery takes it from the word, then frees it |
//!
//! Invariants
//! 1. Everything here is changed only by the holder of the heap's lock for writing, and read only by
//!    holders of the lock.
//! 2. A record counts before what it records is done; it counts from the store of its chunk's
//!    `used` on.
//! 3. A chunk counts if it has the number `tx`. Those that count come first in the chain, which begins in
//!    the heap itself; all others are free room. Between transactions there are only the first one and
//!    perhaps one block of the smallest size, unless somebody was killed on the way.
//! 4. A block is named by only one word.
//! 5. Words of the table and of the log may be garbage instead of what the engine wrote: every
//!    address is compared with the pool before it is followed.

mod log;
mod table;

use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::engines::{Named, OP_SHIFT, word};
use crate::layout::Engine;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

pub(crate) use log::{CHUNK, Chunk, LogRoom, Record, What, Writer};
pub(crate) use table::{HeapEntry, HeapTable};

/// Frees the block that a word names. The arguments are the word, what it is to name next, and the
/// block.
const DROP: u64 = (Engine::Heap as u64) << OP_SHIFT | 1;

/// A heap's words. New ones are those of an empty heap.
#[repr(C)]
pub(crate) struct Words {
    /// The block of the table, and the number of its entries.
    pub(crate) table: AtomicU64,
    pub(crate) entries: AtomicU64,
    /// The number of the transaction that is under way, or else of the next one.
    tx: AtomicU64,
    /// The heap's name, which is part of its ids, so that ids of other heaps are not taken for its
    /// own. 0 until it is drawn.
    name: AtomicU64,
    /// A hint: the entries below this index are taken.
    cursor: AtomicU64,
    /// A hint: the number of bytes that were allocated since the last collection.
    pub(crate) debt: AtomicU64,
    /// A hint: the number of bytes after which the next collection is due.
    pub(crate) limit: AtomicU64,
    log: log::First,
}

impl Words {
    pub(crate) const fn new(limit: u64) -> Self {
        Words {
            table: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            tx: AtomicU64::new(1),
            name: AtomicU64::new(0),
            cursor: AtomicU64::new(0),
            debt: AtomicU64::new(0),
            limit: AtomicU64::new(limit),
            log: log::First::new(),
        }
    }

    /// The name of the heap; 0 if it never had an object.
    #[inline]
    pub(crate) fn name(&self) -> u64 {
        self.name.load(Ordering::Relaxed)
    }

    /// Draws the heap's name, if it has none. Called by the holder of the lock for writing.
    #[inline]
    pub(crate) fn draw_name(&self) -> u64 {
        match self.name() {
            0 => self.invent_name(),
            name => name,
        }
    }

    #[cold]
    fn invent_name(&self) -> u64 {
        // Less than half of a word's range, so that no stamp is 0.
        let name = (super::map::seed()[0] >> 1).max(1);
        self.name.store(name, Ordering::Release);
        name
    }

    /// The number of the transaction under way.
    #[inline]
    pub(crate) fn tx(&self) -> u64 {
        self.tx.load(Ordering::Relaxed)
    }

    /// The blocks of the table and of the log.
    pub(crate) fn blocks(&self, arena: Arena) -> impl Iterator<Item = u64> + use<'_> {
        let table = self.table.load(Ordering::Acquire);
        let chunks = self.chunks(arena).map(|chunk| chunk.address() as u64);
        (table != 0).then_some(table).into_iter().chain(chunks)
    }

    /// Ends the transaction: nothing in the log counts from here on.
    #[inline]
    pub(crate) fn end(&self) {
        // After all changes to objects, which are plain stores.
        compiler_fence(Ordering::SeqCst);
        self.tx.store(self.tx().wrapping_add(1), Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }
}

/// Frees the block that a word names, and makes the word name `next` instead.
pub(crate) fn drop_block(arena: Arena, slot: &Slot, word: &AtomicU64, next: u64) {
    let old = word.load(Ordering::Relaxed);
    let address = std::ptr::from_ref(word).addr() as u64;
    slot.intent.open(DROP, &[address, next, old]);
    block::about_to_free(slot, old);
    word.store(next, Ordering::Release);
    compiler_fence(Ordering::SeqCst);
    // If the block cannot be freed, it was not a block; there is nobody to report this to.
    let _ = block::free_named(arena, slot, old as usize);
    slot.intent.close();
}

/// Resolves an intent of this engine. Repeatable; the caller frees what `freeing` names.
pub(super) fn resolve(arena: Arena, slot: &Slot, op: u64) {
    let (next, old) = (slot.intent.arg(1), slot.intent.arg(2));
    if op == DROP
        && slot.watched.freeing.load(Ordering::SeqCst) == old
        && let Some(word) = word(arena, slot.intent.arg(0))
        && word.load(Ordering::Relaxed) == old
    {
        word.store(next, Ordering::Release);
    }
}

/// A heap's words, if they are in the pool.
fn words(arena: Arena, first: usize) -> Option<&'static Words> {
    word(arena, first as u64)?;
    // SAFETY: an aligned address with that much of the pool's data behind it; all atomic, except for the bytes
    // of the log's records, which are in an `UnsafeCell`.
    (arena.room_at(first) >= size_of::<Words>())
        .then(|| unsafe { &*std::ptr::with_exposed_provenance::<Words>(first) })
}

/// The next block of a heap that is being destroyed: objects, then the log, then the table.
/// The cursor is an index into the table.
pub(super) fn next_block(arena: Arena, first: usize, cursor: &mut usize) -> Option<Named> {
    let words = words(arena, first)?;
    let named = |word: &AtomicU64, next: u64| {
        let block = word.load(Ordering::Acquire) as usize;
        Named {
            word: std::ptr::from_ref(word).addr() as u64,
            next,
            block,
        }
    };
    let table = words.table(arena);
    while let Some(entry) = table.entry(*cursor) {
        if entry.address() != 0 {
            return Some(named(&entry.address, 0));
        }
        *cursor += 1;
    }
    let log = &words.log.chunk.next;
    let chunk = log.load(Ordering::Acquire);
    if chunk != 0 {
        let next = Chunk::at(arena, chunk).map_or(0, |chunk| chunk.next());
        return Some(named(log, next));
    }
    (words.table.load(Ordering::Acquire) != 0).then(|| named(&words.table, 0))
}

/// Checks a heap at rest.
pub(super) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    let Some(words) = words(arena, first) else {
        return report.problem(format_args!("a heap at {first:#x} is not in the pool"));
    };
    words.check_table(arena, first, report);
    words.check_log(arena, first, report);
}
