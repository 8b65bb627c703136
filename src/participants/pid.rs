//! Process ids: [`ProcessId`], as users see it, and `Pid`, the one in a process's record.
//!
//! # The record's
//!
//! A parent notes its child's id when `fork` has returned. By then the child may have lived and
//! ended, and its record may be another process's, whose id must stay: a process that is taken for
//! one that is gone is declared dead. So the word holds the id, and above it the low 32 bits of the
//! record's generation. A parent notes the id only if the word has no id and has its child's
//! generation. A thread that looks for a child by its id asks for the id in the generation that the
//! record has, and is never given a former owner's.
//!
//! | Who | stores | a kill after it leaves |
//! |---|---|---|
//! | a parent that reserves the record | 0, with the life word held | an id of a record that is FREE: nobody asks |
//! | the process, as it takes the record or comes to life in it | its own id | the same, or the id of a child on its way |
//! | the parent, once it has forked | the child's id, in place of 0 | what the child stores |

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::primitive::{AtomicU64, Ordering};

/// Names a process of the toolkit.
///
/// It may be passed in results and messages. It is only a name: the process may have ended.
///
/// ```
/// # use shmkit::process::scope;
/// scope(|s| {
///     let child = s.spawn(|| std::process::id()).unwrap();
///     let id = child.id();
///     assert_eq!(id.pid(), child.join().unwrap());
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId(pub(crate) u32);

impl ProcessId {
    pub(crate) const fn of_pid(pid: u32) -> Self {
        ProcessId(pid)
    }

    /// The number by which the kernel knows the process, in the pid namespace of its parent.
    ///
    /// ```
    /// let child = shmkit::process::scope(|s| s.spawn(|| ()).unwrap().id());
    /// assert_ne!(child.pid(), std::process::id());
    /// ```
    #[must_use]
    pub const fn pid(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id, or 0 while it is not known, with the generation that it belongs to.
#[repr(transparent)]
pub(crate) struct Pid(AtomicU64);

const fn word(generation: u64, pid: u32) -> u64 {
    generation << 32 | pid as u64
}

impl Pid {
    #[inline]
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire) as u32
    }

    /// The id of the record's owner in that generation, if it is known.
    pub(crate) fn of(&self, generation: u64) -> Option<u32> {
        let found = self.0.load(Ordering::Acquire);
        let pid = found as u32;
        (pid != 0 && found == word(generation, pid)).then_some(pid)
    }

    /// Called by the thread that has the record: in that generation, the id is now `pid`.
    pub(crate) fn set(&self, generation: u64, pid: u32) {
        self.0.store(word(generation, pid), Ordering::Release);
    }

    /// Called by a parent, for its child: does nothing if the child has stored its id itself, or
    /// the record is another's.
    pub(crate) fn note(&self, generation: u64, pid: u32) {
        let _ = self.0.compare_exchange(
            word(generation, 0),
            word(generation, pid),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_owner_is_not_found() {
        let pid = Pid(AtomicU64::new(0));
        assert_eq!(pid.of(0), None);
        pid.set(5, 70);
        assert_eq!(pid.of(5), Some(70));
        // Taken again, by a parent that has not yet stored that the id is not known.
        assert_eq!(pid.of(6), None);
        pid.set(6, 0);
        assert_eq!((pid.of(5), pid.of(6)), (None, None));
        pid.note(6, 71);
        assert_eq!((pid.of(5), pid.of(6)), (None, Some(71)));
    }

    #[test]
    fn who_comes_late_changes_nothing() {
        let pid = Pid(AtomicU64::new(0));
        pid.set(5, 0);
        pid.note(5, 70);
        assert_eq!(pid.get(), 70);
        pid.note(5, 71);
        assert_eq!(pid.get(), 70);
        // Its next owner, which lives, and one that is on its way.
        for (generation, owner) in [(6, 80), (7, 0)] {
            pid.set(generation, owner);
            pid.note(5, 70);
            assert_eq!(pid.get(), owner);
        }
    }
}
