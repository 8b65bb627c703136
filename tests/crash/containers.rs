//! Arrays and matrices: made, written to, claimed, grown, destroyed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use shmkit::{Array, KillSafe, Matrix, Pool, Shared, ShmSafe};

use super::engine::{Case, Crash, Doomed, Suite, progress};
use super::in_pool::{self, InPool, ensure, happened, in_use, pool, sound};

/// 24 bytes that belong together.
#[derive(Clone, Copy, Debug, PartialEq, ShmSafe, KillSafe)]
pub struct Triple(pub u64, pub u64, pub u64);

const OLD: Triple = Triple(1, 1, 1);
const NEW: Triple = Triple(2, 2, 2);
/// What is set in between, and what comes of it.
const HALF: Triple = Triple(5, 6, 7);
const MORE: Triple = Triple(6, 7, 8);

/// A pool with two arrays, and what the victim made.
pub struct Bench {
    pub pool: Pool,
    numbers: Option<Shared<Array<u64>>>,
    pub triples: Shared<Array<Triple>>,
    made: Option<Shared<Array<u64>>>,
    /// 4 rows of 3, all 1.
    matrix: Shared<Matrix<f64>>,
    empty: Shared<Matrix<u64>>,
    made_matrix: Option<Shared<Matrix<f64>>>,
    /// Bytes in use before the operation.
    pub before: usize,
}

impl InPool for Bench {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl Bench {
    pub fn new() -> Bench {
        let pool = pool();
        let numbers = Array::from_fn_in(pool, 6, |i| i as u64).expect("room");
        let triples = Array::filled_in(pool, 4, OLD).expect("room");
        let matrix = Matrix::filled_in(pool, 4, 3, 1.0).expect("room");
        let empty = pool.create(Matrix::new()).expect("room");
        let before = pool.stats().allocated;
        Bench {
            pool,
            numbers: Some(numbers),
            triples,
            made: None,
            matrix,
            empty,
            made_matrix: None,
            before,
        }
    }

    /// The victim has its slot, and its caches of blocks.
    pub fn enter(&mut self) {
        self.numbers().set(5, 5).expect("set");
        drop(Array::filled_in(self.pool, 10, 1_u64).expect("room"));
    }

    fn numbers(&self) -> &Array<u64> {
        self.numbers.as_ref().expect("not dropped")
    }

    /// Nobody is in the way of anything.
    fn claimable(&self) -> Result<bool, String> {
        let numbers = self.numbers();
        let claim = numbers.claim_mut(..).map_err(|e| format!("{e}"))?;
        let _triples = self.triples.claim_mut(..).map_err(|e| format!("{e}"))?;
        Ok(claim.was_orphaned())
    }

    /// As that, and nobody was killed with a claim.
    pub fn unclaimed(&self) -> Result<(), String> {
        ensure(!self.claimable()?, || "told of nothing".into())
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

/// There is what there was before, and nothing else.
fn unchanged(bench: &mut Bench, _: &Crash) -> Result<(), String> {
    sound(bench.pool)?;
    in_use(bench.pool, bench.before)
}

/// Of the numbers, the third has become 77 or not.
fn number(bench: &mut Bench, crash: &Crash) -> Result<(), String> {
    sound(bench.pool)?;
    happened(crash, bench.numbers().get(2), Ok(2), Ok(77))?;
    bench.unclaimed()
}

/// The third of the triples is the new one or one that it was before, and can be set.
fn triple(bench: &mut Bench, crash: &Crash, old: &[Triple], new: Triple) -> Result<(), String> {
    sound(bench.pool)?;
    let value = bench.triples.get(2).map_err(|e| format!("{e}"))?;
    ensure(
        value == new || old.contains(&value) && !crash.done(),
        || format!("{value:?}"),
    )?;
    bench.triples.set(2, OLD).map_err(|e| format!("{e}"))?;
    bench.unclaimed()
}

/// A claim of a part of what one had who was killed, and of more: who has it is told, and the next one is not.
fn claim_of_a_dead_one() -> Case<Bench> {
    let setup = || {
        let bench = Bench::new();
        let dies = || {
            let mut claim = bench.numbers().claim_mut(1..4).expect("claimed");
            claim.fill(9);
            std::mem::forget(claim);
        };
        Doomed::new(|| (), dies).ends();
        bench
    };
    in_pool::case("array/claim_mut what a dead one had", setup)
        .attach(Bench::enter)
        .operation(|bench| {
            let mut claim = bench.numbers().claim_mut(2..5).expect("claimed");
            assert!(claim.was_orphaned());
            claim.fill(7);
            drop(claim);
            progress(1);
        })
        .verify(|bench, crash| {
            sound(bench.pool)?;
            let numbers = bench.numbers();
            let values: Vec<_> = (2..5).map(|i| numbers.get(i).unwrap_or(99)).collect();
            let told = |range| {
                let claim = numbers.claim_mut(range);
                claim
                    .map(|claim| claim.was_orphaned())
                    .map_err(|e| e.to_string())
            };
            ensure(told(1..2)?, || {
                "not told of what nobody has had since".into()
            })?;
            let told = told(2..5)?;
            ensure(told || values == [7; 3], || {
                format!("not told of {values:?}")
            })?;
            ensure(!(told && crash.done()), || "told again".into())?;
            bench.unclaimed()
        })
}

/// An exclusive claim that ends by a panic: whoever has it next is told, unless it was dropped whole or never taken.
fn claim_that_panics() -> Case<Bench> {
    case("array/claim_mut, and unwind", |bench| {
        let panics = || {
            let mut claim = bench.numbers().claim_mut(2..5).expect("claimed");
            claim.fill(9);
            resume_unwind(Box::new(()))
        };
        catch_unwind(AssertUnwindSafe(panics)).expect_err("as told");
    })
    .verify(|bench, crash| {
        sound(bench.pool)?;
        let numbers = bench.numbers();
        let values: Vec<_> = (2..5).map(|i| numbers.get(i).unwrap_or(99)).collect();
        let told = bench.claimable()?;
        ensure(told || values == [2, 3, 4] && !crash.done(), || {
            format!("not told of {values:?}")
        })?;
        bench.unclaimed()
    })
}

/// What a death at every instruction must leave of arrays.
pub fn cases(suite: &mut Suite) {
    suite.run(
        case("array/create", |bench| {
            bench.made = Some(Array::filled_in(bench.pool, 10, 3_u64).expect("room"));
        })
        // A victim that lives on holds it.
        .verify(unchanged),
    );
    suite.run(
        case("array/set 8", |bench| {
            bench.numbers().set(2, 77).expect("set")
        })
        .verify(number),
    );
    suite.run(
        case("array/set 24", |bench| {
            bench.triples.set(2, NEW).expect("set")
        })
        .verify(|bench, crash| triple(bench, crash, &[OLD], NEW)),
    );
    suite.run(
        case("array/update 8", |bench| {
            let was = bench.numbers().update(2, |n| n + 75).expect("updated");
            assert_eq!(was, 2);
        })
        .verify(number),
    );
    suite.run(
        case("array/update 24", |bench| {
            let mut once = true;
            // The first attempt fails.
            let update = |old: Triple| {
                if std::mem::take(&mut once) {
                    bench.triples.set(2, HALF).expect("set");
                }
                Triple(old.0 + 1, old.1 + 1, old.2 + 1)
            };
            let was = bench.triples.update(2, update).expect("updated");
            assert_eq!(was, HALF);
        })
        .verify(|bench, crash| triple(bench, crash, &[OLD, HALF], MORE)),
    );
    suite.run(
        case("array/claim", |bench| {
            assert_eq!(bench.numbers().claim(1..4).expect("claimed").len(), 3);
        })
        .verify(|bench, _| {
            sound(bench.pool)?;
            bench.unclaimed()
        }),
    );
    suite.run(
        case("array/claim_mut", |bench| {
            let mut claim = bench.numbers().claim_mut(1..4).expect("claimed");
            claim.fill(9);
        })
        .verify(|bench, crash| {
            sound(bench.pool)?;
            let done = crash.done();
            let values: Vec<_> = (0..6)
                .map(|i| bench.numbers().get(i).unwrap_or(99))
                .collect();
            let old = values == [0, 1, 2, 3, 4, 5];
            let new = values == [0, 9, 9, 9, 4, 5];
            let orphaned = bench.claimable()?;
            ensure(new || !done, || format!("lost: {values:?}"))?;
            ensure(old || new || orphaned, || format!("not told of {values:?}"))?;
            ensure(!(done && orphaned), || "told of nothing".into())
        }),
    );
    suite.run(claim_of_a_dead_one());
    suite.run(claim_that_panics());
    suite.run(
        case("array/grow", |bench| {
            bench.numbers().grow(1000, 8).expect("grown")
        })
        .verify(|bench, crash| {
            sound(bench.pool)?;
            let done = crash.done();
            // Before anything is done that meets the claim of the dead.
            let len = bench.numbers().len();
            let grown = bench.numbers().get(999) == Ok(8);
            ensure(grown || !done, || "lost".into())?;
            ensure(len == if grown { 1000 } else { 6 }, || {
                format!("{len} long")
            })?;
            ensure(bench.numbers().get(5) == Ok(5), || "elements lost".into())?;
            bench.unclaimed()
        }),
    );
    suite.run(
        case("array/extend_from_slice", |bench| {
            let first = bench.numbers().extend_from_slice(&[7, 8, 9]);
            assert_eq!(first.expect("extended"), 6);
        })
        .verify(|bench, crash| {
            sound(bench.pool)?;
            let len = bench.numbers().len();
            happened(crash, len, 6, 9)?;
            let values: Vec<_> = (0..len)
                .map(|i| bench.numbers().get(i).unwrap_or(99))
                .collect();
            ensure(values == [0, 1, 2, 3, 4, 5, 7, 8, 9][..len], || {
                format!("{values:?}")
            })?;
            bench.unclaimed()
        }),
    );
    suite.run(
        case("array/destroy", |bench| bench.made = None)
            .attach(|bench| {
                bench.made = Some(Array::filled_in(bench.pool, 10, 3_u64).expect("room"));
            })
            .verify(unchanged),
    );
    matrices(suite);
}

fn matrices(suite: &mut Suite) {
    let element = |bench: &mut Bench, crash: &Crash| {
        sound(bench.pool)?;
        happened(crash, bench.matrix.get(2, 1), Ok(1.0), Ok(7.0))
    };
    suite.run(
        case("matrix/create", |bench| {
            let made = Matrix::from_fn_in(bench.pool, 5, 2, |r, c| (r * c) as f64);
            bench.made_matrix = Some(made.expect("room"));
        })
        .verify(unchanged),
    );
    suite.run(
        case("matrix/destroy", |bench| bench.made_matrix = None)
            .attach(|bench| {
                let made = Matrix::filled_in(bench.pool, 5, 2, 3.0);
                bench.made_matrix = Some(made.expect("room"));
            })
            .verify(unchanged),
    );
    suite.run(
        case("matrix/set", |bench| {
            bench.matrix.set(2, 1, 7.0).expect("set")
        })
        .verify(element),
    );
    suite.run(
        case("matrix/update", |bench| {
            let was = bench.matrix.update(2, 1, |n| n + 6.0).expect("updated");
            assert_eq!(was, 1.0);
        })
        .verify(element),
    );
    suite.run(
        case("matrix/rows", |bench| {
            let band = bench.matrix.rows(1..3).expect("claimed");
            assert_eq!(band.iter().sum::<f64>(), 6.0);
        })
        .verify(|bench, _| {
            sound(bench.pool)?;
            let band = bench.matrix.rows_mut(..).map_err(|e| format!("{e}"))?;
            ensure(!band.was_orphaned(), || "told of nothing".into())
        }),
    );
    suite.run(
        case("matrix/rows_mut", |bench| {
            bench.matrix.rows_mut(1..3).expect("claimed").fill(9.0);
        })
        .verify(|bench, crash| {
            sound(bench.pool)?;
            let done = crash.done();
            let band = bench.matrix.rows_mut(..).map_err(|e| format!("{e}"))?;
            let sum: f64 = band.iter().sum();
            let whole = [12.0, 60.0].contains(&sum);
            ensure(sum == 60.0 || !done, || format!("lost: {sum}"))?;
            ensure(whole || band.was_orphaned(), || {
                format!("not told of {sum}")
            })
        }),
    );
    suite.run(
        case("matrix/grow", |bench| {
            bench.matrix.grow(100, 8.0).expect("grown")
        })
        .verify(|bench, crash| {
            sound(bench.pool)?;
            let dims = bench.matrix.dims();
            happened(crash, dims, (4, 3), (100, 3))?;
            let kept = bench.matrix.get(3, 2) == Ok(1.0);
            ensure(kept, || "elements lost".into())?;
            let again = bench.matrix.grow(100, 8.0);
            ensure(again.is_ok() && bench.matrix.get(99, 2) == Ok(8.0), || {
                format!("{dims:?}, and then {again:?}")
            })
        }),
    );
    suite.run(
        case("matrix/fill", |bench| {
            bench.empty.fill(5, 4, 9).expect("filled")
        })
        .verify(|bench, crash| {
            sound(bench.pool)?;
            let dims = bench.empty.dims();
            happened(crash, dims, (0, 0), (5, 4))?;
            let again = bench.empty.fill(5, 4, 9);
            ensure(again.is_ok() == (dims == (0, 0)), || {
                format!("{dims:?}, and then {again:?}")
            })?;
            let last = bench.empty.get(4, 3);
            ensure(last == Ok(9), || format!("{last:?}"))
        }),
    );
}
