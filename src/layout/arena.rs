//! Where things lie in a pool.
//!
//! A pool lies at the start of a *granule*, a terabyte of address space at a multiple of a
//! terabyte. Every table has a fixed place in the granule, sized for the largest pool, so that a
//! pointer leads to its metadata by shifts and constants alone and a pool needs no description of
//! its geometry. The places are address space, not memory: a table is committed as far as its
//! *watermark* in the header says, and nobody touches it beyond that.
//!
//! ```text
//! offset      size     entries            what                          watermark
//! 0           4 KiB    1                  header                        always
//! 4 KiB       1 MiB    4096 x 256 B       process records               processes
//! 2 MiB       1 MiB    2048 x 512 B       types                         types
//! 3 MiB       1 MiB    4096 x 256 B       names                         names
//! 16 MiB      64 MiB   4096 x 16 KiB      thread slots                  slots
//! 1 GiB       1 GiB    16 Mi x 64 B       objects                       objects
//! 2 GiB       8 GiB    4096 x 2 MiB       holds (bitmap a process)      held, in each record
//! 10 GiB      512 MiB  64 Mi x 8 B        slice tags                    slices
//! 11 GiB      8 MiB    1 Mi x 8 B         free hints (a bit a slice)    slices
//! 12 GiB      19 GiB   62 Mi x 320 B      span records (one a slice)    slices
//! 40 GiB      984 GiB  62 Mi x 16 KiB     data                          slices
//! ```
//!
//! The records are next to the header because each forked process touches both as it begins, and
//! the kernel maps some pages around the one that is touched.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use super::header::Header;
use super::local;
use crate::primitive::AtomicU64;
use crate::sys::memory::{self, CommitError};

/// Bytes from one possible pool to the next.
pub(crate) const GRANULE: usize = 1 << 40;
/// The granules that hold pools: addresses 0x2000_0000_0000 to 0x4fff_ffff_ffff.
pub(crate) const FIRST_GRANULE: usize = 0x20;
/// How many granules there are, so how many pools a process can have mapped.
pub(crate) const GRANULES: usize = 48;

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

pub(crate) const HEADER_SIZE: usize = 4096;
pub(crate) const PROCESSES: TablePlace = TablePlace {
    offset: HEADER_SIZE,
    entry: 256,
    max: 4096,
};
pub(crate) const TYPES: TablePlace = TablePlace {
    offset: 2 * MIB,
    entry: 512,
    max: 2048,
};
pub(crate) const NAMES: TablePlace = TablePlace {
    offset: 3 * MIB,
    entry: 256,
    max: 4096,
};
pub(crate) const SLOTS: TablePlace = TablePlace {
    offset: 16 * MIB,
    entry: 16 << 10,
    max: 4096,
};
pub(crate) const OBJECTS: TablePlace = TablePlace {
    offset: GIB,
    entry: 64,
    max: 16 * MIB,
};
/// A bitmap over the objects for each process record; the bits of the first objects are in the
/// record.
pub(crate) const HOLDS: TablePlace = TablePlace {
    offset: 2 * GIB,
    entry: OBJECTS.max / 8,
    max: PROCESSES.max,
};
pub(crate) const TAGS: TablePlace = TablePlace {
    offset: 10 * GIB,
    entry: 8,
    max: MAX_SLICES,
};
pub(crate) const FREE_HINTS: TablePlace = TablePlace {
    offset: 11 * GIB,
    entry: 8,
    max: MAX_SLICES / 64,
};
pub(crate) const SPANS: TablePlace = TablePlace {
    offset: 12 * GIB,
    entry: 320,
    max: MAX_SLICES,
};
pub(crate) const DATA: TablePlace = TablePlace {
    offset: 40 * GIB,
    entry: SLICE,
    max: MAX_SLICES,
};

/// The unit in which data is claimed, in bytes.
pub(crate) const SLICE: usize = 1 << SLICE_SHIFT;
pub(crate) const SLICE_SHIFT: u32 = 14;
const MAX_SLICES: usize = 984 * GIB / SLICE;

/// A table's place in the granule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TablePlace {
    pub(crate) offset: usize,
    /// Bytes per entry.
    pub(crate) entry: usize,
    /// The most entries that there can be.
    pub(crate) max: usize,
}

impl TablePlace {
    pub(crate) const fn end(self) -> usize {
        self.offset + self.entry * self.max
    }
}

const _: () = {
    assert!(PROCESSES.end() <= TYPES.offset && TYPES.end() <= NAMES.offset);
    assert!(NAMES.end() <= SLOTS.offset && SLOTS.end() <= OBJECTS.offset);
    assert!(OBJECTS.end() <= HOLDS.offset && HOLDS.end() <= TAGS.offset);
    assert!(TAGS.end() <= FREE_HINTS.offset && FREE_HINTS.end() <= SPANS.offset);
    assert!(SPANS.end() <= DATA.offset && DATA.end() <= GRANULE);
};

/// Bytes of address space that a pool with at most `max_slices` slices takes of its granule.
///
/// Whatever lies in the granule of a pool is taken for a part of it. So the pool takes the whole
/// granule if the kernel places a process's own memory among the granules: in what it calls the
/// legacy layout of an address space, or below a stack that may become very large.
pub(crate) fn mapped_len(max_slices: usize) -> usize {
    const UNKNOWN: u8 = 0;
    const OURS: u8 = 1;
    const SHARED: u8 = 2;
    // The layout is a property of the program, and stays until the next `exec`: every caller gets
    // the same answer. Not a `OnceLock`, for whose owner a forked child might wait.
    static GRANULES_ARE: AtomicU8 = AtomicU8::new(UNKNOWN);
    if GRANULES_ARE.load(Ordering::Relaxed) == UNKNOWN {
        let granules = FIRST_GRANULE * GRANULE..(FIRST_GRANULE + GRANULES) * GRANULE;
        let shared = memory::places_mappings_in(granules);
        GRANULES_ARE.store(if shared { SHARED } else { OURS }, Ordering::Relaxed);
    }
    match GRANULES_ARE.load(Ordering::Relaxed) {
        OURS => DATA.offset + max_slices * SLICE,
        _ => GRANULE,
    }
}

/// The order in which granules are tried for a pool. The last ones are for hidden pools, which a
/// process has without having asked for them: so a pool that it opens by name does not find its
/// address taken by one of those.
pub(crate) fn granules_in_turn(hidden: bool, random: usize) -> impl Iterator<Item = usize> {
    const FOR_HIDDEN: usize = 8;
    let from_random = move |granules: Range<usize>| {
        let start = granules.start;
        (0..granules.len()).map(move |i| start + (random % granules.len() + i) % granules.len())
    };
    let (shown, hides) = (0..GRANULES - FOR_HIDDEN, GRANULES - FOR_HIDDEN..GRANULES);
    let (first, then) = if hidden {
        (hides, shown)
    } else {
        (shown, hides)
    };
    from_random(first).chain(from_random(then))
}

/// A mapped pool, by its base address. Copied freely; valid while the pool is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Arena(usize);

impl Arena {
    /// The arena at `base`, which must be that of a mapped pool for anything to be asked of it.
    pub(crate) const fn at(base: usize) -> Self {
        Arena(base)
    }

    /// The arena whose granule holds `address`, if this process has one mapped there.
    #[inline]
    pub(crate) fn containing(address: usize) -> Option<Self> {
        let granule = (address / GRANULE).wrapping_sub(FIRST_GRANULE);
        let base = address & !(GRANULE - 1);
        (granule < GRANULES && local::of(Arena(base)).is_mapped()).then_some(Arena(base))
    }

    #[inline]
    pub(crate) fn base(self) -> usize {
        self.0
    }

    /// The index of the arena's granule among those that hold pools.
    #[inline]
    pub(crate) fn granule(self) -> usize {
        (self.0 / GRANULE) - FIRST_GRANULE
    }

    /// A pointer to an offset of the pool.
    #[inline]
    pub(crate) fn pointer<T>(self, offset: usize) -> *mut T {
        std::ptr::with_exposed_provenance_mut(self.0 + offset)
    }

    /// The entry `index` of a table.
    ///
    /// # Safety
    ///
    /// `index` is below the table's watermark, and `T` is what the table holds: made only of
    /// atomics, at most of the entry's size, valid for all bytes.
    #[inline]
    pub(crate) unsafe fn entry<T>(self, table: TablePlace, index: usize) -> &'static T {
        debug_assert!(index < table.max && size_of::<T>() <= table.entry);
        // SAFETY: below the watermark the table is committed, it stays mapped as long as the
        // process lives (or until `unmap`, whose caller promises that nothing is in use), and by
        // the caller's promise any bytes are a valid `T` that others change through atomics only.
        unsafe { &*self.pointer::<T>(table.offset + index * table.entry) }
    }

    #[inline]
    pub(crate) fn header(self) -> &'static Header {
        // SAFETY: the header is committed before a pool is mapped; it consists of atomics.
        unsafe { &*self.pointer::<Header>(0) }
    }

    /// Commits entries of a table up to `count` and raises its watermark to it.
    ///
    /// Killed anywhere: leaves committed memory beyond a watermark, which the next call commits
    /// again.
    #[cold]
    pub(crate) fn raise(
        self,
        table: TablePlace,
        watermark: &AtomicU64,
        count: usize,
    ) -> Result<(), CommitError> {
        debug_assert!(count <= table.max);
        let from = watermark.load(Ordering::Acquire) as usize;
        if count > from {
            self.commit(
                table.offset + from * table.entry,
                (count - from) * table.entry,
            )?;
            watermark.fetch_max(count as u64, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Checks, as well as can be known, that `bytes` bytes can be committed. The pool may have some
    /// of them already; how many is asked, by `had`, only if it matters.
    pub(crate) fn check_limit(
        self,
        bytes: u64,
        had: impl FnOnce() -> u64,
    ) -> Result<(), CommitError> {
        let local = local::of(self);
        if local.is_private() {
            return memory::check_limit(bytes);
        }
        let check = |bytes| {
            memory::check_limit(bytes)?;
            memory::check_room(local.file().get()?, bytes)
        };
        check(bytes).or_else(|refused| match had() {
            0 => Err(refused),
            had => check(bytes.saturating_sub(had)),
        })
    }

    /// Commits a range of the pool, by offset.
    pub(crate) fn commit(self, offset: usize, len: usize) -> Result<(), CommitError> {
        let local = local::of(self);
        if local.is_private() {
            memory::commit_private(self.0 + offset, len)
        } else {
            memory::commit(local.file().get()?, offset as u64, len as u64)
        }
    }

    /// Gives the memory of a committed range back to the kernel, by offset. It must be committed
    /// [again](Arena::commit_again) before use.
    pub(crate) fn give_back(self, offset: usize, len: usize) -> Result<(), CommitError> {
        let local = local::of(self);
        if local.is_private() {
            memory::discard(self.0 + offset, len)
        } else {
            memory::punch(local.file().get()?, offset as u64, len as u64)
        }
    }

    /// Commits a range again that was [given back](Arena::give_back).
    pub(crate) fn commit_again(self, offset: usize, len: usize) -> Result<(), CommitError> {
        if local::of(self).is_private() {
            return Ok(());
        }
        memory::check_limit_now_and_then(len as u64)?;
        self.commit(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_pools_take_no_place_of_others() {
        let tried = |hidden, random| granules_in_turn(hidden, random).collect::<Vec<_>>();
        for random in [0, 7, 1 << 40, usize::MAX] {
            let (hidden, shown) = (tried(true, random), tried(false, random));
            assert!(hidden[..8].iter().all(|place| shown[40..].contains(place)));
            for mut all in [hidden, shown] {
                all.sort_unstable();
                assert!(all.into_iter().eq(0..GRANULES));
            }
        }
        assert_ne!(tried(false, 1), tried(false, 2));
    }
}
