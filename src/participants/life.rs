//! The verdict: does that owner live?
//!
//! A false verdict would make two owners of one thing, so there are only these grounds for death:
//!
//! 1. the kernel has marked the life word (0.1 ms after a kill), and the process has no other
//!    thread that may still run: what the dead thread held may be in use by its sisters, which a
//!    SIGKILL stops a moment later, and which an end of that thread alone does not stop at all;
//! 2. the slot has gone on to another generation, or is marked DEAD already;
//! 3. the slow check ([`confirm`]) has positive evidence about the very task: it no longer exists,
//!    or is a zombie, or another task has its number. The check then marks the word as the kernel
//!    would have, so that there is one path from here on. Any error on the way means alive.
//!
//! A start time is evidence only for a thread to which times mean what they mean in the pool: a
//! thread may have changed to another time namespace since it began to use the pool. So functions
//! here are given the pool's namespace (`times`, 0 if that is unknown), and ask for the thread's
//! before they believe a start.
//!
//! The third ground also covers those that recover the dead, should they die unmarked.
//!
//! A task that is stopped lives.

use crate::layout::arena::Arena;
use crate::participants::process as records;
use crate::participants::table::{Process, ProcessPhase, ProcessState, Slot, SlotPhase, SlotState};
use crate::participants::tag::Tag;
use crate::primitive::Ordering;
use crate::sys::process::{self, TaskState};
use crate::sys::robust::{OWNER_DIED, RobustWord, TID, WAITERS};

/// True if the owner is certainly dead, or has left.
#[inline]
pub(crate) fn is_gone(arena: Arena, owner: Tag) -> bool {
    let Some(slot) = arena.owner_slot(owner) else {
        return true;
    };
    let state = slot.state();
    if state.generation != owner.generation() {
        return true;
    }
    match state.phase {
        // The state is read before the mark: a mark seen now belongs to this generation or a later
        // one.
        SlotPhase::Live => slot.life.owner_died() && bury(arena, slot, state),
        SlotPhase::Parked => false,
        SlotPhase::Dead | SlotPhase::Settled | SlotPhase::Free => true,
    }
}

/// As [`is_gone`] at rest, for a caller that only reads: nothing is noted.
pub(crate) fn is_gone_at_rest(arena: Arena, owner: Tag) -> bool {
    arena.owner_slot(owner).is_none_or(|slot| {
        let state = slot.state();
        state.generation != owner.generation()
            || match state.phase {
                SlotPhase::Live => slot.life.owner_died(),
                SlotPhase::Parked => false,
                SlotPhase::Dead | SlotPhase::Settled | SlotPhase::Free => true,
            }
    })
}

/// Turns a LIVE slot whose word is marked to DEAD, so that everybody sees it from now on, even
/// while the life word is held by a thread that recovers the slot. False if it is too early: see
/// ground 1.
#[cold]
pub(crate) fn bury(arena: Arena, slot: &Slot, live: SlotState) -> bool {
    let process = Tag::of_word(slot.watched.process.load(Ordering::Acquire));
    if process.slot() < arena.process_count() {
        let record = arena.process(process.slot());
        let state = record.state();
        // If the record has gone on to another state, the process is gone.
        if state.generation == process.generation()
            && state.phase == ProcessPhase::Live
            && !bury_process(record, state, arena.times())
        {
            return false;
        }
    }
    slot.turn(live, live.with(SlotPhase::Dead)) || slot.state() != live
}

/// The same for a record. So a process that is gone is asked about once, however many slots it has
/// left.
#[cold]
pub(crate) fn bury_process(record: &Process, live: ProcessState, times: u64) -> bool {
    let sisters_run = || {
        let start = record.start.load(Ordering::Acquire);
        let pid = record.pid.get();
        !believed(times, start, |start| !process::may_still_run(pid, start))
    };
    if record.asked.or_ask(microseconds, sisters_run) {
        return false;
    }
    record.turn(live, live.with(ProcessPhase::Dead)) || record.state() != live
}

/// Whether a process or thread is gone, as `is_gone` says of its start; if start times mean
/// something else here, it must say the same of an unknown start.
fn believed(times: u64, start: u64, is_gone: impl Fn(u64) -> bool) -> bool {
    is_gone(start) && (start == 0 || !records::are_other_times_here(times) || is_gone(0))
}

/// The monotonic clock, in microseconds.
pub(crate) fn microseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Looks for evidence that the kernel's mark was missed, and sets it if so.
///
/// The word belongs to its claimant, whose start is known; or it is held by a thread that recovers
/// the slot, or is about to claim it. Of such a thread only the number is known, so another task
/// with that number keeps it alive. It cannot be mistaken for a claimant with the same number: it
/// has seen the slot before that became LIVE, or has buried it, so it lived when the claimant did.
#[cold]
pub(crate) fn confirm(slot: &Slot, times: u64) {
    let before = slot.state();
    let word = slot.life.word.load(Ordering::Acquire);
    let start = slot.start.load(Ordering::Acquire);
    let holder = slot.holder.load(Ordering::Acquire);
    if word & OWNER_DIED != 0 || word & TID == 0 {
        return;
    }
    let is_claimant = before.phase == SlotPhase::Live && u64::from(word & TID) == holder;
    let found = process::start_time(word & TID);
    let gone = believed(times, start, |start| match found {
        TaskState::Dead => true,
        // A start of 0 is unknown, and is not evidence.
        TaskState::Alive { start: other } => is_claimant && start != 0 && other != start,
        TaskState::Unknown => false,
    });
    // The same generation before and after: the tid and the start belong together.
    if gone && slot.state() == before && slot.start.load(Ordering::Acquire) == start {
        mark(&slot.life, word);
    }
}

/// As [`confirm`], for a process: every thread of it must be gone. Also covers a process whose word
/// nobody holds, because it has unmapped the pool and left guards behind. If the word is marked
/// already, an earlier answer to whether the process runs no longer counts.
#[cold]
pub(crate) fn confirm_process(record: &Process, times: u64) {
    let before = record.state();
    let word = record.life.word.load(Ordering::Acquire);
    let start = record.start.load(Ordering::Acquire);
    let pid = record.pid.get();
    let holder = record.holder.load(Ordering::Acquire);
    if word & OWNER_DIED != 0 {
        record.asked.forget();
        return;
    }
    let tid = word & TID;
    let gone = match before.phase {
        ProcessPhase::Live if tid == 0 || u64::from(tid) == holder => {
            believed(times, start, |start| process::process_is_gone(pid, start))
        }
        // Another thread recovers the record, or is about to claim it.
        _ => tid != 0 && process::start_time(tid) == TaskState::Dead,
    };
    if gone && record.state() == before {
        mark(&record.life, word);
    }
}

/// Marks a life word as the kernel would have, unless it has changed.
fn mark(life: &RobustWord, found: u32) {
    let marked = found & WAITERS | OWNER_DIED;
    let _ = life
        .word
        .compare_exchange(found, marked, Ordering::AcqRel, Ordering::Relaxed);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A value as it lies in a pool that nobody has used.
    pub(crate) fn zeroed<T>() -> &'static T {
        let layout = std::alloc::Layout::new::<T>();
        // SAFETY: a block of the type's layout, leaked, for a type that consists of numbers.
        unsafe { &*std::alloc::alloc_zeroed(layout).cast::<T>() }
    }

    /// A task that lives, and did not start at boot.
    fn parent() -> u32 {
        std::os::unix::process::parent_id()
    }

    #[test]
    fn a_word_that_is_being_taken_over_is_not_marked() {
        let slot: &Slot = zeroed();
        let live = SlotState {
            phase: SlotPhase::Live,
            generation: 1,
        };
        slot.state.store(live.pack(), Ordering::Relaxed);
        slot.start.store(1, Ordering::Relaxed);
        slot.life.word.store(parent(), Ordering::Relaxed);
        slot.holder.store(4_000_000, Ordering::Relaxed);
        confirm(slot, 0);
        assert_eq!(slot.life.word.load(Ordering::Relaxed), parent());
        // The claimant's number now belongs to another task.
        slot.holder.store(parent().into(), Ordering::Relaxed);
        confirm(slot, 0);
        assert_eq!(slot.life.word.load(Ordering::Relaxed), OWNER_DIED);
    }

    /// A task that no longer exists: this process has reaped it.
    fn gone() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn a_slot_is_not_held_by_who_is_no_more() {
        let slot: &Slot = zeroed();
        slot.holder.store(parent().into(), Ordering::Relaxed);
        slot.start.store(1, Ordering::Relaxed);
        use SlotPhase::{Dead, Free, Live, Parked, Settled};
        for phase in [Free, Live, Parked, Dead, Settled] {
            let generation = 1;
            let state = SlotState { phase, generation };
            slot.state.store(state.pack(), Ordering::Relaxed);
            // The number of the claimant, which is dead: it may now be another task's.
            if phase != Live {
                slot.life.word.store(parent(), Ordering::Relaxed);
                confirm(slot, 0);
                assert_eq!(slot.life.word.load(Ordering::Relaxed), parent());
            }
            let held = gone() | WAITERS;
            slot.life.word.store(held, Ordering::Relaxed);
            confirm(slot, 0);
            let marked = OWNER_DIED | WAITERS;
            assert_eq!(slot.life.word.load(Ordering::Relaxed), marked, "{phase:?}");
            for word in [0, OWNER_DIED] {
                slot.life.word.store(word, Ordering::Relaxed);
                confirm(slot, 0);
                assert_eq!(slot.life.word.load(Ordering::Relaxed), word);
            }
        }
    }

    #[test]
    fn a_record_is_not_held_by_who_is_no_more() {
        let record: &Process = zeroed();
        record.start.store(1, Ordering::Relaxed);
        record.holder.store(parent().into(), Ordering::Relaxed);
        record.pid.set(1, parent());
        use ProcessPhase::{Aborted, Dead, Forking, Free, Live};
        for phase in [Free, Forking, Live, Dead, Aborted] {
            let state = ProcessState {
                phase,
                parent: 0,
                generation: 1,
            };
            record.state.store(state.pack(), Ordering::Relaxed);
            let word = |found: u32| {
                record.life.word.store(found, Ordering::Relaxed);
                confirm_process(record, 0);
                record.life.word.load(Ordering::Relaxed)
            };
            assert_eq!(word(gone()), OWNER_DIED, "{phase:?}");
            if phase != Live {
                assert_eq!((word(parent()), word(0)), (parent(), 0));
            }
        }
    }

    #[test]
    fn a_record_that_is_being_taken_over_is_not_marked() {
        let record: &Process = zeroed();
        let live = ProcessState {
            phase: ProcessPhase::Live,
            parent: 0,
            generation: 1,
        };
        record.state.store(live.pack(), Ordering::Relaxed);
        record.start.store(1, Ordering::Relaxed);
        record.pid.set(live.generation, parent());
        record.life.word.store(parent(), Ordering::Relaxed);
        record.holder.store(4_000_000, Ordering::Relaxed);
        confirm_process(record, 0);
        assert_eq!(record.life.word.load(Ordering::Relaxed), parent());
        record.holder.store(parent().into(), Ordering::Relaxed);
        for word in [parent(), 0] {
            record.life.word.store(word, Ordering::Relaxed);
            confirm_process(record, 0);
            assert_eq!(record.life.word.load(Ordering::Relaxed), OWNER_DIED);
        }
    }
}
