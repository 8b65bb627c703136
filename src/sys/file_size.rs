//! How long a file this process may write (`RLIMIT_FSIZE`). To try more would not only fail with `EFBIG` but
//! send SIGXFSZ, which ends the process. So it is looked at before.
//!
//! Contract: a limit that is lowered meanwhile, by another thread or process, is not seen.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};
use rustix::process::Resource;

use super::limits;

fn is_above_limit(len: u64) -> bool {
    limits::of(Resource::Fsize).is_some_and(|limit| len > limit)
}

/// Checks that the file may be made so long. What is within it already may be committed, however long it is.
pub(crate) fn check_length(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    match is_above_limit(len) && len > rustix::fs::fstat(fd)?.st_size.max(0) as u64 {
        true => Err(Errno::FBIG),
        false => Ok(()),
    }
}

/// Checks that a regular file may be written to up to there. That counts within its length, too.
pub(crate) fn check_write(end: u64) -> Result<()> {
    match is_above_limit(end) {
        true => Err(Errno::FBIG),
        false => Ok(()),
    }
}
