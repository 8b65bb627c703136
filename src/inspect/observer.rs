//! [`Observer`]: a pool as seen from outside.
//!
//! # Rationale
//!
//! Taking part in a pool means claiming a slot, recovering the dead, and writing. Someone who
//! administers pools wants none of that: the pool may be full, crashed, or of another version. So
//! the file is mapped only for reading, at the pool's address (the pool is full of addresses), and
//! every report is made from loads. That nothing is changed is guaranteed by the kernel, not by us.
//!
//! An observer is not one of the process's pools: [`Pool::containing`] does not find it, and its
//! mapping goes with its last owner. There may be other observers of the same pool, and the process
//! may attach it. It takes no lock on the file, so it is in nobody's way; if the pool's name is
//! removed meanwhile, the mapping stays good.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use serde::Serialize;

use super::files::{self, PoolState};
use super::{Leaks, LockReport, Map, ObjectReport, Participant, ProcessReport, Span};
use super::{leaks, locks, map, objects, participants};
use crate::allocator::check::{CheckReport, Depth};
use crate::allocator::stats::Stats;
use crate::layout::arena::Arena;
use crate::layout::header::{DUMPABLE, HUGE_PAGES, Identity};
use crate::numbers::{self, Numbers, NumbersError};
use crate::pool::attach::{self, PoolName};
use crate::pool::{AttachError, Pool, copied};
use crate::sys::memory;

/// A named pool that is looked at and not used.
///
/// ```
/// use shmkit::inspect::Observer;
/// use shmkit::{Matrix, Pool};
///
/// let name = format!("observed-{}", std::process::id());
/// let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let matrix = Matrix::filled_in(pool, 2, 3, 1.5_f64)?;
/// pool.set_name("table", &matrix)?;
///
/// let observer = Observer::open(&name)?;
/// assert_eq!(observer.info().processes.len(), 1);
/// let table = observer.numbers("table")?;
/// assert_eq!((table.dtype, &table.shape[..]), ("<f8", &[2, 3][..]));
/// Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Observer {
    arena: Arena,
    identity: Identity,
    path: String,
    fd: OwnedFd,
}

/// What a pool is, and who uses it.
///
/// ```
/// # use shmkit::{Pool, inspect::Observer};
/// # let name = format!("doc-info-{}", std::process::id());
/// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
/// let observer = Observer::open(&name)?;
/// let info = observer.info();
/// assert_eq!((info.creator, info.maximum), (std::process::id(), 4 << 20));
/// # Pool::unlink(&name)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Info {
    /// The pool's file.
    pub path: String,
    /// A number that no other pool has, in hexadecimal.
    pub uuid: String,
    /// Whether anybody has it.
    pub state: PoolState,
    /// The layout version, which counts changes of the layout.
    pub version: u64,
    /// The address at which every process has it mapped.
    pub base: usize,
    /// Bytes of data that it has now.
    pub size: usize,
    /// Bytes of data to which it can grow.
    pub maximum: usize,
    /// Bytes of memory that the file takes, tables included.
    pub memory: u64,
    /// The id of the process that made it.
    pub creator: u32,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The file's owner.
    pub owner: u32,
    /// How many threads of all processes can take part.
    pub max_participants: u64,
    /// Whether core dumps contain it.
    pub core_dumps: bool,
    /// Whether huge pages were asked for.
    pub huge_pages: bool,
    /// The processes that take part, and those that have died and are not recovered yet.
    pub processes: Vec<ProcessReport>,
}

impl Observer {
    /// Looks at the pool of that name; a name that starts with a slash is the path of a file, which
    /// may be `/proc/PID/fd/N` for a pool without a name. Only the right to read is needed.
    ///
    /// # Errors
    ///
    /// As for [`Pool::open`]. A pool of another PID namespace can be looked at.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-open-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(Observer::open("no such pool").is_err());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(name: impl AsRef<Path>) -> Result<Observer, AttachError> {
        Observer::of_file(&attach::parse(name.as_ref())?)
    }

    pub(super) fn of_file(name: &PoolName) -> Result<Observer, AttachError> {
        let fd = attach::open_file(name, OFlags::RDONLY)?;
        let (arena, identity) = attach::map_to_read(fd.as_fd())?;
        Ok(Observer {
            arena,
            identity,
            path: name.shown(),
            fd,
        })
    }

    /// The descriptor of the pool's file, open only for reading.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-observed-fd-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// let file = std::fs::File::from(observer.fd().try_clone_to_owned()?);
    /// assert!(file.metadata()?.len() > 0);
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What the pool is, and who uses it.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-info-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.info().size <= 4 << 20);
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn info(&self) -> Info {
        let stat = rustix::fs::fstat(&self.fd).ok();
        let identity = &self.identity;
        let [low, high] = identity.uuid;
        let stats = self.stats();
        let processes = self.processes();
        Info {
            path: self.path.clone(),
            uuid: format!("{:032x}", u128::from(low) | u128::from(high) << 64),
            state: files::state(self.fd.as_fd(), &processes),
            version: identity.version,
            base: self.arena.base(),
            size: stats.total,
            maximum: stats.maximum,
            memory: stat.map_or(0, |stat| stat.st_blocks.max(0) as u64 * 512),
            creator: identity.creator as u32,
            created: identity.created,
            owner: stat.map_or(0, |stat| stat.st_uid),
            max_participants: identity.max_slots.saturating_sub(1),
            core_dumps: identity.options & DUMPABLE != 0,
            huge_pages: identity.options & HUGE_PAGES != 0,
            processes,
        }
    }

    /// How the pool's memory is used, at about this moment.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-stats-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let object = pool.create(1_u64)?;
    /// let observer = Observer::open(&name)?;
    /// assert_eq!(observer.stats().processes, 1);
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        Pool(self.arena).stats()
    }

    /// The processes that take part, and those that have died and are not recovered yet.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-processes-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let object = pool.create(1_u64)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.processes()[0].alive);
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessReport> {
        participants::processes_of(self.arena)
    }

    /// As [`participants`](super::participants()).
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-participants-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let object = pool.create(1_u64)?;
    /// let observer = Observer::open(&name)?;
    /// assert_eq!(observer.participants().last().unwrap().process, std::process::id());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn participants(&self) -> Vec<Participant> {
        participants::participants_of(self.arena)
    }

    /// Every span, at about this moment. Two such lists show what was allocated and freed between
    /// them; see `docs/cli.md` on `top`.
    ///
    /// ```
    /// use shmkit::Pool;
    /// use shmkit::inspect::Observer;
    ///
    /// let name = format!("spans-{}", std::process::id());
    /// let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let object = pool.create([1_u64; 100])?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.spans().iter().any(|span| span.allocated >= 800));
    /// Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        participants::spans_of(self.arena).collect()
    }

    /// As [`map`](super::map()).
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-map-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// println!("{}", observer.map());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn map(&self) -> Map {
        map::map_of(self.arena)
    }

    /// As [`leaks`](super::leaks()): correct while nobody uses the pool.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-leaks-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.leaks().is_empty());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn leaks(&self) -> Leaks {
        leaks::leaks_of(self.arena)
    }

    /// Every object.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-objects-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let object = pool.create(1_u64)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.objects().iter().any(|object| object.held));
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectReport> {
        objects::objects_of(self.arena)
    }

    /// The words that threads hold or wait for. What a thread holds is found by its tag: a number
    /// that happens to look like a tag is found, too.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-locks-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.locks().is_empty());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn locks(&self) -> Vec<LockReport> {
        locks::locks_of(self.arena)
    }

    /// Checks what must hold at every instant, as [`Pool::check`].
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-check-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.check().is_ok());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn check(&self) -> CheckReport {
        objects::check(self.arena, Depth::Live)
    }

    /// Checks what must hold while nobody uses the pool, as [`Pool::check_quiescent`]. Whatever a
    /// dead process left and nobody has repaired yet is reported as a problem.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-check-quiescent-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// let observer = Observer::open(&name)?;
    /// assert!(observer.check_quiescent().is_ok());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn check_quiescent(&self) -> CheckReport {
        objects::check(self.arena, Depth::Quiescent)
    }

    /// What a named matrix, array or number looks like to a program that knows only numbers.
    ///
    /// # Errors
    ///
    /// See [`NumbersError`].
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-numbers-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// pool.set_name("answer", &pool.create(42_u64)?)?;
    /// let observer = Observer::open(&name)?;
    /// assert_eq!(observer.numbers("answer")?.dtype, "<u8");
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn numbers(&self, name: &str) -> Result<Numbers, NumbersError> {
        numbers::named(self.arena, name)
    }

    /// The same, with a copy of its elements as bytes. Each element is one that was there at some
    /// moment, but not all of them were there at the same moment if somebody writes to them.
    ///
    /// # Errors
    ///
    /// See [`NumbersError`].
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # let name = format!("doc-read-numbers-{}", std::process::id());
    /// # let pool = Pool::builder().max_size(4 << 20).create_named(&name)?;
    /// pool.set_name("answer", &pool.create(42_u64)?)?;
    /// let observer = Observer::open(&name)?;
    /// let (_, bytes) = observer.read_numbers("answer")?;
    /// assert_eq!(bytes, 42_u64.to_ne_bytes());
    /// # Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_numbers(&self, name: &str) -> Result<(Numbers, Vec<u8>), NumbersError> {
        numbers::read(self.arena, name)
    }

    /// A copy of the pool in memory of this process, to recover and check at will: nobody else has
    /// it, and the pool itself stays as it is. Recovering and checking it needs no promise, since
    /// they trust nothing that they read. But the copy is one of the process's pools, with objects
    /// that can be found by their names.
    ///
    /// # Safety
    ///
    /// While the copy is mapped, nothing in it is opened; or the programs that wrote the file keep
    /// the promise that [`Pool::open`] requires.
    ///
    /// # Errors
    ///
    /// As for [`Pool::from_fd`]; [`AttachError::AddressTaken`] if this process has the pool itself,
    /// or another observer of it. If the pool is in use while it is copied, the copy is of no use.
    ///
    /// ```
    /// # use shmkit::{Pool, inspect::Observer};
    /// # fn look(name: &str) -> Result<(), shmkit::AttachError> {
    /// let observer = Observer::open(name)?;
    /// // SAFETY: it is recovered and checked, and no more.
    /// let copy = unsafe { observer.into_copy() }?;
    /// copy.recover();
    /// println!("{}", copy.check_quiescent());
    /// # Ok(())
    /// # }
    /// # assert!(look("no such pool").is_err());
    /// ```
    pub unsafe fn into_copy(self) -> Result<Pool, AttachError> {
        if !attach::is_seen_by_one(self.arena) {
            let base = self.arena.base();
            let end = base + self.identity.mapped_len();
            return Err(AttachError::AddressTaken { base, end });
        }
        let copy = copied::in_memory(self.fd.as_fd())?;
        // What was committed and never written to counts as a hole, and was not copied.
        for (table, count) in attach::committed(&self.arena.header().watermarks) {
            let bytes = count * table.entry as u64;
            memory::commit(copy.as_fd(), table.offset as u64, bytes)
                .map_err(std::io::Error::other)?;
        }
        // The copy's place is where the observer was.
        drop(self);
        attach::from_fd(copy)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // SAFETY: everything that refers to the mapping is borrowed from this observer.
        unsafe { attach::look_no_more(self.arena, &self.identity) };
    }
}
