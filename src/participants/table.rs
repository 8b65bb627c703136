//! Thread slots and process records, as they lie in the pool.
//!
//! A slot belongs to one thread: it has what the thread is doing (the intent), what it caches, and
//! what it looks at. A record belongs to one process: it says of which objects the process holds
//! handles. Both are claimed by taking their robust life word, so there is no moment at which a
//! claimant can die unseen.
//!
//! | slot's phase | life word | meaning | next, by whom |
//! |--------|------|---------------------------------------------|----------------------------|
//! | FREE   | 0    | nobody's                                     | LIVE, new generation, by the claimant |
//! | FREE   | tid  | being claimed, or being left                 | as above                   |
//! | FREE   | OWNER_DIED | its thread died claiming or leaving it | as above, once a recovery has stored 0 |
//! | LIVE   | tid  | its thread works                             | FREE by itself, PARKED by itself, DEAD by anybody once the life word says so |
//! | PARKED | 0    | its thread ended and left guards behind      | DEAD, by the thread that recovers the process |
//! | DEAD   | any  | what others wait for is still to be done, or is being done | SETTLED, by the holder of the life word |
//! | SETTLED | any | its memory is still to be released, or is being released | FREE, by the holder of the life word |
//!
//! | record's phase | life word | meaning | next, by whom |
//! |---------|------|-------------------------------------------|-------------------------------|
//! | FREE    | 0    | nobody's                                  | LIVE by a claimant; FORKING by a parent |
//! | FREE    | tid, OWNER_DIED | being claimed, or left; or whoever did that died | as above; after a death, once a recovery has stored 0 |
//! | FORKING | 0    | made for a child; holds what its parent holds | LIVE by the child; ABORTED by the parent or by a thread that recovers the parent |
//! | LIVE    | tid  | the process works                         | FREE by itself, DEAD by anybody |
//! | LIVE    | OWNER_DIED | the thread that held the word ended, the process perhaps did not | DEAD by anybody once the process has ended; held again by another of its threads |
//! | LIVE    | 0    | the process has unmapped the pool, and left guards behind | DEAD by anybody once it has ended |
//! | DEAD, ABORTED | any | to be recovered                        | FREE                          |
//!
//! Invariants
//! 1. Only the holder of the life word leaves DEAD and SETTLED; everybody may enter DEAD.
//! 2. The generation rises when a slot becomes LIVE (a record: LIVE or FORKING), and at no other
//!    time.
//! 3. A slot becomes FREE only when nothing in the pool needs its owner any more: its intent is
//!    resolved, its permits are back, its spans belong to somebody else or to nobody.

use std::cell::UnsafeCell;

use crate::layout::arena::{
    Arena, GRANULE, HOLDS, NAMES, OBJECTS, PROCESSES, SLICE_SHIFT, SLOTS, TablePlace,
};
use crate::participants::asked::Asked;
use crate::participants::pid::{Pid, ProcessId};
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::protocol::permits::Permit;
use crate::sys::robust::RobustWord;

/// A number in a slot that only its owner looks at, neither recovery nor a report. So it needs no
/// atomic access, which the compiler would not merge with what is done with the number.
#[repr(transparent)]
pub(crate) struct Own<N = u64>(UnsafeCell<N>);

// SAFETY: only the thread that has claimed the slot calls `get` and `set`. Claims of a slot are
// ordered: each acquires the life word (or, in a private heap, the state) that the last owner
// released.
unsafe impl<N: Send> Sync for Own<N> {}

impl<N: Copy> Own<N> {
    #[inline(always)]
    pub(crate) fn get(&self) -> N {
        // SAFETY: by the type's invariant nobody writes at this moment.
        unsafe { *self.0.get() }
    }

    #[inline(always)]
    pub(crate) fn set(&self, value: N) {
        // SAFETY: by the type's invariant nobody else looks at it.
        unsafe { *self.0.get() = value }
    }
}

/// What a thread has in the pool.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// Spans of this owner in which blocks were freed lately; see `allocator::known`. First, so
    /// that an entry's offset in this field is its offset in the slot.
    pub(crate) known: [Own; KNOWN_WORDS],

    pub(crate) life: RobustWord,
    /// Phase and generation: [`SlotState`].
    pub(crate) state: AtomicU64,
    /// The owner's tag while it is LIVE.
    pub(crate) tag: AtomicU64,
    /// When the owner's thread started, in the kernel's ticks. 0 while unknown.
    pub(crate) start: AtomicU64,
    /// The tid of the owner's thread, which is in the life word as long as that thread lives.
    pub(crate) holder: AtomicU64,
    /// Entries of `permits` from here on are unused.
    pub(crate) permit_limit: AtomicU64,
    /// How many looks at shared objects the thread has open; its own business.
    pub(crate) pin_depth: AtomicU64,
    /// What the end of the last of these looks is to do, or has done; see `engines::limbo`.
    pub(crate) collect_again: Own,

    /// What the owner is in the middle of.
    pub(crate) intent: Intent,

    /// Written by the owner alone, read by all.
    pub(crate) watched: Watched,

    /// Written by others.
    pub(crate) inbox: Inbox,

    /// What the owner has unlinked and others may still look at; its own business, see
    /// `engines::limbo`.
    pub(crate) limbo: Limbo,

    /// Permits of semaphores that the owner holds.
    pub(crate) permits: [Permit; PERMITS],

    /// The allocator's caches of this owner; its own business.
    pub(crate) caches: [Own; CACHE_WORDS],

    /// Runs that were freed through the slot and may be taken again: see `allocator::kept`. They
    /// outlive the slot's owner.
    pub(crate) kept: [Own; KEPT_WORDS],

    /// A word that is always 0.
    pub(crate) nothing: AtomicU64,

    /// The bytes of a write that is in flight, so that it can be done again.
    pub(crate) redo: [AtomicU64; REDO_WORDS],

    /// The locks that the owner reads under; see `readers`.
    pub(crate) reading: Reading,
}

/// How many permits a slot can list.
pub(crate) const PERMITS: usize = 28;

/// Words of [`Slot::caches`].
pub(crate) const CACHE_WORDS: usize = 208;

/// Words of [`Slot::kept`].
const KEPT_WORDS: usize = 8;

/// Words of [`Slot::known`].
pub(crate) const KNOWN_WORDS: usize = 1024;

/// Words of [`Slot::redo`].
pub(crate) const REDO_WORDS: usize = 512;

const _: () = assert!(size_of::<Slot>() <= SLOTS.entry);

/// A write-ahead record: `op` is stored after the arguments, and cleared when all is done.
#[repr(C, align(64))]
pub(crate) struct Intent {
    pub(crate) op: AtomicU64,
    pub(crate) args: [AtomicU64; 7],
}

/// What a thread shows to others while it does something.
#[repr(C, align(64))]
pub(crate) struct Watched {
    /// The block that is being freed for good: nobody may hand it out yet.
    pub(crate) freeing: AtomicU64,
    /// The epoch since which the thread has looked at shared objects; 0 if it does not.
    pub(crate) pin: AtomicU64,
    /// The word on which it sleeps.
    pub(crate) waiting_on: AtomicU64,
    /// The condition variable from which it has not returned.
    pub(crate) condition: AtomicU64,
    /// The element that it is copying.
    pub(crate) element: AtomicU64,
    /// The owner's latest detectable change; see `detect`.
    pub(crate) latest: AtomicU64,
    /// The record of the owner's process, as a tag.
    pub(crate) process: AtomicU64,
    /// The pool's `rescan` when the allocator last looked.
    pub(crate) rescan_seen: AtomicU64,
}

/// What others write to a slot.
#[repr(C, align(64))]
pub(crate) struct Inbox {
    /// The owner's latest change that somebody has overwritten; see `detect`.
    pub(crate) help: AtomicU64,
    /// A bit for each size class: somebody freed a block of a span of the owner. A hint.
    pub(crate) freed_hints: AtomicU64,
}

/// How many locks a thread can read under at once.
const READS: usize = 31;

/// Locks under which a thread reads, by address; 0 for an unused entry. Written only by the owner.
#[repr(C, align(64))]
pub(crate) struct Reading {
    /// Entries from here on are unused. Never lowered while the slot has an owner.
    pub(crate) limit: AtomicU64,
    pub(crate) locks: [AtomicU64; READS],
}

/// Retired blocks, oldest first; see `engines::limbo`. They outlive the slot's owner.
#[repr(C, align(64))]
pub(crate) struct Limbo {
    /// The oldest block; 0 for none.
    pub(crate) head: AtomicU64,
    /// A block near the end of the list, or 0. A hint.
    pub(crate) tail: AtomicU64,
    /// The first block that has no stamp yet, if `fresh` counts any.
    pub(crate) fresh_from: AtomicU64,
    /// Blocks without a stamp, and their bytes.
    pub(crate) fresh: AtomicU64,
    pub(crate) fresh_bytes: AtomicU64,
    /// Blocks with a stamp, and their bytes.
    pub(crate) blocks: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Bytes that could not be freed at the last attempt.
    pub(crate) held: AtomicU64,
}

/// What a process has in the pool.
#[repr(C, align(64))]
pub(crate) struct Process {
    pub(crate) life: RobustWord,
    /// Phase, parent and generation: [`ProcessState`].
    pub(crate) state: AtomicU64,
    pub(crate) pid: Pid,
    /// When the process started, in the kernel's ticks. 0 while unknown.
    pub(crate) start: AtomicU64,
    /// The tid of the thread that took the life word for the process.
    pub(crate) holder: AtomicU64,
    /// How many bits of the record's row of [`HOLDS`] are committed.
    pub(crate) held: AtomicU64,
    /// Until when nobody asks whether the process runs, once a thread of it has died.
    pub(crate) asked: Asked,
    /// The bits of the first objects, in place of those in the row: if there are no others, a
    /// process that comes and goes does not touch the row.
    pub(crate) holds: [AtomicU64; HOLD_WORDS],
}

/// Words of [`Process::holds`].
pub(crate) const HOLD_WORDS: usize = 16;

const _: () = assert!(size_of::<Process>() <= PROCESSES.entry);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum SlotPhase {
    Free = 0,
    Live = 1,
    Parked = 2,
    Dead = 3,
    Settled = 4,
}

/// A slot's phase and generation in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotState {
    pub(crate) phase: SlotPhase,
    pub(crate) generation: u64,
}

impl SlotState {
    #[inline]
    pub(crate) const fn unpack(word: u64) -> Self {
        let phase = match word & 0xff {
            1 => SlotPhase::Live,
            2 => SlotPhase::Parked,
            3 => SlotPhase::Dead,
            4 => SlotPhase::Settled,
            _ => SlotPhase::Free,
        };
        SlotState {
            phase,
            generation: (word >> 8) & ((1 << 48) - 1),
        }
    }

    #[inline]
    pub(crate) const fn pack(self) -> u64 {
        self.generation << 8 | self.phase as u64
    }

    #[inline]
    pub(crate) const fn with(self, phase: SlotPhase) -> Self {
        SlotState { phase, ..self }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ProcessPhase {
    Free = 0,
    Forking = 1,
    Live = 2,
    Dead = 3,
    Aborted = 4,
}

/// A record's phase, its parent's record (while FORKING or ABORTED) and generation in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProcessState {
    pub(crate) phase: ProcessPhase,
    pub(crate) parent: u16,
    pub(crate) generation: u64,
}

impl ProcessState {
    pub(crate) const fn unpack(word: u64) -> Self {
        let phase = match word & 0xff {
            1 => ProcessPhase::Forking,
            2 => ProcessPhase::Live,
            3 => ProcessPhase::Dead,
            4 => ProcessPhase::Aborted,
            _ => ProcessPhase::Free,
        };
        ProcessState {
            phase,
            parent: (word >> 8) as u16,
            generation: word >> 24,
        }
    }

    pub(crate) const fn pack(self) -> u64 {
        self.generation << 24 | (self.parent as u64) << 8 | self.phase as u64
    }

    pub(crate) const fn with(self, phase: ProcessPhase) -> Self {
        ProcessState { phase, ..self }
    }
}

impl Slot {
    /// The arena that the slot lies in.
    #[inline]
    pub(crate) fn arena(&self) -> Arena {
        Arena::at(std::ptr::from_ref(self).addr() & !(GRANULE - 1))
    }

    #[inline]
    pub(crate) fn state(&self) -> SlotState {
        SlotState::unpack(self.state.load(Ordering::Acquire))
    }

    /// Replaces the state if it is `from`.
    pub(crate) fn turn(&self, from: SlotState, to: SlotState) -> bool {
        self.state
            .compare_exchange(from.pack(), to.pack(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The owner's tag; asked by the owner.
    #[inline]
    pub(crate) fn tag(&self) -> Tag {
        Tag::of_word(self.tag.load(Ordering::Relaxed))
    }
}

impl Intent {
    /// Records what is about to be done. From here on, a death is resolved by the operation's rule.
    #[inline]
    pub(crate) fn open(&self, op: u64, args: &[u64]) {
        debug_assert_eq!(self.op.load(Ordering::Relaxed), 0, "one intent at a time");
        for (place, &value) in self.args.iter().zip(args) {
            place.store(value, Ordering::Relaxed);
        }
        // A kill leaves only program order behind; Release keeps the compiler to it.
        self.op.store(op, Ordering::Release);
        crate::primitive::compiler_fence(Ordering::SeqCst);
    }

    /// All is done: clears the intent.
    #[inline]
    pub(crate) fn close(&self) {
        crate::primitive::compiler_fence(Ordering::SeqCst);
        self.op.store(0, Ordering::Release);
    }

    #[inline]
    pub(crate) fn arg(&self, i: usize) -> u64 {
        self.args[i].load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn set_arg(&self, i: usize, value: u64) {
        self.args[i].store(value, Ordering::Release);
        crate::primitive::compiler_fence(Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.op.load(Ordering::Acquire) != 0
    }
}

impl Process {
    pub(crate) fn state(&self) -> ProcessState {
        ProcessState::unpack(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn turn(&self, from: ProcessState, to: ProcessState) -> bool {
        self.state
            .compare_exchange(from.pack(), to.pack(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

impl Arena {
    /// How many slots there are, counting the unused slot 0.
    #[inline]
    pub(crate) fn slot_count(self) -> usize {
        let max = self.header().max_slots.load(Ordering::Relaxed);
        self.header()
            .watermarks
            .slots
            .load(Ordering::Acquire)
            .min(max) as usize
    }

    /// The slot with that index, which is below [`Arena::slot_count`].
    #[inline]
    pub(crate) fn slot(self, index: usize) -> &'static Slot {
        assert!(index < SLOTS.max);
        // SAFETY: callers take indexes from a count of committed slots, or from tags, whose slot
        // was committed before it was first claimed; a slot consists of atomics.
        unsafe { self.entry(SLOTS, index) }
    }

    /// Every slot that was ever claimed, with its index.
    pub(crate) fn slots(self) -> impl Iterator<Item = (usize, &'static Slot)> {
        (1..self.slot_count()).map(move |i| (i, self.slot(i)))
    }

    /// The slot of an owner, or `None` for nobody and for garbage.
    #[inline]
    pub(crate) fn owner_slot(self, tag: Tag) -> Option<&'static Slot> {
        (tag.slot() != 0 && tag.slot() < self.slot_count()).then(|| self.slot(tag.slot()))
    }

    /// The process of an owner, which may have died, as long as neither its slot nor its record is another's.
    pub(crate) fn process_of(self, owner: Tag) -> Option<ProcessId> {
        let slot = self.owner_slot(owner)?;
        let process = Tag::of_word(slot.watched.process.load(Ordering::Acquire));
        if process.is_nobody() || process.slot() >= self.process_count() {
            return None;
        }
        let record = self.process(process.slot());
        let pid = record.pid.get();
        // Both generations are read after the data whose validity they confirm.
        let same = record.state().generation == process.generation()
            && slot.state().generation == owner.generation();
        (same && pid != 0).then(|| ProcessId::of_pid(pid))
    }

    /// The time namespace in which start times mean what they do in the pool; 0 if that is unknown.
    pub(crate) fn times(self) -> u64 {
        self.header().time_namespace.load(Ordering::Relaxed)
    }

    /// How many process records there are, counting the unused record 0.
    pub(crate) fn process_count(self) -> usize {
        let max = self.header().max_processes() as u64;
        self.header()
            .watermarks
            .processes
            .load(Ordering::Acquire)
            .min(max) as usize
    }

    /// The record with that index, which is below [`Arena::process_count`].
    pub(crate) fn process(self, index: usize) -> &'static Process {
        assert!(index < PROCESSES.max);
        // SAFETY: as for slots.
        unsafe { self.entry(PROCESSES, index) }
    }

    /// Every record that was ever claimed, with its index.
    pub(crate) fn processes(self) -> impl Iterator<Item = (usize, &'static Process)> {
        (1..self.process_count()).map(move |i| (i, self.process(i)))
    }

    /// How many bits of a record's row of holds are committed.
    pub(crate) fn held(self, process: usize) -> usize {
        let held = self.process(process).held.load(Ordering::Acquire);
        held.min(OBJECTS.max as u64) as usize
    }

    /// A record's bitmap of held objects, as far as it is committed.
    pub(crate) fn hold_row(self, process: usize) -> impl Iterator<Item = &'static AtomicU64> {
        let row = self.outer_holds(process).iter().skip(HOLD_WORDS);
        self.process(process).holds.iter().chain(row)
    }

    /// The word with an object's bit in a record's bitmap, if it is committed.
    pub(crate) fn hold_word(self, process: usize, object: usize) -> Option<&'static AtomicU64> {
        let word = object / 64;
        match self.process(process).holds.get(word) {
            None => self.outer_holds(process).get(word),
            own => own,
        }
    }

    /// The row outside the record, whose first words are not used.
    fn outer_holds(self, process: usize) -> &'static [AtomicU64] {
        let words = self.held(process) / 64;
        let row = self.pointer::<AtomicU64>(HOLDS.offset + process * HOLDS.entry);
        // SAFETY: the row is committed up to `held`, which only rises and is no more than a row has room
        // for; it consists of atomics.
        unsafe { std::slice::from_raw_parts(row, words) }
    }

    /// A word of a block, of an object's entry, or of a name's entry, by its address. Addresses in
    /// intents and permits may be garbage: nothing else in the pool is changed through them.
    pub(crate) fn word_at(self, address: usize) -> Option<&'static AtomicU64> {
        let watermarks = &self.header().watermarks;
        let is_of = |table: TablePlace, count: &AtomicU64| {
            let count = (count.load(Ordering::Acquire) as usize).min(table.max);
            address.wrapping_sub(self.base() + table.offset) < count * table.entry
        };
        let inside = self.data_range().contains(address)
            || is_of(OBJECTS, &watermarks.objects)
            || is_of(NAMES, &watermarks.names);
        // SAFETY: an aligned word of the mapped file, which reaches to the end of the last slice;
        // both tables are committed. Whoever recorded the address accesses it through atomics, and
        // keeps it from being freed.
        (inside && address.is_multiple_of(8))
            .then(|| unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address) })
    }

    /// How many bytes of the pool's slices lie at an address and behind it.
    #[inline]
    pub(crate) fn room_at(self, address: usize) -> usize {
        self.data_range().room_at(address)
    }

    /// Where the pool's slices are, for a caller that asks about more than one address.
    #[inline]
    pub(crate) fn data_range(self) -> DataRange {
        // The watermark suffices: see `slice_of`.
        let slices = self.header().watermarks.slices.load(Ordering::Acquire) as usize;
        DataRange {
            first: self.slice_address(0),
            bytes: slices << SLICE_SHIFT,
        }
    }

    /// The low half of a 64-bit word, which is what the kernel can sleep on.
    #[inline]
    pub(crate) fn low_half(word: &AtomicU64) -> &AtomicU32 {
        const { assert!(cfg!(target_endian = "little")) };
        // SAFETY: the low half of an aligned 64-bit word is an aligned 32-bit word of the same
        // lifetime; it is only handed to the kernel and loaded, never stored through.
        unsafe { &*std::ptr::from_ref(word).cast::<AtomicU32>() }
    }
}

/// The pool's slices, as many as there were at a moment.
#[derive(Clone, Copy)]
pub(crate) struct DataRange {
    first: usize,
    bytes: usize,
}

impl DataRange {
    /// How many bytes of the slices lie at an address and behind it.
    #[inline]
    pub(crate) fn room_at(self, address: usize) -> usize {
        // If the subtraction wraps to a number too large, the address is before the first slice.
        self.bytes.saturating_sub(address.wrapping_sub(self.first))
    }

    /// True if an address is in one of the slices; and with it all that is there, if that is
    /// aligned to its size, or to more.
    #[inline]
    pub(crate) fn contains(self, address: usize) -> bool {
        address.wrapping_sub(self.first) < self.bytes
    }
}
