//! Large blocks, and blocks that grow.

use crate::memory;
use crate::small::leave;
use crate::stage::{Random, Stage, give, take};

/// Vectors that grow by half, from 16 bytes to 256 KiB, four at a time.
pub fn realloc(stage: &Stage, worker: usize) {
    for _ in 0..1500 {
        let mut vectors = [16; 4].map(|size| (take(size), size));
        while vectors[0].1 < 256 << 10 {
            for (block, size) in &mut vectors {
                let new = *size + *size / 2;
                // SAFETY: a block of `take`; the new one has `new` bytes.
                unsafe {
                    let moved = memory::reallocate(*block, new);
                    assert!(!moved.is_null());
                    moved.cast::<usize>().write(new);
                    moved.add(new - 1).write(new as u8);
                    (*block, *size) = (moved, new);
                }
            }
        }
        vectors.into_iter().for_each(|(block, _)| give(block));
    }
    leave(stage, worker, std::iter::empty());
}

/// Blocks of 32 KiB to 4 MiB, sixteen live ones replaced at random; a byte a page is written.
pub fn large(stage: &Stage, worker: usize) {
    let mut random = Random::new(worker);
    let mut live = [std::ptr::null_mut(); 16];
    for _ in 0..20_000 {
        let place = &mut live[random.below(16)];
        give(*place);
        let base = (32 << 10) << random.below(7);
        let size = base + random.below(base);
        *place = take(size);
        for at in (4096..size - 1).step_by(4096) {
            // SAFETY: within the block.
            unsafe { place.add(at).write(1) };
        }
    }
    leave(stage, worker, live.into_iter());
}
