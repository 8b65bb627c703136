//! What every process must know of the containers, whether its program uses them or not: how an
//! operation whose thread died is resolved, what a container owns, and what a check verifies.
//!
//! A container has two parts. Its *engine*, here, works on words and blocks, knows no user's types,
//! and is found by a number; the typed interface is in `containers`. So a survivor from another
//! program, which does not know a value's type, can resolve what a dead thread was doing to it, and
//! can destroy the container.
//!
//! An engine offers these functions, which are found here by its number:
//!
//! | what | when |
//! |---|---|
//! | [`resolve`] | a thread died with an intent of the engine open; repeatable, like all of recovery |
//! | [`next_block`] | the container is being destroyed: gives what is to be freed next |
//! | [`check`] | a full check of the pool at rest |
//!
//! | module   | what |
//! |----------|------|
//! | `limbo`  | blocks that were unlinked and may still be looked at |
//! | `bell`   | waking threads that wait for a container |
//! | `change` | how a word is made to name another block |
//! | `cell`   | a word that names a block |
//! | `buffer` | a chain of chunks of bytes |
//! | `queue`  | rings of cells |
//! | `leases` | elements that were popped, but not for good |
//! | `map`    | words that name nodes, by the hash of their keys |
//! | `heap`   | objects in a table, and a log to undo changes of them |
//!
//! Intents of an engine have its number in the bits from [`OP_SHIFT`] up; the bits below, and the
//! arguments, are the engine's own.

pub(crate) mod bell;
pub(crate) mod buffer;
pub(crate) mod cell;
pub(crate) mod change;
pub(crate) mod heap;
pub(crate) mod leases;
pub(crate) mod limbo;
pub(crate) mod map;
pub(crate) mod queue;

use crate::allocator::check::CheckReport;
use crate::layout::Engine;
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::AtomicU64;

/// Where the engine's number is in an intent's operation.
pub(crate) const OP_SHIFT: u32 = 8;

/// A block that is to be freed, and the word that names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    /// The address of the word.
    pub(crate) word: u64,
    /// What the word holds afterwards: something other than while it names the block.
    pub(crate) next: u64,
    /// The block's address.
    pub(crate) block: usize,
}

/// A word of the pool, by its address. Intents name words of committed tables, or of objects that
/// the author's process held when it opened the intent, and holds until the intent is resolved.
pub(crate) fn word(arena: Arena, address: u64) -> Option<&'static AtomicU64> {
    arena.word_at(address as usize)
}

/// Completes or undoes the operation that a dead thread had open, if it is an engine's. The caller
/// holds the slot's life word, frees what `freeing` names afterwards, and closes the intent.
pub(crate) fn resolve(arena: Arena, slot: &Slot, owner: Tag, op: u64) {
    match Engine::numbered((op >> OP_SHIFT) as u32) {
        Some(Engine::Buffer) => buffer::resolve(arena, slot, owner, op),
        Some(Engine::Cell) => change::resolve(arena, slot, owner),
        Some(Engine::Map) => map::resolve(arena, slot, owner, op),
        Some(Engine::Queue) => queue::resolve(arena, slot, owner, op),
        Some(Engine::Heap) => heap::resolve(arena, slot, op),
        None => {}
    }
}

/// The next block to free of a container that is being destroyed, and that nobody uses; `first` is
/// the address of its first word. `None` when it owns no more blocks.
///
/// The caller frees the block and stores [`Named::next`] before it asks again. `cursor` starts at
/// 0, again after the death of a caller, and is the engine's own.
pub(crate) fn next_block(
    arena: Arena,
    engine: Engine,
    first: usize,
    cursor: &mut usize,
) -> Option<Named> {
    match engine {
        Engine::Buffer => buffer::next_block(arena, first),
        Engine::Cell => cell::next_block(arena, first),
        Engine::Map => map::next_block(arena, first, cursor),
        Engine::Queue => queue::next_block(arena, first),
        Engine::Heap => heap::next_block(arena, first, cursor),
    }
}

/// Checks a container at rest; `first` is the address of its first word.
pub(crate) fn check(arena: Arena, engine: Engine, first: usize, report: &mut CheckReport) {
    match engine {
        Engine::Buffer => buffer::check(arena, first, report),
        Engine::Cell => cell::check(arena, first, report),
        Engine::Map => map::check(arena, first, report),
        Engine::Queue => queue::check(arena, first, report),
        Engine::Heap => heap::check(arena, first, report),
    }
}
