//! [`HeapView`]: the root and the objects, which do not change while they are looked at.
//! Invariants: `containers::heap`.

use std::fmt;

use super::Body;
use super::gc::{self, Gc, GcTarget};
use super::trace::Trace;
use crate::Movable;
use crate::engines::heap::HeapTable;
use crate::sync::ReadGuard;

/// A view of a heap, which does not change while the view exists.
///
/// A view is a lock: transactions and collections wait for it. It stays on its thread:
///
/// ```compile_fail,E0277
/// # let pool = shmkit::Pool::builder().create().unwrap();
/// # let heap = pool.create(shmkit::Heap::new(0_u64)).unwrap();
/// let view = heap.view().unwrap();
/// std::thread::scope(|s| {
///     s.spawn(move || println!("{}", view.root()));
/// });
/// ```
///
/// ```
/// use shmkit::{Heap, HeapError, Pool};
///
/// let pool = Pool::builder().create()?;
/// let heap = pool.create(Heap::new(None))?;
/// heap.try_modify(|tx| {
///     *tx.root_mut()? = Some(tx.alloc_str("one thing")?);
///     Ok::<_, HeapError>(())
/// })?;
/// let view = heap.view()?;
/// let text = view.root().and_then(|text| view.get(text));
/// assert_eq!(text, Some("one thing"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the heap is locked while there is a view"]
pub struct HeapView<'a, R: Trace + Movable> {
    pub(super) guard: ReadGuard<'a, Body<R>>,
    pub(super) table: HeapTable,
}

impl<R: Trace + Movable> HeapView<'_, R> {
    /// The root.
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new((1_u32, 2_u32)))?;
    /// heap.modify(|tx| tx.root_mut().map(|root| root.1 = 7))??;
    /// assert_eq!(*heap.view()?.root(), (1, 7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn root(&self) -> &R {
        // SAFETY: locked for reading, so by invariant 1 nobody has a mutable reference.
        unsafe { &*self.guard.root.get() }
    }

    /// Returns the object; `None` if the id does not lead to an object of this heap.
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// let name = heap.modify(|tx| tx.alloc_str("Ada"))??;
    /// assert_eq!(heap.view()?.get(name), Some("Ada"));
    /// heap.collect()?;
    /// assert_eq!(heap.view()?.get(name), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn get<T: ?Sized + GcTarget>(&self, gc: Gc<T>) -> Option<&T> {
        let target = gc::find(&self.table, gc)?;
        // SAFETY: an object of that type; locked for reading, so by invariant 1 nobody has a mutable
        // reference, and nothing is freed.
        Some(unsafe { target.value().as_ref() })
    }
}

impl<R: Trace + Movable + fmt::Debug> fmt::Debug for HeapView<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapView")
            .field("root", self.root())
            .finish_non_exhaustive()
    }
}
