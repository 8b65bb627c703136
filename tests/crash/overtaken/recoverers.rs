//! A process that recovers the dead, or takes back what was made for a child, and is overtaken: what it has looked at
//! belongs to another process when it goes on.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};

use shmkit::Pool;
use shmkit::testing::{self, forking};

use super::super::engine::{Case, Child, Crash, Fork, Suite, progress};
use super::super::in_pool::{self, InPool};
use super::super::pool::{World, node, verify};
use super::super::recovery::leave_slots;
use super::super::sync::{killed_in, slot};

/// A process that has a slot and an object, and dies.
fn comes_and_dies(world: &World) {
    let works = |world: &World| std::mem::forget(world.pool.create(node(3)).expect("an object"));
    killed_in(world, works, |_| false);
}

/// Another one recovers the dead first, and he who has their slot and their record then dies, too.
fn by_recovery_and_death(name: &'static str, settled: bool) -> Case<World> {
    in_pool::case(format!("overtaken/recovery/{name}"), move || {
        let mut world = World::new();
        // The first of them is the dead one's, and the next one's.
        leave_slots(&mut world, 4);
        let world = world.settled();
        comes_and_dies(&world);
        if settled {
            testing::settle(world.pool);
        }
        world
    })
    .attach(|world| slot(world.pool))
    .operation(|world| {
        world.pool.recover();
    })
    .overtaken_by(|world| {
        slot(world.pool);
        world.pool.recover();
        comes_and_dies(world);
    })
    .verify(|world, crash| verify(world, crash, &|more, _| more == 0))
    .soon()
    .without_second_order()
    .without_real_kills()
}

/// A world, and a process that waits for its time to come to the pool, and stays there.
struct Meeting {
    world: World,
    begin: PipeWriter,
    begun: PipeReader,
}

impl InPool for Meeting {
    fn pool(&self) -> Pool {
        self.world.pool
    }
}

impl Meeting {
    fn new(world: World, comes: impl FnOnce(Pool)) -> Self {
        let pool = world.pool;
        let pipe = || std::io::pipe().expect("a pipe");
        let ((mut is_time, begin), (begun, mut has_begun)) = (pipe(), pipe());
        let other = Child::fork(Fork::Bare, || {
            let mut byte = [0];
            is_time.read_exact(&mut byte).expect("a byte");
            comes(pool);
            has_begun.write_all(&byte).expect("a reader");
            loop {
                std::thread::park();
            }
        });
        // Until the case ends.
        std::mem::forget(other.expect("a process"));
        Meeting {
            world,
            begin,
            begun,
        }
    }

    /// Lets the other come, who marks that it is there, if it is.
    fn let_come(&mut self) {
        self.begin.write_all(&[1]).expect("a reader");
        let there = self.begun.read(&mut [0]).expect("a pipe");
        progress(there as u64);
    }
}

fn is_there(crash: &Crash) -> bool {
    crash.overtaken.is_some_and(|how| how.mark != 0)
}

/// No process has the number.
const NO_PID: u32 = u32::MAX >> 2;

fn case(
    name: &str,
    setup: impl Fn() -> Meeting + 'static,
    operation: impl Fn(&mut Meeting) + 'static,
    verify: impl Fn(&mut World, &Crash) -> Result<(), String> + 'static,
) -> Case<Meeting> {
    in_pool::case(format!("overtaken/recovery/{name}"), setup)
        .operation(operation)
        .overtaken_by(Meeting::let_come)
        .verify(move |meeting, crash| verify(&mut meeting.world, crash))
        .without_second_order()
        .without_real_kills()
}

/// The record of a child that there is none of is another process's, as soon as it is free. That one alone holds an
/// object.
fn record_of_no_child() -> Case<Meeting> {
    let setup = || {
        let mut world = World::new();
        leave_slots(&mut world, 4);
        Meeting::new(world.settled(), |pool| {
            std::mem::forget(pool.create(node(2)).expect("an object"));
        })
    };
    let operation = |_: &mut Meeting| {
        // SAFETY: there is no child, and nobody has its number.
        unsafe {
            forking::before();
            forking::forked(NO_PID);
            forking::in_parent();
            forking::reaped(NO_PID);
        }
    };
    let verify = |world: &mut World, crash: &Crash| {
        let held = if is_there(crash) { 32 } else { 0 };
        verify(world, crash, &|more, _| more == held)
    };
    case(
        "a child's record by another process",
        setup,
        operation,
        verify,
    )
    .attach(|meeting| {
        let held = meeting.world.pool.create(node(1)).expect("an object");
        meeting.world.nodes.push(held);
    })
}

pub fn cases(suite: &mut Suite) {
    suite.run(by_recovery_and_death("of one who died", false));
    suite.run(by_recovery_and_death("of one who is settled", true));
    suite.run(record_of_no_child());
}
