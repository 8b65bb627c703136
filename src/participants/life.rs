//! The verdict: does that owner live?
//!
//! A false verdict would make two owners of one thing, so there are only these grounds for death:
//!
//! 1. the kernel has marked the life word (0.1 ms after a kill), and the process has no other thread
//!    that may still run: what the dead thread held may be in use by its sisters, which a SIGKILL
//!    stops a moment later, and an end of the thread alone does not stop at all;
//! 2. the slot has gone on to another generation, or is marked DEAD already;
//! 3. the slow check ([`confirm`]) has positive evidence about the very task: it is no more, or is
//!    a zombie, or another task has its number. It then marks the word as the kernel would have,
//!    so that there is one path from here on. Any error on the way means alive.
//!
//! A task that is stopped lives.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::layout::arena::Arena;
use crate::participants::table::{Process, ProcessPhase, ProcessState, Slot, SlotPhase, SlotState};
use crate::participants::tag::Tag;
use crate::primitive::Ordering;
use crate::sys::process::{self, TaskState};
use crate::sys::robust::{OWNER_DIED, TID, WAITERS};

/// True if the owner is dead for certain, or has left.
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
        // The state is read before the mark: a mark seen now is this generation's or a later one's.
        SlotPhase::Live => slot.life.owner_died() && bury(arena, slot, state),
        SlotPhase::Parked => false,
        SlotPhase::Dead | SlotPhase::Settled | SlotPhase::Free => true,
    }
}

/// As [`is_gone`] at rest, for who only reads: nothing is noted.
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

/// Turns a LIVE slot whose word is marked to DEAD, so that everybody sees it from now on, also
/// while the life word is held by who recovers it. False if it is too early: see ground 1.
#[cold]
pub(crate) fn bury(arena: Arena, slot: &Slot, live: SlotState) -> bool {
    let process = Tag::of_word(slot.watched.process.load(Ordering::Acquire));
    if process.slot() < arena.process_count() {
        let record = arena.process(process.slot());
        let state = record.state();
        // A record that has gone on says that the process is gone.
        if state.generation == process.generation()
            && state.phase == ProcessPhase::Live
            && sisters_run(record)
        {
            return false;
        }
    }
    let dead = SlotState {
        phase: SlotPhase::Dead,
        ..live
    };
    slot.turn(live, dead) || slot.state() != live
}

/// What was found out about a process: its number and start, whether it was alive, when, and for how
/// long that is not asked again.
#[derive(Clone, Copy)]
struct Found {
    who: (u32, u64),
    alive: bool,
    at: Instant,
    apart: Duration,
}

/// Whether other threads of the process may still run. As each answer takes a look at many files, and a
/// process that lives on would be asked about at every look at what its ended thread held, the same
/// question gets the same answer for a while: the longer, the more often it was asked. One that is gone
/// is so for good, however many slots it has left.
fn sisters_run(record: &Process) -> bool {
    const FIRST: Duration = Duration::from_micros(50);
    const MOST: Duration = Duration::from_millis(4);
    /// Processes that a thread remembers, by their numbers.
    const KNOWN: usize = 16;
    thread_local! {
        static FOUND: [Cell<Option<Found>>; KNOWN] = const { [const { Cell::new(None) }; KNOWN] };
    }
    let pid = record.pid.get();
    let who = (pid, record.start.load(Ordering::Acquire));
    FOUND.with(|all| {
        let place = &all[pid as usize % KNOWN];
        let known = place.get().filter(|known| known.who == who);
        // A start of 0 is unknown: another process may have got the number.
        let holds = |known: &Found| match known.alive {
            true => known.at.elapsed() < known.apart,
            false => who.1 != 0,
        };
        if let Some(known) = known.filter(holds) {
            return known.alive;
        }
        let alive = process::may_still_run(who.0, who.1);
        let apart = known.map_or(FIRST, |known| MOST.min(known.apart * 2));
        let at = Instant::now();
        place.set(Some(Found {
            who,
            alive,
            at,
            apart,
        }));
        alive
    })
}

/// The same for a record.
pub(crate) fn bury_process(record: &Process, live: ProcessState) -> bool {
    if sisters_run(record) {
        return false;
    }
    let dead = ProcessState {
        phase: ProcessPhase::Dead,
        ..live
    };
    record.turn(live, dead) || record.state() != live
}

/// Looks for evidence that the kernel's mark was missed, and sets it if so.
///
/// Only a word that its claimant holds is marked. One that is being taken over has another's tid: who takes
/// over has seen the slot before it became LIVE, or has buried it (`recovery`), so he lived when the
/// claimant did. Were his word marked, two would link it in their lists.
#[cold]
pub(crate) fn confirm(slot: &Slot) {
    let before = slot.state();
    let word = slot.life.word.load(Ordering::Acquire);
    let start = slot.start.load(Ordering::Acquire);
    let holder = slot.holder.load(Ordering::Acquire);
    if before.phase != SlotPhase::Live
        || word & (OWNER_DIED | TID) == 0
        || u64::from(word & (OWNER_DIED | TID)) != holder
    {
        return;
    }
    let gone = match process::start_time(word & TID) {
        TaskState::Dead => true,
        // A start of 0 is unknown, and no evidence.
        TaskState::Alive { start: other } => start != 0 && other != start,
        TaskState::Unknown => false,
    };
    // The same generation before and after: the tid and the start belong together.
    if gone && slot.state() == before && slot.start.load(Ordering::Acquire) == start {
        let marked = word & WAITERS | OWNER_DIED;
        let _ = slot
            .life
            .word
            .compare_exchange(word, marked, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// As [`confirm`], for a process: every thread of it must be gone. Also finds out about one whose word
/// nobody holds, as it has unmapped the pool and left guards behind.
#[cold]
pub(crate) fn confirm_process(record: &Process) {
    let before = record.state();
    let word = record.life.word.load(Ordering::Acquire);
    let start = record.start.load(Ordering::Acquire);
    let pid = record.pid.get();
    let holder = record.holder.load(Ordering::Acquire);
    let held = word & (OWNER_DIED | TID);
    if before.phase != ProcessPhase::Live || (held != 0 && u64::from(held) != holder) {
        return;
    }
    if process::process_is_gone(pid, start) && record.state() == before {
        let marked = word & WAITERS | OWNER_DIED;
        let _ =
            record
                .life
                .word
                .compare_exchange(word, marked, Ordering::AcqRel, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What lies in a pool that nobody has used.
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
        confirm(slot);
        assert_eq!(slot.life.word.load(Ordering::Relaxed), parent());
        // The claimant's number is another task's now.
        slot.holder.store(parent().into(), Ordering::Relaxed);
        confirm(slot);
        assert_eq!(slot.life.word.load(Ordering::Relaxed), OWNER_DIED);
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
        confirm_process(record);
        assert_eq!(record.life.word.load(Ordering::Relaxed), parent());
        record.holder.store(parent().into(), Ordering::Relaxed);
        for word in [parent(), 0] {
            record.life.word.store(word, Ordering::Relaxed);
            confirm_process(record);
            assert_eq!(record.life.word.load(Ordering::Relaxed), OWNER_DIED);
        }
    }
}
