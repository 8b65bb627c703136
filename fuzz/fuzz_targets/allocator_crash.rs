//! Operations of three participants on a small pool, any of whom is killed before any of its
//! writes: recovery, of which any may be killed before any of its writes too, the check, and a model of what must be there then.
//!
//! A killed allocation may leave its block allocated, known to nobody: it is counted as lost. A
//! killed free happened or did not. Everything else is as it was.
#![no_main]

use std::alloc::Layout;
use std::ptr::NonNull;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use shmkit::testing::participants::Participant;
use shmkit::{AllocError, Pool, ReallocError};
use shmkit_fuzz::{Blocks, Shape, Steps, operations, writes};

#[derive(Debug)]
struct Step {
    who: usize,
    /// Writes before its death.
    dies: Option<usize>,
    /// Writes of who recovers it, before that one's death.
    recovery_dies: Option<usize>,
    operation: Operation,
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let first = usize::from(u8::arbitrary(input)?);
        let (once, twice) = (first % 8 > 4, first % 8 > 5);
        let dies = once.then(|| writes(input)).transpose()?;
        // A recovery makes some fifty writes before it comes to the dead one's memory.
        let recovery_dies = twice.then(|| input.int_in_range(0..=127)).transpose()?;
        Ok(Step {
            who: first / 8 % 3,
            dies,
            recovery_dies,
            operation: input.arbitrary()?,
        })
    }
}

operations! {
    enum Operation {
        /// One or several.
        6: Allocate { shape: Shape, count: u8 },
        /// One or several that lie side by side.
        6: Free { from: u8, count: u8 },
        2: Reallocate { which: u8, shape: Shape },
        1: Purge,
        1: Leave,
    }
}

/// One as often as several.
fn some(count: u8) -> usize {
    usize::from(count).saturating_sub(127).max(1)
}

struct World {
    pool: Pool,
    participants: [Participant; 3],
    model: Blocks,
    /// Bytes of blocks that only the dead knew of.
    lost: usize,
}

impl World {
    fn new(pool: Pool) -> Self {
        // SAFETY: what a killed one had is on the stack of its closure, and forgotten.
        let mut participants = [(); 3].map(|()| unsafe { Participant::new() });
        // Each gets a slot: who comes while somebody is dead recovers him, and is not killed in that.
        for participant in &mut participants {
            participant.act(pool, None, || ()).unwrap();
        }
        World {
            pool,
            participants,
            model: Blocks::new(pool),
            lost: 0,
        }
    }

    /// Does something as a participant; after a death, recovers. `None` if it died.
    fn act<R>(&mut self, step: &Step, does: impl FnOnce(Pool) -> R) -> Option<R> {
        let pool = self.pool;
        let done = self.participants[step.who].act(pool, step.dies, || does(pool));
        if done.is_none() {
            self.recover(step);
        }
        done
    }

    fn recover(&mut self, step: &Step) {
        let pool = self.pool;
        if step.recovery_dies.is_some() {
            let first = &mut self.participants[(step.who + 1) % 3];
            // It may be done before.
            first.act(pool, step.recovery_dies, || pool.recover());
        }
        let survivor = &mut self.participants[(step.who + 2) % 3];
        // Its search for a slot may find a dead one's first, and recover that.
        survivor.act(pool, None, || pool.recover()).unwrap();
        let report = pool.check_quiescent();
        assert!(report.is_ok(), "{report}");
    }

    /// Of a killed allocation: nothing, or a block for the layout, is lost.
    fn lose(&mut self, layout: Layout) {
        let lost = self.pool.stats().allocated - self.model.bytes() - self.lost;
        let size = layout.size().next_multiple_of(layout.align()).max(16);
        let most = (size + size / 4 + 16).max(size.next_multiple_of(16 << 10));
        assert!(
            lost == 0 || (layout.size()..=most).contains(&lost),
            "{lost} of {layout:?}"
        );
        self.lost += lost;
    }

    fn allocate(&mut self, step: &Step, layout: Layout, count: usize) {
        let mut blocks: Vec<NonNull<u8>> = Vec::new();
        let done = self.act(step, |pool| {
            (0..count).try_for_each(|_| {
                blocks.push(pool.allocate(layout)?.cast());
                Ok(())
            })
        });
        for block in blocks {
            self.model.enter(block, layout);
        }
        match done {
            Some(result) => assert!(matches!(result, Ok(()) | Err(AllocError::PoolFull))),
            None => self.lose(layout),
        }
    }

    fn free(&mut self, step: &Step, blocks: &[NonNull<u8>]) {
        for &block in blocks {
            self.model.verify(block);
        }
        let mut freed = 0;
        let done = self.act(step, |pool| {
            for &block in blocks {
                // SAFETY: nobody uses it any more.
                unsafe { pool.deallocate(block) }.unwrap();
                freed += 1;
            }
        });
        if done.is_none() && self.pool.usable_size(blocks[freed]).is_err() {
            freed += 1;
        }
        for &block in &blocks[..freed] {
            self.model.remove(block);
        }
    }

    fn reallocate(&mut self, step: &Step, block: NonNull<u8>, new: Layout) {
        self.model.verify(block);
        let size = self.model.usable(block);
        // SAFETY: nobody else uses it.
        match self.act(step, |pool| unsafe { pool.reallocate(block, new) }) {
            Some(Ok(moved)) => {
                let byte = self.model.remove(block);
                let moved = moved.cast();
                self.model.assert_filled(moved, size.min(new.size()), byte);
                self.model.enter(moved, new);
            }
            Some(Err(error)) => assert_eq!(error, ReallocError::Alloc(AllocError::PoolFull)),
            None => {
                match self.pool.usable_size(block) {
                    // It may have grown where it lies.
                    Ok(usable) => {
                        self.model.verify(block);
                        let usable = Layout::from_size_align(usable, 1).unwrap();
                        self.model.enter(block, usable);
                    }
                    Err(_) => {
                        self.model.remove(block);
                    }
                }
                self.lose(new);
            }
        }
    }

    fn apply(&mut self, step: &Step) {
        match step.operation {
            Operation::Allocate { shape, count } => {
                self.allocate(step, shape.layout(), some(count));
            }
            Operation::Free { from, count } => {
                self.free(step, &self.model.pick_some(from, some(count)));
            }
            Operation::Reallocate { which, shape } => {
                if let Some(block) = self.model.pick(which) {
                    self.reallocate(step, block, shape.layout());
                }
            }
            Operation::Purge => {
                self.act(step, |pool| pool.purge().unwrap());
            }
            Operation::Leave => {
                if self.participants[step.who]
                    .leave(self.pool, step.dies)
                    .is_none()
                {
                    self.recover(step);
                }
            }
        }
        let stats = self.pool.stats();
        assert_eq!(stats.allocated, self.model.bytes() + self.lost);
    }

    /// Everybody frees what there is, and leaves.
    fn end(mut self) {
        let last = Step {
            who: 0,
            dies: None,
            recovery_dies: None,
            operation: Operation::Purge,
        };
        self.free(&last, &self.model.pick_some(0, usize::MAX));
        self.participants
            .iter_mut()
            .for_each(|one| one.leave(self.pool, None).unwrap());
        assert_eq!(self.pool.stats().allocated, self.lost);
        let report = self.pool.check_quiescent();
        assert!(report.is_ok(), "{report}");
        // SAFETY: nothing refers to the pool.
        unsafe { self.pool.unmap() };
    }
}

fuzz_target!(|steps: Steps<Step>| {
    let pool = Pool::builder().max_size(2 << 20).create().unwrap();
    let mut world = World::new(pool);
    for step in &steps.0 {
        world.apply(step);
    }
    world.end();
});
