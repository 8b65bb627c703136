//! More slices, and memory given back.
//!
//! The pool's maximum is mapped from the start; growing commits a piece of each table and of the
//! data, then raises the watermark, which everybody reads. Nobody remaps anything.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before the watermark rises | committed memory that nobody uses | the next growth commits it again |
//! | after, before the hints are set | free slices without a hint | recovery sets the hints |
//!
//! Two threads that grow the pool at once commit the same memory; the watermark rises to the higher
//! of the two. So nobody can give back what is beyond it, and growth that cannot be had is not
//! begun: the space left in the file system is asked for first, not counting what is committed
//! already. If others take some of it meanwhile, a thread that is refused leaves what a killed one
//! does.

use super::AllocError;
use super::{kept, slice};
use crate::layout::arena::{
    Arena, DATA, FREE_HINTS, HEADER_SIZE, NAMES, OBJECTS, PROCESSES, SLICE, SLOTS, SPANS, TAGS,
    TYPES, TablePlace,
};
use crate::layout::local;
use crate::participants::recovery;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::clock;
use crate::sys::memory::{self, CommitError};

/// The least by which a pool grows if it may, in slices: 4 MiB.
const LEAST: usize = (4 << 20) / SLICE;
/// The first step of a small pool comes in two pieces, since many pools stay small; the first piece
/// is 1 MiB.
const FIRST: usize = (1 << 20) / SLICE;
/// The most that it grows beyond what was requested: 64 MiB.
const MOST: usize = (64 << 20) / SLICE;
/// The file may not become that long; but a shorter one may suffice.
const TOO_LONG: CommitError = CommitError::System(rustix::io::Errno::FBIG.raw_os_error());
/// Milliseconds between two rounds of giving memory back: free memory goes back after one to two
/// times this, if somebody allocates or frees meanwhile.
const APART: u64 = 500;

/// Claims slices, growing the pool if it must. The first is at a multiple of `preferred` slices if
/// such slices are free, otherwise at a multiple of `align`.
pub(crate) fn claim(
    arena: Arena,
    slot: &Slot,
    count: usize,
    preferred: usize,
    align: usize,
) -> Result<usize, AllocError> {
    let me = slot.tag();
    purge_now_and_then(arena, slot);
    kept::missed(arena, slot);
    let mut found = slice::claim(arena, me, count, preferred);
    if matches!(found, Ok(None)) && kept::release_if_any(arena, me) {
        found = slice::claim(arena, me, count, preferred);
    }
    match found {
        Ok(Some(start)) => return Ok(start),
        // Memory that the dead have is not given back for others before they are recovered.
        Ok(None) | Err(CommitError::Full | CommitError::MemoryLimit { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // What the dead had is tried before memory from the kernel.
    recovery::poll(arena);
    recovery::reap_what_was_left(arena);
    // Free slices without memory are found, too: they get the memory of free slices elsewhere.
    let claim = || or_purge(arena, slot, || slice::claim(arena, me, count, align));
    for attempt in 0.. {
        if let Some(start) = claim()? {
            return Ok(start);
        }
        match grow(arena, slot, count, count + preferred - 1) {
            Ok(()) if attempt < 64 => {}
            Ok(()) => break,
            Err(error) => {
                recovery::let_others_free(arena);
                // The last resort: hints may have died with their setter, and there may be room of
                // which only the tags know.
                let released = kept::release_all(arena, me);
                rebuild_hints(arena);
                if let Some(start) = claim()? {
                    return Ok(start);
                }
                // What is free at the end now counts for a growth, too.
                if !released || attempt >= 64 {
                    return Err(error);
                }
            }
        }
    }
    Err(AllocError::PoolFull)
}

/// Claims exactly these slices; grows the pool first if they reach beyond its end. False if they
/// are not free, or there is no memory.
pub(crate) fn claim_at(arena: Arena, slot: &Slot, start: usize, count: usize) -> bool {
    purge_now_and_then(arena, slot);
    let end = arena.slices();
    let is_free = |slice: usize| {
        kept::release(arena, slot.tag(), slice);
        let tag = arena.tag(slice).load(Ordering::Relaxed);
        matches!(slice::state(tag), slice::State::Free { .. })
    };
    // Not tried if it would be in vain: claiming and unclaiming disturbs others.
    let free = (start..end.min(start + count)).all(is_free);
    let missing = (start + count).saturating_sub(end);
    if !free || (missing > 0 && grow(arena, slot, missing, missing).is_err()) {
        return false;
    }
    slice::claim_these(arena, slot.tag(), start, count)
}

/// The most slices that could be claimed at once: free ones, and those by which the pool can grow.
pub(crate) fn most_free(arena: Arena) -> usize {
    let slices = arena.slices();
    let is_free = |&index: &usize| {
        let tag = arena.tag(index).load(Ordering::Relaxed);
        matches!(slice::state(tag), slice::State::Free { .. })
    };
    let free = (0..slices).filter(is_free).count();
    let most = arena.header().max_slices.load(Ordering::Relaxed) as usize;
    free + most.saturating_sub(slices)
}

/// Grows the pool by at least `wanted` slices, or, if that suffices for `count`, by as many as it
/// can.
#[cold]
fn grow(arena: Arena, slot: &Slot, count: usize, wanted: usize) -> Result<(), AllocError> {
    let from = arena.slices();
    let room = arena.header().max_slices.load(Ordering::Relaxed) as usize - from;
    // What is free at the end counts, too: the new slices come right behind it.
    let free_at_end = (0..from)
        .rev()
        .take_while(|&s| {
            let tag = arena.tag(s).load(Ordering::Relaxed);
            matches!(slice::state(tag), slice::State::Free { .. })
        })
        .take(count)
        .count();
    if room == 0 || count > room + free_at_end {
        return Err(AllocError::PoolFull);
    }
    let (count, wanted) = (count.min(room), wanted.min(room));
    // An eighth more, so that the number of steps stays small as the pool gets large.
    // Private memory is only address space until it is touched: a few large steps cost less.
    let private = local::of(arena).is_private();
    let least = match from {
        _ if private => MOST,
        ..=FIRST => FIRST,
        _ if from <= 2 * FIRST => LEAST - FIRST,
        _ => LEAST,
    };
    let generous = wanted.max((from / 8).clamp(least, MOST)).min(room);
    let grown = match grow_by(arena, from, generous) {
        Err(CommitError::Full | CommitError::MemoryLimit { .. } | TOO_LONG) => {
            or_purge(arena, slot, || grow_by(arena, from, count)).map(|()| count)
        }
        other => other.map(|()| generous),
    }?;
    // A caller needs it: it is about to be used.
    slice::populate(arena, from, grown);
    Ok(())
}

/// Commits the slices `from..from + count` with their tables and raises the watermark.
pub(crate) fn grow_by(arena: Arena, from: usize, count: usize) -> Result<(), CommitError> {
    let bytes = count * (SLICE + SPANS.entry + TAGS.entry);
    arena.check_limit(bytes as u64, || left_behind(arena))?;
    extend(arena, from, count)
}

/// Bytes of memory that a pool's file has and the pool does not know of: a thread has died while it
/// grew the pool, or is growing it now. They are where the next growth needs them.
#[cold]
fn left_behind(arena: Arena) -> u64 {
    let marks = &arena.header().watermarks;
    let tables = [
        (TYPES, &marks.types),
        (NAMES, &marks.names),
        (PROCESSES, &marks.processes),
        (SLOTS, &marks.slots),
        (OBJECTS, &marks.objects),
    ];
    let tables = tables.map(|(table, mark)| {
        let count = mark.load(Ordering::Acquire) as usize;
        count.min(table.max) * table.entry
    });
    let rows = arena.processes().map(|(index, _)| arena.held(index) / 8);
    let slices = committed_tables(arena).into_iter();
    let slices = slices.chain(committed_data(arena)).map(|(_, len)| len);
    let known: usize = slices.chain(tables).chain(rows).sum();
    let used = local::of(arena).file().get().map_or(0, memory::used_by);
    used.saturating_sub((HEADER_SIZE + known) as u64)
}

/// As [`grow_by`], without asking whether there is enough memory.
pub(crate) fn extend(arena: Arena, from: usize, count: usize) -> Result<(), CommitError> {
    for table in [TAGS, SPANS, DATA] {
        arena.commit(table.offset + from * table.entry, count * table.entry)?;
    }
    let words = from / 64..(from + count).div_ceil(64);
    arena.commit(FREE_HINTS.offset + words.start * 8, words.len() * 8)?;
    arena
        .header()
        .watermarks
        .slices
        .fetch_max((from + count) as u64, Ordering::AcqRel);
    slice::hint_free(arena, from, count);
    Ok(())
}

/// The ranges of a pool's file that are committed for the tables about its slices: offset and
/// length.
pub(crate) fn committed_tables(arena: Arena) -> [(usize, usize); 3] {
    let slices = arena.slices();
    let [tags, spans] = [TAGS, SPANS].map(|table| (table.offset, slices * table.entry));
    [tags, spans, (FREE_HINTS.offset, slices.div_ceil(64) * 8)]
}

/// The ranges of those slices that have memory.
pub(crate) fn committed_data(arena: Arena) -> impl Iterator<Item = (usize, usize)> {
    let slices = arena.slices();
    let has_memory =
        move |&slice: &usize| slice::has_memory(arena.tag(slice).load(Ordering::Acquire));
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = (next..slices).find(has_memory)?;
        let end = (start..slices).find(|slice| !has_memory(slice));
        next = end.unwrap_or(slices);
        Some((DATA.offset + start * SLICE, (next - start) * SLICE))
    })
}

/// Sets the hint of every free slice.
#[cold]
fn rebuild_hints(arena: Arena) {
    for index in 0..arena.slices() {
        let tag = arena.tag(index).load(Ordering::Acquire);
        if matches!(slice::state(tag), slice::State::Free { .. }) {
            slice::hint_free(arena, index, 1);
        }
    }
}

/// Gives back memory that has been free for a while, if some time has passed since the last look.
pub(crate) fn purge_now_and_then(arena: Arena, slot: &Slot) {
    let header = arena.header();
    if header.dirty.load(Ordering::Relaxed) == 0 {
        return;
    }
    let now = clock::coarse_millis();
    let last = header.purged_at.load(Ordering::Relaxed);
    if now >= last.saturating_add(APART)
        && header
            .purged_at
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    {
        // Cleared before the look: a free from here on sets it again.
        header.dirty.store(0, Ordering::Relaxed);
        if slice::age(arena, slot.tag(), false).1 {
            header.dirty.store(1, Ordering::Relaxed);
        }
    }
}

/// Raises a table's watermark. If there is no other memory for it, free slices give theirs,
/// including those that the dead had.
pub(crate) fn raise(
    arena: Arena,
    slot: &Slot,
    table: TablePlace,
    watermark: &AtomicU64,
    count: usize,
) -> Result<(), CommitError> {
    or_purge(arena, slot, || arena.raise(table, watermark, count))
}

/// Runs `commit`, which commits memory; if there is none, gives back that of free slices, including
/// those that the dead had, and runs it again.
pub(crate) fn or_purge<T>(
    arena: Arena,
    slot: &Slot,
    commit: impl Fn() -> Result<T, CommitError>,
) -> Result<T, CommitError> {
    let outcome = commit();
    if !matches!(
        outcome,
        Err(CommitError::Full | CommitError::MemoryLimit { .. })
    ) {
        return outcome;
    }
    recovery::poll(arena);
    if purge(arena, slot) == 0 {
        return outcome;
    }
    commit()
}

/// Gives back the memory of all free slices; returns how many bytes.
pub(crate) fn purge(arena: Arena, slot: &Slot) -> usize {
    arena.header().dirty.store(0, Ordering::Relaxed);
    slice::age(arena, slot.tag(), true).0
}

#[cfg(test)]
mod tests {
    use std::alloc::Layout;
    use std::ptr::NonNull;

    use super::*;
    use crate::Pool;
    use crate::participants::thread;

    fn run(pool: &Pool, slices: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(slices * SLICE, 1).unwrap();
        pool.allocate(layout).ok().map(NonNull::cast)
    }

    fn free(pool: &Pool, run: NonNull<u8>) {
        // SAFETY: a run that the test has allocated, and that nobody uses.
        unsafe { pool.deallocate(run) }.unwrap();
    }

    /// A pool that is entirely kept as a run, of which no hint tells, and that can grow by some
    /// slices.
    #[test]
    fn what_is_released_before_an_error_counts_for_a_growth() {
        let pool = Pool::builder().create().unwrap();
        let (header, all) = (pool.0.header(), pool.0.slices());
        header.purged_at.store(u64::MAX, Ordering::Relaxed);
        free(&pool, run(&pool, all).unwrap());
        header.kept.store(0, Ordering::Relaxed);
        header.max_slices.store(all as u64 + 10, Ordering::Relaxed);
        assert!(run(&pool, all + 5).is_some());
    }

    /// What was freed before the first look goes back at the second one, although nothing is freed
    /// in between.
    #[test]
    fn who_looks_says_that_more_is_to_be_given_back() {
        let pool = Pool::builder().create().unwrap();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let block = run(&pool, 3).unwrap();
        let start = arena.slice_of(block.addr().get()).unwrap();
        let look = || {
            arena.header().purged_at.store(0, Ordering::Relaxed);
            purge_now_and_then(arena, slot);
            arena.tag(start).load(Ordering::Relaxed)
        };
        arena.header().purged_at.store(u64::MAX, Ordering::Relaxed);
        free(&pool, block);
        assert!(kept::release(arena, slot.tag(), start));
        assert_eq!([look(), look()], [slice::AGED, slice::HOLE]);
    }
}
