//! Where a value is, and who the calling thread is there.

use super::epoch;
use super::table::Slot;
use super::thread::{self, InPool};
use crate::layout::arena::{Arena, GRANULE};

/// Where a value is, and this thread's slot there.
#[derive(Clone, Copy)]
pub(crate) struct Here {
    pub(crate) arena: Arena,
    pub(crate) slot: &'static Slot,
}

/// Why there is no [`Here`].
pub(crate) enum Nowhere {
    NotInPool,
    NoSlot,
}

/// The arena that `value` is in and this thread's slot in it, claimed now if need be.
#[inline]
pub(crate) fn here<T: InPool>(value: &T) -> Result<Here, Nowhere> {
    let address = std::ptr::from_ref(value).addr();
    match thread::known_slot_near(value) {
        Some(slot) => Ok(Here {
            arena: arena_at(address),
            slot,
        }),
        None => arrive(address),
    }
}

/// The arena of an address in a granule that holds a pool.
#[inline]
pub(crate) fn arena_at(address: usize) -> Arena {
    Arena::at(address & !(GRANULE - 1))
}

#[cold]
fn arrive(address: usize) -> Result<Here, Nowhere> {
    let arena = Arena::containing(address).ok_or(Nowhere::NotInPool)?;
    let slot = thread::slot(arena).map_err(|_| Nowhere::NoSlot)?;
    Ok(Here { arena, slot })
}

impl Here {
    /// Runs `f` while nothing that it can reach is freed. `f` is not user code.
    pub(crate) fn pinned<R>(self, f: impl FnOnce() -> R) -> R {
        epoch::pin(self.arena, self.slot);
        let result = f();
        epoch::unpin(self.slot);
        result
    }
}

/// Implements `From<Nowhere>` for errors with the variants `NotInPool` and `NoSlot(NoSlot)`.
macro_rules! from_nowhere {
    ($($error:ty),+) => {
        $(impl From<$crate::participants::here::Nowhere> for $error {
            fn from(nowhere: $crate::participants::here::Nowhere) -> Self {
                use $crate::participants::here::Nowhere;
                match nowhere {
                    Nowhere::NotInPool => Self::NotInPool,
                    Nowhere::NoSlot => Self::NoSlot($crate::participants::thread::NoSlot),
                }
            }
        })+
    };
}
pub(crate) use from_nowhere;
