//! Managed resources: what lives outside pools and has to go when nobody uses it any more.
//!
//! A worker announces a resource *before* it makes it; the master writes the announcement to its
//! journal, and from then on the resource has an id, by which other workers find it. Each worker
//! that uses it has a bit in the resource's place. When the last bit goes, because a use is dropped
//! or a worker dies, the master removes the resource, and then strikes it from the journal. The
//! places, and what a kill leaves of them, are in `places.rs`; a worker's side is here.
//!
//! Within a process, uses are counted in private memory, and bits change under its lock. A peer
//! ends its job under that lock before the master hears of it: whatever other threads of the peer
//! keep of the job's uses changes no bit from then on.

mod places;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use self::places::{ID_SHIFT, Place, REFUSED, REQUESTED, word};
pub(super) use self::places::{PLACES, Table};
use super::Resource;
use super::jobs::{Control, PayloadKind};
use super::part;
use super::table::PHASE;
use crate::containers::Shared;
use crate::participants::lock::TICK;
use crate::participants::thread::NoSlot;
use crate::pool::ObjectError;
use crate::primitive::Ordering;
use crate::sys::{futex, process};

/// Names a managed resource of a run; it may be passed in arguments and results. The same id is
/// never given to another resource. See [`Resources`] for an example.
///
/// ```
/// use shmkit::process::{Config, Entry, Resource, run};
///
/// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
///     let path = std::env::temp_dir().join(format!("doc-rid-{}", std::process::id()));
///     let file = worker.resources().manage(Resource::File(path.clone())).unwrap();
///     assert_eq!(worker.resources().get(file.id()).unwrap().id(), file.id());
/// });
/// run(&Config::new(), &FIRST, ())?;
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceId(u64);

/// Why a resource is not managed, or cannot be used.
///
/// ```
/// use shmkit::process::{Config, Entry, Resource, ResourceError, run};
///
/// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
///     let resources = worker.resources();
///     let unnamed = resources.manage(Resource::Semaphore(String::new()));
///     assert!(matches!(unnamed, Err(ResourceError::InvalidName)));
///     let path = std::env::temp_dir().join(format!("doc-rerr-{}", std::process::id()));
///     let id = resources.manage(Resource::File(path)).unwrap().id();
///     // Until the master has removed it, it can be had again.
///     let gone = std::iter::repeat_with(|| resources.get(id)).find_map(Result::err);
///     assert!(matches!(gone, Some(ResourceError::Gone)));
/// });
/// run(&Config::new(), &FIRST, ())?;
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// It has a name that no such resource can have.
    #[error("no resource can have that name")]
    InvalidName,
    /// It is a pool that is yet to be made, and there already is a pool, or another file, of that
    /// name. That file stays.
    #[error("the pool's name is taken: {path}")]
    NameTaken {
        /// The file that has it.
        path: String,
    },
    /// It is gone: nobody used it any more.
    #[error("the resource is gone")]
    Gone,
    /// The run is over: its master is dead. Or the job that a [peer](super::Peer) ran is over: a
    /// thread that the job has left behind can use nothing on its behalf.
    #[error("the run is over, or the job")]
    RunOver,
    /// The program has closed the descriptor through which this process wakes the master.
    #[error("the master cannot be woken: the descriptor for that was closed")]
    Unreachable,
    /// There are 256 managed resources.
    #[error("there are as many managed resources as there can be")]
    TooMany,
    /// The journal could not be written; the text says why.
    #[error("the journal could not be written: {0}")]
    Journal(String),
    /// No memory for its name.
    #[error("the name of the resource could not be written")]
    NoMemory(#[from] ObjectError),
    /// The run has as many threads as it can have.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// Which managed resources a started worker uses from its start, among those that its starter uses:
/// so they exist when it asks for them. It uses them until it has ended for good.
///
/// ```
/// use shmkit::process::{Inherit, StartOptions};
///
/// let options = StartOptions::new().inherit(Inherit::All);
/// assert_ne!(options, StartOptions::new());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inherit<'a> {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// These.
    These(&'a [ResourceId]),
}

/// The managed resources of a run, as a worker sees them; obtained from
/// [`Worker::resources`](super::Worker::resources).
///
/// ```
/// use shmkit::process::{Config, Entry, Resource, ResourceId, run};
///
/// static READ: Entry<ResourceId, String> = Entry::new("read", |worker, id| {
///     let file = worker.resources().get(id).unwrap();
///     std::fs::read_to_string(file.path()).unwrap()
/// });
/// static FIRST: Entry<std::path::PathBuf, String> = Entry::new("first", |worker, path| {
///     // First announced, then made: no crash leaves it behind.
///     let file = worker.resources().manage(Resource::File(path)).unwrap();
///     std::fs::write(file.path(), "text").unwrap();
///     worker.start(&READ, &file.id()).unwrap().join().unwrap()
/// });
///
/// let path = std::env::temp_dir().join(format!("shmkit-doc-{}", std::process::id()));
/// assert_eq!(run(&Config::new(), &FIRST, path.clone())?, "text");
/// assert!(!path.exists());
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Clone)]
pub struct Resources(Arc<Inner>);

struct Inner {
    control: Shared<Control>,
    user: usize,
    pid: u32,
    /// How often this process uses which resource (see the module). An inherited resource has one
    /// use more, which never ends.
    uses: Mutex<Uses>,
}

struct Uses {
    counts: HashMap<u64, usize>,
    /// The job is over, and its place may be another's.
    over: bool,
}

impl Resources {
    /// What the job at the place `user` uses; its process is `pid`.
    pub(super) fn new(control: Shared<Control>, user: usize, pid: u32) -> Self {
        let inherited = control.resources.used_by(user);
        let counts = inherited.map(|id| (id.0, 1)).collect();
        Resources(Arc::new(Inner {
            control,
            user,
            pid,
            uses: Mutex::new(Uses {
                counts,
                over: false,
            }),
        }))
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.0.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job is about to be over, in a process that goes on. The master clears what the job used.
    pub(super) fn end(&self) {
        self.uses().over = true;
    }

    /// Has a resource removed when nobody uses it any more, at the latest when the run ends.
    /// Announce it *before* it is made: then, with a journal ([`Config::run_directory`]), no crash
    /// leaves it behind. If it is managed already, this returns a use of it. A file or a semaphore
    /// that exists already is removed like one that is made later; the name of a pool must be free.
    /// From then on the name is the run's, and whatever has that name in the end is removed.
    ///
    /// # Errors
    ///
    /// See [`ResourceError`].
    ///
    /// # Crash behaviour
    ///
    /// If the caller dies, the resource may already be managed; it is then removed.
    ///
    /// [`Config::run_directory`]: super::Config::run_directory
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Resource, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let path = std::env::temp_dir().join(format!("doc-manage-{}", std::process::id()));
    ///     let file = worker.resources().manage(Resource::File(path.clone())).unwrap();
    ///     std::fs::write(file.path(), "text").unwrap();
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn manage(&self, resource: Resource) -> Result<Managed, ResourceError> {
        let resource = resource.absolute();
        let table = &self.0.control.resources;
        let known = table.managed_as(&resource);
        if let Some(Ok(managed)) = known.map(|(id, _)| self.get(id)) {
            return Ok(managed);
        }
        let (id, place) = self.request(&resource)?;
        loop {
            let answered = place.answered.load(Ordering::Acquire);
            let state = place.state.load();
            match state & PHASE {
                // The place is free again, or another's: the job is over.
                _ if state >> ID_SHIFT != id => return Err(ResourceError::RunOver),
                REQUESTED if self.0.control.is_orphaned() => return Err(ResourceError::RunOver),
                REQUESTED => futex::wait(&place.answered, answered, TICK),
                REFUSED if place.answer.kind() == PayloadKind::Value => {
                    // Others have announced it before us, and it has our bit: see `lead_to`.
                    let same = place
                        .answer
                        .read(|id| Some(u64::from_ne_bytes(*id.as_array()?)));
                    let managed = self.get(ResourceId(same.unwrap_or(0)));
                    self.end_use(id, place);
                    return match managed {
                        // Another thread of ours has ended the use meanwhile.
                        Err(ResourceError::Gone) => self.manage(resource),
                        managed => managed,
                    };
                }
                REFUSED => {
                    let text = |why: &[u8]| String::from_utf8_lossy(why).into_owned();
                    let (kind, why) = (place.answer.kind(), place.answer.read(text));
                    self.end_use(id, place);
                    return Err(match (kind, resource.path()) {
                        (PayloadKind::NameTaken, Some(path)) => ResourceError::NameTaken {
                            path: path.display().to_string(),
                        },
                        _ => ResourceError::Journal(why),
                    });
                }
                _ => break,
            }
        }
        Ok(Managed {
            resources: self.clone(),
            id,
            resource,
        })
    }

    /// Asks the master to manage a resource, of which this process has one use from now on.
    pub(super) fn request(&self, resource: &Resource) -> Result<(u64, &Place), ResourceError> {
        let name = resource.name().ok_or(ResourceError::InvalidName)?;
        let Inner { control, user, .. } = &*self.0;
        let pool = control.pool();
        if part::is_cut_off(pool) {
            return Err(ResourceError::Unreachable);
        }
        let tag = part::tag(pool)?;
        let table = &control.resources;
        let over = || control.is_orphaned();
        let place = table.claim(tag, &over).ok_or_else(|| match over() {
            true => ResourceError::RunOver,
            false => ResourceError::TooMany,
        })?;
        place.kind.store(resource.kind(), Ordering::Relaxed);
        if let Err(error) = place.name.store(pool, PayloadKind::Value, &name) {
            place.release();
            return Err(error.into());
        }
        let id = table.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        // Our bit is set from the start, so that the resource is not unused at any moment.
        let mut uses = self.uses();
        if uses.over {
            place.release();
            return Err(ResourceError::RunOver);
        }
        place.users.set(*user);
        uses.counts.insert(id, 1);
        drop(uses);
        place.state.store(word(REQUESTED, id));
        part::wake_master(pool);
        Ok((id, place))
    }

    /// Starts a use of the resource with that id.
    ///
    /// # Errors
    ///
    /// [`ResourceError::Gone`], [`ResourceError::RunOver`].
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Resource, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let path = std::env::temp_dir().join(format!("doc-get-{}", std::process::id()));
    ///     let file = worker.resources().manage(Resource::File(path.clone())).unwrap();
    ///     let again = worker.resources().get(file.id()).unwrap();
    ///     drop(file);
    ///     assert_eq!(again.path(), path);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    pub fn get(&self, id: ResourceId) -> Result<Managed, ResourceError> {
        let ResourceId(id) = id;
        let table = &self.0.control.resources;
        let mut uses = self.uses();
        if uses.over {
            return Err(ResourceError::RunOver);
        }
        let count = uses.counts.get(&id).copied().unwrap_or(0);
        let over = || self.0.control.is_orphaned();
        if count == 0 && !table.hold(id, self.0.user, &over) {
            // The place may be another's by now, whose end the master has seen while we had it.
            part::wake_master(self.0.control.pool());
            return Err(ResourceError::Gone);
        }
        let resource = table.find(id).and_then(Place::resource);
        let resource = resource.ok_or(ResourceError::Gone)?;
        uses.counts.insert(id, count + 1);
        drop(uses);
        Ok(Managed {
            resources: self.clone(),
            id,
            resource,
        })
    }

    fn end_use(&self, id: u64, place: &Place) {
        let mut uses = self.uses();
        let count = uses.counts.remove(&id).unwrap_or(0);
        if count > 1 {
            uses.counts.insert(id, count - 1);
        } else if !uses.over {
            place.users.clear(self.0.user);
            part::wake_master(self.0.control.pool());
        }
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resources").finish_non_exhaustive()
    }
}

/// A use of a managed resource: the resource exists at least until the last use of any worker is
/// dropped. A child that a worker forks uses it on the worker's behalf.
///
/// ```
/// use shmkit::process::{Config, Entry, Resource, run};
///
/// static FIRST: Entry<String, ()> = Entry::new("first", |worker, name| {
///     let pool = worker.resources().manage(Resource::Pool(name.clone())).unwrap();
///     shmkit::Pool::builder().create_named(&name).unwrap();
///     let again = worker.resources().get(pool.id()).unwrap();
///     assert_eq!(again.resource(), &Resource::Pool(name));
///     drop(pool);
///     assert!(again.path().exists());
/// });
/// let name = format!("doc-{}", std::process::id());
/// run(&Config::new(), &FIRST, name.clone())?;
/// assert!(!Resource::Pool(name).path().unwrap().exists());
/// # Ok::<(), shmkit::process::RunError>(())
/// ```
#[derive(Debug)]
pub struct Managed {
    resources: Resources,
    id: u64,
    resource: Resource,
}

impl Managed {
    /// The id by which other workers get it.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Resource, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let path = std::env::temp_dir().join(format!("doc-id-{}", std::process::id()));
    ///     let file = worker.resources().manage(Resource::File(path.clone())).unwrap();
    ///     assert!(worker.resources().get(file.id()).is_ok());
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> ResourceId {
        ResourceId(self.id)
    }

    /// What the resource is.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Resource, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let path = std::env::temp_dir().join(format!("doc-res-{}", std::process::id()));
    ///     let file = worker.resources().manage(Resource::File(path.clone())).unwrap();
    ///     assert_eq!(file.resource(), &Resource::File(path));
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// The path of its file.
    ///
    /// ```
    /// use shmkit::process::{Config, Entry, Resource, run};
    ///
    /// static FIRST: Entry<(), ()> = Entry::new("first", |worker, ()| {
    ///     let path = std::env::temp_dir().join(format!("doc-path-{}", std::process::id()));
    ///     let file = worker.resources().manage(Resource::File(path.clone())).unwrap();
    ///     assert_eq!(file.path(), path);
    /// });
    /// run(&Config::new(), &FIRST, ())?;
    /// # Ok::<(), shmkit::process::RunError>(())
    /// ```
    #[must_use]
    pub fn path(&self) -> PathBuf {
        // Only a resource that has a path is managed.
        self.resource.path().unwrap_or_default()
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        // A forked child has copies of its parent's uses; the bit belongs to the parent.
        if self.resources.0.pid == process::pid()
            && let Some(place) = self.resources.0.control.resources.find(self.id)
        {
            self.resources.end_use(self.id, place);
        }
    }
}
