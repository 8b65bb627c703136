//! Attaching to pools that others made.
//!
//! The header is read into private memory and judged there; the file is mapped only once every
//! value in it is one that a creator can have written and the file is as long as they say. What
//! was mapped is compared with what was judged.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{Pool, create, fork, layout_fingerprint};
use crate::layout::arena::{Arena, DATA, NAMES, OBJECTS, PROCESSES, SLICE, SLOTS, TYPES};
use crate::layout::header::{Identity, MAGIC, VERSION};
use crate::layout::local;
use crate::participants::recovery;
use crate::sys::process;

/// Why a pool was not attached. Nothing has changed.
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
    /// The file does not start as pools do.
    #[error("this is no pool: it does not start with a pool's magic number")]
    NotAPool,
    /// The file is shorter than a pool, or than its own header says.
    #[error("the pool is truncated: {len} bytes where its header asks for {needed}")]
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
    /// The pool's version is ours, but its tables are laid out otherwise: another build or target.
    #[error(
        "the pool's tables are laid out otherwise: it was made by another build or for another target"
    )]
    OtherLayout,
    /// A value of the header is none that a pool can have.
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
    /// Somebody is removing the pool.
    #[error("the pool is being removed")]
    BeingRemoved,
    /// The system refused.
    #[error("the pool could not be attached")]
    System(#[from] std::io::Error),
}

impl From<rustix::io::Errno> for AttachError {
    fn from(errno: rustix::io::Errno) -> Self {
        AttachError::System(errno.into())
    }
}

/// Why a pool's name was not removed.
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
    /// The system refused.
    #[error("the name could not be removed")]
    System(#[from] std::io::Error),
}

/// Where a named pool's file is.
pub(crate) struct PoolName {
    path: String,
}

impl PoolName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let last = name.rsplit('/').next()?;
        let valid = !last.is_empty()
            && last.len() <= 200
            && last != "."
            && last != ".."
            && !name.contains('\0')
            && (name.starts_with('/') || !name.contains('/'));
        let path = if name.starts_with('/') {
            name.into()
        } else {
            format!("/dev/shm/shmkit.{name}")
        };
        valid.then_some(PoolName { path })
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn directory(&self) -> &str {
        match self.path.rfind('/') {
            None | Some(0) => "/",
            Some(at) => &self.path[..at],
        }
    }
}

pub(super) fn open(name: &str) -> Result<Pool, AttachError> {
    let name =
        PoolName::parse(name).ok_or_else(|| AttachError::InvalidName { name: name.into() })?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(name.path(), flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT => AttachError::NotFound {
            path: name.path().into(),
        },
        other => other.into(),
    })?;
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared).map_err(|errno| match errno {
        rustix::io::Errno::WOULDBLOCK => AttachError::BeingRemoved,
        other => other.into(),
    })?;
    from_fd(fd)
}

pub(super) fn unlink(name: &str) -> Result<(), UnlinkError> {
    let name =
        PoolName::parse(name).ok_or_else(|| UnlinkError::InvalidName { name: name.into() })?;
    rustix::fs::unlink(name.path()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT => UnlinkError::NotFound {
            path: name.path().into(),
        },
        other => UnlinkError::System(other.into()),
    })
}

pub(super) fn from_fd(fd: OwnedFd) -> Result<Pool, AttachError> {
    let identity = judge(fd.as_fd())?;
    let (base, len) = (identity.base as usize, identity.mapped_len());
    if let Some(known) = attached_already(&identity) {
        return Ok(known);
    }
    fork::install();
    let taken = AttachError::AddressTaken {
        base,
        end: base + len,
    };
    let arena = create::map(fd.as_fd(), base, len)?.ok_or(taken)?;
    if Identity::read(arena.header()) != identity {
        // SAFETY: nobody else has seen the mapping.
        unsafe { crate::sys::memory::unmap(base, len) }?;
        return Err(AttachError::DamagedHeader {
            what: "it changes while it is read",
        });
    }
    local::of(arena).set_mapped(fd.into_raw_fd(), len);
    create::apply_options(arena, identity.options);
    recovery::poll(arena);
    Ok(Pool(arena))
}

/// This process's handle of the same pool, if it has it mapped.
fn attached_already(identity: &Identity) -> Option<Pool> {
    let arena = Arena::containing(identity.base as usize)?;
    (Identity::read(arena.header()) == *identity).then_some(Pool(arena))
}

/// Reads the header of a file and tells what is wrong with it, if anything is.
fn judge(fd: BorrowedFd<'_>) -> Result<Identity, AttachError> {
    let stat = rustix::fs::fstat(fd)?;
    let len = stat.st_size.max(0) as u64;
    let mut bytes = [0; Identity::BYTES];
    let mut read = 0;
    while read < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[read..], read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(other) => return Err(other.into()),
        }
    }
    let identity = Identity::parse(&bytes);
    if read >= 8 && identity.magic != MAGIC {
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
    // 0 would show no pin, and the largest ones come round to it.
    if !(1..1 << 62).contains(&Identity::parse_epoch(&bytes)) {
        return damaged("its epoch");
    }
    let needed = DATA.offset as u64 + slices * SLICE as u64;
    if len < needed {
        return Err(AttachError::Truncated { len, needed });
    }
    // What the tables are said to hold was committed.
    let tables = [
        (types, TYPES),
        (names, NAMES),
        (processes, PROCESSES),
        (slots, SLOTS),
        (objects, OBJECTS),
    ];
    let committed: u64 = tables.iter().map(|(n, table)| n * table.entry as u64).sum();
    if stat.st_blocks.max(0) as u64 * 512 < committed {
        return damaged("its watermarks");
    }
    if identity.pid_namespace != process::pid_namespace()? {
        return Err(AttachError::OtherPidNamespace);
    }
    if identity.time_namespace != process::time_namespace().unwrap_or(0) {
        return Err(AttachError::OtherTimeNamespace);
    }
    debug_assert!(fd.as_raw_fd() >= 0);
    Ok(identity)
}
