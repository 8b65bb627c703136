//! The operations that change more than one word, step by step, and how each is resolved for a
//! thread that died in the middle.
//!
//! A thread has one intent at a time, in its slot. These functions work on the intent of a given
//! slot: the calling thread's own, or that of a dead thread whose life word the caller holds.
//! Resolving means running the same steps again, from the one that was in flight.
//!
//! | intent | arguments | resolved by |
//! |---------|----------------------------------|------------------------------------------------|
//! | CREATE  | entry, block                     | not yet LIVE: entry and block are free again |
//! | LINK    | field, new, step and sequence, old | not counted yet: nothing happened; else completed |
//! | DESTROY | entry, field, target, sequence, next | the field in flight is dropped; then CONDEMNED |
//! | REPLACE | field, old block, new block, length's word, length | field has the new one: the length is stored, and the old one freed; else the new one is freed |
//! | WRITE   | destination, length              | the bytes in the slot's redo area are written again |
//!
//! Intents of containers are their engines' business (`engines`).
//!
//! Blocks are freed through the slot's `freeing` word (see `allocator::block`): it is set first,
//! then the field that named the block is cleared, then the block is freed. So whatever a death
//! leaves, either the field names the block or the `freeing` word does.

use crate::allocator::block;
use crate::engines::{self, Named, limbo, word};
use crate::layout::arena::Arena;
use crate::participants::detect;
use crate::participants::table::{REDO_WORDS, Slot};
use crate::participants::tag::Tag;
use crate::pool::{dispose, objects};
use crate::primitive::{AtomicU64, Ordering, compiler_fence};

pub(crate) const CREATE: u64 = 1;
pub(crate) const LINK: u64 = 2;
pub(crate) const DESTROY: u64 = 3;
pub(crate) const REPLACE: u64 = 4;
pub(crate) const WRITE: u64 = 5;

/// The argument of CREATE that names the block.
pub(super) const CREATE_BLOCK: usize = 1;

/// Arguments of LINK.
const FIELD: usize = 0;
const NEW: usize = 1;
const STEP: usize = 2;
const OLD: usize = 3;
/// Steps of LINK, in the low bits of its argument; the sequence is above.
const COUNT_NEW: u64 = 1;
const SWAP: u64 = 2;
const UNCOUNT_OLD: u64 = 3;
const SEQUENCE: u32 = 2;

/// Arguments of DESTROY.
const DESTROY_FIELD: usize = 1;
const DESTROY_TARGET: usize = 2;
const DESTROY_SEQUENCE: usize = 3;
const DESTROY_NEXT: usize = 4;

/// Arguments of REPLACE.
const REPLACE_FIELD: usize = 0;
const REPLACE_OLD: usize = 1;
const REPLACE_NEW: usize = 2;
const REPLACE_LENGTH_WORD: usize = 3;
const REPLACE_LENGTH: usize = 4;

/// Arguments of WRITE.
const WRITE_TO: usize = 0;
const WRITE_LENGTH: usize = 1;

/// Completes or undoes what the slot has open, and closes it. Can be repeated.
pub(crate) fn resolve(arena: Arena, index: usize) {
    let slot = arena.slot(index);
    let owner = Tag::new(index, slot.state().generation);
    let arg = |i: usize| slot.intent.arg(i);
    limbo::take_off(arena, slot);
    match slot.intent.op.load(Ordering::Acquire) {
        CREATE => objects::undo_create(arena, owner, arg(0) as usize, arg(CREATE_BLOCK) as usize),
        LINK => {
            let step = arg(STEP);
            let started = step & 3 != COUNT_NEW
                || counter(arena, arg(NEW))
                    .is_some_and(|new| detect::happened(arena, new, index, step >> SEQUENCE));
            if step != 0 && started {
                run_link(arena, slot, index);
            }
        }
        DESTROY => {
            resolve_drop(arena, slot, index);
            // Before others may destroy what is left.
            block::finish_freeing(arena, slot, owner);
            dispose::condemn(arena, owner, arg(0) as usize);
        }
        REPLACE => resolve_replace(arena, slot, owner),
        WRITE => redo(arena, slot),
        op => engines::resolve(arena, slot, owner, op),
    }
    block::finish_freeing(arena, slot, owner);
    // Others wait for the intent to be closed, and not for the rest.
    slot.intent.close();
    limbo::recount(arena, slot);
}

/// The count of links of an object, given as index + 1; `None` for 0.
fn counter(arena: Arena, reference: u64) -> Option<&'static AtomicU64> {
    arena
        .object((reference as usize).checked_sub(1)?)
        .map(|entry| &entry.links)
}

/// As many links as can be counted lead to the object.
pub(crate) struct TooManyLinks;

/// Makes the link at `field` lead to `new` (index + 1, or 0 for nowhere), which the caller holds.
/// Returns the index of what it led to before, if anything; the caller disposes of it.
pub(crate) fn set_link(
    arena: Arena,
    slot: &Slot,
    field: &AtomicU64,
    new: u32,
) -> Result<Option<usize>, TooManyLinks> {
    let address = std::ptr::from_ref(field).addr() as u64;
    slot.intent.open(LINK, &[address, new.into(), 0, 0]);
    let counted = counter(arena, new.into());
    set_step(slot, slot.tag().slot(), COUNT_NEW, counted);
    if let Some(links) = counted {
        let sequence = slot.intent.arg(STEP) >> SEQUENCE;
        if detect::add(arena, links, 1, slot.tag(), sequence).is_none() {
            // Not counted: nothing has happened.
            slot.intent.close();
            return Err(TooManyLinks);
        }
    }
    let old = run_link(arena, slot, slot.tag().slot());
    slot.intent.close();
    Ok(old)
}

/// Goes on to a step that changes `word`.
fn set_step(slot: &Slot, author: usize, step: u64, word: Option<&AtomicU64>) {
    slot.intent.set_arg(
        STEP,
        step | detect::next_sequence(slot, author, word) << SEQUENCE,
    );
}

/// Runs LINK from its current step on, once the new object is counted.
fn run_link(arena: Arena, slot: &Slot, author: usize) -> Option<usize> {
    let me = Tag::new(author, 0);
    let field = word(arena, slot.intent.arg(FIELD))?;
    let new = slot.intent.arg(NEW) as u32;
    let mut step = slot.intent.arg(STEP);
    let done =
        |step: u64, word: &AtomicU64| detect::happened(arena, word, author, step >> SEQUENCE);
    if step & 3 == COUNT_NEW {
        set_step(slot, author, SWAP, Some(field));
        step = slot.intent.arg(STEP);
    }
    if step & 3 == SWAP {
        // This is asked the first time, too, when the answer is no.
        if !done(step, field) {
            let mut found = field.load(Ordering::Acquire);
            loop {
                slot.intent.set_arg(OLD, detect::value(found).into());
                match detect::change(arena, field, found, new, me.slot(), step >> SEQUENCE) {
                    Ok(()) => break,
                    Err(now) => found = now,
                }
            }
        }
        let old = counter(arena, slot.intent.arg(OLD));
        set_step(slot, author, UNCOUNT_OLD, old);
        step = slot.intent.arg(STEP);
    }
    let old = slot.intent.arg(OLD);
    let links = counter(arena, old)?;
    if !done(step, links) {
        detect::add(arena, links, -1, me, step >> SEQUENCE);
    }
    Some(old as usize - 1)
}

/// Takes the link at a field of an object that is being destroyed; returns the index of what it led
/// to.
pub(super) fn drop_link(arena: Arena, slot: &Slot, field: u64) -> Option<usize> {
    let link = word(arena, field)?;
    let target = detect::value(link.load(Ordering::Relaxed));
    let links = counter(arena, target.into())?;
    slot.intent.set_arg(DESTROY_FIELD, field);
    slot.intent.set_arg(DESTROY_TARGET, target.into());
    // The sequence, once set, says that the step is in flight.
    let sequence = detect::next_sequence(slot, slot.tag().slot(), Some(links));
    slot.intent.set_arg(DESTROY_SEQUENCE, sequence);
    detect::add(arena, links, -1, slot.tag(), sequence);
    link.store(0, Ordering::Release);
    slot.intent.set_arg(DESTROY_SEQUENCE, 0);
    Some(target as usize - 1)
}

/// Frees the block whose address is in a field of an object under destruction.
pub(super) fn drop_block(arena: Arena, slot: &Slot, field: u64) {
    let Some(owner) = word(arena, field) else {
        return;
    };
    let block = owner.load(Ordering::Relaxed) as usize;
    if block != 0 {
        let (word, next) = (field, 0);
        drop_named(arena, slot, Named { word, next, block });
    }
}

/// Frees a block of an object under destruction, and makes the word that named it name the next
/// one.
pub(super) fn drop_named(arena: Arena, slot: &Slot, named: Named) {
    let Some(owner) = word(arena, named.word) else {
        return;
    };
    slot.intent.set_arg(DESTROY_FIELD, named.word);
    slot.intent.set_arg(DESTROY_NEXT, named.next);
    block::about_to_free(slot, named.block as u64);
    owner.store(named.next, Ordering::Release);
    compiler_fence(Ordering::SeqCst);
    // A block that cannot be freed was not one: there is nobody to tell.
    let _ = block::free_named(arena, slot, named.block);
}

/// Finishes the field that a dead destroyer was working on.
fn resolve_drop(arena: Arena, slot: &Slot, author: usize) {
    let Some(field) = word(arena, slot.intent.arg(DESTROY_FIELD)) else {
        return;
    };
    let sequence = slot.intent.arg(DESTROY_SEQUENCE);
    if sequence != 0
        && let Some(links) = counter(arena, slot.intent.arg(DESTROY_TARGET))
    {
        if !detect::happened(arena, links, author, sequence) {
            detect::add(arena, links, -1, Tag::new(author, 0), sequence);
        }
        field.store(0, Ordering::Release);
        slot.intent.set_arg(DESTROY_SEQUENCE, 0);
    }
    if slot.watched.freeing.load(Ordering::SeqCst) != 0 {
        field.store(slot.intent.arg(DESTROY_NEXT), Ordering::Release);
    }
}

/// A word that says how long a block is, and what it is to say of a new block.
#[derive(Clone, Copy)]
pub(crate) struct Length<'a> {
    pub(crate) word: &'a AtomicU64,
    pub(crate) len: u64,
}

/// Replaces the block that `field` names by a new one, which `make` allocates (reporting its
/// address beforehand) and fills; then stores its length, if there is a word for that. The caller
/// keeps everybody else from the field.
pub(crate) fn replace_block<E>(
    arena: Arena,
    slot: &Slot,
    field: &AtomicU64,
    length: Option<Length<'_>>,
    make: impl FnOnce(&dyn Fn(usize)) -> Result<usize, E>,
) -> Result<(), E> {
    let old = field.load(Ordering::Relaxed);
    let address = |word: &AtomicU64| std::ptr::from_ref(word).addr() as u64;
    let (word, len) = length.map_or((0, 0), |length| (address(length.word), length.len));
    slot.intent
        .open(REPLACE, &[address(field), old, 0, word, len]);
    let made = make(&|address| slot.intent.set_arg(REPLACE_NEW, address as u64));
    if let Ok(address) = made {
        // From this store on, the replacement has happened.
        field.store(address as u64, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        if let Some(length) = length {
            // Release: a thread that reads the length finds the block.
            length.word.store(length.len, Ordering::Release);
        }
        if old != 0 {
            block::close_and_free(arena, slot, old);
        } else {
            slot.intent.close();
        }
    } else {
        resolve(arena, slot.tag().slot());
    }
    made.map(drop)
}

fn resolve_replace(arena: Arena, slot: &Slot, owner: Tag) {
    let Some(field) = word(arena, slot.intent.arg(REPLACE_FIELD)) else {
        return;
    };
    let old = slot.intent.arg(REPLACE_OLD);
    let new = slot.intent.arg(REPLACE_NEW);
    if new != 0 && field.load(Ordering::Acquire) == new {
        if let Some(length) = word(arena, slot.intent.arg(REPLACE_LENGTH_WORD)) {
            length.store(slot.intent.arg(REPLACE_LENGTH), Ordering::Release);
        }
        if old != 0 {
            block::about_to_free(slot, old);
            slot.intent.close();
        }
    } else if new != 0 {
        // The block of our own span, or a run: repeatable, see `release_for`.
        block::release_for(arena, owner, new as usize);
    }
}

/// The most bytes that [`write`] writes.
pub(crate) const WRITE_MAX: usize = REDO_WORDS * 8;

/// Writes bytes so that a death leaves all of them written or none. The caller keeps others from
/// the destination, which is in the pool, until the intent is resolved.
///
/// # Safety
///
/// `destination` and `source` are valid for `len` bytes, at most [`WRITE_MAX`]; nobody else
/// accesses the destination.
pub(crate) unsafe fn write(slot: &Slot, destination: *mut u8, source: *const u8, len: usize) {
    debug_assert!(len <= WRITE_MAX);
    let redo = slot.redo.as_ptr().cast::<u8>().cast_mut();
    // SAFETY: the redo area is this thread's, of WRITE_MAX bytes, and atomics allow writes through
    // a shared reference's pointer; the rest by the caller's promise.
    unsafe {
        std::ptr::copy_nonoverlapping(source, redo, len);
        slot.intent
            .open(WRITE, &[destination.addr() as u64, len as u64]);
        std::ptr::copy_nonoverlapping(source, destination, len);
    }
    slot.intent.close();
}

fn redo(arena: Arena, slot: &Slot) {
    let destination = slot.intent.arg(WRITE_TO) as usize;
    let len = slot.intent.arg(WRITE_LENGTH) as usize;
    let end = destination.checked_add(len);
    let inside = arena.slice_of(destination).is_some()
        && len <= WRITE_MAX
        && end.is_some_and(|end| len == 0 || arena.slice_of(end - 1).is_some());
    if inside {
        let redo = slot.redo.as_ptr().cast::<u8>();
        // SAFETY: within committed data of the pool; its author kept others from it, and they wait
        // until the intent is resolved.
        unsafe {
            let destination = std::ptr::with_exposed_provenance_mut::<u8>(destination);
            std::ptr::copy_nonoverlapping(redo, destination, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::arena::DATA;
    use crate::participants::thread;
    use crate::pool::Scratch;
    use crate::protocol::lifecycle::{self, ObjectPhase};
    use crate::{Link, Pool};

    #[test]
    fn nothing_is_written_again_where_nothing_can_have_been() {
        let pool = Pool::builder().initial_size(1 << 20).create().unwrap();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let end = arena.base() + DATA.offset + (1 << 20);
        let last = word(arena, end as u64 - 8).unwrap();
        let beyond = WRITE_MAX + 8;
        for (destination, len) in [
            (end - 8, 16),
            (end - beyond, beyond),
            (end, 8),
            (0, 8),
            (usize::MAX - 4, 8),
        ] {
            slot.intent.open(WRITE, &[destination as u64, len as u64]);
            slot.redo
                .iter()
                .for_each(|word| word.store(9, Ordering::Relaxed));
            last.store(7, Ordering::Relaxed);
            redo(arena, slot);
            assert_eq!(last.load(Ordering::Relaxed), 7, "{len} at {destination:#x}");
            slot.intent.close();
        }
    }

    /// A thread has died at a link of an object that it was destroying, and so have those that
    /// continued its work. Once the link is dropped, others may destroy the rest, and the word may
    /// be reused.
    #[test]
    fn a_link_is_dropped_once() {
        for counted in [false, true] {
            let pool = Pool::builder().create().unwrap();
            let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
            let (me, author) = (slot.tag(), slot.tag().slot());
            let target = pool.create(7_u64).unwrap();
            let link = pool.create(Link::null()).unwrap();
            link.set(Some(&target)).unwrap();
            let reference = target.index() as u64 + 1;
            let links = counter(arena, reference).unwrap();
            let field = arena.object(link.index()).unwrap();
            let field = field.address.load(Ordering::Relaxed);
            let owned = word(arena, field).unwrap();
            let count = || detect::value(links.load(Ordering::Relaxed));
            assert_eq!(
                (count(), detect::value(owned.load(Ordering::Relaxed))),
                (1, reference as u32)
            );

            let sequence = detect::next_sequence(slot, author, Some(links));
            let arguments = [link.index() as u64, field, reference, sequence, 0];
            slot.intent.open(DESTROY, &arguments);
            if counted {
                detect::add(arena, links, -1, me, sequence);
            }
            resolve_drop(arena, slot, author);
            assert_eq!((count(), owned.load(Ordering::Relaxed)), (0, 0));
            owned.store(9, Ordering::Relaxed);
            resolve_drop(arena, slot, author);
            assert_eq!((count(), owned.load(Ordering::Relaxed)), (0, 9));
            owned.store(0, Ordering::Relaxed);
            slot.intent.close();
        }
    }

    /// A thread has died that was destroying an object, when it had struck the block and had not yet
    /// freed it. Whoever may destroy the rest finds the block free: the word that named it may be
    /// another object's by the next look at what the dead one was doing.
    #[test]
    fn what_the_dead_was_freeing_is_free_before_others_go_on() {
        let pool = Scratch::new();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let object = pool.create(7_u64).unwrap();
        let index = object.index();
        let entry = arena.object(index).unwrap();
        let block = entry.address.load(Ordering::Relaxed);
        slot.intent.open(DESTROY, &[index as u64, 0, 0, 0, 0]);
        lifecycle::seize(&entry.state, entry.state(), slot.tag().slot()).unwrap();
        let own = std::ptr::from_ref(&entry.address).addr() as u64;
        slot.intent.set_arg(DESTROY_FIELD, own);
        block::about_to_free(slot, block);
        entry.address.store(0, Ordering::Relaxed);

        // This asserts it in between.
        resolve(arena, slot.tag().slot());
        assert_eq!(entry.state().phase, ObjectPhase::Condemned);
        assert!(block::usable_size(arena, block as usize).is_err());
        drop(object);
        assert_eq!(entry.state().phase, ObjectPhase::Free);
    }
}
