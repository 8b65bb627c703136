//! Copies of pools' files, which lack memory.
//!
//! # Rationale
//!
//! To a program that copies a file, memory that was committed and never written to is a hole like
//! any other. So a copy has less memory than the pool believes it has, and if no more can be had,
//! touching a page of it raises SIGBUS. Looking cannot tell holes from such memory, and committing
//! all of it once more takes long. So the header names the file that the pool is in. A process that
//! attaches a pool that lies in another file commits what the pool believes it has, and then stores
//! that file's name there.
//!
//! A process that only looks cannot do so. In a file system that is memory, where looking into a
//! hole takes memory, it looks at a copy of the copy instead.
//!
//! | killed | leaves | and then |
//! |--------|--------|----------|
//! | before the name is stored | some more memory | the next process to attach does it again |
//!
//! A process that does this while others use the copy already commits, at worst, what they have
//! just given back.

use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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

/// Commits what a pool believes it has, if it lies in another file than before, and notes that
/// file.
pub(super) fn complete(arena: Arena, fd: BorrowedFd<'_>) -> Result<(), CommitError> {
    if let Some(name) = supply(arena, fd)? {
        arena.header().file.store(name, Ordering::Relaxed);
    }
    Ok(())
}

/// Commits in a file what the pool, which may be mapped read-only, believes it has, unless the pool
/// already lies in that file; returns the file's name if it did so.
pub(super) fn supply(arena: Arena, fd: BorrowedFd<'_>) -> Result<Option<u64>, CommitError> {
    let here = name(fd);
    // For a file without a name, this is not known.
    if here == Some(arena.header().file.load(Ordering::Relaxed)) {
        return Ok(None);
    }
    // First: looking into a hole takes memory, too.
    let tables = attach::committed(&arena.header().watermarks).into_iter();
    let tables = tables.map(|(table, count)| (table.offset, count as usize * table.entry));
    commit(fd, tables.chain(grow::committed_tables(arena)).collect())?;
    let rows = arena
        .processes()
        .map(|(index, _)| (HOLDS.offset + index * HOLDS.entry, arena.held(index) / 8));
    commit(fd, rows.chain(grow::committed_data(arena)).collect())?;
    Ok(Some(here.unwrap_or(0)))
}

/// Whether the pool has been in this file before, of which only that it is a pool's is known yet.
pub(super) fn is_original(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mut word = [0; 8];
    let read = rustix::io::pread(fd, &mut word, offset_of!(Header, file) as u64)?;
    Ok(read == word.len() && name(fd) == Some(u64::from_ne_bytes(word)))
}

/// A copy to look at, if looking at the file itself might take memory that is not there.
pub(super) fn to_look_at(fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>, AttachError> {
    let is_memory = rustix::fs::fstatfs(fd)?.f_type == libc::TMPFS_MAGIC;
    match is_original(fd)? || !is_memory {
        true => Ok(None),
        false => in_memory(fd).map(Some),
    }
}

/// A copy of a pool's file in a new one without a name, if there is enough memory for it.
pub(crate) fn in_memory(fd: BorrowedFd<'_>) -> Result<OwnedFd, AttachError> {
    memory::check_limit(memory::used_by(fd))?;
    let copy = memory::memfd(c"shmkit-copy")?;
    memory::copy_file(fd, copy.as_fd())?;
    Ok(copy)
}

/// Commits ranges of a file, given as offset and length, if there is enough memory for them.
fn commit(fd: BorrowedFd<'_>, ranges: Vec<(usize, usize)>) -> Result<(), CommitError> {
    let wanted: u64 = ranges.iter().map(|&(_, len)| len as u64).sum();
    memory::check_limit(wanted.saturating_sub(memory::used_by(fd)))?;
    let mut ranges = ranges.into_iter().filter(|&(_, len)| len > 0);
    ranges.try_for_each(|(offset, len)| memory::commit(fd, offset as u64, len as u64))
}

/// A number that no other file has, as far as a number can guarantee that; not 0. Inode numbers
/// begin anew with each file system, so the time at which the file was made is part of it.
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
