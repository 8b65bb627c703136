//! An owner's spans of a class: the one that blocks come from, those with free blocks, the rest.
//!
//! | place   | meaning |
//! |---------|---------|
//! | CURRENT | blocks come from it |
//! | PARTIAL | in the list of spans with free blocks |
//! | FULL    | in the list of spans without, as far as the owner knows; oldest first |
//!
//! Lists link span records by slice index and are written by their owner alone; recovery does not
//! read them. Others who free blocks set a hint, a bit a class, in the owner's slot; the owner
//! walks its FULL list when it needs a block and the hint is set. A hint that died with its
//! setter is made good by the pool's `rescan` count, which each recovery raises and each owner
//! compares when it runs out.
//!
//! Where the next block comes from, in this order: `bits` of the current span; its `freed` words;
//! its `remote` words; a PARTIAL span; a FULL span with a hint; a span that nobody owns; new
//! slices; a larger pool.

use super::AllocError;
use super::size_class::{CLASSES, TABLE};
use super::slice::{self, State};
use super::span::Span;
use super::{grow, size_class};
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};

pub(crate) const CURRENT: u32 = 1;
pub(crate) const PARTIAL: u32 = 2;
pub(crate) const FULL: u32 = 3;

/// An owner's spans of one class, in its slot.
#[repr(C)]
pub(crate) struct Cache {
    /// The address of the current span's record; 0 for none.
    current: AtomicU64,
    partial: List,
    full: List,
}

/// First and last span, as slice index + 1.
#[repr(C)]
struct List {
    first: AtomicU32,
    last: AtomicU32,
}

const _: () = assert!(size_of::<Cache>() * CLASSES <= 8 * 192);

impl Slot {
    /// This thread's cache of a class.
    #[inline]
    pub(crate) fn cache(&self, class: usize) -> &Cache {
        assert!(class < CLASSES);
        // SAFETY: the area holds CLASSES caches (asserted above), is aligned as u64, and a cache
        // consists of atomics.
        unsafe { &*self.caches.as_ptr().cast::<Cache>().add(class) }
    }
}

impl List {
    fn push(&self, arena: Arena, span: &Span, place: u32) {
        let index = span.slice(arena) as u32 + 1;
        let last = self.last.load(Ordering::Relaxed);
        span.previous.store(last, Ordering::Relaxed);
        span.next.store(0, Ordering::Relaxed);
        match at(arena, last) {
            Some(last) => last.next.store(index, Ordering::Relaxed),
            None => self.first.store(index, Ordering::Relaxed),
        }
        self.last.store(index, Ordering::Relaxed);
        span.place.store(place, Ordering::Relaxed);
    }

    fn remove(&self, arena: Arena, span: &Span) {
        let next = span.next.load(Ordering::Relaxed);
        let previous = span.previous.load(Ordering::Relaxed);
        match at(arena, previous) {
            Some(other) => other.next.store(next, Ordering::Relaxed),
            None => self.first.store(next, Ordering::Relaxed),
        }
        match at(arena, next) {
            Some(other) => other.previous.store(previous, Ordering::Relaxed),
            None => self.last.store(previous, Ordering::Relaxed),
        }
        span.place.store(0, Ordering::Relaxed);
    }

    fn first(&self, arena: Arena) -> Option<&'static Span> {
        at(arena, self.first.load(Ordering::Relaxed))
    }
}

fn at(arena: Arena, link: u32) -> Option<&'static Span> {
    (link != 0).then(|| arena.span(link as usize - 1))
}

impl Cache {
    /// A block, if the current span has one at hand. `record` is told its address before it is
    /// taken.
    #[inline]
    pub(crate) fn take(&self, record: impl FnOnce(usize)) -> Option<usize> {
        let current = self.current.load(Ordering::Relaxed) as usize;
        if current == 0 {
            return None;
        }
        // SAFETY: `current` is 0 or the address of a span record of this pool, stored by this
        // thread; records stay mapped and consist of atomics.
        let span = unsafe { &*std::ptr::with_exposed_provenance::<Span>(current) };
        let mut address = 0;
        span.sets().take(|block| {
            let offset = u64::from(block) * u64::from(span.size.load(Ordering::Relaxed));
            address = (span.base.load(Ordering::Relaxed) + offset) as usize;
            record(address);
            span.live
                .store(span.live.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        })?;
        Some(address)
    }

    fn current(&self) -> Option<&'static Span> {
        let current = self.current.load(Ordering::Relaxed) as usize;
        // SAFETY: as in `take`.
        (current != 0).then(|| unsafe { &*std::ptr::with_exposed_provenance::<Span>(current) })
    }

    fn set_current(&self, span: &Span) {
        span.place.store(CURRENT, Ordering::Relaxed);
        self.current
            .store(std::ptr::from_ref(span).addr() as u64, Ordering::Relaxed);
    }

    /// Finds a span with blocks at hand and makes it the current one.
    #[cold]
    pub(crate) fn replenish(
        &self,
        arena: Arena,
        slot: &Slot,
        class: usize,
    ) -> Result<(), AllocError> {
        if let Some(span) = self.current() {
            if stocked(arena, span) {
                return Ok(());
            }
            self.current.store(0, Ordering::Relaxed);
            self.full.push(arena, span, FULL);
        }
        while let Some(span) = self.partial.first(arena) {
            self.partial.remove(arena, span);
            if stocked(arena, span) {
                self.set_current(span);
                return Ok(());
            }
            self.full.push(arena, span, FULL);
        }
        if let Some(span) = self.take_full(arena, slot, class) {
            self.set_current(span);
            return Ok(());
        }
        let span = match adopt_orphan(arena, slot, class) {
            Some(span) => span,
            None => self.new_span(arena, slot, class)?,
        };
        self.set_current(span);
        if stocked(arena, span) {
            Ok(())
        } else {
            self.replenish(arena, slot, class)
        }
    }

    /// A span of the FULL list that others have freed blocks of.
    fn take_full(&self, arena: Arena, slot: &Slot, class: usize) -> Option<&'static Span> {
        let hints = &slot.inbox.freed_hints;
        let rescan = arena.header().rescan.load(Ordering::Acquire);
        if slot.watched.rescan_seen.load(Ordering::Relaxed) != rescan {
            slot.watched.rescan_seen.store(rescan, Ordering::Relaxed);
            hints.store(u64::MAX, Ordering::SeqCst);
        }
        let hint = 1 << class;
        if hints.load(Ordering::Relaxed) & hint == 0 {
            return None;
        }
        // Cleared before the walk: what is freed from here on sets it again.
        hints.fetch_and(!hint, Ordering::SeqCst);
        let mut next = self.full.first.load(Ordering::Relaxed);
        while let Some(span) = at(arena, next) {
            next = span.next.load(Ordering::Relaxed);
            if stocked(arena, span) {
                hints.fetch_or(hint, Ordering::SeqCst);
                self.full.remove(arena, span);
                return Some(span);
            }
        }
        None
    }

    /// A span of new slices.
    ///
    /// Killed before the head is tagged: claimed slices, which recovery frees. After: an empty
    /// span of a dead owner.
    fn new_span(
        &self,
        arena: Arena,
        slot: &Slot,
        class: usize,
    ) -> Result<&'static Span, AllocError> {
        let shape = &TABLE[class];
        let first = self.full.first(arena).is_none();
        let slices = if first {
            shape.first_slices
        } else {
            shape.slices
        } as usize;
        let (start, slices) = match grow::claim(arena, slot, slices, 1, 1) {
            Ok(start) => (start, slices),
            // Too fragmented or too full for a large one: a small one may still fit.
            Err(AllocError::PoolFull | AllocError::NoMemory(_)) if !first => {
                let least = shape.first_slices as usize;
                (grow::claim(arena, slot, least, 1, 1)?, least)
            }
            Err(error) => return Err(error),
        };
        let span = arena.span(start);
        span.describe(arena, start, class, slices);
        span.place.store(0, Ordering::Relaxed);
        slice::tag_tails(arena, start, slices);
        arena
            .tag(start)
            .store(slice::span_tag(slot.tag()), Ordering::Release);
        Ok(span)
    }

    /// A block was taken back that makes its span worth a look: it was full, or it may be empty.
    #[cold]
    pub(crate) fn note_free(&self, arena: Arena, slot: &Slot, span: &Span) {
        if span.place.load(Ordering::Relaxed) == FULL {
            self.full.remove(arena, span);
            self.partial.push(arena, span, PARTIAL);
        }
        if span.place.load(Ordering::Relaxed) == PARTIAL
            && span.live.load(Ordering::Relaxed) == 0
            && span.is_empty(arena)
        {
            self.partial.remove(arena, span);
            span.give_back(arena, slot.tag());
            grow::purge_now_and_then(arena, slot);
        }
    }
}

/// Makes blocks of the span available in `bits`, from what was freed by its owner or by others.
/// False if all are handed out.
fn stocked(arena: Arena, span: &Span) -> bool {
    if span.bits.load(Ordering::Relaxed) != 0 || span.refill() {
        return true;
    }
    let collected = span.collect(arena) && span.refill();
    if collected {
        let live = span.blocks.load(Ordering::Relaxed) - span.count_free();
        span.live.store(live, Ordering::Relaxed);
    }
    collected
}

/// Takes a span that nobody owns. Its record is as recovery or a leaving owner left it: settled.
/// A damaged one stays nobody's.
pub(crate) fn adopt(arena: Arena, slot: &Slot, start: usize) -> Option<&'static Span> {
    if !arena.span(start).is_sane(arena, start) {
        return None;
    }
    arena
        .tag(start)
        .compare_exchange(
            slice::span_tag(Tag::NOBODY),
            slice::span_tag(slot.tag()),
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .ok()?;
    let span = arena.span(start);
    span.place.store(0, Ordering::Relaxed);
    let live = span
        .blocks
        .load(Ordering::Relaxed)
        .saturating_sub(span.count_free());
    span.live.store(live, Ordering::Relaxed);
    Some(span)
}

/// Puts an adopted span where its owner finds it.
pub(crate) fn keep(arena: Arena, slot: &Slot, span: &Span) {
    slot.cache(span.class()).full.push(arena, span, FULL);
}

/// A span of the class that nobody owns and that has free blocks.
#[cold]
fn adopt_orphan(arena: Arena, slot: &Slot, class: usize) -> Option<&'static Span> {
    let orphans = &arena.header().orphans;
    let hint = 1 << class;
    if orphans.load(Ordering::Relaxed) & hint == 0 {
        return None;
    }
    orphans.fetch_and(!hint, Ordering::SeqCst);
    for start in 0..arena.slices() {
        let State::Span { owner } = slice::state(arena.tag(start).load(Ordering::Acquire)) else {
            continue;
        };
        if !owner.is_nobody() || arena.span(start).class() != class {
            continue;
        }
        let Some(span) = adopt(arena, slot, start) else {
            continue;
        };
        // It may have become a span of another class since it was looked at.
        if span.class() == class && stocked(arena, span) {
            orphans.fetch_or(hint, Ordering::SeqCst);
            return Some(span);
        }
        // Full: it is ours now, and who frees a block of it tells us.
        keep(arena, slot, span);
    }
    None
}

const _: () = assert!(
    size_class::CLASSES <= 64,
    "a bit a class in a word of hints"
);
