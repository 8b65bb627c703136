//! Limbo: blocks that were unlinked from a container and may still be looked at.
//!
//! A block that readers find by following a word cannot be freed when it is unlinked: somebody may
//! have read the word just before. It is *retired* instead. Each slot has a list of the blocks that
//! its thread has retired, oldest first, chained through the two words with which every such block
//! begins. Now and then the thread *collects*: it stamps what is new (one stamp for all of it), and
//! frees, from the front, the blocks whose stamps are older than every pin that is shown
//! (`participants::epoch`).
//!
//! | first word of a block | meaning |
//! |-----------------------|---------|
//! | 0 | linked, or not linked yet; nobody has overwritten the word that names it |
//! | [`END`] | noted: it was linked once (see `change`); or it is the last one of a list |
//! | an address | in a list; this is the address of the next one |
//!
//! The second word belongs to the owner until the block is retired, and is then 0 until the block
//! is stamped.
//!
//! | step | killed after it leaves | and then |
//! |------|------------------------|----------|
//! | the block's own words are set | what was unlinked, named by the intent | recovery retires it |
//! | one store links it at the end | it is in the list | the tail, a hint, and the counts are found again |
//! | collect: a stamp is stored | older ones stamped, others not | recovery stamps them |
//! | collect: `freeing` names the head | the same | recovery takes it off, then frees it |
//! | collect: the head is the next one | only `freeing` names it | recovery frees it |
//!
//! A collection while the thread itself is pinned cannot free what its own pin holds back: this is noted, and the
//! collection is repeated when the pin ends ([`collect_after_look`]). If a thread leaves such a note when it dies,
//! it costs the slot's next thread a collection, or an attempt to find room.
//!
//! Invariants
//! 1. A list is accessed only by its slot's thread, or by the holder of the life word.
//! 2. The first word of a block is never 0 again once the block was noted or retired.
//! 3. The tail is 0, or in the list. It becomes 0 before the last block leaves.
//! 4. An intent retires one block at a time, and nothing is collected under it: so the list's last
//!    block says whether it has done so.
//!
//! A list outlives its thread: it stays in the slot for the slot's next thread, and anybody may
//! [`reap`] it by being that next thread for a moment. So recovery frees nothing, and there is only
//! one way to free. Source of the scheme: Fraser, *Practical lock-freedom*, 2004.

use crate::allocator::check::{CheckReport, Depth};
use crate::allocator::stats::RetiredStats;
use crate::allocator::{AllocError, block};
use crate::layout::arena::Arena;
use crate::participants::table::{Limbo, Slot, SlotPhase};
use crate::participants::{epoch, recovery, thread};
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

/// A first word that leads to no other block; see the table above.
pub(crate) const END: u64 = 1;

/// A list is collected after this many blocks.
const BATCH: u64 = 64;
/// Or after this many bytes.
const BATCH_BYTES: u64 = 256 << 10;

/// What a slot notes in `collect_again`: that a collection is worthwhile when the pin ends; or that
/// it was.
const AGAIN: u64 = 1;
const FREED: u64 = 2;

/// What every block that may be retired begins with.
#[repr(C)]
pub(crate) struct Retirable {
    /// See the module's table.
    pub(crate) next: AtomicU64,
    /// Belongs to the owner until the block is retired; then the stamp, or 0.
    pub(crate) stamp: AtomicU64,
}

/// The first words of a block; `None` if no block can be at that address.
#[inline]
pub(crate) fn header(arena: Arena, block: u64) -> Option<&'static Retirable> {
    let inside = block.is_multiple_of(16) && arena.slice_of(block as usize).is_some();
    // SAFETY: in committed data of the pool, which stays mapped; two atomic words.
    inside.then(|| unsafe { &*std::ptr::with_exposed_provenance::<Retirable>(block as usize) })
}

/// What comes after a block in a list; 0 for nothing.
fn after(arena: Arena, block: u64) -> u64 {
    match header(arena, block).map_or(END, |header| header.next.load(Ordering::Acquire)) {
        END => 0,
        next => next,
    }
}

/// The last block of a list; 0 if it is empty.
fn last(arena: Arena, list: &Limbo) -> u64 {
    let tail = list.tail.load(Ordering::Relaxed);
    let mut at = if tail == 0 {
        list.head.load(Ordering::Relaxed)
    } else {
        tail
    };
    for _ in 0..most(arena) {
        match after(arena, at) {
            0 => return at,
            next => at = next,
        }
    }
    // The list is garbage and goes in a circle: the blocks that were in it are not found any more.
    0
}

/// More blocks than a valid list has.
pub(crate) fn most(arena: Arena) -> usize {
    arena.slices() * crate::allocator::size_class::MAX_BLOCKS
}

/// Puts a block of `added` bytes, which was unlinked, into the slot's list.
///
/// By invariant 4 the caller has an intent open that names the block, and closes it before
/// it [collects](collect_now_and_then).
#[inline]
pub(crate) fn retire(arena: Arena, slot: &Slot, block: u64, added: usize) {
    let Some(own) = header(arena, block) else {
        return;
    };
    let list = &slot.limbo;
    own.stamp.store(0, Ordering::Relaxed);
    own.next.store(END, Ordering::Release);
    compiler_fence(Ordering::SeqCst);
    match last(arena, list) {
        0 => list.head.store(block, Ordering::Release),
        last => {
            if let Some(last) = header(arena, last) {
                last.next.store(block, Ordering::Release);
            }
        }
    }
    compiler_fence(Ordering::SeqCst);
    list.tail.store(block, Ordering::Relaxed);
    let fresh = list.fresh.load(Ordering::Relaxed);
    if fresh == 0 {
        list.fresh_from.store(block, Ordering::Relaxed);
    }
    list.fresh.store(fresh.wrapping_add(1), Ordering::Relaxed);
    let bytes = list.fresh_bytes.load(Ordering::Relaxed);
    let bytes = bytes.wrapping_add(added as u64);
    list.fresh_bytes.store(bytes, Ordering::Relaxed);
}

/// The same for a dead thread, which may have done it already.
pub(crate) fn retire_once(arena: Arena, slot: &Slot, block: u64, added: usize) {
    if last(arena, &slot.limbo) != block {
        retire(arena, slot, block, added);
    }
}

/// Collects if enough was retired since the last time.
#[inline]
pub(crate) fn collect_now_and_then(arena: Arena, slot: &Slot) {
    let list = &slot.limbo;
    if list.fresh.load(Ordering::Relaxed) >= BATCH
        || list.fresh_bytes.load(Ordering::Relaxed) >= BATCH_BYTES
    {
        collect(arena, slot);
        if arena.header().limbo_left.is_told() {
            reap_others(arena);
        }
    }
}

/// Of the blocks that the slot has retired, frees those that nobody can look at any more. The slot
/// is this thread's.
#[cold]
pub(crate) fn collect(arena: Arena, slot: &Slot) {
    let list = &slot.limbo;
    if list.head.load(Ordering::Relaxed) == 0 {
        return;
    }
    stamp_fresh(arena, list);
    free_past(arena, slot);
    if list.head.load(Ordering::Relaxed) != 0 {
        // Perhaps the remaining pins are those of dead threads.
        recovery::settle_all(arena);
        free_past(arena, slot);
    }
    let left = list.bytes.load(Ordering::Relaxed);
    list.held.store(left, Ordering::Relaxed);
    // This thread's own pin may be what holds the rest back.
    let looks = slot.pin_depth.load(Ordering::Relaxed) != 0;
    slot.collect_again.set(match looks && left != 0 {
        true => AGAIN,
        false => 0,
    });
}

/// Collects once more, if this thread, which has ended a pin, has collected under it and was held back by it.
#[inline]
pub(crate) fn collect_after_look(arena: Arena, slot: &Slot) {
    if slot.collect_again.get() != 0 {
        collect_unless_looking(arena, slot);
    }
}

#[cold]
fn collect_unless_looking(arena: Arena, slot: &Slot) {
    if slot.collect_again.get() == FREED {
        slot.collect_again.set(0);
    } else if slot.pin_depth.load(Ordering::Relaxed) == 0
        && slot.intent.op.load(Ordering::Relaxed) == 0
    {
        let before = slot.limbo.head.load(Ordering::Relaxed);
        collect(arena, slot);
        if slot.limbo.head.load(Ordering::Relaxed) != before {
            slot.collect_again.set(FREED);
        }
    }
}

/// Stamps everything that is not stamped yet.
fn stamp_fresh(arena: Arena, list: &Limbo) {
    let stamp = epoch::stamp(arena);
    let mut block = list.fresh_from.load(Ordering::Relaxed);
    let mut bytes = list.bytes.load(Ordering::Relaxed);
    let mut blocks = list.blocks.load(Ordering::Relaxed);
    for _ in 0..most(arena) {
        let Some(own) = (block != 0).then(|| header(arena, block)).flatten() else {
            break;
        };
        own.stamp.store(stamp, Ordering::Release);
        blocks = blocks.wrapping_add(1);
        bytes = bytes.wrapping_add(size(arena, block));
        block = after(arena, block);
    }
    list.blocks.store(blocks, Ordering::Relaxed);
    list.bytes.store(bytes, Ordering::Relaxed);
    list.fresh.store(0, Ordering::Relaxed);
    list.fresh_bytes.store(0, Ordering::Relaxed);
    list.fresh_from.store(0, Ordering::Relaxed);
}

fn size(arena: Arena, block: u64) -> u64 {
    block::usable_size(arena, block as usize).map_or(0, |size| size as u64)
}

/// Frees, from the front, what nobody can look at any more.
fn free_past(arena: Arena, slot: &Slot) {
    let list = &slot.limbo;
    let oldest = epoch::oldest(arena);
    for _ in 0..most(arena) {
        let head = list.head.load(Ordering::Relaxed);
        let Some(own) = header(arena, head) else {
            return;
        };
        let stamp = own.stamp.load(Ordering::Relaxed);
        if stamp == 0 || stamp >= oldest {
            return;
        }
        let next = after(arena, head);
        if next == 0 {
            // By invariant 3.
            list.tail.store(0, Ordering::Release);
        }
        let bytes = list.bytes.load(Ordering::Relaxed);
        let blocks = list.blocks.load(Ordering::Relaxed);
        list.bytes
            .store(bytes.saturating_sub(size(arena, head)), Ordering::Relaxed);
        list.blocks
            .store(blocks.saturating_sub(1), Ordering::Relaxed);
        block::about_to_free(slot, head);
        list.head.store(next, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        // If the block cannot be freed, it was not a block; there is nobody to report this to.
        let _ = block::free_named(arena, slot, head as usize);
    }
}

/// Takes the block that a dead slot's thread was freeing off the slot's list. Called before that
/// block is freed; repeatable.
pub(crate) fn take_off(arena: Arena, slot: &Slot) {
    let freeing = slot.watched.freeing.load(Ordering::SeqCst);
    let list = &slot.limbo;
    if freeing != 0 && list.head.load(Ordering::Acquire) == freeing {
        list.head.store(after(arena, freeing), Ordering::Release);
    }
}

/// Puts the hints and counts of a dead slot's list right. Repeatable.
pub(crate) fn recount(arena: Arena, slot: &Slot) {
    let list = &slot.limbo;
    list.tail.store(0, Ordering::Relaxed);
    let head = list.head.load(Ordering::Acquire);
    for count in [&list.fresh, &list.fresh_bytes, &list.blocks, &list.bytes] {
        count.store(0, Ordering::Relaxed);
    }
    list.fresh_from.store(head, Ordering::Relaxed);
    if head != 0 {
        stamp_fresh(arena, list);
    }
    // The slot's thread may have been reaping, and may have cleared this.
    arena.header().limbo_left.tell();
}

/// Runs `attempt`, which needs memory and opens an intent of its own. If there is no memory, frees what
/// the dead held and what is in limbo, and runs it once more. (With the intent open, none of that could
/// be freed.)
#[inline]
pub(crate) fn or_reap<R, E: Copy + Into<AllocError>>(
    arena: Arena,
    attempt: impl Fn() -> Result<R, E>,
) -> Result<R, E> {
    match attempt() {
        Err(error) if error.into().is_full() => {
            make_room(arena);
            attempt()
        }
        other => other,
    }
}

/// Frees what nobody holds, and what nobody looks at any more. True if this includes something that
/// this thread has retired, or if such a thing was freed when its last pin ended.
#[cold]
pub(crate) fn make_room(arena: Arena) -> bool {
    let slot = thread::slot(arena);
    let oldest = || slot.map_or(0, |slot| slot.limbo.head.load(Ordering::Relaxed));
    let freed = slot.is_ok_and(|slot| slot.collect_again.get() == FREED);
    let before = oldest();
    recovery::poll(arena);
    recovery::reap(arena);
    reap(arena);
    if let Ok(slot) = slot {
        slot.collect_again.set(0);
    }
    freed || before != 0 && before != oldest()
}

/// Collects what this thread has retired, and what threads that are gone have left.
#[cold]
pub(crate) fn reap(arena: Arena) {
    if let Ok(slot) = thread::slot(arena) {
        collect(arena, slot);
    }
    reap_left(arena);
}

/// Collects what threads that are gone have left.
#[inline]
pub(crate) fn reap_left(arena: Arena) {
    if arena.header().limbo_left.is_told() {
        reap_others(arena);
    }
}

/// For each slot that has a list but no thread, becomes its next thread for a moment.
#[cold]
fn reap_others(arena: Arena) {
    if !arena.header().limbo_left.take() {
        return;
    }
    for (index, slot) in arena.slots() {
        if slot.limbo.head.load(Ordering::Relaxed) == 0 || slot.state().phase != SlotPhase::Free {
            continue;
        }
        match thread::borrow(arena, index) {
            Some(slot) => {
                collect(arena, slot);
                thread::give_back(arena, slot);
            }
            None => recovery::note_retired(arena, slot),
        }
    }
}

/// Counts what is in limbo, at roughly one moment.
pub(crate) fn count(arena: Arena) -> RetiredStats {
    let mut sum = RetiredStats::default();
    for (_, slot) in arena.slots() {
        let list = &slot.limbo;
        if list.head.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed) as usize;
        // In a damaged pool these may be any numbers.
        let add = |sum: &mut usize, word| *sum = sum.saturating_add(read(word));
        add(&mut sum.blocks, &list.blocks);
        add(&mut sum.blocks, &list.fresh);
        add(&mut sum.bytes, &list.bytes);
        add(&mut sum.bytes, &list.fresh_bytes);
        let held = read(&list.held).min(read(&list.bytes));
        sum.held_back = sum.held_back.saturating_add(held);
    }
    sum
}

/// Checks that every list is a valid list of allocated blocks.
pub(crate) fn check(arena: Arena, depth: Depth, report: &mut CheckReport) {
    if depth != Depth::Quiescent {
        return;
    }
    // No list is longer than there are blocks.
    let most = most(arena);
    for (index, slot) in arena.slots() {
        let mut block = slot.limbo.head.load(Ordering::Acquire);
        let mut length = 0;
        while block != 0 {
            length += 1;
            if length > most {
                report.problem(format_args!("slot {index} has a limbo without end"));
                break;
            }
            if block::usable_size(arena, block as usize).is_err() {
                report.problem(format_args!(
                    "slot {index} has {block:#x} in limbo, which is no block"
                ));
                break;
            }
            block = after(arena, block);
        }
    }
}
