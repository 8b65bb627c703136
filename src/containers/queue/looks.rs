//! Looking at elements without taking them.
//!
//! The first element is reported as `protocol::foremost` says. All elements are looked at twice: the
//! second look must find unchanged what the first one has copied. Then these elements were in the queue in
//! between, and no others.

use std::mem::MaybeUninit;

use super::element;
use super::raw::{ATTEMPTS, Raw};
use crate::engines::queue::Ring;
use crate::protocol::ring::{self, Take, Walk};
use crate::{Movable, ShmSafe};

/// How often a snapshot is tried before it is taken as it is.
const SNAPSHOTS: usize = 16;

impl<T: ShmSafe + Movable> Raw<T> {
    pub(crate) fn len(&self) -> usize {
        self.look_for_parked(&mut false);
        // Elements that have come back are counted first: they are nowhere else then, and one that
        // comes back later is in no ring.
        let mut all = self.survey().0.back;
        for ring in std::iter::successors(self.first_for_pop().ok(), Ring::next) {
            let cell = |index| ring.cell(index);
            ring::visit(ring.shape, ring.head(), cell, |_, _| all += 1);
        }
        all
    }

    pub(crate) fn is_empty(&self) -> bool {
        let mut looked = false;
        for _ in 0..ATTEMPTS {
            let changes = self.changes();
            if self.survey().0.back > 0 {
                return false;
            }
            match self.take(Take::See, changes, |_, _, _| {}) {
                Ok(Some(_)) => return false,
                Err(_) if self.look_for_parked(&mut looked) => {}
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
        let mut looked = false;
        for _ in 0..ATTEMPTS {
            let changes = self.changes();
            if let Some(back) = self.first_back(&mut value) {
                if back.was_first() {
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
                Err(_) if self.look_for_parked(&mut looked) => {}
                Err(_) if self.none_was_back(changes) => return None,
                Ok(None) | Err(_) => {}
            }
        }
        None
    }

    pub(crate) fn snapshot(&self) -> Vec<T>
    where
        T: Copy,
    {
        self.look_for_parked(&mut false);
        let mut elements = Vec::new();
        for _ in 0..SNAPSHOTS {
            let changes = self.changes();
            let back = self.all_back();
            elements.clone_from(&back);
            let mut walks = Vec::new();
            let mut next = self.first_for_pop().ok();
            while let Some(ring) = next {
                walks.push((ring, self.copy(ring, &mut elements)));
                next = ring.next();
            }
            let foremost = &self.header.foremost;
            if foremost.is_open() {
                // This settles which element is named. If it fails, others have settled that, or something
                // that was copied has changed.
                let _ = self.take(Take::Look, changes, |_, _, _| {});
            }
            let told = foremost.position();
            let told = elements.iter().position(|&(at, _)| Some(at) == told);
            if let Some(told) = told.filter(|&told| told >= back.len()) {
                elements[back.len()..=told].rotate_right(1);
            }
            // The snapshot is of the moment when the last walk ended. What the other walks have
            // seen was still so then.
            let whole = walks.iter().rev().enumerate().all(|(after, (ring, walk))| {
                let cell = |index| ring.cell(index);
                walk.still(ring.shape, &cell) && (after == 0 || walk.is_at_end(ring.shape, &cell))
            });
            // That moment also lies between the two looks at what has come back.
            let positions = |back: &[(u64, T)]| back.iter().map(|&(at, _)| at).collect::<Vec<_>>();
            if whole && positions(&self.all_back()) == positions(&back) && self.changes() == changes
            {
                break;
            }
        }
        elements.into_iter().map(|(_, value)| value).collect()
    }

    /// Copies the elements of a ring, with their positions.
    fn copy(&self, ring: Ring, to: &mut Vec<(u64, T)>) -> Walk
    where
        T: Copy,
    {
        let cell = |index| ring.cell(index);
        ring::visit(ring.shape, ring.head(), cell, |index, at| {
            let mut value = MaybeUninit::uninit();
            // SAFETY: a cell's words, which everybody accesses as atomics; copied from a cell that
            // has not changed meanwhile.
            unsafe {
                element::load(ring.element(index), &mut value);
                if ring::is_full(ring.cell(index), at) {
                    to.push((at, value.assume_init()));
                }
            }
        })
    }
}
