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
        // What has come back first: it is nowhere else then, and what comes back later is in no ring.
        let mut all = self.survey().0.back;
        self.visit(|_, _, _| all += 1);
        all
    }

    pub(crate) fn is_empty(&self) -> bool {
        for _ in 0..ATTEMPTS {
            let changes = self.changes();
            if self.survey().0.back > 0 {
                return false;
            }
            match self.take(Take::Look, changes, |_, _, _| {}) {
                Ok(Some(_)) => return false,
                Err(_) if self.none_was_back(changes) => return true,
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
            let changes = self.changes();
            if let Some(back) = self.first_back(&mut value) {
                if back.entry.is_back() == Some(back.position) {
                    // SAFETY: copied from an entry that has not changed since.
                    return Some(unsafe { value.assume_init() });
                }
                continue;
            }
            // SAFETY: as in `pop_slow`.
            let taken = self.take(Take::Look, changes, |ring, index, _| unsafe {
                element::load(ring.element(index), &mut value);
            });
            match taken {
                // SAFETY: copied from a cell that has not changed since.
                Ok(Some(_)) => return Some(unsafe { value.assume_init() }),
                Err(_) if self.none_was_back(changes) => return None,
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
            let changes = self.changes();
            let back = self.all_back();
            elements.extend(back.iter().map(|&(_, value)| value));
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
            // That moment was between the two looks at what has come back.
            let positions = |back: &[(u64, T)]| back.iter().map(|&(at, _)| at).collect::<Vec<_>>();
            if whole && positions(&self.all_back()) == positions(&back) && self.changes() == changes
            {
                break;
            }
        }
        elements
    }
}
