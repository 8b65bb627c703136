//! Words that the kernel marks at once when the thread that holds them dies.
//!
//! A [`RobustWord`] sits in the pool. While a thread holds it, it contains the thread's tid and is
//! an entry of that thread's robust list; when the thread ends for whatever reason (SIGKILL, exit,
//! `exec`), the kernel replaces the tid by `OWNER_DIED` and wakes one sleeper. This happens before
//! the process is torn down, within a fraction of a millisecond.
//!
//! A thread has one robust list, registered by the C library for `pthread` robust mutexes. This
//! module adds its entries to that list instead of registering another, which would displace the
//! library's own. The list's shape is the kernel's interface except for two things that the library
//! adds. Both hold for glibc, and are checked at run time where they can be: a word lies 32 bytes
//! before its link ([`RobustError::ForeignList`] otherwise), and the word before a link points
//! back. Source: the kernel's `Documentation/locking/robust-futex-ABI.rst`.
//!
//! | word                | meaning |
//! |---------------------|---------|
//! | 0                   | held by nobody |
//! | tid, maybe WAITERS  | held by that thread, which lives |
//! | OWNER_DIED, maybe WAITERS | its holder died and nobody has taken it over |
//!
//! Invariants
//! 1. `pending` names the word before it is taken and until it is linked: a kill in between leaves
//!    a word that the kernel marks all the same.
//! 2. Only the holder writes `previous` and `next`. They are addresses of the holder's process and
//!    mean nothing to others.
//! 3. A forked child starts with an empty list (the C library ensures that), so it never touches
//!    its parent's entries.

use std::cell::Cell;

use super::call;
use crate::primitive::{AtomicU32, AtomicU64, Ordering, compiler_fence, spared};

/// Set by the kernel when the holder died.
pub(crate) const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;
/// Set by sleepers: asks the kernel to wake one of them when the holder dies.
pub(crate) const WAITERS: u32 = libc::FUTEX_WAITERS;
/// The holder's tid.
pub(crate) const TID: u32 = libc::FUTEX_TID_MASK;

/// A word in shared memory that the kernel marks when its holder dies.
#[repr(C, align(8))]
pub(crate) struct RobustWord {
    pub(crate) word: AtomicU32,
    _gap: [AtomicU32; 5],
    previous: AtomicU64,
    next: AtomicU64,
}

/// The offset from a link to its word; equal to glibc's, whose list the entries join.
const WORD_FROM_LINK: isize = -32;
const _: () = {
    let word = std::mem::offset_of!(RobustWord, word) as isize;
    let next = std::mem::offset_of!(RobustWord, next) as isize;
    assert!(word - next == WORD_FROM_LINK);
    assert!(next - std::mem::offset_of!(RobustWord, previous) as isize == 8);
};

/// The kernel's `struct robust_list_head`.
#[repr(C)]
struct ListHead {
    first: usize,
    word_from_link: isize,
    pending: usize,
}

/// Why no robust word can be held by this thread.
#[derive(Debug, thiserror::Error)]
pub enum RobustError {
    /// The kernel does not report the thread's robust list.
    #[error("the thread's robust list cannot be read: {0}")]
    NoList(std::io::Error),
    /// The C library's list has another shape than glibc's.
    #[error("the C library's robust list has words at {0} from their links; glibc's are at -32")]
    ForeignList(isize),
}

thread_local! {
    /// This thread's list and the tid for which it was read; a forked child has another tid.
    static LIST: Cell<(*mut ListHead, u32)> = const { Cell::new((std::ptr::null_mut(), 0)) };
}

#[unsafe(link_section = ".shmkit.child")]
fn list() -> Result<(*mut ListHead, u32), RobustError> {
    let known = LIST.get();
    let tid = super::process::tid();
    if known.1 == tid {
        return Ok(known);
    }
    let mut head: *mut ListHead = std::ptr::null_mut();
    let mut len = 0usize;
    let into = [
        0,
        (&raw mut head).expose_provenance(),
        (&raw mut len).expose_provenance(),
    ];
    // SAFETY: the call writes a pointer and a length to the two locals.
    unsafe { call::bare(libc::SYS_get_robust_list, into) }
        .map_err(|errno| RobustError::NoList(errno.into()))?;
    if head.is_null() || len != size_of::<ListHead>() {
        return Err(RobustError::ForeignList(0));
    }
    // SAFETY: the kernel returned the head that the C library registered for this thread, of the
    // length just checked; it lives as long as the thread.
    let offset = unsafe { (*head).word_from_link };
    if offset != WORD_FROM_LINK {
        return Err(RobustError::ForeignList(offset));
    }
    let found = (head, tid);
    LIST.set(found);
    Ok(found)
}

/// Whether this thread can hold words.
pub(crate) fn can_hold() -> bool {
    list().is_ok()
}

impl RobustWord {
    fn link(&self) -> usize {
        std::ptr::from_ref(&self.next).addr()
    }

    /// True if the kernel has marked the word.
    #[inline]
    pub(crate) fn owner_died(&self) -> bool {
        self.word.load(Ordering::Acquire) & OWNER_DIED != 0
    }

    /// Asks for a sleeper to be woken when the holder gives the word back or dies. Returns the word
    /// as it is now, on which a sleeper sleeps if some thread holds it.
    pub(crate) fn ask_for_wake(&self) -> u32 {
        let mut seen = self.word.load(Ordering::Acquire);
        while seen != 0 && seen & (OWNER_DIED | WAITERS) == 0 {
            let asked = seen | WAITERS;
            match self
                .word
                .compare_exchange(seen, asked, Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => seen = asked,
                Err(now) => seen = now,
            }
        }
        seen
    }

    /// Takes the word for this thread if it holds `expected` (0, or a value with `OWNER_DIED`).
    /// It is held until [`RobustWord::release`] or the thread's end.
    #[unsafe(link_section = ".shmkit.child")]
    pub(crate) fn acquire(&self, expected: u32) -> Result<bool, RobustError> {
        spared(|| self.enter(expected))
    }

    #[inline]
    fn enter(&self, expected: u32) -> Result<bool, RobustError> {
        let (head, tid) = list()?;
        let link = self.link();
        // SAFETY: `head` is this thread's list head, which only the kernel and this thread access;
        // every link in it belongs to a word held by this thread, so it is mapped.
        unsafe {
            (&raw mut (*head).pending).write_volatile(link);
            compiler_fence(Ordering::SeqCst);
            let taken = self
                .word
                .compare_exchange(
                    expected,
                    tid | (expected & WAITERS),
                    Ordering::SeqCst,
                    Ordering::Relaxed,
                )
                .is_ok();
            if taken {
                let first = (&raw const (*head).first).read_volatile();
                self.next.store(first as u64, Ordering::Relaxed);
                self.previous
                    .store((&raw const (*head).first).addr() as u64, Ordering::Relaxed);
                // The low bit of a link marks priority-inheriting locks.
                std::ptr::with_exposed_provenance_mut::<usize>((first & !1) - 8)
                    .write_volatile(link);
                compiler_fence(Ordering::SeqCst);
                (&raw mut (*head).first).write_volatile(link);
            }
            compiler_fence(Ordering::SeqCst);
            (&raw mut (*head).pending).write_volatile(0);
            Ok(taken)
        }
    }

    /// Gives the word back, leaving `0` in it, and wakes the threads that slept on it.
    ///
    /// # Safety
    ///
    /// This thread holds the word.
    #[unsafe(link_section = ".shmkit.child")]
    pub(crate) unsafe fn release(&self) {
        // SAFETY: by the caller's promise.
        spared(|| unsafe { self.leave(0) });
    }

    /// Gives the word back in the state in which the kernel leaves a dead thread's word: it was
    /// taken over from one, and it is too early to do anything about it.
    ///
    /// # Safety
    ///
    /// This thread holds the word.
    pub(crate) unsafe fn give_back_marked(&self) {
        // SAFETY: by the caller's promise.
        spared(|| unsafe { self.leave(OWNER_DIED) });
    }

    /// # Safety
    ///
    /// This thread holds the word.
    #[unsafe(link_section = ".shmkit.child")]
    unsafe fn leave(&self, value: u32) {
        let Ok((head, tid)) = list() else { return };
        debug_assert_eq!(self.word.load(Ordering::Relaxed) & TID, tid);
        let link = self.link();
        // SAFETY: since the caller holds the word, it is linked in this thread's list, whose
        // neighbours are words held by this thread or the head itself.
        unsafe {
            (&raw mut (*head).pending).write_volatile(link);
            compiler_fence(Ordering::SeqCst);
            let next = self.next.load(Ordering::Relaxed) as usize;
            let previous = self.previous.load(Ordering::Relaxed) as usize;
            std::ptr::with_exposed_provenance_mut::<usize>((next & !1) - 8)
                .write_volatile(previous);
            std::ptr::with_exposed_provenance_mut::<usize>(previous & !1).write_volatile(next);
            compiler_fence(Ordering::SeqCst);
            let old = self.word.swap(value, Ordering::SeqCst);
            (&raw mut (*head).pending).write_volatile(0);
            if old & WAITERS != 0 {
                super::futex::wake(&self.word, u32::MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

    use super::*;
    use crate::sys::futex;
    use crate::sys::process::{self, Ended, ForkResult};

    fn free() -> RobustWord {
        RobustWord {
            word: AtomicU32::new(0),
            _gap: [const { AtomicU32::new(0) }; 5],
            previous: AtomicU64::new(0),
            next: AtomicU64::new(0),
        }
    }

    /// Not by looking again.
    #[test]
    fn who_sleeps_is_woken_by_who_gives_the_word_back() {
        let robust = &free();
        assert!(robust.acquire(0).unwrap());
        std::thread::scope(|s| {
            s.spawn(|| {
                let seen = robust.ask_for_wake();
                while robust.word.load(Ordering::Acquire) == seen {
                    futex::wait(&robust.word, seen, Duration::from_secs(3600));
                }
            });
            while !futex::is_slept_on(&robust.word) {
                std::thread::yield_now();
            }
            // SAFETY: acquired above.
            unsafe { robust.release() };
            let asleep = futex::is_slept_on(&robust.word);
            futex::wake(&robust.word, 1);
            assert!(!asleep);
        });
    }

    /// Of those who sleep on a dead one's word the kernel wakes one. The others are left to who takes it over.
    #[test]
    fn who_takes_a_word_over_knows_of_those_who_sleep() {
        let robust = free();
        for (found, sleepers) in [(0, 0), (OWNER_DIED, 0), (OWNER_DIED | WAITERS, WAITERS)] {
            robust.word.store(found, Ordering::Relaxed);
            assert_eq!(robust.ask_for_wake(), found);
            assert!(robust.acquire(found).unwrap());
            assert_eq!(robust.word.load(Ordering::Relaxed) & !TID, sleepers);
            // SAFETY: acquired above.
            unsafe { robust.release() };
            assert_eq!(robust.word.load(Ordering::Relaxed), 0);
        }
    }

    /// The link of the word that is about to change.
    static LINK: AtomicUsize = AtomicUsize::new(0);

    /// In a child, at a store that the kernel refuses: ends it with 0 if the kernel, should the thread
    /// be killed here, would look at the word.
    extern "C" fn at_the_store(_: libc::c_int) {
        // SAFETY: this thread's list, as in `enter`.
        let pending =
            list().map(|(head, _)| unsafe { (&raw const (*head).pending).read_volatile() });
        let is_named = pending.is_ok_and(|link| link == LINK.load(Ordering::Relaxed));
        process::exit_now(i32::from(!is_named));
    }

    /// Stops at a store by making the page read-only to which it goes.
    #[test]
    fn who_is_killed_while_a_word_changes_hands_has_named_it() {
        let page = rustix::param::page_size();
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        let (anywhere, private) = (std::ptr::null_mut(), MapFlags::PRIVATE);
        // SAFETY: a new mapping of two pages.
        let start = unsafe { mmap_anonymous(anywhere, 2 * page, writable, private) }.unwrap();
        // SAFETY: a word at the start of each page; zeros are valid, and the pages stay mapped.
        let words = [0, page].map(|at| unsafe { &*start.byte_add(at).cast::<RobustWord>() });
        let [first, second] = words;
        let protect = |word: &RobustWord| {
            let page_of = std::ptr::from_ref(word).cast_mut().cast();
            // SAFETY: whoever stores there is stopped.
            unsafe { mprotect(page_of, page, MprotectFlags::READ) }.unwrap();
        };
        let acquire = |word: &RobustWord| {
            LINK.store(word.link(), Ordering::Relaxed);
            assert!(word.acquire(0).unwrap());
        };
        let takes = || {
            protect(first);
            acquire(first);
        };
        // The link of the word before it, in the list, leads back to it.
        let links = || {
            acquire(first);
            protect(first);
            acquire(second);
        };
        let gives_back = || {
            acquire(first);
            acquire(second);
            protect(second);
            // SAFETY: acquired above.
            unsafe { second.release() };
        };
        let all: [(&str, &dyn Fn()); 3] = [
            ("takes", &takes),
            ("links", &links),
            ("gives back", &gives_back),
        ];
        for (name, does) in all {
            // SAFETY: the child calls what is usable after a fork, and ends.
            match unsafe { process::fork() }.unwrap() {
                ForkResult::Parent { child } => {
                    assert_eq!(process::wait(child), Ended::Exited(0), "{name}");
                }
                ForkResult::Child => {
                    let handler: extern "C" fn(libc::c_int) = at_the_store;
                    // SAFETY: the handler never returns.
                    unsafe { libc::signal(libc::SIGSEGV, handler as libc::sighandler_t) };
                    does();
                    process::exit_now(2);
                }
            }
        }
        // SAFETY: nobody uses the words any more.
        unsafe { munmap(start, 2 * page) }.unwrap();
    }
}
