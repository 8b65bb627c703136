//! Blocks that one worker allocates and another one frees.

use crate::small::leave;
use crate::stage::{Random, Stage, give, take};

/// A server: a thousand blocks of 16 to 1000 bytes are replaced at random; after some time the
/// worker's thread ends, and a new one goes on with its blocks (Larson, Krishnan, 1998).
pub fn larson(stage: &Stage, worker: usize) {
    const LIVE: usize = 1000;
    struct Blocks(Vec<*mut u8>);
    // SAFETY: one thread after the other has them.
    unsafe impl Send for Blocks {}
    let mut blocks = Blocks((0..LIVE).map(|i| take(16 + i % 985)).collect());
    for generation in 0..40 {
        let thread = std::thread::spawn(move || {
            let mut blocks = blocks;
            let mut random = Random::new(worker + generation * 100);
            for _ in 0..100_000 {
                let place = &mut blocks.0[random.below(LIVE)];
                give(*place);
                *place = take(16 + random.below(985));
            }
            blocks
        });
        blocks = thread.join().expect("a worker");
    }
    leave(stage, worker, blocks.0.into_iter());
}

/// Producers and consumers: each worker gives its blocks to the next one, and frees what it gets.
pub fn xmalloc(stage: &Stage, worker: usize) {
    const RING: usize = 8192;
    let mut random = Random::new(worker);
    let next = (worker + 1) % stage.workers() * RING;
    let mine = worker * RING;
    let (mut given, mut got) = (0, 0);
    const COUNT: usize = 4_000_000;
    while given < COUNT || got < COUNT {
        let goal = (given + 64).min(COUNT);
        while given < goal {
            let block = take(16 + random.below(497));
            if !stage.put(next + given % RING, block) {
                give(block);
                break;
            }
            given += 1;
        }
        let before = got;
        while got < COUNT {
            let block = stage.swap(mine + got % RING, std::ptr::null_mut());
            if block.is_null() {
                break;
            }
            give(block);
            got += 1;
        }
        if got == before {
            std::thread::yield_now();
        }
    }
}

/// Batches of which a part is exchanged with the other workers' before it is freed.
pub fn sh8(stage: &Stage, worker: usize) {
    const BATCH: usize = 2000;
    let mut random = Random::new(worker);
    let mut live = Vec::with_capacity(BATCH);
    for round in 0..2400 {
        while live.len() < BATCH {
            let size = 16 + random.below([100, 400, 1000][round % 3]);
            live.extend((0..4).map(|_| take(size)));
        }
        for block in live.iter_mut().step_by(4) {
            *block = stage.swap(random.below(1024), *block);
        }
        match round % 2 {
            0 => live.drain(..).for_each(give),
            _ => live.drain(..).rev().for_each(give),
        }
    }
}

/// Workers that allocate much, keep some, exchange some, and end; others go on with what is left
/// (as the stress test of mimalloc does).
pub fn mstress(stage: &Stage, worker: usize) {
    for round in 0..12 {
        std::thread::scope(|s| {
            s.spawn(|| stress(stage, worker + round * 100));
        });
    }
}

fn stress(stage: &Stage, seed: usize) {
    const SHARED: usize = 1000;
    let mut random = Random::new(seed);
    let (mut live, mut kept) = (Vec::new(), Vec::new());
    for step in 0..60_000 {
        let size = match random.below(100) {
            0 => random.size(12),
            1..10 => random.size(9),
            _ => random.size(6),
        };
        live.push(take(size));
        if random.below(100) < 20 {
            kept.push(take(16 + random.below(300)));
        }
        if random.below(100) < 35 {
            let i = random.below(live.len());
            give(live.swap_remove(i));
        }
        if random.below(100) < 25 {
            let i = random.below(live.len().max(1));
            if let Some(block) = live.get_mut(i) {
                *block = stage.swap(random.below(SHARED), *block);
                if block.is_null() {
                    live.swap_remove(i);
                }
            }
        }
        if step % 10_000 == 9_999 {
            live.drain(..).for_each(give);
        }
    }
    live.into_iter().chain(kept).for_each(give);
}
