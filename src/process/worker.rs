//! [`Worker`]: a process of a run, as its own function sees it; and how it starts others.
//!
//! A start is a request in the job table, and one write that wakes the master. It does not wait for
//! the fork: if that fails, the join reports it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use super::child::{self, EXIT_PANIC, EXIT_UNWRITTEN};
use super::encode::Encoded;
use super::entry::Defined;
use super::jobs::{Control, INLINE, Job, PayloadKind};
use super::part;
use super::{Entry, JoinHandle, Resources, StartOptions, Wire, WorkerId, entry};
use crate::containers::Shared;
use crate::participants::deadline::Deadline;
use crate::participants::thread::NoSlot;
use crate::pool::{ObjectError, Pool};
use crate::primitive::Ordering;
use crate::sys::process;

/// A master that dies wakes no peer. Peers look for it this often.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Whether a run is coming to its end, or has come to it.
pub(super) fn is_ending(control: &Shared<Control>) -> bool {
    control.is_stopping() || control.is_orphaned()
}

/// Why no worker was requested. Nothing has changed.
///
/// ```
/// use shmkit::process::{Config, Entry, StartError, run};
///
/// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
/// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
///     match worker.start(&ONE, &()) {
///         Ok(one) => assert_eq!(one.join().unwrap(), 1),
///         Err(StartError::Stopping) => {}
///         Err(error) => panic!("{error}"),
///     }
/// });
/// run(&Config::new(), &FIRST, ())?;
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The argument's `Serialize` failed; the text says why.
    #[error("the argument could not be serialised: {0}")]
    Encode(String),
    /// No memory for the argument.
    #[error("the argument could not be written")]
    NoMemory(#[from] ObjectError),
    /// There are 4096 workers that run, or have ended and are neither joined nor detached.
    #[error("there are too many workers that run or are still to be joined")]
    TooMany,
    /// The run is coming to its end.
    #[error("the run is coming to its end")]
    Stopping,
    /// The run has as many threads as it can have.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    /// The program has closed the descriptor through which this process wakes the master.
    #[error("the master cannot be woken: the descriptor for that was closed")]
    Unreachable,
    /// The process is not a master: it was forked from one by other means, and has a copy.
    #[error("this process has but a copy of the master")]
    Forked,
}

/// What an entry point is given of the run to which it belongs.
///
/// ```
/// use shmkit::process::{Config, Entry, run};
///
/// static TWICE: Entry<u32, u32> = Entry::new("twice", |_, n| 2 * n);
/// static FIRST: Entry<(), u32> = Entry::new("first", |worker, ()| {
///     let handle = worker.start(&TWICE, &21).unwrap();
///     assert_eq!((worker.id().number(), handle.id().number()), (1, 2));
///     handle.join().unwrap()
/// });
/// assert_eq!(run(&Config::new(), &FIRST, ())?, 42);
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
pub struct Worker {
    control: Shared<Control>,
    id: u64,
    restarts: u32,
    place: usize,
    /// Its process, which may have children that have a copy of this.
    pid: u32,
    /// Made when they are asked for: most workers use none.
    resources: OnceLock<Resources>,
    /// The master is another program: entries are known by their names.
    by_name: bool,
}

impl Worker {
    /// This process, which has the job at a place.
    pub(super) fn new(control: Shared<Control>, place: usize, id: u64, by_name: bool) -> Worker {
        let job = control.job(place);
        let restarts = job.map_or(0, |job| job.restarts.load(Ordering::Relaxed));
        Worker {
            control,
            id,
            restarts,
            place,
            pid: process::pid(),
            resources: OnceLock::new(),
            by_name,
        }
    }

    /// This worker's number.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     assert_eq!(worker.id().number(), 1);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> WorkerId {
        WorkerId(self.id)
    }

    /// How often this worker was started again; see [`Restart`](super::Restart).
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     assert_eq!(worker.restarts(), 0);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Starts a worker: the master forks a process that calls the entry's function. It inherits
    /// what the *master* had when the run began, including its pools, and nothing from the caller.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. If the fork fails, the join reports it.
    ///
    /// # Crash behaviour
    ///
    /// The worker is started or it is not. It is a child of the master, and lives on if the caller
    /// dies.
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
    pub fn start<A: Wire, R: Wire>(
        &self,
        entry: &'static Entry<A, R>,
        argument: &A,
    ) -> Result<JoinHandle<R>, StartError> {
        self.start_with(StartOptions::new(), entry, argument)
    }

    /// As [`start`](Self::start), with options.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    ///
    /// ```
    /// use shmkit::process::{Backoff, Config, Entry, Restart, StartOptions, run};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let options = StartOptions::new().restart(Restart::OnCrash(Backoff::default()));
    ///     let one = worker.start_with(options, &ONE, &()).unwrap();
    ///     assert_eq!(one.join().unwrap(), 1);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn start_with<A: Wire, R: Wire>(
        &self,
        options: StartOptions<'_>,
        entry: &'static Entry<A, R>,
        argument: &A,
    ) -> Result<JoinHandle<R>, StartError> {
        let by_name = self.by_name;
        request(
            &self.control,
            Some(self.place),
            options,
            entry,
            argument,
            by_name,
        )
    }

    /// The managed resources of the run.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let resources = worker.resources();
    ///     assert!(format!("{resources:?}").starts_with("Resources"));
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn resources(&self) -> &Resources {
        self.resources
            .get_or_init(|| Resources::new(self.control.clone(), self.place, self.pid))
    }

    /// The job is done, and the process goes on: its place may soon be another job's.
    pub(super) fn end_uses(&self) {
        if let Some(resources) = self.resources.get() {
            resources.end();
        }
    }

    /// Whether the run is coming to its end, and this worker should too. For a [peer](super::Peer),
    /// a dead master counts as that, too.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static SERVES: Entry<(), ()> = Entry::new("serves", |worker, ()| {
    ///     while !worker.stop_requested() {
    ///         std::thread::yield_now();
    ///     }
    /// });
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     worker.start(&SERVES, &()).unwrap().detach();
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        is_ending(&self.control)
    }

    /// Waits until the run is coming to its end, at most `limit`; returns whether it is. For a
    /// worker that serves until then.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    ///
    /// static SERVES: Entry<(), ()> = Entry::new("serves", |worker, ()| {
    ///     while !worker.wait_stop(std::time::Duration::from_millis(100)) {
    ///         // What is done ten times a second.
    ///     }
    /// });
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     worker.start(&SERVES, &()).unwrap().detach();
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn wait_stop(&self, limit: Duration) -> bool {
        let deadline = Deadline::after(limit);
        while !self.stop_requested() {
            if deadline.is_over() {
                return false;
            }
            // If we outlive the master, we look for it.
            let most = match self.by_name || !process::dies_with_parent() {
                true => LOOK,
                false => Duration::MAX,
            };
            self.control.wait_stop(deadline.left(most));
        }
        true
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Enters a job, and wakes the master.
pub(super) fn request<A: Wire, R: Wire>(
    control: &Shared<Control>,
    starter: Option<usize>,
    options: StartOptions<'_>,
    entry: &'static Entry<A, R>,
    argument: &A,
    by_name: bool,
) -> Result<JoinHandle<R>, StartError> {
    if is_ending(control) {
        return Err(StartError::Stopping);
    }
    let pool = control.pool();
    if part::is_cut_off(pool) {
        return Err(StartError::Unreachable);
    }
    // This is user code, called before anything is claimed.
    let encoded = Encoded::of(argument).map_err(StartError::Encode)?;
    let place = control.claim(part::tag(pool)?).ok_or(StartError::TooMany)?;
    let job = place.job();
    if let Err(error) = job
        .argument
        .store(pool, PayloadKind::Value, encoded.bytes())
    {
        place.give_up();
        return Err(error.into());
    }
    entry::describe(job, entry, by_name);
    job.policy.store(options.restart.pack(), Ordering::Relaxed);
    let index = place.index;
    if let Some(starter) = starter {
        let over = || control.is_orphaned();
        control
            .resources
            .bequeath(starter, index, options.inherit, &over);
    }
    let id = place.request();
    part::wake_master(pool);
    Ok(JoinHandle::new(control, index, id))
}

/// The life of a worker, in the child: calls the function, and leaves its result in the job's
/// place. Returns the exit code. It takes the child's own copy of the handle, which is not counted
/// anew, and, like everything that a worker leaves behind, goes with the process.
#[unsafe(link_section = ".shmkit.child")]
pub(super) fn live(control: Shared<Control>, place: usize, id: u64, defined: &[Defined]) -> i32 {
    let worker = Worker::new(control, place, id, false);
    let code = perform(&worker, defined);
    std::mem::forget(worker);
    code
}

/// Calls the function of a job, and leaves its result in the job's place. Returns the code with
/// which a process of its own would exit.
#[unsafe(link_section = ".shmkit.child")]
pub(super) fn perform(worker: &Worker, defined: &[Defined]) -> i32 {
    let Some(job) = worker.control.job(worker.place) else {
        return EXIT_UNWRITTEN;
    };
    let pool = worker.control.pool();
    part::set_me(pool, worker.id);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let Some((call, function)) = entry::described(job, defined) else {
            let why = "the request is not from a process of this program";
            return (PayloadKind::BadArgument, why.into());
        };
        job.argument.read(|bytes| call(function, worker, bytes))
    }));
    let ((kind, encoded), code) = match outcome {
        Ok(answer) => (answer, 0),
        Err(payload) => {
            let message = child::message_of(&*payload).into();
            // The payload's destructor might panic again, and nobody needs the payload.
            std::mem::forget(payload);
            ((PayloadKind::Panic, message), EXIT_PANIC)
        }
    };
    child::end_copy_of(worker.pid, code);
    match store(job, pool, kind, encoded.bytes()) {
        Ok(()) => code,
        Err(_) => EXIT_UNWRITTEN,
    }
}

/// Leaves the result of a job in its place. For lack of memory, a message is cut, and a value is
/// replaced by the reason why it is missing: a short payload needs no block.
#[unsafe(link_section = ".shmkit.child")]
pub(super) fn store(
    job: &Job,
    pool: Pool,
    kind: PayloadKind,
    bytes: &[u8],
) -> Result<(), ObjectError> {
    let Err(error) = job.result.store(pool, kind, bytes) else {
        return Ok(());
    };
    let why = error.to_string();
    let (kind, bytes) = match kind {
        PayloadKind::Value => (PayloadKind::WriteFailed, why.as_bytes()),
        kind => (kind, bytes),
    };
    let cut = &bytes[..bytes.len().min(INLINE)];
    job.result.store(pool, kind, cut)
}
