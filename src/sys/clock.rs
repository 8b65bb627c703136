//! A clock for the allocator.
//!
//! Contract: reading it allocates nothing. (`rustix` looks for the clock's code at the first use,
//! in the auxiliary vector, for which it allocates where it must read that from a file: on kernels
//! before 6.4.)

/// A clock that never goes back, in milliseconds. It is behind by up to 10 ms, but fast.
pub(crate) fn coarse_millis() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills in the local. It does not fail: the clock exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
