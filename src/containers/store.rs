//! Why something was not stored in a container.

use std::fmt;

use crate::allocator::AllocError;
use crate::participants::thread::NoSlot;

/// Why a container was not changed. It is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// No block for what is new.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The container is not part of an object in a pool.
    #[error("the container is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

/// A value was not stored; here it is back. The container is as it was.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct StoreError<T> {
    /// The value.
    pub value: T,
    /// Why.
    #[source]
    pub cause: ChangeError,
}

impl<T> fmt::Debug for StoreError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError")
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}
