//! Panics and faults as one line and an exit code.
//!
//! What is read from a pool is checked, so neither happens with a sound pool. If a damaged pool
//! nevertheless leads a report astray, for instance out of the pool's memory, the command must end
//! with one line, as for any other error, and not with a core dump.

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
        // SAFETY: zeros are a valid `sigaction`; the handler calls only what is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// If a file may not become that long (`RLIMIT_FSIZE`), a write must fail, and not end the program.
pub fn ignore_size_limit() {
    // SAFETY: no handler is installed. No other code in this program uses the signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
