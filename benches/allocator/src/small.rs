//! Small blocks, each worker by itself.

use crate::stage::{Random, Stage, give, take};

/// Blocks of one size: a hundred live ones, the oldest freed for each new one.
pub fn churn<const SIZE: usize>(stage: &Stage, worker: usize) {
    const LIVE: usize = 100;
    let mut live = [std::ptr::null_mut(); LIVE];
    for _ in 0..150_000 {
        for place in &mut live {
            give(*place);
            *place = take(SIZE);
        }
    }
    leave(stage, worker, live.into_iter());
}

/// Random sizes from 16 to 1024 bytes, random lifetimes: one of 8192 live blocks is replaced.
pub fn mix(stage: &Stage, worker: usize) {
    const LIVE: usize = 8192;
    let mut random = Random::new(worker);
    let mut live = vec![std::ptr::null_mut(); LIVE];
    for _ in 0..6_000_000 {
        let place = &mut live[random.below(LIVE)];
        give(*place);
        *place = take(random.size(6));
    }
    leave(stage, worker, live.into_iter());
}

/// Batches of thousands of blocks of up to 1000 bytes, small ones oftener; each batch is freed in
/// its order, in the opposite one, or every other block first.
pub fn sh6(stage: &Stage, worker: usize) {
    const BATCH: usize = 4000;
    let mut random = Random::new(worker);
    let mut live = Vec::with_capacity(BATCH);
    for round in 0..2400 {
        while live.len() < BATCH {
            let size = 16 + random.below(1 + random_limit(round));
            // A few neighbours of one size, as the nodes of a structure are.
            live.extend((0..8).map(|_| take(size)));
        }
        match round % 3 {
            0 => live.drain(..).for_each(give),
            1 => live.drain(..).rev().for_each(give),
            _ => {
                live.iter().step_by(2).for_each(|&block| give(block));
                live.drain(..).skip(1).step_by(2).for_each(give);
            }
        }
    }
    leave(stage, worker, live.into_iter());
}

fn random_limit(round: usize) -> usize {
    [64, 250, 1000][round / 3 % 3]
}

/// One small block a worker, written over and over: slow if two workers' blocks share a line.
pub fn cache_scratch(stage: &Stage, worker: usize) {
    for _ in 0..120_000 {
        let block = take(16);
        for i in 0..1000_u64 {
            // SAFETY: within the block.
            unsafe { block.add(8).cast::<u64>().write_volatile(i) };
        }
        // SAFETY: the last byte of the block, which `give` looks at.
        unsafe { block.add(15).write(16) };
        give(block);
    }
    leave(stage, worker, std::iter::empty());
}

/// Leaves the last blocks on the stage, to be freed by somebody else when all is measured.
pub fn leave(stage: &Stage, worker: usize, blocks: impl Iterator<Item = *mut u8>) {
    for (i, block) in blocks.enumerate() {
        give(stage.swap(worker * 16_384 + i, block));
    }
}
