//! Recovery, destruction and the check of a buffer.

use super::chunk::{CLOSED, Found, HEADER, LEN, Next, SEALED};
use super::{APPEND, FREE, Words};
use crate::allocator::block;
use crate::allocator::check::CheckReport;
use crate::engines::{Named, word};
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::Ordering;

/// Resolves an intent of this engine.
pub(in crate::engines) fn resolve(arena: Arena, slot: &Slot, owner: Tag, op: u64) {
    let field = word(arena, slot.intent.arg(0));
    let block = slot.intent.arg(1);
    let named = field.map(|field| field.load(Ordering::SeqCst)) == Some(block);
    match op {
        APPEND if block != 0 && !named => block::release_for(arena, owner, block as usize),
        FREE if named && slot.watched.freeing.load(Ordering::SeqCst) == block => {
            if let Some(field) = field {
                field.store(slot.intent.arg(2), Ordering::SeqCst);
            }
        }
        _ => {}
    }
}

/// The next chunk of a buffer that is being destroyed.
pub(in crate::engines) fn next_block(arena: Arena, first: usize) -> Option<Named> {
    let old = word(arena, first as u64)?.load(Ordering::SeqCst);
    let chunk = Found::at(arena, old)?;
    let next = match chunk.next() {
        Next::Chunk(next) => next.address as u64,
        Next::None | Next::Closed => 0,
    };
    Some(Named {
        word: first as u64,
        next,
        block: chunk.address,
    })
}

/// Checks a buffer at rest.
pub(in crate::engines) fn check(arena: Arena, first: usize, report: &mut CheckReport) {
    let is_aligned = first.is_multiple_of(align_of::<Words>());
    if !is_aligned || arena.room_at(first) < size_of::<Words>() {
        return report.problem(format_args!("a buffer at {first:#x} is not in the pool"));
    }
    // SAFETY: aligned committed data, where the type's description places a buffer's words, all atomic.
    let words = unsafe { &*std::ptr::with_exposed_provenance::<Words>(first) };
    let mut hints = [&words.first, &words.last].map(|hint| hint.load(Ordering::SeqCst));
    let mut at = Found::at(arena, words.oldest.load(Ordering::SeqCst));
    let mut end = 0;
    while let Some(chunk) = at {
        let mut problem = |what: &str| {
            let address = chunk.address;
            report.problem(format_args!(
                "buffer {first:#x}, chunk {address:#x}: {what}"
            ));
        };
        let state = chunk.chunk.state.load(Ordering::SeqCst);
        let (len, room) = (state & LEN, chunk.room());
        match block::usable_size(arena, chunk.address) {
            Ok(size) if size as u64 >= room.saturating_add(HEADER as u64) && room >= len => {}
            _ => problem("no block of its size"),
        }
        for hint in &mut hints {
            if *hint == chunk.address as u64 {
                *hint = 0;
            }
        }
        end = chunk.end();
        at = match chunk.next() {
            Next::Chunk(next) => {
                if next.start() != end || state & SEALED == 0 {
                    problem("does not fit the next");
                }
                if next.index() != chunk.index() + 1 {
                    problem("its index does not fit the next");
                }
                Some(next)
            }
            Next::None => None,
            Next::Closed => {
                if state & SEALED == 0 || chunk.chunk.next.load(Ordering::SeqCst) != CLOSED {
                    problem("its next is no chunk");
                }
                None
            }
        };
    }
    if hints != [0, 0] {
        report.problem(format_args!(
            "buffer {first:#x}: a hint is not in the chain"
        ));
    }
    if words.start() > end {
        report.problem(format_args!("buffer {first:#x}: it starts beyond its end"));
    }
}
