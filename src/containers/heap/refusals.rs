//! The errors of heaps.

use serde::{Deserialize, Serialize};

use crate::allocator::AllocError;
use crate::containers::store::{ChangeError, StoreError};
use crate::participants::here::from_nowhere;
use crate::participants::thread::NoSlot;
use crate::sync::LockError;

/// Why a heap was not read or changed. It is as it was.
///
/// ```
/// use shmkit::{Heap, HeapError, Pool};
///
/// let pool = Pool::builder().create()?;
/// let (heap, other) = (pool.create(Heap::new(()))?, pool.create(Heap::new(()))?);
/// let id = other.modify(|tx| tx.alloc(7_u64))??;
/// assert_eq!(heap.modify(|tx| tx.get_mut(id).map(drop))?, Err(HeapError::NoObject));
/// let view = heap.view()?;
/// assert_eq!(heap.collect(), Err(HeapError::WouldDeadlock));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HeapError {
    /// This thread has a view or a transaction of the heap already.
    #[error("this thread uses the heap already")]
    WouldDeadlock,
    /// The id leads to no object: it is another heap's, or the object was collected.
    #[error("the id leads to no object of this heap")]
    NoObject,
    /// The range goes beyond the end of the slice, or ends before it starts.
    #[error("the range {start}..{end} of {len}")]
    OutOfBounds {
        /// Its start.
        start: usize,
        /// Its end.
        end: usize,
        /// The number of elements.
        len: usize,
    },
    /// There was no block for an object, the table, or the bytes to be saved, even after a
    /// collection.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The thread already reads under as many locks of the pool as it can.
    #[error("the thread reads under as many locks as a thread can")]
    TooManyReads,
    /// This process was forked within the transaction, which belongs to its parent.
    #[error("the transaction is the parent process's")]
    Forked,
    /// The heap is not part of an object in a pool.
    #[error("the heap is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

impl<T> From<StoreError<T>> for HeapError {
    fn from(error: StoreError<T>) -> Self {
        match error.cause {
            ChangeError::Alloc(error) => HeapError::Alloc(error),
            ChangeError::NotInPool => HeapError::NotInPool,
            ChangeError::NoSlot(error) => HeapError::NoSlot(error),
        }
    }
}

from_nowhere!(HeapError);

impl<G, O> From<LockError<G, O>> for HeapError {
    fn from(error: LockError<G, O>) -> Self {
        match error {
            LockError::TooManyReads => HeapError::TooManyReads,
            LockError::NotInPool => HeapError::NotInPool,
            LockError::NoSlot(no_slot) => HeapError::NoSlot(no_slot),
            // The other errors are handled where the lock is taken, or only occur with a time
            // limit.
            _ => HeapError::WouldDeadlock,
        }
    }
}
