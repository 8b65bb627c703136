//! One child: the fork, its life up to `_exit`, and its end as the parent sees it.
//!
//! # The child's side
//!
//! The child gets a copy of everything its parent owns, and must not act as a second owner: it runs
//! no destructors except those of what the closure itself made, and no `atexit` handlers, and
//! flushes no byte that was buffered before the fork. So the parent flushes first, the child leaves
//! by `_exit`, and a guard aborts it if anything tries to unwind into the frames in which it was
//! forked.
//!
//! A process that the closure forks by other means has in turn a copy of all that. If it returns
//! from the closure, it ends ([`end_copy_of`]): the result is for the child to write, which may
//! have written it already, and the child's place may be another's by then.
//!
//! Where there may be other threads, the locks of standard output and error are taken across the
//! fork, so that they belong to the forking thread in both processes, and no other thread leaves
//! them locked in the child.
//!
//! # The parent's side
//!
//! A child is known by its pid, which is reliable until it is reaped, and it is reaped only here. A
//! program that ignores SIGCHLD, or waits for children that it did not start, takes that from us:
//! the status is then lost (the result is not), and if the program also starts a whole cycle of
//! pids meanwhile (32768 at least), a number may name another of its own children.
//!
//! # Crash behaviour
//!
//! A parent that dies between any two steps takes the child with it: the kernel sends SIGKILL. A
//! child whose parent died before it could ask for that signal notices this and exits.

use std::any::Any;
use std::io::{self, StdoutLock, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;

use super::frame::{self, Frame, FrameKind};
use super::master::LOG;
use super::{JoinError, ResultError, SpawnError};
use crate::participants::thread;
use crate::pool::fork::{self, Refused};
use crate::pool::tell;
use crate::sys::descriptor::Kept;
use crate::sys::process::{self, Ended, ForkResult};

/// Exit code after a panic: the one that Rust programs use.
pub(super) const EXIT_PANIC: i32 = 101;
/// Exit code of a child that could write no frame at all (`EX_IOERR`).
pub(super) const EXIT_UNWRITTEN: i32 = 74;

/// Whether a process that has other threads may fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherThreads {
    Refused,
    Allowed,
}

/// What may have run in this thread since its last fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    Anything,
    /// Only the master's own code: nothing is buffered, and children will be in the same namespaces
    /// as the last one. Checking the former would have pages copied after each fork; the latter
    /// means asking `/proc`.
    OwnCode,
}

/// A child that was started and not yet reaped.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: u32,
    result: Kept,
}

/// Forks a child that runs `body`, which is given the file into which it writes the frame, and the
/// child's pid.
///
/// # Safety
///
/// With [`OtherThreads::Allowed`], `body` must be sound in a process forked from one with other
/// threads.
pub(super) unsafe fn start(
    threads: OtherThreads,
    body: &mut dyn FnMut(&Kept, u32) -> Result<(), Errno>,
) -> Result<Child, SpawnError> {
    let result = frame::create().map_err(SpawnError::ResultFile)?;
    let mut whole = || {
        let own = process::pid();
        let (written, code) = match catch_unwind(AssertUnwindSafe(|| body(&result, own))) {
            Ok(written) => (written, 0),
            Err(payload) => {
                end_copy_of(own, EXIT_PANIC);
                let written = result
                    .get()
                    .and_then(|file| frame::replace(file, FrameKind::Panic, message_of(&*payload)));
                // The payload's destructor might panic again, and nobody needs the payload.
                std::mem::forget(payload);
                (written, EXIT_PANIC)
            }
        };
        if written.is_ok() {
            code
        } else {
            EXIT_UNWRITTEN
        }
    };
    // SAFETY: only writing the frame is added to `body`, for which the caller vouches.
    let pid = unsafe { begin(threads, Ran::Anything, |whole| whole(), &mut whole) }?;
    Ok(Child { pid, result })
}

/// Forks a child that runs `body` with `given`, and exits with the code that `body` returns.
/// Returns the child's pid.
///
/// # Safety
///
/// As for [`start`].
#[unsafe(link_section = ".shmkit.child")]
pub(super) unsafe fn begin<T>(
    threads: OtherThreads,
    ran: Ran,
    body: fn(&mut T) -> i32,
    given: &mut T,
) -> Result<u32, SpawnError> {
    if threads == OtherThreads::Refused {
        let tasks = process::tasks_that_stay().map_err(SpawnError::Tasks)?;
        if tasks != 1 {
            return Err(SpawnError::MultiThreaded { tasks });
        }
    }
    let count = thread::guards_held();
    if count != 0 {
        return Err(SpawnError::GuardsHeld { count });
    }
    // Locked before it is flushed, so that nothing is written in between.
    let other_threads = threads == OtherThreads::Allowed;
    let locks = other_threads.then(|| (io::stdout().lock(), io::stderr().lock()));
    if ran == Ran::Anything {
        flushed(io::stdout().flush())?;
        flushed(process::flush_c_stdio())?;
    }
    fork::before_fork(ran == Ran::OwnCode, !other_threads).map_err(|refused| match refused {
        Refused::NoRecord => SpawnError::NoProcessRecord,
        Refused::OtherTimes => SpawnError::OtherTimeNamespace,
    })?;
    let parent = process::pid();
    // SAFETY: either this is the only thread (counted above, and nothing since has started one),
    // or the caller vouches for `body`; around it the child uses what glibc and the locks taken
    // above keep usable. The child's arm diverges, and aborts where it would unwind.
    match unsafe { process::fork() } {
        Ok(ForkResult::Parent { child }) => {
            fork::forked(child);
            Ok(child)
        }
        Ok(ForkResult::Child) => {
            let abort = AbortOnUnwind;
            if let Some(locks) = locks {
                drop(locks);
            }
            live(parent, body, given, &abort)
        }
        Err(error) => {
            fork::fork_failed();
            Err(SpawnError::Fork(error))
        }
    }
}

/// What cannot be flushed stays in the buffer, and a copy of it goes into the child, where it would
/// be flushed again. If nobody reads the output any more, this has no consequence.
fn flushed(result: io::Result<()>) -> Result<(), SpawnError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        result => result.map_err(SpawnError::Flush),
    }
}

/// Stands in the first frame that belongs to the child alone.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// The whole life of a child.
#[unsafe(link_section = ".shmkit.child")]
fn live<T>(parent: u32, body: fn(&mut T) -> i32, given: &mut T, _abort: &AbortOnUnwind) -> ! {
    if !process::die_with_parent(parent) {
        process::exit_now(EXIT_UNWRITTEN);
    }
    let code = body(given);
    match process::task_count() {
        Ok(1) => {
            flush_all(io::stdout().lock());
        }
        _ => flush_beside_threads(),
    }
    fork::child_ending();
    process::exit_now(code)
}

/// Ends this process if it is not the one with pid `own` but one that that process has forked, and
/// that has returned from what only that process is to run. It flushes nothing, since what is
/// buffered may be a copy.
#[unsafe(link_section = ".shmkit.child")]
pub(super) fn end_copy_of(own: u32, code: i32) {
    if process::pid() != own {
        fork::child_ending();
        process::exit_now(code);
    }
}

/// Errors are ignored: nobody is left who could be told of output that cannot be written.
fn flush_all(mut out: StdoutLock<'_>) {
    std::mem::forget(out.flush());
    std::mem::forget(process::flush_c_stdio());
}

/// Other threads end with the process, and may have the output locked for ever: they are not waited
/// for for long. A reader of the output is waited for.
#[cold]
fn flush_beside_threads() {
    const PATIENCE: Duration = Duration::from_millis(100);
    let (tell, told) = mpsc::channel();
    let flush = move || {
        let out = io::stdout().lock();
        let _ = tell.send(());
        flush_all(out);
    };
    let flusher = std::thread::Builder::new().spawn(flush);
    if let Ok(flusher) = flusher
        && told.recv_timeout(PATIENCE).is_ok()
    {
        let _ = flusher.join();
    }
}

/// The message of a panic.
pub(super) fn message_of(payload: &(dyn Any + Send)) -> &str {
    if let Some(message) = payload.downcast_ref::<&'static str>() {
        message
    } else if let Some(message) = payload.downcast_ref::<String>() {
        message
    } else {
        "(the panic carried no message)"
    }
}

impl Child {
    /// Waits for the child to end, reaps it, and reports what became of it. `decode` is given the
    /// bytes of the value.
    pub(super) fn finish<T>(
        self,
        decode: impl FnOnce(&[u8]) -> Result<T, ResultError>,
    ) -> Result<T, JoinError> {
        let ended = process::wait(self.pid);
        self.reaped(ended, |frame| {
            frame.payload(decode).map_err(ResultError::Read).flatten()
        })
    }

    /// As [`finish`](Self::finish), for a result that nobody asks for.
    pub(super) fn finish_unread(self) -> Result<(), JoinError> {
        let ended = process::wait(self.pid);
        self.reaped(ended, |_| Ok(()))
    }

    /// As [`finish_unread`](Self::finish_unread), if the child has ended; otherwise gives it back.
    pub(super) fn try_finish_unread(self) -> Result<Result<(), JoinError>, Child> {
        match process::try_wait(self.pid) {
            Some(ended) => Ok(self.reaped(ended, |_| Ok(()))),
            None => Err(self),
        }
    }

    fn reaped<T>(
        self,
        ended: Ended,
        value: impl FnOnce(&Frame<'_>) -> Result<T, ResultError>,
    ) -> Result<T, JoinError> {
        fork::child_reaped(self.pid);
        tell(|| log::debug!(target: LOG, "process {} has ended: {ended:?}", self.pid));
        // Whatever it wrote, a child that was killed did not come to an orderly end.
        if let Ended::Signaled(signal) = ended {
            return Err(JoinError::Signaled(signal));
        }
        let frame = self
            .result
            .get()
            .map_err(io::Error::from)
            .and_then(Frame::load);
        let frame = frame.map_err(ResultError::Read)?;
        let Some(frame) = frame else {
            return Err(match ended {
                Ended::Exited(code) => JoinError::Exited(code),
                Ended::Signaled(_) | Ended::Unknown => ResultError::Lost.into(),
            });
        };
        if frame.kind() == FrameKind::Value {
            return Ok(value(&frame)?);
        }
        let message = frame.message().map_err(ResultError::Read)?;
        Err(match frame.kind() {
            FrameKind::Value | FrameKind::EncodeFailed => ResultError::Encode(message).into(),
            FrameKind::Panic => JoinError::Panicked(message),
            FrameKind::WriteFailed => ResultError::Write(write_error(&message)).into(),
        })
    }
}

fn write_error(digits: &str) -> io::Error {
    digits
        .parse()
        .map_or(io::ErrorKind::Other.into(), io::Error::from_raw_os_error)
}
