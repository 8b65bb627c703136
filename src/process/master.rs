//! [`Master`]: the process that starts the workers, reaps them, and does nothing else.
//!
//! It has one thread and little memory, so that forking it is cheap and safe. It sleeps on one
//! descriptor: the counter through which requests come (of peers, through a pipe), a timer for restarts,
//! and a pidfd per worker and per peer. Every event is handled by a walk over the job table up to the highest place in use,
//! which is short and also finds what a dead worker could not announce. What is done for its own
//! children is in `children.rs`, what is done for peers in `guests.rs`; `control_pool.rs` makes the pool.
//!
//! # Invariants
//!
//! 1. A process of ours is in `running` from its fork until it is reaped, at the job's place.
//! 2. A process is reaped, and recovered in every pool, before its job's state says that it has
//!    ended: a process that has joined a dead worker finds that what the worker held has been taken
//!    back, and that what it was joining can be joined again.
//! 3. A peer is in `peers` from when it was first seen idle until it has left or is recovered, with
//!    the job that it runs. That job is in `running`, without a process of ours.
//! 4. The descriptor for a child's pidfd is reserved before the fork. If the kernel has no memory
//!    for the watch, the child runs all the same: it is looked at every 100 ms until it is watched.
//!
//! # Shutdown
//!
//! When the first worker has ended: requests are refused and jobs are no longer started; workers
//! that are left are asked to end ([`Worker::stop_requested`](super::Worker::stop_requested)), and
//! idle peers leave; the rest are killed after [`Config::patience`], including peers that still run
//! a job; all are reaped and recovered; jobs that still have no process are refused; managed
//! resources are removed; the journal, the pid file and the run's name are removed. Then the
//! control pool says that there is no master, since the process may live on.
//!
//! # Crash behaviour
//!
//! A master that is killed takes its workers with it: the kernel sends them SIGKILL. The exception
//! is a worker that has changed its credentials since, for which the kernel then forgets to do so;
//! it finds out as peers do. The control pool has no name and goes with the last of them. What was
//! managed, the journal and the pid file stay, and the next run cleans that up.

mod children;
mod control_pool;
mod guests;

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use children::{ENDING, Process};
use guests::Guest;

use super::child::Ran;
use super::jobs::{Control, JOBS, JobPhase, KILL, PayloadKind};
use super::journal::{self, Journal};
use super::part;
use super::peers::PEERS;
use super::pid_file::PidFile;
use super::{Config, Entry, JoinHandle, Resource, RunError, StartError, StartOptions, Wire};
use super::{peer, supervise, worker};
use crate::containers::Shared;
use crate::layout::local;
use crate::pool::{remove, tell};
use crate::sys::process;
use crate::sys::watch::{self, Watch};

/// The target of the log events of processes. The master and the parents of a scope log them.
pub(super) const LOG: &str = "shmkit::process";

/// When to look again at a process that could not be watched, or to try again one that could not be
/// started.
const AGAIN: Duration = Duration::from_millis(100);

/// A master for a program that has an event loop of its own: the loop polls it for being readable,
/// and then [dispatches](Self::dispatch) it.
///
/// The program stays single-threaded, and stays in the thread that made the master. It may have
/// several masters, each with its own workers. These are forked with copies of what the other
/// masters have: if another master has a [pid file or a run directory](Config::pid_file), they keep
/// its lock until they end.
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
    /// The places of processes that could not be watched.
    unwatched: Vec<usize>,
    /// By place in the table of peers.
    peers: Vec<Option<Guest>>,
    stopping: bool,
    /// What may have run since the last fork.
    ran: Ran,
    /// The process to which all this belongs: a process that it forks, by whatever means, has a
    /// copy.
    owner: u32,
    pid_file: Option<PidFile>,
    journal: Option<Journal>,
    /// A panic of the hook, which goes on when everything that was to be done is done.
    panicked: Option<Box<dyn Any + Send>>,
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
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Master};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// let mut master = Master::new(&Config::new())?;
    /// assert_eq!(master.workers(), 0);
    /// master.finish()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(config: &Config) -> Result<Master, RunError> {
        let tasks = process::tasks_that_stay()?;
        if tasks != 1 {
            return Err(RunError::MultiThreaded { tasks });
        }
        let pid_file = config
            .pid_file
            .as_deref()
            .map(PidFile::create)
            .transpose()?;
        let directory = config.run_directory.as_deref();
        let mut watch = Watch::new()?;
        watch::pidfd(process::pid()).map_err(|error| {
            let since = match error.raw_os_error() {
                Some(libc::ENOSYS) => " (Linux has it since 5.3)",
                _ => "",
            };
            let why = format!("no pidfd can be had{since}: {error}");
            std::io::Error::new(error.kind(), why)
        })?;
        let journal = directory.map(Journal::open).transpose()?;
        let control = match control_pool::create(config, &mut watch) {
            Ok(control) => control,
            Err(error) => {
                if let Some((journal, _)) = journal {
                    // If this fails, the journal stays, and nothing is lost.
                    let _ = journal.close();
                }
                return Err(error);
            }
        };
        let pool = control.pool();
        part::set_wake(pool, watch.counter()).map_err(std::io::Error::from)?;
        // Last: a master that is refused has removed nothing.
        let journal = journal.map(|(journal, left)| {
            control.resources.keep(&journal.clear(left));
            journal
        });
        Ok(Master {
            config: config.clone(),
            control: Some(control),
            watch,
            running: Vec::new(),
            count: 0,
            unwatched: Vec::new(),
            peers: Vec::new(),
            stopping: false,
            ran: Ran::Anything,
            owner: process::pid(),
            pid_file,
            journal,
            panicked: None,
        })
    }

    pub(super) fn control(&self) -> &Shared<Control> {
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
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Master};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// let mut master = Master::new(&Config::new())?;
    /// let mut one = master.start(&ONE, &())?;
    /// let result = loop {
    ///     master.dispatch()?;
    ///     match one.try_join() {
    ///         Ok(result) => break result?,
    ///         Err(not_yet) => one = not_yet,
    ///     }
    /// };
    /// assert_eq!(result, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
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
    /// See [`StartError`].
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Master, Restart, StartOptions};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// let mut master = Master::new(&Config::new())?;
    /// let options = StartOptions::new().restart(Restart::Never);
    /// master.start_with(options, &ONE, &())?.detach();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start_with<A: Wire, R: Wire>(
        &self,
        options: StartOptions<'_>,
        entry: &'static Entry<A, R>,
        argument: &A,
    ) -> Result<JoinHandle<R>, StartError> {
        self.check_owner().map_err(|_| StartError::Forked)?;
        worker::request(self.control(), None, options, entry, argument, false)
    }

    /// How many worker processes there are.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Master};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// let mut master = Master::new(&Config::new())?;
    /// master.start(&ONE, &())?.detach();
    /// master.dispatch()?;
    /// assert_eq!(master.workers(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn workers(&self) -> usize {
        self.count
    }

    /// Does what there is to do, without waiting: starts what is requested, and reaps and recovers
    /// what has ended. Call it when the master is readable, in the thread that made it. In a loop that is told
    /// only of changes (edge-triggered, as mio's and tokio's are), call it until it has done nothing.
    ///
    /// # Errors
    ///
    /// [`RunError::System`] if the kernel refuses what it should not. The master can go on.
    /// [`RunError::Forked`] in a process that has but a copy of the master: it was forked by other means.
    ///
    /// # Panics
    ///
    /// If the function given to [`Config::on_end`] panics; everything else is done before that.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Master};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// let mut master = Master::new(&Config::new())?;
    /// master.start(&ONE, &())?.detach();
    /// assert_eq!(master.dispatch()?.started, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn dispatch(&mut self) -> Result<Dispatched, RunError> {
        self.ran = Ran::Anything;
        self.turn(Some(Duration::ZERO))
    }

    /// Waits for events, at most `limit`, and handles them.
    pub(super) fn turn(&mut self, limit: Option<Duration>) -> Result<Dispatched, RunError> {
        self.check_owner()?;
        let mut done = Dispatched::default();
        let mut ended = [0; watch::AT_ONCE];
        let mut count = 0;
        self.watch.wait(limit, |token| {
            if token < (JOBS + PEERS) as u64 {
                ended[count] = token as usize;
                count += 1;
            }
        })?;
        for &token in &ended[..count] {
            match token.checked_sub(JOBS) {
                None => {
                    self.reap(token);
                    done.ended += 1;
                }
                Some(peer) => done.ended += usize::from(self.peer_died(peer)),
            }
        }
        done.ended += self.look_at_unwatched();
        done.started = self.walk()?;
        Ok(done)
    }

    /// Looks at every job.
    fn walk(&mut self) -> Result<usize, RunError> {
        let control = self.control().clone();
        let all_seen = self.look_at_peers(&control);
        let now = Instant::now();
        let mut started = 0;
        let mut due = None;
        let mut not_before = |at: Instant| due = Some(due.map_or(at, |due: Instant| due.min(at)));
        for (place, job) in control.jobs() {
            let state = job.state();
            match state.phase() {
                JobPhase::Free => {}
                JobPhase::Claimed | JobPhase::Taken | JobPhase::Ended => {
                    control.tidy(control.pool().0, place);
                }
                JobPhase::Running if state.has(KILL) => self.kill(place),
                JobPhase::Running => {}
                JobPhase::Requested | JobPhase::Waiting if state.has(KILL) => {
                    self.end(
                        place,
                        supervise::pack(process::Ended::Signaled(libc::SIGKILL)),
                    );
                }
                JobPhase::Requested | JobPhase::Waiting if self.stopping => {
                    self.refuse(place, ENDING);
                }
                JobPhase::Requested => started += usize::from(self.begin(place)),
                JobPhase::Waiting => {
                    if self.due(place, now).is_none() {
                        started += usize::from(self.begin(place));
                    }
                    // Even if it could not be started.
                    self.due(place, now).into_iter().for_each(&mut not_before);
                }
            }
        }
        if !all_seen || !self.unwatched.is_empty() {
            not_before(now + AGAIN);
        }
        if let Some(due) = due {
            self.watch.set_timer(due - now)?;
        }
        self.tend(&control);
        if let Some(payload) = self.panicked.take() {
            resume_unwind(payload);
        }
        Ok(started)
    }

    /// When the job at a place is started again, if that is later than now.
    fn due(&self, place: usize, now: Instant) -> Option<Instant> {
        let process = self.running.get(place)?.as_ref()?;
        process.due.filter(|&at| at > now)
    }

    /// An error in a copy: what it did would be done to the master's own workers and files.
    fn check_owner(&self) -> Result<(), RunError> {
        match self.owner == process::pid() {
            true => Ok(()),
            false => Err(RunError::Forked),
        }
    }

    /// Answers requests for resources, and removes what nobody uses.
    fn tend(&self, control: &Shared<Control>) {
        let journal = self.journal.as_ref();
        control.resources.tend(
            control.pool(),
            |place, resource| {
                // Whoever makes a pool must find no other: one that exists now is somebody else's.
                let path = resource.path().unwrap_or_default();
                if matches!(resource, Resource::Pool(_)) && path.symlink_metadata().is_ok() {
                    return Err((PayloadKind::NameTaken, String::new()));
                }
                let recorded = journal.map_or(Ok(()), |journal| journal.record(place, resource));
                recorded.map_err(|error| (PayloadKind::NotStarted, error.to_string()))
            },
            |place, resource| {
                // What cannot be removed stays in the journal, for the next run to try.
                journal::remove(resource).is_ok()
                    && journal.is_none_or(|journal| journal.strike(place).is_ok())
            },
        );
    }

    /// Ends the run: workers that are left are asked to end
    /// ([`Worker::stop_requested`](super::Worker::stop_requested)), waited for ([`Config::patience`]), then killed.
    ///
    /// # Errors
    ///
    /// [`RunError::System`]. Workers that are left are nevertheless killed, when the master is
    /// dropped.
    /// [`RunError::Forked`]; nothing has changed.
    ///
    /// # Panics
    ///
    /// As [`dispatch`](Self::dispatch).
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Master};
    ///
    /// static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
    /// let mut master = Master::new(&Config::new())?;
    /// master.start(&ONE, &())?.detach();
    /// master.dispatch()?;
    /// master.finish()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn finish(mut self) -> Result<(), RunError> {
        self.check_owner()?;
        self.stopping = true;
        self.control().stop();
        tell(
            || log::debug!(target: LOG, "the run comes to its end, with {} workers left", self.count),
        );
        let asked = Instant::now();
        self.walk()?;
        while self.count > 0 || self.peers.iter().flatten().any(|peer| peer.job.is_some()) {
            let Some(left) = self.config.patience.checked_sub(asked.elapsed()) else {
                break;
            };
            self.turn(Some(left))?;
        }
        Ok(())
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if self.owner != process::pid() {
            // Handles of workers are left, through which the master is still woken.
            self.watch.keep_counter();
            return;
        }
        self.stopping = true;
        // First, for workers that we may not kill, and for peers that find the pool at this moment.
        self.control().stop();
        for place in 0..self.running.len() {
            self.kill(place);
        }
        for place in 0..self.running.len() {
            // Waits for each, which is dying.
            self.reap(place);
        }
        self.await_killed_peers();
        if let (Some(name), Some(control)) = (&self.config.name, &self.control) {
            // Peers that are left keep what they have, and find no master.
            remove::unlink_ours(control.pool(), &peer::pool_name(name));
        }
        // Refuses what they requested before they knew. This comes before there is no master, so
        // that those that wait are told why.
        self.refuse_all();
        if let Some(control) = self.control.take() {
            let pool = control.pool();
            // Nobody is left who uses any resource; nor are those left that were to be started, or
            // were killed before they had started.
            (0..JOBS).for_each(|place| control.resources.clear_user(place));
            self.tend(&control);
            // From here on, nobody looks at what somebody may be about to request.
            control.peers.end();
            part::forget_wake(pool);
            // Safe code may have started threads since, or be within a join on this very thread,
            // and the pool may have been opened by its name: then the pool stays.
            if process::task_count().is_ok_and(|tasks| tasks == 1)
                && control.is_the_only_one_here()
                && !local::of(pool.0).is_shown()
            {
                // SAFETY: nothing in this process uses the pool from here on: there is no other
                // thread, the pool was shown to no user, handles of workers are names, and the only
                // handle of the control block is dropped below, which finds that it no longer holds
                // anything. The block goes with the pool, and not link by link.
                unsafe { pool.unmap() };
            } else {
                self.watch.keep_counter();
            }
            drop(control);
        }
        if let Some(journal) = self.journal.take() {
            // If this fails, the journal stays, and nothing is lost.
            let _ = journal.finish();
        }
        // The payload's destructor might panic, and nobody is left to be told.
        std::mem::forget(self.panicked.take());
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

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;
    use crate::process::{Inherit, Resources};
    use crate::sys::process::ForkResult;

    /// Runs a test that has a master, which needs a process with one thread.
    pub(super) fn in_a_child(test: fn()) {
        // SAFETY: the child uses a pool of its own, and ends.
        match unsafe { process::fork() }.unwrap() {
            ForkResult::Parent { child } => {
                assert_eq!(process::wait(child), process::Ended::Exited(0));
            }
            ForkResult::Child => {
                let outcome = catch_unwind(test);
                process::exit_now(i32::from(outcome.is_err()));
            }
        }
    }

    /// Somebody whom the master cannot end is requesting a job when the run ends.
    #[test]
    fn what_nobody_is_requested_for_yet_is_removed() {
        in_a_child(|| {
            const STARTER: usize = 5;
            let name = format!("shmkit-test-heirloom-{}", process::pid());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, "").unwrap();
            let mut master = Master::new(&Config::new()).unwrap();
            let control = master.control().clone();
            let starter = Resources::new(control.clone(), STARTER, process::pid());
            starter.request(&Resource::File(path.clone())).unwrap();
            master.dispatch().unwrap();
            let tag = part::tag(control.pool()).unwrap();
            let heir = control.claim(tag).unwrap().index;
            let resources = &control.resources;
            resources.bequeath(STARTER, heir, Inherit::All, &|| false);
            resources.clear_user(STARTER);
            master.dispatch().unwrap();
            assert!(path.exists());
            drop((starter, control));
            drop(master);
            assert!(!path.exists());
        });
    }
}
