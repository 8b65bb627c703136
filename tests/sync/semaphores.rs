//! Semaphores and their permits.

use std::io::pipe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmkit::process::{SpawnError, scope};
use shmkit::sync::{AcquireError, AddPermitsError};
use shmkit::{Semaphore, Shared};

use super::{LONG, kill, listen, shared, tell_and_hang, until, until_asleep};
use crate::common::Random;

fn of(permits: u32) -> Shared<Semaphore> {
    shared(Semaphore::new(permits))
}

/// All permits are there, which recovery sees to if need be.
#[track_caller]
fn all_come_back(semaphore: &Shared<Semaphore>, permits: u32) {
    until("all permits are back", || {
        semaphore.pool().recover();
        semaphore.available_permits() >= permits
    });
    assert_eq!(semaphore.available_permits(), permits);
}

pub fn no_more_than_there_are() {
    const PERMITS: u64 = 2;
    let world = shared((
        Semaphore::new(PERMITS as u32),
        AtomicU64::new(0),
        AtomicU64::new(0),
    ));
    let (semaphore, inside, turns) = &*world;
    scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..5000 {
                    let permit = semaphore.acquire().unwrap();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < PERMITS);
                    turns.fetch_add(1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            })
            .unwrap();
        }
    });
    assert_eq!(turns.load(Ordering::SeqCst), 20_000);
    assert_eq!(semaphore.available_permits(), PERMITS as u32);
}

pub fn killed_holders_give_back() {
    let semaphore = of(5);
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let holder = s
            .spawn(|| {
                let _permits = [0; 5].map(|_| semaphore.acquire().unwrap());
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        assert_eq!(
            semaphore.try_acquire().unwrap_err(),
            AcquireError::WouldBlock
        );
        // Nobody recovers but who waits.
        let waiters = [0; 2].map(|_| {
            s.spawn(|| semaphore.acquire_timeout(LONG).map(drop).is_ok())
                .unwrap()
        });
        for waiter in &waiters {
            until_asleep(waiter.id().pid());
        }
        kill(holder);
        for waiter in waiters {
            assert!(waiter.join().unwrap());
        }
    });
    all_come_back(&semaphore, 5);
}

pub fn killed_while_blocked() {
    let semaphore = of(0);
    scope(|s| {
        for _ in 0..10 {
            let blocked =
                [0; 2].map(|_| s.spawn(|| semaphore.acquire().map(drop).is_ok()).unwrap());
            for child in &blocked {
                until_asleep(child.id().pid());
            }
            let [victim, other] = blocked;
            kill(victim);
            // One permit, and the wake for it, are not the dead one's.
            semaphore.add_permits(1).unwrap();
            assert!(other.join().unwrap());
            all_come_back(&semaphore, 1);
            semaphore.acquire().unwrap().forget();
        }
    });
    all_come_back(&semaphore, 0);
}

pub fn killed_at_random() {
    let world = shared((Semaphore::new(3), AtomicU64::new(0)));
    let (semaphore, turns) = &*world;
    let mut random = Random::new(1);
    scope(|s| {
        let worker = || -> u8 {
            loop {
                let first = semaphore.acquire().unwrap();
                let second = semaphore.try_acquire();
                turns.fetch_add(1, Ordering::SeqCst);
                drop(first);
                drop(second);
            }
        };
        for _ in 0..60 {
            let children = [0; 3].map(|_| s.spawn(worker).unwrap());
            let goal = turns.load(Ordering::SeqCst) + random.next() % 2000;
            until("progress", || turns.load(Ordering::SeqCst) > goal);
            for child in children {
                kill(child);
            }
            until("all permits are back", || {
                world.pool().recover();
                semaphore.available_permits() == 3
            });
        }
    });
}

pub fn forgotten_permits() {
    let semaphore = of(3);
    semaphore.acquire().unwrap().forget();
    assert_eq!(semaphore.available_permits(), 2);
    let (reader, writer) = pipe().unwrap();
    scope(|s| {
        let victim = s
            .spawn(|| {
                semaphore.acquire().unwrap().forget();
                let _held = semaphore.acquire().unwrap();
                tell_and_hang(&writer);
            })
            .unwrap();
        listen(&reader);
        kill(victim);
    });
    all_come_back(&semaphore, 1);
    semaphore.add_permits(2).unwrap();
    assert_eq!(semaphore.available_permits(), 3);
}

pub fn semaphore_errors() {
    let semaphore = of(100);
    let mut permits = Vec::new();
    let error = loop {
        match semaphore.acquire() {
            Ok(permit) => permits.push(permit),
            Err(error) => break error,
        }
    };
    assert_eq!(error, AcquireError::TooManyHeld);
    assert_eq!(semaphore.available_permits() as usize, 100 - permits.len());
    drop(permits);
    assert_eq!(semaphore.available_permits(), 100);
    let room = Semaphore::MAX_PERMITS - 100;
    assert_eq!(
        semaphore.add_permits(room + 1),
        Err(AddPermitsError::Overflow)
    );
    assert_eq!(semaphore.available_permits(), 100);
    semaphore.add_permits(room).unwrap();
    drop(semaphore.acquire().unwrap());
    assert_eq!(semaphore.available_permits(), Semaphore::MAX_PERMITS);

    let none = of(0);
    let limit = Duration::from_millis(30);
    let began = Instant::now();
    assert_eq!(
        none.acquire_timeout(limit).unwrap_err(),
        AcquireError::TimedOut
    );
    assert!(began.elapsed() >= limit);
    let outside = Semaphore::new(1);
    assert_eq!(outside.acquire().unwrap_err(), AcquireError::NotInPool);
    assert_eq!(outside.add_permits(1), Err(AddPermitsError::NotInPool));
}

pub fn a_permit_refuses_a_spawn() {
    let semaphore = of(2);
    let permit = semaphore.acquire().unwrap();
    scope(|s| {
        assert!(matches!(s.spawn(|| ()), Err(SpawnError::GuardsHeld { .. })));
        permit.forget();
        s.spawn(|| drop(semaphore.acquire().unwrap())).unwrap();
    });
    assert_eq!(semaphore.available_permits(), 1);
}
