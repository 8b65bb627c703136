//! [`Peer`]: a program that was started separately, in a run that it has found by the run's name.
//!
//! The control pool of a named run can be opened like any named pool, and lies at the same address
//! in the peer. What the peer cannot have is the master's memory: so it calls nothing by address,
//! and entries are known by their names and types on both sides.
//!
//! The master is woken through a pipe of its own, which a peer opens through `/proc`: a program of
//! the same user can do so. Between jobs a peer sleeps on its place in the table; see `peers.rs`.

use std::io;
use std::marker::PhantomData;

use rustix::fs::{FileType, Mode, OFlags};

use super::entry::{self, Defined};
use super::jobs::Control;
use super::part;
use super::peers::PeerPhase;
use super::worker::LOOK;
use super::{Entry, JoinHandle, StartError, StartOptions, Wire, Worker, worker};
use crate::containers::{NamedError, Shared};
use crate::participants::thread::NoSlot;
use crate::pool::{AttachError, ObjectError, Pool, PoolName, remove};
use crate::primitive::Ordering;
use crate::sys::process;

/// The control block's name in the control pool of a named run.
pub(super) const CONTROL: &str = "shmkit run";

/// The name of a run's control pool, which differs from that of any pool of the user's. For a name
/// that no pool can have, that name itself, which is then refused.
pub(super) fn pool_name(run: &str) -> String {
    match PoolName::parse(run) {
        Some(_) => format!("{run}.run"),
        None => run.into(),
    }
}

/// What stands for a peer outside its jobs, in place of a worker's number.
const OUTSIDE: u64 = u64::MAX;

/// Why a program does not take part in a run, or no longer does.
///
/// ```
/// use shmkit::process::{Peer, PeerError};
/// // SAFETY: there is no run, and so no pool, of that name.
/// let peer = unsafe { Peer::attach("no such run") };
/// assert!(matches!(peer, Err(PeerError::Attach(_))));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// There is no pool of the run's name, or it is not of this version.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The pool of that name is not a run's.
    #[error("the pool of that name is not that of a run")]
    NotARun,
    /// The run was made by another version of the library.
    #[error("the run is of another version of the library")]
    OtherVersion,
    /// The run has as many peers, or threads, as it can have.
    #[error("the run has as many participants as it can have")]
    TooMany,
    /// The control pool has no room.
    #[error("the run's control pool has no memory")]
    NoMemory(#[from] ObjectError),
    /// The master is dead: the run is over.
    #[error("the run's master is dead")]
    MasterDied,
    /// The process is the master, or one of its workers.
    #[error("this process takes part in the run already")]
    Already,
    /// The master cannot be woken: its process belongs to another user, or `/proc` to another PID
    /// namespace.
    #[error("the run's master cannot be reached")]
    Unreachable(#[source] io::Error),
}

impl From<NoSlot> for PeerError {
    fn from(_: NoSlot) -> Self {
        PeerError::TooMany
    }
}

/// A program that takes part in a run and was not forked by its master: it runs jobs of the entries
/// that it [defines](Self::define), and starts and joins workers like any worker.
///
/// Entries are found by their names, and agree if their types look the same to serde: the same
/// names and order of fields and variants, and the same kinds of numbers. A job whose entry has
/// other types in the program that defines it ends with
/// [`JoinError::OtherTypes`](super::JoinError::OtherTypes). A job whose entry nobody defines waits
/// until somebody does.
///
/// A peer runs one job at a time. Start several processes to run several at once.
///
/// # Crash behaviour
///
/// A peer that is killed is recovered in the control pool, and in every other pool that the master
/// has, before joining the job that it ran returns. The join returns the signal, if the system
/// still reports it ([`JoinError::Signaled`](super::JoinError::Signaled)), otherwise
/// [`ResultError::Lost`](super::ResultError::Lost): the peer is a child of another process, which
/// may have taken its status first. Another peer starts its job again if the job's
/// [`Restart`](super::Restart) says so.
///
/// If the master dies, [`serve`](Self::serve) ends.
///
/// ```no_run
/// use shmkit::process::{Entry, Peer};
///
/// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
///
/// // SAFETY: only programs that cooperate open pools of this name.
/// let peer = unsafe { Peer::attach("squares") }?.define(&SQUARE);
/// let done = peer.serve()?;
/// println!("{done} jobs");
/// # Ok::<(), shmkit::process::PeerError>(())
/// ```
///
/// The other program:
///
/// ```no_run
/// use shmkit::process::{Config, Entry, Worker, run};
///
/// static SQUARE: Entry<u64, u64> = Entry::external("square");
/// static FIRST: Entry<(), u64> = Entry::new("first", |worker: &Worker, ()| {
///     worker.start(&SQUARE, &12).unwrap().join().unwrap()
/// });
///
/// let config = Config::new().name("squares");
/// assert_eq!(run(&config, &FIRST, ())?, 144);
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
pub struct Peer {
    name: String,
    control: Shared<Control>,
    defined: Vec<Defined>,
    /// The run identifies a peer by its thread.
    _thread: PhantomData<*const ()>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Peer {
    /// Takes part in the run of that name; see [`Config::name`](super::Config::name).
    ///
    /// # Safety
    ///
    /// As for [`Pool::open`].
    ///
    /// # Errors
    ///
    /// See [`PeerError`]. The run has not changed. Once mapped, a control pool stays mapped, as
    /// every pool does: a program that is to take part in dozens of runs, one after another, must
    /// `exec` itself anew.
    /// ```no_run
    /// use shmkit::process::{Entry, Peer};
    ///
    /// static SQUARE: Entry<u64, u64> = Entry::external("square");
    /// // SAFETY: only programs that cooperate open pools of this name.
    /// let peer = unsafe { Peer::attach("squares") }?;
    /// drop(peer);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn attach(name: &str) -> Result<Peer, PeerError> {
        let name = pool_name(name);
        // SAFETY: by the caller's promise.
        let pool = unsafe { Pool::open(&name) }?;
        let control = pool
            .named::<Control>(CONTROL)
            .map_err(|error| match error {
                NamedError::OtherType => PeerError::OtherVersion,
                NamedError::Object(ObjectError::NoSlot(_)) => PeerError::TooMany,
                NamedError::Object(error) => PeerError::NoMemory(error),
                _ => PeerError::NotARun,
            })?;
        if part::takes_part(pool) {
            return Err(PeerError::Already);
        }
        if control.peers.is_orphaned(pool.0) {
            unlink(&control, &name);
            return Err(PeerError::MasterDied);
        }
        if !process::proc_counts_as_we_do() {
            // The process with the master's number there is another one.
            let why = "/proc is that of another PID namespace";
            return Err(PeerError::Unreachable(io::Error::other(why)));
        }
        let pid = control.peers.master_pid.load(Ordering::Relaxed);
        let number = control.peers.doorbell.load(Ordering::Relaxed);
        // Opened for reading, too: writing to a pipe that has a reader raises no signal, should the
        // master die.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let path = format!("/proc/{pid}/fd/{number}");
        let opened = rustix::fs::open(path, flags, Mode::empty()).and_then(|doorbell| {
            let mode = rustix::fs::fstat(&doorbell)?.st_mode;
            match FileType::from_raw_mode(mode) {
                FileType::Fifo => Ok(doorbell),
                _ => Err(rustix::io::Errno::BADF),
            }
        });
        // The master still lives after its pipe was opened, so the pipe is not that of a later
        // process with its number.
        if control.peers.is_orphaned(pool.0) {
            return Err(PeerError::MasterDied);
        }
        let doorbell = opened.map_err(|error| PeerError::Unreachable(error.into()))?;
        part::set_doorbell(pool, doorbell).map_err(|error| PeerError::Unreachable(error.into()))?;
        part::set_me(pool, OUTSIDE);
        Ok(Peer {
            name,
            control,
            defined: Vec::new(),
            _thread: PhantomData,
        })
    }

    /// Lets this process run jobs of an entry, from [`serve`](Self::serve) on. An entry that is
    /// [external](Entry::external) is not one that this program has, and changes nothing.
    ///
    /// ```no_run
    /// use shmkit::process::{Entry, Peer};
    ///
    /// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
    /// // SAFETY: only programs that cooperate open pools of this name.
    /// let peer = unsafe { Peer::attach("squares") }?.define(&SQUARE);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn define<A: Wire, R: Wire>(mut self, entry: &'static Entry<A, R>) -> Self {
        self.defined.extend(entry::define(entry));
        self
    }

    /// Starts a worker: if the master's program has [defined](super::Config::define) the entry, in
    /// a process that the master forks; if a peer has defined it, in that peer.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    ///
    /// ```no_run
    /// use shmkit::process::{Entry, Peer};
    ///
    /// static SQUARE: Entry<u64, u64> = Entry::external("square");
    /// // SAFETY: only programs that cooperate open pools of this name.
    /// let peer = unsafe { Peer::attach("squares") }?;
    /// assert_eq!(peer.start(&SQUARE, &12)?.join()?, 144);
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
    /// ```no_run
    /// use shmkit::process::{Entry, Peer};
    ///
    /// static SQUARE: Entry<u64, u64> = Entry::external("square");
    /// // SAFETY: only programs that cooperate open pools of this name.
    /// let peer = unsafe { Peer::attach("squares") }?;
    /// let options = shmkit::process::StartOptions::new();
    /// assert_eq!(peer.start_with(options, &SQUARE, &12)?.join()?, 144);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start_with<A: Wire, R: Wire>(
        &self,
        options: StartOptions<'_>,
        entry: &'static Entry<A, R>,
        argument: &A,
    ) -> Result<JoinHandle<R>, StartError> {
        worker::request(&self.control, None, options, entry, argument, true)
    }

    /// Whether the run is coming to its end, or its master is dead.
    ///
    /// ```no_run
    /// use shmkit::process::{Entry, Peer};
    ///
    /// static SQUARE: Entry<u64, u64> = Entry::external("square");
    /// // SAFETY: only programs that cooperate open pools of this name.
    /// let peer = unsafe { Peer::attach("squares") }?;
    /// while !peer.stop_requested() {
    ///     peer.start(&SQUARE, &12)?.join()?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        worker::is_ending(&self.control)
    }

    /// Runs jobs of the entries that were defined, until the run comes to its end; returns how
    /// many.
    ///
    /// # Errors
    ///
    /// [`PeerError::MasterDied`], [`PeerError::TooMany`], [`PeerError::NoMemory`].
    ///
    /// # Crash behaviour
    ///
    /// See [`Peer`].
    ///
    /// ```no_run
    /// use shmkit::process::{Entry, Peer};
    ///
    /// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
    /// // SAFETY: only programs that cooperate open pools of this name.
    /// let peer = unsafe { Peer::attach("squares") }?.define(&SQUARE);
    /// println!("{} jobs", peer.serve()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn serve(self) -> Result<u64, PeerError> {
        let (control, pool) = (&self.control, self.control.pool());
        let table = &control.peers;
        let index = table.claim(part::tag(pool)?).ok_or(PeerError::TooMany)?;
        let place = table.place(index).ok_or(PeerError::TooMany)?;
        let known: Vec<_> = self
            .defined
            .iter()
            .map(|defined| (defined.name, defined.known.signature))
            .collect();
        let bytes = postcard::to_stdvec(&known).unwrap_or_default();
        if let Err(error) = place.enter(pool, process::pid(), &bytes) {
            place.release();
            return Err(error.into());
        }
        part::wake_master(pool);
        let mut done = 0;
        loop {
            // Read before anything is looked at, so that no change is slept through.
            let changed = place.changed();
            let state = place.state();
            match state.phase() {
                PeerPhase::Runs => {
                    let job = place.assigned();
                    let worker = Worker::new(control.clone(), job.place, job.id, true);
                    worker::perform(&worker, &self.defined);
                    worker.end_uses();
                    part::set_me(pool, OUTSIDE);
                    done += 1;
                    place.turn(state, PeerPhase::Done);
                    part::wake_master(pool);
                }
                // The master is about to see it.
                _ if table.is_orphaned(pool.0) => {
                    // The next run must not be hindered because we have the pool.
                    unlink(control, &self.name);
                    // The run may have ended in an orderly way while we did not look.
                    let ended = control.is_stopping().then_some(done);
                    return ended.ok_or(PeerError::MasterDied);
                }
                PeerPhase::Idle if control.is_stopping() => {
                    if place.turn(state, PeerPhase::Left) {
                        part::wake_master(pool);
                        return Ok(done);
                    }
                }
                _ => place.wait(changed, LOOK),
            }
        }
    }
}

/// Removes the name of a run whose master is dead; only one process does so, once. A second one
/// might look at the name before it is gone, and remove it when it is the next run's. While the
/// first process has the pool, the name is not given to another run before it is removed.
fn unlink(control: &Shared<Control>, name: &str) {
    if control.peers.claim_name() {
        remove::unlink_ours(control.pool(), name);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Handles of what the peer has started may still be joined later.
        part::set_me(self.control.pool(), part::LEFT);
    }
}

#[cfg(test)]
mod tests {
    use super::super::peers::Place;
    use super::*;

    /// For want of memory for what it has defined.
    #[test]
    fn who_cannot_serve_has_no_place() {
        static ONE: Entry<(), u8> = Entry::new("one", |_, ()| 1);
        let pool = Pool::builder().max_size(4 << 20).create().unwrap();
        let control = Control::create(pool).unwrap();
        let peer = Peer {
            name: String::new(),
            control: control.clone(),
            defined: vec![entry::define(&ONE).unwrap(); 1 << 19],
            _thread: PhantomData,
        };
        assert!(matches!(peer.serve(), Err(PeerError::NoMemory(_))));
        let is_free = |place: &Place| place.state().phase() == PeerPhase::Free;
        assert!(control.peers.places().all(|(_, place)| is_free(place)));
        drop(control);
        // SAFETY: nothing refers to it any more.
        unsafe { pool.unmap() };
    }
}
