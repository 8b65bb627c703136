//! The table of objects: entries in segments, each twice as long as the one before, that stay
//! where they are.
//!
//! | entry | meaning |
//! |-------|---------|
//! | `address` 0 | free; the rest is what it was |
//! | else | an object of `len` elements, whose block this is |
//!
//! The generation rises each time that an entry is taken. So an id, which has index and
//! generation, names one object for ever; an entry whose generation has come to its end is not taken
//! any more. There is no list of free entries to keep in step: the search for one goes on from a
//! cursor, past what is taken, once round between collections.

use std::collections::HashSet;

use super::{Words, drop_block};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};

/// Segments of a table, and the entries of the first.
pub(super) const SEGMENTS: usize = 25;
const FIRST: usize = 64;

/// Bytes of an entry.
pub(crate) const ENTRY: usize = size_of::<Entry>();

const _: () = assert!(
    FIRST * ((1 << SEGMENTS) - 1) <= u32::MAX as usize,
    "an index has 32 bits"
);

/// An object's entry.
#[repr(C)]
pub(crate) struct Entry {
    /// Its block; 0 for none.
    pub(crate) address: AtomicU64,
    /// What its elements are.
    kind: AtomicU64,
    /// How many.
    len: AtomicU64,
    generation: AtomicU64,
    /// The transaction in which all of it was saved, or made.
    saved: AtomicU64,
}

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
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether nothing of the object is to be saved any more in the transaction.
    #[inline]
    pub(crate) fn is_saved(&self, tx: u64) -> bool {
        self.saved.load(Ordering::Relaxed) == tx
    }

    #[inline]
    pub(crate) fn set_saved(&self, tx: u64) {
        self.saved.store(tx, Ordering::Relaxed);
    }

    /// Describes the object that the free entry is taken for; its generation.
    pub(crate) fn describe(&self, kind: u64, len: u64, tx: u64) -> u32 {
        let generation = self.generation() + 1;
        self.generation.store(generation, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.set_saved(tx);
        generation as u32
    }

    fn is_free(&self) -> bool {
        self.address() == 0 && self.generation() < u64::from(u32::MAX)
    }
}

/// The segment of an index, and the place in it.
#[inline]
fn place(index: usize) -> Option<(usize, usize)> {
    let at = index.checked_add(FIRST)?;
    let segment = (at / FIRST).ilog2();
    Some((segment as usize, at - (FIRST << segment)))
}

impl Words {
    /// The entry with that index, if there is one.
    #[inline]
    pub(crate) fn entry(&self, arena: Arena, index: usize) -> Option<&'static Entry> {
        let (segment, at) = place(index)?;
        let base = self.segments.get(segment)?.load(Ordering::Acquire) as usize;
        let inside = base.is_multiple_of(8) && arena.room_at(base) >= (at + 1) * ENTRY;
        let entry = std::ptr::with_exposed_provenance::<Entry>(base.wrapping_add(at * ENTRY));
        // SAFETY: aligned, in the pool's data, which stays mapped; an entry consists of atomics.
        inside.then(|| unsafe { &*entry })
    }

    /// How many entries there are.
    pub(crate) fn entries(&self) -> usize {
        FIRST * ((1 << self.segments_taken()) - 1)
    }

    fn segments_taken(&self) -> usize {
        let mut segments = self.segments.iter();
        segments
            .position(|segment| segment.load(Ordering::Acquire) == 0)
            .unwrap_or(SEGMENTS)
    }

    /// The word for the next segment, and the entries that it is to have.
    pub(crate) fn next_segment(&self) -> Option<(&AtomicU64, usize)> {
        let taken = self.segments_taken();
        Some((self.segments.get(taken)?, FIRST << taken))
    }

    /// A free entry.
    pub(crate) fn find_free(&self, arena: Arena) -> Option<(usize, &'static Entry)> {
        let mut index = self.cursor.load(Ordering::Relaxed) as usize;
        if index > self.entries() {
            index = 0;
        }
        while let Some(entry) = self.entry(arena, index) {
            if entry.is_free() {
                self.cursor.store(index as u64, Ordering::Relaxed);
                return Some((index, entry));
            }
            index += 1;
        }
        self.cursor.store(index as u64, Ordering::Relaxed);
        None
    }

    /// The entries of objects.
    pub(crate) fn objects(
        &self,
        arena: Arena,
    ) -> impl Iterator<Item = (usize, &'static Entry)> + use<'_> {
        (0..)
            .map_while(move |index| Some((index, self.entry(arena, index)?)))
            .filter(|(_, entry)| entry.address() != 0)
    }

    /// Frees an object.
    pub(crate) fn free(&self, arena: Arena, slot: &Slot, index: usize, entry: &Entry) {
        if self.cursor.load(Ordering::Relaxed) > index as u64 {
            self.cursor.store(index as u64, Ordering::Relaxed);
        }
        drop_block(arena, slot, &entry.address, 0);
    }

    pub(super) fn check_table(&self, arena: Arena, first: usize, report: &mut CheckReport) {
        for (k, segment) in self.segments.iter().enumerate() {
            let address = segment.load(Ordering::Acquire) as usize;
            let bytes = (FIRST << k) * ENTRY;
            let sound = block::usable_size(arena, address).is_ok_and(|size| size >= bytes);
            if address != 0 && (!sound || k >= self.segments_taken()) {
                report.problem(format_args!("heap {first:#x}: segment {k} is no block"));
            }
        }
        let mut seen = HashSet::new();
        for (index, entry) in self.objects(arena) {
            let address = entry.address();
            let block = block::usable_size(arena, address as usize);
            if block.is_err() || !seen.insert(address) {
                report.problem(format_args!("heap {first:#x}: object {index} has no block"));
            }
        }
    }
}
