//! A search tree of objects that lead to each other, each use of it a transaction or a view of its own.

use std::hint::black_box;
use std::sync::{Arc, RwLock};

use shmkit::{Gc, Heap, Shared, ShmSafe, Trace};

use crate::crew::Crew;
use crate::maps::pool;

/// Nodes of the tree, all levels full.
const NODES: u64 = 1023;
const LOOKS: u64 = 1_000_000;
const CHANGES: u64 = 200_000;

pub fn run(crew: &Crew, bench: &str, subject: &str) {
    match subject {
        "shmkit" => ours(crew, bench),
        "std" => std_tree(crew, bench),
        other => panic!("{other}"),
    }
}

/// The key that is the `i`th to be asked for.
fn key(i: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % NODES
}

#[derive(ShmSafe, Trace)]
struct Node {
    key: u64,
    value: u64,
    left: Option<Gc<Node>>,
    right: Option<Gc<Node>>,
}

type Tree = Heap<Option<Gc<Node>>>;

fn planted() -> Shared<Tree> {
    fn plant(
        tx: &mut shmkit::Tx<'_, Option<Gc<Node>>>,
        keys: std::ops::Range<u64>,
    ) -> Option<Gc<Node>> {
        let key = keys.start + (keys.end - keys.start) / 2;
        (!keys.is_empty()).then(|| {
            let node = Node {
                key,
                value: key,
                left: plant(tx, keys.start..key),
                right: plant(tx, key + 1..keys.end),
            };
            tx.alloc(node)
                .map_err(|refused| refused.cause)
                .expect("room")
        })
    }
    let tree = pool().create(Heap::new(None)).expect("a heap");
    let planted = tree.modify(|tx| {
        let root = plant(tx, 0..NODES);
        tx.root_mut().map(|place| *place = root)
    });
    planted.expect("no view").expect("room");
    tree
}

/// Who leads to the node of a key, and that node.
fn find<'a>(
    root: Option<Gc<Node>>,
    key: u64,
    get: impl Fn(Gc<Node>) -> Option<&'a Node>,
) -> (Option<Gc<Node>>, Gc<Node>) {
    let (mut parent, mut at) = (None, root.expect("a tree"));
    loop {
        let node = get(at).expect("an object");
        let next = if key < node.key {
            node.left.expect("the key is there")
        } else if key > node.key {
            node.right.expect("the key is there")
        } else {
            return (parent, at);
        };
        (parent, at) = (Some(at), next);
    }
}

fn ours(crew: &Crew, bench: &str) {
    let tree = planted();
    match bench {
        "heap_view" => crew.repeat(LOOKS, |i| {
            let view = tree.view().expect("no transaction of our own");
            let (_, at) = find(*view.root(), key(i), |gc| view.get(gc));
            black_box(view.get(at).expect("an object").value);
        }),
        "heap_modify" => crew.repeat(CHANGES, |i| {
            let changed = tree.try_modify(|tx| {
                let (_, at) = find(*tx.root(), key(i), |gc| tx.get(gc));
                tx.get_mut(at)?.value = i;
                Ok::<_, shmkit::HeapError>(())
            });
            changed.expect("room");
        }),
        // The old node is garbage.
        "heap_replace" => crew.repeat(CHANGES, |i| {
            let replaced = tree.try_modify(|tx| {
                let key = key(i);
                let (parent, at) = find(*tx.root(), key, |gc| tx.get(gc));
                let old = tx.get(at).expect("an object");
                let (left, right) = (old.left, old.right);
                let node = tx.alloc(Node {
                    key,
                    value: i,
                    left,
                    right,
                })?;
                let Some(parent) = parent else {
                    *tx.root_mut()? = Some(node);
                    return Ok(());
                };
                let parent = tx.get_mut(parent)?;
                if key < parent.key {
                    parent.left = Some(node);
                } else {
                    parent.right = Some(node);
                }
                Ok::<_, shmkit::HeapError>(())
            });
            replaced.expect("room");
        }),
        other => panic!("{other}"),
    }
}

/// The same in private memory, under the lock of the standard library.
struct Counted {
    key: u64,
    value: u64,
    left: Option<Arc<Counted>>,
    right: Option<Arc<Counted>>,
}

impl Counted {
    fn plant(keys: std::ops::Range<u64>) -> Option<Arc<Counted>> {
        let key = keys.start + (keys.end - keys.start) / 2;
        (!keys.is_empty()).then(|| {
            Arc::new(Counted {
                key,
                value: key,
                left: Counted::plant(keys.start..key),
                right: Counted::plant(key + 1..keys.end),
            })
        })
    }

    /// The place that leads to the node of a key.
    fn place(mut at: &mut Option<Arc<Counted>>, key: u64) -> &mut Option<Arc<Counted>> {
        while at.as_ref().expect("the key is there").key != key {
            let node = at
                .as_mut()
                .and_then(Arc::get_mut)
                .expect("nobody else has it");
            at = if key < node.key {
                &mut node.left
            } else {
                &mut node.right
            };
        }
        at
    }
}

fn std_tree(crew: &Crew, bench: &str) {
    let tree = RwLock::new(Counted::plant(0..NODES));
    match bench {
        "heap_view" => crew.repeat(LOOKS, |i| {
            let tree = tree.read().expect("nobody panics");
            let (mut at, key) = (tree.as_ref().expect("a tree"), key(i));
            while at.key != key {
                let next = if key < at.key { &at.left } else { &at.right };
                at = next.as_ref().expect("the key is there");
            }
            black_box(at.value);
        }),
        "heap_modify" => crew.repeat(CHANGES, |i| {
            let mut tree = tree.write().expect("nobody panics");
            let node = Counted::place(&mut tree, key(i));
            node.as_mut()
                .and_then(Arc::get_mut)
                .expect("nobody else has it")
                .value = i;
        }),
        "heap_replace" => crew.repeat(CHANGES, |i| {
            let mut tree = tree.write().expect("nobody panics");
            let (key, place) = (key(i), Counted::place(&mut tree, key(i)));
            let old = place
                .as_mut()
                .and_then(Arc::get_mut)
                .expect("nobody else has it");
            let (left, right) = (old.left.take(), old.right.take());
            *place = Some(Arc::new(Counted {
                key,
                value: i,
                left,
                right,
            }));
        }),
        other => panic!("{other}"),
    }
}
