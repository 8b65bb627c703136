//! The allocator: every operation, killed after every change, in the worlds of `pool`.

use std::alloc::Layout;

use shmkit::{Pool, testing};

use super::engine::{Case, Crash, Suite};
use super::in_pool::ensure;
use super::pool::{World, case, case_in, elsewhere, node, nothing, verify};

/// A run with free slices behind it: the span that the victim makes first finds room before it.
fn run_with_room(world: &mut World, size: usize) {
    world.allocate(40_000, 1);
    let run = world.blocks.len();
    world.allocate(size, 1);
    let run = world.blocks.remove(run);
    world.free();
    // Not kept as a whole.
    world.pool.purge().expect("a slot");
    world.blocks.push(run);
}

/// A small pool, and what is free of it with [`slices_of_all_kinds`].
const ALL: usize = 1 << 20;
const NINE: usize = 9 << 14;

/// All that is free of a full pool, in a row: three slices that were used, three without memory, three that were used.
fn slices_of_all_kinds(world: &mut World) {
    world.allocate(3 << 14, 3);
    world.allocate(ALL - NINE, 1);
    let rest = world.blocks.pop();
    let mut around = std::mem::take(&mut world.blocks);
    world.blocks.push(around.remove(1));
    world.free();
    world.pool.purge().expect("a slot");
    world.blocks = around;
    world.free();
    world.blocks.extend(rest);
}

/// Takes those slices, or as much as can be had.
fn takes_all_kinds(
    name: &'static str,
    operation: impl Fn(&mut World) + 'static,
    allocated: impl Fn(isize, &Crash) -> bool + 'static,
) -> Case<World> {
    let world = || World::in_pool(Pool::builder().max_size(ALL).create().expect("a pool"));
    let taken = case_in(
        world,
        name,
        slices_of_all_kinds,
        nothing,
        operation,
        unchanged,
    );
    taken.verify(move |w, crash| {
        // Room to use the pool.
        w.free();
        let rest = (ALL - NINE) as isize;
        verify(w, crash, &|more, crash| allocated(more + rest, crash))
    })
}

/// So many bytes before the operation, so many when it has returned, and one or the other meanwhile.
fn either(old: isize, new: isize) -> impl Fn(isize, &Crash) -> bool {
    move |more, crash| more == new || more == old && !crash.finished
}

/// From the first to the last by steps of that size.
fn by_steps(old: isize, step: isize, new: isize) -> impl Fn(isize, &Crash) -> bool {
    move |more, crash| {
        let between = (old.min(new)..=old.max(new)).contains(&more) && (more - old) % step == 0;
        more == new || between && !crash.finished
    }
}

fn unchanged(more: isize, _: &Crash) -> bool {
    more == 0
}

/// Slices without memory have none: there is as much as before besides, and some slots.
fn nothing_is_lost(world: &World) -> Result<(), String> {
    const SLOTS: usize = 4 << 14;
    world.pool.recover();
    let (before, now) = (world.beside, world.memory_beside());
    ensure(now <= before + SLOTS, || {
        format!("{now} bytes that are no slice's, and {before} before")
    })
}

/// Two runs that were freed have no memory any more when the operation has returned, but for the slice that the victim
/// has taken of it.
fn gives_back(name: &'static str, operation: impl Fn(&mut World) + 'static) -> Case<World> {
    let two_runs = |w: &mut World| {
        w.allocate(100_000, 2);
        w.free();
    };
    case(name, two_runs, nothing, operation, unchanged).verify(|w, crash| {
        let (before, now) = (w.committed, w.pool.stats().committed);
        ensure(now + (13 << 14) <= before || !crash.finished, || {
            format!("{now} bytes of memory, and {before} before")
        })?;
        nothing_is_lost(w)?;
        verify(w, crash, &unchanged)
    })
}

/// Points of a thread's leaving at the least: its spans are let go of one by one, and then its slot.
const LEAVING: u64 = 15;

pub fn cases(suite: &mut Suite) {
    suite.run(case(
        "allocate, new span",
        nothing,
        nothing,
        |w| w.allocate(64, 1),
        either(0, 64),
    ));
    let at_hand = case(
        "allocate, from the span at hand",
        nothing,
        |w| w.allocate(64, 1),
        |w| w.allocate(64, 1),
        either(64, 128),
    );
    suite.run(at_hand.at_least(3));
    suite.run(case(
        "allocate, next word",
        nothing,
        |w| w.allocate(64, 64),
        |w| w.allocate(64, 1),
        either(64 * 64, 64 * 65),
    ));
    suite.run(case(
        "allocate, second span",
        nothing,
        |w| w.allocate(2048, 8),
        |w| w.allocate(2048, 1),
        either(8 * 2048, 9 * 2048),
    ));
    suite.run(case(
        "allocate, collecting what others freed",
        nothing,
        |w| {
            w.allocate(2048, 8);
            elsewhere(w, World::free);
        },
        |w| w.allocate(2048, 1),
        either(0, 2048),
    ));
    suite.run(case(
        "allocate, adopting a span",
        |w| w.allocate(16, 1),
        |w| {
            elsewhere(w, |w| w.allocate(1000, 2));
        },
        |w| w.allocate(1000, 1),
        either(2 * 1024, 3 * 1024),
    ));
    let rest = 64 << 10;
    let full = (16 << 20) - rest;
    let empty_spans = case(
        "allocate, with the room of two empty spans in a full pool",
        move |w| w.allocate(full, 1),
        |w| {
            let run = w.blocks.remove(0);
            w.allocate(64, 1);
            w.allocate(2048, 1);
            w.free();
            w.blocks.push(run);
        },
        move |w| w.allocate(rest, 1),
        unchanged,
    );
    // Room to use the pool.
    suite.run(empty_spans.verify(move |w, crash| {
        w.free();
        let [full, rest] = [full, rest].map(|bytes| bytes as isize);
        verify(w, crash, &either(-full, rest - full))
    }));
    suite.run(case(
        "free, own",
        nothing,
        |w| w.allocate(64, 1),
        World::free,
        either(64, 0),
    ));
    suite.run(case(
        "free, own, the span with it",
        nothing,
        |w| {
            w.allocate(2048, 9);
            w.blocks.truncate(8);
        },
        World::free,
        by_steps(9 * 2048, -2048, 2048),
    ));
    suite.run(case(
        "free, another's",
        |w| w.allocate(64, 2),
        nothing,
        World::free,
        by_steps(0, -64, -128),
    ));
    suite.run(case(
        "free, nobody's",
        nothing,
        |w| elsewhere(w, |w| w.allocate(64, 2)),
        World::free,
        by_steps(128, -64, 0),
    ));
    suite.run(case(
        "allocate and free a run",
        nothing,
        nothing,
        run_comes_and_goes,
        either(7 << 14, 0),
    ));
    suite.run(takes_all_kinds(
        "allocate a run of used slices and holes",
        |w| w.allocate(NINE, 1),
        either(0, NINE as isize),
    ));
    suite.run(takes_all_kinds(
        "allocate a run of used slices and holes that get no memory",
        |w| {
            testing::refuse_commits(Some(0));
            let layout = Layout::from_size_align(NINE, 16).expect("a layout");
            w.pool.allocate(layout).expect_err("no memory");
            testing::refuse_commits(None);
        },
        unchanged,
    ));
    let holes = |w: &mut World| {
        w.allocate(20 << 14, 1);
        w.free();
        w.pool.purge().expect("a slot");
    };
    let of_holes = case(
        "allocate a run of holes",
        holes,
        nothing,
        |w| w.allocate(20 << 14, 1),
        unchanged,
    );
    suite.run(of_holes.verify(|w, crash| {
        nothing_is_lost(w)?;
        verify(w, crash, &either(0, 20 << 14))
    }));
    suite.run(case(
        "free another's run",
        |w| w.allocate(100_000, 1),
        nothing,
        World::free,
        either(0, -(7 << 14)),
    ));
    kept(suite);
    suite.run(
        case(
            "grow",
            nothing,
            nothing,
            |w| {
                w.pool.grow_to(3 << 20).expect("room");
            },
            unchanged,
        )
        .verify(|w, crash| {
            let total = w.pool.stats().total;
            ensure(total >= 3 << 20 || !crash.finished, || {
                format!("{total} bytes")
            })?;
            verify(w, crash, &unchanged)
        }),
    );
    suite.run(case(
        "allocate, growing",
        nothing,
        nothing,
        |w| w.allocate(2 << 20, 1),
        either(0, 2 << 20),
    ));
    suite.run(gives_back("purge", |w| {
        w.pool.purge().expect("a slot");
    }));
    suite.run(gives_back("memory ages and goes back", |w| {
        // Dirty, aged, a hole.
        testing::age(w.pool);
        testing::age(w.pool);
    }));
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
        |more, crash| match crash.finished {
            true => more == 2 * 2048,
            false => more % 2048 == 0 && (2048..=9 * 2048).contains(&more),
        },
    ));
    suite.run(
        case(
            "a thread leaves current, partial and full spans",
            nothing,
            |w| {
                w.allocate(2048, 17);
                let kept = w.blocks.split_off(9);
                w.blocks.truncate(4);
                w.free();
                w.blocks = kept;
            },
            |w| testing::leave(w.pool),
            |more, _| more == 13 * 2048,
        )
        .at_least(LEAVING),
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
        |more, crash| more == 320 - 64 || !crash.finished && [0, 320].contains(&more),
    ));
    suite.run(case(
        "reallocate, a run grows where it lies",
        |w| run_with_room(w, 100_000),
        nothing,
        |w| w.grow_in_place(150_000),
        |more, crash| more == 3 << 14 || (more == 0 && !crash.finished),
    ));
    suite.run(case(
        "reallocate, a run grows with the pool",
        |w| run_with_room(w, 900_000),
        nothing,
        |w| w.grow_in_place(1_500_000),
        |more, crash| more == 37 << 14 || (more == 0 && !crash.finished),
    ));
    suite.run(case(
        "reallocate, a run grows twice and goes",
        |w| run_with_room(w, 100_000),
        nothing,
        |w| {
            w.grow_in_place(150_000);
            w.grow_in_place(200_000);
            w.free();
        },
        |more, crash| {
            more == -(7 << 14) || !crash.finished && [0, 3 << 14, 6 << 14].contains(&more)
        },
    ));
    suite.run(
        case(
            "a thread comes and goes",
            nothing,
            |w| testing::leave(w.pool),
            |w| {
                w.allocate(64, 1);
                w.free();
                testing::leave(w.pool);
            },
            |more, crash| more == 0 || more == 64 && !crash.finished,
        )
        .at_least(LEAVING),
    );
    guarded(suite);
}

fn run_comes_and_goes(world: &mut World) {
    world.allocate(100_000, 1);
    world.free();
}

/// The first of the blocks are freed, and their runs kept.
fn free_first(world: &mut World, count: usize) {
    let rest = world.blocks.split_off(count);
    world.free();
    world.blocks = rest;
}

/// Runs that are kept when they are freed.
fn kept(suite: &mut Suite) {
    suite.run(case(
        "allocate a kept run and free it",
        nothing,
        run_comes_and_goes,
        run_comes_and_goes,
        either(7 << 14, 0),
    ));
    suite.run(case(
        "allocate a kept run, of those that are noted the last",
        nothing,
        |w| {
            [40_000, 60_000, 80_000, 100_000]
                .into_iter()
                .for_each(|size| w.allocate(size, 1));
            w.free();
        },
        |w| w.allocate(40_000, 1),
        either(0, 3 << 14),
    ));
    suite.run(case(
        "allocate a run that another thread has released",
        nothing,
        |w| {
            w.allocate(100_000, 1);
            w.free();
            elsewhere(w, |w| {
                w.pool.purge().expect("a slot");
                w.allocate(40_000, 1);
            });
        },
        |w| w.allocate(100_000, 1),
        |more, crash| more == 10 << 14 || more == 3 << 14 && !crash.finished,
    ));
    // One too many.
    suite.run(case(
        "free a run, releasing the one that is kept longest",
        nothing,
        |w| {
            w.allocate(40_000, 9);
            free_first(w, 8);
        },
        World::free,
        either(3 << 14, 0),
    ));
    // Too many slices.
    suite.run(case(
        "free a long run, releasing two",
        nothing,
        |w| {
            w.allocate(900_000, 2);
            w.allocate(1_200_000, 1);
            free_first(w, 2);
        },
        World::free,
        either(74 << 14, 0),
    ));
    suite.run(
        case(
            "allocate a run where others were kept",
            // There is no other room.
            |w| w.allocate(3 << 14, 1),
            |w| {
                w.allocate(100_000, 8);
                w.free();
            },
            |w| w.allocate(200_000, 1),
            |more, crash| more == 10 << 14 || more == -(3 << 14) && !crash.finished,
        )
        .verify(|w, crash| {
            let total = w.pool.stats().total;
            ensure(total == 1 << 20, || format!("it has grown to {total}"))?;
            verify(w, crash, &|more, crash| {
                more == 10 << 14 || more == -(3 << 14) && !crash.finished
            })
        }),
    );
    suite.run(case(
        "reallocate, a run grows into a kept one",
        nothing,
        |w| {
            w.allocate(100_000, 2);
            let behind = w.blocks.pop().expect("two");
            let run = std::mem::replace(&mut w.blocks, vec![behind]);
            w.free();
            w.blocks = run;
        },
        |w| w.grow_in_place(150_000),
        |more, crash| more == 10 << 14 || more == 7 << 14 && !crash.finished,
    ));
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
        |more, crash| more == 128 || !crash.finished && [0, 64].contains(&more),
    ));
    suite.run(case_in(
        || World::of(true),
        "guarded, free another's",
        |w| w.allocate(40, 2),
        nothing,
        World::free,
        by_steps(0, -64, -128),
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
        either(3 << 14, 0),
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
