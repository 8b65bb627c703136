//! Other crates' collections in the pool: [`PoolAlloc`] is their allocator, and [`Foreign`] is the
//! programmer's promise that a collection may be shared.

use std::alloc::Layout;
use std::fmt;
use std::mem::{ManuallyDrop, offset_of};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator};

use crate::ShmSafe;
use crate::layout::TypeInfo;
use crate::layout::arena::Arena;
use crate::pool::Pool;

/// A pool as an allocator for collections that take one (`allocator_api2::vec::Vec`,
/// `hashbrown::HashMap`). It comes from [`Pool::allocator`].
///
/// ```
/// use allocator_api2::vec::Vec;
/// use shmkit::process::scope;
/// use shmkit::{Foreign, Pool};
///
/// let pool = Pool::builder().create()?;
/// // SAFETY: the vector stays in this pool and program, and is shared within `Foreign` alone.
/// let mut squares = Vec::new_in(unsafe { pool.allocator() });
/// squares.extend((0..100_u64).map(|n| n * n));
/// // SAFETY: its memory is the pool's.
/// let squares = pool.create(unsafe { Foreign::new(squares) })?;
/// scope(|s| {
///     let squares = &squares;
///     let sum = s.spawn(move || squares.iter().sum::<u64>()).unwrap();
///     assert_eq!(sum.join().unwrap(), 328_350);
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PoolAlloc(NonNull<u8>);

// SAFETY: the address of a pool's header, all of which is atomic.
unsafe impl Send for PoolAlloc {}
// SAFETY: as above.
unsafe impl Sync for PoolAlloc {}

impl Pool {
    /// The pool as an allocator.
    ///
    /// # Safety
    ///
    /// Collections that use it stay in this pool and this program image, are put into the pool
    /// through [`Foreign`] if they are shared, and otherwise are not used by both sides of a fork:
    /// after a fork both would own the same blocks.
    ///
    /// ```
    /// # use shmkit::Pool;
    /// # let pool = Pool::builder().create()?;
    /// // SAFETY: the vector is this process's own, and gone before it forks.
    /// let mut bytes = allocator_api2::vec::Vec::new_in(unsafe { pool.allocator() });
    /// bytes.extend_from_slice(b"in the pool");
    /// assert_eq!(Pool::containing(bytes.as_ptr().addr()), Some(pool));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub unsafe fn allocator(self) -> PoolAlloc {
        PoolAlloc(
            NonNull::new(std::ptr::with_exposed_provenance_mut(self.base()))
                .expect("pools are not at zero"),
        )
    }
}

impl PoolAlloc {
    fn pool(self) -> Pool {
        Pool(Arena::at(self.0.addr().get()))
    }
}

// SAFETY: blocks stay valid until they are freed, in every process that has the pool mapped, and
// copies of the allocator are the same allocator.
unsafe impl Allocator for PoolAlloc {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            let dangling = std::ptr::without_provenance_mut(layout.align());
            let dangling = NonNull::new(dangling).ok_or(AllocError)?;
            return Ok(NonNull::slice_from_raw_parts(dangling, 0));
        }
        self.pool().allocate(layout).map_err(|_| AllocError)
    }

    unsafe fn deallocate(&self, pointer: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            // SAFETY: by the caller's promise, the block is this allocator's and not used any more.
            // If it is refused, it was not a block; there is no way to tell the collection.
            let _ = unsafe { self.pool().deallocate(pointer) };
        }
    }
}

impl fmt::Debug for PoolAlloc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolAlloc({:?})", self.pool())
    }
}

/// A value of another crate's type in the pool, for processes that were forked from one program.
///
/// Its `Drop` is never run: an object is destroyed by whichever process lets go of it last, or by
/// recovery, and neither may know the type. Empty a collection before its object is destroyed, or
/// its memory stays allocated until the pool is gone.
///
/// At each start of a program this is another type, as the other starts cannot use its values. A
/// pool describes 2048 types and never forgets one, so `Foreign` is not for a pool that outlives
/// thousands of programs.
///
/// ```
/// use allocator_api2::vec::Vec;
/// use shmkit::{Foreign, Mutex, Pool};
///
/// let pool = Pool::builder().create()?;
/// // SAFETY: the vector stays in this pool and program, and is shared within `Foreign` alone.
/// let names = unsafe { Foreign::new(Vec::new_in(pool.allocator())) };
/// let names = pool.create(Mutex::new(names))?;
/// names.lock().unwrap().push(*b"Ada");
/// assert_eq!(names.lock().unwrap()[0], *b"Ada");
/// // Nobody will use them any more.
/// let mut left = names.lock().unwrap();
/// left.clear();
/// left.shrink_to_fit();
/// assert_eq!(left.capacity(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(transparent)]
pub struct Foreign<T> {
    value: ManuallyDrop<T>,
}

// SAFETY: by the promise given to `Foreign::new`; bound to the image; the value is not dropped.
unsafe impl<T: Send + Sync + 'static> ShmSafe for Foreign<T> {
    const TYPE: &'static TypeInfo = &TypeInfo::library::<Self>("Foreign", &[]);
    const IMAGE_BOUND: bool = true;
}

impl<T: Send + Sync + 'static> Foreign<T> {
    /// Declares a value fit for the pool.
    ///
    /// # Safety
    ///
    /// The value refers only to itself, to the pool, and to statics of this program image, and is
    /// used only in this image; this stays so whatever is done with it. (A hashbrown map that has
    /// been empty points at a static of the binary, which is fine within one image. A hasher must
    /// not keep state outside of the map.) What a killed process leaves of the value is not looked
    /// at, except through `unsafe` code that knows what it finds.
    ///
    /// ```
    /// # use std::time::Instant;
    /// # use shmkit::{Foreign, Pool};
    /// # let pool = Pool::builder().create()?;
    /// // SAFETY: an `Instant` refers to nothing.
    /// let started = pool.create(unsafe { Foreign::new(Instant::now()) })?;
    /// assert!(**started <= Instant::now());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const unsafe fn new(value: T) -> Self {
        const { assert!(offset_of!(Self, value) == 0) };
        Foreign {
            value: ManuallyDrop::new(value),
        }
    }
}

impl<T> Deref for Foreign<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Foreign<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Foreign<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Scratch;

    #[test]
    fn nothing_is_where_its_layout_says() {
        let pool = Scratch::new();
        // SAFETY: no collection has it.
        let allocator = unsafe { pool.allocator() };
        let layout = Layout::from_size_align(0, 64).unwrap();
        let nothing = allocator.allocate(layout).unwrap();
        assert_eq!(nothing.len(), 0);
        assert!(nothing.cast::<[u8; 64]>().addr().get().is_multiple_of(64));
        // SAFETY: not used any more.
        unsafe { allocator.deallocate(nothing.cast(), layout) };
        assert!(pool.check().is_ok());
    }
}
