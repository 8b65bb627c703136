//! A queue of elements of one type, without its public face: what [`Queue`](super::Queue) and
//! [`Mailbox`](crate::Mailbox) are made of.
//!
//! | operation | happens at | killed before leaves | killed after leaves |
//! |-----------|-----------------------|---------------------------------|----------------------|
//! | push      | the cell becomes FULL | intent PUSH: the cell is free   | the element; a sleeper not woken looks within `lock::TICK` |
//! | pop       | the cell becomes free | nothing                         | the element is gone with the caller |
//! | lease     | the cell becomes LEASING | intent LEASE: the entry is free | the element is BACK: had again before all others |
//! | lease acknowledged | the entry is free | BACK                         | consumed |
//! | close     | the word is set       | nothing                         | sleepers look within `lock::TICK` |
//! | seal      | the cell becomes SEALED | nothing                       | "closed" is told from here on |
//!
//! A closed queue is *sealed* by who finds it empty, before it says so: a push that had looked at the
//! word before it was set cannot come later than that.

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
/// do so for ever; then there is nothing.
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
        // By something in a pool or by nobody: a constant stays as it is.
        if self.arena().is_some() {
            self.header.closed.store(1, Ordering::SeqCst);
            self.header.pushed.0.ring_out(u32::MAX);
            self.header.popped.bell.ring_out(u32::MAX);
            self.header.popped.called.ring_out(u32::MAX);
        }
    }

    /// The bell of who waits for an element.
    pub(crate) fn pushes(&self) -> &Bell {
        &self.header.pushed.0
    }

    /// Has who waits for an element look again.
    pub(crate) fn announce_push(&self) {
        self.header.pushed.0.ring();
    }

    /// Settles the slot that holds something up, if it is dead. True if there is something new.
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
