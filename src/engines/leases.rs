//! Leased elements of queues: elements that were taken, but not for good.
//!
//! A leased element lies in an entry that names its holder. When the holder is done, the entry
//! becomes free; when the holder gives the element back, or dies, the element is taken again before
//! all others of the queue.
//!
//! ```text
//! block    0    words of an element
//!          8    how many entries were ever used
//!          16   how often an element was about to be BACK, or to be taken that was
//!          24   a bell for threads that wait for an entry
//!          64   entries, each a state, the element's position, how often it was leased, and the element
//! ```
//!
//! | state       | meaning | next, by whom |
//! |-------------|-------------------------------------|----------------------------------------|
//! | FREE        |                                     | TAKING, by a thread |
//! | TAKING, tag | its owner is about to take an element | HELD by the owner or its recovery; FREE by the owner, or its recovery, or whoever meets it when the owner is over |
//! | HELD, tag   | the owner has the element           | FREE by the owner: done; BACK by the owner, or by whoever meets it when the owner is over |
//! | BACK, turn  | the element waits to be taken again | FREE by whoever pops it; HELD by whoever leases it |
//!
//! An owner is "over" if it is dead and its intent is resolved. The intent LEASE has the cell, the
//! lap and the entry. If the cell says LEASING by the dead owner, the element was taken: the entry
//! becomes HELD, and then the cell becomes free. If not, and the entry is TAKING, the entry becomes
//! free.
//!
//! Invariants
//! 1. The position and the element are stored while the entry is TAKING, by its owner.
//! 2. Each time an element becomes BACK, it gets a new turn: what the count became then. So an exchange from BACK
//!    cannot mistake one element for another, nor for the same one that has been taken since and is BACK anew.
//! 3. The count is raised between the look that finds an entry BACK and the exchange that takes the
//!    element; and before an entry becomes BACK, by the thread that has it or has found its owner over.
//!    So if two looks find the same entries BACK, with the same elements, and the count has not changed
//!    from before the first look to after the second, these entries were BACK all the time in between,
//!    and no others were at any time. (A thread that was about to do one of the two when the count was
//!    read has done it at most once, and for an entry to be as it was takes both.) If a thread is killed
//!    in between, it has only counted something that did not happen.
//! 4. A thread that takes an element that is BACK, or reports it, has read the count before the look that found it to
//!    be the first, and the count is the same when the thread raises it, or has looked. So if an element comes back,
//!    and then a later one does, the later one is not taken first: a thread that did not find the first one BACK has
//!    read the count before it was raised for the second. If the count is not the same, the thread looks again:
//!    somebody has made progress, by something that came back or was taken.
//! 5. The number of attempts is 0 when an entry becomes HELD for the first time; after that the holder raises it, before
//!    it gives the lease to its caller. So a holder that is killed in between has not made an attempt.

use super::bell::Bell;
use super::queue::{CELL, Header, LAP, LEASE, make, store};
use super::word;
use crate::allocator::check::CheckReport;
use crate::allocator::{AllocError, block};
use crate::layout::arena::Arena;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::leased::{self, BACK, FREE, HELD, STATE, TAKING, TURN};
pub(crate) use crate::protocol::leased::{Seen, Survey};

/// The number of elements of a queue that can be leased at a time.
const LEASES: usize = 64;

/// The argument of LEASE that names the entry.
const ENTRY: usize = 2;

/// The offset in the block of the number of entries that were ever used.
const USED: usize = 8;
const CHANGES: usize = 16;
const BELL: usize = 24;
const FIRST_ENTRY: usize = 64;
/// The words of an entry before those of the element.
const HEAD: usize = 3;

/// An entry into which an element can be, or has been, leased.
pub(crate) type LeaseEntry = leased::Entry<'static>;

/// The entries of a queue.
#[derive(Clone, Copy)]
pub(crate) struct LeaseTable {
    first: usize,
    stride: usize,
}

impl Header {
    /// The entries, if they have been made.
    #[inline]
    pub(crate) fn leases(&self, words: usize) -> Option<LeaseTable> {
        // Acquire: the entries are filled in. SeqCst: a thread that sleeps until an element comes back has announced that
        // before this look; see `protocol::bell`.
        let address = self.lease_block.load(Ordering::SeqCst) as usize;
        let stride = 8 * (HEAD + words);
        // If the word is garbage, it may name anything.
        let fits = address != 0
            && address.is_multiple_of(64)
            && self.arena().room_at(address) >= FIRST_ENTRY + LEASES * stride;
        fits.then(|| LeaseTable {
            first: address + FIRST_ENTRY,
            stride,
        })
    }

    /// The entries, which are made now if need be; `None` if the word names something else.
    pub(crate) fn leases_or_make(
        &self,
        arena: Arena,
        slot: &Slot,
        words: usize,
    ) -> Result<Option<LeaseTable>, AllocError> {
        if self.lease_block.load(Ordering::Acquire) == 0 {
            self.make_leases(arena, slot, words)?;
        }
        Ok(self.leases(words))
    }

    #[cold]
    fn make_leases(&self, arena: Arena, slot: &Slot, words: usize) -> Result<(), AllocError> {
        let size = (HEAD + words)
            .checked_mul(8 * LEASES)
            .and_then(|size| size.checked_add(FIRST_ENTRY))
            .ok_or(AllocError::TooLarge)?;
        make(arena, slot, &self.lease_block, size, |start| {
            // SAFETY: `make` fills a new block of `size` bytes: up to the end of the last entry.
            unsafe {
                store(start, words as u64);
                store(start + USED, 0);
                store(start + CHANGES, 0);
                store(start + BELL, 0);
                for index in 0..LEASES {
                    store(start + FIRST_ENTRY + index * 8 * (HEAD + words), FREE);
                }
            }
        })
    }
}

impl LeaseTable {
    fn entry(&self, index: usize) -> LeaseEntry {
        let state =
            std::ptr::with_exposed_provenance::<AtomicU64>(self.first + index * self.stride);
        // SAFETY: the block has `LEASES` entries, which is above all callers' indexes; it is in the
        // pool's data, and stays as long as the queue does; an entry begins with two atomic words.
        unsafe {
            LeaseEntry {
                state: &*state,
                position: &*state.wrapping_add(1),
            }
        }
    }

    fn used(&self) -> &'static AtomicU64 {
        // SAFETY: a word of the block, see `entry`.
        unsafe { &*std::ptr::with_exposed_provenance(self.first - FIRST_ENTRY + USED) }
    }

    fn count(&self) -> &'static AtomicU64 {
        // SAFETY: a word of the block, see `entry`.
        unsafe { &*std::ptr::with_exposed_provenance(self.first - FIRST_ENTRY + CHANGES) }
    }

    /// Rung when an entry is free again, or its element has come back: by whoever had the entry, for one of those that
    /// wait. Who was woken and does not take it rings for the next one.
    pub(crate) fn bell(&self) -> &'static Bell {
        // SAFETY: a word of the block, see `entry`; a bell is one.
        unsafe { &*std::ptr::with_exposed_provenance(self.first - FIRST_ENTRY + BELL) }
    }

    /// See invariant 3.
    pub(crate) fn changes(&self) -> u64 {
        self.count().load(Ordering::SeqCst)
    }

    /// Counts that an element that is BACK is about to be taken, by invariant 4. False if somebody has counted since
    /// the count was `changes`.
    pub(crate) fn announce_after(&self, changes: u64) -> bool {
        leased::announce_after(self.count(), changes)
    }

    /// Asked when no entry could be taken. True if that is so only for now: an entry is free again,
    /// or its owner has not got an element yet.
    pub(crate) fn is_full_for_now(&self) -> bool {
        (0..LEASES).any(|index| {
            let state = self.entry(index).state.load(Ordering::Relaxed);
            matches!(state & STATE, FREE | TAKING)
        })
    }

    /// True if a thread itself has all leases, so that it would wait for ever for one of them to end.
    pub(crate) fn are_all_held_by(&self, me: Tag) -> bool {
        (0..LEASES).all(|index| self.entry(index).state.load(Ordering::Relaxed) == me.word() | HELD)
    }

    /// The entries that were ever used.
    fn entries(&self) -> impl Iterator<Item = LeaseEntry> {
        let table = *self;
        // SeqCst: as in `Header::leases`.
        let used = self.used().load(Ordering::SeqCst) as usize;
        (0..used.min(LEASES)).map(move |index| table.entry(index))
    }

    /// Takes an entry for an element that the thread is about to take, and opens the intent that
    /// says so.
    pub(crate) fn take(&self, slot: &Slot, lap: u64) -> Option<LeaseEntry> {
        (0..LEASES)
            .map(|index| self.entry(index))
            .enumerate()
            .find(|(index, entry)| {
                if !entry.is_free() {
                    return false;
                }
                let address = std::ptr::from_ref(entry.state).addr() as u64;
                slot.intent.open(LEASE, &[0, lap, address]);
                self.used().fetch_max(*index as u64 + 1, Ordering::SeqCst);
                let taken = entry.claim(slot.tag());
                if !taken {
                    slot.intent.close();
                }
                taken
            })
            .map(|(_, entry)| entry)
    }

    /// What the entries hold, and the entry whose element is to be taken before all others, if one
    /// waits. `me` is the caller, whose own leases do not count as held.
    pub(crate) fn survey(&self, arena: Arena, me: Tag) -> (Survey, Option<LeaseEntry>) {
        leased::survey(self.entries(), me, |entry| self.bury(entry, arena))
    }

    /// [Looks](lock::look_for_parked) for dead holders of leases whose threads had ended before. True if another
    /// look is worthwhile.
    #[cold]
    pub(crate) fn look_for_parked(&self, arena: Arena) -> bool {
        self.entries().any(|entry| {
            let state = entry.state.load(Ordering::Relaxed);
            state & STATE == HELD && lock::look_for_parked(arena, Tag::of_word(state), &mut false)
        })
    }

    /// Calls `each` with the entries whose elements wait to be taken again.
    pub(crate) fn each_back(&self, arena: Arena, mut each: impl FnMut(LeaseEntry, Seen)) {
        for entry in self.entries() {
            self.bury(&entry, arena);
            if let Some(seen) = entry.is_back() {
                each(entry, seen);
            }
        }
    }

    /// Ends a lease, which the caller holds, and makes the element available again.
    pub(crate) fn give_back(&self, entry: &LeaseEntry) {
        entry.give_back(self.count());
    }

    /// Takes the entry from an owner that is over.
    fn bury(&self, entry: &LeaseEntry, arena: Arena) {
        entry.bury(self.count(), |owner| lock::is_over(arena, owner));
    }
}

impl LeaseEntry {
    /// The first word of the element.
    pub(crate) fn element(&self) -> *const AtomicU64 {
        std::ptr::from_ref(self.state).wrapping_add(HEAD)
    }

    /// How often the element has been leased. Only the owner of the entry touches it.
    fn attempts(&self) -> &AtomicU64 {
        // SAFETY: a word of the entry, before the element.
        unsafe { &*std::ptr::from_ref(self.state).wrapping_add(HEAD - 1) }
    }

    /// Counts that the element is leased, and says how often it has been. Called once for each lease, by its holder,
    /// before anybody sees the element. By invariant 5.
    pub(crate) fn count_attempt(&self) -> u32 {
        // Relaxed: what the holder before has stored is known since the exchange that took the entry, as the element is.
        let attempts = self.attempts().load(Ordering::Relaxed).saturating_add(1);
        self.attempts().store(attempts, Ordering::Relaxed);
        u32::try_from(attempts).unwrap_or(u32::MAX)
    }

    /// Records which element the entry is going to hold, before it is taken. By invariant 1.
    pub(crate) fn record(&self, slot: &Slot, cell: &AtomicU64, lap: u64, position: u64) {
        self.attempts().store(0, Ordering::Relaxed);
        self.prepare(position);
        // The cell that the intent names so far is not ours, so its lap does not matter.
        slot.intent.set_arg(LAP, lap);
        let address = std::ptr::from_ref(cell).addr() as u64;
        slot.intent.set_arg(CELL, address);
    }
}

/// Resolves LEASE. `cell` is the cell that the intent names, if it names one yet.
pub(super) fn resolve(arena: Arena, slot: &Slot, owner: Tag, cell: Option<&AtomicU64>) {
    let Some(state) = word(arena, slot.intent.arg(ENTRY)) else {
        return;
    };
    leased::resolve(state, cell, owner, slot.intent.arg(LAP));
}

/// Checks the entries at rest.
pub(super) fn check(arena: Arena, header: &Header, report: &mut CheckReport) {
    let address = header.lease_block.load(Ordering::Acquire);
    if address == 0 {
        return;
    }
    let words = word(arena, address).map_or(0, |w| w.load(Ordering::Relaxed) as usize);
    let size = block::usable_size(arena, address as usize).unwrap_or(0);
    let needed = words
        .checked_add(HEAD)
        .and_then(|n| n.checked_mul(8 * LEASES));
    if needed.is_none_or(|needed| needed > size.saturating_sub(FIRST_ENTRY)) {
        report.problem(format_args!(
            "leases at {address:#x} of {words} words have {size} bytes"
        ));
        return;
    }
    let Some(table) = header.leases(words) else {
        return;
    };
    for entry in table.entries() {
        let state = entry.state.load(Ordering::Relaxed);
        let sound = match state & STATE {
            FREE => state == FREE,
            HELD => true,
            BACK => (1..=table.changes()).contains(&(state >> TURN)),
            _ => false,
        };
        if !sound {
            report.problem(format_args!(
                "a lease at {address:#x} is {state:#x} at rest"
            ));
        }
    }
}
