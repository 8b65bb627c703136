//! System calls without the C library, for a child that was just forked.
//!
//! A fork copies no page tables of code. So a function of the C library, or of the kernel's page of
//! functions, that a child calls for one system call costs it a page fault besides.

use rustix::io::Errno;

/// Calls the kernel with these arguments; what it answers.
///
/// # Safety
///
/// As for the call.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) unsafe fn bare(number: libc::c_long, arguments: [usize; 3]) -> Result<usize, Errno> {
    let [first, second, third] = arguments;
    let answer: isize;
    // SAFETY: the kernel's convention, by which it changes these registers and no others, and no memory
    // but what the call says, which is the caller's promise.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => answer,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    match answer {
        -4095..0 => Err(Errno::from_raw_os_error(-answer as i32)),
        _ => Ok(answer.cast_unsigned()),
    }
}

/// The same, by the C library.
///
/// # Safety
///
/// As for the call.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn bare(number: libc::c_long, arguments: [usize; 3]) -> Result<usize, Errno> {
    let [first, second, third] = arguments;
    // SAFETY: the caller's promise.
    match unsafe { libc::syscall(number, first, second, third) } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS)),
        answer => Ok(answer as usize),
    }
}
