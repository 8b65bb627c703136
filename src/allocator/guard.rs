//! Guard mode: finds writes past a block's end, and writes to a block after it was freed.
//!
//! A guarded pool ([`GUARDED`](crate::layout::header::GUARDED), a bit of the header that never
//! changes) has more in a block than was asked for:
//!
//! ```text
//! 0 .. size           the user's
//! size .. end - 16    the gap, eight bytes at least, filled with 0xA5
//! end - 16            size
//! end - 8             mark: the block's address, one of the states below, and the size again
//! ```
//!
//! | mark  | the block is | the gap | the rest |
//! |-------|----------------------------------------|---------|----------|
//! | other | free                                   | any     | any      |
//! | TAKEN | allocated, or about to be; or freed by recovery or a container | filled | the user's |
//! | FREED | free                                   | 0xDF    | 0xDF     |
//! | FREED | allocated, and about to be freed       | any     | any      |
//! | STRUCK | allocated for ever: it was written to after it was freed | any | any |
//!
//! | step | stores, in this order |
//! |------|-----------------------|
//! | allocate | another mark, the gap, the size, TAKEN; then the block is taken |
//! | free | FREED, 0xDF over all but size and mark; then the block is freed |
//! | strike | STRUCK; then the block is taken |
//!
//! A kill between any two leaves a free block that claims nothing, or an allocated one whose freer
//! has died (FREED): both are used and freed as others are. Nothing has to be repaired. What a
//! container frees under a record is not overwritten: recovery may have to read it again.
//!
//! A struck block is set aside, so that the damage can be looked at, and the allocation goes on
//! with another. The check reports it, and each block whose gap is damaged, and each freed one that
//! was written to.
//!
//! None of this is on the common path. In a guarded pool there is never a word at hand
//! ([`Slot::cache`] keeps the current one elsewhere) nor a known span, so every allocation and
//! every free takes the slow path, and the flag is looked at there.

use std::alloc::Layout;

use super::check::CheckReport;
use super::size_class::{self, TABLE};
use super::span::Span;
use super::walk::{self, Piece};
use super::{AllocError, FreeError, run};
use crate::layout::arena::{Arena, SLICE};
use crate::layout::header::GUARDED;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

/// Bytes taken by size and mark.
const TRAILER: usize = 16;
/// Bytes in a block beyond what was asked for, at least.
const MARGIN: usize = TRAILER + 8;

const GAP: u8 = 0xa5;
const POISON: u8 = 0xdf;

/// Any value that is none of the others.
const NOTHING: u64 = 0;
const TAKEN: u64 = 0x7461_6b65_6e00_0000 << 8;
const FREED: u64 = 0x6672_6565_6400_0000 << 8;
const STRUCK: u64 = 0x7374_7275_6b00_0000 << 8;

/// True if the pool is guarded.
#[inline]
pub(crate) fn is_on(arena: Arena) -> bool {
    arena.header().options.load(Ordering::Relaxed) & GUARDED != 0
}

/// A block of a guarded pool, by its address and bytes.
#[derive(Clone, Copy)]
pub(crate) struct Guarded {
    address: usize,
    bytes: usize,
}

impl Guarded {
    /// The block of `bytes` bytes at an address, unless no such block can be there.
    pub(crate) fn at(arena: Arena, address: usize, bytes: usize) -> Option<Self> {
        let possible = bytes > MARGIN && bytes <= arena.room_at(address);
        possible.then_some(Guarded { address, bytes })
    }

    fn word(self, from_end: usize) -> &'static AtomicU64 {
        let address = self.address + self.bytes - from_end;
        // SAFETY: the last words of a block, whose size is a multiple of 16, in a pool that stays
        // mapped; they are accessed only as atomics.
        unsafe { &*std::ptr::with_exposed_provenance(address) }
    }

    /// The mark for a state; for an allocated block, it depends on the block's size too.
    fn mark_of(self, state: u64) -> u64 {
        let size = self.word(TRAILER).load(Ordering::Acquire);
        let with = if state == TAKEN {
            size.rotate_left(20)
        } else {
            0
        };
        state ^ self.address as u64 ^ with
    }

    fn mark(self, state: u64) {
        // What comes before is written before, and what comes after is written after: see the
        // table.
        compiler_fence(Ordering::SeqCst);
        self.word(8).store(self.mark_of(state), Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    fn is(self, state: u64) -> bool {
        self.word(8).load(Ordering::Acquire) == self.mark_of(state)
    }

    /// The number of bytes that were asked for, if it is one that can have been.
    fn size(self) -> Option<usize> {
        let size = self.word(TRAILER).load(Ordering::Acquire) as usize;
        (size <= self.bytes - MARGIN).then_some(size)
    }

    /// Fills what lies between `from` and the trailer, a word at a time.
    fn fill(self, from: usize, with: u8) {
        let start = from.next_multiple_of(8);
        let odd = std::ptr::with_exposed_provenance_mut::<u8>(self.address + from);
        let words = std::ptr::with_exposed_provenance::<AtomicU64>(self.address + start);
        // SAFETY: within the block, before its trailer, which starts at a multiple of 8 as the
        // block does; the caller has the block, or is about to, so nobody else accesses it.
        let words = unsafe {
            odd.write_bytes(with, start - from);
            std::slice::from_raw_parts(words, (self.bytes - TRAILER - start) / 8)
        };
        for word in words {
            word.store(u64::from_ne_bytes([with; 8]), Ordering::Relaxed);
        }
    }

    /// The offset of the first byte, from `from` to the trailer, that is not `expected`.
    fn differs(self, from: usize, expected: u8) -> Option<usize> {
        (from..self.bytes - TRAILER).find(|offset| {
            let byte = std::ptr::with_exposed_provenance::<u8>(self.address + offset);
            // SAFETY: within the block. Volatile, because a thread that should not may write there.
            unsafe { byte.read_volatile() != expected }
        })
    }

    /// Makes a free block ready to be allocated. False if it was written to after it was freed: it
    /// must be taken all the same, and forgotten.
    fn prepare(self, size: usize) -> bool {
        if self.is(STRUCK) || (self.is(FREED) && self.differs(0, POISON).is_some()) {
            self.mark(STRUCK);
            return false;
        }
        self.mark(NOTHING);
        self.fill(size, GAP);
        self.word(TRAILER).store(size as u64, Ordering::Relaxed);
        self.mark(TAKEN);
        true
    }

    /// True if nothing was written beyond the end of the allocated block.
    fn is_intact(self) -> bool {
        if self.is(FREED) {
            return true;
        }
        let intact = |size| self.differs(size, GAP).is_none();
        self.is(TAKEN) && self.size().is_some_and(intact)
    }

    /// What is wrong with the block.
    fn problem(self, is_free: bool) -> Option<String> {
        let Guarded { address, bytes } = self;
        if is_free {
            let offset = if self.is(FREED) {
                self.differs(0, POISON)?
            } else {
                return None;
            };
            return Some(format!(
                "the free block of {bytes} bytes at {address:#x} was written to at offset {offset}"
            ));
        }
        if self.is(STRUCK) {
            return Some(format!(
                "the block of {bytes} bytes at {address:#x} was written to after it was freed"
            ));
        }
        if self.is_intact() {
            return None;
        }
        let end = match self.size().filter(|_| self.is(TAKEN)) {
            Some(size) => {
                let first = self.differs(size, GAP).unwrap_or(size) - size;
                format!("{size} bytes, {first} bytes beyond its end")
            }
            None => format!("up to {} bytes beyond its end", bytes - MARGIN),
        };
        Some(format!("the block at {address:#x} was written to: {end}"))
    }
}

/// Allocates a block of a guarded pool.
#[cold]
pub(crate) fn allocate(
    arena: Arena,
    slot: &Slot,
    layout: Layout,
    record: impl Fn(usize),
) -> Result<usize, AllocError> {
    #[cfg(feature = "testing")]
    if crate::sys::refusal::BLOCKS.refuses() {
        return Err(AllocError::PoolFull);
    }
    let size = layout.size();
    let with_margin = size
        .checked_add(MARGIN)
        .and_then(|size| Layout::from_size_align(size, layout.align()).ok())
        .ok_or(AllocError::TooLarge)?;
    let Some(class) = size_class::class_of(with_margin) else {
        let bytes = with_margin.size().next_multiple_of(SLICE);
        return run::allocate(arena, slot, with_margin, |address, _| {
            // Whatever the slices held before.
            if let Some(block) = Guarded::at(arena, address, bytes) {
                block.mark(NOTHING);
                block.prepare(size);
            }
            record(address);
        });
    };
    let bytes = TABLE[class].size as usize;
    let cache = slot.cache(class);
    loop {
        let struck = std::cell::Cell::new(false);
        let taken = cache.take(|address| {
            let block = Guarded::at(arena, address, bytes);
            struck.set(block.is_some_and(|block| !block.prepare(size)));
            if !struck.get() {
                record(address);
            }
        });
        match taken {
            Some(address) if !struck.get() => return Ok(address),
            Some(_) => {}
            None => cache.replenish(arena, slot, class)?,
        }
    }
}

/// Makes the blocks of a new span claim nothing. Called before its head is tagged.
pub(crate) fn wipe(arena: Arena, span: &Span) {
    let (start, size) = (arena.slice_address(span.slice(arena)), span.block_size());
    for block in 0..span.blocks.load(Ordering::Relaxed) as usize {
        if let Some(block) = Guarded::at(arena, start + block * size, size) {
            block.mark(NOTHING);
        }
    }
}

/// Judges an allocated block that is about to be freed, and overwrites it, unless a container frees
/// it.
pub(crate) fn before_free(slot: &Slot, block: Guarded) -> Result<(), FreeError> {
    if block.is(STRUCK) {
        return Err(FreeError::NotAllocated);
    }
    if !block.is_intact() {
        return Err(FreeError::Overrun);
    }
    if slot.watched.freeing.load(Ordering::Relaxed) != block.address as u64 {
        block.mark(FREED);
        block.fill(0, POISON);
    }
    Ok(())
}

/// The number of bytes that were asked for in an allocated block.
pub(crate) fn usable_size(block: Guarded) -> Result<usize, FreeError> {
    if block.is(STRUCK) {
        return Err(FreeError::NotAllocated);
    }
    let known = block.is(TAKEN) || block.is(FREED);
    block.size().filter(|_| known).ok_or(FreeError::Overrun)
}

/// Checks every block of a guarded pool at rest.
pub(crate) fn check(arena: Arena, report: &mut CheckReport) {
    for (_, piece) in walk::pieces(arena) {
        match piece {
            Piece::Span { start, .. } => check_span(arena, start, report),
            Piece::Run { start, slices } => {
                let block = Guarded::at(arena, arena.slice_address(start), slices * SLICE);
                report_on(block, false, report);
            }
            Piece::Free { .. } | Piece::Other => {}
        }
    }
}

fn check_span(arena: Arena, start: usize, report: &mut CheckReport) {
    let span = arena.span(start);
    if !span.is_sane(arena, start) {
        return;
    }
    for (place, address) in walk::places_of_span(arena, start) {
        let block = Guarded::at(arena, address, span.block_size());
        report_on(block, span.is_free(place), report);
    }
}

fn report_on(block: Option<Guarded>, is_free: bool, report: &mut CheckReport) {
    if let Some(problem) = block.and_then(|block| block.problem(is_free)) {
        report.problem(format_args!("{problem}"));
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;
    use crate::Pool;

    fn pool() -> Pool {
        Pool::builder()
            .guard(true)
            .max_size(1 << 20)
            .create()
            .unwrap()
    }

    fn allocate(pool: &Pool, size: usize, align: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(size, align).unwrap();
        pool.allocate(layout).ok().map(NonNull::cast)
    }

    fn free(pool: &Pool, block: NonNull<u8>) {
        // SAFETY: a block that the test has allocated, and that nobody uses.
        unsafe { pool.deallocate(block) }.unwrap();
    }

    /// Blocks lie where others of their size were freed, and where others have used some of the
    /// bytes meanwhile: the second slice of each two has been left alone.
    #[test]
    fn what_a_block_of_before_has_left_is_not_judged() {
        // Two slices, of spans, and three.
        for size in [32_700, 40_000] {
            let pool = pool();
            for (size, align) in [(size, 1), (100, 2 * SLICE), (size, 1)] {
                let blocks: Vec<_> = std::iter::from_fn(|| allocate(&pool, size, align)).collect();
                assert!(blocks.len() > 10);
                blocks.into_iter().for_each(|block| free(&pool, block));
            }
            let report = pool.check_quiescent();
            assert!(report.is_ok(), "{size}: {report}");
        }
    }

    /// A thread has found that a block was written to, and died before it took the block.
    #[test]
    fn a_block_that_is_about_to_be_struck_is_struck() {
        let pool = pool();
        let block = allocate(&pool, 100, 1).unwrap();
        free(&pool, block);
        let guarded = Guarded::at(pool.0, block.addr().get(), 128).unwrap();
        guarded.mark(STRUCK);
        assert_ne!(allocate(&pool, 100, 1), Some(block));
        assert!(guarded.is(STRUCK));
        assert_eq!(pool.check_quiescent().problems.len(), 1);
    }
}
