//! What the records of a transaction's log are about: a private list, of which the first few are in the transaction itself.
//!
//! Whether all of an object is saved, or was made, is found by searching the list as long as it is short, and later
//! by the place in the list that the object's entry notes.

use std::mem::MaybeUninit;

use super::super::trace::Elements;
use crate::engines::heap::{HeapEntry, HeapTable};

/// What a record of the log is about.
#[derive(Clone, Copy)]
pub(super) struct About {
    /// The index of an object all of which is saved, or that was made; [`PART`] for anything else.
    pub(super) whole: usize,
    pub(super) elements: &'static Elements,
}

/// An index that no object has.
pub(super) const PART: usize = usize::MAX;

/// The number of records that is enough for most transactions, which then allocate no memory.
const FEW: usize = 8;

/// The list, in the order of the records.
pub(super) struct Recorded {
    len: usize,
    /// Filled up to `len`.
    few: [MaybeUninit<About>; FEW],
    /// What follows after these.
    more: Vec<About>,
}

impl Recorded {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Recorded {
            len: 0,
            few: [const { MaybeUninit::uninit() }; FEW],
            more: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an entry to the list. If it is about a whole object, that object has been
    /// [noted](Self::note).
    #[inline]
    pub(super) fn push(&mut self, table: &HeapTable, about: About) {
        match self.few.get_mut(self.len) {
            Some(place) => drop(place.write(about)),
            None => self.push_behind(table, about),
        }
        self.len += 1;
    }

    #[cold]
    fn push_behind(&mut self, table: &HeapTable, about: About) {
        if self.more.is_empty() {
            // From here on the first few are not searched any more.
            for place in 0..FEW {
                let entry = self.get(place).and_then(|about| table.entry(about.whole));
                entry.inspect(|entry| entry.set_noted(place));
            }
        }
        self.more.push(about);
    }

    /// Notes in an object's entry, if needed, that the next record is about the whole object. For the first few
    /// records the entry is not written to, as others read it.
    #[inline]
    pub(super) fn note(&self, entry: &HeapEntry) {
        if self.len >= FEW {
            entry.set_noted(self.len);
        }
    }

    /// Whether one of the records is about the whole of an object. A note that another transaction has left
    /// leads to a record about something else, or to none.
    #[inline]
    pub(super) fn has_whole(&self, index: usize, entry: &HeapEntry) -> bool {
        match self.few.get(..self.len) {
            // SAFETY: below `len`.
            Some(few) => few
                .iter()
                .any(|about| unsafe { about.assume_init_ref() }.whole == index),
            None => self
                .get(entry.noted())
                .is_some_and(|about| about.whole == index),
        }
    }

    #[inline]
    pub(super) fn get(&self, place: usize) -> Option<About> {
        if place >= self.len {
            return None;
        }
        match self.few.get(place) {
            // SAFETY: below `len`.
            Some(about) => Some(unsafe { about.assume_init() }),
            None => self.more.get(place - FEW).copied(),
        }
    }

    /// Says what the object of the last record consists of.
    #[inline]
    pub(super) fn set_elements_of_last(&mut self, elements: &'static Elements) {
        let Some(last) = self.len.checked_sub(1) else {
            return;
        };
        match self.few.get_mut(last) {
            // SAFETY: below `len`.
            Some(about) => unsafe { about.assume_init_mut() }.elements = elements,
            None => self.more[last - FEW].elements = elements,
        }
    }
}
