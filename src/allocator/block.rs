//! The way in: allocate, free, usable size.
//!
//! The common allocation is a look at the thread's cache of the class, a bit scan and one store;
//! the common free is a look at the spans into which the thread has freed lately (`known`), a
//! division by multiplication, a test of the bitmaps and one store; if nothing is known, the
//! slice's tag says who owns the block. A free by any other thread is one atomic or. Everything
//! else is in functions of its own, so that these are short.
//!
//! Containers allocate *into* their intent: `record` is told the address before the block is taken,
//! so the block's own bit or tag tells whether a death came before or after that. They free
//! *through* the slot's `freeing` word ([`about_to_free`]): it names the block from before its bit
//! is set until after, and nobody hands out a named block again.

use std::alloc::Layout;

use super::cache;
use super::guard::{self, Guarded};
use super::slice::{self, State};
use super::span::{Place, Span};
use super::{AllocError, FreeError, Packed, ReallocError, run, size_class};
use crate::layout::arena::{Arena, DATA, SLICE};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{Ordering, compiler_fence};
use crate::protocol::bitmap;

/// Allocates a block; returns its address. `record` is told the address before the block is taken.
#[inline(always)]
pub(crate) fn allocate(
    arena: Arena,
    slot: &Slot,
    layout: Layout,
    record: impl Fn(usize),
) -> Result<usize, AllocError> {
    allocate_packed(arena, slot, layout, record).map_err(Packed::unpack)
}

/// The same, for a caller that passes an error on in registers.
#[inline(always)]
pub(crate) fn allocate_packed(
    arena: Arena,
    slot: &Slot,
    layout: Layout,
    record: impl Fn(usize),
) -> Result<usize, Packed> {
    match at_hand(slot, layout, &record) {
        Some(address) => Ok(address),
        None => allocate_more(arena, slot, layout, record),
    }
}

/// A block, if the word in hand has one: most allocations need no more than this.
#[inline(always)]
pub(crate) fn at_hand(slot: &Slot, layout: Layout, record: impl Fn(usize)) -> Option<usize> {
    if !size_class::is_plain(layout) {
        return None;
    }
    let class = size_class::class_of(layout)?;
    // SAFETY: what `class_of` returns is a class.
    unsafe { slot.known_cache(class) }.take(record)
}

/// A block, whatever the layout and the state of the cache.
#[cold]
#[inline(never)]
pub(crate) fn allocate_more(
    arena: Arena,
    slot: &Slot,
    layout: Layout,
    record: impl Fn(usize),
) -> Result<usize, Packed> {
    if guard::is_on(arena) {
        return Ok(guard::allocate(arena, slot, layout, record)?);
    }
    let Some(class) = size_class::class_of(layout) else {
        return Ok(run::allocate(arena, slot, layout, |address, _| {
            record(address);
        })?);
    };
    let cache = slot.cache(class);
    loop {
        if let Some(address) = cache.take(&record) {
            return Ok(address);
        }
        cache.replenish(arena, slot, class)?;
    }
}

/// Allocates a block; returns its address, and whether it is known to be zero.
#[inline]
pub(crate) fn allocate_noting(
    arena: Arena,
    slot: &Slot,
    layout: Layout,
) -> Result<(usize, bool), AllocError> {
    if size_class::class_of(layout).is_some() {
        return Ok((allocate(arena, slot, layout, |_| {})?, false));
    }
    let mut zero = false;
    let address = run::allocate(arena, slot, layout, |_, clean| zero = clean)?;
    Ok((address, zero))
}

/// Moves a block to one of another layout, with as much of its content as fits. It may stay where
/// it is.
///
/// # Safety
///
/// If it succeeds, nobody uses the old block any more.
pub(crate) unsafe fn reallocate(
    arena: Arena,
    slot: &Slot,
    address: usize,
    new: Layout,
) -> Result<usize, ReallocError> {
    let usable = usable_size(arena, address)?;
    // In a guarded pool, it stays only if it has exactly that size.
    let aligned =
        address.is_multiple_of(new.align()) && (!guard::is_on(arena) || new.size() == usable);
    if aligned && new.size() <= usable && new.size() >= usable / 2 {
        return Ok(address);
    }
    if aligned && new.size() > usable && extend(arena, slot, address, new.size()) {
        return Ok(address);
    }
    let moved = match allocate(arena, slot, new, |_| {}) {
        Ok(moved) => moved,
        // There is no smaller block for it: it stays where it is.
        Err(_) if aligned && new.size() <= usable => return Ok(address),
        Err(error) => return Err(error.into()),
    };
    // SAFETY: both blocks are at least that long, and distinct, since both are allocated.
    unsafe {
        let from = std::ptr::with_exposed_provenance::<u8>(address);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(moved);
        to.copy_from_nonoverlapping(from, usable.min(new.size()));
    }
    free(arena, slot, address)?;
    Ok(moved)
}

/// Makes a run larger where it lies. False if that is not possible, or it is not a run.
#[cold]
fn extend(arena: Arena, slot: &Slot, address: usize, size: usize) -> bool {
    match locate(arena, address) {
        Ok(Located::Run { start, slices }) if size <= DATA.max * SLICE => {
            run::extend(arena, slot, start, slices, size.div_ceil(SLICE))
        }
        _ => false,
    }
}

/// What lies at an address.
enum Located {
    Block {
        span: &'static Span,
        start: usize,
        owner: Tag,
        place: Place,
    },
    Run {
        start: usize,
        slices: usize,
    },
}

/// Finds the block that starts at an address, allocated or not.
fn locate(arena: Arena, address: usize) -> Result<Located, FreeError> {
    let slice = arena.slice_of(address).ok_or(FreeError::Foreign)?;
    let mut start = slice;
    let mut state = slice::state(arena.tag(slice).load(Ordering::Acquire));
    if let State::Tail { back } = state {
        start = slice.checked_sub(back).ok_or(FreeError::Interior)?;
        state = slice::state(arena.tag(start).load(Ordering::Acquire));
        match state {
            State::Span { .. } => {}
            State::Kept { .. } => return Err(FreeError::NotAllocated),
            _ => return Err(FreeError::Interior),
        }
    }
    match state {
        State::Span { owner } => {
            let span = arena.span(start);
            let place = place_in(arena, span, start, address)?;
            Ok(Located::Block {
                span,
                start,
                owner,
                place,
            })
        }
        State::Run { slices } if slices == 0 || slices > arena.slices() - start => {
            Err(FreeError::NotAllocated)
        }
        State::Run { slices } if address == arena.slice_address(start) => {
            Ok(Located::Run { start, slices })
        }
        State::Run { .. } => Err(FreeError::Interior),
        _ => Err(FreeError::NotAllocated),
    }
}

/// The block of a span that starts at an address, unless this is not a span: a tag of a damaged
/// file.
#[inline]
fn place_in(arena: Arena, span: &Span, start: usize, address: usize) -> Result<Place, FreeError> {
    if !span.is_described(arena, start) {
        return Err(FreeError::NotAllocated);
    }
    let offset = address - arena.slice_address(start);
    span.place_of(offset).ok_or(FreeError::Interior)
}

/// Frees a block.
#[inline(always)]
pub(crate) fn free(arena: Arena, slot: &Slot, address: usize) -> Result<(), FreeError> {
    free_with(arena, slot, address, || {})
}

/// Frees a block; `freed` is called as soon as a block of the thread's own is free. (All others
/// clear the `freeing` word themselves.)
#[inline(always)]
fn free_with(
    arena: Arena,
    slot: &Slot,
    address: usize,
    freed: impl FnOnce(),
) -> Result<(), FreeError> {
    if let Some((place, words)) = slot.known_block(address)
        && words.sets().free_own(place)
    {
        freed();
        took_back(arena, slot, words.span());
        return Ok(());
    }
    free_looked_up(slot, address)
}

/// Counts a block that the span's owner, the caller, has freed.
#[inline(always)]
fn took_back(arena: Arena, slot: &Slot, span: &Span) {
    // SAFETY: only the owner looks at it: no atomic access, so that it is one instruction.
    let until = unsafe { &mut *span.until.as_ptr() };
    *until = until.wrapping_sub(1);
    if *until == 0 {
        cache::note_free(arena, slot, span);
    }
}

/// Frees a block of which the thread knows nothing yet, or says why it cannot be freed.
#[inline(never)]
fn free_looked_up(slot: &Slot, address: usize) -> Result<(), FreeError> {
    // Not a parameter: few registers are left where it is called.
    let arena = slot.arena();
    if guard::is_on(arena) {
        return free_guarded(arena, slot, address);
    }
    let Some(slice) = arena.slice_of(address) else {
        return Err(FreeError::Foreign);
    };
    // SAFETY: the slice is one of the pool's.
    let tag = unsafe { arena.known_tag(slice) };
    let start = slice.wrapping_sub(slice::distance(tag.load(Ordering::Acquire)));
    // SAFETY: not above the slice, which is one of the pool's.
    if start <= slice && slot.has_span(unsafe { arena.known_tag(start) }.load(Ordering::Acquire)) {
        // SAFETY: as above.
        let span = unsafe { arena.known_span(start) };
        let place = place_in(arena, span, start, address)?;
        if !span.sets().free_own(place) {
            return Err(FreeError::NotAllocated);
        }
        slot.watched.freeing.store(0, Ordering::Release);
        slot.note_known(arena, span, address);
        took_back(arena, slot, span);
        return Ok(());
    }
    free_elsewhere(arena, slot, address)
}

/// Frees a block of a guarded pool.
#[cold]
fn free_guarded(arena: Arena, slot: &Slot, address: usize) -> Result<(), FreeError> {
    let located = locate(arena, address)?;
    let bytes = match located {
        Located::Block { span, place, .. } if span.is_free(place) => {
            return Err(FreeError::NotAllocated);
        }
        Located::Block { span, .. } => span.block_size(),
        Located::Run { slices, .. } => slices * SLICE,
    };
    let block = Guarded::at(arena, address, bytes).ok_or(FreeError::NotAllocated)?;
    guard::before_free(slot, block)?;
    if let Located::Block {
        span, owner, place, ..
    } = located
        && owner == slot.tag()
    {
        let freed = span.sets().free_own(place);
        slot.watched.freeing.store(0, Ordering::Release);
        took_back(arena, slot, span);
        return freed.then_some(()).ok_or(FreeError::NotAllocated);
    }
    free_elsewhere(arena, slot, address)
}

/// Frees a block that is not in one of this thread's spans.
fn free_elsewhere(arena: Arena, slot: &Slot, address: usize) -> Result<(), FreeError> {
    match locate(arena, address)? {
        Located::Block {
            span, start, place, ..
        } => {
            let overlooked = cfg!(shmkit_planted = "allocator") && span.class() >= 8;
            if span.is_free(place) && !overlooked {
                return Err(FreeError::NotAllocated);
            }
            free_other(arena, slot, span, start, place)
        }
        Located::Run { start, slices } => run::free(arena, slot, start, slices)
            .then_some(())
            .ok_or(FreeError::NotAllocated),
    }
}

fn free_other(
    arena: Arena,
    slot: &Slot,
    span: &'static Span,
    start: usize,
    place: Place,
) -> Result<(), FreeError> {
    let before = span.sets().free_remote(place);
    let freeing = &slot.watched.freeing;
    if freeing.load(Ordering::Relaxed) != 0 {
        // SeqCst, before the load below: if a thread that gives up the span is not seen there, it
        // sees that the block is not about to be freed again.
        freeing.store(0, Ordering::SeqCst);
    }
    if before & place.bit() != 0 {
        return Err(FreeError::NotAllocated);
    }
    // The present owner of the span is told: the previous one may have left.
    let State::Span { owner } = slice::state(arena.tag(start).load(Ordering::SeqCst)) else {
        return Ok(());
    };
    if owner.is_nobody() {
        cache::note_orphan(arena, slot, start);
    } else if before == 0
        && let Some(owner) = arena.owner_slot(owner)
    {
        bitmap::tell(&owner.inbox.freed_hints, 1 << span.class());
    }
    Ok(())
}

/// Names, in the slot's `freeing` word, the block of a container that is about to be freed for
/// good, so that a death on the way neither leaks it nor frees it twice: until the word is cleared,
/// recovery frees what it names. Whatever others can see of the free comes after this store: those
/// stores release.
#[inline]
pub(crate) fn about_to_free(slot: &Slot, address: u64) {
    slot.watched.freeing.store(address, Ordering::Release);
    compiler_fence(Ordering::SeqCst);
}

/// Frees a block that the `freeing` word names.
pub(crate) fn free_named(arena: Arena, slot: &Slot, address: usize) -> Result<(), FreeError> {
    let clear = || slot.watched.freeing.store(0, Ordering::Release);
    let freed = free_with(arena, slot, address, clear);
    clear();
    freed
}

/// Frees a block whose free completes what the slot's intent is about: the `freeing` word names it
/// in place of the intent.
pub(crate) fn close_and_free(arena: Arena, slot: &Slot, block: u64) {
    about_to_free(slot, block);
    slot.intent.close();
    // A block that cannot be freed was not one: there is nobody to tell.
    let _ = free_named(arena, slot, block as usize);
}

/// Completes what the `freeing` word of a dead slot names. The caller holds the slot's life word.
pub(crate) fn finish_freeing(arena: Arena, slot: &Slot, owner: Tag) {
    let address = slot.watched.freeing.load(Ordering::SeqCst) as usize;
    if address != 0 {
        release_for(arena, owner, address);
        slot.watched.freeing.store(0, Ordering::SeqCst);
    }
}

/// Frees a block on behalf of a dead owner. Can be repeated as long as nobody hands the block out:
/// while a `freeing` word names it, or its span belongs to the dead owner.
pub(crate) fn release_for(arena: Arena, owner: Tag, address: usize) {
    match locate(arena, address) {
        Ok(Located::Block { span, place, .. }) => {
            if !span.is_free(place) {
                span.sets().free_remote(place);
            }
        }
        Ok(Located::Run { start, slices }) => {
            let claimed = slice::claimed_tag(slice::DIRTY, owner);
            // A run that is claimed is found and freed by the scan of the tags.
            let _ = arena.tag(start).compare_exchange(
                slice::run_tag(slices),
                claimed,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
        Err(_) => {}
    }
}

/// The size in bytes of the block at an address.
pub(crate) fn usable_size(arena: Arena, address: usize) -> Result<usize, FreeError> {
    match locate(arena, address)? {
        Located::Block { span, place, .. } if span.is_free(place) => Err(FreeError::NotAllocated),
        Located::Block { span, .. } => usable_of(arena, address, span.block_size()),
        Located::Run { slices, .. } => usable_of(arena, address, slices * SLICE),
    }
}

fn usable_of(arena: Arena, address: usize, bytes: usize) -> Result<usize, FreeError> {
    if guard::is_on(arena) {
        let block = Guarded::at(arena, address, bytes).ok_or(FreeError::NotAllocated)?;
        return guard::usable_size(block);
    }
    Ok(bytes)
}
