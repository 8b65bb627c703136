//! Waiting for an element, and for room; and how a thread that waits for room is made sure to get
//! it.
//!
//! # Rationale
//!
//! A producer that sleeps until there is room mostly loses that room to producers that need not be woken. So a producer
//! that is about to give its processor to others asks for the *turn*, one word with its tag. While somebody has the
//! turn, the others may pass that producer [`PASSES`] times, and then hold back until it has pushed. Then the next one
//! that has waited asks. So each of the pushes that wait gets a share, whatever the scheduler does.
//!
//! The turn is a hint. No push needs it to be right, so recovery does not deal with it:
//!
//! | turn | killed before the next step leaves | and then |
//! |------|-------------------------------------|----------|
//! | taken, by a compare-exchange from 0; then the passes are set to 0 | the dead one's tag, perhaps with the passes of the turn before | whoever waits for room, or rings in vain, clears it |
//! | cleared by its owner, nobody rung | sleepers not woken | they look within a `lock::TICK` |
//!
//! A producer that is *stopped* with the turn makes the others hold back for [`PATIENCE`], once: the word that counts
//! the passes also says since when they hold back, so this time runs once for all of them, however short the time limit
//! of each one is. `try_push` holds back for nobody, as it does not wait: it may pass. So may the last attempt of a
//! push whose time is over: that somebody else has the turn would not make "there was no room" true.
//!
//! The producer with the turn sleeps on a bell of its own, `called`, so that a pop wakes it and not another one. A ring
//! is for one place, and there may be more: a producer whose turn is over rings once more. That is enough, as a
//! producer that has slept and then pushed without the turn has seen somebody else with it, whose turn ends later.
//!
//! Invariants
//! 1. A producer sets the turn before it announces its sleep (by a change of the bell) and looks at
//!    the queue. A consumer rings by a change of the bell and then looks at the turn. So the ring
//!    goes to the producer with the turn, or comes before its look.

use std::ops::ControlFlow;
use std::time::Duration;

use super::Lease;
use super::raw::Raw;
use super::refusals::{PopError, PushError, PushRefusal};
use crate::engines::queue::Header;
use crate::layout::arena::Arena;
use crate::participants::deadline::Deadline;
use crate::participants::habit::attempt_awake_with;
use crate::participants::here::{Here, here};
use crate::participants::tag::Tag;
use crate::participants::{life, lock};
use crate::primitive::Ordering;
use crate::{Movable, ShmSafe};

/// The number of pushes that may pass the producer with the turn.
const PASSES: u64 = 8;

/// A flag in the word that counts the passes: no more are allowed, and the rest of the word is the time since when
/// others hold back, in microseconds of the monotonic clock.
const SINCE: u64 = 1 << 63;

/// How long others hold back for a live producer with the turn: longer than a busy machine takes to
/// run it, so that only a stopped one is passed for good.
const PATIENCE: Duration = Duration::from_millis(40);

/// The outcome of an attempt: the result of the push, or the value, if the attempt is to be made
/// again.
type Attempt<T> = ControlFlow<Result<(), PushError<T>>, T>;

impl<T: ShmSafe + Movable> Raw<T> {
    /// Wakes a thread that waits for room.
    #[inline]
    pub(super) fn ring_room(&self) {
        if self.header.popped.bell.has_sleepers() {
            self.ring_room_out();
        }
    }

    #[cold]
    fn ring_room_out(&self) {
        let room = &self.header.popped;
        let rung = room.bell.count();
        let turn = self.header.turn.load(Ordering::SeqCst);
        if turn == 0 {
            room.bell.wake(rung, 1);
        } else if room.called.ring_out(1) == 0
            && self
                .arena()
                .is_some_and(|arena| lock::is_over(arena, Tag::of_word(turn)))
        {
            self.end_turn(turn);
        }
    }

    /// Ends the turn of another producer that is dead, or for which others have held back for long
    /// enough.
    fn end_turn_of_another(&self, arena: Arena, me: u64) {
        let turn = self.header.turn.load(Ordering::Relaxed);
        if turn != 0
            && turn != me
            && (lock::is_over(arena, Tag::of_word(turn))
                || self.header.was_waited_for(life::microseconds()))
        {
            self.end_turn(turn);
        }
    }

    /// Ends a turn, and makes the next producer look.
    fn end_turn(&self, turn: u64) {
        let header = &self.header;
        let word = &header.turn;
        if word.load(Ordering::Relaxed) == turn
            && word
                .compare_exchange(turn, 0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        {
            self.ring_room();
        }
    }

    #[inline(always)]
    pub(crate) fn push_until(&self, value: T, deadline: Deadline) -> Result<(), PushError<T>> {
        // Relaxed: a hint.
        match self.push_at_tail(value, self.header.turn.load(Ordering::Relaxed)) {
            Ok(()) => Ok(()),
            Err(value) => self.push_late(value, deadline),
        }
    }

    #[cold]
    fn push_late(&self, value: T, deadline: Deadline) -> Result<(), PushError<T>> {
        if self.header.turn.load(Ordering::Relaxed) != 0 {
            return self.push_waiting(value, deadline);
        }
        match self.push_further(value) {
            Err(PushError {
                value,
                cause: PushRefusal::Full,
            }) => self.push_waiting(value, deadline),
            other => other,
        }
    }

    fn push_waiting(&self, value: T, deadline: Deadline) -> Result<(), PushError<T>> {
        let here = match here(self) {
            Ok(here) => here,
            Err(nowhere) => {
                let cause = nowhere.into();
                return Err(PushError { value, cause });
            }
        };
        let pushed = self.push_or_sleep(here, value, deadline);
        // Pushed, refused or out of time: the turn is over.
        self.end_turn(here.slot.tag().word());
        pushed
    }

    fn push_or_sleep(
        &self,
        waiter: Here,
        value: T,
        deadline: Deadline,
    ) -> Result<(), PushError<T>> {
        let header = &self.header;
        let me = waiter.slot.tag().word();
        let room = &header.popped;
        let about_to_yield = || _ = header.take_turn(me);
        let attempt = |value| self.attempt(me, value);
        let mut value = match attempt_awake_with(value, deadline, about_to_yield, attempt) {
            ControlFlow::Break(done) => return done,
            ControlFlow::Continue(value) => value,
        };
        loop {
            // Asked before the attempt: if the time is over, the attempt is the last one.
            let over = deadline.is_over();
            self.end_turn_of_another(waiter.arena, me);
            let mine = header.take_turn(me);
            // By invariant 1.
            let called = room.called.announce();
            let announced = if mine {
                room.bell.announce_anew()
            } else {
                room.bell.announce()
            };
            let attempted = if over {
                self.attempt_anyhow(me, value)
            } else {
                self.attempt(me, value)
            };
            match attempted {
                ControlFlow::Break(done) => return done,
                ControlFlow::Continue(same) => value = same,
            }
            if over {
                let cause = PushRefusal::TimedOut;
                return Err(PushError { value, cause });
            }
            let (bell, announced, owner) = if mine {
                (&room.called, called, Tag::NOBODY)
            } else {
                // The death of the turn's owner wakes us, too.
                let turn = header.turn.load(Ordering::Relaxed);
                (&room.bell, announced, Tag::of_word(turn))
            };
            bell.sleep(waiter, announced, owner, deadline);
        }
    }

    /// Pushes, or holds back for the producer with the turn.
    fn attempt(&self, me: u64, value: T) -> Attempt<T> {
        if self.header.is_to_hold_back(me) {
            return ControlFlow::Continue(value);
        }
        self.attempt_anyhow(me, value)
    }

    /// Pushes, no matter who has the turn.
    fn attempt_anyhow(&self, me: u64, value: T) -> Attempt<T> {
        match self.try_push(value) {
            Err(PushError {
                value,
                cause: PushRefusal::Full,
            }) => ControlFlow::Continue(value),
            other => {
                self.header.pushed_past(me);
                ControlFlow::Break(other)
            }
        }
    }

    /// Pops, waiting for an element until `deadline`.
    #[inline(always)]
    pub(crate) fn pop_by(&self, deadline: Deadline) -> Result<T, PopError> {
        match self.pop_at_head() {
            Some(value) => Ok(value),
            None => self.pop_late(deadline),
        }
    }

    #[cold]
    fn pop_late(&self, deadline: Deadline) -> Result<T, PopError> {
        self.pop_until(deadline, || self.pop_further())
    }

    #[inline(always)]
    pub(crate) fn pop_until<R>(
        &self,
        deadline: Deadline,
        mut pop: impl FnMut() -> Result<R, PopError>,
    ) -> Result<R, PopError> {
        match pop() {
            Err(PopError::Empty) => self.pop_waiting(deadline, pop),
            done => done,
        }
    }

    #[cold]
    fn pop_waiting<R>(
        &self,
        deadline: Deadline,
        mut pop: impl FnMut() -> Result<R, PopError>,
    ) -> Result<R, PopError> {
        let attempt = || match pop() {
            Err(PopError::Empty) => None,
            other => Some(other),
        };
        let bell = &self.header.pushed.0;
        let done = bell.wait(here(self)?, deadline, attempt);
        // A ring wakes only one sleeper. If the queue is closed, this may have been the last element, or there was none:
        // the others are to be told. Or there is one that we cannot have, as we have no entry for it.
        match &done {
            Some(_) if self.is_closed() => bell.ring_all(),
            Some(Err(_)) => bell.ring(),
            _ => {}
        }
        done.unwrap_or(Err(PopError::TimedOut))
    }

    /// Leases, waiting for an element, and for an entry, until `deadline`.
    pub(crate) fn lease_by(&self, deadline: Deadline) -> Result<Lease<'_, T>, PopError> {
        loop {
            match self.pop_until(deadline, || self.try_lease()) {
                Err(PopError::TooManyLeases) => {}
                done => return done,
            }
            match self.lease_when_free(deadline) {
                // There is an entry, but no element any more.
                Err(PopError::Empty) => {}
                done => return done,
            }
        }
    }

    /// Leases as soon as there is an entry, or says why that is not possible then.
    #[cold]
    fn lease_when_free(&self, deadline: Deadline) -> Result<Lease<'_, T>, PopError> {
        let here = here(self)?;
        let table = self.header.leases(Self::WORDS);
        let table = table.filter(|table| !table.are_all_held_by(here.slot.tag()));
        let bell = table.ok_or(PopError::TooManyLeases)?.bell();
        let attempt = || match self.try_lease() {
            Err(PopError::TooManyLeases) => None,
            other => Some(other),
        };
        let leased = bell.wait_asleep(here, deadline, attempt);
        if !matches!(leased, Some(Ok(_))) {
            // We may have been woken, and take nothing.
            bell.ring();
        }
        leased.unwrap_or(Err(PopError::TimedOut))
    }
}

impl Header {
    /// Takes the turn if nobody has it; true if the caller has it now.
    fn take_turn(&self, me: u64) -> bool {
        let taken = self
            .turn
            .compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst);
        if taken.is_ok() {
            self.popped.passes.store(0, Ordering::Relaxed);
        }
        taken.is_ok() || taken == Err(me)
    }

    /// True if another has the turn, and was passed often enough. False for a closed queue, which
    /// refuses at once.
    fn is_to_hold_back(&self, me: u64) -> bool {
        // SeqCst: a thread that sleeps until the turn ends has announced that before this look; see `protocol::bell`.
        let turn = self.turn.load(Ordering::SeqCst);
        turn != 0
            && turn != me
            && self.popped.passes.load(Ordering::Relaxed) >= PASSES
            && self.closed.load(Ordering::SeqCst) == 0
    }

    /// True if others have held back for the producer with the turn for [`PATIENCE`]. If they begin to hold back now,
    /// that is noted.
    // Relaxed: a hint, as is everything about the turn.
    fn was_waited_for(&self, now: u64) -> bool {
        let passes = &self.popped.passes;
        let found = passes.load(Ordering::Relaxed);
        if found & SINCE != 0 {
            // A time in the future is from another clock, or garbage.
            return now.wrapping_sub(found & !SINCE) >= PATIENCE.as_micros() as u64;
        }
        if found >= PASSES {
            let since = now | SINCE;
            let _ = passes.compare_exchange(found, since, Ordering::Relaxed, Ordering::Relaxed);
        }
        false
    }

    /// Called after a push: if another has the turn, it was passed.
    fn pushed_past(&self, me: u64) {
        let turn = self.turn.load(Ordering::Relaxed);
        let passes = &self.popped.passes;
        if turn != 0 && turn != me && passes.load(Ordering::Relaxed) < PASSES {
            passes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Queue;
    use crate::pool::Scratch;

    const OWNER: u64 = 16;
    const OTHER: u64 = 32;

    /// A queue where the turn was passed so often that others hold back.
    fn passed() -> Header {
        let header = Header::bounded(4);
        assert!(header.take_turn(OWNER));
        for _ in 0..PASSES {
            assert!(!header.is_to_hold_back(OTHER) && !header.was_waited_for(1));
            header.pushed_past(OTHER);
        }
        assert!(header.is_to_hold_back(OTHER) && !header.is_to_hold_back(OWNER));
        header
    }

    #[test]
    fn all_together_hold_back_for_one_time() {
        let header = passed();
        let patience = PATIENCE.as_micros() as u64;
        let waited = [1000, 1001, 999 + patience, 1000 + patience].map(|now| {
            // A producer that could not hold back any longer.
            header.pushed_past(OTHER);
            assert!(header.is_to_hold_back(OTHER));
            header.was_waited_for(now)
        });
        assert_eq!(waited, [false, false, false, true]);
    }

    #[test]
    fn a_new_turn_is_waited_for_anew() {
        let header = passed();
        assert!(!header.was_waited_for(1000));
        header.turn.store(0, Ordering::Relaxed);
        assert!(header.take_turn(OTHER) && !header.was_waited_for(u64::MAX >> 1));
        assert!(!header.is_to_hold_back(OWNER));
    }

    #[test]
    fn a_time_to_come_is_none() {
        let header = passed();
        assert!(!header.was_waited_for(1000));
        assert!(header.was_waited_for(999));
    }

    /// A ring that has woken a thread which takes no entry goes on to the next one.
    #[test]
    fn who_waited_for_an_entry_in_vain_rings() {
        let pool = Scratch::new();
        let queue = pool.create(Queue::unbounded()).unwrap();
        (0..=64).for_each(|n| queue.push(n).unwrap());
        let _all: Vec<_> = (0..64).map(|_| queue.lease().unwrap()).collect();
        let bell = queue.raw.header.leases(1).unwrap().bell();
        bell.announce();
        let late = || queue.lease_timeout(Duration::ZERO).err();
        let end = std::thread::scope(|s| s.spawn(late).join().unwrap());
        assert_eq!(end, Some(PopError::TimedOut));
        // It has found nobody asleep.
        assert!(!bell.has_sleepers());
    }
}
