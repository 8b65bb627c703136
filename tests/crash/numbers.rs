//! What `shmkit import` does to a pool: a new matrix is there completely or not at all, and in one that is
//! overwritten each element is the old one or the new one. A number's name leads to the old number or to
//! the new one.

use shmkit::numbers::{Stored, store};
use shmkit::{Matrix, NamedError, Pool};

use super::engine::{Case, Crash, Suite};
use super::in_pool::{self, InPool, ensure, in_use, pool, sound};

const OLD: f64 = 1.25;
const NEW: f64 = -7.5;
const SHAPE: [usize; 2] = [2, 3];

struct Bench {
    pool: Pool,
    /// Bytes in use with no matrix of the name `new`.
    before: usize,
}

impl InPool for Bench {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl Bench {
    fn new() -> Bench {
        let pool = pool();
        let old = Matrix::filled_in(pool, SHAPE[0], SHAPE[1], OLD).expect("room");
        pool.set_name("old", &old).expect("room");
        drop(old);
        pool.set_name("number", &pool.create(OLD).expect("room"))
            .expect("room");
        // Types are described once.
        let mut bench = Bench { pool, before: 0 };
        bench.import("new").expect("it is stored");
        pool.remove_name("new").expect("it is there");
        pool.recover();
        bench.before = pool.stats().allocated;
        bench
    }

    fn import(&self, name: &str) -> Result<Stored, String> {
        let bytes: Vec<u8> = [NEW; 6].iter().flat_map(|n| n.to_ne_bytes()).collect();
        store(self.pool, name, "<f8", &SHAPE, &bytes).map_err(|error| error.to_string())
    }

    fn elements(&self, name: &str) -> Result<Option<Vec<f64>>, String> {
        match self.pool.named::<Matrix<f64>>(name) {
            Ok(matrix) => {
                let rows = matrix.rows(..).map_err(|error| error.to_string())?;
                Ok(Some(rows.to_vec()))
            }
            Err(NamedError::NotFound) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn case(name: &str, object: &'static str) -> Case<Bench> {
    in_pool::case(name, Bench::new)
        // The victim has its slot, and its caches of blocks.
        .attach(|bench| drop(bench.pool.create([0_u64; 6]).expect("room")))
        .operation(move |bench| {
            bench.import(object).expect("it is stored");
        })
}

fn new(bench: &mut Bench, crash: &Crash) -> Result<(), String> {
    sound(bench.pool)?;
    match bench.elements("new")? {
        Some(all) => ensure(all == [NEW; 6], || format!("{all:?}"))?,
        None => {
            ensure(!crash.finished, || "it is not there".into())?;
            in_use(bench.pool, bench.before)?;
        }
    }
    again(bench, "new")?;
    bench
        .pool
        .remove_name("new")
        .map_err(|error| error.to_string())?;
    sound(bench.pool)?;
    in_use(bench.pool, bench.before)
}

fn over(bench: &mut Bench, crash: &Crash) -> Result<(), String> {
    sound(bench.pool)?;
    let all = bench.elements("old")?.ok_or("it is gone")?;
    let whole = |element: &f64| *element == NEW || *element == OLD && !crash.finished;
    ensure(all.iter().all(whole), || format!("{all:?}"))?;
    again(bench, "old")?;
    sound(bench.pool)?;
    in_use(bench.pool, bench.before)
}

fn import_number(bench: &Bench) -> Result<(), String> {
    let stored = store(bench.pool, "number", "<f8", &[], &NEW.to_ne_bytes());
    let how = stored.map_err(|error| error.to_string())?;
    ensure(how == Stored::Overwritten, || format!("{how:?}"))
}

fn number(bench: &mut Bench, crash: &Crash) -> Result<(), String> {
    let value = |bench: &Bench| {
        let named = bench.pool.named::<f64>("number");
        named
            .map(|number| *number)
            .map_err(|error| error.to_string())
    };
    sound(bench.pool)?;
    let found = value(bench)?;
    ensure(found == NEW || found == OLD && !crash.finished, || {
        found.to_string()
    })?;
    in_use(bench.pool, bench.before)?;
    import_number(bench)?;
    let found = value(bench)?;
    ensure(found == NEW, || found.to_string())?;
    sound(bench.pool)?;
    in_use(bench.pool, bench.before)
}

/// A second import does what the first one was to do.
fn again(bench: &Bench, name: &str) -> Result<(), String> {
    bench.import(name)?;
    let all = bench.elements(name)?.ok_or("it is gone")?;
    ensure(all == [NEW; 6], || format!("{all:?} after a second import"))
}

/// What a death at every instruction must leave of imports.
pub fn cases(suite: &mut Suite) {
    suite.run(case("numbers/import", "new").verify(new));
    suite.run(case("numbers/import over", "old").verify(over));
    let over_a_number = case("numbers/import over a number", "number");
    suite.run(
        over_a_number
            .operation(|bench| import_number(bench).expect("it is stored"))
            .verify(number),
    );
}
