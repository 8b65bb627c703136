//! Looking at what there is, without taking it.

use std::mem::MaybeUninit;

use super::element;
use super::raw::{ATTEMPTS, Raw};
use crate::ShmSafe;
use crate::engines::queue::Ring;
use crate::protocol::ring::{self, Take};

/// How often a snapshot is tried before it is taken as it comes.
const SNAPSHOTS: usize = 16;

impl<T: ShmSafe + Unpin> Raw<T> {
    pub(crate) fn len(&self) -> usize {
        let mut pushed = 0;
        self.visit(|_, _, _| pushed += 1);
        pushed + self.survey().0.back
    }

    pub(crate) fn is_empty(&self) -> bool {
        for _ in 0..ATTEMPTS {
            let retaken = self.retaken();
            if self.survey().0.back > 0 {
                return false;
            }
            match self.take(Take::Look, retaken, |_, _, _| {}) {
                Ok(Some(_)) => return false,
                Err(_) if self.none_was_back(retaken) => return true,
                Ok(None) | Err(_) => {}
            }
        }
        true
    }

    pub(crate) fn peek(&self) -> Option<T>
    where
        T: Copy,
    {
        let mut value = MaybeUninit::uninit();
        for _ in 0..ATTEMPTS {
            let retaken = self.retaken();
            if let Some(back) = self.first_back(&mut value) {
                if back.entry.is_back() == Some(back.position) {
                    // SAFETY: copied from an entry that has not changed since.
                    return Some(unsafe { value.assume_init() });
                }
                continue;
            }
            // SAFETY: as in `pop_slow`.
            let taken = self.take(Take::Look, retaken, |ring, index, _| unsafe {
                element::load(ring.element(index), &mut value);
            });
            match taken {
                // SAFETY: copied from a cell that has not changed since.
                Ok(Some(_)) => return Some(unsafe { value.assume_init() }),
                Err(_) if self.none_was_back(retaken) => return None,
                Ok(None) | Err(_) => {}
            }
        }
        None
    }

    /// Tells `each` the elements of all rings, first to last. True if there was a moment with all of
    /// them in the queue, and no others.
    fn visit(&self, mut each: impl FnMut(Ring, usize, u64)) -> bool {
        let (mut whole, mut first) = (true, None);
        let mut next = self.first_for_pop().ok();
        while let Some(ring) = next {
            let cell = |index| ring.cell(index);
            whole &= ring::visit(ring.shape, ring.head(), cell, |index, at| {
                first.get_or_insert((ring, index, at));
                each(ring, index, at);
            });
            next = ring.next();
        }
        whole && first.is_none_or(|(ring, index, at)| ring::is_full(ring.cell(index), at))
    }

    pub(crate) fn snapshot(&self) -> Vec<T>
    where
        T: Copy,
    {
        let mut elements = Vec::new();
        for _ in 0..SNAPSHOTS {
            elements.clear();
            self.each_back(|value| elements.push(value));
            let whole = self.visit(|ring, index, at| {
                let mut value = MaybeUninit::uninit();
                // SAFETY: a cell's words, which all access as atomics; copied from a cell that has
                // not changed meanwhile.
                unsafe {
                    element::load(ring.element(index), &mut value);
                    if ring::is_full(ring.cell(index), at) {
                        elements.push(value.assume_init());
                    }
                }
            });
            if whole {
                break;
            }
        }
        elements
    }
}
