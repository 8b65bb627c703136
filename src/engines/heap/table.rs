//! The table of objects: entries in one block, which is replaced by one of twice the length when all are
//! taken. So an id leads to its object by way of one load.
//!
//! | entry | meaning |
//! |-------|---------|
//! | `address` 0 | free; the rest is what it was |
//! | else | an object of `len` elements, whose block this is |
//!
//! The generation rises each time that an entry is taken. So an id, which has the index, and the sum of heap's name and
//! generation as its stamp, names one object for ever (heaps have names of 63 random bits); an entry whose generation has come to its end is not taken
//! any more. There is no list of free entries to keep in step: the search for one goes on from a
//! cursor, past what is taken, once round between collections.

use std::cell::Cell;
use std::collections::HashSet;

use super::{Words, drop_block};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::layout::arena::{Arena, SLICE};
use crate::participants::table::Slot;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};

/// Entries of the first table.
const FIRST: usize = 64;

/// An object's entry.
#[repr(C)]
pub(crate) struct Entry {
    /// Its block; 0 for none.
    pub(crate) address: AtomicU64,
    /// What its elements are.
    kind: AtomicU64,
    /// How many.
    len: AtomicU64,
    generation: AtomicU32,
    /// Where a transaction has noted that it has saved or made all of it. Only the note itself counts.
    noted: AtomicU32,
}

/// Bytes from one place to the next. All blocks are at places.
const PLACE: usize = 8;

/// Bytes of an entry.
const ENTRY: usize = size_of::<Entry>();

const _: () = assert!(ENTRY == 32, "two in a line");

impl Entry {
    #[inline]
    pub(crate) fn address(&self) -> u64 {
        self.address.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn kind(&self) -> u64 {
        self.kind.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn noted(&self) -> usize {
        self.noted.load(Ordering::Relaxed) as usize
    }

    #[inline]
    pub(crate) fn set_noted(&self, place: usize) {
        // Cut short, it is another's note, which does not count.
        self.noted.store(place as u32, Ordering::Relaxed);
    }

    /// Describes the object that the free entry is taken for.
    #[inline]
    pub(crate) fn describe(&self, kind: u64, len: u64) {
        let generation = self.generation() + 1;
        self.generation.store(generation, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
    }

    #[inline]
    fn is_free(&self) -> bool {
        self.address() == 0 && self.generation() < u32::MAX
    }
}

/// How many tables a thread remembers.
const KNOWN: usize = 16;

thread_local! {
    /// Tables that the thread has compared with their blocks, so that a transaction need not: the heap's name, the
    /// address, the entries. A heap's tables only grow, so a block that had the room has it while it is the table:
    /// but for a file that is damaged while it is not mapped, and mapped again; there it is in the pool all the same.
    static TABLES: [Cell<(u64, usize, usize)>; KNOWN] = const { [const { Cell::new((0, 0, 0)) }; KNOWN] };
}

/// A heap's table, compared with the pool once for all look-ups: good while the caller has the heap's lock,
/// and neither replaces the table nor asks for blocks that the pool had no room for.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    base: usize,
    entries: usize,
    /// Where the pool's data begins, and its bytes.
    data: usize,
    bytes: usize,
    /// That of the heap.
    pub(crate) name: u64,
}

impl Table {
    #[inline]
    fn new(arena: Arena, name: u64, base: usize, entries: usize) -> Self {
        Table {
            base,
            entries,
            data: arena.slice_address(0),
            bytes: arena.slice_address(arena.slices()) - arena.slice_address(0),
            name,
        }
    }

    /// Whether the thread has compared the table with its block before. In a copy of that pool, which is shorter, it
    /// need not be in the pool.
    #[inline]
    fn is_known(&self) -> bool {
        let (name, base, entries) = (self.name, self.base, self.entries);
        TABLES.with(|tables| tables[name as usize % KNOWN].get() == (name, base, entries))
            // Of a number that is remembered, it does not overflow.
            && self.room_at(base) >= entries.wrapping_mul(ENTRY)
    }

    /// How many entries there are.
    #[inline]
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// The entry with that index, if there is one.
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> Option<&'static Entry> {
        (index < self.entries).then(|| {
            let entry = std::ptr::with_exposed_provenance::<Entry>(self.base + index * ENTRY);
            // SAFETY: aligned, in committed data of the pool (what a thread remembers is compared with it, a
            // block is in it); an entry consists of atomics.
            unsafe { &*entry }
        })
    }

    /// How many bytes of the pool's data lie behind an address, itself included.
    #[inline]
    pub(crate) fn room_at(&self, address: usize) -> usize {
        self.bytes.saturating_sub(address.wrapping_sub(self.data))
    }

    /// What an entry says of objects of a type whose number has 128 bits. Of two types it is the same by chance only: the
    /// name is random, so no type can have been made to be taken for another one in this heap.
    #[inline]
    pub(crate) fn kind(&self, [low, high]: [u64; 2]) -> u64 {
        low.wrapping_add(high.wrapping_mul(self.name))
    }

    /// What an id has of an object of this heap beside its index, so that it names it for ever.
    #[inline]
    pub(crate) fn stamp(&self, entry: &Entry) -> u64 {
        self.name.wrapping_add(entry.generation().into())
    }

    /// Where a block is, as a number that an id has room for: its place in the data. Of a block that is beyond 32 GiB,
    /// it is another's.
    #[inline]
    pub(crate) fn place(&self, address: usize) -> u32 {
        (address.wrapping_sub(self.data) / PLACE) as u32
    }

    /// The address of a [place](Self::place).
    #[inline]
    pub(crate) fn address(&self, place: u32) -> usize {
        self.data.wrapping_add(place as usize * PLACE)
    }

    /// As [`has_room`](Self::has_room), of what is at a place; false if that is not enough to say so.
    #[inline]
    pub(crate) fn has_room_at(&self, place: u32, bytes: usize, align: usize) -> bool {
        let last = self.bytes.checked_sub(bytes);
        align <= PLACE && last.is_some_and(|last| place as usize <= last / PLACE)
    }

    /// Whether so many bytes, so aligned, are at an address, in the pool's data.
    #[inline]
    pub(crate) fn has_room(&self, address: usize, bytes: usize, align: usize) -> bool {
        let shift = align.trailing_zeros();
        // The data begins at a slice. Bits that the alignment wants to be 0 get to the top, so that one comparison
        // finds out all that can be wrong.
        let at = address.wrapping_sub(self.data).rotate_right(shift);
        let last = self.bytes.checked_sub(bytes);
        last.is_some_and(|last| at <= last >> shift)
            && (align <= SLICE || address.is_multiple_of(align))
    }

    /// The entries of objects.
    pub(crate) fn objects(self) -> impl Iterator<Item = (usize, &'static Entry)> {
        (0..self.entries)
            .filter_map(move |index| Some((index, self.entry(index)?)))
            .filter(|(_, entry)| entry.address() != 0)
    }
}

/// As many of a table's entries as its block has room for; remembers one that has it for all.
#[cold]
fn bounded(arena: Arena, name: u64, base: usize, entries: usize) -> usize {
    let room = match block::usable_size(arena, base) {
        Ok(bytes) if base.is_multiple_of(align_of::<Entry>()) => bytes / ENTRY,
        _ => 0,
    };
    if room >= entries {
        TABLES.with(|tables| tables[name as usize % KNOWN].set((name, base, entries)));
    }
    room.min(entries)
}

impl Words {
    /// The table, of no more entries than its block has room for: what lies behind is others', should the length be
    /// garbage. One that is no block has none.
    #[inline]
    pub(crate) fn table(&self, arena: Arena) -> Table {
        let base = self.table.load(Ordering::Acquire) as usize;
        let said = self.entries.load(Ordering::Acquire) as usize;
        let table = Table::new(arena, self.name(), base, said);
        if table.is_known() {
            return table;
        }
        let entries = bounded(arena, table.name, base, said);
        Table { entries, ..table }
    }

    /// How many entries the next table has, and bytes; `None` if an index could not name them all.
    pub(crate) fn next_table(table: &Table) -> Option<(usize, usize)> {
        let entries = (table.entries * 2).max(FIRST);
        (entries <= u32::MAX as usize).then_some((entries, entries * ENTRY))
    }

    /// Makes a new block of so many bytes the same table, with free entries behind.
    ///
    /// # Safety
    ///
    /// The block is as long as [`next_table`](Self::next_table) says, and nobody else has it.
    pub(crate) unsafe fn copy_table(table: &Table, to: usize, bytes: usize) {
        let from = std::ptr::with_exposed_provenance::<u8>(table.base);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
        let old = table.entries * ENTRY;
        // SAFETY: entries that are there, which nobody changes but the caller; and a block of `bytes`,
        // which are more.
        unsafe {
            if old != 0 {
                to.copy_from(from, old);
            }
            to.add(old).write_bytes(0, bytes - old);
        }
    }

    /// A free entry.
    #[inline]
    pub(crate) fn find_free(&self, table: &Table) -> Option<(usize, &'static Entry)> {
        let mut index = self.cursor.load(Ordering::Relaxed) as usize;
        if index > table.entries {
            index = 0;
        }
        while let Some(entry) = table.entry(index) {
            if entry.is_free() {
                self.cursor.store(index as u64, Ordering::Relaxed);
                return Some((index, entry));
            }
            index += 1;
        }
        self.cursor.store(index as u64, Ordering::Relaxed);
        None
    }

    /// Frees an object.
    pub(crate) fn free(&self, arena: Arena, slot: &Slot, index: usize, entry: &Entry) {
        if self.cursor.load(Ordering::Relaxed) > index as u64 {
            self.cursor.store(index as u64, Ordering::Relaxed);
        }
        drop_block(arena, slot, &entry.address, 0);
    }

    pub(super) fn check_table(&self, arena: Arena, first: usize, report: &mut CheckReport) {
        let address = self.table.load(Ordering::Acquire) as usize;
        let bytes = self
            .entries
            .load(Ordering::Acquire)
            .checked_mul(ENTRY as u64);
        let size = block::usable_size(arena, address).unwrap_or(0) as u64;
        if address != 0 && bytes.is_none_or(|bytes| size < bytes) {
            report.problem(format_args!("heap {first:#x}: its table is no block"));
        }
        let mut seen = HashSet::new();
        for (index, entry) in self.table(arena).objects() {
            let address = entry.address();
            let block = block::usable_size(arena, address as usize);
            if block.is_err() || !seen.insert(address) {
                report.problem(format_args!("heap {first:#x}: object {index} has no block"));
            }
        }
    }
}
