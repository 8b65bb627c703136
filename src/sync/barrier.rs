//! [`Barrier`]: nobody goes on before all have arrived, or some are known not to.
//!
//! What a round is, what breaks it, and what a death leaves: `protocol::rounds`.

use std::fmt;
use std::marker::PhantomPinned;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::layout::arena::Arena;
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::habit::attempt_awake;
use crate::participants::here::{from_nowhere, here};
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::participants::{life, lock, recovery};
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::rounds::{Entry, Over, Rounds, State};
use crate::sys::futex;

/// Those of a round, and as many of the round before.
const ENTRIES: usize = 2 * Barrier::MAX_PARTIES as usize;

/// A meeting point: [`wait`](Self::wait) returns when as many threads as the barrier was made for
/// have called it, of whatever processes. It can be used again and again.
///
/// # Crash behaviour
///
/// If a thread that has taken part is killed, or ends, and the others are waiting for it, they are
/// told ([`BarrierError::Broken`]). The barrier stays broken until it is [`reset`](Self::reset).
/// Known are those who arrived in the round before, and those who have arrived. Who is killed before
/// its first `wait` is not known: whoever reaps it can tell the others by [`abort`](Self::abort).
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BarrierError {
    /// A party is gone, or somebody has aborted the barrier, or reset it meanwhile.
    #[error("a party of the barrier is gone, or the barrier was aborted or reset")]
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
            state: AtomicU64::new(State::NEW),
            parties: AtomicU64::new(parties as u64),
            entries: [const {
                Entry {
                    owner: AtomicU64::new(0),
                    arrived: AtomicU64::new(0),
                }
            }; ENTRIES],
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
        let (arena, slot, rounds) = (here.arena, here.slot, self.rounds());
        let is_gone = |owner| life::is_gone(arena, owner);
        let entry = rounds
            .entry(slot.tag(), is_gone)
            .ok_or(BarrierError::TooManyThreads)?;
        let round = match rounds.arrive(entry, parties) {
            Ok(round) => round,
            Err(Over::Broken) => return Err(BarrierError::Broken),
            Err(Over::Ended) => {
                self.wake();
                return Ok(BarrierWaitResult(true));
            }
        };
        // The loop tells what has ended the look.
        let _ = attempt_awake(
            (),
            None,
            || (),
            |()| match round.goes_on(rounds.state()) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            },
        );
        let mut in_vain = false;
        loop {
            let state = match rounds.look(round, is_gone, || self.wake()) {
                Ok(state) => state,
                Err(Over::Broken) => return Err(BarrierError::Broken),
                Err(Over::Ended) => return Ok(BarrierWaitResult(false)),
            };
            // After the look for lost parties, which need not be settled to be missed.
            if in_vain {
                recovery::settle_in_turn(arena);
            }
            let low = Arena::low_half(&self.state);
            in_vain = lock::slept_in_vain(arena, slot, low, state.low(), Tag::NOBODY, None);
        }
    }

    /// Breaks the barrier: who waits now, and who comes later, is told, until it is
    /// [`reset`](Self::reset). For who knows that a party will not come. (A reset alone says so to those
    /// who wait already, and the next to come would wait for a party that is not there.)
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has broken it or not.
    ///
    /// ```
    /// # use shmkit::process::scope;
    /// # use shmkit::sync::{Barrier, BarrierError};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let barrier = pool.create(Barrier::new(2))?;
    /// scope(|s| {
    ///     let waits = s.spawn(|| barrier.wait().is_err()).unwrap();
    ///     let dies = s.spawn::<_, ()>(|| std::process::abort()).unwrap();
    ///     if dies.join().is_err() {
    ///         barrier.abort();
    ///     }
    ///     assert!(waits.join().unwrap());
    /// });
    /// assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn abort(&self) {
        self.rounds().abort();
        self.wake();
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
        self.rounds().reset();
        self.wake();
    }

    /// Whether the barrier is broken, and every wait would answer so.
    ///
    /// ```
    /// # use shmkit::sync::{Barrier, BarrierError};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let barrier = pool.create(Barrier::new(2))?;
    /// assert!(!barrier.is_broken());
    /// barrier.abort();
    /// assert!(barrier.is_broken());
    /// barrier.reset();
    /// assert!(!barrier.is_broken());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.rounds().state().is_broken()
    }

    fn rounds(&self) -> Rounds<'_> {
        Rounds {
            state: &self.state,
            entries: &self.entries,
        }
    }

    fn wake(&self) {
        futex::wake(Arena::low_half(&self.state), u32::MAX);
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.rounds().state();
        f.debug_struct("Barrier")
            .field("parties", &self.parties.load(Ordering::Relaxed))
            .field("arrived", &state.arrived())
            .field("broken", &state.is_broken())
            .finish()
    }
}
