//! The recovery of three processes that died in the middle of allocator operations, next to each other in the pool. The
//! recovery is killed after every change: then four are dead, and the fourth has the life words of the others.

use shmkit::{Buffer, testing};

use super::engine::{Case, Doomed, Suite};
use super::pool::{World, case, elsewhere, node, nothing, row_of_objects, verify};
use super::sync::slot;

/// Bytes that three slices have, of 16 KiB each.
const THREE: usize = 3 << 14;
const FIVE: usize = 5 << 14;
/// What the recoverer has of its own.
const OWN: usize = 3 * 64;

/// Threads come, so many at once, and leave their slots.
pub fn leave_slots(world: &mut World, count: usize) {
    if count > 0 {
        elsewhere(world, |world| {
            world.allocate(64, 1);
            world.free();
            leave_slots(world, count - 1);
        });
    }
}

/// Spans of three, one behind the other, then what they were in the middle of.
fn three_dead(world: &mut World) {
    // Who finds no slot free recovers the dead: the recoverer, who has what it frees of its own, is to find one.
    leave_slots(world, 4);
    let pool = world.pool;
    let spans = move || {
        let mut world = World::in_pool(pool);
        // Some are full, some have a block left, one has none.
        world.allocate(2048, 9);
        world.blocks.truncate(8);
        world.free();
        world.allocate(64, 3);
        world
    };
    // The first makes a run: its slices are claimed, and the second is a tail.
    let mut first = Doomed::new(|| drop(spans()), || World::in_pool(pool).allocate(THREE, 1));
    // The second extends one that lies behind: its head says so, and not all that it gets are tails.
    let mut second = Doomed::new(
        || drop(spans()),
        || {
            let mut world = World::in_pool(pool);
            world.allocate(THREE, 1);
            world.grow_in_place(2 * THREE);
        },
    );
    // The third releases one behind that, which it has kept: its head is claimed, and the last is free.
    let mut third = Doomed::new(
        || drop(spans()),
        || {
            let mut world = World::in_pool(pool);
            world.allocate(THREE, 1);
            world.free();
            world.pool.purge().expect("a slot");
        },
    );
    let reached = |picture: &str| testing::slices(pool).contains(picture);
    first.go_on_until(|| reached("AtA"));
    second.go_on_until(|| reached("AtArtttBB"));
    third.go_on_until(|| reached("AtArtttBBCt."));
    for doomed in [first, second, third] {
        doomed.die();
    }
}

/// One has died who freed the chunk of a buffer. As soon as it was free somebody else has it, before recovery
/// looks at what the dead one was freeing.
fn freed_and_taken(world: &mut World) {
    let pool = world.pool;
    // Held until the end.
    let buffer = Box::leak(Box::new(pool.create(Buffer::new()).expect("an object")));
    for size in [100_000, 9000] {
        buffer.append(&vec![1; size]).expect("room");
    }
    pool.purge().expect("a slot");
    let first_kept = || testing::slices(pool).find('k');
    assert_eq!(first_kept(), None);
    let frees = || buffer.truncate_front(100_000).expect("bytes");
    let mut doomed = Doomed::new(|| (), frees);
    doomed.go_on_until(|| first_kept().is_some());
    let chunk = first_kept().expect("a run");
    pool.purge().expect("a slot");
    world.allocate(7 << 14, 1);
    assert_eq!(testing::slices(pool).as_bytes()[chunk], b'r', "taken");
    doomed.die();
}

/// One has died who was refused the memory to hold an object, and had given back the object's block. As soon as it was free
/// somebody else has it, before recovery looks at what the dead one was making.
fn refused_and_taken(world: &mut World) {
    let pool = world.pool;
    row_of_objects(pool);
    let refused = || {
        testing::refuse_commits(Some(0));
        pool.create([0_u8; THREE]).map(drop).expect_err("no memory");
    };
    let mut doomed = Doomed::new(|| slot(pool), refused);
    let first_kept = || testing::slices(pool).find('k');
    assert_eq!(first_kept(), None);
    doomed.go_on_until(|| first_kept().is_some());
    let block = first_kept().expect("a run");
    pool.purge().expect("a slot");
    world.allocate(THREE, 1);
    assert_eq!(testing::slices(pool).as_bytes()[block], b'r', "taken");
    doomed.die();
}

/// One has died who had just claimed a run of holes, before the hints said that they are no longer free. As soon as
/// these are free again somebody else has them, and stores into them, before the recoverer goes on.
fn holes_given_back_and_taken(world: &mut World) {
    let pool = world.pool;
    let with_slot = || slot(pool);
    let mut doomed = Doomed::new(with_slot, || World::in_pool(pool).allocate(THREE, 1));
    let mut recoverer = Doomed::new(with_slot, || {
        pool.recover();
    });
    world.allocate(THREE, 1);
    world.free();
    pool.purge().expect("a slot");
    let claimed = || testing::slices(pool).find("AAA");
    assert_eq!(claimed(), None);
    doomed.go_on_until(|| claimed().is_some());
    let holes = claimed().expect("claimed");
    doomed.die();
    let are = |picture: &str| testing::slices(pool)[holes..].starts_with(picture);
    recoverer.go_on_until(|| are("..."));
    world.allocate(THREE, 1);
    assert!(are("rtt"), "taken");
    let block = world.blocks[0].as_ptr();
    // SAFETY: just allocated, of so many bytes, which nobody else uses.
    unsafe { block.write_bytes(1, THREE) };
    recoverer.ends();
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(block, THREE) };
    assert!(bytes.iter().all(|&byte| byte == 1), "given back");
}

/// Somebody has claimed three slices and is stopped: the hints say still that they are free. Before them are three that were
/// used, and are free, and two that were given back.
fn claimed_behind_free(world: &mut World) {
    let pool = world.pool;
    let mut claims = Doomed::new(|| slot(pool), || World::in_pool(pool).allocate(THREE, 1));
    world.allocate(THREE, 11);
    let of_others: Vec<_> = world.blocks.drain(3..).collect();
    let used = world.blocks.remove(1);
    // What others have is released for good.
    world.free();
    pool.purge().expect("a slot");
    world.allocate(2048, 1);
    std::mem::take(&mut world.blocks);
    claims.go_on_until(|| testing::slices(pool).contains("s..rttAAA"));
    world.child = Some(claims.stays());
    // And what is freed first is, when that is too much.
    world.blocks = vec![used];
    world.blocks.extend(of_others);
    world.free();
    let behind = testing::slices(pool).contains("s.....AAAk");
    assert!(behind, "{}", testing::slices(pool));
}

/// One has died who was about to fork: what it held is held by its child's record, too.
fn about_to_fork(world: &mut World) {
    let pool = world.pool;
    let holds = move || std::mem::forget(pool.create(node(1)).expect("an object"));
    Doomed::new(holds, || {
        // SAFETY: it dies there.
        unsafe { testing::forking::before() }
    })
    .ends();
}

/// The recoverer dies without the kernel's telling, if it is really killed: its list of words is none that the
/// kernel knows.
fn die_unmarked() {
    #[repr(C)]
    struct Head {
        first: *const Head,
        offset: isize,
        pending: usize,
    }
    let head = Box::leak(Box::new(Head {
        first: std::ptr::null(),
        offset: 0,
        pending: 0,
    }));
    head.first = head;
    // SAFETY: an empty list, of the length that the kernel asks for, which is never freed.
    let set = unsafe {
        libc::syscall(
            libc::SYS_set_robust_list,
            std::ptr::from_mut(head),
            size_of::<Head>(),
        )
    };
    assert_eq!(set, 0);
}

fn recovery(name: &'static str, settled: bool, attach: impl Fn() + 'static) -> Case<World> {
    case(
        name,
        move |world| {
            three_dead(world);
            if settled {
                testing::settle(world.pool);
            }
        },
        move |world| {
            world.allocate(64, 3);
            attach();
        },
        |world| {
            world.pool.recover();
        },
        |more, _| more == OWN as isize,
    )
}

pub fn cases(suite: &mut Suite) {
    suite.run(recovery("recover three dead", false, || ()));
    // What it leaves is among what the case above comes to, and recovers twice.
    let release = recovery("release the memory of three", true, die_unmarked);
    suite.run(release.without_second_order());
    suite.run(case(
        "recover one whose freed run somebody has",
        freed_and_taken,
        nothing,
        |world| {
            world.pool.recover();
        },
        |more, _| more == 0,
    ));
    suite.run(
        case(
            "recover one whose refused object's block somebody has",
            refused_and_taken,
            nothing,
            |world| {
                world.pool.recover();
            },
            |more, _| more == 0,
        )
        .without_real_kills(),
    );
    suite.run(
        case(
            "free a run of holes that were taken from a recoverer",
            holes_given_back_and_taken,
            nothing,
            World::free,
            |more, crash| more == -(THREE as isize) || more == 0 && !crash.finished,
        )
        .without_second_order()
        .without_real_kills(),
    );
    let taken = case(
        "claim slices of which some are taken",
        claimed_behind_free,
        nothing,
        |world| world.allocate(FIVE, 1),
        |_, _| true,
    );
    suite.run(taken.verify(|world, crash| {
        let other = world.child.expect("who has claimed them");
        // SAFETY: it does nothing any more.
        unsafe { testing::mark_dead(world.pool, other) };
        verify(world, crash, &|more, crash| {
            more == FIVE as isize || more == 0 && !crash.finished
        })
    }));
    suite.run(case(
        "recover one who was about to fork",
        about_to_fork,
        nothing,
        |world| {
            world.pool.recover();
        },
        |more, _| more == -32,
    ));
    let come_and_go = |world: &mut World| leave_slots(world, 1);
    suite.run(
        case(
            "a thread takes its process's life word over",
            nothing,
            nothing,
            |world| world.allocate(64, 1),
            |more, crash| more == 64 || more == 0 && !crash.finished,
        )
        .attach(come_and_go),
    );
}
