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
//!    dead one's locks, so nobody waits for the rest. Who needs a lock does this step alone, and
//!    leaves the slot DEAD and marked;
//! 3. permits go back, reads are over, sleepers are woken, the pin goes;
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
use crate::participants::{life, permits, readers};
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::keeping;
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
        || take_over(arena, owner.slot(), Extent::Intent)
}

/// How far a slot is recovered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// What others may be waiting for.
    Intent,
    /// All, which takes as long as the pool is large.
    Whole,
}

/// Recovers the slot if it is dead and nobody else is at it. True if it is FREE now.
#[cold]
pub(crate) fn recover_slot(arena: Arena, index: usize) -> bool {
    /// Looks, should somebody else have the life word: mostly to resolve the intent, which is short.
    const LOOKS: usize = 100;
    for _ in 0..LOOKS {
        let done = take_over(arena, index, Extent::Whole);
        if arena.slot(index).state().phase != SlotPhase::Dead {
            return done;
        }
        std::thread::yield_now();
    }
    false
}

/// Recovers the slot so far, if it is dead and nobody else is at it. True if it is FREE or resolved
/// now.
#[cold]
fn take_over(arena: Arena, index: usize, extent: Extent) -> bool {
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
    resolve(arena, index, slot);
    if extent == Extent::Intent && slot.state().phase == SlotPhase::Dead {
        // SAFETY: acquired above.
        unsafe { slot.life.give_back_marked() };
        return true;
    }
    finish_slot(arena, index, slot);
    note_retired(arena, slot);
    // SAFETY: acquired above.
    unsafe { slot.life.release() };
    true
}

/// Tells whoever reaps that a slot which is FREE has retired blocks left. After the turn to FREE:
/// who reaps in between passes it over.
pub(crate) fn note_retired(arena: Arena, slot: &Slot) {
    if slot.limbo.head.load(Ordering::Relaxed) != 0 {
        arena.header().limbo_left.store(1, Ordering::SeqCst);
    }
}

/// The step that others wait for. The caller holds the slot's life word.
fn resolve(arena: Arena, index: usize, slot: &Slot) {
    if slot.state().phase == SlotPhase::Dead
        && let Some(hooks) = HOOKS.get()
    {
        (hooks.resolve)(arena, index);
        debug_assert!(!slot.intent.is_open());
    }
}

/// The steps after the intent. The caller holds the slot's life word.
fn finish_slot(arena: Arena, index: usize, slot: &Slot) {
    let state = slot.state();
    if state.phase != SlotPhase::Dead {
        return;
    }
    let Some(hooks) = HOOKS.get() else { return };
    let owner = Tag::new(index, state.generation);
    futex::wake(&slot.life.word, u32::MAX);
    permits::recover(arena, index);
    readers::forget(slot);
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
    drop_holds(arena, index);
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
        // Aborted: who took it back died half way.
        if matches!(state.phase, ProcessPhase::Forking | ProcessPhase::Aborted) {
            abort(arena, index, state);
        }
    }
}

/// Takes a record back that was in that state, if its child has not come to life meanwhile.
pub(crate) fn abort(arena: Arena, index: usize, state: ProcessState) {
    let record = arena.process(index);
    let aborted = ProcessState {
        phase: ProcessPhase::Aborted,
        ..state
    };
    // The child's own step is a compare-exchange from the same word: one of the two wins.
    if state == aborted || record.turn(state, aborted) {
        // What its parent has let go of since was held by this record alone.
        drop_holds(arena, index);
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

/// Lets go of every object that a process held, and asks for a walk that finds those it alone held, and
/// those on its list.
pub(crate) fn drop_holds(arena: Arena, index: usize) {
    keeping::end_holds(arena.hold_row(index), &arena.header().unreaped);
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

/// As [`poll`], by one of those who wait only: once in a while is enough for all of them.
#[cold]
pub(crate) fn poll_in_turn(arena: Arena) {
    /// Milliseconds: a little less than a `lock::TICK`, so that nobody is in his own way.
    const APART: u64 = 3;
    if its_time(&arena.header().polled_at, APART) {
        poll(arena);
    }
}

/// True if so many milliseconds have passed since somebody was told so last.
fn its_time(at: &AtomicU64, apart: u64) -> bool {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000;
    let last = at.load(Ordering::Relaxed);
    // A clock that is behind is another boot's, or garbage's.
    let passed = now.wrapping_sub(last) >= apart;
    passed
        && at
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

/// A new pool: there is nobody yet whom the system could be asked about.
pub(crate) fn begin_confirming(arena: Arena) {
    its_time(&arena.header().confirmed_at, 0);
}

/// Asks the system about some of those who are not marked, and about all within a few seconds:
/// whoever happens to be the one to ask is not held up for long.
fn confirm_now_and_then(arena: Arena) {
    const APART: u64 = 100;
    const SOME: usize = 32;
    if !its_time(&arena.header().confirmed_at, APART) {
        return;
    }
    let (slots, records) = (arena.slot_count(), arena.process_count());
    let groups = (slots + records).div_ceil(SOME).max(1);
    let turn = arena.header().confirmed.fetch_add(1, Ordering::Relaxed);
    let first = turn as usize % groups * SOME;
    for index in first..first + SOME {
        if index < slots {
            // 0 is nobody's.
            if index > 0 {
                life::confirm(arena.slot(index));
            }
        } else if (1..records).contains(&(index - slots)) {
            life::confirm_process(arena.process(index - slots));
        }
    }
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
    reap(arena);
    done
}

/// Frees what nobody holds, if some of it may have been left to whoever comes.
#[cold]
pub(crate) fn reap_what_was_left(arena: Arena) {
    let header = arena.header();
    if header.unreaped.is_due() || header.limbo_left.load(Ordering::Relaxed) != 0 {
        reap(arena);
    }
}

/// Frees what nobody holds and nobody looks at.
#[cold]
pub(crate) fn reap(arena: Arena) {
    if let Some(hooks) = HOOKS.get() {
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
