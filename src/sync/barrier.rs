//! [`Barrier`]: nobody goes on before all have arrived, or it is known that some will not.
//!
//! For what a round is, what breaks it, and what a death leaves, see `protocol::rounds`.

use std::fmt;
use std::marker::PhantomPinned;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::layout::arena::Arena;
use crate::layout::{Field, ShmSafe, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::habit::attempt_awake;
use crate::participants::here::{from_nowhere, here};
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::participants::{life, lock, recovery};
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::rounds::{Entry, Over, Rounds, State};
use crate::sys::futex;

/// The number of entries: for the parties of a round, and as many of the round before.
const ENTRIES: usize = 2 * Barrier::MAX_PARTIES as usize;

/// A meeting point: [`wait`](Self::wait) returns when as many threads as the barrier was made for
/// have called it, in any processes. A barrier can be used again and again.
///
/// # Crash behaviour
///
/// If a thread that has taken part is killed or ends, and the others are waiting for it, they are
/// told ([`BarrierError::Broken`]). The barrier stays broken until it is [`reset`](Self::reset). It
/// knows the threads that arrived in the round before, and those that have arrived in this one. It
/// does not know a thread that is killed before its first `wait`: whoever reaps that process can
/// tell the others by [`abort`](Self::abort), as in [`Config::on_end`](crate::process::Config::on_end),
/// or they give up after a [time limit](Self::wait_timeout).
///
/// When all threads of one group have ended, another group may use the barrier. While some of a
/// group live, and others have ended, those that have ended are missed, whoever waits. So a barrier
/// is for threads that come to it again and again, not for any two of a larger number; of those that
/// are alive, it can remember 128.
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

// SAFETY: atomic words, some of which hold tags of the pool's own tables; no `Drop`.
unsafe impl ShmSafe for Barrier {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Barrier",
        const { &[Field::at::<[std::sync::atomic::AtomicU64; 2 + 2 * ENTRIES]>("words", 0)] },
    )
    .in_place();
}

const _: () = assert!(size_of::<Barrier>() == (2 + 2 * ENTRIES) * 8);

/// Whether the caller was the one thread of the round that is its leader.
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
    /// True for one thread of each round, the last to arrive.
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

/// Why a wait ended although not all have arrived.
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
    /// A party is gone or has given up, or somebody has aborted the barrier, or reset it meanwhile.
    #[error("a party of the barrier is gone or has given up, or the barrier was aborted or reset")]
    Broken,
    /// Not all have arrived in time. The barrier is broken now.
    #[error("not all parties of the barrier arrived in time")]
    TimedOut,
    /// The barrier was made for 0 parties, or for more than [`Barrier::MAX_PARTIES`].
    #[error("a barrier has 1 to {} parties", Barrier::MAX_PARTIES)]
    Parties,
    /// More threads that are still alive have used the barrier than it can remember.
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

    /// A barrier for `parties` threads, to be put into a pool. If a barrier cannot have that
    /// number, [`wait`](Self::wait) gives an error.
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
    /// A caller that is killed before the round has ended breaks the round for those that wait. If nobody
    /// is waiting by then, the dead caller has arrived all the same: the last to arrive ends the round,
    /// and does not look for dead parties.
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
        self.wait_until(Deadline::NEVER)
    }

    /// As [`wait`](Self::wait), for that time at most. A wait that ends too early for the others
    /// breaks the barrier, so that they do not wait for a party that has given up; it has to be
    /// [`reset`](Self::reset) before it is used again.
    ///
    /// # Errors
    ///
    /// See [`BarrierError`]; [`BarrierError::TimedOut`] for the thread whose time is up, and
    /// [`BarrierError::Broken`] for the others.
    ///
    /// # Crash behaviour
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use shmkit::sync::{Barrier, BarrierError};
    /// # let pool = shmkit::Pool::builder().create()?;
    /// let barrier = pool.create(Barrier::new(2))?;
    /// let alone = barrier.wait_timeout(Duration::from_millis(1));
    /// assert_eq!(alone, Err(BarrierError::TimedOut));
    /// assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_until(Deadline::after(timeout))
    }

    fn wait_until(&self, deadline: Deadline) -> Result<BarrierWaitResult, BarrierError> {
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
        // The loop finds out what has ended this.
        let _ = attempt_awake(deadline, || (!round.goes_on(rounds.state())).then_some(()));
        let mut in_vain = false;
        loop {
            let state = match rounds.look(round, is_gone, || self.wake()) {
                Ok(state) => state,
                Err(over) => return Self::outcome(over),
            };
            if deadline.is_over() {
                let Some(over) = rounds.give_up(round) else {
                    self.wake();
                    return Err(BarrierError::TimedOut);
                };
                return Self::outcome(over);
            }
            // Done after the look for lost parties, which need not be settled to be missed.
            if in_vain {
                recovery::settle_in_turn(arena);
            }
            let low = Arena::low_half(&self.state);
            in_vain = lock::slept_in_vain(arena, slot, low, state.low(), Tag::NOBODY, deadline);
        }
    }

    /// The result of a party that was not the last to arrive.
    fn outcome(over: Over) -> Result<BarrierWaitResult, BarrierError> {
        match over {
            Over::Ended => Ok(BarrierWaitResult(false)),
            Over::Broken => Err(BarrierError::Broken),
        }
    }

    /// Breaks the barrier: threads that wait now, and threads that come later, are told, until it is
    /// [`reset`](Self::reset). This is for a caller that knows that a party will not come. (A reset
    /// alone tells only the threads that wait already; the next to come would wait for the missing
    /// party.)
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has broken the barrier, or it has not.
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

    /// Makes the barrier as good as new: it is not broken, and knows no parties. Threads that wait
    /// are told that it was broken; so are those that have not woken up since their round ended.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed has reset the barrier, or it has not.
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

    /// True if the barrier is broken, so that every wait would say so.
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
