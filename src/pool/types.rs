//! What types own, described in the pool, so that any process can destroy any object.
//!
//! A type is entered once, found by its fingerprint, and never removed. An entry is written under
//! the types' lock and published by its `ready` word, last; a writer that dies leaves an entry
//! that is not ready, which the next writer writes over.

use serde::{Deserialize, Serialize};

use crate::allocator::check::CheckReport;
use crate::allocator::grow;
use crate::layout::arena::{Arena, TYPES};
use crate::layout::{Engine, OwnedKind, ShmSafe, TypeInfo};
use crate::participants::lock;
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::memory::CommitError;

/// Runs of owned words that an entry can list.
pub(super) const FIELDS: usize = 25;
/// Bytes of the type's name that an entry keeps, for reports.
const NAME: usize = 64;

/// A type's entry.
#[repr(C, align(64))]
struct TypeEntry {
    ready: AtomicU64,
    fingerprint: [AtomicU64; 2],
    size: AtomicU64,
    align: AtomicU64,
    fields: AtomicU64,
    /// The name without path and parameters, truncated, and padded with zeros.
    name: [AtomicU64; NAME / 8],
    owned: [OwnedEntry; FIELDS],
}

/// Owned words at `offset`, `offset + stride`, and so on.
#[repr(C)]
struct OwnedEntry {
    /// Offset, and stride in the high half.
    place: AtomicU64,
    /// Number of words, and kind in the high half.
    count: AtomicU64,
}

const _: () = assert!(size_of::<TypeEntry>() <= TYPES.entry);

/// What a word owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owned {
    Link,
    Block,
    Engine(Engine),
}

/// The code of each kind in an entry; an engine's code is its number plus [`ENGINE`].
const LINK: u64 = 1;
const BLOCK: u64 = 2;
const ENGINE: u64 = 16;

impl Owned {
    fn of_code(code: u64) -> Option<Self> {
        match code {
            LINK => Some(Owned::Link),
            BLOCK => Some(Owned::Block),
            _ => Engine::numbered(code.checked_sub(ENGINE)? as u32).map(Owned::Engine),
        }
    }
}

/// An owning word of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnedWord {
    pub(crate) offset: usize,
    pub(crate) kind: Owned,
}

/// Why a type cannot be entered.
///
/// ```
/// use shmkit::{Link, ObjectError, Pool, TypeError};
///
/// fn pair<T>(one: impl Fn() -> T) -> (T, T) {
///     (one(), one())
/// }
///
/// let pool = Pool::builder().create()?;
/// // 32 links, each of which is a field of its own.
/// let links = || pair(|| pair(|| pair(|| pair(|| pair(Link::<u8>::null)))));
/// let error = pool.create(links()).unwrap_err();
/// assert_eq!(error.cause, ObjectError::Type(TypeError::TooManyOwners));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TypeError {
    /// The pool describes as many types as it can.
    #[error("the pool's table of types is full")]
    TableFull,
    /// The type has too many owning fields.
    #[error("the type has more than {FIELDS} groups of owning fields")]
    TooManyOwners,
    /// No memory for the table.
    #[error(transparent)]
    NoMemory(#[from] CommitError),
}

fn count(arena: Arena) -> usize {
    (arena.header().watermarks.types.load(Ordering::Acquire) as usize).min(TYPES.max)
}

fn entry(arena: Arena, index: usize) -> Option<&'static TypeEntry> {
    // SAFETY: compared with the watermark; an entry consists of atomics.
    (index < count(arena)).then(|| unsafe { arena.entry(TYPES, index) })
}

fn halves(fingerprint: u128) -> [u64; 2] {
    [fingerprint as u64, (fingerprint >> 64) as u64]
}

fn find(arena: Arena, fingerprint: u128) -> Option<usize> {
    (0..count(arena)).find(|&i| is(arena, i, fingerprint))
}

/// True if the type with that index has that fingerprint.
pub(crate) fn is(arena: Arena, index: usize, fingerprint: u128) -> bool {
    entry(arena, index).is_some_and(|e| {
        e.ready.load(Ordering::Acquire) == 1
            && e.fingerprint
                .iter()
                .zip(halves(fingerprint))
                .all(|(a, b)| a.load(Ordering::Relaxed) == b)
    })
}

/// The index of a type, entered now if need be.
pub(crate) fn index_of<T: ShmSafe>(arena: Arena, slot: &Slot) -> Result<usize, TypeError> {
    let fingerprint = T::TYPE.fingerprint();
    if let Some(index) = find(arena, fingerprint) {
        return Ok(index);
    }
    lock::with(arena, slot, &arena.header().types_lock, || {
        match find(arena, fingerprint) {
            Some(index) => Ok(index),
            None => enter(arena, slot, T::TYPE, fingerprint),
        }
    })
}

/// Enters a type. The caller holds the lock.
fn enter(
    arena: Arena,
    slot: &Slot,
    ty: &'static TypeInfo,
    fingerprint: u128,
) -> Result<usize, TypeError> {
    let owned = ty.owned_fields();
    if owned.len() > FIELDS {
        return Err(TypeError::TooManyOwners);
    }
    let unused = (0..count(arena))
        .find(|&i| entry(arena, i).is_some_and(|e| e.ready.load(Ordering::Acquire) == 0));
    let index = match unused {
        Some(index) => index,
        None => {
            let index = count(arena);
            if index == TYPES.max {
                return Err(TypeError::TableFull);
            }
            let step = (4096 / TYPES.entry).min(TYPES.max - index);
            let watermark = &arena.header().watermarks.types;
            grow::raise(arena, slot, TYPES, watermark, index + step)?;
            index
        }
    };
    let entry = entry(arena, index).ok_or(TypeError::TableFull)?;
    for (word, half) in entry.fingerprint.iter().zip(halves(fingerprint)) {
        word.store(half, Ordering::Relaxed);
    }
    entry.size.store(ty.size() as u64, Ordering::Relaxed);
    entry.align.store(ty.align() as u64, Ordering::Relaxed);
    entry.fields.store(owned.len() as u64, Ordering::Relaxed);
    let mut name = [0; NAME];
    let cut = ty.name().len().min(NAME);
    name[..cut].copy_from_slice(&ty.name().as_bytes()[..cut]);
    for (word, bytes) in entry.name.iter().zip(name.as_chunks::<8>().0) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
    for (place, field) in entry.owned.iter().zip(&owned) {
        let kind = match field.kind {
            OwnedKind::Link(_) => LINK,
            OwnedKind::Block => BLOCK,
            OwnedKind::Engine(engine) => ENGINE + engine as u64,
        };
        place.place.store(
            u64::from(field.offset) | u64::from(field.stride) << 32,
            Ordering::Relaxed,
        );
        place
            .count
            .store(u64::from(field.count) | kind << 32, Ordering::Relaxed);
    }
    entry.ready.store(1, Ordering::Release);
    Ok(index)
}

/// What the pool knows of a type, for reports.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) fingerprint: u128,
    pub(crate) size: usize,
    pub(crate) align: usize,
}

/// The type with that index, if there is one.
pub(crate) fn described(arena: Arena, index: usize) -> Option<Described> {
    let entry = entry(arena, index).filter(|e| e.ready.load(Ordering::Acquire) == 1)?;
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let name: Vec<u8> = entry
        .name
        .iter()
        .flat_map(|word| load(word).to_ne_bytes())
        .take_while(|&byte| byte != 0)
        .collect();
    let [low, high] = &entry.fingerprint;
    Some(Described {
        name: String::from_utf8_lossy(&name).into_owned(),
        fingerprint: u128::from(load(low)) | u128::from(load(high)) << 64,
        size: load(&entry.size) as usize,
        align: load(&entry.align) as usize,
    })
}

/// Bytes of a value of the type.
pub(super) fn size(arena: Arena, index: usize) -> usize {
    entry(arena, index).map_or(0, |e| e.size.load(Ordering::Relaxed) as usize)
}

/// The owning words of a value of the type in a block of `room` bytes; what lies outside the value
/// or the block is left out.
pub(crate) fn owned_words(
    arena: Arena,
    index: usize,
    room: usize,
) -> impl Iterator<Item = OwnedWord> {
    let size = size(arena, index).min(room);
    let runs = entry(arena, index).map_or(&[][..], |e| {
        &e.owned[..(e.fields.load(Ordering::Relaxed) as usize).min(FIELDS)]
    });
    runs.iter().flat_map(move |run| {
        let place = run.place.load(Ordering::Relaxed);
        let count = run.count.load(Ordering::Relaxed);
        let (offset, stride) = (place & 0xffff_ffff, place >> 32);
        let kind = Owned::of_code(count >> 32);
        // Words overlap only in garbage; at least a word per step keeps the walk within `size`.
        let (stride, count) = (stride.max(8), count & 0xffff_ffff);
        (0..count)
            .map(move |i| offset.saturating_add(i * stride) as usize)
            .take_while(move |&offset| offset < size && size - offset >= 8)
            .filter(|offset| offset.is_multiple_of(8))
            .filter_map(move |offset| {
                Some(OwnedWord {
                    offset,
                    kind: kind?,
                })
            })
    })
}

/// Checks every entry that was published: it never changes again.
pub(super) fn check(arena: Arena, report: &mut CheckReport) {
    for index in 0..count(arena) {
        let Some(entry) = entry(arena, index) else {
            continue;
        };
        let wrong = match entry.ready.load(Ordering::Acquire) {
            0 => continue,
            1 => entry.fault(),
            _ => Some("is neither published nor not"),
        };
        if let Some(wrong) = wrong {
            report.problem(format_args!("type {index} {wrong}"));
        }
    }
}

impl TypeEntry {
    /// What is wrong with the entry, if it is one that no type can have.
    fn fault(&self) -> Option<&'static str> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let (size, align) = (load(&self.size), load(&self.align));
        if !align.is_power_of_two() || !size.is_multiple_of(align) {
            return Some("has a size that is no multiple of its alignment");
        }
        let Some(runs) = self.owned.get(..load(&self.fields) as usize) else {
            return Some("has more fields than an entry holds");
        };
        let is_within = |run: &OwnedEntry| {
            let (place, count) = (load(&run.place), load(&run.count));
            let (offset, stride) = (place & 0xffff_ffff, place >> 32);
            let last = (count & 0xffff_ffff).checked_sub(1)?;
            let end = offset + stride.checked_mul(last)?.checked_add(8)?;
            (end <= size && Owned::of_code(count >> 32).is_some()).then_some(())
        };
        let are_within = runs.iter().all(|run| is_within(run).is_some());
        (!are_within).then_some("owns what is not within it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Link;
    use crate::participants::thread;
    use crate::pool::Scratch;

    /// Its writer has died before: the next one writes over it.
    #[test]
    fn an_entry_that_is_not_ready_is_the_next_ones() {
        let pool = Scratch::new();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let index = index_of::<u8>(arena, slot).unwrap();
        let ready = &entry(arena, index).unwrap().ready;
        for (state, problems) in [(2, 1), (1, 0), (0, 0)] {
            ready.store(state, Ordering::Relaxed);
            assert_eq!(pool.check().problems.len(), problems, "{state}");
        }
        assert_eq!(index_of::<u16>(arena, slot).unwrap(), index);
        assert_eq!(ready.load(Ordering::Relaxed), 1);
    }

    /// Whatever the entry says of a value, no more words of it are looked at than there are.
    #[test]
    fn a_value_owns_what_is_within_it() {
        let pool = Scratch::new();
        let (arena, slot) = (pool.0, thread::slot(pool.0).unwrap());
        let index = index_of::<[Link<u8>; 2]>(arena, slot).unwrap();
        let words = |room| owned_words(arena, index, room).take(3).count();
        assert_eq!((words(16), words(8), words(0)), (2, 1, 0));
        let run = &entry(arena, index).unwrap().owned[0];
        run.place.store(0, Ordering::Relaxed);
        run.count
            .store(u64::from(u32::MAX) | LINK << 32, Ordering::Relaxed);
        assert_eq!((words(16), words(8), words(0)), (2, 1, 0));
    }
}
