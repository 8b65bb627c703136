//! A cell: one word, which names a block or is 0. It is changed as described in `change`.

use super::{Named, OP_SHIFT, limbo, word};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::layout::Engine;
use crate::layout::arena::Arena;
use crate::primitive::Ordering;

/// The intent of a change of a cell.
pub(crate) const CHANGE: u64 = (Engine::Cell as u64) << OP_SHIFT;

/// The block of a cell under destruction.
pub(crate) fn next_block(arena: Arena, first: usize) -> Option<Named> {
    let named = word(arena, first as u64)?.load(Ordering::Acquire);
    (named != 0).then_some(Named {
        word: first as u64,
        next: 0,
        block: named as usize,
    })
}

/// Checks a cell: it names a block that is in no list. The block may be noted, by a thread that
/// died before the exchange.
pub(crate) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    let Some(named) = next_block(arena, first) else {
        return;
    };
    let listed = limbo::header(arena, named.block as u64)
        .is_none_or(|own| !matches!(own.next.load(Ordering::Acquire), 0 | limbo::END));
    if block::usable_size(arena, named.block).is_err() || listed {
        report.problem(format_args!("the cell at {first:#x} names no block"));
    }
}
