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
//! 3. A peer is in `peers` from when it was first seen idle until it has left or is recovered, with
//!    the job that it runs. That job is in `running`, without a process of ours.
//! 4. The descriptor for a child's pidfd is there before the fork, so nothing can fail between the
//!    fork and the watch but the watch itself, for want of kernel memory: then the child is killed
//!    and reaped at once.
//!
//! # Shutdown
//!
//! When the first worker has ended: requests are refused and jobs not started any more; workers
//! that are left are asked to end ([`Worker::stop_requested`](super::Worker::stop_requested)), and idle
//! peers leave; the rest is killed after [`Config::patience`], peers that still run a job among them;
//! all are reaped and recovered; managed resources are removed; the journal, the pid file and the
//! run's name go.
//!
//! # Crash behaviour
//!
//! A master that is killed takes its workers with it: the kernel sends them SIGKILL. The control
//! pool has no name and goes with the last of them. What was managed, the journal and the
//! pid file stay, and the next run puts that right.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::child::{self, OtherThreads};
use super::entry::{self, Known};
use super::jobs::{self, Control, DETACHED, JOBS, KILL, Kind, Phase};
use super::journal::{self, Journal};
use super::peers::{self, Assigned, PEERS};
use super::pid_file::PidFile;
use super::{Config, Entry, JoinError, JoinHandle, RunError, StartError, StartOptions, Wire};
use super::{WorkerEnd, WorkerId, hooks, peer, supervise, worker};
use crate::containers::Shared;
use crate::participants::tag::Tag;
use crate::pool::remove::{self, RemoveError};
use crate::pool::{CreateError, NamedError, ObjectError, Pool, PoolBuilder};
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
    /// By place in the table of peers.
    peers: Vec<Option<PeerProcess>>,
    stopping: bool,
    pid_file: Option<PidFile>,
    journal: Option<Journal>,
}

/// A process that is no child of ours.
struct PeerProcess {
    tag: Tag,
    pid: u32,
    pidfd: OwnedFd,
    defined: Vec<(String, Known)>,
    /// The place of the job that it runs.
    job: Option<usize>,
}

struct Process {
    pid: u32,
    /// `None` once it has ended, until the job is started again; and while a peer runs the job.
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
        let mut watch = Watch::new()?;
        let size = size_of::<Control>().next_multiple_of(1 << 20);
        let mut builder = Pool::builder();
        builder.initial_size(size).max_participants(4095);
        let control = match &config.name {
            None => {
                let pool = builder.create()?;
                Control::create(pool).inspect_err(|_| {
                    // SAFETY: nothing was made in the pool, which nobody else has.
                    unsafe { pool.unmap() };
                })?
            }
            Some(name) => Self::named(&builder, name, &mut watch)?,
        };
        let pool = control.pool();
        jobs::set_wake(pool, Some(watch.counter()));
        Ok(Master {
            config: config.clone(),
            control: Some(control),
            watch,
            running: Vec::new(),
            count: 0,
            peers: Vec::new(),
            stopping: false,
            pid_file,
            journal,
        })
    }

    /// A control pool that peers find by its name, with everything in it that they need.
    fn named(
        builder: &PoolBuilder,
        name: &str,
        watch: &mut Watch,
    ) -> Result<Shared<Control>, RunError> {
        let name = &peer::pool_name(name);
        // What a killed master has left. Whatever else is there is in the way, and that is said below.
        if let Err(RemoveError::InUse { path }) = remove::remove(name, false, true) {
            return Err(RunError::AlreadyRunning { path });
        }
        let doorbell = watch.doorbell()?.as_raw_fd().unsigned_abs();
        let fill = |pool: Pool| {
            let control = Control::create(pool)?;
            let table = &control.peers;
            let tag = jobs::tag(pool).map_err(ObjectError::from)?;
            table.master.store(tag.word(), Ordering::Relaxed);
            table
                .master_pid
                .store(process::pid().into(), Ordering::Relaxed);
            table.doorbell.store(doorbell, Ordering::Relaxed);
            pool.set_name(peer::CONTROL, &control)
                .map_err(|error| match error {
                    NamedError::Object(error) => error.into(),
                    error => RunError::System(std::io::Error::other(error)),
                })?;
            Ok(control)
        };
        match builder.create_named_with(name, fill) {
            Ok((_, control)) => Ok(control),
            // Somebody else was faster.
            Err(RunError::Pool(CreateError::NameTaken { path })) => {
                Err(RunError::AlreadyRunning { path })
            }
            Err(error) => Err(error),
        }
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
        worker::request(self.control(), None, options, entry, argument, false)
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
        done.started = self.walk()?;
        Ok(done)
    }

    /// Looks at every job.
    fn walk(&mut self) -> Result<usize, RunError> {
        let control = self.control().clone();
        self.look_at_peers(&control);
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
                Phase::Requested => started += usize::from(self.begin(place)),
                Phase::Waiting => {
                    let at = self.running.get(place).and_then(|p| p.as_ref()?.due);
                    match at.filter(|&at| at > now) {
                        Some(at) => due = Some(due.map_or(at, |due| due.min(at))),
                        None => started += usize::from(self.begin(place)),
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
        let own = process.and_then(|process| process.pidfd.as_ref());
        let runs = |peer: &&PeerProcess| peer.job == Some(place);
        let peer = self.peers.iter().flatten().find(runs);
        if let Some(pidfd) = own.or(peer.map(|peer| &peer.pidfd)) {
            watch::kill(pidfd.as_fd());
        }
    }

    /// Starts a requested job: here, or at a peer's. True if it runs now.
    fn begin(&mut self, place: usize) -> bool {
        let control = self.control().clone();
        let wanted = control.job(place).and_then(entry::wanted);
        match wanted {
            Some(wanted) if !self.config.defined.iter().any(|own| own.known == wanted) => {
                self.assign(&control, place, wanted)
            }
            _ => self.fork(place),
        }
    }

    /// Gives a job to an idle peer that has its entry. If there is none it waits, unless the entry
    /// has other types wherever it is.
    fn assign(&mut self, control: &Shared<Control>, place: usize, wanted: Known) -> bool {
        let Some(job) = control.job(place) else {
            return false;
        };
        let here = self.config.defined.iter().map(|own| (own.name, own.known));
        let theirs = self.peers.iter().flatten().flat_map(|peer| &peer.defined);
        let all = here.chain(theirs.map(|(name, known)| (name.as_str(), *known)));
        let mut namesakes = all
            .filter(|(_, known)| known.name == wanted.name)
            .peekable();
        let other = namesakes.peek().map(|(name, _)| (*name).to_owned());
        if let Some(name) = other
            && namesakes.all(|(_, known)| known != wanted)
        {
            job.result.clear();
            let _ = worker::store(job, control.pool(), Kind::OtherTypes, name.as_bytes());
            self.end(place, supervise::NOT_STARTED);
            return false;
        }
        let id = job.state().id();
        let before = job.state().phase();
        for (index, peer) in self.peers.iter_mut().enumerate() {
            let Some(peer) = peer else { continue };
            let has = peer.defined.iter().any(|(_, known)| *known == wanted);
            let Some(at) = control.peers.place(index).filter(|_| has) else {
                continue;
            };
            if peer.job.is_some() || at.state() != peers::State::of(peers::Phase::Idle, peer.tag) {
                continue;
            }
            // By the table's invariant 2.
            job.advance(Phase::Running);
            if at.assign(peer.tag, Assigned { place, id }) {
                peer.job = Some(place);
                if self.running.len() <= place {
                    self.running.resize_with(place + 1, || None);
                }
                self.running[place] = Some(Process {
                    pid: 0,
                    pidfd: None,
                    due: None,
                });
                return true;
            }
            job.advance(before);
        }
        false
    }

    /// Sees which peers have come, have done their job, or have left.
    fn look_at_peers(&mut self, control: &Shared<Control>) {
        let arena = control.pool().0;
        for (index, place) in control.peers.places() {
            let state = place.state();
            let known = self.peers.get(index).and_then(Option::as_ref);
            let known = known.is_some_and(|peer| peer.tag == state.tag());
            match state.phase() {
                peers::Phase::Free | peers::Phase::Runs => {}
                peers::Phase::Claimed => {
                    if place.is_gone(arena) {
                        place.release();
                    }
                }
                peers::Phase::Idle if !known => self.admit(control, index),
                peers::Phase::Idle => {}
                peers::Phase::Done => {
                    self.peer_done(index, supervise::pack(process::Ended::Exited(0)));
                    place.turn(state, peers::Phase::Idle);
                    place.wake();
                }
                peers::Phase::Left => {
                    self.forget(index);
                    place.release();
                }
            }
        }
    }

    /// A peer has come.
    fn admit(&mut self, control: &Shared<Control>, index: usize) {
        let Some(place) = control.peers.place(index) else {
            return;
        };
        let tag = place.state().tag();
        let pid = place.pid.load(Ordering::Relaxed) as u32;
        let watched = watch::pidfd(pid).and_then(|pidfd| {
            self.watch.add(pidfd.as_fd(), (JOBS + index) as u64)?;
            Ok(pidfd)
        });
        // The process lived after its descriptor was had, so it is the descriptor's process.
        let Some(pidfd) = watched.ok().filter(|_| !place.is_gone(control.pool().0)) else {
            if place.is_gone(control.pool().0) {
                place.release();
            }
            return;
        };
        let defined = place.defined.read(|bytes| {
            let defined: Vec<(String, u64)> = postcard::from_bytes(bytes).unwrap_or_default();
            defined
                .into_iter()
                .map(|(name, signature)| {
                    let known = Known::new(&name, signature);
                    (name, known)
                })
                .collect()
        });
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, || None);
        }
        self.peers[index] = Some(PeerProcess {
            tag,
            pid,
            pidfd,
            defined,
            job: None,
        });
    }

    /// The job that a peer ran has ended.
    fn peer_done(&mut self, index: usize, outcome: u32) {
        let peer = self.peers.get_mut(index).and_then(Option::as_mut);
        if let Some(place) = peer.and_then(|peer| peer.job.take()) {
            self.end(place, outcome);
        }
    }

    fn forget(&mut self, index: usize) {
        if let Some(peer) = self.peers.get_mut(index).and_then(Option::take) {
            self.watch.remove(peer.pidfd.as_fd());
        }
    }

    /// A peer's process has ended; true if it ran a job.
    fn peer_died(&mut self, index: usize) -> bool {
        let control = self.control().clone();
        let Some(peer) = self.peers.get(index).and_then(Option::as_ref) else {
            return false;
        };
        let ran = peer.job.is_some();
        let ended = process::ended_elsewhere(peer.pid, peer.pidfd.as_fd());
        recovered(peer.pid);
        let place = control.peers.place(index);
        // It may have done its job, or have left, before it died.
        let state = place.map(|place| place.state().phase());
        let ended = match state {
            Some(peers::Phase::Done) => process::Ended::Exited(0),
            _ => ended,
        };
        self.peer_done(index, supervise::pack(ended));
        self.forget(index);
        if let Some(place) = place {
            place.release();
        }
        ran
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
        // By invariant 4: closed again just before the pidfd is opened.
        let spare = self.watch.counter().try_clone_to_owned();
        let spare = spare.map_err(|error| error.to_string())?;
        let defined = self.config.defined.clone();
        let mut body = || {
            self.close_in_child(spare.as_fd());
            worker::live(&control, place, id, &defined)
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
        while self.count > 0 || self.peers.iter().flatten().any(|peer| peer.job.is_some()) {
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
        if let Some(name) = &self.config.name {
            // Peers that are left keep what they have, and find no master.
            let _ = Pool::unlink(&peer::pool_name(name));
        }
        if let Some(control) = self.control.take() {
            let pool = control.pool();
            // Says so to peers that find the pool in this moment.
            control.stop();
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
