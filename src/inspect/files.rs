//! The named pools that exist, and whether anybody has them.
//!
//! Every process that has a named pool shares its file's lock for life (`sys::file_lock`), so the
//! system knows whether anybody has the pool. Process ids are shown, but no decision depends on
//! them: they repeat, and mean other processes elsewhere.

use std::os::fd::BorrowedFd;

use serde::Serialize;

use super::{Info, Observer, ProcessReport};
use crate::pool::AttachError;
use crate::pool::attach::{self, PoolName};
use crate::sys::file_lock;

/// Whether anybody has a pool.
///
/// ```
/// # use shmkit::{Pool, inspect::Observer};
/// # let name = format!("doc-state-{}", std::process::id());
/// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let object = pool.create(1_u64)?;
/// let observer = Observer::open(&name)?;
/// assert_eq!(observer.info().state, shmkit::inspect::PoolState::Live);
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PoolState {
    /// Living processes take part in it.
    Live,
    /// Somebody has it, but takes no part at present.
    Idle,
    /// Nobody has it: it can be removed.
    Stale,
}

/// A file that is a named pool, or has the name of one.
///
/// ```
/// for listed in shmkit::inspect::list("numbers-")? {
///     match listed.info {
///         Ok(info) => println!("{}: {} bytes", listed.name, info.size),
///         Err(error) => println!("{}: {error}", listed.path),
///     }
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Listed {
    /// The name, as [`Pool::open`](crate::Pool::open) accepts it.
    pub name: String,
    /// The file.
    pub path: String,
    /// What the pool is, or why the file is not one.
    pub info: Result<Info, AttachError>,
}

/// Whether anybody has the file. The system is asked if no living process is recorded as taking
/// part.
pub(super) fn state(fd: BorrowedFd<'_>, processes: &[ProcessReport]) -> PoolState {
    if processes.iter().any(|process| process.alive) {
        return PoolState::Live;
    }
    match file_lock::is_held(fd) {
        Ok(false) => PoolState::Stale,
        Ok(true) | Err(_) => PoolState::Idle,
    }
}

/// The named pools in `/dev/shm` whose names begin with `prefix`, sorted by name: every file there
/// that is named as pools are.
///
/// # Errors
///
/// Those that reading the directory returns.
///
/// ```
/// # use shmkit::Pool;
/// let name = format!("listed-{}", std::process::id());
/// Pool::builder().max_size(4 << 20).create_named(&name).unwrap();
/// let listed = shmkit::inspect::list(&name)?;
/// assert_eq!((listed.len(), &listed[0].name), (1, &name));
/// # Pool::unlink(&name).unwrap();
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn list(prefix: &str) -> std::io::Result<Vec<Listed>> {
    let files: std::io::Result<Vec<_>> = std::fs::read_dir(attach::DIRECTORY)?
        .map(|entry| Ok(entry?.file_name()))
        .collect();
    let mut names: Vec<String> = files?
        .iter()
        .filter_map(|file| Some(file.to_str()?.strip_prefix(attach::PREFIX)?.to_owned()))
        .filter(|name| !name.is_empty() && name.starts_with(prefix))
        .collect();
    names.sort();
    let listed = names.into_iter().filter_map(|name| {
        let file = PoolName::parse(&name)?;
        let info = Observer::of_file(&file).map(|observer| observer.info());
        // Not listed if it has been removed since the directory was read.
        let there = !matches!(info, Err(AttachError::NotFound { .. }));
        there.then(|| Listed {
            path: file.shown(),
            info,
            name,
        })
    });
    Ok(listed.collect())
}
