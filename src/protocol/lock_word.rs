//! The word of a lock, which names its owner. For the rationale, states and invariants, see
//! `participants::lock`.

use std::marker::PhantomData;

use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::tag::Tag;

pub const WAITERS: u64 = 1;
pub const PANICKED: u64 = 2;
pub const DIED: u64 = 4;

/// Why the lock was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The thread holds it already.
    Held,
    /// Somebody else holds it.
    Busy,
    /// The time is up.
    TimedOut,
}

/// Evidence that this thread has taken a lock by an exchange of its word: nothing else makes one. It
/// has to be shown in order to look at the [readers](super::readers) afterwards.
#[derive(Debug, PartialEq, Eq)]
pub struct Exchanged(PhantomData<*const ()>);

/// Takes a lock that is free and has no flags: the fast path for the common case.
#[inline]
pub fn try_fast(word: &AtomicU64, me: Tag) -> Option<Exchanged> {
    // Acquire pairs with the Release of the last holder's unlock.
    word.compare_exchange(0, me.word(), Ordering::Acquire, Ordering::Relaxed)
        .is_ok()
        .then_some(Exchanged(PhantomData))
}

/// Gives back a lock that has no flags and no sleepers.
#[inline]
pub fn unlock_fast(word: &AtomicU64, me: Tag) -> bool {
    word.compare_exchange(me.word(), 0, Ordering::Release, Ordering::Relaxed)
        .is_ok()
}

/// Makes one attempt to turn `found` into a word with our tag, and gives the flags that it was
/// found with. `is_gone` says whether an owner is dead, and what it was doing under the lock is
/// resolved.
#[inline]
pub fn attempt(
    word: &AtomicU64,
    me: Tag,
    found: u64,
    extra: u64,
    is_gone: impl FnOnce(Tag) -> bool,
) -> Result<(u64, Exchanged), Refused> {
    let owner = Tag::of_word(found);
    if owner == me {
        return Err(Refused::Held);
    }
    let mut flags = found & Tag::FLAGS | extra;
    if !owner.is_nobody() {
        if !is_gone(owner) {
            return Err(Refused::Busy);
        }
        flags |= DIED | WAITERS;
    }
    match word.compare_exchange(
        found,
        me.word() | flags,
        Ordering::Acquire,
        Ordering::Relaxed,
    ) {
        Ok(_) => Ok((flags & !WAITERS, Exchanged(PhantomData))),
        Err(_) => Err(Refused::Busy),
    }
}

/// Announces that somebody is about to sleep on `found`. Gives the word to sleep on, if the word
/// still was `found`.
#[inline]
pub fn announce(word: &AtomicU64, found: u64) -> Option<u64> {
    let waiting = found | WAITERS;
    let announced = found == waiting
        || word
            .compare_exchange(found, waiting, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
    announced.then_some(waiting)
}

/// True if a thread that does not wait any more, and has found that word, has to wake the others: it may have been
/// woken for all of them, and whoever has taken the lock since would wake nobody. `slept` is [`WAITERS`] if the thread
/// has slept.
#[inline]
pub fn was_woken_for_others(found: u64, slept: u64) -> bool {
    slept & !found & WAITERS != 0
}

/// Gives the lock back, setting flags. True if a sleeper has to be woken. The caller holds the
/// lock.
#[inline]
pub fn unlock_slow(word: &AtomicU64, set: u64) -> bool {
    let mut found = word.load(Ordering::Relaxed);
    loop {
        let free = (found & Tag::FLAGS & !WAITERS) | set;
        // Only flags can change meanwhile.
        match word.compare_exchange(found, free, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return found & WAITERS != 0,
            Err(now) => found = now,
        }
    }
}

/// Clears flags of a lock. The caller holds the lock, or it does not matter who holds it.
pub fn clear(word: &AtomicU64, flags: u64) {
    word.fetch_and(!flags, Ordering::Relaxed);
}
