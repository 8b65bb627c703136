//! The log: records of what a transaction overwrites and makes, in chunks.
//!
//! ```text
//! chunk:   next  prev  tx  used  size  | bytes, record | bytes, record | ...
//! record:  what  offset  len  total     (behind its bytes, so that the log is read from its end)
//! ```
//!
//! A chunk's record counts once `used` includes it, and the chunk has the heap's `tx` (`heap`,
//! invariants 2 and 3). So one store of `tx` voids the whole log.

use super::{Words, drop_block};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

/// What a chunk begins with.
#[repr(C)]
pub(crate) struct Chunk {
    next: AtomicU64,
    prev: AtomicU64,
    tx: AtomicU64,
    /// Bytes that count.
    used: AtomicU64,
    /// Bytes that there are.
    size: AtomicU64,
}

/// Bytes of a chunk's header.
pub(crate) const CHUNK: usize = size_of::<Chunk>();
/// Bytes of a record without what it saves.
const RECORD: usize = 32;
/// Blocks for chunks: the first, which is kept if it is no larger, and the largest that is not for one
/// record alone.
const KEPT: usize = 4 << 10;
const LARGEST: usize = 64 << 10;

/// What a record is about, as it is in the log.
const ROOT: u64 = 1 << 32;
const BIRTH: u64 = 1 << 33;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Bytes of the root.
    Root,
    /// Bytes of an object.
    Object(usize),
    /// The object is made by the transaction.
    Birth(usize),
}

/// A record, and where the bytes are that it saves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) what: What,
    pub(crate) offset: usize,
    pub(crate) bytes: *const u8,
    pub(crate) len: usize,
}

/// Whether the log has room.
pub(crate) enum Room<'a> {
    Ready,
    /// This word, which is empty, wants to name a chunk of so many bytes, that
    /// is [made](Chunk::begin) to follow another.
    More(&'a AtomicU64, usize, u64),
    /// The log is garbage.
    Damaged,
}

/// Where a transaction is in the log: compared with the pool once for each chunk.
#[derive(Default)]
pub(crate) struct Writer {
    /// The last chunk that counts.
    chunk: Option<&'static Chunk>,
    /// Its bytes that count, and that there are.
    used: usize,
    room: usize,
    /// The log has more than is kept.
    pub(crate) is_long: bool,
}

impl Writer {
    /// Goes on in a chunk that counts.
    fn enter(&mut self, arena: Arena, chunk: &'static Chunk) {
        self.is_long |= self.chunk.is_some() || chunk.next() != 0 || chunk.is_large(arena);
        self.chunk = Some(chunk);
        self.used = chunk.used(arena);
        self.room = chunk.room(arena);
    }

    /// Appends a record, if there is room for it.
    #[inline]
    pub(crate) fn append(&mut self, record: &Record) -> bool {
        let total = total(record.len);
        let Some(chunk) = self.chunk.filter(|_| self.room - self.used >= total) else {
            return false;
        };
        let what = match record.what {
            What::Root => ROOT,
            What::Object(index) => index as u64,
            What::Birth(index) => BIRTH | index as u64,
        };
        let words = [what, record.offset as u64, record.len as u64, total as u64];
        // SAFETY: `total` bytes behind those that count are the chunk's, by its room, and nobody
        // else uses them, by the heap's invariant 1; the caller has `len` bytes to be saved.
        unsafe {
            let bytes = chunk.byte(self.used);
            bytes.copy_from_nonoverlapping(record.bytes, record.len);
            let end = bytes.add(total - RECORD).cast::<[u64; 4]>();
            end.write_unaligned(words);
        }
        compiler_fence(Ordering::SeqCst);
        self.used += total;
        chunk.used.store(self.used as u64, Ordering::Release);
        // By the heap's invariant 2: before the stores that it is about.
        compiler_fence(Ordering::SeqCst);
        true
    }
}

impl Chunk {
    /// The chunk at an address, if there can be one.
    pub(crate) fn at(arena: Arena, address: u64) -> Option<&'static Chunk> {
        let at = address as usize;
        // A block, so that a chain that is garbage ends where it has been freed.
        let size = block::usable_size(arena, at).unwrap_or(0);
        let inside = at.is_multiple_of(8) && size > CHUNK && arena.room_at(at) >= size;
        // SAFETY: aligned, in the pool's data, which stays mapped; five atomic words.
        inside.then(|| unsafe { &*std::ptr::with_exposed_provenance::<Chunk>(at) })
    }

    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Describes a new chunk of a block of `bytes`, behind the one at `prev`.
    pub(crate) fn begin(&self, bytes: usize, prev: u64, tx: u64) {
        self.next.store(0, Ordering::Relaxed);
        self.size.store((bytes - CHUNK) as u64, Ordering::Relaxed);
        self.start(prev, tx);
    }

    /// Lets an empty chunk count.
    fn start(&self, prev: u64, tx: u64) {
        self.used.store(0, Ordering::Relaxed);
        self.prev.store(prev, Ordering::Relaxed);
        self.tx.store(tx, Ordering::Release);
    }

    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Bytes for records.
    fn room(&self, arena: Arena) -> usize {
        let size = self.size.load(Ordering::Relaxed) as usize;
        size.min(arena.room_at(self.address()).saturating_sub(CHUNK))
    }

    fn used(&self, arena: Arena) -> usize {
        (self.used.load(Ordering::Acquire) as usize).min(self.room(arena))
    }

    /// The byte at an offset.
    fn byte(&self, at: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address() + CHUNK + at)
    }

    /// True if it is more than is kept between transactions.
    fn is_large(&self, arena: Arena) -> bool {
        self.room(arena) + CHUNK > KEPT
    }

    /// The record that ends at an offset, and where it begins; `None` for garbage.
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

/// Bytes that a record takes which saves so many.
fn total(len: usize) -> usize {
    len.next_multiple_of(8) + RECORD
}

impl Words {
    /// All chunks, in order.
    pub(super) fn chunks(&self, arena: Arena) -> impl Iterator<Item = &'static Chunk> + use<> {
        let mut next = self.log.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            let chunk = Chunk::at(arena, next)?;
            next = chunk.next();
            Some(chunk)
        })
        // In garbage they might go round in a circle.
        .take(arena.slices())
    }

    /// The chunks that count, in order.
    fn counting(&self, arena: Arena) -> impl Iterator<Item = &'static Chunk> + use<> {
        let tx = self.tx();
        self.chunks(arena)
            .take_while(move |chunk| chunk.tx.load(Ordering::Acquire) == tx)
    }

    /// Lets the writer go on in a chunk that has room to save so many bytes.
    pub(crate) fn go_on<'a>(&'a self, arena: Arena, writer: &mut Writer, len: usize) -> Room<'a> {
        // The chunk that is kept, and a new one.
        const HOPS: usize = 4;
        for _ in 0..HOPS {
            let (next, prev) = match writer.chunk {
                Some(_) if writer.room - writer.used >= total(len) => return Room::Ready,
                Some(chunk) => (&chunk.next, chunk.address() as u64),
                None => (&self.log, 0),
            };
            let address = next.load(Ordering::Acquire);
            match Chunk::at(arena, address) {
                // It would be freed in favour of the new one.
                None if address != 0 => break,
                Some(chunk) => {
                    if chunk.tx.load(Ordering::Relaxed) != self.tx() {
                        chunk.start(prev, self.tx());
                    }
                    writer.enter(arena, chunk);
                }
                None => {
                    let before = writer.chunk.map_or(0, |_| writer.room + CHUNK);
                    let wanted = (before * 2).clamp(KEPT, LARGEST);
                    let bytes = wanted.max(total(len) + CHUNK);
                    return Room::More(next, bytes, prev);
                }
            }
        }
        Room::Damaged
    }

    /// Every record that counts, the latest first.
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
            chunk = (chunks > 0)
                .then(|| Chunk::at(arena, at.prev.load(Ordering::Relaxed)))
                .flatten();
        }
    }

    /// Undoes the transaction, and ends it. `root` is where the root is, and its size; nobody has
    /// a reference to it or to any object.
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

    /// Frees all of the log but one small chunk, once nothing of it counts.
    #[cold]
    pub(crate) fn trim(&self, arena: Arena, slot: &Slot) {
        while let Some(first) = Chunk::at(arena, self.log.load(Ordering::Acquire)) {
            match Chunk::at(arena, first.next()) {
                Some(second) => drop_block(arena, slot, &first.next, second.next()),
                None if first.is_large(arena) => {
                    drop_block(arena, slot, &self.log, 0);
                }
                None => return,
            }
        }
    }

    pub(super) fn check_log(&self, arena: Arena, first: usize, report: &mut CheckReport) {
        let mut next = self.log.load(Ordering::Acquire);
        let mut chunks = 0;
        while next != 0 {
            let size = block::usable_size(arena, next as usize).unwrap_or(0);
            match Chunk::at(arena, next) {
                Some(chunk) if size >= CHUNK && chunks < arena.slices() => {
                    let room = chunk.size.load(Ordering::Relaxed);
                    if room > (size - CHUNK) as u64 || chunk.used.load(Ordering::Relaxed) > room {
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
