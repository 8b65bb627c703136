//! [`Barrier`]: nobody goes on before all have arrived, or some are known not to.
//!
//! # Rationale
//!
//! An arrival is one exchange on the state word, which counts those of the present round; the last
//! one turns the round, so there is no moment at which all have arrived and nobody has said so.
//! Before it, the party marks its entry with the round. The entries decide nothing but one
//! question: is a party gone without whom the round cannot end?
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
//! | any of n       | BROKEN | whoever finds a party lost, by the rule below |
//! | any            | reset + 1, none arrived, not BROKEN | [`Barrier::reset`] |
//!
//! # What breaks a round
//!
//! A party is *gone* if its thread was killed or has ended (`participants::life`; a thread that ends
//! with leaked guards counts as alive until its process is dead). A round is broken, by a party that waits, when
//!
//! a. a party is gone whose entry has the stamp of this round: it died arriving or waiting; or
//! b. a party of the round before is gone and has not arrived in this one, and the group lives on:
//!    another party of the round before is not gone, or has arrived in this one (CONTINUES).
//!
//! The last party to arrive asks nothing of this: all have arrived. So with two parties the death of the one
//! that waits is found out by nobody.
//!
//! If the whole group of the round before is gone, the next round belongs to a new group, and
//! nobody misses the old one. A thread that has never called `wait` is unknown; its death is no
//! concern of the barrier's.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before marking its entry | what it was: a party of the round before, or nobody | rule b, or nothing |
//! | after the mark, before the exchange | a mark that is not counted | rule a; rule b if the round ended without it |
//! | after the exchange, before it returns | a counted mark | rule a, unless it was the last: then the round has ended |
//! | after turning the round or breaking it, before the wake | sleepers not woken | they look within `lock::TICK` |
//!
//! Invariants
//! 1. Stamps only rise, but for resets after 2^16, so an old stamp never becomes that of this round
//!    or of the round before.
//! 2. An entry's owner is replaced only when it is gone and its stamp is older than the round
//!    before; only its owner stores its stamp.
//! 3. A party that has been counted in a round has marked its entry with that round before.
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
//! round, unless the state has changed meanwhile; a change is an arrival, of which there are n at
//! most, or ends W's round.

use std::fmt;
use std::marker::PhantomPinned;

use crate::layout::arena::Arena;
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::here::{Here, from_nowhere, here};
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::participants::{life, lock, recovery};
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::futex;

/// Those of a round, and as many of the round before.
const ENTRIES: usize = 2 * Barrier::MAX_PARTIES as usize;

const BROKEN: u64 = 1;
const COUNT_SHIFT: u32 = 1;
const COUNT: u64 = 0x7f << COUNT_SHIFT;
const STAMP_SHIFT: u32 = 8;
/// One phase, in a stamp; below it are the resets.
const PHASE: u64 = 1 << 16;
/// In an entry: the party had arrived at the round before as well.
const CONTINUES: u64 = 1 << 63;

/// The state word, taken apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    fn stamp(self) -> u64 {
        self.0 >> STAMP_SHIFT
    }

    /// The stamp of the round before, if that was completed and not reset.
    fn stamp_before(self) -> u64 {
        self.stamp().wrapping_sub(PHASE)
    }

    fn phase(self) -> u64 {
        self.stamp() / PHASE
    }

    fn resets(self) -> u64 {
        self.stamp() % PHASE
    }

    fn arrived(self) -> u64 {
        (self.0 & COUNT) >> COUNT_SHIFT
    }

    fn is_broken(self) -> bool {
        self.0 & BROKEN != 0
    }

    fn with_arrival(self) -> State {
        State(self.0 + (1 << COUNT_SHIFT))
    }

    fn next_phase(self) -> State {
        State(self.stamp().wrapping_add(PHASE) << STAMP_SHIFT)
    }

    fn reset(self) -> State {
        let resets = (self.resets() + 1) % PHASE;
        State(((self.phase() * PHASE) | resets) << STAMP_SHIFT)
    }
}

/// What a barrier knows of a party.
#[repr(C)]
struct Entry {
    owner: AtomicU64,
    arrived: AtomicU64,
}

impl Entry {
    const fn unused() -> Self {
        Entry {
            owner: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
        }
    }

    fn owner(&self) -> Tag {
        Tag::of_word(self.owner.load(Ordering::Acquire))
    }

    fn stamp(&self) -> u64 {
        self.arrived.load(Ordering::Acquire) & !CONTINUES
    }
}

/// A meeting point: [`wait`](Self::wait) returns when as many threads as the barrier was made for
/// have called it, of whatever processes. It can be used again and again.
///
/// # Crash behaviour
///
/// If a thread that has taken part is killed, or ends, and the others are waiting for it, they are
/// told ([`BarrierError::Broken`]). The barrier stays broken until it is [`reset`](Self::reset).
/// Known are those who arrived in the round before, and those who have arrived. Who is killed before
/// its first `wait` is not known: the parent that reaps it can tell.
///
/// When all threads of one group have ended, another group may use the barrier.
///
/// ```
/// use shmkit::{Barrier, Pool, process};
///
/// let pool = Pool::builder().create()?;
/// let barrier = pool.create(Barrier::new(3))?;
/// process::scope(|s| {
///     let child = || barrier.wait().unwrap().is_leader();
///     let children = [0, 1].map(|_| s.spawn(child).unwrap());
///     let mut leaders = usize::from(barrier.wait().unwrap().is_leader());
///     for child in children {
///         leaders += usize::from(child.join().unwrap());
///     }
///     assert_eq!(leaders, 1);
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Barrier {
    state: AtomicU64,
    parties: AtomicU64,
    entries: [Entry; ENTRIES],
    _in_place: PhantomPinned,
}

// SAFETY: atomic words, with tags of the pool's own tables in some; no `Drop`.
unsafe impl ShmSafe for Barrier {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Barrier",
        const { &[Field::at::<[std::sync::atomic::AtomicU64; 2 + 2 * ENTRIES]>("words", 0)] },
    )
    .in_place();
}

const _: () = assert!(size_of::<Barrier>() == (2 + 2 * ENTRIES) * 8);

/// Which of those that met the caller was.
///
/// ```
/// use shmkit::sync::Barrier;
///
/// let pool = shmkit::Pool::builder().create()?;
/// let barrier = pool.create(Barrier::new(2))?;
/// std::thread::scope(|s| {
///     let other = s.spawn(|| barrier.wait().unwrap());
///     let mine = barrier.wait().unwrap();
///     // One leads, the other does not.
///     assert_ne!(mine, other.join().unwrap());
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult(bool);

impl BarrierWaitResult {
    /// True for one of them, the last to arrive.
    ///
    /// ```
    /// # use shmkit::sync::Barrier;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let alone = pool.create(Barrier::new(1))?;
    /// assert!(alone.wait()?.is_leader());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_leader(self) -> bool {
        self.0
    }
}

/// Why a wait ended without all having arrived.
///
/// ```
/// use shmkit::sync::{Barrier, BarrierError};
///
/// let pool = shmkit::Pool::builder().create()?;
/// let barrier = pool.create(Barrier::new(0))?;
/// assert_eq!(barrier.wait(), Err(BarrierError::Parties));
/// // Not in a pool.
/// assert_eq!(Barrier::new(1).wait(), Err(BarrierError::NotInPool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// A party is gone, or somebody has reset the barrier meanwhile.
    #[error("a party of the barrier is gone, or the barrier was reset")]
    Broken,
    /// The barrier was made for no party, or for more than [`Barrier::MAX_PARTIES`].
    #[error("a barrier has 1 to {} parties", Barrier::MAX_PARTIES)]
    Parties,
    /// More threads that are alive have used the barrier than it can remember.
    #[error("more threads use the barrier than it can remember")]
    TooManyThreads,
    /// The barrier is not part of an object in a pool.
    #[error("the barrier is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(BarrierError);

impl Barrier {
    /// The most parties that a barrier can have.
    ///
    /// ```
    /// # use shmkit::sync::{Barrier, BarrierError};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let crowd = pool.create(Barrier::new(Barrier::MAX_PARTIES + 1))?;
    /// assert_eq!(crowd.wait(), Err(BarrierError::Parties));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const MAX_PARTIES: u32 = 64;

    /// A barrier for `parties` threads, to be put into a pool. A number that it cannot have is an
    /// error of [`wait`](Self::wait).
    ///
    /// ```
    /// # use shmkit::sync::Barrier;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let barrier = pool.create(Barrier::new(3))?;
    /// std::thread::scope(|s| {
    ///     let threads = [0; 3].map(|_| s.spawn(|| barrier.wait().unwrap().is_leader()));
    ///     let leaders = threads.map(|thread| u32::from(thread.join().unwrap()));
    ///     assert_eq!(leaders.iter().sum::<u32>(), 1);
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(parties: u32) -> Self {
        Barrier {
            // From phase 2, so that a stamp of 0 is older than the round before.
            state: AtomicU64::new((2 * PHASE) << STAMP_SHIFT),
            parties: AtomicU64::new(parties as u64),
            entries: [const { Entry::unused() }; ENTRIES],
            _in_place: PhantomPinned,
        }
    }

    /// Waits until all have arrived.
    ///
    /// # Errors
    ///
    /// See [`BarrierError`].
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed before the round has ended breaks it for those who wait. If nobody does by
    /// then, it has arrived all the same: who is the last to arrive ends the round and looks for no dead.
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use shmkit::sync::Barrier;
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let shared = pool.create((AtomicU32::new(0), Barrier::new(2)))?;
    /// let (arrived, barrier) = &*shared;
    /// std::thread::scope(|s| {
    ///     for _ in 0..2 {
    ///         s.spawn(|| {
    ///             arrived.fetch_add(1, Ordering::Relaxed);
    ///             barrier.wait().unwrap();
    ///             assert_eq!(arrived.load(Ordering::Relaxed), 2);
    ///         });
    ///     }
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        let here = here(self)?;
        let parties = self.parties.load(Ordering::Relaxed);
        if !(1..=u64::from(Self::MAX_PARTIES)).contains(&parties) {
            return Err(BarrierError::Parties);
        }
        let entry = self.entry(here)?;
        let round = loop {
            let state = self.state();
            if state.is_broken() {
                return Err(BarrierError::Broken);
            }
            self.mark(entry, state);
            let last = state.arrived() + 1 >= parties;
            let next = if last {
                state.next_phase()
            } else {
                state.with_arrival()
            };
            if self.turn(state, next) {
                if last {
                    self.wake();
                    return Ok(BarrierWaitResult(true));
                }
                break state;
            }
        };
        self.wait_for_others(here, round)
    }

    /// Makes the barrier as new: it is not broken, and has no parties yet. Those who wait, also
    /// those who have not woken up yet since the round ended, are told that it was broken.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has reset it or not.
    ///
    /// ```
    /// # use shmkit::sync::{Barrier, BarrierError};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let barrier = pool.create(Barrier::new(2))?;
    /// std::thread::scope(|s| {
    ///     let waits = s.spawn(|| barrier.wait());
    ///     // The other party does not come.
    ///     while !waits.is_finished() {
    ///         barrier.reset();
    ///     }
    ///     assert_eq!(waits.join().unwrap(), Err(BarrierError::Broken));
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reset(&self) {
        loop {
            let state = self.state();
            if self.turn(state, state.reset()) {
                return self.wake();
            }
        }
    }

    /// Whether the barrier is broken, and every wait would answer so.
    ///
    /// ```
    /// # use shmkit::sync::{Barrier, BarrierError};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let barrier = pool.create(Barrier::new(2))?;
    /// // A death breaks it; as new it is whole.
    /// barrier.reset();
    /// assert!(!barrier.is_broken());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state().is_broken()
    }

    fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    fn turn(&self, from: State, to: State) -> bool {
        // AcqRel: what a party did before it arrived is seen by all who go on after the last one.
        self.state
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn wake(&self) {
        futex::wake(Arena::low_half(&self.state), u32::MAX);
    }

    /// Marks the party's entry with the round that it is about to arrive at.
    fn mark(&self, entry: &Entry, round: State) {
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

    fn wait_for_others(&self, here: Here, round: State) -> Result<BarrierWaitResult, BarrierError> {
        let mut in_vain = false;
        loop {
            let state = self.state();
            // After a reset it is unknown whether the round had ended before.
            if state.resets() != round.resets() {
                return Err(BarrierError::Broken);
            }
            if state.phase() != round.phase() {
                return Ok(BarrierWaitResult(false));
            }
            if state.is_broken() {
                return Err(BarrierError::Broken);
            }
            if self.is_party_lost(here.arena, state) {
                if self.turn(state, State(state.0 | BROKEN)) {
                    self.wake();
                }
                continue;
            }
            // After the look for lost parties, which need not be settled to be missed.
            if in_vain {
                recovery::settle_in_turn(here.arena);
            }
            let low = Arena::low_half(&self.state);
            let (arena, slot) = (here.arena, here.slot);
            in_vain = lock::slept_in_vain(arena, slot, low, state.0 as u32, Tag::NOBODY, None);
        }
    }

    /// Whether the round is to be broken, by the rules in the header.
    fn is_party_lost(&self, arena: Arena, round: State) -> bool {
        let (mut missed, mut lives_on) = (false, false);
        for entry in &self.entries {
            // The mark first: an entry that gets another owner meanwhile has an old mark then.
            let arrived = entry.arrived.load(Ordering::Acquire);
            let owner = entry.owner();
            let stamp = arrived & !CONTINUES;
            if stamp == round.stamp() {
                if life::is_gone(arena, owner) {
                    return true;
                }
                lives_on |= arrived & CONTINUES != 0;
            } else if stamp == round.stamp_before() {
                let gone = life::is_gone(arena, owner);
                missed |= gone;
                lives_on |= !gone;
            }
        }
        missed && lives_on
    }

    /// This thread's entry, claimed now if need be.
    fn entry(&self, here: Here) -> Result<&Entry, BarrierError> {
        let me = here.slot.tag();
        if let Some(mine) = self.entries.iter().find(|entry| entry.owner() == me) {
            return Ok(mine);
        }
        for entry in &self.entries {
            let owner = entry.owner();
            if self.is_unused(here.arena, entry, owner)
                && entry
                    .owner
                    .compare_exchange(owner.word(), me.word(), Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                return Ok(entry);
            }
        }
        Err(BarrierError::TooManyThreads)
    }

    /// Whether nobody misses the owner of the entry, now and later (invariant 1).
    fn is_unused(&self, arena: Arena, entry: &Entry, owner: Tag) -> bool {
        if owner.is_nobody() {
            return true;
        }
        // The owner first: once it is gone its stamp stays. Then the round, which only rises.
        let gone = life::is_gone(arena, owner);
        let stamp = entry.stamp();
        let state = self.state();
        gone && stamp != state.stamp() && stamp != state.stamp_before()
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Barrier")
            .field("parties", &self.parties.load(Ordering::Relaxed))
            .field("arrived", &state.arrived())
            .field("broken", &state.is_broken())
            .finish()
    }
}
