//! Cases whose world is a pool and what lies in it: what they are to the engine, and how their dead are buried.

use std::os::fd::{AsRawFd, RawFd};

use shmkit::{Pool, testing};

use super::engine::{Arena, Case};

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

/// An error unless something holds.
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// An error unless so many bytes are in use.
pub fn in_use(pool: Pool, expected: usize) -> Result<(), String> {
    let now = pool.stats().allocated;
    ensure(now == expected, || format!("{now} bytes, not {expected}"))
}

/// Recovers whoever is left to be recovered; the pool must be sound then.
pub fn sound(pool: Pool) -> Result<(), String> {
    pool.recover();
    let report = pool.check_quiescent();
    ensure(report.is_ok(), || format!("{report:?}"))
}
