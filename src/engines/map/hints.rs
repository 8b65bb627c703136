//! Hints: what a map itself knows of its table, besides the root. An operation begins with them, so that it has
//! requested the memory that it will need before it pins or locks anything: pins and locks are full fences, and no
//! later load starts before a fence is over.
//!
//! Hints are never relied on: the seed, the shape and the place of the part in question are compared with the table's
//! header; before that, an address is only used for a prefetch.

use super::shape::{MOST_LINES_LOG, has_many, index_and_part, states_start};
use super::table::{Header, State, Table};
use crate::layout::arena::{GRANULE, SLICE};
use crate::participants::table::DataRange;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::protocol::lines::{Chunk, Line, MOST_LINES};

/// Binary logarithm of the size of a chunk in bytes, if there are several chunks.
const CHUNK_SHIFT: u32 = MOST_LINES_LOG + size_of::<Line>().trailing_zeros();

/// The number of parts for which there are hints, a power of two. If a table has more parts, the later ones take the
/// places of the first ones, which then hold only one key in 65,536.
const HINTED: usize = 16;

const _: () = assert!(GRANULE >> CHUNK_SHIFT < i32::MAX as usize);
const _: () = assert!(states_start(true) <= 1 << CHUNK_SHIFT && SLICE >= 1 << CHUNK_SHIFT);

#[repr(C)]
pub(crate) struct Hints {
    /// As in the table's header.
    shape: AtomicU64,
    seed: [AtomicU64; 2],
    /// Where its parts are, as in its header, but counted in chunks from the beginning of the pool, which makes the
    /// numbers small.
    parts: [AtomicU32; HINTED],
}

/// A key's hash and the first word of its slot, by a seed that is likely the table's.
#[derive(Clone, Copy)]
pub(crate) struct Guess {
    pub(crate) seed: [u64; 2],
    pub(crate) hash: u64,
    pub(crate) key: u64,
}

impl Guess {
    /// The guess itself if it was made with the table's seed; otherwise the same with the table's
    /// seed.
    #[inline]
    pub(super) fn or(self, table: Table, of: impl FnOnce([u64; 2]) -> Guess) -> Guess {
        if self.seed == table.seed() {
            self
        } else {
            of(table.seed())
        }
    }
}

impl Hints {
    pub(crate) const fn new() -> Self {
        Hints {
            shape: AtomicU64::new(0),
            seed: [const { AtomicU64::new(0) }; 2],
            parts: [const { AtomicU32::new(0) }; HINTED],
        }
    }

    /// The table's seed, most likely.
    #[inline]
    pub(crate) fn seed(&self) -> [u64; 2] {
        let word = |i: usize| self.seed[i].load(Ordering::Relaxed);
        [word(0), word(1)]
    }

    /// The beginning of the pool that the map is in.
    #[inline]
    fn pool(&self) -> usize {
        std::ptr::from_ref(self).addr() & !(GRANULE - 1)
    }

    /// Prefetches the line where the search for a key begins, and the next one, and says where that
    /// is.
    #[inline]
    pub(crate) fn fetch(&self, hash: u64) -> Near {
        let word = self.shape.load(Ordering::Relaxed);
        let (index, part) = index_and_part(word, hash);
        let chunks = self.parts[part % HINTED].load(Ordering::Relaxed) as i32;
        let base = self
            .pool()
            .wrapping_add_signed((chunks as isize) << CHUNK_SHIFT);
        let chunk = base.wrapping_add(index << CHUNK_SHIFT);
        let line = chunk + (hash as usize & (MOST_LINES - 1)) * size_of::<Line>();
        // One search in six goes on to the next line, and it cannot be predicted which.
        fetch(line);
        fetch(line.wrapping_add(size_of::<Line>()));
        Near {
            word,
            part,
            base,
            line,
        }
    }

    /// Sets the hints. A thread that changes something in a chunk of a table without a successor
    /// leaves the hints right.
    #[inline]
    pub(super) fn set(&self, table: Table, index: usize) {
        let part = table.shape().part(index);
        if self.shape.load(Ordering::Relaxed) != table.shape().word()
            || self.parts[part % HINTED].load(Ordering::Relaxed) != self.number(table, part)
        {
            self.set_slow(table);
        }
    }

    #[cold]
    fn set_slow(&self, table: Table) {
        for (hint, word) in self.seed.iter().zip(table.seed()) {
            hint.store(word, Ordering::Relaxed);
        }
        for part in table.shape().first_part()..=table.shape().own_part() {
            self.parts[part % HINTED].store(self.number(table, part), Ordering::Relaxed);
        }
        self.shape.store(table.shape().word(), Ordering::Relaxed);
    }

    /// Where a part of a table is, as the number for the hints.
    #[inline]
    fn number(&self, table: Table, part: usize) -> u32 {
        (table.part(part).wrapping_sub(self.pool()) >> CHUNK_SHIFT) as u32
    }
}

/// Prefetches the cache line of an address, which may be any number.
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

/// Where the search for a key begins, most likely.
#[derive(Clone, Copy)]
pub(crate) struct Near {
    /// Valid for a table whose header has this word, and has this part in the place that the hint
    /// gives.
    word: u64,
    part: usize,
    base: usize,
    line: usize,
}

impl Near {
    /// True if the hints give no place, as for a table of a single chunk.
    #[inline]
    pub(crate) fn is_none(self) -> bool {
        !has_many(self.word)
    }

    /// The header of the table that `root` names; `None` unless it has the shape that the hints say, and that seed, and
    /// has the part where the hints say. Nothing else of it is relied on.
    #[inline]
    pub(super) fn header(
        self,
        data: DataRange,
        root: u64,
        seed: [u64; 2],
    ) -> Option<&'static Header> {
        let address = root as usize;
        let fits =
            !self.is_none() && data.contains(address) && address.is_multiple_of(1 << CHUNK_SHIFT);
        if !fits {
            return None;
        }
        // SAFETY: in committed data of the pool, aligned, and so are the words of the parts behind it, as it is aligned
        // to more than the size of all of them; atomics only.
        let (header, part) = unsafe {
            let header: &Header = &*std::ptr::with_exposed_provenance(address);
            (header, header.part(self.part))
        };
        let is_it = header.shape.load(Ordering::Relaxed) == self.word
            && header.seed() == seed
            && part.load(Ordering::Relaxed) as usize == self.base;
        is_it.then_some(header)
    }

    /// The line where the search begins, if it is in the pool.
    #[inline]
    pub(super) fn line(self, data: DataRange) -> Option<&'static Line> {
        let is_in = data.contains(self.line);
        // SAFETY: in committed data of the pool, aligned to its size; it consists of atomics.
        is_in.then(|| unsafe { &*std::ptr::with_exposed_provenance(self.line) })
    }

    /// The line's chunk, if it is in the pool.
    #[inline]
    pub(super) fn chunk(self, data: DataRange) -> Option<Chunk<'static>> {
        let chunk = self.line & !((1 << CHUNK_SHIFT) - 1);
        let lines = std::ptr::with_exposed_provenance::<Line>(chunk);
        let is_in = data.contains(chunk);
        // SAFETY: in committed data of the pool, aligned to its size; atomics only.
        is_in.then(|| Chunk(unsafe { std::slice::from_raw_parts(lines, MOST_LINES) }))
    }

    /// The chunk's state in the table, if it is in the pool.
    #[inline]
    pub(super) fn state(self, data: DataRange, header: &'static Header) -> Option<&'static State> {
        let states = std::ptr::from_ref(header).addr() + states_start(true);
        let index = self.line.wrapping_sub(self.base) >> CHUNK_SHIFT;
        let state = states + index * size_of::<State>();
        let is_in = data.contains(state);
        // SAFETY: in committed data of the pool, aligned to its size, as the header is to more; atomics only.
        is_in.then(|| unsafe { &*std::ptr::with_exposed_provenance(state) })
    }
}
