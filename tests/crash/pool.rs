//! The pool, the allocator, objects, links, names, processes: every operation, killed after every change.
//!
//! After recovery the pool's full check must pass, and what is allocated must be what the operation says: a block
//! that was being allocated or freed is allocated or free, and what a container operation had is one or the other
//! with nothing left over. Then the survivor uses the pool.

use std::alloc::Layout;
use std::ptr::NonNull;

use shmkit::{Link, Pool, Shared, ShmSafe, process, testing};

use crate::engine::{Case, Crash, Suite};
use crate::in_pool::{self, InPool};

/// A pool, and what a case keeps of it.
pub struct World {
    pub pool: Pool,
    /// Bytes allocated when the operation started, by what was set up.
    before: usize,
    blocks: Vec<NonNull<u8>>,
    nodes: Vec<Shared<Node>>,
}

#[derive(ShmSafe)]
struct Node {
    value: u64,
    next: Link<Node>,
    other: Link<Node>,
}

fn node(value: u64) -> Node {
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
    fn of(guard: bool) -> World {
        let mut builder = Pool::builder();
        let pool = builder.max_size(16 << 20).guard(guard).create();
        let pool = pool.expect("a pool");
        World {
            pool,
            before: 0,
            blocks: Vec::new(),
            nodes: Vec::new(),
        }
    }

    fn allocate(&mut self, size: usize, count: usize) {
        for _ in 0..count {
            let block = self
                .pool
                .allocate(Layout::from_size_align(size, 16).expect("a layout"));
            self.blocks.push(block.expect("a block").cast());
        }
    }

    fn free(&mut self) {
        for block in self.blocks.drain(..) {
            // SAFETY: allocated from this pool, and used by nobody.
            unsafe { self.pool.deallocate(block) }.expect("a block to free");
        }
    }

    fn settled(mut self) -> World {
        self.before = self.pool.stats().allocated;
        self
    }
}

/// A case on a pool, with everything but the operation and what is allocated after it.
///
/// `allocated` says whether so many bytes more (or less) than before the operation are right.
fn case(
    name: &'static str,
    setup: impl Fn(&mut World) + 'static,
    attach: impl Fn(&mut World) + 'static,
    operation: impl Fn(&mut World) + 'static,
    allocated: impl Fn(isize, &Crash) -> bool + 'static,
) -> Case<World> {
    case_in(World::new, name, setup, attach, operation, allocated)
}

/// The same in a world made so.
fn case_in(
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

fn verify(
    world: &mut World,
    crash: &Crash,
    allocated: &dyn Fn(isize, &Crash) -> bool,
) -> Result<(), String> {
    let pool = world.pool;
    // What died in recovery is dead now too.
    pool.recover();
    let report = pool.check_quiescent();
    if !report.is_ok() {
        return Err(report.to_string());
    }
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
fn use_it(pool: Pool) -> Result<(), String> {
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

fn nothing(_: &mut World) {}

/// A run with free slices behind it: the span that the victim makes first finds room before it.
fn run_with_room(world: &mut World, size: usize) {
    world.allocate(40_000, 1);
    let run = world.blocks.len();
    world.allocate(size, 1);
    let run = world.blocks.remove(run);
    world.free();
    world.blocks.push(run);
}

/// Runs in another thread of the victim, whose blocks and frees are another owner's.
fn elsewhere(world: &mut World, f: impl FnOnce(&mut World) + Send) {
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

pub fn cases(suite: &mut Suite) {
    let size_or_none = |size: isize| {
        move |more: isize, crash: &Crash| (more == 0 && !crash.finished) || more == size
    };
    suite.run(case(
        "allocate, new span",
        nothing,
        nothing,
        |w| w.allocate(64, 1),
        size_or_none(64),
    ));
    suite.run(case(
        "allocate, from the span at hand",
        nothing,
        |w| w.allocate(64, 1),
        |w| w.allocate(64, 1),
        |more, _| more == 64 || more == 128,
    ));
    suite.run(case(
        "allocate, next word",
        nothing,
        |w| w.allocate(64, 64),
        |w| w.allocate(64, 1),
        |more, _| more == 64 * 64 || more == 64 * 65,
    ));
    suite.run(case(
        "allocate, second span",
        nothing,
        |w| w.allocate(2048, 8),
        |w| w.allocate(2048, 1),
        |more, _| more == 8 * 2048 || more == 9 * 2048,
    ));
    suite.run(case(
        "allocate, collecting what others freed",
        nothing,
        |w| {
            w.allocate(2048, 8);
            elsewhere(w, World::free);
        },
        |w| w.allocate(2048, 1),
        |more, _| more == 0 || more == 2048,
    ));
    suite.run(case(
        "allocate, adopting a span",
        |w| w.allocate(16, 1),
        |w| {
            elsewhere(w, |w| w.allocate(1000, 2));
        },
        |w| w.allocate(1000, 1),
        |more, _| more == 2 * 1024 || more == 3 * 1024,
    ));
    suite.run(case(
        "free, own",
        nothing,
        |w| w.allocate(64, 1),
        World::free,
        |more, _| more == 0 || more == 64,
    ));
    suite.run(case(
        "free, own, the span with it",
        nothing,
        |w| {
            w.allocate(2048, 9);
            w.blocks.truncate(8);
        },
        World::free,
        |more, _| more % 2048 == 0 && (2048..=9 * 2048).contains(&more),
    ));
    suite.run(case(
        "free, another's",
        |w| w.allocate(64, 2),
        nothing,
        World::free,
        |more, _| more == 0 || more == -64 || more == -128,
    ));
    suite.run(case(
        "free, nobody's",
        nothing,
        |w| elsewhere(w, |w| w.allocate(64, 2)),
        World::free,
        |more, _| more == 0 || more == 64 || more == 128,
    ));
    suite.run(case(
        "allocate and free a run",
        nothing,
        nothing,
        |w| {
            w.allocate(100_000, 1);
            w.free();
        },
        |more, _| more == 0 || more == 7 << 14,
    ));
    suite.run(case(
        "free another's run",
        |w| w.allocate(100_000, 1),
        nothing,
        World::free,
        |more, _| more == 0 || more == -(7 << 14),
    ));
    suite.run(case(
        "grow",
        nothing,
        nothing,
        |w| {
            w.pool.grow_to(3 << 20).expect("room");
        },
        |more, _| more == 0,
    ));
    suite.run(case(
        "allocate, growing",
        nothing,
        nothing,
        |w| w.allocate(2 << 20, 1),
        size_or_none(2 << 20),
    ));
    suite.run(case(
        "purge",
        |w| {
            w.allocate(100_000, 2);
            w.free();
        },
        nothing,
        |w| {
            w.pool.purge().expect("a slot");
        },
        |more, _| more == 0,
    ));
    suite.run(case(
        "memory ages and goes back",
        |w| {
            w.allocate(100_000, 2);
            w.free();
        },
        nothing,
        |w| {
            // Dirty, aged, a hole.
            testing::age(w.pool);
            testing::age(w.pool);
        },
        |more, _| more == 0,
    ));
    suite.run(case(
        "a full span becomes partial, then empty",
        nothing,
        |w| {
            w.allocate(2048, 8);
            // Now it is full, and another one is current.
            w.allocate(2048, 1);
            w.blocks.truncate(8);
        },
        |w| {
            w.free();
            w.allocate(2048, 1);
        },
        |more, _| more % 2048 == 0 && (2048..=9 * 2048).contains(&more),
    ));
    suite.run(
        case(
            "a thread leaves current, partial and full spans",
            nothing,
            nothing,
            |w| {
                elsewhere(w, |w| {
                    w.allocate(2048, 17);
                    let kept = w.blocks.split_off(9);
                    w.blocks.truncate(4);
                    w.free();
                    w.blocks = kept;
                })
            },
            |more, crash| more % 2048 == 0 && (!crash.finished || more == 13 * 2048),
        )
        .without_second_order(),
    );
    suite.run(case(
        "reallocate",
        |w| w.allocate(64, 1),
        nothing,
        |w| {
            let block = w.blocks.pop().expect("a block");
            let layout = Layout::from_size_align(300, 16).expect("a layout");
            // SAFETY: the block is this pool's and used by nobody else.
            unsafe { w.pool.reallocate(block, layout) }.expect("a block");
        },
        |more, _| [0, 320, 320 - 64].contains(&more),
    ));
    suite.run(case(
        "reallocate, a run grows where it lies",
        |w| run_with_room(w, 100_000),
        nothing,
        |w| {
            let block = w.blocks.pop().expect("a block");
            let layout = Layout::from_size_align(150_000, 16).expect("a layout");
            // SAFETY: the block is this pool's and used by nobody else.
            let grown = unsafe { w.pool.reallocate(block, layout) }.expect("a block");
            assert_eq!(grown.cast(), block);
        },
        |more, crash| more == 3 << 14 || (more == 0 && !crash.finished),
    ));
    suite.run(case(
        "reallocate, a run grows with the pool",
        |w| run_with_room(w, 900_000),
        nothing,
        |w| {
            let block = w.blocks.pop().expect("a block");
            let layout = Layout::from_size_align(1_500_000, 16).expect("a layout");
            // SAFETY: the block is this pool's and used by nobody else.
            let grown = unsafe { w.pool.reallocate(block, layout) }.expect("a block");
            assert_eq!(grown.cast(), block);
        },
        |more, crash| more == 37 << 14 || (more == 0 && !crash.finished),
    ));
    suite.run(case(
        "reallocate, a run grows twice and goes",
        |w| run_with_room(w, 100_000),
        nothing,
        |w| {
            let block = w.blocks.pop().expect("a block");
            for size in [150_000, 200_000] {
                let layout = Layout::from_size_align(size, 16).expect("a layout");
                // SAFETY: the block is this pool's and used by nobody else.
                let grown = unsafe { w.pool.reallocate(block, layout) }.expect("a block");
                assert_eq!(grown.cast(), block);
            }
            // SAFETY: as above.
            unsafe { w.pool.deallocate(block) }.expect("a block to free");
        },
        |more, crash| {
            more == -(7 << 14) || !crash.finished && [0, 3 << 14, 6 << 14].contains(&more)
        },
    ));
    suite.run(
        case(
            "a thread comes and goes",
            nothing,
            nothing,
            |w| {
                elsewhere(w, |w| {
                    w.allocate(64, 1);
                    w.free();
                })
            },
            |more, _| more == 0 || more == 64,
        )
        .without_second_order(),
    );
    guarded(suite);
    objects(suite);
}

/// In a guarded pool, whose check looks at every block.
fn guarded(suite: &mut Suite) {
    suite.run(case_in(
        || World::of(true),
        "guarded, allocate, free and allocate again",
        nothing,
        |w| w.allocate(40, 1),
        |w| {
            w.allocate(40, 1);
            w.free();
            w.allocate(40, 2);
        },
        |more, _| [0, 1, 2].contains(&(more / 64)) && more % 64 == 0,
    ));
    suite.run(case_in(
        || World::of(true),
        "guarded, free another's",
        |w| w.allocate(40, 2),
        nothing,
        World::free,
        |more, _| [0, -64, -128].contains(&more),
    ));
    // Each word of a run that is filled is a point.
    suite.run(case_in(
        || World::of(true),
        "guarded, a run",
        nothing,
        nothing,
        |w| {
            w.allocate(49_120, 1);
            w.free();
        },
        |more, _| more == 0 || more == 3 << 14,
    ));
    suite.run(case_in(
        || World::of(true),
        "guarded, an object",
        nothing,
        nothing,
        |w| {
            w.nodes.push(w.pool.create(node(7)).expect("an object"));
            w.nodes.pop();
        },
        |more, _| more == 0,
    ));
}

fn objects(suite: &mut Suite) {
    suite.run(case(
        "create an object",
        nothing,
        nothing,
        |w| {
            w.nodes.push(w.pool.create(node(7)).expect("an object"));
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
        &[Some(1), Some(2)],
    ));
    suite.run(linked(
        "clear a link",
        two,
        |w| w.nodes[0].next.set(None).expect("a link"),
        &[Some(1), None],
    ));
    suite.run(linked(
        "set a link that was null",
        two,
        |w| {
            w.nodes[0].next.set(None).expect("a link");
            w.nodes[0].next.set(Some(&w.nodes[1])).expect("a link");
        },
        &[Some(1), None],
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
    suite.run(case(
        "name an object",
        |w| {
            w.nodes.push(w.pool.create(node(1)).expect("an object"));
        },
        nothing,
        |w| {
            w.pool.set_name("it", &w.nodes[0]).expect("a name");
        },
        |more, _| more == 0,
    ));
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

/// A case on a link between nodes, which leads to one of `allowed` after it, with counts to match.
fn linked(
    name: &'static str,
    setup: impl Fn(&mut World) + 'static,
    operation: impl Fn(&mut World) + 'static,
    allowed: &'static [Option<u64>],
) -> Case<World> {
    case(name, setup, nothing, operation, |more, _| more == 0).verify(move |world, crash| {
        verify(world, crash, &|more, _| more == 0)?;
        let found = world.nodes[0].next.get().map(|node| node.value);
        if !allowed.contains(&found) {
            return Err(format!("the link leads to {found:?}"));
        }
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
