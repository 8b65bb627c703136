//! The memory behind a pool: a memfd or a file of a tmpfs, mapped whole at one fixed address.
//!
//! The mapping reaches far past the end of the file. Memory exists once it is *committed*
//! (`fallocate`), which fails with an error where touching the memory would end in SIGBUS. No
//! single call covers more than 4 MiB: `fallocate` holds the inode's lock, and all others that
//! commit would wait for a long call.
//!
//! Private memory is reserved without access (so that neither core dumps nor a strict overcommit
//! policy count a terabyte of it), and committed by giving access to it.
//!
//! `mlockall` counts all of either as locked. Without `MCL_ONFAULT` it also fills what a file's
//! length covers, including holes between the tables and holes that were punched, and private
//! memory as it is committed; and locked private memory is not given back.
//!
//! Nothing here touches the heap, which may be what is being grown.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::Resource;
use serde::{Deserialize, Serialize};

use super::{descriptor, file_size, limits, process};

/// The most that one `fallocate` covers, in bytes.
const STEP: u64 = 4 << 20;

/// Why memory could not be committed. The pool is unchanged.
///
/// ```
/// use shmkit::{CommitError, GrowError, Pool};
///
/// let pool = Pool::builder().create()?;
/// match pool.grow_to(900 << 30) {
///     Err(GrowError::NoMemory(CommitError::MemoryLimit { available })) => {
///         assert!(available < 900 << 30);
///     }
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CommitError {
    /// The file system that holds the pool, or the memory behind it, is full.
    #[error("the memory behind the pool is full")]
    Full,
    /// Less memory is available than the step needs (of the machine, or of the control group).
    #[error("only {available} bytes of memory are available")]
    MemoryLimit {
        /// Bytes that may still be used: the kernel's own estimate, less 1 MiB that is left to the
        /// kernel itself and to the memory outside of pools.
        available: u64,
    },
    /// Another system error, by number; `EFBIG` if the file would become longer than this process
    /// may make a file (`RLIMIT_FSIZE`), `EBADF` if the program has closed the pool's descriptor.
    #[error("the system refused memory: {}", refusal(*.0))]
    System(i32),
}

impl From<Errno> for CommitError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOSPC | Errno::NOMEM | Errno::DQUOT => CommitError::Full,
            other => CommitError::System(other.raw_os_error()),
        }
    }
}

fn refusal(errno: i32) -> String {
    let why = io::Error::from_raw_os_error(errno);
    match Errno::from_raw_os_error(errno) {
        Errno::FBIG => format!("{why}: see RLIMIT_FSIZE, `ulimit -f`"),
        Errno::BADF => format!("{why}: the program has closed the pool's descriptor"),
        _ => why.to_string(),
    }
}

/// An empty memfd that cannot be shrunk.
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let fd = fd.map_err(|errno| match errno {
        // A filter of system calls.
        Errno::PERM | Errno::ACCESS | Errno::NOSYS => {
            let error = io::Error::from(errno);
            let why = format!("a file in memory cannot be made (memfd_create): {error}");
            io::Error::new(error.kind(), why)
        }
        other => other.into(),
    })?;
    let fd = descriptor::to_keep(fd)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK)?;
    Ok(fd)
}

/// Copies what a file holds into an empty one; holes stay holes.
pub(crate) fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::fs::SeekFrom;
    let len = rustix::fs::fstat(from)?.st_size.max(0) as u64;
    file_size::check_length(to, len)?;
    file_size::check_write(len)?;
    rustix::fs::ftruncate(to, len)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(other) => return Err(other.into()),
        };
        // Without what the file has grown by meanwhile.
        let end = rustix::fs::seek(from, SeekFrom::Hole(at))?.min(len);
        while at < end {
            let room = buffer.len().min((end - at) as usize);
            let read = rustix::io::pread(from, &mut buffer[..room], at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let written = rustix::io::pwrite(to, rest, at)?;
                rest = &rest[written..];
                at += written as u64;
            }
        }
    }
    Ok(())
}

/// Maps `len` bytes of the file at exactly `address`; `AddrInUse` if anything is mapped there.
pub(crate) fn map_at(fd: BorrowedFd<'_>, address: usize, len: usize) -> io::Result<()> {
    map_as(fd, address, len, ProtFlags::READ | ProtFlags::WRITE)
}

/// As [`map_at`], in place of what is mapped there. If it fails, that mapping is still there, or
/// another one for reading; if the kernel has removed it and provides none, the process aborts,
/// since others look there.
///
/// # Safety
///
/// What is mapped there is the same file, or a copy of it, of that length.
pub(crate) unsafe fn map_over(fd: BorrowedFd<'_>, address: usize, len: usize) -> io::Result<()> {
    // SAFETY: by the caller's promise, what was there before is there afterwards.
    let mapped = unsafe {
        rustix::mm::mmap(
            std::ptr::with_exposed_provenance_mut(address),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE,
            fd,
            0,
        )
    };
    if mapped.is_err() {
        match map_to_read_at(fd, address, len) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => std::process::abort(),
            _ => {}
        }
    }
    Ok(mapped.map(drop)?)
}

/// As [`map_at`], for reading only; the file may be open only for reading.
pub(crate) fn map_to_read_at(fd: BorrowedFd<'_>, address: usize, len: usize) -> io::Result<()> {
    map_as(fd, address, len, ProtFlags::READ)
}

fn map_as(fd: BorrowedFd<'_>, address: usize, len: usize, access: ProtFlags) -> io::Result<()> {
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping, so nothing that exists is changed.
    let got = unsafe {
        rustix::mm::mmap(
            std::ptr::with_exposed_provenance_mut(address),
            len,
            access,
            MapFlags::SHARED | MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE,
            fd,
            0,
        )
    };
    match limits::of(Resource::As) {
        Some(limit) if got == Err(Errno::NOMEM) => {
            let why = format!(
                "a pool takes {len} bytes of address space, and this process may have {limit} in \
                 all (RLIMIT_AS, `ulimit -v`)"
            );
            Err(io::Error::new(io::ErrorKind::OutOfMemory, why))
        }
        _ => placed(got, address, len),
    }
}

fn placed(
    got: rustix::io::Result<*mut std::ffi::c_void>,
    address: usize,
    len: usize,
) -> io::Result<()> {
    let got = got.map_err(|e| match e {
        Errno::EXIST => io::ErrorKind::AddrInUse.into(),
        other => io::Error::from(other),
    })?;
    if got.addr() != address {
        // A kernel before 4.17 takes the flag as a hint.
        // SAFETY: this is the mapping made just now; nobody has seen it.
        unsafe { rustix::mm::munmap(got, len)? };
        return Err(io::ErrorKind::AddrInUse.into());
    }
    Ok(())
}

/// Reserves `len` bytes of private address space at exactly `address`, without access; `AddrInUse`
/// if anything is mapped there.
pub(crate) fn reserve_at(address: usize, len: usize) -> io::Result<()> {
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping, so nothing that exists is changed.
    let got = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::with_exposed_provenance_mut(address),
            len,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE,
        )
    };
    placed(got, address, len)
}

/// Whether the kernel places mappings for which no address is requested in the range; true also if
/// it places none.
pub(crate) fn places_mappings_in(range: Range<usize>) -> bool {
    const LEN: usize = 4096;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, without access.
    let placed =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), LEN, ProtFlags::empty(), flags) };
    let Ok(at) = placed else {
        return true;
    };
    // SAFETY: nobody knows of the mapping.
    let _ = unsafe { rustix::mm::munmap(at, LEN) };
    range.contains(&at.addr())
}

/// Removes a mapping.
///
/// # Safety
///
/// Nothing refers to the range any more.
pub(crate) unsafe fn unmap(address: usize, len: usize) -> io::Result<()> {
    // SAFETY: by the caller's promise.
    unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(address), len) }
        .map_err(Into::into)
}

/// Gives the kernel advice about a range: to leave it out of core dumps, to back it with huge
/// pages, or to map its pages now.
pub(crate) fn advise(address: usize, len: usize, advice: Advice) -> io::Result<()> {
    // SAFETY: the advice values used by the pool (DONTDUMP, HUGEPAGE, POPULATE_WRITE) change no
    // content.
    unsafe { rustix::mm::madvise(std::ptr::with_exposed_provenance_mut(address), len, advice) }
        .map_err(Into::into)
}

/// A private page for a process's own tables that reads as zero in a forked child.
pub(crate) fn wipe_on_fork_page() -> io::Result<*mut u8> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice; its content is zeroed
    // in a child, which is the purpose of the advice.
    unsafe {
        let page = rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            4096,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )?;
        rustix::mm::madvise(page, 4096, Advice::LinuxWipeOnFork)?;
        Ok(page.cast())
    }
}

/// Unmaps a page from [`wipe_on_fork_page`] that nobody uses any more.
pub(crate) fn drop_page(page: *mut u8) {
    // SAFETY: a separate page, which the caller gives up.
    let _ = unsafe { rustix::mm::munmap(page.cast(), 4096) };
}

fn steps(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len.div_ceil(STEP)).map(move |i| (offset + i * STEP, STEP.min(len - i * STEP)))
}

fn fallocate(
    fd: BorrowedFd<'_>,
    flags: FallocateFlags,
    offset: u64,
    len: u64,
) -> Result<(), CommitError> {
    for (offset, len) in steps(offset, len) {
        retry_on_intr(|| rustix::fs::fallocate(fd, flags, offset, len))?;
    }
    Ok(())
}

/// Commits a range of the file: it can then be touched without SIGBUS. Existing content stays.
#[cold]
pub(crate) fn commit(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), CommitError> {
    #[cfg(feature = "testing")]
    if super::refusal::COMMITS.refuses() {
        return Err(CommitError::Full);
    }
    file_size::check_length(fd, offset + len)?;
    fallocate(fd, FallocateFlags::empty(), offset, len)
}

/// Gives a range of the file back to the kernel. It must be committed again before use.
#[cold]
pub(crate) fn punch(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), CommitError> {
    fallocate(
        fd,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        offset,
        len,
    )
}

/// The size of a page. Allocates nothing, as [`clock`](super::clock).
pub(crate) fn page_size() -> usize {
    // SAFETY: the call only tells a number, which every system has.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Commits a range of reserved private memory. Existing content stays.
#[cold]
pub(crate) fn commit_private(address: usize, len: usize) -> Result<(), CommitError> {
    let page = page_size();
    let start = address / page * page;
    let len = (address + len).next_multiple_of(page) - start;
    // SAFETY: the range is a pool's own; access to it is only added.
    let done = unsafe {
        rustix::mm::mprotect(
            std::ptr::with_exposed_provenance_mut(start),
            len,
            MprotectFlags::READ | MprotectFlags::WRITE,
        )
    };
    done.map_err(CommitError::from)
}

/// Gives a range of committed private memory back to the kernel. It reads as zero afterwards, and
/// need not be committed again.
#[cold]
pub(crate) fn discard(address: usize, len: usize) -> Result<(), CommitError> {
    // SAFETY: the range is of slices that the caller has claimed: nobody needs their content.
    let done = unsafe {
        let start = std::ptr::with_exposed_provenance_mut(address);
        rustix::mm::madvise(start, len, Advice::LinuxDontNeed)
    };
    done.map_err(CommitError::from)
}

/// Bytes of the available memory that are left to the kernel and to the program. Whoever touches
/// what was committed needs page tables, and private memory of its own grows too; a control group
/// counts both.
const LEFT_ALONE: u64 = 1 << 20;

/// Checks, as well as can be known, that `bytes` more bytes of memory are available: by the
/// machine's estimate and by the control group's limit. A `fallocate` past either would not fail
/// but invoke the out-of-memory killer.
#[cold]
pub(crate) fn check_limit(bytes: u64) -> Result<(), CommitError> {
    let available = machine_available()
        .unwrap_or(u64::MAX)
        .min(group_available().unwrap_or(u64::MAX))
        .saturating_sub(LEFT_ALONE);
    if bytes > available {
        Err(CommitError::MemoryLimit { available })
    } else {
        Ok(())
    }
}

/// How many bytes of memory a file has.
pub(crate) fn used_by(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_blocks.max(0) as u64 * 512)
}

/// Checks that the file system has that much room left, if its size is limited. A single step is
/// granted whole, or the kernel refuses it and takes nothing; it may also lie where memory has been
/// committed already. So it is not checked.
#[cold]
pub(crate) fn check_room(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), CommitError> {
    if bytes <= STEP {
        return Ok(());
    }
    match rustix::fs::fstatfs(fd) {
        Ok(system) if system.f_blocks != 0 => {
            let room = system.f_bavail.saturating_mul(system.f_bsize as u64);
            if bytes > room {
                Err(CommitError::Full)
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    }
}

/// As [`check_limit`], for the small amounts that come and go all the time: checks only once this
/// process has asked for a certain amount since the last check.
#[cold]
pub(crate) fn check_limit_now_and_then(bytes: u64) -> Result<(), CommitError> {
    const SO_MUCH: u64 = 4 << 20;
    // Relaxed: a count.
    static UNCHECKED: AtomicU64 = AtomicU64::new(0);
    let unchecked = UNCHECKED
        .fetch_add(bytes, Ordering::Relaxed)
        .saturating_add(bytes);
    if unchecked < SO_MUCH {
        return Ok(());
    }
    // A refusal leaves the count as it is: the next call checks too.
    check_limit(bytes.max(SO_MUCH))?;
    UNCHECKED.store(0, Ordering::Relaxed);
    Ok(())
}

fn read_small<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a str> {
    let len = process::read_file(CWD, path, buffer).ok()?;
    std::str::from_utf8(&buffer[..len]).ok()
}

fn machine_available() -> Option<u64> {
    let mut buffer = [0; 4096];
    let line = read_small(c"/proc/meminfo", &mut buffer)?
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// What remains under the tightest memory limit on the path to the root of the control groups.
fn group_available() -> Option<u64> {
    let mut buffer = [0; 4096];
    let groups = read_small(c"/proc/self/cgroup", &mut buffer)?.lines();
    let available = groups.filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => GroupFiles::V2.available(group),
            _ if controllers.split(',').any(|one| one == "memory") => {
                GroupFiles::V1.available(group)
            }
            _ => None,
        }
    });
    available.min()
}

/// What control groups report about memory, by the version of their interface. (Linux's
/// Documentation/admin-guide/cgroup-v2, and cgroup-v1/memory.)
struct GroupFiles {
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`: the part of the usage that the kernel reclaims before it refuses any
    /// memory.
    cached: [&'static str; 2],
}

/// Means no limit in version 1: all pages that can be counted. In version 2, no limit is not a
/// number.
const NO_LIMIT: u64 = i64::MAX as u64 / 65536 * 65536;

impl GroupFiles {
    const V1: GroupFiles = GroupFiles {
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        cached: ["total_inactive_file ", "total_active_file "],
    };
    const V2: GroupFiles = GroupFiles {
        root: "/sys/fs/cgroup",
        limit: "memory.max",
        used: "memory.current",
        cached: ["inactive_file ", "active_file "],
    };

    fn available(&self, group: &str) -> Option<u64> {
        let mut group = group.trim_end_matches('/');
        let mut least = None;
        loop {
            // If there is no limit, the usage need not be read: that takes longest.
            let limit = self.number(group, self.limit);
            if let Some(limit) = limit.filter(|&limit| limit < NO_LIMIT) {
                let used = self.number(group, self.used)?;
                let left = limit.saturating_sub(used.saturating_sub(self.cached(group)));
                least = Some(least.map_or(left, |least: u64| least.min(left)));
            }
            match group.rfind('/') {
                Some(at) => group = &group[..at],
                None => return least,
            }
        }
    }

    fn cached(&self, group: &str) -> u64 {
        let sum = |text: &str| {
            let line = |name| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok())
            };
            self.cached.into_iter().filter_map(line).sum()
        };
        self.read(group, "memory.stat", sum).unwrap_or(0)
    }

    fn number(&self, group: &str, file: &str) -> Option<u64> {
        self.read(group, file, |text| text.trim().parse().ok())?
    }

    fn read<R>(&self, group: &str, file: &str, parse: impl FnOnce(&str) -> R) -> Option<R> {
        let mut buffer = [0; 4096];
        let path = format_args!("{}{group}/{file}", self.root);
        process::with_path(path, |path| read_small(path, &mut buffer).map(parse))?
    }
}
