//! Descriptors that the library keeps.
//!
//! A program may have closed its standard streams. The kernel gives out the lowest free number, so
//! a file opened then would get the number of one of them, and what the program, or the C library,
//! prints would be written into a pool. So every descriptor that stays open gets another number.
//!
//! A program may also close descriptors that it has not opened (`close_range` from 3 on, as those
//! do that become daemons), and open files of its own, which get the numbers. What the library
//! writes, enlarges, punches or closes much later goes through a [`Kept`], which knows which file
//! it was: then it fails, as if the number stood for nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fs::Stat;
use rustix::io::{Errno, Result};

/// The first number that does not belong to a standard stream.
const FIRST: i32 = 3;

/// The same file under a number that does not belong to a standard stream. Closed on `exec`.
pub(crate) fn to_keep(fd: OwnedFd) -> Result<OwnedFd> {
    match fd.as_raw_fd() >= FIRST {
        true => Ok(fd),
        false => rustix::io::fcntl_dupfd_cloexec(&fd, FIRST),
    }
}

/// Which file it is: what tells a pool's file from a copy of it, for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct File {
    device: u64,
    inode: u64,
}

impl File {
    pub(crate) fn of(fd: impl AsFd) -> Result<File> {
        rustix::fs::fstat(fd).map(File::from)
    }

    /// The one to which a name leads.
    pub(crate) fn named(path: &Path) -> Result<File> {
        rustix::fs::stat(path).map(File::from)
    }
}

impl From<Stat> for File {
    fn from(stat: Stat) -> Self {
        File {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// A descriptor, or none, by number, and the file that it stood for when it came here. Dropping it
/// closes the descriptor; a static, which is never dropped, may also hold one that another owns.
///
/// All words are Relaxed: whoever changes them sees to it that nobody uses them meanwhile.
#[derive(Debug)]
pub(crate) struct Kept {
    number: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
}

impl Kept {
    pub(crate) const fn none() -> Kept {
        Kept {
            number: AtomicI32::new(-1),
            device: AtomicU64::new(0),
            inode: AtomicU64::new(0),
        }
    }

    /// Keeps a descriptor, under a number that does not belong to a standard stream.
    pub(crate) fn new(fd: OwnedFd) -> Result<Kept> {
        let fd = to_keep(fd)?;
        let file = File::of(&fd)?;
        Ok(Kept::of(fd, file))
    }

    /// Keeps a descriptor of which is known what it stands for.
    pub(crate) fn of(fd: OwnedFd, file: File) -> Kept {
        let kept = Kept::none();
        kept.set(fd.into_raw_fd(), file);
        kept
    }

    fn set(&self, number: RawFd, file: File) {
        self.device.store(file.device, Ordering::Relaxed);
        self.inode.store(file.inode, Ordering::Relaxed);
        self.number.store(number, Ordering::Relaxed);
    }

    /// Takes over another's descriptor. This one has none, or what it has is another's.
    pub(crate) fn put(&self, other: Kept) {
        self.set(other.number(), other.file());
        other.forget();
    }

    /// Notes a descriptor that another owns.
    pub(crate) fn note(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.set(fd.as_raw_fd(), File::of(fd)?);
        Ok(())
    }

    /// Hands the descriptor over.
    pub(crate) fn take(&self) -> Kept {
        let kept = Kept::none();
        kept.set(self.number(), self.file());
        self.forget();
        kept
    }

    /// Forgets the descriptor; closes nothing.
    pub(crate) fn forget(&self) {
        self.number.store(-1, Ordering::Relaxed);
    }

    pub(crate) fn is_none(&self) -> bool {
        self.number() < 0
    }

    /// The number, whatever it stands for.
    pub(crate) fn number(&self) -> RawFd {
        self.number.load(Ordering::Relaxed)
    }

    /// The file that the number stood for.
    pub(crate) fn file(&self) -> File {
        File {
            device: self.device.load(Ordering::Relaxed),
            inode: self.inode.load(Ordering::Relaxed),
        }
    }

    /// The descriptor.
    ///
    /// # Errors
    ///
    /// There is none, or the number stands for another file by now, or for none (`EBADF`).
    pub(crate) fn get(&self) -> Result<BorrowedFd<'_>> {
        if self.is_none() {
            return Err(Errno::BADF);
        }
        // SAFETY: not -1. Whether it is open is asked at once; a program that closes what it has
        // not opened, in another thread and right now, breaks the rule of such descriptors itself.
        let fd = unsafe { BorrowedFd::borrow_raw(self.number()) };
        match File::of(fd)? == self.file() {
            true => Ok(fd),
            false => Err(Errno::BADF),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let number = self.get().map(|fd| fd.as_raw_fd());
        if let Ok(number) = number {
            // SAFETY: this was the descriptor's owner.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> OwnedFd {
        rustix::fs::memfd_create(c"kept", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_number_that_another_file_has_got_is_left_alone() {
        let kept = Kept::new(new()).unwrap();
        let number = kept.number();
        assert_eq!(kept.get().unwrap().as_raw_fd(), number);
        // As if the program had closed it, and opened another one.
        let theirs = new();
        // SAFETY: the number is the one of this test, which knows what becomes of it.
        let mut place = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        rustix::io::dup2(&theirs, &mut place).unwrap();
        assert_eq!(kept.get().unwrap_err(), Errno::BADF);
        drop(kept);
        assert_eq!(File::of(&*place), File::of(&theirs));
        drop(std::mem::ManuallyDrop::into_inner(place));
        assert_eq!(Kept::none().get().unwrap_err(), Errno::BADF);
    }

    #[test]
    fn what_is_kept_is_closed_with_it() {
        let fd = new();
        let same = || {
            std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .flatten()
                .filter(|entry| File::named(&entry.path()) == File::of(&fd))
                .count()
        };
        let kept = Kept::new(fd.try_clone().unwrap()).unwrap();
        assert_eq!(same(), 2);
        drop(kept);
        assert_eq!(same(), 1);
    }
}
