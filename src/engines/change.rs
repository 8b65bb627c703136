//! How a word is made to name another block: the only kind of change that these containers make.
//!
//! A new block is allocated into the intent and filled; then one compare-exchange (or a store, if
//! the caller keeps all others from the word) publishes it; then what the word named before is
//! retired. The thread is pinned from before it reads the word until the intent is closed.
//!
//! | step | word | killed before the next step: recovery |
//! |------|------|----------------------------------------|
//! | PREPARING, no block | | nothing |
//! | PREPARING, a block | | frees it |
//! | PUBLISHING | another's | frees the new block |
//! | PUBLISHING | the new | retires the old block, once |
//! | PUBLISHING | another's again, the new one *noted* | the same |
//!
//! The word, and then the new block, say whether the change happened: whoever is about to overwrite a
//! word that names a block first *notes* that in the block. As the author's pin holds until its intent
//! is resolved, neither block is freed or used for anything else before that.
//!
//! Invariants
//! 1. A block is noted before the word that names it is changed.
//! 2. PUBLISHING is stored once the new block's own words are set, and the intent has the old
//!    block.
//! 3. A change that names no new block (a removal) is made only by a thread that keeps all others
//!    from the word.

use std::alloc::Layout;

use super::limbo::{self, END};
use super::word;
use crate::allocator::{AllocError, block};
use crate::layout::arena::Arena;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

/// Arguments of the intent.
const WORD: usize = 0;
const NEW_WORD: usize = 1;
const NEW_BLOCK: usize = 2;
const OLD_BLOCK: usize = 3;
const STEP: usize = 4;

const PREPARING: u64 = 0;
const PUBLISHING: u64 = 1;

/// Opens an intent for a change of `word` and allocates the new block, which is not noted. If there
/// is no room, no intent is left open.
#[inline]
pub(crate) fn prepare(
    arena: Arena,
    slot: &Slot,
    op: u64,
    word: &AtomicU64,
    layout: Layout,
) -> Result<u64, AllocError> {
    limbo::or_reap(arena, || prepare_once(arena, slot, op, word, layout))
}

#[inline]
fn prepare_once(
    arena: Arena,
    slot: &Slot,
    op: u64,
    word: &AtomicU64,
    layout: Layout,
) -> Result<u64, AllocError> {
    open(slot, op, word);
    let made = block::allocate(arena, slot, layout, |address| {
        slot.intent.set_arg(NEW_BLOCK, address as u64);
    });
    match made {
        Ok(address) => {
            if let Some(own) = limbo::header(arena, address as u64) {
                own.next.store(0, Ordering::Relaxed);
            }
            Ok(address as u64)
        }
        Err(error) => {
            // The intent names a block that was not taken.
            slot.intent.set_arg(NEW_BLOCK, 0);
            slot.intent.close();
            Err(error)
        }
    }
}

/// Opens an intent for a change of `word` to something that is not a new block.
#[inline]
pub(crate) fn open(slot: &Slot, op: u64, word: &AtomicU64) {
    let address = std::ptr::from_ref(word).addr() as u64;
    slot.intent.open(op, &[address, 0, 0, 0, PREPARING]);
}

/// Notes that the word that names the block is about to be changed: by invariant 1.
#[inline]
pub(crate) fn note(arena: Arena, block: u64) {
    if let Some(own) = limbo::header(arena, block) {
        // If this is not 0, somebody else has noted it; a note is never undone. (Looking first would fetch the
        // cache line twice if another thread had written it.)
        let _ = own
            .next
            .compare_exchange(0, END, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// Publishes `new` if the word still is `old`, which names `old_block` (0 for none), and says whether it did.
/// The intent is open, and the new block's own words are set.
#[inline]
pub(crate) fn publish(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    (old, old_block): (u64, u64),
    new: u64,
) -> bool {
    announce(slot, old_block, new);
    if old_block != 0 {
        note(arena, old_block);
    }
    word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
}

/// Stores `new`. The caller keeps all others from the word.
#[inline]
pub(crate) fn publish_alone(slot: &Slot, word: &AtomicU64, old_block: u64, new: u64) {
    announce(slot, old_block, new);
    // Release: a thread that finds the word finds the block filled. What the word named before is
    // stamped after a fence.
    word.store(new, Ordering::Release);
}

#[inline]
fn announce(slot: &Slot, old_block: u64, new: u64) {
    slot.intent.set_arg(OLD_BLOCK, old_block);
    slot.intent.set_arg(NEW_WORD, new);
    slot.intent.set_arg(STEP, PUBLISHING);
}

/// Ends a change that has happened: what the word named goes to limbo, and the intent is closed.
/// The caller [collects](limbo::collect_now_and_then) once it has given back its locks.
#[inline]
pub(crate) fn finish(arena: Arena, slot: &Slot, old_block: u64, bytes: usize) {
    compiler_fence(Ordering::SeqCst);
    if old_block != 0 {
        limbo::retire(arena, slot, old_block, bytes);
    }
    slot.intent.close();
}

/// Gives up a change: the new block, which nobody has seen, is freed.
#[cold]
pub(crate) fn abandon(arena: Arena, slot: &Slot, new_block: u64) {
    block::close_and_free(arena, slot, new_block);
}

/// Completes or undoes a change of a dead thread. Repeatable.
pub(crate) fn resolve(arena: Arena, slot: &Slot, owner: Tag) {
    let arg = |i: usize| slot.intent.arg(i);
    let (new_block, old_block) = (arg(NEW_BLOCK), arg(OLD_BLOCK));
    let happened = arg(STEP) == PUBLISHING && {
        // The word is read first: it is overwritten after the note.
        let named =
            word(arena, arg(WORD)).is_some_and(|word| word.load(Ordering::SeqCst) == arg(NEW_WORD));
        let noted = || {
            let own = limbo::header(arena, new_block);
            own.is_some_and(|own| own.next.load(Ordering::SeqCst) != 0)
        };
        named || noted()
    };
    if happened {
        if old_block != 0 {
            limbo::retire_once(arena, slot, old_block, 0);
        }
    } else if new_block != 0 {
        block::release_for(arena, owner, new_block as usize);
    }
}
