//! What the workers of a pattern share, as threads or as processes: a gate, and places for blocks.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory;

/// How many blocks can lie on the stage.
pub const PLACES: usize = 1 << 16;

/// The shared memory of a run.
pub struct Stage(&'static Shared);

struct Shared {
    workers: AtomicU64,
    /// Who has arrived at the gate, of all times together.
    arrived: AtomicU64,
    /// When the first worker began and the last one ended, in nanoseconds.
    begun: AtomicU64,
    ended: AtomicU64,
    places: [AtomicU64; PLACES],
}

impl Stage {
    /// A stage for so many workers and the one who waits for them.
    pub fn new(workers: usize) -> Self {
        // SAFETY: a new mapping, zeroed, which is a valid `Shared`, and stays.
        let shared = unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(memory, libc::MAP_FAILED);
            &*memory.cast::<Shared>()
        };
        shared.workers.store(workers as u64, Ordering::Relaxed);
        shared.begun.store(u64::MAX, Ordering::Relaxed);
        Stage(shared)
    }

    /// Does a worker's work, between two gates, and notes when.
    pub fn work(&self, work: impl FnOnce()) {
        self.wait();
        self.0.begun.fetch_min(now(), Ordering::Relaxed);
        work();
        self.0.ended.fetch_max(now(), Ordering::Relaxed);
        self.wait();
    }

    /// Seconds from the first beginning to the last end.
    pub fn seconds(&self) -> f64 {
        let ended = self.0.ended.load(Ordering::Relaxed);
        (ended - self.0.begun.load(Ordering::Relaxed)) as f64 / 1e9
    }

    pub fn workers(&self) -> usize {
        self.0.workers.load(Ordering::Relaxed) as usize
    }

    /// Waits for all workers and the one who waits for them.
    pub fn wait(&self) {
        let parties = self.workers() as u64 + 1;
        let number = self.0.arrived.fetch_add(1, Ordering::AcqRel);
        let round = number / parties;
        let mut spins = 0;
        while self.0.arrived.load(Ordering::Acquire) / parties == round {
            // Who waits long leaves the cores to the others.
            spins += 1;
            if spins < 10_000 {
                spin_loop();
            } else {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
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

fn now() -> u64 {
    // SAFETY: the structure is the kernel's to fill.
    unsafe {
        let mut time = std::mem::zeroed::<libc::timespec>();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
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

/// A generator of pseudo-random numbers: xorshift64* (Vigna, 2016).
pub struct Random(u64);

impl Random {
    pub fn new(seed: usize) -> Self {
        Random(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1))
    }

    #[inline]
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (number * n as u64 >> 32) as usize
    }

    /// Small sizes often, large ones seldom: each doubling from 16 to `16 << doublings` as often
    /// as the next.
    #[inline]
    pub fn size(&mut self, doublings: usize) -> usize {
        let base = 16 << self.below(doublings);
        base + self.below(base)
    }
}
