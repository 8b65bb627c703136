//! Which participant uses which elements of an array: the table of claims, and how element
//! operations and claims keep out of each other's way.
//!
//! # Rationale
//!
//! A claimed range is a plain slice, so nobody else may touch it, not even for one element. An
//! element operation is far too short to enter a range in a table. So the two use Dekker's scheme:
//! the operation shows the array in its thread's slot and then looks at the table; a claimer enters
//! its range and then looks at the slots. At least one of the two sees the other. The operation
//! then withdraws and reports the claim; the claimer waits, for as long as a copy takes. What a
//! slot shows includes a count that goes up, so a claimer waits for at most one operation of each
//! thread.
//!
//! An entry's `word`:
//!
//! ```text
//! bit 0   WAITERS    somebody sleeps until it changes
//! bit 1   SHARED     others may read
//! bit 2   EXCLUSIVE  nobody else may do anything
//! bit 3   GROWING    as EXCLUSIVE, and over soon: others wait
//! bit 4.. the owner's tag
//! ```
//!
//! | word | meaning | next word, and who stores it |
//! |------|---------|---------------|
//! | 0 | free | held, by the holder of the lock |
//! | tag and mode | held | 0, by its owner; ORPHAN, by an EXCLUSIVE one that panics; if the owner is dead, as below, by the holder of the lock |
//! | tag of a dead owner, SHARED | over | 0 |
//! | tag of a dead owner, GROWING | over, once its intent is resolved | 0 |
//! | tag of a dead owner, EXCLUSIVE | over; the range may be half written | ORPHAN |
//! | EXCLUSIVE without a tag: ORPHAN | a mark that excludes nobody | 0 when the range is claimed exclusively |
//!
//! | killed | leaves |
//! |--------|--------|
//! | before the entry's word is stored | nothing that has an effect |
//! | after it, at any time before the word is cleared | an entry of a dead owner |
//! | while orphan marks are struck | marks of a range that is claimed: the next claimer is told of them, too |
//! | while two marks are merged | a mark that is too wide |
//! | in an element operation | a word in a dead slot, which has no effect once the slot's intent is resolved |
//!
//! Invariants
//! 1. Ranges and ORPHAN marks are changed under the lock, and a range only while its word is 0 or
//!    ORPHAN. An owner that panics makes its claim a mark without the lock, and does not touch the
//!    entry any more. Outside of the lock a range may be read torn; a thread that acts on it looks again
//!    under the lock.
//! 2. Every entry that is not 0 is below `high`.
//! 3. If two entries with live owners overlap, both are SHARED.
//! 4. Nobody waits under the lock, and nobody waits for a claim while showing an element, except
//!    for the lock of a stripe, whose holder waits for nothing.

use std::ops::Range;

use crate::layout::arena::Arena;
use crate::participants::deadline::Deadline;
use crate::participants::habit::Looks;
use crate::participants::pid::ProcessId;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::thread::{self, InPool};
use crate::participants::{life, lock, recovery};
use crate::primitive::{AtomicU64, Ordering, fence};
use crate::protocol::claimed::{self, Bounds};
use crate::sys::futex;

/// The number of claims that an array can have at once.
const ENTRIES: usize = 62;

const WAITERS: u64 = lock::WAITERS;
const SHARED: u64 = 2;
const EXCLUSIVE: u64 = 4;
const GROWING: u64 = 8;
const MODE: u64 = SHARED | EXCLUSIVE | GROWING;
const ORPHAN: u64 = EXCLUSIVE;

/// What a slot shows in `watched.element`: the address of the array's claims, two flags and a
/// count.
mod shown {
    /// An operation is under way.
    pub(super) const ACTIVE: u64 = 1;
    /// It writes.
    pub(super) const WRITES: u64 = 2;
    /// One more operation.
    pub(super) const ONE: u64 = 1 << 48;
    pub(super) const COUNT: u64 = !(ONE - 1);
    pub(super) const ADDRESS: u64 = !COUNT & !7;
}

/// What a claim lets its owner do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(super) enum Mode {
    Shared = SHARED,
    Exclusive = EXCLUSIVE,
    Growing = GROWING,
}

/// What an element operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Reads,
    Writes,
}

#[repr(C)]
struct Entry {
    start: AtomicU64,
    end: AtomicU64,
    word: AtomicU64,
}

impl InPool for Entry {}

/// The table.
#[repr(C)]
pub(super) struct Claims {
    /// A `participants::lock`.
    lock: AtomicU64,
    /// Invariant 2; lowered under the lock.
    high: AtomicU64,
    entries: [Entry; ENTRIES],
}

/// Why a claim or an access was refused.
pub(super) enum ClaimRefusal {
    Claimed(ProcessId),
    TooMany,
}

/// An entry's state, seen under the lock.
enum Seen {
    Free,
    Orphan,
    Held(u64),
    /// The owner is dead, and what it was doing is not resolved yet.
    Unresolved(u64),
}

/// The outcome of an attempt under the lock.
enum Attempt<'a, T> {
    Done(T),
    /// The caller has to wait for this entry's owner, which will not take long.
    Wait(&'a Entry, u64),
}

/// A claim that was taken. Dropping it gives the range back.
pub(super) struct Taken<'a> {
    entry: &'a Entry,
    pub(super) orphaned: bool,
    /// The thread was already unwinding when the claim was taken, so that says nothing about the claim.
    unwinding: bool,
}

impl Taken<'_> {
    /// Whether the claim is this thread's. A copy in a forked child is not.
    pub(super) fn is_ours(&self) -> bool {
        let owner = Tag::of_word(self.entry.word.load(Ordering::Relaxed));
        thread::known_slot_near(self.entry).is_some_and(|slot| slot.tag() == owner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.is_ours() {
            let is_exclusive = self.entry.word.load(Ordering::Relaxed) & MODE == EXCLUSIVE;
            let panics = is_exclusive && !self.unwinding && std::thread::panicking();
            // Release: whoever finds the entry free sees what was written under the claim. A mark is
            // from here on for the holder of the lock, as if a dead owner had left it.
            let next = if panics { ORPHAN } else { 0 };
            let was = self.entry.word.swap(next, Ordering::SeqCst);
            wake(self.entry, was);
            thread::guard_dropped(self.entry);
        }
    }
}

/// An element operation that no claim is in the way of, until this is dropped.
pub(super) struct Pass<'a> {
    slot: &'a Slot,
    shown: u64,
}

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release pairs with the claimer's Acquire: the copy is complete.
        let over = self.shown & !shown::ACTIVE;
        self.slot.watched.element.store(over, Ordering::Release);
    }
}

fn wake(entry: &Entry, word: u64) {
    if word & WAITERS != 0 {
        futex::wake(Arena::low_half(&entry.word), u32::MAX);
    }
}

impl Entry {
    const fn new() -> Self {
        Entry {
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            word: AtomicU64::new(0),
        }
    }

    fn bounds(&self) -> Bounds<'_> {
        [&self.start, &self.end]
    }

    fn range(&self) -> Range<usize> {
        claimed::range(self.bounds())
    }

    fn set_range(&self, range: Range<usize>) {
        claimed::set_range(self.bounds(), range);
    }

    /// The entry's state. What a dead owner has left is put right first. The caller holds the lock.
    fn judge(&self, arena: Arena) -> Seen {
        // Acquire pairs with the Release of the last owner.
        let word = self.word.load(Ordering::SeqCst);
        let owner = Tag::of_word(word);
        if word == 0 {
            return Seen::Free;
        }
        if owner.is_nobody() {
            return Seen::Orphan;
        }
        if !life::is_gone(arena, owner) {
            return Seen::Held(word);
        }
        if !recovery::is_resolved(arena, owner) {
            return Seen::Unresolved(word);
        }
        let (next, seen) = match word & MODE {
            EXCLUSIVE => (ORPHAN, Seen::Orphan),
            _ => (0, Seen::Free),
        };
        // Only WAITERS can have changed: the owner is dead, and we hold the lock.
        let was = self.word.swap(next, Ordering::SeqCst);
        wake(self, was);
        seen
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Claims {
    pub(super) const fn new() -> Self {
        Claims {
            lock: AtomicU64::new(0),
            high: AtomicU64::new(0),
            entries: [const { Entry::new() }; ENTRIES],
        }
    }

    fn used(&self) -> &[Entry] {
        let high = self.high.load(Ordering::SeqCst) as usize;
        &self.entries[..high.min(ENTRIES)]
    }

    /// Runs `f`, which runs none of the user's code, under the lock.
    fn locked<R>(&self, arena: Arena, slot: &Slot, f: impl FnOnce() -> R) -> R {
        // The table is right at every instant; there is nothing to repair.
        lock::with(arena, slot, &self.lock, f)
    }

    /// Claims a range, which is not empty, or says why not. Waits for operations on elements that
    /// are under way, and for a growing that is under way to end.
    pub(super) fn take(
        &self,
        arena: Arena,
        slot: &Slot,
        range: Range<usize>,
        mode: Mode,
    ) -> Result<Taken<'_>, ClaimRefusal> {
        let mut looked = false;
        loop {
            let attempt = self.locked(arena, slot, || self.enter(arena, slot, range.clone(), mode));
            if attempt.is_err() && self.look_for_parked(arena, &mut looked) {
                continue;
            }
            match attempt? {
                Attempt::Done(taken) => {
                    // The claim is entered before the slots are looked at; pairs with the SeqCst of
                    // `pass`.
                    fence(Ordering::SeqCst);
                    self.wait_for_elements(arena, slot, mode);
                    return Ok(taken);
                }
                Attempt::Wait(entry, word) => wait(arena, slot, entry, word),
            }
        }
    }

    /// Enters a claim. The caller holds the lock.
    fn enter(
        &self,
        arena: Arena,
        slot: &Slot,
        range: Range<usize>,
        mode: Mode,
    ) -> Result<Attempt<'_, Taken<'_>>, ClaimRefusal> {
        let used = self.used();
        let (mut free, mut needed, mut orphaned) = (None, 0, false);
        for (index, entry) in used.iter().enumerate() {
            let overlaps = overlap(&entry.range(), &range);
            match entry.judge(arena) {
                Seen::Free => {
                    free = free.or(Some(index));
                    continue;
                }
                Seen::Orphan => orphaned |= overlaps && mode == Mode::Exclusive,
                Seen::Held(word) if overlaps && (mode != Mode::Shared || word & SHARED == 0) => {
                    if word & GROWING != 0 {
                        return Ok(Attempt::Wait(entry, word));
                    }
                    return refused_by(arena, entry, word);
                }
                Seen::Held(_) => {}
                Seen::Unresolved(word) => return Ok(Attempt::Wait(entry, word)),
            }
            needed = index + 1;
        }
        let next = (used.len() < ENTRIES).then_some(used.len());
        let place = free.or(next).or_else(|| self.merge_orphans());
        let place = place.ok_or(ClaimRefusal::TooMany)?;
        let entry = &self.entries[place];
        entry.set_range(range.clone());
        let high = needed.max(place + 1);
        if high != used.len() {
            self.high.store(high as u64, Ordering::SeqCst);
        }
        // The claim exists from this store on.
        let word = slot.tag().word() | mode as u64;
        entry.word.store(word, Ordering::SeqCst);
        if orphaned {
            self.strike_orphans(&range);
        }
        thread::guard_made(entry);
        Ok(Attempt::Done(Taken {
            entry,
            orphaned,
            unwinding: std::thread::panicking(),
        }))
    }

    /// Merges two marks into one, and frees the other's entry. The caller holds the lock.
    fn merge_orphans(&self) -> Option<usize> {
        let is_mark = |entry: &Entry| entry.word.load(Ordering::Relaxed) == ORPHAN;
        let kept = self.entries.iter().position(is_mark)?;
        let freed = kept + 1 + self.entries[kept + 1..].iter().position(is_mark)?;
        let (a, b) = (self.entries[kept].range(), self.entries[freed].range());
        self.entries[kept].set_range(a.start.min(b.start)..a.end.max(b.end));
        self.entries[freed].word.store(0, Ordering::SeqCst);
        Some(freed)
    }

    /// Takes a range, which is claimed now, out of all marks; a mark that extends beyond both ends
    /// of the range stays whole. The caller holds the lock.
    fn strike_orphans(&self, range: &Range<usize>) {
        for entry in self.used() {
            let mark = entry.range();
            if entry.word.load(Ordering::Relaxed) != ORPHAN || !overlap(&mark, range) {
                continue;
            }
            match (mark.start < range.start, range.end < mark.end) {
                (false, false) => entry.word.store(0, Ordering::SeqCst),
                (true, false) => entry.set_range(mark.start..range.start),
                (false, true) => entry.set_range(range.end..mark.end),
                (true, true) => {}
            }
        }
    }

    fn address(&self) -> u64 {
        std::ptr::from_ref(self).addr() as u64
    }

    /// Waits until every operation that began before the claim was entered has ended.
    fn wait_for_elements(&self, arena: Arena, slot: &Slot, mode: Mode) {
        let minds = |word: u64| {
            word & shown::ACTIVE != 0
                && word & shown::ADDRESS == self.address()
                && (mode != Mode::Shared || word & shown::WRITES != 0)
        };
        for (index, other) in arena.slots() {
            // Acquire pairs with the Release of `Pass::drop`.
            let first = other.watched.element.load(Ordering::SeqCst);
            if minds(first) && index != slot.tag().slot() {
                wait_for_element(arena, slot, index, first);
            }
        }
    }

    /// Lets an operation on an element pass, unless the element is claimed.
    #[inline]
    pub(super) fn pass<'a>(
        &self,
        arena: Arena,
        slot: &'a Slot,
        index: usize,
        access: Access,
    ) -> Result<Pass<'a>, ClaimRefusal> {
        let mut looked = false;
        loop {
            // Relaxed: the word is our own.
            let before = slot.watched.element.load(Ordering::Relaxed);
            let writes = if access == Access::Writes {
                shown::WRITES
            } else {
                0
            };
            let count = (before & shown::COUNT).wrapping_add(shown::ONE);
            let shown = count | self.address() | shown::ACTIVE | writes;
            // SeqCst, like the loads of the table: the array is shown before the table is looked
            // at.
            slot.watched.element.store(shown, Ordering::SeqCst);
            let pass = Pass { slot, shown };
            if self.high.load(Ordering::SeqCst) == 0 || !self.seems_claimed(index, access) {
                return Ok(pass);
            }
            // The operation is withdrawn before waiting, by invariant 4.
            drop(pass);
            let met = self.meet(arena, slot, index, access);
            if met.is_err() && self.look_for_parked(arena, &mut looked) {
                continue;
            }
            met?;
        }
    }

    /// [Looks](lock::look_for_parked) for dead owners of claims whose threads had ended before. True if another try
    /// is worthwhile; at most once a call.
    #[cold]
    fn look_for_parked(&self, arena: Arena, looked: &mut bool) -> bool {
        let owner = |entry: &Entry| Tag::of_word(entry.word.load(Ordering::Relaxed));
        let parked = |entry| lock::look_for_parked(arena, owner(entry), &mut false);
        !std::mem::replace(looked, true) && self.used().iter().any(parked)
    }

    fn seems_claimed(&self, index: usize, access: Access) -> bool {
        let counts = |word: u64| {
            !Tag::of_word(word).is_nobody() && (access == Access::Writes || word & SHARED == 0)
        };
        let mut used = self.used().iter();
        used.any(|entry| claimed::bars(&entry.word, entry.bounds(), index, counts))
    }

    /// Looks at the table again under the lock: refuses, or waits, or finds nothing in the way.
    #[cold]
    fn meet(
        &self,
        arena: Arena,
        slot: &Slot,
        index: usize,
        access: Access,
    ) -> Result<(), ClaimRefusal> {
        let attempt = self.locked(arena, slot, || {
            for entry in self.used() {
                if !entry.range().contains(&index) {
                    continue;
                }
                match entry.judge(arena) {
                    Seen::Unresolved(word) => return Ok(Attempt::Wait(entry, word)),
                    Seen::Held(word) if word & GROWING != 0 => {
                        return Ok(Attempt::Wait(entry, word));
                    }
                    Seen::Held(word) if access == Access::Writes || word & SHARED == 0 => {
                        return refused_by(arena, entry, word);
                    }
                    _ => {}
                }
            }
            Ok(Attempt::Done(()))
        })?;
        if let Attempt::Wait(entry, word) = attempt {
            wait(arena, slot, entry, word);
        }
        Ok(())
    }
}

/// What an attempt comes to that a claim is in the way of. A claim whose owner ends just now is waited for.
#[cold]
fn refused_by<'a, T>(
    arena: Arena,
    entry: &'a Entry,
    word: u64,
) -> Result<Attempt<'a, T>, ClaimRefusal> {
    match arena.process_of(Tag::of_word(word)) {
        Some(by) => Err(ClaimRefusal::Claimed(by)),
        // Still held, by nobody who is known: the pool is damaged.
        None if matches!(entry.judge(arena), Seen::Held(held) if held == word) => {
            Err(ClaimRefusal::Claimed(ProcessId::of_pid(0)))
        }
        None => Ok(Attempt::Wait(entry, word)),
    }
}

/// Waits a while for an entry's word to change.
#[cold]
fn wait(arena: Arena, slot: &Slot, entry: &Entry, word: u64) {
    let mut looks = Looks::new();
    while looks.go_on() {
        if entry.word.load(Ordering::Relaxed) != word {
            return;
        }
    }
    if let Some(waiting) = lock::announce(&entry.word, word) {
        let half = Arena::low_half(&entry.word);
        let owner = Tag::of_word(word);
        lock::sleep(arena, slot, half, waiting as u32, owner, Deadline::NEVER);
    }
}

/// Waits until a slot shows something other than `first`, or its owner is dead and its intent is
/// resolved.
#[cold]
fn wait_for_element(arena: Arena, slot: &Slot, index: usize, first: u64) {
    /// The number of looks that yield the processor, before sleeping.
    const YIELDS: u32 = 900;
    let other = arena.slot(index);
    let (mut looks, mut yields) = (Looks::new(), 0);
    // Acquire: as in the caller.
    while other.watched.element.load(Ordering::SeqCst) == first {
        let owner = Tag::new(index, other.state().generation);
        if lock::is_over(arena, owner) {
            return;
        }
        if looks.go_on() {
            continue;
        }
        if yields < YIELDS {
            yields += 1;
            std::thread::yield_now();
        } else {
            // The other is stopped, perhaps. Nobody wakes us, so this sleep ends after a tick.
            let half = Arena::low_half(&other.watched.element);
            lock::sleep(arena, slot, half, first as u32, owner, Deadline::NEVER);
        }
    }
}

const _: () = assert!(size_of::<Claims>() == 16 + 24 * ENTRIES && MODE | WAITERS == Tag::FLAGS);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;
    use crate::participants::table::SlotPhase;
    use crate::pool::Scratch;

    /// The thread that was growing an array has died, and the one that is to complete the growing
    /// is stopped.
    #[test]
    fn what_a_dead_one_has_begun_is_waited_for() {
        let pool = Pool::builder().create().unwrap();
        let arena = pool.0;
        let tag = move || thread::slot(arena).unwrap().tag();
        let dead = std::thread::spawn(tag).join().unwrap();
        let slot = arena.slot(dead.slot());
        let free = slot.state();
        assert!(slot.turn(free, free.with(SlotPhase::Dead)));
        slot.life.word.store(1, Ordering::SeqCst);
        slot.intent.open(u64::MAX, &[]);

        let entry = Entry::new();
        let word = dead.word() | GROWING;
        entry.word.store(word, Ordering::SeqCst);
        assert!(matches!(entry.judge(arena), Seen::Unresolved(_)));
        slot.intent.close();
        assert!(matches!(entry.judge(arena), Seen::Free));
        slot.life.word.store(0, Ordering::SeqCst);
    }

    /// Elements are not compared with claims that are over.
    #[test]
    fn the_table_is_as_long_as_its_last_claim() {
        let pool = Scratch::new();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let layout = std::alloc::Layout::new::<Claims>();
        let block = pool.allocate(layout).unwrap().cast::<Claims>();
        // SAFETY: a new block of that layout, which is never freed.
        let claims = unsafe {
            block.write(Claims::new());
            block.as_ref()
        };
        let claim = |at| claims.take(arena, slot, at..at + 1, Mode::Shared).ok();
        assert!([0, 1, 2].map(claim).iter().all(Option::is_some));
        assert!(claim(3).is_some());
        assert_eq!(claims.used().len(), 1);
    }
}
