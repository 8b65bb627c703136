//! The table of jobs in the control pool: the one thing that a master and its workers share.
//!
//! A job is one call of an entry point, from the request to the join. It has a place in a table of
//! fixed length, and all that happens to it is a change of its state word:
//!
//! ```text
//! FREE ──> CLAIMED(tag) ──> REQUESTED(id) ──> RUNNING(id) ──> ENDED(id) ──> TAKEN(tag) ──> FREE
//!          requester        master            │      ^        any joiner    joiner or master
//!                                             v      │ master
//!                                            WAITING(id): it will be started again
//! ```
//!
//! | state | who may change it | to |
//! |---|---|---|
//! | FREE | any worker | CLAIMED by its tag |
//! | CLAIMED | the claimant | REQUESTED, or FREE if it gives up |
//! | REQUESTED, WAITING | the master | RUNNING, ENDED |
//! | RUNNING | the master | ENDED, WAITING |
//! | ENDED | a thread that joins or detaches | TAKEN |
//! | ENDED, with the flag DETACHED | the master | FREE |
//! | TAKEN | the taker; if it is gone, a thread that joins or detaches, and the master | FREE; ENDED |
//! | REQUESTED, RUNNING, WAITING, without DETACHED | any worker | the same with the flag DETACHED or KILL |
//!
//! # Invariants
//!
//! 1. An id names one job for ever: it comes from a counter, and every operation on a handle
//!    compares it. So a place that is used again is not mistaken for the job that had it.
//! 2. The fields of a place belong to whatever its word names: to the claimant while CLAIMED, to
//!    the master, or the job's own process, from REQUESTED to ENDED, to the taker while TAKEN.
//! 3. The master waits for no worker: it only exchanges words. A worker that is stopped or hangs
//!    delays nobody.
//! 4. CLAIMED and TAKEN name a thread. If it is gone, the master puts the place right. A thread that joins a job does
//!    not wait for that, as the master may not learn of each death: it makes the job ENDED again itself.
//!
//! # Crash behaviour
//!
//! The death of the master ends the run and this pool with it, so only workers matter.
//!
//! | killed | leaves | repaired by |
//! |---|---|---|
//! | before CLAIMED | nothing | |
//! | while CLAIMED | a place with no job | the master, when it reaps: FREE |
//! | REQUESTED, before the master is woken | a job | the master, when it reaps, finds it |
//! | the job's process, before its kind is stored | no result | the master: ENDED with the cause |
//! | a taker, before it strikes the outcome | TAKEN, with the outcome | the master, or who joins: ENDED again |
//! | a taker, later | TAKEN, half empty | the master: FREE |

use std::alloc::Layout;
use std::mem::offset_of;
use std::time::Duration;

use super::table::{self, PHASE, StateWord, Used};
use super::{peers, resources};
use crate::ShmSafe;
use crate::allocator::block;
use crate::containers::{Link, Shared};
use crate::layout::arena::Arena;
use crate::layout::{Field, TypeInfo};
use crate::participants::deadline::Deadline;
use crate::participants::lock::TICK;
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::pool::{ObjectError, Pool};
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::sys::futex;

/// Jobs that there can be at once, from their request to their join.
pub(super) const JOBS: usize = 4096;
/// Bytes of an argument or a result that need no block of their own.
pub(super) const INLINE: usize = 48;

/// Somebody has detached the job: nobody will join it.
pub(super) const DETACHED: u64 = 0x10;
/// Somebody has asked for the job's end.
pub(super) const KILL: u64 = 0x20;

const ID_SHIFT: u32 = 8;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobPhase {
    Free = 0,
    Claimed = 1,
    Requested = 2,
    Running = 3,
    Waiting = 4,
    Ended = 5,
    Taken = 6,
}

/// A state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobState(u64);

impl JobState {
    const FREE: JobState = JobState(0);

    pub(super) fn of(phase: JobPhase, id: u64, flags: u64) -> JobState {
        JobState(id << ID_SHIFT | flags | phase as u64)
    }

    fn held(phase: JobPhase, by: Tag) -> JobState {
        JobState(by.word() | phase as u64)
    }

    pub(super) fn phase(self) -> JobPhase {
        match self.0 & PHASE {
            1 => JobPhase::Claimed,
            2 => JobPhase::Requested,
            3 => JobPhase::Running,
            4 => JobPhase::Waiting,
            5 => JobPhase::Ended,
            6 => JobPhase::Taken,
            _ => JobPhase::Free,
        }
    }

    /// The job's id; 0 in a phase that has none.
    pub(super) fn id(self) -> u64 {
        match self.phase() {
            JobPhase::Free | JobPhase::Claimed | JobPhase::Taken => 0,
            _ => self.0 >> ID_SHIFT,
        }
    }

    pub(super) fn has(self, flag: u64) -> bool {
        self.id() != 0 && self.0 & flag != 0
    }

    fn flags(self) -> u64 {
        self.0 & (DETACHED | KILL)
    }
}

/// What a payload contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum PayloadKind {
    /// There is none.
    None = 0,
    /// A value in postcard's encoding.
    Value = 1,
    /// The message of a panic.
    Panic = 2,
    /// Why the value could not be serialised.
    EncodeFailed = 3,
    /// Why the value could not be put into the pool.
    WriteFailed = 4,
    /// Why the argument could not be deserialised.
    BadArgument = 5,
    /// Why there was no process; stored by the master.
    NotStarted = 6,
    /// The name of an entry that has other types where it is defined; stored by the master.
    OtherTypes = 7,
    /// The file that has the name of a pool that is to be managed; stored by the master.
    NameTaken = 8,
}

impl PayloadKind {
    fn from_raw(raw: u32) -> PayloadKind {
        let kinds = [
            PayloadKind::Value,
            PayloadKind::Panic,
            PayloadKind::EncodeFailed,
            PayloadKind::WriteFailed,
            PayloadKind::BadArgument,
            PayloadKind::NotStarted,
            PayloadKind::OtherTypes,
            PayloadKind::NameTaken,
        ];
        kinds
            .into_iter()
            .find(|&kind| kind as u32 == raw)
            .unwrap_or(PayloadKind::None)
    }
}

/// The head of a block of bytes, which follow it. They are written before anybody sees the block.
#[derive(ShmSafe)]
pub(super) struct Bytes {
    length: u64,
}

impl Bytes {
    const HEAD: usize = size_of::<Bytes>();

    fn create(pool: Pool, bytes: &[u8]) -> Result<Shared<Bytes>, ObjectError> {
        let layout = Layout::from_size_align(Self::HEAD + bytes.len(), align_of::<Bytes>())
            .map_err(|_| crate::AllocError::PoolFull)?;
        pool.create_with(layout, |place| {
            // SAFETY: a new block of the head and as many bytes, which nobody else has.
            unsafe {
                place.cast::<Bytes>().write(Bytes {
                    length: bytes.len() as u64,
                });
                place
                    .add(Self::HEAD)
                    .as_ptr()
                    .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
        })
    }

    fn read(this: &Shared<Bytes>) -> &[u8] {
        let start = std::ptr::from_ref::<Bytes>(this).expose_provenance();
        let usable = block::usable_size(this.pool().0, start).unwrap_or(Self::HEAD);
        let length = usize::try_from(this.length).unwrap_or(usize::MAX);
        let length = length.min(usable - Self::HEAD);
        // SAFETY: within the block, which `this` keeps alive, and to which nobody writes after it
        // was made.
        unsafe {
            std::slice::from_raw_parts(
                std::ptr::with_exposed_provenance(start + Self::HEAD),
                length,
            )
        }
    }
}

/// Bytes that travel with a job. Its fields belong to one process at a time (invariant 2).
#[derive(ShmSafe)]
pub(super) struct Payload {
    kind: AtomicU32,
    /// The length of the inline bytes; the block knows its own length.
    length: AtomicU32,
    inline: [AtomicU64; INLINE / 8],
    block: Link<Bytes>,
}

impl Payload {
    /// Stores the bytes. The kind is stored last: until then there is no payload.
    #[unsafe(link_section = ".shmkit.child")]
    pub(super) fn store(
        &self,
        pool: Pool,
        kind: PayloadKind,
        bytes: &[u8],
    ) -> Result<(), ObjectError> {
        if bytes.len() <= INLINE {
            for (word, bytes) in self.inline.iter().zip(bytes.chunks(8)) {
                // Not by a copy, which would be a call of the C library; see `encode.rs`.
                let word_of = |word, (i, &byte)| word | u64::from(byte) << (8 * i);
                let whole = bytes.iter().enumerate().fold(0, word_of);
                word.store(u64::from_le(whole), Ordering::Relaxed);
            }
        } else {
            let block = Bytes::create(pool, bytes)?;
            self.block.set(Some(&block)).map_err(|_| NoSlot)?;
        }
        self.length
            .store(bytes.len().min(INLINE) as u32, Ordering::Relaxed);
        self.kind.store(kind as u32, Ordering::Release);
        Ok(())
    }

    /// Calls `f` with the bytes.
    #[unsafe(link_section = ".shmkit.child")]
    pub(super) fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        if !self.block.is_null() {
            let block = self.block.get();
            return f(block.as_ref().map_or(&[], Bytes::read));
        }
        let mut bytes = [0; INLINE];
        for (bytes, word) in bytes.chunks_mut(8).zip(&self.inline) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let length = self.length.load(Ordering::Relaxed) as usize;
        f(&bytes[..length.min(INLINE)])
    }

    pub(super) fn kind(&self) -> PayloadKind {
        PayloadKind::from_raw(self.kind.load(Ordering::Acquire))
    }

    pub(super) fn clear(&self) {
        if self.kind.load(Ordering::Relaxed) != 0 {
            self.kind.store(0, Ordering::Release);
        }
        if !self.block.is_null() {
            // Refused only to a thread without a slot: the thread to which the place belongs has
            // one.
            let _ = self.block.set(None);
        }
    }
}

/// A place in the table.
#[derive(ShmSafe)]
pub(super) struct Job {
    state: StateWord,
    /// The job's id again, for a taker that dies.
    id: AtomicU64,
    /// What joiners sleep on: it changes when the job ends.
    ended: AtomicU32,
    /// How its last process ended; see `Outcome` in `supervise.rs`.
    pub(super) outcome: AtomicU32,
    /// How often it was started again.
    pub(super) restarts: AtomicU32,
    /// The policy; see `supervise.rs`.
    pub(super) policy: AtomicU64,
    /// The entry's function and the one that knows its types, and the word that says that both are
    /// of this image; see `entry.rs`.
    pub(super) call: [AtomicU64; 3],
    pub(super) argument: Payload,
    pub(super) result: Payload,
}

impl Job {
    pub(super) fn state(&self) -> JobState {
        JobState(self.state.load())
    }

    /// Turns the word, if it is `from`.
    fn turn(&self, from: JobState, to: JobState) -> bool {
        self.state.turn(from.0, to.0)
    }

    /// The master's step: the phase changes, the flags stay. Returns the new word.
    pub(super) fn advance(&self, to: JobPhase) -> JobState {
        loop {
            let from = self.state();
            let to = JobState::of(to, from.id(), from.flags());
            if self.turn(from, to) {
                return to;
            }
        }
    }

    /// The master's step: the job has ended, and joiners are woken.
    pub(super) fn end(&self, outcome: u32) -> JobState {
        self.outcome.store(outcome, Ordering::Relaxed);
        let state = self.advance(JobPhase::Ended);
        self.ended.fetch_add(1, Ordering::Release);
        futex::wake(&self.ended, u32::MAX);
        state
    }

    /// Sets a flag of the job `id`, if it is not over. False if it is.
    pub(super) fn flag(&self, id: u64, flag: u64) -> bool {
        loop {
            let state = self.state();
            if state.id() != id || state.phase() == JobPhase::Ended || state.has(DETACHED) {
                return false;
            }
            if self.turn(state, JobState(state.0 | flag)) {
                return true;
            }
        }
    }

    /// Takes the ended job `id` for the calling thread, or says why not.
    pub(super) fn take(&self, arena: Arena, id: u64, by: Tag) -> Result<(), Untaken> {
        if let Some(state) = self.abandoned(arena) {
            self.put_back(state);
        }
        loop {
            let state = self.state();
            if state.id() != id || state.has(DETACHED) {
                return Err(Untaken::Gone);
            }
            if state.phase() != JobPhase::Ended {
                return Err(Untaken::NotEnded);
            }
            if self.turn(state, JobState::held(JobPhase::Taken, by)) {
                return Ok(());
            }
        }
    }

    /// The state, if it names a thread that is gone.
    fn abandoned(&self, arena: Arena) -> Option<JobState> {
        let state = self.state();
        let is_held = matches!(state.phase(), JobPhase::Taken | JobPhase::Claimed);
        (is_held && table::is_abandoned(arena, state.0)).then_some(state)
    }

    /// Makes the job ENDED again that a thread had taken which is gone; false if it has struck the outcome. By
    /// invariant 4.
    fn put_back(&self, state: JobState) -> bool {
        let has_outcome =
            state.phase() == JobPhase::Taken && self.outcome.load(Ordering::Acquire) != 0;
        if has_outcome {
            // The outcome and the id are those of this state, if the word is still the same.
            let ended = JobState::of(JobPhase::Ended, self.id.load(Ordering::Relaxed), 0);
            self.turn(state, ended);
        }
        has_outcome
    }

    /// Whether the job `id` has ended, or is no longer there.
    pub(super) fn is_over(&self, id: u64) -> bool {
        let state = self.state();
        state.id() != id || state.phase() == JobPhase::Ended
    }

    /// Sleeps until the job may have ended.
    pub(super) fn wait(&self, id: u64, deadline: Deadline) {
        let ended = self.ended.load(Ordering::Acquire);
        if !self.is_over(id) {
            futex::wait(&self.ended, ended, deadline.left(TICK));
        }
    }

    /// Empties the place. The caller has TAKEN or CLAIMED it, or is the master and nobody has it.
    pub(super) fn release(&self) {
        // First, since it tells `tidy` how far we got.
        self.outcome.store(0, Ordering::Release);
        self.result.clear();
        self.argument.clear();
        self.restarts.store(0, Ordering::Relaxed);
        self.state.store(JobState::FREE.0);
    }
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untaken {
    NotEnded,
    Gone,
}

/// What a master and its workers share. All zeros is a valid, empty one.
///
/// Not derived: any crate can derive a type of the same name and fields, and code that opens it by
/// name or by a descriptor would take the two for one type. A master calls what is written here.
#[repr(C)]
pub(super) struct Control {
    last_id: AtomicU64,
    used: Used,
    /// The master has asked for the end: what `Worker::wait_stop` sleeps on.
    stopping: AtomicU32,
    pub(super) resources: resources::Table,
    pub(super) peers: peers::Table,
    jobs: [Job; JOBS],
}

// SAFETY: every field is ShmSafe, and described at its place; no drop glue.
unsafe impl ShmSafe for Control {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Control",
        const {
            &[
                Field::at::<AtomicU64>("last_id", offset_of!(Self, last_id)),
                Field::at::<Used>("used", offset_of!(Self, used)),
                Field::at::<AtomicU32>("stopping", offset_of!(Self, stopping)),
                Field::at::<resources::Table>("resources", offset_of!(Self, resources)),
                Field::at::<peers::Table>("peers", offset_of!(Self, peers)),
                Field::at::<[Job; JOBS]>("jobs", offset_of!(Self, jobs)),
            ]
        },
    );
    const OWNS: bool = true;
}

/// A place that the calling thread has claimed.
pub(super) struct Claimed<'a> {
    control: &'a Control,
    pub(super) index: usize,
}

impl Control {
    /// Makes the control block of a new master, in a pool in which nothing was ever freed. Memory
    /// from such a pool is zero, and zeros are valid: the block consists of atomics and links. So
    /// its 300 pages are not touched before they are used.
    pub(super) fn create(pool: Pool) -> Result<Shared<Control>, ObjectError> {
        pool.create_with(Layout::new::<Control>(), |place| {
            let words = place.cast::<u64>();
            // SAFETY: the block is new, aligned, and nobody else's.
            let zero = |i| unsafe { words.add(i).read() } == 0;
            debug_assert!((0..size_of::<Control>() / 8).all(zero), "freed memory");
        })
    }

    pub(super) fn job(&self, index: usize) -> Option<&Job> {
        self.jobs.get(index)
    }

    /// The places that were ever used.
    pub(super) fn jobs(&self) -> impl Iterator<Item = (usize, &Job)> {
        self.used.of(&self.jobs).iter().enumerate()
    }

    /// The master's step: repairs a place that a dead worker, or nobody, has left (invariant 4).
    pub(super) fn tidy(&self, arena: Arena, place: usize) {
        let Some(job) = self.job(place) else { return };
        if let Some(state) = job.abandoned(arena) {
            self.put_right(place, job, state);
        }
    }

    /// Repairs a place that was found in a state whose thread is gone.
    fn put_right(&self, place: usize, job: &Job, state: JobState) {
        // Otherwise a joiner has put the job back meanwhile, and taken it.
        if !job.put_back(state) && job.state() == state {
            // What the claimant was about to leave to its worker. Cleared before the place is
            // free, since the next one to have the place leaves something there at once.
            self.resources.clear_user(place);
            job.release();
        }
    }

    /// Claims a free place.
    pub(super) fn claim(&self, by: Tag) -> Option<Claimed<'_>> {
        let claimed = JobState::held(JobPhase::Claimed, by);
        let index = self.used.claim(&self.jobs, |job| &job.state, claimed.0)?;
        Some(Claimed {
            control: self,
            index,
        })
    }

    pub(super) fn stop(&self) {
        self.stopping.store(1, Ordering::Release);
        futex::wake(&self.stopping, u32::MAX);
        self.peers.wake_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) != 0
    }

    /// Sleeps until the run may be coming to its end.
    pub(super) fn wait_stop(&self, limit: Duration) {
        futex::wait(&self.stopping, 0, limit);
    }
}

impl<'a> Claimed<'a> {
    pub(super) fn job(&self) -> &'a Job {
        &self.control.jobs[self.index]
    }

    /// Publishes the job; returns its id. The caller must then wake the master.
    pub(super) fn request(self) -> u64 {
        let id = self.control.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let job = self.job();
        job.id.store(id, Ordering::Relaxed);
        let requested = JobState::of(JobPhase::Requested, id, 0);
        job.state.store(requested.0);
        id
    }

    /// Gives the place back.
    pub(super) fn give_up(self) {
        self.job().release();
    }
}

#[cfg(test)]
mod tests;
