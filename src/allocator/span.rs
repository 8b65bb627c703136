//! Spans: blocks of one size class, and the bitmaps that say which are free.
//!
//! Three sets of bits, a bit a block. A block is free if and only if it is in one of them:
//!
//! | bits | who writes | what |
//! |--------------|-----------|--------------------------------------------------------------|
//! | `bits`       | the owner | one word's worth (word `word`), from which blocks are handed out |
//! | `freed[k]`   | the owner | free blocks that are not in `bits` |
//! | `remote[k]`  | everybody | blocks freed by others than the owner |
//!
//! | step    | stores, in this order                          | who |
//! |---------|------------------------------------------------|-----|
//! | allocate| `bits` without the bit                         | owner |
//! | free    | `freed[k]` with the bit                        | owner |
//! | free    | `remote[k]` with the bit (an atomic or)        | anybody else |
//! | refill  | `refills + 1`, `word = k`, `bits = freed[k]`, `freed[k] = 0` | owner, when `bits` is 0 |
//! | collect | `freed[k] |= t`, `remote[k] &= !t`, for t in `remote[k]` | owner |
//! | recover | `freed[word] |= bits`, `bits = 0`, collect     | holder of the dead owner's life word |
//!
//! A kill between any two stores leaves a block in two sets, which is as free as in one, and never
//! in none that was in one. (Clearing first, or exchanging `remote` with 0, would lose blocks.)
//!
//! Invariants
//! 1. `bits`, `word` and `freed` are written by the owner that the slice's tag names, or for it.
//! 2. `collect` leaves in `remote` any block that a slot's `freeing` word names: until that word
//!    is cleared, a recovery may set the block's bit again.
//! 3. `class`, `base`, `size`, `blocks` and `slices` are constant from before the head's tag
//!    until the head is claimed.
//! 4. A span goes back only when every block is free and no `freeing` word names one.

use super::size_class::{MAX_BLOCKS, RECIPROCAL_SHIFT, TABLE};
use super::slice;
use crate::layout::arena::{Arena, SLICE, SPANS};
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
pub(crate) use crate::protocol::bitmap::Place;
use crate::protocol::bitmap::Sets;

pub(crate) const WORDS: usize = MAX_BLOCKS / 64;

/// The record of a span, found by the index of its first slice.
#[repr(C, align(64))]
pub(crate) struct Span {
    /// Free blocks of word `word`; handed out from the lowest up.
    pub(crate) bits: AtomicU64,
    /// The address of block 0.
    pub(crate) base: AtomicU64,
    pub(crate) word: AtomicU32,
    pub(crate) size: AtomicU32,
    pub(crate) blocks: AtomicU32,
    pub(crate) class: AtomicU32,
    pub(crate) slices: AtomicU32,
    /// Which of the owner's lists it is in: see `cache`.
    pub(crate) place: AtomicU32,
    /// Neighbours in that list, as slice index + 1.
    pub(crate) next: AtomicU32,
    pub(crate) previous: AtomicU32,
    /// Blocks handed out less blocks taken back, as far as the owner knows. A hint.
    pub(crate) live: AtomicU32,
    /// How often `bits` was refilled: others tell by it which word the bits that they read are of.
    pub(crate) refills: AtomicU32,

    pub(crate) freed: FreedWords,
    pub(crate) remote: RemoteWords,
}

/// On cache lines of its own: the owner's.
#[repr(C, align(64))]
pub(crate) struct FreedWords([AtomicU64; WORDS]);

/// On cache lines of its own: everybody's.
#[repr(C, align(64))]
pub(crate) struct RemoteWords([AtomicU64; WORDS]);

const _: () = assert!(size_of::<Span>() <= SPANS.entry);

impl Arena {
    /// The record of the span that starts at a slice below [`Arena::slices`].
    #[inline]
    pub(crate) fn span(self, slice: usize) -> &'static Span {
        assert!(slice < SPANS.max);
        // SAFETY: callers have compared the index with the number of slices.
        unsafe { self.entry(SPANS, slice) }
    }
}

impl Span {
    /// The index of the span's first slice.
    #[inline]
    pub(crate) fn slice(&self, arena: Arena) -> usize {
        (std::ptr::from_ref(self).addr() - arena.base() - SPANS.offset) / SPANS.entry
    }

    /// Describes a new span, all of whose blocks are free. Its head is not tagged yet.
    pub(crate) fn describe(&self, arena: Arena, start: usize, class: usize, slices: usize) {
        let size = TABLE[class].size;
        let blocks = (slices * SLICE) as u32 / size;
        self.bits.store(0, Ordering::Relaxed);
        self.base
            .store(arena.slice_address(start) as u64, Ordering::Relaxed);
        self.word.store(0, Ordering::Relaxed);
        self.size.store(size, Ordering::Relaxed);
        self.blocks.store(blocks, Ordering::Relaxed);
        self.class.store(class as u32, Ordering::Relaxed);
        self.slices.store(slices as u32, Ordering::Relaxed);
        self.live.store(0, Ordering::Relaxed);
        for word in 0..WORDS {
            self.remote.0[word].store(0, Ordering::Relaxed);
            self.freed.0[word].store(self.all(word), Ordering::Relaxed);
        }
    }

    /// The size class; garbage is bounded.
    #[inline]
    pub(crate) fn class(&self) -> usize {
        (self.class.load(Ordering::Relaxed) as usize).min(TABLE.len() - 1)
    }

    /// True if the record is such as [`Span::describe`] and the owners since can have left it: the
    /// span of nobody in a damaged file need not be.
    pub(crate) fn is_sane(&self, arena: Arena, start: usize) -> bool {
        let slices = self.slices.load(Ordering::Relaxed) as usize;
        let word = self.word.load(Ordering::Relaxed) as usize;
        let Some(class) = TABLE.get(self.class.load(Ordering::Relaxed) as usize) else {
            return false;
        };
        slices >= 1
            && slices <= class.slices as usize
            && start + slices <= arena.slices()
            && self.base.load(Ordering::Relaxed) as usize == arena.slice_address(start)
            && self.size.load(Ordering::Relaxed) == class.size
            && self.blocks.load(Ordering::Relaxed) == (slices * SLICE) as u32 / class.size
            && word < WORDS
            && self.bits.load(Ordering::Relaxed) & !self.all(word) == 0
            && (0..WORDS).all(|w| {
                let free =
                    self.freed(w).load(Ordering::Relaxed) | self.remote(w).load(Ordering::Relaxed);
                free & !self.all(w) == 0
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
        Sets {
            bits: &self.bits,
            word: &self.word,
            refills: &self.refills,
            freed: &self.freed.0,
            remote: &self.remote.0,
        }
    }

    pub(crate) fn freed(&self, word: usize) -> &AtomicU64 {
        &self.freed.0[word % WORDS]
    }

    pub(crate) fn remote(&self, word: usize) -> &AtomicU64 {
        &self.remote.0[word % WORDS]
    }

    /// The block that starts at an address within the span, or `None` if none does.
    #[inline]
    pub(crate) fn place_of(&self, address: usize) -> Option<Place> {
        let offset = (address as u64).wrapping_sub(self.base.load(Ordering::Relaxed));
        let class = &TABLE[self.class()];
        let index = offset.wrapping_mul(class.reciprocal) >> RECIPROCAL_SHIFT;
        let exact = index * u64::from(class.size) == offset;
        (exact && index < u64::from(self.blocks.load(Ordering::Relaxed))).then_some(Place {
            word: index as usize / 64,
            bit: 1 << (index % 64),
        })
    }

    /// True if the block is in one of the sets. Read in this order, a block that was freed before
    /// the call, in the order that synchronisation gives, is always found.
    #[inline]
    pub(crate) fn is_free(&self, place: Place) -> bool {
        self.sets().is_free(place)
    }

    /// The free blocks of a word, of all three sets.
    pub(crate) fn free_bits(&self, word: usize) -> u64 {
        self.sets().free_bits(word)
    }

    /// How many blocks are free.
    pub(crate) fn count_free(&self) -> u32 {
        (0..self.words())
            .map(|w| (self.free_bits(w) & self.all(w)).count_ones())
            .sum()
    }

    /// Moves a word of freed blocks to `bits`, which is 0. False if there is none.
    pub(crate) fn refill(&self) -> bool {
        self.sets().refill(self.words())
    }

    /// Moves what others freed to `freed`. True if there was anything.
    pub(crate) fn collect(&self, arena: Arena) -> bool {
        self.sets()
            .collect(self.words(), |word| self.being_freed(arena, word))
    }

    /// The blocks of a word that `freeing` words name.
    fn being_freed(&self, arena: Arena, word: usize) -> u64 {
        arena
            .slots()
            .filter_map(|(_, slot)| {
                let address = slot.watched.freeing.load(Ordering::SeqCst);
                let place = (address != 0).then(|| self.place_of(address as usize))??;
                (place.word == word).then_some(place.bit)
            })
            .fold(0, |all, bit| all | bit)
    }

    /// Puts `bits` back to `freed` and collects: what recovery does for a dead owner.
    pub(crate) fn settle(&self, arena: Arena) {
        self.sets()
            .settle(self.words(), |word| self.being_freed(arena, word));
    }

    /// True if every block is free and nobody is about to free one again.
    pub(crate) fn is_empty(&self, arena: Arena) -> bool {
        (0..self.words()).all(|w| {
            self.free_bits(w) & self.all(w) == self.all(w) && self.being_freed(arena, w) == 0
        })
    }

    /// Gives the span's slices back. The caller owns it, and it [is empty](Span::is_empty).
    pub(crate) fn give_back(&self, arena: Arena, owner: Tag) {
        let start = self.slice(arena);
        // Bounded, should the record be garbage.
        let count = (self.slices.load(Ordering::Relaxed) as usize).clamp(1, arena.slices() - start);
        arena
            .tag(start)
            .store(slice::claimed_tag(slice::DIRTY, owner), Ordering::Release);
        slice::release(arena, start, count);
    }
}
