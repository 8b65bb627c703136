//! Operations of two participants on a small pool against a model of it, checked after each.
#![no_main]

use std::alloc::Layout;
use std::ptr::NonNull;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shmkit::testing::participants::Participant;
use shmkit::{AllocError, FreeError, Pool, ReallocError};
use shmkit_fuzz::{Blocks, Shape, Steps, operations};

#[derive(Arbitrary, Debug)]
struct Step {
    who: bool,
    operation: Operation,
}

operations! {
    enum Operation {
        4: Allocate { shape: Shape },
        4: Free { which: u8 },
        2: FreeAgain { which: u8 },
        1: FreeAt { offset: u32 },
        2: Reallocate { which: u8, shape: Shape },
        1: Purge,
    }
}

struct World {
    pool: Pool,
    participants: [Participant; 2],
    model: Blocks,
    freed: Vec<NonNull<u8>>,
}

impl World {
    fn new(pool: Pool) -> Self {
        World {
            pool,
            // SAFETY: nobody is killed.
            participants: [(); 2].map(|()| unsafe { Participant::new() }),
            model: Blocks::new(pool),
            freed: Vec::new(),
        }
    }

    fn act<R>(&mut self, who: bool, does: impl FnOnce(Pool) -> R) -> R {
        let pool = self.pool;
        let who = &mut self.participants[usize::from(who)];
        who.act(pool, None, || does(pool)).unwrap()
    }

    fn deallocate(&mut self, who: bool, block: NonNull<u8>) -> Result<(), FreeError> {
        // SAFETY: nobody uses it any more, or it is refused by contract.
        self.act(who, |pool| unsafe { pool.deallocate(block) })
    }

    fn free(&mut self, who: bool, block: NonNull<u8>) {
        self.model.verify(block);
        self.model.remove(block);
        self.deallocate(who, block).unwrap();
    }

    fn reallocate(&mut self, who: bool, block: NonNull<u8>, new: Layout) {
        self.model.verify(block);
        let size = self.model.usable(block);
        // SAFETY: nobody else uses it.
        match self.act(who, |pool| unsafe { pool.reallocate(block, new) }) {
            Ok(moved) => {
                let (byte, moved) = (self.model.remove(block), moved.cast());
                self.model.assert_filled(moved, size.min(new.size()), byte);
                self.model.enter(moved, new);
            }
            Err(error) => {
                assert_eq!(error, ReallocError::Alloc(AllocError::PoolFull));
                self.model.verify(block);
            }
        }
    }

    fn apply(&mut self, &Step { who, operation }: &Step) {
        match operation {
            Operation::Allocate { shape } => {
                let layout = shape.layout();
                match self.act(who, |pool| pool.allocate(layout)) {
                    Ok(new) => self.model.enter(new.cast(), layout),
                    Err(error) => assert_eq!(error, AllocError::PoolFull),
                }
            }
            Operation::Free { which } => {
                if let Some(block) = self.model.pick(which) {
                    self.free(who, block);
                    self.freed.push(block);
                }
            }
            Operation::FreeAgain { which } => {
                let len = self.freed.len().max(1);
                if let Some(&block) = self.freed.get(usize::from(which) % len)
                    && !self.model.has(block)
                {
                    self.deallocate(who, block).unwrap_err();
                }
            }
            Operation::FreeAt { offset } => {
                let address = self.pool.base() + (40 << 30) + offset as usize % (3 << 20);
                let block = NonNull::new(std::ptr::with_exposed_provenance_mut(address)).unwrap();
                if !self.model.has(block) {
                    self.deallocate(who, block).unwrap_err();
                }
            }
            Operation::Reallocate { which, shape } => {
                if let Some(block) = self.model.pick(which) {
                    self.reallocate(who, block, shape.layout());
                }
            }
            Operation::Purge => {
                self.act(who, |pool| pool.purge().unwrap());
            }
        }
        let report = self.pool.check();
        assert!(report.is_ok(), "{report}");
        assert_eq!(self.pool.stats().allocated, self.model.bytes());
    }

    /// One of them frees what there is, and everybody leaves.
    fn end(mut self) {
        while let Some(block) = self.model.pick(0) {
            self.free(true, block);
        }
        self.participants
            .iter_mut()
            .for_each(|one| one.leave(self.pool, None).unwrap());
        assert_eq!(self.pool.stats().allocated, 0);
        let report = self.pool.check_quiescent();
        assert!(report.is_ok(), "{report}");
        // SAFETY: nothing refers to the pool.
        unsafe { self.pool.unmap() };
    }
}

fuzz_target!(|steps: Steps<Step>| {
    let mut world = World::new(Pool::builder().max_size(2 << 20).create().unwrap());
    for step in &steps.0 {
        world.apply(step);
    }
    world.end();
});
