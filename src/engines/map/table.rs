//! Where things lie in a map: a table of chunks of lines of slots.
//!
//! ```text
//! map       root: the address of a table; 0 at first
//! table     a header; two words a chunk (its lock, its state: see `protocol::moving`); the chunks, a power of two of them
//! chunk     lines: a power of two of them, 32 at most
//! line      three slots: see `protocol::lines`
//! slot      the key's first word, the value's word
//! node      the two words of `limbo`; in a stacked map the address of the node that it hides, or
//!           0; key and value
//! ```
//!
//! A *flat* map has the key in a slot's first word and the value in the second. In any other the
//! first word is the key's hash, and the second the address of a node.
//!
//! The upper half of a hash gives the chunk, its lowest bits where in there: see `protocol::lines`.

use std::alloc::Layout;

use crate::engines::limbo::{self, Retirable};
use crate::layout::arena::Arena;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::lines::{self, Chunk, Line, SLOTS};
use crate::protocol::moving;

/// Lines of a chunk of a map that is not small.
const MOST_LINES: usize = 1 << MOST_LINES_LOG;
const MOST_LINES_LOG: u32 = 5;
/// Binary logarithm of the lines of a map's first chunk.
const FIRST_LINES_LOG: u32 = 2;
/// Of more chunks than any pool has room for, and few enough to reckon with hashes of 32 bits.
const MOST_CHUNKS_LOG: u32 = 31;

/// What a table begins with.
#[repr(C, align(64))]
pub(super) struct Header {
    own: Retirable,
    /// The table that this one's entries move to; 0 for none.
    pub(super) successor: AtomicU64,
    /// How many tables the map had before this one: so garbage leads in no circle.
    number: AtomicU64,
    /// The address of the first chunk, plus the binary logarithm of the number of chunks.
    place: AtomicU64,
    /// Binary logarithm of the lines of a chunk.
    lines_log: AtomicU64,
    seed: [AtomicU64; 2],
    /// STACKED and FLAT.
    kind: AtomicU64,
    /// The tag of who retires the table; 0 while nobody does.
    pub(super) retirer: AtomicU64,
    /// The next chunk that nobody has set about to move. A hint.
    pub(super) cursor: AtomicU64,
    /// All chunks before this one are done. A hint.
    pub(super) done: AtomicU64,
}

impl Header {
    /// What is at an address, as far as the pool has data there.
    #[inline]
    fn at(arena: Arena, address: usize) -> Option<&'static Self> {
        let is_possible =
            arena.room_at(address) >= size_of::<Header>() && address.is_multiple_of(64);
        // SAFETY: in committed data of the pool, aligned; it consists of atomics.
        is_possible.then(|| unsafe { &*std::ptr::with_exposed_provenance(address) })
    }

    #[inline]
    fn seed(&self) -> [u64; 2] {
        let word = |i: usize| self.seed[i].load(Ordering::Relaxed);
        [word(0), word(1)]
    }
}

/// Nodes hide others.
const STACKED: u64 = 1;
/// There are no nodes.
const FLAT: u64 = 2;

/// What there is about a chunk besides its lines: close together, so that they stay cached.
#[repr(C)]
pub(super) struct State {
    /// Held (`participants::lock`) by who changes something in the chunk.
    pub(super) lock: AtomicU64,
    /// RAW, READY or DONE.
    pub(super) word: AtomicU64,
}

const _: () = assert!(size_of::<Line>() == 64 && size_of::<Header>() == 128);
const _: () = assert!(MOST_LINES < lines::TOO_MANY);

/// What a map's tables have in common, and which of them one is.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) number: u64,
    pub(super) seed: [u64; 2],
    pub(super) stacked: bool,
    pub(super) flat: bool,
}

impl Kind {
    /// Of the table that follows.
    pub(super) fn next(self) -> Self {
        Kind {
            number: self.number.wrapping_add(1),
            ..self
        }
    }
}

/// How large a table is, by binary logarithms: what follows from them takes shifts and no more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    chunks_log: u32,
    lines_log: u32,
}

impl Shape {
    /// A map's first table.
    pub(super) const FIRST: Shape = Shape {
        chunks_log: 0,
        lines_log: FIRST_LINES_LOG,
    };

    /// Twice as large: a single chunk gets longer until it has all lines that a chunk can have.
    pub(super) fn larger(self) -> Shape {
        if self.lines_log < MOST_LINES_LOG {
            let lines_log = self.lines_log + 1;
            Shape { lines_log, ..self }
        } else {
            let chunks_log = self.chunks_log + 1;
            Shape { chunks_log, ..self }
        }
    }

    /// Half as large, unless it is the smallest.
    pub(super) fn smaller(self) -> Option<Shape> {
        if self.chunks_log > 0 {
            let chunks_log = self.chunks_log - 1;
            Some(Shape { chunks_log, ..self })
        } else {
            let lines_log = self.lines_log - 1;
            (lines_log >= FIRST_LINES_LOG).then_some(Shape { lines_log, ..self })
        }
    }

    #[inline]
    fn chunks(self) -> usize {
        1 << self.chunks_log
    }

    #[inline]
    fn lines(self) -> usize {
        1 << self.lines_log
    }

    /// Slots a chunk.
    pub(super) fn capacity(self) -> usize {
        self.lines() * SLOTS
    }

    /// Bytes of a chunk, of which its address is a multiple.
    #[inline]
    fn chunk_bytes(self) -> usize {
        size_of::<Line>() << self.lines_log
    }

    /// Bytes of header and states.
    #[inline]
    fn states_end(self) -> usize {
        size_of::<Header>() + (size_of::<State>() << self.chunks_log)
    }

    /// Bytes before the first chunk.
    fn front(self) -> usize {
        self.states_end().next_multiple_of(self.chunk_bytes())
    }

    /// Bytes of all chunks.
    #[inline]
    fn body(self) -> usize {
        self.chunk_bytes() << self.chunks_log
    }

    fn size(self) -> usize {
        self.front() + self.body()
    }

    /// The chunk that a hash belongs to.
    #[inline]
    fn index(self, hash: u64) -> usize {
        (((hash >> 32) << self.chunks_log) >> 32) as usize
    }

    pub(super) fn layout(self) -> Layout {
        Layout::from_size_align(self.size(), self.chunk_bytes()).expect("less than a pool")
    }
}

/// What a map itself knows of its table, beside the root: hints. An operation begins with them, so
/// that it has asked for the memory that it will need before it pins or locks anything: those are
/// full fences, behind which no load starts before they are over. Nothing is believed: the seed
/// is compared with the table's, and an address is only fetched from.
#[repr(C)]
pub(crate) struct Hints {
    /// As in the table's header.
    place: AtomicU64,
    seed: [AtomicU64; 2],
}

impl Hints {
    pub(crate) const fn new() -> Self {
        Hints {
            place: AtomicU64::new(0),
            seed: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// The table's seed, most likely.
    #[inline]
    pub(crate) fn seed(&self) -> [u64; 2] {
        let word = |i: usize| self.seed[i].load(Ordering::Relaxed);
        [word(0), word(1)]
    }

    /// Asks for the line where the search for a key begins, and for the next; where that is.
    #[inline]
    pub(crate) fn fetch(&self, hash: u64) -> Near {
        let place = self.place.load(Ordering::Relaxed);
        let (first, chunks_log) = taken_apart(place);
        // Garbage may be more than there can be.
        if !(1..MOST_CHUNKS_LOG).contains(&chunks_log) {
            return Near { place: 0, line: 0 };
        }
        let shape = Shape {
            chunks_log,
            lines_log: MOST_LINES_LOG,
        };
        let number = shape.index(hash) << MOST_LINES_LOG | hash as usize & (MOST_LINES - 1);
        let line = first.wrapping_add(number * size_of::<Line>());
        // One search of six goes on to the next line, and where it does cannot be foretold.
        fetch(line);
        fetch(line.wrapping_add(size_of::<Line>()));
        Near { place, line }
    }

    /// Who changes something in a table that has no successor leaves the hints right.
    #[inline]
    pub(super) fn set(&self, table: Table) {
        let place = table.place();
        if self.place.load(Ordering::Relaxed) != place {
            self.set_slow(table, place);
        }
    }

    #[cold]
    fn set_slow(&self, table: Table, place: u64) {
        for (hint, word) in self.seed.iter().zip(table.seed()) {
            hint.store(word, Ordering::Relaxed);
        }
        self.place.store(place, Ordering::Relaxed);
    }
}

/// The first chunk's address and the logarithm in a word of both.
#[inline]
fn taken_apart(place: u64) -> (usize, u32) {
    ((place & !63) as usize, (place & 63) as u32)
}

/// Asks for the cache line of an address, whatever it is.
#[inline]
fn fetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = std::ptr::without_provenance::<i8>(address);
        // SAFETY: a hint to the processor: it reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A key's hash and the first word of its slot, by a seed that is likely the table's.
#[derive(Clone, Copy)]
pub(crate) struct Guess {
    pub(crate) seed: [u64; 2],
    pub(crate) hash: u64,
    pub(crate) key: u64,
}

/// Where the search for a key begins, most likely.
#[derive(Clone, Copy)]
pub(crate) struct Near {
    /// In a table whose header has this `place`; 0 for none, as of one with a single chunk.
    place: u64,
    line: usize,
}

impl Near {
    /// True for what is nowhere.
    #[inline]
    pub(crate) fn is_none(self) -> bool {
        self.place == 0
    }

    /// The header of the table that `root` names; `None` unless it is the table that was meant, with that seed. No more of
    /// it is believed.
    #[inline]
    pub(super) fn header(self, arena: Arena, root: u64, seed: [u64; 2]) -> Option<&'static Header> {
        let header = Header::at(arena, root as usize)?;
        let place = header.place.load(Ordering::Relaxed);
        (place == self.place && !self.is_none() && header.seed() == seed).then_some(header)
    }

    /// The line where the search begins, if it is in the pool.
    #[inline]
    pub(super) fn line(self, arena: Arena) -> Option<&'static Line> {
        let fits = arena.room_at(self.line) >= size_of::<Line>();
        // SAFETY: in committed data of the pool, aligned as `place` is and lines are; it consists of atomics.
        fits.then(|| unsafe { &*std::ptr::with_exposed_provenance(self.line) })
    }

    /// The line's chunk, its state and the line, if they are in the pool.
    #[inline]
    pub(super) fn chunk(
        self,
        arena: Arena,
        header: &'static Header,
        hash: u64,
    ) -> Option<(&'static State, Chunk<'static>, &'static Line)> {
        const BYTES: usize = MOST_LINES * size_of::<Line>();
        let (first, _) = taken_apart(self.place);
        let index = self.line.wrapping_sub(first) / BYTES;
        let chunk = first.wrapping_add(index * BYTES);
        let states = std::ptr::from_ref(header).wrapping_add(1).cast::<State>();
        let state = states.wrapping_add(index);
        let fits = header.lines_log.load(Ordering::Relaxed) == u64::from(MOST_LINES_LOG)
            && arena.room_at(chunk) >= BYTES
            && state.wrapping_add(1).addr() <= chunk;
        let lines = std::ptr::with_exposed_provenance::<Line>(chunk);
        // SAFETY: the chunk is in committed data, and so is what is between the header and it; aligned as the header and
        // `place` are; atomics only.
        let both = || unsafe { (&*state, std::slice::from_raw_parts(lines, MOST_LINES)) };
        let (state, lines) = fits.then(both)?;
        Some((
            state,
            Chunk(lines),
            &lines[hash as usize & (MOST_LINES - 1)],
        ))
    }
}

impl Guess {
    /// The same by the table's own seed.
    #[inline]
    pub(super) fn or(self, table: Table, of: impl FnOnce([u64; 2]) -> Guess) -> Guess {
        if self.seed == table.seed() {
            self
        } else {
            of(table.seed())
        }
    }
}

/// A table, found to lie in the pool.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub(super) header: &'static Header,
    /// What the header said when it was compared with the room that there is.
    first_chunk: usize,
    shape: Shape,
}

impl Table {
    /// The table at an address that a word of the map gave; `None` for 0 and for garbage.
    #[inline]
    pub(super) fn at(arena: Arena, address: u64) -> Option<Self> {
        let address = address as usize;
        let header = Header::at(arena, address)?;
        let (first_chunk, chunks_log) = taken_apart(header.place.load(Ordering::Relaxed));
        let lines_log = header.lines_log.load(Ordering::Relaxed) as u32;
        let shape = Shape {
            chunks_log,
            lines_log,
        };
        // A table that has several chunks has full ones. Header, states and chunks come in this order, and end in
        // the pool.
        let is_small = chunks_log == 0 && (FIRST_LINES_LOG..MOST_LINES_LOG).contains(&lines_log);
        let fits = chunks_log <= MOST_CHUNKS_LOG
            && (lines_log == MOST_LINES_LOG || is_small)
            && arena.room_at(first_chunk) >= shape.body()
            && address + shape.states_end() <= first_chunk;
        fits.then_some(Table {
            header,
            first_chunk,
            shape,
        })
    }

    /// Makes a table of the block at `address`, which has the layout for it. If `ready`, so are
    /// its chunks.
    pub(super) fn make(address: u64, shape: Shape, kind: Kind, ready: bool) {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        // SAFETY: a new block of that layout that nobody else sees yet; all zeros are a header and
        // states.
        let header = unsafe {
            start.write_bytes(0, shape.front());
            &*start.cast::<Header>()
        };
        let table = Table {
            header,
            first_chunk: address as usize + shape.front(),
            shape,
        };
        header.place.store(table.place(), Ordering::Relaxed);
        let lines_log = u64::from(shape.lines_log);
        header.lines_log.store(lines_log, Ordering::Relaxed);
        header.number.store(kind.number, Ordering::Relaxed);
        header.seed[0].store(kind.seed[0], Ordering::Relaxed);
        header.seed[1].store(kind.seed[1], Ordering::Relaxed);
        let stacked = if kind.stacked { STACKED } else { 0 };
        let flat = if kind.flat { FLAT } else { 0 };
        header.kind.store(stacked | flat, Ordering::Relaxed);
        if ready {
            (0..shape.chunks()).for_each(|index| {
                table.ready(index);
            });
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

    /// What the header says: first chunk, and how many.
    #[inline]
    fn place(self) -> u64 {
        self.first_chunk as u64 | u64::from(self.shape.chunks_log)
    }

    /// The chunk that a hash belongs to.
    #[inline]
    pub(super) fn index(self, hash: u64) -> usize {
        self.shape.index(hash)
    }

    /// The lines of a chunk.
    #[inline]
    pub(super) fn chunk(self, index: usize) -> Chunk<'static> {
        debug_assert!(index < self.chunks());
        let chunk = self.first_chunk + (index << self.shape.lines_log) * size_of::<Line>();
        let lines = std::ptr::with_exposed_provenance(chunk);
        // SAFETY: there are `chunks` of them in the committed data (`at` has compared them), of which
        // `index` is one; atomics only.
        Chunk(unsafe { std::slice::from_raw_parts(lines, self.shape.lines()) })
    }

    #[inline]
    pub(super) fn state(self, index: usize) -> &'static State {
        debug_assert!(index < self.chunks());
        let first = std::ptr::from_ref(self.header).wrapping_add(1);
        // SAFETY: the states are behind the header, one a chunk; atomics only.
        unsafe { &*first.cast::<State>().wrapping_add(index) }
    }

    /// Makes lines of a raw chunk's; true if it was one. The caller keeps all others from it.
    pub(super) fn ready(self, index: usize) -> bool {
        moving::ready(&self.state(index).word, self.chunk(index))
    }

    /// True if the chunk's keys are in the successor.
    #[inline]
    pub(super) fn is_done(self, index: usize) -> bool {
        moving::is_done(&self.state(index).word)
    }

    /// The table that this one's entries move to: the one with the next number. (What else static
    /// garbage may name is none.)
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
        Table::at(arena, address).filter(|&table| number(table) == next)
    }
}

/// The nodes of a key of a stacked map, the one on top first: as many as there can be at most,
/// should garbage lead in a circle.
pub(crate) struct Stack {
    arena: Arena,
    next: u64,
    left: usize,
}

impl Stack {
    /// The caller is pinned since before it read which one is on top (0 for none).
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

/// The word of a node of a stacked map that says which node it hides.
pub(super) fn below(arena: Arena, node: u64) -> Option<&'static AtomicU64> {
    let inside = limbo::header(arena, node.wrapping_add(16)).is_some();
    // SAFETY: in committed data of the pool, aligned; nodes consist of words there.
    inside.then(|| unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(node as usize + 16) })
}

/// The node that a node of a stacked map hides; 0 for none.
pub(super) fn hidden_by(arena: Arena, node: u64) -> u64 {
    below(arena, node).map_or(0, |word| word.load(Ordering::Relaxed))
}
