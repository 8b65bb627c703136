//! The engine of `Buffer`: a chain of chunks of bytes, at positions that never change.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the words, appending, finding a position, closing |
//! | `chunk.rs` | chunks: their layout, and what one alone can answer or do |
//! | `front.rs` | deleting, and freeing what nobody looks at any more |
//! | `recover.rs` | what recovery, destruction and the check know |
//!
//! # Rationale
//!
//! A chunk is a block with a header. It covers the positions from its `start` on; its `state` says
//! how many of them, so one store makes an append visible, whole. A small append is copied behind
//! the bytes that count, and then the state is raised. A large one, or one for which there is no
//! room, is copied into a private chunk, and one exchange of the last chunk's `next` links it. That
//! also gives it its position: the last chunk is sealed first, so its end is final.
//!
//! Nobody waits for anybody. Who finds a chunk BUSY for longer than a copy takes seals it, and goes
//! on in a new one; the writer that was stopped or killed has written where nothing counts, and if
//! it lives it finds out and copies its bytes to another place. The price is what was left of the
//! chunk.
//!
//! Chunks before `start` are unlinked from the hints, stamped and freed when all pins are past
//! (`participants::epoch`), by whoever has the lock of the front; nobody waits for that lock. Every
//! other access is under a pin.
//!
//! A position is found from the last chunk backward: each chunk has, for each power of 8, the place
//! of the latest chunk before it whose index is a multiple of that power.
//!
//! ```text
//!  oldest        first                      last
//!    v             v                         v
//!  [freed when] [0..900] -> [900..3000] -> [3000..3100   ] -> 0, or CLOSED
//!  [ past     ]   sealed      sealed        may be filled
//! ```
//!
//! | chunk's state | next | meaning | next state, by whom |
//! |--------------|---|----------------------------------|------------------------------------|
//! | len          | 0 | the last one                     | BUSY by a writer; SEALED by anybody |
//! | len, BUSY    | 0 | somebody writes behind len       | a larger len by that writer; SEALED by anybody |
//! | len, SEALED  | 0 | no more bytes                    | |
//! | len, SEALED  | a chunk | that one has the bytes from here on | |
//! | len, SEALED  | CLOSED  | the end for good           | |
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | copying behind the bytes that count | BUSY | the next writer seals the chunk |
//! | after the state is raised | the append | |
//! | with a private chunk | intent APPEND, not linked | the chunk is freed |
//! | after the exchange that links it | intent APPEND, linked; hints behind | whoever comes moves the hints |
//! | having sealed only | a sealed last chunk | the next append links a new one |
//! | closing, behind a large chunk | an empty last chunk, not closed yet | as any other |
//! | moving `start` | old chunks before it | the next truncation, or append without room, frees them |
//! | with the lock of the front, at the hints or the stamp | hints, stamp or mark behind | the next holder goes on |
//! | freeing | intent FREE | `oldest` leads past the chunk, and the chunk is freed |
//!
//! Invariants
//! 1. Bytes that count are never written again; `start`, `room`, `index` and the skips of a linked
//!    chunk neither.
//! 2. A chunk is linked by the exchange of the last one's `next` from 0, after that one is sealed.
//! 3. A chunk is stamped only when neither `first` nor `last` names it or one before it, and its bytes
//!    are before `start`. So what a pinned thread reaches from the hints, and every chunk with bytes
//!    from `start` on, is not freed before the pin ends.
//! 4. `stamp` is taken before `stamped` is raised, and `stamped` is raised before a chunk below it is
//!    freed.
//! 5. The hints never go back.

mod chunk;
mod front;
mod recover;

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

/// A buffer's words. All zero is an empty one without bounds. What changes with each deletion has a cache
/// line of its own: who appends looks at the others.
#[repr(C, align(64))]
pub(crate) struct Words {
    /// The first chunk that is not freed; 0 or CLOSED if there never was one.
    oldest: AtomicU64,
    /// A hint: a chunk, none before which has bytes from `start` on.
    first: AtomicU64,
    /// A hint: a chunk that was the last one.
    last: AtomicU64,
    /// The lock of the front.
    lock: AtomicU64,
    /// Chunks whose index is below `stamped` were unlinked before this stamp was taken.
    stamp: AtomicU64,
    stamped: AtomicU64,
    /// The most bytes from `start` to the end, or [`NO_CAPACITY`].
    capacity: AtomicU64,
    /// Bytes arrived, or the end did.
    pub(crate) arrivals: Bell,
    /// Bytes at positions before it are gone.
    start: AtomicU64,
    /// Room was made, or the end arrived.
    pub(crate) departures: Bell,
}

/// The capacity of a buffer that has no bound.
pub(crate) const NO_CAPACITY: u64 = u64::MAX;

/// The smallest and the largest block for chunks that several appends share.
const SHARED_MIN: usize = 512;
const SHARED_MAX: usize = 32 << 10;
/// Longer appends get a chunk of their own at once, so that they copy at the same time.
const IN_PLACE_MAX: usize = 8 << 10;

/// Intents of this engine.
const APPEND: u64 = (Engine::Buffer as u64) << super::OP_SHIFT | 1;
const FREE: u64 = (Engine::Buffer as u64) << super::OP_SHIFT | 2;

/// Why nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
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

    /// The most bytes that there can be; `None` for any number.
    pub(crate) fn capacity(&self) -> Option<u64> {
        Some(self.capacity.load(Ordering::Relaxed)).filter(|&capacity| capacity != NO_CAPACITY)
    }

    /// The last chunk, and the hint moved to it. The caller is pinned.
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
            // Fails if somebody else has moved it; by invariant 5, never back: whoever has moved
            // it since has moved it further, and no address comes back while we are pinned.
            let _ = self.last.compare_exchange(
                hint,
                last.address as u64,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
        }
        Some(last)
    }

    /// True if nothing can follow the last chunk, or nothing can be the first one: it is closed, or what
    /// is named there is no chunk, which static garbage may say.
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
        // Closed before the end is read, so that the end is final then.
        let closed = self.is_over(arena, last);
        (last.map_or(0, Found::end), closed)
    }

    /// The chunk with the byte at a position, which is not before `start` and before the end. The
    /// caller has been pinned since before it compared.
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
    fn admit(&self, position: u64, len: u64) -> Result<(), Refusal> {
        // There is no room that anybody could wait for.
        let end = position.checked_add(len).ok_or(Refusal::Closed)?;
        let overlooked = u64::from(cfg!(shmkit_planted = "buffer"));
        match self.capacity() {
            // `start` only rises, so what is admitted now fits later, too.
            Some(capacity)
                if end.saturating_sub(self.start()) > capacity.saturating_add(overlooked) =>
            {
                Err(Refusal::Full)
            }
            _ => Ok(()),
        }
    }

    /// Appends bytes; their position.
    pub(crate) fn append(&self, arena: Arena, slot: &Slot, bytes: &[u8]) -> Result<u64, Refusal> {
        let pinned = || {
            epoch::pin(arena, slot);
            let outcome = self.append_pinned(arena, slot, bytes);
            epoch::unpin(slot);
            outcome
        };
        let mut outcome = pinned();
        if let Err(Refusal::Alloc(_)) = outcome
            && self.free_old(arena, slot)
        {
            outcome = pinned();
        }
        if let Err(Refusal::Alloc(why)) = outcome
            && why.is_full()
        {
            limbo::make_room(arena);
            outcome = pinned();
        }
        let position = outcome?;
        self.arrivals.ring_all();
        Ok(position)
    }

    fn append_pinned(&self, arena: Arena, slot: &Slot, bytes: &[u8]) -> Result<u64, Refusal> {
        // Each time others were faster; but in a chain of garbage that has no end.
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
        Err(Refusal::Closed)
    }

    /// Appends within the last chunk, if there is room and nobody in the way.
    #[inline]
    fn append_in_place(&self, arena: Arena, bytes: &[u8]) -> Result<Option<u64>, Refusal> {
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
            // The bytes count from this exchange on; unless the chunk was sealed meanwhile.
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

    /// Appends by a new chunk; `None` if another came first, and there may be room in that one.
    #[cold]
    fn append_chunk(
        &self,
        arena: Arena,
        slot: &Slot,
        bytes: &[u8],
    ) -> Result<Option<u64>, Refusal> {
        let last = self.last(arena);
        if self.is_over(arena, last) {
            return Err(Refusal::Closed);
        }
        self.admit(last.map_or(0, Found::end), bytes.len() as u64)?;
        let size = self.block_size(arena, bytes.len());
        let layout = size.and_then(|size| Layout::from_size_align(size, 16).ok());
        let layout = layout.ok_or(Refusal::Alloc(AllocError::TooLarge))?;
        let anchor = address_of(&self.oldest);
        slot.intent.open(APPEND, &[anchor, 0]);
        let made = block::allocate(arena, slot, layout, |address| {
            slot.intent.set_arg(1, address as u64);
        });
        let outcome = made.map_err(Refusal::Alloc).and_then(|address| {
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
            // The first chunk of all is the first one.
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

    /// Links a chunk that is the caller's own, and filled; its position. `last` was the last one a while ago. The
    /// intent APPEND is open.
    fn link(
        &self,
        arena: Arena,
        slot: &Slot,
        own: Found,
        len: u64,
        mut last: Option<Found>,
    ) -> Result<Option<u64>, Refusal> {
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
                Err(_) if self.is_over(arena, last) => return Err(Refusal::Closed),
                Err(_) if len <= IN_PLACE_MAX as u64 => return Ok(None),
                Err(_) => last = self.last(arena),
            }
        }
    }

    /// No more bytes from here on.
    pub(crate) fn close(&self, arena: Arena, slot: &Slot) {
        epoch::pin(arena, slot);
        loop {
            let last = self.last(arena);
            // So that it can go once it is deleted. It stays if there is no memory.
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
