//! The errors of containers that allocate, and how storing is tried again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::allocator::AllocError;
use crate::engines::limbo;
use crate::layout::arena::Arena;
use crate::participants::here::from_nowhere;
use crate::participants::thread::NoSlot;

/// Why a container was not changed. It is as it was.
///
/// ```
/// use shmkit::{ChangeError, Pool, SharedCell};
///
/// let pool = Pool::builder().create()?;
/// let cell = pool.create(SharedCell::new())?;
/// cell.update(|n: Option<&u32>| n.map_or(1, |n| n + 1))?;
/// let nowhere = SharedCell::new();
/// assert_eq!(nowhere.update(|_| 1_u32), Err(ChangeError::NotInPool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ChangeError {
    /// There is no block for what is to be stored.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The container is not part of an object in a pool.
    #[error("the container is not in a pool")]
    NotInPool,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(ChangeError);

/// A value was not stored, and is given back. The container is as it was.
///
/// ```
/// use shmkit::{ChangeError, HashMap, Pool};
///
/// let pool = Pool::builder().max_size(1 << 20).create()?;
/// let map = pool.create(HashMap::<u64, [u64; 512]>::new())?;
/// let refused = (0..).find_map(|n| map.insert(&n, [n; 512]).err()).unwrap();
/// assert!(matches!(refused.cause, ChangeError::Alloc(_)));
/// assert_eq!(refused.value[0], map.len() as u64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("the value was not stored")]
pub struct StoreError<T> {
    /// The value.
    pub value: T,
    /// Why it was not stored.
    #[source]
    pub cause: ChangeError,
}

/// How often an operation is tried: more often than a map can have tables that it has outgrown. There is
/// a limit because, where the user's code is part of an attempt, each attempt may leave something to be
/// freed, for ever.
const ATTEMPTS: u32 = 64;

/// Tries to store `value`. If there was no room, tries once more with the value that came back, and
/// again as long as an attempt leaves something to be freed, up to [`ATTEMPTS`] times. `attempt` pins
/// on its own, and its pin has ended when it returns; so what the pin held back can be freed, above
/// all a map's old table, whose move this very attempt has completed.
#[inline]
pub(super) fn with_room<T, R>(
    arena: Arena,
    mut value: T,
    mut attempt: impl FnMut(T) -> Result<R, StoreError<T>>,
) -> Result<R, StoreError<T>> {
    let mut attempts = 0;
    // `attempt` is called in one place only, so that it is inlined.
    loop {
        match attempt(value) {
            Err(refused) if is_worth_another(arena, refused.cause, &mut attempts) => {
                value = refused.value;
            }
            stored => return stored,
        }
    }
}

/// Makes room if there was none. True if there may be room now, or if this is the first time.
#[cold]
fn is_worth_another(arena: Arena, cause: ChangeError, attempts: &mut u32) -> bool {
    let no_room = matches!(cause, ChangeError::Alloc(why) if why.is_full());
    *attempts += 1;
    no_room && *attempts < ATTEMPTS && (limbo::make_room(arena) || *attempts == 1)
}

/// The same for an operation that has no value to give back.
#[inline]
pub(super) fn with_room_for<R>(
    arena: Arena,
    mut attempt: impl FnMut() -> Result<R, ChangeError>,
) -> Result<R, ChangeError> {
    let attempt = |value| attempt().map_err(|cause| StoreError { value, cause });
    with_room(arena, (), attempt).map_err(|refused| refused.cause)
}

impl<T> fmt::Debug for StoreError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError")
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}
