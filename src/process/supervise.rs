//! Supervision: how a worker ended, and whether it is started again.
//!
//! The policy and the number of restarts lie in the job's place, so they cost the master no memory
//! of its own. The wait before a restart is a time at which the master's timer fires: the master
//! never sleeps on a worker's behalf.

use std::time::Duration;

use super::jobs::{Job, PayloadKind};
use super::{JoinError, ResultError, WorkerId};
use crate::primitive::Ordering;
use crate::sys::process::Ended;

/// Whether a worker is started again when it has ended; see [`StartOptions`](super::StartOptions).
/// If a restart is refused, by the system or because there are as many workers as there may be, it
/// is tried again. If by then the master has other threads, holds guards, or forks into another time
/// namespace than that of a pool, the worker ends with [`JoinError::NotStarted`].
///
/// ```
/// use shmkit::process::{Backoff, Config, Entry, StartOptions, Restart, Worker, run};
/// use std::time::Duration;
///
/// static FLAKY: Entry<(), u32> = Entry::new("flaky", |worker, ()| match worker.restarts() {
///     0 => std::process::abort(),
///     restarts => restarts,
/// });
/// static FIRST: Entry<(), u32> = Entry::new("first", |worker, ()| {
///     let again = Restart::OnCrash(Backoff::new(Duration::from_millis(1)));
///     let options = StartOptions::new().restart(again);
///     worker.start_with(options, &FLAKY, &()).unwrap().join().unwrap()
/// });
///
/// assert_eq!(run(&Config::new(), &FIRST, ())?, 1);
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
///
/// The next process does not use the managed [resources](super::Resources) that the ended process
/// got itself; it does use those that the worker inherited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// It is not started again.
    #[default]
    Never,
    /// After a panic, an exit or a signal. Joining the worker waits until it returns, or was started as
    /// often as it may be. A worker that was ended by [`JoinHandle::kill`](super::JoinHandle::kill)
    /// stays ended, and so does one whose argument could not be deserialised, or whose result could
    /// not be serialised or written.
    OnCrash(Backoff),
    /// Also when it has returned; the value is dropped.
    Always(Backoff),
}

/// How long to wait before a restart: twice as long each time.
///
/// ```
/// use shmkit::process::Backoff;
/// use std::time::Duration;
///
/// let backoff = Backoff::new(Duration::from_millis(10)).at_most(Duration::from_secs(1)).times(5);
/// assert_ne!(backoff, Backoff::default());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: u32,
    most: u32,
    times: u32,
}

/// The most milliseconds, and times, for which there is room.
const ROOM: u32 = (1 << 20) - 1;

/// Rounded up: only a time of zero gives zero.
fn milliseconds(time: Duration) -> u32 {
    let whole = time.as_nanos().div_ceil(1_000_000);
    u32::try_from(whole).unwrap_or(ROOM).min(ROOM)
}

impl Backoff {
    /// Waits that start with `first`, at most 17 minutes, and end at 60 times that; any number of
    /// restarts.
    ///
    /// ```
    /// use shmkit::process::Backoff;
    /// use std::time::Duration;
    /// let backoff = Backoff::new(Duration::from_millis(100));
    /// assert_eq!(backoff, Backoff::default());
    /// ```
    #[must_use]
    pub fn new(first: Duration) -> Self {
        let first = milliseconds(first);
        Backoff {
            first,
            most: first.saturating_mul(60).min(ROOM),
            times: ROOM,
        }
    }

    /// The longest wait, at most 17 minutes.
    ///
    /// ```
    /// use shmkit::process::Backoff;
    /// use std::time::Duration;
    /// let backoff = Backoff::default().at_most(Duration::from_secs(1));
    /// ```
    #[must_use]
    pub fn at_most(mut self, most: Duration) -> Self {
        self.most = milliseconds(most);
        self
    }

    /// How often a worker is started again; after that, its end is final. About a million at most,
    /// which stands for "for ever".
    ///
    /// ```
    /// use shmkit::process::Backoff;
    /// let thrice = Backoff::default().times(3);
    /// ```
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times.min(ROOM);
        self
    }

    fn wait(self, restarts: u32) -> Option<Duration> {
        if self.times != ROOM && restarts >= self.times {
            return None;
        }
        Some(self.delay(restarts))
    }

    fn delay(self, restarts: u32) -> Duration {
        let doubled = u64::from(self.first) << restarts.min(32);
        Duration::from_millis(doubled.min(self.most.into()))
    }

    fn pack(self) -> u64 {
        u64::from(self.first) << 2 | u64::from(self.most) << 22 | u64::from(self.times) << 42
    }

    fn unpack(word: u64) -> Self {
        let part = |shift: u32| (word >> shift) as u32 & ROOM;
        Backoff {
            first: part(2),
            most: part(22),
            times: part(42),
        }
    }
}

impl Default for Backoff {
    /// 100 ms, doubled up to 6 s.
    fn default() -> Self {
        Backoff::new(Duration::from_millis(100))
    }
}

impl Restart {
    pub(super) fn pack(self) -> u64 {
        match self {
            Restart::Never => 0,
            Restart::OnCrash(backoff) => 1 | backoff.pack(),
            Restart::Always(backoff) => 2 | backoff.pack(),
        }
    }

    fn unpack(word: u64) -> Self {
        match word & 3 {
            1 => Restart::OnCrash(Backoff::unpack(word)),
            2 => Restart::Always(Backoff::unpack(word)),
            _ => Restart::Never,
        }
    }
}

/// Whether another process might fare better: an argument that cannot be read and a result that
/// cannot be written stay so.
fn is_crash(cause: JoinError) -> bool {
    use JoinError::{Exited, NoResult, Panicked, Signaled};
    matches!(
        cause,
        Panicked(_) | Exited(_) | Signaled(_) | NoResult(ResultError::Lost)
    )
}

/// The time until the job, whose process has ended, is started again; `None` if it is not.
pub(super) fn wait_before_restart(job: &Job, outcome: u32) -> Option<Duration> {
    let backoff = match Restart::unpack(job.policy.load(Ordering::Relaxed)) {
        Restart::OnCrash(backoff) if returned(job, outcome).is_err_and(is_crash) => backoff,
        Restart::Always(backoff) => backoff,
        _ => return None,
    };
    backoff.wait(job.restarts.load(Ordering::Relaxed))
}

/// The time until a restart that was refused is tried again: the same as before the restart itself.
pub(super) fn wait_before_retry(job: &Job) -> Duration {
    match Restart::unpack(job.policy.load(Ordering::Relaxed)) {
        Restart::OnCrash(backoff) | Restart::Always(backoff) => {
            let restarts = job.restarts.load(Ordering::Relaxed);
            backoff.delay(restarts.saturating_sub(1))
        }
        Restart::Never => Duration::ZERO,
    }
}

/// The end of a worker; passed to the hook of [`Config::on_end`](super::Config::on_end).
///
/// ```
/// use shmkit::process::{Config, Entry, run};
/// use std::{cell::Cell, rc::Rc};
///
/// static FIRST: Entry<(), ()> = Entry::new("first", |_, ()| ());
/// let ends = Rc::new(Cell::new(0));
/// let seen = Rc::clone(&ends);
/// let config = Config::new().on_end(move |end| {
///     assert!(end.cause.is_ok() && end.restart_in.is_none());
///     seen.set(end.worker.number());
/// });
/// run(&config, &FIRST, ())?;
/// assert_eq!(ends.get(), 1);
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct WorkerEnd {
    /// Which worker.
    pub worker: WorkerId,
    /// Why it ended, or that it returned.
    pub cause: Result<(), JoinError>,
    /// In what time it is started again, if it is.
    pub restart_in: Option<Duration>,
}

/// There was no process.
pub(super) const NOT_STARTED: u32 = 0x400;

/// How a process ended, in a word that is not 0.
pub(super) fn pack(ended: Ended) -> u32 {
    match ended {
        Ended::Exited(code) => 0x100 | code.unsigned_abs() & 0xff,
        Ended::Signaled(signal) => 0x200 | signal.unsigned_abs() & 0xff,
        Ended::Unknown => 0x300,
    }
}

/// Whether an ended job has a value, and why it has none.
pub(super) fn returned(job: &Job, outcome: u32) -> Result<(), JoinError> {
    let low = (outcome & 0xff).cast_signed();
    // Whatever it wrote, a process that was killed did not come to an orderly end.
    if outcome >> 8 == 2 {
        return Err(JoinError::Signaled(low));
    }
    let kind = job.result.kind();
    let message = || {
        job.result
            .read(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    Err(match kind {
        PayloadKind::Value => return Ok(()),
        PayloadKind::None if outcome >> 8 == 1 => JoinError::Exited(low),
        // The latter is only used for resources.
        PayloadKind::None | PayloadKind::NameTaken => ResultError::Lost.into(),
        PayloadKind::Panic => JoinError::Panicked(message()),
        PayloadKind::EncodeFailed => ResultError::Encode(message()).into(),
        PayloadKind::WriteFailed => ResultError::Write(std::io::Error::other(message())).into(),
        PayloadKind::BadArgument => JoinError::BadArgument(message()),
        PayloadKind::NotStarted => JoinError::NotStarted(message()),
        PayloadKind::OtherTypes => JoinError::OtherTypes(message()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    /// It was killed on its way from there to its end.
    #[test]
    fn who_was_killed_has_returned_nothing() {
        let pool = Pool::builder().create().unwrap();
        // SAFETY: it consists of atomics and links, of which zeros are valid.
        let job = unsafe { Box::<Job>::new_zeroed().assume_init() };
        job.result.store(pool, PayloadKind::Value, &[7]).unwrap();
        assert!(returned(&job, pack(Ended::Exited(0))).is_ok());
        let killed = returned(&job, pack(Ended::Signaled(9)));
        assert!(matches!(killed, Err(JoinError::Signaled(9))));
    }

    #[test]
    fn a_short_wait_is_one() {
        let backoff = Backoff::new(Duration::from_nanos(1)).at_most(Duration::from_secs(1));
        let waits = [0, 1, 2, 20].map(|restarts| backoff.delay(restarts).as_millis());
        assert_eq!(waits, [1, 2, 4, 1000]);
        assert_eq!(Backoff::new(Duration::ZERO).delay(5), Duration::ZERO);
    }
}
