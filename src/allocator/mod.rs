//! The allocator: any size and alignment, many processes and threads, no global lock, kill-safe.
//!
//! | module       | what |
//! |--------------|------|
//! | `size_class` | block sizes, and the shape of the spans that hold them |
//! | `slice`      | slice tags: who has which 16 KiB of data |
//! | `grow`       | more slices; memory given back to the kernel |
//! | `run`        | blocks of whole slices |
//! | `kept`       | runs that are free, kept whole for the next of their size |
//! | `span`       | blocks of one size class: the bitmaps |
//! | `cache`      | an owner's spans: where its next block comes from |
//! | `list`       | lists of an owner's spans |
//! | `known`      | from an address to an owner's span, the short way |
//! | `block`      | allocate, free, usable size: the way in |
//! | `recover`    | what an owner leaves behind becomes anybody's |
//! | `guard`      | finds writes past a block's end, and to a block after it was freed |
//! | `check`      | checks everything that must hold |
//! | `stats`      | how much memory is used for what |
//! | `walk`       | goes through every block |
//!
//! What recovery relies on is authoritative and complete in the tags and bitmaps; lists, hints and
//! counters are conveniences of the living, which recovery ignores and rebuilds.

pub(crate) mod block;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod grow;
pub(crate) mod guard;
pub(crate) mod kept;
pub(crate) mod known;
mod list;
pub(crate) mod recover;
pub(crate) mod run;
pub(crate) mod size_class;
pub(crate) mod slice;
pub(crate) mod span;
pub(crate) mod stats;
pub(crate) mod walk;

use serde::{Deserialize, Serialize};

use crate::participants::thread::NoSlot;
use crate::sys::memory::CommitError;

/// Why a block was not allocated. Nothing has changed.
///
/// ```
/// use std::alloc::Layout;
/// use shmkit::{AllocError, Pool};
///
/// let pool = Pool::builder().max_size(1 << 20).create()?;
/// match pool.allocate(Layout::array::<u8>(2 << 20)?) {
///     Err(AllocError::PoolFull) => assert!(pool.allocate(Layout::new::<u8>()).is_ok()),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AllocError {
    /// The pool has reached its maximum, and has no free room of that size.
    #[error("the pool is full: it has reached its maximum size")]
    PoolFull,
    /// More than any pool can hold, or an alignment above a gigabyte.
    #[error("no pool can hold a block of that size and alignment")]
    TooLarge,
    /// The pool may grow, but there is no memory to be had.
    #[error(transparent)]
    NoMemory(#[from] CommitError),
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

impl AllocError {
    /// Whether there may be room once something is freed.
    pub(crate) fn is_full(self) -> bool {
        matches!(self, AllocError::PoolFull | AllocError::NoMemory(_))
    }
}

/// An [`AllocError`] in a word: so that a rare failure is returned in registers, and the functions
/// that return it need no room on the stack.
#[derive(Clone, Copy)]
pub(crate) struct Packed(u64);

impl Packed {
    const SHIFT: u32 = 3;

    /// An amount of memory is rounded down, to 8 bytes.
    #[inline]
    pub(crate) fn unpack(self) -> AllocError {
        let rest = self.0 >> Self::SHIFT;
        match self.0 % (1 << Self::SHIFT) {
            0 => AllocError::PoolFull,
            1 => AllocError::TooLarge,
            2 => AllocError::NoSlot(NoSlot),
            3 => CommitError::Full.into(),
            4 => CommitError::System(rest as i32).into(),
            _ => CommitError::MemoryLimit {
                available: rest << Self::SHIFT,
            }
            .into(),
        }
    }
}

impl From<Packed> for AllocError {
    #[inline]
    fn from(packed: Packed) -> Self {
        packed.unpack()
    }
}

impl From<NoSlot> for Packed {
    fn from(error: NoSlot) -> Self {
        AllocError::from(error).into()
    }
}

impl From<AllocError> for Packed {
    fn from(error: AllocError) -> Self {
        Packed(match error {
            AllocError::PoolFull => 0,
            AllocError::TooLarge => 1,
            AllocError::NoSlot(NoSlot) => 2,
            AllocError::NoMemory(CommitError::Full) => 3,
            AllocError::NoMemory(CommitError::System(errno)) => {
                4 | u64::from(errno as u32) << Self::SHIFT
            }
            AllocError::NoMemory(CommitError::MemoryLimit { available }) => {
                5 | available >> Self::SHIFT << Self::SHIFT
            }
        })
    }
}

/// Why a block was not freed. Nothing has changed.
///
/// ```
/// use std::alloc::Layout;
/// use std::ptr::NonNull;
/// use shmkit::{FreeError, Pool};
///
/// let pool = Pool::builder().create()?;
/// let block = pool.allocate(Layout::new::<[u8; 100]>())?.cast::<u8>();
/// // SAFETY: what is no block is refused; nobody uses the block.
/// unsafe {
///     assert_eq!(pool.deallocate(block.add(8)), Err(FreeError::Interior));
///     assert_eq!(pool.deallocate(NonNull::from(&pool).cast()), Err(FreeError::Foreign));
///     pool.deallocate(block)?;
///     assert_eq!(pool.deallocate(block), Err(FreeError::NotAllocated));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FreeError {
    /// The address is not in the data of this pool.
    #[error("the address is not a block of this pool")]
    Foreign,
    /// The address is inside a block, or in room that belongs to no block.
    #[error("the address is not the start of a block")]
    Interior,
    /// There is no block there now: it has been freed already.
    #[error("the block has been freed already")]
    NotAllocated,
    /// Something was written beyond the end of the block. Only a
    /// [guarded](crate::PoolBuilder::guard) pool finds that. The block stays allocated, as it is.
    #[error("the block was written beyond its end")]
    Overrun,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// Why a block was not reallocated. It is as it was.
///
/// ```
/// use std::alloc::Layout;
/// use shmkit::{AllocError, Pool, ReallocError};
///
/// let pool = Pool::builder().max_size(1 << 20).create()?;
/// let block = pool.allocate(Layout::new::<u64>())?.cast::<u8>();
/// // SAFETY: a block that nobody uses; it is freed once.
/// unsafe {
///     match pool.reallocate(block, Layout::array::<u8>(2 << 20)?) {
///         Err(ReallocError::Alloc(AllocError::PoolFull)) => pool.deallocate(block)?,
///         other => panic!("{other:?}"),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReallocError {
    /// The address is not that of a block.
    #[error(transparent)]
    NotABlock(#[from] FreeError),
    /// There is no block of the new size.
    #[error(transparent)]
    Alloc(#[from] AllocError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_packing() {
        for error in [
            AllocError::PoolFull,
            AllocError::TooLarge,
            NoSlot.into(),
            CommitError::Full.into(),
            CommitError::System(95).into(),
            CommitError::MemoryLimit { available: 4096 }.into(),
            CommitError::MemoryLimit { available: 0 }.into(),
        ] {
            assert_eq!(Packed::from(error).unpack(), error);
        }
    }
}
