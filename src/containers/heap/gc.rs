//! [`Gc`]: the id of an object in a heap, and what an id can lead to.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::ptr::NonNull;

use serde::{Deserialize, Serialize};

use super::trace::Trace;
use crate::engines::heap::{HeapEntry, HeapTable};
use crate::layout::{Field, ShmSafe, TypeInfo};

/// The id of an object in a [`Heap`](super::Heap), a copyable value that may be kept anywhere: in
/// other objects of the heap, in other containers, across transactions.
///
/// It is not a reference. Each access compares it with the heap: an id of another heap, an id of an object that
/// was collected, and bytes that never were an id lead to `None`. An id keeps an object alive only where
/// [`Trace`] finds it, in the root or in an object that is reached from the root. An object that is not reached
/// can still be found until a collection frees it; if the process that collects dies, what the object refers to
/// may be freed before the object itself.
///
/// An id takes 16 bytes, and so does an `Option` of it. It can be serialised, and so be passed to and
/// returned from another process.
///
/// ```
/// # use shmkit::{Heap, Pool};
/// # let pool = Pool::builder().create()?;
/// let (heap, other) = (pool.create(Heap::new(()))?, pool.create(Heap::new(()))?);
/// let number = heap.modify(|tx| tx.alloc(7_u64))??;
/// assert_eq!(heap.view()?.get(number), Some(&7));
/// assert_eq!(other.view()?.get(number), None);
/// heap.collect()?;
/// assert_eq!(heap.view()?.get(number), None, "the root does not lead there");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
#[repr(C)]
pub struct Gc<T: ?Sized> {
    /// The heap's name and the entry's generation in one.
    stamp: NonZeroU64,
    /// Where the object is, as given by [`HeapTable::place`], so that the processor need not wait for the
    /// entry. It is never relied on: an object is where its entry says.
    place: u32,
    index: u32,
    target: PhantomData<fn() -> Box<T>>,
}

const _: () = assert!(size_of::<Option<Gc<u64>>>() == 16);

impl<T: ?Sized> Gc<T> {
    /// The id of the object that an entry belongs to.
    #[inline]
    pub(super) fn new(table: &HeapTable, index: usize, entry: &HeapEntry) -> Self {
        Gc {
            // If the heap's words are damaged, the id is one that leads nowhere.
            stamp: NonZeroU64::new(table.stamp(entry)).unwrap_or(NonZeroU64::MIN),
            index: index as u32,
            place: table.place(entry.address() as usize),
            target: PhantomData,
        }
    }

    /// The object's index in the table of its heap.
    #[inline]
    pub(super) fn index(self) -> usize {
        self.index as usize
    }

    fn key(self) -> (NonZeroU64, u32) {
        (self.stamp, self.index)
    }
}

impl<T: ?Sized> Clone for Gc<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Gc<T> {}

impl<T: ?Sized> PartialEq for Gc<T> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T: ?Sized> Eq for Gc<T> {}

impl<T: ?Sized> Hash for Gc<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl<T: ?Sized> fmt::Debug for Gc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gc({}.{:x})", self.index, self.stamp)
    }
}

// SAFETY: numbers that mean the same in every process, compared with the heap at each use. They own
// nothing. The target type is only named; no value of it is stored.
unsafe impl<T: ?Sized + GcTarget> ShmSafe for Gc<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Gc",
        const {
            &[
                Field::mention::<T::Element>("T"),
                Field::constant("shape", T::SHAPE as i128),
            ]
        },
    );
}

mod sealed {
    pub trait Sealed {}
    impl<T: super::Trace> Sealed for T {}
    impl<T: super::Trace> Sealed for [T] {}
    impl Sealed for str {}
}

/// What an id can lead to: a value of a type that is [`Trace`], a slice of such values, or a `str`.
///
/// ```
/// use shmkit::{Gc, Heap, HeapError, GcTarget, Pool};
///
/// /// Whether an id, of whatever kind of object, leads somewhere.
/// fn is_there<T: ?Sized + GcTarget>(heap: &Heap<()>, id: Gc<T>) -> Result<bool, HeapError> {
///     Ok(heap.view()?.get(id).is_some())
/// }
///
/// let pool = Pool::builder().create()?;
/// let heap = pool.create(Heap::new(()))?;
/// let (value, text) = heap.modify(|tx| (tx.alloc(7_u64), tx.alloc_str("seven")))?;
/// assert!(is_there(&heap, value?)? && is_there(&heap, text?)?);
/// heap.collect()?;
/// assert!(!is_there(&heap, value?)? && !is_there(&heap, text?)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait GcTarget: sealed::Sealed + 'static {
    /// The type of the elements that it consists of.
    #[doc(hidden)]
    type Element: Trace;

    /// Tells a value from a slice and from a `str`.
    #[doc(hidden)]
    const SHAPE: u64;

    /// The object of `len` elements at an address.
    #[doc(hidden)]
    fn at(elements: NonNull<Self::Element>, len: usize) -> NonNull<Self>;
}

const VALUE: u64 = 0;
const SLICE: u64 = 1;
const STR: u64 = 2;

impl<T: Trace> GcTarget for T {
    type Element = T;
    const SHAPE: u64 = VALUE;

    #[inline]
    fn at(elements: NonNull<T>, _: usize) -> NonNull<T> {
        elements
    }
}

impl<T: Trace> GcTarget for [T] {
    type Element = T;
    const SHAPE: u64 = SLICE;

    #[inline]
    fn at(elements: NonNull<T>, len: usize) -> NonNull<[T]> {
        NonNull::slice_from_raw_parts(elements, len)
    }
}

impl GcTarget for str {
    type Element = u8;
    const SHAPE: u64 = STR;

    #[inline]
    fn at(elements: NonNull<u8>, len: usize) -> NonNull<str> {
        let bytes = std::ptr::slice_from_raw_parts_mut(elements.as_ptr(), len);
        // SAFETY: the address is that of the elements, which was not null.
        unsafe { NonNull::new_unchecked(bytes as *mut str) }
    }
}

/// The number of object types that a thread remembers, and of bytes from one to the next.
const KNOWN: usize = 64;
const APART: usize = size_of::<(u64, u64)>();

thread_local! {
    /// The kinds that entries of heaps have for types of objects. A number says which heap and type: the sum of the
    /// heap's name, which has 63 random bits, and an address within the type's description, another one for each shape.
    static KINDS: [Cell<(u64, u64)>; KNOWN] = const { [const { Cell::new((0, 0)) }; KNOWN] };
}

/// The kind that an entry of the heap has for objects of type `T`.
#[inline]
pub(super) fn kind<T: ?Sized + GcTarget>(table: &HeapTable) -> u64 {
    const { assert!(size_of::<TypeInfo>() > STR as usize * APART) };
    let described = std::ptr::from_ref(T::Element::TYPE).addr() + T::SHAPE as usize * APART;
    let which = table.name.wrapping_add(described as u64);
    // This fails if the thread is about to end.
    match KINDS.try_with(|kinds| kinds[place(which)].get()) {
        Ok((known, kind)) if known == which => kind,
        _ => learn_kind::<T>(table, which),
    }
}

/// Where what the number stands for is remembered, if it is.
#[inline]
fn place(which: u64) -> usize {
    which as usize / APART % KNOWN
}

#[cold]
#[inline(never)]
fn learn_kind<T: ?Sized + GcTarget>(table: &HeapTable, which: u64) -> u64 {
    let fingerprint = T::Element::TYPE.fingerprint();
    let low = (fingerprint as u64).rotate_left(T::SHAPE as u32) ^ T::SHAPE;
    let kind = table.kind([low, (fingerprint >> 64) as u64]);
    let _ = KINDS.try_with(|kinds| kinds[place(which)].set((which, kind)));
    kind
}

/// An object that an id leads to.
pub(super) struct Target<T: ?Sized + GcTarget> {
    pub(super) entry: &'static HeapEntry,
    pub(super) elements: NonNull<T::Element>,
    pub(super) len: usize,
}

impl<T: ?Sized + GcTarget> Target<T> {
    #[inline]
    pub(super) fn value(&self) -> NonNull<T> {
        T::at(self.elements, self.len)
    }
}

/// The object that an id leads to, if it belongs to this heap, still exists, and is of the id's
/// type. The caller has the heap's lock.
///
/// Where the id gives the same address as the entry, the id's address is used, so that the processor can go
/// on there before it has loaded the entry: on the way from object to object it waits for one cache line a
/// step, not for two.
#[inline]
pub(super) fn find<T: ?Sized + GcTarget>(table: &HeapTable, gc: Gc<T>) -> Option<Target<T>> {
    let entry = table.entry(gc.index())?;
    let kind = kind::<T>(table);
    if table.stamp(entry) != gc.stamp.get() || entry.kind() != kind {
        return None;
    }
    let len = match T::SHAPE {
        VALUE => 1,
        _ => usize::try_from(entry.len()).ok()?,
    };
    let size = len.checked_mul(size_of::<T::Element>())?.max(1);
    let (address, said) = (entry.address() as usize, table.address(gc.place));
    let align = align_of::<T::Element>();
    let at = if table.has_room_at(gc.place, size, align) && address == hidden(said) {
        // SAFETY: in the pool's data, which does not begin at 0.
        unsafe { std::hint::assert_unchecked(said != 0) };
        said
    } else {
        std::hint::cold_path();
        if !table.has_room(address, size, align) {
            return None;
        }
        address
    };
    // The address is 0 if there is no object.
    let elements = NonNull::new(std::ptr::with_exposed_provenance_mut::<T::Element>(at))?;
    Some(Target {
        entry,
        elements,
        len,
    })
}

/// Gives the same number, without the compiler knowing: so where something compares equal to it, the compiler
/// does not use one in place of the other.
#[inline(always)]
fn hidden(mut number: usize) -> usize {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there are no instructions.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
    }
    number
}
