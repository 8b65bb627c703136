//! Names of objects.
//!
//! A name is an entry with the name's bytes and a link, and exists while the link leads somewhere:
//! setting the link publishes the name, and clearing it removes the name. Entries are changed under
//! the names' lock. If the holder of the lock dies, it leaves an entry whose link is set or is not;
//! an entry whose link is not set is free, whatever its bytes.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::dispose;
use super::{intents, objects};
use crate::allocator::check::CheckReport;
use crate::allocator::grow;
use crate::layout::arena::{Arena, NAMES};
use crate::layout::header::Identity;
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering, fence};
use crate::sys::memory::CommitError;

/// The longest name, in bytes.
pub(crate) const MAX_NAME: usize = 232;
const NAME_WORDS: usize = MAX_NAME / 8;

/// A name's entry.
#[repr(C, align(64))]
struct NameEntry {
    /// Leads to the object: a link (see `intents`).
    link: AtomicU64,
    len: AtomicU64,
    bytes: [AtomicU64; NAME_WORDS],
}

const _: () = assert!(size_of::<NameEntry>() <= NAMES.entry);

/// Why a name cannot be entered.
pub(crate) enum EnterFailure {
    /// There are as many names as there can be.
    TableFull,
    NoMemory(CommitError),
    TooManyLinks,
}

impl From<intents::TooManyLinks> for EnterFailure {
    fn from(_: intents::TooManyLinks) -> Self {
        EnterFailure::TooManyLinks
    }
}

fn count(arena: Arena) -> usize {
    (arena.header().watermarks.names.load(Ordering::Acquire) as usize).min(NAMES.max)
}

fn entries(arena: Arena) -> impl Iterator<Item = &'static NameEntry> {
    // SAFETY: below the watermark; an entry consists of atomics.
    (0..count(arena)).map(move |i| unsafe { arena.entry(NAMES, i) })
}

impl NameEntry {
    fn target(&self) -> Option<usize> {
        objects::target(self.link.load(Ordering::SeqCst))
    }

    /// The name and its object at one moment, for a caller that does not hold the lock.
    fn look(&self) -> Option<(String, usize)> {
        loop {
            // Acquire: shows what was written before the name was published.
            let link = self.link.load(Ordering::Acquire);
            let target = objects::target(link)?;
            let (bytes, len) = self.bytes();
            // If a byte belongs to a later name, then so does the link, which says who changed it
            // and when: pairs with the fence of `write`.
            fence(Ordering::Acquire);
            if self.link.load(Ordering::Relaxed) == link {
                return Some((String::from_utf8_lossy(&bytes[..len]).into_owned(), target));
            }
        }
    }

    fn bytes(&self) -> ([u8; MAX_NAME], usize) {
        let mut bytes = [0; MAX_NAME];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(&self.bytes) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        (
            bytes,
            (self.len.load(Ordering::Relaxed) as usize).min(MAX_NAME),
        )
    }

    fn is(&self, name: &str) -> bool {
        let (bytes, len) = self.bytes();
        &bytes[..len] == name.as_bytes()
    }

    fn write(&self, name: &str) {
        // After the store that ended the former name: see `look`.
        fence(Ordering::Release);
        let mut bytes = [0; MAX_NAME];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        for (chunk, word) in bytes.chunks_exact(8).zip(&self.bytes) {
            let mut value = [0; 8];
            value.copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        }
        self.len.store(name.len() as u64, Ordering::Relaxed);
    }
}

/// Runs `f` under the names' lock.
pub(crate) fn locked<R>(arena: Arena, slot: &Slot, f: impl FnOnce() -> R) -> R {
    lock::with(arena, slot, &arena.header().names_lock, f)
}

/// The object of that name. The caller holds the lock, so the object stays named meanwhile.
pub(crate) fn find(arena: Arena, name: &str) -> Option<usize> {
    entries(arena)
        .find(|e| e.target().is_some() && e.is(name))
        .and_then(NameEntry::target)
}

/// Whether a pool's file has an object of that name. The pool need not be mapped; no process may
/// have it that could rename its objects.
pub(super) fn is_in_file(fd: BorrowedFd<'_>, name: &str) -> rustix::io::Result<bool> {
    let mut header = [0; Identity::BYTES];
    read_at(fd, &mut header, 0)?;
    let [_, names, ..] = Identity::parse_watermarks(&header);
    for index in 0..(names as usize).min(NAMES.max) {
        let mut entry = [0; size_of::<NameEntry>()];
        read_at(fd, &mut entry, NAMES.offset + index * NAMES.entry)?;
        let word = |at: usize| {
            entry[at..]
                .first_chunk()
                .map_or(0, |&w| u64::from_ne_bytes(w))
        };
        let len = word(offset_of!(NameEntry, len)) as usize;
        let bytes = &entry[offset_of!(NameEntry, bytes)..];
        if objects::target(word(offset_of!(NameEntry, link))).is_some()
            && bytes.get(..len.min(MAX_NAME)) == Some(name.as_bytes())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_at(fd: BorrowedFd<'_>, mut into: &mut [u8], mut at: usize) -> rustix::io::Result<()> {
    while !into.is_empty() {
        let read = match rustix::io::pread(fd, &mut *into, at as u64) {
            Ok(0) => return Err(Errno::IO),
            Err(Errno::INTR) => continue,
            read => read?,
        };
        into = &mut into[read..];
        at += read;
    }
    Ok(())
}

/// Names an object that the caller holds. The caller holds the lock, and the name is new.
pub(crate) fn enter(
    arena: Arena,
    slot: &Slot,
    name: &str,
    object: usize,
) -> Result<(), EnterFailure> {
    let free = |e: &&NameEntry| e.target().is_none();
    let entry = match entries(arena).find(free) {
        Some(entry) => entry,
        None => {
            let from = count(arena);
            if from == NAMES.max {
                return Err(EnterFailure::TableFull);
            }
            let step = (4096 / NAMES.entry).min(NAMES.max - from);
            let watermark = &arena.header().watermarks.names;
            grow::raise(arena, slot, NAMES, watermark, from + step)
                .map_err(EnterFailure::NoMemory)?;
            entries(arena).find(free).ok_or(EnterFailure::TableFull)?
        }
    };
    entry.write(name);
    intents::set_link(arena, slot, &entry.link, object as u32 + 1)?;
    Ok(())
}

/// Gives an object's name to another object, in one step; false if the first has it no longer. The
/// caller holds the lock, and both objects.
pub(crate) fn pass_on(
    arena: Arena,
    slot: &Slot,
    name: &str,
    [from, to]: [usize; 2],
) -> Result<bool, EnterFailure> {
    let Some(entry) = entries(arena).find(|e| e.target() == Some(from) && e.is(name)) else {
        return Ok(false);
    };
    intents::set_link(arena, slot, &entry.link, to as u32 + 1)?;
    Ok(true)
}

/// Removes a name; returns the object that had it, if there was one. The caller holds the lock.
pub(crate) fn remove(arena: Arena, slot: &Slot, name: &str) -> Option<usize> {
    let entry = entries(arena).find(|e| e.target().is_some() && e.is(name))?;
    // A link to nowhere is not counted, and never refused.
    intents::set_link(arena, slot, &entry.link, 0).ok()?
}

/// Every name with its object.
pub(crate) fn all(arena: Arena) -> Vec<(String, usize)> {
    entries(arena).filter_map(NameEntry::look).collect()
}

/// Disposes of an object whose name was removed.
pub(crate) fn dispose(arena: Arena, object: usize) {
    dispose::dispose(arena, object);
    dispose::retry(arena);
}

/// Checks every name that exists; `is_there` says whether a link can lead to an object.
pub(super) fn check(
    arena: Arena,
    quiet: bool,
    report: &mut CheckReport,
    mut is_there: impl FnMut(usize) -> bool,
) {
    let mut known = BTreeSet::new();
    for (index, entry) in entries(arena).enumerate() {
        let link = entry.link.load(Ordering::Acquire);
        let Some(target) = objects::target(link) else {
            continue;
        };
        let len = entry.len.load(Ordering::Relaxed) as usize;
        let (bytes, _) = entry.bytes();
        let name = bytes
            .get(..len)
            .and_then(|bytes| str::from_utf8(bytes).ok());
        let wrong = if !is_there(target) {
            Some(format!("leads to object {target}, which is not there"))
        } else if name.is_none_or(str::is_empty) {
            Some("is no name".into())
        } else if quiet && !known.insert(name.map(str::to_owned)) {
            Some(format!("is that of another object, too: {name:?}"))
        } else {
            None
        };
        fence(Ordering::Acquire);
        // Otherwise the name was removed meanwhile.
        if let Some(wrong) = wrong
            && entry.link.load(Ordering::SeqCst) == link
        {
            report.problem(format_args!("name {index} {wrong}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::participants::thread;
    use crate::pool::Scratch;

    /// Who had the name may have lost it since it was asked for.
    #[test]
    fn a_name_is_passed_on_by_who_has_it() {
        let pool = Scratch::new();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let [one, other] = [1, 2].map(|value: u64| pool.create(value).unwrap());
        pool.set_name("it", &one).unwrap();
        let pass = |from, to| pass_on(arena, slot, "it", [from, to]).ok();
        let (one, other) = (one.index(), other.index());
        assert_eq!(pass(other, one), Some(false));
        assert_eq!(
            (pass(one, other), find(arena, "it")),
            (Some(true), Some(other))
        );
    }

    #[test]
    fn damaged_names_are_found() {
        let pool = Scratch::new();
        for name in ["one", "two"] {
            pool.set_name(name, &pool.create(7_u64).unwrap()).unwrap();
        }
        let entry = entries(pool.0).nth(1).unwrap();
        let problems = || pool.check_quiescent().problems.len();
        for (name, damaged) in [("one", 1), ("", 1), ("two", 0)] {
            entry.write(name);
            assert_eq!(problems(), damaged, "{name:?}");
        }
        let link = entry.link.load(Ordering::Relaxed);
        // To an object that was never made.
        let reference = pool.0.object_count() as u64;
        entry
            .link
            .store(link >> 32 << 32 | reference, Ordering::Relaxed);
        assert_eq!(pool.check().problems.len(), 1);
        entry.link.store(link, Ordering::Relaxed);
        assert_eq!(problems(), 0);
    }
}
