//! The engine of `Buffer`: a chain of chunks of bytes, at positions that never change.
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

use std::alloc::Layout;

use super::Named;
use crate::allocator::check::CheckReport;
use crate::allocator::{AllocError, block};
use crate::layout::Engine;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::{epoch, lock};
use crate::primitive::{AtomicU64, Ordering, compiler_fence};
use crate::sys::futex;

/// A buffer's words. All zero is an empty one without bounds.
#[repr(C)]
pub(crate) struct Words {
    /// The first chunk that is not freed; 0 or CLOSED if there never was one.
    oldest: AtomicU64,
    /// A hint: a chunk, none before which has bytes from `start` on.
    first: AtomicU64,
    /// A hint: a chunk that was the last one.
    last: AtomicU64,
    /// Bytes at positions before it are gone.
    start: AtomicU64,
    /// The lock of the front.
    lock: AtomicU64,
    /// Chunks whose index is below `stamped` were unlinked before this stamp was taken.
    stamp: AtomicU64,
    stamped: AtomicU64,
    /// The most bytes from `start` to the end; 0 for no bound.
    capacity: AtomicU64,
    /// Bytes arrived, or the end did.
    pub(crate) arrivals: News,
    /// Room was made, or the end arrived.
    pub(crate) departures: News,
}

/// Levels of skips, each eight times as far as the one below.
const LEVELS: usize = 8;
const RADIX_SHIFT: u32 = 3;

/// What a chunk begins with; the bytes follow at [`HEADER`].
#[repr(C)]
struct Chunk {
    next: AtomicU64,
    state: AtomicU64,
    start: AtomicU64,
    /// How many bytes fit.
    room: AtomicU64,
    /// One more than that of the chunk before.
    index: AtomicU64,
    skips: [Skip; LEVELS],
}

/// An earlier chunk, and its start: so it is known without a look at it, as it may be freed.
#[repr(C)]
struct Skip {
    chunk: AtomicU64,
    start: AtomicU64,
}

const HEADER: usize = 192;
const _: () = assert!(size_of::<Chunk>() <= HEADER);

const SEALED: u64 = 1 << 63;
const BUSY: u64 = 1 << 62;
const LEN: u64 = BUSY - 1;

/// In the place of a next chunk: there will be none.
const CLOSED: u64 = 1;

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

/// What follows a chunk.
enum Next {
    None,
    Closed,
    Chunk(Found),
}

/// A chunk of this pool and its address.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    arena: Arena,
    address: usize,
    chunk: &'static Chunk,
}

impl Found {
    /// The chunk at an address, as far as the pool has data there. What it says is checked where it
    /// is used.
    #[inline]
    fn at(arena: Arena, address: u64) -> Option<Found> {
        let address = address as usize;
        let inside = address.is_multiple_of(16)
            && arena.slice_of(address).is_some()
            && arena.slice_of(address + HEADER - 1).is_some();
        inside.then(|| Found {
            arena,
            address,
            // SAFETY: committed data of the pool, aligned; a chunk consists of atomics. It is not
            // freed while the caller uses it, by invariant 3 or because it is the caller's own.
            chunk: unsafe { &*std::ptr::with_exposed_provenance::<Chunk>(address) },
        })
    }

    #[inline]
    fn next(self) -> Next {
        match self.chunk.next.load(Ordering::SeqCst) {
            0 => Next::None,
            CLOSED => Next::Closed,
            // An address that is none ends the chain.
            address => Found::at(self.arena, address)
                .filter(|next| next.index() > self.index())
                .map_or(Next::Closed, Next::Chunk),
        }
    }

    #[inline]
    fn index(self) -> u64 {
        self.chunk.index.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn start(self) -> u64 {
        self.chunk.start.load(Ordering::Relaxed)
    }

    #[inline]
    fn room(self) -> u64 {
        self.chunk.room.load(Ordering::Relaxed)
    }

    /// How many bytes count. Acquire pairs with the exchange that made them count.
    #[inline]
    fn len(self) -> u64 {
        (self.chunk.state.load(Ordering::SeqCst) & LEN).min(self.room())
    }

    #[inline]
    pub(crate) fn end(self) -> u64 {
        self.start().saturating_add(self.len())
    }

    #[inline]
    fn data(self) -> usize {
        self.address + HEADER
    }

    /// The bytes from position `from` to `to`, as far as this chunk has them; and the chunk after it.
    ///
    /// # Safety
    ///
    /// The caller has been pinned since before it found the chunk and stays so for `'a`.
    pub(crate) unsafe fn bytes<'a>(self, from: u64, to: u64) -> (&'a [u8], Option<Found>) {
        let next = match self.next() {
            Next::Chunk(next) => Some(next),
            _ => None,
        };
        let (start, end) = (self.start(), self.end().min(to));
        if from < start || from >= end {
            return (&[], next);
        }
        let address = self.data().saturating_add((from - start) as usize);
        let len = (end - from) as usize;
        // Static garbage may say anything.
        let last = address.saturating_add(len - 1);
        if self.arena.slice_of(last).is_none() {
            return (&[], next);
        }
        let pointer = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: committed data of the pool; bytes that count, which are not written again
        // (invariant 1) and, by the caller's promise and invariant 3, not freed.
        (unsafe { std::slice::from_raw_parts(pointer, len) }, next)
    }

    /// Seals the chunk, giving a writer the time that a copy takes; its final length.
    fn seal(self) -> u64 {
        let mut patience = Patience::new();
        loop {
            let state = self.chunk.state.load(Ordering::SeqCst);
            if state & SEALED != 0 {
                return state & LEN;
            }
            if state & BUSY != 0 && patience.goes_on() {
                continue;
            }
            let sealed = state & LEN | SEALED;
            let _ = self.chunk.state.compare_exchange(
                state,
                sealed,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
        }
    }
}

/// How long somebody else's copy is waited for: longer than a copy takes, unless its writer does not
/// run.
struct Patience(u32);

impl Patience {
    const SPINS: u32 = 500;
    const YIELDS: u32 = 20;

    fn new() -> Self {
        Patience(0)
    }

    /// True if it is worth looking again.
    fn goes_on(&mut self) -> bool {
        self.0 += 1;
        if self.0 < Self::SPINS {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
        self.0 < Self::SPINS + Self::YIELDS
    }
}

/// A word to sleep on until there is news.
///
/// ```text
/// bit 0   WAITERS  somebody sleeps, or may
/// bit 1.. how often sleepers were woken
/// ```
#[repr(transparent)]
pub(crate) struct News(AtomicU64);

impl News {
    const WAITERS: u64 = 1;

    /// Wakes all sleepers. What they wait for has happened by a sequentially consistent change.
    #[inline]
    fn tell(&self) {
        let found = self.0.load(Ordering::SeqCst);
        if found & Self::WAITERS != 0 {
            self.wake(found);
        }
    }

    #[cold]
    fn wake(&self, found: u64) {
        let new = found.wrapping_add(1);
        let _ = self
            .0
            .compare_exchange(found, new, Ordering::SeqCst, Ordering::Relaxed);
        futex::wake(Arena::low_half(&self.0), u32::MAX);
    }

    /// Sleeps until `ready` says so.
    pub(crate) fn wait(&self, arena: Arena, slot: &Slot, ready: impl Fn() -> bool) {
        loop {
            let found = self.0.load(Ordering::SeqCst);
            let waiting = found | Self::WAITERS;
            let announced =
                self.0
                    .compare_exchange(found, waiting, Ordering::SeqCst, Ordering::Relaxed);
            if ready() {
                return;
            }
            if announced.is_ok() {
                let half = Arena::low_half(&self.0);
                lock::sleep(arena, slot, half, waiting as u32, Tag::NOBODY, None);
            }
        }
    }
}

impl Words {
    pub(crate) const fn new(capacity: u64) -> Self {
        Words {
            oldest: AtomicU64::new(0),
            first: AtomicU64::new(0),
            last: AtomicU64::new(0),
            start: AtomicU64::new(0),
            lock: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            stamped: AtomicU64::new(0),
            capacity: AtomicU64::new(capacity),
            arrivals: News(AtomicU64::new(0)),
            departures: News(AtomicU64::new(0)),
        }
    }

    pub(crate) fn start(&self) -> u64 {
        self.start.load(Ordering::SeqCst)
    }

    /// The most bytes that there can be; `None` for any number.
    pub(crate) fn capacity(&self) -> Option<u64> {
        Some(self.capacity.load(Ordering::Relaxed)).filter(|&capacity| capacity != 0)
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

    /// The position after the last byte, and whether that is final. The caller is pinned.
    pub(crate) fn end(&self, arena: Arena) -> (u64, bool) {
        match self.last(arena) {
            // Closed before the end is read, so that the end is final then.
            Some(last) => {
                let closed = matches!(last.next(), Next::Closed);
                (last.end(), closed)
            }
            None => (0, self.oldest.load(Ordering::SeqCst) == CLOSED),
        }
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
        let end = position.checked_add(len).ok_or(Refusal::Full)?;
        match self.capacity() {
            // `start` only rises, so what is admitted now fits later, too.
            Some(capacity) if end.saturating_sub(self.start()) > capacity => Err(Refusal::Full),
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
        let position = match pinned() {
            Err(Refusal::Alloc(_)) if self.reclaim(arena, slot) => pinned(),
            outcome => outcome,
        }?;
        self.arrivals.tell();
        Ok(position)
    }

    fn append_pinned(&self, arena: Arena, slot: &Slot, bytes: &[u8]) -> Result<u64, Refusal> {
        loop {
            if bytes.len() <= IN_PLACE_MAX
                && let Some(position) = self.append_in_place(arena, bytes)?
            {
                return Ok(position);
            }
            if let Some(position) = self.append_chunk(arena, slot, bytes)? {
                return Ok(position);
            }
        }
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
            if !copy(arena, bytes, last.data().saturating_add(used as usize)) {
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
        let (end, closed) = self.end(arena);
        if closed {
            return Err(Refusal::Closed);
        }
        self.admit(end, bytes.len() as u64)?;
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
            copy(arena, bytes, own.data());
            self.link(arena, slot, own, bytes.len() as u64)
        });
        let block = slot.intent.arg(1);
        if !matches!(outcome, Ok(Some(_))) && block != 0 {
            slot.watched.freeing.store(block, Ordering::SeqCst);
            slot.intent.set_arg(1, 0);
            let _ = block::free_recorded(arena, slot, block as usize);
        }
        slot.intent.close();
        if let (Ok(Some(_)), Some(_)) = (&outcome, self.last(arena)) {
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

    /// Links a chunk that is the caller's own, and filled; its position. The intent APPEND is open.
    fn link(
        &self,
        arena: Arena,
        slot: &Slot,
        own: Found,
        len: u64,
    ) -> Result<Option<u64>, Refusal> {
        loop {
            let last = self.last(arena);
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
                Err(CLOSED) => return Err(Refusal::Closed),
                Err(_) if len <= IN_PLACE_MAX as u64 => return Ok(None),
                Err(_) => {}
            }
        }
    }

    /// No more bytes from here on.
    pub(crate) fn close(&self, arena: Arena, slot: &Slot) {
        epoch::pin(arena, slot);
        loop {
            let last = self.last(arena);
            let field = match last {
                None => &self.oldest,
                Some(last) => {
                    last.seal();
                    &last.chunk.next
                }
            };
            let closed = field.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst);
            if matches!(closed, Ok(_) | Err(CLOSED)) {
                break;
            }
        }
        epoch::unpin(slot);
        self.arrivals.tell();
        self.departures.tell();
    }

    /// Gives up the bytes before a position, which is not beyond the end.
    pub(crate) fn truncate(&self, arena: Arena, slot: &Slot, to: u64) {
        self.start.fetch_max(to, Ordering::SeqCst);
        self.departures.tell();
        self.give_up_large(arena, slot, to);
        self.reclaim(arena, slot);
    }

    /// If nothing is left, but in a large chunk, links an empty one, so that the large one can go. It
    /// stays if there is no memory.
    fn give_up_large(&self, arena: Arena, slot: &Slot, to: u64) {
        epoch::pin(arena, slot);
        let last = self.last(arena);
        if last.is_some_and(|last| last.room() as usize > SHARED_MAX && last.end() == to) {
            let _ = self.append_chunk(arena, slot, &[]);
        }
        epoch::unpin(slot);
    }

    /// True if there are chunks to free.
    #[inline]
    pub(crate) fn has_old(&self, arena: Arena, slot: &Slot) -> bool {
        epoch::pin(arena, slot);
        let start = self.start();
        let hint = self.first.load(Ordering::SeqCst);
        let oldest = self.oldest.load(Ordering::SeqCst);
        let first = Found::at(arena, if hint == 0 { oldest } else { hint });
        let old = first.is_some_and(|first| {
            oldest != first.address as u64
                || first.end() <= start && matches!(first.next(), Next::Chunk(_))
        });
        epoch::unpin(slot);
        old
    }

    /// Bytes of all chunks that are not freed. Nobody frees any meanwhile.
    pub(crate) fn memory(&self, arena: Arena) -> usize {
        let mut at = Found::at(arena, self.oldest.load(Ordering::SeqCst));
        let mut bytes = 0;
        while let Some(chunk) = at {
            bytes += block::usable_size(arena, chunk.address).unwrap_or(0);
            at = match chunk.next() {
                Next::Chunk(next) => Some(next),
                _ => None,
            };
        }
        bytes
    }

    /// Frees chunks that are before `start`, as far as nobody looks at them. True if it freed any.
    pub(crate) fn reclaim(&self, arena: Arena, slot: &Slot) -> bool {
        if !self.has_old(arena, slot) {
            return false;
        }
        match lock::try_lock(arena, slot, &self.lock) {
            Ok(taken) if taken.flags == 0 => {}
            // What a dead holder did is done or not: by the intent, or by what is done anew here.
            Ok(taken) => lock::clear(&self.lock, taken.flags),
            // Somebody else is at it.
            Err(_) => return false,
        }
        let freed = self.reclaim_locked(arena, slot);
        lock::unlock(&self.lock, slot.tag(), 0);
        freed
    }

    /// The caller has the lock, so nobody else frees chunks.
    fn reclaim_locked(&self, arena: Arena, slot: &Slot) -> bool {
        let mut freed = self.free_stamped(arena, slot);
        let Some(oldest) = Found::at(arena, self.oldest.load(Ordering::SeqCst)) else {
            return freed;
        };
        if oldest.index() < self.stamped.load(Ordering::Relaxed) {
            // Still looked at: a new stamp would only be later.
            return freed;
        }
        let start = self.start();
        let mut first = Found::at(arena, self.first.load(Ordering::SeqCst)).unwrap_or(oldest);
        while let Next::Chunk(next) = first.next()
            && first.end() <= start
        {
            first = next;
        }
        // By invariant 3: the hints, then the stamp.
        self.first.store(first.address as u64, Ordering::SeqCst);
        loop {
            let hint = self.last.load(Ordering::SeqCst);
            let behind = Found::at(arena, hint).is_none_or(|last| last.index() < first.index());
            if !behind
                || self
                    .last
                    .compare_exchange(
                        hint,
                        first.address as u64,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )
                    .is_ok()
            {
                break;
            }
        }
        if first.index() > oldest.index() {
            // By invariant 4.
            self.stamp.store(epoch::stamp(arena), Ordering::SeqCst);
            self.stamped.store(first.index(), Ordering::SeqCst);
            freed |= self.free_stamped(arena, slot);
        }
        freed
    }

    /// Frees the chunks that are stamped, if all pins are past the stamp.
    fn free_stamped(&self, arena: Arena, slot: &Slot) -> bool {
        let stamped = self.stamped.load(Ordering::Relaxed);
        let mut freed = false;
        let mut past = false;
        while let Some(old) = Found::at(arena, self.oldest.load(Ordering::SeqCst))
            && old.index() < stamped
            && let Next::Chunk(next) = old.next()
        {
            past = past || epoch::is_past(arena, self.stamp.load(Ordering::SeqCst));
            if !past {
                break;
            }
            let (field, next) = (&self.oldest, next.address as u64);
            let args = [address_of(field), old.address as u64, next];
            slot.intent.open(FREE, &args);
            let freeing = &slot.watched.freeing;
            freeing.store(old.address as u64, Ordering::SeqCst);
            compiler_fence(Ordering::SeqCst);
            field.store(next, Ordering::SeqCst);
            compiler_fence(Ordering::SeqCst);
            // A block that cannot be freed was none: there is nobody to tell.
            let _ = block::free_recorded(arena, slot, old.address);
            slot.intent.close();
            freed = true;
        }
        freed
    }
}

impl Found {
    /// Makes the chunk, which is not linked yet, the one after `last`, from position `start` on.
    fn follow(self, last: Option<Found>, start: u64) {
        let index = last.map_or(0, |last| last.index() + 1);
        self.chunk.start.store(start, Ordering::Relaxed);
        self.chunk.index.store(index, Ordering::Relaxed);
        for (level, skip) in self.chunk.skips.iter().enumerate() {
            let (chunk, start) = match last {
                None => (0, 0),
                Some(last) => {
                    let every = (1_u64 << (RADIX_SHIFT * level as u32)) - 1;
                    if last.index() & every == 0 {
                        (last.address as u64, last.start())
                    } else {
                        let skip = &last.chunk.skips[level];
                        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
                        (load(&skip.chunk), load(&skip.start))
                    }
                }
            };
            skip.chunk.store(chunk, Ordering::Relaxed);
            skip.start.store(start, Ordering::Relaxed);
        }
    }
}

fn address_of(word: &AtomicU64) -> u64 {
    std::ptr::from_ref(word).addr() as u64
}

/// Copies bytes to where nobody reads: beyond those that count. False if that is not in the pool.
#[inline]
fn copy(arena: Arena, bytes: &[u8], to: usize) -> bool {
    let Some(last) = bytes.len().checked_sub(1) else {
        return true;
    };
    if arena.slice_of(to).is_none() || arena.slice_of(to.saturating_add(last)).is_none() {
        return false;
    }
    let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
    // SAFETY: committed data of the pool, in a chunk's room behind the bytes that count, which the
    // caller alone writes to (it made the chunk, or made it BUSY) and nobody reads; the chunk is
    // not freed, as the caller is pinned. `bytes` may be bytes of this buffer that count, so not
    // these.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    true
}

/// A word of the pool's data, if it is one.
fn word(arena: Arena, address: u64) -> Option<&'static AtomicU64> {
    let inside = address.is_multiple_of(8) && arena.slice_of(address as usize).is_some();
    // SAFETY: committed data; intents name words of chunks, which the dead one's pin keeps, and of
    // a buffer that its process holds; all are atomic.
    inside.then(|| unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address as usize) })
}

/// Resolves an intent of this engine.
pub(super) fn resolve(arena: Arena, slot: &Slot, owner: Tag, op: u64) {
    let field = word(arena, slot.intent.arg(0));
    let block = slot.intent.arg(1);
    let named = field.map(|field| field.load(Ordering::SeqCst)) == Some(block);
    match op {
        APPEND if block != 0 && !named => block::release_for(arena, owner, block as usize),
        FREE if named && slot.watched.freeing.load(Ordering::SeqCst) == block => {
            if let Some(field) = field {
                field.store(slot.intent.arg(2), Ordering::SeqCst);
            }
        }
        _ => {}
    }
}

/// The next chunk of a buffer that is being destroyed.
pub(super) fn next_block(arena: Arena, first: usize) -> Option<Named> {
    let old = word(arena, first as u64)?.load(Ordering::SeqCst);
    let chunk = Found::at(arena, old)?;
    let next = match chunk.next() {
        Next::Chunk(next) => next.address as u64,
        Next::None | Next::Closed => 0,
    };
    Some(Named {
        word: first as u64,
        old,
        next,
        block: chunk.address,
    })
}

/// Checks a buffer at rest.
pub(super) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    let size = size_of::<Words>();
    if word(arena, first as u64).is_none() || arena.slice_of(first + size - 1).is_none() {
        return report.problem(format_args!("a buffer at {first:#x} is not in the pool"));
    }
    // SAFETY: committed data; a buffer's words, all atomic.
    let words = unsafe { &*std::ptr::with_exposed_provenance::<Words>(first) };
    let mut hints = [&words.first, &words.last].map(|hint| hint.load(Ordering::SeqCst));
    let mut at = Found::at(arena, words.oldest.load(Ordering::SeqCst));
    let mut end = 0;
    while let Some(chunk) = at {
        let mut problem = |what: &str| {
            let address = chunk.address;
            report.problem(format_args!(
                "buffer {first:#x}, chunk {address:#x}: {what}"
            ));
        };
        let state = chunk.chunk.state.load(Ordering::SeqCst);
        let (len, room) = (state & LEN, chunk.room());
        match block::usable_size(arena, chunk.address) {
            Ok(size) if (size - HEADER) as u64 >= room && room >= len => {}
            _ => problem("no block of its size"),
        }
        for hint in &mut hints {
            if *hint == chunk.address as u64 {
                *hint = 0;
            }
        }
        end = chunk.end();
        at = match chunk.next() {
            Next::Chunk(next) => {
                if next.start() != end || state & SEALED == 0 {
                    problem("does not fit the next");
                }
                if next.index() != chunk.index() + 1 {
                    problem("its index does not fit the next");
                }
                Some(next)
            }
            Next::None => None,
            Next::Closed => {
                if state & SEALED == 0 || chunk.chunk.next.load(Ordering::SeqCst) != CLOSED {
                    problem("its next is no chunk");
                }
                None
            }
        };
    }
    if hints != [0, 0] {
        report.problem(format_args!(
            "buffer {first:#x}: a hint is not in the chain"
        ));
    }
    if words.start() > end {
        report.problem(format_args!("buffer {first:#x}: it starts beyond its end"));
    }
}
