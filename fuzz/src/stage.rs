//! A container that is fuzzed: it lies in a small pool, and two participants use it, any of whom is killed
//! before any of its writes.

use shmkit::testing::participants::Participant;
use shmkit::{Pool, PoolBuilder, Shared, ShmSafe};

/// One of the two participants.
pub const MINE: bool = true;
/// The other one.
pub const OTHER: bool = false;

/// The container, and who uses it.
pub struct Stage<T: ShmSafe> {
    pool: Pool,
    container: Option<Shared<T>>,
    mine: Participant,
    other: Participant,
}

impl<T: ShmSafe> Stage<T> {
    pub fn new(pool: PoolBuilder, empty: T) -> Self {
        let pool = pool.create().unwrap();
        // SAFETY: what a killed one had is on the stack of its closure, and forgotten.
        let (mut mine, other) = unsafe { (Participant::new(), Participant::new()) };
        let container = mine.act(pool, None, || pool.create(empty).ok().unwrap());
        Stage {
            pool,
            container,
            mine,
            other,
        }
    }

    /// Does something as one of them, who is killed before its write number `dies` if that is given: `None`
    /// if it was.
    pub fn act<R>(
        &mut self,
        who: bool,
        dies: Option<usize>,
        does: impl FnOnce(&T) -> R,
    ) -> Option<R> {
        let container = self.container.as_ref().unwrap();
        let who = if who { &mut self.mine } else { &mut self.other };
        who.act(self.pool, dies, || does(container))
    }

    /// Has the other one of them look, behind a recovery if the first one has died.
    pub fn look<R>(&mut self, who: bool, died: bool, looks: impl FnOnce(&T) -> R) -> R {
        let pool = self.pool;
        let looks = |container: &T| {
            if died {
                pool.recover();
            }
            looks(container)
        };
        self.act(!who, None, looks).unwrap()
    }

    /// What must hold between two steps.
    pub fn check(&self) {
        let report = self.pool.check();
        assert!(report.is_ok(), "{report}");
    }

    /// Everybody leaves: nothing must be left.
    pub fn end(mut self) {
        let container = self.container.take();
        self.mine.act(self.pool, None, || drop(container));
        self.mine.leave(self.pool, None);
        self.other.leave(self.pool, None);
        self.pool.recover();
        assert_eq!(self.pool.stats().allocated, 0);
        let report = self.pool.check_quiescent();
        assert!(report.is_ok(), "{report}");
        // SAFETY: nothing refers to the pool.
        unsafe { self.pool.unmap() };
    }
}
