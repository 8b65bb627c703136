//! A lock whose word names its owner.
//!
//! ```text
//! bit 0     WAITERS   a thread sleeps, or may
//! bit 1     PANICKED  a holder unwound with it
//! bit 2     DIED      a holder died with it, and nobody has repaired what it left
//! bit 4..   the owner's tag; 0 while free
//! ```
//!
//! Free to held is one compare-exchange, held to free another. Nothing is listed anywhere, since a
//! tag whose owner is gone tells all: a thread that meets it takes the lock over, with DIED set, by
//! a compare-exchange from that very word. Sleepers sleep on the lock's word and the owner's life
//! word at once, so a death wakes one of them without anybody's help; the others are woken by that
//! one, by recovery, or by their own time limit.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before the exchange that takes it | nothing | |
//! | holding it | the dead tag | the next thread takes it over |
//! | after the exchange that frees it, before the wake | sleepers not woken | they look again within [`TICK`] |
//! | woken, before taking it | a wake lost | as above |
//!
//! A thread that is woken and then gives up, because others were faster and its time is up, wakes
//! the others.
//!
//! Invariants
//! 1. The tag is changed from a live owner's to another only by that owner.
//! 2. PANICKED and DIED stay until a holder clears them.
//! 3. A dead owner's lock is taken only when its intent is resolved: what it was doing under the
//!    lock has happened or not by then.

use std::time::Duration;

use crate::layout::arena::Arena;
use crate::participants::deadline::Deadline;
use crate::participants::habit::Looks;
use crate::participants::table::{Slot, SlotPhase};
use crate::participants::tag::Tag;
use crate::participants::{life, recovery};
use crate::primitive::{AtomicU64, Ordering};
pub(crate) use crate::protocol::lock_word::{
    DIED, Exchanged, PANICKED, Refused, WAITERS, announce, clear, try_fast,
};
use crate::protocol::lock_word::{attempt, unlock_fast, unlock_slow, was_woken_for_others};
use crate::sys::futex;
use crate::sys::robust::OWNER_DIED;

/// How long a thread sleeps without looking again: the longest delay that a lost wake causes.
pub(crate) const TICK: Duration = Duration::from_millis(4);

/// A lock as the thread that took it found it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// PANICKED and DIED.
    pub(crate) flags: u64,
    /// The dead owner from which it was taken; nobody if it was free.
    pub(crate) from: Tag,
    pub(crate) exchanged: Exchanged,
}

impl Taken {
    /// Free, and with no flags.
    #[inline]
    fn clean(exchanged: Exchanged) -> Taken {
        Taken {
            flags: 0,
            from: Tag::NOBODY,
            exchanged,
        }
    }
}

/// Takes the lock, waiting until `deadline`.
#[inline]
pub(crate) fn lock(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    deadline: Deadline,
) -> Result<Taken, Refused> {
    let me = slot.tag();
    match try_fast(word, me) {
        Some(exchanged) => Ok(Taken::clean(exchanged)),
        None => lock_slow(arena, slot, word, deadline, Looks::new()),
    }
}

/// As [`lock`], for a thread that was most likely woken by the lock's holder: that holder is about
/// to give the lock back, and not to come back to it.
#[inline]
pub(crate) fn relock(arena: Arena, slot: &Slot, word: &AtomicU64) -> Result<Taken, Refused> {
    match try_fast(word, slot.tag()) {
        Some(exchanged) => Ok(Taken::clean(exchanged)),
        None => lock_slow(arena, slot, word, Deadline::NEVER, Looks::steady()),
    }
}

#[cold]
fn lock_slow(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    deadline: Deadline,
    mut looks: Looks,
) -> Result<Taken, Refused> {
    let me = slot.tag();
    let (mut slept, mut looked) = (0, false);
    loop {
        let found = word.load(Ordering::Relaxed);
        match attempt(word, me, found, slept, |owner| is_over(arena, owner)) {
            Ok((flags, exchanged)) => {
                return Ok(Taken {
                    flags,
                    from: Tag::of_word(found),
                    exchanged,
                });
            }
            Err(Refused::Held) => return Err(Refused::Held),
            Err(_) => {}
        }
        if looks.go_on() {
            continue;
        }
        if deadline.is_over() {
            if look_for_parked(arena, Tag::of_word(found), &mut looked) {
                continue;
            }
            if was_woken_for_others(found, slept) {
                futex::wake(Arena::low_half(word), u32::MAX);
            }
            return Err(Refused::TimedOut);
        }
        if Tag::of_word(found).is_nobody() {
            // A free lock was lost to another taker. WAITERS on a free lock would wake nobody.
            continue;
        }
        if let Some(waiting) = announce(word, found) {
            sleep(
                arena,
                slot,
                Arena::low_half(word),
                waiting as u32,
                Tag::of_word(found),
                deadline,
            );
            // Others may sleep too: a thread that takes the lock after a sleep must wake the next.
            slept = WAITERS;
        }
    }
}

/// Takes the lock if that is possible now.
#[inline]
pub(crate) fn try_lock(arena: Arena, slot: &Slot, word: &AtomicU64) -> Result<Taken, Refused> {
    match try_fast(word, slot.tag()) {
        Some(exchanged) => Ok(Taken::clean(exchanged)),
        None => try_lock_slow(arena, slot, word),
    }
}

#[cold]
fn try_lock_slow(arena: Arena, slot: &Slot, word: &AtomicU64) -> Result<Taken, Refused> {
    let mut looked = false;
    loop {
        let found = word.load(Ordering::Relaxed);
        match attempt(word, slot.tag(), found, 0, |owner| is_over(arena, owner)) {
            // Lost to a change of flags or to another taker: look again.
            Err(Refused::Busy) if word.load(Ordering::Relaxed) != found => {}
            Err(Refused::Busy) if look_for_parked(arena, Tag::of_word(found), &mut looked) => {}
            other => {
                let from = Tag::of_word(found);
                return other.map(|(flags, exchanged)| Taken {
                    flags,
                    from,
                    exchanged,
                });
            }
        }
    }
}

/// Takes a lock of the library's own, whose data is right at every instant: what a dead holder was doing has happened
/// or has not, by invariant 3, so its flags are cleared and nothing is repaired.
///
/// A caller that holds the lock already, which only a damaged pool says, goes on as if it had taken it.
#[inline]
pub(crate) fn take(arena: Arena, slot: &Slot, word: &AtomicU64) {
    if let Ok(taken) = lock(arena, slot, word, Deadline::NEVER) {
        forget_dead(word, taken);
    }
}

/// As [`take`], if the lock can be had now.
#[inline]
pub(crate) fn try_take(arena: Arena, slot: &Slot, word: &AtomicU64) -> bool {
    let taken = try_lock(arena, slot, word);
    taken.map(|taken| forget_dead(word, taken)).is_ok()
}

/// Runs `f`, none of a user's code, under a lock that it [takes](take).
#[inline]
pub(crate) fn with<R>(arena: Arena, slot: &Slot, word: &AtomicU64, f: impl FnOnce() -> R) -> R {
    take(arena, slot, word);
    let result = f();
    unlock(word, slot.tag(), 0);
    result
}

#[inline]
fn forget_dead(word: &AtomicU64, taken: Taken) {
    if taken.flags != 0 {
        clear(word, taken.flags);
    }
}

/// True if the owner is gone and has nothing half done: by invariant 3 its locks may be taken.
pub(crate) fn is_over(arena: Arena, owner: Tag) -> bool {
    life::is_gone(arena, owner) && recovery::is_resolved(arena, owner)
}

/// Looks for dead processes, for a thread that is not to wait for an owner whose thread has ended
/// already. No word tells of such an owner's end, so a thread that tries again and again would
/// never learn of it. True if another attempt is worthwhile; at most once for each call that is not
/// to wait.
#[cold]
pub(crate) fn look_for_parked(arena: Arena, owner: Tag, looked: &mut bool) -> bool {
    let phase = |slot: &Slot| slot.state().phase;
    !std::mem::replace(looked, true)
        && arena.owner_slot(owner).map(phase) == Some(SlotPhase::Parked)
        && recovery::settle_in_turn(arena)
}

/// Gives the lock back, setting and clearing flags, and wakes a sleeper.
///
/// The caller holds it.
#[inline]
pub(crate) fn unlock(word: &AtomicU64, me: Tag, set: u64) {
    if set == 0 && unlock_fast(word, me) {
        return;
    }
    unlock_and_wake(word, set);
}

/// As [`unlock`], and wakes all sleepers.
#[inline]
pub(crate) fn unlock_for_all(word: &AtomicU64, me: Tag, set: u64) {
    if !(set == 0 && unlock_fast(word, me)) && unlock_slow(word, set) {
        futex::wake(Arena::low_half(word), u32::MAX);
    }
}

/// Waits until no living owner holds the lock, without taking it, until `deadline` at most.
#[cold]
pub(crate) fn wait_until_free(
    arena: Arena,
    slot: &Slot,
    word: &AtomicU64,
    deadline: Deadline,
) -> Result<(), Refused> {
    let (mut looks, mut looked) = (Looks::new(), false);
    loop {
        let found = word.load(Ordering::Relaxed);
        let owner = Tag::of_word(found);
        if owner.is_nobody() || is_over(arena, owner) {
            return Ok(());
        }
        if owner == slot.tag() {
            return Err(Refused::Held);
        }
        if looks.go_on() {
            continue;
        }
        if deadline.is_over() {
            if look_for_parked(arena, owner, &mut looked) {
                continue;
            }
            return Err(Refused::TimedOut);
        }
        if let Some(waiting) = announce(word, found) {
            let half = Arena::low_half(word);
            sleep(arena, slot, half, waiting as u32, owner, deadline);
        }
    }
}

#[cold]
fn unlock_and_wake(word: &AtomicU64, set: u64) {
    // By invariant 1 only flags can change meanwhile.
    if unlock_slow(word, set) {
        futex::wake(Arena::low_half(word), 1);
    }
}

/// Sleeps while `word` holds `value` and the owner lives, a [`TICK`] at most. A thread that slept
/// for nothing does for the dead what others may wait for; no lock that could be had waits for
/// that. Returns for any reason.
#[cold]
pub(crate) fn sleep(
    arena: Arena,
    slot: &Slot,
    word: &crate::primitive::AtomicU32,
    value: u32,
    owner: Tag,
    deadline: Deadline,
) {
    if slept_in_vain(arena, slot, word, value, owner, deadline) {
        recovery::settle_in_turn(arena);
    }
}

/// As [`sleep`], for a thread that has to look at something before anything is done for the dead:
/// if this returns true, doing so is left to the caller.
#[cold]
pub(crate) fn slept_in_vain(
    arena: Arena,
    slot: &Slot,
    word: &crate::primitive::AtomicU32,
    value: u32,
    owner: Tag,
    deadline: Deadline,
) -> bool {
    let left = deadline.left(TICK);
    slot.watched
        .waiting_on
        .store(std::ptr::from_ref(word).addr() as u64, Ordering::Release);
    match arena.owner_slot(owner) {
        Some(other) => {
            let seen = other.life.ask_for_wake();
            if seen & OWNER_DIED != 0 || life::is_gone(arena, owner) {
                // Another thread resolves what the owner was doing, or another thread of the
                // owner's process may still run: mostly not for long.
                if !is_over(arena, owner) {
                    futex::wait(word, value, left.min(Duration::from_micros(200)));
                }
            } else {
                futex::wait_two((word, value), (&other.life.word, seen), left);
            }
        }
        None => futex::wait(word, value, left),
    }
    slot.watched.waiting_on.store(0, Ordering::Release);
    if let Some(other) = arena.owner_slot(owner)
        && life::is_gone(arena, owner)
    {
        // The mark that woke us wakes only one sleeper.
        futex::wake(&other.life.word, u32::MAX);
        return false;
    }
    // A dead owner may have what is waited for, or a wake may have died with its sender.
    word.load(Ordering::Relaxed) == value
}
