//! Objects: values in the pool that are found by index and counted.
//!
//! An object has an entry in a table that never moves and is never unmapped, and a block that
//! holds the value. It lives as long as a process *holds* it (a bit in the process's row of
//! `HOLDS`, set while the process has handles) or a *link* in the pool leads to it (counted in the
//! entry, by detectable changes). Holds are not counted: who drops the last one reads the rows of
//! all processes, and recovery of a process clears its row.
//!
//! | phase | meaning | next, by whom |
//! |------------|------------------------------------------------|--------------------------------|
//! | FREE       | no object                                      | CREATING, by a creator |
//! | CREATING   | its creator's intent names it                  | LIVE; FREE if its creator dies |
//! | LIVE       | an object                                      | RETIRED, by who sees nothing hold it |
//! | RETIRED    | nothing holds it, or so it seemed              | LIVE, by who wants to hold it; DESTROYING, by who sees that nothing does and the epoch is past |
//! | DESTROYING | the destroyer's intent names it                | FREE; CONDEMNED if the destroyer dies |
//! | CONDEMNED  | half destroyed                                 | DESTROYING, by anybody |
//!
//! Invariants
//! 1. To hold: set the bit, then see LIVE, or turn RETIRED to LIVE. To destroy: turn to RETIRED,
//!    see no bit and no link, turn to DESTROYING. All of it sequentially consistent, so one of the
//!    two sees the other.
//! 2. Each turn to RETIRED has a new version, so a destroyer's last step fails if the object was
//!    held in between.
//! 3. The stamp is stored before RETIRED and only rises: views that were opened while a link led
//!    here are past before the object is destroyed.
//! 4. The generation rises when an entry is taken, so a descriptor of a former object finds none.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{handles, intents, types};
use crate::allocator::check::{CheckReport, Depth};
use crate::allocator::{AllocError, block, grow};
use crate::layout::arena::{Arena, OBJECTS};
use crate::layout::local;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::{detect, epoch, permits, process};
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::memory::CommitError;

/// An object's entry.
#[repr(C, align(64))]
pub(crate) struct Entry {
    /// Phase, version and generation.
    state: AtomicU64,
    /// How many links lead here: a word of `detect`.
    pub(crate) links: AtomicU64,
    /// Where the value is; 0 while there is none.
    pub(crate) address: AtomicU64,
    /// The type's index.
    kind: AtomicU64,
    /// The epoch in which it was last retired.
    stamp: AtomicU64,
}

const _: () = assert!(size_of::<Entry>() <= OBJECTS.entry);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    Free = 0,
    Creating = 1,
    Live = 2,
    Retired = 3,
    Destroying = 4,
    Condemned = 5,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ObjectState {
    pub(crate) phase: Phase,
    version: u32,
    pub(crate) generation: u32,
}

impl ObjectState {
    const fn unpack(word: u64) -> Self {
        let phase = match word & 0xff {
            1 => Phase::Creating,
            2 => Phase::Live,
            3 => Phase::Retired,
            4 => Phase::Destroying,
            5 => Phase::Condemned,
            _ => Phase::Free,
        };
        ObjectState {
            phase,
            version: (word >> 8) as u32 & 0xff_ffff,
            generation: (word >> 32) as u32,
        }
    }

    const fn pack(self) -> u64 {
        (self.generation as u64) << 32
            | ((self.version & 0xff_ffff) as u64) << 8
            | self.phase as u64
    }

    const fn with(self, phase: Phase) -> Self {
        ObjectState { phase, ..self }
    }
}

impl Entry {
    pub(crate) fn state(&self) -> ObjectState {
        ObjectState::unpack(self.state.load(Ordering::SeqCst))
    }

    fn turn(&self, from: ObjectState, to: ObjectState) -> bool {
        self.state
            .compare_exchange(from.pack(), to.pack(), Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Turns the entry to FREE, which nobody else can change.
    fn free(&self, arena: Arena, index: usize, from: ObjectState) {
        self.state
            .store(from.with(Phase::Free).pack(), Ordering::SeqCst);
        let hint = &arena.header().free_object;
        hint.fetch_min(index as u64, Ordering::Relaxed);
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
    pub(crate) fn object(self, index: usize) -> Option<&'static Entry> {
        // SAFETY: compared with the watermark; an entry consists of atomics.
        (index < self.object_count()).then(|| unsafe { self.entry(OBJECTS, index) })
    }
}

/// How a new object's value comes about.
pub(crate) struct NewObject {
    pub(crate) kind: usize,
    pub(crate) layout: Layout,
}

/// Makes an object, held by this process. `init` writes the value; it is no user's code.
pub(crate) fn create(
    arena: Arena,
    slot: &Slot,
    new: NewObject,
    init: impl FnOnce(NonNull<u8>),
) -> Result<Arc<handles::Hold>, AllocError> {
    let (index, taken) = take_entry(arena, slot)?;
    let made = block::allocate(arena, slot, new.layout, |address| {
        slot.intent.set_arg(intents::CREATE_BLOCK, address as u64);
    });
    let entry = arena.object(index).expect("taken just now");
    let held = made.and_then(|address| {
        let row = process::current_index(arena);
        grow::or_purge(arena, slot, || process::commit_holds(arena, row, index + 1))?;
        Ok((address, row))
    });
    match held {
        Ok((address, row)) => {
            let pointer = NonNull::new(std::ptr::with_exposed_provenance_mut(address));
            init(pointer.expect("blocks are not at zero"));
            entry.address.store(address as u64, Ordering::Relaxed);
            entry.kind.store(new.kind as u64, Ordering::Relaxed);
            let hold = handles::enter(arena, index, taken.generation, || {
                set_hold(arena, row, index);
                // The object exists from this store on.
                entry
                    .state
                    .store(taken.with(Phase::Live).pack(), Ordering::SeqCst);
            });
            slot.intent.close();
            Ok(hold)
        }
        Err(error) => {
            intents::resolve(arena, slot.tag().slot());
            Err(error)
        }
    }
}

/// Turns a free entry to CREATING, with the intent open that says so.
fn take_entry(arena: Arena, slot: &Slot) -> Result<(usize, ObjectState), CommitError> {
    /// Entries that the table grows by.
    const STEP: usize = 64;
    let hint = &arena.header().free_object;
    let lowest = hint.load(Ordering::Relaxed);
    let mut from = lowest as usize;
    loop {
        let count = arena.object_count();
        let usable = |i: &usize| {
            arena.object(*i).is_some_and(|e| {
                let state = e.state();
                state.phase == Phase::Free && state.generation != u32::MAX
            })
        };
        let Some(index) = (from..count).find(usable) else {
            // What lies below the hint was lost with somebody: looked for as often as is cheap.
            let worth_it = count.is_power_of_two() || count + STEP > OBJECTS.max;
            if worth_it && from > 0 && lowest > 0 {
                hint.store(0, Ordering::Relaxed);
                if let Some(lost) = (0..count).find(usable) {
                    from = lost;
                    continue;
                }
            }
            if count + STEP > OBJECTS.max {
                return Err(CommitError::Full);
            }
            let watermark = &arena.header().watermarks.objects;
            grow::raise(arena, slot, OBJECTS, watermark, count + STEP)?;
            from = count;
            continue;
        };
        slot.intent.open(intents::CREATE, &[index as u64, 0]);
        let entry = arena.object(index).expect("below the count");
        let free = entry.state();
        let taken = ObjectState {
            phase: Phase::Creating,
            version: slot.tag().slot() as u32,
            ..free
        };
        let taken = ObjectState {
            generation: free.generation.wrapping_add(1),
            ..taken
        };
        if free.phase == Phase::Free && entry.turn(free, taken) {
            let _ = hint.compare_exchange(
                lowest,
                index as u64 + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            return Ok((index, taken));
        }
        slot.intent.close();
        from = index + 1;
    }
}

/// Undoes a creation. `slot` is its author's, dead or our own.
pub(super) fn undo_create(arena: Arena, owner: Tag, index: usize, address: usize) {
    let Some(entry) = arena.object(index) else {
        return;
    };
    let state = entry.state();
    // CREATING has the author's slot for a version: another's creation is not ours to undo.
    if state.phase != Phase::Creating || state.version != owner.slot() as u32 {
        return;
    }
    let slot = arena.slot(owner.slot());
    let row = Tag::of_word(slot.watched.process.load(Ordering::Relaxed)).slot();
    clear_hold(arena, row, index);
    if address != 0 {
        block::release_for(arena, owner, address);
    }
    entry.address.store(0, Ordering::Relaxed);
    entry.free(arena, index, state);
}

fn hold_place(arena: Arena, row: usize, index: usize) -> Option<(&'static AtomicU64, u64)> {
    let held = arena.process(row).held.load(Ordering::Acquire) as usize;
    // SAFETY: the row is committed up to `held`.
    (index < held.min(OBJECTS.max))
        .then(|| unsafe { (arena.hold_word(row, index / 64), 1 << (index % 64)) })
}

fn set_hold(arena: Arena, row: usize, index: usize) {
    if let Some((word, bit)) = hold_place(arena, row, index) {
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

fn clear_hold(arena: Arena, row: usize, index: usize) {
    if let Some((word, bit)) = hold_place(arena, row, index) {
        word.fetch_and(!bit, Ordering::SeqCst);
    }
}

/// True if any process holds the object.
fn is_held(arena: Arena, index: usize) -> bool {
    (1..arena.process_count()).any(|row| {
        hold_place(arena, row, index)
            .is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    })
}

/// Makes this process hold an object, if it is still there. The caller keeps the process's other
/// threads from holding and dropping meanwhile.
pub(super) fn hold(arena: Arena, index: usize, generation: u32) -> Result<bool, CommitError> {
    let row = process::current_index(arena);
    let Some(entry) = arena.object(index) else {
        return Ok(false);
    };
    process::commit_holds(arena, row, index + 1)?;
    set_hold(arena, row, index);
    // By invariant 1.
    loop {
        let state = entry.state();
        match state.phase {
            _ if state.generation != generation => break,
            Phase::Live => return Ok(true),
            Phase::Retired if entry.turn(state, state.with(Phase::Live)) => return Ok(true),
            Phase::Retired => {}
            _ => break,
        }
    }
    clear_hold(arena, row, index);
    Ok(false)
}

/// Ends this process's hold. The caller keeps its other threads from holding meanwhile, and
/// [disposes](dispose) of the object afterwards.
pub(super) fn let_go(arena: Arena, index: usize) {
    let known = Tag::of_word(local::of(arena).process());
    if known.is_nobody() {
        return;
    }
    // A child of a fork that no handler saw holds nothing: its parent does.
    let pid = arena.process(known.slot()).pid.load(Ordering::Relaxed);
    if pid == u64::from(crate::sys::process::pid()) {
        clear_hold(arena, known.slot(), index);
    }
}

/// Destroys the object if nothing holds it, and then what it led to, and so on.
pub(crate) fn dispose(arena: Arena, index: usize) {
    if !retire(arena, index) {
        return;
    }
    let Ok(slot) = crate::participants::thread::slot(arena) else {
        return;
    };
    if slot.intent.is_open() {
        return;
    }
    let mut work = vec![index];
    while let Some(index) = work.pop() {
        destroy(arena, slot, index, &mut work);
    }
}

/// Turns the object to RETIRED if nothing holds it. True if it is RETIRED or CONDEMNED.
fn retire(arena: Arena, index: usize) -> bool {
    let Some(entry) = arena.object(index) else {
        return false;
    };
    loop {
        let state = entry.state();
        match state.phase {
            Phase::Retired | Phase::Condemned => return true,
            Phase::Live
                if detect::value(entry.links.load(Ordering::SeqCst)) == 0
                    && !is_held(arena, index) =>
            {
                entry.stamp.fetch_max(epoch::stamp(arena), Ordering::SeqCst);
                let version = state.version.wrapping_add(1);
                if entry.turn(
                    state,
                    ObjectState {
                        phase: Phase::Retired,
                        version,
                        ..state
                    },
                ) {
                    return true;
                }
            }
            _ => return false,
        }
    }
}

/// Destroys an object that is RETIRED or CONDEMNED, if nothing holds it and nobody looks at it.
/// Adds to `work` what it led to and nothing holds now.
///
/// Killed anywhere: recovery finishes the step that the intent names and leaves it CONDEMNED.
fn destroy(arena: Arena, slot: &Slot, index: usize, work: &mut Vec<usize>) {
    let Some(entry) = arena.object(index) else {
        return;
    };
    let state = entry.state();
    match state.phase {
        Phase::Condemned => {}
        Phase::Retired => {
            if detect::value(entry.links.load(Ordering::SeqCst)) != 0 || is_held(arena, index) {
                // It only seemed so.
                entry.turn(state, state.with(Phase::Live));
                return;
            }
            let past = epoch::is_past(arena, entry.stamp.load(Ordering::SeqCst));
            if !past || permits::any_within(arena, extent(arena, entry)) {
                return;
            }
        }
        _ => return,
    }
    slot.intent.open(intents::DESTROY, &[index as u64, 0, 0, 0]);
    let version = slot.tag().slot() as u32;
    let destroying = ObjectState {
        phase: Phase::Destroying,
        version,
        ..state
    };
    if entry.turn(state, destroying) {
        let address = entry.address.load(Ordering::Relaxed) as usize;
        if address != 0 {
            for owned in types::owned_words(arena, entry.kind()) {
                let field = (address + owned.offset) as u64;
                match owned.kind {
                    types::Owned::Link => {
                        if let Some(target) = intents::drop_link(arena, slot, field)
                            && retire(arena, target)
                        {
                            work.push(target);
                        }
                    }
                    types::Owned::Block => intents::drop_block(arena, slot, field),
                }
            }
            let own = std::ptr::from_ref(&entry.address).addr() as u64;
            intents::drop_block(arena, slot, own);
        }
        entry.free(arena, index, destroying);
    }
    slot.intent.close();
}

/// What recovery does for a dead destroyer, once the step on the way is finished.
pub(super) fn condemn(arena: Arena, owner: Tag, index: usize) {
    let Some(entry) = arena.object(index) else {
        return;
    };
    let state = entry.state();
    if state.phase == Phase::Destroying && state.version == owner.slot() as u32 {
        entry
            .state
            .store(state.with(Phase::Condemned).pack(), Ordering::SeqCst);
    }
}

fn extent(arena: Arena, entry: &Entry) -> std::ops::Range<usize> {
    let address = entry.address.load(Ordering::Relaxed) as usize;
    address..address + types::size(arena, entry.kind())
}

/// Destroys every object that nothing holds: after deaths, when nobody else may have noticed.
pub(crate) fn reap(arena: Arena) {
    // It may have died with somebody.
    arena.header().free_object.store(0, Ordering::Relaxed);
    for index in 0..arena.object_count() {
        dispose(arena, index);
    }
}

/// The value's address, if the index is a live object's.
pub(crate) fn address_of(arena: Arena, index: usize) -> Option<NonNull<u8>> {
    let entry = arena.object(index)?;
    let address = entry.address.load(Ordering::Acquire) as usize;
    arena.slice_of(address)?;
    NonNull::new(std::ptr::with_exposed_provenance_mut(address))
}

/// Checks every entry.
pub(super) fn check(arena: Arena, depth: Depth, report: &mut CheckReport) {
    let quiet = depth == Depth::Quiescent;
    for index in 0..arena.object_count() {
        let Some(entry) = arena.object(index) else {
            continue;
        };
        let phase = entry.state().phase;
        if phase == Phase::Free {
            continue;
        }
        report.objects += 1;
        let links = detect::value(entry.links.load(Ordering::SeqCst));
        if links > i32::MAX as u32 {
            report.problem(format_args!("object {index} has {links} links"));
        }
        if !quiet {
            continue;
        }
        let address = entry.address.load(Ordering::Relaxed) as usize;
        if phase == Phase::Live && block::usable_size(arena, address).is_err() {
            report.problem(format_args!("object {index} has no block at {address:#x}"));
        }
        if matches!(
            phase,
            Phase::Creating | Phase::Destroying | Phase::Condemned
        ) {
            report.problem(format_args!("object {index} is {phase:?} at rest"));
        }
        if phase == Phase::Live && links == 0 && !is_held(arena, index) {
            report.problem(format_args!("object {index} is held by nobody"));
        }
    }
}
