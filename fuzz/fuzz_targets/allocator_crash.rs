//! Operations of three participants on a small pool, any of whom is killed before any of its
//! writes: recovery, of which any may be killed before any of its writes too, the check, and a model of what must be there then.
//!
//! A killed allocation may leave its block allocated, known to nobody: it is counted as lost. A
//! killed free happened or did not. Everything else is as it was.
#![no_main]

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shmkit::testing::participants::Participant;
use shmkit::{AllocError, Pool, ReallocError};

#[derive(Arbitrary, Debug)]
struct Step {
    who: u8,
    /// Writes before its death, as [`few`] says.
    dies_after: Option<u8>,
    /// Writes of who recovers it, before that one's death.
    recovery_dies_after: Option<u8>,
    operation: Operation,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Allocate { size: u16, scale: u8, align: u8 },
    Fill { size: u16 },
    Free { which: u8 },
    FreeMany { from: u8, count: u8 },
    Reallocate { which: u8, size: u16, scale: u8 },
    Purge,
    Leave,
}

/// Most operations make less than 16 writes: most deaths are among those.
fn few(writes: u8) -> usize {
    usize::from(if writes < 192 { writes % 16 } else { writes })
}

struct World {
    pool: Pool,
    participants: [Participant; 3],
    /// Blocks by address: usable size, and the byte that they are filled with.
    model: BTreeMap<NonNull<u8>, (usize, u8)>,
    /// Bytes of blocks that only the dead knew of.
    lost: usize,
}

impl World {
    /// Each gets a slot, if it has none: who comes while somebody is dead recovers him, and is not killed in that.
    fn enter_all(&mut self) {
        for participant in &mut self.participants {
            participant.act(self.pool, None, || ()).unwrap();
        }
    }

    fn enter(&mut self, block: NonNull<u8>, layout: Layout) {
        let (start, usable) = (block.addr().get(), self.pool.usable_size(block).unwrap());
        assert!(start.is_multiple_of(layout.align()) && usable >= layout.size());
        if let Some((below, (size, _))) = self.model.range(..block).next_back() {
            assert!(below.addr().get() + size <= start);
        }
        if let Some((above, _)) = self.model.range(block..).next() {
            assert!(start + usable <= above.addr().get());
        }
        let byte = (start >> 4) as u8;
        // SAFETY: a new block of that many bytes.
        unsafe { block.write_bytes(byte, usable) };
        self.model.insert(block, (usable, byte));
    }

    fn verify(&self, block: NonNull<u8>) {
        let (size, byte) = self.model[&block];
        // SAFETY: a block of the model, filled when it was entered.
        let content = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
        assert!(content.iter().all(|&b| b == byte));
    }

    fn pick(&self, which: u8) -> Option<NonNull<u8>> {
        let len = self.model.len().max(1);
        self.model.keys().nth(usize::from(which) % len).copied()
    }

    /// Does something as a participant; after a death, recovers. `None` if it died.
    fn act<R>(&mut self, step: &Step, does: impl FnOnce(Pool) -> R) -> Option<R> {
        let pool = self.pool;
        let who = usize::from(step.who) % 3;
        let writes = step.dies_after.map(few);
        let done = self.participants[who].act(pool, writes, || does(pool));
        if done.is_none() {
            if let Some(writes) = step.recovery_dies_after {
                let first = &mut self.participants[(who + 1) % 3];
                // It may be done before.
                first.act(pool, Some(usize::from(writes)), || pool.recover());
            }
            let survivor = &mut self.participants[(who + 2) % 3];
            // Its search for a slot may find a dead one's first, and recover that.
            survivor.act(pool, None, || pool.recover()).unwrap();
            let report = pool.check_quiescent();
            assert!(report.is_ok(), "{report}");
        }
        done
    }

    /// Of a killed allocation: nothing, or a block for the layout, is lost.
    fn lose(&mut self, layout: Layout) {
        let known: usize = self.model.values().map(|(size, _)| size).sum();
        let lost = self.pool.stats().allocated - known - self.lost;
        let size = layout.size().next_multiple_of(layout.align()).max(16);
        let most = (size + size / 4 + 16).max(size.next_multiple_of(16 << 10));
        assert!(
            lost == 0 || (layout.size()..=most).contains(&lost),
            "{lost} of {layout:?}"
        );
        self.lost += lost;
    }

    fn allocate(&mut self, step: &Step, layout: Layout) -> bool {
        match self.act(step, |pool| pool.allocate(layout)) {
            Some(Ok(block)) => self.enter(block.cast(), layout),
            Some(Err(error)) => assert_eq!(error, AllocError::PoolFull),
            None => self.lose(layout),
        }
        !self.model.is_empty()
    }

    fn free(&mut self, step: &Step, block: NonNull<u8>) {
        self.verify(block);
        // SAFETY: nobody uses it any more.
        let freed = self.act(step, |pool| unsafe { pool.deallocate(block) });
        if let Some(result) = freed {
            result.unwrap();
        }
        if freed.is_none() && self.pool.usable_size(block).is_ok() {
            self.verify(block);
        } else {
            self.model.remove(&block);
        }
    }

    fn reallocate(&mut self, step: &Step, block: NonNull<u8>, new: Layout) {
        self.verify(block);
        let (size, byte) = self.model[&block];
        // SAFETY: nobody else uses it.
        match self.act(step, |pool| unsafe { pool.reallocate(block, new) }) {
            Some(Ok(moved)) => {
                let start = moved.cast::<u8>();
                // SAFETY: copied from the old block.
                let content =
                    unsafe { std::slice::from_raw_parts(start.as_ptr(), size.min(new.size())) };
                assert!(content.iter().all(|&b| b == byte));
                self.model.remove(&block);
                self.enter(start, new);
            }
            Some(Err(error)) => assert_eq!(error, ReallocError::Alloc(AllocError::PoolFull)),
            None => {
                match self.pool.usable_size(block) {
                    // It may have grown where it lies.
                    Ok(usable) => {
                        self.verify(block);
                        // SAFETY: a block of that many bytes.
                        unsafe { block.write_bytes(byte, usable) };
                        self.model.insert(block, (usable, byte));
                    }
                    Err(_) => {
                        self.model.remove(&block);
                    }
                }
                self.lose(new);
                if self.model.contains_key(&block) {
                    self.verify(block);
                }
            }
        }
    }

    fn apply(&mut self, step: &Step) {
        let layout = |size: u16, scale: u8, align: u8| {
            let size = usize::from(size) << (scale % 6);
            Layout::from_size_align(size, 1 << (align % 16)).unwrap()
        };
        match step.operation {
            Operation::Allocate { size, scale, align } => {
                self.allocate(step, layout(size, scale, align));
            }
            // Enough of one size for more than one word of a span.
            Operation::Fill { size } => {
                for _ in 0..70 {
                    self.allocate(step, layout(size % 2048, 0, 4));
                }
            }
            Operation::Free { which } => {
                if let Some(block) = self.pick(which) {
                    self.free(step, block);
                }
            }
            Operation::FreeMany { from, count } => {
                for _ in 0..count {
                    if let Some(block) = self.pick(from) {
                        self.free(step, block);
                    }
                }
            }
            Operation::Reallocate { which, size, scale } => {
                if let Some(block) = self.pick(which) {
                    self.reallocate(step, block, layout(size, scale, 4));
                }
            }
            Operation::Purge => {
                self.act(step, |pool| pool.purge().unwrap());
            }
            Operation::Leave => {
                let who = usize::from(step.who) % 3;
                self.participants[who].leave(self.pool);
            }
        }
        let known: usize = self.model.values().map(|(size, _)| size).sum();
        assert_eq!(self.pool.stats().allocated, known + self.lost);
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let pool = Pool::builder().max_size(8 << 20).create().unwrap();
    let mut world = World {
        pool,
        // SAFETY: what a killed one had is on the stack of its closure, and forgotten.
        participants: [(); 3].map(|()| unsafe { Participant::new() }),
        model: BTreeMap::new(),
        lost: 0,
    };
    world.enter_all();
    for step in &steps {
        world.apply(step);
    }
    let last = Step {
        who: 0,
        dies_after: None,
        recovery_dies_after: None,
        operation: Operation::Purge,
    };
    while let Some((&block, _)) = world.model.first_key_value() {
        world.free(&last, block);
    }
    world
        .participants
        .iter_mut()
        .for_each(|one| one.leave(pool));
    assert_eq!(pool.stats().allocated, world.lost);
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    // SAFETY: nothing refers to the pool.
    unsafe { pool.unmap() };
});
