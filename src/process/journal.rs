//! The crash journal: what a run has made outside its pools, so that the next run can remove what a
//! crash has left.
//!
//! A file `journal` in the run directory, written by the master alone:
//!
//! ```text
//! block 0       magic (8 bytes), version (u32), crc of both (u32), zeros
//! block 1 + i   what the resource at place i is: length (u32), crc (u32), kind and name in postcard's
//!               encoding, zeros; or all zeros, if there is none
//! ```
//!
//! A block has 4 KiB, and is written by one call within one page: the kernel looks for a fatal
//! signal only between pages, so a block is there or it is not. So nothing is appended, nothing has
//! to be replayed in order, and the file does not grow: it lists what exists now.
//!
//! # Invariants
//!
//! 1. A record is written before the resource may be made, and struck after it is removed. So
//!    whatever exists is in the journal.
//! 2. The file is locked while a run uses it, and never replaced: a run that has the lock is alone.
//! 3. All blocks are checked before anything is removed.
//! 4. Only this user can have written the file: it is this user's, and nobody else may write to it.
//!    So whoever can make files in the directory cannot have anything removed by naming it there.
//!
//! # Crash behaviour
//!
//! | killed | leaves | the next run |
//! |---|---|---|
//! | before the header is written | an empty file | takes it |
//! | before the file has its length | a header alone | takes it |
//! | after a record was written | a record, perhaps without the thing | removes what there is |
//! | after a removal, before the record is struck | a record without the thing | strikes it |
//! | while it removes what was left | a part of it | removes the rest |
//!
//! Anything that cannot be removed, to which a link leads by now, or that is a pool that somebody
//! has, keeps its record and its place, and is in no run's way. It is tried again when the run
//! ends, and by the next run.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::Resource;
use super::RunError;
use super::master::LOG;
use super::pid_file;
use super::resources::PLACES;
use crate::pool::remove::{Removable, RemoveError};
use crate::pool::{self, AttachError, tell};
use crate::sys::file_size;

const BLOCK: usize = 4096;
const MAGIC: [u8; 8] = *b"shmkjrnl";
const VERSION: u32 = 1;
/// The number of the first kind of resource, which a journal counts from 0.
const FIRST_KIND: u32 = 1;
const LENGTH: u64 = (BLOCK * (1 + PLACES)) as u64;

/// Why a journal was not accepted. Nothing was removed, and the file is as it was.
///
/// ```
/// use shmkit::process::{Config, Entry, JournalError, RunError, run};
///
/// static UNIT: Entry<(), ()> = Entry::new("unit", |_, ()| ());
/// let directory = std::env::temp_dir().join(format!("doc-{}.foreign", std::process::id()));
/// std::fs::create_dir(&directory).unwrap();
/// std::fs::write(directory.join("journal"), "a diary").unwrap();
/// let config = Config::new().run_directory(&directory);
/// match run(&config, &UNIT, ()) {
///     Err(RunError::Journal { error, .. }) => assert_eq!(error, JournalError::Foreign),
///     other => panic!("{other:?}"),
/// }
/// # std::fs::remove_dir_all(&directory).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file is not a journal.
    #[error("it is no journal")]
    Foreign,
    /// It was written by a version that this one does not know.
    #[error("it is of version {version}")]
    Version {
        /// Its version.
        version: u32,
    },
    /// It is shorter or longer than a journal.
    #[error("it has {length} bytes, and not {LENGTH}")]
    Truncated {
        /// The number of bytes that it has.
        length: u64,
    },
    /// A record is damaged.
    #[error("record {record} is damaged")]
    Corrupt {
        /// The number of the record, from 0.
        record: usize,
    },
    /// Another user may have written it: it does not belong to this user, or others may write to
    /// it.
    #[error("it is user {owner}'s and has the mode {mode:o}: somebody else may have written it")]
    NotOurs {
        /// The user that owns it.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

/// What a crashed run has left, by place.
pub(super) type Left = Vec<(usize, Resource)>;

/// The journal of this run.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Takes the journal of a run directory; both are made if they do not exist. Returns with it
    /// what a crashed run has left, by place.
    pub(super) fn open(directory: &Path) -> Result<(Journal, Left), RunError> {
        let failed = |path: &Path, error: io::Error| RunError::File {
            path: path.display().to_string(),
            error,
        };
        let made = std::path::absolute(directory).and_then(|directory| {
            std::fs::create_dir_all(&directory)?;
            Ok(directory)
        });
        let directory = made.map_err(|error| failed(directory, error))?;
        let path = directory.join("journal");
        let file = pid_file::lock(&path, 0o600)?;
        let journal = Journal { file, path };
        match journal.read() {
            Ok(Ok(left)) => Ok((journal, left)),
            Ok(Err(error)) => {
                let path = journal.path.display().to_string();
                Err(RunError::Journal { path, error })
            }
            Err(error) => Err(failed(&journal.path, error)),
        }
    }

    /// Removes what a crashed run has left. Returns the places of what could not be removed, whose
    /// records stay for the next run to try: the name is now a directory's, the file is not ours to
    /// remove, or somebody has the pool.
    pub(super) fn clear(&self, left: Left) -> Vec<usize> {
        let stays = |(place, resource): (usize, Resource)| {
            let cleared = remove_left(&resource).and_then(|()| self.strike(place));
            let error = cleared.err()?;
            let path = resource.path().unwrap_or_default();
            let path = path.display();
            tell(|| log::warn!(target: LOG, "what a crashed run has left stays: {path}: {error}"));
            Some(place)
        };
        left.into_iter().filter_map(stays).collect()
    }

    /// Reads every record; a new file is given its header and its length.
    fn read(&self) -> io::Result<Result<Left, JournalError>> {
        let metadata = self.file.metadata()?;
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        // By invariant 4.
        let is_ours = owner == rustix::process::geteuid().as_raw() && mode & 0o022 == 0;
        let not_ours = Ok(Err(JournalError::NotOurs { owner, mode }));
        let length = metadata.len();
        if length == 0 {
            if !is_ours {
                return not_ours;
            }
            let mut block = [0; BLOCK];
            block[..16].copy_from_slice(&header(VERSION));
            // Checked before a part of it is written.
            file_size::check_write(LENGTH)?;
            self.write(&block, 0)?;
            self.file.set_len(LENGTH)?;
            return Ok(Ok(Vec::new()));
        }
        let mut block = [0; BLOCK];
        let head = self.file.read_at(&mut block, 0)?;
        let version = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
        if head < 16 || block[..8] != MAGIC || block[..16] != header(version) {
            return Ok(Err(JournalError::Foreign));
        }
        if version != VERSION {
            return Ok(Err(JournalError::Version { version }));
        }
        if !is_ours {
            return not_ours;
        }
        if length == BLOCK as u64 {
            file_size::check_length(self.as_fd(), LENGTH)?;
            self.file.set_len(LENGTH)?;
        } else if length != LENGTH {
            return Ok(Err(JournalError::Truncated { length }));
        }
        let mut records = Vec::new();
        for place in 0..PLACES {
            self.file.read_exact_at(&mut block, offset(place))?;
            match parse(&block) {
                Ok(Some(resource)) => records.push((place, resource)),
                Ok(None) => {}
                Err(()) => return Ok(Err(JournalError::Corrupt { record: place })),
            }
        }
        Ok(Ok(records))
    }

    /// Records that the resource may exist from now on.
    pub(super) fn record(&self, place: usize, resource: &Resource) -> io::Result<()> {
        let mut block = [0; BLOCK];
        let name = resource.name().unwrap_or_default();
        let text = postcard::to_slice(&(resource.kind() - FIRST_KIND, name), &mut block[8..])
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the name is too long"))?;
        let (length, crc) = (text.len() as u32, crc32fast::hash(text));
        block[..4].copy_from_slice(&length.to_le_bytes());
        block[4..8].copy_from_slice(&crc.to_le_bytes());
        let recorded = self.write(&block, offset(place));
        if recorded.is_err() {
            // No part of it may stay, since the next run would take it for damage.
            let _ = self.strike(place);
        }
        recorded
    }

    /// Records that the resource no longer exists.
    pub(super) fn strike(&self, place: usize) -> io::Result<()> {
        self.write(&[0; BLOCK], offset(place))
    }

    fn write(&self, block: &[u8; BLOCK], at: u64) -> io::Result<()> {
        file_size::check_write(at + BLOCK as u64)?;
        self.file.write_all_at(block, at)
    }

    /// The run is over: what was left is tried once more, and the file is removed if it names
    /// nothing. The lock is held until then.
    pub(super) fn finish(self) -> io::Result<()> {
        match self.read()?.map(|left| self.clear(left)) {
            Ok(kept) if kept.is_empty() => pid_file::remove(&self.file, &self.path),
            _ => Ok(()),
        }
    }

    /// There is no run: the file is removed if it names nothing.
    pub(super) fn close(self) -> io::Result<()> {
        match self.read()? {
            Ok(records) if records.is_empty() => pid_file::remove(&self.file, &self.path),
            _ => Ok(()),
        }
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn offset(place: usize) -> u64 {
    (BLOCK * (1 + place)) as u64
}

fn header(version: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn parse(block: &[u8; BLOCK]) -> Result<Option<Resource>, ()> {
    let word =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let length = word(0) as usize;
    if length == 0 {
        return match block.iter().all(|&byte| byte == 0) {
            true => Ok(None),
            false => Err(()),
        };
    }
    let (text, rest) = block[8..].split_at_checked(length).ok_or(())?;
    if crc32fast::hash(text) != word(4) || rest.iter().any(|&byte| byte != 0) {
        return Err(());
    }
    match postcard::take_from_bytes::<(u32, &[u8])>(text) {
        Ok(((kind, name), [])) => {
            let resource = Resource::of(kind.saturating_add(FIRST_KIND), name);
            resource.map(Some).ok_or(())
        }
        _ => Err(()),
    }
}

/// Removes what a crashed run has left, including a file that has a pool's name and is not a pool.
/// It is an error if somebody has the pool who is not a process of that run.
fn remove_left(resource: &Resource) -> io::Result<()> {
    let Resource::Pool(name) = resource else {
        return remove(resource);
    };
    leads_there(resource)?;
    match pool::remove::remove(name, Removable::AnyFile) {
        Err(RemoveError::System(error) | RemoveError::Attach(AttachError::System(error))) => {
            unless_gone(Err(error))
        }
        Err(RemoveError::InUse { .. }) => Err(io::ErrorKind::ResourceBusy.into()),
        Ok(()) | Err(RemoveError::Attach(_)) => Ok(()),
    }
}

/// Removes a resource, if it exists.
pub(super) fn remove(resource: &Resource) -> io::Result<()> {
    let Some(path) = resource.path() else {
        return Ok(());
    };
    leads_there(resource)?;
    is_no_device(&path)?;
    unless_gone(std::fs::remove_file(&path))
}

/// An error if there is now a link on the way, which there was not when the resource was announced:
/// it leads to something that nobody has announced.
fn leads_there(resource: &Resource) -> io::Result<()> {
    match resource.clone().absolute() == *resource {
        true => Ok(()),
        false => Err(io::Error::other("a link leads elsewhere")),
    }
}

/// An error if the path is a device, as for a directory: no run has made one for itself.
fn is_no_device(path: &Path) -> io::Result<()> {
    let is_device = std::fs::symlink_metadata(path).is_ok_and(|file| {
        let kind = file.file_type();
        kind.is_char_device() || kind.is_block_device()
    });
    match is_device {
        true => Err(io::Error::other("it is a device")),
        false => Ok(()),
    }
}

fn unless_gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(()),
        _ => Err(error),
    })
}
