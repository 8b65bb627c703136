//! Pools: making them, attaching to them, and what can be asked of one.
//!
//! | module    | what |
//! |-----------|------|
//! | `create`  | the builder; initialises a pool, then publishes it |
//! | `attach`  | judges a header and maps the pool, or is refused with a reason |
//! | `copied`  | supplies the memory that copies of pools' files lack |
//! | `blocks`  | memory of a pool: allocated, freed, grown |
//! | `types`   | what types own, described in the pool |
//! | `objects` | counted values, found by index; destroyed by anybody |
//! | `dispose` | destroying objects that nobody holds |
//! | `intents` | changes of several words, and how a death in the middle is resolved |
//! | `names`   | names of objects |
//! | `remove`  | removing named pools that nobody has |
//! | `observed` | pools that this process looks at |
//! | `handles` | which objects this process holds |
//! | `fork`    | what a fork does to all of it |
//! | `check`   | what must hold of objects, types and names |

pub(crate) mod attach;
mod blocks;
mod check;
pub(crate) mod copied;
mod create;
pub(crate) mod dispose;
pub(crate) mod fork;
pub(crate) mod handles;
pub(crate) mod intents;
pub(crate) mod names;
pub(crate) mod objects;
mod observed;
pub(crate) mod remove;
pub(crate) mod types;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) use attach::PoolName;
pub use attach::{AttachError, UnlinkError};
pub use blocks::GrowError;
pub use create::{CreateError, PoolBuilder};
pub use types::TypeError;

use crate::ShmSafe;
use crate::allocator::check::{CheckReport, Depth};
use crate::allocator::stats::Stats;
use crate::allocator::{self, AllocError};
use crate::engines::limbo;
use crate::layout::arena::{Arena, DATA, SLICE};
use crate::layout::{fnv, local};
use crate::participants::process;
use crate::participants::recovery;
use crate::participants::table::{ProcessPhase, SlotPhase};
use crate::participants::thread::{self, NoSlot};
use crate::primitive::Ordering;

/// The target of this layer's log events. The caller of an operation logs them when the operation
/// is done: never under a lock or an intent, nor in recovery itself, nor around a fork.
const LOG: &str = "shmkit::pool";

/// Logs an event. A logger is user code: if it panics, the panic is printed and goes no further,
/// since it would lose what was done.
pub(crate) fn tell(event: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(event)) {
        // Its destructor might panic again.
        std::mem::forget(payload);
    }
}

/// A pool of memory that every process of a group has mapped at the same address.
///
/// A `Pool` is a handle, copied freely: the mapping lives as long as the process. Threads and
/// processes take part in a pool by using it; there is nothing to announce.
///
/// ```
/// use shmkit::Pool;
///
/// let pool = Pool::builder().create()?;
/// let numbers = pool.create([1_u32, 2, 3])?;
/// assert_eq!(numbers.iter().sum::<u32>(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pool(pub(crate) Arena);

/// A value was not put into the pool; here it is back.
///
/// ```
/// use shmkit::{NoSlot, ObjectError, Pool};
///
/// let pool = Pool::builder().max_participants(1).create()?;
/// let _object = pool.create(1_u32)?;
/// std::thread::scope(|s| {
///     s.spawn(|| {
///         let error = pool.create(2_u32).unwrap_err();
///         assert_eq!((error.value, error.cause), (2, ObjectError::NoSlot(NoSlot)));
///     });
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("no object was made")]
pub struct OutOfMemory<T = ()> {
    /// The value.
    pub value: T,
    /// Why.
    #[source]
    pub cause: ObjectError,
}

impl<T> std::fmt::Debug for OutOfMemory<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutOfMemory")
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

/// Why no object was made.
///
/// ```
/// use shmkit::{AllocError, ObjectError, Pool};
///
/// let pool = Pool::builder().max_size(1 << 20).create()?;
/// let mut objects = Vec::new();
/// let cause = loop {
///     match pool.create([0_u8; 10_000]) {
///         Ok(object) => objects.push(object),
///         Err(error) => break error.cause,
///     }
/// };
/// assert_eq!(cause, ObjectError::Alloc(AllocError::PoolFull));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ObjectError {
    /// No block for it.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// Its type cannot be described in the pool.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// What a call has recovered.
///
/// ```
/// use shmkit::{Pool, RecoverySummary};
///
/// let pool = Pool::builder().create()?;
/// let RecoverySummary { threads, processes, .. } = pool.recover();
/// assert_eq!((threads, processes), (0, 0), "nobody has died");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoverySummary {
    /// Dead threads.
    pub threads: usize,
    /// Dead processes.
    pub processes: usize,
}

/// A hash of the sizes that programs must agree on to share a pool. The header's version accounts
/// for the rest: where fields lie, and what their values mean.
pub(crate) const fn layout_fingerprint() -> u64 {
    use crate::allocator::{cache::Caches, size_class, span::Span};
    use crate::layout::header::Header;
    use crate::participants::table::{Process, Slot};
    let parts = [
        size_of::<Header>(),
        size_of::<Slot>(),
        size_of::<Process>(),
        size_of::<Span>(),
        size_of::<Caches>(),
        size_of::<objects::ObjectEntry>(),
        types::FIELDS,
        size_class::CLASSES,
        size_class::MAX_BLOCKS,
        SLICE,
        DATA.offset,
        size_of::<usize>(),
        cfg!(target_endian = "little") as usize,
        cfg!(target_arch = "x86_64") as usize,
    ];
    let mut hash = fnv::START;
    let mut i = 0;
    while i < parts.len() {
        hash = fnv::step(hash, parts[i] as u64);
        i += 1;
    }
    hash
}

impl Pool {
    /// A builder that says how a pool is to be made.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().max_size(64 << 20).create()?;
    /// assert_eq!(pool.stats().maximum, 64 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Attaches to the pool of that name; see [`PoolBuilder::create_named`]. A process that has it
    /// attached already gets the same handle again. A renamed file is found even if its name is not
    /// valid text.
    ///
    /// # Safety
    ///
    /// Only cooperating programs map the pool: others could write to the file after every check,
    /// and equal names and layouts must mean equal invariants.
    ///
    /// # Errors
    ///
    /// See [`AttachError`]. Damaged, truncated and foreign files are told from pools.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let name = format!("open-{}", std::process::id());
    /// let pool = Pool::builder().create_named(&name)?;
    /// // SAFETY: what opens it, here and elsewhere, is this very program.
    /// assert_eq!(unsafe { Pool::open(&name) }?, pool);
    /// Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn open(name: impl AsRef<Path>) -> Result<Pool, AttachError> {
        let name = name.as_ref();
        let pool = attach::open(name)?;
        tell(
            || log::debug!(target: LOG, "opened the pool {} at {:#x}", name.display(), pool.0.base()),
        );
        Ok(pool)
    }

    /// Attaches to a pool through a descriptor of its memory, such as [`Pool::fd`] returns.
    ///
    /// # Safety
    ///
    /// As for [`Pool::open`].
    ///
    /// # Errors
    ///
    /// See [`AttachError`].
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().create()?;
    /// // Passed to another process, as a rule.
    /// let fd = pool.fd().try_clone_to_owned()?;
    /// // SAFETY: it is this very program.
    /// assert_eq!(unsafe { Pool::from_fd(fd) }?, pool);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn from_fd(fd: OwnedFd) -> Result<Pool, AttachError> {
        let pool = attach::from_fd(fd)?;
        tell(|| log::debug!(target: LOG, "attached to the pool at {:#x}", pool.0.base()));
        Ok(pool)
    }

    /// Removes a pool's name. Processes that have the pool keep it; its memory goes with the last
    /// of them.
    ///
    /// # Errors
    ///
    /// See [`UnlinkError`]. The name stays.
    ///
    /// # Crash behaviour
    ///
    /// The name is removed or it is not.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let name = format!("unlink-{}", std::process::id());
    /// let pool = Pool::builder().create_named(&name)?;
    /// Pool::unlink(&name)?;
    /// // SAFETY: there is none of that name any more.
    /// assert!(unsafe { Pool::open(&name) }.is_err());
    /// assert_eq!(*pool.create(7_u32)?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unlink(name: impl AsRef<Path>) -> Result<(), UnlinkError> {
        let name = name.as_ref();
        attach::unlink(name)?;
        tell(|| log::debug!(target: LOG, "removed the name of the pool {}", name.display()));
        Ok(())
    }

    /// The descriptor of the pool's memory, to be passed to another process.
    ///
    /// It is for nothing else: as with `/proc/self/mem`, a write to it changes memory under those
    /// that use it.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().initial_size(8 << 20).create()?;
    /// let file = std::fs::File::from(pool.fd().try_clone_to_owned()?);
    /// assert!(file.metadata()?.len() >= 8 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the pool is mapped.
        unsafe { BorrowedFd::borrow_raw(local::of(self.0).file().number()) }
    }

    /// The pool that this process has attached whose address range contains the address, if there
    /// is one. A run's control pool is not found.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let object = pool.create(7_u32)?;
    /// assert_eq!(Pool::containing((&raw const *object).addr()), Some(pool));
    /// assert_eq!(Pool::containing((&raw const pool).addr()), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn containing(address: usize) -> Option<Pool> {
        let arena = Arena::containing(address)?;
        local::of(arena).is_shown().then_some(Pool(arena))
    }

    /// The address at which every process has the pool mapped.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// assert_eq!(Pool::containing(pool.base()), Some(pool));
    /// assert_eq!(Pool::containing(pool.base() - 1), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn base(self) -> usize {
        self.0.base()
    }

    /// A number that no other pool has.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pools = [Pool::builder().create()?, Pool::builder().create()?];
    /// assert_ne!(pools[0].uuid(), pools[1].uuid());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn uuid(self) -> u128 {
        let [low, high] = &self.0.header().uuid;
        u128::from(low.load(Ordering::Relaxed)) | u128::from(high.load(Ordering::Relaxed)) << 64
    }

    /// Whether the kernel would back the pool with huge pages: they were asked for, and are not
    /// refused.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().huge_pages(false).create()?;
    /// assert!(!pool.huge_pages());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn huge_pages(self) -> bool {
        use crate::layout::header::HUGE_PAGES;
        let asked = self.0.header().options.load(Ordering::Relaxed) & HUGE_PAGES != 0;
        let policy = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
        let refused = std::fs::read_to_string(policy).map_or(true, |policy| {
            policy.contains("[never]") || policy.contains("[deny]")
        });
        asked && !refused
    }

    pub(crate) fn is_type<T: ShmSafe>(self, index: usize) -> bool {
        let entry = self.0.object(index);
        entry.is_some_and(|entry| types::is(self.0, entry.kind(), T::TYPE.fingerprint()))
    }

    /// Does now what is to be done for dead participants, and frees what nobody holds any more. Any
    /// participant that needs this does it anyway; a supervisor calls it when a worker has died.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let done = pool.recover();
    /// assert_eq!((done.threads, done.processes), (0, 0), "nobody has died");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recover(self) -> RecoverySummary {
        fork::recover_children();
        let done = recovery::recover_all(self.0);
        if let Some(slot) = thread::known_slot(self.0) {
            allocator::grow::purge_now_and_then(self.0, slot);
        }
        let (threads, processes) = (done.slots, done.processes);
        if threads + processes > 0 {
            let base = self.0.base();
            tell(
                || log::info!(target: LOG, "recovered {threads} threads and {processes} processes of the pool at {base:#x}"),
            );
        }
        RecoverySummary { threads, processes }
    }

    /// How the pool's memory is used, at about this moment.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let before = pool.stats().allocated;
    /// let _object = pool.create([0_u8; 1000])?;
    /// let stats = pool.stats();
    /// assert!(stats.allocated >= before + 1000);
    /// assert_eq!((stats.processes, stats.threads), (1, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stats(self) -> Stats {
        let mut stats = allocator::stats::count(self.0);
        stats.retired = limbo::count(self.0);
        let used = |phase| matches!(phase, SlotPhase::Live | SlotPhase::Parked);
        stats.threads = self
            .0
            .slots()
            .filter(|(_, s)| used(s.state().phase))
            .count();
        stats.processes = self
            .0
            .processes()
            .filter(|(_, p)| p.state().phase == ProcessPhase::Live)
            .count();
        stats
    }

    /// Checks what must hold of the pool at every instant, while others may be using it.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let report = pool.check();
    /// assert!(report.is_ok(), "{report}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn check(self) -> CheckReport {
        self.check_to(Depth::Live)
    }

    /// Checks everything that must hold while nobody is using the pool. Whatever still belongs to
    /// dead participants is reported, so [recover](Self::recover) them first.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().guard(true).create()?;
    /// let block = pool.allocate(Layout::new::<[u8; 100]>())?.cast::<u8>();
    /// assert!(pool.check_quiescent().is_ok());
    /// // SAFETY: it is not: the block has 100 bytes.
    /// unsafe { block.add(100).write(1) };
    /// assert_eq!(pool.check_quiescent().problems.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn check_quiescent(self) -> CheckReport {
        self.check_to(Depth::Quiescent)
    }

    pub(crate) fn check_to(self, depth: Depth) -> CheckReport {
        let mut report = CheckReport::default();
        allocator::check::check(self.0, depth, &mut report);
        limbo::check(self.0, depth, &mut report);
        check::check(self.0, depth, &mut report);
        report
    }

    /// Unmaps the pool from this process's address space.
    ///
    /// For tests and fuzzers, which make many pools: a process can have 48 mapped.
    ///
    /// # Safety
    ///
    /// Nothing in this process refers to the pool any more: no handle, guard or block, and no
    /// thread other than the calling one that has used the pool and has not ended.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().create()?;
    /// let base = pool.base();
    /// // SAFETY: nothing refers to it.
    /// unsafe { pool.unmap() };
    /// assert_eq!(Pool::containing(base), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn unmap(self) {
        dispose::give_up_postponed(self.0);
        thread::leave(self.0);
        process::leave(self.0);
        process::give_up_life(self.0);
        handles::forget(self.0);
        fork::forget(self.0);
        // Nobody attaches it anew before its place is free.
        let leaving = handles::lock();
        let (len, file) = local::of(self.0).clear();
        if observed::count(self.0, &leaving) == 0 {
            // SAFETY: by the caller's promise nothing refers to the mapping, nor does an observer.
            let _ = unsafe { crate::sys::memory::unmap(self.0.base(), len) };
        }
        drop(file);
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({:#x})", self.base())
    }
}

/// A pool that a test has to itself, unmapped at the test's end: a process can have only so many.
#[cfg(test)]
pub(crate) struct Scratch {
    pool: Pool,
}

#[cfg(test)]
impl Scratch {
    pub(crate) fn new() -> Scratch {
        let pool = Pool::builder().create().expect("a new pool");
        Scratch { pool }
    }

    pub(crate) fn of_size(max: usize) -> Scratch {
        let pool = Pool::builder().max_size(max).create();
        Scratch {
            pool: pool.expect("a new pool"),
        }
    }
}

#[cfg(test)]
impl std::ops::Deref for Scratch {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

#[cfg(test)]
impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: what the test has of the pool was made after this, so it is gone by now.
            unsafe { self.pool.unmap() };
        }
    }
}
