//! A model of the blocks of a pool: each is filled, and lies in no other.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use arbitrary::Arbitrary;
use shmkit::Pool;

/// A layout in two bytes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Shape {
    size: u8,
    fit: u8,
}

impl Shape {
    /// Up to 512 KiB; mostly such as several steps ask for.
    pub fn layout(self) -> Layout {
        let (unit, scale) = (usize::from(self.size % 8), self.size / 8);
        let size = ((1 + unit) << 4) << (scale % 13);
        // Mostly of no special alignment, and as large as a block can be.
        let align = if self.fit < 192 { 4 } else { self.fit % 18 };
        let less = if self.fit < 128 { 0 } else { self.fit % 17 };
        Layout::from_size_align(size - usize::from(less), 1 << align).unwrap()
    }
}

pub struct Blocks {
    pool: Pool,
    /// By address: usable size, and the byte that they are filled with.
    known: BTreeMap<NonNull<u8>, (usize, u8)>,
}

impl Blocks {
    pub fn new(pool: Pool) -> Self {
        let known = BTreeMap::new();
        Blocks { pool, known }
    }

    /// A block that is new, or larger than it was.
    pub fn enter(&mut self, block: NonNull<u8>, layout: Layout) {
        let (start, usable) = (block.addr().get(), self.pool.usable_size(block).unwrap());
        assert!(start.is_multiple_of(layout.align()) && usable >= layout.size());
        if let Some((below, (size, _))) = self.known.range(..block).next_back() {
            assert!(below.addr().get() + size <= start);
        }
        if let Some((above, _)) = self.known.range(block..).find(|(at, _)| **at != block) {
            assert!(start + usable <= above.addr().get());
        }
        let byte = (start >> 4) as u8;
        // SAFETY: a block of that many bytes.
        unsafe { block.write_bytes(byte, usable) };
        self.known.insert(block, (usable, byte));
    }

    /// A block that nobody is to use any more; the byte that it is full of.
    pub fn remove(&mut self, block: NonNull<u8>) -> u8 {
        self.known.remove(&block).unwrap().1
    }

    pub fn has(&self, block: NonNull<u8>) -> bool {
        self.known.contains_key(&block)
    }

    /// The block is as it was when it was entered.
    pub fn verify(&self, block: NonNull<u8>) {
        let (size, byte) = self.known[&block];
        self.assert_filled(block, size, byte);
    }

    /// So many bytes are all the same.
    pub fn assert_filled(&self, block: NonNull<u8>, size: usize, byte: u8) {
        // SAFETY: a block of the pool of so many bytes at least, that nobody writes to.
        let content = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
        // One comparison, however long.
        assert!(content.first().is_none_or(|&first| first == byte));
        assert!(size == 0 || content[1..] == content[..size - 1]);
    }

    pub fn usable(&self, block: NonNull<u8>) -> usize {
        self.known[&block].0
    }

    /// One of them, if there are any.
    pub fn pick(&self, which: u8) -> Option<NonNull<u8>> {
        self.pick_some(which, 1).pop()
    }

    /// So many, or all, one behind the other.
    pub fn pick_some(&self, from: u8, count: usize) -> Vec<NonNull<u8>> {
        let len = self.known.len();
        let from = usize::from(from) % len.max(1);
        let all = self.known.keys().cycle().skip(from);
        all.take(count.min(len)).copied().collect()
    }

    /// How many bytes they have.
    pub fn bytes(&self) -> usize {
        self.known.values().map(|(size, _)| size).sum()
    }
}
