//! What containers are made of, as the original has it: blocks of a pool, mutexes, conditions.

use std::alloc::Layout;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use shmkit::{Condvar, Mutex, ReentrantMutex};

use crate::crew::Crew;
use crate::maps::pool;

const PAIRS: u64 = 1_000_000;
/// Round trips with sleeping.
const TRIPS: u64 = 5_000;

pub fn run(crew: &Crew, bench: &str) {
    match bench {
        "pool_4k" => blocks(crew, 4 << 10),
        "pool_64k" => blocks(crew, 64 << 10),
        "pool_1m" => blocks(crew, 1 << 20),
        // Ours tells who holds it already in any case.
        "mutex_normal" | "mutex_errorcheck" => {
            let count = pool().create(Mutex::new(0_u64)).expect("a mutex");
            crew.repeat(PAIRS, |_| *count.lock().expect("nobody dies") += 1);
        }
        "mutex_recursive" => {
            let count = pool().create(ReentrantMutex::new(AtomicU64::new(0)));
            let count = count.expect("a mutex");
            crew.repeat(PAIRS, |_| {
                let count = count.lock().expect("nobody dies");
                count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            });
        }
        "condition_round_trip" => round_trips(crew),
        other => panic!("{other}"),
    }
}

fn blocks(crew: &Crew, bytes: usize) {
    let pool = pool();
    let layout = Layout::from_size_align(bytes, 4096).expect("a layout");
    crew.repeat(PAIRS, |_| {
        let block = black_box(pool.allocate(layout).expect("room"));
        // SAFETY: the block of just before.
        unsafe { pool.deallocate(block.cast()) }.expect("a block");
    });
}

fn round_trips(crew: &Crew) {
    let pool = pool();
    let turn = pool.create(Mutex::new(0)).expect("a mutex");
    let called = [0, 1].map(|_| pool.create(Condvar::new()).expect("a condition"));
    crew.run(|me, gate| {
        gate.work(|| {
            let mut turn = turn.lock().expect("nobody dies");
            for _ in 0..TRIPS {
                while *turn != me {
                    turn = called[me].wait(turn).expect("nobody dies");
                }
                *turn = 1 - me;
                called[1 - me].notify_one();
            }
        });
        if me == 0 { TRIPS } else { 0 }
    });
}
