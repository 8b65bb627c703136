//! Transactions, collections and deaths on a heap in a small pool, against a graph in private memory.
//!
//! A transaction that dies does so before one of its writes; whoever comes next, as another
//! participant, finds the heap as it was before or after.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shmkit::testing::participants::Participant;
use shmkit::{Gc, Heap, HeapError, Pool, ShmSafe, Trace, Tx};

#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
struct Node {
    value: u64,
    edges: [Option<Gc<Node>>; 2],
    list: Option<Gc<[u16]>>,
}

type Root = Option<Gc<Node>>;

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    New { value: u64 },
    Edge { from: u8, edge: bool, to: Option<u8> },
    Value { of: u8, value: u64 },
    Root { to: Option<u8> },
    List { of: u8, len: u16 },
    Part { of: u8, from: u16, to: u16, value: u16 },
    Forged { bytes: [u8; 12] },
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Modify { steps: Vec<Step>, end: End },
    Collect { dies: Option<u8> },
    View { dies: Option<u8> },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum End {
    Commit,
    Fail,
    Die { writes: u16 },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Shadow {
    value: u64,
    edges: [Option<usize>; 2],
    list: Vec<u16>,
}

#[derive(Clone, Default)]
struct Model {
    nodes: Vec<Shadow>,
    ids: Vec<Gc<Node>>,
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
                todo.extend(self.nodes[at].edges.iter().flatten());
            }
        }
        reached
    }

    /// Whether the heap is what the model is; with the same ids.
    fn is(&self, heap: &Heap<Root>) -> bool {
        let view = heap.view().unwrap();
        *view.root() == self.root.map(|at| self.ids[at])
            && self.reached().into_iter().all(|at| {
                let (model, node) = (&self.nodes[at], view.get(self.ids[at]));
                node.is_some_and(|node| {
                    let list = node.list.map_or(Some(&[][..]), |list| view.get(list));
                    node.value == model.value
                        && node.edges == model.edges.map(|to| to.map(|to| self.ids[to]))
                        && list == Some(&model.list[..])
                })
            })
    }

    fn objects(&self) -> usize {
        let lists = |at: usize| usize::from(!self.nodes[at].list.is_empty());
        self.reached().into_iter().map(|at| 1 + lists(at)).sum()
    }
}

/// Makes the steps in the heap and in the model, until something finds no room.
fn make(tx: &mut Tx<'_, Root>, model: &mut Model, steps: &[Step]) -> Result<(), HeapError> {
    for step in steps {
        let there = |tx: &Tx<'_, Root>, n: u8| {
            let at = model.ids.len().checked_sub(1 + usize::from(n) % model.ids.len().max(1))?;
            tx.get(model.ids[at]).map(|_| at)
        };
        match *step {
            Step::New { value } => {
                let (edges, list) = ([None; 2], None);
                let node = tx.alloc(Node { value, edges, list })?;
                model.ids.push(node);
                model.nodes.push(Shadow { value, ..Shadow::default() });
            }
            Step::Edge { from, edge, to } => {
                let to = to.and_then(|to| there(tx, to));
                if let Some(from) = there(tx, from) {
                    tx.get_mut(model.ids[from])?.edges[usize::from(edge)] =
                        to.map(|to| model.ids[to]);
                    model.nodes[from].edges[usize::from(edge)] = to;
                }
            }
            Step::Value { of, value } => {
                if let Some(of) = there(tx, of) {
                    tx.get_mut(model.ids[of])?.value = value;
                    model.nodes[of].value = value;
                }
            }
            Step::Root { to } => {
                let to = to.and_then(|to| there(tx, to));
                *tx.root_mut()? = to.map(|to| model.ids[to]);
                model.root = to;
            }
            Step::List { of, len } => {
                if let Some(of) = there(tx, of) {
                    let list = tx.alloc_slice_with(len.into(), |i| i as u16)?;
                    tx.get_mut(model.ids[of])?.list = (len > 0).then_some(list);
                    model.nodes[of].list = (0..len).collect();
                }
            }
            Step::Part { of, from, to, value } => {
                if let Some(of) = there(tx, of)
                    && let Some(list) = tx.get(model.ids[of]).unwrap().list
                {
                    let ends = model.nodes[of].list.len() + 1;
                    let (from, to) = (usize::from(from) % ends, usize::from(to) % ends);
                    let range = from.min(to)..from.max(to);
                    tx.slice_mut(list, range.clone())?.fill(value);
                    model.nodes[of].list[range].fill(value);
                }
            }
            Step::Forged { bytes } => {
                if let Some(&id) = model.ids.first() {
                    // SAFETY: an id is 16 bytes, and valid unless its first eight are 0.
                    let forged: Gc<[Node]> = unsafe {
                        let mut id = std::mem::transmute::<Gc<Node>, [u8; 16]>(id);
                        id[4..].copy_from_slice(&bytes);
                        id[0] |= 1;
                        std::mem::transmute(id)
                    };
                    assert_eq!(tx.get(forged).map(<[_]>::len), None);
                }
            }
        }
    }
    Ok(())
}

fuzz_target!(|operations: Vec<Operation>| {
    let pool = Pool::builder().max_size(4 << 20).create().unwrap();
    // SAFETY: what a killed one had is on the stack of its closure, and forgotten.
    let (mut mine, mut other) = unsafe { (Participant::new(), Participant::new()) };
    let heap = mine.act(pool, None, || pool.create(Heap::new(None)).unwrap());
    let heap = heap.unwrap();
    let mut model = Model::default();
    for operation in &operations {
        match operation {
            Operation::Modify { steps, end } => {
                let mut new = model.clone();
                let mut full = false;
                let dies = match end {
                    End::Die { writes } => Some(usize::from(*writes)),
                    _ => None,
                };
                let ended = mine.act(pool, dies, || {
                    heap.try_modify(|tx| {
                        // What found no room is undone.
                        let made = make(tx, &mut new, steps);
                        full = made.is_err();
                        made?;
                        match end {
                            End::Fail => Err(HeapError::NoObject),
                            _ => Ok(()),
                        }
                    })
                });
                match ended {
                    Some(Ok(())) => model = new,
                    Some(Err(error)) => {
                        assert!(full || matches!(end, End::Fail), "{error}");
                    }
                    // It happened or did not. Who finds out may die on the way.
                    None => {
                        other.act(pool, dies, || drop(heap.view().unwrap()));
                        let is_new = other.act(pool, None, || !model.is(&heap) && new.is(&heap));
                        if is_new.unwrap() {
                            model = new;
                        }
                    }
                }
            }
            Operation::Collect { dies } => {
                let dies = dies.map(usize::from);
                let collected = mine.act(pool, dies, || heap.collect().unwrap());
                if let Some(collected) = collected {
                    assert_eq!(collected.live, model.objects());
                }
            }
            Operation::View { dies } => {
                let dies = dies.map(usize::from);
                assert!(other.act(pool, dies, || model.is(&heap)).unwrap_or(true));
            }
        }
        assert!(mine.act(pool, None, || model.is(&heap)).unwrap());
        let report = pool.check();
        assert!(report.is_ok(), "{report}");
    }
    mine.act(pool, None, || drop(heap));
    mine.leave(pool);
    other.leave(pool);
    pool.recover();
    assert_eq!(pool.stats().allocated, 0);
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    // SAFETY: nothing refers to the pool.
    unsafe { pool.unmap() };
});
