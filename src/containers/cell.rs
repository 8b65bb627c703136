//! [`SharedCell`]: a value that is only replaced as a whole, and read without waiting.
//!
//! The value is in a block that is never written again once the cell names it. To change the value,
//! the cell is made to name another block (`engines::change`); a reader that still looks at the old
//! one has pinned it (`engines::limbo`).
//!
//! | operation | happens at | killed before | killed after |
//! |---|---|---|---|
//! | `set`, `replace`, `update` | the exchange of the word | the new block is freed | the old block goes to limbo |
//! | `get`, `view` | the load of the word | | the pin ends with its thread |

use std::alloc::Layout;
use std::fmt;
use std::marker::{PhantomData, PhantomPinned};
use std::mem::{ManuallyDrop, offset_of};
use std::ptr::NonNull;

use super::link::Pinned;
use super::store::{ChangeError, StoreError, with_room_for};
use super::{Contained, View};
use crate::engines::cell::CHANGE;
use crate::engines::{change, limbo};
use crate::layout::arena::Arena;
use crate::layout::{Engine, Field, TypeInfo};
use crate::participants::epoch;
use crate::participants::here::{Here, here};
use crate::participants::table::Slot;
use crate::primitive::{AtomicU64, Ordering};
use crate::protocol::step_back;
use crate::{Movable, ShmSafe};

/// The word of a cell.
#[repr(transparent)]
struct CellWord(AtomicU64);

// SAFETY: an address within the pool; `TYPE` says which engine knows what it owns.
unsafe impl ShmSafe for CellWord {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("CellWord", Engine::Cell);
    const OWNS: bool = true;
}

/// A value in a pool that is only replaced as a whole: readers never wait, and never see a
/// half-written value.
///
/// A new cell is empty. [`get`](Self::get) copies the value out, [`view`](Self::view) looks at it
/// in place; both give `None` while the cell is empty, and for a cell that is not in a pool. To be
/// able to take the value out again, store an `Option`.
///
/// ```
/// use shmkit::{Pool, SharedCell, ShmSafe};
///
/// #[derive(Clone, Copy, Debug, PartialEq, ShmSafe)]
/// struct Limits {
///     low: f64,
///     high: f64,
/// }
///
/// let pool = Pool::builder().create()?;
/// let limits = pool.create(SharedCell::new())?;
/// assert_eq!(limits.get(), None);
/// limits.set(Limits { low: 0.0, high: 1.0 })?;
/// limits.update(|now| Limits { high: now.map_or(2.0, |now| now.high * 2.0), low: 0.0 })?;
/// assert_eq!(limits.view().unwrap().high, 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct SharedCell<T: ShmSafe + Movable> {
    word: CellWord,
    value: Contained<T>,
    _in_place: PhantomPinned,
}

// SAFETY: one atomic word, listed at its offset; no drop glue.
unsafe impl<T: ShmSafe + Movable> ShmSafe for SharedCell<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "SharedCell",
        const {
            &[
                Field::at::<CellWord>("word", offset_of!(Self, word)),
                Field::mention::<T>("T"),
            ]
        },
    )
    .holding::<T>();
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = true;
}

/// What a cell names.
#[repr(C)]
struct Block<T> {
    own: limbo::Retirable,
    value: ManuallyDrop<T>,
}

impl<T: ShmSafe + Movable> SharedCell<T> {
    /// An empty cell. It can be filled once it is in a pool.
    ///
    /// ```
    /// # use shmkit::{Pool, SharedCell};
    /// # let pool = Pool::builder().create()?;
    /// let limits = pool.create((7_u32, SharedCell::<f64>::new()))?;
    /// assert_eq!(limits.1.get(), None);
    /// limits.1.set(0.5)?;
    /// assert_eq!(limits.1.get(), Some(0.5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        SharedCell {
            word: CellWord(AtomicU64::new(0)),
            value: PhantomData,
            _in_place: PhantomPinned,
        }
    }

    /// Where the value is in the block that the word names; `None` if there is none, or if the word is
    /// garbage and names something that cannot be a block.
    #[inline]
    fn value_in(arena: Arena, block: u64) -> Option<NonNull<T>> {
        let address = block as usize;
        if !address.is_multiple_of(align_of::<Block<T>>())
            || arena.room_at(address) < size_of::<Block<T>>()
        {
            return None;
        }
        let block = std::ptr::with_exposed_provenance_mut::<u8>(address);
        NonNull::new(block.wrapping_add(offset_of!(Block<T>, value)).cast())
    }

    /// Returns a copy of the value; `None` if the cell is empty (or the thread has no slot in the
    /// pool).
    ///
    /// ```
    /// # use shmkit::{Pool, SharedCell};
    /// # let pool = Pool::builder().create()?;
    /// let point = pool.create(SharedCell::new())?;
    /// assert_eq!(point.get(), None);
    /// point.set([0.5, 1.5])?;
    /// assert_eq!(point.get(), Some([0.5, 1.5]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn get(&self) -> Option<T>
    where
        T: Copy,
    {
        let Here { arena, slot } = here(self).ok()?;
        epoch::pin(arena, slot);
        // SAFETY: pinned before the word is read, so the block is not freed; nobody writes to it.
        let value =
            Self::value_in(arena, self.word.0.load(Ordering::SeqCst)).map(|v| unsafe { v.read() });
        epoch::unpin(slot);
        value
    }

    /// Returns a view of the value, in place; `None` if the cell is empty (or the thread has no
    /// slot in the pool). While the view is open, nothing that it could see is freed.
    ///
    /// ```
    /// # use shmkit::{Pool, SharedCell};
    /// # let pool = Pool::builder().create()?;
    /// let table = pool.create(SharedCell::new())?;
    /// table.set([7_u64; 100])?;
    /// let view = table.view().unwrap();
    /// table.set([8; 100])?;
    /// assert_eq!((view[99], table.view().unwrap()[99]), (7, 8));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn view(&self) -> Option<View<'_, T>> {
        let Here { arena, slot } = here(self).ok()?;
        epoch::pin(arena, slot);
        self.view_pinned(arena, slot, self.word.0.load(Ordering::SeqCst))
    }

    /// A view of the value in a block whose address was read under the pin. The pin ends with the
    /// view.
    #[inline]
    fn view_pinned(&self, arena: Arena, slot: &'static Slot, block: u64) -> Option<View<'_, T>> {
        let Some(value) = Self::value_in(arena, block) else {
            epoch::unpin(slot);
            return None;
        };
        // SAFETY: pinned before the word was read, so not freed before the pin ends; nobody writes
        // to the value of a block that a cell names.
        Some(View::pinned(unsafe { value.as_ref() }, slot))
    }

    /// True if no value has been set yet.
    ///
    /// ```
    /// # use shmkit::{Pool, SharedCell};
    /// # let pool = Pool::builder().create()?;
    /// let cell = pool.create(SharedCell::new())?;
    /// assert!(cell.is_empty());
    /// cell.set(0_u8)?;
    /// assert!(!cell.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.word.0.load(Ordering::Acquire) == 0
    }

    /// Sets the value.
    ///
    /// # Errors
    ///
    /// [`StoreError`], with the value; the cell is as it was.
    ///
    /// # Crash behaviour
    ///
    /// The cell has the new value or the old one.
    ///
    /// ```
    /// # use shmkit::{Pool, SharedCell};
    /// # let pool = Pool::builder().create()?;
    /// let point = pool.create(SharedCell::new())?;
    /// point.set([0.5, 1.5])?;
    /// point.set([2.5, 3.5])?;
    /// assert_eq!(point.get(), Some([2.5, 3.5]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn set(&self, value: T) -> Result<(), StoreError<T>> {
        self.replace(value).map(drop)
    }

    /// Sets the value, and returns a view of what it was; `None` if the cell was empty.
    ///
    /// # Errors
    ///
    /// As for [`set`](Self::set).
    ///
    /// # Crash behaviour
    ///
    /// As for [`set`](Self::set).
    ///
    /// ```
    /// # use shmkit::{Pool, SharedCell};
    /// # let pool = Pool::builder().create()?;
    /// let point = pool.create(SharedCell::new())?;
    /// assert!(point.replace([0.5, 1.5])?.is_none());
    /// assert_eq!(point.replace([2.5, 3.5])?.as_deref(), Some(&[0.5, 1.5]));
    /// assert_eq!(point.get(), Some([2.5, 3.5]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn replace(&self, value: T) -> Result<Option<View<'_, T>>, StoreError<T>> {
        let (arena, slot, block) = match self.prepare() {
            Ok(prepared) => prepared,
            Err(cause) => return Err(StoreError { value, cause }),
        };
        Self::fill(arena, block, value);
        epoch::pin(arena, slot);
        let word = &self.word.0;
        let mut old = word.load(Ordering::SeqCst);
        while !change::publish(arena, slot, word, (old, old), block) {
            step_back();
            old = word.load(Ordering::SeqCst);
        }
        change::finish(arena, slot, old, size_of::<Block<T>>());
        limbo::collect_now_and_then(arena, slot);
        Ok(self.view_pinned(arena, slot, old))
    }

    /// Sets the value to what `f` makes of it (of `None` while the cell is empty). `f` runs again
    /// if somebody else sets the value meanwhile, or if there was no room until memory was given
    /// back. Nothing is locked while it runs.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; the cell is as it was.
    ///
    /// # Panics
    ///
    /// If `f` does. The cell is as it was.
    ///
    /// # Crash behaviour
    ///
    /// As for [`set`](Self::set).
    ///
    /// ```
    /// # use shmkit::{Pool, SharedCell};
    /// # let pool = Pool::builder().create()?;
    /// let count = pool.create(SharedCell::new())?;
    /// for _ in 0..3 {
    ///     count.update(|n: Option<&u64>| n.unwrap_or(&0) + 1)?;
    /// }
    /// assert_eq!(count.get(), Some(3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update(&self, mut f: impl FnMut(Option<&T>) -> T) -> Result<(), ChangeError> {
        let Here { arena, slot } = here(self)?;
        with_room_for(arena, || self.update_once((arena, slot), &mut f))
    }

    /// One attempt of `update`. If there was no room, its pin has ended when it returns, so what
    /// the pin held back can be freed.
    fn update_once(
        &self,
        (arena, slot): (Arena, &'static Slot),
        f: &mut impl FnMut(Option<&T>) -> T,
    ) -> Result<(), ChangeError> {
        loop {
            let _pinned = Pinned::new(arena, slot);
            let old = self.word.0.load(Ordering::SeqCst);
            // SAFETY: pinned before the word was read, and until after `f`; nobody writes to it.
            let new = f(Self::value_in(arena, old).map(|value| unsafe { value.as_ref() }));
            let (_, _, block) = self.prepare()?;
            Self::fill(arena, block, new);
            if change::publish(arena, slot, &self.word.0, (old, old), block) {
                change::finish(arena, slot, old, size_of::<Block<T>>());
                limbo::collect_now_and_then(arena, slot);
                return Ok(());
            }
            change::abandon(arena, slot, block);
            step_back();
        }
    }

    /// Opens an intent, and allocates a block into it.
    #[inline]
    fn prepare(&self) -> Result<(Arena, &'static Slot, u64), ChangeError> {
        let Here { arena, slot } = here(self)?;
        let layout = const { Layout::new::<Block<T>>() };
        let block = change::prepare(arena, slot, CHANGE, &self.word.0, layout)?;
        Ok((arena, slot, block))
    }

    #[inline]
    fn fill(arena: Arena, block: u64, value: T) {
        if let Some(place) = Self::value_in(arena, block) {
            // SAFETY: a new block of that layout, which nobody else has.
            unsafe { place.write(value) };
        }
    }
}

impl<T: ShmSafe + Movable> Default for SharedCell<T> {
    fn default() -> Self {
        SharedCell::new()
    }
}

impl<T: ShmSafe + Movable + fmt::Debug> fmt::Debug for SharedCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.view() {
            Some(value) => f.debug_tuple("SharedCell").field(&value).finish(),
            None => f.write_str("SharedCell(empty)"),
        }
    }
}
