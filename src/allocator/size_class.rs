//! Block sizes: steps of 16 bytes to 128, then four steps a doubling to 32 KiB. Larger blocks are
//! runs of slices.
//!
//! A span holds at most 1024 blocks (16 bitmap words) and at least eight. An owner's first span
//! of a class is a small one, so that one block of each class does not take megabytes.

use std::alloc::Layout;

use crate::layout::arena::SLICE;

/// How many size classes there are.
pub(crate) const CLASSES: usize = 40;
/// The largest block that lies in a span.
pub(crate) const MAX_BLOCK: usize = 32 << 10;
/// The most bytes of a span.
pub(crate) const MAX_SPAN: usize = 256 << 10;
/// The most blocks of a span.
pub(crate) const MAX_BLOCKS: usize = 1024;

/// One size class.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    /// Bytes a block.
    pub(crate) size: u32,
    /// Slices of an owner's first span.
    pub(crate) first_slices: u32,
    /// Slices of its further spans.
    pub(crate) slices: u32,
    /// 2^32 divided by the size, rounded up: see [`divide`].
    pub(crate) reciprocal: u64,
}

/// An offset divided by the size that has the reciprocal, if nothing remains: one multiplication.
///
/// The product's upper half is the quotient, and its lower half is below the reciprocal exactly
/// if nothing remains (Lemire, Kaser, Kurz, *Faster remainder by direct computation*, 2019): as long
/// as the error of the reciprocal, which is below the size, times the quotient is below 2^32 / size.
/// That is so for every offset below [`MAX_SPAN`], as a test shows of each.
#[inline(always)]
pub(crate) const fn divide(offset: u64, reciprocal: u64) -> Option<u32> {
    debug_assert!(offset < MAX_SPAN as u64);
    let product = offset.wrapping_mul(reciprocal);
    if product as u32 as u64 >= reciprocal {
        return None;
    }
    Some((product >> 32) as u32)
}

pub(crate) static TABLE: [Class; CLASSES] = {
    let mut table = [Class {
        size: 0,
        first_slices: 0,
        slices: 0,
        reciprocal: 0,
    }; CLASSES];
    let mut i = 0;
    while i < CLASSES {
        table[i] = class(i);
        i += 1;
    }
    table
};

const fn class(index: usize) -> Class {
    let size = size_of_class(index);
    let slices = if size <= 48 {
        size / 16
    } else if size <= 8 << 10 {
        4
    } else {
        size.div_ceil(2048).next_power_of_two()
    };
    let first_slices = (2 * size).div_ceil(SLICE);
    assert!(slices * SLICE / size >= 8 && slices * SLICE <= MAX_SPAN);
    assert!(first_slices <= slices && slices * SLICE / size <= MAX_BLOCKS);
    Class {
        size: size as u32,
        first_slices: first_slices as u32,
        slices: slices as u32,
        reciprocal: (1_u64 << 32).div_ceil(size as u64),
    }
}

const fn size_of_class(index: usize) -> usize {
    if index < 8 {
        (index + 1) * 16
    } else {
        let doubling = (index - 8) / 4;
        let step = (index - 8) % 4;
        (128 << doubling) + (step + 1) * (32 << doubling)
    }
}

/// The class of each size up to [`MAX_BLOCK`], by the size in steps of 16 bytes.
static CLASS_OF: [u8; MAX_BLOCK / 16 + 1] = {
    let mut classes = [0; MAX_BLOCK / 16 + 1];
    let (mut step, mut class) = (1, 0);
    while step < classes.len() {
        if step * 16 > TABLE[class].size as usize {
            class += 1;
        }
        classes[step] = class as u8;
        step += 1;
    }
    classes
};

/// The class of the smallest block that holds `size` bytes, which are at most [`MAX_BLOCK`].
#[inline(always)]
fn class_of_size(size: usize) -> usize {
    CLASS_OF[(size + 15) >> 4] as usize
}

/// The class for a layout, or `None` if it takes a run.
#[inline(always)]
pub(crate) fn class_of(layout: Layout) -> Option<usize> {
    if is_plain(layout) {
        return Some(class_of_size(layout.size()));
    }
    class_of_aligned(layout)
}

/// True if the size alone says the class.
#[inline(always)]
pub(crate) fn is_plain(layout: Layout) -> bool {
    layout.align() <= 16 && layout.size() <= MAX_BLOCK
}

/// A block is aligned to what divides its size, up to a slice: spans start at slices.
#[cold]
fn class_of_aligned(layout: Layout) -> Option<usize> {
    let size = layout
        .size()
        .max(1)
        .checked_next_multiple_of(layout.align())?;
    if size > MAX_BLOCK || layout.align() > SLICE {
        return None;
    }
    (class_of_size(size)..CLASSES)
        .find(|&c| (TABLE[c].size as usize).is_multiple_of(layout.align()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 1..=MAX_BLOCK {
            let class = class_of_size(size);
            assert!(TABLE[class].size as usize >= size, "{size}");
            assert!(
                class == 0 || (TABLE[class - 1].size as usize) < size,
                "{size}"
            );
        }
        assert_eq!(TABLE[CLASSES - 1].size as usize, MAX_BLOCK);
    }

    #[test]
    fn the_reciprocal_divides() {
        for class in &TABLE {
            let size = u64::from(class.size);
            for offset in 0..MAX_SPAN as u64 {
                let exact = offset.is_multiple_of(size).then_some(offset / size);
                let quotient = divide(offset, class.reciprocal).map(u64::from);
                assert_eq!(quotient, exact, "{offset} by {size}");
            }
        }
    }

    #[test]
    fn aligned_layouts_get_aligned_sizes() {
        for shift in 5..=14 {
            for size in [1, 17, 100, 1000, 5000, 20_000] {
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                if let Some(class) = class_of(layout) {
                    assert!(TABLE[class].size as usize >= size);
                    assert!(TABLE[class].size.is_multiple_of(1 << shift));
                }
            }
        }
    }
}
