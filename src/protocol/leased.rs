//! The entries that elements of a queue are leased into. Rationale, states, invariants: `engines::leases`.

use super::cells::{Cell, Phase, is_ahead};
use super::ring;
use super::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, fence};

pub const FREE: u64 = 0;
pub const TAKING: u64 = 1;
pub const HELD: u64 = 2;
pub const BACK: u64 = 3;
/// A state is in the bits below a tag, or a turn.
pub const STATE: u64 = Tag::FLAGS;
/// Where the turn begins in a word that is BACK.
pub const TURN: u32 = STATE.count_ones();

/// An element that is BACK, as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub word: u64,
    pub position: u64,
}

/// The word of an element that waits to be had again, since that turn.
#[inline]
pub fn back(turn: u64) -> u64 {
    turn << TURN | BACK
}

/// Counts that an element is about to be BACK. The state of that.
#[inline]
pub fn announce(changes: &AtomicU64) -> u64 {
    back(changes.fetch_add(1, Ordering::SeqCst).wrapping_add(1))
}

/// Counts that an element that is BACK is about to be taken: false if somebody has counted since there were so many.
#[inline]
pub fn announce_after(changes: &AtomicU64, known: u64) -> bool {
    let next = known.wrapping_add(1);
    changes
        .compare_exchange(known, next, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
}

/// The words of an entry, but for the element's.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub state: &'a AtomicU64,
    pub position: &'a AtomicU64,
}

impl Entry<'_> {
    #[inline]
    fn exchange(&self, old: u64, new: u64) -> bool {
        self.state
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes the entry, which is free, for an element that is about to be taken.
    #[inline]
    pub fn claim(&self, me: Tag) -> bool {
        self.exchange(FREE, me.word() | TAKING)
    }

    /// Notes the position of the element that is about to come into the entry, by who has claimed it and stored the element.
    #[inline]
    pub fn prepare(&self, next: u64) {
        // Relaxed: as the element, which was stored before, it is behind the Release fence of who stores one. That pairs with
        // the fence of the next look, which finds then that the word has changed.
        self.position.store(next, Ordering::Relaxed);
    }

    /// The element has been taken from its cell, which is LEASING: it is held.
    #[inline]
    pub fn hold(&self, me: Tag, cell: &AtomicU64, lap: u64) {
        self.state.store(me.word() | HELD, Ordering::Release);
        ring::vacate(cell, me.slot(), lap);
    }

    /// No element was taken.
    #[inline]
    pub fn abandon(&self) {
        self.state.store(FREE, Ordering::Release);
    }

    /// What is seen if the element is BACK. If it is the same once more after the element was copied, all of it is whole.
    #[inline]
    pub fn is_back(&self) -> Option<Seen> {
        // Before this look: pairs with the Release fence of who stores an element.
        fence(Ordering::Acquire);
        // Acquire: the element, and the position.
        let word = self.state.load(Ordering::Acquire);
        // Relaxed: who finds one that was prepared since sees at the next look, behind its fence, that the word has changed.
        let position = self.position.load(Ordering::Relaxed);
        (word & STATE == BACK).then_some(Seen { word, position })
    }

    /// Takes the element that was seen, for good or, by a tag, for a lease. False if somebody has had it since.
    /// What the caller, who has [announced](announce_after) it, has copied before counts if this is true.
    #[inline]
    pub fn retake(&self, seen: Seen, lease: Option<Tag>) -> bool {
        let next = lease.map_or(FREE, |me| me.word() | HELD);
        self.exchange(seen.word, next)
    }

    /// The lease is over, the element consumed. The caller holds it.
    #[inline]
    pub fn consume(&self) {
        self.state.store(FREE, Ordering::SeqCst);
    }

    /// The lease is over, and the element is to be had again. The caller holds it.
    #[inline]
    pub fn give_back(&self, changes: &AtomicU64) {
        self.state.store(announce(changes), Ordering::SeqCst);
    }

    /// Takes the entry from an owner that is over: it is free, or its element comes back.
    #[inline]
    pub fn bury(&self, changes: &AtomicU64, is_over: impl FnOnce(Tag) -> bool) {
        // Relaxed: the exchange says whether it still is so.
        let found = self.state.load(Ordering::Relaxed);
        let state = found & STATE;
        if !matches!(state, TAKING | HELD) || !is_over(Tag::of_word(found)) {
            return;
        }
        let next = match state {
            HELD => announce(changes),
            _ => FREE,
        };
        self.exchange(found, next);
    }
}

/// What the entries of a queue hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Survey {
    /// Elements that wait to be had again.
    pub back: usize,
    /// Elements that others have, who may give them back.
    pub held: usize,
}

/// The entry whose element is to be had before all others, if there is one that waits. `me` is the caller, whose own
/// leases do not count as held. `bury` is told each entry before it is looked at.
pub fn survey<'a>(
    entries: impl Iterator<Item = Entry<'a>>,
    me: Tag,
    bury: impl Fn(&Entry<'a>),
) -> (Survey, Option<Entry<'a>>) {
    let (mut survey, mut first) = (Survey::default(), None);
    // Relaxed: behind the look at the state.
    let position = |entry: &Entry<'_>| entry.position.load(Ordering::Relaxed);
    for entry in entries {
        bury(&entry);
        // Acquire: the element and its position.
        let state = entry.state.load(Ordering::Acquire);
        match state & STATE {
            BACK => {
                survey.back += 1;
                let is_earlier = |other: &Entry<'_>| is_ahead(position(other), position(&entry));
                let overlooked = cfg!(shmkit_planted = "queue") && first.is_some();
                if !overlooked && first.as_ref().is_none_or(is_earlier) {
                    first = Some(entry);
                }
            }
            HELD | TAKING if Tag::of_word(state) != me => survey.held += 1,
            _ => {}
        }
    }
    (survey, first)
}

/// Ends what a dead owner was about: what is in the cell that it has named, if it has named one, it had taken, or not.
/// Can be repeated.
pub fn resolve(state: &AtomicU64, cell: Option<&AtomicU64>, owner: Tag, lap: u64) {
    let leased = cell.is_some_and(|cell| {
        let seen = Cell::unpack(cell.load(Ordering::Acquire));
        seen.phase == Phase::Leasing && seen.slot == owner.slot()
    });
    let (taking, held) = (owner.word() | TAKING, owner.word() | HELD);
    let next = if leased { held } else { FREE };
    let _ = state.compare_exchange(taking, next, Ordering::SeqCst, Ordering::Relaxed);
    if let Some(cell) = cell {
        ring::vacate(cell, owner.slot(), lap);
    }
}
