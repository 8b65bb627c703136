//! Pushing: to the last ring, or to a new one that follows it.
//!
//! Mostly everything is as it was the last time, which is the case for [`push_at_tail`](Raw::push_at_tail).
//! The functions that are called after it find out again whatever has changed.

use super::element;
use super::raw::Raw;
use super::refusals::{PushError, PushRefusal};
use crate::engines::queue::{CELL, PUSH, Ring};
use crate::participants::here::{Here, here};
use crate::participants::table::Slot;
use crate::participants::thread;
use crate::primitive::Ordering;
use crate::protocol::ring::{self, Claim, Refused};
use crate::{Movable, ShmSafe};

impl<T: ShmSafe + Movable> Raw<T> {
    #[inline(always)]
    pub(crate) fn try_push(&self, value: T) -> Result<(), PushError<T>> {
        match self.push_at_tail(value, 0) {
            Ok(()) => Ok(()),
            Err(value) => self.push_further(value),
        }
    }

    /// Pushes at the tail of the ring that is known, if nothing is in the way, and `unless` is 0. It is
    /// inlined, so that the element is passed in registers.
    #[inline(always)]
    pub(super) fn push_at_tail(&self, mut value: T, unless: u64) -> Result<(), T> {
        let Some(ring) = self.header.back(Self::WORDS) else {
            return Err(value);
        };
        let Some(slot) = thread::slot_in(ring.arena()) else {
            return Err(value);
        };
        // As in `push_to`.
        if unless | self.header.closed.load(Ordering::SeqCst) | ring.successor() != 0 {
            return Err(value);
        }
        let record = |index| {
            let cell = std::ptr::from_ref(ring.cell(index)).addr();
            slot.intent.open(PUSH, &[cell as u64, ring.lap()]);
        };
        let (me, cell) = (slot.tag().slot(), |index| ring.cell(index));
        match ring::claim_at_tail(ring.shape, ring.tail(), cell, me, record) {
            Some(claim) => {
                self.fill(slot, ring, claim, &mut value);
                Ok(())
            }
            None => {
                slot.intent.close();
                Err(value)
            }
        }
    }

    /// Completes a push whose place has been claimed.
    #[inline(always)]
    fn fill(&self, slot: &Slot, ring: Ring, claim: Claim, value: &mut T) {
        let Claim { position, index } = claim;
        // SAFETY: the cell of a position that is ours until it is published.
        unsafe { element::store(value, ring.element(index)) };
        ring::publish(ring.cell(index), position);
        slot.intent.close();
        self.header.pushed.0.ring();
    }

    /// Pushes, wherever the ring and the place in it are.
    #[cold]
    pub(super) fn push_further(&self, value: T) -> Result<(), PushError<T>> {
        let slot = thread::known_slot_near(self);
        match (slot, self.header.back(Self::WORDS)) {
            (Some(slot), Some(ring)) => self.push_from(slot, ring, value),
            _ => self.push_first(value),
        }
    }

    /// The first push of a thread, or the first of all.
    fn push_first(&self, value: T) -> Result<(), PushError<T>> {
        match self.first_for_push() {
            Ok((here, ring)) => {
                self.header.set_back(ring);
                self.push_from(here.slot, ring, value)
            }
            Err(cause) => Err(PushError { value, cause }),
        }
    }

    fn first_for_push(&self) -> Result<(Here, Ring), PushRefusal> {
        let here = here(self)?;
        if self.capacity() == Some(0) {
            return Err(PushRefusal::NoCapacity);
        }
        if self.is_closed() {
            return Err(PushRefusal::Closed);
        }
        let ring = match self.header.first(Self::WORDS) {
            Some(ring) => Some(ring),
            None => self.header.make_first(here.arena, here.slot, Self::WORDS)?,
        };
        Ok((here, ring.ok_or(PushRefusal::Closed)?))
    }

    /// Pushes to a ring. If this is refused, there may be another ring.
    fn push_to(&self, slot: &Slot, ring: Ring, mut value: T) -> Result<(), (T, Refused)> {
        // Asked after the ring was found: if it is a new one, a consumer that took the ring before it
        // for the end had seen `closed` set by then, and so do we.
        if self.header.closed.load(Ordering::SeqCst) != 0 || ring.is_over() {
            return Err((value, Refused::Sealed));
        }
        slot.intent.open(PUSH, &[0, ring.lap()]);
        let me = slot.tag().slot();
        let record = |index| {
            let cell = std::ptr::from_ref(ring.cell(index)).addr();
            slot.intent.set_arg(CELL, cell as u64);
        };
        let cell = |index| ring.cell(index);
        match ring::claim(ring.shape, ring.tail(), cell, me, record) {
            Ok(claim) => {
                self.fill(slot, ring, claim, &mut value);
                Ok(())
            }
            Err(refused) => {
                slot.intent.close();
                Err((value, refused))
            }
        }
    }

    /// Pushes to a ring, or to one that follows it.
    fn push_from(&self, slot: &Slot, mut ring: Ring, mut value: T) -> Result<(), PushError<T>> {
        loop {
            let refused = match self.push_to(slot, ring, value) {
                Ok(()) => return Ok(()),
                Err((same, refused)) => {
                    value = same;
                    refused
                }
            };
            ring = match self.ring_after(slot, ring, refused) {
                Ok(ring) => ring,
                Err(cause) => return Err(PushError { value, cause }),
            };
        }
    }

    /// Where to push instead.
    fn ring_after(&self, slot: &Slot, ring: Ring, refused: Refused) -> Result<Ring, PushRefusal> {
        if self.is_closed() {
            return Err(PushRefusal::Closed);
        }
        let next = match refused {
            _ if ring.is_over() => ring.next(),
            Refused::Full(Some(busy))
                if busy.is_over(|index| ring.cell(index), |slot| self.recovers(slot)) =>
            {
                return Ok(ring);
            }
            Refused::Full(_) if self.capacity().is_some() => return Err(PushRefusal::Full),
            Refused::Full(_) => {
                let arena = self.arena().ok_or(PushRefusal::NotInPool)?;
                ring.make_next(arena, slot)?
            }
            Refused::Sealed => None,
        };
        let next = next.ok_or(PushRefusal::Closed)?;
        self.header.set_back(next);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::participants::table::SlotPhase;
    use crate::pool::Scratch;
    use crate::sys::robust::OWNER_DIED;
    use crate::{PopError, Queue, Shared};

    /// The slot of a thread that has claimed a place, and does nothing more.
    fn claims(queue: &Shared<Queue<u32>>) -> &'static Slot {
        let arena = queue.pool().0;
        let index = std::thread::spawn(move || thread::slot(arena).unwrap().tag().slot());
        let index = index.join().unwrap();
        let ring = queue.raw.header.back(1).unwrap();
        let claim = ring::claim(ring.shape, ring.tail(), |i| ring.cell(i), index, |_| ());
        let cell = ring.cell(claim.unwrap().index);
        let slot = arena.slot(index);
        let args = [std::ptr::from_ref(cell).addr() as u64, ring.lap()];
        slot.intent.open(PUSH, &args);
        slot
    }

    fn dies(slot: &Slot) {
        let state = slot.state();
        assert!(slot.turn(state, state.with(SlotPhase::Dead)));
        slot.life.word.store(OWNER_DIED, Ordering::Relaxed);
    }

    #[test]
    fn a_place_that_a_dead_one_has_claimed_is_free() {
        let pool = Scratch::new();
        let queue = pool.create(Queue::bounded(1)).unwrap();
        queue.push(1).unwrap();
        assert_eq!(queue.pop(), Ok(1));
        let slot = claims(&queue);
        assert!(queue.try_push(2).is_err());
        dies(slot);
        assert!(queue.try_push(3).is_ok());
        assert_eq!(queue.pop(), Ok(3));
    }

    /// Also for those that come from a ring before the last one; not for the dead.
    #[test]
    fn a_closed_queue_waits_for_elements_on_their_way() {
        for others in [0, 3] {
            let pool = Scratch::new();
            let queue = pool.create(Queue::unbounded()).unwrap();
            (0..31).for_each(|n| queue.push(n).unwrap());
            let slot = claims(&queue);
            (31..31 + others).for_each(|n| queue.push(n).unwrap());
            (0..31 + others).for_each(|n| assert_eq!(queue.try_pop(), Ok(n)));
            queue.close();
            assert_eq!(queue.try_pop(), Err(PopError::Empty));
            dies(slot);
            assert_eq!(queue.try_pop(), Err(PopError::Closed));
        }
    }

    /// Not one either that has looked for the next ring before there was one.
    #[test]
    fn nobody_pushes_to_a_ring_that_is_over() {
        let pool = Scratch::new();
        let queue = pool.create(Queue::unbounded()).unwrap();
        queue.push(0).unwrap();
        let ring = queue.raw.header.back(1).unwrap();
        (1..33).for_each(|n| queue.push(n).unwrap());
        (0..33).for_each(|n| assert_eq!(queue.try_pop(), Ok(n)));
        assert_eq!(queue.try_pop(), Err(PopError::Empty));
        let me = thread::slot(queue.pool().0).unwrap().tag().slot();
        let claim = ring::claim(ring.shape, ring.tail(), |i| ring.cell(i), me, |_| ());
        assert_eq!(claim, Err(Refused::Sealed));
    }
}
