//! [`Heap`]: objects that refer to each other, changed by transactions.
//!
//! | module    | what |
//! |-----------|------|
//! | `gc`      | [`Gc`]: ids, and how they are checked |
//! | `trace`   | [`Trace`]: the ids that a value has; marking |
//! | `view`    | [`HeapView`]: reading, which locks the heap too |
//! | `tx`      | [`Tx`]: a transaction, and a collection within one |
//! | `refusals`| the errors |
//!
//! For how changes are undone, and what a kill leaves, see `engines::heap`.
//!
//! The lock is an [`RwLock`] around the words of the engine and the root. When the lock has been taken,
//! no earlier transaction is half done: whoever takes the lock of a dead writer undoes first. A writer
//! that panics undoes its changes as it unwinds, so the lock's poison means nothing here.
//!
//! | lock taken | what is found | what is done |
//! |---|---|---|
//! | `view`, free | | |
//! | `view`, of a dead writer | an orphan | undo, unlock, lock again |
//! | `modify`, `collect` | perhaps an orphan | undo |
//!
//! Invariants
//! 1. References to the root and to objects exist only while the heap is locked; `&mut` ones only under
//!    a [`Tx`], one at a time, and only to what is logged or new.
//! 2. What a collection within a transaction frees is reached neither from the heap as it is now nor
//!    from the heap as it was before, and is no part of the transaction. So undoing finds all that
//!    it needs.

mod gc;
mod refusals;
mod trace;
mod tx;
mod view;

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomPinned;
use std::mem::offset_of;

use serde::Serialize;

pub use gc::{Gc, GcTarget};
pub use refusals::HeapError;
pub use trace::{Trace, Tracer};
pub use tx::Tx;
pub use view::HeapView;

use crate::allocator::block;
use crate::engines::heap::Words;
use crate::layout::{Engine, Field, TypeInfo};
use crate::participants::here::{Here, arena_at, here};
use crate::primitive::AtomicU64;
use crate::sync::{LockError, RwLock, WriteGuard, WriteOrphan};
use crate::{Movable, ShmSafe};

/// A collection is due when this many bytes were allocated since the last one, or as many as that
/// one left, whichever is more.
const LEAST_DEBT: u64 = 1 << 20;

/// A root and the objects that are reached from it, in a pool: a graph of ordinary structs, which may
/// have cycles.
///
/// Objects are made, read and changed in a transaction ([`modify`](Self::modify)), of which there is one at a
/// time, or read in a [`view`](Self::view), of which there can be many at once. They refer to each other by
/// ids ([`Gc`]), and are freed by a [collection](Self::collect) when nothing leads from the root to them any
/// more. Collections also happen on their own: before a transaction, if as much was allocated since the last
/// one as that one had left (but at least 1 MiB), and in a transaction, if the pool is full.
///
/// The root and the objects own no pool memory: they cannot contain links, locks or containers.
///
/// # Crash behaviour
///
/// If a process is killed in a transaction, the transaction has not happened: the next one to use the heap
/// undoes it. If a transaction panics, it has not happened either. A process that is killed with a view
/// leaves nothing behind; one that is killed in a collection leaves some garbage to the next collection.
///
/// ```
/// use shmkit::{Gc, Heap, Pool, ShmSafe, Trace};
///
/// #[derive(ShmSafe, Trace)]
/// struct Node {
///     value: u32,
///     next: Option<Gc<Node>>,
/// }
///
/// let pool = Pool::builder().create()?;
/// let ring = pool.create(Heap::new(None::<Gc<Node>>))?;
/// ring.try_modify(|tx| {
///     let first = tx.alloc(Node { value: 1, next: None })?;
///     let second = tx.alloc(Node { value: 2, next: Some(first) })?;
///     tx.get_mut(first)?.next = Some(second);
///     *tx.root_mut()? = Some(first);
///     Ok::<_, shmkit::HeapError>(())
/// })?;
/// let view = ring.view()?;
/// let first = view.get(view.root().unwrap()).unwrap();
/// let second = view.get(first.next.unwrap()).unwrap();
/// assert_eq!((first.value, second.value, second.next), (1, 2, *view.root()));
/// drop(view);
///
/// ring.modify(|tx| *tx.root_mut().unwrap() = None)?;
/// assert_eq!(ring.collect()?.freed, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(transparent)]
pub struct Heap<R: Trace + Movable> {
    lock: RwLock<Body<R>>,
}

/// What the lock protects.
#[repr(C)]
struct Body<R> {
    words: Words,
    root: UnsafeCell<R>,
    _in_place: PhantomPinned,
}

// SAFETY: the root is shared as the module's invariant 1 says, and its type allows that; the words are
// atomic, except for bytes that only the holder of the lock for writing uses.
unsafe impl<R: Trace> Sync for Body<R> {}

/// The first word of a heap.
#[repr(transparent)]
struct Objects(AtomicU64);

// SAFETY: an address within the pool; `TYPE` says which engine knows what it owns.
unsafe impl ShmSafe for Objects {
    const TYPE: &'static TypeInfo = &TypeInfo::engine::<Self>("Objects", Engine::Heap);
    const OWNS: bool = true;
}

// SAFETY: atomics and bytes, the first word of which is listed as what it is, and the root, listed at its
// offset. No drop glue.
unsafe impl<R: Trace> ShmSafe for Body<R> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "HeapBody",
        const {
            &[
                Field::at::<Objects>("objects", offset_of!(Self, words)),
                Field::at::<R>("root", offset_of!(Self, root)),
            ]
        },
    );
    const IMAGE_BOUND: bool = R::IMAGE_BOUND;
    const OWNS: bool = true;
}

// SAFETY: the lock, described at its offset.
unsafe impl<R: Trace + Movable> ShmSafe for Heap<R> {
    const TYPE: &'static TypeInfo =
        &TypeInfo::library::<Self>("Heap", const { &[Field::at::<RwLock<Body<R>>>("lock", 0)] });
    const IMAGE_BOUND: bool = R::IMAGE_BOUND;
    const OWNS: bool = true;
}

/// What a collection did.
///
/// ```
/// use shmkit::{Heap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let heap = pool.create(Heap::new(None))?;
/// heap.modify(|tx| tx.alloc([0_u8; 1000]))??;
/// heap.try_modify(|tx| {
///     *tx.root_mut()? = Some(tx.alloc([1_u8; 2000])?);
///     Ok::<_, shmkit::HeapError>(())
/// })?;
/// let done = heap.collect()?;
/// assert_eq!((done.freed, done.live), (1, 1));
/// assert!((1000..2000).contains(&done.freed_bytes) && done.live_bytes >= 2000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Collected {
    /// The number of objects that were freed.
    pub freed: usize,
    /// The size of their blocks, in bytes.
    pub freed_bytes: usize,
    /// The number of objects that are left.
    pub live: usize,
    /// The size of their blocks, in bytes.
    pub live_bytes: usize,
}

/// What a heap contains.
///
/// ```
/// use shmkit::{Heap, Pool};
///
/// let pool = Pool::builder().create()?;
/// let heap = pool.create(Heap::new(()))?;
/// heap.modify(|tx| tx.alloc_slice_with(1000, |i| i))??;
/// let stats = heap.stats()?;
/// assert_eq!(stats.objects, 1);
/// assert!(stats.bytes >= 8000 && stats.overhead > 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HeapStats {
    /// The number of objects, including those that a collection would free.
    pub objects: usize,
    /// The size of their blocks, in bytes.
    pub bytes: usize,
    /// The size of the heap's table and log, in bytes.
    pub overhead: usize,
}

impl<R: Trace + Movable> Heap<R> {
    /// A heap with a root and nothing else. It can be used once it is in a pool.
    ///
    /// A root that owns pool memory does not compile:
    ///
    /// ```compile_fail,E0080
    /// # use shmkit::{Heap, Link, ShmSafe, Trace, Tracer};
    /// #[derive(ShmSafe)]
    /// struct Owner(Link<u8>);
    ///
    /// impl Unpin for Owner {}
    ///
    /// impl Trace for Owner {
    ///     fn trace(&self, _: &mut Tracer<'_>) {}
    /// }
    ///
    /// let heap = Heap::new(Owner(Link::null()));
    /// ```
    ///
    /// Nor can it hold another crate's collection: undoing a transaction brings the collection's bytes
    /// back, but not the block that they led to.
    ///
    /// ```compile_fail,E0080
    /// # use shmkit::{Foreign, Heap, ShmSafe, Trace, Tracer};
    /// #[derive(ShmSafe)]
    /// struct Holder(Foreign<u64>);
    ///
    /// impl Trace for Holder {
    ///     fn trace(&self, _: &mut Tracer<'_>) {}
    /// }
    ///
    /// // SAFETY: it owns nothing.
    /// let heap = Heap::new(Holder(unsafe { Foreign::new(1) }));
    /// ```
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let named = pool.create((7_u32, Heap::new(1_u64)))?;
    /// assert_eq!(*named.1.view()?.root(), 1);
    /// assert!(named.1.is_empty()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(root: R) -> Self {
        // An undo brings back bytes, also those of another crate's collection whose block is gone.
        const {
            assert!(
                !R::OWNS && !R::IMAGE_BOUND,
                "the root of a heap owns no pool memory"
            )
        };
        const { R::TYPE.assert_moves() };
        Heap {
            lock: RwLock::new(Body {
                words: Words::new(LEAST_DEBT),
                root: UnsafeCell::new(root),
                _in_place: PhantomPinned,
            }),
        }
    }

    /// Returns a view of the heap, which cannot change while the view exists. Waits while there is a
    /// transaction.
    ///
    /// # Errors
    ///
    /// [`HeapError::WouldDeadlock`] if this thread has a view or a transaction of the heap already;
    /// [`HeapError::TooManyReads`], [`HeapError::NotInPool`], [`HeapError::NoSlot`].
    ///
    /// # Crash behaviour
    ///
    /// A process that is killed with a view hinders nobody.
    ///
    /// ```
    /// # use shmkit::{Heap, HeapError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(1_u64))?;
    /// let view = heap.view()?;
    /// assert_eq!(*view.root(), 1);
    /// assert_eq!(heap.modify(|_| ()), Err(HeapError::WouldDeadlock));
    /// drop(view);
    /// heap.modify(|_| ())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn view(&self) -> Result<HeapView<'_, R>, HeapError> {
        loop {
            match self.lock.read() {
                Ok(guard) | Err(LockError::Panicked(guard)) => {
                    // The heap is in a pool, as there is a guard.
                    let arena = arena_at(std::ptr::from_ref(self).addr());
                    let table = guard.words.table(arena);
                    return Ok(HeapView { guard, table });
                }
                // This undoes what the dead writer did.
                Err(LockError::OwnerDied(orphan)) => drop(self.take_over(orphan)?),
                Err(other) => return Err(other.into()),
            }
        }
    }

    /// Runs `f` as a transaction: nobody else sees any of its changes until the transaction is over,
    /// and then all of them. Waits until there is no view and no other transaction.
    ///
    /// What `f` has done is kept whatever it returns; [`try_modify`](Self::try_modify) undoes it if `f`
    /// fails.
    ///
    /// # Errors
    ///
    /// [`HeapError::WouldDeadlock`] if this thread has a view or a transaction of the heap already;
    /// [`HeapError::NotInPool`], [`HeapError::NoSlot`]. In these cases `f` was not run. [`HeapError::Forked`] in a
    /// child that was forked within `f`.
    ///
    /// # Panics
    ///
    /// If `f` does, or an implementation of [`Trace`] in a collection that was due before the transaction or was needed
    /// in it. Then all that `f` did is undone.
    ///
    /// # Crash behaviour
    ///
    /// The whole transaction has happened, or none of it: it takes effect when `f` has returned.
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new((0_u64, None)))?;
    /// let name = heap.modify(|tx| tx.alloc_str("no longer than needed"))??;
    /// heap.modify(|tx| tx.root_mut().map(|root| *root = (1, Some(name))))??;
    /// assert_eq!(heap.view()?.get(name), Some("no longer than needed"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn modify<O>(&self, f: impl for<'t> FnOnce(&mut Tx<'t, R>) -> O) -> Result<O, HeapError> {
        let (guard, here) = self.write()?;
        let mut tx = Tx::begin(guard, here);
        tx.collect_if_due();
        let outcome = f(&mut tx);
        tx.commit()?;
        Ok(outcome)
    }

    /// As [`modify`](Self::modify), but if `f` fails, everything that it did is undone.
    ///
    /// # Errors
    ///
    /// The error that `f` returns; otherwise as for [`modify`](Self::modify).
    ///
    /// # Panics
    ///
    /// If `f` does, or an implementation of [`Trace`] in a collection that was due before the transaction or was needed
    /// in it. Then all that `f` did is undone.
    ///
    /// # Crash behaviour
    ///
    /// As for [`modify`](Self::modify).
    ///
    /// ```
    /// # use shmkit::{Gc, Heap, HeapError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// # let other = pool.create(Heap::new(0_u64))?;
    /// # let elsewhere = other.modify(|tx| tx.alloc(0_u64))??;
    /// let heap = pool.create(Heap::new(1_u64))?;
    /// let outcome = heap.try_modify(|tx| {
    ///     *tx.root_mut()? = 2;
    ///     *tx.get_mut(elsewhere)? = 3;
    ///     Ok(())
    /// });
    /// assert_eq!(outcome, Err(HeapError::NoObject));
    /// assert_eq!(*heap.view()?.root(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_modify<O, E: From<HeapError>>(
        &self,
        f: impl for<'t> FnOnce(&mut Tx<'t, R>) -> Result<O, E>,
    ) -> Result<O, E> {
        let (guard, here) = self.write()?;
        let mut tx = Tx::begin(guard, here);
        tx.collect_if_due();
        let outcome = f(&mut tx)?;
        tx.commit()?;
        Ok(outcome)
    }

    /// Frees every object that is not reached from the root. Waits until there is no view and no transaction.
    ///
    /// It takes time proportional to the number of all objects, and one bit of private memory for
    /// each.
    ///
    /// # Errors
    ///
    /// As for [`modify`](Self::modify).
    ///
    /// # Panics
    ///
    /// If an implementation of [`Trace`] does. Nothing is freed then.
    ///
    /// # Crash behaviour
    ///
    /// Each object has been freed or not, and none that is reached has been. One that remains may refer to one that
    /// was freed: neither is reached, and such an id leads to `None`.
    ///
    /// ```
    /// # use shmkit::{Gc, Heap, HeapError, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(None::<Gc<str>>))?;
    /// for name in ["Ada", "Grace"] {
    ///     heap.try_modify(|tx| {
    ///         let name = tx.alloc_str(name)?;
    ///         *tx.root_mut()? = Some(name);
    ///         Ok::<_, HeapError>(())
    ///     })?;
    /// }
    /// let collected = heap.collect()?;
    /// assert_eq!((collected.freed, collected.live), (1, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn collect(&self) -> Result<Collected, HeapError> {
        let (guard, here) = self.write()?;
        let mut tx = Tx::begin(guard, here);
        let collected = tx.collect();
        tx.commit()?;
        Ok(collected)
    }

    /// Counts objects and bytes, in time proportional to the largest number of objects that the heap ever
    /// had.
    ///
    /// # Errors
    ///
    /// As for [`view`](Self::view).
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// heap.modify(|tx| tx.alloc([0_u8; 1000]))??;
    /// let stats = heap.stats()?;
    /// assert_eq!(stats.objects, 1);
    /// assert!(stats.bytes >= 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats(&self) -> Result<HeapStats, HeapError> {
        let view = self.view()?;
        let (arena, words) = (here(&self.lock)?.arena, &view.guard.words);
        let size = |address| block::usable_size(arena, address as usize).unwrap_or(0);
        let mut stats = HeapStats {
            overhead: words.blocks(arena).map(size).sum(),
            ..HeapStats::default()
        };
        for (_, entry) in view.table.objects() {
            stats.objects += 1;
            stats.bytes += size(entry.address());
        }
        Ok(stats)
    }

    /// The number of objects, including those that a collection would free. It counts as
    /// [`stats`](Self::stats) does.
    ///
    /// # Errors
    ///
    /// As for [`view`](Self::view).
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(()))?;
    /// heap.modify(|tx| (0..3_u32).try_for_each(|n| tx.alloc(n).map(drop)))??;
    /// assert_eq!(heap.len()?, 3);
    /// heap.collect()?;
    /// assert_eq!(heap.len()?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn len(&self) -> Result<usize, HeapError> {
        Ok(self.stats()?.objects)
    }

    /// True if there is no object.
    ///
    /// # Errors
    ///
    /// As for [`view`](Self::view).
    ///
    /// ```
    /// # use shmkit::{Heap, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(7_u32))?;
    /// assert!(heap.is_empty()?, "the root is none");
    /// heap.modify(|tx| tx.alloc(7_u32))??;
    /// assert!(!heap.is_empty()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_empty(&self) -> Result<bool, HeapError> {
        let view = self.view()?;
        Ok(view.table.objects().next().is_none())
    }

    /// Locks the heap for writing, and undoes what a dead writer did.
    #[inline(always)]
    fn write(&self) -> Result<(WriteGuard<'_, Body<R>>, Here), HeapError> {
        let here = here(&self.lock)?;
        let guard = match self.lock.write_if_free(here) {
            Some(guard) => guard,
            None => self.write_in_turn()?,
        };
        Ok((guard, here))
    }

    #[cold]
    fn write_in_turn(&self) -> Result<WriteGuard<'_, Body<R>>, HeapError> {
        match self.lock.write() {
            Ok(guard) => Ok(guard),
            Err(LockError::Panicked(guard)) => {
                self.lock.clear_poison();
                Ok(guard)
            }
            Err(LockError::OwnerDied(orphan)) => self.take_over(orphan),
            Err(other) => Err(other.into()),
        }
    }

    /// Undoes what a dead writer did.
    #[cold]
    fn take_over<'a>(
        &self,
        orphan: WriteOrphan<'a, Body<R>>,
    ) -> Result<WriteGuard<'a, Body<R>>, HeapError> {
        // Done before there is a guard, as dropping the guard would say that everything is undone.
        let Here { arena, slot } = here(&self.lock)?;
        // SAFETY: atomics, and a root that nobody refers to before everything is undone. Should we
        // die meanwhile, the next one gets an orphan again.
        let guard = unsafe { orphan.assume_valid() };
        let root = guard.root.get().cast::<u8>();
        guard.words.undo(arena, slot, (root, size_of::<R>()));
        Ok(guard)
    }
}

impl<R: Trace + Movable + Default> Default for Heap<R> {
    fn default() -> Self {
        Heap::new(R::default())
    }
}

impl<R: Trace + Movable> fmt::Debug for Heap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").finish_non_exhaustive()
    }
}
