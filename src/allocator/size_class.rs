//! Block sizes: steps of 16 bytes up to 128, then four steps for each doubling up to 32 KiB. Larger
//! blocks are runs of slices.
//!
//! A span holds at most 1024 blocks (16 bitmap words) and at least eight. An owner's first span of
//! a class is a small one, so that one block of each class does not take megabytes.

use std::alloc::Layout;

use crate::layout::arena::SLICE;

/// How many size classes there are.
pub(crate) const CLASSES: usize = 40;
/// The largest block that lies in a span.
const MAX_BLOCK: usize = 32 << 10;
/// The most bytes of a span.
const MAX_SPAN: usize = 256 << 10;
/// The most blocks of a span.
pub(crate) const MAX_BLOCKS: usize = 1024;

/// One size class.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    /// Bytes per block.
    pub(crate) size: u32,
    /// Slices of an owner's first span.
    pub(crate) first_slices: u32,
    /// Slices of its further spans.
    pub(crate) slices: u32,
    /// The inverse of the size: see [`divide`].
    pub(crate) inverse: u64,
}

/// The number of the block that begins at an offset, or a number that no block of a span has: one
/// multiplication and one rotation, and a comparison with the number of blocks then tells which it
/// is.
///
/// `inverse` is that of the size's odd factor modulo 2^64, `shift` the exponent of its factor of
/// two. So this maps each 64-bit number to a different one, and the multiples of the size to their
/// quotients: no other offset, however far away, gets a number as small as theirs (Granlund,
/// Montgomery, *Division by invariant integers using multiplication*, 1994, section 9).
#[inline(always)]
pub(crate) const fn divide(offset: u64, inverse: u64, shift: u32) -> u64 {
    offset.wrapping_mul(inverse).rotate_right(shift)
}

/// The inverse of the odd factor of a size.
const fn inverse_of(size: u64) -> u64 {
    let odd = size >> size.trailing_zeros();
    // Right in the lowest five bits; each round doubles their number.
    let mut inverse = odd.wrapping_mul(3) ^ 2;
    let mut round = 0;
    while round < 4 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

pub(crate) static TABLE: [Class; CLASSES] = {
    let mut table = [Class {
        size: 0,
        first_slices: 0,
        slices: 0,
        inverse: 0,
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
        inverse: inverse_of(size as u64),
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

/// The class of each size up to [`MAX_BLOCK`], by the size in steps of 16 bytes. Not a static,
/// whose address another crate would have to look up.
const CLASS_OF: &[u8; MAX_BLOCK / 16 + 1] = &{
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

/// The class for a layout, or `None` if it needs a run.
#[inline(always)]
pub(crate) fn class_of(layout: Layout) -> Option<usize> {
    if is_plain(layout) {
        return Some(class_of_size(layout.size()));
    }
    class_of_aligned(layout)
}

/// True if the size alone determines the class.
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
    fn the_inverse_divides() {
        for class in &TABLE {
            let size = u64::from(class.size);
            let blocks = MAX_SPAN as u64 / size;
            let by = |offset| divide(offset, class.inverse, class.size.trailing_zeros());
            for offset in 0..MAX_SPAN as u64 {
                let quotient = Some(by(offset)).filter(|&quotient| quotient < blocks);
                let exact = (offset.is_multiple_of(size) && offset / size < blocks)
                    .then_some(offset / size);
                assert_eq!(quotient, exact, "{offset} by {size}");
            }
            // Offsets below the span, or far away.
            for far in (1..MAX_SPAN as u64).flat_map(|n| [n.wrapping_neg(), n << 32, n << 45]) {
                let multiple = far.is_multiple_of(size) && far / size < blocks;
                assert!(by(far) >= blocks || multiple, "{far:#x} by {size}");
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
