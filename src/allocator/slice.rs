//! Slices: who has which 16 KiB of data.
//!
//! Each slice has a tag, one authoritative word that names its state and, while it is on its way
//! from one state to another, the slot that moves it.
//!
//! | kind | rest of the word | meaning | memory |
//! |---------------|-------------|------------------------------------|---------------------|
//! | CLEAN  | 0                  | free, never used                   | committed, zero     |
//! | DIRTY  | 0                  | free                               | committed           |
//! | AGED   | 0                  | free, for some time                | committed           |
//! | KEPT   | number of slices   | free, first slice of a run that stays whole: see `kept` | committed |
//! | HOLE   | 0                  | free, given back                   | to be committed     |
//! | CLAIMED_CLEAN, _DIRTY, _HOLE | owner's tag | the owner is moving it  | as it was before |
//! | SPAN   | owner's tag, or 0  | first slice of a span; 0: nobody's | committed           |
//! | RUN    | number of slices   | first slice of a run               | committed           |
//! | TAIL   | distance to the first slice | further slice of a span or run, or of a kept one | committed |
//!
//! Taking n slices: each is claimed, from the lowest up, and committed if it is a hole; the tails
//! are tagged from the lowest up; the head is tagged last, and that is the moment at which they are
//! allocated. Behind the first one, DIRTY and AGED slices become its tails at once, up to one that
//! is neither: what they were need not be known any more. Giving them back: the head is claimed,
//! and that is the moment at which they are free; tails are tagged from the highest down, the head
//! last. Or, for a run, the head is claimed and then becomes KEPT, and the tails stay (`kept`).
//!
//! A run is extended where it lies: the slices behind it are claimed and committed; the head's
//! length becomes the larger one, which is the moment at which the run is extended; what is claimed
//! within the run is tagged as tails, from the lowest up ([`finish_extension`]), by its owner, by
//! recovery, or by a thread that frees or extends the run before that. All three change claimed
//! tags only by compare-exchange, and a thread that frees does so before it claims the head. So if
//! a claimed slice is looked at before its head, and is found not to be covered, it has been
//! changed meanwhile, or nobody else will change it.
//!
//! So what a dead owner leaves is, anywhere: claimed slices, each followed by zero or more tails
//! that lead to it. [`abandon`] frees those tails from the highest down, then the slice. A slice
//! that a run's length covers becomes the run's tail, and a hole gives back what memory it got.
//!
//! What is free ages: DIRTY slices become AGED, and AGED ones become holes ([`age`]), so that
//! memory that nobody has wanted for a while goes back, and memory that comes and goes stays. A
//! claimed AGED slice is a claimed DIRTY one.
//!
//! A bit for each slice says "free" in `FREE_HINTS`. It is a hint: set after a tag becomes free,
//! cleared after it is claimed, checked against the tag by every thread that uses it, and rebuilt
//! by each recovery and before an allocation fails.
//!
//! Invariants
//! 1. A claimed tag is changed only by its owner, or by the holder of the dead owner's life word, or,
//!    within a run, to a tail.
//! 2. A tail's distance leads to a head that covers it, kept or not, or to a claimed slice.
//! 3. A slice below the watermark is in exactly one of the states; beyond it nothing is read.

use super::kept;
use crate::layout::arena::{Arena, DATA, FREE_HINTS, SLICE, SLICE_SHIFT, TAGS};
use crate::layout::local;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, fence};
use crate::sys::memory::CommitError;

const KIND: u64 = 0xf;
const CLEAN: u64 = 0;
pub(crate) const DIRTY: u64 = 1;
pub(crate) const HOLE: u64 = 2;
const SPAN: u64 = 3;
const RUN: u64 = 4;
const TAIL: u64 = 5;
pub(crate) const AGED: u64 = 6;
const KEPT: u64 = 7;
/// Added to a free kind: the slice is claimed, and was of that kind.
const CLAIMED: u64 = 8;

/// A tag, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free { kind: u64 },
    Claimed { kind: u64, owner: Tag },
    Span { owner: Tag },
    Run { slices: usize },
    Kept { slices: usize },
    Tail { back: usize },
    Garbage,
}

#[inline]
pub(crate) fn state(tag: u64) -> State {
    match tag & KIND {
        kind @ (CLEAN..=HOLE | AGED) => State::Free { kind },
        SPAN => State::Span {
            owner: Tag::of_word(tag),
        },
        RUN => State::Run {
            slices: (tag >> 4) as usize,
        },
        KEPT => State::Kept {
            slices: (tag >> 4) as usize,
        },
        TAIL => State::Tail {
            back: (tag >> 4) as usize,
        },
        kind @ 8..=10 => State::Claimed {
            kind: kind - CLAIMED,
            owner: Tag::of_word(tag),
        },
        _ => State::Garbage,
    }
}

/// True if a slice with that tag has memory.
pub(crate) fn has_memory(tag: u64) -> bool {
    !matches!(
        state(tag),
        State::Free { kind: HOLE } | State::Claimed { kind: HOLE, .. }
    )
}

impl Slot {
    /// True if that is the tag of a span of the slot's owner.
    #[inline(always)]
    pub(crate) fn has_span(&self, tag: u64) -> bool {
        tag == self.tag.load(Ordering::Relaxed) | SPAN
    }
}

/// How far a tail is from its head; 0 for any other slice.
#[inline]
pub(crate) const fn distance(tag: u64) -> usize {
    if tag & KIND == TAIL {
        (tag >> 4) as usize
    } else {
        0
    }
}

#[inline]
pub(crate) const fn span_tag(owner: Tag) -> u64 {
    SPAN | owner.word()
}

pub(crate) const fn run_tag(slices: usize) -> u64 {
    RUN | (slices as u64) << 4
}

pub(crate) const fn kept_tag(slices: usize) -> u64 {
    KEPT | (slices as u64) << 4
}

pub(crate) const fn tail_tag(back: usize) -> u64 {
    TAIL | (back as u64) << 4
}

pub(crate) const fn claimed_tag(kind: u64, owner: Tag) -> u64 {
    (kind + CLAIMED) | owner.word()
}

impl Arena {
    /// How many slices there are.
    #[inline]
    pub(crate) fn slices(self) -> usize {
        let header = self.header();
        let max = header.max_slices.load(Ordering::Relaxed);
        header.watermarks.slices.load(Ordering::Acquire).min(max) as usize
    }

    /// The tag of a slice below [`Arena::slices`].
    #[inline]
    pub(crate) fn tag(self, slice: usize) -> &'static AtomicU64 {
        assert!(slice < DATA.max);
        // SAFETY: callers have compared the index with the number of slices.
        unsafe { self.entry(TAGS, slice) }
    }

    /// The tag of a slice, unchecked.
    ///
    /// # Safety
    ///
    /// The slice is below [`Arena::slices`], or was once.
    #[inline(always)]
    pub(crate) unsafe fn known_tag(self, slice: usize) -> &'static AtomicU64 {
        debug_assert!(slice < self.slices());
        // SAFETY: by the caller's promise; the number of slices never falls.
        unsafe { self.entry(TAGS, slice) }
    }

    /// The address of a slice's data.
    #[inline]
    pub(crate) fn slice_address(self, slice: usize) -> usize {
        self.base() + DATA.offset + (slice << SLICE_SHIFT)
    }

    /// The slice in which an address lies, if it is one of the pool's.
    #[inline(always)]
    pub(crate) fn slice_of(self, address: usize) -> Option<usize> {
        let slice = address.wrapping_sub(self.base() + DATA.offset) >> SLICE_SHIFT;
        // The watermark suffices: it was compared with the maximum when the pool was attached, and
        // a thread that grows the pool compares it.
        let slices = &self.header().watermarks.slices;
        (slice < slices.load(Ordering::Acquire) as usize).then_some(slice)
    }

    fn hint(self, slice: usize) -> (&'static AtomicU64, u64) {
        // SAFETY: callers have compared the index with the number of slices.
        (
            unsafe { self.entry(FREE_HINTS, slice / 64) },
            1 << (slice % 64),
        )
    }
}

/// Sets the hints of free slices.
pub(crate) fn hint_free(arena: Arena, start: usize, count: usize) {
    let mut slice = start;
    while slice < start + count {
        let (word, _) = arena.hint(slice);
        let last = (start + count).min((slice / 64 + 1) * 64);
        word.fetch_or(mask(slice, last), Ordering::SeqCst);
        slice = last;
    }
    arena
        .header()
        .search
        .fetch_min(start as u64, Ordering::Relaxed);
}

/// Sets the hint of a free slice if it is not set.
pub(crate) fn hint_if_missing(arena: Arena, slice: usize) {
    let (word, bit) = arena.hint(slice);
    if word.load(Ordering::Relaxed) & bit == 0 {
        hint_free(arena, slice, 1);
    }
}

/// Clears the hints of slices that the caller has claimed, so that nobody else frees them.
fn hint_claimed(arena: Arena, start: usize, count: usize) {
    let mut slice = start;
    while slice < start + count {
        let (word, _) = arena.hint(slice);
        let last = (start + count).min((slice / 64 + 1) * 64);
        word.fetch_and(!mask(slice, last), Ordering::SeqCst);
        slice = last;
    }
}

/// Clears the hint of a slice that was found taken, unless it has become free meanwhile.
fn hint_taken(arena: Arena, slice: usize) {
    let (word, bit) = arena.hint(slice);
    word.fetch_and(!bit, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let tag = arena.tag(slice).load(Ordering::SeqCst);
    if matches!(state(tag), State::Free { .. }) {
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

/// Bits of the slices `from..to`, which share a word.
fn mask(from: usize, to: usize) -> u64 {
    let low = !0 << (from % 64);
    let high = if to.is_multiple_of(64) {
        !0
    } else {
        !(!0 << (to % 64))
    };
    low & high
}

/// Finds `count` slices in a row with their hints set, the first at a multiple of `align` counted
/// from address zero, at or after `from`.
fn find(arena: Arena, count: usize, align: usize, from: usize) -> Option<usize> {
    let end = arena.slices();
    let skew = (arena.base() + DATA.offset) >> SLICE_SHIFT;
    let mut at = from;
    while at + count <= end {
        let word = arena.hint(at).0.load(Ordering::Relaxed) >> (at % 64);
        if word == 0 {
            at = (at / 64 + 1) * 64;
            continue;
        }
        at += word.trailing_zeros() as usize;
        at = (at + skew).next_multiple_of(align) - skew;
        let mut stop = at;
        while stop < at + count && stop < end {
            let ones =
                (!(arena.hint(stop).0.load(Ordering::Relaxed) >> (stop % 64))).trailing_zeros();
            let ones = (ones as usize).min(64 - stop % 64);
            stop += ones;
            if ones == 0 || !stop.is_multiple_of(64) {
                break;
            }
        }
        if stop >= at + count && at + count <= end {
            return Some(at);
        }
        at = stop.max(at + 1);
    }
    None
}

/// Claims `count` free slices in a row, and commits them; the first is at a multiple of `align`
/// slices. `None` if no such slices are known; an error if they cannot be committed.
pub(crate) fn claim(
    arena: Arena,
    me: Tag,
    count: usize,
    align: usize,
) -> Result<Option<usize>, CommitError> {
    let search = &arena.header().search;
    let lowest = search.load(Ordering::Relaxed) as usize;
    let mut from = lowest.min(arena.slices());
    let mut wrapped = from == 0;
    loop {
        let Some(start) = find(arena, count, align, from) else {
            if wrapped {
                return Ok(None);
            }
            wrapped = true;
            from = 0;
            continue;
        };
        match claim_at(arena, me, start, count, true) {
            Ok(has_holes) => {
                hint_claimed(arena, start, count);
                if start == lowest {
                    let _ = search.compare_exchange(
                        lowest as u64,
                        (start + count) as u64,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                }
                if has_holes {
                    commit_holes(arena, me, start, count)?;
                }
                return Ok(Some(start));
            }
            Err(taken) => {
                hint_taken(arena, taken);
                from = taken + 1;
            }
        }
    }
}

/// Claims exactly these slices, and tells whether a hole is among them; or claims none, and tells
/// which one was not free. With `alone`, they are not part of a run: those that need not be claimed
/// become the first one's tails.
fn claim_at(arena: Arena, me: Tag, start: usize, count: usize, alone: bool) -> Result<bool, usize> {
    let (mut tails, mut has_holes) = (alone, false);
    for slice in start..start + count {
        let tag = arena.tag(slice);
        let found = tag.load(Ordering::Acquire);
        let State::Free { kind } = state(found) else {
            unclaim(arena, start, slice - start);
            return Err(slice);
        };
        has_holes |= kind == HOLE;
        let kind = if kind == AGED { DIRTY } else { kind };
        // Behind another slice that is claimed, recovery would find no tail of the first one.
        tails &= slice == start || kind == DIRTY;
        let to = if tails && slice != start {
            tail_tag(slice - start)
        } else {
            claimed_tag(kind, me)
        };
        let taken = tag.compare_exchange(found, to, Ordering::AcqRel, Ordering::Relaxed);
        if taken.is_err() {
            unclaim(arena, start, slice - start);
            return Err(slice);
        }
    }
    Ok(has_holes)
}

/// Claims exactly these slices, committed. False if they are not all free, or cannot be committed.
pub(crate) fn claim_these(arena: Arena, me: Tag, start: usize, count: usize) -> bool {
    if start + count > arena.slices() {
        return false;
    }
    let claimed = claim_at(arena, me, start, count, false);
    if claimed.is_ok() {
        hint_claimed(arena, start, count);
    }
    claimed.is_ok_and(|has_holes| !has_holes || commit_holes(arena, me, start, count).is_ok())
}

/// Tags what is claimed within a run of `count` slices as its tails.
pub(crate) fn finish_extension(arena: Arena, start: usize, count: usize) {
    let claimed = |back: usize| {
        let tag = arena.tag(start + back).load(Ordering::Acquire);
        matches!(state(tag), State::Claimed { .. }).then_some(tag)
    };
    // They are tagged from the lowest up, so all are tagged if the last one is.
    let first = (1..count).rev().take_while(|&back| claimed(back).is_some());
    for back in first.last().unwrap_or(count)..count {
        if let Some(found) = claimed(back) {
            let _ = arena.tag(start + back).compare_exchange(
                found,
                tail_tag(back),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }
}

/// Makes slices free again, as they were before: slices that are claimed, or tails of the first
/// one, which is claimed.
pub(crate) fn unclaim(arena: Arena, start: usize, count: usize) {
    for slice in (start..start + count).rev() {
        let tag = arena.tag(slice);
        match state(tag.load(Ordering::Relaxed)) {
            State::Claimed { kind, .. } => tag.store(kind, Ordering::Release),
            State::Tail { .. } => tag.store(DIRTY, Ordering::Release),
            _ => {}
        }
    }
    hint_free(arena, start, count);
}

/// The holes among slices that the caller has claimed: the first of each row, and how many.
fn holes(arena: Arena, me: Tag, start: usize, end: usize) -> impl Iterator<Item = (usize, usize)> {
    let hole = claimed_tag(HOLE, me);
    let is_hole = move |&slice: &usize| arena.tag(slice).load(Ordering::Relaxed) == hole;
    let mut next = start;
    std::iter::from_fn(move || {
        let first = (next..end).find(is_hole)?;
        next = (first..end).find(|slice| !is_hole(slice)).unwrap_or(end);
        Some((first, next - first))
    })
}

/// Commits the holes among claimed slices, or makes all of the slices free again, as they were.
///
/// Killed anywhere: leaves claimed holes with memory, which [`abandon`] gives back.
fn commit_holes(arena: Arena, me: Tag, start: usize, count: usize) -> Result<(), CommitError> {
    let end = start + count;
    for (first, len) in holes(arena, me, start, end) {
        if let Err(error) = arena.commit_again(DATA.offset + first * SLICE, len * SLICE) {
            // Some of these are committed, and so are those before them.
            for (first, len) in holes(arena, me, start, end) {
                let _ = arena.give_back(DATA.offset + first * SLICE, len * SLICE);
            }
            unclaim(arena, start, count);
            return Err(error);
        }
        populate(arena, first, len);
    }
    Ok(())
}

/// True if claimed slices were never used.
pub(crate) fn is_clean(arena: Arena, start: usize, count: usize) -> bool {
    (start..start + count).all(|slice| {
        let tag = arena.tag(slice).load(Ordering::Relaxed);
        matches!(state(tag), State::Claimed { kind: CLEAN, .. })
    })
}

/// Maps committed slices of a pool into this process at once: a call is cheaper than a fault for
/// each page. Not too many at a time, since they may not be used soon; a kernel that cannot do this
/// leaves it to the faults. Private memory is only address space until it is touched.
pub(crate) fn populate(arena: Arena, start: usize, count: usize) {
    const MOST: usize = (64 << 20) / SLICE;
    if count <= MOST && !local::of(arena).is_private() {
        let advice = rustix::mm::Advice::LinuxPopulateWrite;
        let _ = crate::sys::memory::advise(arena.slice_address(start), count * SLICE, advice);
    }
}

/// Tags the tails of claimed slices; the head then remains to be tagged.
pub(crate) fn tag_tails(arena: Arena, start: usize, count: usize) {
    // From the lowest up, here and when they were claimed: so all are tagged if the last one is.
    let last = arena.tag(start + count - 1).load(Ordering::Relaxed);
    if count > 1 && last == tail_tag(count - 1) {
        return;
    }
    for back in 1..count {
        arena
            .tag(start + back)
            .store(tail_tag(back), Ordering::Release);
    }
}

/// Frees slices whose head the caller has claimed: tails from the highest down, the head last.
pub(crate) fn release(arena: Arena, start: usize, count: usize) {
    for slice in (start..start + count).rev() {
        arena.tag(slice).store(DIRTY, Ordering::Release);
    }
    hint_free(arena, start, count);
    let dirty = &arena.header().dirty;
    if dirty.load(Ordering::Relaxed) == 0 {
        dirty.store(1, Ordering::Relaxed);
    }
}

/// Frees a claimed slice of a dead owner and the tails that lead to it, or makes it a tail of the
/// run that covers it. A hole, whether the dead owner had given it memory, or had not yet taken its
/// memory away, has none afterwards. The caller holds the dead owner's life word.
pub(crate) fn abandon(arena: Arena, claimed: usize) {
    abandon_found(arena, claimed, arena.tag(claimed).load(Ordering::Acquire));
}

/// The same for a slice that had the tag `found` a moment ago.
pub(super) fn abandon_found(arena: Arena, claimed: usize, found: u64) {
    let State::Claimed { kind, owner } = state(found) else {
        return;
    };
    let change = |to| {
        let tag = arena.tag(claimed);
        tag.compare_exchange(found, to, Ordering::AcqRel, Ordering::Relaxed)
    };
    // After the load: see the module.
    if let Some(back) = covered(arena, claimed, owner) {
        let _ = change(tail_tag(back));
        return;
    }
    // Either it was changed before the look at the head, and may be anybody's; or nobody else
    // changes it.
    if arena.tag(claimed).load(Ordering::Acquire) != found {
        return;
    }
    let tails = tails_of(arena, claimed);
    // Tails were committed before they were tagged, and may hold anything.
    for slice in (claimed + 1..=claimed + tails).rev() {
        arena.tag(slice).store(DIRTY, Ordering::Release);
    }
    // Before others can take the slice, and store into it.
    if kind == HOLE {
        let _ = arena.give_back(DATA.offset + claimed * SLICE, SLICE);
    }
    let _ = change(kind);
    hint_free(arena, claimed, tails + 1);
}

/// How many tails behind a slice lead to it.
pub(crate) fn tails_of(arena: Arena, head: usize) -> usize {
    (head + 1..arena.slices())
        .take_while(|&s| arena.tag(s).load(Ordering::Acquire) == tail_tag(s - head))
        .count()
}

/// How far a claimed slice is from the head of the run that covers it, if one does.
fn covered(arena: Arena, claimed: usize, owner: Tag) -> Option<usize> {
    let state_of = |slice: usize| state(arena.tag(slice).load(Ordering::Acquire));
    let is_claimed =
        |slice: &usize| matches!(state_of(*slice), State::Claimed { owner: o, .. } if o == owner);
    let below = (0..claimed).rev().find(|slice| !is_claimed(slice))?;
    let head = match state_of(below) {
        State::Tail { back } => below.checked_sub(back)?,
        _ => below,
    };
    match state_of(head) {
        State::Run { slices } if claimed - head < slices => Some(claimed - head),
        _ => None,
    }
}

/// Gives back the memory of free slices; returns how many bytes, and whether there is more to give
/// later. With `all`, this covers all free slices; otherwise those that were AGED, and the others
/// become AGED. What is kept first becomes free slices.
///
/// Killed anywhere: the slices are claimed as holes, and [`abandon`] makes them holes.
pub(crate) fn age(arena: Arena, me: Tag, all: bool) -> (usize, bool) {
    const BATCH: usize = (4 << 20) / SLICE;
    let (mut given, mut more) = (0, false);
    let mut slice = 0;
    while slice < arena.slices() {
        let start = slice;
        while slice < arena.slices() && slice - start < BATCH {
            let tag = arena.tag(slice);
            if kept::release(arena, me, slice) {
                continue;
            }
            let found = tag.load(Ordering::Relaxed);
            if found == DIRTY && !all {
                // Relaxed: nothing but the tag changes.
                let aged = tag.compare_exchange(found, AGED, Ordering::Relaxed, Ordering::Relaxed);
                more |= aged.is_ok();
                break;
            }
            if found != DIRTY && found != AGED {
                break;
            }
            let hole = claimed_tag(HOLE, me);
            let taken = tag.compare_exchange(found, hole, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_err() {
                break;
            }
            slice += 1;
        }
        let count = slice - start;
        if count > 0 {
            // If it is refused (a sealed or foreign file system), the slices stay usable as holes.
            let gone = arena.give_back(DATA.offset + start * SLICE, count * SLICE);
            unclaim(arena, start, count);
            given += if gone.is_ok() { count } else { 0 };
        }
        // The slice that ended the batch has been looked at: if it was just aged, it stays for a
        // while.
        slice += usize::from(count < BATCH);
    }
    (given * SLICE, more)
}
