//! Which slot of the private heap a thread uses.
//!
//! It is the thread's own, claimed when the thread first allocates and left when it ends: found by
//! the thread's word (`sys::thread_word`), left by the destructor of a `pthread` key. A thread that
//! can have none uses slot 1, the common one, under a lock: it is ending and has left already
//! (destructors that run later, and the C library itself, go on freeing), or there are more threads
//! than slots.
//!
//! No other process sees the heap, so nobody has to find out about deaths: life words are not used,
//! and a slot is claimed by its state alone. There is one way in which a thread vanishes: a fork,
//! whose child has a copy of the heap and one thread. That thread keeps its slot; the other
//! threads' slots become DEAD, at whatever instruction each thread was, and are recovered like any
//! dead owner's when the child needs memory. So no lock is taken around a fork, and a child that
//! only calls `exec` does no work.
//!
//! | a thread of the parent, at the fork | leaves in the child | and then |
//! |---|---|---|
//! | anywhere in the allocator | what a killed thread leaves | as for a pool |
//! | claiming a slot | FREE, or LIVE with nothing in it | usable, or recovered |
//! | leaving a slot | LIVE | recovered |
//! | recovering a slot | DEAD, SETTLED, FREE or claimed by another, its life word taken | the word is cleared; the slot is recovered, unless its owner is the thread that forked |
//! | using the common slot | the lock, held by nobody | the slot is recovered, the lock free |
//!
//! A child that is made without running the handler (by `clone`) leaves unused what the other
//! threads had. One that is made by `vfork` runs on its parent's memory, as its parent's thread.

use std::ffi::c_void;
use std::num::NonZeroUsize;

use crate::allocator::recover;
use crate::layout::arena::{Arena, GRANULE, SLOTS};
use crate::participants::recovery;
use crate::participants::table::{Slot, SlotPhase, SlotState};
use crate::participants::tag::Tag;
use crate::participants::thread::NoSlot;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::thread_end::ThreadEnd;
use crate::sys::thread_lock::{Taken, ThreadLock};
use crate::sys::thread_word;

use super::heap;

/// The thread's word once the thread has left. Otherwise it is 0 or the slot's address.
const LEFT: usize = 1;
/// The slot for all threads that have none.
const COMMON: usize = 1;
/// Added to a slot's address: it is the common slot, which must be given back. The slots' addresses
/// are even.
const IS_COMMON: usize = 1;
/// How many slots are committed at once.
const STEP: usize = 8;

/// Held while the common slot is used.
static COMMON_LOCK: ThreadLock = ThreadLock::new();
/// The slot that was left last: the search for a free one begins there. A hint.
static LEFT_LAST: AtomicU64 = AtomicU64::new(0);
/// Leaves a thread's slot.
static THREAD_END: ThreadEnd = ThreadEnd::new(thread_ends);

/// Calls `does` with a slot of the heap. `does` must not itself ask for one.
#[inline(always)]
pub(super) fn with_slot<R>(does: impl FnOnce(Arena, &'static Slot) -> R) -> Result<R, NoSlot> {
    let mut word = thread_word::get();
    if word <= LEFT {
        word = new_or_common().ok_or(NoSlot)?.get();
    }
    // SAFETY: the word is the address of a slot that is this thread's until `return_common`, or for
    // good. The slot is committed, consists of atomics and stays mapped as long as the process
    // lives.
    let slot = unsafe { &*std::ptr::with_exposed_provenance::<Slot>(word & !IS_COMMON) };
    let result = does(Arena::at(word & !(GRANULE - 1)), slot);
    if word & IS_COMMON != 0 {
        return_common();
    }
    Ok(result)
}

/// The address of a slot for a thread that has none, with [`IS_COMMON`] if it is the common one.
#[cold]
#[inline(never)]
fn new_or_common() -> Option<NonZeroUsize> {
    let arena = heap::known_or_new()?;
    let address = |slot: &Slot| std::ptr::from_ref(slot).expose_provenance();
    let word = attach(arena)
        .map(address)
        .or_else(|| lend_common(arena).map(|slot| address(slot) | IS_COMMON));
    NonZeroUsize::new(word?)
}

/// Claims a slot for this thread, to be left when it ends.
fn attach(arena: Arena) -> Option<&'static Slot> {
    if thread_word::get() == LEFT {
        return None;
    }
    let slot = claim(arena)?;
    let address = std::ptr::from_ref(slot).expose_provenance();
    thread_word::set(address);
    // This may allocate, with the slot.
    if !THREAD_END.ask(std::ptr::with_exposed_provenance(address)) {
        leave(slot);
        return None;
    }
    Some(slot)
}

unsafe extern "C" fn thread_ends(slot: *mut c_void) {
    // SAFETY: the value that `attach` passed with the key: a slot, which stays mapped.
    leave(unsafe { &*slot.cast::<Slot>() });
}

fn leave(slot: &Slot) {
    let arena = slot.arena();
    let live = slot.state();
    recover::release_own(arena, slot);
    thread_word::set(LEFT);
    LEFT_LAST.store(slot.tag().slot() as u64, Ordering::Relaxed);
    slot.turn(live, live.with(SlotPhase::Free));
}

fn claim(arena: Arena) -> Option<&'static Slot> {
    let max = arena.header().max_slots.load(Ordering::Relaxed) as usize;
    let mut recovered = false;
    loop {
        let count = arena.slot_count();
        let first = LEFT_LAST.load(Ordering::Relaxed) as usize;
        let first = first.clamp(COMMON + 1, count.max(COMMON + 1));
        let free = (first..count).chain(COMMON + 1..first);
        if let Some(slot) = { free }.find_map(|index| take(arena, index)) {
            return Some(slot);
        }
        if count < max {
            let more = (count.max(1) + STEP).min(max);
            let watermark = &arena.header().watermarks.slots;
            arena.raise(SLOTS, watermark, more).ok()?;
        } else if recovered {
            return None;
        } else {
            recovery::poll(arena);
            recovered = true;
        }
    }
}

/// Takes the slot if it is free.
fn take(arena: Arena, index: usize) -> Option<&'static Slot> {
    let slot = arena.slot(index);
    let free = slot.state();
    let live = SlotState {
        phase: SlotPhase::Live,
        generation: free.generation + 1,
    };
    if free.phase != SlotPhase::Free || !slot.turn(free, live) {
        return None;
    }
    let tag = Tag::new(index, live.generation);
    slot.tag.store(tag.word(), Ordering::Relaxed);
    slot.clear_caches();
    Some(slot)
}

/// Makes the common slot, in a heap that is being made.
pub(super) fn make_common(arena: Arena) -> Option<()> {
    let watermark = &arena.header().watermarks.slots;
    arena.raise(SLOTS, watermark, COMMON + STEP).ok()?;
    take(arena, COMMON).map(|_| ())
}

/// The common slot, until [`return_common`].
fn lend_common(arena: Arena) -> Option<&'static Slot> {
    let taken = COMMON_LOCK.lock();
    let slot = arena.slot(COMMON);
    if taken == Taken::FromTheGone {
        declare_dead(slot);
    }
    loop {
        match slot.state().phase {
            SlotPhase::Live => return Some(slot),
            SlotPhase::Free => break,
            _ => recovery::recover_slot(arena, COMMON),
        }
        if slot.state().phase != SlotPhase::Free {
            // Another thread of this process is recovering it.
            std::thread::yield_now();
        }
    }
    let slot = take(arena, COMMON);
    if slot.is_none() {
        return_common();
    }
    slot
}

#[cold]
fn return_common() {
    COMMON_LOCK.unlock();
}

/// The slot's thread is not in this process.
fn declare_dead(slot: &Slot) {
    let live = slot.state();
    slot.life.word.store(0, Ordering::Relaxed);
    if live.phase == SlotPhase::Live {
        slot.turn(live, live.with(SlotPhase::Dead));
    }
}

/// In a forked child, which has this one thread.
pub(super) extern "C" fn in_child() {
    let Some(arena) = heap::known() else { return };
    for (index, slot) in arena.slots() {
        let mine = std::ptr::from_ref(slot).addr() == thread_word::get();
        let idle = index == COMMON && !COMMON_LOCK.is_locked();
        // A thread that was recovering it is not in this process, even if the slot has been claimed
        // since. (The word is not cleared without need: each page that is written to is copied.)
        if slot.life.word.load(Ordering::Relaxed) != 0 {
            slot.life.word.store(0, Ordering::Relaxed);
        }
        if !mine && !idle {
            declare_dead(slot);
        }
    }
    COMMON_LOCK.unlock();
}

/// How many threads have a slot of their own.
pub(super) fn count(arena: Arena) -> usize {
    let live = |slot: &Slot| slot.state().phase == SlotPhase::Live;
    let own = arena.slots().filter(|(index, _)| *index != COMMON);
    own.filter(|(_, slot)| live(slot)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        /// `fork` without handlers.
        fn _Fork() -> libc::pid_t;
    }

    /// Whether something works in a child, which uses only the heap.
    fn works_in_a_child(works: impl FnOnce() -> Option<()>) -> bool {
        // SAFETY: the child uses only the heap, and ends. What the heap does at a fork is called
        // where the test needs it.
        let child = unsafe { _Fork() };
        if child == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(works().is_none())) };
        }
        let mut status = 0;
        // SAFETY: a child of ours; the status is this frame's.
        let reaped = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(reaped, child);
        status == 0
    }

    /// What a forked child finds if another thread was recovering a slot, or if the forking thread
    /// had just claimed one that another was recovering.
    #[test]
    fn nobody_recovers_a_slot_in_a_new_child() {
        use SlotPhase::{Dead, Free, Live, Settled};
        for (common, phase) in [(true, Dead), (true, Settled), (true, Free), (false, Live)] {
            let works = move || {
                let arena = heap::known_or_new()?;
                let own = with_slot(|_, slot| slot).ok()?;
                let slot = if common { arena.slot(COMMON) } else { own };
                let live = slot.state();
                slot.turn(live, live.with(phase));
                slot.life.word.store(1, Ordering::Relaxed);
                in_child();
                (slot.life.word.load(Ordering::Relaxed) == 0).then_some(())?;
                lend_common(arena).map(|_| return_common())
            };
            let works = works_in_a_child(works);
            assert!(works, "{phase:?}, the common slot: {common}");
        }
    }

    /// The parent's threads are not in the child, and no death is marked.
    #[test]
    fn slots_of_the_parents_threads_are_free_in_a_child() {
        let works = || {
            let arena = heap::known_or_new()?;
            with_slot(|_, _| ()).ok()?;
            let slot = claim(arena)?;
            in_child();
            recovery::poll(arena);
            (slot.state().phase == SlotPhase::Free).then_some(())
        };
        assert!(works_in_a_child(works));
    }

    /// The heap was not told of this child. The child finds the common slot held by a thread that
    /// is not there, and that was in the middle of something.
    #[test]
    fn what_somebody_had_of_the_common_slot_is_recovered_in_a_child() {
        let arena = heap::known_or_new().unwrap();
        for is_told in [false, true] {
            let before = lend_common(arena).unwrap().state();
            let works = works_in_a_child(|| {
                if is_told {
                    in_child();
                }
                let lent = lend_common(arena)?.state();
                (lent.generation > before.generation).then_some(())
            });
            return_common();
            assert!(works, "the heap is told of the fork: {is_told}");
        }
    }
}
