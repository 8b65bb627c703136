//! The master's own children: their forks, their ends, and what follows from those.
//!
//! See the invariants in `master.rs`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{AGAIN, LOG, Master};
use crate::containers::Shared;
use crate::pool::{fork, tell};
use crate::primitive::Ordering;
use crate::process::child::{self, OtherThreads, Ran};
use crate::process::jobs::{Control, DETACHED, Job, JobPhase, KILL, PayloadKind};
use crate::process::{JoinError, SpawnError, WorkerEnd, WorkerId, entry, supervise, worker};
use crate::sys::process;
use crate::sys::watch;

/// What a job runs in.
pub(super) struct Process {
    /// 0 once it is reaped, until the job is started again; and while a peer runs the job.
    pid: u32,
    /// `None` while there is no descriptor for it.
    pidfd: Option<OwnedFd>,
    /// When it is to be started again.
    pub(super) due: Option<Instant>,
}

impl Process {
    /// Stands for a peer's process, which is watched as a peer's.
    pub(super) const ELSEWHERE: Process = Process {
        pid: 0,
        pidfd: None,
        due: None,
    };
}

/// What the child of a job is given.
struct Inherited<'a> {
    master: &'a Master,
    spare: BorrowedFd<'a>,
    control: Option<Shared<Control>>,
    place: usize,
    id: u64,
}

impl Inherited<'_> {
    /// The child's life.
    #[unsafe(link_section = ".shmkit.child")]
    fn live(&mut self) -> i32 {
        self.master.close_in_child(self.spare);
        match self.control.take() {
            Some(control) => {
                worker::live(control, self.place, self.id, &self.master.config.defined)
            }
            None => child::EXIT_UNWRITTEN,
        }
    }
}

/// Why a job gets no process when the run ends.
pub(super) const ENDING: &str = "the run is coming to its end";

/// Why a job got no process.
enum Unstarted {
    /// Something was missing that may be available later.
    Now(String),
    /// In its present state, the master's program may not fork.
    Forbidden(String),
}

impl Master {
    /// Starts a requested job: here, or at a peer's. True if it runs now.
    pub(super) fn begin(&mut self, place: usize) -> bool {
        let control = self.control().clone();
        let wanted = control.job(place).and_then(entry::wanted);
        match wanted {
            Some(wanted) if !self.config.defined.iter().any(|own| own.known == wanted) => {
                self.assign(&control, place, wanted)
            }
            _ => self.fork(place),
        }
    }

    /// Kills the process that runs a job, wherever that is.
    pub(super) fn kill(&self, place: usize) {
        match self.running.get(place).and_then(Option::as_ref) {
            Some(&Process {
                pid: pid @ 1..,
                ref pidfd,
                ..
            }) => {
                let killed = pidfd
                    .as_ref()
                    .is_some_and(|pidfd| watch::kill(pidfd.as_fd()));
                if !killed {
                    // By invariant 1 the number is its own. Fails if the process has changed its
                    // credentials.
                    let _ = process::kill(pid);
                }
            }
            // If the peer cannot be killed from here, its job waits for it to end.
            _ => _ = self.guest_at(place).is_some_and(watch::kill),
        }
    }

    /// Starts the process of a requested job; true if there is one.
    fn fork(&mut self, place: usize) -> bool {
        match self.try_fork(place) {
            Ok(()) => return true,
            Err(Unstarted::Now(why)) if self.postpone(place, &why) => {}
            Err(Unstarted::Now(why) | Unstarted::Forbidden(why)) => self.refuse(place, &why),
        }
        false
    }

    /// A job that is to be started again and cannot be for the time being is tried later. False if
    /// this is not such a job.
    fn postpone(&mut self, place: usize, why: &str) -> bool {
        let control = self.control().clone();
        let waiting = |job: &&Job| job.state().phase() == JobPhase::Waiting;
        let Some(job) = control.job(place).filter(waiting) else {
            return false;
        };
        let wait = supervise::wait_before_retry(job).max(AGAIN);
        if let Some(process) = self.running_at(place) {
            process.due = Some(Instant::now() + wait);
        }
        let id = job.state().id();
        tell(|| {
            log::warn!(target: LOG, "worker {id} cannot be started again: {why}; tried again in {wait:?}");
        });
        true
    }

    fn try_fork(&mut self, place: usize) -> Result<(), Unstarted> {
        let most = self.config.max_workers;
        if self.count >= most {
            let why = format!("there are {most} workers already");
            return Err(Unstarted::Now(why));
        }
        let control = self.control().clone();
        let Some(job) = control.job(place) else {
            return Err(Unstarted::Forbidden("no such job".into()));
        };
        let id = job.state().id();
        // Makes room before there is something that needs it.
        self.running_at(place);
        // By invariant 4: closed again just before the pidfd is opened.
        let spare = self.watch.counter().try_clone_to_owned();
        let spare = spare.map_err(|error| Unstarted::Now(error.to_string()))?;
        let mut inherited = Inherited {
            master: self,
            spare: spare.as_fd(),
            control: Some(control.clone()),
            place,
            id,
        };
        // SAFETY: this is the only thread.
        let started = unsafe {
            child::begin(
                OtherThreads::Refused,
                self.ran,
                Inherited::live,
                &mut inherited,
            )
        };
        drop(inherited);
        let pid = started.map_err(|error| {
            let why = source_chain(&error);
            match error {
                SpawnError::MultiThreaded { .. }
                | SpawnError::GuardsHeld { .. }
                | SpawnError::OtherTimeNamespace => Unstarted::Forbidden(why),
                _ => Unstarted::Now(why),
            }
        })?;
        drop(spare);
        let pidfd = self.watched(pid, place).ok();
        if pidfd.is_none() {
            self.unwatched.push(place);
        }
        *self.running_at(place) = Some(Process {
            pid,
            pidfd,
            due: None,
        });
        self.count += 1;
        job.advance(JobPhase::Running);
        // A logger runs from here on.
        self.ran = match log::max_level() {
            log::LevelFilter::Off => Ran::OwnCode,
            _ => Ran::Anything,
        };
        tell(|| log::debug!(target: LOG, "started worker {id} as process {pid}"));
        Ok(())
    }

    /// A pidfd of the process at a place, which is watched from now on.
    fn watched(&self, pid: u32, place: usize) -> io::Result<OwnedFd> {
        let pidfd = watch::pidfd(pid)?;
        self.watch.add(pidfd.as_fd(), place as u64)?;
        Ok(pidfd)
    }

    /// Finds out which of the processes that could not be watched have ended, and watches the
    /// others if it can. Returns how many have ended.
    pub(super) fn look_at_unwatched(&mut self) -> usize {
        let mut ended = 0;
        for place in std::mem::take(&mut self.unwatched) {
            let Some(Process {
                pid: pid @ 1..,
                pidfd: None,
                ..
            }) = *self.running_at(place)
            else {
                continue;
            };
            match self.watched(pid, place) {
                Ok(pidfd) => {
                    if let Some(process) = self.running_at(place) {
                        process.pidfd = Some(pidfd);
                    }
                }
                Err(_) if process::has_ended(pid) => {
                    self.reap(place);
                    ended += 1;
                }
                Err(_) => self.unwatched.push(place),
            }
        }
        ended
    }

    /// What the job at a place runs in.
    pub(super) fn running_at(&mut self, place: usize) -> &mut Option<Process> {
        if self.running.len() <= place {
            self.running.resize_with(place + 1, || None);
        }
        &mut self.running[place]
    }

    /// In a child: closes what only the master uses.
    #[unsafe(link_section = ".shmkit.child")]
    fn close_in_child(&self, spare: BorrowedFd<'_>) {
        let close = |fd: BorrowedFd<'_>| {
            // SAFETY: the child never returns to the owner of the descriptor, and ends without
            // destructors, so it is neither used nor closed again.
            unsafe { rustix::io::close(fd.as_raw_fd()) };
        };
        self.watch.private().for_each(close);
        close(spare);
        for process in self.running.iter().flatten() {
            process.pidfd.iter().map(AsFd::as_fd).for_each(close);
        }
        for peer in self.peers.iter().flatten() {
            close(peer.pidfd.as_fd());
        }
        self.pid_file.iter().map(AsFd::as_fd).for_each(close);
        self.journal.iter().map(AsFd::as_fd).for_each(close);
    }

    /// The process at a place has ended.
    pub(super) fn reap(&mut self, place: usize) {
        let Some(process) = self.running.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        let pid = std::mem::take(&mut process.pid);
        if pid == 0 {
            return;
        }
        if let Some(pidfd) = process.pidfd.take() {
            self.watch.remove(pidfd.as_fd());
        }
        let ended = process::wait(pid);
        fork::child_reaped(pid);
        self.tidy();
        self.count -= 1;
        self.end(place, supervise::pack(ended));
    }

    /// By invariant 2: repairs the places that a process which has ended has left.
    pub(super) fn tidy(&self) {
        let control = self.control();
        for (place, _) in control.jobs() {
            control.tidy(control.pool().0, place);
        }
    }

    /// A job is over; or only its process is, and the job will have another.
    pub(super) fn end(&mut self, place: usize, outcome: u32) {
        let control = self.control().clone();
        let Some(job) = control.job(place) else {
            return;
        };
        let state = job.state();
        let wait = supervise::wait_before_restart(job, outcome)
            .filter(|_| !self.stopping && !state.has(KILL) && outcome != supervise::NOT_STARTED);
        tell(|| {
            if log::log_enabled!(target: LOG, log::Level::Warn) {
                tell_end(state.id(), supervise::returned(job, outcome), wait);
            }
        });
        let end = self.config.on_end.is_some().then(|| WorkerEnd {
            worker: WorkerId(state.id()),
            cause: supervise::returned(job, outcome),
            restart_in: wait,
        });
        let process = self.running.get_mut(place).and_then(Option::as_mut);
        if let (Some(wait), Some(process)) = (wait, process) {
            process.due = Some(Instant::now() + wait);
            control.resources.clear_process(place);
            job.result.clear();
            job.restarts.fetch_add(1, Ordering::Relaxed);
            job.advance(JobPhase::Waiting);
        } else {
            if let Some(process) = self.running.get_mut(place) {
                *process = None;
            }
            control.resources.clear_user(place);
            if job.end(outcome).has(DETACHED) {
                job.release();
            }
        }
        if let Some(end) = end {
            self.call_hook(&end);
        }
    }

    /// This calls user code: if it panics, what is in progress is finished first; see `walk`.
    fn call_hook(&mut self, end: &WorkerEnd) {
        let Some(hook) = &self.config.on_end else {
            return;
        };
        self.ran = Ran::Anything;
        let called = catch_unwind(AssertUnwindSafe(|| hook(end)));
        // No other process may go on with what the master does.
        child::end_copy_of(self.owner, 0);
        if let Err(payload) = called {
            match self.panicked {
                None => self.panicked = Some(payload),
                // The payload's destructor might panic again.
                Some(_) => std::mem::forget(payload),
            }
        }
    }

    /// At the end of the run: jobs that have no process no longer get one.
    pub(super) fn refuse_all(&mut self) {
        let control = self.control().clone();
        for (place, job) in control.jobs() {
            if matches!(job.state().phase(), JobPhase::Requested | JobPhase::Waiting) {
                self.refuse(place, ENDING);
            }
        }
    }

    /// A job gets no process.
    pub(super) fn refuse(&mut self, place: usize, why: &str) {
        let control = self.control().clone();
        if let Some(job) = control.job(place) {
            // Cut short, if there is no memory for all of it.
            let _ = worker::store(job, control.pool(), PayloadKind::NotStarted, why.as_bytes());
            self.end(place, supervise::NOT_STARTED);
        }
    }
}

/// Logs the end of a worker's process.
#[cold]
fn tell_end(id: u64, cause: Result<(), JoinError>, restart_in: Option<Duration>) {
    let Err(cause) = cause else {
        log::debug!(target: LOG, "worker {id} has returned");
        return;
    };
    let again = restart_in.map_or(String::new(), |wait| format!("; started again in {wait:?}"));
    log::warn!(target: LOG, "worker {id} has ended: {cause}{again}");
}

fn source_chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
