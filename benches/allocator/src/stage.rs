//! What the workers of a pattern share, as threads or as processes: a gate, and places for blocks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::gate::{self, Gate};
use crate::memory;

pub use crate::gate::Random;

/// How many blocks can lie on the stage.
pub const PLACES: usize = 1 << 16;

/// The shared memory of a run.
pub struct Stage(&'static Shared);

struct Shared {
    gate: Gate,
    places: [AtomicU64; PLACES],
}

impl Stage {
    /// A stage for so many workers and the one who waits for them.
    pub fn new(workers: usize) -> Self {
        // SAFETY: atomic integers, for which zero is a value.
        let shared = unsafe { gate::shared::<Shared>() };
        shared.gate.open(workers);
        Stage(shared)
    }

    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    pub fn workers(&self) -> usize {
        self.gate().workers()
    }

    /// Puts a block into a place, or nothing (null); what was there.
    pub fn swap(&self, place: usize, block: *mut u8) -> *mut u8 {
        let address = block.expose_provenance() as u64;
        let before = self.0.places[place % PLACES].swap(address, Ordering::AcqRel);
        std::ptr::with_exposed_provenance_mut(before as usize)
    }

    /// Puts a block into a place that is empty. False if it is not.
    pub fn put(&self, place: usize, block: *mut u8) -> bool {
        let place = &self.0.places[place % PLACES];
        let empty = place.load(Ordering::Acquire) == 0;
        if empty {
            place.store(block.expose_provenance() as u64, Ordering::Release);
        }
        empty
    }

    /// Frees what lies there.
    pub fn clear(&self) {
        for place in 0..PLACES {
            give(self.swap(place, std::ptr::null_mut()));
        }
    }
}

/// A block of `size` bytes, at least 16, marked at both ends.
#[inline]
pub fn take(size: usize) -> *mut u8 {
    let block = memory::allocate(size);
    assert!(!block.is_null());
    // SAFETY: a block of that size, at least 16.
    unsafe {
        block.cast::<usize>().write(size);
        block.add(size - 1).write(size as u8);
    }
    block
}

/// Frees a block of [`take`], if it is one, and looks at its marks.
#[inline]
pub fn give(block: *mut u8) {
    if !block.is_null() {
        // SAFETY: a block of `take`, which its holder gives up.
        unsafe {
            let size = block.cast::<usize>().read();
            assert_eq!(block.add(size - 1).read(), size as u8);
            memory::free(block);
        }
    }
}

impl Random {
    /// Small sizes often, large ones seldom: each doubling from 16 to `16 << doublings` as often
    /// as the next.
    #[inline]
    pub fn size(&mut self, doublings: usize) -> usize {
        let base = 16 << self.below(doublings);
        base + self.below(base)
    }
}
