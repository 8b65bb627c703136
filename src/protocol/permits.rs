//! The list of permits that a thread holds, by which the dead one's come back.
//!
//! A semaphore is a counter word (`detect`); its value is the number of permits left.
//!
//! | entry's state | meaning | a death here |
//! |-----------|----------------------------------|----------------------------------|
//! | unused    | no permit                        | nothing to do |
//! | TAKING n  | change n takes one, or did       | did it happen? give it back : forget |
//! | HELD      | a permit is held                 | give it back |
//! | GIVING n  | change n gives it back, or did   | did it happen? forget : give it back |
//!
//! The entry is written before the counter is changed and struck after. Recovery runs the same
//! steps in the dead one's name, with a new sequence of the dead one's slot, so it can die itself.

use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::detect::{self, Marks};

const TAKING: u64 = 1;
const HELD: u64 = 2;
const GIVING: u64 = 3;
const SEQUENCE_SHIFT: u32 = 2;

/// An entry of the list.
#[repr(C)]
pub struct Permit {
    /// The semaphore's word; 0 for an unused entry.
    pub word: AtomicU64,
    /// What is being done with it.
    pub state: AtomicU64,
}

/// A slot, by its number, its list, and what it has for `detect`.
#[derive(Clone, Copy)]
pub struct Holder<'a> {
    pub slot: usize,
    pub permits: &'a [Permit],
    /// Entries from here on are unused.
    pub limit: &'a AtomicU64,
    pub marks: Marks<'a>,
}

/// The pool: where a slot's marks are, where a word is, and who sleeps on one.
pub trait Pool<'a>: Copy {
    fn marks_of(self, slot: usize) -> Option<Marks<'a>>;
    /// The word at an address that an entry names.
    fn word(self, address: u64) -> Option<&'a AtomicU64>;
    /// Wakes one of those who sleep on a word.
    fn wake(self, word: &AtomicU64);
}

/// Why no permit was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeFailure {
    /// There is none left.
    NoneLeft,
    /// The thread holds as many as a slot can list.
    ListFull,
}

/// Takes a permit if there is one; the index of its entry.
pub fn try_take<'a>(
    pool: impl Pool<'a>,
    holder: Holder,
    word: &AtomicU64,
) -> Result<usize, TakeFailure> {
    let mut old = word.load(Ordering::Acquire);
    if detect::value(old) == 0 {
        return Err(TakeFailure::NoneLeft);
    }
    let mut entries = holder.permits.iter();
    let free = entries.position(|entry| entry.word.load(Ordering::Relaxed) == 0);
    let index = free.ok_or(TakeFailure::ListFull)?;
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
        .store(std::ptr::from_ref(word).addr() as u64, Ordering::SeqCst);
    let change = |old| {
        let new = detect::value(old) - 1;
        detect::change(
            |slot| pool.marks_of(slot),
            word,
            old,
            new,
            holder.slot,
            sequence,
        )
    };
    while detect::value(old) > 0 {
        match change(old) {
            Ok(()) => {
                entry.state.store(HELD, Ordering::Release);
                return Ok(index);
            }
            Err(found) => old = found,
        }
    }
    forget(entry);
    Err(TakeFailure::NoneLeft)
}

/// Gives a permit back, and wakes a sleeper if there was none to have: a sleeper that takes one and
/// leaves more wakes the next. The holder is alive or dead.
pub fn give<'a>(pool: impl Pool<'a>, holder: Holder, index: usize) {
    let entry = &holder.permits[index];
    let sequence = detect::next_sequence(holder.marks, holder.slot, word_of(pool, entry));
    entry
        .state
        .store(GIVING | sequence << SEQUENCE_SHIFT, Ordering::SeqCst);
    finish_giving(pool, holder.slot, entry, sequence);
}

fn finish_giving<'a>(pool: impl Pool<'a>, slot: usize, entry: &Permit, sequence: u64) {
    let Some(word) = word_of(pool, entry) else {
        return;
    };
    let left = detect::add(|slot| pool.marks_of(slot), word, 1, slot, sequence);
    forget(entry);
    if left == Some(1) {
        pool.wake(word);
    }
}

/// Consumes a permit for good: it is listed no more and will not come back.
pub fn forget(entry: &Permit) {
    entry.word.store(0, Ordering::Release);
}

/// The counter that an entry names, if it names one.
fn word_of<'a>(pool: impl Pool<'a>, entry: &Permit) -> Option<&'a AtomicU64> {
    pool.word(entry.word.load(Ordering::Acquire))
}

/// Gives back every permit of a dead holder. Called by the holder of its life word.
///
/// The change that was in flight, if any, comes first: it is the latest of the slot only until
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
