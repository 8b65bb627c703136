//! The pool, objects, links, names, processes: every operation, killed after every change. The allocator's are in
//! `pool_memory`.
//!
//! After recovery the pool's full check must pass, and what is allocated must be what the operation allows: a block
//! that was being allocated or freed is either allocated or free, and a container operation has either happened or
//! not, with nothing left over. Then the survivor uses the pool.

use std::alloc::Layout;
use std::ptr::NonNull;

use shmkit::{Link, Pool, Shared, ShmSafe, process, testing};

use super::engine::{Case, Crash, Doomed, Suite};
use super::in_pool::{self, InPool, ensure};

/// A pool, and what a case keeps of it.
pub struct World {
    pub pool: Pool,
    /// Bytes allocated when the operation started, by what was set up.
    pub before: usize,
    /// Bytes of memory that the pool had then.
    pub committed: usize,
    /// Bytes of memory that its file had besides.
    pub beside: usize,
    /// The child that is buried, in a survivor that is its parent; or who stays as it is until then.
    pub child: Option<u32>,
    /// What a parent holds whose handles are locked for a fork: never dropped.
    pub held: Option<&'static Shared<Node>>,
    pub blocks: Vec<NonNull<u8>>,
    pub nodes: Vec<Shared<Node>>,
}

#[derive(ShmSafe)]
pub struct Node {
    pub value: u64,
    pub next: Link<Node>,
    other: Link<Node>,
}

pub fn node(value: u64) -> Node {
    Node {
        value,
        next: Link::null(),
        other: Link::null(),
    }
}

impl InPool for World {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl World {
    pub fn new() -> World {
        World::of(false)
    }

    /// A world whose pool is guarded, or not.
    pub fn of(guard: bool) -> World {
        let pool = Pool::builder().max_size(16 << 20).guard(guard).create();
        World::in_pool(pool.expect("a pool"))
    }

    /// A world of nothing but the pool.
    pub fn in_pool(pool: Pool) -> World {
        World {
            pool,
            before: 0,
            committed: 0,
            beside: 0,
            child: None,
            held: None,
            blocks: Vec::new(),
            nodes: Vec::new(),
        }
    }

    pub fn allocate(&mut self, size: usize, count: usize) {
        for _ in 0..count {
            let block = self
                .pool
                .allocate(Layout::from_size_align(size, 16).expect("a layout"));
            self.blocks.push(block.expect("a block").cast());
        }
    }

    pub fn free(&mut self) {
        for block in self.blocks.drain(..) {
            // SAFETY: allocated from this pool, and used by nobody.
            unsafe { self.pool.deallocate(block) }.expect("a block to free");
        }
    }

    /// Reallocates the last block, which must stay where it is.
    pub fn grow_in_place(&mut self, size: usize) {
        let block = *self.blocks.last().expect("a block");
        let layout = Layout::from_size_align(size, 16).expect("a layout");
        // SAFETY: the block is this pool's and used by nobody else.
        let grown = unsafe { self.pool.reallocate(block, layout) }.expect("a block");
        assert_eq!(grown.cast(), block);
    }

    pub fn settled(mut self) -> World {
        let stats = self.pool.stats();
        (self.before, self.committed) = (stats.allocated, stats.committed);
        self.beside = self.memory_beside();
        self
    }

    /// Bytes of memory that the pool's file has and that are no slice's.
    pub fn memory_beside(&self) -> usize {
        let file = rustix::fs::fstat(self.pool.fd()).expect("a file");
        (file.st_blocks as usize * 512).saturating_sub(self.pool.stats().committed)
    }
}

/// A case on a pool, with everything but the operation and what is allocated after it.
///
/// `allocated` says whether so many bytes more (or less) than before the operation are right.
pub fn case(
    name: &'static str,
    setup: impl Fn(&mut World) + 'static,
    attach: impl Fn(&mut World) + 'static,
    operation: impl Fn(&mut World) + 'static,
    allocated: impl Fn(isize, &Crash) -> bool + 'static,
) -> Case<World> {
    case_in(World::new, name, setup, attach, operation, allocated)
}

/// The same in a world made so.
pub fn case_in(
    make: impl Fn() -> World + 'static,
    name: &'static str,
    setup: impl Fn(&mut World) + 'static,
    attach: impl Fn(&mut World) + 'static,
    operation: impl Fn(&mut World) + 'static,
    allocated: impl Fn(isize, &Crash) -> bool + 'static,
) -> Case<World> {
    in_pool::case(format!("pool/{name}"), move || {
        let mut world = make();
        setup(&mut world);
        world.settled()
    })
    .attach(move |world| {
        // The thread has its slot, so that the operation is the operation.
        world
            .pool
            .allocate(Layout::new::<u8>())
            .map(|p| {
                // SAFETY: allocated just now.
                unsafe { world.pool.deallocate(p.cast()) }
            })
            .expect("a slot")
            .expect("a free");
        attach(world);
    })
    .operation(operation)
    .verify(move |world, crash| verify(world, crash, &allocated))
}

pub fn verify(
    world: &mut World,
    crash: &Crash,
    allocated: &dyn Fn(isize, &Crash) -> bool,
) -> Result<(), String> {
    let pool = world.pool;
    // What died in recovery is dead now too.
    in_pool::sound(pool)?;
    let stats = pool.stats();
    let more = stats.allocated as isize - world.before as isize;
    if !allocated(more, crash) {
        return Err(format!(
            "{more} bytes more are allocated than before: {:?}",
            stats.classes
        ));
    }
    use_it(pool)?;
    let after = pool.stats().allocated;
    if after != stats.allocated {
        return Err(format!(
            "use leaves {after} bytes allocated of {}",
            stats.allocated
        ));
    }
    Ok(())
}

/// Everything still works.
pub fn use_it(pool: Pool) -> Result<(), String> {
    let mut blocks = Vec::new();
    for size in [1, 16, 100, 1000, 5000, 30_000, 100_000] {
        for _ in 0..3 {
            let layout = Layout::from_size_align(size, 8).map_err(|e| e.to_string())?;
            let block = pool.allocate(layout).map_err(|e| e.to_string())?;
            // SAFETY: a block of that size.
            unsafe { block.cast::<u8>().write_bytes(0x5a, size) };
            blocks.push(block);
        }
    }
    for block in blocks {
        // SAFETY: allocated above.
        unsafe { pool.deallocate(block.cast()) }.map_err(|e| e.to_string())?;
    }
    let object = pool.create(node(1)).map_err(|e| e.to_string())?;
    let other = pool.create(node(2)).map_err(|e| e.to_string())?;
    object.next.set(Some(&other)).map_err(|e| e.to_string())?;
    pool.set_name("used", &object).map_err(|e| e.to_string())?;
    pool.remove_name("used").map_err(|e| e.to_string())?;
    drop((object, other));
    let report = pool.check_quiescent();
    if report.is_ok() {
        Ok(())
    } else {
        Err(format!("after use: {report}"))
    }
}

pub fn nothing(_: &mut World) {}

/// Runs in another thread of the victim, whose blocks and frees are another owner's.
pub fn elsewhere(world: &mut World, f: impl FnOnce(&mut World) + Send) {
    struct Carried<'a>(&'a mut World);
    // SAFETY: the thread ends before the borrow does, and nobody else uses the world meanwhile.
    unsafe impl Send for Carried<'_> {}
    let carried = Carried(world);
    std::thread::scope(|s| {
        let thread = s.spawn(move || {
            let carried = carried;
            f(carried.0);
        });
        // By its handle: the scope alone would not wait for it to leave the pool.
        thread.join().expect("no panic");
    });
}

/// So many objects that one more is held with more memory only, which who has made them has.
pub fn row_of_objects(pool: Pool) {
    let fill = move || {
        let mut first = pool.create(node(0)).expect("an object");
        for n in 0..1024 {
            let next = pool.create(node(n)).expect("an object");
            next.next.set(Some(&first)).expect("set");
            first = next;
        }
        pool.set_name("row", &first).expect("named");
    };
    // It waits for ever after that, so that nobody else gets its record.
    std::mem::forget(Doomed::new(fill, || ()));
}

pub fn cases(suite: &mut Suite) {
    suite.run(case(
        "create an object",
        nothing,
        nothing,
        |w| {
            w.nodes.push(w.pool.create(node(7)).expect("an object"));
        },
        |more, _| more == 0,
    ));
    // There is a block by then, which goes.
    suite.run(case(
        "create an object, refused",
        |w| row_of_objects(w.pool),
        nothing,
        |w| {
            testing::refuse_commits(Some(0));
            let refused = w.pool.create(node(7));
            testing::refuse_commits(None);
            assert!(refused.is_err());
        },
        |more, _| more == 0,
    ));
    suite.run(case(
        "drop an object that leads to others",
        |w| {
            let (a, b) = (
                w.pool.create(node(1)).expect("a"),
                w.pool.create(node(2)).expect("b"),
            );
            b.next.set(Some(&a)).expect("a link");
            w.before = 0;
            w.nodes.push(b);
            // Held by the victim alone: the process that sets up lets go of it below.
        },
        |w| {
            let (a, b) = (
                w.pool.create(node(3)).expect("a"),
                w.pool.create(node(4)).expect("b"),
            );
            b.next.set(Some(&a)).expect("a link");
            b.other.set(Some(&a)).expect("a link");
            w.nodes.push(b);
        },
        |w| {
            w.nodes.pop();
        },
        |more, _| more == 0,
    ));
    let two = |w: &mut World| {
        for value in 0..3 {
            w.nodes.push(w.pool.create(node(value)).expect("an object"));
        }
        w.nodes[0].next.set(Some(&w.nodes[1])).expect("a link");
    };
    suite.run(linked(
        "set a link",
        two,
        |w| w.nodes[0].next.set(Some(&w.nodes[2])).expect("a link"),
        (Some(1), Some(2)),
    ));
    suite.run(linked(
        "clear a link",
        two,
        |w| w.nodes[0].next.set(None).expect("a link"),
        (Some(1), None),
    ));
    suite.run(linked(
        "set a link that was null",
        two,
        |w| {
            w.nodes[0].next.set(None).expect("a link");
            w.nodes[0].next.set(Some(&w.nodes[1])).expect("a link");
        },
        (None, Some(1)),
    ));
    suite.run(case(
        "clear the last link to an object",
        |w| {
            let (a, b) = (
                w.pool.create(node(1)).expect("a"),
                w.pool.create(node(2)).expect("b"),
            );
            a.next.set(Some(&b)).expect("a link");
            w.nodes.push(a);
            // `b` goes: the link alone holds it.
        },
        nothing,
        |w| w.nodes[0].next.set(None).expect("a link"),
        |more, crash| more == -32 || (more == 0 && !crash.finished),
    ));
    suite.run(case(
        "clear the last link while somebody looks, and end the look",
        |w| {
            let nodes = [1, 2, 3].map(|value| w.pool.create(node(value)).expect("an object"));
            nodes[0].next.set(Some(&nodes[1])).expect("a link");
            nodes[1].next.set(Some(&nodes[2])).expect("a link");
            let [a, b, _] = nodes;
            w.nodes.extend([a, b]);
        },
        nothing,
        |w| {
            let view = w.nodes[0].next.view().expect("a view");
            view.next.set(None).expect("a link");
            drop(view);
        },
        |more, crash| more == -32 || (more == 0 && !crash.finished),
    ));
    suite.run(
        case(
            "name an object",
            |w| {
                w.nodes.push(w.pool.create(node(1)).expect("an object"));
            },
            nothing,
            |w| {
                w.pool.set_name("it", &w.nodes[0]).expect("a name");
            },
            |_, _| true,
        )
        .verify(|w, crash| {
            verify(w, crash, &|more, _| more == 0)?;
            let named = w.pool.named::<Node>("it").map(|node| node.value);
            ensure(
                matches!(named, Ok(1)) || named.is_err() && !crash.finished,
                || format!("the name is of {named:?}"),
            )
        }),
    );
    suite.run(case(
        "make a named object",
        nothing,
        nothing,
        |w| {
            w.pool.named_or_create("it", || node(1)).expect("an object");
        },
        |more, crash| more == 32 || (more == 0 && !crash.finished),
    ));
    suite.run(case(
        "remove a name and its object",
        |w| {
            w.pool.named_or_create("it", || node(1)).expect("an object");
        },
        nothing,
        |w| w.pool.remove_name("it").expect("a name"),
        |more, crash| more == -32 || (more == 0 && !crash.finished),
    ));
    suite.run(case(
        "open a handle",
        |w| {
            w.nodes.push(w.pool.create(node(1)).expect("an object"));
            w.pool.set_name("it", &w.nodes[0]).expect("a name");
            w.nodes.clear();
        },
        nothing,
        |w| {
            w.nodes.push(w.pool.named("it").expect("the object"));
            w.nodes
                .push(w.nodes[0].handle().open().expect("the object"));
            w.nodes.clear();
        },
        |more, _| more == 0,
    ));
    suite.run(case(
        "view a link",
        |w| {
            let (a, b) = (
                w.pool.create(node(1)).expect("a"),
                w.pool.create(node(2)).expect("b"),
            );
            a.next.set(Some(&b)).expect("a link");
            w.nodes.push(a);
        },
        nothing,
        |w| {
            let view = w.nodes[0].next.view().expect("a view");
            assert_eq!(view.value, 2);
        },
        |more, _| more == 0,
    ));
    suite.run(
        case(
            "spawn and join",
            |w| {
                w.nodes.push(w.pool.create(node(1)).expect("an object"));
            },
            nothing,
            |w| {
                let node = &w.nodes[0];
                let sum = process::scope(|s| {
                    s.spawn(|| node.value + 1)
                        .expect("a child")
                        .join()
                        .expect("a result")
                });
                assert_eq!(sum, 2);
            },
            |more, _| more == 0,
        )
        .without_second_order(),
    );
}

/// A case on a link between nodes, which leads to `new` after it, and to `old` or `new` before its end, with counts
/// to match.
fn linked(
    name: &'static str,
    setup: impl Fn(&mut World) + 'static,
    operation: impl Fn(&mut World) + 'static,
    (old, new): (Option<u64>, Option<u64>),
) -> Case<World> {
    case(name, setup, nothing, operation, |more, _| more == 0).verify(move |world, crash| {
        verify(world, crash, &|more, _| more == 0)?;
        let found = world.nodes[0].next.get().map(|node| node.value);
        ensure(found == new || found == old && !crash.finished, || {
            format!("the link leads to {found:?}")
        })?;
        // The counts are right if unlinking and letting go of everything frees everything; the
        // process that set up still holds the nodes, so only links are at stake here.
        world.nodes[0].next.set(None).map_err(|e| e.to_string())?;
        let report = world.pool.check_quiescent();
        let counts = testing::link_counts(world.pool);
        if !report.is_ok() || counts.iter().any(|&count| count != 0) {
            return Err(format!(
                "links are counted {counts:?} with none left; {report}"
            ));
        }
        Ok(())
    })
}
