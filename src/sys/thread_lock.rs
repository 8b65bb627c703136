//! A lock between the threads of one process that touches no heap and that a fork cannot leave
//! locked for ever.
//!
//! | word | meaning |
//! |------|---------|
//! | 0    | free |
//! | tid  | held by that thread |
//!
//! A fork copies the word while another thread may hold it, and that thread is not in the child. So
//! a thread that waits asks the kernel whether the holder is a thread of this process, and takes
//! the lock from one that is not. It is for short, rare work: waiting is yielding.

use super::process;
use crate::primitive::{AtomicU32, Ordering};

pub(crate) struct ThreadLock(AtomicU32);

/// How the lock was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was free.
    Free,
    /// From a holder that is not in this process: what the lock protects is as that holder left it.
    FromTheGone,
}

impl ThreadLock {
    pub(crate) const fn new() -> Self {
        ThreadLock(AtomicU32::new(0))
    }

    pub(crate) fn lock(&self) -> Taken {
        let me = process::tid();
        loop {
            match self.exchange(0, me) {
                Ok(_) => return Taken::Free,
                Err(other) if !process::is_thread_of_ours(other) => {
                    if self.exchange(other, me).is_ok() {
                        return Taken::FromTheGone;
                    }
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Frees the lock, which the caller holds.
    pub(crate) fn unlock(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    fn exchange(&self, from: u32, to: u32) -> Result<u32, u32> {
        self.0
            .compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed)
    }
}
