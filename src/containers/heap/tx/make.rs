//! How a transaction makes objects.

use std::alloc::Layout;
use std::ptr::NonNull;

use super::super::gc::{self, Gc, GcTarget};
use super::super::trace::{Elements, Trace};
use super::{About, Tx};
use crate::Movable;
use crate::allocator::{AllocError, Packed};
use crate::engines::heap::{Record, What, Words};
use crate::participants::here::Here;
use crate::pool::intents::Length;
use crate::primitive::Ordering;

impl<R: Trace + Movable> Tx<'_, R> {
    /// Makes an object of `len` elements, which the caller fills before anything else.
    #[inline(always)]
    pub(super) fn make<T: ?Sized + GcTarget>(
        &mut self,
        len: usize,
    ) -> Result<(Gc<T>, NonNull<T::Element>), AllocError> {
        let layout = Layout::array::<T::Element>(len).map_err(|_| AllocError::TooLarge)?;
        let layout = Layout::from_size_align(layout.size().max(1), layout.align());
        let layout = layout.map_err(|_| AllocError::TooLarge)?;
        let index = self.make_entry(gc::kind::<T>(&self.table), len, layout);
        let index = index.map_err(Packed::unpack)?;
        let entry = self.table.entry(index).ok_or(AllocError::TooLarge)?;
        let place = std::ptr::with_exposed_provenance_mut(entry.address() as usize);
        Ok((
            Gc::new(&self.table, index, entry),
            NonNull::new(place).expect("blocks are not at zero"),
        ))
    }

    /// Takes an entry of the table for a new object, allocates the object's block, and returns the
    /// entry's index.
    fn make_entry(&mut self, kind: u64, len: usize, layout: Layout) -> Result<usize, Packed> {
        self.with_room(|tx| {
            let (index, entry) = loop {
                match tx.words().find_free(&tx.table) {
                    Some(free) => break free,
                    None => tx.enlarge()?,
                }
            };
            let birth = Record {
                what: What::Birth(index),
                offset: 0,
                bytes: std::ptr::null(),
                len: 0,
            };
            // The object has no ids before it is filled.
            let about = About {
                whole: index,
                elements: const { &Elements::NONE },
            };
            tx.recorded.note(entry);
            tx.record(&birth, about)?;
            entry.describe(kind, len as u64);
            tx.fill(&entry.address, None, layout, |_| {})?;
            let place = entry.address() as usize;
            if tx.table.room_at(place) < layout.size() {
                // The pool has grown.
                tx.look_up_table();
            }
            let words = tx.words();
            let debt = words.debt.load(Ordering::Relaxed);
            let debt = debt.saturating_add(layout.size().next_multiple_of(16) as u64);
            words.debt.store(debt, Ordering::Relaxed);
            Ok(index)
        })
    }

    /// Makes the table larger.
    #[cold]
    fn enlarge(&mut self) -> Result<(), Packed> {
        let table = self.table;
        let (entries, bytes) = Words::next_table(&table).ok_or(AllocError::TooLarge)?;
        let layout = Layout::from_size_align(bytes, 64).map_err(|_| AllocError::TooLarge)?;
        let length = Length {
            word: &self.words().entries,
            len: entries as u64,
        };
        self.fill(&self.words().table, Some(length), layout, |address| {
            // SAFETY: a new block of that many bytes.
            unsafe { Words::copy_table(&table, address, bytes) };
        })?;
        self.look_up_table();
        Ok(())
    }

    /// Notes that the object that was made last has been filled.
    pub(super) fn made<E: Trace>(&mut self) {
        let elements = const { &Elements::of::<E>() };
        self.recorded.set_elements_of_last(elements);
    }
}

/// An object that is being filled. If this is dropped, the object is freed: an id that is guessed,
/// or read from bytes, would otherwise lead to elements that do not exist. If the process is killed
/// meanwhile, the object's birth is undone.
pub(super) struct Unfilled<'a, 't, R: Trace + Movable> {
    pub(super) tx: &'a Tx<'t, R>,
    pub(super) index: usize,
}

impl<R: Trace + Movable> Drop for Unfilled<'_, '_, R> {
    fn drop(&mut self) {
        let Here { arena, slot } = self.tx.here;
        let words = self.tx.words();
        if self.tx.is_mine()
            && let Some(entry) = self.tx.table.entry(self.index)
        {
            words.free(arena, slot, self.index, entry);
        }
    }
}
