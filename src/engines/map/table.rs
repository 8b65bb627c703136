//! Where things lie in a map: a table of chunks of words that name nodes.
//!
//! ```text
//! map       root: the address of a table; 0 at first
//! table     a header, then chunks; a power of two of them
//! chunk     512 bytes: a lock, `done`, and 62 words
//! word      bits 0..2  what it says
//!           bits 2..28 bits of the key's hash
//!           bits 28..  the node's offset in the pool, in units of 16 bytes
//! node      the two words of `limbo` (the second one is the key's hash); in a stacked map the
//!           address of the node that it hides, or 0; key and value
//! ```
//!
//! | word  | meaning |
//! |-------|---------|
//! | EMPTY | no node here, and no key is further on because of this place |
//! | NODE  | names a node |
//! | TOMB  | no node here; search on |
//! | MOVED | the node is in the successor |
//!
//! The upper half of a hash gives the chunk, its lowest six bits the place where the search in the
//! chunk begins. It goes on from place to place, round the chunk, and never leaves it.

use std::alloc::Layout;

use crate::engines::limbo::{self, Retirable};
use crate::layout::arena::{Arena, DATA, GRANULE, SLICE};
use crate::primitive::{AtomicU64, Ordering};

/// Words that name nodes in a chunk.
pub(super) const WORDS: usize = 62;

pub(super) const EMPTY: u64 = 0;
pub(super) const NODE: u64 = 1;
pub(super) const TOMB: u64 = 2;
pub(super) const MOVED: u64 = 3;
const KIND: u64 = 3;

/// Bits of a word that are the node's offset.
const OFFSET_SHIFT: u32 = 28;
/// Bits of a word that say what it is and what the hash is.
const LOW: u64 = (1 << OFFSET_SHIFT) - 1;

/// What a table begins with.
#[repr(C, align(64))]
pub(super) struct Header {
    own: Retirable,
    /// The table that this one's nodes move to; 0 for none.
    pub(super) successor: AtomicU64,
    /// The tag of who retires the table; 0 while nobody does.
    pub(super) retirer: AtomicU64,
    /// How many chunks there are.
    chunks: AtomicU64,
    seed: [AtomicU64; 2],
    /// 1 if nodes hide others: see `edit`.
    stacked: AtomicU64,
    /// The next chunk that nobody has set about to move. A hint.
    pub(super) cursor: AtomicU64,
    /// All chunks before this one are done. A hint.
    pub(super) done: AtomicU64,
}

#[repr(C, align(64))]
pub(super) struct Chunk {
    /// Held (`participants::lock`) by who changes a word of the chunk.
    pub(super) lock: AtomicU64,
    /// 1 once all nodes are in the successor, where keys of the chunk are changed from then on.
    pub(super) done: AtomicU64,
    pub(super) words: [AtomicU64; WORDS],
}

const _: () = assert!(size_of::<Chunk>() == 512 && size_of::<Header>() == 128);

/// What all tables of a map have in common.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) seed: [u64; 2],
    /// Nodes hide others.
    pub(crate) stacked: bool,
}

/// A table, found to lie in the pool.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(super) header: &'static Header,
    chunks: usize,
}

impl Table {
    /// The table at an address that a word of the map gave; `None` for 0 and for garbage.
    #[inline]
    pub(super) fn at(arena: Arena, address: u64) -> Option<Self> {
        let address = address as usize;
        let first = arena.base() + DATA.offset;
        let room = (first + arena.slices() * SLICE).checked_sub(address)?;
        if address < first || !address.is_multiple_of(64) || room < size_of::<Header>() {
            return None;
        }
        // SAFETY: in committed data of the pool, aligned; it consists of atomics.
        let header = unsafe { &*std::ptr::with_exposed_provenance::<Header>(address) };
        let chunks = header.chunks.load(Ordering::Relaxed) as usize;
        let fits = chunks.is_power_of_two() && chunks <= (room - size_of::<Header>()) / 512;
        fits.then_some(Table { header, chunks })
    }

    /// Makes a table of the block at `address`, which has the layout for it.
    pub(super) fn make(address: u64, chunks: usize, kind: Kind) {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        // SAFETY: a new block of that layout that nobody else sees yet; all zeros are a table.
        let header = unsafe {
            start.write_bytes(0, Self::layout(chunks).size());
            &*start.cast::<Header>()
        };
        header.chunks.store(chunks as u64, Ordering::Relaxed);
        header.seed[0].store(kind.seed[0], Ordering::Relaxed);
        header.seed[1].store(kind.seed[1], Ordering::Relaxed);
        let stacked = u64::from(kind.stacked);
        header.stacked.store(stacked, Ordering::Relaxed);
    }

    pub(super) fn layout(chunks: usize) -> Layout {
        let size = size_of::<Header>() + chunks * size_of::<Chunk>();
        Layout::from_size_align(size, 64).expect("less than a pool")
    }

    pub(super) fn address(self) -> u64 {
        std::ptr::from_ref(self.header).addr() as u64
    }

    #[inline]
    pub(crate) fn seed(self) -> [u64; 2] {
        let word = |i: usize| self.header.seed[i].load(Ordering::Relaxed);
        [word(0), word(1)]
    }

    pub(super) fn kind(self) -> Kind {
        Kind {
            seed: self.seed(),
            stacked: self.header.stacked.load(Ordering::Relaxed) != 0,
        }
    }

    #[inline]
    pub(super) fn chunks(self) -> usize {
        self.chunks
    }

    /// The chunk that a hash belongs to.
    #[inline]
    pub(super) fn index(self, hash: u64) -> usize {
        (((hash >> 32) * self.chunks as u64) >> 32) as usize
    }

    #[inline]
    pub(super) fn chunk(self, index: usize) -> &'static Chunk {
        debug_assert!(index < self.chunks);
        let first = std::ptr::from_ref(self.header).wrapping_add(1);
        // SAFETY: the chunks are behind the header, `chunks` of them (compared with the committed
        // data by `at`), of which `index` is one; atomics only.
        unsafe { &*first.cast::<Chunk>().wrapping_add(index) }
    }

    /// The table that this one's nodes move to.
    #[inline]
    pub(super) fn successor(self, arena: Arena) -> Option<Self> {
        match self.header.successor.load(Ordering::SeqCst) {
            0 => None,
            address => Table::at(arena, address),
        }
    }
}

impl Chunk {
    /// The places of the chunk in the order in which a key is searched.
    #[inline]
    pub(super) fn search(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let home = ((hash & 63) as usize * WORDS) >> 6;
        self.words[home..].iter().chain(&self.words[..home])
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst) != 0
    }

    /// True if the chunk names no node.
    pub(super) fn is_empty(&self) -> bool {
        let names = |word: &AtomicU64| is_node(word.load(Ordering::Relaxed));
        !self.words.iter().any(names)
    }

    /// How many nodes the chunk names.
    pub(super) fn count(&self) -> usize {
        let names = |word: &&AtomicU64| is_node(word.load(Ordering::Relaxed));
        self.words.iter().filter(names).count()
    }
}

#[inline]
pub(super) fn is_node(word: u64) -> bool {
    word & KIND == NODE
}

/// What a word says that names a node with that hash, but for the node.
#[inline]
pub(super) fn low_bits(hash: u64) -> u64 {
    // The lowest six are the place, the upper half the chunk.
    ((hash >> 6) << 2) & LOW & !KIND | NODE
}

#[inline]
pub(super) fn may_be(word: u64, low: u64) -> bool {
    word & LOW == low
}

#[inline]
pub(super) fn word_of(arena: Arena, node: u64, hash: u64) -> u64 {
    ((node - arena.base() as u64) >> 4) << OFFSET_SHIFT | low_bits(hash)
}

/// The node that a word names.
#[inline]
pub(super) fn node_of(arena: Arena, word: u64) -> u64 {
    const { assert!(GRANULE >> 4 == 1 << (64 - OFFSET_SHIFT)) };
    arena.base() as u64 + ((word >> OFFSET_SHIFT) << 4)
}

/// The hash of a node that is named.
pub(super) fn hash_of(arena: Arena, node: u64) -> u64 {
    limbo::header(arena, node).map_or(0, |own| own.stamp.load(Ordering::Relaxed))
}

/// The word of a node of a stacked map that says which node it hides.
pub(super) fn below(arena: Arena, node: u64) -> Option<&'static AtomicU64> {
    let inside = limbo::header(arena, node + 16).is_some();
    // SAFETY: in committed data of the pool, aligned; nodes consist of words there.
    inside.then(|| unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(node as usize + 16) })
}

/// The node that a node of a stacked map hides; 0 for none.
pub(crate) fn hidden_by(arena: Arena, node: u64) -> u64 {
    below(arena, node).map_or(0, |word| word.load(Ordering::Relaxed))
}
