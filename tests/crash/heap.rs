//! Heaps: transactions that succeed and that fail, undoing for the dead, collections, destruction.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use shmkit::{Gc, Heap, HeapError, Pool, Shared, ShmSafe, Trace, Tx};

use super::engine::{Case, Crash, Suite, progress};
use super::in_pool::{self, InPool, ensure, happened, intact};

#[derive(Clone, Copy, Debug, ShmSafe, Trace)]
pub struct Node {
    pub value: u64,
    pub next: Option<Gc<Node>>,
    pub list: Gc<[u32]>,
}

pub type Root = Option<Gc<Node>>;

/// A pool with a heap that has a ring of two, and one that has nothing.
pub struct Bench {
    pub pool: Pool,
    pub heap: Shared<Heap<Root>>,
    empty: Shared<Heap<Root>>,
    /// A long slice that nothing leads to.
    long: Option<Gc<[u64]>>,
    /// What the victim alone has.
    made: Option<Shared<Heap<Root>>>,
    /// Bytes in use, but for those of the heaps.
    before: usize,
}

impl InPool for Bench {
    fn pool(&self) -> Pool {
        self.pool
    }
}

/// What is seen from the root: values, and their lists.
pub type Picture = Vec<(u64, Vec<u32>)>;

pub fn old() -> Picture {
    vec![(1, vec![7; 6]), (2, vec![7; 6])]
}

/// After [`change`].
fn new() -> Picture {
    vec![
        (3, vec![8, 9]),
        (10, vec![7, 7, 5, 5, 7, 7]),
        (2, vec![7; 6]),
    ]
}

fn fill(tx: &mut Tx<'_, Root>) -> Result<(), HeapError> {
    let list = tx.alloc_slice(&[7; 6])?;
    let node = |value, next| Node { value, next, list };
    let first = tx.alloc(node(1, None))?;
    let list = tx.alloc_slice(&[7; 6])?;
    let second = tx.alloc(Node {
        list,
        ..node(2, Some(first))
    })?;
    tx.get_mut(first)?.next = Some(second);
    *tx.root_mut()? = Some(first);
    Ok(())
}

fn change(tx: &mut Tx<'_, Root>) -> Result<(), HeapError> {
    let first = tx.root().expect("filled");
    let list = tx.get(first).expect("there").list;
    tx.slice_mut(list, 2..4)?.fill(5);
    tx.get_mut(first)?.value = 10;
    let list = tx.alloc_slice_with(2, |i| 8 + i as u32)?;
    let next = Some(first);
    let node = tx.alloc(Node {
        value: 3,
        next,
        list,
    })?;
    *tx.root_mut()? = Some(node);
    Ok(())
}

pub fn picture(heap: &Heap<Root>) -> Result<Picture, String> {
    let view = heap.view().map_err(|error| format!("view: {error}"))?;
    let mut picture = Vec::new();
    let (mut next, mut seen) = (*view.root(), Vec::new());
    while let Some(at) = next.filter(|at| !seen.contains(at)) {
        seen.push(at);
        let node = view.get(at).ok_or("an object is gone")?;
        let list = view.get(node.list).ok_or("a list is gone")?;
        picture.push((node.value, list.to_vec()));
        next = node.next;
    }
    Ok(picture)
}

impl Bench {
    pub fn new() -> Bench {
        Bench::of(16 << 20)
    }

    fn of(size: usize) -> Bench {
        let pool = Pool::builder().initial_size(size).max_size(size).create();
        let pool = pool.expect("a pool");
        let heap = pool.create(Heap::new(None)).expect("room");
        let empty = pool.create(Heap::new(None)).expect("room");
        let before = pool.stats().allocated;
        heap.try_modify(fill).expect("filled");
        Bench {
            pool,
            heap,
            empty,
            long: None,
            made: None,
            before,
        }
    }

    /// The victim has its slot, and its caches of blocks.
    pub fn enter(&mut self) {
        let other = self.pool.create(Heap::new(None)).expect("room");
        other.try_modify(fill).expect("filled");
        drop(other);
        self.pool.recover();
    }

    /// Somebody has died in the middle of a transaction.
    fn orphaned() -> Bench {
        let bench = Bench::new();
        let heap = &bench.heap;
        shmkit::process::scope(|s| {
            let dies = move || {
                let _ = heap.modify(|tx| {
                    change(tx).expect("changed");
                    // SAFETY: ends this process, as a kill does.
                    unsafe { libc::_exit(1) }
                });
            };
            s.spawn(dies).expect("a child").join().expect_err("dead");
        });
        bench
    }

    /// Makes eight objects that nothing leads to, of the sizes that a change asks for.
    fn litter(&self) {
        let litter = self.heap.try_modify(|tx| {
            for _ in 0..4 {
                let list = tx.alloc_slice(&[0; 2])?;
                let (value, next) = (0, None);
                tx.alloc(Node { value, next, list })?;
            }
            Ok::<_, HeapError>(())
        });
        litter.expect("room");
    }

    /// A table with no more than one free entry, and a slice that takes most of a chunk of the log.
    fn crowded() -> Bench {
        let mut bench = Bench::new();
        let long = bench.heap.try_modify(|tx| {
            // With the four that there are and the slice, all but one of the first 64.
            for _ in 0..58 {
                tx.alloc(0_u8)?;
            }
            tx.alloc_slice(&[1; 450])
        });
        bench.long = Some(long.expect("room"));
        bench
    }

    /// Nothing is lost, and what there is is what is reached once it is collected.
    fn sound(&self, when: &str) -> Result<(), String> {
        let report = self.pool.check_quiescent();
        ensure(report.is_ok(), || format!("{when}: {report}"))?;
        let mut expected = self.before;
        for heap in [&self.heap, &self.empty].into_iter().chain(&self.made) {
            let stats = heap.stats().map_err(|error| format!("{when}: {error}"))?;
            expected += stats.bytes + stats.overhead;
        }
        let allocated = self.pool.stats().allocated;
        ensure(allocated == expected, || {
            format!("{when}: {allocated} bytes, not {expected}")
        })
    }

    /// What a heap has, once all is sound.
    pub fn settled(&self, heap: &Heap<Root>) -> Result<Picture, String> {
        self.pool.recover();
        let found = picture(heap)?;
        self.sound("before the collection")?;
        let collected = heap
            .collect()
            .map_err(|error| format!("collect: {error}"))?;
        ensure(collected.live == 2 * found.len(), || {
            format!("{collected:?}")
        })?;
        self.sound("after the collection")?;
        let again = picture(heap)?;
        ensure(again == found, || format!("{found:?} became {again:?}"))?;
        // It works as if nothing had happened.
        heap.try_modify(fill)
            .map_err(|error| format!("fill: {error}"))?;
        let filled = picture(heap)?;
        ensure(filled == old(), || format!("{filled:?}"))?;
        Ok(found)
    }
}

fn case(name: &str, setup: fn() -> Bench, operation: impl Fn(&mut Bench) + 'static) -> Case<Bench> {
    in_pool::case(name, setup)
        .attach(Bench::enter)
        .operation(move |bench| {
            operation(bench);
            progress(1);
        })
        // Undoing is part of it.
        .recover(|bench| {
            bench.pool.recover();
            for heap in [&bench.heap, &bench.empty] {
                heap.view().map(drop).map_err(|error| error.to_string())?;
            }
            Ok(())
        })
}

/// What a death at every instruction must leave of heaps.
pub fn cases(suite: &mut Suite) {
    suite.run(
        case("heap/modify first", Bench::new, |bench| {
            bench.empty.try_modify(fill).expect("filled");
        })
        .verify(|bench, crash| {
            happened(crash, bench.settled(&bench.empty)?, Picture::new(), old())
        }),
    );
    suite.run(
        case("heap/modify", Bench::new, |bench| {
            bench.heap.try_modify(change).expect("changed");
        })
        .verify(|bench, crash| happened(crash, bench.settled(&bench.heap)?, old(), new())),
    );
    let unchanged = |bench: &mut Bench, _: &Crash| {
        let found = bench.settled(&bench.heap)?;
        ensure(found == old(), || format!("{found:?}"))
    };
    suite.run(
        case("heap/modify that fails", Bench::new, |bench| {
            let fails = |tx: &mut Tx<'_, Root>| {
                change(tx)?;
                Err::<(), _>(HeapError::NoObject)
            };
            bench.heap.try_modify(fails).expect_err("as told");
        })
        .verify(unchanged),
    );
    // A slice whose making panics is no object, and the transaction goes on.
    suite.run(
        case("heap/slice that panics", Bench::new, |bench| {
            let goes_on = |tx: &mut Tx<'_, Root>| {
                let before = tx.root().expect("filled");
                let panics = AssertUnwindSafe(|| {
                    tx.alloc_slice_with(2, |i| {
                        if i < 1 {
                            before
                        } else {
                            resume_unwind(Box::new(i))
                        }
                    })
                });
                catch_unwind(panics).expect_err("as told");
                change(tx)
            };
            bench.heap.try_modify(goes_on).expect("changed");
        })
        .verify(|bench, crash| {
            bench.pool.recover();
            let objects = bench.heap.len().map_err(|error| error.to_string())?;
            ensure(matches!(objects, 4 | 6), || format!("{objects} objects"))?;
            happened(crash, bench.settled(&bench.heap)?, old(), new())
        }),
    );
    // The log and the table get larger, and the log smaller again.
    suite.run(
        case("heap/modify much", Bench::crowded, |bench| {
            let long = bench.long.expect("made");
            let much = |tx: &mut Tx<'_, Root>| {
                // Two records of more than half a chunk.
                tx.slice_mut(long, 0..400)?[0] = 2;
                change(tx)?;
                tx.slice_mut(long, 1..450)?[448] = 3;
                Ok::<_, HeapError>(())
            };
            bench.heap.try_modify(much).expect("changed");
        })
        .verify(|bench, crash| {
            bench.pool.recover();
            let long = bench.long.expect("made");
            let view = bench.heap.view().map_err(|error| error.to_string())?;
            let long = view.get(long).ok_or("the slice is gone")?;
            let ends = (long[0], long[1], long[449]);
            drop(view);
            let found = bench.settled(&bench.heap)?;
            let whole = if found == old() { (1, 1, 1) } else { (2, 1, 3) };
            ensure(ends == whole, || format!("{ends:?} with {found:?}"))?;
            happened(crash, found, old(), new())
        }),
    );
    // The dead one's transaction is undone by whoever comes next.
    suite.run(
        case("heap/undo by view", Bench::orphaned, |bench| {
            assert_eq!(picture(&bench.heap), Ok(old()));
        })
        .verify(unchanged),
    );
    suite.run(
        case("heap/collect", Bench::new, |bench| {
            assert_eq!(bench.heap.collect().expect("locked").freed, 8);
        })
        .attach(|bench| bench.litter())
        .verify(unchanged),
    );
    // Collects in the middle: the transaction begins with a pool that has no room.
    suite.run(
        case(
            "heap/modify in a full pool",
            || Bench::of(1 << 20),
            |bench| {
                let before = bench.heap.len().expect("locked");
                bench.heap.try_modify(change).expect("changed");
                let objects = bench.heap.len().expect("locked");
                assert!(objects < before, "not collected: {objects} of {before}");
            },
        )
        .attach(|bench| {
            // In its own spans: nobody else collects what is freed into another's.
            bench.litter();
            let pool = bench.pool;
            for size in [64 << 10, 16 << 10, 4096, 200, 64, 48, 32, 16] {
                let layout = std::alloc::Layout::from_size_align(size, 8).expect("a layout");
                while pool.allocate(layout).is_ok() {}
            }
        })
        // Each would step through the searches of the full pool again.
        .without_real_kills()
        .verify(|bench, crash| {
            let found = picture(&bench.heap)?;
            intact(bench.pool)?;
            happened(crash, found, old(), new())
        }),
    );
    suite.run(
        case("heap/destroy", Bench::new, |bench| bench.made = None)
            .attach(|bench| {
                let made = bench.pool.create(Heap::new(None)).expect("room");
                made.try_modify(fill).expect("filled");
                bench.made = Some(made);
                bench.pool.recover();
            })
            .verify(unchanged),
    );
    suite.run(
        case("heap/view", Bench::new, |bench| {
            assert_eq!(picture(&bench.heap), Ok(old()));
        })
        .without_second_order()
        .verify(unchanged),
    );
}
