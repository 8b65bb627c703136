//! The end of objects: retired when nothing holds them, destroyed when nobody looks at them any
//! more.
//!
//! An object that somebody still looks at is *postponed*: a list of this process names it, and the
//! entry names the process, its *keeper*, with the state that is on the list and its stamp. Each
//! end of a look tries some objects of the list again. An object that nobody has on a list (its
//! keeper died, or left, or could not list it) is found by a walk over the table, which every death
//! asks for; whoever ends a look does a piece of it. The walk passes over an object that a living
//! process keeps and somebody still looks at, so that it is cheap however much is postponed; one
//! that nobody looks at any more it destroys on behalf of a keeper that may be stopped.
//!
//! Invariants, beside those of `pool::objects`
//! 1. While a living process is found to keep a state (`protocol::keeping`), that state is on its
//!    list, or the process is about to try the object: a walk does not list the object.
//! 2. An object that is RETIRED and is not kept in that state is in the hands of the thread that
//!    retired it, which may have listed it, or a walk is due (`Header::unreaped`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::objects::{ObjectEntry, clear_hold, extent, is_held};
use super::{intents, types};
use crate::allocator::block;
use crate::engines::{self, limbo};
use crate::layout::arena::Arena;
use crate::layout::local;
use crate::participants::table::{ProcessPhase, Slot};
use crate::participants::tag::Tag;
use crate::participants::{detect, epoch, permits, process, readers, thread};
use crate::primitive::Ordering;
use crate::protocol::keeping;
use crate::protocol::lifecycle::{self, ObjectPhase, ObjectState};

/// Destroys the object if nothing holds it, then what it led to, and so on. What somebody still
/// looks at is left for [`retry`].
pub(crate) fn dispose(arena: Arena, index: usize) {
    if let Some(retired) = retire(arena, index) {
        destroy_all(arena, retired, false);
    }
}

/// An object that nothing held, the state in which that was seen, and the epoch at that time.
#[derive(Clone, Copy)]
struct Retired {
    index: usize,
    state: ObjectState,
    stamp: u64,
}

/// Destroys what was retired, then what it led to, and so on. What is still looked at is postponed,
/// the first object only if it is not `kept` already.
fn destroy_all(arena: Arena, first: Retired, kept: bool) {
    let slot = thread::slot(arena);
    let Some(slot) = slot.ok().filter(|slot| !slot.intent.is_open()) else {
        return leave_to_others(arena, &[first]);
    };
    let mut work = Vec::new();
    if !destroy(arena, slot, first, &mut work) && !kept {
        postpone(arena, first);
    }
    while let Some(retired) = work.pop() {
        if !destroy(arena, slot, retired, &mut work) {
            postpone(arena, retired);
        }
    }
}

/// Objects that could not be destroyed because somebody looked at them, by the pool's base. They
/// are in the order of their stamps, except for those that something other than a look held up.
static POSTPONED: Mutex<BTreeMap<usize, VecDeque<Retired>>> = Mutex::new(BTreeMap::new());
/// How many there are, at least roughly.
static POSTPONED_COUNT: AtomicUsize = AtomicUsize::new(0);

fn postpone(arena: Arena, retired: Retired) {
    // Another thread holds it, which a fork may have left behind: somebody else reaps instead.
    let Ok(mut all) = POSTPONED.try_lock() else {
        return leave_to_others(arena, &[retired]);
    };
    all.entry(arena.base()).or_default().push_back(retired);
    POSTPONED_COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(entry) = arena.object(retired.index) {
        entry.keeping.keep(retired.state, retired.stamp, me(arena));
    }
}

/// For objects that are to be destroyed and are now on no list of this process: somebody's walk
/// finds them.
fn leave_to_others(arena: Arena, all: &[Retired]) {
    let entries = all.iter().filter_map(|one| arena.object(one.index));
    let all = entries.map(|entry| &entry.keeping);
    keeping::give_up(all, me(arena), &arena.header().unreaped);
}

/// This process, as it is named in what it keeps.
fn me(arena: Arena) -> Tag {
    Tag::of_word(local::of(arena).process())
}

/// Takes from the list the first postponed object that nobody looks at any more.
fn take_postponed(arena: Arena, oldest: u64) -> Option<Retired> {
    // Not locked without need: a master would have a page copied at the end of each child.
    if POSTPONED_COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let mut all = POSTPONED.try_lock().ok()?;
    let list = all.get_mut(&arena.base())?;
    let taken = list.pop_front_if(|first| first.stamp < oldest)?;
    POSTPONED_COUNT.fetch_sub(1, Ordering::Relaxed);
    Some(taken)
}

/// True if a living process has the object on its list in that state.
fn is_kept(arena: Arena, entry: &ObjectEntry, state: ObjectState) -> bool {
    let keeper = entry.keeping.keeper(state);
    let Some(keeper) = keeper.filter(|keeper| keeper.slot() < arena.process_count()) else {
        return false;
    };
    let process = arena.process(keeper.slot()).state();
    process.phase == ProcessPhase::Live && process.generation == keeper.generation()
}

/// Ends all holds of this process, which is about to leave, and disposes of what it alone held.
#[unsafe(link_section = ".shmkit.child")]
pub(super) fn let_go_of_all(arena: Arena) {
    let row = process::current_index(arena);
    if row == 0 {
        return;
    }
    for (number, word) in arena.hold_row(row).enumerate() {
        let mut bits = word.load(Ordering::Relaxed);
        while bits != 0 {
            let index = number * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            clear_hold(arena, row, index);
            // Otherwise the entry, which lies in a table of its own, need not be touched: the
            // process that lets go of the object last disposes of it.
            if !is_held(arena, index) {
                dispose(arena, index);
            }
        }
    }
    give_up_postponed(arena);
}

/// Gives up what this process has postponed: it is about to leave the pool.
#[unsafe(link_section = ".shmkit.child")]
pub(super) fn give_up_postponed(arena: Arena) {
    /// Others have the lock for a moment each. If a fork has left it locked for good, this process
    /// has never postponed anything.
    const TRIES: usize = 1000;
    // Not locked without need: a child that is ending would have a page copied.
    if POSTPONED_COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    let list = (0..TRIES).find_map(|_| match POSTPONED.try_lock() {
        Ok(mut all) => Some(all.remove(&arena.base())),
        Err(_) => {
            std::thread::yield_now();
            None
        }
    });
    if list.is_none() {
        // Nobody keeps what is on the list any more.
        arena.header().unreaped.demand();
    }
    if let Some(list) = list.flatten() {
        POSTPONED_COUNT.fetch_sub(list.len(), Ordering::Relaxed);
        leave_to_others(arena, list.as_slices().0);
        leave_to_others(arena, list.as_slices().1);
    }
}

/// Tries again to destroy some of what was left because somebody looked at it, and what the dead
/// have left. Called where a look or a hold ends.
#[inline]
pub(crate) fn retry(arena: Arena) {
    if POSTPONED_COUNT.load(Ordering::Relaxed) != 0 || arena.header().unreaped.is_due() {
        retry_some(arena);
    }
}

#[cold]
fn retry_some(arena: Arena) {
    /// At most this many at once, so that no single end of a look takes long.
    const SOME: usize = 16;
    /// Entries of the table that one end of a look covers of a walk.
    const PIECE: usize = 256;
    walk_on(arena, PIECE);
    let oldest = epoch::oldest(arena);
    for _ in 0..SOME {
        let Some(taken) = take_postponed(arena, oldest) else {
            return;
        };
        destroy_all(arena, taken, false);
    }
}

/// Does a piece of the walk that is due, if one is.
fn walk_on(arena: Arena, piece: usize) {
    let due = &arena.header().unreaped;
    if due.is_due() && !is_busy(arena) {
        if let Some(entries) = due.take(|| arena.object_count(), piece) {
            walk(arena, entries);
        }
        limbo::reap_left(arena);
    }
}

/// What a parent does when a child has died: all there is to do if there are few objects, otherwise
/// its share.
pub(super) fn reap_some(arena: Arena) {
    /// Entries of the table.
    const PIECE: usize = 4096;
    retry_some(arena);
    walk_on(arena, PIECE);
}

/// True if this thread is in the middle of something: whoever comes next reaps.
fn is_busy(arena: Arena) -> bool {
    thread::slot(arena).is_ok_and(|slot| slot.intent.is_open())
}

/// Destroys every object that nothing holds: after deaths, when nobody else may have noticed, and
/// when memory is short.
pub(crate) fn reap(arena: Arena) {
    if is_busy(arena) {
        return;
    }
    arena.header().unreaped.take_all();
    let oldest = epoch::oldest(arena);
    for _ in 0..POSTPONED_COUNT.load(Ordering::Relaxed) {
        let Some(taken) = take_postponed(arena, oldest) else {
            break;
        };
        destroy_all(arena, taken, false);
    }
    walk(arena, 0..arena.object_count());
    limbo::reap(arena);
}

/// Disposes of the unused objects among these entries. One that a living process keeps is destroyed
/// if nobody looks at it any more, and left to its keeper otherwise.
fn walk(arena: Arena, entries: std::ops::Range<usize>) {
    let oldest = epoch::oldest(arena);
    for index in entries {
        let Some(entry) = arena.object(index) else {
            return;
        };
        let state = entry.state();
        match state.phase {
            ObjectPhase::Retired if is_kept(arena, entry, state) => {
                let stamp = entry.keeping.stamp();
                let kept = Retired {
                    index,
                    state,
                    stamp,
                };
                if stamp < oldest {
                    destroy_all(arena, kept, true);
                }
            }
            ObjectPhase::Live | ObjectPhase::Retired | ObjectPhase::Condemned => {
                dispose(arena, index)
            }
            ObjectPhase::Free | ObjectPhase::Creating | ObjectPhase::Destroying => {}
        }
    }
}

/// Turns the object to RETIRED if nothing holds it.
fn retire(arena: Arena, index: usize) -> Option<Retired> {
    let entry = arena.object(index)?;
    let is_linked = || detect::value(entry.links.load(Ordering::SeqCst)) != 0;
    let is_unused = || lifecycle::is_unused(is_linked, || is_held(arena, index));
    let (state, stamp) = lifecycle::retire(&entry.state, is_unused, || epoch::stamp(arena))?;
    Some(Retired {
        index,
        state,
        stamp,
    })
}

/// True if a thread's lists name something within an object: a leaked permit, or a leaked read.
fn is_listed(arena: Arena, extent: std::ops::Range<usize>) -> bool {
    permits::any_within(arena, extent.clone()) || readers::any_within(arena, &extent)
}

/// Destroys an object that is RETIRED or CONDEMNED, if nothing holds it and nobody looks at it.
/// Adds to `work` what it led to and nothing holds now. False if somebody looks at it.
///
/// Killed anywhere: recovery finishes the step that the intent names and leaves it CONDEMNED.
fn destroy(arena: Arena, slot: &Slot, retired: Retired, work: &mut Vec<Retired>) -> bool {
    let Retired {
        index,
        state,
        stamp,
    } = retired;
    let Some(entry) = arena.object(index) else {
        return true;
    };
    if entry.state() != state {
        // Held again since, or in somebody else's hands: whoever lets go of it disposes of it.
        return true;
    }
    // By invariant 2 of `pool::objects`. A state that was listed at another time has a later stamp.
    let stamp = stamp.max(entry.keeping.stamp());
    // Nobody has looked at a half-destroyed object since it was whole.
    let is_seen = || !epoch::is_past(arena, stamp) || is_listed(arena, extent(arena, entry));
    if state.phase != ObjectPhase::Condemned && is_seen() {
        return false;
    }
    slot.intent
        .open(intents::DESTROY, &[index as u64, 0, 0, 0, 0]);
    if let Some(destroying) = lifecycle::seize(&entry.state, state, slot.tag().slot()) {
        let address = entry.address.load(Ordering::Relaxed) as usize;
        if address != 0 {
            // A word outside the block does not belong to the value, whatever the type's entry
            // says.
            let room = block::usable_size(arena, address).unwrap_or(0);
            for owned in types::owned_words(arena, entry.kind(), room) {
                let field = (address + owned.offset) as u64;
                match owned.kind {
                    types::Owned::Link => {
                        if let Some(target) = intents::drop_link(arena, slot, field)
                            && let Some(retired) = retire(arena, target)
                        {
                            work.push(retired);
                        }
                    }
                    types::Owned::Block => intents::drop_block(arena, slot, field),
                    types::Owned::Engine(engine) => {
                        let mut cursor = 0;
                        while let Some(named) =
                            engines::next_block(arena, engine, field as usize, &mut cursor)
                        {
                            intents::drop_named(arena, slot, named);
                        }
                    }
                }
            }
            let own = std::ptr::from_ref(&entry.address).addr() as u64;
            intents::drop_block(arena, slot, own);
        }
        entry.free(destroying);
    }
    slot.intent.close();
    true
}

/// What recovery does for a dead destroyer, once the step in flight is finished: from here on others
/// may destroy the rest, and the step must not be finished once more.
pub(super) fn condemn(arena: Arena, owner: Tag, index: usize) {
    let freeing = &arena.slot(owner.slot()).watched.freeing;
    debug_assert_eq!(freeing.load(Ordering::Relaxed), 0);
    if let Some(entry) = arena.object(index) {
        lifecycle::condemn(&entry.state, owner.slot());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::layout::arena::SLICE;
    use crate::pool::Scratch;
    use crate::{Link, RwLock, Semaphore};

    fn phase(arena: Arena, index: usize) -> ObjectPhase {
        arena.object(index).unwrap().state().phase
    }

    /// A thread that is in the middle of an operation leaves what is to be destroyed to the next
    /// walk, and does no walk itself.
    #[test]
    fn who_is_busy_destroys_nothing() {
        let pool = Scratch::new();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let object = pool.create(7_u64).unwrap();
        let index = object.index();
        let layout = std::alloc::Layout::from_size_align(SLICE, 1).unwrap();
        let block = pool.allocate(layout).unwrap().addr().get();
        let is_block = || block::usable_size(arena, block).is_ok();

        slot.intent.open(intents::WRITE, &[0, 0]);
        limbo::retire(arena, slot, block as u64, SLICE);
        drop(object);
        retry(arena);
        reap(arena);
        assert_eq!(phase(arena, index), ObjectPhase::Retired);
        assert!(arena.header().unreaped.is_due());
        assert!(is_block());
        slot.intent.close();

        retry(arena);
        assert_eq!(phase(arena, index), ObjectPhase::Free);
        reap(arena);
        assert!(!is_block());
    }

    /// Another process has the record by now of one that has died: nobody has on a list what that one had there.
    #[test]
    fn what_a_records_former_owner_has_kept_is_nobodys() {
        let pool = Scratch::new();
        let (arena, object) = (pool.0, pool.create(7_u64).unwrap());
        let entry = arena.object(object.index()).unwrap();
        let (state, me) = (entry.state(), me(arena));
        for (keeper, keeps) in [
            (Tag::new(me.slot(), me.generation() + 1), false),
            (me, true),
        ] {
            entry.keeping.keep(state, 1, keeper);
            assert_eq!(is_kept(arena, entry, state), keeps);
        }
    }

    /// Not only once memory is short, or once so much was retired by somebody else.
    #[test]
    fn what_those_have_retired_who_are_gone_goes_with_a_walk() {
        let pool = Scratch::new();
        let arena = pool.0;
        let link = pool.create(Link::null()).unwrap();
        link.set(Some(&pool.create(1_u64).unwrap())).unwrap();
        let layout = std::alloc::Layout::from_size_align(SLICE, 1).unwrap();
        let retires = || {
            let block = pool.allocate(layout).unwrap().addr().get();
            let slot = thread::slot(arena).unwrap();
            limbo::retire(arena, slot, block as u64, SLICE);
            block
        };
        let view = link.view().unwrap();
        let block = std::thread::scope(|s| s.spawn(retires).join().unwrap());
        drop(view);
        assert!(block::usable_size(arena, block).is_ok());
        arena.header().unreaped.demand();
        retry(arena);
        assert!(block::usable_size(arena, block).is_err());
    }

    /// A thread's lists name what lies in an object after all handles to it are gone.
    #[test]
    fn what_a_leaked_guard_leads_to_stays() {
        let pool = Scratch::new();
        let semaphore = pool.create(Semaphore::new(1)).unwrap();
        let lock = pool.create(RwLock::new(7_u64)).unwrap();
        std::mem::forget(semaphore.acquire().unwrap());
        std::mem::forget(lock.read().unwrap());
        let indices = [semaphore.index(), lock.index()];
        drop((semaphore, lock));
        reap(pool.0);
        assert_eq!(
            indices.map(|index| phase(pool.0, index)),
            [ObjectPhase::Retired; 2]
        );
        give_up_postponed(pool.0);
    }

    /// Somebody looks at something else while an object is retired, for the first time and then as
    /// many times as there are versions. The first state is still on the list when somebody else
    /// looks at the object.
    #[test]
    fn a_state_that_has_come_round_is_not_that_on_the_list() {
        let pool = Scratch::new();
        let [elsewhere, link] = [(); 2].map(|()| pool.create(Link::<u64>::null()).unwrap());
        elsewhere.set(Some(&pool.create(1).unwrap())).unwrap();
        let object = pool.create(7_u64).unwrap();
        let (handle, entry) = (object.handle(), pool.0.object(object.index()).unwrap());
        let ((looks, look), (end, ends), (gone, is_gone)) = (channel(), channel(), channel());
        std::thread::scope(|s| {
            let elsewhere = &elsewhere;
            s.spawn(move || {
                let view = elsewhere.view().unwrap();
                looks.send(()).unwrap();
                ends.recv().unwrap();
                // Tries what is on the list.
                drop(view);
                gone.send(()).unwrap();
            });
            look.recv().unwrap();
            drop(object);
            let retired = entry.state();
            assert_eq!(retired.phase, ObjectPhase::Retired);

            let object = handle.open().unwrap();
            let before = ObjectState {
                version: retired.version - 1,
                ..entry.state()
            };
            entry.state.store(before.pack(), Ordering::SeqCst);
            link.set(Some(&object)).unwrap();
            let view = link.view().unwrap();
            link.set(None).unwrap();
            drop(object);
            assert_eq!(entry.state(), retired);
            end.send(()).unwrap();
            is_gone.recv().unwrap();
            assert_eq!(entry.state(), retired, "destroyed while it is looked at");
            drop(view);
            assert_eq!(entry.state().phase, ObjectPhase::Free);
        });
    }
}
