//! The table of peers in the control pool: programs that take part in a run without being forked by
//! its master.
//!
//! A peer runs jobs of the entries that it has defined, one at a time, in its own process. The
//! master alone decides which peer runs what: a peer says that it is idle, the master gives it a
//! job, and the peer says that it is done. So nothing has to be repaired that two of them may have
//! begun.
//!
//! ```text
//! FREE ──> CLAIMED(tag) ──> IDLE(tag) ──> RUNS(tag) ──> DONE(tag) ──> IDLE(tag)
//!          peer             peer  │       master        peer          master
//!                                 └─────> LEFT(tag) ──> FREE
//!                                         peer          master
//! ```
//!
//! | state | who may change it | to |
//! |---|---|---|
//! | FREE | any process | CLAIMED by its tag |
//! | CLAIMED | the peer | IDLE, FREE |
//! | IDLE | the peer | LEFT |
//! | IDLE | the master | RUNS |
//! | RUNS | the peer | DONE |
//! | DONE | the master | IDLE |
//! | LEFT, or the peer is dead | the master | FREE |
//!
//! # Invariants
//!
//! 1. The fields of a place belong to the peer while it is CLAIMED, and are not written from then
//!    on until it is FREE, except for `job`, which belongs to the master while the place is IDLE.
//! 2. A job that a peer runs is RUNNING in the table of jobs until the master has seen DONE or the
//!    peer's death. The master turns both words, and is the only one to look.
//! 3. The place names the peer's thread in the control pool. A peer is dead if that thread is gone.
//!
//! # Crash behaviour
//!
//! | killed | leaves | repaired by |
//! |---|---|---|
//! | a peer, while CLAIMED | a place without a peer | the master, when it walks: FREE |
//! | a peer, IDLE | | the master, which its pidfd wakes: FREE |
//! | a peer, RUNS or DONE | a job, perhaps with a result | the master: the job ends with the cause, or is started again |
//! | a peer, LEFT | | the master: FREE |
//! | the master | a run without one | peers see that its thread is gone, and leave; the first to see it removes the name |
//! | that peer, before the name is gone | the name | the next run of that name, once nobody has the pool |

use std::time::Duration;

use super::jobs::{Control, Payload, PayloadKind};
use super::table::{self, PHASE, StateWord, Used};
use crate::ShmSafe;
use crate::containers::Shared;
use crate::layout::arena::Arena;
use crate::participants::life;
use crate::participants::tag::Tag;
use crate::pool::{ObjectError, Pool};
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::sys::futex;

/// Stands for the master of a run that has ended; not a tag.
const OVER: u64 = u64::MAX;

/// Peers that there can be at once.
pub(super) const PEERS: usize = 256;

/// The state of a peer's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerPhase {
    Free = 0,
    Claimed = 1,
    Idle = 2,
    Runs = 3,
    Done = 4,
    Left = 5,
}

/// A state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerState(u64);

impl PeerState {
    pub(super) fn of(phase: PeerPhase, tag: Tag) -> PeerState {
        PeerState(tag.word() | phase as u64)
    }

    pub(super) fn phase(self) -> PeerPhase {
        match self.0 & PHASE {
            1 => PeerPhase::Claimed,
            2 => PeerPhase::Idle,
            3 => PeerPhase::Runs,
            4 => PeerPhase::Done,
            5 => PeerPhase::Left,
            _ => PeerPhase::Free,
        }
    }

    pub(super) fn tag(self) -> Tag {
        Tag::of_word(self.0)
    }
}

/// A job by its place and id, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) place: usize,
    pub(super) id: u64,
}

/// How many bits the place takes.
const PLACE_BITS: u32 = 12;
const _: () = assert!(super::jobs::JOBS <= 1 << PLACE_BITS);

impl Assigned {
    fn pack(self) -> u64 {
        self.id << PLACE_BITS | self.place as u64
    }

    fn unpack(word: u64) -> Assigned {
        Assigned {
            place: (word & ((1 << PLACE_BITS) - 1)) as usize,
            id: word >> PLACE_BITS,
        }
    }
}

/// A place in the table.
#[derive(ShmSafe)]
pub(super) struct Place {
    state: StateWord,
    pub(super) pid: AtomicU64,
    job: AtomicU64,
    /// What the peer sleeps on: changed whenever the master changes the state.
    changed: AtomicU32,
    /// What the peer has defined: pairs of a name and a signature, in postcard's encoding.
    pub(super) defined: Payload,
}

impl Place {
    pub(super) fn state(&self) -> PeerState {
        PeerState(self.state.load())
    }

    /// Turns the word, if it is `from`.
    pub(super) fn turn(&self, from: PeerState, to: PeerPhase) -> bool {
        self.state.turn(from.0, PeerState::of(to, from.tag()).0)
    }

    pub(super) fn assigned(&self) -> Assigned {
        Assigned::unpack(self.job.load(Ordering::Relaxed))
    }

    /// The master's step: an idle peer gets a job. False if it has left.
    pub(super) fn assign(&self, tag: Tag, job: Assigned) -> bool {
        self.job.store(job.pack(), Ordering::Relaxed);
        let given = self.turn(PeerState::of(PeerPhase::Idle, tag), PeerPhase::Runs);
        self.wake();
        given
    }

    /// For [`wait`](Self::wait); read before the caller looks at what it waits for.
    pub(super) fn changed(&self) -> u32 {
        self.changed.load(Ordering::Acquire)
    }

    /// The peer sleeps until the master may have done something since `changed` was read.
    pub(super) fn wait(&self, changed: u32, limit: Duration) {
        futex::wait(&self.changed, changed, limit);
    }

    pub(super) fn wake(&self) {
        self.changed.fetch_add(1, Ordering::Release);
        futex::wake(&self.changed, u32::MAX);
    }

    /// Publishes what the peer has defined. The peer has claimed the place.
    pub(super) fn enter(&self, pool: Pool, pid: u32, defined: &[u8]) -> Result<(), ObjectError> {
        self.pid.store(pid.into(), Ordering::Relaxed);
        self.defined.store(pool, PayloadKind::Value, defined)?;
        let claimed = self.state();
        self.turn(claimed, PeerPhase::Idle);
        Ok(())
    }

    /// Empties the place: the peer's step while it is CLAIMED, the master's otherwise.
    pub(super) fn release(&self) {
        self.defined.clear();
        self.state.store(0);
    }

    /// Whether the peer is dead, and whatever its thread was doing has either happened or not.
    pub(super) fn is_gone(&self, arena: Arena) -> bool {
        table::is_abandoned(arena, self.state.load())
    }
}

/// All places.
#[derive(ShmSafe)]
pub(super) struct Table {
    /// The master's thread, by its tag; [`OVER`] once it has ended the run, which it may outlive.
    pub(super) master: AtomicU64,
    /// The master's process.
    pub(super) master_pid: AtomicU64,
    /// The descriptor through which the master is woken, as numbered in the master's process.
    pub(super) doorbell: AtomicU32,
    /// Set by the process that removes the name of a run whose master is dead.
    name_claimed: AtomicU32,
    used: Used,
    places: [Place; PEERS],
}

impl Table {
    /// The places that were ever used.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, &Place)> {
        self.used.of(&self.places).iter().enumerate()
    }

    pub(super) fn place(&self, index: usize) -> Option<&Place> {
        self.places.get(index)
    }

    /// Claims a free place.
    pub(super) fn claim(&self, by: Tag) -> Option<usize> {
        let claimed = PeerState::of(PeerPhase::Claimed, by);
        self.used.claim(&self.places, |at| &at.state, claimed.0)
    }

    /// Whether the caller, and nobody else, is to remove the run's name. The master is dead.
    pub(super) fn claim_name(&self) -> bool {
        self.name_claimed
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Something has happened that concerns all peers.
    pub(super) fn wake_all(&self) {
        self.places().for_each(|(_, place)| place.wake());
    }

    /// The master's step, and its last: nobody waits for it any more.
    pub(super) fn end(&self) {
        self.master.store(OVER, Ordering::Release);
        self.wake_all();
    }

    /// Whether there is no longer a master. In most runs, nobody is left by then.
    pub(super) fn is_orphaned(&self, arena: Arena) -> bool {
        let master = self.master.load(Ordering::Acquire);
        match master {
            0 => false,
            OVER => true,
            tag => life::is_gone(arena, Tag::of_word(tag)),
        }
    }
}

impl Shared<Control> {
    /// Whether the master is dead, or has ended. Peers live to see that, and workers that the
    /// kernel does not end.
    pub(super) fn is_orphaned(&self) -> bool {
        self.peers.is_orphaned(self.pool().0)
    }
}
