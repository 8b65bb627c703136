//! Making pools.
//!
//! A pool is made whole before anybody can find it: a memfd belongs to this process alone until it
//! is passed on, and a named pool is a file without a name until it is ready, then linked into
//! place. A creator that dies leaves nothing.

use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD};
use rustix::mm::Advice;

use super::attach::{self, PoolName};
use super::{Pool, copied, fork, handles, tell};
use crate::allocator::grow;
use crate::layout::arena::{
    self, Arena, DATA, FIRST_GRANULE, GRANULE, GRANULES, HEADER_SIZE, SLICE, SLOTS,
};
use crate::layout::header::{DUMPABLE, GUARDED, HUGE_PAGES, Identity, MAGIC, VERSION};
use crate::layout::local;
use crate::participants::recovery;
use crate::primitive::Ordering;
use crate::sys::descriptor::{File, Kept};
use crate::sys::memory::{self, CommitError};
use crate::sys::{file_lock, process};

/// Why no pool was made. Nothing is left of the attempt.
///
/// ```
/// use shmkit::{CreateError, Pool};
///
/// match Pool::builder().initial_size(8 << 20).max_size(4 << 20).create() {
///     Err(CreateError::InvalidSize { initial, max }) => assert!(initial > max),
///     other => panic!("{other:?}"),
/// }
/// let refused = Pool::builder().create_named("");
/// assert!(matches!(refused, Err(CreateError::InvalidName { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The name is empty, longer than 200 bytes, or not one that a file can have; or it has a slash
    /// and is not an absolute path.
    #[error("a pool cannot have the name {name:?}")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// There is already a pool, or another file, of that name.
    #[error("the name is taken: {path}")]
    NameTaken {
        /// The file that has it.
        path: String,
    },
    /// The requested base address is not one that a pool can have.
    #[error(
        "a pool cannot be based at {base:#x}: bases are multiples of 1 TiB from 0x200000000000 to 0x4f0000000000"
    )]
    InvalidBase {
        /// The address.
        base: usize,
    },
    /// No address range was free: the requested one is taken, or, if none was requested, all that a
    /// pool can have are.
    #[error("no address range is free for the pool{}", .base.map_or(format!(": a process can have {GRANULES} mapped"), |b| format!(" at {b:#x}")))]
    AddressTaken {
        /// The requested address, if there was one.
        base: Option<usize>,
    },
    /// A size is zero, the initial size is above the maximum, or the maximum is above 984 GiB.
    #[error(
        "a pool of {initial} bytes that can grow to {max} cannot be made: it begins with 1 byte at least and with no more than it can grow to, which is 984 GiB at most"
    )]
    InvalidSize {
        /// The requested initial size.
        initial: usize,
        /// The requested maximum.
        max: usize,
    },
    /// There must be room for 1 to 4095 participants.
    #[error("a pool cannot have {count} participants: there is room for 1 to 4095")]
    InvalidParticipants {
        /// The requested number.
        count: usize,
    },
    /// No memory for the initial size.
    #[error(transparent)]
    NoMemory(#[from] CommitError),
    /// The system refused.
    #[error("the pool could not be made")]
    System(#[from] std::io::Error),
}

impl From<rustix::io::Errno> for CreateError {
    fn from(errno: rustix::io::Errno) -> Self {
        CreateError::System(errno.into())
    }
}

/// How a pool is to be made; from [`Pool::builder`].
///
/// ```
/// use shmkit::Pool;
///
/// let pool = Pool::builder()
///     .initial_size(2 << 20)
///     .max_size(64 << 20)
///     .max_participants(100)
///     .create()?;
/// let stats = pool.stats();
/// assert_eq!((stats.total, stats.maximum), (2 << 20, 64 << 20));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PoolBuilder {
    initial: Option<usize>,
    max: usize,
    base: Option<usize>,
    prefault: bool,
    huge_pages: bool,
    dumpable: bool,
    guard: bool,
    participants: usize,
    hidden: bool,
}

impl Default for PoolBuilder {
    fn default() -> Self {
        PoolBuilder {
            initial: None,
            max: DATA.max * SLICE,
            base: None,
            prefault: false,
            huge_pages: false,
            dumpable: false,
            guard: false,
            participants: 1023,
            hidden: false,
        }
    }
}

impl PoolBuilder {
    /// Bytes of data that the pool has from the start: by default 1 MiB, or the maximum if that is
    /// less. Rounded up to 16 KiB.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().initial_size(8 << 20).create()?;
    /// assert_eq!(pool.stats().total, 8 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn initial_size(mut self, bytes: usize) -> Self {
        self.initial = Some(bytes);
        self
    }

    /// What [`initial_size`](Self::initial_size) has been told, or the default.
    fn initial(&self) -> usize {
        self.initial
            .unwrap_or(self.max.min(1 << 20) / SLICE * SLICE)
    }

    /// Bytes of data that the pool can grow to: by default 984 GiB, the most there can be. This is
    /// address space; memory is taken as the pool grows. Rounded down to 16 KiB.
    ///
    /// ```
    /// # use shmkit::{GrowError, Pool};
    /// let small = Pool::builder().max_size(4 << 20).create()?;
    /// assert_eq!(small.grow_to(8 << 20), Err(GrowError::AboveMaximum { max: 4 << 20 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.max = bytes;
        self
    }

    /// The address at which every process maps the pool; chosen at random by default.
    ///
    /// ```
    /// # use shmkit::{CreateError, Pool};
    /// let pool = Pool::builder().base(0x3000_0000_0000).create()?;
    /// assert_eq!(pool.base(), 0x3000_0000_0000);
    /// let taken = Pool::builder().base(0x3000_0000_0000).create();
    /// assert!(matches!(taken, Err(CreateError::AddressTaken { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn base(mut self, address: usize) -> Self {
        self.base = Some(address);
        self
    }

    /// Maps every page of the initial size now, so that its first use is not slower.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().initial_size(8 << 20).prefault(true).create()?;
    /// # let _ = pool;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn prefault(mut self, yes: bool) -> Self {
        self.prefault = yes;
        self
    }

    /// Asks for huge pages. If the kernel refuses them, the pool has ordinary pages; see
    /// [`Pool::huge_pages`].
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().huge_pages(true).create()?;
    /// // What this kernel does.
    /// let policy = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    /// let policy = std::fs::read_to_string(policy).unwrap_or("[never]".into());
    /// let refuses = policy.contains("[never]") || policy.contains("[deny]");
    /// assert_eq!(pool.huge_pages(), !refuses);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn huge_pages(mut self, yes: bool) -> Self {
        self.huge_pages = yes;
        self
    }

    /// Includes the pool in core dumps. By default it is left out: writing a big pool to a file
    /// delays the moment at which others learn of a death by seconds.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().core_dumps(true).create()?;
    /// // Of a mapping that is left out, the kernel says `dd`.
    /// let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    /// let (_, mapping) = smaps.split_once(&format!("{:x}-", pool.base())).unwrap();
    /// let flags = mapping.lines().find(|line| line.starts_with("VmFlags")).unwrap();
    /// assert!(!flags.contains(" dd"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn core_dumps(mut self, yes: bool) -> Self {
        self.dumpable = yes;
        self
    }

    /// Guards the blocks: what is written past a block's end, or into a block that was freed, is
    /// found. This is for finding such errors in a program that uses blocks directly.
    ///
    /// - A free of a block that was written past its end is refused with [`FreeError::Overrun`];
    ///   the block stays allocated. So is a request for its size, if the damage reaches what
    ///   records that.
    /// - A freed block that was written to is set aside when its turn to be allocated comes.
    /// - [`Pool::check_quiescent`] names each such block, and where it was written to.
    ///
    /// A block takes 24 bytes more, is filled when it is freed, and is checked byte by byte when it
    /// is allocated: everything is several times slower. Pools that are not guarded pay nothing.
    /// [`Pool::usable_size`] is what was asked for, and [`Pool::reallocate`] always moves the
    /// block. Not found: reads, writes to blocks larger than 32 KiB after they were freed, and
    /// writes that put there the very bytes that the guard has put there.
    ///
    /// [`FreeError::Overrun`]: crate::FreeError::Overrun
    ///
    /// ```
    /// use std::alloc::Layout;
    /// use shmkit::{FreeError, Pool};
    ///
    /// let pool = Pool::builder().guard(true).create()?;
    /// let block = pool.allocate(Layout::new::<[u8; 100]>())?.cast::<u8>();
    /// // SAFETY: it is not: the block has 100 bytes.
    /// unsafe { block.add(100).write(1) };
    /// assert_eq!(unsafe { pool.deallocate(block) }, Err(FreeError::Overrun));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn guard(mut self, yes: bool) -> Self {
        self.guard = yes;
        self
    }

    /// How many threads of all processes can use the pool at once, and how many processes: 1023 by
    /// default, 4095 at most. Each takes 16 KiB once it uses the pool.
    ///
    /// ```
    /// # use shmkit::{LockError, Mutex, Pool};
    /// let pool = Pool::builder().max_participants(1).create()?;
    /// let number = pool.create(Mutex::new(0_u8))?;
    /// std::thread::scope(|s| {
    ///     s.spawn(|| assert!(matches!(number.lock(), Err(LockError::NoSlot(_)))));
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn max_participants(mut self, count: usize) -> Self {
        self.participants = count;
        self
    }

    /// Makes a pool that the user of this process never finds: the code that made it may unmap it.
    pub(crate) fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// Makes a pool without a name, for this process and those that it forks or passes
    /// [`Pool::fd`] to.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    ///
    /// # Crash behaviour
    ///
    /// Whatever exists of the pool goes with the process.
    ///
    /// ```
    /// let pool = shmkit::Pool::builder().max_size(64 << 20).create()?;
    /// let answer = pool.create(42_u64)?;
    /// assert_eq!(*answer, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(&self) -> Result<Pool, CreateError> {
        let pool = self.make(memory::memfd(c"shmkit")?)?;
        self.show(pool);
        self.told(pool, "without a name");
        Ok(pool)
    }

    /// Makes a pool that unrelated processes can [open](Pool::open) by name until it is
    /// [unlinked](Pool::unlink). A plain name stands for `/dev/shm/shmkit.NAME`; one that starts
    /// with a slash is the path of the file to be. It should be in a tmpfs: to a disk, the kernel writes
    /// what has changed in the pool again and again, which makes nothing durable.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    ///
    /// # Crash behaviour
    ///
    /// The pool has its name and is whole, or nothing of it exists.
    ///
    /// ```
    /// # use shmkit::{CreateError, Pool};
    /// # let name = format!("create-named-{}", std::process::id());
    /// let pool = Pool::builder().create_named(&name)?;
    /// pool.set_name("answer", &pool.create(42_u32)?)?;
    /// assert!(matches!(Pool::builder().create_named(&name), Err(CreateError::NameTaken { .. })));
    /// Pool::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_named(&self, name: &str) -> Result<Pool, CreateError> {
        self.create_named_with(name, |_| Ok::<(), CreateError>(()))
            .map(|(pool, ())| pool)
    }

    /// The same, with something in the pool before anybody can find it. Whatever `fill` has of the
    /// pool, besides what it returns, must be gone when it returns.
    pub(crate) fn create_named_with<T, E: From<CreateError>>(
        &self,
        name: &str,
        fill: impl FnOnce(Pool) -> Result<T, E>,
    ) -> Result<(Pool, T), E> {
        let name =
            PoolName::parse(name).ok_or_else(|| CreateError::InvalidName { name: name.into() })?;
        let fd = name.new_file().map_err(CreateError::from)?;
        // Every process shares the lock for life; a process that removes leftovers must get it
        // exclusively. Nobody else can have a file that has no name yet.
        file_lock::share(&fd).map_err(CreateError::from)?;
        let pool = self.make(fd)?;
        let filled = fill(pool).and_then(|filled| {
            self.publish(pool, &name)?;
            Ok(filled)
        });
        match filled {
            Ok(filled) => {
                self.told(pool, &name.shown());
                Ok((pool, filled))
            }
            Err(error) => {
                // SAFETY: the pool was not shown, and what `fill` returned is dropped.
                unsafe { pool.unmap() };
                Err(error)
            }
        }
    }

    /// Gives the pool its name, and shows it.
    fn publish(&self, pool: Pool, name: &PoolName) -> Result<(), CreateError> {
        let from = format!("/proc/self/fd/{}", pool.fd().as_raw_fd());
        // Another thread that opens the pool by this name gets it only once it is shown.
        let attaching = handles::lock();
        match rustix::fs::linkat(CWD, from, CWD, name.path(), AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => self.show(pool),
            Err(rustix::io::Errno::EXIST) => {
                let path = name.shown();
                return Err(CreateError::NameTaken { path });
            }
            Err(other) => return Err(other.into()),
        }
        drop(attaching);
        Ok(())
    }

    /// From here on, nothing unmaps the pool except its user, or the code that hid it.
    fn show(&self, pool: Pool) {
        if !self.hidden {
            local::of(pool.0).show();
        }
    }

    /// Logs the creation: nobody else has the pool yet, and nothing is locked.
    fn told(&self, pool: Pool, name: &str) {
        let (base, initial, max) = (pool.0.base(), self.initial(), self.max);
        tell(
            || log::debug!(target: super::LOG, "made a pool {name} at {base:#x}: {initial} bytes, at most {max}"),
        );
    }

    fn make(&self, fd: OwnedFd) -> Result<Pool, CreateError> {
        let (initial, max) = (self.initial().div_ceil(SLICE), self.max / SLICE);
        if initial == 0 || initial > max || self.max > DATA.max * SLICE {
            return Err(CreateError::InvalidSize {
                initial: self.initial(),
                max: self.max,
            });
        }
        if !(1..SLOTS.max).contains(&self.participants) {
            return Err(CreateError::InvalidParticipants {
                count: self.participants,
            });
        }
        fork::install();
        let pid_namespace = attach::pid_namespace()?;
        let len = arena::mapped_len(max);
        let random = random_words()?;
        let file = File::of(&fd)?;
        memory::commit(fd.as_fd(), 0, HEADER_SIZE as u64)?;
        let arena = self.map(&fd, len, random[2])?;
        let uuid = [random[0], random[1]];
        local::of(arena).set_mapped(Kept::of(fd, file), len, uuid);
        let pool = Pool(arena);
        let identity = Identity {
            magic: MAGIC,
            version: VERSION,
            layout: super::layout_fingerprint(),
            base: arena.base() as u64,
            max_slices: max as u64,
            max_slots: self.participants as u64 + 1,
            uuid,
            pid_namespace,
            time_namespace: process::time_namespace().unwrap_or(0),
            creator: process::pid().into(),
            created: unix_seconds(),
            options: if self.dumpable { DUMPABLE } else { 0 }
                | if self.huge_pages { HUGE_PAGES } else { 0 }
                | if self.guard { GUARDED } else { 0 },
        };
        if let Err(error) = self.fill(arena, identity, initial) {
            // SAFETY: the pool was not shown.
            unsafe { pool.unmap() };
            return Err(error);
        }
        Ok(pool)
    }

    /// Gives a mapped, empty file its content; the magic number is stored last.
    fn fill(&self, arena: Arena, identity: Identity, initial: usize) -> Result<(), CreateError> {
        let header = arena.header();
        header
            .max_slices
            .store(identity.max_slices, Ordering::Relaxed);
        header.options.store(identity.options, Ordering::Relaxed);
        header.epoch.store(1, Ordering::Relaxed);
        apply_options(arena, identity.options);
        copied::note(arena, Pool(arena).fd());
        recovery::begin_confirming(arena);
        grow::grow_by(arena, 0, initial)?;
        if self.prefault {
            let start = arena.base() + DATA.offset;
            memory::advise(start, initial * SLICE, Advice::LinuxPopulateWrite)?;
        }
        identity.publish(header);
        Ok(())
    }

    fn map(&self, fd: &OwnedFd, len: usize, random: u64) -> Result<Arena, CreateError> {
        let fd = fd.as_fd();
        if let Some(base) = self.base {
            if !is_base(base) {
                return Err(CreateError::InvalidBase { base });
            }
            return map(fd, base, len)?.ok_or(CreateError::AddressTaken { base: Some(base) });
        }
        for granule in arena::granules_in_turn(self.hidden, random as usize) {
            if let Some(arena) = map(fd, (FIRST_GRANULE + granule) * GRANULE, len)? {
                return Ok(arena);
            }
        }
        Err(CreateError::AddressTaken { base: None })
    }
}

/// True if a pool can be based at the address.
pub(super) fn is_base(base: usize) -> bool {
    base.is_multiple_of(GRANULE)
        && (FIRST_GRANULE..FIRST_GRANULE + GRANULES).contains(&(base / GRANULE))
}

/// Maps a pool's file; `None` if something is mapped there already.
pub(super) fn map(fd: BorrowedFd<'_>, base: usize, len: usize) -> std::io::Result<Option<Arena>> {
    match memory::map_at(fd, base, len) {
        Ok(()) => Ok(Some(Arena::at(base))),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(e),
    }
}

/// Applies the options that each process applies to its own mapping.
pub(super) fn apply_options(arena: Arena, options: u64) {
    let (start, len) = (arena.base(), local::of(arena).len());
    if options & DUMPABLE == 0 {
        // If it is refused, dumps are larger, and nothing else.
        let _ = memory::advise(start, len, Advice::LinuxDontDump);
    }
    if options & HUGE_PAGES != 0 {
        // If it is refused: see `Pool::huge_pages`.
        let _ = memory::advise(
            start + DATA.offset,
            len - DATA.offset,
            Advice::LinuxHugepage,
        );
    }
}

fn random_words() -> std::io::Result<[u64; 3]> {
    let mut bytes = [0u8; 24];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    debug_assert_eq!(got, bytes.len());
    Ok(bytemuck::cast(bytes))
}

fn unix_seconds() -> u64 {
    std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// If the name is taken, the pool is unmapped; another thread that had found it would then be
    /// in it.
    #[test]
    fn nobody_finds_a_pool_that_is_being_made() {
        let name = format!("test-{}-being-made", std::process::id());
        let last = Cell::new(None);
        let make = |builder: &PoolBuilder| {
            builder.create_named_with(&name, |pool| {
                assert_eq!(Pool::containing(pool.base()), None);
                let object = pool.create(7_u32).unwrap();
                assert_eq!(*object.handle().open_hidden().unwrap(), 7);
                assert!(object.handle().open().is_err());
                last.set(Some((pool.base(), object.handle())));
                Ok::<_, CreateError>(object)
            })
        };
        let (pool, object) = make(&PoolBuilder::default()).unwrap();
        let taken = make(&PoolBuilder::default());
        assert!(matches!(taken, Err(CreateError::NameTaken { .. })));
        let (base, handle) = last.get().unwrap();
        assert_eq!(Pool::containing(base), None);
        assert!(handle.open_hidden().is_err());
        // A pool that is shown, and then one that never is.
        assert_eq!(Pool::containing(pool.base()), Some(pool));
        assert_eq!(*object.handle().open().unwrap(), 7);
        Pool::unlink(&name).unwrap();
        let (hidden, object) = make(&PoolBuilder::default().hidden()).unwrap();
        assert_eq!(Pool::containing(hidden.base()), None);
        assert!(object.handle().open().is_err());
        Pool::unlink(&name).unwrap();
    }

    #[test]
    fn hidden_pools_have_places_of_their_own() {
        let hidden = PoolBuilder::default().hidden().create().unwrap();
        let place = hidden.base() / GRANULE - FIRST_GRANULE;
        assert!(
            arena::granules_in_turn(false, 0)
                .skip(40)
                .any(|last| last == place)
        );
        // SAFETY: nothing was made in it, and nobody else has it.
        unsafe { hidden.unmap() };
    }
}
