//! Goes through every allocated block, by the tags and bitmaps.

use super::size_class::TABLE;
use super::slice::{self, State};
use super::span::Place;
use crate::layout::arena::{Arena, SLICE};
use crate::participants::tag::Tag;
use crate::primitive::Ordering;

/// What starts at a slice.
pub(crate) enum Piece {
    Free {
        slices: usize,
        holes: usize,
    },
    Span {
        start: usize,
        slices: usize,
        owner: Tag,
    },
    Run {
        start: usize,
        slices: usize,
    },
    /// On its way from one state to another, or garbage.
    Other,
}

impl Piece {
    fn slices(&self) -> usize {
        match self {
            Piece::Free { slices, .. } | Piece::Span { slices, .. } | Piece::Run { slices, .. } => {
                *slices
            }
            Piece::Other => 1,
        }
    }
}

/// The pieces of the data, in order of their addresses, at about one moment.
pub(crate) fn pieces(arena: Arena) -> impl Iterator<Item = (usize, Piece)> {
    let end = arena.slices();
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next;
        let piece = (start < end).then(|| piece(arena, start, end))?;
        next += piece.slices();
        Some((start, piece))
    })
}

fn piece(arena: Arena, start: usize, end: usize) -> Piece {
    let state = |index| slice::state(arena.tag(index).load(Ordering::Acquire));
    match state(start) {
        State::Free { .. } => {
            let free = |index: &usize| matches!(state(*index), State::Free { .. });
            let hole = |index: &usize| matches!(state(*index), State::Free { kind: slice::HOLE });
            let slices = (start..end).take_while(free).count().max(1);
            let holes = (start..start + slices).filter(hole).count();
            Piece::Free { slices, holes }
        }
        State::Kept { slices } => Piece::Free {
            slices: slices.clamp(1, end - start),
            holes: 0,
        },
        State::Span { owner } => {
            let slices = arena.span(start).slices.load(Ordering::Relaxed) as usize;
            let slices = slices.clamp(1, end - start);
            Piece::Span {
                start,
                slices,
                owner,
            }
        }
        State::Run { slices } => Piece::Run {
            start,
            slices: slices.clamp(1, end - start),
        },
        _ => Piece::Other,
    }
}

/// The allocated blocks of a span, as address and size. They are in the pool's data, even if the
/// record is damaged, or becomes another span's meanwhile.
pub(crate) fn blocks_of_span(arena: Arena, start: usize) -> impl Iterator<Item = (usize, usize)> {
    let span = arena.span(start);
    let size = TABLE[span.class()].size as usize;
    let base = arena.slice_address(start);
    let end = arena.slice_address(arena.slices());
    let blocks = (0..span.words()).flat_map(move |word| {
        let used = span.all(word) & !span.sets().free_bits(word);
        let bits = (0..64).filter(move |bit| used >> bit & 1 != 0);
        bits.map(move |bit| (base + (word * 64 + bit) * size, size))
    });
    blocks.take_while(move |(address, size)| address + size <= end)
}

/// Every block of a span, allocated or not, and its address.
pub(crate) fn places_of_span(arena: Arena, start: usize) -> impl Iterator<Item = (Place, usize)> {
    let span = arena.span(start);
    let (base, size) = (arena.slice_address(start), span.block_size());
    let blocks = span.blocks.load(Ordering::Relaxed);
    (0..blocks).map(move |block| (Place(block), base + block as usize * size))
}

/// Every allocated block, as address and size, in order of the addresses.
pub(crate) fn blocks(arena: Arena) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    for (_, piece) in pieces(arena) {
        match piece {
            Piece::Span { start, .. } => all.extend(blocks_of_span(arena, start)),
            Piece::Run { start, slices } => all.push((arena.slice_address(start), slices * SLICE)),
            Piece::Free { .. } | Piece::Other => {}
        }
    }
    all
}
