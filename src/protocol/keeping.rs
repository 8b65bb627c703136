//! Retired objects that are not destroyed at once: who keeps them, and when a walk is asked for.
//!
//! A *keeper* is a process with the object on a list of its own. Three words of the object's entry say
//! so, and many may write them at once: the keeper's tag, the state that it has on its list, signed with
//! its record's index, and the latest stamp of any state that was ever on a list. Of the generation the
//! signature has room for a part: so it is struck when the object is destroyed. Invariants
//!
//! 1. Who is found to keep a state has put it on its list: the two words that say so name the same
//!    record, and who wrote both did that after listing it. Words of two writers, of whom one may be
//!    dead half way, say nothing: nobody keeps the object then, and a walk looks at it.
//! 2. The stamp is no older than that of a state that is found kept: it only rises, and comes first. Nor
//!    is it older than that of a state which is on a list and looks like one that was, as versions come
//!    round: who takes a state off its list asks for it, too.
//! 3. A walk is asked for after its asker has made what it leaves behind look unused, and nobody's. A
//!    walk before that would pass it over, and no other would come.
//!
//! Killed anywhere: each death asks for a walk ([`end_holds`]), and none of what is written here is undone.

use super::lifecycle::{ObjectState, Phase, VERSIONS};
use super::sweep::Sweep;
use super::tag::Tag;
use crate::primitive::{AtomicU64, Ordering};

/// The words of an entry. All zero: nobody has kept the object yet.
#[repr(C)]
pub struct Keeping {
    /// The keeper, as a tag, or 0.
    keeper: AtomicU64,
    /// Who keeps which state: see [`sign`].
    kept: AtomicU64,
    /// The latest stamp.
    since: AtomicU64,
}

/// A retired state and the record of who has it on its list: 23 bits of the object's generation, the
/// version, the record.
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

    /// Notes that the state, retired at that time, is on the list of `me`.
    pub fn keep(&self, state: ObjectState, stamp: u64, me: Tag) {
        // By invariant 2.
        self.since.fetch_max(stamp, Ordering::SeqCst);
        // In this order: a former owner of the same record may have signed that state.
        self.kept.store(sign(state, me), Ordering::SeqCst);
        self.keeper.store(me.word(), Ordering::SeqCst);
    }

    /// Who has the object on its list in that state, if it lives.
    pub fn keeper(&self, state: ObjectState) -> Option<Tag> {
        let keeper = Tag::of_word(self.keeper.load(Ordering::SeqCst));
        let is_signed = self.kept.load(Ordering::SeqCst) == sign(state, keeper);
        (!keeper.is_nobody() && is_signed).then_some(keeper)
    }

    /// Turns the object to FREE, which is in a state that nobody else can change, and nobody can list: so the
    /// signature is struck, before another object is there whose states look like this one's.
    pub fn free(&self, word: &AtomicU64, from: ObjectState) {
        // Read first: hardly any object was ever kept. Relaxed: the store of the state comes behind it.
        if self.kept.load(Ordering::Relaxed) != 0 {
            self.kept.store(0, Ordering::Relaxed);
        }
        let free = from.with(Phase::Free).pack();
        word.store(free, Ordering::SeqCst);
    }

    /// A stamp for the state that was found kept, or that was on a list.
    pub fn stamp(&self) -> u64 {
        self.since.load(Ordering::SeqCst)
    }
}

impl Default for Keeping {
    fn default() -> Self {
        Keeping::new()
    }
}

/// Leaves objects that `me` has on its list no more to a walk.
pub fn give_up<'a>(all: impl Iterator<Item = &'a Keeping>, me: Tag, due: &Sweep) {
    for keeping in all {
        let _ = keeping
            .keeper
            .compare_exchange(me.word(), 0, Ordering::SeqCst, Ordering::Relaxed);
    }
    // By invariant 3.
    due.demand();
}

/// Ends all holds of a process that is gone, or about to go, and leaves what it alone held to a walk.
pub fn end_holds<'a>(row: impl IntoIterator<Item = &'a AtomicU64>, due: &Sweep) {
    for word in row {
        if word.load(Ordering::Relaxed) != 0 {
            word.store(0, Ordering::SeqCst);
        }
    }
    // By invariant 3.
    due.demand();
}
