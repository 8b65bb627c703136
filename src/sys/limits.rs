//! What this process may use.
//!
//! Contract: a limit that the system does not report counts as none. Some system-call filters
//! refuse the query, too, since they cannot tell it from a change, and it is made in the middle of
//! changes to a pool: it must not panic.

use std::mem::MaybeUninit;

use rustix::process::Resource;

/// The current limit, in the unit of the resource; `None` if there is none.
pub(crate) fn of(resource: Resource) -> Option<u64> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the call fills in the local, or fails.
    let limit = unsafe {
        match libc::getrlimit(resource as libc::__rlimit_resource_t, limit.as_mut_ptr()) {
            0 => limit.assume_init(),
            _ => return None,
        }
    };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
