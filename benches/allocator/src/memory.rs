//! The allocator under test: `allocate`, `free` and `reallocate` of the one that this program was
//! built for, each called as a function of its own, as a C program calls `malloc`.

#[cfg(not(feature = "shmkit"))]
use std::ffi::c_void;

/// Adds a function per operation that calls the C function of that name.
#[cfg(not(feature = "shmkit"))]
macro_rules! c_allocator {
    ($malloc:path, $free:path, $realloc:path) => {
        /// A block of so many bytes.
        #[inline(always)]
        pub fn allocate(size: usize) -> *mut u8 {
            // SAFETY: any size may be asked for.
            unsafe { $malloc(size) }.cast()
        }

        /// Frees a block.
        ///
        /// # Safety
        ///
        /// It came from `allocate`, and nobody uses it any more.
        #[inline(always)]
        pub unsafe fn free(block: *mut u8) {
            // SAFETY: by the caller's promise.
            unsafe { $free(block.cast::<c_void>()) };
        }

        /// Moves a block to one of another size.
        ///
        /// # Safety
        ///
        /// As for `free`.
        #[inline(always)]
        pub unsafe fn reallocate(block: *mut u8, size: usize) -> *mut u8 {
            // SAFETY: by the caller's promise.
            unsafe { $realloc(block.cast::<c_void>(), size) }.cast()
        }
    };
}

#[cfg(any(feature = "mimalloc2", feature = "mimalloc3"))]
c_allocator!(
    libmimalloc_sys::mi_malloc,
    libmimalloc_sys::mi_free,
    libmimalloc_sys::mi_realloc
);
#[cfg(feature = "snmalloc")]
c_allocator!(
    snmalloc_sys::sn_malloc,
    snmalloc_sys::sn_free,
    snmalloc_sys::sn_realloc
);
#[cfg(feature = "jemalloc")]
c_allocator!(
    tikv_jemalloc_sys::malloc,
    tikv_jemalloc_sys::free,
    tikv_jemalloc_sys::realloc
);
#[cfg(feature = "system")]
c_allocator!(libc::malloc, libc::free, libc::realloc);

/// Comes before all else.
#[cfg(not(feature = "shmkit"))]
pub fn begin() {}

/// Bytes that the allocator has of the kernel, beyond what the process has mapped of it.
#[cfg(not(feature = "shmkit"))]
pub fn unmapped() -> u64 {
    0
}

#[cfg(feature = "shmkit")]
pub use pool::*;

#[cfg(feature = "shmkit")]
mod pool {
    use std::alloc::Layout;
    use std::cell::Cell;
    use std::os::fd::AsFd;
    use std::ptr::NonNull;

    use shmkit::Pool;

    struct Shared(Cell<Option<Pool>>);
    // SAFETY: written once, before there are other threads.
    unsafe impl Sync for Shared {}

    static POOL: Shared = Shared(Cell::new(None));

    /// Makes the pool that all blocks come from. Before there are other threads.
    pub fn begin() {
        POOL.0.set(Some(Pool::builder().create().expect("a pool")));
    }

    /// That pool.
    #[inline(always)]
    fn pool() -> Pool {
        // SAFETY: `main` begins with `begin`.
        unsafe { POOL.0.get().unwrap_unchecked() }
    }

    #[inline(always)]
    fn layout(size: usize) -> Layout {
        // SAFETY: the patterns ask for no more than some megabytes.
        unsafe { Layout::from_size_align_unchecked(size, 16) }
    }

    /// As that of the C allocators.
    #[inline(never)]
    pub fn allocate(size: usize) -> *mut u8 {
        match pool().allocate(layout(size)) {
            Ok(block) => block.as_ptr().cast(),
            Err(_) => std::ptr::null_mut(),
        }
    }

    /// As that of the C allocators.
    #[inline(never)]
    pub unsafe fn free(block: *mut u8) {
        // SAFETY: by the caller's promise; blocks are not null.
        let freed = unsafe { pool().deallocate(NonNull::new_unchecked(block)) };
        assert!(freed.is_ok());
    }

    /// As that of the C allocators.
    #[inline(never)]
    pub unsafe fn reallocate(block: *mut u8, size: usize) -> *mut u8 {
        // SAFETY: by the caller's promise; blocks are not null.
        match unsafe { pool().reallocate(NonNull::new_unchecked(block), layout(size)) } {
            Ok(moved) => moved.as_ptr().cast(),
            Err(_) => std::ptr::null_mut(),
        }
    }

    /// Bytes that the pool has of the kernel, beyond what this process has mapped of them.
    pub fn unmapped() -> u64 {
        let pool = pool();
        // SAFETY: the structure is the kernel's to fill.
        let held = unsafe {
            let mut stat = std::mem::zeroed::<libc::stat>();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&pool.fd().as_fd());
            assert_eq!(libc::fstat(fd, &mut stat), 0);
            stat.st_blocks as u64 * 512
        };
        held.saturating_sub(crate::resident("RssShmem:"))
    }
}
