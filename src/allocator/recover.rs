//! What an owner leaves behind becomes available to all: recovery does this for the dead, and a
//! thread that leaves does it for itself.
//!
//! A thread that leaves goes through its own lists: between two operations it has nothing else. For
//! the dead it is one walk over the tags, for any number of them, since their lists cannot be
//! relied on. Claimed slices of an owner are freed; what others freed of its spans is collected,
//! and the spans become nobody's, or go back if they are empty. Every step is done in the name of
//! one of these owners, so that a death in the middle leaves what the next walk finds again. A
//! thread that needs a span of the class, or frees the last block of one, takes it over.

use super::cache;
use super::slice::{self, State};
use super::span::Span;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::Ordering;
use crate::protocol::bitmap;

/// Releases all spans of a thread that leaves. The caller is that thread.
pub(crate) fn release_own(arena: Arena, slot: &Slot) {
    let owner = slot.tag();
    let mut orphans = 0;
    cache::take_all(arena, slot, |span| {
        if release_span(arena, owner, span) {
            orphans |= 1 << span.class();
        }
    });
    arena.header().orphans.fetch_or(orphans, Ordering::SeqCst);
}

/// Releases all slices that these dead have claimed and all spans that they own. The tags are in
/// the order of their slots, and the caller holds their life words.
pub(crate) fn release_all(arena: Arena, dead: &[Tag]) {
    let Some(&first) = dead.first() else { return };
    debug_assert!(dead.is_sorted_by_key(|tag| tag.slot()));
    // Neighbouring slices mostly belong to one owner.
    let mut last = (Tag::NOBODY, false);
    let mut is_dead = |owner: Tag| {
        if owner != last.0 {
            let place = dead.binary_search_by_key(&owner.slot(), |tag| tag.slot());
            last = (owner, place.is_ok_and(|place| dead[place] == owner));
        }
        last.1
    };
    let mut orphans = 0;
    for index in 0..arena.slices() {
        let tag = arena.tag(index);
        match slice::state(tag.load(Ordering::Acquire)) {
            State::Claimed { owner, .. } if is_dead(owner) => slice::abandon(arena, index),
            State::Span { owner } if is_dead(owner) => {
                orphans |= release_for_all(arena, owner, index);
            }
            // A thread that was to release it may have died after it cleared the hint.
            State::Kept { .. } => arena.header().kept.store(1, Ordering::Relaxed),
            // Nobody's spans, too: the thread that was to give it back, or to set the hint, may
            // have died.
            State::Span { owner } if owner.is_nobody() => {
                orphans |= if adopt_empty(arena, first, index) {
                    release_for_all(arena, first, index)
                } else {
                    1 << arena.span(index).class()
                };
            }
            State::Free { .. } => slice::hint_if_missing(arena, index),
            _ => {}
        }
    }
    arena.header().orphans.fetch_or(orphans, Ordering::SeqCst);
}

/// Makes a span of the owner's nobody's, or gives it back; returns the bit of its class in the
/// first case.
fn release_for_all(arena: Arena, owner: Tag, start: usize) -> u64 {
    let span = arena.span(start);
    // Read before it may belong to another owner.
    let class = span.class();
    u64::from(release_span(arena, owner, span)) << class
}

/// Makes an empty span that nobody owns the owner's. True if it did.
fn adopt_empty(arena: Arena, owner: Tag, start: usize) -> bool {
    arena.span(start).is_empty(arena) && cache::adopt(arena, owner, start).is_some()
}

/// Collects what others freed of a span of the owner's; gives the span back if it is empty, and
/// makes it nobody's otherwise. True if it is now nobody's.
fn release_span(arena: Arena, owner: Tag, span: &Span) -> bool {
    let start = span.slice(arena);
    loop {
        span.collect(arena);
        if span.is_empty(arena) {
            span.give_back(arena, owner);
            return false;
        }
        let nobodys = slice::span_tag(Tag::NOBODY);
        let emptied = bitmap::disown(arena.tag(start), nobodys, || span.is_empty(arena));
        if !emptied || cache::adopt(arena, owner, start).is_none() {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::Layout;
    use std::ptr::NonNull;

    use super::*;
    use crate::allocator::run;
    use crate::layout::arena::SLICE;
    use crate::participants::thread;
    use crate::pool::Scratch;

    /// All slices belong to a dead owner. A thread that looks for slices finds what recovery frees
    /// of them.
    #[test]
    fn what_is_abandoned_is_found_again() {
        let pool = Scratch::new();
        let (arena, all) = (pool.0, pool.0.slices());
        let (me, dead) = (Tag::new(1, 1), Tag::new(2, 1));
        assert!(slice::claim_these(arena, dead, 0, all));
        slice::tag_tails(arena, 0, all);
        slice::abandon(arena, 0);
        assert!(matches!(slice::claim(arena, me, all, 1), Ok(Some(0))));
    }

    /// A thread that extends a run first tags what the dead had claimed for it, even if there is no
    /// room for more: with slices of two dead owners in a row, a recovery of the second one first
    /// would not know that they belong to the run.
    #[test]
    fn an_extension_begins_with_the_end_of_the_one_before() {
        let pool = Scratch::new();
        let (arena, dead) = (pool.0, Tag::new(2, 1));
        let run = |slices| {
            let layout = Layout::from_size_align(slices * SLICE, 1).unwrap();
            let run = pool.allocate(layout).unwrap().addr().get();
            arena.slice_of(run).unwrap()
        };
        let start = run(3);
        assert!(slice::claim_these(arena, dead, start + 3, 2));
        arena.tag(start).store(slice::run_tag(5), Ordering::Release);
        assert_eq!(run(3), start + 5);
        let slot = thread::slot(arena).unwrap();
        assert!(!run::extend(arena, slot, start, 5, 6));
        let tags = [3, 4].map(|back| arena.tag(start + back).load(Ordering::Relaxed));
        assert_eq!(tags, [slice::tail_tag(3), slice::tail_tag(4)]);
    }

    /// The run is another one by the time at which its head would change: what was claimed behind
    /// it is free again.
    #[test]
    fn what_is_not_extended_claims_nothing() {
        let pool = Scratch::new();
        let arena = pool.0;
        let run = pool.allocate(Layout::from_size_align(3 * SLICE, 1).unwrap());
        let start = arena.slice_of(run.unwrap().addr().get()).unwrap();
        let slot = thread::slot(arena).unwrap();
        assert!(!run::extend(arena, slot, start, 4, 6));
        for back in [4, 5] {
            let tag = arena.tag(start + back).load(Ordering::Relaxed);
            let state = slice::state(tag);
            assert!(matches!(state, State::Free { .. }), "{back}: {state:?}");
        }
    }

    /// Free slices of which no hint tells, which are all that a pool has that cannot grow.
    fn all_without_hints() -> Scratch {
        let pool = Scratch::new();
        let (arena, all) = (pool.0, pool.0.slices());
        let header = arena.header();
        header.max_slices.store(all as u64, Ordering::Relaxed);
        assert!(slice::claim_these(arena, Tag::new(2, 1), 0, all));
        for index in 0..all {
            arena.tag(index).store(slice::DIRTY, Ordering::Release);
        }
        assert!(matches!(
            slice::claim(arena, Tag::new(1, 1), 1, 1),
            Ok(None)
        ));
        pool
    }

    /// The thread that was to set a hint has died: recovery sets it.
    #[test]
    fn recovery_sets_hints() {
        let pool = all_without_hints();
        let (arena, all) = (pool.0, pool.0.slices());
        release_all(arena, &[Tag::new(2, 1)]);
        let claimed = slice::claim(arena, Tag::new(1, 1), all, 1);
        assert!(matches!(claimed, Ok(Some(0))));
    }

    /// The thread that was to tell of what is free has died: of spans that nobody owns, and of a
    /// run that is kept.
    #[test]
    fn recovery_tells_of_what_is_free() {
        let pool = Scratch::new();
        let (arena, header) = (pool.0, pool.0.header());
        let allocate = |size| {
            let layout = Layout::from_size_align(size, 1).unwrap();
            pool.allocate(layout).unwrap().cast::<u8>()
        };
        let slice_of = |block: NonNull<u8>| arena.slice_of(block.addr().get()).unwrap();
        header.purged_at.store(u64::MAX, Ordering::Relaxed);
        // SAFETY: allocated just now.
        unsafe { pool.deallocate(allocate(50_000)) }.unwrap();
        let allocated = || [100, 200].map(|size| slice_of(allocate(size)));
        let [one, other] = std::thread::scope(|s| s.spawn(allocated).join().unwrap());
        // Frees the only block in the other span, as another thread does that then dies.
        let place = arena.span(other).place_of(0).unwrap();
        arena.span(other).sets().free_remote(place);
        for hints in [&header.kept, &header.orphans] {
            hints.store(0, Ordering::Relaxed);
        }

        release_all(arena, &[Tag::new(2, 1)]);
        assert_eq!(header.kept.load(Ordering::Relaxed), 1);
        let state = slice::state(arena.tag(other).load(Ordering::Relaxed));
        assert!(matches!(state, State::Free { .. }), "{state:?}");
        assert_eq!(slice_of(allocate(100)), one);
    }

    /// Before an allocation is refused, everything that is free is found.
    #[test]
    fn what_no_hint_tells_of_comes_before_an_error() {
        let pool = all_without_hints();
        let layout = Layout::from_size_align(pool.0.slices() * SLICE, 1).unwrap();
        pool.allocate(layout).unwrap();
    }

    /// A thread has died that was extending a run. Before a thread that has looked at it abandons
    /// what the dead one had claimed, the run is freed, and others have its slices.
    #[test]
    fn what_somebody_has_by_now_is_not_abandoned() {
        let pool = Scratch::new();
        let arena = pool.0;
        let (me, dead) = (Tag::new(1, 1), Tag::new(2, 1));
        let run = pool.allocate(Layout::from_size_align(3 * SLICE, 1).unwrap());
        let run = run.unwrap().cast();
        let start = arena.slice_of(run.addr().get()).unwrap();
        let claimed = start + 3;
        assert!(slice::claim_these(arena, dead, claimed, 2));
        arena.tag(start).store(slice::run_tag(5), Ordering::Release);
        let found = arena.tag(claimed).load(Ordering::Acquire);

        // SAFETY: allocated just now.
        unsafe { pool.deallocate(run) }.unwrap();
        pool.purge().unwrap();
        assert!(slice::claim_these(arena, me, claimed, 2));
        slice::tag_tails(arena, claimed, 2);
        arena
            .tag(claimed)
            .store(slice::run_tag(2), Ordering::Release);
        slice::abandon_found(arena, claimed, found);
        let tags = [claimed, claimed + 1].map(|index| arena.tag(index).load(Ordering::Relaxed));
        assert_eq!(tags, [slice::run_tag(2), slice::tail_tag(1)]);
    }
}
