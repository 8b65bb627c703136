//! Operations on a small pool against a model of it, checked after each.
#![no_main]

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shmkit::{AllocError, Pool};

#[derive(Arbitrary, Debug)]
enum Operation {
    Allocate { size: u16, scale: u8, align: u8 },
    Free { which: u8 },
    FreeAgain { which: u8 },
    FreeAt { offset: u32 },
    Reallocate { which: u8, size: u16, scale: u8 },
    Purge,
}

/// Blocks by address: usable size, and the byte that they are filled with.
type Model = BTreeMap<NonNull<u8>, (usize, u8)>;

fn layout(size: u16, scale: u8, align: u8) -> Layout {
    let size = usize::from(size) << (scale % 6);
    Layout::from_size_align(size, 1 << (align % 18)).unwrap()
}

fn pick(model: &Model, which: u8) -> Option<NonNull<u8>> {
    let len = model.len().max(1);
    model.keys().nth(usize::from(which) % len).copied()
}

fn enter(pool: Pool, model: &mut Model, new: NonNull<[u8]>, layout: Layout) {
    let block = new.cast::<u8>();
    let (start, usable) = (block.addr().get(), pool.usable_size(block).unwrap());
    assert!(start.is_multiple_of(layout.align()) && usable >= layout.size());
    if let Some((below, (size, _))) = model.range(..block).next_back() {
        assert!(below.addr().get() + size <= start);
    }
    if let Some((above, _)) = model.range(block..).next() {
        assert!(start + usable <= above.addr().get());
    }
    let byte = (start >> 4) as u8;
    // SAFETY: a new block of that many bytes.
    unsafe { block.write_bytes(byte, usable) };
    model.insert(block, (usable, byte));
}

fn leave(model: &mut Model, block: NonNull<u8>) -> u8 {
    let (size, byte) = model.remove(&block).unwrap();
    // SAFETY: a block of the model, filled when it was entered.
    let content = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
    assert!(content.iter().all(|&b| b == byte));
    byte
}

fn apply(pool: Pool, model: &mut Model, freed: &mut Vec<NonNull<u8>>, operation: &Operation) {
    match *operation {
        Operation::Allocate { size, scale, align } => {
            let layout = layout(size, scale, align);
            match pool.allocate(layout) {
                Ok(new) => enter(pool, model, new, layout),
                Err(error) => assert_eq!(error, AllocError::PoolFull),
            }
        }
        Operation::Free { which } => {
            if let Some(block) = pick(model, which) {
                leave(model, block);
                // SAFETY: nobody uses it any more.
                unsafe { pool.deallocate(block) }.unwrap();
                freed.push(block);
            }
        }
        Operation::FreeAgain { which } => {
            let len = freed.len().max(1);
            if let Some(&block) = freed.get(usize::from(which) % len)
                && !model.contains_key(&block)
            {
                // SAFETY: refused by contract.
                unsafe { pool.deallocate(block) }.unwrap_err();
            }
        }
        Operation::FreeAt { offset } => {
            let address = pool.base() + (40 << 30) + offset as usize % (9 << 20);
            let block = NonNull::new(std::ptr::with_exposed_provenance_mut(address)).unwrap();
            if !model.contains_key(&block) {
                // SAFETY: refused by contract.
                unsafe { pool.deallocate(block) }.unwrap_err();
            }
        }
        Operation::Reallocate { which, size, scale } => {
            if let Some(block) = pick(model, which) {
                let old = model[&block];
                let byte = leave(model, block);
                let layout = layout(size, scale, 4);
                // SAFETY: nobody else uses it.
                match unsafe { pool.reallocate(block, layout) } {
                    Ok(new) => {
                        let kept = old.0.min(layout.size());
                        let start = new.cast::<u8>().as_ptr();
                        // SAFETY: copied from the old block.
                        let content = unsafe { std::slice::from_raw_parts(start, kept) };
                        assert!(content.iter().all(|&b| b == byte));
                        enter(pool, model, new, layout);
                    }
                    Err(_) => {
                        model.insert(block, old);
                    }
                }
            }
        }
        Operation::Purge => {
            pool.purge().unwrap();
        }
    }
}

fuzz_target!(|operations: Vec<Operation>| {
    let pool = Pool::builder().max_size(8 << 20).create().unwrap();
    let (mut model, mut freed) = (Model::new(), Vec::new());
    for operation in &operations {
        apply(pool, &mut model, &mut freed, operation);
        let report = pool.check();
        assert!(report.is_ok(), "{report}");
        let expected: usize = model.values().map(|(size, _)| size).sum();
        assert_eq!(pool.stats().allocated, expected);
    }
    while let Some((&block, _)) = model.first_key_value() {
        leave(&mut model, block);
        // SAFETY: as above.
        unsafe { pool.deallocate(block) }.unwrap();
    }
    assert_eq!(pool.stats().allocated, 0);
    let report = pool.check_quiescent();
    assert!(report.is_ok(), "{report}");
    // SAFETY: nothing refers to the pool.
    unsafe { pool.unmap() };
});
