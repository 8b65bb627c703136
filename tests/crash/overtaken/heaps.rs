//! Heaps.

use shmkit::HeapError;

use super::super::engine::{Crash, Suite};
use super::super::heap::{Bench, Node, Picture, old, picture};
use super::{NONE, Operation};

/// What is done to a heap.
#[derive(Clone, Copy, Debug)]
enum Do {
    /// The first node's value.
    Raise(u64),
    Add(u64),
    /// All but what leads to itself.
    Drop,
    Collect,
    Look,
}

impl Operation for Do {
    type World = Bench;
    type Model = Picture;

    fn perform(self, bench: &mut Bench) -> u64 {
        let heap = &bench.heap;
        let done = match self {
            Do::Raise(n) => heap.try_modify(|tx| {
                let Some(first) = *tx.root() else {
                    return Ok(NONE);
                };
                let first = tx.get_mut(first)?;
                first.value += n;
                Ok(first.value)
            }),
            Do::Add(value) => heap.try_modify(|tx| {
                let list = tx.alloc_slice(&[9; 3])?;
                let next = *tx.root();
                *tx.root_mut()? = Some(tx.alloc(Node { value, next, list })?);
                Ok(0)
            }),
            Do::Drop => heap.try_modify(|tx| {
                *tx.root_mut()? = None;
                Ok(0)
            }),
            Do::Collect => heap.collect().map(|_| 0),
            Do::Look => picture(heap)
                .map_err(|text| panic!("{text}"))
                .map(|all| sum(&all)),
        };
        done.unwrap_or_else(|error: HeapError| panic!("{error}"))
    }

    fn model(self, model: &mut Picture) -> u64 {
        match self {
            Do::Raise(n) => model.first_mut().map_or(NONE, |first| {
                first.0 += n;
                first.0
            }),
            Do::Add(value) => {
                model.insert(0, (value, vec![9; 3]));
                0
            }
            Do::Drop => {
                model.clear();
                0
            }
            Do::Collect => 0,
            Do::Look => sum(model),
        }
    }

    fn reads(self) -> bool {
        matches!(self, Do::Look)
    }

    fn waits(self, _: bool) -> bool {
        // One changes or collects it at a time, and nobody looks then.
        true
    }

    fn found(bench: &mut Bench, _: &Crash) -> Result<Picture, String> {
        bench.settled(&bench.heap)
    }

    fn ends(_: &mut Bench) -> Result<(), String> {
        // That it works is seen as soon as it is settled.
        Ok(())
    }
}

fn sum(picture: &Picture) -> u64 {
    picture.iter().map(|node| node.0).sum()
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case = |name: &str, victim: &[Do], overtaker: &[Do]| {
        let case = super::case(
            format!("heap/{name}"),
            Bench::new,
            |_| old(),
            [victim, overtaker],
        );
        suite.run(case.attach(Bench::enter));
    };
    case("raise by raise", &[Raise(10)], &[Raise(20)]);
    case("raise by add", &[Raise(10)], &[Add(20), Collect]);
    case("add by add", &[Add(10)], &[Add(20)]);
    case(
        "add by drop and collect",
        &[Add(10)],
        &[Drop, Collect, Add(20)],
    );
    case("collect by raise", &[Drop, Collect], &[Add(20), Raise(5)]);
    case("look by raise", &[Look], &[Raise(10), Add(20), Collect]);
    case("raise by look", &[Raise(10)], &[Look]);
}
