//! [`Resource`]: what can be managed, and where it is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::pool::PoolName;

/// What can be managed.
///
/// ```
/// use shmkit::process::Resource;
///
/// let pool = Resource::Pool("numbers".into());
/// assert_eq!(pool.path().unwrap(), std::path::Path::new("/dev/shm/shmkit.numbers"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Resource {
    /// A file, or a named pipe or socket. A relative path is taken from the working directory of
    /// the process that announces it. A directory or a device of that name stays, and a name that
    /// can only be a directory's, such as one that ends in a slash, is not valid.
    File(PathBuf),
    /// A named pool; see [`PoolBuilder::create_named`](crate::PoolBuilder::create_named).
    Pool(String),
    /// A named POSIX semaphore (`sem_open`).
    Semaphore(String),
}

impl Resource {
    /// The path of its file; `None` if no file can have its name.
    ///
    /// ```
    /// use shmkit::process::Resource;
    /// assert_eq!(Resource::Pool("a/b".into()).path(), None);
    /// ```
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        /// The longest path, in bytes: the kernel's limit, with the terminating zero.
        const LONGEST: usize = 4096;
        match self {
            Resource::File(name) => std::path::absolute(name).ok().filter(|path| {
                let bytes = path.as_os_str().as_bytes();
                bytes.len() < LONGEST && !bytes.contains(&0) && ends_in_a_name(name)
            }),
            Resource::Pool(name) => Some(PoolName::parse(name)?.path().into()),
            Resource::Semaphore(name) => {
                let name = name.strip_prefix('/').unwrap_or(name);
                let valid = !name.is_empty() && name.len() <= 250 && !name.contains(['/', '\0']);
                valid.then(|| format!("/dev/shm/sem.{name}").into())
            }
        }
    }

    /// The same resource, named independently of the current directory and of the way its name
    /// leads there: links in the name are followed, except for the last one, which is what is
    /// removed.
    pub(super) fn absolute(self) -> Resource {
        match (&self, self.path()) {
            (Resource::File(_), Some(path)) => Resource::File(direct(&path)),
            (Resource::Pool(name), Some(path)) if name.starts_with('/') => {
                match direct(&path).into_os_string().into_string() {
                    Ok(name) => Resource::Pool(name),
                    Err(_) => self,
                }
            }
            _ => self,
        }
    }

    pub(super) fn kind(&self) -> u32 {
        match self {
            Resource::File(_) => 1,
            Resource::Pool(_) => 2,
            Resource::Semaphore(_) => 3,
        }
    }

    pub(super) fn name(&self) -> Option<Vec<u8>> {
        Some(match self {
            Resource::File(_) => self.path()?.as_os_str().as_bytes().to_vec(),
            Resource::Pool(name) | Resource::Semaphore(name) => {
                self.path()?;
                name.as_bytes().to_vec()
            }
        })
    }

    pub(super) fn of(kind: u32, name: &[u8]) -> Option<Resource> {
        let text = || Some(std::str::from_utf8(name).ok()?.to_owned());
        Some(match kind {
            1 => Resource::File(Path::new(OsStr::from_bytes(name)).into()),
            2 => Resource::Pool(text()?),
            3 => Resource::Semaphore(text()?),
            _ => return None,
        })
    }
}

/// Not so for `a/`, `a/.` and `a/..`, which can only be directories: if `a` is a link to one, the
/// link is not what is meant.
fn ends_in_a_name(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    path.file_name()
        .is_some_and(|last| bytes.ends_with(last.as_bytes()))
}

/// The path without links and steps back before its last name. Directories that do not exist yet
/// stay as they are named.
fn direct(path: &Path) -> PathBuf {
    if path.file_name().is_none() {
        return path.into();
    }
    let real = |there: &Path| {
        let real = there.canonicalize().ok()?;
        Some(real.join(path.strip_prefix(there).ok()?))
    };
    let mut directories = path.ancestors().skip(1);
    directories.find_map(real).unwrap_or_else(|| path.into())
}
