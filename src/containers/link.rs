//! Objects from within the pool: a [`Link`] is a counted reference that is itself part of a value,
//! so lists, trees and graphs are made of ordinary structs.
//!
//! A link is one word: the target's index + 1, with the mark of the thread that stored it
//! (`detect`). Setting it counts the new target, swaps the word, and uncounts the old target
//! (`intents`). To get a handle, a reader holds the target and looks at the link again; a [`View`]
//! pins the epoch instead.

use std::alloc::Layout;
use std::fmt;
use std::marker::{PhantomData, PhantomPinned};
use std::num::NonZeroU64;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::{Shared, Value};
use crate::ShmSafe;
use crate::engines::limbo;
use crate::layout::arena::Arena;
use crate::layout::{Field, TypeInfo};
use crate::participants::epoch;
use crate::participants::here::{Here, from_nowhere, here};
use crate::participants::table::Slot;
use crate::participants::tag::Tag;
use crate::participants::thread::{self, NoSlot};
use crate::pool::{Pool, dispose, handles, intents, objects};
use crate::primitive::{AtomicU64, Ordering};

/// A counted reference to an object of the same pool, as a field of another object.
///
/// It may be null, and is changed atomically, in place, through `&self`. Objects in a cycle of
/// links keep each other alive.
///
/// # Crash behaviour
///
/// [`Link::set`] has happened or it has not, and all counts are right.
///
/// ```
/// use shmkit::{Link, Pool, ShmSafe};
///
/// #[derive(ShmSafe)]
/// struct Node {
///     value: u32,
///     next: Link<Node>,
/// }
///
/// let pool = Pool::builder().create()?;
/// let tail = pool.create(Node { value: 2, next: Link::null() })?;
/// let head = pool.create(Node { value: 1, next: Link::null() })?;
/// head.next.set(Some(&tail))?;
/// drop(tail);
/// assert_eq!(head.next.view().unwrap().value, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(transparent)]
pub struct Link<T: ShmSafe> {
    word: AtomicU64,
    /// Invariant in `T`: another target is stored through `&`.
    target: PhantomData<fn(T) -> T>,
    _in_place: PhantomPinned,
}

// SAFETY: an index into the pool's own table, changed by atomics; no drop glue: the object that
// the link is part of is destroyed by its type's description, which lists the link.
unsafe impl<T: ShmSafe> ShmSafe for Link<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::link::<Self, T>("Link");
    const OWNS: bool = true;
}

/// Why a link was not set.
///
/// ```
/// use shmkit::{Link, LinkError, Pool};
///
/// let pool = Pool::builder().create()?;
/// let link = pool.create(Link::null())?;
/// let other = Pool::builder().create()?.create(7_u32)?;
/// assert_eq!(link.set(Some(&other)), Err(LinkError::OtherPool));
/// assert!(link.is_null());
/// assert_eq!(Link::<u32>::null().set(None), Err(LinkError::NotInPool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LinkError {
    /// The link is not part of an object in a pool.
    #[error("the link is not in a pool")]
    NotInPool,
    /// The object is in another pool than the link.
    #[error("the object is in another pool than the link")]
    OtherPool,
    /// The object already has as many links to it as can be counted: 2^32 - 1.
    #[error("too many links lead to the object")]
    TooManyLinks,
    /// The thread has no slot in the pool.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
}

from_nowhere!(LinkError);

impl From<intents::TooManyLinks> for LinkError {
    fn from(_: intents::TooManyLinks) -> Self {
        LinkError::TooManyLinks
    }
}

impl<T: ShmSafe> Link<T> {
    /// A link that leads nowhere.
    ///
    /// ```
    /// # use shmkit::{Link, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let pair = pool.create((7_u32, Link::<u32>::null()))?;
    /// assert!(pair.1.view().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn null() -> Self {
        Link {
            word: AtomicU64::new(0),
            target: PhantomData,
            _in_place: PhantomPinned,
        }
    }

    fn target(&self) -> Option<usize> {
        objects::target(self.word.load(Ordering::SeqCst))
    }

    /// True if the link leads nowhere.
    ///
    /// ```
    /// # use shmkit::{Link, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let link = pool.create(Link::null())?;
    /// assert!(link.is_null());
    /// link.set(Some(&pool.create(7_u32)?))?;
    /// assert!(!link.is_null());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.target().is_none()
    }

    /// Makes the link lead to an object, or nowhere. The object that it led to is destroyed if
    /// nothing else holds it.
    ///
    /// # Errors
    ///
    /// See [`LinkError`].
    ///
    /// # Crash behaviour
    ///
    /// The link leads to the old target or to the new one, and no object is counted wrongly. If the caller
    /// is killed before it has destroyed an object that nobody holds, others destroy it.
    ///
    /// ```
    /// # use shmkit::{HandleError, Link, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let link = pool.create(Link::null())?;
    /// let target = pool.create(7_u32)?;
    /// let handle = target.handle();
    /// link.set(Some(&target))?;
    /// drop(target);
    /// assert_eq!(*handle.open()?, 7);
    /// link.set(None)?;
    /// assert_eq!(handle.open().err(), Some(HandleError::Gone));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set(&self, to: Option<&Shared<T>>) -> Result<(), LinkError> {
        let Here { arena, slot } = here(self)?;
        if to.is_some_and(|to| to.pool() != Pool(arena)) {
            return Err(LinkError::OtherPool);
        }
        let new = to.map_or(0, |to| to.index() as u32 + 1);
        if let Some(old) = intents::set_link(arena, slot, &self.word, new)? {
            dispose::dispose(arena, old);
            dispose::retry(arena);
        }
        Ok(())
    }

    /// Returns a handle of the object that the link leads to; `None` if it leads nowhere (or if the
    /// thread has no slot in the pool, or there is no memory to note that this process holds the object).
    ///
    /// ```
    /// # use shmkit::{Link, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let first = pool.create(Link::null())?;
    /// assert!(first.get().is_none());
    /// first.set(Some(&pool.create(7_u32)?))?;
    /// let target = first.get().unwrap();
    /// // Held by the handle now.
    /// first.set(None)?;
    /// assert_eq!(*target, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn get(&self) -> Option<Shared<T>> {
        let Here { arena, .. } = here(self).ok()?;
        loop {
            let word = self.word.load(Ordering::SeqCst);
            let target = objects::target(word)?;
            let generation = arena.object(target)?.state().generation;
            let Some(hold) = handles::open(arena, target, generation).ok()? else {
                // The object was destroyed after the link was read, so the link has been set since.
                // If it has not, the pool is damaged.
                if self.word.load(Ordering::SeqCst) == word {
                    return None;
                }
                continue;
            };
            // Held and still linked: it is the object that the link leads to.
            if self.target() == Some(target) {
                return Shared::of(hold);
            }
        }
    }

    /// Returns a view of the object that the link leads to, without counting it; `None` if the link
    /// leads nowhere, or the thread has no slot in the pool.
    ///
    /// While a view is open, nothing that it could see is freed.
    ///
    /// ```
    /// # use shmkit::{Link, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let link = pool.create(Link::null())?;
    /// assert!(link.view().is_none());
    /// link.set(Some(&pool.create(7_u32)?))?;
    /// let view = link.view().unwrap();
    /// link.set(None)?;
    /// assert_eq!(*view, 7, "it is not freed meanwhile");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn view(&self) -> Option<View<'_, T>> {
        let Here { arena, slot } = here(self).ok()?;
        epoch::pin(arena, slot);
        let value = self
            .target()
            .and_then(|index| objects::address_of(arena, index, Layout::new::<T>()));
        let Some(value) = value else {
            epoch::unpin(slot);
            return None;
        };
        // SAFETY: the object was linked at a moment within the pin, so it is not destroyed before
        // the pin ends; it is of type `T`, as only handles of `T` are linked here.
        Some(View::pinned(unsafe { value.cast::<T>().as_ref() }, slot))
    }
}

impl<T: ShmSafe> Default for Link<T> {
    fn default() -> Self {
        Link::null()
    }
}

impl<T: ShmSafe> fmt::Debug for Link<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_null() {
            "Link(null)"
        } else {
            "Link(..)"
        })
    }
}

/// A view of a value, which others may unlink meanwhile but not free; or of a copy of a small
/// value.
///
/// It takes two words, and so does an `Option` of it, as such a pair is passed in registers.
///
/// ```
/// # use shmkit::{Pool, SharedCell};
/// # let pool = Pool::builder().create()?;
/// let cell = pool.create(SharedCell::new())?;
/// cell.set([1_u64, 2])?;
/// let seen = cell.view().unwrap();
/// cell.set([3, 4])?;
/// assert_eq!(*seen, [1, 2], "as it was");
/// assert_eq!(*cell.view().unwrap(), [3, 4]);
/// // Printed, it is the value.
/// let count = pool.create(SharedCell::new())?;
/// count.set(7)?;
/// assert_eq!(count.view().unwrap().to_string(), "7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct View<'a, T: ?Sized + Value> {
    /// The address of the value; for a copy, a word that begins with the value.
    seen: *const (),
    /// The tag of the slot that is pinned for the view, or [`COPY`].
    pinned_by: NonZeroU64,
    value: PhantomData<&'a T>,
}

/// In place of a tag if the view is of a copy, for which nobody is pinned. It is not the tag of a
/// slot.
const COPY: NonZeroU64 = NonZeroU64::MIN;
const _: () = assert!(COPY.get() & Tag::MASK == 0);

impl<'a, T: ?Sized + Value> View<'a, T> {
    #[inline]
    fn is_copy(&self) -> bool {
        T::FITS_WORD && self.pinned_by == COPY
    }

    /// A view of a value that is pinned by `slot`, which is this thread's. The pin ends with the
    /// view.
    #[inline]
    pub(super) fn pinned(value: &'a T, slot: &'static Slot) -> Self
    where
        T: Sized,
    {
        thread::guard_made(slot);
        // SAFETY: it is a value, for as long as the reference.
        unsafe { View::held(std::ptr::from_ref(value).cast(), slot.tag()) }
    }

    /// A view of the value at an address, if the pin is already counted as a guard.
    ///
    /// # Safety
    ///
    /// As for [`Value::at`], for as long as the pin.
    #[inline]
    unsafe fn held(seen: *const (), tag: Tag) -> Self {
        View {
            seen,
            // The tag is never 0, as a slot has a tag.
            pinned_by: NonZeroU64::new(tag.word()).unwrap_or(COPY),
            value: PhantomData,
        }
    }

    /// A view of a copy. Nothing is pinned for it.
    ///
    /// # Safety
    ///
    /// The word begins with the bytes of a `T`, and `T` [fits into a word](Value::FITS_WORD).
    #[inline]
    pub(super) unsafe fn of_word(word: u64) -> Self {
        debug_assert!(T::FITS_WORD);
        View {
            seen: std::ptr::without_provenance(word as usize),
            pinned_by: COPY,
            value: PhantomData,
        }
    }
}

/// A pin of this thread, counted as a guard. It ends when this is dropped, also by a panic.
pub(super) struct Pinned {
    slot: &'static Slot,
    tag: Tag,
    _one_thread: PhantomData<*const ()>,
}

impl Pinned {
    #[inline]
    pub(super) fn new(arena: Arena, slot: &'static Slot) -> Self {
        epoch::pin(arena, slot);
        thread::guard_made(slot);
        Pinned {
            slot,
            tag: slot.tag(),
            _one_thread: PhantomData,
        }
    }

    /// A view of the value at an address, which was found under the pin. The pin lasts as long as the view.
    ///
    /// # Safety
    ///
    /// As for [`Value::at`], for as long as the pin.
    #[inline]
    pub(super) unsafe fn view<'a, T: ?Sized + Value>(self, seen: *const ()) -> View<'a, T> {
        // SAFETY: by the caller's promise.
        unsafe { View::held(seen, std::mem::ManuallyDrop::new(self).tag) }
    }
}

/// Ends a pin under which the user's code may have run. Some of what was let go of meanwhile is
/// freed now.
#[inline]
pub(super) fn unpin(slot: &'static Slot) {
    epoch::unpin(slot);
    thread::guard_dropped(slot);
    if let Some(arena) = Arena::containing(std::ptr::from_ref(slot).addr()) {
        limbo::collect_after_look(arena, slot);
        dispose::retry(arena);
    }
}

impl Drop for Pinned {
    #[inline]
    fn drop(&mut self) {
        // A forked child has a copy of its parent's `Pinned`, but not its pin.
        if thread::still_held(self.slot, self.tag).is_some() {
            unpin(self.slot);
        }
    }
}

impl<T: ?Sized + Value> Deref for View<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        if self.is_copy() {
            // SAFETY: the view was made of a word that begins with a plain value's bytes, and nobody
            // changes the word.
            unsafe { T::at((&raw const self.seen).cast()) }
        } else {
            // SAFETY: as `held` was promised.
            unsafe { T::at(self.seen.cast()) }
        }
    }
}

impl<T: ?Sized + Value> Drop for View<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // A forked child has a copy of its parent's view, but not its pin.
        if self.is_copy() {
            return;
        }
        let tag = Tag::of_word(self.pinned_by.get());
        // SAFETY: a value that is pinned is in a pool.
        if let Some(slot) = unsafe { thread::still_held_near(self.seen.addr(), tag) } {
            unpin(slot);
        }
    }
}

impl<T: ?Sized + Value + fmt::Display> fmt::Display for View<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + Value + fmt::Debug> fmt::Debug for View<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

const _: () = assert!(size_of::<Option<View<'_, u8>>>() == 16);
const _: () = assert!(size_of::<Link<u8>>() == 8 && Field::at::<Link<u8>>("link", 0).owns());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NamedError;

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let pool = Pool::builder().create().unwrap();
        let (link, target) = (pool.create(Link::null()).unwrap(), pool.create(7).unwrap());
        let links = &pool.0.object(target.index()).unwrap().links;
        links.store(u32::MAX.into(), Ordering::SeqCst);
        assert_eq!(link.set(Some(&target)), Err(LinkError::TooManyLinks));
        assert!(link.is_null());
        let named = pool.set_name("one more", &target);
        assert_eq!(named, Err(NamedError::TooManyLinks));
        assert_eq!(pool.names().len(), 0);
        links.store(0, Ordering::SeqCst);
        assert_eq!(link.set(Some(&target)), Ok(()));
        assert!(pool.check().is_ok());
    }
}
