//! Chunks: their layout, and what needs only one chunk.

use super::SHARED_MAX;
use crate::layout::arena::Arena;
use crate::participants::habit::Looks;
use crate::primitive::{AtomicU64, Ordering};

/// The number of levels of skips. Each level reaches eight times as far as the one below.
const LEVELS: usize = 8;
const RADIX_SHIFT: u32 = 3;

/// The header of a chunk; the bytes follow at [`HEADER`].
#[repr(C)]
pub(super) struct Chunk {
    pub(super) next: AtomicU64,
    pub(super) state: AtomicU64,
    pub(super) start: AtomicU64,
    /// The number of bytes that fit.
    pub(super) room: AtomicU64,
    /// One more than the index of the chunk before.
    pub(super) index: AtomicU64,
    pub(super) skips: [Skip; LEVELS],
}

/// An earlier chunk, and its start. The start is kept here so that it is known without looking at
/// the chunk, which may be freed.
#[repr(C)]
pub(super) struct Skip {
    pub(super) chunk: AtomicU64,
    pub(super) start: AtomicU64,
}

pub(super) const HEADER: usize = 192;
const _: () = assert!(size_of::<Chunk>() <= HEADER);

pub(super) const SEALED: u64 = 1 << 63;
pub(super) const BUSY: u64 = 1 << 62;
pub(super) const LEN: u64 = BUSY - 1;

/// In the place of the next chunk's address: there will be no next chunk.
pub(super) const CLOSED: u64 = 1;

/// What follows a chunk.
pub(super) enum Next {
    None,
    Closed,
    Chunk(Found),
}

/// A chunk of this pool and its address.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(super) arena: Arena,
    pub(super) address: usize,
    pub(super) chunk: &'static Chunk,
}

impl Found {
    /// The chunk at an address, if the pool has data there. The chunk's words are checked where
    /// they are used.
    #[inline]
    pub(super) fn at(arena: Arena, address: u64) -> Option<Found> {
        let address = address as usize;
        let inside = address.is_multiple_of(16) && arena.room_at(address) >= HEADER;
        inside.then(|| Found {
            arena,
            address,
            // SAFETY: committed data of the pool, aligned; a chunk consists of atomics. It is not
            // freed while the caller uses it, by invariant 3 or because it is the caller's own.
            chunk: unsafe { &*std::ptr::with_exposed_provenance::<Chunk>(address) },
        })
    }

    #[inline]
    pub(super) fn next(self) -> Next {
        match self.chunk.next.load(Ordering::SeqCst) {
            // No chunk can have an index after this one. The word is garbage.
            0 if self.index() == u64::MAX => Next::Closed,
            0 => Next::None,
            CLOSED => Next::Closed,
            // An address at which there is no chunk ends the chain.
            address => Found::at(self.arena, address)
                .filter(|next| next.index() > self.index())
                .map_or(Next::Closed, Next::Chunk),
        }
    }

    #[inline]
    pub(super) fn index(self) -> u64 {
        self.chunk.index.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn start(self) -> u64 {
        self.chunk.start.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn room(self) -> u64 {
        self.chunk.room.load(Ordering::Relaxed)
    }

    /// The number of bytes that count. Acquire pairs with the exchange that made them count.
    #[inline]
    pub(super) fn len(self) -> u64 {
        (self.chunk.state.load(Ordering::SeqCst) & LEN).min(self.room())
    }

    #[inline]
    pub(crate) fn end(self) -> u64 {
        self.start().saturating_add(self.len())
    }

    /// True if it is the last chunk, and larger than those that appends share: it can be freed only once another
    /// follows.
    pub(super) fn is_large_end(self) -> bool {
        self.room() as usize > SHARED_MAX && matches!(self.next(), Next::None)
    }

    #[inline]
    pub(super) fn data(self) -> usize {
        self.address + HEADER
    }

    /// The bytes from position `from` to `to` that this chunk has, and the chunk after it.
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
        // If the words are garbage, they may say anything.
        let last = address.saturating_add(len - 1);
        if self.arena.slice_of(last).is_none() {
            return (&[], next);
        }
        let pointer = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: committed data of the pool; bytes that count, which are not written again
        // (invariant 1) and, by the caller's promise and invariant 3, not freed.
        (unsafe { std::slice::from_raw_parts(pointer, len) }, next)
    }

    /// Seals the chunk, after giving a writer the time that a copy takes, and gives its final
    /// length.
    pub(super) fn seal(self) -> u64 {
        let mut patience = Patience::new();
        loop {
            let state = self.chunk.state.load(Ordering::SeqCst);
            if state & SEALED != 0 {
                return self.len();
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

impl Found {
    /// Prepares the chunk, which is not linked yet, to be the one after `last`, from position
    /// `start` on.
    pub(super) fn follow(self, last: Option<Found>, start: u64) {
        let index = last.map_or(0, |last| last.index().saturating_add(1));
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

/// How long to wait for somebody else's copy: longer than a copy takes, unless its writer is not
/// running.
pub(super) struct Patience {
    looks: Looks,
    yields: u32,
}

impl Patience {
    pub(super) fn new() -> Self {
        Patience {
            looks: Looks::new(),
            yields: 20,
        }
    }

    /// True if another look is worthwhile.
    pub(super) fn goes_on(&mut self) -> bool {
        if self.looks.go_on() {
            return true;
        }
        let more = self.yields > 0;
        if more {
            self.yields -= 1;
            std::thread::yield_now();
        }
        more
    }
}

/// Copies bytes to where nobody reads: beyond those that count. False if that is not in the pool.
///
/// # Safety
///
/// `to` is in a chunk's room behind the bytes that count, where the caller alone writes: it made the chunk, or
/// made it BUSY. The chunk is not freed meanwhile, as the caller is pinned.
#[inline]
pub(super) unsafe fn copy(arena: Arena, bytes: &[u8], to: usize) -> bool {
    if arena.room_at(to) < bytes.len() {
        return false;
    }
    let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
    // SAFETY: committed data of the pool, to which nobody else has access by the caller's promise.
    // `bytes` may be bytes of this buffer that count, so not these.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    true
}
