//! What is done for the dead.
//!
//! Any survivor does it: a thread that waits and finds a dead owner, that attaches, or that is
//! about to grow the pool; a supervisor; or whoever asks. Recovery of a slot is the robust
//! acquisition of its dead life word, so one thread at a time does it; if that thread dies too, the
//! word is marked again and the next one goes on. Every step can be repeated; none allocates,
//! locks, panics, or uses the recoverer's own slot. Order:
//!
//! 1. the phase becomes DEAD (set by whoever notices first; no life word needed);
//! 2. the intent: the operation in flight happens or does not. From here on others may take the
//!    dead thread's locks;
//! 3. permits go back, reads are over, sleepers are woken, the pin goes. The slot is SETTLED:
//!    nobody waits for anything of it any more;
//! 4. the allocator gives its spans to nobody, so that anybody can take them;
//! 5. the slot is FREE, the life word 0.
//!
//! Settling a slot takes microseconds; a thread that waits settles all of the dead, and does no
//! more. Step 4 takes time in proportion to the size of the pool, once for all slots that are
//! SETTLED: it is for threads that need memory or a slot, attach, supervise, or ask.
//!
//! For a process, once its slots are settled: the records that it made for children that never came
//! to life, the slots that its ended threads left parked, then the objects it held. Objects that
//! nobody holds any more are freed afterwards by an ordinary operation of the caller
//! ([`Hooks::reap`]), not by recovery.

use std::ops::Range;
use std::sync::OnceLock;

use crate::layout::arena::Arena;
use crate::layout::local;
use crate::participants::table::{Process, ProcessPhase, ProcessState, Slot, SlotPhase, SlotState};
use crate::participants::tag::Tag;
use crate::participants::{life, permits, process, readers};
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::keeping;
use crate::sys::futex;
use crate::sys::robust::{OWNER_DIED, TID};

/// What the layers above do for the dead.
pub(crate) struct Hooks {
    /// Completes or undoes the open intent of a dead slot, and closes it. Can be repeated.
    pub(crate) resolve: fn(Arena, usize),
    /// Frees what can be freed of the blocks that a thread that is about to leave has retired.
    pub(crate) leave: fn(Arena, &Slot),
    /// Gives the memory of these dead, in the order of their slots, to nobody. Can be repeated.
    pub(crate) release_memory: fn(Arena, &[Tag]),
    /// The same for a thread that is about to leave.
    pub(crate) release_own: fn(Arena, &Slot),
    /// Frees objects that nobody holds. An ordinary operation of this thread.
    pub(crate) reap: fn(Arena),
}

static HOOKS: OnceLock<Hooks> = OnceLock::new();

/// Tells recovery what the layers above want done. Only the first call counts.
pub(crate) fn install(hooks: Hooks) {
    let _ = HOOKS.set(hooks);
}

/// What was recovered by one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) slots: usize,
    pub(crate) processes: usize,
}

/// True if an owner that is gone has no operation half done.
#[inline]
pub(crate) fn is_resolved(arena: Arena, owner: Tag) -> bool {
    let Some(slot) = arena.owner_slot(owner) else {
        return true;
    };
    let state = slot.state();
    state.generation != owner.generation()
        || state.phase != SlotPhase::Dead
        || !slot.intent.is_open()
        || {
            settle(arena, owner.slot());
            slot.state() != state || !slot.intent.is_open()
        }
}

/// Settles the slot, if it is dead and no other thread is settling it. True if this call settled
/// it.
#[cold]
fn settle(arena: Arena, index: usize) -> bool {
    let slot = arena.slot(index);
    // The state first: a mark seen then belongs to that generation, or to a later one.
    let state = slot.state();
    let mark = slot.life.word.load(Ordering::Acquire);
    let marked = mark & OWNER_DIED != 0;
    match state.phase {
        SlotPhase::Live if marked && life::bury(arena, slot, state) => {}
        SlotPhase::Dead => {}
        SlotPhase::Free if marked => {}
        _ => return false,
    }
    // A parked slot's word is 0 when its process is found dead.
    if (!marked && mark != 0) || !slot.life.acquire(mark).unwrap_or(false) {
        return false;
    }
    let dead = slot.state();
    match dead.phase {
        SlotPhase::Dead => {
            settle_held(arena, index, slot, dead);
            // SAFETY: acquired above.
            unsafe { slot.life.release() };
            return true;
        }
        SlotPhase::Free => {
            note_retired(arena, slot);
            // SAFETY: acquired above.
            unsafe { slot.life.release() };
        }
        // The mark belonged to a later generation than the one looked at above, whose thread is
        // buried before its word is acquired (see `life::confirm`); or another thread was faster.
        SlotPhase::Live | SlotPhase::Parked | SlotPhase::Settled => {
            // SAFETY: acquired above.
            unsafe { give_back(slot, mark) };
        }
    }
    false
}

/// Gives a life word back as it was found.
///
/// # Safety
///
/// This thread has acquired it from that value.
unsafe fn give_back(slot: &Slot, found: u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        if found & OWNER_DIED != 0 {
            slot.life.give_back_marked();
        } else {
            slot.life.release();
        }
    }
}

/// Steps 2 and 3. The caller holds the slot's life word.
fn settle_held(arena: Arena, index: usize, slot: &Slot, dead: SlotState) {
    let Some(hooks) = HOOKS.get() else { return };
    (hooks.resolve)(arena, index);
    debug_assert!(!slot.intent.is_open());
    futex::wake(&slot.life.word, u32::MAX);
    permits::recover(arena, index);
    readers::forget(slot);
    futex::wake_address(slot.watched.waiting_on.swap(0, Ordering::AcqRel) as usize);
    futex::wake_address(slot.watched.condition.swap(0, Ordering::AcqRel) as usize);
    slot.watched.element.store(0, Ordering::Release);
    slot.pin_depth.store(0, Ordering::Relaxed);
    slot.watched.pin.store(0, Ordering::Release);
    arena.header().recoveries.fetch_add(1, Ordering::Relaxed);
    arena.header().rescan.fetch_add(1, Ordering::Release);
    slot.turn(dead, dead.with(SlotPhase::Settled));
}

/// Settles the slot; if another thread is doing so, gives it a moment. True if the slot was dead
/// and is settled now.
#[cold]
pub(crate) fn settle_slot(arena: Arena, index: usize) -> bool {
    /// How often to look while another thread has the life word: mostly to resolve the intent,
    /// which is short.
    const LOOKS: usize = 100;
    let mut was_dead = false;
    for _ in 0..LOOKS {
        if settle(arena, index) {
            return true;
        }
        if arena.slot(index).state().phase != SlotPhase::Dead {
            return was_dead;
        }
        was_dead = true;
        std::thread::yield_now();
    }
    false
}

/// Recovers the slot if it is dead and no other thread is at it: it is FREE then.
#[cold]
pub(crate) fn recover_slot(arena: Arena, index: usize) {
    settle_slot(arena, index);
    free_settled(arena, index..index + 1);
}

/// Steps 4 and 5, for those of the slots that are settled and that no other thread is at: one walk
/// over the pool's memory for all of them.
///
/// Their life words are held at once. If this thread dies, the kernel marks all of them again,
/// since it goes through 2048 entries of a thread's list.
#[cold]
fn free_settled(arena: Arena, slots: Range<usize>) {
    const AT_ONCE: usize = 256;
    let Some(hooks) = HOOKS.get() else { return };
    let mut settled = slots.filter_map(|index| hold_settled(arena, index));
    loop {
        let (mut held, mut count) = ([Tag::NOBODY; AT_ONCE], 0);
        for (place, tag) in held.iter_mut().zip(&mut settled) {
            *place = tag;
            count += 1;
        }
        if count == 0 {
            return;
        }
        (hooks.release_memory)(arena, &held[..count]);
        for tag in &held[..count] {
            let slot = arena.slot(tag.slot());
            let settled = slot.state();
            slot.turn(settled, settled.with(SlotPhase::Free));
            note_retired(arena, slot);
            // SAFETY: acquired by `hold_settled`.
            unsafe { slot.life.release() };
        }
    }
}

/// Gives others that are releasing the memory of the dead a moment to finish, for a thread that
/// would otherwise be refused memory or a slot.
#[cold]
pub(crate) fn let_others_free(arena: Arena) {
    const LOOKS: usize = 100;
    let is_held = |slot: &Slot| {
        let word = slot.life.word.load(Ordering::Acquire);
        slot.state().phase == SlotPhase::Settled && word & TID != 0 && word & OWNER_DIED == 0
    };
    for _ in 0..LOOKS {
        if !arena.slots().any(|(_, slot)| is_held(slot)) {
            return;
        }
        std::thread::yield_now();
    }
}

/// Acquires the life word of a settled slot; returns the tag of the dead owner.
fn hold_settled(arena: Arena, index: usize) -> Option<Tag> {
    let slot = arena.slot(index);
    if slot.state().phase != SlotPhase::Settled {
        return None;
    }
    let mark = slot.life.word.load(Ordering::Acquire);
    // Nobody has had it since it was settled, or the thread that had it died.
    if (mark & OWNER_DIED == 0 && mark != 0) || !slot.life.acquire(mark).unwrap_or(false) {
        return None;
    }
    let now = slot.state();
    if now.phase == SlotPhase::Settled {
        return Some(Tag::new(index, now.generation));
    }
    // Another thread has freed it, and the mark belongs to a later generation.
    // SAFETY: acquired above.
    unsafe { give_back(slot, mark) };
    None
}

/// Tells whoever reaps that a FREE slot has retired blocks left. Called after the turn to FREE,
/// since a thread that reaps before that passes the slot over.
pub(crate) fn note_retired(arena: Arena, slot: &Slot) {
    if slot.limbo.head.load(Ordering::Relaxed) != 0 {
        arena.header().limbo_left.tell();
    }
}

/// Recovers the record if its process is dead and no other thread is at it. True if this call did
/// so.
#[cold]
pub(crate) fn recover_process(arena: Arena, index: usize) -> bool {
    let record = arena.process(index);
    let state = record.state();
    let mark = record.life.word.load(Ordering::Acquire);
    let marked = mark & OWNER_DIED != 0;
    match state.phase {
        ProcessPhase::Live if marked && life::bury_process(record, state, arena.times()) => {}
        ProcessPhase::Dead => {}
        ProcessPhase::Free if marked => {}
        _ => return false,
    }
    if (!marked && mark != 0) || !record.life.acquire(mark).unwrap_or(false) {
        return false;
    }
    if record.state().phase == ProcessPhase::Live {
        // As for slots: the mark belonged to a later generation.
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
/// process is not settled yet: what its intent names must stay held until then.
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
            slot.turn(parked, parked.with(SlotPhase::Dead));
        }
        settle_slot(arena, slot_index);
        if !matches!(slot.state().phase, SlotPhase::Settled | SlotPhase::Free) {
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
/// Called by that process, or by a thread that recovers it.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn abort_children(arena: Arena, parent: usize) {
    for (index, record) in arena.processes() {
        let state = record.state();
        if state.parent as usize != parent {
            continue;
        }
        // If Aborted: the thread that took the record back died halfway.
        if matches!(state.phase, ProcessPhase::Forking | ProcessPhase::Aborted) {
            abort(arena, index, state);
        }
    }
}

/// Takes back a record that was in that state, unless its child has come to life meanwhile.
pub(crate) fn abort(arena: Arena, index: usize, state: ProcessState) {
    let record = arena.process(index);
    let aborted = state.with(ProcessPhase::Aborted);
    // The child's own step is a compare-exchange from the same word: one of the two wins.
    if state == aborted || record.turn(state, aborted) {
        // Whatever its parent has let go of since was held by this record alone.
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

/// Lets go of every object that a process held, and asks for a walk that finds those that it alone
/// held, and those on its list.
pub(crate) fn drop_holds(arena: Arena, index: usize) {
    keeping::end_holds(arena.hold_row(index), &arena.header().unreaped);
}

/// Looks at every life word and recovers every participant that is marked dead. Cheap when none is.
#[cold]
pub(crate) fn poll(arena: Arena) -> Recovered {
    let done = settle_all(arena);
    free_settled(arena, 1..arena.slot_count());
    done
}

/// As [`poll`], except for the memory of the dead: only what others may be waiting for.
#[cold]
pub(crate) fn settle_all(arena: Arena) -> Recovered {
    process::keep_life(arena);
    let mut done = Recovered::default();
    for (index, slot) in arena.slots() {
        let dead = match slot.state().phase {
            SlotPhase::Dead => true,
            SlotPhase::Settled => false,
            _ => slot.life.owner_died(),
        };
        if dead && settle_slot(arena, index) {
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

/// As [`settle_all`], for threads that only wait, or are refused: once in a while is enough for all
/// of them. True if this was the time.
#[cold]
pub(crate) fn settle_in_turn(arena: Arena) -> bool {
    /// Milliseconds: a little less than a `lock::TICK`, so that no thread is in its own way.
    const APART: u64 = 3;
    let polled_at = &arena.header().polled_at;
    let time = its_time(polled_at, APART);
    if time {
        settle_all(arena);
        // However long that took, the next turn comes after it.
        polled_at.store(milliseconds(), Ordering::Relaxed);
    }
    time
}

fn milliseconds() -> u64 {
    life::microseconds() / 1000
}

/// True if `apart` milliseconds have passed since this last returned true to anybody.
fn its_time(at: &AtomicU64, apart: u64) -> bool {
    let now = milliseconds();
    let last = at.load(Ordering::Relaxed);
    // A clock that is behind belongs to another boot, or the word is garbage.
    let passed = now.wrapping_sub(last) >= apart;
    passed
        && at
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

/// For a new pool: there is nobody yet about whom the system could be asked.
pub(crate) fn begin_confirming(arena: Arena) {
    its_time(&arena.header().confirmed_at, 0);
}

/// Asks the system about some of those that are not marked, and so about all of them within a few
/// seconds: the thread that happens to ask is not held up for long.
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
            // Slot 0 is nobody's.
            if index > 0 {
                life::confirm(arena.slot(index), arena.times());
            }
        } else if (1..records).contains(&(index - slots)) {
            life::confirm_process(arena.process(index - slots), arena.times());
        }
    }
}

/// Looks for deaths that the kernel has not marked.
#[cold]
pub(crate) fn confirm_all(arena: Arena) {
    for (_, slot) in arena.slots() {
        life::confirm(slot, arena.times());
    }
    for (_, record) in arena.processes() {
        life::confirm_process(record, arena.times());
    }
}

/// Recovers every participant that is dead, and then frees what nobody holds.
pub(crate) fn recover_all(arena: Arena) -> Recovered {
    confirm_all(arena);
    let done = poll(arena);
    reap(arena);
    done
}

/// Frees what nobody holds, if some of it may have been left to whoever comes next.
///
/// A private heap has no objects and nothing in limbo, and a thread that looks for these needs a
/// slot as threads have in pools; getting one may allocate.
#[cold]
pub(crate) fn reap_what_was_left(arena: Arena) {
    if local::of(arena).is_private() {
        return;
    }
    let header = arena.header();
    if header.unreaped.is_due() || header.limbo_left.is_told() {
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
pub(crate) fn release_own(arena: Arena, slot: &Slot) {
    if let Some(hooks) = HOOKS.get() {
        (hooks.release_own)(arena, slot);
    }
}

#[cfg(test)]
mod tests;
