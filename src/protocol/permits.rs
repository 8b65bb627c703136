//! The word of a semaphore, and the list of permits that a thread holds, by which a dead thread's permits
//! come back.
//!
//! The word is a counter (`detect`) of the permits that are left; if there are none, it says whether somebody may be
//! asleep until one comes. For the purpose of this, and the states, see `sync::semaphore`.
//!
//! | entry's state | meaning | a death here |
//! |-----------|----------------------------------|----------------------------------|
//! | unused    | no permit                        | nothing to do |
//! | TAKING n  | change n takes one, or did       | did it happen? give it back : forget |
//! | HELD      | a permit is held                 | give it back |
//! | GIVING n  | change n gives it back, or did   | did it happen? forget : give it back |
//!
//! The entry is written before the counter is changed, and cleared after. Recovery runs the same
//! steps in the dead thread's name, with a new sequence of the dead thread's slot, so recovery may
//! itself be killed.

use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::detect::{self, Marks};

const TAKING: u64 = 1;
const HELD: u64 = 2;
const GIVING: u64 = 3;
const SEQUENCE_SHIFT: u32 = 2;

/// In the counter's value: somebody may be asleep. Set only while no permit is left.
pub const WAITERS: u32 = 1 << 31;

/// The greatest number of permits that a word can count.
pub const MOST: u32 = WAITERS - 1;

/// An entry of the list.
#[repr(C)]
pub struct Permit {
    /// The semaphore's word; 0 for an unused entry.
    pub word: AtomicU64,
    /// What is being done with the permit.
    pub state: AtomicU64,
}

/// A slot: its number, its list, and its words for `detect`.
#[derive(Clone, Copy)]
pub struct Holder<'a> {
    pub slot: usize,
    pub permits: &'a [Permit],
    /// Entries from here on are unused.
    pub limit: &'a AtomicU64,
    pub marks: Marks<'a>,
}

/// What is needed from the pool: a slot's marks, the word at an address, and waking those that
/// sleep on a word.
pub trait Pool<'a>: Copy {
    fn marks_of(self, slot: usize) -> Option<Marks<'a>>;
    /// The word at an address that an entry names.
    fn word(self, address: u64) -> Option<&'a AtomicU64>;
    /// Wakes up to `most` of those that sleep on a word.
    fn wake(self, word: &AtomicU64, most: u32);
}

/// Why no permit was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeFailure {
    /// There is no permit left.
    NoneLeft,
    /// The thread holds as many permits as a slot can list.
    ListFull,
}

/// The number of permits that are left.
#[inline]
pub fn left(word: u64) -> u32 {
    detect::value(word) & !WAITERS
}

/// Announces that somebody is about to sleep until a permit comes. Gives the word's low half to sleep on, if there
/// still is no permit. The mark of the last change stays in the word.
#[inline]
pub fn announce(word: &AtomicU64) -> Option<u32> {
    let found = word.load(Ordering::Relaxed);
    let waiting = found | u64::from(WAITERS);
    let announced = left(found) == 0
        && (found == waiting
            || word
                .compare_exchange(found, waiting, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok());
    announced.then_some(detect::value(waiting))
}

/// Called when a thread that has slept goes without a permit: it may have been woken for all others that sleep, and a
/// thread that gives a permit back after that wakes nobody.
pub fn give_up<'a>(pool: impl Pool<'a>, word: &AtomicU64) {
    if detect::value(word.load(Ordering::Relaxed)) & WAITERS == 0 {
        pool.wake(word, u32::MAX);
    }
}

/// Takes a permit if there is one, and gives the index of its entry and how many are left. A thread that takes the last
/// one after a sleep (`slept`) marks that others may still sleep, as the wake may have been meant for all of them. If
/// it leaves some permits, it has to wake another thread.
#[inline]
pub fn try_take<'a>(
    pool: impl Pool<'a>,
    holder: Holder,
    word: &AtomicU64,
    slept: bool,
) -> Result<(usize, u32), TakeFailure> {
    let mut entries = holder.permits.iter();
    let free = entries.position(|entry| entry.word.load(Ordering::Relaxed) == 0);
    let index = free.ok_or(TakeFailure::ListFull)?;
    // Acquire: what the author of the word's change has said of it.
    let mut old = word.load(Ordering::Acquire);
    if left(old) == 0 {
        return Err(TakeFailure::NoneLeft);
    }
    let entry = &holder.permits[index];
    if holder.limit.load(Ordering::Relaxed) <= index as u64 {
        holder.limit.store(index as u64 + 1, Ordering::Release);
    }
    let sequence = detect::next_sequence(holder.marks, holder.slot, Some(word));
    entry
        .state
        .store(TAKING | sequence << SEQUENCE_SHIFT, Ordering::Release);
    entry
        .word
        .store(std::ptr::from_ref(word).addr() as u64, Ordering::Release);
    let change = |old, new| {
        let marks_of = |slot| pool.marks_of(slot);
        detect::change(marks_of, word, old, new, holder.slot, sequence)
    };
    while let Some(rest) = left(old).checked_sub(1) {
        let waiters = if slept && rest == 0 { WAITERS } else { 0 };
        match change(old, rest | waiters) {
            Ok(()) => {
                entry.state.store(HELD, Ordering::Release);
                return Ok((index, rest));
            }
            Err(found) => old = found,
        }
    }
    forget(entry);
    Err(TakeFailure::NoneLeft)
}

/// Gives a permit back, and wakes a sleeper if somebody may be asleep; a sleeper that takes a
/// permit and leaves more wakes the next. The holder is alive or dead.
#[inline]
pub fn give<'a>(pool: impl Pool<'a>, holder: Holder, index: usize) {
    let entry = &holder.permits[index];
    let sequence = detect::next_sequence(holder.marks, holder.slot, word_of(pool, entry));
    entry
        .state
        .store(GIVING | sequence << SEQUENCE_SHIFT, Ordering::Release);
    finish_giving(pool, holder.slot, entry, sequence);
}

#[inline]
fn finish_giving<'a>(pool: impl Pool<'a>, slot: usize, entry: &Permit, sequence: u64) {
    let Some(word) = word_of(pool, entry) else {
        return;
    };
    let wakes = put(pool, word, (1, MOST), slot, sequence);
    forget(entry);
    if wakes == Some(true) {
        pool.wake(word, 1);
    }
}

/// Adds permits that nobody held, up to a total of `most`, and wakes as many sleepers. False if the total would
/// be more.
pub fn add<'a>(pool: impl Pool<'a>, word: &AtomicU64, permits: u32, most: u32) -> bool {
    // A change without an author: nobody asks whether it happened.
    let wakes = put(pool, word, (permits, most), 0, 0);
    if wakes == Some(true) {
        pool.wake(word, permits);
    }
    wakes.is_some()
}

/// Adds permits, up to a total of `most`, as a change of that author, and says whether somebody may be asleep. `None`
/// if the total would be more.
#[inline]
fn put<'a>(
    pool: impl Pool<'a>,
    word: &AtomicU64,
    (permits, most): (u32, u32),
    author: usize,
    sequence: u64,
) -> Option<bool> {
    // Acquire: see `try_take`.
    let mut old = word.load(Ordering::Acquire);
    loop {
        let new = left(old).checked_add(permits).filter(|&new| new <= most)?;
        let marks_of = |slot| pool.marks_of(slot);
        match detect::change(marks_of, word, old, new, author, sequence) {
            Ok(()) => return Some(detect::value(old) & WAITERS != 0),
            Err(found) => old = found,
        }
    }
}

/// Consumes a permit for good: it is no longer listed and will not come back.
pub fn forget(entry: &Permit) {
    entry.word.store(0, Ordering::Release);
}

/// The counter that an entry names, if it names one.
fn word_of<'a>(pool: impl Pool<'a>, entry: &Permit) -> Option<&'a AtomicU64> {
    pool.word(entry.word.load(Ordering::Acquire))
}

/// Gives back every permit of a dead holder. Called by the holder of its life word.
///
/// The change that was in flight, if any, is dealt with first: it is the slot's latest only until
/// the next one (`detect`, invariant 3).
pub fn recover<'a>(pool: impl Pool<'a>, holder: Holder) {
    let (slot, marks) = (holder.slot, holder.marks);
    for entry in holder.permits {
        let Some(word) = word_of(pool, entry) else {
            continue;
        };
        let state = entry.state.load(Ordering::Acquire);
        let sequence = state >> SEQUENCE_SHIFT;
        let happened = || detect::happened(marks, word, slot, sequence);
        match state & ((1 << SEQUENCE_SHIFT) - 1) {
            TAKING if happened() => entry.state.store(HELD, Ordering::Release),
            TAKING => forget(entry),
            GIVING if happened() => forget(entry),
            GIVING => finish_giving(pool, slot, entry, sequence),
            _ => {}
        }
    }
    for (index, entry) in holder.permits.iter().enumerate() {
        if word_of(pool, entry).is_some() {
            give(pool, holder, index);
        }
    }
}
