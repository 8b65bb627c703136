//! A counter word for which it can be determined, after a thread's death, whether its last change
//! happened.
//!
//! ```text
//! bit  0..32  the value
//! bit 32..44  slot of who stored it
//! bit 44..64  that slot's sequence number for the change
//! ```
//!
//! The author of a change records (word, sequence) in its slot, then stores a word with its slot
//! and sequence inside. Whoever overwrites another's change first notes that change in the author's
//! slot, so the question "did my change happen?" is answered by the word or by the note. Source:
//! Attiya, Ben-Baruch, Hendler: Nesting-Safe Recoverable Linearizability, PODC 2018; here with one
//! note for each slot instead of a matrix, and the note only ever rises.
//!
//! Invariants
//! 1. A note is stored before the change that it names is overwritten.
//! 2. A note names the word too, and is stored only while it is about the author's latest change and
//!    the word has that mark: a helper that was stopped cannot replace a newer note by an old one, and
//!    a mark that was in this or in some other word before the sequence numbers wrapped around is not
//!    taken for a new one, nor noted in its place.
//! 3. A slot has one change in flight at a time, and gives each change a sequence that the word
//!    does not carry already.
//! 4. A change becomes the slot's latest only once nobody can ask about the one before: the record of
//!    the change is written first, then the first attempt says that it is the latest.

use crate::primitive::{AtomicU64, Ordering};

const SEQUENCES: u64 = 1 << 20;

/// The words of a slot that are used here.
#[derive(Clone, Copy)]
pub struct Marks<'a> {
    /// Its latest change, as it would be noted. Written by the author.
    pub latest: &'a AtomicU64,
    /// The latest change that somebody has noted. Written by anybody.
    pub help: &'a AtomicU64,
}

/// The value in a counter word.
#[inline]
pub const fn value(word: u64) -> u32 {
    word as u32
}

const fn author(word: u64) -> usize {
    (word >> 32 & 0xfff) as usize
}

const fn sequence_of(word: u64) -> u64 {
    word >> 44
}

const fn compose(value: u32, slot: usize, sequence: u64) -> u64 {
    value as u64 | (slot as u64) << 32 | sequence << 44
}

/// The note for a change.
fn noted(word: &AtomicU64, sequence: u64) -> u64 {
    sequence << 44 | ((std::ptr::from_ref(word).addr() as u64 >> 3) & ((1 << 44) - 1))
}

/// A sequence number for a change of the slot to `word`, if that is known already, that cannot be
/// mistaken for another. It is never 0, by which an intent says that no change is in flight. The
/// change is the slot's latest from the first attempt at it on; until then, the one before is noted.
#[inline]
pub fn next_sequence(marks: Marks, slot: usize, word: Option<&AtomicU64>) -> u64 {
    let after = |sequence| sequence % (SEQUENCES - 1) + 1;
    let mut next = after(sequence_of(marks.latest.load(Ordering::Relaxed)));
    let carried = word
        .map(|word| word.load(Ordering::Relaxed))
        .filter(|&found| author(found) == slot)
        .map(sequence_of);
    while carried == Some(next) || next == sequence_of(marks.help.load(Ordering::Relaxed)) {
        next = after(next);
    }
    next
}

/// Stores `new` with the author's mark if the word is still `old`. Otherwise gives the word that
/// was found.
#[inline]
pub fn change<'a>(
    marks_of: impl Fn(usize) -> Option<Marks<'a>>,
    word: &AtomicU64,
    old: u64,
    new: u32,
    author_slot: usize,
    sequence: u64,
) -> Result<(), u64> {
    if let Some(mine) = marks_of(author_slot) {
        // Release: after the record of the change, by invariant 4; the exchange below comes after
        // it.
        mine.latest.store(noted(word, sequence), Ordering::Release);
    }
    note(marks_of, word, old)?;
    word.compare_exchange(
        old,
        compose(new, author_slot, sequence),
        Ordering::SeqCst,
        Ordering::Acquire,
    )
    .map(drop)
}

/// Changes the value by `step`, with as many attempts as that takes, and gives the new value. `None` if
/// nothing was changed, as the value would be too large. (Only in a damaged pool can it get below 0.)
#[inline]
pub fn add<'a>(
    marks_of: impl Fn(usize) -> Option<Marks<'a>>,
    word: &AtomicU64,
    step: i32,
    author_slot: usize,
    sequence: u64,
) -> Option<u32> {
    let mut old = word.load(Ordering::Acquire);
    loop {
        let (new, beyond) = value(old).overflowing_add_signed(step);
        if beyond && step > 0 {
            return None;
        }
        match change(&marks_of, word, old, new, author_slot, sequence) {
            Ok(()) => return Some(new),
            Err(found) => old = found,
        }
    }
}

/// Notes for the author of `old` that its change has happened, as it is about to be overwritten. Gives the word that
/// was found if that is not `old` any more.
#[inline]
fn note<'a>(
    marks_of: impl Fn(usize) -> Option<Marks<'a>>,
    word: &AtomicU64,
    old: u64,
) -> Result<(), u64> {
    let Some(marks) = marks_of(author(old)) else {
        return Ok(());
    };
    let note = noted(word, sequence_of(old));
    let mut known = marks.help.load(Ordering::Acquire);
    // By invariant 2. The author stored which change is its latest before it stored `old`, so that is
    // seen here.
    while known != note && marks.latest.load(Ordering::Acquire) == note {
        // After the look at the latest change: by invariant 3, the word had no such mark when that change began, so
        // it is that change's.
        let found = word.load(Ordering::SeqCst);
        if found != old {
            return Err(found);
        }
        match marks
            .help
            .compare_exchange(known, note, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => break,
            Err(found) => known = found,
        }
    }
    Ok(())
}

/// True if the change `sequence` of the slot to `word` happened. Called when its author does
/// nothing more.
pub fn happened(marks: Marks, word: &AtomicU64, slot: usize, sequence: u64) -> bool {
    // The word is read first: if it is overwritten between the two loads, the note is there by
    // invariant 1.
    let found = word.load(Ordering::SeqCst);
    (author(found) == slot && sequence_of(found) == sequence)
        || marks.help.load(Ordering::SeqCst) == noted(word, sequence)
}

#[cfg(all(test, not(shmkit_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_counted_changes_nothing() {
        let [latest, help] = [0, 0].map(AtomicU64::new);
        let (latest, help) = (&latest, &help);
        let marks = Marks { latest, help };
        let word = AtomicU64::new(u64::from(u32::MAX - 1));
        let add = |step| {
            let next = next_sequence(marks, 1, Some(&word));
            let added = add(|slot| (slot == 1).then_some(marks), &word, step, 1, next);
            assert_eq!(happened(marks, &word, 1, next), added.is_some());
            added
        };
        assert_eq!(add(1), Some(u32::MAX));
        assert_eq!(add(1), None);
        assert_eq!(value(word.load(Ordering::Relaxed)), u32::MAX);
        assert_eq!(add(-1), Some(u32::MAX - 1));
    }

    /// A mark has been in another word since the sequence numbers last wrapped around, and is also
    /// overwritten.
    #[test]
    fn a_mark_of_the_last_round_displaces_no_note() {
        let words = [0; 5].map(AtomicU64::new);
        let [latest, help, others, old, word] = &words;
        let marks = Marks { latest, help };
        let theirs = Marks {
            latest: others,
            help: others,
        };
        let marks_of = |slot| [None, Some(marks), Some(theirs)][slot];
        let add = |word, slot, sequence| add(marks_of, word, 1, slot, sequence);
        add(old, 1, 7);
        add(word, 1, 8);
        // And so on.
        add(word, 1, 7);
        add(word, 2, 1);
        add(old, 2, 2);
        assert!(happened(marks, word, 1, 7));
    }

    /// A helper has read the word, and was stopped while its author has gone round once.
    #[test]
    fn a_mark_of_the_last_round_is_not_that_of_a_change_under_way() {
        let [latest, help, others, word] = [0; 4].map(AtomicU64::new);
        let marks = Marks {
            latest: &latest,
            help: &help,
        };
        let theirs = Marks {
            latest: &others,
            help: &others,
        };
        let marks_of = |slot| [None, Some(marks), Some(theirs)][slot];
        add(marks_of, &word, 1, 1, 7);
        let seen = word.load(Ordering::Relaxed);
        // And so on.
        add(marks_of, &word, 1, 1, 6);
        assert_eq!(next_sequence(marks, 1, Some(&word)), 7);
        latest.store(noted(&word, 7), Ordering::Relaxed);
        assert!(change(marks_of, &word, seen, 0, 2, 1).is_err());
        assert!(!happened(marks, &word, 1, 7));
    }

    #[test]
    fn sequences_go_round_without_0() {
        let [latest, help, word] = &[0; 3].map(AtomicU64::new);
        let marks = Marks { latest, help };
        for (last, next) in [
            (0, 1),
            (1, 2),
            (SEQUENCES - 2, SEQUENCES - 1),
            (SEQUENCES - 1, 1),
        ] {
            latest.store(noted(word, last), Ordering::Relaxed);
            assert_eq!(next_sequence(marks, 1, Some(word)), next);
        }
    }
}
