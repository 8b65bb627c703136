//! Random operations, compared with a model: which blocks there are, and what is in them.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use shmkit::{AllocError, FreeError, ReallocError};

use super::common::{TestPool, layout, try_free};
use super::sizes::class_sizes;

#[derive(Clone, Debug)]
enum Operation {
    Allocate { size: usize, align: usize },
    Free(prop::sample::Index),
    Reallocate(prop::sample::Index, usize, usize),
    FreeAgain(prop::sample::Index),
    FreeInside(prop::sample::Index, usize),
    Purge,
}

struct Block {
    size: usize,
    byte: u8,
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0..300usize,
        4 => (prop::sample::select(class_sizes()), -1..=1isize)
            .prop_map(|(size, by)| size.saturating_add_signed(by)),
        2 => 300..70_000usize,
        1 => 70_000..(3usize << 20),
    ]
}

fn alignments() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..=4u32, 2 => 5..=14u32, 1 => 15..=20u32].prop_map(|shift| 1 << shift)
}

fn operations() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let any_index = any::<prop::sample::Index>;
    prop_oneof![
        10 => (sizes(), alignments()).prop_map(|(size, align)| Allocate { size, align }),
        7 => any_index().prop_map(Free),
        3 => (any_index(), sizes(), alignments()).prop_map(|(i, s, a)| Reallocate(i, s, a)),
        1 => any_index().prop_map(FreeAgain),
        1 => (any_index(), 1..100_000usize).prop_map(|(i, offset)| FreeInside(i, offset)),
        1 => Just(Purge),
    ]
}

/// What should be in the pool.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<NonNull<u8>, Block>,
    freed: Vec<NonNull<u8>>,
    count: u8,
}

impl Model {
    fn pick(&self, index: prop::sample::Index) -> Option<NonNull<u8>> {
        let keys: Vec<_> = self.blocks.keys().copied().collect();
        (!keys.is_empty()).then(|| keys[index.index(keys.len())])
    }

    /// A new block: where nobody else's is, and filled to what was asked for.
    fn enter(&mut self, pool: &TestPool, new: NonNull<[u8]>, align: usize) {
        let (size, block) = (new.len(), new.cast::<u8>());
        let start = block.addr().get();
        let usable = pool.usable_size(block).unwrap();
        assert!(usable >= size && start.is_multiple_of(align));
        if let Some((below, _)) = self.blocks.range(..block).next_back() {
            let end = below.addr().get() + pool.usable_size(*below).unwrap();
            assert!(end <= start, "overlap with the block below");
        }
        if let Some((above, _)) = self.blocks.range(block..).next() {
            assert!(
                start + usable <= above.addr().get(),
                "overlap with the one above"
            );
        }
        self.count = self.count.wrapping_add(1);
        // SAFETY: a new block of that many bytes.
        unsafe { block.write_bytes(self.count, usable) };
        let byte = self.count;
        self.blocks.insert(block, Block { size: usable, byte });
        self.freed.retain(|&freed| freed != block);
    }

    /// Takes a block out of the model, whose content must be as it was left.
    fn leave(&mut self, block: NonNull<u8>) -> Block {
        let known = self.blocks.remove(&block).unwrap();
        // SAFETY: a block of the model, of that many bytes.
        let content = unsafe { std::slice::from_raw_parts(block.as_ptr(), known.size) };
        assert!(content.iter().all(|&b| b == known.byte), "content changed");
        known
    }

    fn apply(&mut self, pool: &TestPool, operation: &Operation) {
        match *operation {
            Operation::Allocate { size, align } => match pool.allocate(layout(size, align)) {
                Ok(new) => self.enter(pool, new, align),
                Err(error) => assert_eq!(error, AllocError::PoolFull),
            },
            Operation::Free(index) => {
                if let Some(block) = self.pick(index) {
                    self.leave(block);
                    try_free(**pool, block).unwrap();
                    self.freed.push(block);
                }
            }
            Operation::Reallocate(index, size, align) => {
                if let Some(block) = self.pick(index) {
                    self.reallocate(pool, block, size, align);
                }
            }
            Operation::FreeAgain(index) => {
                if !self.freed.is_empty() {
                    let block = self.freed[index.index(self.freed.len())];
                    // Its place may be part of another block, or of a span of another size, by now.
                    let refused = try_free(**pool, block).unwrap_err();
                    assert!(matches!(
                        refused,
                        FreeError::NotAllocated | FreeError::Interior
                    ));
                }
            }
            Operation::FreeInside(index, offset) => {
                if let Some(block) = self.pick(index) {
                    let size = self.blocks[&block].size;
                    // SAFETY: stays within the block.
                    let inside = unsafe { block.add(1 + offset % (size - 1)) };
                    assert_eq!(try_free(**pool, inside), Err(FreeError::Interior));
                }
            }
            Operation::Purge => {
                pool.purge().unwrap();
            }
        }
    }

    fn reallocate(&mut self, pool: &TestPool, block: NonNull<u8>, size: usize, align: usize) {
        let known = self.leave(block);
        // SAFETY: the model's block, which nobody else uses.
        match unsafe { pool.reallocate(block, layout(size, align)) } {
            Ok(new) => {
                let kept = known.size.min(size);
                // SAFETY: the new block has at least these bytes, copied from the old one.
                let content =
                    unsafe { std::slice::from_raw_parts(new.cast::<u8>().as_ptr(), kept) };
                assert!(content.iter().all(|&b| b == known.byte), "content lost");
                if new.cast() != block {
                    self.freed.push(block);
                }
                self.enter(pool, new, align);
            }
            Err(error) => {
                assert!(matches!(error, ReallocError::Alloc(AllocError::PoolFull)));
                self.blocks.insert(block, known);
            }
        }
    }

    fn matches(&self, pool: &TestPool) {
        let stats = pool.stats();
        let expected: usize = self.blocks.values().map(|b| b.size).sum();
        assert_eq!(stats.allocated, expected);
        assert_eq!(stats.allocated + stats.free, stats.total);
    }
}

fn sequence(operations: &[Operation], max: usize, check_each: bool) {
    let pool = TestPool::with(|b| b.max_size(max));
    let mut model = Model::default();
    for operation in operations {
        model.apply(&pool, operation);
        if check_each {
            let report = pool.check();
            assert!(report.is_ok(), "{report}");
            model.matches(&pool);
        }
    }
    model.matches(&pool);
    super::common::assert_sound(*pool);
    while let Some((&block, _)) = model.blocks.first_key_value() {
        model.leave(block);
        try_free(*pool, block).unwrap();
    }
    let stats = pool.stats();
    assert_eq!((stats.allocated, stats.free), (0, stats.total));
    super::common::assert_sound(*pool);
}

fn explore(cases: u32, length: usize, max: usize, check_each: bool) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(
        &prop::collection::vec(operations(), 1..length),
        |operations| {
            std::panic::catch_unwind(|| sequence(&operations, max, check_each)).map_err(|panic| {
                let message = panic.downcast_ref::<String>().cloned();
                TestCaseError::fail(message.unwrap_or_else(|| "see above".into()))
            })
        },
    );
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

pub fn random_operations() {
    explore(200, 60, 8 << 20, true);
}

pub fn long_random_operations() {
    explore(30, 2000, 32 << 20, false);
}
