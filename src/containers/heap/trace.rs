//! [`Trace`]: how a collection finds the ids that a value has.
//!
//! # Rationale
//!
//! Which object an id leads to is data, but where ids are in a value (in some variant of an enum, say)
//! is best known to the type's code, and the type of an id says what type it leads to. So marking runs
//! code, beginning with the root type's, in programs that have the root's type: nobody else can ask for
//! a collection. Recovery, undoing and destroying need none of this code.
//!
//! A wrong implementation can do only one kind of harm: an object that it does not find is
//! collected, and its ids lead to `None`. So the trait is safe.

use std::fmt;
use std::marker::PhantomData;
use std::num::{
    NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroI128, NonZeroIsize, NonZeroU8,
    NonZeroU16, NonZeroU32, NonZeroU64, NonZeroU128, NonZeroUsize, Wrapping,
};
use std::time::Duration;

use super::gc::{self, Gc, GcTarget};
use crate::ShmSafe;
use crate::engines::heap::HeapTable;

/// A type whose values may be objects of a [`Heap`](super::Heap), or its root.
///
/// Use the derive macro of the same name, for a struct or an enum whose fields are all `Trace`. The trait is
/// implemented for numbers, `bool`, `char`, [`Gc`], and `Option`s, arrays and tuples of types that are `Trace`. It is
/// not implemented for atomics: what changes through `&self` is not undone, and is no part of a transaction. The same
/// holds for a type with atomics for which the trait is implemented by hand.
///
/// An implementation by hand calls `trace` for each part that may contain ids. An object whose ids it leaves out is
/// collected when nothing else leads to it; the ids lead to `None` then. The method runs while the heap is locked, so
/// it must not use the heap. If it panics, nothing is collected, and the call that collects panics.
///
/// ```
/// use shmkit::{Gc, ShmSafe, Trace};
///
/// #[derive(ShmSafe, Trace)]
/// struct Person {
///     age: u8,
///     name: Gc<str>,
///     spouse: Option<Gc<Person>>,
///     children: Option<Gc<[Gc<Person>]>>,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in a heap",
    label = "not `Trace`",
    note = "`#[derive(Trace)]` admits structs and enums of numbers, `Gc`s, `Option`s and arrays; \
            atomics, locks, links and containers do not qualify, for what they change is not undone"
)]
pub trait Trace: ShmSafe {
    /// Shows all ids that are in the value to the tracer.
    ///
    /// ```
    /// # use shmkit::{Gc, Heap, HeapError, Pool, ShmSafe, Trace, Tracer};
    /// # let pool = Pool::builder().create()?;
    /// #[derive(ShmSafe)]
    /// struct Lines([Option<Gc<str>>; 4]);
    ///
    /// impl Trace for Lines {
    ///     fn trace(&self, tracer: &mut Tracer<'_>) {
    ///         self.0.trace(tracer);
    ///     }
    /// }
    ///
    /// let heap = pool.create(Heap::new(Lines([None; 4])))?;
    /// heap.try_modify(|tx| {
    ///     tx.root_mut()?.0[2] = Some(tx.alloc_str("reached")?);
    ///     Ok::<_, HeapError>(())
    /// })?;
    /// assert_eq!(heap.collect()?.freed, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn trace(&self, tracer: &mut Tracer<'_>);
}

/// How elements of a type are traced.
#[derive(Clone, Copy)]
pub(super) struct Elements {
    size: usize,
    /// Traces that many elements, which need not be aligned.
    trace: unsafe fn(*const u8, usize, &mut Tracer<'_>),
}

impl Elements {
    pub(super) const fn of<E: Trace>() -> Self {
        Elements {
            size: size_of::<E>(),
            trace: trace_elements::<E>,
        }
    }

    /// Elements that have no ids.
    pub(super) const NONE: Elements = Elements::of::<()>();

    /// Traces the elements that lie in `room` bytes, but at most `len` of them.
    ///
    /// # Safety
    ///
    /// The bytes are those of such elements, and nobody changes them meanwhile.
    pub(super) unsafe fn trace(
        self,
        bytes: *const u8,
        room: usize,
        len: usize,
        tracer: &mut Tracer<'_>,
    ) {
        if let Some(most) = room.checked_div(self.size) {
            // SAFETY: by the caller's promise; no more elements than there are bytes for.
            unsafe { (self.trace)(bytes, len.min(most), tracer) };
        }
    }
}

/// # Safety
///
/// `count` values of type `E` are at that address, perhaps not aligned, and nobody changes them
/// meanwhile.
unsafe fn trace_elements<E: Trace>(bytes: *const u8, count: usize, tracer: &mut Tracer<'_>) {
    let elements = bytes.cast::<E>();
    for i in 0..count {
        // SAFETY: one of the `count` elements.
        let element = unsafe { elements.add(i) };
        if element.is_aligned() {
            // SAFETY: as above, and aligned.
            unsafe { &*element }.trace(tracer);
        } else {
            // SAFETY: as above. A copy does as well, as `ShmSafe` types have no drop glue.
            unsafe { element.read_unaligned() }.trace(tracer);
        }
    }
}

/// The objects that a collection has found.
///
/// ```
/// use shmkit::{Gc, Heap, HeapError, Pool, ShmSafe, Trace, Tracer};
///
/// /// An id that keeps nothing alive: the tracer does not hear of it.
/// #[derive(ShmSafe)]
/// struct Weak(Gc<str>);
///
/// impl Trace for Weak {
///     fn trace(&self, _: &mut Tracer<'_>) {}
/// }
///
/// let pool = Pool::builder().create()?;
/// let heap = pool.create(Heap::new(None))?;
/// heap.try_modify(|tx| {
///     *tx.root_mut()? = Some(Weak(tx.alloc_str("cached")?));
///     Ok::<_, HeapError>(())
/// })?;
/// assert_eq!(heap.collect()?.freed, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tracer<'a> {
    table: &'a HeapTable,
    /// One bit for each entry.
    marks: Vec<u64>,
    /// Objects that were found and are still to be traced.
    todo: Vec<(usize, Elements)>,
}

impl fmt::Debug for Tracer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

impl<'a> Tracer<'a> {
    pub(super) fn new(table: &'a HeapTable) -> Self {
        Tracer {
            table,
            marks: vec![0; table.entries().div_ceil(64)],
            todo: Vec::new(),
        }
    }

    /// Shows an id to the collection. An id that leads to no object is ignored.
    ///
    /// ```
    /// use shmkit::{Gc, Heap, Pool, ShmSafe, Trace, Tracer};
    ///
    /// /// Ids of a kind that is not known to the derive macro: a number beside each says whether it counts.
    /// #[derive(ShmSafe)]
    /// struct Places([(bool, Gc<str>); 2]);
    ///
    /// impl Trace for Places {
    ///     fn trace(&self, tracer: &mut Tracer<'_>) {
    ///         for &(_, text) in self.0.iter().filter(|(counts, _)| *counts) {
    ///             tracer.visit(text);
    ///         }
    ///     }
    /// }
    ///
    /// let pool = Pool::builder().create()?;
    /// let heap = pool.create(Heap::new(None::<Places>))?;
    /// heap.try_modify(|tx| {
    ///     let (kept, not) = (tx.alloc_str("kept")?, tx.alloc_str("not")?);
    ///     *tx.root_mut()? = Some(Places([(true, kept), (false, not)]));
    ///     Ok::<_, shmkit::HeapError>(())
    /// })?;
    /// assert_eq!(heap.collect()?.freed, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn visit<T: ?Sized + GcTarget>(&mut self, gc: Gc<T>) {
        if gc::find(self.table, gc).is_some() {
            self.mark(gc.index(), Elements::of::<T::Element>());
        }
    }

    /// Notes that an object was found, and what it consists of.
    pub(super) fn mark(&mut self, index: usize, elements: Elements) {
        if let Some(word) = self.marks.get_mut(index / 64)
            && *word >> (index % 64) & 1 == 0
        {
            *word |= 1 << (index % 64);
            self.todo.push((index, elements));
        }
    }

    /// Traces the objects that were found until none is left.
    pub(super) fn run(&mut self) {
        while let Some((index, elements)) = self.todo.pop() {
            if let Some(entry) = self.table.entry(index) {
                let address = entry.address() as usize;
                let bytes = std::ptr::with_exposed_provenance(address);
                let (room, len) = (self.table.room_at(address), entry.len() as usize);
                // SAFETY: the object's own elements, in the pool; the heap is locked.
                unsafe { elements.trace(bytes, room, len, self) };
            }
        }
    }

    pub(super) fn is_marked(&self, index: usize) -> bool {
        let word = self.marks.get(index / 64);
        word.is_some_and(|word| word >> (index % 64) & 1 != 0)
    }
}

macro_rules! without_ids {
    ($($ty:ident)*) => {$(
        impl Trace for $ty {
            #[inline]
            fn trace(&self, _: &mut Tracer<'_>) {}
        }
    )*};
}

without_ids! {
    u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64 bool char Duration
    NonZeroU8 NonZeroU16 NonZeroU32 NonZeroU64 NonZeroU128 NonZeroUsize
    NonZeroI8 NonZeroI16 NonZeroI32 NonZeroI64 NonZeroI128 NonZeroIsize
}

impl<T: ?Sized + GcTarget> Trace for Gc<T> {
    #[inline]
    fn trace(&self, tracer: &mut Tracer<'_>) {
        tracer.visit(*self);
    }
}

impl<T: ShmSafe> Trace for PhantomData<T> {
    #[inline]
    fn trace(&self, _: &mut Tracer<'_>) {}
}

impl<T: Trace> Trace for Wrapping<T> {
    #[inline]
    fn trace(&self, tracer: &mut Tracer<'_>) {
        self.0.trace(tracer);
    }
}

impl<T: Trace> Trace for Option<T> {
    #[inline]
    fn trace(&self, tracer: &mut Tracer<'_>) {
        if let Some(value) = self {
            value.trace(tracer);
        }
    }
}

impl<T: Trace, const N: usize> Trace for [T; N] {
    #[inline]
    fn trace(&self, tracer: &mut Tracer<'_>) {
        self.iter().for_each(|element| element.trace(tracer));
    }
}

macro_rules! tuples {
    ($(($($name:ident $index:tt),*))*) => {$(
        impl<$($name: Trace),*> Trace for ($($name,)*) {
            #[inline]
            fn trace(&self, _tracer: &mut Tracer<'_>) {
                $(self.$index.trace(_tracer);)*
            }
        }
    )*};
}

tuples! {
    ()
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
}
