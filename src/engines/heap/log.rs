//! The log: records of what a transaction overwrites and makes, in chunks. The first chunk is part of the heap, and
//! enough for most transactions. The others are blocks, which are freed at the end of the transaction, except for
//! the first of them if it has the smallest size: that one is kept for the next transaction that needs one.
//!
//! ```text
//! chunk:   next  prev  tx  used  size  | bytes, record | bytes, record | ...
//! record:  what  offset  len  total     (behind its bytes, so that the log is read from its end)
//! ```
//!
//! A chunk's record counts if `used` includes it and the chunk has the heap's `tx` (`heap`,
//! invariants 2 and 3). So one store of `tx` voids the whole log.

use std::cell::UnsafeCell;

use super::{Words, drop_block};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

/// The header of a chunk.
#[repr(C)]
pub(crate) struct Chunk {
    pub(super) next: AtomicU64,
    prev: AtomicU64,
    tx: AtomicU64,
    /// The number of bytes that count.
    used: AtomicU64,
    /// The number of bytes in the chunk.
    size: AtomicU64,
}

/// The size of a chunk's header.
pub(crate) const CHUNK: usize = size_of::<Chunk>();
/// The size of a record without what it saves.
const RECORD: usize = 32;
/// The bytes for records in the first chunk: with these, a heap with a small root takes a kibibyte.
const FIRST: usize = 880;
/// The sizes of blocks for chunks: the smallest, and the largest that is not for a single record.
const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 64 << 10;

/// The first chunk.
#[repr(C)]
pub(super) struct First {
    pub(super) chunk: Chunk,
    _room: UnsafeCell<[u8; FIRST]>,
}

impl First {
    pub(super) const fn new() -> Self {
        First {
            chunk: Chunk {
                next: AtomicU64::new(0),
                prev: AtomicU64::new(0),
                tx: AtomicU64::new(0),
                used: AtomicU64::new(0),
                size: AtomicU64::new(FIRST as u64),
            },
            _room: UnsafeCell::new([0; FIRST]),
        }
    }
}

/// What a record is about, as encoded in the log.
const ROOT: u64 = 1 << 32;
const BIRTH: u64 = 1 << 33;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Bytes of the root.
    Root,
    /// Bytes of an object.
    Object(usize),
    /// An object that the transaction makes.
    Birth(usize),
}

/// A record, and where the bytes are that it saves or has saved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) what: What,
    pub(crate) offset: usize,
    pub(crate) bytes: *const u8,
    pub(crate) len: usize,
}

/// Whether the log has room.
pub(crate) enum LogRoom<'a> {
    Ready,
    /// There is no room: this word, which is empty, has to be made to name a new chunk of that many
    /// bytes, which is [prepared](Chunk::begin) to follow the one at that address.
    More(&'a AtomicU64, usize, u64),
    /// The log is garbage.
    Damaged,
}

/// Where a transaction is in the log. It is compared with the pool once for each chunk.
pub(crate) struct Writer {
    /// The last chunk that counts.
    chunk: &'static Chunk,
    /// The number of its bytes that count, and of those that there are.
    used: usize,
    room: usize,
    /// The log has blocks that are freed at the end of the transaction.
    pub(crate) is_long: bool,
}

impl Writer {
    /// Appends a record, if there is room for it.
    #[inline(always)]
    pub(crate) fn append(&mut self, record: &Record) -> bool {
        let total = total(record.len);
        if self.room - self.used < total {
            return false;
        }
        let what = match record.what {
            What::Root => ROOT,
            What::Object(index) => index as u64,
            What::Birth(index) => BIRTH | index as u64,
        };
        let words = [what, record.offset as u64, record.len as u64, total as u64];
        // SAFETY: `total` bytes behind those that count belong to the chunk, by its room, and
        // nobody else uses them, by the heap's invariant 1; the caller has `len` bytes to be saved.
        unsafe {
            let bytes = self.chunk.byte(self.used);
            bytes.copy_from(record.bytes, record.len);
            let end = bytes.add(total - RECORD).cast::<[u64; 4]>();
            end.write_unaligned(words);
        }
        compiler_fence(Ordering::SeqCst);
        self.used += total;
        self.chunk.used.store(self.used as u64, Ordering::Release);
        // By the heap's invariant 2: before the stores that the record is about.
        compiler_fence(Ordering::SeqCst);
        true
    }
}

impl Chunk {
    /// The chunk at an address, if there can be one.
    pub(crate) fn at(arena: Arena, address: u64) -> Option<&'static Chunk> {
        let (chunk, bytes) = Self::in_block(arena, address)?;
        let fits = chunk.size.load(Ordering::Relaxed) <= (bytes - CHUNK) as u64;
        fits.then_some(chunk)
    }

    /// Where a chunk is, or can be, and the size of its block.
    fn in_block(arena: Arena, address: u64) -> Option<(&'static Chunk, usize)> {
        let at = address as usize;
        // It has to be a block, so that a chain that is garbage ends where its block has been
        // freed.
        let bytes = block::usable_size(arena, at).unwrap_or(0);
        let inside = at.is_multiple_of(8) && bytes > CHUNK && arena.room_at(at) >= bytes;
        // SAFETY: aligned, in the pool's data, which stays mapped; five atomic words.
        let chunk = inside.then(|| unsafe { &*std::ptr::with_exposed_provenance::<Chunk>(at) });
        Some((chunk?, bytes))
    }

    #[inline]
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Describes a new chunk in a block, behind the one at `prev`.
    pub(crate) fn begin(arena: Arena, address: u64, prev: u64, tx: u64) {
        if let Some((chunk, bytes)) = Self::in_block(arena, address) {
            chunk.next.store(0, Ordering::Relaxed);
            let size = (bytes - CHUNK) as u64;
            chunk.size.store(size, Ordering::Relaxed);
            chunk.start(prev, tx);
        }
    }

    /// Makes an empty chunk count.
    #[inline]
    fn start(&self, prev: u64, tx: u64) {
        self.used.store(0, Ordering::Relaxed);
        self.prev.store(prev, Ordering::Relaxed);
        self.tx.store(tx, Ordering::Release);
    }

    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The number of bytes for records.
    fn room(&self, arena: Arena) -> usize {
        let size = self.size.load(Ordering::Relaxed) as usize;
        size.min(arena.room_at(self.address()).saturating_sub(CHUNK))
    }

    /// True if the chunk is kept when it is the first one after that of the heap.
    fn stays(&self, arena: Arena) -> bool {
        self.room(arena) <= SMALLEST - CHUNK
    }

    fn used(&self, arena: Arena) -> usize {
        (self.used.load(Ordering::Acquire) as usize).min(self.room(arena))
    }

    /// The byte at an offset.
    fn byte(&self, at: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address() + CHUNK + at)
    }

    /// The record that ends at an offset, and where it begins; `None` if it is garbage.
    fn record_before(&self, end: usize) -> Option<(Record, usize)> {
        let at = end.checked_sub(RECORD)?;
        // SAFETY: within the bytes that count, by the caller's offset.
        let [what, offset, len, size] =
            unsafe { self.byte(at).cast::<[u64; 4]>().read_unaligned() };
        let len = len as usize;
        let start = end.checked_sub(size as usize)?;
        if len > at - start.min(at) || size < RECORD as u64 {
            return None;
        }
        let index = (what & u64::from(u32::MAX)) as usize;
        let what = match what & !u64::from(u32::MAX) {
            ROOT => What::Root,
            BIRTH => What::Birth(index),
            _ => What::Object(index),
        };
        let record = Record {
            what,
            offset: offset as usize,
            bytes: self.byte(start),
            len,
        };
        Some((record, start))
    }
}

/// The number of bytes that a record takes if it saves `len` bytes.
fn total(len: usize) -> usize {
    len.next_multiple_of(8) + RECORD
}

impl Words {
    /// The blocks of the log, in order.
    pub(super) fn chunks(&self, arena: Arena) -> impl Iterator<Item = &'static Chunk> + use<> {
        let mut next = self.log.chunk.next();
        std::iter::from_fn(move || {
            let chunk = Chunk::at(arena, next)?;
            next = chunk.next();
            Some(chunk)
        })
        // In garbage, they might lead in a circle.
        .take(arena.slices())
    }

    /// The chunks that count, in order.
    fn counting<'a>(&'a self, arena: Arena) -> impl Iterator<Item = &'a Chunk> + use<'a> {
        let tx = self.tx();
        std::iter::once(&self.log.chunk)
            .chain(self.chunks(arena).map(|chunk| -> &'a Chunk { chunk }))
            .take_while(move |chunk| chunk.tx.load(Ordering::Acquire) == tx)
    }

    /// Begins a log. Called by the holder of the lock for writing, when there is nothing to undo.
    #[inline]
    pub(crate) fn writer(&self) -> Writer {
        let chunk = &self.log.chunk;
        chunk.start(0, self.tx());
        Writer {
            // SAFETY: the words of a heap in a pool, which stays mapped; they consist of atomics, and of bytes
            // behind them that are no part of the reference.
            chunk: unsafe { &*std::ptr::from_ref(chunk) },
            used: 0,
            room: FIRST,
            // A thread that takes the lock over from a dead one has dealt with what that left.
            is_long: false,
        }
    }

    /// Lets the writer go on in a chunk that has room to save `len` bytes.
    pub(crate) fn go_on<'a>(
        &'a self,
        arena: Arena,
        writer: &mut Writer,
        len: usize,
    ) -> LogRoom<'a> {
        // Enough for a chunk that a dead transaction has left, and a new one.
        const HOPS: usize = 4;
        for _ in 0..HOPS {
            if writer.room - writer.used >= total(len) {
                return LogRoom::Ready;
            }
            let (next, prev) = (&writer.chunk.next, writer.chunk.address() as u64);
            let address = next.load(Ordering::Acquire);
            match Chunk::at(arena, address) {
                // What the word names is not a chunk; it would be freed in favour of a new chunk.
                None if address != 0 => break,
                Some(chunk) => {
                    if chunk.tx.load(Ordering::Relaxed) != self.tx() {
                        chunk.start(prev, self.tx());
                    }
                    *writer = Writer {
                        chunk,
                        used: chunk.used(arena),
                        room: chunk.room(arena),
                        is_long: prev != self.log.chunk.address() as u64 || !chunk.stays(arena),
                    };
                }
                None => {
                    let wanted = (writer.room * 2).clamp(SMALLEST, LARGEST);
                    let bytes = wanted.max(total(len) + CHUNK);
                    return LogRoom::More(next, bytes, prev);
                }
            }
        }
        LogRoom::Damaged
    }

    /// Calls `each` with every record that counts, the latest first.
    pub(crate) fn records(&self, arena: Arena, mut each: impl FnMut(Record)) {
        let mut chunks = self.counting(arena).count();
        let mut chunk = self.counting(arena).last();
        while let Some(at) = chunk {
            let mut end = at.used(arena);
            while let Some((record, start)) = at.record_before(end) {
                each(record);
                end = start;
            }
            chunks -= 1;
            chunk = match chunks {
                0 => None,
                1 => Some(&self.log.chunk),
                _ => Chunk::at(arena, at.prev.load(Ordering::Relaxed)),
            };
        }
    }

    /// Undoes the transaction, and ends it. `root` is the address of the root, and its size; nobody
    /// has a reference to it or to any object.
    pub(crate) fn undo(&self, arena: Arena, slot: &Slot, root: (*mut u8, usize)) {
        let table = self.table(arena);
        self.records(arena, |record| {
            let (to, room) = match record.what {
                What::Root => root,
                What::Object(index) => {
                    let address = table.entry(index).map_or(0, |entry| entry.address());
                    let to = std::ptr::with_exposed_provenance_mut(address as usize);
                    let room = block::usable_size(arena, address as usize).unwrap_or(0);
                    if cfg!(shmkit_planted = "heap") && record.offset > 8 {
                        return;
                    }
                    (to, room)
                }
                What::Birth(index) => {
                    if let Some(entry) = table.entry(index)
                        && entry.address() != 0
                    {
                        self.free(arena, slot, index, entry);
                    }
                    return;
                }
            };
            let end = record.offset.checked_add(record.len);
            if end.is_some_and(|end| end <= room) {
                // SAFETY: within the root or an object, where nobody else reads or writes, by the
                // heap's invariant 1; the log lies elsewhere.
                unsafe { to.add(record.offset).copy_from(record.bytes, record.len) };
            }
        });
        self.end();
        self.trim(arena, slot);
    }

    /// Frees the blocks of the log that are not kept, once nothing in the log counts.
    #[cold]
    pub(crate) fn trim(&self, arena: Arena, slot: &Slot) {
        let first = &self.log.chunk.next;
        let stays = Chunk::at(arena, first.load(Ordering::Acquire)).filter(|c| c.stays(arena));
        let word = stays.map_or(first, |chunk| &chunk.next);
        while let Some(chunk) = Chunk::at(arena, word.load(Ordering::Acquire)) {
            drop_block(arena, slot, word, chunk.next());
        }
    }

    pub(super) fn check_log(&self, arena: Arena, first: usize, report: &mut CheckReport) {
        let mut next = self.log.chunk.next();
        let mut chunks = 0;
        while next != 0 {
            match Chunk::at(arena, next) {
                Some(chunk) if chunks < arena.slices() => {
                    let room = chunk.size.load(Ordering::Relaxed);
                    if chunk.used.load(Ordering::Relaxed) > room {
                        report.problem(format_args!("heap {first:#x}: a chunk is too small"));
                    }
                    next = chunk.next();
                    chunks += 1;
                }
                _ => return report.problem(format_args!("heap {first:#x}: a bad log")),
            }
        }
    }
}
