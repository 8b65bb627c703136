//! Panics and faults as one line and an exit code.
//!
//! What is read from a pool is checked, so neither happens with a pool that is sound. A damaged one
//! that leads a report astray all the same, out of the pool's memory for instance, is to end in a
//! line like any other error, not in a dump.

use crate::failure::Code;

const MESSAGE: &[u8] = b"shmkit: the pool is damaged: following it led out of its memory\n";

extern "C" fn on_fault(_signal: libc::c_int) {
    // SAFETY: both calls are async-signal-safe, and the second does not return.
    unsafe {
        libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
        libc::_exit(Code::Damaged as i32);
    }
}

/// From here on a panic prints one line, and a fault ends the process with [`Code::Damaged`].
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or(String::new(), |at| format!(" ({at})"));
        eprintln!("shmkit: the pool is damaged: a report could not be made{place}");
    }));
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: zeros are a valid `sigaction`; the handler calls what is async-signal-safe only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Where a file may not become so long (`RLIMIT_FSIZE`), a write is to fail, and not to end the program.
pub fn ignore_size_limit() {
    // SAFETY: no handler is given. Nobody else of this program asks for the signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
