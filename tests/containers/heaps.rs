//! Heaps: the kinds of objects, ids, refusals, undoing, collections.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use shmkit::process::{JoinError, scope};
use shmkit::{AllocError, Gc, Heap, HeapError, Pool, ShmSafe, Trace};

use crate::common::{Random, TestPool, fork, layout, leave, reap};
use crate::{allocated, assert_sound};

#[derive(Clone, Copy, Debug, PartialEq, ShmSafe, Trace)]
pub struct Node {
    pub value: u64,
    pub edges: [Option<Gc<Node>>; 3],
    pub list: Option<Gc<[u32]>>,
}

impl Node {
    pub fn new(value: u64) -> Self {
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

pub type Graph = Heap<Option<Gc<Node>>>;

pub fn graph(pool: Pool) -> shmkit::Shared<Graph> {
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
    assert!(stats.objects == 5 && stats.bytes >= 80 && stats.overhead == 2048);
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
    // Of an entry that both heaps have.
    let twins = other.modify(|tx| [1, 2].map(|n| tx.alloc(Node::new(n)).unwrap()));
    let [_, twin] = twins.unwrap();
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
                bytes[12..].copy_from_slice(&random.next().to_le_bytes()[..4]);
            }
        });
        let found = view.get(forged).map(|node| node.value);
        assert!(matches!(found, None | Some(1 | 3)), "{found:?}");
    }
}

/// An id says where its object is. That is compared, not believed.
pub fn places_are_not_believed() {
    let pool = TestPool::new();
    let heap = graph(*pool);
    let make = |tx: &mut shmkit::Tx<'_, _>| [1, 2].map(|n| tx.alloc(Node::new(n)).unwrap());
    let [gc, other] = heap.modify(make).unwrap();
    let mut place = [0; 4];
    let _: Gc<Node> = forged(other, |bytes| place.copy_from_slice(&bytes[8..12]));
    let mut random = Random::new(7);
    let places = (0..1000).map(|_| (random.next() as u32 >> random.below(32)).to_le_bytes());
    for place in places.chain([place, [0; 4], [0xff; 4]]) {
        let moved: Gc<Node> = forged(gc, |bytes| bytes[8..12].copy_from_slice(&place));
        assert_eq!(moved, gc, "the same object");
        let found = heap.view().unwrap().get(moved).map(|node| node.value);
        assert_eq!(found, Some(1));
        let changed = heap.modify(|tx| tx.get_mut(moved).map(|node| node.value = 1));
        assert_eq!(changed, Ok(Ok(())));
    }
    assert_eq!(heap.view().unwrap().get(other).unwrap().value, 2);
}

/// What is saved or made is not saved again, be the transaction short or long: there is room for one saving.
pub fn objects_are_saved_once() {
    const LEN: usize = 4 << 20;
    type Slices = Option<Gc<[Gc<[u8]>]>>;
    let pool = TestPool::with(|builder| builder.max_size(42 << 20));
    let heap = pool.create(Heap::new(None)).unwrap();
    for small in [1, 4, 5, 6, 40] {
        let make = |tx: &mut shmkit::Tx<'_, Slices>| {
            let one = |_| tx.alloc_slice_with(LEN, |_| 1_u8);
            let ids: Vec<_> = (0..3).map(one).collect::<Result<_, _>>()?;
            *tx.root_mut()? = Some(tx.alloc_slice(&ids)?);
            Ok::<_, HeapError>(ids)
        };
        let ids = heap.try_modify(make).unwrap();
        let change = |tx: &mut shmkit::Tx<'_, Slices>| {
            let large = tx.alloc_slice_with(LEN, |_| 0_u8)?;
            for round in 0..4 {
                for &id in ids.iter().chain([&large]) {
                    tx.get_mut(id)?[round] = 2;
                    tx.slice_mut(id, 100..)?[round] = 3;
                }
                let made: Result<Vec<_>, _> = (0..small).map(|n| tx.alloc(n)).collect();
                for id in made? {
                    *tx.get_mut(id)? += 1;
                }
            }
            Err::<(), _>(HeapError::Forked)
        };
        assert_eq!(heap.try_modify(change), Err(HeapError::Forked), "undone");
        let view = heap.view().unwrap();
        let is_as_before = |&id: &Gc<[u8]>| view.get(id).unwrap().iter().all(|&b| b == 1);
        assert!(ids.iter().all(is_as_before));
    }
}

/// Parts of an object that overlap are saved as often as is needed: there is room for one saving.
pub fn parts_are_saved_once() {
    const HALF: usize = 512 << 10;
    let pool = TestPool::with(|builder| builder.initial_size(3 << 20).max_size(3 << 20));
    let heap = pool.create(Heap::new(None)).unwrap();
    let changed = heap.try_modify(|tx| {
        let bytes = tx.alloc_slice_with(2 * HALF, |_| 1_u8)?;
        *tx.root_mut()? = Some(bytes);
        Ok::<_, HeapError>(bytes)
    });
    let bytes = changed.unwrap();
    let change = |tx: &mut shmkit::Tx<'_, Option<Gc<[u8]>>>| {
        for round in 0..4 {
            tx.slice_mut(bytes, HALF..)?[round] = 2;
            tx.slice_mut(bytes, ..HALF + 10)?[round] = 3;
            tx.slice_mut(bytes, round..)?[HALF] = 4;
        }
        Ok::<_, HeapError>(())
    };
    assert_eq!(heap.try_modify(change), Ok(()));
}

/// A record for which a block is made, that goes again; and one that is a word too long for the heap's own chunk, whose
/// block stays.
pub fn records_of_any_length() {
    const OWN: usize = 880 - 32;
    const BLOCK: usize = (80 << 10) - 32;
    let pool = TestPool::new();
    let heap = pool.create(Heap::new(7_u64)).unwrap();
    let make = |tx: &mut shmkit::Tx<'_, u64>| {
        let lens = [BLOCK, BLOCK - 40, OWN, OWN + 8];
        lens.map(|len| tx.alloc_slice_with(len, |_| 1_u8).unwrap())
    };
    let made = heap.modify(make).unwrap();
    let before = heap.stats().unwrap().overhead;
    for bytes in made {
        let changed = heap.modify(|tx| tx.get_mut(bytes).map(|bytes| bytes.fill(2)));
        assert_eq!((changed, *heap.view().unwrap().root()), (Ok(Ok(())), 7));
    }
    assert_eq!(heap.stats().unwrap().overhead, before + 4096);
    assert_sound(*pool);
}

/// A table is made of memory that somebody has used.
pub fn a_new_table_has_no_objects() {
    const TABLE: usize = 64 * 32;
    let pool = TestPool::new();
    let heap = graph(*pool);
    let used = pool.allocate(layout(TABLE, 64)).unwrap().cast::<u8>();
    // SAFETY: a block of that size, which is then given back.
    unsafe {
        used.write_bytes(0xff, TABLE);
        pool.deallocate(used).unwrap();
    }
    let _ = heap.modify(|tx| tx.alloc(Node::new(1)).unwrap()).unwrap();
    assert_eq!(heap.len(), Ok(1));
    assert_sound(*pool);
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
    assert!(catch_unwind(panics).is_err());
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
    unchanged("half an object");
    // It goes on, and may fail as a whole afterwards.
    let failed: Result<(), HeapError> = heap.try_modify(|tx| {
        change(tx);
        let fails = AssertUnwindSafe(|| tx.alloc_slice_with(4, |_| -> u8 { panic!("no") }));
        assert!(catch_unwind(fails).is_err());
        change(tx);
        Err(HeapError::NoObject)
    });
    assert_eq!(failed, Err(HeapError::NoObject));
    unchanged("half an object, and then nothing");
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
                for n in 0..1000 {
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

/// After a collection there is another once as much was allocated as was left.
pub fn the_more_is_left_the_later_is_the_next_collection() {
    let pool = TestPool::with(|builder| builder.max_size(16 << 20));
    let heap = pool.create(Heap::new(None)).unwrap();
    let make = |size| {
        heap.try_modify(|tx| {
            let made = tx.alloc_slice_with(size, |_| 1_u8)?;
            tx.root_mut()?.get_or_insert(made);
            Ok::<_, HeapError>(())
        })
    };
    make(4 << 20).unwrap();
    assert_eq!(heap.collect().unwrap().live, 1);
    (0..3).for_each(|_| make(1 << 20).unwrap());
    assert_eq!(heap.len(), Ok(4));
}

/// A transaction collects, as the pool is full, and goes on. It leaves what it was made of, and what was before.
pub fn a_collection_leaves_what_may_come_back() {
    for others in [0, 20] {
        let pool = TestPool::with(|builder| builder.initial_size(2 << 20).max_size(2 << 20));
        let heap = graph(*pool);
        let make = |tx: &mut shmkit::Tx<'_, Option<Gc<Node>>>| {
            let [root, loose] = [1, 2].map(|n| tx.alloc(Node::new(n)).unwrap());
            *tx.root_mut().unwrap() = Some(root);
            loose
        };
        let loose = heap.modify(make).unwrap();
        // What has failed before has left its log behind.
        let failed = heap.try_modify(|tx| {
            (0..100).for_each(|n| _ = tx.alloc(Node::new(n)));
            Err::<(), _>(HeapError::NoObject)
        });
        assert_eq!(failed, Err(HeapError::NoObject));
        let failed = heap.try_modify(|tx| {
            *tx.root_mut()? = None;
            for n in 0..others {
                let _ = tx.alloc(n).unwrap();
            }
            let mut node = Node::new(3);
            node.edges[0] = Some(loose);
            let made = tx.alloc(node).unwrap();
            let list = tx.alloc_slice(&[loose])?;
            while tx.alloc_slice_with(10_000, |_| 0_u8).is_ok() {}
            assert_eq!(tx.get(made), Some(&node));
            assert_eq!(tx.get(list), Some(&[loose][..]));
            assert_eq!(tx.get(loose).map(|node| node.value), Some(2));
            Err::<(), _>(HeapError::NoObject)
        });
        assert_eq!(failed, Err(HeapError::NoObject));
        let view = heap.view().unwrap();
        let root = view.root().and_then(|root| view.get(root));
        assert_eq!(root.map(|node| node.value), Some(1));
    }
}

/// There is no room to save an object, and the collection that makes room frees it.
pub fn what_was_collected_is_not_saved() {
    let pool = TestPool::with(|builder| builder.initial_size(2 << 20).max_size(2 << 20));
    let heap = graph(*pool);
    let loose = heap.modify(|tx| tx.alloc_slice_with(50_000, |_| 1_u8).unwrap());
    let loose = loose.unwrap();
    while pool.allocate(layout(16 << 10, 8)).is_ok() {}
    let saved = heap.modify(|tx| tx.get_mut(loose).map(drop));
    assert_eq!(saved, Ok(Err(HeapError::NoObject)));
    assert_eq!(heap.len(), Ok(0));
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
    let mut child = None;
    let outcome = heap.modify(|tx| {
        *tx.root_mut().unwrap() = 2;
        child = fork();
        if let Some(child) = child {
            assert_eq!(reap(child), 0);
        }
    });
    if child.is_none() {
        leave(outcome == Err(HeapError::Forked));
    }
    assert_eq!((outcome, *heap.view().unwrap().root()), (Ok(()), 2));
    assert_sound(*pool);
}

/// A forked child that leaves a transaction undoes nothing of it.
pub fn a_forked_copy_of_a_transaction_undoes_nothing() {
    let pool = TestPool::new();
    let heap = pool.create(Heap::new(1_u64)).unwrap();
    let mut child = None;
    let modify = || {
        heap.try_modify(|tx| {
            *tx.root_mut()? = 2;
            let made = tx.alloc_slice_with(1, |_| {
                child = fork();
                match child {
                    Some(child) => assert_eq!(reap(child), 0),
                    None => resume_unwind(Box::new(())),
                }
                7_u64
            });
            assert_eq!(tx.get(made?), Some(&[7][..]));
            Ok::<_, HeapError>(())
        })
    };
    let outcome = catch_unwind(AssertUnwindSafe(modify));
    if child.is_none() {
        leave(outcome.is_err());
    }
    assert_eq!(outcome.unwrap(), Ok(()));
    assert_eq!(heap.len(), Ok(1));
    assert_eq!(*heap.view().unwrap().root(), 2);
    assert_sound(*pool);
}

/// Of the fingerprint that an earlier version gave types, the constant was computed.
pub fn an_id_of_a_type_made_to_look_alike() {
    #[derive(ShmSafe, Trace)]
    struct Number<const A: u64>(u64);
    #[derive(ShmSafe, Trace)]
    struct Choice<const A: u64>(Kind, [u8; 7]);
    #[derive(ShmSafe, Trace)]
    #[repr(u8)]
    enum Kind {
        A,
        B,
        C,
    }
    assert!([Kind::A, Kind::B, Kind::C].len() == 3);

    let pool = TestPool::new();
    let heap = pool.create(Heap::new(())).unwrap();
    let number = heap.modify(|tx| tx.alloc(Number::<0>(7))).unwrap().unwrap();
    let bytes = postcard::to_stdvec(&number).unwrap();
    let alike: Gc<Choice<0x7a9f_5756_a401_25ca>> = postcard::from_bytes(&bytes).unwrap();
    let view = heap.view().unwrap();
    assert_eq!(view.get(number).unwrap().0, 7);
    assert!(view.get(alike).is_none());
    drop(view);
    assert_sound(*pool);
}
