//! Arrays of plain values, accessed one element at a time, or as claimed ranges, which are slices.
//!
//! # Rationale
//!
//! The elements are in a block of their own, so that an array can be a field and can grow; the
//! block begins with its length, so that one store of its address changes both. Elements of 1, 2, 4 or
//! 8 bytes that are aligned to their size are read and written by one atomic access. All others, up to
//! `intents::WRITE_MAX`, are copied under one of a few owner-tagged locks, and written through the slot's
//! redo area, so that a killed writer leaves the old element or the new one. Claimed ranges are handled in
//! `claims`.
//!
//! Constructors first call the user's closure, which makes the elements in private memory, then
//! make the empty object, then give it its storage. So a closure that panics, re-enters or is
//! killed leaves nothing in the pool; the price is that a second copy of the elements exists for a
//! while.
//!
//! | operation | killed | leaves |
//! |---|---|---|
//! | constructor | before the storage is there | an empty array held by the dead process: it is destroyed |
//! | `set`, by one access | | the old element or the new one |
//! | `set`, otherwise | before WRITE is open | the old element |
//! | | after | the new element: recovery writes it again, before the stripe's lock can be taken |
//! | `update` | | as `set` |
//! | growing | before the block's address is stored | the old storage; the new block is freed (REPLACE) |
//! | | after | the new storage; recovery stores the length, and frees the old block |
//!
//! Invariants
//! 1. The block is replaced only under a GROWING claim: while an operation's pass or a claim of at
//!    least one element exists, the block stays.
//! 2. An element is accessed only by the owner of an exclusive claim; or by owners of shared claims
//!    and by reading operations, none of which write; or only by operations.
//! 3. Where only operations access an element, all of these accesses are atomic, or all are under
//!    its stripe's lock.
//! 4. The length never shrinks, and `len` is stored before a GROWING claim ends: by the thread that
//!    grows the array, or by the recovery that resolves its intent.

mod access;

use std::alloc::Layout;
use std::fmt;
use std::marker::{PhantomData, PhantomPinned};
use std::mem::offset_of;
use std::ops::{Range, RangeBounds};
use std::ptr::NonNull;

use super::claims::{ClaimRefusal, Claims, Mode};
use super::elements::{self, NewElements};
use super::ranges::{Claim, ClaimMut, Claimed};
use super::refusals::{ClaimError, ResizeError, resolve};
use super::{Contained, Shared};
use crate::allocator::{AllocError, block};
use crate::engines::limbo;
use crate::layout::arena::Arena;
use crate::layout::{Field, TypeInfo};
use crate::participants::here::{Here, here};
use crate::pool::intents;
use crate::pool::{ObjectError, OutOfMemory, Pool};
use crate::primitive::{AtomicU64, Ordering, fence};
use crate::{KillSafe, Movable, ShmSafe};

/// Locks for elements that are not accessed by one instruction.
const STRIPES: usize = 4;

/// The address of the block that the array owns.
#[repr(transparent)]
struct BlockWord(AtomicU64);

// SAFETY: an address within the pool; `TYPE` says that the word owns a block.
unsafe impl ShmSafe for BlockWord {
    const TYPE: &'static TypeInfo = &TypeInfo::block::<Self>("BlockWord");
    const OWNS: bool = true;
}

impl BlockWord {
    const fn new() -> Self {
        BlockWord(AtomicU64::new(0))
    }

    /// The address; 0 for none. Acquire: the block is filled.
    #[inline]
    fn address(&self) -> usize {
        self.0.load(Ordering::Acquire) as usize
    }

    /// The length with which the block at `address` begins. The caller keeps the block from being replaced.
    #[inline]
    fn len(arena: Arena, address: usize) -> usize {
        if !address.is_multiple_of(8) || arena.room_at(address) < 8 {
            return 0;
        }
        // SAFETY: a block of this array, which the caller keeps in place; its first word is its
        // length, which is no longer written. In a damaged pool it is a word of some slice.
        let len = unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(address) };
        len.load(Ordering::Relaxed) as usize
    }
}

/// Where the elements are: a block that begins with its length.
#[repr(C)]
struct Storage {
    /// The block's address, or 0. It is replaced by the holder of a GROWING claim.
    block: BlockWord,
    /// The length, for readers that do not look into the block. It is stored after the block's
    /// address.
    len: AtomicU64,
}

/// An array in a pool that many processes can use at once.
///
/// Elements are read and written one at a time with [`get`](Self::get), [`set`](Self::set) and
/// [`update`](Self::update), each of which is atomic; or a range is [claimed](Self::claim_mut) and
/// can then be used as an ordinary slice. The two ways exclude each other.
///
/// A process that is stopped (SIGSTOP) keeps what it has claimed until it goes on or is killed. If it is
/// stopped within an operation on an element, claims of the array wait until then as well (those for reading,
/// if it writes). If elements have another size than 1, 2, 4 and 8 bytes, or are not aligned to their size
/// (`[u8; 4]`), so do operations on that element and on those that share its lock.
///
/// An array is an object of its own (`filled_in`, `from_fn_in`, `from_slice_in`), or a field of the
/// user's struct: [`Array::new`] makes an empty one, and [`grow`](Self::grow) gives it elements
/// once it is in a pool.
///
/// ```
/// use shmkit::{Array, Pool};
///
/// let pool = Pool::builder().create()?;
/// let squares = Array::from_fn_in(pool, 100, |i| (i * i) as u64)?;
/// squares.set(3, 10)?;
/// assert_eq!(squares.get(3)?, 10);
/// {
///     let mut upper = squares.claim_mut(50..)?;
///     upper.fill(0);
///     assert!(squares.get(60).is_err(), "claimed");
/// }
/// assert_eq!(squares.claim(..)?.iter().sum::<u64>(), (0..50).map(|i| i * i).sum::<u64>() + 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Array<T: KillSafe + Movable> {
    storage: Storage,
    claims: Claims,
    stripes: [AtomicU64; STRIPES],
    elements: Contained<T>,
    _in_place: PhantomPinned,
}

// SAFETY: atomics, and a block of `T`s, which is listed at its offset. No drop glue.
unsafe impl<T: KillSafe + Movable> ShmSafe for Array<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>(
        "Array",
        const {
            &[
                Field::at::<BlockWord>("storage", offset_of!(Self, storage.block)),
                Field::mention::<T>("T"),
            ]
        },
    );
    const IMAGE_BOUND: bool = T::IMAGE_BOUND;
    const OWNS: bool = true;
}

impl<T: KillSafe + Movable> Array<T> {
    /// Whether each element is accessed by one instruction.
    const ATOMIC: bool = elements::is_atomic::<T>();

    /// Where the elements begin in the block.
    const OFFSET: usize = if align_of::<T>() > 8 {
        align_of::<T>()
    } else {
        8
    };

    /// An array without elements. Once it is in a pool it can [`grow`](Self::grow).
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let named = pool.create((7_u32, Array::<f64>::new()))?;
    /// assert_eq!(named.1.len(), 0);
    /// named.1.grow(2, 0.5)?;
    /// assert_eq!(named.1.get(1)?, 0.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Array {
            storage: Storage {
                block: BlockWord::new(),
                len: AtomicU64::new(0),
            },
            claims: Claims::new(),
            stripes: [const { AtomicU64::new(0) }; STRIPES],
            elements: PhantomData,
            _in_place: PhantomPinned,
        }
    }

    /// Makes an array of `len` elements, each of them `value`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; nothing was made.
    ///
    /// # Crash behaviour
    ///
    /// The array exists, held by this process, or it does not.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let weights = Array::filled_in(pool, 4, 0.5)?;
    /// assert_eq!(*weights.claim(..)?, [0.5; 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn filled_in(pool: Pool, len: usize, value: T) -> Result<Shared<Self>, OutOfMemory>
    where
        T: Copy,
    {
        Self::made_in(pool, len, |room| room.fill(value))
    }

    /// Makes an array of `f(0)`, `f(1)` and so on. `f` runs before anything is done in the pool;
    /// the elements are kept in private memory until `f` has run for all of them.
    ///
    /// # Errors
    ///
    /// As for [`filled_in`](Self::filled_in).
    ///
    /// # Panics
    ///
    /// If `f` does. Nothing was made.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let squares = Array::from_fn_in(pool, 4, |i| i * i)?;
    /// assert_eq!(*squares.claim(..)?, [0, 1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_fn_in(
        pool: Pool,
        len: usize,
        f: impl FnMut(usize) -> T,
    ) -> Result<Shared<Self>, OutOfMemory> {
        let elements = elements::collect(len, f).map_err(out_of_memory)?;
        Self::made_in(pool, len, |room| room.copy_from(&elements))
    }

    /// Makes an array of the elements of a slice.
    ///
    /// # Errors
    ///
    /// As for [`filled_in`](Self::filled_in).
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let primes = Array::from_slice_in(pool, &[2_u32, 3, 5])?;
    /// assert_eq!(primes.get(2)?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_slice_in(pool: Pool, elements: &[T]) -> Result<Shared<Self>, OutOfMemory>
    where
        T: Copy,
    {
        Self::made_in(pool, elements.len(), |room| room.copy_from(elements))
    }

    /// Makes an array whose elements are written by `fill`, which runs none of the user's code.
    fn made_in(
        pool: Pool,
        len: usize,
        fill: impl Fn(NewElements<'_, T>),
    ) -> Result<Shared<Self>, OutOfMemory> {
        let array = pool.create(Self::new()).map_err(|refused| OutOfMemory {
            value: (),
            cause: refused.cause,
        })?;
        match array.reshape(|_| Ok(len), fill) {
            Ok(_) => Ok(array),
            Err(ResizeError::Alloc(error)) => Err(out_of_memory(error)),
            Err(ResizeError::NoSlot(error)) => Err(out_of_memory(error)),
            Err(error) => unreachable!("nobody else has a new array, which is empty: {error}"),
        }
    }

    /// The number of elements.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let primes = Array::from_slice_in(pool, &[2_u32, 3, 5])?;
    /// assert_eq!(primes.len(), 3);
    /// primes.extend_from_slice(&[7, 11])?;
    /// assert_eq!(primes.len(), 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.storage.len.load(Ordering::Acquire) as usize
    }

    /// True if there are no elements.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let numbers = pool.create(Array::new())?;
    /// assert!(numbers.is_empty());
    /// numbers.grow(1, 7_u32)?;
    /// assert!(!numbers.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of the first element, and the number of elements; in a damaged pool, no more
    /// than lie in its memory. The caller keeps the block from being replaced.
    #[inline]
    fn elements(&self, arena: Arena) -> (*mut T, usize) {
        let address = self.storage.block.address();
        let len = BlockWord::len(arena, address);
        let room = arena.room_at(address).saturating_sub(Self::OFFSET);
        let fit = room.checked_div(size_of::<T>()).unwrap_or(usize::MAX);
        let aligned = address.is_multiple_of(align_of::<T>());
        let elements = address.wrapping_add(Self::OFFSET);
        (
            std::ptr::with_exposed_provenance_mut(elements),
            if aligned { len.min(fit) } else { 0 },
        )
    }

    /// Where the elements are at this moment, and how many there are, for a caller that has no claim: the
    /// block may be replaced at any time, after which this gives something else. `None` if they are in no
    /// block of the pool.
    pub(crate) fn extent(&self, arena: Arena) -> Option<(usize, usize)> {
        loop {
            let address = self.storage.block.address();
            if address == 0 {
                return Some((0, 0));
            }
            let len = BlockWord::len(arena, address);
            let fits = address.is_multiple_of(align_of::<T>().max(8))
                && len.checked_mul(size_of::<T>()).is_some_and(|bytes| {
                    let room = block::usable_size(arena, address).unwrap_or(0);
                    room.checked_sub(Self::OFFSET) >= Some(bytes)
                });
            fence(Ordering::Acquire);
            // A block that was replaced need not be a block any more.
            if fits || self.storage.block.address() == address {
                return fits.then(|| (address + Self::OFFSET, len));
            }
        }
    }

    /// Claims a range for reading. While the claim exists nobody writes to the range, and others
    /// may claim it for reading, too. An array can have at most 62 claims at a time.
    ///
    /// # Errors
    ///
    /// See [`ClaimError`]. An empty range within the array conflicts with no other claim.
    ///
    /// # Crash behaviour
    ///
    /// The claim of a dead process has ended.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let numbers = Array::from_slice_in(pool, &[3_u32, 1, 2])?;
    /// let claim = numbers.claim(1..)?;
    /// assert_eq!(claim.iter().sum::<u32>(), 3);
    /// // Others can read meanwhile; nobody can write.
    /// assert_eq!(numbers.get(1)?, 1);
    /// assert!(numbers.set(1, 4).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn claim(&self, range: impl RangeBounds<usize>) -> Result<Claim<'_, T>, ClaimError> {
        self.claim_as(range, Mode::Shared).map(Claim)
    }

    /// Claims a range for writing. While the claim exists nobody else reads or writes the range.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim).
    ///
    /// # Crash behaviour
    ///
    /// The claim of a dead process has ended. What that process was writing may be half written;
    /// the next one to claim the range exclusively is told so by [`ClaimMut::was_orphaned`]. So is the
    /// next one after a panic with the claim.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let numbers = Array::from_slice_in(pool, &[3_u32, 1, 2])?;
    /// numbers.claim_mut(..)?.sort();
    /// assert_eq!(numbers.get(0)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn claim_mut(&self, range: impl RangeBounds<usize>) -> Result<ClaimMut<'_, T>, ClaimError> {
        self.claim_as(range, Mode::Exclusive).map(ClaimMut::new)
    }

    fn claim_as(
        &self,
        range: impl RangeBounds<usize>,
        mode: Mode,
    ) -> Result<Claimed<'_, T>, ClaimError> {
        let Here { arena, slot } = here(self)?;
        let range = resolve(range, self.len())?;
        let (mut taken, mut first) = (None, NonNull::dangling());
        if !range.is_empty() {
            let claim = self
                .claims
                .take(arena, slot, range.clone(), mode)
                .map_err(|refusal| match refusal {
                    ClaimRefusal::Claimed(by) => ClaimError::Claimed { by },
                    ClaimRefusal::TooMany => ClaimError::TooManyClaims,
                })?;
            let (elements, len) = self.elements(arena);
            // The array never shrinks, but `len` may be damaged.
            if range.end > len {
                let Range { start, end } = range;
                return Err(ClaimError::OutOfBounds { start, end, len });
            }
            taken = Some(claim);
            let place = elements.wrapping_add(range.start);
            first = NonNull::new(place).expect("blocks are not at zero");
        }
        Ok(Claimed::new(first, range.len(), taken))
    }

    /// Makes the array `len` elements long; the new ones are `value`. Waits for operations on
    /// elements that are under way; later ones find the new elements.
    ///
    /// # Errors
    ///
    /// See [`ResizeError`]. An array with claims does not grow, nor does one that is already
    /// longer.
    ///
    /// # Crash behaviour
    ///
    /// The array has grown, or it has not.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let numbers = pool.create(Array::new())?;
    /// numbers.grow(3, 7_u32)?;
    /// assert_eq!((numbers.len(), numbers.get(2)?), (3, 7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow(&self, len: usize, value: T) -> Result<(), ResizeError>
    where
        T: Copy,
    {
        let longer = |now| {
            if now > len {
                Err(ResizeError::Shorter { len: now })
            } else {
                Ok(len)
            }
        };
        self.reshape(longer, |room| room.fill(value))?;
        Ok(())
    }

    /// Appends elements, and returns the index of the first.
    ///
    /// # Errors
    ///
    /// As for [`grow`](Self::grow).
    ///
    /// # Crash behaviour
    ///
    /// All are appended, or none.
    ///
    /// ```
    /// # use shmkit::{Array, Pool};
    /// # let pool = Pool::builder().create()?;
    /// let numbers = Array::from_slice_in(pool, &[2_u32, 3])?;
    /// assert_eq!(numbers.extend_from_slice(&[5, 7])?, 2);
    /// assert_eq!(numbers.get(3)?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn extend_from_slice(&self, elements: &[T]) -> Result<usize, ResizeError>
    where
        T: Copy,
    {
        if elements.is_empty() {
            here(self)?;
            return Ok(self.len());
        }
        let longer = |now: usize| {
            now.checked_add(elements.len())
                .ok_or(ResizeError::Alloc(AllocError::TooLarge))
        };
        self.reshape(longer, |room| room.copy_from(elements))
    }

    /// Replaces the block by a longer one, whose new elements are written by `fill`, and returns
    /// the former length. `fill` runs none of the user's code, as the intent is open. `plan` is
    /// given the length and returns the new one while everybody else is kept out; the others also
    /// wait while room is made for the block.
    pub(super) fn reshape(
        &self,
        plan: impl FnOnce(usize) -> Result<usize, ResizeError>,
        fill: impl Fn(NewElements<'_, T>),
    ) -> Result<usize, ResizeError> {
        let Here { arena, slot } = here(self)?;
        let everything = 0..usize::MAX;
        let claim = self
            .claims
            .take(arena, slot, everything, Mode::Growing)
            .map_err(|refusal| match refusal {
                ClaimRefusal::Claimed(by) => ResizeError::Claimed { by },
                // Every claim of an element overlaps this one, and orphan marks are merged: so a
                // full table has only claims of nothing.
                ClaimRefusal::TooMany => ResizeError::TooManyClaims,
            })?;
        let (source, old) = self.elements(arena);
        let new = plan(old)?;
        if new > old {
            let layout = Self::layout(new)?;
            let Storage { block, len } = &self.storage;
            // By invariant 4.
            let length = intents::Length {
                word: len,
                len: new as u64,
            };
            let make = |record: &dyn Fn(usize)| {
                let address = block::allocate(arena, slot, layout, record)?;
                let start = std::ptr::with_exposed_provenance_mut::<u8>(address);
                // SAFETY: a new block of that layout, which nobody else has; the old one has `old`
                // elements, to which nobody writes while we hold the claim.
                unsafe {
                    start.cast::<u64>().write(new as u64);
                    let elements = start.add(Self::OFFSET).cast::<T>();
                    if old > 0 {
                        elements.copy_from_nonoverlapping(source, old);
                    }
                    let room = std::slice::from_raw_parts_mut(elements.add(old).cast(), new - old);
                    fill(NewElements(room));
                    elements::freeze(start.cast());
                }
                Ok::<usize, AllocError>(address)
            };
            limbo::or_reap(arena, || {
                intents::replace_block(arena, slot, &block.0, Some(length), make)
            })?;
        }
        drop(claim);
        Ok(old)
    }

    fn layout(len: usize) -> Result<Layout, AllocError> {
        let elements = Layout::array::<T>(len).map_err(|_| AllocError::TooLarge)?;
        let (layout, offset) = Layout::new::<u64>()
            .extend(elements)
            .map_err(|_| AllocError::TooLarge)?;
        debug_assert_eq!(offset, Self::OFFSET);
        Ok(layout)
    }
}

impl<T: KillSafe + Movable> Default for Array<T> {
    fn default() -> Self {
        Array::new()
    }
}

impl<T: KillSafe + Movable> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

fn out_of_memory(cause: impl Into<ObjectError>) -> OutOfMemory {
    OutOfMemory {
        value: (),
        cause: cause.into(),
    }
}
