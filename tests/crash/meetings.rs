//! Semaphores, barriers, events: every operation, killed after every change.

use std::time::Duration;

use shmkit::sync::{AcquireError, BarrierError, WaitError};
use shmkit::{Barrier, Event, Semaphore};

use super::engine::{Crash, Doomed, Suite};
use super::in_pool::{self, ensure};
use super::sync::{World, case, killed_in, nothing, says, slot};

pub fn cases(suite: &mut Suite) {
    semaphores(suite);
    barriers(suite);
    events(suite);
}

/// All `permits` are there, can be taken and given back, and no more.
fn has(semaphore: &Semaphore, permits: u32) -> Result<(), String> {
    let all = |when| {
        let available = semaphore.available_permits();
        ensure(available == permits, || {
            format!("{available} permits {when} use, not {permits}")
        })
    };
    all("before")?;
    let taken: Vec<_> = (0..permits).map(|_| semaphore.acquire()).collect();
    ensure(taken.iter().all(Result::is_ok), || format!("{taken:?}"))?;
    let more = semaphore.try_acquire().map(|_| ());
    ensure(more == Err(AcquireError::WouldBlock), || {
        format!("{more:?}")
    })?;
    drop(taken);
    all("after")
}

/// As many as before, or if it may have happened `changed`; exactly that when it had returned.
fn has_either(s: &Semaphore, crash: &Crash, old: u32, changed: u32) -> Result<(), String> {
    let unchanged = s.available_permits() == old && !crash.finished;
    has(s, if unchanged { old } else { changed })
}

fn semaphores(suite: &mut Suite) {
    suite.run(case(
        "semaphore, acquire and give back",
        || Semaphore::new(2),
        nothing,
        |semaphore| drop(semaphore.acquire().expect("a permit")),
        |semaphore, _| has(semaphore, 2),
    ));
    suite.run(case(
        "semaphore, two at once",
        || Semaphore::new(3),
        nothing,
        |semaphore| {
            let first = semaphore.acquire().expect("a permit");
            let second = semaphore.acquire().expect("a permit");
            drop(first);
            let third = semaphore.acquire().expect("a permit");
            drop(second);
            drop(third);
        },
        |semaphore, _| has(semaphore, 3),
    ));
    suite.run(case(
        "semaphore, acquire and forget",
        || Semaphore::new(2),
        nothing,
        |semaphore| semaphore.acquire().expect("a permit").forget(),
        |semaphore, crash| has_either(semaphore, crash, 2, 1),
    ));
    suite.run(
        case(
            "semaphore, add_permits",
            || Semaphore::new(2),
            nothing,
            |semaphore| semaphore.add_permits(3).expect("room"),
            |semaphore, crash| has_either(semaphore, crash, 2, 5),
        )
        .at_least(3),
    );
    suite.run(case(
        "semaphore, add_permits with one held",
        || Semaphore::new(2),
        nothing,
        |semaphore| {
            let permit = semaphore.acquire().expect("a permit");
            semaphore.add_permits(3).expect("room");
            drop(permit);
        },
        |semaphore, crash| has_either(semaphore, crash, 2, 5),
    ));
    suite.run(case(
        "semaphore, try_acquire with none left",
        || Semaphore::new(1),
        nothing,
        |semaphore| {
            let permit = semaphore.acquire().expect("a permit");
            let second = semaphore.try_acquire().map(|_| ());
            assert_eq!(second, Err(AcquireError::WouldBlock));
            drop(permit);
        },
        |semaphore, _| has(semaphore, 1),
    ));
    // How often it looks depends on the clock, so no two runs are alike.
    suite.run(
        case(
            "semaphore, acquire_timeout, and give back to who may sleep",
            || Semaphore::new(1),
            nothing,
            |semaphore| {
                let permit = semaphore.acquire().expect("a permit");
                let late = semaphore.acquire_timeout(Duration::from_millis(500));
                assert_eq!(late.map(|_| ()), Err(AcquireError::TimedOut));
                drop(permit);
            },
            |semaphore, _| has(semaphore, 1),
        )
        .without_second_order()
        .without_real_kills(),
    );
    suite.run(
        case(
            "semaphore, recover a dead holder's",
            || Semaphore::new(3),
            |semaphore| {
                killed_in(
                    semaphore,
                    |s| std::mem::forget((s.acquire(), s.acquire())),
                    |_| false,
                );
            },
            |semaphore| {
                // After a sleep of a tick a waiter does what is to be done for the dead.
                let one = semaphore.acquire().expect("a permit");
                let two = semaphore.acquire().expect("the dead one's");
                drop((one, two));
            },
            |semaphore, _| has(semaphore, 3),
        )
        .without_real_kills(),
    );
    suite.run(
        in_pool::case("sync/recover several dead at once", || {
            let world = World::new(Semaphore::new(3), nothing);
            let hangs = |semaphore: &Semaphore| {
                slot(world.pool);
                std::mem::forget(semaphore.acquire());
                loop {
                    std::thread::park();
                }
            };
            let threads = |semaphore: &Semaphore| {
                std::thread::scope(|threads| {
                    for _ in 0..3 {
                        threads.spawn(|| hangs(semaphore));
                    }
                });
            };
            killed_in(&*world.object, threads, |s| s.available_permits() == 0);
            world
        })
        .operation(|world| {
            // Without a slot: who gets one has recovered all of them before.
            assert_eq!(world.pool.recover().threads, 3);
            has(&world.object, 3).expect("the permits of all");
        })
        .verify(|world, _| {
            world.pool.recover();
            world.intact("after recovery")?;
            has(&world.object, 3)
        })
        .without_real_kills(),
    );
}

/// A barrier of one is waited for.
fn meets(barrier: &Barrier) {
    assert!(barrier.wait().expect("all").is_leader());
}

/// Nobody waits, and it is not broken.
fn is_at_rest(barrier: &Barrier) -> Result<(), String> {
    ensure(says(barrier, "arrived: 0, broken: false"), || {
        format!("{barrier:?}")
    })
}

/// Who waits at a broken one is told; it is reset then. Whether it was broken.
fn mended(barrier: &Barrier) -> Result<bool, String> {
    let was_broken = barrier.is_broken();
    if was_broken {
        let result = barrier.wait().err();
        ensure(result == Some(BarrierError::Broken), || {
            format!("{result:?}")
        })?;
        barrier.reset();
    }
    Ok(was_broken)
}

/// A barrier of three with one killed as soon as it is counted.
fn party_killed(barrier: &Barrier) {
    let mut party = Doomed::new(|| (), || _ = barrier.wait());
    party.go_on_until(|| says(barrier, "arrived: 1"));
    party.die();
}

fn barriers(suite: &mut Suite) {
    let waits = |barrier: &Barrier, _: &Crash| {
        for _ in 0..3 {
            let result = barrier.wait().map(|result| result.is_leader());
            ensure(result == Ok(true), || format!("{result:?}"))?;
        }
        ensure(!barrier.is_broken(), || "broken".into())
    };
    suite.run(case(
        "barrier, the first wait",
        || Barrier::new(1),
        nothing,
        meets,
        waits,
    ));
    suite.run(case(
        "barrier, two waits after others'",
        || Barrier::new(1),
        meets,
        |barrier| {
            meets(barrier);
            meets(barrier);
        },
        waits,
    ));
    suite.run(
        case(
            "barrier, reset",
            || Barrier::new(1),
            meets,
            Barrier::reset,
            waits,
        )
        .at_least(3),
    );
    suite.run(
        case(
            "barrier, abort",
            || Barrier::new(1),
            meets,
            Barrier::abort,
            move |barrier, crash| {
                let broken = mended(barrier)?;
                ensure(broken || !crash.finished, || "not broken".into())?;
                waits(barrier, crash)
            },
        )
        .at_least(3),
    );
    // How often it looks before it finds the dead one out depends on the clock.
    suite.run(
        case(
            "barrier, wait for the dead",
            || Barrier::new(3),
            party_killed,
            |barrier| assert_eq!(barrier.wait().err(), Some(BarrierError::Broken)),
            |barrier, crash| {
                let counted = says(barrier, "arrived: 2");
                match barrier.wait() {
                    // The third to arrive, after two that are dead now.
                    Ok(result) if counted && !crash.finished && result.is_leader() => {}
                    Err(BarrierError::Broken) => {}
                    other => return Err(format!("{other:?}")),
                }
                barrier.reset();
                is_at_rest(barrier)
            },
        )
        .without_real_kills(),
    );
    // The same, for how often it looks before its time is up.
    suite.run(
        case(
            "barrier, wait in vain",
            || Barrier::new(2),
            nothing,
            |barrier| {
                let result = barrier.wait_timeout(Duration::from_millis(500));
                assert_eq!(result.err(), Some(BarrierError::TimedOut));
            },
            |barrier, crash| {
                let counted = says(barrier, "arrived: 1, broken: false");
                let broken = barrier.is_broken();
                ensure(broken || !crash.finished, || "not broken".into())?;
                match barrier.wait_timeout(Duration::from_millis(1)) {
                    // The last to arrive.
                    Ok(result) if counted && result.is_leader() => {}
                    Err(BarrierError::TimedOut) if !counted && !broken => {}
                    // It died with a mark that is not counted, if it has not broken it.
                    Err(BarrierError::Broken) if !counted => {}
                    other => return Err(format!("{other:?}")),
                }
                barrier.reset();
                is_at_rest(barrier)
            },
        )
        .without_second_order()
        .without_real_kills(),
    );
    suite.run(
        case(
            "barrier, reset of a broken one",
            || Barrier::new(3),
            |barrier| {
                party_killed(barrier);
                assert_eq!(barrier.wait().err(), Some(BarrierError::Broken));
            },
            Barrier::reset,
            |barrier, crash| {
                let broken = mended(barrier)?;
                ensure(!(broken && crash.finished), || "not reset".into())?;
                is_at_rest(barrier)
            },
        )
        .at_least(3),
    );
}

/// It can be set, waited for and cleared; how it was found.
fn event_works(event: &Event) -> Result<bool, String> {
    let was = event.is_set();
    ensure(event.clear() == was, || "two minds".into())?;
    let waited = event.wait_timeout(Duration::from_millis(1));
    ensure(waited == Err(WaitError::TimedOut), || format!("{waited:?}"))?;
    event.set();
    let waited = event.wait();
    ensure(waited.is_ok(), || format!("{waited:?}"))?;
    Ok(was)
}

fn events(suite: &mut Suite) {
    suite.run(case(
        "event, set and clear",
        Event::new,
        nothing,
        |event| {
            event.set();
            event.set();
            assert!(event.clear());
            event.set();
        },
        |event, crash| {
            let was = event_works(event)?;
            ensure(was || !crash.finished, || "not set".into())
        },
    ));
    // How often it looks depends on the clock, so no two runs are alike.
    suite.run(
        case(
            "event, wait_timeout",
            Event::new,
            nothing,
            |event| {
                let waited = event.wait_timeout(Duration::from_millis(500));
                assert_eq!(waited, Err(WaitError::TimedOut));
            },
            |event, _| ensure(!event_works(event)?, || "set by nobody".into()),
        )
        .without_second_order()
        .without_real_kills(),
    );
}
