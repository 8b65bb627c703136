//! Processes and tasks: who they are, and whether they live. Starting, awaiting and ending *our
//! own* children is in `children`.
//!
//! This answers questions about *any* task, and is called by recovery code: it takes no lock, does
//! not panic, and reads `/proc` through buffers on the stack, so it touches no heap.
//!
//! # Evidence of death
//!
//! A false verdict "dead" makes two owners of one lock, and corruption; a false "alive" costs a
//! wait. So every answer that says dead rests on positive evidence, and whatever cannot be read
//! means alive:
//!
//! 1. `kill(tid, 0)` returning `ESRCH` is evidence, because the kernel looks the number up in our
//!    own pid namespace. A missing `/proc/<tid>` is not: `/proc` may be absent, mounted with
//!    `hidepid`, or belong to another pid namespace. So it is confirmed by `kill` each time.
//! 2. Numbers under `/proc` are believed only while `/proc/self` names our own pid, that is, while
//!    that `/proc` counts processes as we do. If it does not, a pidfd tells whether a process has
//!    ended.
//! 3. A task in state Z or X runs no more user code. A *process* whose leader is in that state may
//!    have living threads, so each of them is looked at too.
//! 4. Another start time behind the same number means that the number was used again, and so its
//!    former bearer is gone. Start times count clock ticks (10 ms) since boot, shifted by the
//!    reader's time namespace: callers compare only those read in the same one.
//!
//! # Crash behaviour
//!
//! Nothing here keeps state between calls, in the process or in shared memory: a caller killed at
//! any instruction leaves nothing behind but descriptors, which the kernel closes.

mod children;
pub(crate) mod start;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::fmt;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{CWD, Mode, OFlags, RawDir};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;

use super::watch;
pub(crate) use children::*;

/// `PF_EXITING` of the kernel's task flags (field 9 of `/proc/<tid>/stat`): set on the way into
/// `exit`, before a joiner is woken, and never cleared.
const PF_EXITING: u64 = 0x4;

/// The process id of the caller.
///
/// Not cached: a cache would have to notice every kind of fork.
pub(crate) fn pid() -> u32 {
    rustix::process::getpid().as_raw_pid().unsigned_abs()
}

/// The task id of the calling thread.
pub(crate) fn tid() -> u32 {
    rustix::thread::gettid().as_raw_pid().unsigned_abs()
}

/// What is known of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// It runs, sleeps or is stopped. `start` is its start time in clock ticks since boot.
    Alive { start: u64 },
    /// There is no such task, or it has ended and waits to be reaped.
    Dead,
    /// Nothing could be read; to be treated as alive.
    Unknown,
}

/// The state of the task `tid`, which may be any thread of any process of our pid namespace.
pub(crate) fn start_time(tid: u32) -> TaskState {
    let Some(task) = to_pid(tid) else {
        return TaskState::Unknown;
    };
    if no_such_task(task) {
        return TaskState::Dead;
    }
    if !proc_counts_as_we_do() {
        return TaskState::Unknown;
    }
    match read_stat(CWD, format_args!("/proc/{tid}/stat")) {
        Stat::Read(line) if line.ended() => TaskState::Dead,
        Stat::Read(line) => TaskState::Alive { start: line.start },
        Stat::Missing if no_such_task(task) => TaskState::Dead,
        Stat::Missing | Stat::Unreadable => TaskState::Unknown,
    }
}

/// The start time of this process, which is its first thread's; 0 if it cannot be read.
pub(crate) fn own_start() -> u64 {
    own_start_in(c"/proc/self/stat", pid())
}

/// The start time of the calling thread; 0 if it cannot be read.
pub(crate) fn own_thread_start() -> u64 {
    own_start_in(c"/proc/thread-self/stat", tid())
}

/// Every worker calls this, so it takes only three system calls. The number at the beginning of the
/// line is ours if that `/proc` counts processes as we do.
fn own_start_in(path: &CStr, id: u32) -> u64 {
    // Not zeroed, since that would be the child's first call of a function in another page.
    let mut text = [MaybeUninit::uninit(); 1024];
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let read = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .and_then(|file| Ok(rustix::io::read(&file, &mut text)?.0));
    let Ok(text) = read else { return 0 };
    let named = text.split(|&byte| byte == b' ').next().and_then(number);
    let line = StatLine::parse(text).filter(|_| named == Some(id.into()));
    line.map_or(0, |line| line.start)
}

/// Whether the process that had the id `pid` and the start time `start` has ended, all its
/// threads included. `false` where there is no positive evidence.
pub(crate) fn process_is_gone(pid: u32, start: u64) -> bool {
    let Some(leader) = to_pid(pid) else {
        return false;
    };
    if no_such_task(leader) {
        return true;
    }
    if !proc_counts_as_we_do() {
        return has_ended_unread(leader);
    }
    match read_stat(CWD, format_args!("/proc/{pid}/stat")) {
        // A start of 0 is unknown, and so is not evidence.
        Stat::Read(line) if start != 0 && line.start != start => true,
        Stat::Read(line) if !line.ended() => false,
        // The kernel counts the threads that are not yet released, the leader among them.
        Stat::Read(line) => line.threads <= 1 || all_threads(pid, StatLine::ended),
        // A process that is hidden from us is missing there, too.
        Stat::Missing | Stat::Unreadable => no_such_task(leader) || has_ended_unread(leader),
    }
}

/// Whether a task is a thread of this process. Leaves `errno` as it is.
pub(crate) fn is_thread_of_ours(tid: u32) -> bool {
    // SAFETY: signal 0 is never sent; `errno` is this thread's own.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let answer = libc::syscall(libc::SYS_tgkill, pid(), tid, 0);
        let missing = answer != 0 && *errno == libc::ESRCH;
        *errno = before;
        !missing
    }
}

/// Whether the process that had the id `pid` and the start time `start`, one of whose threads has
/// died, may have a thread that still runs user code. A process that was killed may have one while
/// some threads are on their way into `exit`; one that has moved on to another program (`exec`) has
/// one until it ends.
#[cold]
pub(crate) fn may_still_run(pid: u32, start: u64) -> bool {
    let Some(leader) = to_pid(pid) else {
        return false;
    };
    let is_there = || !no_such_task(leader) && !has_ended_unread(leader);
    if !proc_counts_as_we_do() {
        return is_there();
    }
    match read_stat(CWD, format_args!("/proc/{pid}/stat")) {
        // A start of 0 is unknown, and so is not evidence.
        Stat::Read(line) if start != 0 && line.start != start => false,
        Stat::Read(line) if line.threads <= 1 => !line.ending(),
        Stat::Read(_) => !all_threads(pid, StatLine::ending),
        Stat::Missing | Stat::Unreadable => is_there(),
    }
}

/// The pid namespace of the calling thread, as the inode number of its `/proc` entry.
///
/// # Errors
///
/// Whatever `stat` returns, for instance if `/proc` is not mounted.
pub(crate) fn pid_namespace() -> io::Result<u64> {
    Ok(rustix::fs::stat(c"/proc/thread-self/ns/pid")?.st_ino)
}

/// The time namespace of the calling thread; `None` if the kernel has none (before 5.6) or it
/// cannot be read.
pub(crate) fn time_namespace() -> Option<u64> {
    Some(rustix::fs::stat(c"/proc/thread-self/ns/time").ok()?.st_ino)
}

/// The time namespace in which children of the calling thread will be; as [`time_namespace`].
pub(crate) fn time_namespace_of_children() -> Option<u64> {
    let path = c"/proc/thread-self/ns/time_for_children";
    Some(rustix::fs::stat(path).ok()?.st_ino)
}

/// The number of tasks of this process that may still run user code.
///
/// A thread that was joined may linger in the kernel for some microseconds. It no longer counts
/// from the moment when it enters `exit`, which is before its joiner is woken.
///
/// # Errors
///
/// Whatever `/proc/self/task` returns.
pub(crate) fn task_count() -> io::Result<usize> {
    // Changes nothing: the kernel refuses it to a process that has other threads, and it costs a
    // tenth of a look into `/proc`. A sandbox may refuse it to all processes.
    let thread = UnshareFlags::from_bits_retain(libc::CLONE_THREAD as u32);
    // SAFETY: no file descriptors are unshared.
    if unsafe { rustix::thread::unshare_unsafe(thread) }.is_ok() {
        return Ok(1);
    }
    let path = c"/proc/self/task";
    // The directory has a link for each task besides the two that every directory has.
    if rustix::fs::stat(path)?.st_nlink == 3 {
        return Ok(1);
    }
    count_tasks(path)
}

/// As [`task_count`], but a thread that is about to end has a moment for it: who returns from
/// `std::thread::scope` has waited for its threads' functions, and not for the destructors of their thread-locals.
pub(crate) fn tasks_that_stay() -> io::Result<usize> {
    match task_count()? {
        1 => Ok(1),
        _ => count_again(),
    }
}

#[cold]
#[inline(never)]
fn count_again() -> io::Result<usize> {
    const PATIENCE: Duration = Duration::from_millis(50);
    let started = Instant::now();
    loop {
        let tasks = task_count()?;
        if tasks == 1 || started.elapsed() >= PATIENCE {
            return Ok(tasks);
        }
        // All that such a thread needs is the processor.
        std::thread::yield_now();
    }
}

/// The slow way, kept separate because its buffers would cost the fork a page of stack.
#[cold]
#[inline(never)]
fn count_tasks(path: &CStr) -> io::Result<usize> {
    let mut count = 0_usize;
    each_task(path, |dir, tid| {
        count += match read_stat(dir, format_args!("{tid}/stat")) {
            Stat::Read(line) => usize::from(!line.ending()),
            Stat::Missing => 0,
            Stat::Unreadable => 1,
        };
        true
    })?;
    Ok(count.max(1))
}

/// One line of `/proc/<tid>/stat`, as far as it is needed here.
#[derive(Debug, PartialEq, Eq)]
struct StatLine {
    state: u8,
    flags: u64,
    threads: u64,
    start: u64,
}

impl StatLine {
    /// Field 2, the command, is enclosed in parentheses, and may itself contain spaces and
    /// parentheses; nothing behind it does. So the fields are counted from the last closing
    /// parenthesis.
    fn parse(text: &[u8]) -> Option<StatLine> {
        /// The command ends before this: it has at most 63 bytes, each of which may be escaped.
        const COMMAND: usize = 160;
        let beginning = &text[..text.len().min(COMMAND)];
        let close = beginning.iter().rposition(|&byte| byte == b')')?;
        let rest = text.get(close + 1..)?.strip_prefix(b" ")?;
        let mut fields = rest.split(|&byte| byte == b' ');
        let state = *fields.next()?.first()?; // field 3
        let flags = number(fields.nth(5)?)?; // field 9
        let threads = number(fields.nth(10)?)?; // field 20
        let start = number(fields.nth(1)?)?; // field 22
        fields.next()?; // one more follows, so that the last number is not cut off
        Some(StatLine {
            state,
            flags,
            threads,
            start,
        })
    }

    fn ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it is on its way to the end, and past its last instruction of user code.
    fn ending(&self) -> bool {
        self.ended() || self.flags & PF_EXITING != 0
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.wrapping_sub(b'0');
        let number = number.checked_mul(10)?.checked_add(digit.into())?;
        (digit < 10).then_some(number)
    })
}

enum Stat {
    Read(StatLine),
    /// The kernel says that there is nothing of that name.
    Missing,
    /// Any other error, and text that is not as expected.
    Unreadable,
}

fn read_stat(dir: BorrowedFd<'_>, path: fmt::Arguments<'_>) -> Stat {
    // 22 fields of at most 20 digits and an escaped command of at most 256 bytes fit.
    let mut text = [0_u8; 1024];
    match with_path(path, |path| read_file(dir, path, &mut text)) {
        Some(Ok(len)) => StatLine::parse(&text[..len]).map_or(Stat::Unreadable, Stat::Read),
        Some(Err(Errno::NOENT | Errno::SRCH)) => Stat::Missing,
        Some(Err(_)) | None => Stat::Unreadable,
    }
}

pub(super) fn read_file(dir: BorrowedFd<'_>, path: &CStr, into: &mut [u8]) -> Result<usize, Errno> {
    let file = rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut len = 0;
    while len < into.len() {
        match retry_on_intr(|| rustix::io::read(&file, &mut into[len..]))? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

/// Calls `f` with the formatted path, built on the stack; `None` if it is too long.
pub(super) fn with_path<R>(path: fmt::Arguments<'_>, f: impl FnOnce(&CStr) -> R) -> Option<R> {
    let mut bytes = [0_u8; 512];
    let (text, _terminator) = bytes.split_at_mut(511);
    (&mut *text).write_fmt(path).ok()?;
    CStr::from_bytes_until_nul(&bytes).ok().map(f)
}

fn to_pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

fn no_such_task(task: Pid) -> bool {
    rustix::process::test_kill_process(task) == Err(Errno::SRCH)
}

/// Whether a process that was not reaped has ended, with all its threads. For a caller that cannot
/// read about it: its `/proc` counts differently, or shows nothing of other users' processes. If
/// another process has the number by now, and has ended, the answer is right for the former one,
/// too.
fn has_ended_unread(process: Pid) -> bool {
    child_has_ended(process) || shows_its_end(process)
}

/// The same for a child of ours. Takes no descriptor, so it also works when there are none. Leaves
/// the child to the code that waits for it.
fn child_has_ended(child: Pid) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(
        rustix::process::waitid(WaitId::Pid(child), look),
        Ok(Some(_))
    )
}

/// The same for any process: the kernel reports a pidfd as readable once no thread is left.
fn shows_its_end(process: Pid) -> bool {
    let Ok(pidfd) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else {
        return false;
    };
    !watch::wait_for(pidfd.as_fd(), PollFlags::IN, Duration::ZERO).is_empty()
}

/// Whether `/proc` belongs to our pid namespace: its `self` then names our own pid.
pub(crate) fn proc_counts_as_we_do() -> bool {
    let mut target = [MaybeUninit::<u8>::uninit(); 16];
    match rustix::fs::readlinkat_raw(CWD, c"/proc/self", &mut target) {
        Ok((name, _rest)) => number(name) == Some(u64::from(pid())),
        Err(_) => false,
    }
}

/// Calls `visit` with each task in a `task` directory until it returns `false`.
fn each_task(path: &CStr, mut visit: impl FnMut(BorrowedFd<'_>, u32) -> bool) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let mut entries = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(&dir, &mut entries);
    while let Some(entry) = entries.next() {
        let id = number(entry?.file_name().to_bytes()).and_then(|id| u32::try_from(id).ok());
        // Anything that is not a number is "." or "..".
        if id.is_some_and(|id| !visit(dir.as_fd(), id)) {
            break;
        }
    }
    Ok(())
}

/// The tasks that one reading of a `task` directory named, reduced to what distinguishes two sets.
#[derive(Default, PartialEq, Eq)]
struct Listing {
    count: u64,
    sum: u64,
    squares: u64,
}

impl Listing {
    fn add(&mut self, tid: u32) {
        let tid = u64::from(tid);
        self.count += 1;
        self.sum = self.sum.wrapping_add(tid);
        self.squares = self.squares.wrapping_add(tid.wrapping_mul(tid));
    }
}

/// Whether every thread of a process has ended, or is about to, as `is_over` says of one thread.
///
/// A living thread could start another one after the directory was read, and then end before it is
/// looked at. So the directory is read again: if it names the same tasks as before, and the kernel
/// counts no more than these, then all existing tasks had ended before the second reading began,
/// and tasks that have ended start none.
fn all_threads(pid: u32, is_over: impl Fn(&StatLine) -> bool) -> bool {
    let (mut first, mut second) = (Listing::default(), Listing::default());
    let mut all = true;
    let listed = with_path(format_args!("/proc/{pid}/task"), |path| {
        each_task(path, |dir, tid| {
            first.add(tid);
            all = matches!(
                read_stat(dir, format_args!("{tid}/stat")),
                Stat::Read(line) if is_over(&line)
            );
            all
        })?;
        each_task(path, |_, tid| {
            second.add(tid);
            all
        })
    });
    matches!(listed, Some(Ok(())))
        && all
        && first == second
        && matches!(
            read_stat(CWD, format_args!("/proc/{pid}/stat")),
            Stat::Read(line) if line.threads <= first.count
        )
}
