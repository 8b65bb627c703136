//! Heaps: against an ordinary graph, shared by processes, some of which are killed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shmkit::process::{JoinError, scope};
use shmkit::{AllocError, Gc, Heap, HeapError, Pool, ShmSafe, Trace};

use crate::common::{Random, TestPool, storm_time};
use crate::{allocated, assert_sound};

#[derive(Clone, Copy, Debug, PartialEq, ShmSafe, Trace)]
struct Node {
    value: u64,
    edges: [Option<Gc<Node>>; 3],
    list: Option<Gc<[u32]>>,
}

impl Node {
    fn new(value: u64) -> Self {
        Node {
            value,
            edges: [None; 3],
            list: None,
        }
    }
}

/// A way of everything that may hold ids.
#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
#[repr(u8)]
enum Shape {
    Empty,
    Named { name: Gc<str>, since: (u8, f32) },
    Many(Gc<[Gc<Shape>]>, Option<Gc<Pair<u16, Gc<Shape>>>>),
}

#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Pair<A, B> {
    a: A,
    b: B,
}

type Graph = Heap<Option<Gc<Node>>>;

fn graph(pool: Pool) -> shmkit::Shared<Graph> {
    pool.create(Heap::new(None)).unwrap()
}

pub fn objects_of_all_kinds() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let heap = pool.create(Heap::new(Shape::Empty)).unwrap();
    assert!(heap.is_empty().unwrap());
    let made: Result<_, HeapError> = heap.try_modify(|tx| {
        let name = tx.alloc_str("größer")?;
        let since = (3, 0.5);
        let named = tx.alloc(Shape::Named { name, since })?;
        let empty = tx.alloc_slice_with(0, |_| named)?;
        let inner = tx.alloc(Shape::Many(empty, None))?;
        let pair = tx.alloc(Pair { a: 7, b: inner })?;
        let all = tx.alloc_slice(&[named, inner])?;
        *tx.root_mut()? = Shape::Many(all, Some(pair));
        // A cycle through a slice.
        *tx.get_mut(inner)? = Shape::Many(all, Some(pair));
        let nothing = tx.alloc(())?;
        assert_eq!(tx.get(nothing), Some(&()));
        Ok((named, inner, empty, nothing))
    });
    let (named, inner, empty, nothing) = made.unwrap();
    assert_eq!(heap.len().unwrap(), 7);
    let collected = heap.collect().unwrap();
    assert_eq!((collected.freed, collected.live), (2, 5));
    let view = heap.view().unwrap();
    assert!(view.get(empty).is_none() && view.get(nothing).is_none());
    let Shape::Many(all, Some(pair)) = *view.root() else {
        panic!("{view:?}")
    };
    assert_eq!(view.get(all), Some(&[named, inner][..]));
    assert_eq!(
        view.get(pair).map(|pair| (pair.a, pair.b)),
        Some((7, inner))
    );
    let Some(&Shape::Named { name, since }) = view.get(named) else {
        panic!("{view:?}")
    };
    assert_eq!((view.get(name), since), (Some("größer"), (3, 0.5)));
    drop(view);
    let stats = heap.stats().unwrap();
    assert!(stats.objects == 5 && stats.bytes >= 80 && stats.overhead >= 2560);
    assert_sound(*pool);
    drop(heap);
    assert_eq!(allocated(*pool), before);
}

pub fn heaps_outside_of_a_pool() {
    let heap = Graph::new(None);
    assert_eq!(heap.view().map(drop), Err(HeapError::NotInPool));
    assert_eq!(heap.modify(|_| ()), Err(HeapError::NotInPool));
    assert_eq!(heap.collect(), Err(HeapError::NotInPool));
    assert_eq!(heap.len(), Err(HeapError::NotInPool));
}

pub fn one_use_a_thread() {
    let pool = TestPool::new();
    let (heap, other) = (graph(*pool), graph(*pool));
    let again = Err(HeapError::WouldDeadlock);
    heap.modify(|tx| {
        assert_eq!(heap.modify(|_| ()), again);
        assert_eq!(heap.view().map(drop), again);
        assert_eq!(heap.collect().map(drop), again);
        // Another heap is another matter.
        let inner = other.modify(|inner| inner.alloc(Node::new(1)).unwrap());
        assert_eq!(tx.get(inner.unwrap()), None);
    })
    .unwrap();
    let view = heap.view().unwrap();
    assert_eq!(heap.modify(|_| ()), again);
    assert_eq!(heap.view().map(drop), again);
    // Views are guards: no fork.
    scope(|s| assert!(s.spawn(|| ()).is_err()));
    drop(view);
    scope(|s| s.spawn(|| ()).unwrap().join().unwrap());
    assert_eq!(heap.modify(|_| 3), Ok(3));
}

/// The same bytes as an id of another type. Forged ids are to be found out.
fn forged<A: ?Sized, B: ?Sized>(gc: Gc<A>, mut change: impl FnMut(&mut [u8; 16])) -> Gc<B> {
    // SAFETY: ids are 16 bytes of which none but a heap's name of 0 is invalid, and the tests change
    // others.
    unsafe {
        let mut bytes = std::mem::transmute_copy::<Gc<A>, [u8; 16]>(&gc);
        change(&mut bytes);
        std::mem::transmute_copy(&bytes)
    }
}

pub fn ids_are_checked() {
    let pool = TestPool::new();
    let (heap, other) = (graph(*pool), graph(*pool));
    let twin = other.modify(|tx| tx.alloc(Node::new(2)).unwrap()).unwrap();
    let (gc, list, stale) = heap
        .try_modify(|tx| {
            let stale = tx.alloc(Node::new(0))?;
            let gc = tx.alloc(Node::new(1))?;
            let list = tx.alloc_slice(&[1_u32, 2])?;
            tx.get_mut(gc)?.list = Some(list);
            *tx.root_mut()? = Some(gc);
            Ok::<_, HeapError>((gc, list, stale))
        })
        .unwrap();
    assert_eq!(heap.collect().unwrap().freed, 1);
    // The next object has the place of the one that was collected.
    let next = heap.modify(|tx| tx.alloc(Node::new(3)).unwrap()).unwrap();
    assert_ne!(next, stale);
    heap.modify(|tx| {
        assert_eq!(tx.get(gc).unwrap().value, 1);
        for bad in [twin, stale] {
            assert_eq!(tx.get(bad), None);
            assert_eq!(tx.get_mut(bad).map(drop), Err(HeapError::NoObject));
        }
        let out = |start, end| HeapError::OutOfBounds { start, end, len: 2 };
        assert_eq!(tx.slice_mut(list, 1..3).map(drop), Err(out(1, 3)));
        #[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        let backward = tx.slice_mut(list, 2..1).map(drop);
        assert_eq!(backward, Err(out(2, 1)));
    })
    .unwrap();
    let view = heap.view().unwrap();
    // Of another type, of another shape.
    assert_eq!(view.get(forged::<_, [u64; 9]>(gc, |_| ())), None);
    assert_eq!(view.get(forged::<_, [Node]>(gc, |_| ())), None);
    assert_eq!(view.get(forged::<_, u32>(list, |_| ())), None);
    assert_eq!(view.get(forged::<_, str>(list, |_| ())), None);
    assert_eq!(
        view.get(forged::<_, [u32]>(list, |_| ())),
        Some(&[1, 2][..])
    );
    // Any other bytes: an object of the type, or none.
    let mut random = Random::new(5);
    for _ in 0..100_000 {
        let forged: Gc<Node> = forged(gc, |bytes: &mut [u8; 16]| {
            let at = random.below(16);
            bytes[at] ^= random.next() as u8 | 1;
            if random.below(2) == 0 {
                bytes[8..12].copy_from_slice(&random.next().to_le_bytes()[..4]);
            }
        });
        let found = view.get(forged).map(|node| node.value);
        assert!(matches!(found, None | Some(1 | 3)), "{found:?}");
    }
}

pub fn what_fails_is_undone() {
    let pool = TestPool::new();
    let heap = graph(*pool);
    let (first, list) = heap
        .try_modify(|tx| {
            let list = tx.alloc_slice_with(1000, |i| i as u32)?;
            let first = tx.alloc(Node {
                list: Some(list),
                ..Node::new(1)
            })?;
            *tx.root_mut()? = Some(first);
            Ok::<_, HeapError>((first, list))
        })
        .unwrap();
    // The table, which stays as large as it was once.
    heap.modify(|tx| assert!((0..300).all(|n| tx.alloc(n).is_ok())))
        .unwrap();
    heap.collect().unwrap();
    let full = allocated(*pool);
    let change = |tx: &mut shmkit::Tx<'_, Option<Gc<Node>>>| {
        let second = tx.alloc(Node::new(2)).unwrap();
        // More than one chunk of the log, and twice the same.
        for part in [10..20, 15..30, 500..900, 0..5, 4..1000] {
            let end = part.end as u32;
            tx.slice_mut(list, part).unwrap().fill(end);
        }
        tx.get_mut(first).unwrap().edges[0] = Some(second);
        tx.get_mut(list).unwrap()[0] = 77;
        for i in 0..200 {
            let more = tx.alloc_slice(&[i; 100]).unwrap();
            tx.get_mut(second).unwrap().list = Some(more);
        }
        *tx.root_mut().unwrap() = Some(second);
        assert_eq!(tx.root(), &Some(second));
        assert_eq!(tx.get(list).unwrap()[4], 1000);
    };
    let unchanged = |what: &str| {
        let view = heap.view().unwrap();
        assert_eq!(*view.root(), Some(first), "{what}");
        assert_eq!(view.get(first).unwrap().edges, [None; 3], "{what}");
        let list = view.get(list).unwrap().iter().enumerate();
        assert!(list.into_iter().all(|(i, &n)| i as u32 == n), "{what}");
        drop(view);
        assert_eq!(heap.len().unwrap(), 2, "{what}");
        assert_eq!(allocated(*pool), full, "{what}");
        assert_sound(*pool);
    };
    let panics = || {
        heap.modify(|tx| {
            change(tx);
            panic!("no");
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    unchanged("panicked");
    let failed: Result<(), HeapError> = heap.try_modify(|tx| {
        change(tx);
        Err(HeapError::NoObject)
    });
    assert_eq!(failed, Err(HeapError::NoObject));
    unchanged("failed");
    // A closure of an allocation that panics leaves no half object, even if that is caught.
    heap.modify(|tx| {
        let fails = AssertUnwindSafe(|| {
            let first = Some(first);
            tx.alloc_slice_with(4, |i| if i < 2 { first } else { panic!("no") })
        });
        assert!(catch_unwind(fails).is_err());
    })
    .unwrap();
    heap.collect().unwrap();
    unchanged("half an object");
    for _ in 0..2 {
        scope(|s| {
            let dies = || {
                let _ = heap.modify(|tx| {
                    change(tx);
                    std::process::abort();
                });
            };
            let child = s.spawn(dies).unwrap();
            assert!(matches!(child.join(), Err(JoinError::Signaled(6))));
        });
        unchanged("died");
    }
    heap.modify(change).unwrap();
    heap.collect().unwrap();
    assert_eq!(heap.len().unwrap(), 2);
    assert_sound(*pool);
}

pub fn the_dead_may_leave_a_heap_for_good() {
    let pool = TestPool::new();
    let before = allocated(*pool);
    let heap = graph(*pool);
    heap.modify(|tx| *tx.root_mut().unwrap() = None).unwrap();
    scope(|s| {
        let dies = || {
            let _ = heap.modify(|tx| {
                for n in 0..100 {
                    *tx.root_mut().unwrap() = Some(tx.alloc(Node::new(n)).unwrap());
                }
                std::process::abort();
            });
        };
        assert!(s.spawn(dies).unwrap().join().is_err());
    });
    drop(heap);
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn collections_come_by_themselves() {
    let pool = TestPool::with(|builder| builder.max_size(64 << 20));
    let heap = graph(*pool);
    for n in 0..2000 {
        // 8 MiB in all, of which one object stays.
        heap.try_modify(|tx| {
            let list = tx.alloc_slice(&[n; 1024])?;
            let node = tx.alloc(Node {
                list: Some(list),
                ..Node::new(n.into())
            })?;
            *tx.root_mut()? = Some(node);
            Ok::<_, HeapError>(())
        })
        .unwrap();
        assert!(heap.stats().unwrap().bytes < 3 << 20);
    }
    let collected = heap.collect().unwrap();
    assert_eq!(collected.live, 2);
    // A deep list and a wide one: marking does not recurse.
    heap.try_modify(|tx| {
        for n in 0..100_000 {
            let mut node = Node::new(n);
            node.edges[0] = *tx.root();
            let node = tx.alloc(node)?;
            *tx.root_mut()? = Some(node);
        }
        Ok::<_, HeapError>(())
    })
    .unwrap();
    assert_eq!(heap.collect().unwrap().live, 100_002);
    heap.modify(|tx| *tx.root_mut().unwrap() = None).unwrap();
    assert_eq!(heap.collect().unwrap().live, 0);
    assert_sound(*pool);
}

pub fn a_full_pool_loses_no_object() {
    let pool = TestPool::with(|builder| builder.initial_size(4 << 20).max_size(4 << 20));
    let heap = graph(*pool);
    let keep = heap
        .try_modify(|tx| {
            let list = tx.alloc_slice(&[9_u32; 10_000])?;
            let keep = tx.alloc(Node {
                list: Some(list),
                ..Node::new(1)
            })?;
            *tx.root_mut()? = Some(keep);
            // Garbage, of which nothing is left to see.
            for _ in 0..30 {
                tx.alloc_slice(&[0_u8; 10_000])?;
            }
            Ok::<_, HeapError>(keep)
        })
        .unwrap();
    let list = heap.view().unwrap().get(keep).unwrap().list.unwrap();
    let fills = |tx: &mut shmkit::Tx<'_, Option<Gc<Node>>>| {
        // Old, and unlinked in this very transaction: a collection must leave it, as it may come back.
        tx.get_mut(keep).unwrap().list = None;
        *tx.root_mut().unwrap() = None;
        let mut made = 0;
        let error = loop {
            let mut node = Node::new(made);
            node.edges[1] = *tx.root();
            match tx.alloc(node) {
                Ok(node) => *tx.root_mut().unwrap() = Some(node),
                Err(error) => {
                    assert_eq!(error.value, node);
                    break error;
                }
            }
            made += 1;
        };
        assert_eq!(
            HeapError::from(error),
            HeapError::Alloc(AllocError::PoolFull)
        );
        let longer = tx.alloc_slice_with(100_000, |_| -> u8 { panic!("not asked for") });
        assert_eq!(longer, Err(HeapError::Alloc(AllocError::PoolFull)));
        // It goes on: what it made is there, and so is what it has unlinked.
        let mut at = *tx.root();
        for n in (0..made).rev() {
            let node = tx.get(at.unwrap()).unwrap();
            assert_eq!(node.value, n);
            at = node.edges[1];
        }
        assert_eq!(tx.get(list).unwrap().len(), 10_000);
        tx.get_mut(keep).unwrap().value = 100;
        // There is no room to save what is not saved yet.
        let saved = tx.get_mut(list).map(drop);
        assert_eq!(saved, Err(HeapError::Alloc(AllocError::PoolFull)));
        made
    };
    let failed = heap.try_modify(|tx| {
        assert!(fills(tx) > 5000);
        Err::<(), _>(HeapError::NoObject)
    });
    assert_eq!(failed, Err(HeapError::NoObject));
    let view = heap.view().unwrap();
    let node = view.get(view.root().unwrap()).unwrap();
    assert_eq!((*view.root(), node.value), (Some(keep), 1));
    assert!(
        view.get(node.list.unwrap())
            .unwrap()
            .iter()
            .all(|&n| n == 9)
    );
    drop(view);
    assert_eq!(heap.collect().unwrap().live, 2);
    let made = heap.modify(fills).unwrap();
    assert_eq!(heap.collect().unwrap().live as u64, made);
    heap.modify(|tx| *tx.root_mut().unwrap() = None).unwrap();
    assert_eq!(heap.collect().unwrap().live, 0);
    assert_sound(*pool);
}

pub fn a_forked_copy_of_a_transaction_is_void() {
    let pool = TestPool::new();
    let heap = pool.create(Heap::new(1_u64)).unwrap();
    let mut child = 0;
    let outcome = heap.modify(|tx| {
        *tx.root_mut().unwrap() = 2;
        // SAFETY: this process has one thread.
        child = unsafe { libc::fork() };
        if child != 0 {
            let mut status = 0;
            // SAFETY: a child of ours; the status is this frame's.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(libc::WEXITSTATUS(status), 7);
        }
    });
    if child == 0 {
        let void = outcome == Err(HeapError::NotMine);
        // SAFETY: ends the child, which has nothing to flush.
        unsafe { libc::_exit(if void { 7 } else { 1 }) };
    }
    assert_eq!((outcome, *heap.view().unwrap().root()), (Ok(()), 2));
    assert_sound(*pool);
}

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

/// A bank: the balances of its accounts add up, and each account is sealed.
#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Bank {
    accounts: Option<Gc<[Gc<Account>]>>,
    transfers: u64,
}

#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Account {
    balance: i64,
    seal: u64,
    latest: Option<Gc<Transfer>>,
}

/// The latest transfer of an account, and those before, and the other side's.
#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Transfer {
    amount: i64,
    balance: i64,
    before: Option<Gc<Transfer>>,
    with: Gc<Account>,
}

const ACCOUNTS: usize = 16;

fn seal(balance: i64) -> u64 {
    (balance as u64 ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Bank {
    fn open(heap: &Heap<Bank>) {
        heap.try_modify(|tx| {
            let account = Account {
                balance: 1000,
                seal: seal(1000),
                latest: None,
            };
            let mut all = Vec::new();
            for _ in 0..ACCOUNTS {
                all.push(tx.alloc(account)?);
            }
            tx.root_mut()?.accounts = Some(tx.alloc_slice(&all)?);
            Ok::<_, HeapError>(())
        })
        .unwrap();
    }

    fn transfer(heap: &Heap<Bank>, random: &mut Random) -> Result<(), HeapError> {
        heap.try_modify(|tx| {
            let accounts = tx.get(tx.root().accounts.unwrap()).unwrap();
            let (from, to) = (random.below(ACCOUNTS), random.below(ACCOUNTS));
            let sides = [(accounts[from], -1), (accounts[to], 1)];
            let amount = random.below(100) as i64;
            tx.root_mut()?.transfers += 1;
            for ((account, sign), (with, _)) in [(sides[0], sides[1]), (sides[1], sides[0])] {
                let amount = sign * amount;
                let &Account {
                    balance, latest, ..
                } = tx.get(account).unwrap();
                let latest = tx.alloc(Transfer {
                    amount,
                    balance: balance + amount,
                    before: latest,
                    with,
                })?;
                *tx.get_mut(account)? = Account {
                    balance: balance + amount,
                    seal: seal(balance + amount),
                    latest: Some(latest),
                };
                // Three transfers back and no more: the rest is garbage.
                let second = tx.get(latest).unwrap().before;
                if let Some(second) = second
                    && let Some(third) = tx.get(second).unwrap().before
                {
                    tx.get_mut(third)?.before = None;
                }
            }
            Ok(())
        })
    }

    /// Everything adds up; the number of transfers, and of objects that are reached.
    fn check(heap: &Heap<Bank>) -> (u64, usize) {
        let view = heap.view().unwrap();
        let accounts = view.get(view.root().accounts.unwrap()).unwrap();
        let (mut sum, mut reached) = (0, 1 + ACCOUNTS);
        for &account in accounts {
            let account = view.get(account).unwrap();
            assert_eq!(account.seal, seal(account.balance), "{account:?}");
            sum += account.balance;
            let (mut next, mut balance) = (account.latest, account.balance);
            while let Some(transfer) = next {
                let transfer = view.get(transfer).expect("not collected");
                assert_eq!(transfer.balance, balance);
                assert!(accounts.contains(&transfer.with));
                balance -= transfer.amount;
                next = transfer.before;
                reached += 1;
            }
        }
        assert_eq!(sum, 1000 * ACCOUNTS as i64);
        (view.root().transfers, reached)
    }
}

pub fn transfers_by_many() {
    let pool = TestPool::with(|builder| builder.max_size(16 << 20));
    let before = allocated(*pool);
    let heap = pool.create(Heap::new(Bank {
        accounts: None,
        transfers: 0,
    }));
    let heap = heap.unwrap();
    Bank::open(&heap);
    scope(|s| {
        for worker in 0..3 {
            let heap = &heap;
            s.spawn(move || {
                let mut random = Random::new(worker);
                for n in 0..2000 {
                    Bank::transfer(heap, &mut random).unwrap();
                    if n % 100 == 0 {
                        Bank::check(heap);
                    }
                    if n % 500 == 0 {
                        heap.collect().unwrap();
                    }
                }
            })
            .unwrap();
        }
    });
    let (transfers, reached) = Bank::check(&heap);
    assert_eq!(transfers, 6000);
    assert_eq!(heap.collect().unwrap().live, reached);
    assert_sound(*pool);
    drop(heap);
    assert_eq!(allocated(*pool), before);
}

pub fn killed_modifiers_lose_nothing() {
    let pool = TestPool::with(|builder| builder.max_size(16 << 20));
    let before = allocated(*pool);
    let bank = Bank {
        accounts: None,
        transfers: 0,
    };
    let heap = pool.create(Heap::new(bank)).unwrap();
    let done = pool.create(AtomicU64::new(0)).unwrap();
    Bank::open(&heap);
    let (mut killed, mut round) = (0, 0);
    let time = storm_time(std::time::Duration::from_secs(2));
    let start = std::time::Instant::now();
    while start.elapsed() < time {
        round += 1;
        let mut random = Random::new(round);
        scope(|s| {
            let children: Vec<_> = (0..3)
                .map(|worker| {
                    let (heap, done) = (&heap, &done);
                    let work = move || {
                        let mut random = Random::new(round << 8 | worker);
                        for n in 0_u64.. {
                            Bank::transfer(heap, &mut random).unwrap();
                            done.fetch_add(1, Ordering::Relaxed);
                            if n % 64 == worker {
                                heap.collect().unwrap();
                            }
                        }
                    };
                    s.spawn(work).unwrap()
                })
                .collect();
            let start = done.load(Ordering::Relaxed);
            let some = random.below(200) as u64;
            while done.load(Ordering::Relaxed) - start < some {
                std::thread::yield_now();
            }
            for child in children {
                child.kill().unwrap();
                assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
                killed += 1;
                Bank::check(&heap);
            }
        });
        // Each of the dead may have been between its transfer and its count.
        let (transfers, reached) = Bank::check(&heap);
        let counted = done.load(Ordering::Relaxed);
        assert!((counted..=counted + killed).contains(&transfers));
        if round % 16 == 0 {
            assert_eq!(heap.collect().unwrap().live, reached);
            assert_sound(*pool);
        }
    }
    println!("{killed} killed");
    drop((heap, done));
    assert_eq!(allocated(*pool), before);
    assert_sound(*pool);
}

pub fn a_killed_viewer_holds_up_nobody() {
    let pool = TestPool::new();
    let heap = graph(*pool);
    let viewing = pool.create(AtomicU32::new(0)).unwrap();
    scope(|s| {
        let views = || {
            let view = heap.view().unwrap();
            viewing.store(1, Ordering::Release);
            while view.root().is_none() {}
        };
        let child = s.spawn(views).unwrap();
        while viewing.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        // Others look at the same time.
        assert_eq!(*heap.view().unwrap().root(), None);
        child.kill().unwrap();
        let node = heap.modify(|tx| tx.alloc(Node::new(1)).unwrap()).unwrap();
        assert!(heap.view().unwrap().get(node).is_some());
        assert!(matches!(child.join(), Err(JoinError::Signaled(9))));
    });
}
