//! Retired objects that are not destroyed at once: which process keeps them, and when a walk is
//! asked for.
//!
//! A *keeper* is a process with the object on a list of its own. Three words of the object's entry say
//! so, and many may write them at once: the keeper's tag, the state that it has on its list, signed with
//! its record's index, and the latest stamp of any state that was ever on a list. The signature has room
//! for only a part of the generation, so it is cleared when the object is destroyed. Invariants
//!
//! 1. A process that is found to keep a state has put it on its list: the two words that say so name
//!    the same record, and the process that wrote both did so after listing the state. Words of two
//!    different writers, one of which may have died half way, say nothing: nobody keeps the object
//!    then, and a walk looks at it.
//! 2. The stamp is no older than that of a state that is found kept: it only rises, and is stored first.
//!    Nor is it older than that of a state that is on a list and looks like an earlier one, as versions
//!    wrap around: a process that takes a state off its list uses this stamp, too.
//! 3. A process asks for a walk after it has made what it leaves behind look unused and kept by
//!    nobody. A walk before that would pass it over, and no other would come.
//!
//! If a process is killed at any point: each death asks for a walk ([`end_holds`]), and nothing that is
//! written here is undone.

use super::lifecycle::{ObjectPhase, ObjectState, VERSIONS};
use super::sweep::Sweep;
use super::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};

/// The words of an entry. All zeros mean that nobody has kept the object yet.
#[repr(C)]
pub struct Keeping {
    /// The keeper, as a tag, or 0.
    keeper: AtomicU64,
    /// Which record keeps which state: see [`sign`].
    kept: AtomicU64,
    /// The latest stamp.
    since: AtomicU64,
}

/// A retired state and the record of the process that has it on its list: 23 bits of the object's
/// generation, the version, and the record's index.
fn sign(state: ObjectState, keeper: Tag) -> u64 {
    const RECORD_BITS: u32 = 12;
    u64::from(state.generation) << (RECORD_BITS + VERSIONS.trailing_zeros())
        | u64::from(state.version) << RECORD_BITS
        | keeper.slot() as u64
}

impl Keeping {
    #[must_use]
    pub fn new() -> Self {
        Keeping {
            keeper: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// Notes that the state, which was retired at the time `stamp`, is on the list of `me`.
    pub fn keep(&self, state: ObjectState, stamp: u64, me: Tag) {
        // By invariant 2.
        self.since.fetch_max(stamp, Ordering::SeqCst);
        // In this order, as a former owner of the same record may have signed that state.
        self.kept.store(sign(state, me), Ordering::SeqCst);
        self.keeper.store(me.word(), Ordering::SeqCst);
    }

    /// The process that has the object on its list in that state, provided that it is alive.
    pub fn keeper(&self, state: ObjectState) -> Option<Tag> {
        let keeper = Tag::of_word(self.keeper.load(Ordering::SeqCst));
        let is_signed = self.kept.load(Ordering::SeqCst) == sign(state, keeper);
        (!keeper.is_nobody() && is_signed).then_some(keeper)
    }

    /// Turns the object to FREE. It is in a state that nobody else can change, and nobody can list. The
    /// signature is cleared, before there is another object whose states look like this one's.
    pub fn free(&self, word: &AtomicU64, from: ObjectState) {
        // Read first: hardly any object was ever kept. Relaxed: the store of the state comes after it.
        if self.kept.load(Ordering::Relaxed) != 0 {
            self.kept.store(0, Ordering::Relaxed);
        }
        let free = from.with(ObjectPhase::Free).pack();
        word.store(free, Ordering::SeqCst);
    }

    /// A stamp for a state that was found kept, or that was on a list.
    pub fn stamp(&self) -> u64 {
        self.since.load(Ordering::SeqCst)
    }
}

impl Default for Keeping {
    fn default() -> Self {
        Keeping::new()
    }
}

/// Leaves objects that `me` no longer has on its list to a walk.
pub fn give_up<'a>(all: impl Iterator<Item = &'a Keeping>, me: Tag, due: &Sweep) {
    for keeping in all {
        let _ = keeping
            .keeper
            .compare_exchange(me.word(), 0, Ordering::SeqCst, Ordering::Relaxed);
    }
    // By invariant 3.
    due.demand();
}

/// Ends all holds of a process that is gone, or about to go, and leaves what only this process held
/// to a walk.
pub fn end_holds<'a>(row: impl IntoIterator<Item = &'a AtomicU64>, due: &Sweep) {
    for word in row {
        if word.load(Ordering::Relaxed) != 0 {
            word.store(0, Ordering::SeqCst);
        }
    }
    // By invariant 3.
    due.demand();
}
