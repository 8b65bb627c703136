//! The lines of a hash map's chunk, which many look at and one thread at a time changes.
//!
//! ```text
//! line      64 bytes: a word about the slots, three slots of two words, a word of nothing
//! slot      the key's first word, the value's word
//! ```
//!
//! | line's word | bits   | meaning |
//! |-------------|--------|---------|
//! | LIVE        | 0..3   | one bit for each slot: it holds an entry |
//! | PASSED      | 3..12  | for how many entries a search goes on past this line; after a death, perhaps too many |
//! | VERSION     | 12..64 | raised with each change of this word |
//!
//! The lowest bits of a hash give the line where the search in a chunk begins. The search goes on from
//! line to line, wrapping around in the chunk, until it comes to a line that no entry has passed. It
//! never leaves the chunk. Counting what passed instead of leaving tombstones is F14's way (Bronson,
//! Shi: *Open-sourcing F14 for faster, more memory-efficient hash tables*, 2019).
//!
//! A thread that changes something keeps all others from changing the chunk. A slot without an entry may
//! be written to in any way: no look takes it for an entry before the line's word says so. So a change
//! is one store, of the line's word (an entry comes or goes) or of a slot's second word (another value).
//!
//! A line is read between two loads of its word. If the version is the same, no slot was vacated
//! and filled again meanwhile, so the value's word belongs to the key. The version is raised by
//! stores that end a change, never when a change begins: so a writer that is stopped or dies
//! halfway is not noticed at all, and a look begins anew only because another change has ended.
//!
//! | step of an insertion | killed after it leaves | and then |
//! |----------------------|------------------------|----------|
//! | the lines before it count one more | counts that are too high | looks go further than they need to |
//! | the slot is filled | bytes that belong to nobody | the next one fills it |
//! | the line's word | the entry | nothing is left to do |
//!
//! An entry stays where it was put until it is removed, with one exception: when half of the entries leave a chunk
//! ([`Rest`]), those that stay are brought to the lines where their searches begin. Such an entry is in the new
//! place before it is removed from the old one.

use crate::primitive::{AtomicU64, Ordering};

/// The number of slots in a line.
pub const SLOTS: usize = 3;

const LIVE: u64 = (1 << SLOTS) - 1;
const PASSED_SHIFT: u32 = 3;
const PASSED: u64 = 0x1ff << PASSED_SHIFT;
const ONE_PASSED: u64 = 1 << PASSED_SHIFT;
const ONE_VERSION: u64 = 1 << 12;

/// The greatest number of lines in a chunk: with it, the entries that pass a line can be counted.
pub const MOST_LINES: usize = 32;

const _: () = assert!(MOST_LINES * SLOTS < (PASSED >> PASSED_SHIFT) as usize);

#[repr(C)]
pub struct Slot {
    pub key: AtomicU64,
    pub value: AtomicU64,
}

#[repr(C, align(64))]
pub struct Line {
    pub word: AtomicU64,
    pub slots: [Slot; SLOTS],
}

/// The lines of a chunk. Their number is a power of two.
#[derive(Clone, Copy)]
pub struct Chunk<'a>(pub &'a [Line]);

impl<'a> Chunk<'a> {
    /// The lines in the order in which a key is searched for.
    #[inline]
    pub fn path(self, hash: u64) -> impl Iterator<Item = &'a Line> {
        (0..self.0.len()).map(move |distance| self.on_path(hash, distance))
    }

    /// The line at that distance from the line where a key's search begins.
    #[inline]
    pub fn on_path(self, hash: u64, distance: usize) -> &'a Line {
        // The number of lines is a power of two.
        &self.0[(hash as usize).wrapping_add(distance) & (self.0.len() - 1)]
    }

    /// True if there is no entry.
    pub fn is_empty(self) -> bool {
        let mut words = self.0.iter().map(|line| line.word.load(Ordering::Relaxed));
        words.all(|word| word & LIVE == 0)
    }

    /// The number of entries.
    pub fn count(self) -> usize {
        let words = self.0.iter().map(|line| line.word.load(Ordering::Relaxed));
        words.map(|word| (word & LIVE).count_ones() as usize).sum()
    }
}

/// The slots of a line that hold entries, by the line's word.
#[inline]
pub fn live(word: u64) -> impl Iterator<Item = usize> {
    (0..SLOTS).filter(move |i| word >> i & 1 != 0)
}

/// The slots of a line that hold an entry with that first word, as one bit each. All slots are compared: which one it
/// is cannot be predicted, and after a mispredicted branch nothing has been started by the time the line comes from
/// memory.
#[inline]
fn with_key(line: &Line, word: u64, key: u64) -> u64 {
    let mut bits = 0;
    for (i, slot) in line.slots.iter().enumerate() {
        // Acquire: see `ask`.
        bits |= u64::from(slot.key.load(Ordering::Acquire) == key) << i;
    }
    bits & word
}

/// The indices of the bits that are set, the lowest first.
#[inline]
fn each(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(first)
    })
}

/// A slot that holds no entry.
#[inline]
fn vacant(word: u64) -> Option<usize> {
    let first = (word & LIVE).trailing_ones() as usize;
    (first < SLOTS).then_some(first)
}

/// True if a search goes on past the line.
#[inline]
pub fn is_passed(word: u64) -> bool {
    word & PASSED != 0
}

/// True if the line has no entry, and no entry has passed it.
#[inline]
pub fn is_idle(word: u64) -> bool {
    word & (LIVE | PASSED) == 0
}

/// The line's word after the slot has got an entry, or has lost it.
#[inline]
pub fn turned(word: u64, slot: usize) -> u64 {
    (word ^ 1 << slot).wrapping_add(ONE_VERSION)
}

/// What a line says of a key.
pub enum Said {
    /// The value's word.
    Value(u64),
    /// The key is not in the chunk.
    Nothing,
    /// The key is not in this line, but may be in the next.
    GoesOn,
    /// The line has changed meanwhile: it has to be asked again.
    Changed,
}

/// Looks in a line for an entry with that first word, for whose value `is_it` is true.
#[inline]
pub fn ask(line: &Line, key: u64, is_it: impl Fn(u64) -> bool) -> Said {
    let word = line.word.load(Ordering::SeqCst);
    for slot in each(with_key(line, word, key)) {
        // Acquire, as for the key: a thread that has seen what a slot was filled with anew also sees the
        // line's word by which the slot was vacated.
        let value = line.slots[slot].value.load(Ordering::Acquire);
        if line.word.load(Ordering::SeqCst) != word {
            return Said::Changed;
        }
        if is_it(value) {
            return Said::Value(value);
        }
    }
    if is_passed(word) {
        Said::GoesOn
    } else {
        Said::Nothing
    }
}

/// The value's word of the entry with that first word for whose value `is_it` is true.
///
/// A key's place in a chunk changes when it is removed and inserted again; then one walk finds either the key or a
/// moment at which it was not there. Or its entry is brought to the line where its search begins before it is removed
/// from the old line (`Rest`): a search that has looked at the first line before that, and at the old line after it,
/// finds that the first line has changed, and begins anew.
#[inline]
pub fn search(chunk: Chunk, hash: u64, key: u64, is_it: &impl Fn(u64) -> bool) -> Option<u64> {
    let first = chunk.on_path(hash, 0);
    loop {
        let before = first.word.load(Ordering::SeqCst);
        let found = walk(chunk, hash, key, is_it);
        if found.is_some() || !is_passed(before) || first.word.load(Ordering::SeqCst) == before {
            return found;
        }
    }
}

#[inline]
fn walk(chunk: Chunk, hash: u64, key: u64, is_it: &impl Fn(u64) -> bool) -> Option<u64> {
    for line in chunk.path(hash) {
        loop {
            match ask(line, key, is_it) {
                Said::Value(value) => return Some(value),
                Said::Nothing => return None,
                Said::GoesOn => break,
                Said::Changed => {}
            }
        }
    }
    None
}

/// A place in a chunk: the distance, in lines, from where the search began, and the slot.
#[derive(Clone, Copy)]
pub struct Place {
    pub distance: usize,
    pub slot: usize,
}

/// The key's slot and value, or the first slot that it could have. The caller keeps all others from
/// changing the chunk.
#[inline(always)]
pub fn look(
    chunk: Chunk,
    hash: u64,
    key: u64,
    is_it: impl Fn(u64) -> bool,
) -> (Option<Place>, Option<u64>) {
    let mut place = None;
    for (distance, line) in chunk.path(hash).enumerate() {
        let word = line.word.load(Ordering::Relaxed);
        for slot in each(with_key(line, word, key)) {
            let value = line.slots[slot].value.load(Ordering::Relaxed);
            if is_it(value) {
                return (Some(Place { distance, slot }), Some(value));
            }
        }
        if let (None, Some(slot)) = (place, vacant(word)) {
            place = Some(Place { distance, slot });
        }
        if !is_passed(word) && place.is_some() {
            break;
        }
    }
    (place, None)
}

/// Writes an entry into a slot that has none. It is there once the returned word is given the
/// returned value. The caller keeps all others from changing the chunk.
#[inline]
pub fn fill<'a>(
    chunk: Chunk<'a>,
    hash: u64,
    place: Place,
    key: u64,
    value: u64,
) -> (&'a AtomicU64, u64) {
    pass(chunk, hash, place.distance);
    let line = chunk.on_path(hash, place.distance);
    (&line.word, fill_slot(line, place.slot, key, value))
}

#[inline]
fn fill_slot(line: &Line, slot: usize, key: u64, value: u64) -> u64 {
    // Release, both: see `ask`.
    line.slots[slot].key.store(key, Ordering::Release);
    line.slots[slot].value.store(value, Ordering::Release);
    turned(line.word.load(Ordering::Relaxed), slot)
}

/// Gives the key at a place a value, in place of its own or as a new entry, where no other store is needed for this.
/// The caller keeps all others from changing the chunk.
#[inline]
pub fn put(chunk: Chunk, hash: u64, place: Place, (key, value): (u64, u64), is_there: bool) {
    // Release: a thread that finds the entry finds its words, and what the node's author has
    // written.
    if is_there {
        let line = chunk.on_path(hash, place.distance);
        line.slots[place.slot].value.store(value, Ordering::Release);
    } else {
        let (word, new) = fill(chunk, hash, place, key, value);
        word.store(new, Ordering::Release);
    }
}

/// The same, if the key's search ends in the line where it begins, and `may` agrees to the value that the key has,
/// which is returned. The caller keeps all others from changing the chunk.
#[inline(always)]
pub fn put_first(
    line: &Line,
    (key, value): (u64, u64),
    may: impl Fn(Option<u64>) -> bool,
) -> Option<Option<u64>> {
    let word = line.word.load(Ordering::Relaxed);
    if let Some(slot) = each(with_key(line, word, key)).next() {
        let slot = &line.slots[slot];
        let old = slot.value.load(Ordering::Relaxed);
        return may(Some(old)).then(|| {
            slot.value.store(value, Ordering::Release);
            Some(old)
        });
    }
    let slot = vacant(word).filter(|_| !is_passed(word) && may(None))?;
    let new = fill_slot(line, slot, key, value);
    line.word.store(new, Ordering::Release);
    Some(None)
}

/// Adds an entry to a chunk, unless it has one for which `is_it` is true; false if there is no room. The
/// caller keeps all others from changing the chunk.
pub fn add(chunk: Chunk, hash: u64, key: u64, value: u64, is_it: impl Fn(u64) -> bool) -> bool {
    match look(chunk, hash, key, is_it) {
        (_, Some(_)) => true,
        (place, None) => add_at(chunk, hash, place, key, value),
    }
}

/// The same, if the chunk is known not to have the entry.
#[inline]
pub fn add_new(chunk: Chunk, hash: u64, key: u64, value: u64) -> bool {
    let mut path = chunk.path(hash).enumerate();
    let place = path.find_map(|(distance, line)| {
        let slot = vacant(line.word.load(Ordering::Relaxed))?;
        Some(Place { distance, slot })
    });
    add_at(chunk, hash, place, key, value)
}

#[inline]
fn add_at(chunk: Chunk, hash: u64, place: Option<Place>, key: u64, value: u64) -> bool {
    let Some(place) = place else {
        return false;
    };
    put(chunk, hash, place, (key, value), false);
    true
}

/// Makes lines without entries of memory that may hold anything. Nobody looks at the memory yet.
pub fn clear(chunk: Chunk) {
    for line in chunk.0 {
        // New memory is all zeros, and a page fault brings in more of it at once if it is first
        // read and not written.
        if line.word.load(Ordering::Relaxed) != 0 {
            line.word.store(0, Ordering::Relaxed);
        }
    }
}

/// What is left of a chunk once some of its entries are elsewhere.
pub struct Rest {
    /// What the lines' words become then, without the version.
    words: [u64; MOST_LINES],
    /// Where the searches begin for the entries that stay.
    firsts: [[u8; SLOTS]; MOST_LINES],
}

impl Rest {
    /// Asks for the hash of each entry, and whether it stays. The caller keeps all others from
    /// changing the chunk.
    pub fn of<E>(
        chunk: Chunk,
        mut stays: impl FnMut(u64, u64) -> Result<(u64, bool), E>,
    ) -> Result<Rest, E> {
        let mut rest = Rest {
            words: [0; MOST_LINES],
            firsts: [[0; SLOTS]; MOST_LINES],
        };
        let last = chunk.0.len() - 1;
        for (at, line) in chunk.0.iter().enumerate() {
            for i in each(line.word.load(Ordering::Relaxed) & LIVE) {
                let key = line.slots[i].key.load(Ordering::Relaxed);
                let (hash, stays) = stays(key, line.slots[i].value.load(Ordering::Relaxed))?;
                if !stays {
                    continue;
                }
                let first = hash as usize & last;
                rest.firsts[at][i] = first as u8;
                rest.words[at] |= 1 << i;
                for before in 0..at.wrapping_sub(first) & last {
                    rest.words[(first + before) & last] += ONE_PASSED;
                }
            }
        }
        Ok(rest)
    }

    /// Removes the entries that do not stay from the chunk, a line at a time, and then brings each that stays to
    /// the line where the search for it begins, if there is room now. The caller keeps all others from changing the
    /// chunk, and has done so since before it made this `Rest`.
    ///
    /// | killed | after it leaves |
    /// |--------|-----------------|
    /// | between two lines | some of the entries that belong elsewhere |
    /// | once an entry is where its search begins | the entry twice; the one in the old place is [a copy](is_copy) |
    /// | once it is removed from the old place | counts that are too high |
    ///
    /// Doing the same once more puts all of this right.
    pub fn leave(&self, chunk: Chunk) {
        for (line, rest) in chunk.0.iter().zip(self.words) {
            let word = line.word.load(Ordering::Relaxed);
            if word & (LIVE | PASSED) != rest {
                let new = (word & !(LIVE | PASSED)).wrapping_add(ONE_VERSION) | rest;
                line.word.store(new, Ordering::Release);
            }
        }
        for (at, line) in chunk.0.iter().enumerate() {
            for i in each(self.words[at] & LIVE) {
                let first = self.firsts[at][i] as usize;
                if first != at {
                    bring(chunk, (at, i), first, line);
                }
            }
        }
    }
}

/// Brings an entry to the line where the search for it begins, if there is room.
fn bring(chunk: Chunk, (at, i): (usize, usize), first: usize, line: &Line) {
    let (slot, to) = (&line.slots[i], &chunk.0[first]);
    let entry = (
        slot.key.load(Ordering::Relaxed),
        slot.value.load(Ordering::Relaxed),
    );
    if !is_copy(chunk, at, first as u64, entry) {
        let Some(free) = vacant(to.word.load(Ordering::Relaxed)) else {
            return;
        };
        let new = fill_slot(to, free, entry.0, entry.1);
        to.word.store(new, Ordering::Release);
    }
    let new = turned(line.word.load(Ordering::Relaxed), i);
    line.word.store(new, Ordering::Release);
    unpass(
        chunk,
        first as u64,
        at.wrapping_sub(first) & (chunk.0.len() - 1),
    );
}

/// True if the entry in that line is also in the line where the search for it begins: see [`Rest::leave`].
pub fn is_copy(chunk: Chunk, at: usize, hash: u64, (key, value): (u64, u64)) -> bool {
    let first = chunk.on_path(hash, 0);
    let word = first.word.load(Ordering::Acquire);
    !std::ptr::eq(first, &chunk.0[at])
        && each(with_key(first, word, key))
            .any(|i| first.slots[i].value.load(Ordering::Acquire) == value)
}

/// Calls `f` with the words of each entry. The caller keeps all others from changing the chunk.
pub fn entries<E>(chunk: Chunk, mut f: impl FnMut(u64, u64) -> Result<(), E>) -> Result<(), E> {
    for line in chunk.0 {
        for slot in each(line.word.load(Ordering::Relaxed) & LIVE).map(|i| &line.slots[i]) {
            let key = slot.key.load(Ordering::Relaxed);
            f(key, slot.value.load(Ordering::Relaxed))?;
        }
    }
    Ok(())
}

/// Counts one more entry that passes the lines before `distance` on the path.
#[inline]
fn pass(chunk: Chunk, hash: u64, distance: usize) {
    for line in chunk.path(hash).take(distance) {
        let word = line.word.load(Ordering::Relaxed);
        if word & PASSED != PASSED {
            let new = word.wrapping_add(ONE_PASSED + ONE_VERSION);
            line.word.store(new, Ordering::Release);
        }
    }
}

/// Counts one entry less, after the entry has gone. A count that had reached its maximum is not known
/// any more, and stays. The caller keeps all others from changing the chunk.
#[inline]
pub fn unpass(chunk: Chunk, hash: u64, distance: usize) {
    let overlooked = usize::from(cfg!(shmkit_planted = "hash_map"));
    for line in chunk.path(hash).take(distance + overlooked) {
        let word = line.word.load(Ordering::Relaxed);
        if word & PASSED != PASSED && word & PASSED != 0 {
            let new = (word - ONE_PASSED).wrapping_add(ONE_VERSION);
            line.word.store(new, Ordering::Release);
        }
    }
}
