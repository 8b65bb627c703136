//! Which threads hold what, and which wait for which.
//!
//! No list of what a thread holds is kept anywhere (`docs/design.md`), so it is searched for: what
//! a thread sleeps on and reads under is in its slot, and what it holds contains its tag. The tag
//! is searched for in the values of the objects (not in the storage that arrays and containers have
//! elsewhere): locks, claims of ranges and leases are found, whether anybody waits for them or not.
//! A number of a user's that happens to equal a living thread's tag is found, too.

use std::collections::BTreeMap;

use serde::Serialize;

use super::participants::pid_of;
use crate::allocator::block;
use crate::engines;
use crate::layout::arena::Arena;
use crate::participants::table::SlotPhase;
use crate::participants::tag::Tag;
use crate::pool::objects::ObjectPhase;
use crate::pool::{names, types};
use crate::primitive::{AtomicU64, Ordering};

/// What a thread has to do with a word.
///
/// ```
/// use shmkit::inspect::{Observer, Why};
/// use shmkit::{Pool, sync::Mutex};
///
/// let name = format!("doc-why-{}", std::process::id());
/// let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let mutex = pool.create(Mutex::new(0))?;
/// let guard = mutex.lock().unwrap();
/// let locks = Observer::open(&name)?.locks();
/// assert!(locks.iter().any(|lock| lock.threads[0].why == Why::Holds));
/// # drop(guard);
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Why {
    /// Its tag is in the word: a lock, a claim, a lease.
    Holds,
    /// It reads under the lock.
    Reads,
    /// It holds a permit of the semaphore.
    Permit,
    /// It sleeps on the word.
    Waits,
}

/// A thread that has something to do with a word.
///
/// ```
/// use shmkit::inspect::Observer;
/// use shmkit::{Pool, sync::Mutex};
///
/// let name = format!("doc-thread-{}", std::process::id());
/// let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let mutex = pool.create(Mutex::new(0))?;
/// let guard = mutex.lock().unwrap();
/// let locks = Observer::open(&name)?.locks();
/// let us = |lock: &shmkit::inspect::LockReport| lock.threads[0].process == std::process::id();
/// assert!(locks.iter().any(us));
/// # drop(guard);
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockThread {
    /// Its slot.
    pub slot: usize,
    /// Its process's id; 0 if that is not known.
    pub process: u32,
    /// What it has to do with the word.
    pub why: Why,
}

/// A word that threads hold, under which they read, or on which they sleep.
///
/// ```
/// use shmkit::inspect::Observer;
/// use shmkit::{Pool, sync::Mutex};
///
/// let name = format!("doc-lock-{}", std::process::id());
/// let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let mutex = pool.create(Mutex::new(0))?;
/// let guard = mutex.lock().unwrap();
/// let locks = Observer::open(&name)?.locks();
/// for lock in &locks {
///     println!("{:#x} in {}: {} threads", lock.offset, lock.within, lock.threads.len());
/// }
/// assert!(!locks.is_empty());
/// # drop(guard);
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockReport {
    /// Where the word is, in bytes from the start of the pool's file.
    pub offset: usize,
    /// What it is part of: an object's name, or its type and number, or one of the pool's own
    /// locks.
    pub within: String,
    /// The threads that have something to do with it.
    pub threads: Vec<LockThread>,
}

impl LockReport {
    /// How many threads sleep on it.
    ///
    /// ```
    /// use shmkit::inspect::Observer;
    /// use shmkit::{Pool, sync::Mutex};
    ///
    /// let name = format!("doc-waiting-{}", std::process::id());
    /// let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let mutex = pool.create(Mutex::new(0))?;
    /// let guard = mutex.lock().unwrap();
    /// let locks = Observer::open(&name)?.locks();
    /// assert!(locks.iter().all(|lock| lock.waiting() == 0));
    /// # drop(guard);
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn waiting(&self) -> usize {
        let waits = |thread: &&LockThread| thread.why == Why::Waits;
        self.threads.iter().filter(waits).count()
    }
}

pub(super) fn locks_of(arena: Arena) -> Vec<LockReport> {
    let mut found: BTreeMap<usize, Vec<LockThread>> = BTreeMap::new();
    let mut note = |word: usize, slot: usize, why: Why| {
        let process = pid_of(arena, arena.slot(slot));
        let thread = LockThread { slot, process, why };
        let threads = found.entry(word).or_default();
        if !threads.contains(&thread) {
            threads.push(thread);
        }
    };
    let mut tags: BTreeMap<u64, usize> = BTreeMap::new();
    for (index, slot) in arena.slots() {
        let state = slot.state();
        if !matches!(state.phase, SlotPhase::Live | SlotPhase::Parked) {
            continue;
        }
        tags.insert(Tag::new(index, state.generation).word(), index);
        let waits = slot.watched.waiting_on.load(Ordering::Acquire) as usize;
        if waits != 0 {
            note(waits & !7, index, Why::Waits);
        }
        for lock in &slot.reading.locks {
            match lock.load(Ordering::Acquire) as usize {
                0 => {}
                lock => note(lock, index, Why::Reads),
            }
        }
        for permit in &slot.permits {
            match permit.word.load(Ordering::Acquire) as usize {
                0 => {}
                semaphore => note(semaphore, index, Why::Permit),
            }
        }
    }
    let mut look_at = |word: &AtomicU64| {
        let owner = Tag::of_word(word.load(Ordering::Acquire)).word();
        if let Some(&slot) = tags.get(&owner) {
            note(std::ptr::from_ref(word).addr(), slot, Why::Holds);
        }
    };
    let header = arena.header();
    look_at(&header.types_lock);
    look_at(&header.names_lock);
    let extents = extents(arena);
    for &(start, end, _) in &extents {
        let words = (start.next_multiple_of(8)..end.saturating_sub(7)).step_by(8);
        words
            .filter_map(|address| engines::word(arena, address as u64))
            .for_each(&mut look_at);
    }
    let named = names::all(arena);
    found
        .into_iter()
        .map(|(word, threads)| LockReport {
            offset: word.wrapping_sub(arena.base()),
            within: within(arena, word, &extents, &named),
            threads,
        })
        .collect()
}

/// Where the values of the objects are: start, end, index.
fn extents(arena: Arena) -> Vec<(usize, usize, usize)> {
    (0..arena.object_count())
        .filter_map(|index| {
            let entry = arena.object(index)?;
            let live = entry.state().phase == ObjectPhase::Live;
            let address = entry.address.load(Ordering::Acquire) as usize;
            let room = block::usable_size(arena, address).ok()?;
            let size = types::described(arena, entry.kind())?.size.min(room);
            live.then_some((address, address + size, index))
        })
        .collect()
}

fn within(
    arena: Arena,
    word: usize,
    extents: &[(usize, usize, usize)],
    named: &[(String, usize)],
) -> String {
    let header = arena.header();
    if word == std::ptr::from_ref(&header.types_lock).addr() {
        return "the table of types".into();
    }
    if word == std::ptr::from_ref(&header.names_lock).addr() {
        return "the table of names".into();
    }
    let Some(&(_, _, index)) = extents
        .iter()
        .find(|(start, end, _)| (*start..*end).contains(&word))
    else {
        return "a block".into();
    };
    if let Some((name, _)) = named.iter().find(|(_, target)| *target == index) {
        return name.clone();
    }
    let kind = arena.object(index).map_or(0, |entry| entry.kind());
    let name = types::described(arena, kind).map_or("object".into(), |ty| ty.name);
    format!("{name} #{index}")
}
