//! How long a file this process may write (`RLIMIT_FSIZE`). Attempting more would not only fail
//! with `EFBIG` but also send SIGXFSZ, which ends the process. So the limit is checked first.
//!
//! Contract: if another thread or process lowers the limit meanwhile, that is not seen.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};
use rustix::process::Resource;

use super::limits;

fn is_above_limit(len: u64) -> bool {
    limits::of(Resource::Fsize).is_some_and(|limit| len > limit)
}

/// Checks that the file may become `len` bytes long. What lies within its present length may be
/// committed, however long it is.
pub(crate) fn check_length(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    match is_above_limit(len) && len > rustix::fs::fstat(fd)?.st_size.max(0) as u64 {
        true => Err(Errno::FBIG),
        false => Ok(()),
    }
}

/// Checks that a regular file may be written to up to `end`. The limit applies within its length,
/// too.
pub(crate) fn check_write(end: u64) -> Result<()> {
    match is_above_limit(end) {
        true => Err(Errno::FBIG),
        false => Ok(()),
    }
}
