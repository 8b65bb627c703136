//! The pid file: it says who the master is, and its lock that there is one.
//!
//! The lock goes with the last copy of its descriptor; workers close theirs as they start. So it
//! is free once a killed master and the workers that were just being forked are gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::RunError;
use crate::sys::process;

#[derive(Debug)]
pub(super) struct PidFile {
    file: File,
    path: PathBuf,
    /// Whose it is: a process that it forks has a copy.
    owner: u32,
}

impl PidFile {
    pub(super) fn create(path: &Path) -> Result<PidFile, RunError> {
        let failed = |error: io::Error| RunError::File {
            path: path.display().to_string(),
            error,
        };
        let mut file = lock(path)?;
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", process::pid()).map_err(failed)?;
        Ok(PidFile {
            file,
            path: path.into(),
            owner: process::pid(),
        })
    }
}

/// Opens a file, made if need be, and locks it.
///
/// # Errors
///
/// [`RunError::AlreadyRunning`] if another run has it.
pub(super) fn lock(path: &Path) -> Result<File, RunError> {
    let failed = |error: io::Error| RunError::File {
        path: path.display().to_string(),
        error,
    };
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(RunError::AlreadyRunning {
                    path: path.display().to_string(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // Its last owner may have removed it between the two steps: then it is another by now.
        let inode = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let ours = file.metadata().map(inode).map_err(failed)?;
        if std::fs::metadata(path).map(inode).ok() == Some(ours) {
            return Ok(file);
        }
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.owner == process::pid() {
            // While it is locked, so that it is ours.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
