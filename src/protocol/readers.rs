//! The list of the locks that a thread reads under. Only the thread itself writes to it, and
//! writers look at it.
//!
//! This is Dekker's scheme, as with hazard pointers (Michael 2004): the reader lists the lock and
//! then looks at the lock's word; the writer takes the word and then looks at the lists. All of
//! this is sequentially consistent, so one of the two sees the other. The reader withdraws; the
//! writer waits.
//!
//! Invariants
//! 1. An entry of a live thread that names a lock is cleared only by that thread.
//! 2. Every entry in use is below the list's limit.

use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::lock_word::Exchanged;

/// Why a lock was not listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotListed {
    /// The thread lists the lock already.
    Already,
    /// The thread lists as many locks as it can.
    Full,
}

/// Lists a lock, by its address, and gives the index of the entry. What the caller loads from the
/// lock's word from here on is newer than what any writer has seen that does not see the entry.
#[inline]
pub fn enter(entries: &[AtomicU64], limit: &AtomicU64, lock: u64) -> Result<usize, NotListed> {
    // Relaxed: the list is our own.
    let below = limit.load(Ordering::Relaxed) as usize;
    let mut free = below;
    for (index, entry) in entries.iter().take(below).enumerate() {
        match entry.load(Ordering::Relaxed) {
            0 if free == below => free = index,
            listed if listed == lock => return Err(NotListed::Already),
            _ => {}
        }
    }
    let entry = entries.get(free).ok_or(NotListed::Full)?;
    if free == below {
        // Before the entry, by invariant 2.
        limit.store(free as u64 + 1, Ordering::SeqCst);
    }
    entry.store(lock, Ordering::SeqCst);
    Ok(free)
}

/// The entry that names the lock, in the caller's own list.
#[inline]
pub fn own<'a>(entries: &'a [AtomicU64], limit: &AtomicU64, lock: u64) -> Option<&'a AtomicU64> {
    let below = limit.load(Ordering::Relaxed) as usize;
    let mut entries = entries.iter().take(below);
    // Relaxed: the list is our own.
    entries.find(|entry| entry.load(Ordering::Relaxed) == lock)
}

/// Clears an entry. Release pairs with the Acquire of the writer that waits for it.
#[inline]
pub fn strike(entry: &AtomicU64) {
    entry.store(0, Ordering::Release);
}

/// The entries that may be in use. Acquire, after [`before_looking`].
#[inline]
pub fn used<'a>(
    entries: &'a [AtomicU64],
    limit: &AtomicU64,
) -> impl Iterator<Item = &'a AtomicU64> {
    let limit = limit.load(Ordering::Acquire) as usize;
    entries.iter().take(limit)
}

/// To be called by a writer after it has taken the word, which is done with Acquire only, and
/// before it looks at the lists. Pairs with the SeqCst of [`enter`] and of the reader's look at the
/// word.
///
/// The models check the fence. On x86 the exchange that has taken the word is a full fence, and the
/// caller shows that it has made one.
#[inline]
pub fn before_looking(_: Exchanged) {
    #[cfg(all(target_arch = "x86_64", not(shmkit_loom)))]
    crate::primitive::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(shmkit_loom))))]
    crate::primitive::fence(Ordering::SeqCst);
}

/// True if an entry names the lock. Acquire, after [`before_looking`].
#[inline]
pub fn names(entry: &AtomicU64, lock: u64) -> bool {
    entry.load(Ordering::Acquire) == lock
}
