//! Descriptors that the library keeps.
//!
//! A program may have closed its standard streams. The kernel gives out the lowest free number, so
//! a file opened then would get the number of one of them, and what the program, or the C library,
//! prints would be written into a pool. So every descriptor that stays open gets another number.

use std::os::fd::{AsRawFd, OwnedFd};

/// The first number that does not belong to a standard stream.
const FIRST: i32 = 3;

/// The same file under a number that does not belong to a standard stream. Closed on `exec`.
pub(crate) fn to_keep(fd: OwnedFd) -> rustix::io::Result<OwnedFd> {
    match fd.as_raw_fd() >= FIRST {
        true => Ok(fd),
        false => rustix::io::fcntl_dupfd_cloexec(&fd, FIRST),
    }
}
