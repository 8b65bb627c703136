//! Spans: blocks of one size class, and the bitmaps that say which are free.
//!
//! Two sets of bits, with a bit for each block. A block is free if and only if it is in one of
//! them:
//!
//! | bits | who writes | what |
//! |--------------|-----------|--------------------------------------------------------------|
//! | `freed[k]`   | the owner | free blocks, from which blocks are handed out |
//! | `remote[k]`  | everybody | blocks freed by others than the owner |
//!
//! | step    | stores, in this order                          | who |
//! |---------|------------------------------------------------|-----|
//! | allocate| `freed[k]` without the bit                     | owner |
//! | free    | `freed[k]` with the bit                        | owner |
//! | free    | `remote[k]` with the bit (an atomic or)        | anybody else |
//! | collect | `freed[k] |= t`, `remote[k] &= !t`, for t in `remote[k]` | owner |
//! | recover | collect                                        | holder of the dead owner's life word |
//!
//! A kill between any two stores may leave a block in both sets, which is as free as in one; it
//! never removes a block from both. (Clearing first, or exchanging `remote` with 0, would lose
//! blocks.)
//!
//! Which word blocks come from is the owner's business, and is in its cache: there is nothing to
//! recover.
//!
//! Invariants
//! 1. `freed` is written by the owner that the slice's tag names, or on its behalf.
//! 2. `collect` leaves in `remote` any block that a slot's `freeing` word names: until that word is
//!    cleared, a recovery may set the block's bit again.
//! 3. `class`, `inverse`, `size`, `blocks` and `slices` are constant from before the head's tag
//!    until the head is claimed.
//! 4. A span goes back only when every block is free and no `freeing` word names one.

use super::size_class::{self, MAX_BLOCKS, TABLE};
use super::slice::{self, State};
use crate::layout::arena::{Arena, SLICE, SPANS};
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
pub(crate) use crate::protocol::bitmap::Place;
use crate::protocol::bitmap::{self, Collected, Pair, Sets};

pub(crate) const WORDS: usize = MAX_BLOCKS / 64;

/// The record of a span, found by the index of its first slice.
#[repr(C, align(64))]
pub(crate) struct Span {
    /// Division by the size: see `size_class`.
    pub(crate) inverse: AtomicU64,
    pub(crate) size: AtomicU32,
    pub(crate) blocks: AtomicU32,
    pub(crate) class: AtomicU32,
    pub(crate) slices: AtomicU32,

    /// The owner looks at the span again after this many more frees of its own. A hint.
    pub(crate) until: AtomicU32,
    /// Which of the owner's lists it is in: see `cache`.
    pub(crate) place: AtomicU32,
    /// Neighbours in that list, as slice index + 1.
    pub(crate) next: AtomicU32,
    pub(crate) previous: AtomicU32,

    _spare: AtomicU64,

    /// The words of both sets, alternating. A thread that frees looks at both; side by side they
    /// are in one line, and the first pair is in the same line as everything else.
    words: [Pair; WORDS],
}

const _: () = assert!(size_of::<Span>() <= SPANS.entry && Span::WORDS_AT == 48);

impl Arena {
    /// The record of the span that starts at a slice below [`Arena::slices`].
    #[inline]
    pub(crate) fn span(self, slice: usize) -> &'static Span {
        assert!(slice < SPANS.max);
        // SAFETY: callers have compared the index with the number of slices.
        unsafe { self.entry(SPANS, slice) }
    }

    /// The same, unchecked.
    ///
    /// # Safety
    ///
    /// The slice is below [`Arena::slices`].
    #[inline(always)]
    pub(crate) unsafe fn known_span(self, slice: usize) -> &'static Span {
        debug_assert!(slice < self.slices());
        // SAFETY: by the caller's promise.
        unsafe { self.entry(SPANS, slice) }
    }
}

impl Span {
    /// Where the bitmaps are in the record.
    pub(crate) const WORDS_AT: usize = std::mem::offset_of!(Span, words);

    /// The index of the span's first slice.
    #[inline]
    pub(crate) fn slice(&self, arena: Arena) -> usize {
        (std::ptr::from_ref(self).addr() - arena.base() - SPANS.offset) / SPANS.entry
    }

    /// Describes a new span, all of whose blocks are free. Its head is not tagged yet.
    pub(crate) fn describe(&self, class: usize, slices: usize) {
        let shape = &TABLE[class];
        let blocks = (slices * SLICE) as u32 / shape.size;
        self.inverse.store(shape.inverse, Ordering::Relaxed);
        self.size.store(shape.size, Ordering::Relaxed);
        self.blocks.store(blocks, Ordering::Relaxed);
        self.class.store(class as u32, Ordering::Relaxed);
        self.slices.store(slices as u32, Ordering::Relaxed);
        self.place.store(0, Ordering::Relaxed);
        for word in 0..WORDS {
            self.words[word].remote.store(0, Ordering::Relaxed);
            self.words[word]
                .freed
                .store(self.all(word), Ordering::Relaxed);
        }
    }

    /// The size class; garbage is clamped to a valid class.
    #[inline]
    pub(crate) fn class(&self) -> usize {
        (self.class.load(Ordering::Relaxed) as usize).min(TABLE.len() - 1)
    }

    /// Bytes per block.
    #[inline]
    pub(crate) fn block_size(&self) -> usize {
        self.size.load(Ordering::Relaxed) as usize
    }

    /// True if the constant part of the record is as [`Span::describe`] writes it: in a damaged
    /// file it need not be.
    pub(crate) fn is_described(&self, arena: Arena, start: usize) -> bool {
        let slices = self.slices.load(Ordering::Relaxed) as usize;
        let Some(class) = TABLE.get(self.class.load(Ordering::Relaxed) as usize) else {
            return false;
        };
        let room = slices * SLICE;
        let blocks = u64::from(self.blocks.load(Ordering::Relaxed));
        // As many blocks as fit, checked without a division.
        let left = (room as u64).checked_sub(blocks * u64::from(class.size));
        slices >= 1
            && slices <= class.slices as usize
            && start + slices <= arena.slices()
            && self.inverse.load(Ordering::Relaxed) == class.inverse
            && self.size.load(Ordering::Relaxed) == class.size
            && left.is_some_and(|left| left < class.size.into())
    }

    /// True if [`Span::describe`] and the owners since then can have left the record as it is: in a
    /// damaged file, this need not be so for a span that nobody owns.
    pub(crate) fn is_sane(&self, arena: Arena, start: usize) -> bool {
        let leads_here = |back: usize| {
            let tag = arena.tag(start + back).load(Ordering::Acquire);
            tag == slice::tail_tag(back)
        };
        let slices = 1..self.slices.load(Ordering::Relaxed) as usize;
        self.is_described(arena, start)
            && { slices }.all(leads_here)
            && (0..WORDS).all(|w| {
                let freed = self.sets().freed(w).load(Ordering::Acquire);
                let remote = self.sets().remote(w).load(Ordering::Acquire);
                (freed | remote) & !self.all(w) == 0 && freed & remote == 0
            })
    }

    /// How many words of the bitmaps are in use.
    #[inline]
    pub(crate) fn words(&self) -> usize {
        (self.blocks.load(Ordering::Relaxed) as usize)
            .div_ceil(64)
            .min(WORDS)
    }

    /// The bits of a word that stand for blocks.
    pub(crate) fn all(&self, word: usize) -> u64 {
        let blocks = self.blocks.load(Ordering::Relaxed) as usize;
        match blocks.saturating_sub(word * 64) {
            0 => 0,
            n @ 1..64 => !(!0 << n),
            _ => !0,
        }
    }

    /// The bitmaps, as the protocol sees them.
    #[inline]
    pub(crate) fn sets(&self) -> Sets<'_, WORDS> {
        Sets(&self.words)
    }

    /// The block that starts at an offset from the span's start, or `None` if none does.
    #[inline(always)]
    pub(crate) fn place_of(&self, offset: usize) -> Option<Place> {
        let shift = self.size.load(Ordering::Relaxed).trailing_zeros();
        let inverse = self.inverse.load(Ordering::Relaxed);
        let index = size_class::divide(offset as u64, inverse, shift);
        (index < self.blocks.load(Ordering::Relaxed).into()).then_some(Place(index as u32))
    }

    /// True if the block is in one of the sets.
    #[inline]
    pub(crate) fn is_free(&self, place: Place) -> bool {
        self.sets().is_free(place)
    }

    /// How many blocks are free.
    pub(crate) fn count_free(&self) -> u32 {
        (0..self.words())
            .map(|w| (self.sets().free_bits(w) & self.all(w)).count_ones())
            .sum()
    }

    /// A word with blocks to hand out, from word `from` on.
    #[inline]
    pub(crate) fn stocked(&self, from: usize) -> Option<usize> {
        self.sets().stocked(self.words(), from)
    }

    /// Moves what others freed to `freed`; called by the owner, or by recovery for a dead one. True
    /// if there was anything.
    pub(crate) fn collect(&self, arena: Arena) -> bool {
        let collected = self.sets().collect(self.words(), |taken| {
            for place in self.being_freed(arena) {
                taken[place.word() % WORDS] &= !place.bit();
            }
        });
        if collected == Collected::Named {
            self.tell_owner(arena);
        }
        collected == Collected::Some
    }

    /// Tells the owner of the span, if any, that there are blocks to collect, or will be.
    #[cold]
    fn tell_owner(&self, arena: Arena) {
        let tag = arena.tag(self.slice(arena)).load(Ordering::Acquire);
        if let State::Span { owner } = slice::state(tag)
            && let Some(owner) = arena.owner_slot(owner)
        {
            bitmap::tell(&owner.inbox.freed_hints, 1 << self.class());
        }
    }

    /// The blocks of the span that `freeing` words name.
    fn being_freed(&self, arena: Arena) -> impl Iterator<Item = Place> {
        let base = arena.slice_address(self.slice(arena));
        arena.slots().filter_map(move |(_, slot)| {
            let address = slot.watched.freeing.load(Ordering::SeqCst) as usize;
            self.place_of(address.checked_sub(base)?)
        })
    }

    /// True if every block is free and nobody is about to free one again.
    pub(crate) fn is_empty(&self, arena: Arena) -> bool {
        let all_free = |w| self.sets().free_bits(w) & self.all(w) == self.all(w);
        (0..self.words()).all(all_free) && self.being_freed(arena).next().is_none()
    }

    /// Gives the span's slices back. The caller owns it, and it [is empty](Span::is_empty).
    pub(crate) fn give_back(&self, arena: Arena, owner: Tag) {
        let start = self.slice(arena);
        // Bounded, in case the record is garbage.
        let count = (self.slices.load(Ordering::Relaxed) as usize).clamp(1, arena.slices() - start);
        arena
            .tag(start)
            .store(slice::claimed_tag(slice::DIRTY, owner), Ordering::Release);
        slice::release(arena, start, count);
    }
}
