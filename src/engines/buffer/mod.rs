//! The engine of `Buffer`: a chain of chunks of bytes, at positions that never change.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the words, appending, finding a position, closing |
//! | `chunk.rs` | chunks: their layout, and what needs only one chunk |
//! | `front.rs` | deleting, and freeing chunks that nobody looks at any more |
//! | `recover.rs` | recovery, destruction and the check |
//!
//! # Rationale
//!
//! A chunk is a block with a header. It covers the positions from its `start` on; its `state` says
//! how many of them, so one store makes a whole append visible. A small append is copied behind the
//! bytes that count, and then the state is raised. A large append, or one for which there is no
//! room, is copied into a private chunk, and one exchange of the last chunk's `next` links that
//! chunk. This also gives the append its position: the last chunk is sealed first, so its end is
//! final.
//!
//! Nobody waits for anybody. A writer that finds a chunk BUSY for longer than a copy takes seals
//! it, and goes on in a new one. The writer that was stopped or killed has written where nothing
//! counts; if it is alive, it finds that out and copies its bytes to another place. The price is
//! the room that was left in the chunk.
//!
//! Chunks before `start` are unlinked from the hints, stamped, and freed when all pins are past the
//! stamp (`participants::epoch`), by whoever has the lock of the front; nobody waits for that lock.
//! Every other access is under a pin.
//!
//! A position is found from the last chunk backwards: each chunk has, for each power of 8, the
//! address of the latest chunk before it whose index is a multiple of that power.
//!
//! ```text
//!  oldest        first                      last
//!    v             v                         v
//!  [freed when] [0..900] -> [900..3000] -> [3000..3100   ] -> 0, or CLOSED
//!  [ past     ]   sealed      sealed        may be filled
//! ```
//!
//! | chunk's state | next | meaning | next state, and who stores it |
//! |--------------|---|----------------------------------|------------------------------------|
//! | len          | 0 | the last chunk                   | BUSY by a writer; SEALED by anybody |
//! | len, BUSY    | 0 | somebody writes behind len       | a larger len by that writer; SEALED by anybody |
//! | len, SEALED  | 0 | no more bytes                    | |
//! | len, SEALED  | a chunk | the next chunk has the bytes from here on | |
//! | len, SEALED  | CLOSED  | the buffer ends here for good | |
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | copying behind the bytes that count | BUSY | the next writer seals the chunk |
//! | after the state is raised | the append | |
//! | with a private chunk | intent APPEND, not linked | the chunk is freed |
//! | after the exchange that links it | intent APPEND, linked; hints that lag behind | whoever comes moves the hints |
//! | having only sealed | a sealed last chunk | the next append links a new one |
//! | closing, behind a large chunk | an empty last chunk, not closed yet | it is used as any other |
//! | moving `start` | old chunks before it | the next truncation, or append without room, frees them |
//! | with the lock of the front, at the hints or the stamp | hints, stamp or mark left behind | the next holder goes on |
//! | freeing | intent FREE | `oldest` leads past the chunk, and the chunk is freed |
//!
//! Invariants
//! 1. Bytes that count are never written again; nor are `start`, `room`, `index` and the skips of a
//!    linked chunk.
//! 2. A chunk is linked by the exchange of the last chunk's `next` from 0, after that chunk was
//!    sealed.
//! 3. A chunk is stamped only when neither `first` nor `last` names it or a chunk before it, and its
//!    bytes are before `start`. So no chunk that a pinned thread reaches from the hints, and no chunk
//!    with bytes from `start` on, is freed before the pin ends.
//! 4. `stamp` is taken before `stamped` is raised, and `stamped` is raised before a chunk below it is
//!    freed.
//! 5. The hints never move backwards.

mod chunk;
mod front;
mod recover;
#[cfg(test)]
mod tests;

use std::alloc::Layout;

use super::bell::Bell;
use super::limbo;
use crate::allocator::{AllocError, block};
use crate::layout::Engine;
use crate::layout::arena::Arena;
use crate::participants::epoch;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};
use chunk::{BUSY, CLOSED, HEADER, LEN, Next, Patience, SEALED, Skip, copy};

pub(crate) use chunk::Found;
pub(super) use recover::{check, next_block, resolve};

/// A buffer's words. All zeros are an empty buffer without a bound. The words that change with each
/// deletion have a cache line of their own, as appends look at the other words.
#[repr(C, align(64))]
pub(crate) struct Words {
    /// The first chunk that is not freed; 0 or CLOSED if there never was a chunk.
    oldest: AtomicU64,
    /// A hint: a chunk such that no chunk before it has bytes from `start` on.
    first: AtomicU64,
    /// A hint: a chunk that was the last one at some time.
    last: AtomicU64,
    /// The lock of the front.
    lock: AtomicU64,
    /// The chunks whose index is below `stamped` were unlinked before this stamp was taken.
    stamp: AtomicU64,
    stamped: AtomicU64,
    /// The greatest number of bytes from `start` to the end, or [`NO_CAPACITY`].
    capacity: AtomicU64,
    /// Rung when bytes were appended, or the buffer was closed.
    pub(crate) arrivals: Bell,
    /// Bytes at positions before this one are gone.
    start: AtomicU64,
    /// Rung when room was made, or the buffer was closed.
    pub(crate) departures: Bell,
}

/// The capacity of a buffer that has no bound.
pub(crate) const NO_CAPACITY: u64 = u64::MAX;

/// The smallest and the largest block for chunks that several appends share.
const SHARED_MIN: usize = 512;
const SHARED_MAX: usize = 32 << 10;
/// Longer appends get a chunk of their own at once, so that several of them can copy at the same
/// time.
const IN_PLACE_MAX: usize = 8 << 10;

/// Intents of this engine.
const APPEND: u64 = (Engine::Buffer as u64) << super::OP_SHIFT | 1;
const FREE: u64 = (Engine::Buffer as u64) << super::OP_SHIFT | 2;

/// Why nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppendRefusal {
    Full,
    Closed,
    Alloc(AllocError),
}

impl Words {
    pub(crate) const fn new(capacity: u64) -> Self {
        Words {
            oldest: AtomicU64::new(0),
            first: AtomicU64::new(0),
            last: AtomicU64::new(0),
            lock: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            stamped: AtomicU64::new(0),
            capacity: AtomicU64::new(capacity),
            arrivals: Bell::new(),
            start: AtomicU64::new(0),
            departures: Bell::new(),
        }
    }

    pub(crate) fn start(&self) -> u64 {
        self.start.load(Ordering::SeqCst)
    }

    /// The greatest number of bytes that there can be; `None` if there is no bound.
    pub(crate) fn capacity(&self) -> Option<u64> {
        Some(self.capacity.load(Ordering::Relaxed)).filter(|&capacity| capacity != NO_CAPACITY)
    }

    /// The last chunk; moves the hint to it. The caller is pinned.
    #[inline]
    fn last(&self, arena: Arena) -> Option<Found> {
        let hint = self.last.load(Ordering::SeqCst);
        let hinted = if hint == 0 {
            self.oldest.load(Ordering::SeqCst)
        } else {
            hint
        };
        let from = Found::at(arena, hinted)?;
        let mut last = from;
        while let Next::Chunk(next) = last.next() {
            last = next;
        }
        if last.address as u64 != hint {
            // This fails if somebody else has moved the hint. By invariant 5 it is never moved
            // back: whoever has moved it since has moved it further, and no address is reused while
            // we are pinned.
            let _ = self.last.compare_exchange(
                hint,
                last.address as u64,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
        }
        Some(last)
    }

    /// True if nothing can follow the last chunk, or if nothing can become the first one: the buffer is
    /// closed, or the word is garbage and names something that is not a chunk.
    fn is_over(&self, arena: Arena, last: Option<Found>) -> bool {
        match last {
            Some(last) => matches!(last.next(), Next::Closed),
            None => [&self.oldest, &self.last].into_iter().any(|word| {
                let named = word.load(Ordering::SeqCst);
                named != 0 && Found::at(arena, named).is_none()
            }),
        }
    }

    /// The position after the last byte, and whether that is final. The caller is pinned.
    pub(crate) fn end(&self, arena: Arena) -> (u64, bool) {
        let last = self.last(arena);
        // This is asked before the end is read: if the buffer is closed, the end is final.
        let closed = self.is_over(arena, last);
        (last.map_or(0, Found::end), closed)
    }

    /// The chunk with the byte at a position, which is before the end and not before `start`. The
    /// caller has been pinned since before it compared the position with these.
    pub(crate) fn find(&self, arena: Arena, position: u64) -> Option<Found> {
        if let Some(first) = Found::at(arena, self.first.load(Ordering::SeqCst))
            && (first.start()..first.end()).contains(&position)
        {
            return Some(first);
        }
        let mut at = self.last(arena)?;
        while at.start() > position {
            let skips = &at.chunk.skips;
            let after = |skip: &&Skip| {
                skip.chunk.load(Ordering::Relaxed) != 0
                    && skip.start.load(Ordering::Relaxed) > position
            };
            let skip = skips.iter().rev().find(after).unwrap_or(&skips[0]);
            let next = Found::at(arena, skip.chunk.load(Ordering::Relaxed))?;
            if next.index() >= at.index() {
                return None;
            }
            at = next;
        }
        Some(at)
    }

    /// Refuses `len` bytes at a position beyond the capacity.
    fn admit(&self, position: u64, len: u64) -> Result<(), AppendRefusal> {
        // No position can be so large, so there is no room that anybody could wait for.
        let end = position.checked_add(len).ok_or(AppendRefusal::Closed)?;
        let overlooked = u64::from(cfg!(shmkit_planted = "buffer"));
        match self.capacity() {
            // `start` only rises, so what is admitted now also fits later.
            Some(capacity)
                if end.saturating_sub(self.start()) > capacity.saturating_add(overlooked) =>
            {
                Err(AppendRefusal::Full)
            }
            _ => Ok(()),
        }
    }

    /// Appends bytes, and gives their position.
    pub(crate) fn append(
        &self,
        arena: Arena,
        slot: &Slot,
        bytes: &[u8],
    ) -> Result<u64, AppendRefusal> {
        let pinned = || {
            epoch::pin(arena, slot);
            let outcome = self.append_pinned(arena, slot, bytes);
            epoch::unpin(slot);
            outcome
        };
        let mut outcome = pinned();
        if let Err(AppendRefusal::Alloc(_)) = outcome
            && self.free_old(arena, slot)
        {
            outcome = pinned();
        }
        if let Err(AppendRefusal::Alloc(why)) = outcome
            && why.is_full()
        {
            limbo::make_room(arena);
            outcome = pinned();
        }
        let position = outcome?;
        self.arrivals.ring_all();
        Ok(position)
    }

    fn append_pinned(&self, arena: Arena, slot: &Slot, bytes: &[u8]) -> Result<u64, AppendRefusal> {
        // Each attempt that fails means that others were faster; but in a chain that is garbage
        // this might go on for ever.
        for _ in 0..1 << 16 {
            if bytes.len() <= IN_PLACE_MAX
                && let Some(position) = self.append_in_place(arena, bytes)?
            {
                return Ok(position);
            }
            if let Some(position) = self.append_chunk(arena, slot, bytes)? {
                return Ok(position);
            }
        }
        Err(AppendRefusal::Closed)
    }

    /// Appends within the last chunk, if there is room and nobody is in the way.
    #[inline]
    fn append_in_place(&self, arena: Arena, bytes: &[u8]) -> Result<Option<u64>, AppendRefusal> {
        let len = bytes.len() as u64;
        let mut patience = Patience::new();
        loop {
            let Some(last) = self.last(arena) else {
                return Ok(None);
            };
            let state = last.chunk.state.load(Ordering::SeqCst);
            let used = state & LEN;
            let room = last.room();
            if state & SEALED != 0 || used > room || len > room - used {
                return Ok(None);
            }
            if state & BUSY != 0 {
                if patience.goes_on() {
                    continue;
                }
                return Ok(None);
            }
            let position = last.start().saturating_add(used);
            self.admit(position, len)?;
            let chunk = last.chunk;
            let busy = chunk.state.compare_exchange(
                state,
                state | BUSY,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            if busy.is_err() {
                continue;
            }
            let to = last.data().saturating_add(used as usize);
            // SAFETY: behind the bytes that count of a chunk that we made BUSY; all of this runs under a pin.
            if !unsafe { copy(arena, bytes, to) } {
                return Ok(None);
            }
            // The bytes count from this exchange on, unless the chunk was sealed meanwhile.
            let counted = chunk.state.compare_exchange(
                state | BUSY,
                used + len,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            if counted.is_ok() {
                return Ok(Some(position));
            }
        }
    }

    /// Appends a new chunk with the bytes. `None` if another chunk was linked first, and may have
    /// room for them.
    #[cold]
    fn append_chunk(
        &self,
        arena: Arena,
        slot: &Slot,
        bytes: &[u8],
    ) -> Result<Option<u64>, AppendRefusal> {
        let last = self.last(arena);
        if self.is_over(arena, last) {
            return Err(AppendRefusal::Closed);
        }
        self.admit(last.map_or(0, Found::end), bytes.len() as u64)?;
        let size = self.block_size(arena, bytes.len());
        let layout = size.and_then(|size| Layout::from_size_align(size, 16).ok());
        let layout = layout.ok_or(AppendRefusal::Alloc(AllocError::TooLarge))?;
        let anchor = address_of(&self.oldest);
        slot.intent.open(APPEND, &[anchor, 0]);
        let made = block::allocate(arena, slot, layout, |address| {
            slot.intent.set_arg(1, address as u64);
        });
        let outcome = made.map_err(AppendRefusal::Alloc).and_then(|address| {
            let room = block::usable_size(arena, address).unwrap_or(layout.size()) - HEADER;
            let own = Found::at(arena, address as u64).expect("a block of the pool");
            own.chunk.next.store(0, Ordering::Relaxed);
            own.chunk.room.store(room as u64, Ordering::Relaxed);
            own.chunk.state.store(bytes.len() as u64, Ordering::Relaxed);
            // SAFETY: the room of a new chunk, which nobody else knows.
            unsafe { copy(arena, bytes, own.data()) };
            self.link(arena, slot, own, bytes.len() as u64, last)
        });
        let block = slot.intent.arg(1);
        if matches!(outcome, Ok(Some(_))) || block == 0 {
            slot.intent.close();
        } else {
            block::close_and_free(arena, slot, block);
        }
        if let (Ok(Some(_)), Some(_)) = (&outcome, self.last(arena))
            && self.first.load(Ordering::SeqCst) == 0
        {
            // The buffer's very first chunk also becomes `first`.
            let oldest = self.oldest.load(Ordering::SeqCst);
            let _ = self
                .first
                .compare_exchange(0, oldest, Ordering::SeqCst, Ordering::Relaxed);
        }
        outcome
    }

    /// The size of the block for a new chunk: twice that of the one before, up to a limit.
    fn block_size(&self, arena: Arena, len: usize) -> Option<usize> {
        let needed = len.checked_add(HEADER)?;
        if len > IN_PLACE_MAX || len == 0 {
            return Some(needed);
        }
        let before = self.last(arena).map_or(0, |last| last.room() as usize);
        let wanted = before
            .saturating_mul(2)
            .clamp(SHARED_MIN, SHARED_MAX)
            .next_power_of_two();
        Some(wanted.max(needed.next_power_of_two()))
    }

    /// Links a chunk that is filled and the caller's own, and gives its position. `last` was the last chunk a
    /// while ago. The intent APPEND is open.
    fn link(
        &self,
        arena: Arena,
        slot: &Slot,
        own: Found,
        len: u64,
        mut last: Option<Found>,
    ) -> Result<Option<u64>, AppendRefusal> {
        loop {
            let (field, start) = match last {
                None => (&self.oldest, 0),
                Some(last) => (&last.chunk.next, last.start().saturating_add(last.seal())),
            };
            self.admit(start, len)?;
            own.follow(last, start);
            slot.intent.set_arg(0, address_of(field));
            // By invariant 2. The bytes count from this exchange on.
            match field.compare_exchange(0, own.address as u64, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return Ok(Some(start)),
                Err(_) if self.is_over(arena, last) => return Err(AppendRefusal::Closed),
                Err(_) if len <= IN_PLACE_MAX as u64 => return Ok(None),
                Err(_) => last = self.last(arena),
            }
        }
    }

    /// Closes the buffer: no bytes can be appended from here on.
    pub(crate) fn close(&self, arena: Arena, slot: &Slot) {
        epoch::pin(arena, slot);
        loop {
            let last = self.last(arena);
            // Appends an empty chunk, so that the large one can be freed once its bytes are
            // deleted. If there is no memory, it stays.
            if last.is_some_and(Found::is_large_end) && self.append_chunk(arena, slot, &[]).is_ok()
            {
                continue;
            }
            let field = match last {
                None => &self.oldest,
                Some(last) => {
                    last.seal();
                    &last.chunk.next
                }
            };
            let closed = field.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst);
            if closed.is_ok() || self.is_over(arena, last) {
                break;
            }
        }
        epoch::unpin(slot);
        self.arrivals.ring_all();
        self.departures.ring_all();
    }
}

const _: () = assert!(std::mem::offset_of!(Words, start) == 64 && size_of::<Words>() == 128);

fn address_of(word: &AtomicU64) -> u64 {
    std::ptr::from_ref(word).addr() as u64
}
