//! What is done for the dead.
//!
//! Any survivor does it: who waits and finds a dead owner, who attaches, who is about to grow the
//! pool, a supervisor, whoever asks. Recovery of a slot is the robust acquisition of its dead life
//! word, so there is one at a time, and should it die too the word is marked again and the next
//! one goes on. Every step can be repeated; none allocates, locks, panics, or uses the
//! recoverer's own slot. Order:
//!
//! 1. the phase becomes DEAD (by whoever notices first; no life word needed);
//! 2. the intent: the operation in flight happens or does not. From here on others may take the
//!    dead one's locks, so nobody waits for the rest;
//! 3. permits go back, sleepers are woken, the pin goes;
//! 4. the allocator gives its spans to nobody, so that anybody can take them;
//! 5. the slot is FREE, the life word 0.
//!
//! For a process: records that it made for children which never came to life, slots that its
//! ended threads left parked, then the objects it held. Objects that nobody holds any more are
//! freed afterwards by an ordinary operation of the caller ([`Hooks::reap`]), not by recovery.

use std::sync::OnceLock;

use crate::layout::arena::Arena;
use crate::participants::table::{Process, ProcessPhase, ProcessState, Slot, SlotPhase, SlotState};
use crate::participants::tag::Tag;
use crate::participants::{life, permits};
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::futex;
use crate::sys::robust::OWNER_DIED;

/// What the layers above do for the dead.
pub(crate) struct Hooks {
    /// Completes or undoes the open intent of a dead slot and closes it. Repeatable.
    pub(crate) resolve: fn(Arena, usize),
    /// Frees what a thread that is about to leave can free of what it has retired.
    pub(crate) leave: fn(Arena, &Slot),
    /// Hands the memory that the slot cached to nobody. Repeatable.
    pub(crate) release_memory: fn(Arena, Tag),
    /// Frees objects that nobody holds. An ordinary operation of this thread.
    pub(crate) reap: fn(Arena),
}

static HOOKS: OnceLock<Hooks> = OnceLock::new();

/// Tells recovery what the layers above want done. The first call counts.
pub(crate) fn install(hooks: Hooks) {
    let _ = HOOKS.set(hooks);
}

/// What was recovered by one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) slots: usize,
    pub(crate) processes: usize,
}

/// True if a gone owner has no operation half done.
#[inline]
pub(crate) fn is_resolved(arena: Arena, owner: Tag) -> bool {
    let Some(slot) = arena.owner_slot(owner) else {
        return true;
    };
    let state = slot.state();
    state.generation != owner.generation()
        || state.phase != SlotPhase::Dead
        || !slot.intent.is_open()
        // A slot that has an intent is recovered whole; it is short, and the caller would wait.
        || recover_slot(arena, owner.slot())
}

/// Recovers the slot if it is dead and nobody else is at it. True if it is FREE or resolved now.
#[cold]
pub(crate) fn recover_slot(arena: Arena, index: usize) -> bool {
    let slot = arena.slot(index);
    // The state first: a mark seen then is that generation's, or a later one's.
    let state = slot.state();
    let mark = slot.life.word.load(Ordering::Acquire);
    let marked = mark & OWNER_DIED != 0;
    match state.phase {
        SlotPhase::Live if marked && life::bury(arena, slot, state) => {}
        SlotPhase::Dead => {}
        SlotPhase::Free if marked => {}
        _ => return state.phase == SlotPhase::Free,
    }
    // A parked slot's word is 0 when its process is found dead.
    if (!marked && mark != 0) || !slot.life.acquire(mark).unwrap_or(false) {
        return slot.state().phase != SlotPhase::Dead || !slot.intent.is_open();
    }
    // The mark may have been a later generation's than the one looked at above.
    let now = slot.state();
    if now.phase == SlotPhase::Live && !life::bury(arena, slot, now) {
        // SAFETY: acquired above.
        unsafe { slot.life.give_back_marked() };
        return false;
    }
    finish_slot(arena, index, slot);
    // SAFETY: acquired above.
    unsafe { slot.life.release() };
    true
}

/// The steps from the intent on. The caller holds the slot's life word.
pub(crate) fn finish_slot(arena: Arena, index: usize, slot: &Slot) {
    let state = slot.state();
    if state.phase != SlotPhase::Dead {
        return;
    }
    let Some(hooks) = HOOKS.get() else { return };
    let owner = Tag::new(index, state.generation);
    (hooks.resolve)(arena, index);
    debug_assert!(!slot.intent.is_open());
    futex::wake(&slot.life.word, u32::MAX);
    permits::recover(arena, index);
    futex::wake_address(slot.watched.waiting_on.swap(0, Ordering::AcqRel) as usize);
    futex::wake_address(slot.watched.condition.swap(0, Ordering::AcqRel) as usize);
    slot.watched.element.store(0, Ordering::Release);
    slot.pin_depth.store(0, Ordering::Relaxed);
    slot.watched.pin.store(0, Ordering::Release);
    (hooks.release_memory)(arena, owner);
    arena.header().recoveries.fetch_add(1, Ordering::Relaxed);
    arena.header().rescan.fetch_add(1, Ordering::Release);
    slot.state.store(
        SlotState {
            phase: SlotPhase::Free,
            ..state
        }
        .pack(),
        Ordering::Release,
    );
}

/// Recovers the record if its process is dead and nobody else is at it. True if it did.
#[cold]
pub(crate) fn recover_process(arena: Arena, index: usize) -> bool {
    let record = arena.process(index);
    let state = record.state();
    let mark = record.life.word.load(Ordering::Acquire);
    let marked = mark & OWNER_DIED != 0;
    match state.phase {
        ProcessPhase::Live if marked && life::bury_process(record, state) => {}
        ProcessPhase::Dead => {}
        ProcessPhase::Free if marked => {}
        _ => return false,
    }
    if (!marked && mark != 0) || !record.life.acquire(mark).unwrap_or(false) {
        return false;
    }
    let now = record.state();
    if now.phase == ProcessPhase::Live && !life::bury_process(record, now) {
        // SAFETY: acquired above.
        unsafe { record.life.give_back_marked() };
        return false;
    }
    let done = finish_process(arena, index, record);
    // SAFETY: acquired above.
    unsafe { record.life.release() };
    done
}

/// The steps for a dead process. The caller holds the record's life word. False if a slot of the
/// process is not recovered yet: what its intent names must stay held until then.
fn finish_process(arena: Arena, index: usize, record: &Process) -> bool {
    let state = record.state();
    if state.phase != ProcessPhase::Dead {
        return true;
    }
    abort_children(arena, index);
    let this = Tag::new(index, state.generation);
    for (slot_index, slot) in arena.slots() {
        if Tag::of_word(slot.watched.process.load(Ordering::Acquire)) != this {
            continue;
        }
        let parked = slot.state();
        if parked.phase == SlotPhase::Parked {
            slot.turn(
                parked,
                SlotState {
                    phase: SlotPhase::Dead,
                    ..parked
                },
            );
        }
        recover_slot(arena, slot_index);
        if slot.state().phase != SlotPhase::Free {
            return false;
        }
    }
    arena.header().unreaped.store(1, Ordering::SeqCst);
    drop_holds(arena, index, record);
    let free = ProcessState {
        phase: ProcessPhase::Free,
        parent: 0,
        generation: state.generation,
    };
    record.state.store(free.pack(), Ordering::Release);
    true
}

/// Takes back the records that the process `parent` made for children that have not come to life.
/// Called by that process, or by who recovers it.
pub(crate) fn abort_children(arena: Arena, parent: usize) {
    for (index, record) in arena.processes() {
        let state = record.state();
        if state.parent as usize != parent {
            continue;
        }
        let aborted = ProcessState {
            phase: ProcessPhase::Aborted,
            ..state
        };
        // The child's own step is a compare-exchange from the same word: one of the two wins.
        if state == aborted || state.phase == ProcessPhase::Forking && record.turn(state, aborted) {
            drop_holds(arena, index, record);
            record.turn(
                aborted,
                ProcessState {
                    phase: ProcessPhase::Free,
                    parent: 0,
                    ..state
                },
            );
        }
    }
}

/// Lets go of every object that a process held.
pub(crate) fn drop_holds(arena: Arena, index: usize, record: &Process) {
    for word in 0..record.held.load(Ordering::Acquire) as usize / 64 {
        // SAFETY: below `held`.
        let word = unsafe { arena.hold_word(index, word) };
        if word.load(Ordering::Relaxed) != 0 {
            word.store(0, Ordering::SeqCst);
        }
    }
}

/// Looks at every life word and recovers whoever is marked dead. Cheap when nobody is.
#[cold]
pub(crate) fn poll(arena: Arena) -> Recovered {
    let mut done = Recovered::default();
    for (index, slot) in arena.slots() {
        let dead = slot.life.owner_died() || slot.state().phase == SlotPhase::Dead;
        if dead && recover_slot(arena, index) {
            done.slots += 1;
        }
    }
    for (index, record) in arena.processes() {
        let dead = record.life.owner_died() || record.state().phase == ProcessPhase::Dead;
        if dead && recover_process(arena, index) {
            done.processes += 1;
        }
    }
    confirm_now_and_then(arena);
    done
}

/// Asks the system about everybody who is not marked: 100 ms apart at least.
fn confirm_now_and_then(arena: Arena) {
    const APART: u64 = 100;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000;
    let at = &arena.header().confirmed_at;
    let last = at.load(Ordering::Relaxed);
    if now < last.saturating_add(APART)
        || at
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
    {
        return;
    }
    confirm_all(arena);
}

/// Looks for deaths that the kernel's marks do not tell of.
#[cold]
pub(crate) fn confirm_all(arena: Arena) {
    for (_, slot) in arena.slots() {
        life::confirm(slot);
    }
    for (_, record) in arena.processes() {
        life::confirm_process(record);
    }
}

/// Recovers everybody who is dead, and frees what nobody holds then.
pub(crate) fn recover_all(arena: Arena) -> Recovered {
    confirm_all(arena);
    let done = poll(arena);
    if let Some(hooks) = HOOKS.get() {
        (hooks.reap)(arena);
    }
    done
}

/// Frees what the dead held and nobody else does, if there is any such.
#[cold]
pub(crate) fn reap(arena: Arena) {
    let header = arena.header();
    let left = |word: &AtomicU64| word.load(Ordering::Relaxed) != 0;
    if (left(&header.unreaped) || left(&header.limbo_left))
        && let Some(hooks) = HOOKS.get()
    {
        (hooks.reap)(arena);
    }
}

/// A living thread is about to leave.
pub(crate) fn leave(arena: Arena, slot: &Slot) {
    if let Some(hooks) = HOOKS.get() {
        (hooks.leave)(arena, slot);
    }
}

/// Gives a living thread's memory to nobody: it is about to leave.
pub(crate) fn release_memory(arena: Arena, owner: Tag) {
    if let Some(hooks) = HOOKS.get() {
        (hooks.release_memory)(arena, owner);
    }
}
