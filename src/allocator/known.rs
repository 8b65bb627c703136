//! The spans in which an owner has freed blocks lately, found by a block's address alone.
//!
//! The long way from an address to a span goes through the pool's extent, the slice's tag and the
//! span's record. An owner notes where that led, in a table in its slot, with an entry for each of
//! its slices (a direct-mapped cache by the slice's number), so that the next free of a block in
//! the slice is a subtraction, a multiplication and a comparison away from its bit. The comparison
//! answers three questions at once (see [`size_class::divide`]): whether the entry is for the
//! address's slice, whether it is in use, and whether a block starts at the address.
//!
//! Nothing here has to be right after a death: a claimant of the slot clears the table, so it is
//! only ever read by the thread that has written it. The order of the stores does not matter.
//!
//! Invariants
//! 1. An entry is all zero, or it describes a span that belongs to the slot's owner: a span ceases
//!    to belong to it only by going back ([`Slot::forget`]) or becoming nobody's (as the owner
//!    leaves).
//! 2. `blocks` is at most [`MAX_BLOCKS`]: an index below it is in the bitmaps.

use super::size_class::{self, MAX_BLOCKS};
use super::span::{Place, Span, WORDS};
use crate::layout::arena::{Arena, SLICE, SLICE_SHIFT};
use crate::participants::table::{KNOWN_WORDS, Own, Slot};
use crate::primitive::Ordering;
use crate::protocol::bitmap::Sets;

/// The number of entries: enough for 4 MiB.
const ENTRIES: usize = 256;

/// What lies at slices of the owner's. Each array has an element for each entry, so that the
/// entry's number alone locates an element.
#[repr(C)]
struct Known {
    /// The address of the span's first block.
    start: [Own; ENTRIES],
    /// Division by the block size: see `size_class`.
    inverse: [Own; ENTRIES],
    /// The address of the span's bitmaps.
    words: [Own; ENTRIES],
    /// How many blocks the span has; 0 in an entry that is not in use.
    blocks: [Own<u32>; ENTRIES],
    /// Part of the division, too.
    shift: [Own<u32>; ENTRIES],
}

const _: () = assert!(size_of::<Known>() == size_of::<[Own; KNOWN_WORDS]>());

/// The entry for the slice in which an address lies.
#[inline(always)]
const fn entry_of(address: usize) -> usize {
    (address >> SLICE_SHIFT) % ENTRIES
}

/// The address of the bitmaps of a span whose blocks are found by [`Slot::known_block`].
#[derive(Clone, Copy)]
pub(crate) struct Words(usize);

impl Words {
    /// The bitmaps.
    #[inline(always)]
    pub(crate) fn sets(self) -> Sets<'static, WORDS> {
        // SAFETY: made only by `known_block`, from an entry in use, which by invariant 1 has the
        // address of a record's bitmaps; records stay mapped and consist of atomics.
        Sets(unsafe { &*std::ptr::with_exposed_provenance(self.0) })
    }

    /// The span.
    #[inline(always)]
    pub(crate) fn span(self) -> &'static Span {
        // SAFETY: as above: the bitmaps lie in the record.
        unsafe { &*std::ptr::with_exposed_provenance(self.0 - Span::WORDS_AT) }
    }
}

impl Slot {
    #[inline(always)]
    fn known(&self) -> &Known {
        // SAFETY: the area is as large (asserted above) and consists of the same words.
        unsafe { &*self.known.as_ptr().cast() }
    }

    /// The block that starts at an address, if that is known to be in one of the owner's spans, and
    /// the span's bitmaps.
    #[inline(always)]
    pub(crate) fn known_block(&self, address: usize) -> Option<(Place, Words)> {
        let (known, entry) = (self.known(), entry_of(address));
        let offset = (address as u64).wrapping_sub(known.start[entry].get());
        let (inverse, shift) = (known.inverse[entry].get(), known.shift[entry].get());
        let index = size_class::divide(offset, inverse, shift);
        if index >= known.blocks[entry].get().into() {
            return None;
        }
        // SAFETY: by invariant 2.
        unsafe { std::hint::assert_unchecked(index < MAX_BLOCKS as u64) };
        Some((
            Place(index as u32),
            Words(known.words[entry].get() as usize),
        ))
    }

    /// Notes a span of the owner's, for blocks in the slice in which an address lies.
    pub(crate) fn note_known(&self, arena: Arena, span: &Span, address: usize) {
        let start = arena.slice_address(span.slice(arena));
        // The record's address is the one exposed: the record is found by the address of its words.
        let words = std::ptr::from_ref(span).expose_provenance() + Span::WORDS_AT;
        let (known, entry) = (self.known(), entry_of(address));
        let blocks = span.blocks.load(Ordering::Relaxed);
        let size = span.size.load(Ordering::Relaxed);
        known.start[entry].set(start as u64);
        known.inverse[entry].set(span.inverse.load(Ordering::Relaxed));
        known.shift[entry].set(size.trailing_zeros());
        known.words[entry].set(words as u64);
        known.blocks[entry].set(blocks.min(MAX_BLOCKS as u32));
    }

    /// Forgets all spans: those of the slot's former owner.
    pub(crate) fn forget_all(&self) {
        // SAFETY: atomics, of which all bytes are valid. Nobody but the slot's owner, the caller,
        // looks at them, so they need not be stored one by one.
        unsafe { self.known.as_ptr().cast_mut().write_bytes(0, KNOWN_WORDS) };
    }

    /// Forgets a span that is about to go back.
    pub(crate) fn forget(&self, arena: Arena, span: &Span) {
        let start = arena.slice_address(span.slice(arena));
        let slices = (span.slices.load(Ordering::Relaxed) as usize).min(ENTRIES);
        for slice in 0..slices {
            let entry = entry_of(start + slice * SLICE);
            if self.known().start[entry].get() == start as u64 {
                self.known().blocks[entry].set(0);
            }
        }
    }
}
