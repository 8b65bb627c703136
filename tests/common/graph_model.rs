//! A graph in private memory, and the same graph in a heap: transactions of any steps are compared with it, by
//! `containers/graphs.rs` and by the fuzzer.

use shmkit::{Gc, Heap, HeapError, ShmSafe, Trace, Tx};

#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
pub struct Node {
    value: u64,
    edges: [Option<Gc<Node>>; 2],
    list: Option<Gc<[u16]>>,
}

pub type Root = Option<Gc<Node>>;

/// What a transaction consists of. Nodes are counted from the last one of those that it may use: the ones that
/// the root reached when it began, and its own. Any others may be gone, or what they refer to.
#[derive(Clone, Debug)]
pub enum Step {
    New {
        value: u64,
    },
    Edge {
        from: u8,
        edge: bool,
        to: Option<u8>,
    },
    Value {
        of: u8,
        value: u64,
    },
    Root {
        to: Option<u8>,
    },
    List {
        of: u8,
        len: u16,
    },
    Part {
        of: u8,
        from: u16,
        to: u16,
        value: u16,
    },
    Forged {
        bytes: [u8; 12],
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Shadow {
    value: u64,
    edges: [Option<usize>; 2],
    list: Vec<u16>,
}

#[derive(Clone, Default)]
pub struct Model {
    nodes: Vec<Shadow>,
    ids: Vec<Gc<Node>>,
    root: Option<usize>,
    /// What the transaction may use.
    usable: Vec<usize>,
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
    pub fn is(&self, heap: &Heap<Root>) -> bool {
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

    /// How many objects a collection leaves.
    pub fn objects(&self) -> usize {
        let lists = |at: usize| usize::from(!self.nodes[at].list.is_empty());
        self.reached().into_iter().map(|at| 1 + lists(at)).sum()
    }

    /// Makes the steps in the heap and here, until something finds no room.
    pub fn make(&mut self, tx: &mut Tx<'_, Root>, steps: &[Step]) -> Result<(), HeapError> {
        self.usable = self.reached();
        self.usable.sort_unstable();
        steps.iter().try_for_each(|step| self.make_one(tx, step))
    }

    fn usable(&self, n: u8) -> Option<usize> {
        let back = 1 + usize::from(n) % self.usable.len().max(1);
        Some(self.usable[self.usable.len().checked_sub(back)?])
    }

    fn make_one(&mut self, tx: &mut Tx<'_, Root>, step: &Step) -> Result<(), HeapError> {
        match *step {
            Step::New { value } => {
                let (edges, list) = ([None; 2], None);
                let node = tx.alloc(Node { value, edges, list })?;
                self.usable.push(self.ids.len());
                self.ids.push(node);
                self.nodes.push(Shadow {
                    value,
                    ..Shadow::default()
                });
            }
            Step::Edge { from, edge, to } => {
                let to = to.and_then(|to| self.usable(to));
                if let Some(from) = self.usable(from) {
                    tx.get_mut(self.ids[from])?.edges[usize::from(edge)] =
                        to.map(|to| self.ids[to]);
                    self.nodes[from].edges[usize::from(edge)] = to;
                }
            }
            Step::Value { of, value } => {
                if let Some(of) = self.usable(of) {
                    tx.get_mut(self.ids[of])?.value = value;
                    self.nodes[of].value = value;
                }
            }
            Step::Root { to } => {
                let to = to.and_then(|to| self.usable(to));
                *tx.root_mut()? = to.map(|to| self.ids[to]);
                self.root = to;
            }
            Step::List { of, len } => {
                if let Some(of) = self.usable(of) {
                    let list = tx.alloc_slice_with(len.into(), |i| i as u16)?;
                    tx.get_mut(self.ids[of])?.list = (len > 0).then_some(list);
                    self.nodes[of].list = (0..len).collect();
                }
            }
            Step::Part {
                of,
                from,
                to,
                value,
            } => {
                if let Some(of) = self.usable(of)
                    && let Some(list) = tx.get(self.ids[of]).unwrap().list
                {
                    let len = self.nodes[of].list.len();
                    let (from, to) = (usize::from(from) % (len + 1), usize::from(to) % (len + 1));
                    let range = from.min(to)..from.max(to);
                    if range.len() == len {
                        tx.get_mut(list)?.fill(value);
                    } else {
                        tx.slice_mut(list, range.clone())?.fill(value);
                    }
                    self.nodes[of].list[range].fill(value);
                }
            }
            Step::Forged { bytes } => {
                if let Some(&id) = self.ids.first() {
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
        Ok(())
    }
}
