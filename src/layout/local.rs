//! What a process keeps about each pool for itself: the descriptor, the length, its own record.
//!
//! There is one entry for each granule, in a static: found by the pool's base address without a
//! lock, and the same in a forked child, whose fork handler replaces what differs there.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::arena::{Arena, GRANULES};
use crate::sys::descriptor::Kept;

/// One process's own view of one pool.
pub(crate) struct Local {
    /// Bytes mapped; 0 while no pool is. The private heap (`private`) is not a pool: code that asks
    /// for this process's pools must not find it.
    len: AtomicUsize,
    /// The pool's file.
    file: Kept,
    /// The granule holds private memory.
    private: AtomicBool,
    /// The pool's, for code that looks for the pool: nothing is read from other pools, which may be
    /// unmapped meanwhile.
    uuid: [AtomicU64; 2],
    /// Whether its user can find the pool by an address or a descriptor. Not while it is being
    /// made, since it goes if that fails; nor if it is a run's control pool, which goes with the
    /// master.
    shown: AtomicBool,
    /// The process's record in the pool, as a tag; 0 while there is none.
    process: AtomicU64,
    /// How many guards threads left behind when they ended.
    leaked_guards: AtomicUsize,
    /// The job that the process runs, if the pool is a run's control pool; see `process/part.rs`.
    /// It is here because a forked child writes to this page anyway.
    job: AtomicU64,
}

static LOCALS: [Local; GRANULES] = [const { Local::new() }; GRANULES];

/// The entry of a pool's granule.
#[inline]
pub(crate) fn of(arena: Arena) -> &'static Local {
    &LOCALS[arena.granule()]
}

/// Every pool that this process has mapped.
pub(crate) fn mapped() -> impl Iterator<Item = Arena> {
    use super::arena::{FIRST_GRANULE, GRANULE};
    (0..GRANULES)
        .filter(|&i| LOCALS[i].is_mapped())
        .map(|i| Arena::at((i + FIRST_GRANULE) * GRANULE))
}

impl Local {
    const fn new() -> Self {
        Local {
            len: AtomicUsize::new(0),
            file: Kept::none(),
            private: AtomicBool::new(false),
            uuid: [const { AtomicU64::new(0) }; 2],
            shown: AtomicBool::new(false),
            process: AtomicU64::new(0),
            leaked_guards: AtomicUsize::new(0),
            job: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn is_mapped(&self) -> bool {
        self.len.load(Ordering::Acquire) != 0
    }

    /// Notes a mapping, which is not shown yet. The mapping itself is what keeps others out of the
    /// granule.
    pub(crate) fn set_mapped(&self, file: Kept, len: usize, uuid: [u64; 2]) {
        self.file.put(file);
        self.private.store(false, Ordering::Relaxed);
        for (word, half) in self.uuid.iter().zip(uuid) {
            word.store(half, Ordering::Relaxed);
        }
        self.forget();
        self.len.store(len, Ordering::Release);
    }

    /// Forgets what the pool that was mapped here before has left behind.
    fn forget(&self) {
        self.shown.store(false, Ordering::Relaxed);
        self.process.store(0, Ordering::Relaxed);
        self.leaked_guards.store(0, Ordering::Relaxed);
    }

    /// Notes that the mapping is about to go; returns its length and descriptor.
    pub(crate) fn clear(&self) -> (usize, Kept) {
        (self.len.swap(0, Ordering::AcqRel), self.file.take())
    }

    /// Shows the pool to its user, until it is unmapped.
    pub(crate) fn show(&self) {
        self.shown.store(true, Ordering::Release);
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.is_mapped() && self.shown.load(Ordering::Acquire)
    }

    pub(crate) fn uuid(&self) -> [u64; 2] {
        self.uuid
            .each_ref()
            .map(|half| half.load(Ordering::Relaxed))
    }

    /// Notes that the granule holds private memory.
    pub(crate) fn set_private(&self) {
        self.forget();
        self.private.store(true, Ordering::Release);
    }

    pub(crate) fn is_private(&self) -> bool {
        self.private.load(Ordering::Acquire)
    }

    pub(crate) fn file(&self) -> &Kept {
        &self.file
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn process(&self) -> u64 {
        self.process.load(Ordering::Acquire)
    }

    pub(crate) fn set_process(&self, tag: u64) {
        self.process.store(tag, Ordering::Release);
    }

    pub(crate) fn job(&self) -> u64 {
        self.job.load(Ordering::Relaxed)
    }

    pub(crate) fn set_job(&self, id: u64) {
        self.job.store(id, Ordering::Relaxed);
    }

    pub(crate) fn leak_guards(&self, count: usize) {
        self.leaked_guards.fetch_add(count, Ordering::Relaxed);
    }

    /// In a forked child: forgets the leaked guards, which are the parent's.
    pub(crate) fn forget_leaked_guards(&self) {
        // Not stored without need: each page that is written to is copied.
        if self.leaked_guards() != 0 {
            self.leaked_guards.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn leaked_guards(&self) -> usize {
        self.leaked_guards.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_knows_nothing_of_the_pool_before() {
        let place = Local::new();
        place.set_mapped(Kept::none(), 4096, [1, 2]);
        place.show();
        // It has left a guard behind, and so has not left.
        place.set_process(5);
        place.leak_guards(1);
        assert_eq!(place.clear().0, 4096);
        place.set_mapped(Kept::none(), 8192, [3, 4]);
        let known = (place.is_shown(), place.process(), place.leaked_guards());
        assert_eq!(known, (false, 0, 0));
        // Nor does private memory, which has no table of processes.
        place.set_process(5);
        place.leak_guards(1);
        assert_eq!(place.clear().0, 8192);
        place.set_private();
        assert_eq!((place.process(), place.leaked_guards()), (0, 0));
    }
}
