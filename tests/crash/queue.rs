//! Queues: every operation, killed after every change.
//!
//! After recovery the full check must pass, the elements must be those from before or from after the operation, in
//! order, and every place must be usable: the survivor fills the queue and empties it. No byte is lost: as much is
//! allocated then as for a queue with which no process died.

use std::time::Duration;

use shmkit::{Lease, Pool, PopError, PushRefusal, Queue, Shared, ShmSafe, testing};

use super::engine::{Case, Crash, Doomed, Suite, progress};
use super::in_pool::{self, InPool, ensure, happened, in_use, intact, pool};

/// 24 bytes that belong together.
#[derive(Clone, Copy, Debug, PartialEq, ShmSafe)]
pub struct Triple(pub u64, u64, u64);

impl Triple {
    pub fn new(n: u64) -> Triple {
        Triple(n, n.rotate_left(17), !n)
    }
}

/// The capacity of a queue that has none.
pub const UNBOUNDED: usize = 0;

/// So many that an unbounded queue needs a second ring.
pub const FEW: u64 = 40;

/// A first ring's worth of elements, and one more.
pub const RING: [u64; 33] = {
    let mut all = [0; 33];
    let mut n = 0;
    while n < 33 {
        all[n] = n as u64;
        n += 1;
    }
    all
};

/// A pool with a queue.
pub struct World {
    pub pool: Pool,
    pub queue: Shared<Queue<Triple>>,
    /// Who is stopped in the middle of a push, and has the place before all elements.
    at_work: Option<u32>,
    /// Another queue, of the victim's.
    made: Option<Shared<Queue<Triple>>>,
    /// Bytes allocated once the queue has been used for everything.
    used: usize,
}

impl InPool for World {
    fn pool(&self) -> Pool {
        self.pool
    }
}

impl World {
    /// A queue of so many places, which has gone round once and a bit, with these elements.
    pub fn new(capacity: usize, elements: &[u64]) -> World {
        let world = World::fresh(capacity);
        use_up(&world.queue);
        world.push(elements);
        world
    }

    /// A queue that was never used.
    pub fn fresh(capacity: usize) -> World {
        let pool = pool();
        let make = || match capacity {
            UNBOUNDED => Queue::unbounded(),
            _ => Queue::bounded(capacity),
        };
        let twin = pool.create(make()).expect("room");
        let queue = pool.create(make()).expect("room");
        let unused = pool.stats().allocated;
        use_up(&twin);
        let blocks = pool.stats().allocated - unused;
        drop(twin);
        let used = pool.stats().allocated + blocks;
        World {
            pool,
            queue,
            at_work: None,
            made: None,
            used,
        }
    }

    /// A queue that has its cells, and nobody has leased anything of.
    pub fn plain(capacity: usize) -> World {
        let world = World::fresh(capacity);
        world.push(&[0]);
        assert!(world.queue.pop().is_ok());
        world
    }

    /// A queue with these elements, and before them the place of somebody who is stopped in the middle of a
    /// push, and lives.
    pub fn behind_a_push(capacity: usize, elements: &[u64]) -> World {
        let mut world = World::plain(capacity);
        let (pool, queue) = (world.pool, &world.queue);
        // It has its slot.
        let prepare = || drop(pool.create(0_u64).expect("room"));
        let mut stopped = Doomed::new(prepare, || {
            queue.push(Triple::new(99)).expect("room");
        });
        stopped.go_on_until(|| pool.check_quiescent().to_string().contains("Writing"));
        world.at_work = Some(stopped.stays());
        world.push(elements);
        world
    }

    /// Who is at work does not end it any more.
    pub fn nobody_at_work(&mut self) {
        if let Some(pid) = self.at_work.take() {
            // SAFETY: it is stopped for good, in this image or until the case ends.
            unsafe { testing::mark_dead(self.pool, pid) };
            self.pool.recover();
        }
    }

    /// The victim has its slot, and its caches of blocks.
    pub fn enter(&mut self) {
        let other = self.pool.create(Queue::bounded(3)).expect("room");
        other.push(Triple::new(1)).expect("room");
        drop(other.lease());
    }

    pub fn push(&self, elements: &[u64]) {
        for &n in elements {
            self.queue.push(Triple::new(n)).expect("room");
        }
    }

    /// What is in the queue: by looking, by counting, and by popping.
    pub fn emptied(&self) -> Result<Vec<u64>, String> {
        let queue = &self.queue;
        let seen: Vec<Triple> = queue.iter().collect();
        ensure(queue.len() == seen.len(), || {
            format!("{} counted, {seen:?} seen", queue.len())
        })?;
        ensure(queue.peek() == seen.first().copied(), || {
            "another first".into()
        })?;
        let mut popped = Vec::new();
        while let Ok(element) = queue.try_pop() {
            popped.push(element);
        }
        ensure(popped == seen, || {
            format!("{popped:?} popped, {seen:?} seen")
        })?;
        let whole = popped.iter().all(|e| *e == Triple::new(e.0));
        ensure(whole, || format!("torn: {popped:?}"))?;
        Ok(popped.iter().map(|e| e.0).collect())
    }

    /// All places are of use, and destruction gives everything back.
    pub fn usable(&self) -> Result<(), String> {
        let queue = &self.queue;
        let room = queue.capacity().unwrap_or(FEW as usize) as u64;
        let all: Vec<u64> = (100..100 + room).collect();
        for _ in 0..2 {
            for &n in &all {
                // It may have to hold back for a dead one.
                let pushed = queue.push_timeout(Triple::new(n), Duration::from_secs(10));
                pushed.map_err(|e| format!("{e}"))?;
            }
            if queue.capacity().is_some() {
                let refused = queue.try_push(Triple::new(0)).map_err(|e| e.cause);
                ensure(refused == Err(PushRefusal::Full), || format!("{refused:?}"))?;
            }
            let leased = queue.try_lease().map_err(|e| format!("{e}"))?;
            ensure(leased.0 == 100, || format!("{} leased", leased.0))?;
            let attempts = leased.attempts();
            ensure(attempts == 1, || {
                format!("{attempts} attempts of a new element")
            })?;
            drop(leased);
            let popped = self.emptied()?;
            ensure(popped == all, || format!("{popped:?} for {all:?}"))?;
        }
        intact(self.pool)?;
        in_use(self.pool, self.used)
    }
}

/// Goes round the queue once and a bit, and leases.
fn use_up(queue: &Queue<Triple>) {
    match queue.capacity() {
        Some(capacity) => {
            for n in 0..capacity as u64 + 1 {
                queue.push(Triple::new(n)).expect("room");
                queue.lease().expect("an element").ack();
            }
        }
        None => {
            (0..FEW).for_each(|n| queue.push(Triple::new(n)).expect("room"));
            for _ in 0..FEW {
                queue.lease().expect("an element").ack();
            }
        }
    }
}

/// A case on a queue that holds the first elements, and the last ones if the operation happened.
fn case(
    name: &str,
    setup: impl Fn() -> World + 'static,
    operation: impl Fn(&Queue<Triple>) + 'static,
    [old, new]: [&'static [u64]; 2],
) -> Case<World> {
    case_then(name, setup, operation, move |world, crash| {
        let found = world.emptied()?;
        happened(crash, found, old, new)?;
        world.usable()
    })
}

fn case_then(
    name: &str,
    setup: impl Fn() -> World + 'static,
    operation: impl Fn(&Queue<Triple>) + 'static,
    check: impl Fn(&mut World, &Crash) -> Result<(), String> + 'static,
) -> Case<World> {
    in_pool::case(format!("queue/{name}"), setup)
        .attach(World::enter)
        .operation(move |world| {
            operation(&world.queue);
            progress(1);
        })
        .verify(move |world, crash| {
            world.pool.recover();
            intact(world.pool)?;
            check(world, crash)
        })
}

/// What a death at every instruction must leave of queues.
pub fn cases(suite: &mut Suite) {
    suite.run(case(
        "first push",
        || World::fresh(3),
        |queue| queue.push(Triple::new(7)).expect("room"),
        [&[], &[7]],
    ));
    suite.run(case(
        "push",
        || World::new(4, &[1, 2]),
        |queue| queue.push(Triple::new(7)).expect("room"),
        [&[1, 2], &[1, 2, 7]],
    ));
    suite.run(case(
        "push, the last place",
        || World::new(3, &[1, 2]),
        |queue| queue.push(Triple::new(7)).expect("room"),
        [&[1, 2], &[1, 2, 7]],
    ));
    suite.run(case(
        "push to who sleeps",
        || {
            let world = World::new(3, &[]);
            let outcome = world.queue.pop_timeout(Duration::from_micros(1));
            assert_eq!(outcome, Err(PopError::TimedOut));
            world
        },
        |queue| queue.push(Triple::new(7)).expect("room"),
        [&[], &[7]],
    ));
    suite.run(case(
        "push, refused",
        || World::new(2, &[1, 2]),
        |queue| {
            let refused = queue.try_push(Triple::new(7)).unwrap_err();
            assert_eq!((refused.value.0, refused.cause), (7, PushRefusal::Full));
        },
        [&[1, 2], &[1, 2]],
    ));
    // It has waited, and had the turn.
    suite.run(case(
        "push, timed out",
        || World::new(2, &[1, 2]),
        |queue| {
            let refused = queue.push_timeout(Triple::new(7), Duration::from_nanos(1));
            let refused = refused.unwrap_err();
            assert_eq!((refused.value.0, refused.cause), (7, PushRefusal::TimedOut));
        },
        [&[1, 2], &[1, 2]],
    ));
    suite.run(case(
        "pop",
        || World::new(4, &[1, 2, 3]),
        |queue| assert_eq!(queue.pop().map(|e| e.0), Ok(1)),
        [&[1, 2, 3], &[2, 3]],
    ));
    suite.run(
        case(
            "clear",
            || World::new(4, &[1, 2]),
            |queue| {
                queue.try_pop().expect("an element");
                queue.clear();
            },
            [&[2], &[]],
        )
        .verify(|world, _| {
            let left = world.emptied()?;
            let cleared = [&[][..], &[2], &[1, 2]].contains(&&left[..]);
            ensure(cleared, || format!("{left:?}"))?;
            world.usable()
        }),
    );
    suite.run(case(
        "push that grows",
        || {
            let world = World::fresh(UNBOUNDED);
            world.push(&RING[..32]);
            world
        },
        |queue| queue.push(Triple::new(32)).expect("room"),
        [&RING[..32], &RING],
    ));
    suite.run(case(
        "pop from the next ring",
        || {
            let world = World::fresh(UNBOUNDED);
            world.push(&RING);
            for _ in 0..32 {
                world.queue.pop().expect("an element");
            }
            world
        },
        |queue| assert_eq!(queue.pop().map(|e| e.0), Ok(32)),
        [&RING[32..], &[]],
    ));
    past_a_push(suite);
    leases(suite);
    ends(suite);
}

fn untold() -> World {
    World::behind_a_push(8, &[1, 2])
}

fn told() -> World {
    let world = untold();
    assert_eq!(world.queue.peek(), Some(Triple::new(1)));
    world
}

/// What was told is gone.
fn told_and_gone() -> World {
    let world = told();
    assert_eq!(world.queue.pop(), Ok(Triple::new(1)));
    world
}

/// Looking and taking past a push that is on its way, and stays so until after the death.
fn past_a_push(suite: &mut Suite) {
    let mut past = |name: &str,
                    setup: fn() -> World,
                    operation: fn(&Queue<Triple>) -> Option<Triple>,
                    [old, new]: [&'static [u64]; 2]| {
        let case = in_pool::case(format!("queue/{name}"), setup)
            .attach(World::enter)
            .operation(move |world| {
                assert_eq!(operation(&world.queue), Some(Triple::new(old[0])));
                progress(1);
            })
            .verify(move |world, crash| {
                // As long as that lasts nobody waits for it.
                let [told, again] = [world.queue.peek(), world.queue.peek()];
                let seen: Vec<Triple> = world.queue.iter().collect();
                ensure(told == again && told == seen.first().copied(), || {
                    format!("{told:?}, {again:?}, {seen:?}")
                })?;
                world.nobody_at_work();
                intact(world.pool)?;
                let found = world.emptied()?;
                ensure(found.first().copied() == told.map(|e| e.0), || {
                    format!("{told:?} told, {found:?} found")
                })?;
                happened(crash, found, old, new)?;
                world.usable()
            });
        // A pop changes one word.
        suite.run(case.at_least(4));
    };
    let [peek, pop]: [fn(&Queue<Triple>) -> _; 2] =
        [|queue| queue.peek(), |queue| queue.pop().ok()];
    past("peek past a push", untold, peek, [&[1, 2], &[1, 2]]);
    past("pop past a push", untold, pop, [&[1, 2], &[2]]);
    past("pop what was told", told, pop, [&[1, 2], &[2]]);
    past(
        "peek behind what was told",
        told_and_gone,
        peek,
        [&[2], &[2]],
    );
    let lease = |queue: &Queue<Triple>| queue.lease().map(Lease::ack).ok();
    past("lease what was told", told, lease, [&[1, 2], &[2]]);
}

/// Each lease that its holder had counts, and none that it was killed before it had.
fn attempts(suite: &mut Suite) {
    const LEASES: u32 = 2;
    let counted = in_pool::case("queue/lease, attempts", || World::new(4, &[1]))
        .attach(World::enter)
        .operation(|world| {
            for attempt in 1..=LEASES {
                let lease = world.queue.lease().expect("an element");
                assert_eq!(lease.attempts(), attempt);
                progress(attempt.into());
            }
        })
        .verify(|world, crash| {
            world.pool.recover();
            intact(world.pool)?;
            let had = crash.progress as u32;
            let attempts = world.queue.try_lease().map(|lease| lease.attempts());
            let right = had + 1..=(had + 2).min(LEASES + 1);
            ensure(attempts.is_ok_and(|n| right.contains(&n)), || {
                format!("{attempts:?} in {right:?}")
            })?;
            let left = world.emptied()?;
            ensure(left == [1], || format!("{left:?}"))?;
            world.usable()
        });
    suite.run(counted);
}

fn leases(suite: &mut Suite) {
    suite.run(case(
        "lease",
        || World::new(4, &[1, 2, 3]),
        |queue| assert_eq!(queue.lease().expect("an element").0, 1),
        [&[1, 2, 3], &[1, 2, 3]],
    ));
    suite.run(case(
        "lease, kept",
        || World::new(4, &[1, 2, 3]),
        |queue| {
            std::mem::forget(queue.lease());
            std::mem::forget(queue.lease());
        },
        [&[1, 2, 3], &[1, 2, 3]],
    ));
    suite.run(case(
        "lease, acknowledged",
        || World::new(4, &[1, 2, 3]),
        |queue| assert_eq!(queue.lease().expect("an element").ack().0, 1),
        [&[1, 2, 3], &[2, 3]],
    ));
    attempts(suite);
    let all_leased = || {
        let world = World::new(66, &[]);
        (0..66).for_each(|n| world.push(&[n]));
        (0..64).for_each(|_| std::mem::forget(world.queue.lease().expect("an element")));
        world
    };
    suite.run(case_then(
        "lease, none left",
        all_leased,
        |queue| {
            let late = queue.lease_timeout(Duration::ZERO);
            assert_eq!(late.err(), Some(PopError::TimedOut));
        },
        |world, crash| {
            let none = world.queue.try_lease().err();
            ensure(none == Some(PopError::TooManyLeases), || {
                format!("{none:?}")
            })?;
            let [old, new]: [&[u64]; 2] = [&[64, 65]; 2];
            happened(crash, world.emptied()?, old, new)
        },
    ));
    let given_back = || {
        let world = World::new(4, &[1, 2, 3]);
        let queue = &world.queue;
        let (one, two) = (queue.lease(), queue.lease());
        drop((two, one));
        world
    };
    suite.run(case(
        "lease again",
        given_back,
        |queue| assert_eq!(queue.lease().expect("an element").ack().0, 1),
        [&[1, 2, 3], &[2, 3]],
    ));
    suite.run(case(
        "pop what came back",
        given_back,
        |queue| assert_eq!(queue.pop().expect("an element").0, 1),
        [&[1, 2, 3], &[2, 3]],
    ));
}

fn ends(suite: &mut Suite) {
    let closed = |world: &mut World, crash: &Crash| {
        let queue = &world.queue;
        ensure(queue.is_closed() || !crash.done(), || "not closed".into())?;
        if !queue.is_closed() {
            world.emptied()?;
            return world.usable();
        }
        let refused = queue.push(Triple::new(1)).map_err(|e| e.cause);
        ensure(refused == Err(PushRefusal::Closed), || {
            format!("{refused:?}")
        })?;
        let left = world.emptied()?;
        ensure(left == [1, 2] || left.is_empty(), || {
            format!("{left:?} left")
        })?;
        let end = world.queue.pop();
        ensure(end == Err(PopError::Closed), || format!("{end:?}"))
    };
    suite.run(case_then(
        "close",
        || World::new(4, &[1, 2]),
        |queue| queue.close(),
        closed,
    ));
    suite.run(
        case_then(
            "seal",
            || {
                let world = World::new(4, &[]);
                world.queue.close();
                world
            },
            |queue| assert_eq!(queue.pop(), Err(PopError::Closed)),
            closed,
        )
        .at_least(4),
    );
    let never_used = case_then(
        "seal, never used",
        || {
            let world = World::fresh(4);
            world.queue.close();
            world
        },
        |queue| assert_eq!(queue.pop(), Err(PopError::Closed)),
        closed,
    );
    suite.run(never_used.at_least(4));
    suite.run(
        in_pool::case("queue/destroy", || World::new(2, &[]))
            .attach(|world| {
                let queue = world.pool.create(Queue::unbounded()).expect("room");
                for n in 0..FEW {
                    queue.push(Triple::new(n)).expect("room");
                }
                drop(queue.lease());
                world.made = Some(queue);
            })
            .operation(|world| world.made = None)
            .verify(|world, _| {
                world.pool.recover();
                world.usable()
            }),
    );
}
