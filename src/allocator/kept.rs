//! Runs that are free and whole, kept for the next allocation of just their size.
//!
//! Claiming a run and freeing it costs an exchange and two stores for each slice. So a freed run of
//! up to [`MOST`] slices is *kept*: its head says KEPT and how many slices, and its tails stay
//! tails. The thread that freed it notes in its slot where the run is, and takes it with one
//! exchange when it needs such a run. A note is a hint, left by this owner or an earlier one: the
//! tag decides.
//!
//! What is kept is free. Anybody may [`release`] it, so that its slices can be used for anything: a
//! thread that needs slices before the pool grows or is full, one that gives memory back, and one
//! that extends the run before it. What a slot has noted is bounded; what is too much is released,
//! the oldest first. So is a run that has not been needed although slices were, for spans or runs,
//! twice since it was noted: otherwise what stays would be put behind it, and large runs would not
//! find room.
//!
//! | step | stores, in this order | killed in between leaves | and then |
//! |---------|---------------------------------------------|-----------------------|------------------|
//! | keep    | the head is claimed, `freeing` cleared, KEPT, the hints of the header, the note | a claimed head and its tails; a kept run that nobody has noted, or that no hint tells of | recovery frees the former, and sets the hint where it finds a kept run |
//! | take    | the note is struck, the head is claimed, RUN | the same              | the same         |
//! | release | the head is claimed, tails from the highest down, the head | a claimed head and some tails | recovery frees them |
//!
//! The head does not become KEPT before `freeing` is cleared: until then a recovery may free what
//! that word names, and nobody else may have it.
//!
//! Invariant: behind a kept head there are its tails, and no slice that is claimed.

use super::slice::{self, State};
use crate::layout::arena::{Arena, SLICE};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::Ordering;

/// The longest run that is kept, in slices: just less than 2 MiB, since those lie at multiples of
/// their size.
const MOST: usize = (2 << 20) / SLICE - 1;
/// The most that a slot notes in all, in slices.
const ROOM: usize = (2 << 20) / SLICE;
/// A kept run is released when other slices were needed this often.
const MISSES: u64 = 2;
/// A note is the first slice times `COUNTS`, plus the number of slices,
const COUNTS: u64 = 256;
/// plus `MISS` times how often other slices were needed.
const MISS: u64 = 1 << 40;

const _: () = assert!(MOST < COUNTS as usize);

/// Keeps a run whose head the caller has claimed. False if it is too long for that.
#[inline]
pub(crate) fn keep(arena: Arena, slot: &Slot, start: usize, count: usize) -> bool {
    if count > MOST {
        return false;
    }
    let tag = slice::kept_tag(count);
    arena.tag(start).store(tag, Ordering::Release);
    // After that store, since those that clear them look afterwards. There is no fence between the
    // two: if a hint is lost in this way, the next one sets it, and before an error everything is
    // searched.
    let header = arena.header();
    for hint in [&header.dirty, &header.kept] {
        if hint.load(Ordering::Relaxed) == 0 {
            hint.store(1, Ordering::Relaxed);
        }
    }
    note(arena, slot, start as u64 * COUNTS + count as u64);
    true
}

/// Notes a run, before all others, and releases those for which there is no longer room.
fn note(arena: Arena, slot: &Slot, mut noted: u64) {
    let mut sum = 0;
    for place in &slot.kept {
        sum += noted % COUNTS;
        let next = place.get();
        if sum <= ROOM as u64 {
            place.set(noted);
        } else {
            place.set(0);
            release_noted(arena, slot, noted);
        }
        noted = next;
    }
    release_noted(arena, slot, noted);
}

/// Slices are needed, and no noted run would do: releases the noted runs that have seen that often
/// enough.
#[cold]
pub(crate) fn missed(arena: Arena, slot: &Slot) {
    for place in slot.kept.iter().filter(|place| place.get() != 0) {
        let noted = place.get();
        if noted / MISS + 1 < MISSES {
            place.set(noted + MISS);
        } else {
            place.set(0);
            release_noted(arena, slot, noted);
        }
    }
}

fn release_noted(arena: Arena, slot: &Slot, noted: u64) {
    let start = (noted % MISS / COUNTS) as usize;
    // Bounded: the note may be garbage.
    if noted != 0 && start < arena.slices() {
        release(arena, slot.tag(), start);
    }
}

/// Takes a run of `count` slices that the slot has noted: its head is claimed, its tails are
/// tagged.
pub(crate) fn take(arena: Arena, slot: &Slot, count: usize) -> Option<usize> {
    for place in &slot.kept {
        let noted = place.get();
        if noted % COUNTS != count as u64 || noted == 0 {
            continue;
        }
        place.set(0);
        let start = (noted % MISS / COUNTS) as usize;
        // The note may be garbage.
        if start + count <= arena.slices() {
            let (kept, claimed) = (slice::kept_tag(count), claimed_by(slot.tag()));
            let tag = arena.tag(start);
            let taken = tag.compare_exchange(kept, claimed, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() {
                return Some(start);
            }
        }
    }
    None
}

fn claimed_by(me: Tag) -> u64 {
    slice::claimed_tag(slice::DIRTY, me)
}

/// Makes a kept run free slices. False if none starts there.
pub(crate) fn release(arena: Arena, me: Tag, start: usize) -> bool {
    let tag = arena.tag(start);
    let found = tag.load(Ordering::Acquire);
    if !matches!(slice::state(found), State::Kept { .. })
        || tag
            .compare_exchange(found, claimed_by(me), Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
    {
        return false;
    }
    // Those tails that exist: the length in the tag may be garbage.
    let tails = slice::tails_of(arena, start);
    slice::release(arena, start, tails + 1);
    true
}

/// Releases all that is kept, if the hint says that something may be. True if something was.
pub(crate) fn release_if_any(arena: Arena, me: Tag) -> bool {
    arena.header().kept.load(Ordering::Relaxed) != 0 && release_all(arena, me)
}

/// Releases all that is kept. True if something was.
#[cold]
pub(crate) fn release_all(arena: Arena, me: Tag) -> bool {
    // Cleared before the look: a run that is kept from here on sets it again.
    arena.header().kept.store(0, Ordering::Relaxed);
    let (mut any, mut slice) = (false, 0);
    while slice < arena.slices() {
        any |= release(arena, me, slice);
        slice += match slice::state(arena.tag(slice).load(Ordering::Relaxed)) {
            // What is behind its head has been looked at, or is freed after this look.
            State::Run { slices } => slices.max(1),
            _ => 1,
        };
    }
    any
}
