//! A queue of elements of one type, without its public interface: what [`Queue`](super::Queue) and
//! [`Mailbox`](crate::Mailbox) are made of.
//!
//! | operation | happens at | killed before leaves | killed after leaves |
//! |-----------|-----------------------|---------------------------------|----------------------|
//! | push      | the cell becomes FULL | intent PUSH: the cell is free   | the element; a sleeper not woken looks within `lock::TICK` |
//! | pop       | the cell becomes free | nothing                         | the element is lost with the caller |
//! | lease     | the cell becomes LEASING | intent LEASE: the entry is free | the element is BACK: popped before all others |
//! | lease acknowledged | the entry is free | BACK                         | consumed |
//! | close     | the word is set       | nothing                         | sleepers look within `lock::TICK` |
//! | seal      | the cell becomes SEALED | nothing                       | consumers go on to the next ring, or report "closed" |
//!
//! A closed queue is *sealed* by a consumer that finds it empty, before the consumer says so: then a
//! push that had looked at the word before it was set can no longer come. So is a ring that has a next
//! one, before consumers go on to that.

use std::marker::PhantomData;

use super::element;
use crate::containers::Contained;
use crate::engines::bell::Bell;
use crate::engines::queue::Header;
use crate::layout::arena::Arena;
use crate::participants::recovery;
use crate::participants::thread::InPool;
use crate::primitive::Ordering;
use crate::{Movable, ShmSafe};

/// How often an operation begins anew because others were faster. Where the cells are garbage it would
/// do so for ever; after this many times, the queue is taken to be empty.
pub(super) const ATTEMPTS: u32 = 1 << 20;

#[repr(C)]
pub(crate) struct Raw<T> {
    pub(super) header: Header,
    elements: Contained<T>,
}

impl<T> InPool for Raw<T> {}

impl<T: ShmSafe + Movable> Raw<T> {
    pub(super) const WORDS: usize = element::words::<T>();

    pub(crate) const fn bounded(cells: usize) -> Self {
        Raw {
            header: Header::bounded(cells),
            elements: PhantomData,
        }
    }

    pub(crate) const fn unbounded() -> Self {
        Raw {
            header: Header::unbounded(),
            elements: PhantomData,
        }
    }

    pub(super) fn arena(&self) -> Option<Arena> {
        Arena::containing(std::ptr::from_ref(self).addr())
    }

    pub(crate) fn capacity(&self) -> Option<usize> {
        self.header.capacity()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.header.closed.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn close(&self) {
        // Only a queue in a pool is closed: a constant must not be changed.
        if self.arena().is_some() {
            self.header.closed.store(1, Ordering::SeqCst);
            self.header.pushed.0.ring_out(u32::MAX);
            self.header.popped.bell.ring_out(u32::MAX);
            self.header.popped.called.ring_out(u32::MAX);
        }
    }

    /// The bell on which threads wait for an element.
    pub(crate) fn pushes(&self) -> &Bell {
        &self.header.pushed.0
    }

    /// Makes a thread that waits for an element look again.
    pub(crate) fn announce_push(&self) {
        self.header.pushed.0.ring();
    }

    /// Settles the slot that holds something up, if its owner is dead. True if something may have
    /// changed.
    #[cold]
    pub(super) fn recovers(&self, slot: usize) -> bool {
        self.arena().is_some_and(|arena| {
            slot != 0
                && slot < arena.slot_count()
                && arena.slot(slot).life.owner_died()
                && recovery::settle_slot(arena, slot)
        })
    }
}
