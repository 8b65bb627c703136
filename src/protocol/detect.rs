//! A counter word whose changes can be told apart after their author's death.
//!
//! ```text
//! bit  0..32  the value
//! bit 32..44  slot of who stored it
//! bit 44..64  that slot's sequence number for the change
//! ```
//!
//! The author records (word, sequence) in its slot, then stores with its slot and sequence inside.
//! Whoever overwrites another's change first notes that change's sequence in the author's slot, so
//! the question "did my change happen?" is answered by the word or by the note.
//! Source: Attiya, Ben-Baruch, Hendler: Nesting-Safe Recoverable Linearizability, PODC 2018; here
//! with one note a slot instead of a matrix, which only ever rises.
//!
//! Invariants
//! 1. A note is stored before the change that it is about is overwritten.
//! 2. Notes only rise (modulo 2^20), so a helper that was stopped cannot take one back.
//! 3. A slot has one change at a time in flight, and gives each a new sequence.

use crate::primitive::{AtomicU64, Ordering};

const SEQUENCES: u64 = 1 << 20;

/// The words of a slot that this is about.
#[derive(Clone, Copy)]
pub struct Marks<'a> {
    /// The sequence of its latest change. Its author's.
    pub sequence: &'a AtomicU64,
    /// The latest sequence that somebody has noted. Everybody's.
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

/// A sequence number that the slot has not used for a change that anybody could still ask about.
#[inline]
pub fn next_sequence(marks: Marks) -> u64 {
    let mut next = (marks.sequence.load(Ordering::Relaxed) + 1) % SEQUENCES;
    while next == marks.help.load(Ordering::Relaxed) {
        next = (next + 1) % SEQUENCES;
    }
    marks.sequence.store(next, Ordering::Relaxed);
    next
}

/// Stores `new` with the author's mark if the word is still `old`. Gives the word found otherwise.
#[inline]
pub fn change<'a>(
    marks_of: impl Fn(usize) -> Option<Marks<'a>>,
    word: &AtomicU64,
    old: u64,
    new: u32,
    author_slot: usize,
    sequence: u64,
) -> Result<(), u64> {
    note(marks_of, old);
    word.compare_exchange(
        old,
        compose(new, author_slot, sequence),
        Ordering::AcqRel,
        Ordering::Acquire,
    )
    .map(drop)
}

/// Changes the value by `step`, however often that takes; the new value.
#[inline]
pub fn add<'a>(
    marks_of: impl Fn(usize) -> Option<Marks<'a>>,
    word: &AtomicU64,
    step: i32,
    author_slot: usize,
    sequence: u64,
) -> u32 {
    let mut old = word.load(Ordering::Acquire);
    loop {
        let new = value(old).wrapping_add_signed(step);
        match change(&marks_of, word, old, new, author_slot, sequence) {
            Ok(()) => return new,
            Err(found) => old = found,
        }
    }
}

/// Tells the author of `old` that its change is about to be overwritten, so that it happened.
#[inline]
fn note<'a>(marks_of: impl Fn(usize) -> Option<Marks<'a>>, old: u64) {
    let Some(Marks { help, .. }) = marks_of(author(old)) else {
        return;
    };
    let sequence = sequence_of(old);
    let mut known = help.load(Ordering::Acquire);
    // Newer, modulo the number of sequences.
    while known != sequence && sequence.wrapping_sub(known) % SEQUENCES < SEQUENCES / 2 {
        match help.compare_exchange(known, sequence, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => break,
            Err(found) => known = found,
        }
    }
}

/// Whether the change `sequence` of the slot happened. Asked when its author does nothing more.
pub fn happened(marks: Marks, word: &AtomicU64, slot: usize, sequence: u64) -> bool {
    // The word first: if it is overwritten between the two loads, the note is there by invariant 1.
    let found = word.load(Ordering::SeqCst);
    (author(found) == slot && sequence_of(found) == sequence)
        || marks.help.load(Ordering::SeqCst) == sequence
}
