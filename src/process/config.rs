//! [`Config`]: how a run is set up; [`StartOptions`]: how a worker is started.

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::entry::{self, Defined};
use super::jobs::JOBS;
use super::{Entry, Inherit, Restart, Wire, WorkerEnd};

type Hook = dyn Fn(&WorkerEnd);

/// How a [`run`](super::run), or a [`Master`](super::Master), is set up.
///
/// ```
/// use shmkit::process::Config;
/// use std::time::Duration;
///
/// let config = Config::new()
///     .max_workers(100)
///     .patience(Duration::from_secs(2))
///     .on_end(|end| eprintln!("worker {} has ended: {:?}", end.worker, end.cause));
/// ```
#[derive(Clone)]
pub struct Config {
    pub(super) pid_file: Option<PathBuf>,
    pub(super) run_directory: Option<PathBuf>,
    pub(super) patience: Duration,
    pub(super) max_workers: usize,
    pub(super) on_end: Option<Rc<Hook>>,
    pub(super) name: Option<String>,
    pub(super) defined: Vec<Defined>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            pid_file: None,
            run_directory: None,
            patience: Duration::from_millis(100),
            max_workers: JOBS,
            on_end: None,
            name: None,
            defined: Vec::new(),
        }
    }
}

impl Config {
    /// No files, 100 ms of patience, as many workers as there can be.
    ///
    /// ```
    /// use shmkit::process::Config;
    /// assert!(format!("{:?}", Config::new()).contains("100ms"));
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Config::default()
    }

    /// A file that holds the master's pid while it runs. It is locked for that time, so that a
    /// second run with the same file is refused; a file that a killed master has left is taken
    /// over. A file that holds anything other than a number, a symbolic link, and anything that is
    /// not a regular file are refused, and stay as they are.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    /// let path = std::env::temp_dir().join(format!("doc-{}.pid", std::process::id()));
    /// static SEES: Entry<std::path::PathBuf, bool> = Entry::new("sees", |_, path| path.exists());
    /// let config = Config::new().pid_file(&path);
    /// assert!(run(&config, &SEES, path.clone())?);
    /// assert!(!path.exists());
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn pid_file(mut self, path: impl AsRef<Path>) -> Self {
        self.pid_file = Some(path.as_ref().into());
        self
    }

    /// A directory for the crash journal of [`Resources`](super::Resources), which is made if it
    /// does not exist. It serves one run at a time, which removes what a crashed run has left
    /// there. A journal that another user may have written is refused, and nothing that it names is
    /// removed: see [`JournalError`](super::JournalError). Without a directory, nothing is
    /// journalled: what a killed master leaves stays.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, run};
    /// let directory = std::env::temp_dir().join(format!("doc-{}.run", std::process::id()));
    /// static UNIT: Entry<(), ()> = Entry::new("unit", |_, ()| ());
    /// let config = Config::new().run_directory(&directory);
    /// run(&config, &UNIT, ())?;
    /// // A run that ends in order leaves no journal.
    /// assert!(!directory.join("journal").exists());
    /// # std::fs::remove_dir(&directory).unwrap();
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn run_directory(mut self, path: impl AsRef<Path>) -> Self {
        self.run_directory = Some(path.as_ref().into());
        self
    }

    /// How long workers that are left when the first one has returned are given to end by
    /// themselves, once they are asked to (see [`Worker::stop_requested`]): 100 ms by default. Then
    /// they are killed.
    ///
    /// [`Worker::stop_requested`]: super::Worker::stop_requested
    ///
    /// ```
    /// use shmkit::process::Config;
    /// let config = Config::new().patience(std::time::Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How many worker processes there may be at once; by default 4096, the most jobs there can be.
    /// The control pool limits this too: to 4094, less the peers. So do the pools that the master
    /// has attached: to 1023 each, unless they were made for more. Joining a worker that is one too
    /// many returns [`JoinError::NotStarted`](super::JoinError::NotStarted).
    ///
    /// ```
    /// use shmkit::process::Config;
    /// let config = Config::new().max_workers(100);
    /// ```
    #[must_use]
    pub fn max_workers(mut self, count: usize) -> Self {
        self.max_workers = count;
        self
    }

    /// A name by which other programs find the run and take part in it as [peers](super::Peer). It
    /// must be one that a [named pool](crate::PoolBuilder::create_named) can have, since the run's
    /// control pool is named `NAME.run`. What a killed master has left under the name is removed,
    /// once nobody has it any more. If a run of that name is in progress, the new one is refused
    /// with [`AlreadyRunning`](super::RunError::AlreadyRunning). Anything else that is not a run's
    /// control pool stays, and the name counts as taken.
    ///
    /// A program that has been a peer has the control pool until its process ends. So if the master
    /// is killed, a program that lives on is in the next run's way, unless it finds out: a peer
    /// that [serves](super::Peer::serve) does, and removes the name. So does a program that has
    /// dropped its [`Peer`](super::Peer) and [attaches](super::Peer::attach) to the run once more.
    /// Otherwise the program must be ended, or the name removed by
    /// [`Pool::unlink`](crate::Pool::unlink).
    ///
    /// ```
    /// use shmkit::process::Config;
    /// let config = Config::new().name("squares");
    /// ```
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Lets other programs start this entry by its name. An entry that is itself
    /// [external](super::Entry::external) is not one that this program has, and changes nothing.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry};
    /// static SQUARE: Entry<u64, u64> = Entry::new("square", |_, n| n * n);
    /// let config = Config::new().name("squares").define(&SQUARE);
    /// ```
    #[must_use]
    pub fn define<A: Wire, R: Wire>(mut self, entry: &'static Entry<A, R>) -> Self {
        self.defined.extend(entry::define(entry));
        self
    }

    /// A function that the master calls whenever a worker has ended, after those that join the
    /// worker have been told.
    ///
    /// # Panics
    ///
    /// If the function panics, the panic goes on in [`run`](super::run), [`Master::dispatch`] or
    /// [`Master::finish`], once everything that was to be done is done; if there are several, the
    /// first one does. When the master is dropped, the panic is printed, and goes no further.
    ///
    /// [`Master::dispatch`]: super::Master::dispatch
    /// [`Master::finish`]: super::Master::finish
    ///
    /// ```
    /// use shmkit::process::Config;
    /// let config = Config::new().on_end(|end| println!("{}: {:?}", end.worker, end.cause));
    /// ```
    #[must_use]
    pub fn on_end(mut self, hook: impl Fn(&WorkerEnd) + 'static) -> Self {
        self.on_end = Some(Rc::new(hook));
        self
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("pid_file", &self.pid_file)
            .field("run_directory", &self.run_directory)
            .field("patience", &self.patience)
            .field("max_workers", &self.max_workers)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How a worker is to be started; for [`Worker::start_with`](super::Worker::start_with).
///
/// ```
/// use shmkit::process::{Backoff, Restart, StartOptions};
///
/// let options = StartOptions::new().restart(Restart::OnCrash(Backoff::default().times(3)));
/// assert_ne!(options, StartOptions::new());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartOptions<'a> {
    pub(super) restart: Restart,
    pub(super) inherit: Inherit<'a>,
}

impl<'a> StartOptions<'a> {
    /// Options with which the worker is started once.
    ///
    /// ```
    /// use shmkit::process::StartOptions;
    /// assert_eq!(StartOptions::new(), StartOptions::default());
    /// ```
    #[must_use]
    pub fn new() -> Self {
        StartOptions::default()
    }

    /// Whether the worker is started again when it has ended.
    ///
    /// ```
    /// use shmkit::process::{Backoff, Restart, StartOptions};
    /// let options = StartOptions::new().restart(Restart::Always(Backoff::default()));
    /// ```
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// Which of the caller's managed resources the worker uses from its start.
    ///
    /// ```
    /// use shmkit::process::{Inherit, StartOptions};
    /// let options = StartOptions::new().inherit(Inherit::All);
    /// ```
    #[must_use]
    pub fn inherit(mut self, which: Inherit<'a>) -> Self {
        self.inherit = which;
        self
    }
}
