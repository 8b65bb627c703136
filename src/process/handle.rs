//! [`JoinHandle`]: a started worker, as the holder of its handle sees it.
//!
//! A handle is a name (the control block's descriptor, a place, an id) and owns nothing. So serde
//! can copy it into another worker, and a handle that is lost costs a place in the table until the
//! run ends. Ids are never used again, so an old handle finds a place with another id, and returns
//! [`JoinError::AlreadyJoined`].

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::jobs::{Control, DETACHED, Job, KILL, Untaken};
use super::part;
use super::{JoinError, KillError, ResultError, Wire, WorkerId};
use super::{encode, supervise};
use crate::containers::{Handle, HandleError, Shared};
use crate::participants::deadline::Deadline;
use crate::primitive::Ordering;

/// A worker that was started by [`Worker::start`](super::Worker::start).
///
/// It is a name that serde can copy: an argument or a result may contain it. Any worker of the run
/// may join the started worker, and exactly one of them can. Dropping the handle changes nothing: a
/// worker that nobody joins or [detaches](Self::detach) is kept until the run ends.
///
/// ```
/// use shmkit::process::{Config, Entry, JoinError, JoinHandle, run};
///
/// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
/// // Joins a worker that it did not start.
/// static JOINER: Entry<JoinHandle<u8>, u8> = Entry::new("joiner", |_, one| one.join().unwrap());
/// static FIRST: Entry<(), u8> = Entry::new("first", |worker, ()| {
///     let one = worker.start(&ONE, &()).unwrap();
///     let joined = worker.start(&JOINER, &one).unwrap().join().unwrap();
///     assert!(matches!(one.join(), Err(JoinError::AlreadyJoined)));
///     joined
/// });
/// assert_eq!(run(&Config::new(), &FIRST, ())?, 1);
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
#[must_use = "a worker that is neither joined nor detached is kept until the run ends"]
pub struct JoinHandle<R> {
    control: Handle<Control>,
    place: u32,
    id: u64,
    #[serde(skip)]
    result: PhantomData<fn() -> R>,
}

impl<R: Wire> JoinHandle<R> {
    pub(super) fn new(control: &Shared<Control>, place: usize, id: u64) -> Self {
        JoinHandle {
            control: control.handle(),
            place: place as u32,
            id,
            result: PhantomData,
        }
    }

    /// The worker's number.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let one = worker.start(&ONE, &()).unwrap();
    ///     assert_eq!(one.id().number(), 2);
    ///     one.detach();
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> WorkerId {
        WorkerId(self.id)
    }

    fn job<'a>(&self, control: &'a Shared<Control>) -> Result<&'a Job, JoinError> {
        control
            .job(self.place as usize)
            // No job has the id 0, which is what a place without a job shows.
            .filter(|_| self.id != 0)
            .ok_or(JoinError::AlreadyJoined)
    }

    fn open(&self) -> Result<Shared<Control>, JoinError> {
        self.control.open_hidden().map_err(|_| JoinError::NoSuchRun)
    }

    /// Waits for the worker to end, and returns what its function returned.
    ///
    /// # Errors
    ///
    /// How the worker ended instead; [`JoinError::AlreadyJoined`] if somebody else has joined or
    /// detached it; [`JoinError::WouldDeadlock`] in the master, which must not wait for a worker,
    /// and in the worker itself; [`JoinError::NoSuchRun`] if the run is over, as a
    /// [peer](super::Peer) may see.
    ///
    /// # Crash behaviour
    ///
    /// A joiner that dies before it has the value leaves it to the next one. If the master dies,
    /// workers die with it, and peers that join are told.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     assert_eq!(worker.start(&ONE, &()).unwrap().join().unwrap(), 1);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn join(self) -> Result<R, JoinError> {
        let control = self.open()?;
        let me = part::me(control.pool());
        loop {
            // Asked first: a job that had ended before the run was over has its result.
            let over = control.is_orphaned();
            if let Some(joined) = self.poll(&control) {
                return joined;
            }
            if over {
                return Err(JoinError::NoSuchRun);
            }
            if me == 0 || me == self.id {
                return Err(JoinError::WouldDeadlock);
            }
            self.job(&control)?.wait(self.id, Deadline::NEVER);
        }
    }

    /// As [`join`](Self::join), if the worker has ended; otherwise gives the handle back.
    ///
    /// # Errors
    ///
    /// The handle: the worker has not ended, and the run is not over.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let mut one = worker.start(&ONE, &()).unwrap();
    ///     let result = loop {
    ///         match one.try_join() {
    ///             Ok(result) => break result,
    ///             Err(not_yet) => one = not_yet,
    ///         }
    ///     };
    ///     assert_eq!(result.unwrap(), 1);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn try_join(self) -> Result<Result<R, JoinError>, Self> {
        let control = match self.open() {
            Ok(control) => control,
            Err(error) => return Ok(Err(error)),
        };
        // Asked first, as in `join`.
        let over = control.is_orphaned();
        match self.poll(&control) {
            Some(joined) => Ok(joined),
            None if over => Ok(Err(JoinError::NoSuchRun)),
            None => Err(self),
        }
    }

    /// As [`try_join`](Self::try_join), with the handle's own control block: `None` if the worker
    /// has not ended.
    pub(super) fn poll(&self, control: &Shared<Control>) -> Option<Result<R, JoinError>> {
        let taken = self.taken(control, |job| {
            let outcome = job.outcome.load(Ordering::Relaxed);
            supervise::returned(job, outcome)?;
            job.result
                .read(|bytes| Ok(encode::decode(bytes).map_err(ResultError::Decode)?))
        });
        match taken {
            Ok(joined) => Some(joined),
            Err(Some(error)) => Some(Err(error)),
            Err(None) => None,
        }
    }

    /// Takes the ended job for the caller, runs `f` with it, and empties its place. The error is
    /// `None` if the job has not ended.
    fn taken<T>(
        &self,
        control: &Shared<Control>,
        f: impl FnOnce(&Job) -> T,
    ) -> Result<T, Option<JoinError>> {
        let tag = part::tag(control.pool()).map_err(|_| JoinError::NoSuchRun)?;
        let job = self.job(control)?;
        job.take(control.pool().0, self.id, tag)
            .map_err(|untaken| match untaken {
                Untaken::NotEnded => None,
                Untaken::Gone => Some(JoinError::AlreadyJoined),
            })?;
        let release = ReleaseOnDrop(job);
        let result = f(job);
        drop(release);
        Ok(result)
    }

    /// Whether the worker has ended for good, in whatever way, or the run is over: whether a join answers at once.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let one = worker.start(&ONE, &()).unwrap();
    ///     while !one.is_finished() {}
    ///     assert_eq!(one.join().unwrap(), 1);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let control = match self.control.open_hidden() {
            Ok(control) => control,
            // This thread cannot tell.
            Err(HandleError::NoSlot(_) | HandleError::NoMemory(_)) => return false,
            Err(_) => return true,
        };
        control.is_orphaned() || self.job(&control).map_or(true, |job| job.is_over(self.id))
    }

    /// Lets the worker run on; nobody will join it.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     worker.start(&ONE, &()).unwrap().detach();
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn detach(self) {
        let Ok(control) = self.open() else { return };
        let Ok(job) = self.job(&control) else { return };
        if !job.flag(self.id, DETACHED) {
            // It has ended, so its place must be emptied here; or the place is another job's by
            // now.
            let _ = self.taken(&control, |_| ());
        }
    }

    /// Asks the master to end the worker by SIGKILL. It is not started again, whatever its policy.
    ///
    /// # Errors
    ///
    /// [`KillError::Ended`] if it has ended, or is detached.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, JoinError, run};
    ///
    /// static HANGS: Entry<(), ()> = Entry::new("hangs", |_, ()| loop { std::thread::park() });
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let hangs = worker.start(&HANGS, &()).unwrap();
    ///     hangs.kill().unwrap();
    ///     assert!(matches!(hangs.join(), Err(JoinError::Signaled(9))));
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn kill(&self) -> Result<(), KillError> {
        let control = self.open().map_err(|_| KillError::Ended)?;
        let job = self.job(&control).map_err(|_| KillError::Ended)?;
        if !job.flag(self.id, KILL) {
            return Err(KillError::Ended);
        }
        part::wake_master(control.pool());
        Ok(())
    }

    /// Waits for the worker to end, no longer than `timeout`; returns whether it has ended for
    /// good. In the master this is of no use: nothing is dispatched meanwhile.
    ///
    /// # Errors
    ///
    /// [`JoinError::NoSuchRun`].
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static HANGS: Entry<(), ()> = Entry::new("hangs", |_, ()| loop { std::thread::park() });
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let hangs = worker.start(&HANGS, &()).unwrap();
    ///     assert!(!hangs.wait_timeout(std::time::Duration::from_millis(1)).unwrap());
    ///     hangs.kill().unwrap();
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, JoinError> {
        let control = self.open()?;
        let deadline = Deadline::after(timeout);
        loop {
            let over = control.is_orphaned();
            if self.job(&control)?.is_over(self.id) {
                return Ok(true);
            }
            if over {
                return Err(JoinError::NoSuchRun);
            }
            if deadline.is_over() {
                return Ok(false);
            }
            self.job(&control)?.wait(self.id, deadline);
        }
    }
}

/// Deserialising is user code, and may panic.
struct ReleaseOnDrop<'a>(&'a Job);

impl Drop for ReleaseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl<R> fmt::Debug for JoinHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
