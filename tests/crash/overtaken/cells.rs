//! Cells.

use shmkit::View;

use super::super::cell::{Bench, OLD};
use super::super::engine::{Crash, Suite};
use super::super::in_pool::ensure;
use super::{NONE, Operation};

/// What is done to a cell that has a value, of five times a number.
#[derive(Clone, Copy, Debug)]
enum Do {
    Set(u64),
    Replace(u64),
    Count,
    Get,
}

impl Operation for Do {
    type World = Bench;
    type Model = u64;

    fn perform(self, bench: &mut Bench) -> u64 {
        let cell = bench.cell();
        match self {
            Do::Set(n) => {
                cell.set([n; 5]).expect("set");
                0
            }
            Do::Replace(n) => whole(cell.replace([n; 5]).expect("set")),
            Do::Count => {
                let count = |old: Option<&[u64; 5]>| old.expect("full").map(|word| word + 1);
                cell.update(count).expect("updated");
                0
            }
            Do::Get => whole(cell.view()),
        }
    }

    fn model(self, model: &mut u64) -> u64 {
        let old = *model;
        match self {
            Do::Set(n) => {
                *model = n;
                0
            }
            Do::Replace(n) => {
                *model = n;
                old
            }
            Do::Count => {
                *model += 1;
                0
            }
            Do::Get => old,
        }
    }

    fn reads(self) -> bool {
        matches!(self, Do::Get)
    }

    fn found(bench: &mut Bench, _: &Crash) -> Result<u64, String> {
        let value = bench.settled(bench.cell())?.ok_or("empty")?;
        ensure(value == [value[0]; 5], || format!("torn: {value:?}"))?;
        Ok(value[0])
    }

    fn ends(bench: &mut Bench) -> Result<(), String> {
        bench.cell().set(OLD).map_err(|error| error.to_string())?;
        bench.settled(bench.cell()).map(drop)
    }
}

fn whole(value: Option<View<'_, [u64; 5]>>) -> u64 {
    value.map_or(NONE, |value| {
        assert_eq!(*value, [value[0]; 5], "torn");
        value[0]
    })
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, victim: &[Do], overtaker: &[Do]| {
        let case = super::case(
            format!("cell/{name}"),
            Bench::new,
            |_| OLD[0],
            [victim, overtaker],
        );
        suite.run(case.attach(Bench::enter));
    };
    case("set by set", &[Set(7)], &[Set(8)]);
    case("replace by replace", &[Replace(7)], &[Replace(8), Get]);
    case("count by count", &[Count], &[Count]);
    // The same block may come back.
    case("count by many", &[Count], &[Set(7), Set(8), Set(1)]);
    case("get by many", &[Get], &[Set(7), Set(8), Set(9)]);
}
