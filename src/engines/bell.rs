//! Waking threads that sleep until something in a container has changed. For the word, see
//! `protocol::bell`.
//!
//! A push is noticed from its claim on. If the element comes a moment later, this costs the sleeper at most its time
//! limit, `lock::TICK`; and so does a ring that is lost because the ringer died, or the sleeper that it has woken.

use crate::layout::arena::Arena;
use crate::participants::deadline::Deadline;
use crate::participants::habit::attempt_awake;
use crate::participants::here::Here;
use crate::participants::lock;
use crate::participants::tag::Tag;
use crate::primitive::AtomicU64;
use crate::protocol::bell;
use crate::sys::futex;

/// A word to sleep on until it is rung.
#[repr(transparent)]
pub(crate) struct Bell(AtomicU64);

impl Bell {
    pub(crate) const fn new() -> Self {
        Bell(AtomicU64::new(0))
    }

    /// Wakes a sleeper, if there is one.
    #[inline]
    pub(crate) fn ring(&self) {
        if self.has_sleepers() {
            self.ring_out(1);
        }
    }

    /// Wakes all sleepers.
    #[inline]
    pub(crate) fn ring_all(&self) {
        if self.has_sleepers() {
            self.ring_out(u32::MAX);
        }
    }

    /// True if somebody sleeps, or may be asleep.
    #[inline]
    pub(crate) fn has_sleepers(&self) -> bool {
        bell::has_sleepers(&self.0)
    }

    /// Rings for up to `most` sleepers, and says how many it woke.
    #[cold]
    pub(crate) fn ring_out(&self, most: u32) -> usize {
        let rung = self.count();
        self.wake(rung, most)
    }

    /// Counts a ring, and gives what the word is now. To be followed by [`wake`](Self::wake), or by a ring
    /// of another bell.
    pub(crate) fn count(&self) -> u64 {
        bell::count(&self.0)
    }

    /// Wakes up to `most` sleepers, for a ring that was [counted](Self::count), and says how many
    /// it woke.
    pub(crate) fn wake(&self, rung: u64, most: u32) -> usize {
        let half = Arena::low_half(&self.0);
        bell::wake(&self.0, rung, most, |most| futex::wake(half, most))
    }

    /// Announces a sleep, and gives the word on which the caller sleeps. To be followed by another
    /// look, and then by [`sleep`](Self::sleep).
    pub(crate) fn announce(&self) -> u64 {
        bell::announce(&self.0)
    }

    /// As [`announce`](Self::announce), but changes the word even if the bit was set already: so a ring that
    /// found nobody asleep before no longer clears the bit.
    pub(crate) fn announce_anew(&self) -> u64 {
        self.count();
        self.announce()
    }

    /// Sleeps until a ring since [`announce`](Self::announce), or the death of `owner`, for a short time at
    /// most.
    pub(crate) fn sleep(&self, here: Here, announced: u64, owner: Tag, deadline: Deadline) {
        let low = Arena::low_half(&self.0);
        let word = announced as u32;
        lock::sleep(here.arena, here.slot, low, word, owner, deadline);
    }

    /// Attempts something until that succeeds, and sleeps meanwhile; whoever makes it possible rings.
    /// `None` if that does not happen in time.
    #[inline]
    pub(crate) fn wait<R>(
        &self,
        here: Here,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        if let done @ Some(_) = attempt_awake(deadline, &mut attempt) {
            return done;
        }
        self.wait_asleep(here, deadline, attempt)
    }

    /// The same without staying awake first. The sleep is announced before the attempt: see `protocol::bell`.
    #[inline(always)]
    pub(crate) fn wait_asleep<R>(
        &self,
        here: Here,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        loop {
            // Asked before the attempt: if the time is over, the attempt is the last one.
            let over = deadline.is_over();
            let announced = self.announce();
            if let Some(done) = attempt() {
                return Some(done);
            }
            if over {
                return None;
            }
            self.sleep(here, announced, Tag::NOBODY, deadline);
        }
    }
}

/// As [`Bell::wait_asleep`], for something that each of several bells may announce. If there are more than
/// 128 bells, those beyond do not wake the caller, which looks again after a `lock::TICK`.
pub(crate) fn wait_for_any<R>(
    bells: &[&Bell],
    deadline: Deadline,
    attempt: impl Fn() -> Option<R>,
) -> Option<R> {
    loop {
        let over = deadline.is_over();
        let words: Vec<_> = bells
            .iter()
            .map(|&bell| (Arena::low_half(&bell.0), bell.announce() as u32))
            .collect();
        if let Some(done) = attempt() {
            return Some(done);
        }
        if over {
            return None;
        }
        futex::wait_any(&words, deadline.left(lock::TICK));
    }
}
