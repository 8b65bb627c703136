//! A child's side of a fork: it comes to life, and ends in order, killed after every change.
//!
//! The victim is the child: it is forked without the library noticing, and then takes the library's steps itself. The
//! survivors take the steps of the parent, which reaps it. The parent's side is in `pool` ("spawn and join").

use std::time::Duration;

use shmkit::Pool;
use shmkit::testing::{self, forking};

use super::engine::{Child, Crash, Ended, Fork, Suite};
use super::in_pool::ensure;
use super::pool::{World, case, node, nothing, verify};

/// What a parent does once it knows of the death: of that child it knows the number since the fork.
fn reap(world: &World, pid: u32) {
    // SAFETY: it is reaped, as the harness says.
    unsafe {
        forking::forked(pid);
        forking::reaped(pid);
    }
    world.pool.recover();
}

/// Longer than a recovery takes.
const A_WHILE: Duration = Duration::from_secs(60);

/// Somebody recovers who is not the parent, which hears of the death later. (Who plays the parent plays it no more once
/// it recovers: it has a record of its own then.)
fn recovered_by_another(pool: Pool) {
    let other = Child::fork(Fork::Bare, || {
        pool.recover();
        Ok(())
    });
    let ended = other.expect("a process").wait(A_WHILE);
    assert_eq!(ended, Ended::Exit(0), "who recovers");
}

/// The child's record and its holds are given back, and nobody else's; then the parent's.
fn given_back(world: &mut World, crash: &Crash) -> Result<(), String> {
    // Else the parent has died meanwhile.
    if crash.later.is_none() {
        to_the_parent(world, crash)?;
        parent_dies(world.pool);
    }
    world.pool.recover();
    participants(world, 1)?;
    verify(world, crash, &|more, _| more == -32)
}

fn to_the_parent(world: &mut World, crash: &Crash) -> Result<(), String> {
    // Of a real death it has not heard yet.
    reap(world, crash.victim.pid as u32);
    // The parent is played: whoever plays it has a record and a slot of its own.
    world.allocate(64, 1);
    world.free();
    participants(world, 2)?;
    verify(world, crash, &|more, _| more == 0)?;
    let value = world.held.map_or(0, |held| held.value);
    ensure(value == 1, || format!("the object has become {value}"))
}

/// With it goes the object, which it alone holds.
fn parent_dies(pool: Pool) {
    // SAFETY: no preconditions.
    let parent = unsafe { libc::getppid() };
    // SAFETY: it only waits for this process, and does not use the pool any more.
    unsafe { testing::mark_dead(pool, parent as u32) };
}

/// So many processes have a record, and a thread each.
fn participants(world: &World, count: usize) -> Result<(), String> {
    let (records, threads) = (forking::records(world.pool), world.pool.stats().threads);
    ensure((records, threads) == (count, count), || {
        format!("{records} records, {threads} threads")
    })
}

pub fn cases(suite: &mut Suite) {
    let object = |world: &mut World| {
        let held = world.pool.create(node(1)).expect("a node");
        world.held = Some(Box::leak(Box::new(held)));
        // SAFETY: the harness forks next.
        unsafe { forking::before() };
    };
    let life = |world: &mut World| {
        // SAFETY: the one child of the process that set up, forked behind `before`.
        unsafe { forking::in_child() };
        // One more, of its own.
        world
            .nodes
            .push(world.pool.create(node(2)).expect("a node"));
        // SAFETY: nothing is done behind it; handles that are left are not dropped.
        unsafe { forking::ending() };
    };
    suite.run(
        case(
            "a child comes to life and ends",
            object,
            nothing,
            life,
            |_, _| true,
        )
        // The slot comes with the life.
        .attach(nothing)
        .fork(Fork::Bare)
        .survivor(|_| forking::in_parent())
        .recover(|world| {
            match world.child {
                Some(pid) => reap(world, pid),
                None => recovered_by_another(world.pool),
            }
            Ok(())
        })
        .bury(|world, victim| {
            // SAFETY: its image is looked at from now on, and it does nothing any more.
            unsafe { testing::mark_dead(world.pool, victim.pid as u32) };
            match victim.recovered {
                false => world.child = Some(victim.pid as u32),
                // The parent's part was played.
                true => parent_dies(world.pool),
            }
        })
        .verify(given_back)
        .at_least(60),
    );
}
