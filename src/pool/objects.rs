//! Objects: values in the pool that are found by index and counted.
//!
//! An object has an entry in a table that never moves and is never unmapped, and a block that holds
//! the value. It lives as long as a process *holds* it (a bit in the process's row of `HOLDS`, set
//! while the process has handles) or a *link* in the pool leads to it (counted in the entry, by
//! detectable changes). Holds are not counted: a process that drops its hold reads the rows of all
//! processes, and recovery of a process clears its row.
//!
//! | phase | meaning | next, by whom |
//! |------------|------------------------------------------------|--------------------------------|
//! | FREE       | no object                                      | CREATING, by a creator |
//! | CREATING   | its creator's intent names it                  | LIVE; FREE if its creator dies |
//! | LIVE       | an object                                      | RETIRED, by a thread that sees nothing hold it |
//! | RETIRED    | nothing holds it, or so it seemed              | LIVE, by a thread that is to hold it; DESTROYING, by a thread that sees that nothing holds it and the epoch is past |
//! | DESTROYING | the destroyer's intent names it                | FREE; CONDEMNED if the destroyer dies |
//! | CONDEMNED  | half destroyed                                 | DESTROYING, by anybody |
//!
//! Invariants
//! 1. To hold: set the bit, then see LIVE, or turn RETIRED to LIVE. To destroy: turn to RETIRED,
//!    see no bit and no link, turn to DESTROYING. All of it is sequentially consistent, so one of
//!    the two sees the other.
//! 2. Each turn to RETIRED has a new version, so a destroyer's last step fails if the object was
//!    held in between. After 2^29 turns versions come round, and a state on somebody's list may
//!    look like the present one: the stamp that counts is then the latest of any that was listed
//!    (`keeping`).
//! 3. A destroyer has taken a stamp after RETIRED, after seeing no bit, and then no link (a holder
//!    may link the object and let go then): views that were opened while a link led here are past
//!    before the object is destroyed. The stamp is its taker's own; others' later ones do not delay
//!    it.
//! 4. The generation rises when an entry is taken, so a descriptor of a former object finds none.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

use super::handles::{self, Hold};
use super::{intents, types};
use crate::allocator::{AllocError, block, grow};
use crate::engines::limbo;
use crate::layout::arena::{Arena, OBJECTS};
use crate::layout::local;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::{detect, process};
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::keeping::Keeping;
use crate::protocol::lifecycle;
pub(crate) use crate::protocol::lifecycle::{ObjectPhase, ObjectState};
use crate::sys::memory::CommitError;

/// An object's entry.
#[repr(C, align(64))]
pub(crate) struct ObjectEntry {
    /// Phase, version and generation.
    pub(super) state: AtomicU64,
    /// How many links lead here: a word of `detect`.
    pub(crate) links: AtomicU64,
    /// Where the value is; 0 while there is none.
    pub(crate) address: AtomicU64,
    /// The type's index.
    kind: AtomicU64,
    /// The process that has the object on its list of postponed objects: see `dispose`.
    pub(super) keeping: Keeping,
}

const _: () = assert!(size_of::<ObjectEntry>() <= OBJECTS.entry);

impl ObjectEntry {
    pub(crate) fn state(&self) -> ObjectState {
        lifecycle::read(&self.state)
    }

    fn turn(&self, from: ObjectState, to: ObjectState) -> bool {
        lifecycle::turn(&self.state, from, to)
    }

    /// Turns the entry, which nobody else can change, to FREE.
    pub(super) fn free(&self, from: ObjectState) {
        self.keeping.free(&self.state, from);
    }

    /// The index of the type.
    pub(crate) fn kind(&self) -> usize {
        self.kind.load(Ordering::Relaxed) as usize
    }
}

impl Arena {
    /// How many entries there are.
    pub(crate) fn object_count(self) -> usize {
        (self.header().watermarks.objects.load(Ordering::Acquire) as usize).min(OBJECTS.max)
    }

    /// The entry with that index, if there is one.
    pub(crate) fn object(self, index: usize) -> Option<&'static ObjectEntry> {
        // SAFETY: compared with the watermark; an entry consists of atomics.
        (index < self.object_count()).then(|| unsafe { self.entry(OBJECTS, index) })
    }
}

/// How a new object's value comes about.
pub(crate) struct NewObject {
    pub(crate) kind: usize,
    pub(crate) layout: Layout,
}

/// Makes an object, held by this process. `init` writes the value; it is not user code. If the pool
/// is full, this is tried again once what nobody holds any more is freed.
pub(crate) fn create(
    arena: Arena,
    slot: &Slot,
    new: NewObject,
    init: impl FnOnce(NonNull<u8>),
) -> Result<Arc<Hold>, AllocError> {
    let Reserved {
        index,
        taken,
        address,
        row,
    } = limbo::or_reap(arena, || reserve(arena, slot, new.layout))?;
    let entry = arena.object(index).expect("taken just now");
    let pointer = NonNull::new(std::ptr::with_exposed_provenance_mut(address));
    init(pointer.expect("blocks are not at zero"));
    entry.address.store(address as u64, Ordering::Relaxed);
    entry.kind.store(new.kind as u64, Ordering::Relaxed);
    let hold = handles::enter(arena, index, taken.generation, || {
        set_hold(arena, row, index);
        // The object exists from this store on.
        entry
            .state
            .store(taken.with(ObjectPhase::Live).pack(), Ordering::SeqCst);
    });
    slot.intent.close();
    Ok(hold)
}

/// What an object needs to exist, while the intent to create it is open.
struct Reserved {
    index: usize,
    taken: ObjectState,
    address: usize,
    /// This process's record, whose row has room for the object's bit.
    row: usize,
}

fn reserve(arena: Arena, slot: &Slot, layout: Layout) -> Result<Reserved, AllocError> {
    let (index, taken) = take_entry(arena, slot)?;
    let made = block::allocate(arena, slot, layout, |address| {
        slot.intent.set_arg(intents::CREATE_BLOCK, address as u64);
    });
    let reserved = made.and_then(|address| {
        let row = process::current_index(arena);
        grow::or_purge(arena, slot, || process::commit_holds(arena, row, index + 1))?;
        Ok(Reserved {
            index,
            taken,
            address,
            row,
        })
    });
    if reserved.is_err() {
        abandon_create(arena, slot, index);
    }
    reserved
}

/// Turns a free entry to CREATING, with the intent open that says so.
///
/// The search goes round the table, and the table grows once it has passed very many taken entries
/// in a row. What is retired while somebody looks makes runs of some length: passing them once a
/// round costs less than a larger table does at every walk over it.
fn take_entry(arena: Arena, slot: &Slot) -> Result<(usize, ObjectState), CommitError> {
    /// Entries by which the table grows, and which are looked at before the place is noted again.
    const STEP: usize = 64;
    /// Entries that are looked at before the table grows.
    const MOST: usize = 64 * STEP;
    let cursor = &arena.header().object_cursor;
    let mut from = cursor.load(Ordering::Relaxed) as usize;
    let mut all = false;
    loop {
        let count = arena.object_count();
        let most = if all { count } else { count.min(MOST) };
        let mut seen = 0;
        while seen < most {
            from = if from < count { from } else { 0 };
            let until = count.min(from + STEP.min(most - seen));
            for index in from..until {
                if let Some(taken) = take(arena, slot, index) {
                    cursor.store(index as u64 + 1, Ordering::Relaxed);
                    return Ok((index, taken));
                }
            }
            cursor.store(until as u64, Ordering::Relaxed);
            seen += until - from;
            from = until;
        }
        let watermark = &arena.header().watermarks.objects;
        let grown = if count + STEP > OBJECTS.max {
            Err(CommitError::Full)
        } else {
            grow::raise(arena, slot, OBJECTS, watermark, count + STEP)
        };
        match grown {
            Ok(()) => from = count,
            Err(error) if all => return Err(error),
            // There may be free entries further off.
            Err(_) => (from, all) = (0, true),
        }
    }
}

/// Takes the entry if it is free.
fn take(arena: Arena, slot: &Slot, index: usize) -> Option<ObjectState> {
    let entry = arena.object(index)?;
    let free = entry.state();
    if free.phase != ObjectPhase::Free || free.generation == u32::MAX {
        return None;
    }
    let taken = ObjectState {
        phase: ObjectPhase::Creating,
        version: slot.tag().slot() as u32,
        generation: free.generation + 1,
    };
    slot.intent.open(intents::CREATE, &[index as u64, 0]);
    if entry.turn(free, taken) {
        return Some(taken);
    }
    slot.intent.close();
    None
}

/// Undoes our own creation.
fn abandon_create(arena: Arena, slot: &Slot, index: usize) {
    let block = slot.intent.arg(intents::CREATE_BLOCK);
    // The block's bit tells whether the block was taken.
    if block != 0 {
        block::about_to_free(slot, block);
        slot.intent.set_arg(intents::CREATE_BLOCK, 0);
        let _ = block::free_named(arena, slot, block as usize);
    }
    undo_create(arena, slot.tag(), index, 0);
    slot.intent.close();
}

/// Undoes a creation. `owner` is its author, dead or our own.
pub(super) fn undo_create(arena: Arena, owner: Tag, index: usize, address: usize) {
    let Some(entry) = arena.object(index) else {
        return;
    };
    let state = entry.state();
    // CREATING has the author's slot as its version: another's creation is not ours to undo.
    if state.phase != ObjectPhase::Creating || state.version != owner.slot() as u32 {
        return;
    }
    let slot = arena.slot(owner.slot());
    let row = Tag::of_word(slot.watched.process.load(Ordering::Relaxed)).slot();
    clear_hold(arena, row, index);
    if address != 0 {
        block::release_for(arena, owner, address);
    }
    entry.address.store(0, Ordering::Relaxed);
    entry.free(state);
}

fn hold_place(arena: Arena, row: usize, index: usize) -> Option<(&'static AtomicU64, u64)> {
    let word = arena.hold_word(row, index)?;
    Some((word, 1 << (index % 64)))
}

fn set_hold(arena: Arena, row: usize, index: usize) {
    if let Some((word, bit)) = hold_place(arena, row, index) {
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

pub(super) fn clear_hold(arena: Arena, row: usize, index: usize) {
    if let Some((word, bit)) = hold_place(arena, row, index) {
        word.fetch_and(!bit, Ordering::SeqCst);
    }
}

/// True if the process with that record holds the object.
pub(super) fn holds(arena: Arena, row: usize, index: usize) -> bool {
    hold_place(arena, row, index).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
}

/// True if any process holds the object.
pub(crate) fn is_held(arena: Arena, index: usize) -> bool {
    (1..arena.process_count()).any(|row| holds(arena, row, index))
}

/// How many objects the process with that record holds.
pub(crate) fn held_by(arena: Arena, row: usize) -> usize {
    (0..arena.object_count())
        .step_by(64)
        .filter_map(|index| hold_place(arena, row, index))
        .map(|(word, _)| word.load(Ordering::Relaxed).count_ones() as usize)
        .sum()
}

/// Makes this process hold an object, if it is still there. The caller keeps the process's other
/// threads from taking and dropping holds meanwhile.
pub(super) fn hold(arena: Arena, index: usize, generation: u32) -> Result<bool, CommitError> {
    let row = process::current_index(arena);
    let Some(entry) = arena.object(index) else {
        return Ok(false);
    };
    process::commit_holds(arena, row, index + 1)?;
    set_hold(arena, row, index);
    // By invariant 1.
    if lifecycle::hold(&entry.state, generation) {
        return Ok(true);
    }
    clear_hold(arena, row, index);
    Ok(false)
}

/// Ends this process's hold. The caller keeps the process's other threads from taking holds
/// meanwhile, and disposes of the object afterwards.
pub(super) fn let_go(arena: Arena, index: usize) {
    let known = Tag::of_word(local::of(arena).process());
    if known.is_nobody() {
        return;
    }
    // A child of a fork that no handler saw holds nothing: the hold is its parent's.
    if arena.process(known.slot()).pid.get() == crate::sys::process::pid() {
        clear_hold(arena, known.slot(), index);
    }
}

/// The object that a link leads to, if it leads anywhere.
pub(crate) fn target(link: u64) -> Option<usize> {
    (detect::value(link) as usize).checked_sub(1)
}

/// Where an object's value is.
pub(super) fn extent(arena: Arena, entry: &ObjectEntry) -> std::ops::Range<usize> {
    let address = entry.address.load(Ordering::Relaxed) as usize;
    address..address.saturating_add(types::size(arena, entry.kind()))
}

/// The object in which an address of the pool lies, and its generation.
pub(crate) fn containing(arena: Arena, address: usize) -> Option<(usize, u32)> {
    (0..arena.object_count()).find_map(|index| {
        let entry = arena.object(index)?;
        let state = entry.state();
        let inside = state.phase == ObjectPhase::Live && extent(arena, entry).contains(&address);
        inside.then_some((index, state.generation))
    })
}

/// The value's address, if the index is that of an object whose block fits the layout.
pub(crate) fn address_of(arena: Arena, index: usize, layout: Layout) -> Option<NonNull<u8>> {
    let address = arena.object(index)?.address.load(Ordering::Acquire) as usize;
    let fits = address.is_multiple_of(layout.align())
        && block::usable_size(arena, address).is_ok_and(|size| size >= layout.size());
    fits.then(|| NonNull::new(std::ptr::with_exposed_provenance_mut(address)))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;
    use crate::participants::thread;

    /// Their numbers do not begin anew: a descriptor of the first object there would lead to another one.
    #[test]
    fn an_entry_has_an_end() {
        let pool = Pool::builder().create().unwrap();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let index = pool.create(7_u64).unwrap().index();
        let entry = arena.object(index).unwrap();
        let free = entry.state();
        assert_eq!(free.phase, ObjectPhase::Free);
        let generation = u32::MAX;
        let last = ObjectState { generation, ..free };
        assert!(entry.turn(free, last));
        assert!(take(arena, slot, index).is_none());
        assert_eq!(entry.state(), last);
    }

    /// One has died who was about to take an entry, which another has taken.
    #[test]
    fn anothers_creation_is_not_undone() {
        let pool = Pool::builder().create().unwrap();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let (index, taken) = take_entry(arena, slot).unwrap();
        let me = slot.tag().slot();
        let entry = arena.object(index).unwrap();
        undo_create(arena, Tag::new(me + 1, 0), index, 0);
        assert_eq!(entry.state(), taken);
        undo_create(arena, Tag::new(me, 0), index, 0);
        assert_eq!(entry.state().phase, ObjectPhase::Free);
        slot.intent.close();
    }
}
