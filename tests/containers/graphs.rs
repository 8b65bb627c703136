//! Heaps, compared with an ordinary graph in private memory: transactions that end in
//! every possible way.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use shmkit::process::scope;
use shmkit::{Heap, HeapError};

use crate::common::TestPool;
use crate::graph_model::{Model, Root, Step};
use crate::{allocated, on_random};

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Commit,
    Fail,
    Panic,
    Die,
}

fn steps() -> impl Strategy<Value = (Vec<Step>, End, bool)> {
    let node = any::<u8>;
    let place = || 0..40_u16;
    let step = prop_oneof![
        3 => any::<u64>().prop_map(|value| Step::New { value }),
        4 => (node(), any::<bool>(), prop::option::of(node()))
            .prop_map(|(from, edge, to)| Step::Edge { from, edge, to }),
        2 => (node(), any::<u64>()).prop_map(|(of, value)| Step::Value { of, value }),
        1 => prop::option::weighted(0.8, node()).prop_map(|to| Step::Root { to }),
        1 => (node(), place()).prop_map(|(of, len)| Step::List { of, len }),
        3 => (node(), place(), place(), any::<u16>())
            .prop_map(|(of, from, to, value)| Step::Part { of, from, to, value }),
        1 => any::<[u8; 12]>().prop_map(|bytes| Step::Forged { bytes }),
    ];
    let end = prop_oneof![
        6 => Just(End::Commit), 2 => Just(End::Fail), 2 => Just(End::Panic), 1 => Just(End::Die)
    ];
    (
        prop::collection::vec(step, 1..30),
        end,
        prop::bool::weighted(0.3),
    )
}

pub fn heaps_behave_like_graphs() {
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Planned>() {
            eprintln!("{info}");
        }
    }));
    let runs = prop::collection::vec(steps(), 1..20);
    on_random(300, &runs, |transactions| {
        let pool = TestPool::with(|builder| builder.max_size(16 << 20));
        let before = allocated(*pool);
        let heap = pool.create(Heap::<Root>::new(None)).unwrap();
        let mut model = Model::default();
        for (steps, end, collect) in &transactions {
            let mut new = model.clone();
            match end {
                End::Commit => heap.try_modify(|tx| new.make(tx, steps)).unwrap(),
                End::Fail => {
                    let failed: Result<(), _> = heap.try_modify(|tx| {
                        new.make(tx, steps).unwrap();
                        Err(HeapError::NoObject)
                    });
                    assert_eq!(failed, Err(HeapError::NoObject));
                }
                End::Panic => {
                    let panics = AssertUnwindSafe(|| {
                        heap.modify(|tx| {
                            new.make(tx, steps).unwrap();
                            std::panic::panic_any(Planned);
                        })
                    });
                    assert!(catch_unwind(panics).is_err());
                }
                End::Die => scope(|s| {
                    let child = s.spawn(|| {
                        let _ = heap.modify(|tx| {
                            model.clone().make(tx, steps).unwrap();
                            std::process::abort();
                        });
                    });
                    assert!(child.unwrap().join().is_err());
                }),
            }
            if *end == End::Commit {
                model = new;
            }
            assert!(model.is(&heap));
            if *collect {
                let live = model.objects();
                assert_eq!(heap.collect().unwrap().live, live);
                assert_eq!(heap.len().unwrap(), live);
                assert!(model.is(&heap));
            }
            let report = pool.check_quiescent();
            assert!(report.is_ok(), "{report:?}");
        }
        drop(heap);
        assert_eq!(allocated(*pool), before);
    });
}

/// What planned panics have.
struct Planned;
