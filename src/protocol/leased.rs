//! The entries that elements of a queue are leased into. For the rationale, states and invariants, see
//! `engines::leases`.

use super::cells::{Cell, CellPhase, is_ahead};
use super::ring;
use super::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, fence};

pub const FREE: u64 = 0;
pub const TAKING: u64 = 1;
pub const HELD: u64 = 2;
pub const BACK: u64 = 3;
/// The state is in the bits below a tag, or a turn.
pub const STATE: u64 = Tag::FLAGS;
/// Where the turn begins in a word that is BACK.
pub const TURN: u32 = STATE.count_ones();

/// An element that is BACK, as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub word: u64,
    pub position: u64,
}

/// The word of an element that waits to be taken again, since that turn.
#[inline]
pub fn back(turn: u64) -> u64 {
    turn << TURN | BACK
}

/// Counts that an element is about to be BACK, and gives the word for that.
#[inline]
pub fn announce(changes: &AtomicU64) -> u64 {
    back(changes.fetch_add(1, Ordering::SeqCst).wrapping_add(1))
}

/// Counts that an element that is BACK is about to be taken. False if somebody has counted since the count was
/// `known`.
#[inline]
pub fn announce_after(changes: &AtomicU64, known: u64) -> bool {
    let next = known.wrapping_add(1);
    changes
        .compare_exchange(known, next, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
}

/// The words of an entry, except those of the element.
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

    /// True if the entry can be [claimed](Self::claim).
    #[inline]
    pub fn is_free(&self) -> bool {
        // SeqCst: a thread that sleeps until an entry is free has announced that before this look; see `bell`.
        self.state.load(Ordering::SeqCst) == FREE
    }

    /// Takes the entry, which is free, for an element that is about to be taken.
    #[inline]
    pub fn claim(&self, me: Tag) -> bool {
        self.exchange(FREE, me.word() | TAKING)
    }

    /// Notes the position of the element that is about to come into the entry. Called by the thread that has claimed
    /// the entry and stored the element.
    #[inline]
    pub fn prepare(&self, next: u64) {
        // Relaxed: like the element, which was stored before, it comes after the Release fence of the thread that
        // stores an element. That fence pairs with the fence of the next look, which then finds that the word has
        // changed.
        self.position.store(next, Ordering::Relaxed);
    }

    /// Makes the entry HELD. The element has been taken from its cell, which is LEASING and is
    /// freed now.
    #[inline]
    pub fn hold(&self, me: Tag, cell: &AtomicU64, lap: u64) {
        self.state.store(me.word() | HELD, Ordering::Release);
        ring::vacate(cell, me.slot(), lap);
    }

    /// Frees the entry, as no element was taken.
    #[inline]
    pub fn abandon(&self) {
        // SeqCst: before the look whether somebody sleeps; see `bell`.
        self.state.store(FREE, Ordering::SeqCst);
    }

    /// What is seen if the element is BACK. If the same is seen again after the element was copied, the copy is whole.
    #[inline]
    pub fn is_back(&self) -> Option<Seen> {
        // Before this look: pairs with the Release fence of the thread that stores an element.
        fence(Ordering::Acquire);
        // Acquire: the element, and the position.
        let word = self.state.load(Ordering::Acquire);
        // Relaxed: a thread that finds a position that was prepared since sees at the next look, after its fence, that
        // the word has changed.
        let position = self.position.load(Ordering::Relaxed);
        (word & STATE == BACK).then_some(Seen { word, position })
    }

    /// Takes the element that was seen, for good or, with a tag, for a lease. False if somebody has taken it
    /// since. The caller has [announced](announce_after) this; if the result is true, what it has copied before
    /// is valid.
    #[inline]
    pub fn retake(&self, seen: Seen, lease: Option<Tag>) -> bool {
        let next = lease.map_or(FREE, |me| me.word() | HELD);
        self.exchange(seen.word, next)
    }

    /// Ends the lease, with the element consumed. The caller holds it.
    #[inline]
    pub fn consume(&self) {
        self.state.store(FREE, Ordering::SeqCst);
    }

    /// Ends the lease, with the element to be taken again. The caller holds it.
    #[inline]
    pub fn give_back(&self, changes: &AtomicU64) {
        self.state.store(announce(changes), Ordering::SeqCst);
    }

    /// Takes the entry from an owner that is over: it becomes free, or its element comes back.
    #[inline]
    pub fn bury(&self, changes: &AtomicU64, is_over: impl FnOnce(Tag) -> bool) {
        // Relaxed: the exchange says whether this is still so.
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
    /// The number of elements that wait to be taken again.
    pub back: usize,
    /// The number of elements that others have, and may give back.
    pub held: usize,
}

/// What the entries hold, and the entry whose element is to be taken before all others, if one waits. `me` is the
/// caller, whose own leases do not count as held. `bury` is given each entry before it is looked at.
pub fn survey<'a>(
    entries: impl Iterator<Item = Entry<'a>>,
    me: Tag,
    bury: impl Fn(&Entry<'a>),
) -> (Survey, Option<Entry<'a>>) {
    let (mut survey, mut first) = (Survey::default(), None);
    // Relaxed: after the look at the state.
    let position = |entry: &Entry<'_>| entry.position.load(Ordering::Relaxed);
    for entry in entries {
        bury(&entry);
        // Acquire: the element and its position. SeqCst: a thread that sleeps until an element comes back has announced
        // that before this look; see `bell`.
        let state = entry.state.load(Ordering::SeqCst);
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

/// Ends what a dead owner was doing. The cell that it has named, if it has named one, says whether it had taken the
/// element. Can be repeated.
pub fn resolve(state: &AtomicU64, cell: Option<&AtomicU64>, owner: Tag, lap: u64) {
    let leased = cell.is_some_and(|cell| {
        let seen = Cell::unpack(cell.load(Ordering::Acquire));
        seen.phase == CellPhase::Leasing && seen.slot == owner.slot()
    });
    let (taking, held) = (owner.word() | TAKING, owner.word() | HELD);
    let next = if leased { held } else { FREE };
    let _ = state.compare_exchange(taking, next, Ordering::SeqCst, Ordering::Relaxed);
    if let Some(cell) = cell {
        ring::vacate(cell, owner.slot(), lap);
    }
}
