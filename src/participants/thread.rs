//! This thread's slot in each pool.
//!
//! Finding it takes one load, of a thread-local pointer to the slot in the pool used last, and a
//! look at a table to see whether that is the pool; otherwise the table has an entry for the pool's
//! granule. A thread without a slot has null there (at first, in a table that all threads share and
//! nobody writes), and the cold path claims one. The table lies in a page that reads as zero in a
//! forked child, so a child never uses its parent's slot, even after a fork that no handler saw.
//! Nothing waits for the table: the processor predicts its answer, and the slot is not found by way
//! of it.
//!
//! Invariants
//! 1. A table's entry is null, or the slot that this very thread of this very process claimed.
//! 2. When a slot's thread ends, the slot goes back, unless the thread leaves (leaked) guards
//!    behind: somebody may still use what they protect, so the slot is parked until the process is
//!    dead. Guards that other thread-locals have are dropped before that. If a thread uses a pool
//!    after it has left, as destructors of thread-locals may, it leaves again.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;

use serde::{Deserialize, Serialize};

use crate::layout::ShmSafe;
use crate::layout::arena::{Arena, FIRST_GRANULE, GRANULE, GRANULES, SLOTS};
use crate::layout::local;
use crate::participants::table::{Slot, SlotPhase, SlotState};
use crate::participants::tag::Tag;
use crate::participants::{process, readers, recovery};
use crate::primitive::Ordering;
use crate::protocol::pins;
use crate::sys;
use crate::sys::thread_end::ThreadEnd;

/// No slot could be claimed in the pool for this thread.
///
/// ```
/// use shmkit::{NoSlot, Pool};
///
/// let pool = Pool::builder().max_participants(1).create()?;
/// // This thread takes the one slot that there is.
/// assert!(pool.purge().is_ok());
/// std::thread::scope(|s| {
///     s.spawn(|| assert_eq!(pool.purge(), Err(NoSlot)));
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("this thread has no slot in the pool: all are taken, or the system refused what one takes")]
pub struct NoSlot;

/// Entries of a table: a power of two, so that a truncated granule number is an index.
const ENTRIES: usize = GRANULES.next_power_of_two();

#[repr(C)]
struct ThreadTable {
    /// A granule's entry is at the index given by the low bits of its number.
    slots: [Cell<*const Slot>; ENTRIES],
    /// The base of the pool that was used last; no pool has the base 0.
    recent: Cell<usize>,
    /// How many guards, claims, permits and views the thread has of what is in a granule's pool.
    guards: [Cell<usize>; ENTRIES],
}

const _: () = assert!(size_of::<ThreadTable>() <= 4096);

struct EmptyTable(ThreadTable);
// SAFETY: nobody writes to it: `attach` replaces a thread's pointer to it before it stores.
unsafe impl Sync for EmptyTable {}

static EMPTY: EmptyTable = EmptyTable(ThreadTable {
    slots: [const { Cell::new(std::ptr::null()) }; ENTRIES],
    recent: Cell::new(0),
    guards: [const { Cell::new(0) }; ENTRIES],
});

/// How a thread finds its slots. The two are side by side, so that the second is found with the
/// first.
struct Mine {
    table: Cell<*const ThreadTable>,
    /// The thread's slot in the pool that was used last, if the table says that there is one.
    recent: Cell<NonNull<Slot>>,
}

thread_local! {
    static MINE: Mine = const {
        Mine { table: Cell::new(&raw const EMPTY.0), recent: Cell::new(NonNull::dangling()) }
    };
    /// The page for the thread's table, if it has one.
    static PAGE: Cell<*const ThreadTable> = const { Cell::new(std::ptr::null()) };
    /// Leaves the pools when the thread ends, or makes sure that they are left.
    static AT_END: AtEnd = const { AtEnd };
}

struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        // Another thread-local that was made earlier, and so is dropped later, may have a guard.
        // The value passed only has to be non-null.
        let has_guard = |arena: Arena| table().guards(arena.base()).get() != 0;
        if !local::mapped().any(has_guard)
            || !THREAD_END.ask(MINE.with(|mine| mine.table.get()).cast())
        {
            leave_all();
        }
    }
}

static THREAD_END: ThreadEnd = ThreadEnd::new(thread_ends);

unsafe extern "C" fn thread_ends(_: *mut c_void) {
    leave_all();
}

/// Leaves all pools, as the last thing that this thread does with them.
fn leave_all() {
    for arena in local::mapped() {
        leave(arena);
    }
    MINE.with(|mine| mine.table.set(&raw const EMPTY.0));
    let page = PAGE.replace(std::ptr::null());
    if !page.is_null() {
        sys::memory::drop_page(page.cast_mut().cast());
    }
}

/// In a forked child: the thread's page is empty, and is not touched before it is needed.
// Not inlined elsewhere, where the address of the thread-local would be a call.
#[inline(never)]
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn begin_child() {
    MINE.with(|mine| mine.table.set(&raw const EMPTY.0));
}

#[inline]
fn table() -> &'static ThreadTable {
    // SAFETY: the pointer is to the static table or to this thread's page, which only `leave_all`
    // unmaps, after it has set the pointer back.
    unsafe { &*MINE.with(|mine| mine.table.get()) }
}

impl ThreadTable {
    /// The entry of the granule that contains `address`, which is one of those that hold pools.
    #[inline(always)]
    fn entry(&self, address: usize) -> &Cell<*const Slot> {
        &self.slots[index(address)]
    }

    /// The same for guards.
    #[inline(always)]
    fn guards(&self, address: usize) -> &Cell<usize> {
        &self.guards[index(address)]
    }
}

#[inline(always)]
fn index(address: usize) -> usize {
    const { assert!(GRANULES <= ENTRIES && ENTRIES.is_power_of_two()) };
    address / GRANULE % ENTRIES
}

/// This thread's slot, claimed now if need be.
#[inline(always)]
pub(crate) fn slot(arena: Arena) -> Result<&'static Slot, NoSlot> {
    match known_slot(arena) {
        Some(slot) => Ok(slot),
        None => look_up(arena),
    }
}

/// The same for another pool than the one used last.
#[cold]
#[inline(never)]
fn look_up(arena: Arena) -> Result<&'static Slot, NoSlot> {
    let known = table().entry(arena.base()).get();
    // SAFETY: by invariant 1.
    let slot = match unsafe { known.as_ref() } {
        Some(slot) => slot,
        None => attach(arena)?,
    };
    MINE.with(|mine| mine.recent.set(slot.into()));
    table().recent.set(arena.base());
    Ok(slot)
}

/// This thread's slot, if this is the pool that it used last.
#[inline(always)]
pub(crate) fn known_slot(arena: Arena) -> Option<&'static Slot> {
    let slot = MINE.with(|mine| mine.recent.get());
    if table().recent.get() != arena.base() {
        return None;
    }
    // SAFETY: the slot there is stored before the base of a pool is; by invariant 1 it is this
    // thread's.
    Some(unsafe { slot.as_ref() })
}

/// A type whose values lie in pools, so that a value's address tells in which pool. No reference is
/// one: the address of a reference is that of a local variable, and tells nothing.
pub(crate) trait InPool {}

impl<T: ShmSafe> InPool for T {}
impl InPool for Slot {}

/// This thread's slot in the pool whose granule holds `near`, if it has one. By invariant 1 a pool
/// is mapped there then.
#[inline]
pub(crate) fn known_slot_near<T: InPool>(near: &T) -> Option<&'static Slot> {
    let address = std::ptr::from_ref(near).addr();
    let granule = (address / GRANULE).wrapping_sub(FIRST_GRANULE);
    if granule >= GRANULES {
        return None;
    }
    // SAFETY: by invariant 1.
    unsafe { table().entry(address).get().as_ref() }
}

/// This thread's slot in a pool that is mapped, if it has one.
#[inline(always)]
pub(crate) fn slot_in(arena: Arena) -> Option<&'static Slot> {
    // SAFETY: by invariant 1.
    unsafe { table().entry(arena.base()).get().as_ref() }
}

/// The slot with which a guard was made: `tag` is what the guard keeps, and `near` is in the same
/// pool. `None` if this thread, in this process, does not have that slot.
///
/// That is the case for a copy of a guard that a fork has made: the child never uses its parent's
/// slot, and if it gets that slot once the parent is dead, then with another generation. It is also
/// the case after the thread has left the pool.
#[inline]
pub(crate) fn still_held<T: InPool>(near: &T, tag: Tag) -> Option<&'static Slot> {
    // SAFETY: `near` is in a pool.
    unsafe { still_held_near(std::ptr::from_ref(near).addr(), tag) }
}

/// The same, for an address.
///
/// # Safety
///
/// It is in a pool.
#[inline]
pub(crate) unsafe fn still_held_near(address: usize, tag: Tag) -> Option<&'static Slot> {
    // The fuzzer's dead unwind, which the real dead do not.
    #[cfg(fuzzing)]
    if crate::primitive::is_killed() {
        return None;
    }
    // SAFETY: by invariant 1; the address is in a pool, by the caller's promise, so its granule has an entry.
    let slot = unsafe { table().entry(address).get().as_ref() };
    slot.filter(|slot| slot.tag() == tag)
}

/// A guard was made by this thread, which has a slot, of something in the pool that `near` is in.
#[inline]
pub(crate) fn guard_made<T: InPool>(near: &T) {
    let guards = table().guards(std::ptr::from_ref(near).addr());
    guards.set(guards.get() + 1);
}

/// Such a guard was dropped by this thread, which [still has](still_held) the slot.
#[inline]
pub(crate) fn guard_dropped<T: InPool>(near: &T) {
    let guards = table().guards(std::ptr::from_ref(near).addr());
    guards.set(guards.get().saturating_sub(1));
}

/// How many guards this thread has, plus those that ended threads left behind.
pub(crate) fn guards_held() -> usize {
    let of_pool =
        |arena: Arena| table().guards(arena.base()).get() + local::of(arena).leaked_guards();
    local::mapped().map(of_pool).sum()
}

#[cold]
fn attach(arena: Arena) -> Result<&'static Slot, NoSlot> {
    // A thread that is ending, and has left, leaves once more, as the last thing that it does. (If
    // the whole process is ending, the slot is that of a dead thread.)
    if AT_END.try_with(|_| ()).is_err() && !THREAD_END.ask((&raw const EMPTY).cast()) {
        return Err(NoSlot);
    }
    // Else no slot could be had, however many were added.
    if !sys::robust::can_hold() {
        return Err(NoSlot);
    }
    if PAGE.get().is_null() {
        let page = sys::memory::wipe_on_fork_page().map_err(|_| NoSlot)?;
        PAGE.set(page.cast());
    }
    MINE.with(|mine| mine.table.set(PAGE.get()));
    let process = process::current(arena).ok_or(NoSlot)?;
    let index = claim(arena, process).ok_or(NoSlot)?;
    let slot = arena.slot(index);
    table().entry(arena.base()).set(slot);
    Ok(slot)
}

/// Claims a free slot, or a new one. Before slots are added, all of the dead are recovered, in one
/// walk: the next thread finds their slots free.
fn claim(arena: Arena, process: Tag) -> Option<usize> {
    let max = arena.header().max_slots.load(Ordering::Relaxed) as usize;
    let mut attempt = 0;
    loop {
        let count = arena.slot_count();
        if let Some(index) = (1..count).find(|&i| take(arena, i, process)) {
            return Some(index);
        }
        let watermark = &arena.header().watermarks.slots;
        match attempt {
            0 => {}
            // This is not an attempt: others may take what is added, until there are `max`.
            _ if count < max && arena.raise(SLOTS, watermark, count.max(1) + 1).is_ok() => continue,
            1 => {}
            2 => recovery::confirm_all(arena),
            _ => return None,
        }
        recovery::poll(arena);
        if attempt > 0 {
            recovery::let_others_free(arena);
        }
        attempt += 1;
    }
}

/// Takes the slot if it is free.
///
/// Killed anywhere: the life word is marked, and the slot is FREE, or LIVE with nothing in it.
fn take(arena: Arena, index: usize, owner: Tag) -> bool {
    let slot = arena.slot(index);
    if slot.state().phase != SlotPhase::Free || !slot.life.acquire(0).unwrap_or(false) {
        return false;
    }
    let free = slot.state();
    if free.phase != SlotPhase::Free {
        // SAFETY: acquired above.
        unsafe { slot.life.release() };
        return false;
    }
    let tag = Tag::new(index, free.generation + 1);
    slot.tag.store(tag.word(), Ordering::Relaxed);
    slot.watched.process.store(owner.word(), Ordering::Relaxed);
    slot.clear_caches();
    // The rest is as the last owner left it: nothing is open, unless the pool is damaged.
    slot.intent.close();
    slot.pin_depth.store(0, Ordering::Relaxed);
    let watched = &slot.watched;
    let shown = [&watched.freeing, &watched.pin, &watched.element];
    let permits = slot.permits.iter().map(|permit| &permit.word);
    for word in shown.into_iter().chain(permits) {
        // As the last owner did: a thread that sees only this store must see that all of that
        // owner's looks are over.
        pins::hide(word);
    }
    readers::forget(slot);
    let start = match sys::process::tid() == sys::process::pid() {
        // The first thread has the start of its process, which has been read.
        true => arena.process(owner.slot()).start.load(Ordering::Relaxed),
        // Not known in the pool's times: the process has changed to another time namespace.
        false if process::are_other_times_here(arena.times()) => 0,
        false => sys::process::own_thread_start(),
    };
    slot.start.store(start, Ordering::Relaxed);
    slot.holder
        .store(sys::process::tid().into(), Ordering::Relaxed);
    let live = SlotState {
        phase: SlotPhase::Live,
        generation: free.generation + 1,
    };
    slot.state.store(live.pack(), Ordering::Release);
    true
}

/// Makes this thread the next owner of a free slot besides its own, until it [gives it
/// back](give_back): to finish what the former owner has left. If the thread dies, the slot is
/// recovered like any other.
pub(crate) fn borrow(arena: Arena, index: usize) -> Option<&'static Slot> {
    let process = process::current(arena)?;
    take(arena, index, process).then(|| arena.slot(index))
}

/// Ends what [`borrow`] began.
pub(crate) fn give_back(arena: Arena, slot: &Slot) {
    recovery::release_own(arena, slot);
    let live = slot.state();
    slot.turn(live, live.with(SlotPhase::Free));
    recovery::note_retired(arena, slot);
    // SAFETY: acquired by `borrow`, by this thread.
    unsafe { slot.life.release() };
}

/// Leaves the pool: the slot is free for others, or parked by invariant 2.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn leave(arena: Arena) {
    let entry = table().entry(arena.base());
    // SAFETY: by invariant 1.
    if let Some(slot) = unsafe { entry.get().as_ref() } {
        let guards = table().guards(arena.base()).replace(0);
        let live = slot.state();
        let phase = if guards == 0 {
            recovery::leave(arena, slot);
            recovery::release_own(arena, slot);
            SlotPhase::Free
        } else {
            local::of(arena).leak_guards(guards);
            SlotPhase::Parked
        };
        entry.set(std::ptr::null());
        table().recent.set(0);
        slot.turn(live, live.with(phase));
        recovery::note_retired(arena, slot);
        // SAFETY: the slot was this thread's, so its life word is, too.
        unsafe { slot.life.release() };
    }
}

/// For the fuzzer: reads how many guards the thread has in the pool, and sets the number: guards
/// that died with a participant are nobody's.
#[cfg(fuzzing)]
pub(crate) fn guards(arena: Arena) -> usize {
    table().guards(arena.base()).get()
}

/// See [`guards`].
#[cfg(fuzzing)]
pub(crate) fn set_guards(arena: Arena, guards: usize) {
    table().guards(arena.base()).set(guards);
}

/// For the fuzzer: makes the thread use another of its slots, or none.
#[cfg(fuzzing)]
pub(crate) fn play(arena: Arena, slot: Option<&'static Slot>) {
    if !std::ptr::eq(table(), &EMPTY.0) {
        let slot = slot.map_or(std::ptr::null(), std::ptr::from_ref);
        table().entry(arena.base()).set(slot);
        table().recent.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// For a type that is [`InPool`], calling `says` is ambiguous, and does not compile.
    trait NotInPool<A> {
        fn says() {}
    }

    impl<T: ?Sized> NotInPool<()> for T {}
    impl<T: InPool> NotInPool<u8> for T {}

    #[test]
    fn a_reference_lies_in_no_pool() {
        fn lies_in_a_pool<T: InPool>() {}

        lies_in_a_pool::<Slot>();
        lies_in_a_pool::<AtomicU64>();
        <&Slot as NotInPool<_>>::says();
        <&AtomicU64 as NotInPool<_>>::says();
        <&&AtomicU64 as NotInPool<_>>::says();
        <&mut AtomicU64 as NotInPool<_>>::says();
        <*const Slot as NotInPool<_>>::says();
    }
}
