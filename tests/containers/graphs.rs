//! Heaps against an ordinary graph in private memory: transactions that end in every way.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shmkit::process::scope;
use shmkit::{Gc, HeapError};

use crate::allocated;
use crate::common::TestPool;
use crate::heaps::{Graph, Node, graph};

/// A graph as one would have it in private memory.
#[derive(Clone, Default)]
struct Model {
    nodes: Vec<(u64, [Option<usize>; 3], Vec<u32>)>,
    root: Option<usize>,
}

impl Model {
    fn reached(&self) -> Vec<usize> {
        let mut seen = vec![false; self.nodes.len()];
        let mut todo: Vec<usize> = self.root.into_iter().collect();
        let mut reached = Vec::new();
        while let Some(at) = todo.pop() {
            if !std::mem::replace(&mut seen[at], true) {
                reached.push(at);
                todo.extend(self.nodes[at].1.iter().flatten());
            }
        }
        reached
    }
}

#[derive(Clone, Debug)]
enum Step {
    New(u64),
    Edge(usize, usize, Option<usize>),
    Value(usize, u64),
    Root(Option<usize>),
    List(usize, usize),
    Part(usize, usize, usize, u32),
    Whole(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Commit,
    Fail,
    Panic,
    Die,
}

fn steps() -> impl Strategy<Value = (Vec<Step>, End, bool)> {
    let node = || 0..64_usize;
    let step = prop_oneof![
        3 => any::<u64>().prop_map(Step::New),
        4 => (node(), 0..3_usize, prop::option::of(node())).prop_map(|(a, b, c)| Step::Edge(a, b, c)),
        2 => (node(), any::<u64>()).prop_map(|(a, b)| Step::Value(a, b)),
        1 => prop::option::weighted(0.8, node()).prop_map(Step::Root),
        1 => (node(), 0..40_usize).prop_map(|(a, b)| Step::List(a, b)),
        2 => (node(), 0..40_usize, 0..40_usize, any::<u32>())
            .prop_map(|(a, b, c, d)| Step::Part(a, b, c, d)),
        1 => node().prop_map(Step::Whole),
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

/// Makes the steps in the heap and in the model; `ids` are the ids of the model's nodes.
fn make(
    tx: &mut shmkit::Tx<'_, Option<Gc<Node>>>,
    model: &mut Model,
    ids: &mut Vec<Gc<Node>>,
    steps: &[Step],
) {
    for step in steps {
        // Of those that are reached, and those just made.
        let pick = |n: &usize| ids.len().checked_sub(1 + n % ids.len().max(1));
        let there = |n: &usize| pick(n).filter(|&at| tx.get(ids[at]).is_some());
        match step {
            Step::New(value) => {
                ids.push(tx.alloc(Node::new(*value)).unwrap());
                model.nodes.push((*value, [None; 3], Vec::new()));
            }
            Step::Edge(from, edge, to) => {
                let to = to.as_ref().and_then(there);
                if let Some(from) = there(from) {
                    tx.get_mut(ids[from]).unwrap().edges[*edge] = to.map(|to| ids[to]);
                    model.nodes[from].1[*edge] = to;
                }
            }
            Step::Value(of, value) => {
                if let Some(of) = there(of) {
                    tx.get_mut(ids[of]).unwrap().value = *value;
                    model.nodes[of].0 = *value;
                }
            }
            Step::Root(to) => {
                let to = to.as_ref().and_then(there);
                *tx.root_mut().unwrap() = to.map(|to| ids[to]);
                model.root = to;
            }
            Step::List(of, len) => {
                if let Some(of) = there(of) {
                    let list = tx.alloc_slice_with(*len, |i| i as u32).unwrap();
                    tx.get_mut(ids[of]).unwrap().list = (*len > 0).then_some(list);
                    model.nodes[of].2 = (0..*len as u32).collect();
                }
            }
            Step::Part(of, from, to, value) => {
                if let Some(of) = there(of)
                    && let Some(list) = tx.get(ids[of]).unwrap().list
                {
                    let len = model.nodes[of].2.len();
                    let (from, to) = (from % (len + 1), to % (len + 1));
                    let range = from.min(to)..from.max(to);
                    tx.slice_mut(list, range.clone()).unwrap().fill(*value);
                    model.nodes[of].2[range].fill(*value);
                }
            }
            Step::Whole(of) => {
                if let Some(of) = there(of)
                    && let Some(list) = tx.get(ids[of]).unwrap().list
                {
                    tx.get_mut(list).unwrap().reverse();
                    model.nodes[of].2.reverse();
                }
            }
        }
    }
}

fn compare(heap: &Graph, model: &Model, ids: &[Gc<Node>]) {
    let view = heap.view().unwrap();
    assert_eq!(*view.root(), model.root.map(|at| ids[at]));
    for at in model.reached() {
        let node = view.get(ids[at]).expect("reached, so there");
        let (value, edges, list) = &model.nodes[at];
        assert_eq!(node.value, *value);
        assert_eq!(node.edges, edges.map(|to| to.map(|to| ids[to])));
        let found = node.list.map_or(&[][..], |list| view.get(list).unwrap());
        assert_eq!(found, &list[..]);
    }
}

pub fn heaps_behave_like_graphs() {
    let cases = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Planned>() {
            eprintln!("{info}");
        }
    }));
    let runs = prop::collection::vec(steps(), 1..20);
    let outcome = TestRunner::new(cases).run(&runs, |transactions| {
        let pool = TestPool::with(|builder| builder.max_size(16 << 20));
        let before = allocated(*pool);
        let heap = graph(*pool);
        let (mut model, mut ids) = (Model::default(), Vec::new());
        for (steps, end, collect) in &transactions {
            let (mut new, mut new_ids) = (model.clone(), ids.clone());
            match end {
                End::Commit => heap
                    .modify(|tx| make(tx, &mut new, &mut new_ids, steps))
                    .unwrap(),
                End::Fail => {
                    let failed: Result<(), _> = heap.try_modify(|tx| {
                        make(tx, &mut new, &mut new_ids, steps);
                        Err(HeapError::NoObject)
                    });
                    assert_eq!(failed, Err(HeapError::NoObject));
                }
                End::Panic => {
                    let panics = AssertUnwindSafe(|| {
                        heap.modify(|tx| {
                            make(tx, &mut new, &mut new_ids, steps);
                            std::panic::panic_any(Planned);
                        })
                    });
                    assert!(catch_unwind(panics).is_err());
                }
                End::Die => scope(|s| {
                    let child = s.spawn(|| {
                        let _ = heap.modify(|tx| {
                            make(tx, &mut model.clone(), &mut ids.clone(), steps);
                            std::process::abort();
                        });
                    });
                    assert!(child.unwrap().join().is_err());
                }),
            }
            if *end == End::Commit {
                (model, ids) = (new, new_ids);
            }
            compare(&heap, &model, &ids);
            if *collect {
                let lists = |at: &&usize| !model.nodes[**at].2.is_empty();
                let reached = model.reached();
                let live = reached.len() + reached.iter().filter(lists).count();
                assert_eq!(heap.collect().unwrap().live, live);
                assert_eq!(heap.len().unwrap(), live);
                compare(&heap, &model, &ids);
            }
            let report = pool.check_quiescent();
            assert!(report.is_ok(), "{report:?}");
        }
        drop(heap);
        assert_eq!(allocated(*pool), before);
        Ok(())
    });
    let _ = std::panic::take_hook();
    outcome.unwrap();
}

/// What planned panics have.
struct Planned;
