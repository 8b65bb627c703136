//! [`run`]: a master for as long as its first worker lives.

use std::io;

use super::{Config, Entry, JoinError, JournalError, Master, StartError, Wire};
use crate::pool::{CreateError, ObjectError};

/// Why there is no result of a run.
///
/// ```
/// use shmkit::process::{Config, Entry, JoinError, RunError, run};
///
/// static EXITS: Entry<(), ()> = Entry::new("exits", |_, ()| std::process::exit(3));
/// let failed = run(&Config::new(), &EXITS, ());
/// assert!(matches!(failed, Err(RunError::First(JoinError::Exited(3)))));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The control pool could not be made.
    #[error("the control pool could not be made")]
    Pool(#[from] CreateError),
    /// What is in the control pool could not be made.
    #[error("the control pool has no memory")]
    NoMemory(#[from] ObjectError),
    /// The process has other threads: a process that it forks would find their locks locked for
    /// ever.
    #[error("this process has {tasks} threads; a master has one")]
    MultiThreaded {
        /// The number of threads, the caller's included.
        tasks: usize,
    },
    /// Another run uses the pid file, or the run directory.
    #[error("another run uses {path}")]
    AlreadyRunning {
        /// The file.
        path: String,
    },
    /// A file could not be made or written.
    #[error("the file {path} cannot be used")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The journal in the run directory cannot be used; nothing was removed. See
    /// [`Config::run_directory`].
    #[error("the journal {path} cannot be used")]
    Journal {
        /// The file.
        path: String,
        /// Why.
        #[source]
        error: JournalError,
    },
    /// The process is not a master: it was forked from one by other means, and has a copy.
    #[error("this process has but a copy of the master")]
    Forked,
    /// The first worker could not be requested.
    #[error("the first worker could not be started")]
    Start(#[from] StartError),
    /// The first worker gave no result.
    #[error("the first worker gave no result")]
    First(#[from] JoinError),
    /// The kernel refused something, when the master was made or later.
    #[error("the system refused what the master needs")]
    System(#[from] io::Error),
}

/// Makes the calling process a master, runs `first` as its first worker, and returns what that
/// returned. Workers that are then left are ended; see [`Config::patience`].
///
/// Workers are always forked by the master, from the state of its main thread, so a worker inherits
/// what the master has: make pools before the run, and pass descriptors of what is in them
/// ([`Handle`](crate::Handle)) to the entry points.
///
/// # Errors
///
/// See [`RunError`].
///
/// # Crash behaviour
///
/// A worker may be killed at any instruction; see [`JoinHandle::join`](super::JoinHandle::join). If
/// the calling *thread* dies, the workers are killed.
///
/// ```
/// use shmkit::process::{Config, Entry, JoinError, Worker, run};
/// use shmkit::sync::Mutex;
/// use shmkit::{Handle, Pool};
///
/// type Total = Handle<Mutex<u64>>;
/// static ADD: Entry<(Total, u64), ()> = Entry::new("add", |_, (total, n)| {
///     *total.open().unwrap().lock().unwrap() += n;
/// });
/// static FAIL: Entry<(), ()> = Entry::new("fail", |_, ()| std::process::abort());
/// static FIRST: Entry<Total, bool> = Entry::new("first", first);
///
/// fn first(worker: &Worker, total: Total) -> bool {
///     let adders = [1, 2, 3].map(|n| worker.start(&ADD, &(total, n)).unwrap());
///     for adder in adders {
///         adder.join().unwrap();
///     }
///     matches!(worker.start(&FAIL, &()).unwrap().join(), Err(JoinError::Signaled(6)))
/// }
///
/// let pool = Pool::builder().create()?;
/// let total = pool.create(Mutex::new(0))?;
/// assert!(run(&Config::new(), &FIRST, total.handle())?);
/// assert_eq!(*total.lock().unwrap(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run<A: Wire, R: Wire>(
    config: &Config,
    first: &'static Entry<A, R>,
    argument: A,
) -> Result<R, RunError> {
    let mut master = Master::new(config)?;
    let handle = master.start(first, &argument)?;
    drop(argument);
    let result = loop {
        master.turn(None)?;
        if let Some(result) = handle.poll(master.control()) {
            break result;
        }
    };
    master.finish()?;
    Ok(result?)
}
