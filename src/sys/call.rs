//! System calls without the C library, for a child that was just forked.
//!
//! A fork copies no page tables for code. So each function of the C library, or of the kernel's
//! page of functions, that a child calls for a system call costs it a page fault as well.

use rustix::io::Errno;

/// Makes a system call with these arguments; returns the kernel's answer.
///
/// # Safety
///
/// As for the call.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) unsafe fn bare(number: libc::c_long, arguments: [usize; 3]) -> Result<usize, Errno> {
    let [first, second, third] = arguments;
    let answer: isize;
    // SAFETY: by the kernel's convention, the call changes these registers and no others, and no
    // memory except what the call specifies, which is the caller's promise.
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

/// The same, through the C library.
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
