//! Attaching to pools that others made.
//!
//! The header is read into private memory and judged there. The file is mapped only once every
//! value in the header is one that a creator can have written, and the file is as long as they say.
//! What was mapped is then compared with what was judged.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::{Pool, copied, create, fork, handles, layout_fingerprint, observed};
use crate::layout::arena::{
    Arena, DATA, NAMES, OBJECTS, PROCESSES, SLICE, SLOTS, TYPES, TablePlace,
};
use crate::layout::header::{Identity, MAGIC, VERSION, Watermarks};
use crate::layout::local;
use crate::participants::recovery;
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::descriptor::{File, Kept};
use crate::sys::memory::CommitError;
use crate::sys::{descriptor, file_lock, memory, process};

/// Why a pool was not attached. Nothing has changed.
///
/// ```
/// use shmkit::{AttachError, Pool};
///
/// // SAFETY: there is none.
/// match unsafe { Pool::open("no-such-pool") } {
///     Err(AttachError::NotFound { path }) => assert_eq!(path, "/dev/shm/shmkit.no-such-pool"),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The name is not one that a pool can have.
    #[error("a pool cannot have the name {name:?}")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// There is no file of that name.
    #[error("there is no pool at {path}")]
    NotFound {
        /// Where it was looked for.
        path: String,
    },
    /// The file is no regular file, or does not start as pools do.
    #[error("this is no pool: it does not start with a pool's magic number")]
    NotAPool,
    /// The file is shorter than a pool, or than its own header says.
    #[error("the pool is truncated: {len} bytes where there must be {needed}")]
    Truncated {
        /// Bytes of the file.
        len: u64,
        /// Bytes there must be.
        needed: u64,
    },
    /// The pool has another layout version.
    #[error("the pool has layout version {found}, this program has {VERSION}")]
    OtherVersion {
        /// The pool's version.
        found: u64,
    },
    /// The pool has our version, but its tables are laid out differently: another build or target.
    #[error(
        "the pool's tables are laid out otherwise: it was made by another build or for another target"
    )]
    OtherLayout,
    /// A value of the header is not one that a pool can have.
    #[error("the pool's header is damaged: {what}")]
    DamagedHeader {
        /// Which value.
        what: &'static str,
    },
    /// Something else is mapped where the pool must be.
    #[error("the address range {base:#x} to {end:#x}, which the pool needs, is taken")]
    AddressTaken {
        /// The first address.
        base: usize,
        /// The address behind the last.
        end: usize,
    },
    /// The pool was made in another PID namespace, where a task's number means another task.
    #[error("the pool belongs to another PID namespace")]
    OtherPidNamespace,
    /// The pool was made in another time namespace, where start times mean other times.
    #[error("the pool belongs to another time namespace")]
    OtherTimeNamespace,
    /// The file is a copy, and there is no memory for what the pool has and the copy lacks; or the
    /// file is to be copied, and there is no memory for that.
    #[error("there is no memory for a copy of the pool, or for what its file, which is one, lacks")]
    NoMemory(#[from] CommitError),
    /// Another process is removing the pool.
    #[error("the pool is being removed")]
    BeingRemoved,
    /// The system refused.
    #[error("the pool could not be attached")]
    System(#[from] std::io::Error),
}

impl From<Errno> for AttachError {
    fn from(errno: Errno) -> Self {
        AttachError::System(errno.into())
    }
}

/// Why a pool's name was not removed.
///
/// ```
/// use shmkit::{Pool, UnlinkError};
///
/// match Pool::unlink("no-such-pool") {
///     Err(UnlinkError::NotFound { path }) => assert_eq!(path, "/dev/shm/shmkit.no-such-pool"),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnlinkError {
    /// The name is not one that a pool can have.
    #[error("a pool cannot have the name {name:?}")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// There is no file of that name.
    #[error("there is no pool at {path}")]
    NotFound {
        /// Where it was looked for.
        path: String,
    },
    /// The file of that name does not start as a pool does. If it was a pool, see
    /// [`inspect::remove`](crate::inspect::remove).
    #[error("{path} is no pool")]
    NotAPool {
        /// The file, which stays.
        path: String,
    },
    /// The system refused.
    #[error("the name could not be removed")]
    System(#[from] std::io::Error),
}

/// The directory in which pools with plain names have their files.
pub(crate) const DIRECTORY: &str = "/dev/shm";
/// What the names of those files begin with.
pub(crate) const PREFIX: &str = "shmkit.";

/// Where a named pool's file is.
pub(crate) struct PoolName {
    path: PathBuf,
}

impl PoolName {
    pub(crate) fn parse(name: impl AsRef<Path>) -> Option<Self> {
        let name = name.as_ref();
        // `Path::components` would skip a slash at the end.
        let bytes = name.as_os_str().as_bytes();
        let last = bytes.rsplit(|&byte| byte == b'/').next()?;
        let valid = !last.is_empty()
            && last.len() <= 200
            && last != b"."
            && last != b".."
            && !bytes.contains(&0)
            && (name.is_absolute() || !bytes.contains(&b'/'));
        let path = if name.is_absolute() {
            name.into()
        } else {
            let mut file = OsString::from(PREFIX);
            file.push(name);
            Path::new(DIRECTORY).join(file)
        };
        valid.then_some(PoolName { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path as text, for errors and reports.
    pub(crate) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// A file for a pool that gets this name once it is ready, in the directory of the name.
    pub(super) fn new_file(&self) -> std::io::Result<OwnedFd> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR);
        opened.and_then(descriptor::to_keep).map_err(|errno| {
            let (error, shown) = (std::io::Error::from(errno), directory.display());
            let why = format!("a file without a name cannot be made in {shown}: {error}");
            std::io::Error::new(error.kind(), why)
        })
    }
}

pub(super) fn open(name: &Path) -> Result<Pool, AttachError> {
    let name = parse(name)?;
    let fd = open_file(&name, OFlags::RDWR)?;
    // A process that removes the name holds the lock exclusively while it does so: once we share
    // the lock, the name is either gone already or stays.
    if !file_lock::share(&fd)? {
        return Err(AttachError::BeingRemoved);
    }
    if File::named(name.path()) != Ok(File::of(&fd)?) {
        return Err(AttachError::BeingRemoved);
    }
    attach(fd)
}

pub(crate) fn parse(name: &Path) -> Result<PoolName, AttachError> {
    PoolName::parse(name).ok_or_else(|| AttachError::InvalidName {
        name: name.display().to_string(),
    })
}

/// Opens a named pool's file. If a device or a pipe has that name, this does not wait for it.
pub(crate) fn open_file(name: &PoolName, access: OFlags) -> Result<OwnedFd, AttachError> {
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::open(name.path(), flags, Mode::empty());
    opened
        .and_then(descriptor::to_keep)
        .map_err(|errno| match errno {
            Errno::NOENT => AttachError::NotFound { path: name.shown() },
            // A directory; or a socket, or a device that does not exist.
            Errno::ISDIR | Errno::NXIO => AttachError::NotAPool,
            other => other.into(),
        })
}

pub(super) fn unlink(name: &Path) -> Result<(), UnlinkError> {
    let name = PoolName::parse(name).ok_or_else(|| UnlinkError::InvalidName {
        name: name.display().to_string(),
    })?;
    let path = || name.shown();
    let starts = open_file(&name, OFlags::RDONLY).and_then(|fd| starts_as_pool(fd.as_fd()));
    match starts {
        Ok(true) => {}
        Ok(false) | Err(AttachError::NotAPool) => {
            return Err(UnlinkError::NotAPool { path: path() });
        }
        Err(AttachError::System(error)) => return Err(UnlinkError::System(error)),
        Err(_) => return Err(UnlinkError::NotFound { path: path() }),
    }
    rustix::fs::unlink(name.path()).map_err(|errno| match errno {
        Errno::NOENT => UnlinkError::NotFound { path: path() },
        other => UnlinkError::System(other.into()),
    })
}

/// True for pools, including damaged ones and those of other versions.
fn starts_as_pool(fd: BorrowedFd<'_>) -> Result<bool, AttachError> {
    let stat = rustix::fs::fstat(fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Ok(false);
    }
    let mut magic = [0; size_of_val(&MAGIC)];
    let read = retry_on_intr(|| rustix::io::pread(fd, &mut magic, 0))?;
    Ok(read == magic.len() && u64::from_le_bytes(magic) == MAGIC)
}

/// Attaches the pool in a file that the caller has open: nobody removes its name from here on.
pub(crate) fn from_fd(fd: OwnedFd) -> Result<Pool, AttachError> {
    let fd = descriptor::to_keep(fd)?;
    if !file_lock::share(&fd)? {
        return Err(AttachError::BeingRemoved);
    }
    attach(fd)
}

/// Whose numbers the calling process and the users of its pools have.
pub(super) fn pid_namespace() -> std::io::Result<u64> {
    process::pid_namespace().map_err(|error| {
        let why = format!("/proc, which tells who uses a pool, cannot be read: {error}");
        std::io::Error::new(error.kind(), why)
    })
}

fn attach(fd: OwnedFd) -> Result<Pool, AttachError> {
    let identity = judge(fd.as_fd())?;
    if identity.pid_namespace != pid_namespace()? {
        return Err(AttachError::OtherPidNamespace);
    }
    if identity.time_namespace != process::time_namespace().unwrap_or(0) {
        return Err(AttachError::OtherTimeNamespace);
    }
    let (base, len) = (identity.base as usize, identity.mapped_len());
    fork::install();
    let file = File::of(fd.as_fd())?;
    // One thread at a time: until a mapping is noted, it looks like somebody else's. Nor does a
    // fork copy a mapping that is not noted.
    let attaching = handles::lock();
    if let Some(known) = attached_already(&identity, file) {
        local::of(known.0).show();
        return Ok(known);
    }
    let taken = AttachError::AddressTaken {
        base,
        end: base + len,
    };
    let is_observed = observed::is(Arena::at(base), file, len, &attaching);
    let arena = match is_observed {
        true => {
            let arena = Arena::at(base);
            // First: observers may be looking at a copy of the file, and must find no holes in its
            // place.
            copied::supply(arena, fd.as_fd())?;
            // SAFETY: what is mapped there is the same file, or a copy of it, for observers.
            unsafe { memory::map_over(fd.as_fd(), base, len) }?;
            arena
        }
        false => create::map(fd.as_fd(), base, len)?.ok_or(taken)?,
    };
    let checked = match Identity::read(arena.header()) == identity {
        true => copied::complete(arena, fd.as_fd()).map_err(AttachError::from),
        false => Err(AttachError::DamagedHeader {
            what: "it changes while it is read",
        }),
    };
    if let Err(error) = checked {
        if !is_observed {
            // SAFETY: nobody else has seen the mapping.
            unsafe { memory::unmap(base, len) }?;
        }
        return Err(error);
    }
    local::of(arena).set_mapped(Kept::of(fd, file), len, identity.uuid);
    local::of(arena).show();
    drop(attaching);
    create::apply_options(arena, identity.options);
    recovery::poll(arena);
    Ok(Pool(arena))
}

/// Maps a pool to look at it, as [`from_fd`] does to use it. Nothing in the pool changes, it does
/// not become one of this process's pools, and the namespaces do not matter. Ends with
/// [`look_no_more`].
pub(crate) fn map_to_read(fd: BorrowedFd<'_>) -> Result<(Arena, Identity), AttachError> {
    let identity = judge(fd)?;
    let file = File::of(fd)?;
    let attaching = handles::lock();
    let (base, len) = (identity.base as usize, identity.mapped_len());
    let arena = Arena::at(base);
    let is_there = attached_already(&identity, file).is_some();
    if !is_there && !observed::is(arena, file, len, &attaching) {
        let copy = copied::to_look_at(fd)?;
        let fd = copy.as_ref().map_or(fd, AsFd::as_fd);
        memory::map_to_read_at(fd, base, len).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => AttachError::AddressTaken {
                base,
                end: base + len,
            },
            _ => error.into(),
        })?;
    }
    observed::enter(arena, file, len, &attaching);
    Ok((arena, identity))
}

/// Ends what [`map_to_read`] began.
///
/// # Safety
///
/// What [`map_to_read`] returned no longer refers to the pool.
pub(crate) unsafe fn look_no_more(arena: Arena, identity: &Identity) {
    let leaving = handles::lock();
    observed::leave(arena, &leaving);
    if observed::count(arena, &leaving) == 0 && !local::of(arena).is_mapped() {
        // SAFETY: by the caller's promise; no other observer uses the mapping, and no pool does.
        let _ = unsafe { memory::unmap(arena.base(), identity.mapped_len()) };
    }
}

/// Whether exactly one observer uses the place, and no pool.
pub(crate) fn is_seen_by_one(arena: Arena) -> bool {
    let kept = handles::lock();
    observed::count(arena, &kept) == 1 && !local::of(arena).is_mapped()
}

/// This process's handle of the same pool, if it has that pool mapped. A pool in a copy of the file
/// is another one.
fn attached_already(identity: &Identity, file: File) -> Option<Pool> {
    let pool = Pool(Arena::containing(identity.base as usize)?);
    let is_same = local::of(pool.0).file().file() == file;
    (is_same && Identity::read(pool.0.header()) == *identity).then_some(pool)
}

/// The tables that are committed up to their watermarks, with these watermarks.
fn tables([types, names, processes, slots, objects]: [u64; 5]) -> [(TablePlace, u64); 5] {
    [
        (TYPES, types),
        (NAMES, names),
        (PROCESSES, processes),
        (SLOTS, slots),
        (OBJECTS, objects),
    ]
}

/// The same for a pool that was judged.
pub(crate) fn committed(watermarks: &Watermarks) -> [(TablePlace, u64); 5] {
    let of =
        |word: &AtomicU64, table: TablePlace| word.load(Ordering::Acquire).min(table.max as u64);
    tables([
        of(&watermarks.types, TYPES),
        of(&watermarks.names, NAMES),
        of(&watermarks.processes, PROCESSES),
        of(&watermarks.slots, SLOTS),
        of(&watermarks.objects, OBJECTS),
    ])
}

/// Reads the header of a file and reports what is wrong with it, if anything is.
pub(crate) fn judge(fd: BorrowedFd<'_>) -> Result<Identity, AttachError> {
    let stat = rustix::fs::fstat(fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(AttachError::NotAPool);
    }
    let mut bytes = [0; Identity::BYTES];
    let read = match read_start(fd, &mut bytes) {
        Ok(read) => read,
        // A file of `/proc` has no length.
        Err(_) if stat.st_size <= 0 => return Err(AttachError::NotAPool),
        Err(other) => return Err(other.into()),
    };
    // A pool that grows lengthens its file before its header says so.
    let len = rustix::fs::fstat(fd)?.st_size.max(0) as u64;
    let identity = Identity::parse(&bytes);
    // Including a file that ends before the magic number does.
    if !bytes[..read].starts_with(&MAGIC.to_le_bytes()[..read.min(8)]) {
        return Err(AttachError::NotAPool);
    }
    if read < bytes.len() {
        return Err(AttachError::Truncated {
            len,
            needed: (DATA.offset + SLICE) as u64,
        });
    }
    if identity.version != VERSION {
        return Err(AttachError::OtherVersion {
            found: identity.version,
        });
    }
    if identity.layout != layout_fingerprint() {
        return Err(AttachError::OtherLayout);
    }
    let damaged = |what| Err(AttachError::DamagedHeader { what });
    if !identity.sizes_valid() && !cfg!(shmkit_planted = "attach_header") {
        return damaged("its sizes");
    }
    if !create::is_base(identity.base as usize) {
        return damaged("its base address");
    }
    let [types, names, processes, slots, objects, slices] = Identity::parse_watermarks(&bytes);
    let limits = [
        (types, TYPES.max as u64),
        (names, NAMES.max as u64),
        (processes, (PROCESSES.max as u64).min(identity.max_slots)),
        (slots, (SLOTS.max as u64).min(identity.max_slots)),
        (objects, OBJECTS.max as u64),
        (slices, identity.max_slices),
    ];
    if slices == 0 || limits.iter().any(|(value, max)| value > max) {
        return damaged("its watermarks");
    }
    // An epoch of 0 would look like no pin, and the largest ones wrap round to it.
    if !(1..1 << 62).contains(&Identity::parse_epoch(&bytes)) {
        return damaged("its epoch");
    }
    let needed = DATA.offset as u64 + slices * SLICE as u64;
    if len < needed {
        return Err(AttachError::Truncated { len, needed });
    }
    // What the header says the tables hold must have been committed, except in a copy, which gets what it lacks.
    let tables = tables([types, names, processes, slots, objects]);
    let committed: u64 = tables.iter().map(|(table, n)| n * table.entry as u64).sum();
    if memory::used_by(fd) < committed && copied::is_original(fd)? {
        return damaged("its watermarks");
    }
    Ok(identity)
}

/// Reads the first bytes of a file, as many as there are.
fn read_start(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> rustix::io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match retry_on_intr(|| rustix::io::pread(fd, &mut bytes[read..], read as u64))? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::layout::header::Header;

    /// Another test's pool may take the address as soon as it is free: then all is done again.
    #[test]
    fn a_header_that_changes_while_it_is_read_is_refused() {
        let done = loop {
            match refused_and_then_whole() {
                Err(AttachError::AddressTaken { .. }) => {}
                done => break done,
            }
        };
        done.unwrap();
    }

    /// The header changes after the look at the file, and before the pool is mapped.
    fn refused_and_then_whole() -> Result<(), AttachError> {
        let pool = Pool::builder().create().unwrap();
        let fd = pool.fd().try_clone_to_owned().unwrap();
        // SAFETY: nothing was made in it, and nobody else has it.
        unsafe { pool.unmap() };
        let attach = || from_fd(fd.try_clone().unwrap());
        let attaching = handles::lock();
        let refused = std::thread::scope(|s| {
            let (tell, told) = channel();
            let attaches = s.spawn(move || {
                tell.send(process::tid()).unwrap();
                attach()
            });
            let tid = told.recv().unwrap();
            while !handles::is_waited_for_by(tid) && !attaches.is_finished() {
                std::thread::yield_now();
            }
            let another = 7_u64.to_ne_bytes();
            let created = offset_of!(Header, created) as u64;
            assert_eq!(rustix::io::pwrite(&fd, &another, created), Ok(8));
            drop(attaching);
            attaches.join().unwrap()
        });
        match refused {
            Err(AttachError::DamagedHeader { what }) => {
                assert_eq!(what, "it changes while it is read");
            }
            other => return other.map(|pool| panic!("{pool:?} is attached")),
        }
        // The pool is whole, and nothing is in its place.
        let pool = attach()?;
        // SAFETY: as above.
        unsafe { pool.unmap() };
        Ok(())
    }
}
