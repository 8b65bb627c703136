//! Arrays.

use shmkit::{Array, ElementError, ResizeError};

use super::super::containers::{Bench, Triple};
use super::super::engine::{Crash, Suite};
use super::super::in_pool::{ensure, in_use, sound};
use super::{NONE, Operation};

/// What is done to an array of elements that consist of several words: three times a number.
#[derive(Clone, Copy, Debug)]
enum Do {
    Set(usize, u64),
    Count(usize),
    Get(usize),
    /// So many in all, of that number.
    Grow(usize, u64),
}

fn element(n: u64) -> Triple {
    Triple(n, n, n)
}

impl Operation for Do {
    type World = Bench;
    type Model = Vec<u64>;

    fn perform(self, bench: &mut Bench) -> u64 {
        let array = &bench.triples;
        match self {
            Do::Set(index, n) => answer(array.set(index, element(n)).map(|()| 0)),
            Do::Count(index) => {
                let was = array.update(index, |was| element(was.0 + 1));
                answer(was.map(number))
            }
            Do::Get(index) => answer(array.get(index).map(number)),
            Do::Grow(len, n) => match array.grow(len, element(n)) {
                Ok(()) => 0,
                Err(ResizeError::Shorter { .. }) => NONE,
                Err(error) => panic!("{error}"),
            },
        }
    }

    fn model(self, model: &mut Vec<u64>) -> u64 {
        match self {
            Do::Set(index, n) => model.get_mut(index).map_or(NONE, |element| {
                *element = n;
                0
            }),
            Do::Count(index) => model.get_mut(index).map_or(NONE, |element| {
                *element += 1;
                *element - 1
            }),
            Do::Get(index) => model.get(index).copied().unwrap_or(NONE),
            Do::Grow(len, _) if len < model.len() => NONE,
            Do::Grow(len, n) => {
                model.resize(len, n);
                0
            }
        }
    }

    fn reads(self) -> bool {
        matches!(self, Do::Get(_))
    }

    fn waits(self, _: bool) -> bool {
        // Growth waits for those who write, and they for growth.
        true
    }

    fn found(bench: &mut Bench, _: &Crash) -> Result<Vec<u64>, String> {
        sound(bench.pool)?;
        let array = &bench.triples;
        let all: Result<Vec<_>, _> = (0..array.len()).map(|index| array.get(index)).collect();
        let all = all.map_err(|error| error.to_string())?;
        let whole = all.iter().all(|is| *is == element(is.0));
        ensure(whole, || format!("torn: {all:?}"))?;
        Ok(all.iter().map(|is| is.0).collect())
    }

    fn ends(bench: &mut Bench) -> Result<(), String> {
        bench.unclaimed()?;
        let more = |len| {
            let before = bench.pool.stats().allocated;
            let twin = Array::filled_in(bench.pool, 4, element(1)).map_err(|e| e.to_string())?;
            twin.grow(len, element(1)).map_err(|e| e.to_string())?;
            Ok::<_, String>(bench.pool.stats().allocated - before)
        };
        let grown = more(bench.triples.len())? - more(4)?;
        in_use(bench.pool, bench.before + grown)
    }
}

fn number(element: Triple) -> u64 {
    let Triple(n, ..) = element;
    assert_eq!(element, Triple(n, n, n), "torn");
    n
}

fn answer(answer: Result<u64, ElementError>) -> u64 {
    match answer {
        Ok(answer) => answer,
        Err(ElementError::OutOfBounds { .. }) => NONE,
        Err(error) => panic!("{error}"),
    }
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, victim: &[Do], overtaker: &[Do]| {
        let old = |_: &Bench| vec![1; 4];
        let case = super::case(
            format!("array/{name}"),
            Bench::new,
            old,
            [victim, overtaker],
        );
        suite.run(case.attach(Bench::enter));
    };
    case("set by set", &[Set(2, 7)], &[Set(2, 8)]);
    case("count by count", &[Count(2)], &[Count(2), Get(2)]);
    case("get by set", &[Get(2)], &[Set(2, 8), Set(2, 9)]);
    case("set by growth", &[Set(2, 7), Set(5, 9)], &[Grow(100, 8)]);
    case("growth by growth", &[Grow(50, 7)], &[Grow(100, 8)]);
    case("growth by count", &[Grow(50, 7)], &[Count(2), Get(20)]);
    case(
        "get by growth",
        &[Get(2), Get(20)],
        &[Grow(100, 8), Set(2, 9)],
    );
}
