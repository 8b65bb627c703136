//! Cases whose world is a pool and what lies in it: how they look to the engine, and how their dead are buried.

use std::fmt::Debug;
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};

use shmkit::{Pool, Shared, ShmSafe, testing};

use super::engine::{Arena, Case, Crash};

/// The state of a process that uses a pool.
pub trait InPool {
    fn pool(&self) -> Pool;
}

impl<W: InPool> Arena for W {
    fn base(&self) -> usize {
        self.pool().base()
    }
    fn mapped_len(&self) -> usize {
        testing::mapped_len(self.pool())
    }
    fn fd(&self) -> RawFd {
        self.pool().fd().as_raw_fd()
    }
    fn has_another_file(&self) {
        testing::has_another_file(self.pool());
    }
}

/// A case whose victim is a participant of the pool, and whose recovery is the pool's.
pub fn case<W: InPool>(name: impl Into<String>, setup: impl Fn() -> W + 'static) -> Case<W> {
    Case::new(name, setup)
        .bury(|world, victim| {
            // SAFETY: its image is looked at from now on, and it does nothing any more.
            unsafe { testing::mark_dead(world.pool(), victim.pid as u32) };
        })
        .recover(|world| {
            world.pool().recover();
            Ok(())
        })
}

/// A pool of 16 MiB at most.
pub fn pool() -> Pool {
    Pool::builder().max_size(16 << 20).create().expect("a pool")
}

/// A pool, and an object that is found by its name: so it goes with that and the handle of who looks at it.
pub struct Named<T: ShmSafe> {
    pub pool: Pool,
    object: Option<Shared<T>>,
    /// Bytes in use before there was the object.
    pub before: usize,
}

impl<T: ShmSafe> InPool for Named<T> {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl<T: ShmSafe> Named<T> {
    const NAME: &str = "object";

    pub fn new(pool: Pool, object: T, fill: impl FnOnce(&T)) -> Self {
        let before = pool.stats().allocated;
        let object = pool.create(object).expect("room");
        fill(&object);
        pool.set_name(Self::NAME, &object).expect("named");
        drop(object);
        pool.recover();
        Named {
            pool,
            object: None,
            before,
        }
    }

    pub fn open(&mut self) {
        self.object = Self::find(self.pool);
    }

    pub fn find(pool: Pool) -> Option<Shared<T>> {
        pool.named(Self::NAME).ok()
    }

    pub fn is_open(&self) -> bool {
        self.object.is_some()
    }

    pub fn close(&mut self) {
        self.object = None;
    }

    pub fn unname(&self) -> Result<(), String> {
        let removed = self.pool.remove_name(Self::NAME);
        removed.map_err(|error| error.to_string())
    }

    /// The object goes, if it is there, with all that it has.
    pub fn ends(&mut self) -> Result<(), String> {
        if self.is_open() {
            self.close();
            self.unname()?;
            self.pool.recover();
        }
        in_use(self.pool, self.before)
    }
}

impl<T: ShmSafe> Deref for Named<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.object.as_ref().expect("open")
    }
}

/// An error unless something holds.
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// An error unless an operation has happened that was to make `new` of `old`; or not, if it may have been cut off.
pub fn happened<T: PartialEq + Debug>(
    crash: &Crash,
    found: T,
    old: impl PartialEq<T> + Debug,
    new: impl PartialEq<T> + Debug,
) -> Result<(), String> {
    let done = crash.done();
    ensure(new == found || old == found && !done, || {
        format!("{found:?}; was {old:?}, to be {new:?}; done: {done}")
    })
}

/// An error unless so many bytes are in use.
pub fn in_use(pool: Pool, expected: usize) -> Result<(), String> {
    let now = pool.stats().allocated;
    ensure(now == expected, || format!("{now} bytes, not {expected}"))
}

/// Recovers whoever is left to be recovered; the pool must be sound then, and all that they had can be had again.
pub fn sound(pool: Pool) -> Result<(), String> {
    pool.recover();
    let (slots, records) = testing::stuck(pool);
    ensure((slots, records) == (0, 0), || {
        format!("{slots} slots and {records} records are nobody's, and nobody can have them")
    })?;
    intact(pool)
}

/// An error unless the pool is sound as it is.
pub fn intact(pool: Pool) -> Result<(), String> {
    let report = pool.check_quiescent();
    ensure(report.is_ok(), || format!("{report}"))
}
