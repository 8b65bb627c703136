//! Removing named pools that nobody has.
//!
//! Every process that has a named pool shares its file's lock for life (`sys::file_lock`). So a
//! process that gets the lock exclusively knows that nobody has the pool, and that nobody gets it
//! meanwhile.
//!
//! Linux removes names, not files. Between the last look at the name and its removal, one process
//! could remove the name without that lock (as [`Pool::unlink`] and `rm` do), and another could
//! give it to another pool: that pool's name would then go. Two removals by this module, or one and
//! a creation, do not conflict in this way.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::unistd::AccessFlags;
use rustix::fs::{Mode, OFlags};

use super::attach::{self, PoolName};
use super::{AttachError, Pool, names};
use crate::layout::local;
use crate::sys::descriptor::File;
use crate::sys::file_lock;

/// Why a pool was not removed.
///
/// ```
/// use shmkit::inspect::{self, Removable, RemoveError};
/// use shmkit::Pool;
///
/// # let name = format!("doc-remove-error-{}", std::process::id());
/// let pool = Pool::builder().create_named(&name)?;
/// let refused = inspect::remove(&name, Removable::Pool);
/// # Pool::unlink(&name)?;
/// // This process has it.
/// assert!(matches!(refused, Err(RemoveError::InUse { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// It is not a pool, or cannot be opened.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Some process has it.
    #[error("the pool {path} is in use")]
    InUse {
        /// The pool's file.
        path: String,
    },
    /// The system refused.
    #[error("the pool could not be removed")]
    System(#[from] std::io::Error),
}

impl From<rustix::io::Errno> for RemoveError {
    fn from(errno: rustix::io::Errno) -> Self {
        RemoveError::System(errno.into())
    }
}

/// What may be removed.
///
/// ```
/// use shmkit::inspect::{self, Removable};
///
/// let name = format!("doc-removable-{}", std::process::id());
/// std::fs::write(format!("/dev/shm/shmkit.{name}"), "no pool")?;
/// assert!(inspect::would_remove(&name, Removable::Pool).is_err());
/// inspect::remove(&name, Removable::AnyFile)?;
/// assert!(!std::fs::exists(format!("/dev/shm/shmkit.{name}"))?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removable {
    /// A pool, of this version or another.
    Pool,
    /// Any file, including a damaged pool or one that is no pool.
    AnyFile,
}

/// Removes a named pool that nobody has.
///
/// # Errors
///
/// See [`RemoveError`]; nothing was removed.
///
/// # Crash behaviour
///
/// The name is removed or it is not.
///
/// ```
/// use shmkit::inspect::{self, Removable};
/// use shmkit::Pool;
///
/// let name = format!("doc-remove-{}", std::process::id());
/// let pool = Pool::builder().create_named(&name)?;
/// // This process has it.
/// assert!(inspect::would_remove(&name, Removable::Pool).is_err());
/// assert!(inspect::remove(&name, Removable::Pool).is_err());
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn remove(name: impl AsRef<Path>, what: Removable) -> Result<(), RemoveError> {
    judged(name.as_ref(), what, true, |_| true)
}

/// The same for a pool that has an object of that name; any other is treated as if it were no pool.
/// A pool of another version, where no object can be looked for, is removed.
pub(crate) fn remove_with(name: impl AsRef<Path>, object: &str) -> Result<(), RemoveError> {
    judged(
        name.as_ref(),
        Removable::Pool,
        true,
        |fd| match attach::judge(fd) {
            Ok(_) => names::is_in_file(fd, object).unwrap_or(false),
            Err(error) => is_of_another_version(&error),
        },
    )
}

fn is_of_another_version(error: &AttachError) -> bool {
    matches!(
        error,
        AttachError::OtherVersion { .. } | AttachError::OtherLayout
    )
}

/// Whether [`remove`] would remove it now. This is in nobody's way.
///
/// # Errors
///
/// As for [`remove`].
///
/// ```
/// use shmkit::inspect::{self, Removable};
///
/// let name = format!("doc-would-remove-{}", std::process::id());
/// std::fs::write(format!("/dev/shm/shmkit.{name}"), "no pool")?;
/// inspect::would_remove(&name, Removable::AnyFile)?;
/// // It is still there.
/// inspect::remove(&name, Removable::AnyFile)?;
/// assert!(inspect::would_remove(&name, Removable::AnyFile).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn would_remove(name: impl AsRef<Path>, what: Removable) -> Result<(), RemoveError> {
    judged(name.as_ref(), what, false, |_| true)
}

fn judged(
    name: &Path,
    what: Removable,
    really: bool,
    is_meant: impl FnOnce(BorrowedFd<'_>) -> bool,
) -> Result<(), RemoveError> {
    let name = attach::parse(name)?;
    // Taking the lock exclusively needs a file that is open for writing.
    let fd = attach::open_file(&name, OFlags::RDWR).map_err(|error| match error {
        AttachError::System(error) => RemoveError::System(error),
        error => error.into(),
    })?;
    let stat = rustix::fs::fstat(&fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(AttachError::NotAPool.into());
    }
    match attach::judge(fd.as_fd()) {
        Ok(_) => {}
        Err(error) if is_of_another_version(&error) => {}
        Err(
            AttachError::NotAPool
            | AttachError::Truncated { .. }
            | AttachError::DamagedHeader { .. },
        ) if what == Removable::AnyFile => {}
        Err(error) => return Err(error.into()),
    }
    // A caller that only asks is in nobody's way.
    let is_free = match really {
        true => file_lock::take(&fd)?,
        false => !file_lock::is_held(&fd)?,
    };
    if !is_free {
        let path = name.shown();
        return Err(RemoveError::InUse { path });
    }
    // Under the lock: the name still leads to what was judged.
    if File::named(name.path())? != File::of(&fd)? {
        let path = name.shown();
        return Err(AttachError::NotFound { path }.into());
    }
    if !is_meant(fd.as_fd()) {
        return Err(AttachError::NotAPool.into());
    }
    if really {
        rustix::fs::unlink(name.path())?;
        return Ok(());
    }
    may_unlink(name.path())
}

/// Whether the system would let this process remove a name, as far as modes and owners say.
fn may_unlink(path: &Path) -> Result<(), RemoveError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
    nix::unistd::eaccess(directory, wanted).map_err(std::io::Error::from)?;
    let directory = rustix::fs::stat(directory)?;
    let me = rustix::process::geteuid().as_raw();
    // If it is a symbolic link, the link's own owner.
    let owner = rustix::fs::lstat(path)?.st_uid;
    let is_sticky = directory.st_mode & Mode::SVTX.as_raw_mode() != 0;
    if is_sticky && ![0, owner, directory.st_uid].contains(&me) {
        return Err(rustix::io::Errno::PERM.into());
    }
    Ok(())
}

/// Removes a name if it is that of a pool that this process has, and that the caller knows to be of
/// no use to anybody. A name that leads elsewhere stays.
pub(crate) fn unlink_ours(pool: Pool, name: &str) {
    let Some(name) = PoolName::parse(name) else {
        return;
    };
    let ours = local::of(pool.0).file().file();
    if File::named(name.path()) == Ok(ours) {
        // While we have the pool, nobody removes the name by the rule above, so it is not given to
        // another pool first.
        let _ = rustix::fs::unlink(name.path());
    }
}
