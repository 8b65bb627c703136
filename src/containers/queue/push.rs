//! Pushing: to the last ring, or to one that is made behind it.

use super::element;
use super::raw::Raw;
use super::refusals::{PushError, PushRefusal};
use crate::ShmSafe;
use crate::engines::queue::{CELL, PUSH, Ring};
use crate::participants::here::{Here, here};
use crate::participants::table::Slot;
use crate::participants::thread;
use crate::primitive::Ordering;
use crate::protocol::ring::{self, Refused};

impl<T: ShmSafe + Unpin> Raw<T> {
    #[inline(always)]
    pub(crate) fn try_push(&self, value: T) -> Result<(), PushError<T>> {
        let slot = thread::known_slot_near(self);
        match (slot, self.header.back(Self::WORDS)) {
            (Some(slot), Some(ring)) => match self.push_to(slot, ring, value) {
                Ok(()) => Ok(()),
                Err((value, refused)) => self.push_elsewhere(slot, ring, value, refused),
            },
            _ => self.push_first(value),
        }
    }

    /// The first push of a thread, or of all.
    #[cold]
    fn push_first(&self, value: T) -> Result<(), PushError<T>> {
        match self.first_for_push() {
            Ok((here, ring)) => {
                self.header.set_back(ring);
                match self.push_to(here.slot, ring, value) {
                    Ok(()) => Ok(()),
                    Err((value, refused)) => self.push_elsewhere(here.slot, ring, value, refused),
                }
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

    /// Pushes to a ring. If it is refused, there may be another one.
    #[inline(always)]
    fn push_to(&self, slot: &Slot, ring: Ring, mut value: T) -> Result<(), (T, Refused)> {
        // After the ring was found: where it is a new one, that is before it can be told to be the end.
        if self.header.closed.load(Ordering::SeqCst) != 0 || ring.is_over() {
            return Err((value, Refused::Sealed));
        }
        slot.intent.open(PUSH, &[0, ring.lap()]);
        let me = slot.tag().slot();
        let record = move |index| {
            let cell = std::ptr::from_ref(ring.cell(index)).addr();
            slot.intent.set_arg(CELL, cell as u64);
        };
        let cell = move |index| ring.cell(index);
        match ring::claim(ring.shape, ring.tail(), cell, me, record) {
            Ok(position) => {
                let index = ring.shape.index(position);
                // SAFETY: the cell of a position that is ours until it is published.
                unsafe { element::store(&mut value, ring.element(index)) };
                ring::publish(ring.cell(index), position);
                slot.intent.close();
                self.header.pushed.0.ring();
                Ok(())
            }
            Err(refused) => {
                slot.intent.close();
                Err((value, refused))
            }
        }
    }

    /// A ring has refused it.
    #[cold]
    fn push_elsewhere(
        &self,
        slot: &Slot,
        mut ring: Ring,
        mut value: T,
        mut refused: Refused,
    ) -> Result<(), PushError<T>> {
        loop {
            ring = match self.ring_after(slot, ring, refused) {
                Ok(ring) => ring,
                Err(cause) => return Err(PushError { value, cause }),
            };
            match self.push_to(slot, ring, value) {
                Ok(()) => return Ok(()),
                Err(again) => (value, refused) = again,
            }
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
