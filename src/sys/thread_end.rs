//! What a thread does last: a `pthread` key, whose destructor the C library calls when those of all
//! thread-locals have run.
//!
//! glibc's `start_thread` calls `__call_tls_dtors`, with which thread-locals are registered, and
//! then `__nptl_deallocate_tsd`, for the keys. If the first thread of a process returns from
//! `main`, it has no such end: the process ends.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something that threads do last, if they have asked for it.
pub(crate) struct ThreadEnd {
    /// The key plus one; 0 while there is none.
    key: AtomicU64,
    does: unsafe extern "C" fn(*mut c_void),
}

impl ThreadEnd {
    pub(crate) const fn new(does: unsafe extern "C" fn(*mut c_void)) -> Self {
        let key = AtomicU64::new(0);
        ThreadEnd { key, does }
    }

    /// Arranges for it to be done with that value, which is not null, when this thread ends. False
    /// if the system has no room for it. May allocate.
    pub(crate) fn ask(&self, value: *const c_void) -> bool {
        debug_assert!(!value.is_null());
        let Some(key) = self.key() else { return false };
        // SAFETY: the key is never deleted; the caller answers for what is done with the value.
        unsafe { libc::pthread_setspecific(key, value) == 0 }
    }

    /// Two threads may each make a key: the first to publish its own wins.
    fn key(&self) -> Option<libc::pthread_key_t> {
        let known = self.key.load(Ordering::Acquire);
        if known != 0 {
            return Some((known - 1) as libc::pthread_key_t);
        }
        let mut key = 0;
        // SAFETY: writes the key to the local; the destructor is a function of this program.
        if unsafe { libc::pthread_key_create(&raw mut key, Some(self.does)) } != 0 {
            return None;
        }
        let (mine, acquire) = (u64::from(key) + 1, Ordering::Acquire);
        let published = self
            .key
            .compare_exchange(0, mine, Ordering::AcqRel, acquire);
        if let Err(other) = published {
            // SAFETY: made just now; no thread has a value of it.
            unsafe { libc::pthread_key_delete(key) };
            return Some((other - 1) as libc::pthread_key_t);
        }
        Some(key)
    }
}
