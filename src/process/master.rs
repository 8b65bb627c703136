//! [`Master`]: the process that starts the workers, reaps them, and does nothing else.
//!
//! It has one thread and little memory, so that forking it is cheap and safe. It sleeps on one
//! descriptor: the counter that requests come by, a timer for restarts, a pidfd a worker. Every
//! event is dealt with by a walk over the job table up to the highest place in use, which is short
//! and finds also what a dead worker could not announce.
//!
//! # Invariants
//!
//! 1. A process of ours is in `running` from its fork until it is reaped, at the job's place.
//! 2. A process is reaped, and recovered in every pool, before its job's state says that it has
//!    ended: who has joined a dead worker finds what it held taken back.
//! 3. The descriptor for a child's pidfd is there before the fork, so nothing can fail between the
//!    fork and the watch but the watch itself, for want of kernel memory: then the child is killed
//!    and reaped at once.
//!
//! # Shutdown
//!
//! When the first worker has ended: requests are refused and jobs not started any more; workers
//! that are left are asked to end ([`Worker::stop_requested`](super::Worker::stop_requested)); the
//! rest is killed after [`Config::patience`]; all are reaped and recovered; managed resources are
//! removed; the journal and the pid file go.
//!
//! # Crash behaviour
//!
//! A master that is killed takes its workers with it: the kernel sends them SIGKILL. The control
//! pool has no name and goes with the last of them. What was managed, the journal and the
//! pid file stay, and the next run puts that right.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::child::{self, OtherThreads};
use super::jobs::{self, Control, DETACHED, KILL, Kind, Phase};
use super::journal::{self, Journal};
use super::pid_file::PidFile;
use super::{Config, Entry, JoinError, JoinHandle, RunError, StartError, StartOptions, Wire};
use super::{WorkerEnd, WorkerId, hooks, supervise, worker};
use crate::containers::Shared;
use crate::pool::Pool;
use crate::primitive::Ordering;
use crate::sys::process;
use crate::sys::watch::{self, Watch};

/// The target of the log events of processes. The master and the parents of a scope tell them.
pub(super) const LOG: &str = "shmkit::process";

/// A master for a program that has an event loop of its own: it is polled for being readable, and
/// then [dispatched](Self::dispatch).
///
/// The program stays single-threaded, and stays in the thread that made the master.
///
/// ```
/// use shmkit::process::{Config, Entry, Master};
/// use rustix::event::{PollFd, PollFlags, poll};
///
/// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
///
/// let mut master = Master::new(&Config::new())?;
/// let mut square = master.start(&SQUARE, &12)?;
/// let result = loop {
///     poll(&mut [PollFd::new(&master, PollFlags::IN)], None)?;
///     master.dispatch()?;
///     match square.try_join() {
///         Ok(result) => break result?,
///         Err(not_yet) => square = not_yet,
///     }
/// };
/// assert_eq!(result, 144);
/// master.finish()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Master {
    config: Config,
    /// Dropped before the pool is unmapped; `None` from then on.
    control: Option<Shared<Control>>,
    watch: Watch,
    /// By place in the table.
    running: Vec<Option<Process>>,
    count: usize,
    stopping: bool,
    pid_file: Option<PidFile>,
    journal: Option<Journal>,
}

struct Process {
    pid: u32,
    /// `None` once it has ended, until the job is started again.
    pidfd: Option<OwnedFd>,
    /// When it is started again.
    due: Option<Instant>,
}

/// What one [`Master::dispatch`] has done.
///
/// ```
/// use shmkit::process::{Config, Dispatched, Entry, Master};
///
/// static UNIT: Entry<(), ()> = Entry::new("unit", |_, ()| ());
/// let mut master = Master::new(&Config::new())?;
/// assert_eq!(master.dispatch()?, Dispatched::default());
/// master.start(&UNIT, &())?.detach();
/// assert_eq!(master.dispatch()?.started, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dispatched {
    /// Processes that were started.
    pub started: usize,
    /// Processes that have ended.
    pub ended: usize,
}

impl Master {
    /// Makes a master, without workers.
    ///
    /// # Errors
    ///
    /// See [`RunError`].
    pub fn new(config: &Config) -> Result<Master, RunError> {
        let tasks = process::task_count()?;
        if tasks != 1 {
            return Err(RunError::MultiThreaded { tasks });
        }
        let pid_file = config
            .pid_file
            .as_deref()
            .map(PidFile::create)
            .transpose()?;
        let directory = config.run_directory.as_deref();
        let journal = directory.map(Journal::open).transpose()?;
        let watch = Watch::new()?;
        let size = size_of::<Control>().next_multiple_of(1 << 20);
        let pool = Pool::builder()
            .initial_size(size)
            .max_participants(4095)
            .create()?;
        let mut master = Master {
            config: config.clone(),
            control: None,
            watch,
            running: Vec::new(),
            count: 0,
            stopping: false,
            pid_file,
            journal,
        };
        match Control::create(pool) {
            Ok(control) => master.control = Some(control),
            Err(error) => {
                // SAFETY: nothing was made in the pool, which nobody else has.
                unsafe { pool.unmap() };
                return Err(error.into());
            }
        }
        jobs::set_wake(pool, Some(master.watch.counter()));
        Ok(master)
    }

    fn control(&self) -> &Shared<Control> {
        self.control
            .as_ref()
            .expect("there until the master is dropped")
    }

    /// Starts a worker; as [`Worker::start`](super::Worker::start). It is forked by the next
    /// [`dispatch`](Self::dispatch). The master uses [`JoinHandle::try_join`].
    ///
    /// # Errors
    ///
    /// See [`StartError`].
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
    /// See [`StartError`].
    pub fn start_with<A: Wire, R: Wire>(
        &self,
        options: StartOptions<'_>,
        entry: &'static Entry<A, R>,
        argument: &A,
    ) -> Result<JoinHandle<R>, StartError> {
        worker::request(self.control(), None, options, entry, argument)
    }

    /// Worker processes that there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.count
    }

    /// Does what there is to do, without waiting: starts what is requested, reaps and recovers
    /// what has ended. Call it when the master is readable, in the thread that made it.
    ///
    /// # Errors
    ///
    /// [`RunError::System`], if the kernel refuses what it should not. The master can go on.
    pub fn dispatch(&mut self) -> Result<Dispatched, RunError> {
        self.turn(Some(Duration::ZERO))
    }

    /// Waits for events, `limit` at most, and deals with them.
    pub(super) fn turn(&mut self, limit: Option<Duration>) -> Result<Dispatched, RunError> {
        let mut done = Dispatched::default();
        let mut ended = [0; 64];
        let mut count = 0;
        self.watch.wait(limit, |token| {
            if token < jobs::JOBS as u64 {
                ended[count] = token as usize;
                count += 1;
            }
        })?;
        for &place in &ended[..count] {
            self.reap(place);
            done.ended += 1;
        }
        done.started = self.walk()?;
        Ok(done)
    }

    /// Looks at every job.
    fn walk(&mut self) -> Result<usize, RunError> {
        let control = self.control().clone();
        let now = Instant::now();
        let mut started = 0;
        let mut due: Option<Instant> = None;
        for (place, job) in control.jobs() {
            let state = job.state();
            match state.phase() {
                Phase::Free => {}
                Phase::Claimed | Phase::Taken | Phase::Ended => {
                    control.tidy(control.pool().0, place);
                }
                Phase::Running if state.has(KILL) => self.kill(place),
                Phase::Running => {}
                Phase::Requested | Phase::Waiting if state.has(KILL) => {
                    self.end(
                        place,
                        supervise::pack(process::Ended::Signaled(libc::SIGKILL)),
                    );
                }
                Phase::Requested | Phase::Waiting if self.stopping => {
                    self.refuse(place, "the run is coming to its end");
                }
                Phase::Requested => started += usize::from(self.fork(place)),
                Phase::Waiting => {
                    let at = self.running.get(place).and_then(|p| p.as_ref()?.due);
                    match at.filter(|&at| at > now) {
                        Some(at) => due = Some(due.map_or(at, |due| due.min(at))),
                        None => started += usize::from(self.fork(place)),
                    }
                }
            }
        }
        if due.is_some() {
            self.watch.set_timer(due.map(|due| due - now))?;
        }
        self.tend(&control);
        Ok(started)
    }

    /// Answers requests about resources, and removes what nobody uses.
    fn tend(&self, control: &Shared<Control>) {
        let journal = self.journal.as_ref();
        control.resources.tend(
            control.pool(),
            |place, resource| match journal.map(|journal| journal.record(place, resource)) {
                Some(Err(error)) => Err(error.to_string()),
                _ => Ok(()),
            },
            |place, resource| {
                // What cannot be removed stays in the journal, for the next run to try.
                journal::remove(resource).is_ok()
                    && journal.is_none_or(|journal| journal.strike(place).is_ok())
            },
        );
    }

    fn kill(&self, place: usize) {
        let process = self.running.get(place).and_then(Option::as_ref);
        if let Some(pidfd) = process.and_then(|process| process.pidfd.as_ref()) {
            watch::kill(pidfd.as_fd());
        }
    }

    /// Starts the process of a requested job; true if there is one.
    fn fork(&mut self, place: usize) -> bool {
        match self.try_fork(place) {
            Ok(()) => true,
            Err(why) => {
                self.refuse(place, &why);
                false
            }
        }
    }

    fn try_fork(&mut self, place: usize) -> Result<(), String> {
        let most = self.config.max_workers;
        if self.count >= most {
            return Err(format!("there are {most} workers already"));
        }
        let control = self.control().clone();
        let job = control.job(place).ok_or("no such job")?;
        let id = job.state().id();
        if self.running.len() <= place {
            self.running.resize_with(place + 1, || None);
        }
        // By invariant 3: closed again just before the pidfd is opened.
        let spare = self.watch.counter().try_clone_to_owned();
        let spare = spare.map_err(|error| error.to_string())?;
        let mut body = || {
            self.close_in_child(spare.as_fd());
            worker::live(&control, place, id)
        };
        // SAFETY: this is the only thread.
        let started = unsafe { child::begin(OtherThreads::Refused, &mut body) };
        let pid = started.map_err(|error| source_chain(&error))?;
        drop(spare);
        let watched = watch::pidfd(pid).and_then(|pidfd| {
            self.watch.add(pidfd.as_fd(), place as u64)?;
            Ok(pidfd)
        });
        match watched {
            Ok(pidfd) => {
                self.running[place] = Some(Process {
                    pid,
                    pidfd: Some(pidfd),
                    due: None,
                });
                self.count += 1;
                job.advance(Phase::Running);
                log::debug!(target: LOG, "started worker {id} as process {pid}");
                Ok(())
            }
            Err(error) => {
                let _ = process::kill(pid);
                process::wait(pid);
                recovered(pid);
                Err(error.to_string())
            }
        }
    }

    /// In a child: closes what only the master uses.
    fn close_in_child(&self, spare: BorrowedFd<'_>) {
        let close = |fd: BorrowedFd<'_>| {
            // SAFETY: the child never comes back to who owns the descriptor, and leaves without
            // destructors, so it is neither used nor closed again.
            unsafe { rustix::io::close(fd.as_raw_fd()) };
        };
        self.watch.private().into_iter().for_each(close);
        close(spare);
        for process in self.running.iter().flatten() {
            process.pidfd.iter().map(AsFd::as_fd).for_each(close);
        }
        self.pid_file.iter().map(AsFd::as_fd).for_each(close);
        self.journal.iter().map(AsFd::as_fd).for_each(close);
    }

    /// The process at a place has ended.
    fn reap(&mut self, place: usize) {
        let Some(process) = self.running.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        let Some(pidfd) = process.pidfd.take() else {
            return;
        };
        self.watch.remove(pidfd.as_fd());
        drop(pidfd);
        let ended = process::wait(process.pid);
        recovered(process.pid);
        self.count -= 1;
        self.end(place, supervise::pack(ended));
    }

    /// A job is over, or its process is and it will have another.
    fn end(&mut self, place: usize, outcome: u32) {
        let control = self.control().clone();
        let Some(job) = control.job(place) else {
            return;
        };
        let state = job.state();
        let wait = supervise::wait_before_restart(job, outcome)
            .filter(|_| !self.stopping && !state.has(KILL) && outcome != supervise::NOT_STARTED);
        if log::log_enabled!(target: LOG, log::Level::Warn) {
            tell(state.id(), supervise::returned(job, outcome), wait);
        }
        if let Some(hook) = &self.config.on_end {
            hook(&WorkerEnd {
                worker: WorkerId(state.id()),
                cause: supervise::returned(job, outcome),
                restart_in: wait,
            });
        }
        let process = self.running.get_mut(place).and_then(Option::as_mut);
        if let (Some(wait), Some(process)) = (wait, process) {
            process.due = Some(Instant::now() + wait);
            job.result.clear();
            job.restarts.fetch_add(1, Ordering::Relaxed);
            job.advance(Phase::Waiting);
            return;
        }
        if let Some(process) = self.running.get_mut(place) {
            *process = None;
        }
        control.resources.clear_user(place);
        if job.end(outcome).has(DETACHED) {
            job.release();
        }
    }

    /// A job gets no process.
    fn refuse(&mut self, place: usize, why: &str) {
        let control = self.control().clone();
        if let Some(job) = control.job(place) {
            job.result.clear();
            // Stored in part, if there is no memory for all of it.
            let _ = worker::store(job, control.pool(), Kind::NotStarted, why.as_bytes());
            self.end(place, supervise::NOT_STARTED);
        }
    }

    /// Ends the run, as the module's header says: asks, waits, kills.
    ///
    /// # Errors
    ///
    /// [`RunError::System`]. Workers that are left are killed nevertheless, by the drop.
    pub fn finish(mut self) -> Result<(), RunError> {
        self.stopping = true;
        self.control().stop();
        log::debug!(target: LOG, "the run comes to its end, with {} workers left", self.count);
        let asked = Instant::now();
        self.walk()?;
        while self.count > 0 {
            let Some(left) = self.config.patience.checked_sub(asked.elapsed()) else {
                break;
            };
            self.turn(Some(left))?;
        }
        Ok(())
    }
}

/// Logs the end of a worker's process.
#[cold]
fn tell(id: u64, cause: Result<(), JoinError>, restart_in: Option<Duration>) {
    let Err(cause) = cause else {
        log::debug!(target: LOG, "worker {id} has returned");
        return;
    };
    let again = restart_in.map_or(String::new(), |wait| format!("; started again in {wait:?}"));
    log::warn!(target: LOG, "worker {id} has ended: {cause}{again}");
}

/// A process was reaped: every pool is told.
fn recovered(pid: u32) {
    if let Some(hooks) = hooks::installed() {
        (hooks.child_reaped)(pid);
    }
}

fn source_chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.stopping = true;
        for place in 0..self.running.len() {
            self.kill(place);
        }
        for place in 0..self.running.len() {
            // Waits for each, which is dying.
            self.reap(place);
        }
        if let Some(control) = self.control.take() {
            let pool = control.pool();
            // Nobody is left who uses any.
            self.tend(&control);
            drop(control);
            jobs::set_wake(pool, None);
            // SAFETY: nothing of this process refers to the pool: handles of workers are names,
            // and the control block's only handle was dropped just now.
            unsafe { pool.unmap() };
        }
        if let Some(journal) = self.journal.take() {
            // Nothing is lost if it stays.
            let _ = journal.finish();
        }
    }
}

impl AsFd for Master {
    /// Readable while there is something to dispatch.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Master")
            .field("workers", &self.count)
            .finish_non_exhaustive()
    }
}
