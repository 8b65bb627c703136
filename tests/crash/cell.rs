//! Cells: set, replaced, updated, destroyed; and what they leave in limbo.

use shmkit::{Pool, Shared, SharedCell};

use super::engine::{Case, Crash, Doomed, Suite, progress};
use super::in_pool::{self, InPool, ensure, happened, in_use, intact, pool, sound};

pub type Value = [u64; 5];
pub const OLD: Value = [1; 5];
const NEW: Value = [2; 5];
const THEIRS: Value = [3; 5];

/// A pool with a cell that has a value and one that is empty.
pub struct Bench {
    pool: Pool,
    cell: Shared<SharedCell<Value>>,
    /// What the victim alone has.
    made: Option<Shared<SharedCell<Value>>>,
    empty: Shared<SharedCell<Value>>,
    /// Bytes in use before the operation, with both cells filled.
    full: usize,
    /// Bytes of a value's block.
    block: usize,
}

impl InPool for Bench {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl Bench {
    pub fn new() -> Bench {
        let pool = pool();
        let cell = pool.create(SharedCell::new()).expect("room");
        let empty = pool.create(SharedCell::new()).expect("room");
        let before = pool.stats().allocated;
        cell.set(OLD).expect("set");
        let block = pool.stats().allocated - before;
        Bench {
            pool,
            cell,
            made: None,
            empty,
            full: before + 2 * block,
            block,
        }
    }

    /// The victim has its slot, and its caches of blocks.
    pub fn enter(&mut self) {
        self.cell().set(OLD).expect("set");
        self.pool.recover();
    }

    pub fn cell(&self) -> &SharedCell<Value> {
        &self.cell
    }

    /// Two have died: one who has set a value, and one who has set another over it, and has not retired the first yet.
    fn set_by_two_dead() -> Bench {
        let bench = Bench::new();
        let [mut first, mut second] = [THEIRS, NEW].map(|value| {
            let prepare = || {
                bench.cell().set(OLD).expect("set");
                bench.pool.recover();
            };
            Doomed::new(prepare, || bench.cell().set(value).expect("set"))
        });
        for (dead, value) in [(&mut first, THEIRS), (&mut second, NEW)] {
            dead.go_on_until(|| bench.cell().get() == Some(value));
        }
        first.die();
        second.die();
        bench
    }

    /// A list in limbo that no thread has.
    fn leave_some(&mut self) {
        self.pool.recover();
        let view = self.cell().view();
        std::thread::scope(|s| {
            let thread = s.spawn(|| (0..5).for_each(|_| self.cell().set(OLD).expect("set")));
            // By its handle: the scope alone would not wait for it to leave the pool.
            thread.join().expect("no panic");
        });
        drop(view);
        assert_eq!(self.pool.stats().retired.blocks, 5);
    }

    /// The value of a cell, once all is sound and nothing is lost or in limbo.
    pub fn settled(&self, cell: &SharedCell<Value>) -> Result<Option<Value>, String> {
        sound(self.pool)?;
        let retired = self.pool.stats().retired;
        ensure(retired.blocks == 0, || format!("{retired:?}"))?;
        let empty = self.empty.is_empty() as usize;
        let expected = self.full - empty * self.block;
        in_use(self.pool, expected)?;
        Ok(cell.get())
    }
}

fn case(name: &str, operation: impl Fn(&mut Bench) + 'static) -> Case<Bench> {
    in_pool::case(name, Bench::new)
        .attach(Bench::enter)
        .operation(move |bench| {
            operation(bench);
            progress(1);
        })
}

fn is_new(bench: &mut Bench, crash: &Crash) -> Result<(), String> {
    happened(crash, bench.settled(bench.cell())?, Some(OLD), Some(NEW))
}

/// What a death at every instruction must leave of cells.
pub fn cases(suite: &mut Suite) {
    suite.run(
        case("cell/set first", |bench| bench.empty.set(NEW).expect("set"))
            .verify(|bench, crash| happened(crash, bench.settled(&bench.empty)?, None, Some(NEW))),
    );
    suite.run(case("cell/set", |bench| bench.cell().set(NEW).expect("set")).verify(is_new));
    suite.run(
        case("cell/replace", |bench| {
            let old = bench.cell().replace(NEW).expect("set");
            assert_eq!(*old.expect("full"), OLD);
        })
        .verify(is_new),
    );
    suite.run(
        case("cell/update", |bench| {
            let cell = bench.cell();
            let mut once = true;
            // The first attempt fails, and is undone.
            let update = |old: Option<&Value>| {
                if std::mem::take(&mut once) {
                    cell.set(OLD).expect("set");
                }
                old.expect("full").map(|word| word + 1)
            };
            cell.update(update).expect("updated");
        })
        .verify(is_new),
    );
    let unchanged = |bench: &mut Bench, _: &Crash| {
        let value = bench.settled(bench.cell())?;
        ensure(value == Some(OLD), || format!("{value:?}"))
    };
    suite.run(
        case("cell/destroy", |bench| bench.made = None)
            .attach(|bench| {
                let made = bench.pool.create(SharedCell::new()).expect("room");
                made.set(NEW).expect("set");
                bench.made = Some(made);
                bench.pool.recover();
            })
            .verify(unchanged),
    );
    suite.run(
        in_pool::case("cell/recover two who have set it", Bench::set_by_two_dead)
            .operation(|bench| {
                bench.pool.recover();
                progress(1);
            })
            .verify(|bench, _| {
                let value = bench.settled(bench.cell())?;
                ensure(value == Some(NEW), || format!("{value:?}"))
            }),
    );
    // Recovery alone, which frees nothing that is in limbo: the lists are right without that.
    let poll = |bench: &mut Bench| bench.pool.grow_to(0).map_err(|e| format!("{e:?}"));
    let at_once = move |bench: &mut Bench, crash: &Crash| {
        intact(bench.pool)?;
        unchanged(bench, crash)
    };
    suite.run(
        case("limbo/collect", |bench| {
            bench.pool.recover();
        })
        .attach(|bench| (0..4).for_each(|_| bench.cell().set(OLD).expect("set")))
        .recover(poll)
        .verify(at_once),
    );
    suite.run(
        case("limbo/reap", |bench| {
            bench.pool.recover();
        })
        .attach(Bench::leave_some)
        .recover(poll)
        .verify(at_once),
    );
}
