//! Queues.

use std::collections::VecDeque;

use shmkit::{Lease, PopError, Queue};

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
    Peek,
    /// Leases so many and gives them back, first to last.
    GiveBack(usize),
    /// Of all elements but one, which may be on its way, a number that tells them and their order.
    Walk(u64),
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
            Do::Pop => number(queue, queue.try_pop()),
            Do::Lease => number(queue, queue.try_lease().map(Lease::ack)),
            Do::GiveBack(n) => {
                let lease = |_| match queue.try_lease() {
                    Err(PopError::Closed) if queue.is_closed() => None,
                    leased => Some(leased.expect("an element")),
                };
                let leases: Vec<_> = (0..n).map_while(lease).collect();
                leases.into_iter().for_each(drop);
                0
            }
            Do::Peek => number(queue, queue.peek().ok_or(PopError::Empty)),
            Do::Walk(but) => {
                let seen: Vec<u64> = queue.iter().map(|it| number(queue, Ok(it))).collect();
                digest(&seen, but)
            }
        }
    }

    fn model(self, model: &mut VecDeque<u64>) -> u64 {
        match self {
            Do::Push(n) => {
                model.push_back(n);
                0
            }
            Do::GiveBack(_) => 0,
            Do::Pop | Do::Lease => model.pop_front().unwrap_or(NONE),
            Do::Peek => model.front().copied().unwrap_or(NONE),
            Do::Walk(but) => digest(model.make_contiguous(), but),
        }
    }

    fn comes_to_nothing(self, answer: u64, model: &mut VecDeque<u64>) {
        // What was leased comes back.
        if matches!(self, Do::Lease) && answer != NONE {
            model.push_front(answer);
        }
    }

    fn reads(self) -> bool {
        matches!(self, Do::Peek | Do::Walk(_))
    }

    fn found(world: &mut World, _: &Crash) -> Result<VecDeque<u64>, String> {
        world.pool.recover();
        world.nobody_at_work();
        intact(world.pool)?;
        Ok(world.emptied()?.into())
    }

    fn ends(world: &mut World) -> Result<(), String> {
        match world.queue.is_closed() {
            true => Ok(()),
            false => world.usable(),
        }
    }
}

fn digest(elements: &[u64], but: u64) -> u64 {
    let elements = elements.iter().filter(|&&n| n != but);
    elements.fold(0, |sum: u64, n| {
        sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n + 1)
    })
}

/// So many pushes that a ring of 32 is full, if a victim has its first place or was faster to take what
/// was there, and another one that goes to the next; then all of the first ring are taken, and that last
/// one is looked at.
const ROUND: [Do; 64] = {
    let mut all = [Do::Pop; 64];
    let mut n = 0;
    while n < 32 {
        all[n] = Do::Push(100 + n as u64);
        n += 1;
    }
    all[63] = Do::Peek;
    all
};

fn number(queue: &Queue<Triple>, popped: Result<Triple, PopError>) -> u64 {
    match popped {
        Ok(element) => {
            assert_eq!(element, Triple::new(element.0), "torn");
            element.0
        }
        Err(PopError::Empty) => NONE,
        Err(PopError::Closed) if queue.is_closed() => NONE,
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
    // Of what comes back the first is had first, also by who has looked at its entry too early.
    const ALL: usize = 16;
    let leased = || {
        let world = World::new(ALL, &RING[..ALL]);
        let lease = |_| world.queue.lease().expect("an element");
        let leases: Vec<_> = (0..ALL).map(lease).collect();
        leases.into_iter().for_each(|lease| _ = lease.ack());
        world.push(&RING[..ALL]);
        world
    };
    let take: [(&str, &[Do]); 3] = [("pop", &[Pop]), ("lease", &[Lease]), ("peek", &[Peek, Pop])];
    for (name, take) in take {
        let name = format!("{name} by what comes back");
        case(&name, leased, &RING[..ALL], take, &[GiveBack(ALL - 1)]);
    }
    // Some have come back already.
    let back = || {
        let world = World::new(8, &[1, 2, 3]);
        let leases = [(); 2].map(|()| world.queue.lease().expect("an element"));
        drop(leases);
        world
    };
    let take: [(&str, &[Do]); 3] = [("pop", &[Pop]), ("lease", &[Lease]), ("peek", &[Peek, Pop])];
    for (name, take) in take {
        let by = |by: &str| format!("{name} of what came back by {by}");
        case(
            &by("all"),
            back,
            &[1, 2, 3],
            take,
            &[Peek, Walk(7), Pop, Lease, Pop, Peek],
        );
        case(
            &by("the same anew"),
            back,
            &[1, 2, 3],
            take,
            &[GiveBack(2), Peek, Pop],
        );
    }
    // What was looked at stays the first.
    case(
        "push by push and peek",
        empty,
        &[],
        &[Push(7)],
        &[Push(8), Peek],
    );
    case(
        "push by push and peek, never leased",
        || World::plain(8),
        &[],
        &[Push(7)],
        &[Push(8), Peek],
    );
    case(
        "push by push and walk",
        empty,
        &[],
        &[Push(7)],
        &[Push(8), Walk(7), Push(9)],
    );
    case(
        "peek by all",
        bounded,
        &[1, 2],
        &[Peek, Pop],
        &[Push(7), Pop, Pop],
    );
    case(
        "walk by all",
        bounded,
        &[1, 2],
        &[Walk(7), Pop],
        &[Push(7), Pop, Pop],
    );
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
    case(
        "push that grows by a look",
        ring,
        &RING[..32],
        &[Push(40)],
        &[Push(41), Peek],
    );
    // In the first ring there is room again.
    case(
        "push that grows by a walk",
        ring,
        &RING[..32],
        &[Push(40)],
        &[Push(41), Pop, Walk(40), Pop],
    );
    case(
        "walk by growth",
        ring,
        &RING[..32],
        &[Walk(7), Pop],
        &[Push(41), Pop, Pop],
    );
    case(
        "push by all",
        empty,
        &[],
        &[Push(7)],
        &[Push(8), Peek, Push(9), Walk(7), Pop, Peek, Lease],
    );
    // Somebody else is in the middle of a push before all these elements.
    let behind = || World::behind_a_push(8, &[1, 2]);
    case(
        "peek past a push by pop",
        behind,
        &[1, 2],
        &[Peek, Pop],
        &[Pop],
    );
    case(
        "peek past a push by all",
        behind,
        &[1, 2],
        &[Peek, Peek],
        &[Peek, Pop, Push(7), Peek, Pop, Walk(99)],
    );
    case(
        "pop past a push by peek",
        behind,
        &[1, 2],
        &[Pop, Push(7)],
        &[Peek, Peek, Pop],
    );
    case(
        "walk past a push by peek",
        behind,
        &[1, 2],
        &[Walk(99), Pop],
        &[Peek, Pop, Push(7)],
    );
    case(
        "walk of all places by all",
        || World::new(2, &[1, 2]),
        &[1, 2],
        &[Walk(7), Pop],
        &[Pop, Push(8), Pop],
    );
    // In the last place of the first ring somebody is at work.
    let last_place = || {
        let world = World::fresh(UNBOUNDED);
        world.push(&RING[..31]);
        world
    };
    case(
        "last push of a ring by a walk",
        last_place,
        &RING[..31],
        &[Push(40)],
        &[Push(41), Walk(40), Pop],
    );
    // The victim is in a ring that is left behind, all the way round.
    case(
        "push by a way round",
        || World::plain(UNBOUNDED),
        &[],
        &[Push(7)],
        &ROUND,
    );
    // It is left behind for good before the victim has a place there: one more than there are places in it.
    let pushes = (100..133).map(Push);
    let beyond: Vec<_> = pushes.chain([Pop; 33]).collect();
    case(
        "push by more than a ring",
        || World::plain(UNBOUNDED),
        &[],
        &[Push(7)],
        &beyond,
    );
    let one = || {
        let world = World::plain(UNBOUNDED);
        world.push(&[1]);
        world
    };
    case("lease by a way round", one, &[1], &[Lease, Push(7)], &ROUND);
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
    let closed = || {
        let world = World::new(8, &[1]);
        world.queue.close();
        world
    };
    case("pop of a closed one by pop", closed, &[1], &[Pop], &[Pop]);
    // It is not at its end before what is leased has come back, or is done.
    case(
        "pop of a closed one by what comes back",
        closed,
        &[1],
        &[Pop],
        &[GiveBack(1)],
    );
}
