//! Our own children: how they start, how they end, and how they are ended.
//!
//! What can be learned about the end of a process that is not our child is here, too.
//!
//! # Crash behaviour
//!
//! As in the module above: no state between calls.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitOptions};

use super::{proc_counts_as_we_do, to_pid};

/// Which side of a fork the caller is on.
#[derive(Debug)]
pub(crate) enum ForkResult {
    /// The process that called, which now has this child.
    Parent { child: u32 },
    /// The new process.
    Child,
}

/// Forks, running the `pthread_atfork` handlers.
///
/// # Safety
///
/// With other threads running, the child must confine itself to what is allowed after such a
/// fork: locks that those threads held stay locked in the child for ever. In the child, nothing
/// may return or unwind into the frames of the caller that belong only to the parent.
///
/// # Errors
///
/// That of `fork`, usually `EAGAIN` or `ENOMEM`. No process was made then.
pub(crate) unsafe fn fork() -> io::Result<ForkResult> {
    // SAFETY: `fork` takes no pointers; what it demands of the child is passed on to our caller.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(ForkResult::Child),
        child => Ok(ForkResult::Parent {
            child: child.unsigned_abs(),
        }),
    }
}

/// Arranges that SIGKILL follows the death of the thread that forked us. `false` if `parent` has
/// died before.
///
/// A parent in an outer pid namespace is seen as 0, before its death and after: then only the
/// signal counts.
pub(crate) fn die_with_parent(parent: u32) -> bool {
    let set = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let now = rustix::process::getppid().map(|pid| pid.as_raw_pid().unsigned_abs());
    set.is_ok() && now.is_none_or(|now| now == parent)
}

/// Whether that still holds: the kernel forgets it when a process changes its credentials.
pub(crate) fn dies_with_parent() -> bool {
    rustix::process::parent_process_death_signal().is_ok_and(|signal| signal.is_some())
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// It ended, but somebody else took its status: SIGCHLD is ignored, or other code in this
    /// process waited for it.
    Unknown,
}

/// How a process that is not our child has ended. The kernel knows this while the process is a
/// zombie, and, for a caller that has its pidfd, after it was reaped (Linux 6.15).
pub(crate) fn ended_elsewhere(pid: u32, pidfd: BorrowedFd<'_>) -> Ended {
    // The number is its own as long as the process was not reaped, which is checked afterwards.
    let status = zombie_status(pid).filter(|_| !was_reaped(pidfd));
    // A process that was not read as a zombie, or was reaped since, is queried here.
    let status = status.or_else(|| reaped_status(pidfd));
    status.map_or(Ended::Unknown, |status| match status & 0x7f {
        0 => Ended::Exited(status >> 8 & 0xff),
        signal => Ended::Signaled(signal),
    })
}

/// Whether the process of a pidfd was reaped, so that its number may be another's.
fn was_reaped(pidfd: BorrowedFd<'_>) -> bool {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: signal 0 is never sent, and no memory is passed.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, info, 0) };
    sent != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// The exit status in the 52nd field of `/proc/PID/stat`, which is valid only for a zombie.
fn zombie_status(pid: u32) -> Option<i32> {
    if !proc_counts_as_we_do() {
        return None;
    }
    // The command's name is cut off somewhere, and may be anything.
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    matches!(fields.next()?, "Z" | "X").then_some(())?;
    // The state was the third field.
    fields.nth(52 - 4)?.parse().ok()
}

fn reaped_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    /// `struct pidfd_info` in its first version.
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        status: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
    /// `PIDFD_GET_INFO`: `_IOWR(0xff, 11, struct pidfd_info)`.
    const GET_INFO: libc::Ioctl = (3 << 30 | 64 << 16 | 0xff << 8 | 11) as libc::Ioctl;
    /// `PIDFD_INFO_EXIT`.
    const EXIT: u64 = 1 << 3;
    let mut info = Info {
        mask: EXIT,
        cgroup: 0,
        ids: [0; 11],
        status: 0,
    };
    // SAFETY: the call fills in a structure of the size that is encoded in its number.
    let got = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    (got == 0 && info.mask & EXIT != 0).then_some(info.status)
}

/// Waits until the child `pid` has ended, and reaps it.
pub(crate) fn wait(pid: u32) -> Ended {
    wait_with(pid, WaitOptions::empty()).unwrap_or(Ended::Unknown)
}

/// Reaps the child `pid` if it has ended.
pub(crate) fn try_wait(pid: u32) -> Option<Ended> {
    wait_with(pid, WaitOptions::NOHANG)
}

fn wait_with(pid: u32, options: WaitOptions) -> Option<Ended> {
    let Some(child) = to_pid(pid) else {
        return Some(Ended::Unknown);
    };
    loop {
        match rustix::process::waitpid(Some(child), options) {
            Ok(None) => return None,
            Ok(Some((_, status))) => {
                if let Some(code) = status.exit_status() {
                    return Some(Ended::Exited(code));
                }
                if let Some(signal) = status.terminating_signal() {
                    return Some(Ended::Signaled(signal));
                }
                // Stopped or continued: reported only to a tracer, and not an end.
                if options.contains(WaitOptions::NOHANG) {
                    return None;
                }
            }
            Err(Errno::INTR) => {}
            // ECHILD: it is no longer a child of ours.
            Err(_) => return Some(Ended::Unknown),
        }
    }
}

/// Whether the child `pid` has ended; it is not reaped.
pub(crate) fn has_ended(pid: u32) -> bool {
    let Some(child) = to_pid(pid) else {
        return true;
    };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = retry_on_intr(|| rustix::process::waitid(WaitId::Pid(child), options));
    !matches!(ended, Ok(None))
}

/// Sends SIGKILL to the child `pid`.
///
/// # Errors
///
/// That of `kill`; `EPERM` for a child that changed its credentials.
pub(crate) fn kill(pid: u32) -> io::Result<()> {
    let child = to_pid(pid).ok_or(Errno::SRCH)?;
    Ok(rustix::process::kill_process(child, Signal::KILL)?)
}

/// Flushes every output stream of C's stdio.
///
/// # Errors
///
/// That of the first stream that could not be written.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn flush_c_stdio() -> io::Result<()> {
    loop {
        // SAFETY: a null stream stands for all open output streams; no memory is passed.
        if unsafe { libc::fflush(std::ptr::null_mut()) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Ends the process at once: no destructor, no `atexit` handler, no flush.
#[unsafe(link_section = ".shmkit.child")]
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}
