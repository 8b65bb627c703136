//! The rounds of a barrier: which parties have arrived, and whether a party is gone without which a round
//! cannot end.
//!
//! # Rationale
//!
//! An arrival is one exchange on the state word, which counts the arrivals of the present round;
//! the last one turns the round, so there is no moment at which all have arrived and the word does
//! not say so. Before the exchange, the party marks its entry with the round. The entries decide
//! only one question: is a party gone without which the round cannot end?
//!
//! ```text
//! state   bit 0       BROKEN
//!         bit 1..8    how many have arrived in this round
//!         bit 8..24   how often the barrier was reset (modulo 2^16)  \ the round's stamp
//!         bit 24..64  the phase: how many rounds were completed      /
//!
//! entry   owner       tag of the party; 0 for an unused entry
//!         arrived     bit 0..56  stamp of the round that it arrived at, or was about to
//!                     bit 63     CONTINUES: it had arrived at the round before as well
//! ```
//!
//! | state | next | by |
//! |-------|------|----|
//! | k of n arrived | k + 1 | a party |
//! | n - 1 of n     | phase + 1, none arrived | the last party |
//! | any of n       | BROKEN | whoever finds a party lost, by the rules below, [gives up](Rounds::give_up), or [aborts](Rounds::abort) it |
//! | any            | reset + 1, none arrived, not BROKEN | [`Rounds::reset`] |
//!
//! # What breaks a round
//!
//! A party is *gone* if its thread was killed or has ended (`participants::life`; a thread that ends with leaked
//! guards counts as alive until its process is dead). A party that waits breaks the round when
//!
//! a. a party is gone whose entry has the stamp of this round: it died arriving or waiting; or
//! b. a party of the round before is gone and has not arrived in this one, and the group lives on:
//!    another party of the round before is not gone, or has arrived in this one (CONTINUES).
//!
//! The last party to arrive asks none of this: all have arrived. So with two parties, nobody finds out about
//! the death of the one that waits.
//!
//! If the whole group of the round before is gone, the next round belongs to a new group, and
//! nobody misses the old one. A thread that has never called `wait` is unknown; the barrier does
//! not deal with its death, which is left to whoever reaps it.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before marking its entry | what it was: a party of the round before, or nobody | rule b, or nothing |
//! | after the mark, before the exchange | a mark that is not counted | rule a; rule b if the round ended without it |
//! | after the exchange, before it returns | a counted mark | rule a, unless it was the last: then the round has ended |
//! | after turning the round or breaking it, before the wake | sleepers not woken | they look within `lock::TICK` |
//!
//! Invariants
//! 1. Stamps only rise (except that resets wrap around after 2^16), so an old stamp never becomes
//!    that of this round or of the round before.
//! 2. An entry's owner is replaced only when the owner is gone and the entry's stamp is older than
//!    the round before; only the owner stores the stamp.
//! 3. A party that is counted in a round has marked its entry with that round before.
//!
//! # Nobody waits for ever for a known dead party
//!
//! A waiter W of round r sleeps for `lock::TICK` at most, then looks at the state and at all entries.
//! Let D be gone, known, and needed: its entry has the stamp of r, or of the round before. In the
//! first case W finds rule a. In the second case, if W was in the round before, W's own entry says
//! CONTINUES (its stamp was that of the round before when it marked it), so W finds rule b; if not,
//! either somebody of the old group is alive or has arrived, and W finds rule b, or all of
//! it is gone without having arrived: then W's round is that of a new group, to which D does not
//! belong. An entry is not taken from D before that round is over (invariant 2). So W breaks the
//! round, unless the state has changed meanwhile; a change is an arrival, of which there are at most
//! n, or ends W's round.

use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::tag::Tag;

const BROKEN: u64 = 1;
const COUNT_SHIFT: u32 = 1;
const COUNT: u64 = 0x7f << COUNT_SHIFT;
const STAMP_SHIFT: u32 = 8;
/// One phase in a stamp; the bits below count the resets.
const PHASE: u64 = 1 << 16;
/// In an entry: the party had also arrived at the round before.
const CONTINUES: u64 = 1 << 63;

/// The state word, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State(u64);

impl State {
    /// The state of a new barrier. It begins with phase 2, so that a stamp of 0 is older than the
    /// round before.
    pub const NEW: u64 = (2 * PHASE) << STAMP_SHIFT;

    fn stamp(self) -> u64 {
        self.0 >> STAMP_SHIFT
    }

    /// The stamp of the round before, if that round was completed and not reset.
    fn stamp_before(self) -> u64 {
        self.stamp().wrapping_sub(PHASE)
    }

    fn phase(self) -> u64 {
        self.stamp() / PHASE
    }

    fn resets(self) -> u64 {
        self.stamp() % PHASE
    }

    /// The half of the word to sleep on.
    pub fn low(self) -> u32 {
        self.0 as u32
    }

    /// The number of parties that have arrived.
    pub fn arrived(self) -> u64 {
        (self.0 & COUNT) >> COUNT_SHIFT
    }

    pub fn is_broken(self) -> bool {
        self.0 & BROKEN != 0
    }

    /// True if the round goes on, judging by the present state.
    pub fn goes_on(self, now: State) -> bool {
        now.stamp() == self.stamp() && !now.is_broken()
    }

    /// Why the wait of a party that arrived at this round is over, judging by the present state.
    fn is_over(self, now: State) -> Option<Over> {
        // After a reset it is unknown whether the round had ended before.
        if now.resets() != self.resets() {
            return Some(Over::Broken);
        }
        if now.phase() != self.phase() {
            return Some(Over::Ended);
        }
        now.is_broken().then_some(Over::Broken)
    }

    fn with_arrival(self) -> State {
        State(self.0 + (1 << COUNT_SHIFT))
    }

    fn next_phase(self) -> State {
        State(self.stamp().wrapping_add(PHASE) << STAMP_SHIFT)
    }

    fn broken(self) -> State {
        State(self.0 | BROKEN)
    }

    fn reset(self) -> State {
        let resets = (self.resets() + 1) % PHASE;
        State(((self.phase() * PHASE) | resets) << STAMP_SHIFT)
    }
}

/// What a barrier knows of a party.
#[repr(C)]
pub struct Entry {
    pub owner: AtomicU64,
    pub arrived: AtomicU64,
}

impl Entry {
    fn owner(&self) -> Tag {
        Tag::of_word(self.owner.load(Ordering::Acquire))
    }

    fn stamp(&self) -> u64 {
        self.arrived.load(Ordering::Acquire) & !CONTINUES
    }
}

/// Why a party does not wait for the others any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// All have arrived.
    Ended,
    /// A party is gone or has given up, or somebody has aborted the barrier, or reset it.
    Broken,
}

/// A barrier's state, and what it knows of parties.
#[derive(Clone, Copy)]
pub struct Rounds<'a> {
    pub state: &'a AtomicU64,
    pub entries: &'a [Entry],
}

impl<'a> Rounds<'a> {
    pub fn state(self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    fn turn(self, from: State, to: State) -> bool {
        // AcqRel: what a party did before it arrived is seen by all that go on after the last one
        // has arrived.
        self.state
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Makes the party with that entry arrive, as one of `parties`. Gives the round, to be passed to
    /// [`look`](Self::look), or why the wait is over. If the round has ended, the caller has to wake the
    /// others.
    pub fn arrive(self, entry: &Entry, parties: u64) -> Result<State, Over> {
        loop {
            let state = self.state();
            if state.is_broken() {
                return Err(Over::Broken);
            }
            mark(entry, state);
            let last = state.arrived() + 1 >= parties;
            let next = if last {
                state.next_phase()
            } else {
                state.with_arrival()
            };
            match self.turn(state, next) {
                true if last => return Err(Over::Ended),
                true => return Ok(state),
                false => {}
            }
        }
    }

    /// Finds out what has become of a round at which the caller has arrived: gives the state to sleep on, or
    /// why the wait is over. `wake` wakes the others if a party is found to be lost; `is_gone` says whether
    /// one is gone.
    pub fn look(
        self,
        round: State,
        is_gone: impl Fn(Tag) -> bool,
        wake: impl Fn(),
    ) -> Result<State, Over> {
        loop {
            let state = self.state();
            if let Some(over) = round.is_over(state) {
                return Err(over);
            }
            if !self.is_party_lost(state, &is_gone) {
                return Ok(state);
            }
            if self.turn(state, state.broken()) {
                wake();
            }
        }
    }

    /// Ends the wait of a caller that has arrived at a round and gives up: breaks the round, unless it is
    /// over, and then returns why. If it was broken here, the caller has to wake the others.
    pub fn give_up(self, round: State) -> Option<Over> {
        loop {
            let state = self.state();
            let over = round.is_over(state);
            if over.is_some() || self.turn(state, state.broken()) {
                return over;
            }
        }
    }

    /// Breaks the barrier. The caller has to wake the sleepers.
    pub fn abort(self) {
        loop {
            let state = self.state();
            if state.is_broken() || self.turn(state, state.broken()) {
                return;
            }
        }
    }

    /// Makes the barrier as good as new. The caller has to wake the sleepers.
    pub fn reset(self) {
        loop {
            let state = self.state();
            if self.turn(state, state.reset()) {
                return;
            }
        }
    }

    /// True if the round is to be broken, by the rules in the module's header.
    fn is_party_lost(self, round: State, is_gone: impl Fn(Tag) -> bool) -> bool {
        let (mut missed, mut lives_on) = (false, false);
        for entry in self.entries {
            // The mark is read first: an entry that gets another owner meanwhile had an old mark
            // then.
            let arrived = entry.arrived.load(Ordering::Acquire);
            let owner = entry.owner();
            let stamp = arrived & !CONTINUES;
            if stamp == round.stamp() {
                if is_gone(owner) {
                    return true;
                }
                lives_on |= arrived & CONTINUES != 0;
            } else if stamp == round.stamp_before() {
                let gone = is_gone(owner);
                missed |= gone;
                lives_on |= !gone;
            }
        }
        missed && lives_on
    }

    /// A thread's entry, which is claimed now if it has none; `None` if all are taken.
    pub fn entry(self, me: Tag, is_gone: impl Fn(Tag) -> bool) -> Option<&'a Entry> {
        let mut entries = self.entries.iter();
        if let Some(mine) = entries.find(|entry| entry.owner() == me) {
            return Some(mine);
        }
        self.entries.iter().find(|entry| {
            let owner = entry.owner();
            self.is_unused(entry, owner, &is_gone)
                && entry
                    .owner
                    .compare_exchange(owner.word(), me.word(), Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
        })
    }

    /// True if nobody misses the owner of the entry, now or later (invariant 1).
    fn is_unused(self, entry: &Entry, owner: Tag, is_gone: impl Fn(Tag) -> bool) -> bool {
        if owner.is_nobody() {
            return true;
        }
        // First the owner: once it is gone, its stamp stays. The round comes last, as it only
        // rises.
        let gone = is_gone(owner);
        let stamp = entry.stamp();
        let state = self.state();
        gone && stamp != state.stamp() && stamp != state.stamp_before()
    }
}

/// Marks the party's entry with the round that it is about to arrive at.
fn mark(entry: &Entry, round: State) {
    let known = entry.arrived.load(Ordering::Relaxed);
    let stamp = known & !CONTINUES;
    let mark = if stamp == round.stamp() {
        known
    } else if stamp == round.stamp_before() {
        round.stamp() | CONTINUES
    } else {
        round.stamp()
    };
    // The exchange that follows releases it.
    entry.arrived.store(mark, Ordering::Release);
}

#[cfg(all(test, not(shmkit_loom)))]
mod tests {
    use super::*;

    /// Another party has arrived between this party's mark and its exchange.
    #[test]
    fn who_marks_again_continues_still() {
        let [owner, arrived] = [0; 2].map(AtomicU64::new);
        let (entry, round) = (Entry { owner, arrived }, State(State::NEW));
        entry.arrived.store(round.stamp_before(), Ordering::Relaxed);
        for found in [round, round.with_arrival()] {
            mark(&entry, found);
            let mark = entry.arrived.load(Ordering::Relaxed);
            assert_eq!(mark, round.stamp() | CONTINUES);
        }
    }
}
