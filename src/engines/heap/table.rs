//! The table of objects: entries in one block, which is replaced by one of twice the length when all
//! entries are taken. So it takes one load to get from an id to its object.
//!
//! | entry | meaning |
//! |-------|---------|
//! | `address` 0 | free; the rest is what it was |
//! | otherwise | an object of `len` elements; this is the address of its block |
//!
//! The generation rises each time that an entry is taken. So an id, which has the index, and the sum of the heap's name
//! and the generation as its stamp, names one object for ever (heaps have names of 63 random bits). An entry whose
//! generation has reached its maximum is not taken any more. There is no list of free entries that would have to be
//! kept consistent: the search for a free entry goes on from a cursor, past entries that are taken, and goes round once
//! between collections.

use std::cell::Cell;
use std::collections::HashSet;

use super::{Words, drop_block};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::layout::arena::{Arena, SLICE};
use crate::participants::table::Slot;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};

/// The number of entries in the first table.
const FIRST: usize = 64;

/// An object's entry.
#[repr(C)]
pub(crate) struct HeapEntry {
    /// The address of its block; 0 for none.
    pub(crate) address: AtomicU64,
    /// What kind its elements are.
    kind: AtomicU64,
    /// The number of its elements.
    len: AtomicU64,
    generation: AtomicU32,
    /// Where a transaction has noted that it has saved or made the whole object. This is only a hint
    /// at the note, which alone counts.
    noted: AtomicU32,
}

/// The number of bytes from one place to the next. All blocks begin at places.
const PLACE: usize = 8;

/// The size of an entry.
const ENTRY: usize = size_of::<HeapEntry>();

const _: () = assert!(ENTRY == 32, "two in a line");

impl HeapEntry {
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
        // If the number is truncated, it leads to another object's note, which does not count.
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

/// The number of tables that a thread remembers.
const KNOWN: usize = 16;

thread_local! {
    /// Tables that the thread has compared with their blocks, so that a transaction need not: the heap's name, the
    /// address, and the number of entries. A heap's tables only grow, so a block that had the room has it as long as
    /// it is the table. The exception is a file that is damaged while it is not mapped, and mapped again; but even
    /// then the table is within the pool.
    static TABLES: [Cell<(u64, usize, usize)>; KNOWN] = const { [const { Cell::new((0, 0, 0)) }; KNOWN] };
}

/// A heap's table, compared with the pool once for all look-ups. It is valid while the caller has the
/// heap's lock, and neither replaces the table nor asks for blocks for which the pool has to grow.
#[derive(Clone, Copy)]
pub(crate) struct HeapTable {
    base: usize,
    entries: usize,
    /// Where the pool's data begins, and the number of places in it.
    data: usize,
    places: usize,
    /// The name of the heap.
    pub(crate) name: u64,
}

impl HeapTable {
    #[inline]
    fn new(arena: Arena, name: u64, base: usize, entries: usize) -> Self {
        let data = arena.slice_address(0);
        HeapTable {
            base,
            entries,
            data,
            places: (arena.slice_address(arena.slices()) - data) / PLACE,
            name,
        }
    }

    /// True if the thread has compared the table with its block before, and the table is in the pool; in a shorter
    /// copy of the same pool it need not be.
    #[inline]
    fn is_known(&self) -> bool {
        let (name, base, entries) = (self.name, self.base, self.entries);
        TABLES.with(|tables| tables[name as usize % KNOWN].get() == (name, base, entries))
            // For a number of entries that is remembered, this does not overflow.
            && self.room_at(base) >= entries.wrapping_mul(ENTRY)
    }

    /// The number of entries.
    #[inline]
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// The entry with that index, if there is one.
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> Option<&'static HeapEntry> {
        (index < self.entries).then(|| {
            let entry = std::ptr::with_exposed_provenance::<HeapEntry>(self.base + index * ENTRY);
            // SAFETY: aligned, in committed data of the pool (a table that a thread remembers is compared
            // with that, and a block is in it); an entry consists of atomics.
            unsafe { &*entry }
        })
    }

    /// The number of bytes of the pool's data from an address on.
    #[inline]
    pub(crate) fn room_at(&self, address: usize) -> usize {
        (self.places * PLACE).saturating_sub(address.wrapping_sub(self.data))
    }

    /// The kind in the entries of objects of a type, given the type's number, which has 128 bits. Two types have the
    /// same kind only by chance: the heap's name is random, so no type can have been designed to be taken for another
    /// one in this heap.
    #[inline]
    pub(crate) fn kind(&self, [low, high]: [u64; 2]) -> u64 {
        low.wrapping_add(high.wrapping_mul(self.name))
    }

    /// What an id of an object of this heap has besides the index, so that it names this object for
    /// ever.
    #[inline]
    pub(crate) fn stamp(&self, entry: &HeapEntry) -> u64 {
        self.name.wrapping_add(entry.generation().into())
    }

    /// Where a block is, as a number for which an id has room: its place in the data. For a block beyond 32 GiB, it is
    /// the place of another block.
    #[inline]
    pub(crate) fn place(&self, address: usize) -> u32 {
        (address.wrapping_sub(self.data) / PLACE) as u32
    }

    /// The address of a [place](Self::place).
    #[inline]
    pub(crate) fn address(&self, place: u32) -> usize {
        self.data.wrapping_add(place as usize * PLACE)
    }

    /// As [`has_room`](Self::has_room), for a place; false if the place is not enough to decide.
    #[inline]
    pub(crate) fn has_room_at(&self, place: u32, bytes: usize, align: usize) -> bool {
        // This does not overflow.
        align <= PLACE && place as usize + bytes.div_ceil(PLACE) <= self.places
    }

    /// True if that many bytes, with that alignment, are at an address in the pool's data.
    #[inline]
    pub(crate) fn has_room(&self, address: usize, bytes: usize, align: usize) -> bool {
        let shift = align.trailing_zeros();
        // The data begins at a slice. The bits that the alignment requires to be 0 are moved to the top, so that
        // one comparison checks everything.
        let at = address.wrapping_sub(self.data).rotate_right(shift);
        let last = (self.places * PLACE).checked_sub(bytes);
        last.is_some_and(|last| at <= last >> shift)
            && (align <= SLICE || address.is_multiple_of(align))
    }

    /// The entries of objects.
    pub(crate) fn objects(self) -> impl Iterator<Item = (usize, &'static HeapEntry)> {
        (0..self.entries)
            .filter_map(move |index| Some((index, self.entry(index)?)))
            .filter(|(_, entry)| entry.address() != 0)
    }
}

/// The number of a table's entries for which its block has room. If it has room for all, the table
/// is remembered.
#[cold]
fn bounded(arena: Arena, name: u64, base: usize, entries: usize) -> usize {
    let room = match block::usable_size(arena, base) {
        Ok(bytes) if base.is_multiple_of(align_of::<HeapEntry>()) => bytes / ENTRY,
        _ => 0,
    };
    if room >= entries {
        TABLES.with(|tables| tables[name as usize % KNOWN].set((name, base, entries)));
    }
    room.min(entries)
}

impl Words {
    /// The table, with no more entries than its block has room for: if the length is garbage, what lies behind the
    /// block belongs to others. If the address is not that of a block, there are no entries.
    #[inline]
    pub(crate) fn table(&self, arena: Arena) -> HeapTable {
        let base = self.table.load(Ordering::Acquire) as usize;
        let said = self.entries.load(Ordering::Acquire) as usize;
        let table = HeapTable::new(arena, self.name(), base, said);
        if table.is_known() {
            return table;
        }
        let entries = bounded(arena, table.name, base, said);
        HeapTable { entries, ..table }
    }

    /// The number of entries and bytes of the next table; `None` if an index could not name all
    /// entries.
    pub(crate) fn next_table(table: &HeapTable) -> Option<(usize, usize)> {
        let entries = (table.entries * 2).max(FIRST);
        (entries <= u32::MAX as usize).then_some((entries, entries * ENTRY))
    }

    /// Copies the table to a new block of `bytes` bytes, with free entries behind.
    ///
    /// # Safety
    ///
    /// The block is as long as [`next_table`](Self::next_table) says, and nobody else has it.
    pub(crate) unsafe fn copy_table(table: &HeapTable, to: usize, bytes: usize) {
        let from = std::ptr::with_exposed_provenance::<u8>(table.base);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
        let old = table.entries * ENTRY;
        // SAFETY: entries that exist, which nobody but the caller changes; and a block of `bytes`
        // bytes, which is larger.
        unsafe {
            if old != 0 {
                to.copy_from(from, old);
            }
            to.add(old).write_bytes(0, bytes - old);
        }
    }

    /// A free entry.
    #[inline]
    pub(crate) fn find_free(&self, table: &HeapTable) -> Option<(usize, &'static HeapEntry)> {
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
    pub(crate) fn free(&self, arena: Arena, slot: &Slot, index: usize, entry: &HeapEntry) {
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
