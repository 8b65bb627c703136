//! The layout of a map's table: chunks of lines of slots.
//!
//! ```text
//! map       root: the address of a table; 0 at first
//! table     a header; where its parts are; two words a chunk (its lock, its state: see `protocol::moving`); its own
//!           chunks. In all a power of two of chunks (`shape`)
//! chunk     lines: a power of two of them, 32 at most
//! line      three slots: see `protocol::lines`
//! slot      the key's first word, the value's word
//! node      the two words of `limbo`; in a stacked map the address of the node that it hides, or
//!           0; key and value
//! ```
//!
//! A *flat* map has the key in a slot's first word and the value in the second. In any other map
//! the first word is the key's hash, and the second the address of a node.
//!
//! The upper half of a hash gives the chunk, and its lowest bits give the place in the chunk: see
//! `protocol::lines`.

use super::shape::{Shape, states_start};
use crate::engines::limbo::{self, Retirable};
use crate::layout::arena::{Arena, GRANULE};
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::lines::{self, Chunk, Line};
use crate::protocol::moving::{self, RAW};

/// The header of a table.
#[repr(C, align(64))]
pub(super) struct Header {
    own: Retirable,
    /// The table that this one's entries move to; 0 for none.
    pub(super) successor: AtomicU64,
    /// The number of tables that the map had before this one. With it, garbage cannot lead in a
    /// circle.
    number: AtomicU64,
    /// See `shape`.
    pub(super) shape: AtomicU64,
    seed: [AtomicU64; 2],
    /// STACKED and FLAT.
    kind: AtomicU64,
    /// The tag of the thread that retires the table; 0 while nobody does.
    pub(super) retirer: AtomicU64,
    /// The next chunk that nobody has begun to move. A hint.
    pub(super) cursor: AtomicU64,
    /// All chunks before this one are done. A hint.
    pub(super) done: AtomicU64,
}

impl Header {
    /// The header at an address, if the pool has data there.
    #[inline]
    pub(super) fn at(arena: Arena, address: usize) -> Option<&'static Self> {
        let is_possible =
            arena.room_at(address) >= size_of::<Header>() && address.is_multiple_of(64);
        // SAFETY: in committed data of the pool, aligned; it consists of atomics.
        is_possible.then(|| unsafe { &*std::ptr::with_exposed_provenance(address) })
    }

    #[inline]
    pub(super) fn seed(&self) -> [u64; 2] {
        let word = |i: usize| self.seed[i].load(Ordering::Relaxed);
        [word(0), word(1)]
    }

    /// The word that says where a part is. It gives the address at which the table's first chunk would be if all
    /// earlier chunks of the table came right before the part's chunks.
    ///
    /// # Safety
    ///
    /// There is room in the pool for `part + 1` words behind the header.
    #[inline]
    pub(super) unsafe fn part(&'static self, part: usize) -> &'static AtomicU64 {
        let words = std::ptr::from_ref(self).addr() + size_of::<Header>();
        let word =
            std::ptr::with_exposed_provenance::<AtomicU64>(words + part * size_of::<AtomicU64>());
        // SAFETY: by the caller's promise; aligned as the header is.
        unsafe { &*word }
    }
}

/// Nodes hide others.
const STACKED: u64 = 1;
/// There are no nodes.
const FLAT: u64 = 2;

/// What a chunk has besides its lines. These are close together, so that they stay cached.
#[repr(C)]
pub(super) struct State {
    /// The lock (`participants::lock`), held by a thread that changes something in the chunk.
    pub(super) lock: AtomicU64,
    /// RAW, READY or DONE.
    pub(super) word: AtomicU64,
}

const _: () = assert!(size_of::<Line>() == 64 && size_of::<Header>() == 128);

/// What a map's tables have in common, and which of them this one is.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) number: u64,
    pub(super) seed: [u64; 2],
    pub(super) stacked: bool,
    pub(super) flat: bool,
}

impl Kind {
    /// The kind of the table that follows.
    pub(super) fn next(self) -> Self {
        Kind {
            number: self.number.wrapping_add(1),
            ..self
        }
    }
}

/// A table that was found to lie in the pool.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub(super) header: &'static Header,
    /// Where its own part is, as the header said when that was compared with the room in the pool.
    own: usize,
    shape: Shape,
}

impl Table {
    /// The table at an address that a word of the map has given; `None` for 0 and for garbage.
    #[inline]
    pub(super) fn at(arena: Arena, address: u64) -> Option<Self> {
        let address = address as usize;
        let header = Header::at(arena, address)?;
        let shape = Shape::of(header.shape.load(Ordering::Relaxed))?;
        if arena.room_at(address) < shape.states_end() {
            return None;
        }
        // SAFETY: the words of the parts come before the states, for which there is room.
        let own = unsafe { header.part(shape.own_part()) }.load(Ordering::Relaxed) as usize;
        let table = Table { header, own, shape };
        let first = table.own_chunk();
        let fits = arena.room_at(first) >= shape.body() && first.is_multiple_of(size_of::<Line>());
        fits.then_some(table)
    }

    /// Makes a table of the block at `address`, which has the layout for it. The table comes after `before`, and shares
    /// its parts if it has several parts itself; if there is no table before, its chunks are ready.
    pub(super) fn make(address: u64, shape: Shape, kind: Kind, before: Option<Table>) {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        // SAFETY: a new block of that layout that nobody else sees yet; all zeros are a header and
        // states.
        let header = unsafe {
            start.write_bytes(0, shape.front());
            &*start.cast::<Header>()
        };
        let first = address as usize + shape.front();
        let table = Table {
            header,
            own: first.wrapping_sub(shape.own_first() * shape.chunk_bytes()),
            shape,
        };
        header.shape.store(shape.word(), Ordering::Relaxed);
        for part in shape.first_part()..=shape.own_part() {
            let from = before.filter(|_| part < shape.own_part());
            let place = from.map_or(table.own, |before| before.part(part));
            table.part_word(part).store(place as u64, Ordering::Relaxed);
        }
        header.number.store(kind.number, Ordering::Relaxed);
        header.seed[0].store(kind.seed[0], Ordering::Relaxed);
        header.seed[1].store(kind.seed[1], Ordering::Relaxed);
        let stacked = if kind.stacked { STACKED } else { 0 };
        let flat = if kind.flat { FLAT } else { 0 };
        header.kind.store(stacked | flat, Ordering::Relaxed);
        if before.is_none() {
            for index in 0..shape.chunks() {
                moving::ready(&table.state(index).word, || {
                    lines::clear(table.chunk(index))
                });
            }
        }
    }

    #[inline]
    pub(super) fn address(self) -> u64 {
        std::ptr::from_ref(self.header).addr() as u64
    }

    #[inline]
    pub(super) fn seed(self) -> [u64; 2] {
        self.header.seed()
    }

    pub(super) fn kind(self) -> Kind {
        let kind = self.header.kind.load(Ordering::Relaxed);
        Kind {
            number: self.header.number.load(Ordering::Relaxed),
            seed: self.seed(),
            stacked: kind & STACKED != 0,
            flat: kind & FLAT != 0,
        }
    }

    #[inline]
    pub(super) fn shape(self) -> Shape {
        self.shape
    }

    #[inline]
    pub(super) fn chunks(self) -> usize {
        self.shape.chunks()
    }

    /// The chunk to which a hash belongs.
    #[inline]
    pub(super) fn index(self, hash: u64) -> usize {
        self.shape.index(hash)
    }

    #[inline]
    fn part_word(self, part: usize) -> &'static AtomicU64 {
        debug_assert!(part <= self.shape.own_part());
        // SAFETY: the words of the parts come before the states, for which there is room (`at` has
        // checked).
        unsafe { self.header.part(part) }
    }

    /// Where a part is: see [`Header::part`].
    #[inline]
    pub(super) fn part(self, part: usize) -> usize {
        if part == self.shape.own_part() {
            self.own
        } else {
            self.part_word(part).load(Ordering::Relaxed) as usize
        }
    }

    /// The first chunk that is in the table's own block.
    #[inline]
    fn own_chunk(self) -> usize {
        let before = self.shape.own_first() * self.shape.chunk_bytes();
        self.own.wrapping_add(before)
    }

    /// True if the chunk is shared with the table before.
    #[inline]
    pub(super) fn is_inherited(self, index: usize) -> bool {
        index < self.shape.own_first()
    }

    /// The lines of a chunk. (If the word that says where the chunk is has become garbage, those of one of the table's
    /// own chunks.)
    #[inline]
    pub(super) fn chunk(self, index: usize) -> Chunk<'static> {
        debug_assert!(index < self.chunks());
        let bytes = self.shape.chunk_bytes();
        let mut chunk = self
            .part(self.shape.part(index))
            .wrapping_add(index * bytes);
        let arena = Arena::at(self.header_address() & !(GRANULE - 1));
        if self.is_inherited(index)
            && (arena.room_at(chunk) < bytes || !chunk.is_multiple_of(size_of::<Line>()))
        {
            chunk = self.own_chunk();
        }
        let lines = std::ptr::with_exposed_provenance(chunk);
        // SAFETY: all own chunks are in the committed data (`at` has checked), and any other is used only if it
        // fits there; aligned; atomics only.
        Chunk(unsafe { std::slice::from_raw_parts(lines, self.shape.lines()) })
    }

    #[inline]
    fn header_address(self) -> usize {
        std::ptr::from_ref(self.header).addr()
    }

    #[inline]
    pub(super) fn state(self, index: usize) -> &'static State {
        debug_assert!(index < self.chunks());
        let first = self.header_address() + states_start(self.chunks() > 1);
        let state = std::ptr::with_exposed_provenance::<State>(first);
        // SAFETY: there is one for each chunk, for which there is room (`at` has checked); atomics
        // only.
        unsafe { &*state.wrapping_add(index) }
    }

    /// False for a raw chunk.
    #[inline]
    pub(super) fn is_ready(self, index: usize) -> bool {
        self.state(index).word.load(Ordering::Acquire) != RAW
    }

    /// True if an entry with that hash in the chunk can be one that counts. A raw chunk that is shared with the table
    /// before also has entries that do not belong to it, and any other raw chunk has none.
    pub(super) fn may_hold(self, index: usize, hash: u64) -> bool {
        self.is_ready(index) || self.is_inherited(index) && self.index(hash) == index
    }

    /// True if the chunk's keys are in the successor.
    #[inline]
    pub(super) fn is_done(self, index: usize) -> bool {
        moving::is_done(&self.state(index).word)
    }

    /// The table that this one's entries move to: the one with the next number. (If the word is
    /// garbage and names anything else, there is none.)
    #[inline]
    pub(super) fn successor(self, arena: Arena) -> Option<Self> {
        match self.header.successor.load(Ordering::SeqCst) {
            0 => None,
            address => self.successor_at(arena, address),
        }
    }

    fn successor_at(self, arena: Arena, address: u64) -> Option<Self> {
        let number = |table: Self| table.header.number.load(Ordering::Relaxed);
        let next = number(self).checked_add(1)?;
        let is_next = |table: &Table| {
            let is_like_one = if table.is_inherited(0) {
                table.shape == self.shape.larger()
            } else {
                table.chunks() <= self.chunks()
            };
            number(*table) == next && is_like_one
        };
        Table::at(arena, address).filter(is_next)
    }

    /// The tables whose own chunks this table has, the last of which is the table itself, each with the word that
    /// says where they are. (A table is left out if that word has become garbage and it is not there.)
    pub(super) fn parts(
        self,
        arena: Arena,
    ) -> impl DoubleEndedIterator<Item = (&'static AtomicU64, Table)> {
        let parts = self.shape.first_part()..=self.shape.own_part();
        parts.filter_map(move |part| {
            let shape = self.shape.of_part(part);
            let chunk = self
                .part(part)
                .wrapping_add(shape.own_first() * shape.chunk_bytes());
            let table = Table::at(arena, chunk.wrapping_sub(shape.front()) as u64)?;
            let is_it = table.shape == shape && table.own == self.part(part);
            is_it.then_some((self.part_word(part), table))
        })
    }

    /// True if the table has all its parts. It has them until it is being destroyed.
    pub(super) fn is_whole(self) -> bool {
        let parts = self.shape.first_part()..=self.shape.own_part();
        parts.map(|part| self.part(part)).all(|place| place != 0)
    }
}

/// The nodes of a key of a stacked map, the one on top first. In case garbage leads in a circle,
/// the number is limited to as many as there can be.
pub(crate) struct Stack {
    arena: Arena,
    next: u64,
    left: usize,
}

impl Stack {
    /// `top` is the node on top (0 for none). The caller has been pinned since before it read it.
    pub(crate) fn new(arena: Arena, top: u64) -> Self {
        let left = limbo::most(arena);
        Stack {
            arena,
            next: top,
            left,
        }
    }
}

impl Iterator for Stack {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let this = self.next;
        self.next = hidden_by(self.arena, this);
        (this != 0).then_some(this)
    }
}

/// The word, in a node of a stacked map, that says which node it hides.
pub(super) fn below(arena: Arena, node: u64) -> Option<&'static AtomicU64> {
    let inside = limbo::header(arena, node.wrapping_add(16)).is_some();
    // SAFETY: in committed data of the pool, aligned; nodes consist of words there.
    inside.then(|| unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(node as usize + 16) })
}

/// The node that a node of a stacked map hides; 0 for none.
pub(super) fn hidden_by(arena: Arena, node: u64) -> u64 {
    below(arena, node).map_or(0, |word| word.load(Ordering::Relaxed))
}
