//! Barriers.

use std::io::pipe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::scope;
use shmkit::sync::BarrierError;
use shmkit::{Barrier, Shared};

use super::{LONG, count, kill, listen, shared, tell, tell_and_hang, until, until_asleep};

fn of(parties: u32) -> Shared<Barrier> {
    shared(Barrier::new(parties))
}

pub fn phases_by_processes() {
    const PARTIES: u64 = 4;
    const PHASES: u64 = 300;
    let world = shared((Barrier::new(PARTIES as u32), AtomicU64::new(0)));
    let (barrier, steps) = &*world;
    scope(|s| {
        for _ in 0..PARTIES {
            s.spawn(|| {
                for phase in 1..=PHASES {
                    count(steps);
                    barrier.wait().unwrap();
                    let seen = steps.load(Ordering::SeqCst);
                    assert!(seen >= phase * PARTIES, "{seen} in phase {phase}");
                    barrier.wait().unwrap();
                    // Nobody is a phase ahead before the second wait of all.
                    let seen = steps.load(Ordering::SeqCst);
                    assert!(seen <= (phase + 1) * PARTIES, "{seen} in phase {phase}");
                }
            })
            .unwrap();
        }
    });
    assert_eq!(steps.load(Ordering::SeqCst), PARTIES * PHASES);
}

/// They break it for all, and not a round that has ended or that they are not in.
pub fn who_gives_up_breaks_it() {
    let barrier = of(3);
    for limit in [0, 20].map(Duration::from_millis) {
        scope(|s| {
            let told = || barrier.wait().err() == Some(BarrierError::Broken);
            let waits = s.spawn(told).unwrap();
            until_asleep(waits.id().pid());
            let began = Instant::now();
            let gives_up = || barrier.wait_timeout(limit).err() == Some(BarrierError::TimedOut);
            let gives_up = s.spawn(gives_up).unwrap();
            for party in [gives_up, waits] {
                until("told", || party.is_finished());
                assert!(party.join().unwrap());
            }
            assert!(began.elapsed() >= limit);
        });
        assert!(barrier.is_broken());
        let late = barrier.wait_timeout(limit);
        assert_eq!(late, Err(BarrierError::Broken));
        barrier.reset();
    }
    let world = shared((Barrier::new(2), AtomicU64::new(0)));
    let (barrier, leaders) = &*world;
    scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for limit in [LONG, Duration::MAX].into_iter().cycle().take(100) {
                    if barrier.wait_timeout(limit).unwrap().is_leader() {
                        count(leaders);
                    }
                }
            })
            .unwrap();
        }
    });
    assert_eq!(leaders.load(Ordering::SeqCst), 100);
}

pub fn one_leader() {
    const PARTIES: u32 = Barrier::MAX_PARTIES;
    let world = shared((Barrier::new(PARTIES), AtomicU64::new(0)));
    let (barrier, leaders) = &*world;
    std::thread::scope(|threads| {
        for _ in 0..PARTIES {
            threads.spawn(|| {
                for _ in 0..10 {
                    if barrier.wait().unwrap().is_leader() {
                        count(leaders);
                    }
                }
            });
        }
    });
    assert_eq!(leaders.load(Ordering::SeqCst), 10);
    let alone = of(1);
    assert!(alone.wait().unwrap().is_leader());
    assert!(alone.wait().unwrap().is_leader());
}

pub fn killed_before_waiting() {
    let barrier = of(3);
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let victim = s
            .spawn(|| {
                barrier.wait().unwrap();
                tell_and_hang(&writer);
            })
            .unwrap();
        let others = [0; 2].map(|_| {
            s.spawn(|| {
                barrier.wait().unwrap();
                let second = barrier.wait();
                // It stays so.
                (
                    second.err() == Some(BarrierError::Broken),
                    barrier.wait().is_err(),
                )
            })
            .unwrap()
        });
        listen(&reader);
        for other in &others {
            until_asleep(other.id().pid());
        }
        kill(victim);
        for other in others {
            assert_eq!(other.join().unwrap(), (true, true));
        }
    });
    assert!(barrier.is_broken());
}

pub fn killed_while_waiting() {
    let barrier = of(3);
    scope(|s| {
        let waiters = [0; 2].map(|_| s.spawn(|| barrier.wait().is_err()).unwrap());
        for waiter in &waiters {
            until_asleep(waiter.id().pid());
        }
        let [victim, other] = waiters;
        kill(victim);
        assert!(other.join().unwrap());
    });
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    barrier.reset();
    scope(|s| {
        for _ in 0..3 {
            s.spawn(|| barrier.wait().map(|_| ()).unwrap()).unwrap();
        }
    });
    assert!(!barrier.is_broken());
}

/// Nobody is left who waits with it, and it has arrived: the last one to come ends the round.
pub fn the_only_one_who_waits_is_killed() {
    let barrier = of(2);
    scope(|s| {
        let victim = s.spawn(|| barrier.wait().is_ok()).unwrap();
        until_asleep(victim.id().pid());
        kill(victim);
        assert!(barrier.wait().unwrap().is_leader());
        // It is missed in the next one.
        assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    });
}

pub fn ended_before_waiting() {
    let barrier = of(2);
    scope(|s| {
        let child = s.spawn(|| barrier.wait().map(|_| ()).unwrap()).unwrap();
        barrier.wait().unwrap();
        child.join().unwrap();
        // It has left in order, but it will not come.
        assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    });
}

pub fn a_new_group() {
    let barrier = of(2);
    for _ in 0..100 {
        scope(|s| {
            let children = [0; 2].map(|_| {
                s.spawn(|| {
                    barrier.wait().unwrap();
                    barrier.wait().unwrap();
                })
                .unwrap()
            });
            for child in children {
                child.join().unwrap();
            }
        });
    }
    // Killed all together, they are missed by nobody either.
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let children = [0; 2].map(|_| {
            s.spawn(|| {
                barrier.wait().unwrap();
                tell_and_hang(&writer);
            })
            .unwrap()
        });
        listen(&reader);
        listen(&reader);
        for child in children {
            kill(child);
        }
        let child = s.spawn(|| barrier.wait().map(|_| ()).unwrap()).unwrap();
        barrier.wait().unwrap();
        child.join().unwrap();
    });
}

pub fn reset_wakes() {
    let barrier = of(2);
    scope(|s| {
        let child = s
            .spawn(|| barrier.wait().err() == Some(BarrierError::Broken))
            .unwrap();
        until_asleep(child.id().pid());
        barrier.reset();
        assert!(child.join().unwrap());
        let child = s.spawn(|| barrier.wait().map(|_| ()).unwrap()).unwrap();
        barrier.wait().unwrap();
        child.join().unwrap();
    });
}

/// Who waits is told, and who comes later; what one knows that nobody else does.
pub fn who_never_came_is_missed() {
    let barrier = of(3);
    let told = || barrier.wait().err() == Some(BarrierError::Broken);
    scope(|s| {
        let waits = s.spawn(told).unwrap();
        until_asleep(waits.id().pid());
        let dies = s.spawn::<_, ()>(|| std::process::abort()).unwrap();
        dies.join().unwrap_err();
        barrier.abort();
        let late = s.spawn(told).unwrap();
        for party in [waits, late] {
            until("told", || party.is_finished());
            assert!(party.join().unwrap());
        }
    });
    barrier.abort();
    assert!(barrier.is_broken());
    // As new: who was told is no party any more.
    barrier.reset();
    scope(|s| {
        for _ in 0..3 {
            s.spawn(|| barrier.wait().map(|_| ()).unwrap()).unwrap();
        }
    });
    assert!(!barrier.is_broken());
}

pub fn more_threads_than_parties() {
    // Nine threads meet in pairs: as many leaders as pairs, and one is left over.
    let world = shared((
        Barrier::new(2),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
    ));
    let (barrier, leaders, returned, refused) = &*world;
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let children = [0; 9].map(|_| {
            s.spawn(|| {
                let leader = match barrier.wait() {
                    Ok(result) => result.is_leader(),
                    Err(_) => {
                        count(refused);
                        return;
                    }
                };
                if leader {
                    count(leaders);
                }
                count(returned);
                // Stays, as its end would break the barrier for the one left over.
                listen(&reader);
            })
            .unwrap()
        });
        until("four pairs", || returned.load(Ordering::SeqCst) == 8);
        assert_eq!(leaders.load(Ordering::SeqCst), 4);
        assert!(!barrier.is_broken());
        // It may not have arrived yet.
        barrier.abort();
        until("the one left over", || refused.load(Ordering::SeqCst) == 1);
        for _ in 0..8 {
            tell(&writer);
        }
        for child in children {
            child.join().unwrap();
        }
    });
    assert_eq!(returned.load(Ordering::SeqCst), 8);
}

pub fn barrier_errors() {
    for parties in [0, Barrier::MAX_PARTIES + 1, u32::MAX] {
        assert_eq!(of(parties).wait(), Err(BarrierError::Parties));
    }
    assert_eq!(Barrier::new(1).wait(), Err(BarrierError::NotInPool));
}
