//! Pools: making them, attaching to them, and what can be asked of one.
//!
//! | module    | what |
//! |-----------|------|
//! | `create`  | the builder; initialise, then publish |
//! | `attach`  | judge a header, map, be refused with a reason |
//! | `types`   | what types own, described in the pool |
//! | `objects` | counted values, found by index; destroyed by anybody |
//! | `intents` | changes of several words, and how a death in the middle is resolved |
//! | `names`   | names of objects |
//! | `remove`  | removing named pools that nobody has |
//! | `handles` | which objects this process holds |
//! | `fork`    | what a fork does to all of it |

pub(crate) mod attach;
mod create;
pub(crate) mod dispose;
pub(crate) mod fork;
pub(crate) mod handles;
pub(crate) mod intents;
pub(crate) mod names;
pub(crate) mod objects;
pub(crate) mod remove;
pub(crate) mod types;

use std::alloc::Layout;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

pub(crate) use attach::PoolName;
pub use attach::{AttachError, UnlinkError};
pub use create::{CreateError, PoolBuilder};
pub use types::TypeError;

use crate::ShmSafe;
use crate::allocator::check::{CheckReport, Depth};
use crate::allocator::stats::Stats;
use crate::allocator::{self, AllocError, FreeError, Packed, ReallocError, block};
use crate::engines::limbo;
use crate::layout::arena::{Arena, DATA, SLICE};
use crate::layout::local;
use crate::participants::process;
use crate::participants::recovery;
use crate::participants::table::{ProcessPhase, SlotPhase};
use crate::participants::thread::{self, NoSlot};
use crate::primitive::Ordering;
use crate::sys::memory::CommitError;

/// The target of this layer's log events. They are told by the caller of an operation, when it is
/// done: never under a lock or an intent, nor by recovery itself, nor around a fork.
const LOG: &str = "shmkit::pool";

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
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pool(pub(crate) Arena);

/// A value was not put into the pool; here it is back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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

/// Why a named object was not found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamedError {
    /// There is no object of that name.
    #[error("the pool has no object of that name")]
    NotFound,
    /// The object of that name is of another type.
    #[error("the object of that name is of another type")]
    OtherType,
    /// There is an object of that name already.
    #[error("the pool has an object of that name already")]
    NameTaken,
    /// The object's entry in the pool leads to no block of its size: the pool is damaged.
    #[error("the object of that name is damaged")]
    Damaged,
    /// The name is empty or longer than 232 bytes.
    #[error("a name has 1 to 232 bytes")]
    InvalidName,
    /// The pool has as many names as it can have.
    #[error("the pool's table of names is full")]
    TableFull,
    /// The object could not be made or held.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl From<NoSlot> for NamedError {
    fn from(no_slot: NoSlot) -> Self {
        NamedError::Object(no_slot.into())
    }
}

impl From<CommitError> for NamedError {
    fn from(error: CommitError) -> Self {
        NamedError::Object(AllocError::NoMemory(error).into())
    }
}

/// Why the pool did not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrowError {
    /// More than the pool's maximum.
    #[error("the pool can grow to {max} bytes at most")]
    AboveMaximum {
        /// The maximum.
        max: usize,
    },
    /// No memory.
    #[error(transparent)]
    NoMemory(#[from] CommitError),
}

/// Who was recovered by a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoverySummary {
    /// Dead threads.
    pub threads: usize,
    /// Dead processes.
    pub processes: usize,
}

/// A hash of everything that programs must agree on to share a pool.
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
        size_of::<objects::Entry>(),
        types::FIELDS,
        size_class::CLASSES,
        size_class::MAX_BLOCKS,
        SLICE,
        DATA.offset,
        size_of::<usize>(),
        cfg!(target_endian = "little") as usize,
        cfg!(target_arch = "x86_64") as usize,
    ];
    // FNV-1a (Fowler, Noll, Vo), a word at a time.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < parts.len() {
        hash = (hash ^ parts[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}

impl Pool {
    /// How a pool is to be made.
    #[must_use]
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Attaches to the pool of that name; see [`PoolBuilder::create_named`]. A process that has
    /// it attached already gets the same handle again.
    ///
    /// # Safety
    ///
    /// Only programs that cooperate map the pool: a file can be written by others after every
    /// check, and equal names and layouts must mean equal invariants.
    ///
    /// # Errors
    ///
    /// See [`AttachError`]. A damaged, truncated or foreign file is told from a pool.
    pub unsafe fn open(name: &str) -> Result<Pool, AttachError> {
        let pool = attach::open(name)?;
        log::debug!(target: LOG, "opened the pool {name} at {:#x}", pool.0.base());
        Ok(pool)
    }

    /// Attaches to a pool by a descriptor of its memory, as [`Pool::fd`] gives it.
    ///
    /// # Safety
    ///
    /// As for [`Pool::open`].
    ///
    /// # Errors
    ///
    /// See [`AttachError`].
    pub unsafe fn from_fd(fd: OwnedFd) -> Result<Pool, AttachError> {
        let pool = attach::from_fd(fd)?;
        log::debug!(target: LOG, "attached to the pool at {:#x}", pool.0.base());
        Ok(pool)
    }

    /// Removes a pool's name. Processes that have the pool keep it; its memory goes with the last.
    ///
    /// # Errors
    ///
    /// See [`UnlinkError`].
    pub fn unlink(name: &str) -> Result<(), UnlinkError> {
        attach::unlink(name)?;
        log::debug!(target: LOG, "removed the name of the pool {name}");
        Ok(())
    }

    /// The descriptor of the pool's memory, to be passed to another process.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the pool is mapped.
        unsafe { BorrowedFd::borrow_raw(local::of(self.0).fd()) }
    }

    /// The pool, of those that this process has attached, in whose address range an address lies.
    #[must_use]
    pub fn containing(address: usize) -> Option<Pool> {
        Arena::containing(address).map(Pool)
    }

    /// The address at which every process has the pool.
    #[must_use]
    pub fn base(self) -> usize {
        self.0.base()
    }

    /// A number that no other pool has.
    #[must_use]
    pub fn uuid(self) -> u128 {
        let [low, high] = &self.0.header().uuid;
        u128::from(low.load(Ordering::Relaxed)) | u128::from(high.load(Ordering::Relaxed)) << 64
    }

    /// Whether the kernel would back the pool with huge pages: asked for, and not refused.
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

    /// Puts a value into the pool, as an object that lives as long as somebody has a handle of it
    /// or a link leads to it.
    ///
    /// # Errors
    ///
    /// The value comes back with the reason.
    ///
    /// # Crash behaviour
    ///
    /// The object exists, held by this process, or it does not.
    pub fn create<T: ShmSafe>(self, value: T) -> Result<crate::Shared<T>, OutOfMemory<T>> {
        let value = ManuallyDrop::new(value);
        let made = self.create_with(Layout::new::<T>(), |place| {
            // SAFETY: a new block of T's layout, which nobody else has; the value is moved there,
            // as it is not used again once the object is made.
            unsafe {
                place
                    .cast::<T>()
                    .copy_from_nonoverlapping(NonNull::from(&*value), 1)
            };
        });
        made.map_err(|cause| OutOfMemory {
            value: ManuallyDrop::into_inner(value),
            cause,
        })
    }

    /// Makes an object whose value `init` writes.
    pub(crate) fn create_with<T: ShmSafe>(
        self,
        layout: Layout,
        init: impl FnOnce(NonNull<u8>),
    ) -> Result<crate::Shared<T>, ObjectError> {
        let slot = thread::slot(self.0)?;
        let kind = types::index_of::<T>(self.0, slot)?;
        let new = objects::NewObject { kind, layout };
        let hold = objects::create(self.0, slot, new, init)?;
        Ok(crate::Shared::of(hold).expect("a block of the layout was made"))
    }

    /// The object of that name.
    ///
    /// # Errors
    ///
    /// [`NamedError::NotFound`], or [`NamedError::OtherType`] if it is none of type `T`.
    pub fn named<T: ShmSafe>(self, name: &str) -> Result<crate::Shared<T>, NamedError> {
        let slot = thread::slot(self.0)?;
        process::current(self.0).ok_or(NoSlot)?;
        let hold = names::locked(self.0, slot, || self.find_named::<T>(name))?;
        let hold = hold.ok_or(NamedError::NotFound)?;
        crate::Shared::of(hold).ok_or(NamedError::Damaged)
    }

    /// Holds the object of that name, if there is one. The caller holds the names' lock.
    fn find_named<T: ShmSafe>(self, name: &str) -> Result<Option<Arc<handles::Hold>>, NamedError> {
        let Some(index) = names::find(self.0, name) else {
            return Ok(None);
        };
        let entry = self.0.object(index).ok_or(NamedError::Damaged)?;
        if !types::is(self.0, entry.kind(), T::TYPE.fingerprint()) {
            return Err(NamedError::OtherType);
        }
        // A name keeps its object alive, and the lock keeps the name.
        let hold = handles::open(self.0, index, entry.state().generation)?;
        hold.map(Some).ok_or(NamedError::Damaged)
    }

    pub(crate) fn is_type<T: ShmSafe>(self, index: usize) -> bool {
        let entry = self.0.object(index);
        entry.is_some_and(|entry| types::is(self.0, entry.kind(), T::TYPE.fingerprint()))
    }

    /// Gives an object a name, by which other processes find it. The name keeps it alive.
    ///
    /// # Errors
    ///
    /// [`NamedError::NameTaken`] and the like.
    pub fn set_name<T: ShmSafe>(
        self,
        name: &str,
        object: &crate::Shared<T>,
    ) -> Result<(), NamedError> {
        if name.is_empty() || name.len() > names::MAX_NAME {
            return Err(NamedError::InvalidName);
        }
        if object.pool() != self {
            return Err(NamedError::NotFound);
        }
        let slot = thread::slot(self.0)?;
        names::locked(self.0, slot, || {
            if names::find(self.0, name).is_some() {
                return Err(NamedError::NameTaken);
            }
            names::enter(self.0, slot, name, object.index()).map_err(|failure| match failure {
                names::EnterFailure::TableFull => NamedError::TableFull,
                names::EnterFailure::NoMemory(error) => error.into(),
            })
        })
    }

    /// The object of that name, made by `init` if there is none. Of several that make it at once
    /// one wins, and all get the same object; the values of the others are dropped, so `init` may
    /// run in vain.
    ///
    /// # Errors
    ///
    /// See [`NamedError`].
    pub fn named_or_create<T: ShmSafe>(
        self,
        name: &str,
        init: impl FnOnce() -> T,
    ) -> Result<crate::Shared<T>, NamedError> {
        match self.named(name) {
            Err(NamedError::NotFound) => {}
            other => return other,
        }
        let made = self.create(init()).map_err(|refused| refused.cause)?;
        loop {
            match self.set_name(name, &made) {
                Ok(()) => return Ok(made),
                Err(NamedError::NameTaken) => {}
                Err(error) => return Err(error),
            }
            match self.named(name) {
                // Removed in between: ours may be the one now.
                Err(NamedError::NotFound) => {}
                other => return other,
            }
        }
    }

    /// Removes a name. The object goes when nothing else holds it.
    ///
    /// # Errors
    ///
    /// [`NamedError::NotFound`].
    pub fn remove_name(self, name: &str) -> Result<(), NamedError> {
        let slot = thread::slot(self.0)?;
        let removed = names::locked(self.0, slot, || names::remove(self.0, slot, name));
        let object = removed.ok_or(NamedError::NotFound)?;
        names::dispose(self.0, object);
        Ok(())
    }

    /// Every name of the pool.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        names::all(self.0)
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    /// Allocates a block. It is the caller's until freed; a caller that dies leaks it.
    ///
    /// # Errors
    ///
    /// See [`AllocError`]. The pool grows first, if it can.
    #[inline]
    pub fn allocate(self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let slot = thread::known_slot(self.0);
        let address = match slot.and_then(|slot| block::at_hand(slot, layout, |_| {})) {
            Some(address) => address,
            None => self.allocate_more(layout).map_err(Packed::unpack)?,
        };
        // SAFETY: a block lies in the pool's data, above its base.
        let pointer =
            unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) };
        Ok(NonNull::slice_from_raw_parts(pointer, layout.size()))
    }

    /// The rare allocation; a function of its own, so that the common one is short.
    #[cold]
    #[inline(never)]
    fn allocate_more(self, layout: Layout) -> Result<usize, Packed> {
        block::allocate_more(self.0, thread::slot(self.0)?, layout, |_| {})
    }

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// Nobody uses the block any more, and `pointer` came from [`Pool::allocate`] or
    /// [`Pool::reallocate`] of this pool. Other pointers, and a block freed before, are refused
    /// with an error, except that two frees of one block at the same moment may both succeed.
    ///
    /// # Errors
    ///
    /// See [`FreeError`].
    #[inline]
    pub unsafe fn deallocate(self, pointer: NonNull<u8>) -> Result<(), FreeError> {
        match thread::known_slot(self.0) {
            Some(slot) => block::free(self.0, slot, pointer.addr().get()),
            None => self.first_free(pointer.addr().get()),
        }
    }

    /// A free by a thread that has no slot yet.
    #[cold]
    #[inline(never)]
    fn first_free(self, address: usize) -> Result<(), FreeError> {
        block::free(self.0, thread::slot(self.0)?, address)
    }

    /// Moves a block to one of another layout, with as much of its content as fits. It may stay
    /// where it is.
    ///
    /// # Safety
    ///
    /// As for [`Pool::deallocate`], except when an error is returned.
    ///
    /// # Errors
    ///
    /// See [`ReallocError`]. The block is as it was.
    pub unsafe fn reallocate(
        self,
        pointer: NonNull<u8>,
        new: Layout,
    ) -> Result<NonNull<[u8]>, ReallocError> {
        let slot = thread::slot(self.0).map_err(FreeError::from)?;
        // SAFETY: by the caller's promise.
        let moved = unsafe { block::reallocate(self.0, slot, pointer.addr().get(), new) }?;
        let pointer = NonNull::new(std::ptr::with_exposed_provenance_mut(moved));
        let pointer = pointer.ok_or(AllocError::PoolFull)?;
        Ok(NonNull::slice_from_raw_parts(pointer, new.size()))
    }

    /// Bytes that the block at `pointer` has, which may be more than were asked for.
    ///
    /// # Errors
    ///
    /// See [`FreeError`].
    pub fn usable_size(self, pointer: NonNull<u8>) -> Result<usize, FreeError> {
        block::usable_size(self.0, pointer.addr().get())
    }

    /// Makes the pool at least that large, in bytes of data.
    ///
    /// # Errors
    ///
    /// See [`GrowError`]. What has grown by then stays.
    pub fn grow_to(self, bytes: usize) -> Result<(), GrowError> {
        let max = self.0.header().max_slices.load(Ordering::Relaxed) as usize;
        let wanted = bytes.div_ceil(SLICE);
        if wanted > max {
            return Err(GrowError::AboveMaximum { max: max * SLICE });
        }
        recovery::poll(self.0);
        let have = self.0.slices();
        if wanted > have {
            allocator::grow::grow_by(self.0, have, wanted - have)?;
            let (base, size) = (self.0.base(), wanted * SLICE);
            log::debug!(target: LOG, "the pool at {base:#x} has grown to {size} bytes");
        }
        Ok(())
    }

    /// Gives the memory of free slices back to the kernel; how many bytes. They stay part of the
    /// pool. This happens by itself too, some time after much was freed.
    ///
    /// # Errors
    ///
    /// [`NoSlot`].
    pub fn purge(self) -> Result<usize, NoSlot> {
        Ok(allocator::grow::purge(self.0, thread::slot(self.0)?))
    }

    /// Does now what is to be done for dead participants, and frees what nobody holds any more.
    /// It is done anyway by whoever needs it; a supervisor calls this when a worker has died.
    pub fn recover(self) -> RecoverySummary {
        let done = recovery::recover_all(self.0);
        if let Some(slot) = thread::known_slot(self.0) {
            allocator::grow::purge_now_and_then(self.0, slot);
        }
        let (threads, processes) = (done.slots, done.processes);
        if threads + processes > 0 {
            let base = self.0.base();
            log::info!(target: LOG, "recovered {threads} threads and {processes} processes of the pool at {base:#x}");
        }
        RecoverySummary { threads, processes }
    }

    /// How the pool's memory is used, at about this moment.
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
    #[must_use]
    pub fn check(self) -> CheckReport {
        self.check_to(Depth::Live)
    }

    /// Checks everything that must hold while nobody is using the pool.
    #[must_use]
    pub fn check_quiescent(self) -> CheckReport {
        self.check_to(Depth::Quiescent)
    }

    pub(crate) fn check_to(self, depth: Depth) -> CheckReport {
        let mut report = CheckReport::default();
        allocator::check::check(self.0, depth, &mut report);
        limbo::check(self.0, depth, &mut report);
        objects::check(self.0, depth, &mut report);
        report
    }

    /// Takes the pool out of this process's address space.
    ///
    /// For tests and fuzzers, which make many pools: a process can have 48 mapped.
    ///
    /// # Safety
    ///
    /// Nothing of this process refers to the pool any more: no handle, guard, block or thread
    /// other than the calling one that has used it and has not ended.
    pub unsafe fn unmap(self) {
        dispose::give_up_postponed(self.0);
        thread::leave(self.0);
        process::leave(self.0);
        handles::forget(self.0);
        let (len, fd) = local::of(self.0).clear();
        // SAFETY: by the caller's promise nothing refers to the mapping; the descriptor was the
        // pool's own.
        unsafe {
            let _ = crate::sys::memory::unmap(self.0.base(), len);
            drop(<OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd));
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({:#x})", self.base())
    }
}
