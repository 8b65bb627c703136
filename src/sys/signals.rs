//! Threads that take none of the program's signals.

use std::mem::MaybeUninit;

/// Runs `f` with every signal blocked for this thread. A thread that it starts inherits that:
/// signals sent to the process are left to the threads of the program, which may have blocked them
/// to await them.
pub(crate) fn blocked<T>(f: impl FnOnce() -> T) -> T {
    /// The signal mask that the thread had before, restored even after a panic.
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the set is only read, and was written by the call that this one undoes.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
            };
        }
    }
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: both sets belong to this frame, and are written before they are read: neither call
    // can fail with these arguments.
    let _restore = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        Restore(before.assume_init())
    };
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked() -> bool {
        let mut now = MaybeUninit::uninit();
        // SAFETY: the set is this frame's, and is written before it is read.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), now.as_mut_ptr());
            libc::sigismember(now.as_ptr(), libc::SIGUSR1) == 1
        }
    }

    #[test]
    fn signals_are_taken_again() {
        assert_eq!((blocked(is_blocked), is_blocked()), (true, false));
        let panics = || blocked(|| std::panic::resume_unwind(Box::new(())));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(!is_blocked());
    }
}
