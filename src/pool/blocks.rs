//! A pool's memory, for users: blocks of it, and how much of it there is.

use std::alloc::Layout;
use std::ptr::NonNull;

use serde::{Deserialize, Serialize};

use super::{LOG, Pool, tell};
use crate::allocator::{self, AllocError, FreeError, Packed, ReallocError, block};
use crate::layout::arena::SLICE;
use crate::participants::recovery;
use crate::participants::thread::{self, NoSlot};
use crate::primitive::Ordering;
use crate::sys::memory::CommitError;

/// Why the pool did not grow.
///
/// ```
/// use shmkit::{GrowError, Pool};
///
/// let small = Pool::builder().max_size(4 << 20).create()?;
/// match small.grow_to(8 << 20) {
///     Err(GrowError::AboveMaximum { max }) => small.grow_to(max)?,
///     other => panic!("{other:?}"),
/// }
/// assert_eq!(small.stats().total, 4 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GrowError {
    /// More than the pool's maximum.
    #[error("the pool can grow to {max} bytes at most")]
    AboveMaximum {
        /// The maximum.
        max: usize,
    },
    /// No memory.
    #[error(transparent)]
    NoMemory(#[from] CommitError),
}

impl Pool {
    /// Allocates a block. It is the caller's until it is freed; a caller that dies leaks it.
    ///
    /// # Errors
    ///
    /// See [`AllocError`]. The pool grows first, if it can.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let block = pool.allocate(Layout::new::<[u64; 100]>())?.cast::<u64>();
    /// // SAFETY: a block for a hundred of them; freed once, and not used afterwards.
    /// unsafe {
    ///     block.write(7);
    ///     assert_eq!(block.read(), 7);
    ///     pool.deallocate(block.cast())?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn allocate(self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let slot = thread::known_slot(self.0);
        let address = match slot.and_then(|slot| block::at_hand(slot, layout, |_| {})) {
            Some(address) => address,
            None => self.allocate_more(layout).map_err(Packed::unpack)?,
        };
        // SAFETY: a block lies in the pool's data, above its base.
        let pointer =
            unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) };
        Ok(NonNull::slice_from_raw_parts(pointer, layout.size()))
    }

    /// The rare allocation; a function of its own, so that the common one is short.
    #[cold]
    #[inline(never)]
    fn allocate_more(self, layout: Layout) -> Result<usize, Packed> {
        block::allocate_more(self.0, thread::slot(self.0)?, layout, |_| {})
    }

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// Nobody uses the block any more, and `pointer` came from [`Pool::allocate`] or
    /// [`Pool::reallocate`] of this pool. Other pointers, and a block freed before, are refused
    /// with an error, except that two frees of one block at the same moment may both succeed.
    ///
    /// # Errors
    ///
    /// See [`FreeError`].
    ///
    /// # Crash behaviour
    ///
    /// The block is free or it is not.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::{FreeError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let block = pool.allocate(Layout::new::<[u8; 100]>())?.cast::<u8>();
    /// // SAFETY: nobody uses the block. That it is freed twice is found.
    /// unsafe {
    ///     pool.deallocate(block)?;
    ///     assert_eq!(pool.deallocate(block), Err(FreeError::NotAllocated));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub unsafe fn deallocate(self, pointer: NonNull<u8>) -> Result<(), FreeError> {
        match thread::known_slot(self.0) {
            Some(slot) => block::free(self.0, slot, pointer.addr().get()),
            None => self.first_free(pointer.addr().get()),
        }
    }

    /// A free by a thread that has no slot yet.
    #[cold]
    #[inline(never)]
    fn first_free(self, address: usize) -> Result<(), FreeError> {
        block::free(self.0, thread::slot(self.0)?, address)
    }

    /// Moves a block to one of another layout, with as much of its content as fits. It may stay
    /// where it is.
    ///
    /// # Safety
    ///
    /// As for [`Pool::deallocate`], except when an error is returned.
    ///
    /// # Errors
    ///
    /// See [`ReallocError`]. The block is as it was.
    ///
    /// # Crash behaviour
    ///
    /// A caller that is killed leaves the old block, the new one, or both, as blocks that it had.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let block = pool.allocate(Layout::array::<u64>(10)?)?.cast::<u64>();
    /// // SAFETY: blocks of ten and of a thousand; the first is not used any more once it has moved.
    /// unsafe {
    ///     block.write(7);
    ///     let block = pool.reallocate(block.cast(), Layout::array::<u64>(1000)?)?.cast::<u64>();
    ///     assert_eq!(block.read(), 7);
    ///     pool.deallocate(block.cast())?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn reallocate(
        self,
        pointer: NonNull<u8>,
        new: Layout,
    ) -> Result<NonNull<[u8]>, ReallocError> {
        let slot = thread::slot(self.0).map_err(FreeError::from)?;
        // SAFETY: by the caller's promise.
        let moved = unsafe { block::reallocate(self.0, slot, pointer.addr().get(), new) }?;
        let pointer = NonNull::new(std::ptr::with_exposed_provenance_mut(moved));
        let pointer = pointer.ok_or(AllocError::PoolFull)?;
        Ok(NonNull::slice_from_raw_parts(pointer, new.size()))
    }

    /// The size in bytes of the block at `pointer`, which may be more than was asked for.
    ///
    /// # Errors
    ///
    /// See [`FreeError`].
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// let block = pool.allocate(Layout::new::<[u8; 100]>())?.cast::<u8>();
    /// assert_eq!(pool.usable_size(block)?, 112);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn usable_size(self, pointer: NonNull<u8>) -> Result<usize, FreeError> {
        block::usable_size(self.0, pointer.addr().get())
    }

    /// Grows the pool to at least this many bytes of data.
    ///
    /// # Errors
    ///
    /// See [`GrowError`]. Whatever the pool has grown by then stays.
    ///
    /// # Crash behaviour
    ///
    /// The pool has grown by the whole amount, by a part of it, or not at all.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// let pool = Pool::builder().initial_size(1 << 20).create()?;
    /// pool.grow_to(8 << 20)?;
    /// assert_eq!(pool.stats().total, 8 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow_to(self, bytes: usize) -> Result<(), GrowError> {
        let max = self.0.header().max_slices.load(Ordering::Relaxed) as usize;
        let wanted = bytes.div_ceil(SLICE);
        if wanted > max {
            return Err(GrowError::AboveMaximum { max: max * SLICE });
        }
        recovery::poll(self.0);
        let have = self.0.slices();
        if wanted > have {
            allocator::grow::grow_by(self.0, have, wanted - have)?;
            let (base, size) = (self.0.base(), wanted * SLICE);
            tell(|| log::debug!(target: LOG, "the pool at {base:#x} has grown to {size} bytes"));
        }
        Ok(())
    }

    /// Gives the memory of free slices back to the kernel, and returns how many bytes that is. The
    /// slices stay part of the pool. This also happens by itself, within a second, with memory that nobody
    /// has wanted for half a second, as long as some thread allocates or frees.
    ///
    /// # Errors
    ///
    /// [`NoSlot`].
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().initial_size(4 << 20).create()?;
    /// let block = pool.allocate(Layout::new::<[u8; 2 << 20]>())?.cast();
    /// // SAFETY: nobody uses it.
    /// unsafe { pool.deallocate(block)? };
    /// let before = pool.stats().committed;
    /// let bytes = pool.purge()?;
    /// assert!(bytes >= 2 << 20);
    /// assert_eq!(pool.stats().committed, before - bytes);
    /// assert_eq!(pool.stats().total, 4 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn purge(self) -> Result<usize, NoSlot> {
        Ok(allocator::grow::purge(self.0, thread::slot(self.0)?))
    }
}
