//! Copies of pools' files, which lack memory.
//!
//! # Rationale
//!
//! To whoever copies a file, what was committed and never written to is a hole like any other. So a copy has less memory
//! than the pool believes to have, and where there is no more to be had, to touch a page of it is SIGBUS. Holes cannot
//! be told from such memory by looking, and to commit all of it once more takes long. So the header names the file that it
//! is in; who attaches a pool that lies in another file commits what the pool believes to have, and then puts that
//! file's name there.
//!
//! Who only looks cannot do so. In a file system that is memory, where to look into a hole takes some, a copy of the copy
//! is looked at instead.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before the name is stored | some more memory | the next one to attach does it again |
//!
//! Whoever does it beside others who use the copy already commits, at worst, what they have just given back.

use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, StatxFlags};

use super::attach::{self, AttachError};
use crate::allocator::grow;
use crate::layout::arena::{Arena, HOLDS};
use crate::layout::fnv;
use crate::layout::header::Header;
use crate::primitive::Ordering;
use crate::sys::memory::{self, CommitError};

/// Notes that the pool lies in the file in which it is made.
pub(super) fn note(arena: Arena, fd: BorrowedFd<'_>) {
    let name = name(fd).unwrap_or(0);
    arena.header().file.store(name, Ordering::Relaxed);
}

/// Commits what a pool believes to have, if it lies in another file than it did, and notes that.
pub(super) fn complete(arena: Arena, fd: BorrowedFd<'_>) -> Result<(), CommitError> {
    if let Some(name) = supply(arena, fd)? {
        arena.header().file.store(name, Ordering::Relaxed);
    }
    Ok(())
}

/// Commits in a file what the pool, which may be mapped to be read only, believes to have, unless it lies there; the
/// file's name then.
pub(super) fn supply(arena: Arena, fd: BorrowedFd<'_>) -> Result<Option<u64>, CommitError> {
    let here = name(fd);
    // Of a file without a name, it is not known.
    if here == Some(arena.header().file.load(Ordering::Relaxed)) {
        return Ok(None);
    }
    // First: to look into a hole takes memory, too.
    let tables = attach::committed(&arena.header().watermarks).into_iter();
    let tables = tables.map(|(table, count)| (table.offset, count as usize * table.entry));
    commit(fd, tables.chain(grow::committed_tables(arena)).collect())?;
    let rows = arena
        .processes()
        .map(|(index, _)| (HOLDS.offset + index * HOLDS.entry, arena.held(index) / 8));
    commit(fd, rows.chain(grow::committed_data(arena)).collect())?;
    Ok(Some(here.unwrap_or(0)))
}

/// A copy to look at, if to look at the file itself might take memory that is not there.
pub(super) fn to_look_at(fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>, AttachError> {
    let mut word = [0; 8];
    let read = rustix::io::pread(fd, &mut word, offset_of!(Header, file) as u64)?;
    let is_original = read == word.len() && name(fd) == Some(u64::from_ne_bytes(word));
    let is_memory = rustix::fs::fstatfs(fd)?.f_type == libc::TMPFS_MAGIC;
    match is_original || !is_memory {
        true => Ok(None),
        false => in_memory(fd).map(Some),
    }
}

/// A copy of a pool's file in a new one without a name, if there is so much memory.
pub(crate) fn in_memory(fd: BorrowedFd<'_>) -> Result<OwnedFd, AttachError> {
    memory::check_limit(memory::used_by(fd.as_raw_fd()))?;
    let copy = memory::memfd(c"shmkit-copy")?;
    memory::copy_file(fd, copy.as_fd())?;
    Ok(copy)
}

/// Commits ranges of a file, offset and length, if there is so much memory.
fn commit(fd: BorrowedFd<'_>, ranges: Vec<(usize, usize)>) -> Result<(), CommitError> {
    let wanted: u64 = ranges.iter().map(|&(_, len)| len as u64).sum();
    memory::check_limit(wanted.saturating_sub(memory::used_by(fd.as_raw_fd())))?;
    let mut ranges = ranges.into_iter().filter(|&(_, len)| len > 0);
    ranges.try_for_each(|(offset, len)| memory::commit(fd.as_raw_fd(), offset as u64, len as u64))
}

/// What no other file has, as far as a number can say; not 0. The numbers of files begin anew with each file system, so
/// the time at which it was made is part of it.
fn name(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let made = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
    let made = made.map_or([0, 0], |made| {
        [made.stx_btime.tv_sec as u64, made.stx_btime.tv_nsec.into()]
    });
    let words = [stat.st_dev, stat.st_ino, made[0], made[1]];
    let hash = words.into_iter().fold(fnv::START, fnv::step);
    Some(hash.max(1))
}
