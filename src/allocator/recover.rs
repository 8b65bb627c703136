//! What an owner leaves behind becomes anybody's: run for the dead by recovery, and by a thread
//! that leaves for itself.
//!
//! Who leaves goes through its own lists: between two operations it has nothing else. For the dead
//! it is one walk over the tags, as their lists are not to be relied on. Claimed slices of the owner are freed; what others freed of its spans
//! is collected, and they become nobody's, or go back if they are empty. Every step is done in the
//! owner's own name, so that a death in the middle leaves what the next walk finds again. Who
//! needs a span of the class, or frees a block of it, takes it over.

use super::cache;
use super::slice::{self, State};
use super::span::Span;
use crate::layout::arena::Arena;
use crate::participants::table::SlotPhase;
use crate::participants::tag::Tag;
use crate::primitive::{Ordering, fence};

/// Releases all slices that the owner has claimed and all spans that it owns. The caller is the
/// owner, or holds its life word.
pub(crate) fn release_all(arena: Arena, owner: Tag) {
    let mut orphans = 0;
    let slot = arena.slot(owner.slot());
    if slot.state().phase == SlotPhase::Live {
        // Who leaves knows what it has.
        cache::take_all(arena, slot, |span| {
            if release_span(arena, owner, span) {
                orphans |= 1 << span.class();
            }
        });
        arena.header().orphans.fetch_or(orphans, Ordering::SeqCst);
        return;
    }
    for index in 0..arena.slices() {
        let tag = arena.tag(index);
        match slice::state(tag.load(Ordering::Acquire)) {
            State::Claimed {
                kind,
                owner: claimant,
            } if claimant == owner => {
                slice::abandon(arena, index, kind);
            }
            State::Span { owner: holder } => {
                // Nobody's too: who was to give it back, or the hint, may have died.
                let nobodys = holder.is_nobody();
                let owned = holder == owner || (nobodys && adopt_empty(arena, owner, index));
                let span = arena.span(index);
                if (owned && release_span(arena, owner, span)) || (nobodys && !owned) {
                    orphans |= 1 << span.class();
                }
            }
            State::Free { .. } => slice::hint_if_missing(arena, index),
            _ => {}
        }
    }
    arena.header().orphans.fetch_or(orphans, Ordering::SeqCst);
}

/// Makes a span of nobody's that is empty the owner's. True if it did.
fn adopt_empty(arena: Arena, owner: Tag, start: usize) -> bool {
    arena.span(start).is_empty(arena) && cache::adopt(arena, owner, start).is_some()
}

/// Collects what others freed of a span of the owner's; gives it back if it is empty, and makes it
/// nobody's otherwise. True if it is nobody's.
fn release_span(arena: Arena, owner: Tag, span: &Span) -> bool {
    let start = span.slice(arena);
    loop {
        span.collect(arena);
        if span.is_empty(arena) {
            span.give_back(arena, owner);
            return false;
        }
        let nobodys = slice::span_tag(Tag::NOBODY);
        arena.tag(start).store(nobodys, Ordering::Release);
        // Who freed the last block meanwhile took it for the owner's.
        fence(Ordering::SeqCst);
        if !adopt_empty(arena, owner, start) {
            return true;
        }
    }
}
