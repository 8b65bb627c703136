//! Lists of an owner's spans. They link span records by slice index, and are written only by their
//! owner; recovery does not read them.

use super::span::Span;
use crate::layout::arena::Arena;
use crate::primitive::{AtomicU32, Ordering};

/// A link to the first span: its slice index + 1. The one before it is the last one.
#[repr(C)]
pub(super) struct List(AtomicU32);

impl List {
    #[inline]
    pub(super) fn push(&self, arena: Arena, span: &Span, place: u32) {
        let index = span.slice(arena) as u32 + 1;
        span.next.store(0, Ordering::Relaxed);
        span.place.store(place, Ordering::Relaxed);
        if let Some(first) = self.first(arena) {
            let last = first.previous.swap(index, Ordering::Relaxed);
            span.previous.store(last, Ordering::Relaxed);
            if let Some(last) = at(arena, last) {
                last.next.store(index, Ordering::Relaxed);
            }
        } else {
            span.previous.store(index, Ordering::Relaxed);
            self.0.store(index, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn push_front(&self, arena: Arena, span: &Span, place: u32) {
        self.push(arena, span, place);
        // The list is circular, from the last to the first: starting it one earlier is enough.
        let index = span.slice(arena) as u32 + 1;
        let first = self.0.load(Ordering::Relaxed);
        if first != index {
            let previous = span.previous.load(Ordering::Relaxed);
            if let Some(previous) = at(arena, previous) {
                previous.next.store(0, Ordering::Relaxed);
            }
            span.next.store(first, Ordering::Relaxed);
            self.0.store(index, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn remove(&self, arena: Arena, span: &Span) {
        let next = span.next.load(Ordering::Relaxed);
        let previous = span.previous.load(Ordering::Relaxed);
        let first = self.0.load(Ordering::Relaxed);
        if at(arena, first).is_some_and(|first| std::ptr::eq(first, span)) {
            self.0.store(next, Ordering::Relaxed);
        } else if let Some(other) = at(arena, previous) {
            other.next.store(next, Ordering::Relaxed);
        }
        // The next one's neighbour; or, if this was the last, the first one's.
        if let Some(other) = at(arena, next).or_else(|| self.first(arena)) {
            other.previous.store(previous, Ordering::Relaxed);
        }
        span.place.store(0, Ordering::Relaxed);
    }

    /// True if the span is in the list, judged by its links and its neighbours'. A span that the
    /// owner has not put there is in none: in a damaged file, a tag may name an owner that is yet
    /// to come.
    #[inline]
    pub(super) fn holds(&self, arena: Arena, span: &Span) -> bool {
        let index = span.slice(arena) as u32 + 1;
        let slices = arena.slices();
        let next_to = |link: u32| at(arena, if link as usize <= slices { link } else { 0 });
        let next = span.next.load(Ordering::Relaxed);
        let previous = span.previous.load(Ordering::Relaxed);
        let first = self.0.load(Ordering::Relaxed) == index;
        let after = |other: &Span| other.next.load(Ordering::Relaxed) == index;
        let before = |other: &Span| other.previous.load(Ordering::Relaxed) == index;
        let ends = next == 0 && self.last(arena) == index;
        (first || next_to(previous).is_some_and(after))
            && (ends || next_to(next).is_some_and(before))
    }

    #[inline]
    pub(super) fn first(&self, arena: Arena) -> Option<&'static Span> {
        at(arena, self.first_link())
    }

    /// The link to the first span; 0 if there is none.
    #[inline]
    pub(super) fn first_link(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// The link to the last span; 0 if there is none.
    #[inline]
    pub(super) fn last(&self, arena: Arena) -> u32 {
        let first = self.first(arena);
        first.map_or(0, |first| first.previous.load(Ordering::Relaxed))
    }
}

/// The span that a link leads to.
#[inline]
pub(super) fn at(arena: Arena, link: u32) -> Option<&'static Span> {
    (link != 0).then(|| arena.span(link as usize - 1))
}
