//! shmkit's allocator behind the names of C: `malloc`, `free` and the rest, so that any program runs
//! on it.
//!
//! ```text
//! cargo build --release -p shmkit-malloc
//! LD_PRELOAD=target/release/libshmkit_malloc.so program
//! ```
//!
//! Every function is a few lines around [`shmkit::PrivateAlloc`], which has the process's one
//! private heap. What a C library's allocator must get right, and where it is done:
//!
//! | concern | answer |
//! |---------|--------|
//! | called before `main`, before constructors, by the loader | the heap is made at the first call, by system calls alone |
//! | called by itself | nothing on the way to a block allocates. Two calls to the C library may (a thread's key, the fork handler); they are made when the heap and the thread's slot are there to serve them |
//! | thread-local storage | one word, in the initial-exec model, declared in assembly; no destructor, but a `pthread` key for each thread's end |
//! | threads that end | give up their slot; what allocates or frees after that uses a common slot, under a lock |
//! | more than 4094 threads | share the common slot |
//! | `fork` | the child has a copy; its thread keeps its slot, the other threads' slots are recovered as those of the dead when memory is needed. No lock is held around the fork |
//! | `vfork`, `posix_spawn` | the child uses its parent's memory as its parent's thread |
//! | closed descriptors | none is kept. The growth step reads `/proc/meminfo` and the control group's limit, if it can |
//! | `errno` | as before on success; ENOMEM on failure |
//! | signal handlers | must not allocate, as with any C library |
//! | `ulimit -v` | the heap may grow to half of it |
//! | seccomp | needed: `mmap`, `munmap`, `mprotect`, `madvise`, `gettid`; called, and may be refused: `getrandom`, `prlimit64`, `openat` (with `read`, `close`); where more threads than slots wait for each other: `getpid`, `tgkill`, `sched_yield` |
//!
//! # Misuse
//!
//! A double free, a pointer into the middle of a block or to no block is not obeyed: the process
//! is ended with a message on standard error and SIGABRT, as by glibc. Nothing else is printed.
//!
//! # Sizes
//!
//! `malloc(0)` is a block like any other. Alignment is 16. More than `PTRDIFF_MAX`, and a product
//! that overflows, is ENOMEM. `realloc(p, 0)` frees and returns null, as in glibc.

use std::alloc::Layout;
use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};

use shmkit::{PrivateAlloc, ReallocError};

const HEAP: PrivateAlloc = PrivateAlloc::new();
/// The alignment of every block.
const ALIGN: usize = 16;

#[cold]
fn fail(errno: c_int) -> *mut c_void {
    // SAFETY: this thread's own `errno`.
    unsafe { *libc::__errno_location() = errno };
    null_mut()
}

#[inline]
fn allocate(layout: Layout) -> *mut c_void {
    match HEAP.allocate(layout) {
        Ok(block) => block.as_ptr().cast(),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// C's `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    match Layout::from_size_align(size, ALIGN) {
        Ok(layout) => allocate(layout),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// C's `free`.
///
/// # Safety
///
/// `block` is null, or a block of this allocator that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    if let Some(block) = NonNull::new(block) {
        // SAFETY: by the caller's promise.
        unsafe { HEAP.deallocate_or_abort(block.cast()) };
    }
}

/// C's `calloc`.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let layout = count
        .checked_mul(size)
        .and_then(|size| Layout::from_size_align(size, ALIGN).ok());
    match layout.map(|layout| HEAP.allocate_zeroed(layout)) {
        Some(Ok(block)) => block.as_ptr().cast(),
        _ => fail(libc::ENOMEM),
    }
}

/// C's `realloc`.
///
/// # Safety
///
/// As for [`free`], if it succeeds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    let Some(old) = NonNull::new(block.cast::<u8>()) else {
        return malloc(size);
    };
    if size == 0 {
        // SAFETY: by the caller's promise.
        unsafe { HEAP.deallocate_or_abort(old) };
        return null_mut();
    }
    let Ok(layout) = Layout::from_size_align(size, ALIGN) else {
        return fail(libc::ENOMEM);
    };
    // SAFETY: by the caller's promise.
    match unsafe { HEAP.reallocate(old, layout) } {
        Ok(moved) => moved.as_ptr().cast(),
        // SAFETY: refused again, and so the process ends: it was no block.
        Err(ReallocError::NotABlock(_)) => unsafe {
            HEAP.deallocate_or_abort(old);
            null_mut()
        },
        Err(_) => fail(libc::ENOMEM),
    }
}

/// C's `reallocarray`.
///
/// # Safety
///
/// As for [`realloc`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(
    block: *mut c_void,
    count: usize,
    size: usize,
) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: by the caller's promise.
        Some(size) => unsafe { realloc(block, size) },
        None => fail(libc::ENOMEM),
    }
}

fn aligned(align: usize, size: usize) -> *mut c_void {
    match Layout::from_size_align(size, align.max(ALIGN)) {
        Ok(layout) => allocate(layout),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// C's `aligned_alloc`. An alignment that is no power of two is EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if align.is_power_of_two() {
        aligned(align, size)
    } else {
        fail(libc::EINVAL)
    }
}

/// The C library's `memalign`. An alignment that is no power of two is taken for the next one.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    match align.checked_next_power_of_two() {
        Some(align) => aligned(align, size),
        None => fail(libc::EINVAL),
    }
}

/// C's `posix_memalign`.
///
/// # Safety
///
/// `place` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(
    place: *mut *mut c_void,
    align: usize,
    size: usize,
) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    let Ok(layout) = Layout::from_size_align(size, align.max(ALIGN)) else {
        return libc::ENOMEM;
    };
    match HEAP.allocate(layout) {
        Ok(block) => {
            // SAFETY: by the caller's promise.
            unsafe { place.write(block.as_ptr().cast()) };
            0
        }
        Err(_) => libc::ENOMEM,
    }
}

fn page_size() -> usize {
    // SAFETY: reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// The C library's `valloc`.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned(page_size(), size)
}

/// The C library's `pvalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page = page_size();
    match size.checked_next_multiple_of(page) {
        Some(size) => aligned(page, size.max(page)),
        None => fail(libc::ENOMEM),
    }
}

/// The C library's `malloc_usable_size`.
///
/// # Safety
///
/// `block` is null or a block of this allocator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    NonNull::new(block.cast()).map_or(0, |block| HEAP.usable_size(block).unwrap_or(0))
}
