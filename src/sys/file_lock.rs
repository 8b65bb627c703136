//! A lock on a file that many processes share, that a process can take exclusively if it finds no
//! sharer, and that can be queried without being taken.
//!
//! These are locks of the open file description (`F_OFD_SETLK`), so a forked child has its
//! parent's, and the lock is gone with its last descriptor, however the last process ends. (`flock`
//! cannot be queried: a process that wants to know must take the lock, and is in others' way
//! meanwhile.)

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// A lock of that type on the whole file.
fn whole(of: i32) -> libc::flock {
    libc::flock {
        l_type: of as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn set(fd: impl AsFd, of: i32) -> io::Result<bool> {
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&whole(of))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

/// Shares the lock, unless somebody has it exclusively: then false.
pub(crate) fn share(fd: impl AsFd) -> io::Result<bool> {
    set(fd, libc::F_RDLCK)
}

/// Takes the lock exclusively, unless somebody shares it: then false. The file is open for writing.
pub(crate) fn take(fd: impl AsFd) -> io::Result<bool> {
    set(fd, libc::F_WRLCK)
}

/// True if anybody has the lock through another descriptor than this one and its copies.
pub(crate) fn is_held(fd: impl AsFd) -> io::Result<bool> {
    let mut asked = whole(libc::F_WRLCK);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}
