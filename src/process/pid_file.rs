//! The pid file: it says who the master is, and its lock that there is one.
//!
//! A file that holds anything but a number is not a pid file, and stays as it is; so does whatever
//! a symbolic link leads to, and anything that is not a regular file. Files are known by their
//! absolute paths, since the program may change its directory before the run ends, and are removed
//! only if they are still the ones that were locked.
//!
//! The lock goes with the last copy of its descriptor; workers close theirs as they start. So it is
//! free once a killed master and the workers that were just being forked are gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::RunError;
use crate::sys::{descriptor, file_size, process};

#[derive(Debug)]
pub(super) struct PidFile {
    file: File,
    path: PathBuf,
    /// The process to which it belongs: a process that it forks has a copy.
    owner: u32,
}

impl PidFile {
    pub(super) fn create(path: &Path) -> Result<PidFile, RunError> {
        let failed = |error: io::Error| RunError::File {
            path: path.display().to_string(),
            error,
        };
        let path = std::path::absolute(path).map_err(failed)?;
        let file = lock(&path, 0o666)?;
        if !is_number(&file).map_err(failed)? {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it is no pid file");
            return Err(failed(error));
        }
        // From here on the file is removed with what is returned, or with the error.
        let pid_file = PidFile {
            file,
            path,
            owner: process::pid(),
        };
        let text = format!("{}\n", pid_file.owner);
        let written = file_size::check_write(text.len() as u64)
            .map_err(io::Error::from)
            .and_then(|()| pid_file.file.set_len(0))
            // At the beginning, wherever reading has ended.
            .and_then(|()| pid_file.file.write_all_at(text.as_bytes(), 0));
        written.map(|()| pid_file).map_err(failed)
    }
}

/// Whether a file holds a number, or nothing.
fn is_number(file: &File) -> io::Result<bool> {
    /// Longer than any number, with the spaces around it.
    const SOME: u64 = 40;
    let mut text = Vec::new();
    file.take(SOME).read_to_end(&mut text)?;
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    Ok((text.len() as u64) < SOME && text.trim_ascii().iter().all(is_digit))
}

/// Opens a regular file, made with that mode if it does not exist, and locks it. A symbolic link is
/// not followed: in a directory to which others can write, it could lead to any file of ours.
///
/// # Errors
///
/// [`RunError::AlreadyRunning`] if another run has it.
pub(super) fn lock(path: &Path, mode: u32) -> Result<File, RunError> {
    let failed = |error: io::Error| RunError::File {
        path: path.display().to_string(),
        error,
    };
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Nor does this wait for a pipe.
        options
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file: File = options
            .open(path)
            .and_then(|file| Ok(descriptor::to_keep(file.into())?.into()))
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ELOOP) => failed(unsuitable("it is a symbolic link")),
                _ => failed(error),
            })?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(unsuitable("it is no regular file")));
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(RunError::AlreadyRunning {
                    path: path.display().to_string(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // Its last owner may have removed it between the two steps: then the name is another file's
        // by now.
        if is_at(&file, path).map_err(failed)? {
            return Ok(file);
        }
    }
}

fn unsuitable(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let inode = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let ours = file.metadata().map(inode)?;
    Ok(std::fs::symlink_metadata(path).map(inode).ok() == Some(ours))
}

/// Removes a file that was locked, unless another file has its name by now.
pub(super) fn remove(file: &File, path: &Path) -> io::Result<()> {
    match is_at(file, path)? {
        true => std::fs::remove_file(path),
        false => Ok(()),
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
            let _ = remove(&self.file, &self.path);
        }
    }
}
