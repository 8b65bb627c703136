//! Taking the first element: for good, or into a lease.
//!
//! Elements that have come back from leases are taken before all others; then come the rings, first to
//! last.

use std::mem::MaybeUninit;

use super::element;
use super::lease::Lease;
use super::raw::{ATTEMPTS, Raw};
use super::refusals::PopError;
use crate::engines::queue::{NEVER, Ring};
use crate::participants::here::{Here, here};
use crate::primitive::Ordering;
use crate::protocol::ring::{self, Take, Walk};
use crate::{Movable, ShmSafe};

/// How often a thread that leases looks for an entry that others are about to give back.
const LOOKS: u32 = 1000;

/// How often a walk through a ring may come to no end. If it does so more often, others have gone round that
/// many times meanwhile, or the ring is garbage.
const LOSSES: u32 = 16;

/// A ring that a walk has passed although somebody is in the middle of a push there.
struct Passed<'a> {
    ring: Ring,
    walk: Walk,
    before: Option<&'a Passed<'a>>,
}

impl Passed<'_> {
    /// True if each of those pushes is still under way, in this ring and in those before.
    fn still(&self) -> bool {
        self.walk.still(self.ring.shape, &|i| self.ring.cell(i))
            && self.before.is_none_or(Passed::still)
    }
}

impl<T: ShmSafe + Movable> Raw<T> {
    #[inline(always)]
    pub(crate) fn try_pop(&self) -> Result<T, PopError> {
        match self.pop_at_head() {
            Some(value) => Ok(value),
            None => self.pop_further(),
        }
    }

    /// Pops at the head of the ring that is known, if nothing was ever leased. It is inlined, so that
    /// the element is passed on in registers.
    #[inline(always)]
    pub(super) fn pop_at_head(&self) -> Option<T> {
        let ring = self.header.front(Self::WORDS)?;
        let mut value = MaybeUninit::uninit();
        // SAFETY: a cell's words, which everybody accesses as atomics.
        let copy = |index, _| unsafe { element::load(ring.element(index), &mut value) };
        let (cell, valid) = (|index| ring.cell(index), || self.is_plain());
        ring::take_at_head(ring.shape, ring.head(), cell, Take::Pop, valid, copy)?;
        self.ring_room();
        // SAFETY: copied from an element that is ours now, as we have taken the position.
        Some(unsafe { value.assume_init() })
    }

    /// Pops the first element, wherever it is.
    #[cold]
    pub(super) fn pop_further(&self) -> Result<T, PopError> {
        match self.pop_from_front() {
            Some(value) => Ok(value),
            None => self.pop_slow(),
        }
    }

    /// As [`pop_at_head`](Self::pop_at_head), wherever in the ring the element is.
    fn pop_from_front(&self) -> Option<T> {
        let ring = self.header.front(Self::WORDS)?;
        if !self.is_plain() {
            return None;
        }
        let mut value = MaybeUninit::uninit();
        // SAFETY: as in `pop_at_head`.
        let copy = |index, _| unsafe { element::load(ring.element(index), &mut value) };
        let (cell, valid) = (|index| ring.cell(index), |_: Option<&Walk>| self.is_plain());
        ring::take(ring.shape, ring.head(), cell, Take::Pop, valid, copy).ok()?;
        self.ring_room();
        // SAFETY: as in `pop_at_head`.
        Some(unsafe { value.assume_init() })
    }

    /// True if nothing can have come back yet, and no element behind a push was reported.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.header.lease_block.load(Ordering::Acquire) == 0 && self.header.foremost.is_none()
    }

    fn pop_slow(&self) -> Result<T, PopError> {
        let mut value = MaybeUninit::uninit();
        let mut looked = false;
        for _ in 0..ATTEMPTS {
            let changes = self.changes();
            if let Some(back) = self.first_back(&mut value) {
                if back.retake(None) {
                    // SAFETY: copied from an entry, and it is that entry's element.
                    return Ok(unsafe { value.assume_init() });
                }
                continue;
            }
            // SAFETY: a cell's words, which everybody accesses as atomics.
            let taken = self.take(Take::Pop, changes, |ring, index, _| unsafe {
                element::load(ring.element(index), &mut value);
            });
            match taken {
                Ok(Some(_)) => {
                    self.ring_room();
                    // SAFETY: as in `pop_at_head`.
                    return Ok(unsafe { value.assume_init() });
                }
                Err(_) if self.look_for_parked(&mut looked) => {}
                Err(refused) if self.none_was_back(changes) => return Err(refused),
                Ok(None) | Err(_) => {}
            }
        }
        Err(PopError::Empty)
    }

    /// Takes the first element of all rings, and returns where it was. `None` if another attempt may
    /// find what this one has not, also among elements that have come back. The caller has looked for
    /// those, and before that has read `changes`.
    pub(super) fn take(
        &self,
        how: Take,
        changes: u64,
        mut copy: impl FnMut(Ring, usize, u64),
    ) -> Result<Option<(Ring, u64)>, PopError> {
        let first = self.first_for_pop()?;
        let foremost = || self.header.foremost.position();
        match (how != Take::See).then(foremost).flatten() {
            Some(at) => Ok(self.take_foremost(first, at, (how, changes), copy)),
            None => self.take_behind(first, None, (how, changes), &mut copy),
        }
    }

    /// The same if a position was reported as the first.
    #[cold]
    fn take_foremost(
        &self,
        first: Ring,
        at: u64,
        (how, changes): (Take, u64),
        mut copy: impl FnMut(Ring, usize, u64),
    ) -> Option<(Ring, u64)> {
        let mut rings = std::iter::successors(Some(first), Ring::next);
        let valid = || self.none_was_back(changes);
        let mut taken_from = None;
        let taken = self.header.foremost.take_told(at, how, || {
            rings.find_map(|ring| {
                let index = ring.shape.index(at);
                taken_from = Some((ring, at));
                let copy_here = || copy(ring, index, at);
                ring::take_at(ring.shape, ring.cell(index), at, how, valid, copy_here)
            })
        });
        taken_from.filter(|_| taken == Some(true))
    }

    /// True if the element that a walk has found is the first: what the walk has passed is as it was, also
    /// in the rings before, and nothing has come back.
    fn is_first(
        &self,
        (how, changes): (Take, u64),
        (ring, walk): (Ring, &Walk),
        passed: Option<&Passed<'_>>,
    ) -> bool {
        let before = || passed.is_none_or(Passed::still);
        let still = || walk.still(ring.shape, &|index| ring.cell(index)) && before();
        let to_stay = how == Take::Look && (walk.pending.is_some() || passed.is_some());
        let first = |at| self.header.foremost.is_first(at, to_stay, still);
        (how == Take::See || walk.full.is_some_and(first))
            && before()
            && self.none_was_back(changes)
    }

    /// The same, starting with a ring. `passed` are the rings before it in which somebody is in the
    /// middle of a push. Each ring is twice as large as the one before, so there are few.
    fn take_behind(
        &self,
        mut ring: Ring,
        passed: Option<&Passed<'_>>,
        (how, changes): (Take, u64),
        copy: &mut dyn FnMut(Ring, usize, u64),
    ) -> Result<Option<(Ring, u64)>, PopError> {
        let mut losses = 0;
        loop {
            let valid = |walk: &Walk| self.is_first((how, changes), (ring, walk), passed);
            let cell = |index| ring.cell(index);
            let mut copy_here = |index, at| copy(ring, index, at);
            let taken = ring::take_if(ring.shape, ring.head(), &cell, how, &mut copy_here, &valid);
            let walk = match taken {
                Ok(at) => {
                    if !how.leaves() {
                        self.header.foremost.taken(at);
                    }
                    return Ok(Some((ring, at)));
                }
                Err(walk) if walk.full.is_some() => return Ok(None),
                Err(walk) if walk.lost && losses < LOSSES => {
                    losses += 1;
                    continue;
                }
                Err(walk) if walk.lost => return Err(PopError::Empty),
                Err(walk) => walk,
            };
            // This is asked after the walk: if there is no next ring now, there was none at the
            // time of the walk.
            let next = ring.next();
            if !passed.is_none_or(Passed::still)
                || walk.pending.is_some_and(|pending| self.recovers(pending))
            {
                return Ok(None);
            }
            let Some(next) = next else {
                return self.nothing(ring, &walk, passed.is_some()).map(|()| None);
            };
            let closed = walk.sealed || walk.around;
            if !closed && !ring::seal(cell(ring.shape.index(walk.end)), walk.end) {
                return Ok(None);
            }
            if walk.pending.is_some() || walk.around {
                let passed = Passed {
                    ring,
                    walk,
                    before: passed,
                };
                return self.take_behind(next, Some(&passed), (how, changes), copy);
            }
            if passed.is_none() {
                self.header.set_front(next);
            }
            ring = next;
        }
    }

    /// The ring to look at first, or why there is none.
    pub(super) fn first_for_pop(&self) -> Result<Ring, PopError> {
        loop {
            if let Some(ring) = self.header.front(Self::WORDS) {
                return Ok(ring);
            }
            if let Some(ring) = self.header.first(Self::WORDS) {
                self.header.set_front(ring);
                return Ok(ring);
            }
            self.arena().ok_or(PopError::NotInPool)?;
            let block = &self.header.block.0;
            if self.capacity() == Some(0) {
                return Err(PopError::NoCapacity);
            } else if block.load(Ordering::Acquire) == NEVER {
                return Err(PopError::Closed);
            } else if !self.is_closed() {
                return Err(PopError::Empty);
            }
            // Seals a queue without cells. If this fails and there still is no first ring, the word
            // names something else.
            let sealed = block.compare_exchange(0, NEVER, Ordering::SeqCst, Ordering::Relaxed);
            if sealed.is_err() && self.header.first(Self::WORDS).is_none() {
                return Err(PopError::Closed);
            }
        }
    }

    /// The answer when nothing is in any ring; `Ok` if another look may find something.
    fn nothing(&self, last: Ring, walk: &Walk, others_pending: bool) -> Result<(), PopError> {
        if !self.is_closed() || walk.pending.is_some() || walk.around || others_pending {
            return Err(PopError::Empty);
        }
        if !walk.sealed {
            ring::seal(last.cell(last.shape.index(walk.end)), walk.end);
            return Ok(());
        }
        // Elements that are leased may come back. (The caller looks for those that have come back.)
        if self.survey().0.held > 0 {
            Err(PopError::Empty)
        } else {
            Err(PopError::Closed)
        }
    }

    pub(crate) fn try_lease(&self) -> Result<Lease<'_, T>, PopError> {
        // An element that comes back has its bytes as they were, but what they led to may be gone.
        const {
            assert!(
                !T::IMAGE_BOUND,
                "a leased element owns nothing that only it may free"
            )
        };
        let Here { arena, slot } = here(self)?;
        // Where there are no cells there is nothing to lease.
        let first = self.first_for_pop()?;
        let table = self.header.leases_or_make(arena, slot, Self::WORDS)?;
        let table = table.ok_or(PopError::TooManyLeases)?;
        let mut value = MaybeUninit::uninit();
        let (mut patience, mut looked) = (LOOKS, false);
        for _ in 0..ATTEMPTS {
            let changes = self.changes();
            if let Some(back) = self.first_back(&mut value) {
                if back.retake(Some(slot.tag())) {
                    // SAFETY: as in `pop_slow`.
                    let value = unsafe { value.assume_init() };
                    return Ok(Lease::new(self, slot, back.entry, value));
                }
                continue;
            }
            // A caller that would find no element must not take an entry from those that would find
            // one.
            match self.take(Take::See, changes, |_, _, _| {}) {
                Ok(Some(_)) => {}
                Err(_) if self.look_for_parked(&mut looked) => continue,
                Err(refused) if self.none_was_back(changes) => return Err(refused),
                Ok(None) | Err(_) => continue,
            }
            let Some(entry) = table.take(slot, first.lap()) else {
                if self.look_for_parked(&mut looked) {
                    continue;
                }
                if patience == 0 || !table.is_full_for_now() {
                    return Err(PopError::TooManyLeases);
                }
                patience -= 1;
                std::thread::yield_now();
                continue;
            };
            let how = Take::Lease(slot.tag().slot());
            let taken = self.take(how, changes, |ring, index, at| {
                // SAFETY: a cell's words, and those of an entry that nobody else stores to.
                unsafe {
                    element::load(ring.element(index), &mut value);
                    element::copy::<T>(ring.element(index), entry.element());
                }
                entry.record(slot, ring.cell(index), ring.lap(), at);
            });
            match taken {
                Ok(Some((ring, position))) => {
                    let cell = ring.cell(ring.shape.index(position));
                    entry.hold(slot.tag(), cell, ring.lap());
                    slot.intent.close();
                    self.ring_room();
                    // SAFETY: as in `pop_at_head`.
                    let value = unsafe { value.assume_init() };
                    return Ok(Lease::new(self, slot, entry, value));
                }
                // Or somebody else has taken it: another look says why there is none.
                Ok(None) | Err(_) => {
                    entry.abandon();
                    slot.intent.close();
                    table.bell().ring();
                }
            }
        }
        Err(PopError::Empty)
    }
}
