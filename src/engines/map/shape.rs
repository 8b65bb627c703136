//! The size of a table, as binary logarithms: everything that follows from them can be computed
//! with shifts.
//!
//! A table that replaces one of half its size consists of *parts*: the chunks of the table before, and as many chunks
//! of its own. The table before may itself have consisted of parts. So the first part has the chunks of a table that
//! was made in one piece, and each later part has as many chunks as all parts before it.

use std::alloc::Layout;

use crate::primitive::AtomicU64;
use crate::protocol::lines::{Line, MOST_LINES, SLOTS};

use super::table::{Header, State};

/// Binary logarithm of the number of lines in a chunk, for a map that is not small.
pub(super) const MOST_LINES_LOG: u32 = MOST_LINES.trailing_zeros();
/// Binary logarithm of the number of lines in a map's first chunk.
const FIRST_LINES_LOG: u32 = 2;
/// Binary logarithm of a number of chunks for which no pool has room.
const MOST_CHUNKS_LOG: u32 = 29;
/// More parts than a table has: a power of two.
const PARTS: usize = 32;

const _: () = assert!(MOST_CHUNKS_LOG + 1 < PARTS as u32);

/// The number of a table's chunks, of those in its first part, and of the lines in a chunk.
///
/// The word in a table's header has the number of chunks less one; the same for the first part; and 0 if the chunks
/// have the greatest number of lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    chunks_log: u32,
    first_log: u32,
    lines_log: u32,
}

/// Where the fields are in the word. The first one has the lowest bits.
const FIRST_SHIFT: u32 = 32;
const LINES_SHIFT: u32 = 62;

/// The chunk to which a hash belongs, in a table of several chunks whose header has that word, and the chunk's part.
/// For callers that cannot spare an instruction. Any word gives some result.
#[inline]
pub(super) fn index_and_part(word: u64, hash: u64) -> (usize, usize) {
    let index = hash >> 32 & word & u64::from(u32::MAX);
    let part = (2 * (index | word >> FIRST_SHIFT) + 1).ilog2();
    (index as usize, part as usize % PARTS)
}

/// True if a header's word is of a table of several chunks.
#[inline]
pub(super) fn has_many(word: u64) -> bool {
    word as u32 != 0
}

impl Shape {
    /// A map's first table.
    pub(super) const FIRST: Shape = Shape {
        chunks_log: 0,
        first_log: 0,
        lines_log: FIRST_LINES_LOG,
    };

    /// The shape that a table's header gives; `None` if no table has such a shape.
    #[inline]
    pub(super) fn of(word: u64) -> Option<Shape> {
        let shape = Shape {
            chunks_log: u32::BITS - (word as u32).leading_zeros(),
            first_log: u64::BITS - (word << 2 >> (FIRST_SHIFT + 2)).leading_zeros(),
            lines_log: MOST_LINES_LOG - (word >> LINES_SHIFT) as u32,
        };
        // If a table has several chunks, they have the full length.
        let is_one = shape.chunks_log <= MOST_CHUNKS_LOG
            && shape.first_log <= shape.chunks_log
            && (shape.lines_log == MOST_LINES_LOG || shape.chunks_log == 0)
            && word == shape.word();
        is_one.then_some(shape)
    }

    #[inline]
    pub(super) fn word(self) -> u64 {
        let less_one = |log: u32| (1_u64 << log) - 1;
        let lines = u64::from(MOST_LINES_LOG - self.lines_log);
        less_one(self.chunks_log) | less_one(self.first_log) << FIRST_SHIFT | lines << LINES_SHIFT
    }

    /// The shape of twice the size: a single chunk gets longer until it has the greatest number of lines; after that,
    /// there is one more part.
    pub(super) fn larger(self) -> Shape {
        if self.lines_log < MOST_LINES_LOG {
            let lines_log = self.lines_log + 1;
            Shape { lines_log, ..self }
        } else {
            let chunks_log = self.chunks_log + 1;
            Shape { chunks_log, ..self }
        }
    }

    /// The shape of half the size, in one piece, unless it is the smallest.
    pub(super) fn smaller(self) -> Option<Shape> {
        if self.chunks_log > 0 {
            let chunks_log = self.chunks_log - 1;
            Some(Shape {
                chunks_log,
                first_log: chunks_log,
                ..self
            })
        } else {
            let lines_log = self.lines_log - 1;
            (lines_log >= FIRST_LINES_LOG).then_some(Shape { lines_log, ..self })
        }
    }

    #[inline]
    pub(super) fn chunks(self) -> usize {
        1 << self.chunks_log
    }

    #[inline]
    pub(super) fn lines(self) -> usize {
        1 << self.lines_log
    }

    /// The number of slots in a chunk.
    pub(super) fn capacity(self) -> usize {
        self.lines() * SLOTS
    }

    /// The size of a chunk in bytes; its address is a multiple of this.
    #[inline]
    pub(super) fn chunk_bytes(self) -> usize {
        size_of::<Line>() << self.lines_log
    }

    /// The number of its first part.
    #[inline]
    pub(super) fn first_part(self) -> usize {
        self.first_log as usize
    }

    /// The number of its last part, which is its own. The others belong to the tables before.
    #[inline]
    pub(super) fn own_part(self) -> usize {
        self.chunks_log as usize
    }

    /// The part that a chunk is in.
    #[inline]
    pub(super) fn part(self, index: usize) -> usize {
        let word = Shape {
            lines_log: MOST_LINES_LOG,
            ..self
        }
        .word();
        index_and_part(word, (index as u64) << 32).1
    }

    /// The table whose own part is that one.
    pub(super) fn of_part(self, part: usize) -> Shape {
        let chunks_log = part as u32;
        Shape { chunks_log, ..self }
    }

    /// The first chunk of its own part.
    #[inline]
    pub(super) fn own_first(self) -> usize {
        if self.own_part() == self.first_part() {
            0
        } else {
            self.chunks() / 2
        }
    }

    /// The number of bytes before the chunks.
    #[inline]
    pub(super) fn states_end(self) -> usize {
        states_start(self.chunks_log != 0) + (size_of::<State>() << self.chunks_log)
    }

    /// Where its own chunks begin, in bytes from the header.
    pub(super) fn front(self) -> usize {
        self.states_end().next_multiple_of(self.chunk_bytes())
    }

    /// The size of its own chunks, in bytes.
    #[inline]
    pub(super) fn body(self) -> usize {
        (self.chunks() - self.own_first()) * self.chunk_bytes()
    }

    /// The chunk to which a hash belongs, given by the lowest bits of the hash's upper half. So a chunk of a table of
    /// half the size becomes this table's chunk of the same number, and the one that comes that many chunks later.
    #[inline]
    pub(super) fn index(self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.chunks() - 1)
    }

    /// The layout of the table's block.
    pub(super) fn layout(self) -> Layout {
        let size = self.front() + self.body();
        Layout::from_size_align(size, self.chunk_bytes()).expect("less than a pool")
    }
}

/// Where the states of the chunks begin, in bytes from the header: after the words that say where the parts are, if
/// there are several chunks.
#[inline]
pub(super) const fn states_start(has_many: bool) -> usize {
    let parts = if has_many {
        PARTS
    } else {
        size_of::<State>() / size_of::<AtomicU64>()
    };
    size_of::<Header>() + parts * size_of::<AtomicU64>()
}
