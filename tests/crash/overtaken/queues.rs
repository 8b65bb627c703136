//! Queues.

use std::collections::VecDeque;

use shmkit::{Lease, PopError};

use super::super::engine::{Crash, Suite};
use super::super::in_pool::intact;
use super::super::queue::{FEW, RING, Triple, UNBOUNDED, World};
use super::{NONE, Operation};

/// What is done to a queue of numbers, which has room.
#[derive(Clone, Copy, Debug)]
enum Do {
    Push(u64),
    Pop,
    Lease,
}

impl Operation for Do {
    type World = World;
    type Model = VecDeque<u64>;

    fn perform(self, world: &mut World) -> u64 {
        let queue = &world.queue;
        match self {
            Do::Push(n) => {
                queue.try_push(Triple::new(n)).expect("room");
                0
            }
            Do::Pop => number(queue.try_pop()),
            Do::Lease => number(queue.try_lease().map(Lease::ack)),
        }
    }

    fn model(self, model: &mut VecDeque<u64>) -> u64 {
        match self {
            Do::Push(n) => {
                model.push_back(n);
                0
            }
            Do::Pop | Do::Lease => model.pop_front().unwrap_or(NONE),
        }
    }

    fn comes_to_nothing(self, answer: u64, model: &mut VecDeque<u64>) {
        // What was leased comes back.
        if matches!(self, Do::Lease) && answer != NONE {
            model.push_front(answer);
        }
    }

    fn reads(self) -> bool {
        false
    }

    fn found(world: &mut World, _: &Crash) -> Result<VecDeque<u64>, String> {
        world.pool.recover();
        intact(world.pool)?;
        Ok(world.emptied()?.into())
    }

    fn ends(world: &mut World) -> Result<(), String> {
        world.usable()
    }
}

fn number(popped: Result<Triple, PopError>) -> u64 {
    match popped {
        Ok(element) => {
            assert_eq!(element, Triple::new(element.0), "torn");
            element.0
        }
        Err(PopError::Empty) => NONE,
        Err(error) => panic!("{error}"),
    }
}

pub fn cases(suite: &mut Suite) {
    use Do::*;
    let mut case =
        |name: &str, setup: fn() -> World, old: &'static [u64], victim: &[Do], overtaker: &[Do]| {
            let old = |_: &World| old.iter().copied().collect();
            let case = super::case(format!("queue/{name}"), setup, old, [victim, overtaker]);
            // The victim has its slot, and its caches of blocks.
            suite.run(case.attach(World::enter));
        };
    let bounded = || World::new(8, &[1, 2]);
    let empty = || World::new(8, &[]);
    let unused = || World::fresh(8);
    case(
        "first push by first push",
        unused,
        &[],
        &[Push(7)],
        &[Push(8)],
    );
    case(
        "first push by push and pop",
        unused,
        &[],
        &[Push(7)],
        &[Push(8), Pop],
    );
    case(
        "push by push",
        bounded,
        &[1, 2],
        &[Push(7)],
        &[Push(8), Push(9)],
    );
    case("push by pop", bounded, &[1, 2], &[Push(7)], &[Pop]);
    case(
        "push by push and pop",
        empty,
        &[],
        &[Push(7)],
        &[Push(8), Pop],
    );
    case("pop by pop", bounded, &[1, 2], &[Pop], &[Pop]);
    case(
        "pop by push",
        || World::new(8, &[1]),
        &[1],
        &[Pop, Pop],
        &[Push(7)],
    );
    case("pop by all", bounded, &[1, 2], &[Pop], &[Push(7), Pop, Pop]);
    case("lease by pop", bounded, &[1, 2], &[Lease], &[Pop]);
    case("pop by lease", bounded, &[1, 2], &[Pop], &[Lease]);
    case("lease by lease", bounded, &[1, 2], &[Lease], &[Lease]);
    let ring = || {
        let world = World::fresh(UNBOUNDED);
        world.push(&RING[..32]);
        world
    };
    case(
        "push that grows by the same",
        ring,
        &RING[..32],
        &[Push(40)],
        &[Push(41)],
    );
    case(
        "push that grows by more",
        ring,
        &RING[..32],
        &[Push(40)],
        &[Push(41), Pop, Pop],
    );
    let rings = || {
        let world = World::fresh(UNBOUNDED);
        world.push(&RING[..32]);
        (40..FEW + 2).for_each(|n| world.push(&[n]));
        (0..32).for_each(|_| assert!(world.queue.pop().is_ok()));
        world
    };
    case(
        "pop from the next ring by the same",
        rings,
        &[40, 41],
        &[Pop],
        &[Pop],
    );
    case(
        "pop from the next ring by push",
        rings,
        &[40, 41],
        &[Pop],
        &[Push(50)],
    );
}
