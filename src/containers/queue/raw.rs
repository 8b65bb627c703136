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
use std::mem::MaybeUninit;

use super::bell;
use super::element;
use super::lease::Lease;
use super::refusals::{PopError, PushError, PushRefusal};
use crate::ShmSafe;
use crate::engines::leases::{Entry, Survey, Table};
use crate::engines::queue::{CELL, Header, NEVER, PUSH, Ring};
use crate::layout::arena::Arena;
use crate::participants::recovery;
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::thread;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::ring::{self, Refused, Take, Walk};
use crate::sync::{Here, here};

/// How often a snapshot is tried before it is taken as it comes.
const SNAPSHOTS: usize = 16;

/// How often an operation begins anew because others were faster. Where the cells are garbage it would
/// do so for ever; then there is nothing.
const ATTEMPTS: u32 = 1 << 20;

/// How often who leases looks for an entry that others are about to give back.
const LOOKS: u32 = 1000;

/// A ring that was gone past, although somebody is in the middle of a push there.
struct Passed<'a> {
    ring: Ring,
    walk: Walk,
    before: Option<&'a Passed<'a>>,
}

impl Passed<'_> {
    /// Whether each of those pushes still goes on, here and before.
    fn still(&self) -> bool {
        self.walk.still(self.ring.shape, &|i| self.ring.cell(i))
            && self.before.is_none_or(Passed::still)
    }
}

/// An element that has come back, which the caller has copied.
struct Back {
    table: Table,
    entry: Entry,
    position: u64,
}

impl Back {
    fn retake(&self, lease: Option<Tag>) -> bool {
        self.entry.retake(&self.table, self.position, lease)
    }
}

#[repr(C)]
pub(crate) struct Raw<T> {
    pub(super) header: Header,
    elements: PhantomData<T>,
}

impl<T: ShmSafe + Unpin> Raw<T> {
    const WORDS: usize = element::words::<T>();

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
            bell::ring_all(&self.header.pushed.0);
            bell::ring_all(&self.header.popped.bell);
            bell::ring_all(&self.header.popped.called);
        }
    }

    /// The bell of who waits for an element.
    pub(crate) fn pushes(&self) -> &AtomicU64 {
        &self.header.pushed.0
    }

    /// Has who waits for an element look again.
    pub(crate) fn announce_push(&self) {
        bell::ring(&self.header.pushed.0);
    }

    #[inline(always)]
    pub(crate) fn try_push(&self, value: T) -> Result<(), PushError<T>> {
        let slot = thread::known_slot_at(std::ptr::from_ref(self).addr());
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
                bell::ring(&self.header.pushed.0);
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
            Refused::Full(Some(busy)) if self.recovers(busy) => return Ok(ring),
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

    /// Settles the slot that holds something up, if it is dead. True if there is something new.
    #[cold]
    fn recovers(&self, slot: usize) -> bool {
        self.arena().is_some_and(|arena| {
            slot != 0
                && slot < arena.slot_count()
                && arena.slot(slot).life.owner_died()
                && recovery::settle_slot(arena, slot)
        })
    }

    #[inline(always)]
    pub(crate) fn try_pop(&self) -> Result<T, PopError> {
        match self.pop_first() {
            Some(value) => Ok(value),
            None => self.pop_slow(),
        }
    }

    /// Pops from the ring that is known, where nothing is leased. Part of the caller, so that the
    /// element goes on in registers.
    #[inline(always)]
    fn pop_first(&self) -> Option<T> {
        let ring = self.header.front(Self::WORDS)?;
        if self.header.lease_block.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let mut value = MaybeUninit::uninit();
        // SAFETY: a cell's words, which all access as atomics.
        let copy = |index, _| unsafe { element::load(ring.element(index), &mut value) };
        let (cell, valid) = (|index| ring.cell(index), || self.none_leased());
        if ring::take_at_head(ring.shape, ring.head(), cell, Take::Pop, valid, copy).is_none() {
            return self.pop_from(ring);
        }
        self.ring_room();
        // SAFETY: copied from an element that is ours now, as the position was taken.
        Some(unsafe { value.assume_init() })
    }

    /// The same, wherever in the ring it is.
    #[cold]
    fn pop_from(&self, ring: Ring) -> Option<T> {
        let mut value = MaybeUninit::uninit();
        // SAFETY: as in `pop_first`.
        let copy = |index, _| unsafe { element::load(ring.element(index), &mut value) };
        let (cell, valid) = (|index| ring.cell(index), || self.none_leased());
        ring::take(ring.shape, ring.head(), cell, Take::Pop, valid, copy).ok()?;
        self.ring_room();
        // SAFETY: as in `pop_first`.
        Some(unsafe { value.assume_init() })
    }

    /// True if nothing can have come back yet.
    #[inline]
    fn none_leased(&self) -> bool {
        self.header.lease_block.load(Ordering::Acquire) == 0
    }

    #[cold]
    fn pop_slow(&self) -> Result<T, PopError> {
        let mut value = MaybeUninit::uninit();
        for _ in 0..ATTEMPTS {
            let retaken = self.retaken();
            if let Some(back) = self.first_back(&mut value) {
                if back.retake(None) {
                    // SAFETY: copied from an entry whose element it is.
                    return Ok(unsafe { value.assume_init() });
                }
                continue;
            }
            // SAFETY: a cell's words, which all access as atomics.
            let taken = self.take(Take::Pop, retaken, |ring, index, _| unsafe {
                element::load(ring.element(index), &mut value);
            });
            match taken {
                Ok(Some(_)) => {
                    self.ring_room();
                    // SAFETY: as in `pop_first`.
                    return Ok(unsafe { value.assume_init() });
                }
                Err(refused) if self.none_was_back(retaken) => return Err(refused),
                Ok(None) | Err(_) => {}
            }
        }
        Err(PopError::Empty)
    }

    /// Takes the first element of all rings: where it was. `None` if another attempt may find what
    /// this one has not, also among what has come back: the caller has looked for that, and before for
    /// how many were `retaken`.
    fn take(
        &self,
        how: Take,
        retaken: u64,
        mut copy: impl FnMut(Ring, usize, u64),
    ) -> Result<Option<(Ring, u64)>, PopError> {
        self.take_behind(self.first_for_pop()?, None, (how, retaken), &mut copy)
    }

    /// The same from a ring on. `passed` are those before it in which somebody is in the middle of a
    /// push. Each is twice as large as the one before, so there are few.
    fn take_behind(
        &self,
        mut ring: Ring,
        passed: Option<&Passed<'_>>,
        (how, retaken): (Take, u64),
        copy: &mut dyn FnMut(Ring, usize, u64),
    ) -> Result<Option<(Ring, u64)>, PopError> {
        loop {
            let still = || passed.is_none_or(Passed::still);
            let valid = || still() && self.none_was_back(retaken);
            let cell = |index| ring.cell(index);
            let mut copy_here = |index, at| copy(ring, index, at);
            let taken = ring::take_if(ring.shape, ring.head(), &cell, how, &mut copy_here, &valid);
            let walk = match taken {
                Ok(at) => return Ok(Some((ring, at))),
                Err(walk) if walk.has_element() => return Ok(None),
                Err(walk) => walk,
            };
            // The walk came first: if there is no next ring, there was none then.
            let next = ring.next();
            if !still() || walk.pending.is_some_and(|pending| self.recovers(pending)) {
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
                return self.take_behind(next, Some(&passed), (how, retaken), copy);
            }
            if passed.is_none() {
                self.header.set_front(next);
            }
            ring = next;
        }
    }

    /// The ring to look at first, or why there is none.
    fn first_for_pop(&self) -> Result<Ring, PopError> {
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
            // Sealed, without cells; or what it names is no ring.
            let sealed = block.compare_exchange(0, NEVER, Ordering::SeqCst, Ordering::Relaxed);
            if sealed.is_err() && self.header.first(Self::WORDS).is_none() {
                return Err(PopError::Closed);
            }
        }
    }

    /// What is to be said when nothing is in any ring; `Ok` if another look may find something else.
    fn nothing(&self, last: Ring, walk: &Walk, others_pending: bool) -> Result<(), PopError> {
        if !self.is_closed() || walk.pending.is_some() || walk.around || others_pending {
            return Err(PopError::Empty);
        }
        if !walk.sealed {
            ring::seal(last.cell(last.shape.index(walk.end)), walk.end);
            return Ok(());
        }
        // What is leased may come back.
        match self.survey().0 {
            Survey { back: 1.., .. } => Ok(()),
            Survey { held: 1.., .. } => Err(PopError::Empty),
            _ => Err(PopError::Closed),
        }
    }

    /// What the entries of leases hold.
    fn survey(&self) -> (Survey, Option<Entry>) {
        match (self.header.leases(Self::WORDS), self.arena()) {
            (Some(table), Some(arena)) => {
                let slot = thread::known_slot_at(std::ptr::from_ref(self).addr());
                table.survey(arena, slot.map_or(Tag::NOBODY, Slot::tag))
            }
            _ => Default::default(),
        }
    }

    /// To be told to [`none_was_back`](Self::none_was_back).
    fn retaken(&self) -> u64 {
        let table = self.header.leases(Self::WORDS);
        table.map_or(0, |table| table.retaken())
    }

    /// True if no element was back since a look that found none, before which the caller had asked
    /// how many were [`retaken`](Self::retaken).
    fn none_was_back(&self, retaken: u64) -> bool {
        self.survey().0.back == 0 && self.retaken() == retaken
    }

    /// Copies the element that has come back and is to be had next, if there is one.
    fn first_back(&self, to: &mut MaybeUninit<T>) -> Option<Back> {
        for _ in 0..ATTEMPTS {
            let table = self.header.leases(Self::WORDS)?;
            let entry = self.survey().1?;
            // Else somebody has just had it, and there may be others.
            if let Some(position) = entry.is_back() {
                // SAFETY: an entry's words, which all access as atomics.
                unsafe { element::load(entry.element(), to) };
                return Some(Back {
                    table,
                    entry,
                    position,
                });
            }
        }
        None
    }

    pub(crate) fn try_lease(&self) -> Result<Lease<'_, T>, PopError> {
        let Here { arena, slot } = here(self)?;
        // Where there are no cells there is nothing to lease.
        let first = self.first_for_pop()?;
        let table = self.header.leases_or_make(arena, slot, Self::WORDS)?;
        let table = table.ok_or(PopError::TooManyLeases)?;
        let mut value = MaybeUninit::uninit();
        let mut patience = LOOKS;
        for _ in 0..ATTEMPTS {
            let retaken = self.retaken();
            if let Some(back) = self.first_back(&mut value) {
                if back.retake(Some(slot.tag())) {
                    // SAFETY: as in `pop_slow`.
                    let value = unsafe { value.assume_init() };
                    return Ok(Lease::new(self, slot, back.entry, value));
                }
                continue;
            }
            // Who would find nothing takes no entry from those who would.
            match self.take(Take::Look, retaken, |_, _, _| {}) {
                Ok(Some(_)) => {}
                Err(refused) if self.none_was_back(retaken) => return Err(refused),
                Ok(None) | Err(_) => continue,
            }
            let Some(entry) = table.take(slot, first.lap()) else {
                if patience == 0 || !table.is_full_for_now() {
                    return Err(PopError::TooManyLeases);
                }
                patience -= 1;
                std::thread::yield_now();
                continue;
            };
            let how = Take::Lease(slot.tag().slot());
            let taken = self.take(how, retaken, |ring, index, at| {
                // SAFETY: a cell's words, and those of an entry that nobody else stores to.
                unsafe {
                    element::load(ring.element(index), &mut value);
                    element::copy::<T>(ring.element(index), entry.element());
                }
                entry.prepare(slot, ring.cell(index), ring.lap(), at);
            });
            match taken {
                Ok(Some((ring, position))) => {
                    let cell = ring.cell(ring.shape.index(position));
                    entry.hold(slot, cell, ring.lap());
                    self.ring_room();
                    // SAFETY: as in `pop_first`.
                    let value = unsafe { value.assume_init() };
                    return Ok(Lease::new(self, slot, entry, value));
                }
                // Or somebody else has had it: another look says why there is none.
                Ok(None) | Err(_) => entry.abandon(slot),
            }
        }
        Err(PopError::Empty)
    }

    /// A lease has ended: somebody may be waiting for what it was about.
    pub(super) fn settled(&self, consumed: bool) {
        if !consumed {
            bell::ring(&self.header.pushed.0);
        } else if self.is_closed() && bell::has_sleepers(&self.header.pushed.0) {
            bell::ring_all(&self.header.pushed.0);
        }
    }

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

    /// Tells `each` the elements that have come back, in order.
    fn each_back(&self, mut each: impl FnMut(T)) {
        let (Some(table), Some(arena)) = (self.header.leases(Self::WORDS), self.arena()) else {
            return;
        };
        let mut back = Vec::new();
        table.each_back(arena, |entry, position| {
            let mut value = MaybeUninit::uninit();
            // SAFETY: as in `peek`.
            unsafe {
                element::load(entry.element(), &mut value);
                if entry.is_back() == Some(position) {
                    back.push((position, value.assume_init()));
                }
            }
        });
        back.sort_by(|(one, _), (other, _)| {
            ring::is_ahead(*one, *other).cmp(&ring::is_ahead(*other, *one))
        });
        back.into_iter().for_each(|(_, value)| each(value));
    }
}
