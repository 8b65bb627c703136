//! An owner's spans of a class: the one that blocks come from, those with free blocks, and the
//! rest.
//!
//! | place   | meaning | when `until`, the owner's remaining frees, reaches 0 |
//! |---------|---------|------------------------------------------------|
//! | CURRENT | blocks come from it                         | a look at the clock, for memory to be given back |
//! | PARTIAL | in the list of spans with free blocks       | it is empty: the span goes back |
//! | FULL    | in the list of spans without, or with few, as far as the owner knows | an eighth is free: it becomes PARTIAL |
//!
//! A free counts `until` down, and is done unless that reaches 0. So a span that was full is not
//! looked at for its first free block, but for an eighth of its blocks at once.
//!
//! Others that free blocks set a hint, a bit for each class, in the owner's slot, if theirs is the
//! first in its word; so does the owner for a span from which it may collect nothing yet, because
//! the blocks are about to be freed again. The owner looks through its FULL list when it needs a
//! block and the hint is set: a few spans at a time, which go to the list's end, so that a new span
//! is claimed only if fewer than one in [`LOOKED_AT`] has anything. A hint that died with its setter
//! is made up for by the pool's `rescan` count, which each recovery raises and each owner compares
//! when it runs out.
//!
//! Where the next block comes from, in this order: the word in hand; the current span's other
//! words; its `remote` words; a PARTIAL span; a FULL span with a hint; a span that nobody owns; new
//! slices; a larger pool; a FULL span with a free block; the slices of current spans that are empty.

use super::AllocError;
use super::grow;
use super::guard;
use super::list::{self, List};
use super::size_class::{self, CLASSES, TABLE};
use super::slice::{self, State};
use super::span::Span;
use crate::layout::arena::{Arena, SPANS};
use crate::participants::table::{CACHE_WORDS, Own, Slot};
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, fence};
use crate::protocol::bitmap;

const CURRENT: u32 = 1;
const PARTIAL: u32 = 2;
pub(crate) const FULL: u32 = 3;

/// How many FULL spans are looked at before another way is tried.
const LOOKED_AT: usize = 8;
/// Frees in the current span between two looks at the clock.
const PERIOD: u32 = 4096;

/// An owner's spans, in its slot. Each array has an element for each class, so that the class alone
/// locates an element.
#[repr(C)]
pub(crate) struct Caches {
    /// The address of the word of `freed`, in the current span, that blocks come from; that of
    /// [`Slot::nothing`] if there is none. Never null in the cache of an owner.
    word: [Own; CLASSES],
    /// The same in a [guarded](super::guard) pool, where there is never a word at hand.
    guarded: [Own; CLASSES],
    /// The address of that word's first block.
    base: [Own; CLASSES],
    /// Bytes per block.
    size: [Own; CLASSES],
    partial: [List; CLASSES],
    full: [List; CLASSES],
}

/// An owner's spans of one class.
#[derive(Clone, Copy)]
pub(crate) struct Cache<'a> {
    word: &'a Own,
    base: &'a Own,
    size: &'a Own,
    partial: &'a List,
    full: &'a List,
}

const _: () = assert!(size_of::<Caches>() <= size_of::<[Own; CACHE_WORDS]>());
const _: () = assert!(std::mem::offset_of!(Slot, caches).is_multiple_of(64));

impl Slot {
    /// This thread's cache of a class.
    #[inline]
    pub(crate) fn cache(&self, class: usize) -> Cache<'_> {
        assert!(class < CLASSES);
        // SAFETY: checked just now.
        let mut cache = unsafe { self.known_cache(class) };
        if guard::is_on(self.arena()) {
            cache.word = &self.caches().guarded[class];
        }
        cache
    }

    #[inline(always)]
    fn caches(&self) -> &Caches {
        // SAFETY: the area is as large and as aligned (asserted above), and consists of words of
        // which all bytes are valid.
        unsafe { &*self.caches.as_ptr().cast::<Caches>() }
    }

    /// The cache from which most allocations are served: in a guarded pool, it has no word at hand.
    ///
    /// # Safety
    ///
    /// The class is below [`CLASSES`].
    #[inline(always)]
    pub(crate) unsafe fn known_cache(&self, class: usize) -> Cache<'_> {
        let caches = self.caches();
        debug_assert!(class < CLASSES);
        // SAFETY: by the caller's promise.
        unsafe {
            Cache {
                word: caches.word.get_unchecked(class),
                base: caches.base.get_unchecked(class),
                size: caches.size.get_unchecked(class),
                partial: caches.partial.get_unchecked(class),
                full: caches.full.get_unchecked(class),
            }
        }
    }
}

impl Slot {
    /// Clears the caches: a claimant of the slot has no spans.
    pub(crate) fn clear_caches(&self) {
        for word in &self.caches {
            word.set(0);
        }
        self.nothing.store(0, Ordering::Relaxed);
        let nothing = std::ptr::from_ref(&self.nothing).expose_provenance() as u64;
        let caches = self.caches();
        for word in caches.word.iter().chain(&caches.guarded) {
            word.set(nothing);
        }
        self.forget_all();
    }
}

impl Cache<'_> {
    /// A block, if the word in hand has one. `record` is told its address before it is taken.
    #[inline(always)]
    pub(crate) fn take(&self, record: impl FnOnce(usize)) -> Option<usize> {
        let word = self.word.get() as usize;
        // SAFETY: the address of a word of a span record of this pool or of the slot's `nothing`,
        // stored by the slot's owner; both stay mapped and consist of atomics.
        let word = unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(word) };
        let mut address = 0;
        bitmap::take(word, |block| {
            address = (self.base.get() + self.size.get() * u64::from(block)) as usize;
            record(address);
        })
        .then_some(address)
    }

    /// From now on there is no current span.
    fn set_none(&self, slot: &Slot) {
        let nothing = std::ptr::from_ref(&slot.nothing).expose_provenance();
        self.word.set(nothing as u64);
    }

    /// The current span, and which of its words is in hand.
    fn current(&self, arena: Arena) -> Option<(&'static Span, usize)> {
        let address = self.word.get() as usize;
        let offset = address.checked_sub(arena.base() + SPANS.offset)?;
        let span = arena.span(offset / SPANS.entry);
        let first = std::ptr::from_ref(span.sets().freed(0)).addr();
        Some((span, (address - first) / size_of::<bitmap::Pair>()))
    }

    /// Makes a word of a span the one that blocks come from.
    fn set_current(&self, arena: Arena, span: &Span, word: usize) {
        if span.place.load(Ordering::Relaxed) != CURRENT {
            span.place.store(CURRENT, Ordering::Relaxed);
            span.until.store(PERIOD, Ordering::Relaxed);
        }
        let start = arena.slice_address(span.slice(arena));
        let size = span.size.load(Ordering::Relaxed);
        self.size.set(size.into());
        let base = start + word * 64 * size as usize;
        self.base.set(base as u64);
        let word = std::ptr::from_ref(span.sets().freed(word)).expose_provenance();
        self.word.set(word as u64);
    }

    /// Makes word `next` of the current span the one that blocks come from, after `word`.
    fn move_on(&self, span: &Span, word: usize, next: usize) {
        let blocks = (next as u64).wrapping_sub(word as u64).wrapping_mul(64);
        let bytes = blocks.wrapping_mul(self.size.get());
        self.base.set(self.base.get().wrapping_add(bytes));
        let word = std::ptr::from_ref(span.sets().freed(next)).expose_provenance();
        self.word.set(word as u64);
    }

    /// Puts a span of which fewer than an eighth of the blocks are free into the FULL list.
    fn push_full(&self, arena: Arena, span: &Span) {
        let eighth = span.blocks.load(Ordering::Relaxed) / 8;
        let free = span.count_free();
        span.until
            .store(eighth.saturating_sub(free).max(1), Ordering::Relaxed);
        self.full.push(arena, span, FULL);
    }

    /// Puts a span that is in no list into the PARTIAL list, or gives it back if it is empty.
    fn push_partial(&self, arena: Arena, slot: &Slot, span: &Span) {
        let blocks = span.blocks.load(Ordering::Relaxed);
        let live = blocks.saturating_sub(span.count_free());
        if live == 0 && span.is_empty(arena) {
            slot.forget(arena, span);
            span.give_back(arena, slot.tag());
            grow::purge_now_and_then(arena, slot);
        } else {
            span.until.store(live, Ordering::Relaxed);
            self.partial.push_front(arena, span, PARTIAL);
        }
    }

    /// Finds a word with blocks and makes it the one in hand.
    #[cold]
    pub(crate) fn replenish(
        &self,
        arena: Arena,
        slot: &Slot,
        class: usize,
    ) -> Result<(), AllocError> {
        if let Some((span, word)) = self.current(arena) {
            if let Some(next) = stocked(arena, span, word) {
                self.move_on(span, word, next);
                return Ok(());
            }
            self.set_none(slot);
            self.push_full(arena, span);
        }
        loop {
            let (span, word) = self.find_span(arena, slot, class)?;
            if let Some(word) = word {
                self.set_current(arena, span, word);
                return Ok(());
            }
            self.push_full(arena, span);
        }
    }

    /// A span to take blocks from, which is no longer in any list, and a word of it that has some.
    fn find_span(
        &self,
        arena: Arena,
        slot: &Slot,
        class: usize,
    ) -> Result<(&'static Span, Option<usize>), AllocError> {
        if let Some(span) = self.partial.first(arena) {
            self.partial.remove(arena, span);
            return Ok((span, stocked(arena, span, 0)));
        }
        if let Some((span, word)) = self.take_hinted(arena, slot, class) {
            return Ok((span, Some(word)));
        }
        if let Some((span, word)) = adopt_orphan(arena, slot, class) {
            return Ok((span, Some(word)));
        }
        let new = || {
            let span = self.new_span(arena, slot, class)?;
            Ok((span, span.stocked(0)))
        };
        let error = match new() {
            Err(error) => error,
            made => return made,
        };
        // Looking for slices has made the spans of the dead nobody's. There may also be a block or
        // two that were not worth looking for before.
        if let Some((span, word)) =
            adopt_orphan(arena, slot, class).or_else(|| self.take_full(arena, usize::MAX))
        {
            return Ok((span, Some(word)));
        }
        match give_back_empty(arena, slot, TABLE[class].first_slices as usize, error) {
            true => new(),
            false => Err(error),
        }
    }

    /// A span of the FULL list, if others have freed blocks of the class.
    fn take_hinted(
        &self,
        arena: Arena,
        slot: &Slot,
        class: usize,
    ) -> Option<(&'static Span, usize)> {
        let hints = &slot.inbox.freed_hints;
        let rescan = arena.header().rescan.load(Ordering::Acquire);
        if slot.watched.rescan_seen.load(Ordering::Relaxed) != rescan {
            slot.watched.rescan_seen.store(rescan, Ordering::Relaxed);
            hints.store(u64::MAX, Ordering::SeqCst);
        }
        let hint = 1 << class;
        if !bitmap::was_told(hints, hint) {
            return None;
        }
        let last = self.full.last(arena);
        let found = self.take_full(arena, LOOKED_AT);
        // Unless all were looked at, there may be more.
        if found.is_some() || self.full.last(arena) != last {
            hints.fetch_or(hint, Ordering::SeqCst);
        }
        found
    }

    /// A span with free blocks, among the first `at_most` of the FULL list. Those without go to the
    /// list's end.
    fn take_full(&self, arena: Arena, at_most: usize) -> Option<(&'static Span, usize)> {
        let last = self.full.last(arena);
        for _ in 0..at_most {
            let index = self.full.first_link();
            let span = list::at(arena, index)?;
            self.full.remove(arena, span);
            if let Some(word) = stocked(arena, span, 0) {
                return Some((span, word));
            }
            self.full.push(arena, span, FULL);
            if index == last {
                return None;
            }
        }
        None
    }

    /// A span of new slices.
    ///
    /// If killed before the head is tagged: claimed slices, which recovery frees. After: an empty
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
            Err(why) if why.is_full() && !first => {
                let least = shape.first_slices as usize;
                (grow::claim(arena, slot, least, 1, 1)?, least)
            }
            Err(error) => return Err(error),
        };
        let span = arena.span(start);
        span.describe(class, slices);
        if guard::is_on(arena) {
            guard::wipe(arena, span);
        }
        slice::tag_tails(arena, start, slices);
        arena
            .tag(start)
            .store(slice::span_tag(slot.tag()), Ordering::Release);
        Ok(span)
    }

    /// Puts a span that was adopted where its owner finds it.
    fn keep(&self, arena: Arena, slot: &Slot, span: &Span) {
        if stocked(arena, span, 0).is_some() {
            self.push_partial(arena, slot, span);
        } else {
            self.push_full(arena, span);
        }
    }
}

/// As many blocks of the span were freed by its owner as `until` said.
#[cold]
#[inline(never)]
pub(crate) fn note_free(arena: Arena, slot: &Slot, span: &Span) {
    let cache = slot.cache(span.class());
    match span.place.load(Ordering::Relaxed) {
        FULL if cache.full.holds(arena, span) => {
            cache.full.remove(arena, span);
            cache.push_partial(arena, slot, span);
        }
        PARTIAL if cache.partial.holds(arena, span) => {
            cache.partial.remove(arena, span);
            cache.push_partial(arena, slot, span);
        }
        _ => {
            span.until.store(PERIOD, Ordering::Relaxed);
            grow::purge_now_and_then(arena, slot);
        }
    }
}

/// `wanted` slices could not be had: gives back the owner's current spans that are empty, which are
/// otherwise kept for the next blocks of their classes as long as there is room elsewhere. True if
/// another attempt is worthwhile.
///
/// Only the current ones: blocks that others have freed in the rest are not looked for, since an
/// owner may have very many spans, and a thread that polls a full pool would look through all of
/// them each time.
///
/// Killed anywhere: leaves a span of the dead, or claimed slices.
#[cold]
pub(crate) fn give_back_empty(arena: Arena, slot: &Slot, wanted: usize, why: AllocError) -> bool {
    if !why.is_full() {
        return false;
    }
    let empty = |class| {
        let (span, _) = slot.cache(class).current(arena)?;
        (span.is_empty(arena) && span.is_sane(arena, span.slice(arena))).then_some(span)
    };
    let slices = |span: &Span| span.slices.load(Ordering::Relaxed) as usize;
    let own: usize = (0..CLASSES).filter_map(empty).map(slices).sum();
    if own == 0 || own + grow::most_free(arena) < wanted {
        return false;
    }
    for class in 0..CLASSES {
        if let Some(span) = empty(class) {
            slot.cache(class).set_none(slot);
            slot.forget(arena, span);
            span.give_back(arena, slot.tag());
        }
    }
    true
}

/// Takes all spans out of a leaving owner's lists.
pub(crate) fn take_all(arena: Arena, slot: &Slot, mut each: impl FnMut(&Span)) {
    for class in 0..CLASSES {
        let cache = slot.cache(class);
        if let Some((span, _)) = cache.current(arena) {
            cache.set_none(slot);
            each(span);
        }
        for list in [cache.partial, cache.full] {
            while let Some(span) = list.first(arena) {
                list.remove(arena, span);
                each(span);
            }
        }
    }
}

/// A word of the span that has blocks to hand out, from word `from` on, or, if none has, once what
/// others freed is collected. `None` if all are handed out.
fn stocked(arena: Arena, span: &Span, from: usize) -> Option<usize> {
    let stocked = span.stocked(from);
    if stocked.is_none() && span.collect(arena) {
        return span.stocked(0);
    }
    stocked
}

/// Makes a span that nobody owns one of `owner`'s. Its record is settled, as recovery or a leaving
/// owner left it. A damaged one stays nobody's.
pub(crate) fn adopt(arena: Arena, owner: Tag, start: usize) -> Option<&'static Span> {
    let span = arena.span(start);
    if !span.is_sane(arena, start) {
        return None;
    }
    arena
        .tag(start)
        .compare_exchange(
            slice::span_tag(Tag::NOBODY),
            slice::span_tag(owner),
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .ok()?;
    span.place.store(0, Ordering::Relaxed);
    Some(span)
}

/// A block of a span that nobody owns has been freed: a thread that needs one of the class adopts
/// the span. The thread that frees does not, or it would keep what it has no use for; but a span
/// that has become empty goes back, since nobody else may ever need its class.
pub(crate) fn note_orphan(arena: Arena, slot: &Slot, start: usize) {
    let span = arena.span(start);
    bitmap::tell(&arena.header().orphans, 1 << span.class());
    // Of two threads that free the last two blocks at once, and have cleared their `freeing` words,
    // one sees that the other has.
    fence(Ordering::SeqCst);
    if span.is_empty(arena)
        && let Some(span) = adopt(arena, slot.tag(), start)
    {
        slot.cache(span.class()).push_partial(arena, slot, span);
    }
}

/// A span of the class that nobody owns and that has free blocks.
#[cold]
fn adopt_orphan(arena: Arena, slot: &Slot, class: usize) -> Option<(&'static Span, usize)> {
    let orphans = &arena.header().orphans;
    let hint = 1 << class;
    if !bitmap::was_told(orphans, hint) {
        return None;
    }
    for start in 0..arena.slices() {
        let State::Span { owner } = slice::state(arena.tag(start).load(Ordering::Acquire)) else {
            continue;
        };
        let span = arena.span(start);
        // A free of a block of a full one sets the hint again.
        if !owner.is_nobody() || span.class() != class || span.count_free() == 0 {
            continue;
        }
        let Some(span) = adopt(arena, slot.tag(), start) else {
            continue;
        };
        // It may have become a span of another class since it was looked at.
        if span.class() == class
            && let Some(word) = stocked(arena, span, 0)
        {
            orphans.fetch_or(hint, Ordering::SeqCst);
            return Some((span, word));
        }
        slot.cache(span.class()).keep(arena, slot, span);
    }
    None
}

const _: () = assert!(
    size_class::CLASSES <= 64,
    "a bit a class in a word of hints"
);

#[cfg(test)]
mod tests;
