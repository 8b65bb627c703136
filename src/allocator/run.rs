//! Blocks of whole slices: everything above 32 KiB, and alignments above a slice.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before the head is tagged | claimed slices and tails | recovery frees them |
//! | after | an allocated run | only the dead thread knew of it, unless an intent names it |
//! | in `free`, before the head is claimed | an allocated run | not freed; a `freeing` word says so |
//! | after | a claimed head and some tails, or a kept run | recovery frees the first; see `kept` |
//! | in `extend`, before the head's length changes | claimed slices behind the run | recovery frees them |
//! | after | claimed slices within the run | recovery makes them tails, or the thread that frees or extends the run |

use std::alloc::Layout;

use super::AllocError;
use super::{cache, grow, kept, slice};
use crate::layout::arena::{Arena, DATA, SLICE};
use crate::participants::table::Slot;
use crate::primitive::Ordering;

/// Runs of this size start at a multiple of it, so that huge pages can back them.
const HUGE: usize = 2 << 20;

/// Allocates a run. Before the run exists, `record` is told its address, and whether its memory was
/// never used, and so is zero.
#[cold]
pub(crate) fn allocate(
    arena: Arena,
    slot: &Slot,
    layout: Layout,
    record: impl FnOnce(usize, bool),
) -> Result<usize, AllocError> {
    if layout.size() > DATA.max * SLICE || layout.align() > 1 << 30 {
        return Err(AllocError::TooLarge);
    }
    let count = layout.size().div_ceil(SLICE).max(1);
    let align = (layout.align() / SLICE).max(1);
    if align == 1
        && let Some(start) = kept::take(arena, slot, count)
    {
        return Ok(finish(arena, start, count, false, record));
    }
    let preferred = if layout.size() >= HUGE {
        align.max(HUGE / SLICE)
    } else {
        align
    };
    let claim = || grow::claim(arena, slot, count, preferred, align);
    let start = match claim() {
        Err(error) if cache::give_back_empty(arena, slot, count, error) => claim()?,
        claimed => claimed?,
    };
    let clean = slice::is_clean(arena, start, count);
    slice::tag_tails(arena, start, count);
    Ok(finish(arena, start, count, clean, record))
}

/// Makes claimed slices whose tails are tagged a run; returns its address.
#[inline]
fn finish(
    arena: Arena,
    start: usize,
    count: usize,
    clean: bool,
    record: impl FnOnce(usize, bool),
) -> usize {
    let address = arena.slice_address(start);
    record(address, clean);
    let tag = slice::run_tag(count);
    arena.tag(start).store(tag, Ordering::Release);
    address
}

/// Makes a run of `count` slices one of `wanted` slices, which is more, where it lies. False if
/// that is not possible, or it is no longer such a run; then nothing has changed.
#[cold]
pub(crate) fn extend(arena: Arena, slot: &Slot, start: usize, count: usize, wanted: usize) -> bool {
    slice::finish_extension(arena, start, count);
    let (end, more) = (start + count, wanted - count);
    if !grow::claim_at(arena, slot, end, more) {
        return false;
    }
    let head = arena.tag(start);
    let (short, long) = (slice::run_tag(count), slice::run_tag(wanted));
    let extended = head.compare_exchange(short, long, Ordering::AcqRel, Ordering::Relaxed);
    if extended.is_err() {
        slice::unclaim(arena, end, more);
        return false;
    }
    slice::finish_extension(arena, start, wanted);
    true
}

/// Frees a run whose head has the tag `found`. False if it has another tag by now.
#[cold]
pub(crate) fn free(arena: Arena, slot: &Slot, start: usize, count: usize) -> bool {
    slice::finish_extension(arena, start, count);
    let claimed = slice::claimed_tag(slice::DIRTY, slot.tag());
    let head = arena.tag(start);
    if head
        .compare_exchange(
            slice::run_tag(count),
            claimed,
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .is_err()
    {
        return false;
    }
    // From here on, the claim is the record.
    slot.watched.freeing.store(0, Ordering::Release);
    if !kept::keep(arena, slot, start, count) {
        slice::release(arena, start, count);
    }
    grow::purge_now_and_then(arena, slot);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;
    use crate::participants::thread;

    /// Memory that was never used is zero, and reported as such. Memory that was used is not.
    #[test]
    fn memory_that_was_never_used_is_told() {
        let pool = Pool::builder().create().unwrap();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let layout = Layout::from_size_align(3 * SLICE, 1).unwrap();
        arena.header().purged_at.store(u64::MAX, Ordering::Relaxed);
        let told = || {
            let told = std::cell::Cell::new(None);
            let run = allocate(arena, slot, layout, |_, clean| told.set(Some(clean)));
            (arena.slice_of(run.unwrap()).unwrap(), told.get().unwrap())
        };
        let (start, clean) = told();
        assert!(clean);
        assert!(free(arena, slot, start, 3));
        assert_eq!(told(), (start, false), "kept");
        assert!(free(arena, slot, start, 3));
        assert!(kept::release_all(arena, slot.tag()));
        assert_eq!(told(), (start, false), "used");
    }
}
