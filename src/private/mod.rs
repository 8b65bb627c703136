//! The allocator over private memory: [`PrivateAlloc`], for a whole program.
//!
//! | module    | what |
//! |-----------|------|
//! | `heap`    | the one heap of the process, made at the first allocation |
//! | `threads` | which slot a thread uses; what a fork does to the heap |
//!
//! The heap is laid out like a pool and served by the same code. It has no processes, objects or
//! names: a forked child gets a copy of it, as of all private memory. No allocation or free
//! allocates elsewhere, holds a descriptor for longer than one call, prints, or changes `errno`.

mod heap;
mod threads;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;

use crate::allocator::check::{CheckReport, Depth, check};
use crate::allocator::stats::{self, Stats};
use crate::allocator::{AllocError, FreeError, ReallocError, block, grow};
use crate::participants::recovery;
use crate::participants::thread::NoSlot;

/// The allocator over memory that only this process has, as a program's global allocator.
///
/// Each process has one private heap; every `PrivateAlloc` refers to that one. It grows up to 984
/// GiB. Memory that nobody has wanted for half a second goes back to the kernel within a second, as
/// long as some thread allocates or frees. A forked child has a copy of the heap: the thread that
/// forked goes on, and what the parent's other threads had cached is recovered.
///
/// ```
/// use shmkit::PrivateAlloc;
///
/// #[global_allocator]
/// static ALLOCATOR: PrivateAlloc = PrivateAlloc::new();
///
/// let squares: Vec<u64> = (0..1000).map(|n| n * n).collect();
/// assert_eq!(squares.iter().sum::<u64>(), 332_833_500);
/// assert!(ALLOCATOR.stats().allocated >= 8000);
/// ```
///
/// # Misuse
///
/// A pointer that is not a block, or was freed before, is refused by [`PrivateAlloc::deallocate`]
/// with an error. It ends the process with a message if it comes through [`GlobalAlloc`], which has
/// no way to report an error. (Two frees of one block at the same moment may both succeed.)
///
/// # Limits
///
/// If the address space is limited (`ulimit -v`), the heap's maximum is half of the limit. A signal
/// handler must not allocate: it may have interrupted the allocator.
///
/// A library that has it as its allocator and is loaded by a program (`dlopen`) must not be
/// unloaded: threads that have allocated in it run code of the library when they end. The library
/// can ensure that through its linker, by its `build.rs`:
/// `cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete`; or the program can, by `RTLD_NODELETE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrivateAlloc(());

impl PrivateAlloc {
    /// The process's private heap. It is made when something is first allocated.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::PrivateAlloc;
    /// let (one, other) = (PrivateAlloc::new(), PrivateAlloc::new());
    /// let block = one.allocate(Layout::new::<u64>())?;
    /// // It is the same heap.
    /// assert_eq!(other.usable_size(block)?, one.usable_size(block)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        PrivateAlloc(())
    }

    /// Allocates a block.
    ///
    /// # Errors
    ///
    /// See [`AllocError`].
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::PrivateAlloc;
    /// let heap = PrivateAlloc::new();
    /// let block = heap.allocate(Layout::new::<[u64; 100]>())?.cast::<u64>();
    /// // SAFETY: a block for a hundred of them; freed once, and not used afterwards.
    /// unsafe {
    ///     block.write(7);
    ///     assert_eq!(block.read(), 7);
    ///     heap.deallocate(block.cast())?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn allocate(self, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        let address =
            threads::with_slot(|arena, slot| block::allocate(arena, slot, layout, |_| {}))??;
        pointer(address)
    }

    /// Allocates a block whose first `layout.size()` bytes are zero.
    ///
    /// # Errors
    ///
    /// See [`AllocError`].
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::PrivateAlloc;
    /// let heap = PrivateAlloc::new();
    /// let block = heap.allocate_zeroed(Layout::new::<[u64; 100]>())?.cast::<[u64; 100]>();
    /// // SAFETY: a block of that layout; freed once, and not used afterwards.
    /// unsafe {
    ///     assert_eq!(block.read(), [0; 100]);
    ///     heap.deallocate(block.cast())?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn allocate_zeroed(self, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        let (address, zeroed) =
            threads::with_slot(|arena, slot| block::allocate_noting(arena, slot, layout))??;
        let block = pointer(address)?;
        if !zeroed {
            // SAFETY: a new block of that size at least, which nobody else has.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        Ok(block)
    }

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// Nobody uses the block any more, and `block` came from this heap. Other pointers, and a block
    /// freed before, are refused with an error, except that two frees of one block at the same
    /// moment may both succeed.
    ///
    /// # Errors
    ///
    /// See [`FreeError`].
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::{FreeError, PrivateAlloc};
    /// let heap = PrivateAlloc::new();
    /// let block = heap.allocate(Layout::new::<u64>())?;
    /// // SAFETY: nobody uses it. The second free is refused.
    /// unsafe {
    ///     assert_eq!(heap.deallocate(block), Ok(()));
    ///     assert_eq!(heap.deallocate(block), Err(FreeError::NotAllocated));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub unsafe fn deallocate(self, block: NonNull<u8>) -> Result<(), FreeError> {
        let address = block.addr().get();
        threads::with_slot(|arena, slot| block::free(arena, slot, address))?
    }

    /// Frees a block. If that is refused, the process is ended, with a message.
    ///
    /// # Safety
    ///
    /// As for [`PrivateAlloc::deallocate`].
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::{FreeError, PrivateAlloc};
    /// let heap = PrivateAlloc::new();
    /// let block = heap.allocate(Layout::new::<u64>())?;
    /// // SAFETY: a block of this heap, which nobody uses.
    /// unsafe { heap.deallocate_or_abort(block) };
    /// assert_eq!(heap.usable_size(block), Err(FreeError::NotAllocated));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub unsafe fn deallocate_or_abort(self, block: NonNull<u8>) {
        // SAFETY: by the caller's promise.
        if let Err(error) = unsafe { self.deallocate(block) } {
            refuse(block, error);
        }
    }

    /// Moves a block to one of another layout, with as much of its content as fits. It may stay
    /// where it is.
    ///
    /// # Safety
    ///
    /// As for [`PrivateAlloc::deallocate`], except when an error is returned.
    ///
    /// # Errors
    ///
    /// See [`ReallocError`]. The block is as it was.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::PrivateAlloc;
    /// let heap = PrivateAlloc::new();
    /// let block = heap.allocate(Layout::array::<u64>(10)?)?.cast::<u64>();
    /// // SAFETY: blocks of ten and of a thousand; the first is not used any more once it has moved.
    /// unsafe {
    ///     block.write(7);
    ///     let block = heap.reallocate(block.cast(), Layout::array::<u64>(1000)?)?.cast::<u64>();
    ///     assert_eq!(block.read(), 7);
    ///     heap.deallocate(block.cast())?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub unsafe fn reallocate(
        self,
        block: NonNull<u8>,
        new: Layout,
    ) -> Result<NonNull<u8>, ReallocError> {
        let address = block.addr().get();
        let moved = threads::with_slot(|arena, slot| {
            // SAFETY: by the caller's promise.
            unsafe { block::reallocate(arena, slot, address, new) }
        });
        Ok(pointer(moved.map_err(FreeError::from)??)?)
    }

    /// The size in bytes of a block, which may be more than was asked for.
    ///
    /// # Errors
    ///
    /// See [`FreeError`].
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::PrivateAlloc;
    /// let heap = PrivateAlloc::new();
    /// let block = heap.allocate(Layout::new::<[u8; 100]>())?;
    /// assert_eq!(heap.usable_size(block)?, 112);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn usable_size(self, block: NonNull<u8>) -> Result<usize, FreeError> {
        let arena = heap::known().ok_or(FreeError::Foreign)?;
        block::usable_size(arena, block.addr().get())
    }

    /// Gives the memory of free slices back to the kernel, and returns how many bytes that is.
    ///
    /// # Errors
    ///
    /// [`NoSlot`].
    ///
    /// ```
    /// # use shmkit::PrivateAlloc;
    /// # let heap = PrivateAlloc::new();
    /// let bytes = heap.purge()?;
    /// println!("{bytes} bytes went back");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn purge(self) -> Result<usize, NoSlot> {
        threads::with_slot(|arena, slot| {
            recovery::poll(arena);
            grow::purge(arena, slot)
        })
    }

    /// How the heap's memory is used, at about this moment.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::PrivateAlloc;
    /// let heap = PrivateAlloc::new();
    /// heap.allocate(Layout::new::<[u8; 1000]>())?;
    /// assert!(heap.stats().allocated >= 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stats(self) -> Stats {
        let Some(arena) = heap::known() else {
            return Stats::default();
        };
        let mut stats = stats::count(arena);
        stats.threads = threads::count(arena);
        stats.processes = 1;
        stats
    }

    /// Checks what must hold of the heap at every instant, while threads may be using it.
    ///
    /// ```
    /// # let heap = shmkit::PrivateAlloc::new();
    /// let report = heap.check();
    /// assert!(report.is_ok(), "{report}");
    /// ```
    #[must_use]
    pub fn check(self) -> CheckReport {
        check_to(Depth::Live)
    }

    /// Checks everything that must hold while no other thread is using the heap.
    ///
    /// ```
    /// # use std::alloc::Layout;
    /// # use shmkit::PrivateAlloc;
    /// let heap = PrivateAlloc::new();
    /// heap.allocate(Layout::new::<u64>())?;
    /// let report = heap.check_quiescent();
    /// assert!(report.is_ok() && report.spans > 0, "{report}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn check_quiescent(self) -> CheckReport {
        check_to(Depth::Quiescent)
    }
}

fn check_to(depth: Depth) -> CheckReport {
    let mut report = CheckReport::default();
    if let Some(arena) = heap::known() {
        check(arena, depth, &mut report);
    }
    report
}

#[inline]
fn pointer(address: usize) -> Result<NonNull<u8>, AllocError> {
    NonNull::new(std::ptr::with_exposed_provenance_mut(address)).ok_or(AllocError::PoolFull)
}

// SAFETY: blocks have the requested layout, belong to nobody else until they are freed, and stay
// where they are; nothing here unwinds.
unsafe impl GlobalAlloc for PrivateAlloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.allocate(layout)
            .map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.allocate_zeroed(layout)
            .map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: by the caller's promise, this is a block of this heap that nobody uses any
            // more.
            unsafe { self.deallocate_or_abort(block) };
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let new = Layout::from_size_align(new_size, layout.align());
        let (Some(block), Ok(new)) = (NonNull::new(block), new) else {
            return std::ptr::null_mut();
        };
        // SAFETY: by the caller's promise, this is a block of this heap.
        match unsafe { self.reallocate(block, new) } {
            Ok(moved) => moved.as_ptr(),
            Err(ReallocError::NotABlock(error)) => refuse(block, error),
            Err(ReallocError::Alloc(_)) => std::ptr::null_mut(),
        }
    }
}

/// The program has freed something that is not a block: it is ended, with a message, before it does
/// more harm.
#[cold]
fn refuse(block: NonNull<u8>, error: FreeError) -> ! {
    use std::io::Write as _;
    let mut text = [0_u8; 128];
    let room = text.len();
    let mut rest = &mut text[..];
    let _ = writeln!(rest, "shmkit: free of {block:p}: {error}");
    let len = room - rest.len();
    // SAFETY: writes from the local to standard error; the outcome does not matter.
    let _ = unsafe { libc::write(2, text.as_ptr().cast(), len) };
    std::process::abort()
}
