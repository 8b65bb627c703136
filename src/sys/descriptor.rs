//! Descriptors that the library keeps.
//!
//! A program may have closed its standard streams. The kernel gives the lowest number that is free, so
//! what is opened then would get one of theirs; and what the program, or the C library, prints would be
//! written into a pool. So whatever stays open has another number.

use std::os::fd::{AsRawFd, OwnedFd};

/// The first number that is none of a standard stream.
const FIRST: i32 = 3;

/// The same file by a number that is no standard stream's. Closed on `exec`.
pub(crate) fn to_keep(fd: OwnedFd) -> rustix::io::Result<OwnedFd> {
    match fd.as_raw_fd() >= FIRST {
        true => Ok(fd),
        false => rustix::io::fcntl_dupfd_cloexec(&fd, FIRST),
    }
}
